"""Trajectories against independent derivations in minimal coordinates, and drifts over ten horizons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chnn.systems import GRAVITY, CartPole, ChainPendulum, CoupledPendulum, Gyroscope, MagnetPendulum, Rotor, System
from scipy.integrate import solve_ivp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def solve(field, start, t):
    return solve_ivp(field, (0, t[-1]), start, "DOP853", t, rtol=1e-13, atol=1e-13).y.T


def chain_in_angles(system: ChainPendulum):
    """The n-link pendulum in angles from hanging: mu cos(difference) theta'' + mu sin(difference) omega^2 = weight."""
    masses, lengths = system.masses.numpy(), system.lengths.numpy()
    n = len(masses)
    beyond = np.cumsum(masses[::-1])[::-1]
    mu = np.array([[beyond[max(i, j)] * lengths[i] * lengths[j] for j in range(n)] for i in range(n)])

    def field(_, y):
        theta, omega = y[:n], y[n:]
        difference = theta[:, None] - theta[None]
        rhs = -(mu * np.sin(difference)) @ omega**2 - GRAVITY * beyond * lengths * np.sin(theta)
        return np.concatenate([omega, np.linalg.solve(mu * np.cos(difference), rhs)])

    return field


def chain(system: ChainPendulum, z0: np.ndarray, t: np.ndarray) -> np.ndarray:
    angles = system.to_angles(torch.from_numpy(z0))
    y = solve(chain_in_angles(system), angles.flatten().numpy(), t)
    theta, omega = y[:, : system.links], y[:, system.links :]
    rods = system.lengths.numpy()[:, None] * np.stack([np.sin(theta), -np.cos(theta)], -1)
    turn = system.lengths.numpy()[:, None] * np.stack([np.cos(theta), np.sin(theta)], -1) * omega[..., None]
    return np.stack([rods.cumsum(1), turn.cumsum(1)], 1)


def body(mass, moments, arm, torque):
    """Euler's equations about a fixed point: I omega' = (I omega) x omega + torque, R' = R hat(omega)."""
    S = np.diag(moments)
    inertia = np.trace(S) * np.eye(3) - S + mass * (arm @ arm * np.eye(3) - np.outer(arm, arm))

    def field(_, y):
        R, omega = y[:9].reshape(3, 3), y[9:]
        hat = np.cross(np.eye(3), omega)  # rows e_i x omega: hat(omega)
        return np.concatenate(
            [(R @ hat).ravel(), np.linalg.solve(inertia, np.cross(inertia @ omega, omega) + torque(R))]
        )

    return field


def rigid(system, z0: np.ndarray, t: np.ndarray) -> np.ndarray:
    R, rate = ((part[1:] - part[0]).T for part in z0)
    hat = R.T @ rate
    omega = np.array([hat[2, 1], hat[0, 2], hat[1, 0]])
    mass = float(system.masses[0])
    if system.pivot is None:
        arm = np.zeros(3)
        field = body(mass, system.moments, arm, lambda R: np.zeros(3))
        centre, drift = z0[0, 0] + t[:, None] * z0[1, 0], np.broadcast_to(z0[1, 0], (len(t), 3))
    else:
        arm = -np.array(system.pivot)
        field = body(mass, system.moments, arm, lambda R: np.cross(arm, R.T @ [0.0, 0.0, -mass * GRAVITY]))
    y = solve(field, np.concatenate([R.ravel(), omega]), t)
    R, omega = y[:, :9].reshape(-1, 3, 3), y[:, 9:]
    rate = R @ np.stack([np.cross(np.eye(3), w) for w in omega])
    if system.pivot is not None:
        centre, drift = R @ arm, rate @ arm
    x = np.concatenate([centre[:, None], centre[:, None] + R.transpose(0, 2, 1)], 1)
    v = np.concatenate([drift[:, None], drift[:, None] + rate.transpose(0, 2, 1)], 1)
    return np.stack([x, v], 1)


def cart_pole(system: CartPole, z0: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The textbook equations in the cart's place and the pole's angle from hanging, with friction on the cart."""
    M, m = system.masses.tolist()
    half = 0.5 * system.pole_length
    inertia = m * system.pole_length**2 / 12 + m * half**2

    def field(_, y):
        _, theta, speed, omega = y
        matrix = np.array([[M + m, m * half * np.cos(theta)], [m * half * np.cos(theta), inertia]])
        rhs = [m * half * omega**2 * np.sin(theta) - system.damping * speed, -m * GRAVITY * half * np.sin(theta)]
        return np.concatenate([[speed, omega], np.linalg.solve(matrix, rhs)])

    y = solve(field, system.to_angles(torch.from_numpy(z0)).flatten().numpy(), t)
    return system.from_angles(torch.from_numpy(y.reshape(-1, 2, 2).copy())).numpy()


def spheres(system, z0: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Bobs on the lower half of their spheres, by q = (x, y) with z = -sqrt(l^2 - q^2).

    (1 + q q^T / z^2) q'' = (f_q - f_z q / z) / m - q (q'^2 + z'^2) / z^2.
    """
    anchors, lengths, masses = system.anchors.numpy(), system.lengths.numpy()[:, None], system.masses.numpy()[:, None]
    n = len(masses)

    def force(place):
        f = np.zeros_like(place)
        f[:, 2] -= (GRAVITY * masses)[:, 0]
        if isinstance(system, CoupledPendulum):
            gap = place[1:] - place[:-1]
            size = np.linalg.norm(gap, axis=1, keepdims=True)
            pull = system.spring_constant * (size - 1.0) * gap / size
            f[:-1] += pull
            f[1:] -= pull
        else:
            for k in range(3):  # a complex step: the derivative of an analytic function to rounding
                x = place[0].astype(complex)
                x[k] += 1e-30j
                f[0, k] -= magnetic(system, x).imag / 1e-30
        return f

    def heights(q, rate):
        z = -np.sqrt(lengths**2 - (q**2).sum(1, keepdims=True))
        return z, -(q * rate).sum(1, keepdims=True) / z

    def field(_, y):
        q, rate = y.reshape(2, n, 2)
        z, climb = heights(q, rate)
        f = force(anchors + np.concatenate([q, z], 1))
        rhs = (f[:, :2] - f[:, 2:] * q / z) / masses - q * ((rate**2).sum(1, keepdims=True) + climb**2) / z**2
        matrix = np.eye(2) + q[:, :, None] * q[:, None] / z[..., None] ** 2
        return np.concatenate([rate.ravel(), np.linalg.solve(matrix, rhs[..., None]).ravel()])

    start = np.stack([z0[0, :, :2] - anchors[:, :2], z0[1, :, :2]])
    y = solve(field, start.ravel(), t).reshape(-1, 2, n, 2)
    out = []
    for q, rate in y:
        z, climb = heights(q, rate)
        out.append(np.stack([anchors + np.concatenate([q, z], 1), np.concatenate([rate, climb], 1)]))
    return np.stack(out)


def magnetic(system: MagnetPendulum, x: np.ndarray):
    """-m . B of the bob's dipole in the field B = (3 r (m r) / r^5 - m / r^3) / 4 pi of each magnet."""
    m0 = system.dipole * x / np.sqrt((x * x).sum())
    energy = 0.0
    for place in system.places.numpy():
        r = x - place
        square = (r * r).sum()
        moment = np.array([0.0, 0.0, system.dipole])
        field = (3.0 * r * (moment * r).sum() / square**2.5 - moment / square**1.5) / (4.0 * np.pi)
        energy = energy - (m0 * field).sum()
    return energy


@pytest.mark.parametrize(
    ("system", "reference", "horizon"),
    [
        (ChainPendulum(1), chain, 3.0),
        (ChainPendulum(2, masses=[1.0, 2.0], lengths=[0.8, 1.2]), chain, 2.0),
        (ChainPendulum(3), chain, 1.0),  # beyond, chaos multiplies the rounding of both
        (CoupledPendulum(3, masses=[1.0, 2.0, 0.5], lengths=[1.0, 0.9, 1.1]), spheres, 5.0),
        (MagnetPendulum(), spheres, 1.0),
        (Gyroscope(), rigid, 2.0),
        (Rotor(), rigid, 5.0),
        (CartPole(damping=0.3), cart_pole, 3.0),
    ],
    ids=lambda value: f"{value.name}{value.num_points}" if isinstance(value, System) else "",
)
def test_agreement_with_minimal_coordinates(system, reference, horizon):
    z0 = system.sample(4, generator=generator(3))
    t = torch.linspace(0, horizon, 11, dtype=torch.float64)
    z = system.simulate(z0, t, rtol=1e-13, atol=1e-14)
    for start, got in zip(z0.numpy(), z.numpy(), strict=True):
        expected = reference(system, start, t.numpy())
        assert np.linalg.norm(got - expected) <= 1e-9 * np.linalg.norm(expected)


def test_the_published_sign_is_another_system():
    place = torch.tensor([[0.2, 0.1, -0.9]], dtype=torch.float64)
    right, published = MagnetPendulum(), MagnetPendulum(published_sign=True)
    gravity = GRAVITY * 3.0 * float(place[0, 2])
    assert float(right.potential(place)) - gravity == pytest.approx(magnetic(right, place[0].numpy()), rel=1e-12)
    assert float(published.potential(place)) != pytest.approx(float(right.potential(place)), rel=1e-6)


@pytest.mark.parametrize(
    "system", [ChainPendulum(3), ChainPendulum(5), Gyroscope()], ids=lambda s: f"{s.name}{s.num_points}"
)
def test_drifts_over_ten_horizons(system: System):
    z0 = system.sample(20, generator=generator())
    t = torch.linspace(0, 10 * system.horizon, 101, dtype=torch.float64)
    z = system.simulate(z0, t, rtol=1e-12)
    energy = system.energy(z)
    drift = ((energy - energy[:, :1]).abs() / system.energy_scale(z0).unsqueeze(1)).amax(1)
    assert float(drift.median()) <= 1e-11
    assert float(system.constraints(z).abs().max()) <= 1e-14
