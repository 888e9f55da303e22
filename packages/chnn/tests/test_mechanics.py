"""Constraints and equations of motion against textbook formulas and independent derivations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chnn.mechanics import hamiltonian_velocity, lagrangian_acceleration
from chnn.systems import GRAVITY, ChainPendulum, CoupledPendulum, System
from lie.run import UserError
from scipy.integrate import solve_ivp

SYSTEMS = [
    ChainPendulum(1),
    ChainPendulum(3, masses=[1.0, 2.0, 0.5], lengths=[0.7, 1.1, 1.3]),
    CoupledPendulum(3, masses=[1.0, 2.0, 0.5]),
]
DTYPES = [torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")
def test_residuals_and_their_rates_are_derivatives(system: System):
    z = torch.randn(5, 2, system.num_points, system.spatial_dim, dtype=torch.float64, generator=generator())
    _, rate = torch.func.jvp(lambda x: system.constraints(torch.stack([x, z[:, 1]], 1)), (z[:, 0],), (z[:, 1],))
    torch.testing.assert_close(0.5 * rate, system.velocity_constraints(z))
    x = z[:, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(system.potential(x).sum(), x)
    torch.testing.assert_close(system.force(z[:, 0]), -gradient)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")
def test_acceleration_solves_the_saddle_point_system(system: System):
    """An independent computation: the dense KKT system with autograd's Jacobian, by LU."""
    z = system.sample(4, generator=generator())
    acceleration = system.field(z)[:, 1]
    for state, got in zip(z, acceleration, strict=True):
        x, v = state

        def residual(position, v=v):
            return 0.5 * system.constraints(torch.stack([position, v]))

        J = torch.func.jacrev(residual)(x).flatten(1)  # noqa: N806
        H = torch.func.hessian(residual)(x).flatten(1, 2).flatten(2)  # noqa: N806
        M = torch.diag(system.masses.repeat_interleave(system.spatial_dim))  # noqa: N806
        curvature = torch.einsum("cij,i,j->c", H, v.flatten(), v.flatten())
        C = len(J)  # noqa: N806
        kkt = torch.cat([torch.cat([M, J.T], 1), torch.cat([J, torch.zeros(C, C, dtype=M.dtype)], 1)])
        solution = torch.linalg.solve(kkt, torch.cat([system.force(x).flatten(), -curvature]))
        torch.testing.assert_close(got.flatten(), solution[: x.numel()], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_forms_agree_on_the_constraints_and_batch_mates_do_not_matter(system: System, dtype):
    z = system.sample(6, generator=generator()).to(dtype)
    x, v = z.unbind(1)
    masses = system.masses.to(z)
    constraints, inverse = system.constraints_on_points.to(z), torch.diag(1 / masses)
    acceleration = lagrangian_acceleration(constraints, inverse, x, v, system.force(x))
    dx, dp = hamiltonian_velocity(constraints, inverse, x, masses.unsqueeze(-1) * v, system.force(x))
    scale = acceleration.abs().max()
    tolerance = 2e5 * torch.finfo(dtype).eps  # Gram matrices of chains are conditioned up to a thousand
    assert dx.dtype == dtype
    assert (dx - v).abs().max() <= tolerance * v.abs().max()
    assert (dp / masses.unsqueeze(-1) - acceleration).abs().max() <= tolerance * scale
    alone = lagrangian_acceleration(constraints, inverse, x[2:3], v[2:3], system.force(x[2:3]))
    torch.testing.assert_close(alone, acceleration[2:3])


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")
def test_oblique_projection_is_tangent_and_symplectic_off_the_constraints_too(system: System):
    """D Psi z' = 0 for Psi = (g, J M^-1 p) at any (x, p), against a dense solve of the 2C x 2C system."""
    n, d = system.num_points, system.spatial_dim
    z = torch.randn(3, 2, n, d, dtype=torch.float64, generator=generator())
    inverse = torch.diag(1 / system.masses)
    for x, p in z:
        got = torch.cat([a.flatten() for a in hamiltonian_velocity(
            system.constraints_on_points, inverse, x, p, system.force(x))])  # fmt: skip

        def psi(flat):
            x, p = flat.view(2, n, d)
            state = torch.stack([x, inverse @ p])
            return torch.cat([0.5 * system.constraints(state), system.velocity_constraints(state)])

        flat = torch.cat([x.flatten(), p.flatten()])
        D = torch.func.jacrev(psi)(flat)  # noqa: N806
        eye = torch.eye(n * d, dtype=torch.float64)
        J = torch.zeros(2 * n * d, 2 * n * d, dtype=torch.float64)  # noqa: N806
        J[: n * d, n * d :], J[n * d :, : n * d] = eye, -eye
        free = torch.cat([(inverse @ p).flatten(), system.force(x).flatten()])
        expected = free - J @ D.T @ torch.linalg.solve(D @ J @ D.T, D @ free)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        assert (D @ got).abs().max() < 1e-9 * D.abs().max() * got.abs().max()


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projection(system: System, dtype):
    z = system.sample(20, generator=generator()).to(dtype)
    off = z + 0.1 * torch.randn(z.shape, dtype=dtype, generator=generator(1))
    before = off.clone()
    onto = system.project(off)
    assert torch.equal(off, before)
    eps = torch.finfo(dtype).eps
    assert system.constraints(onto).abs().max() <= 32 * eps
    assert system.velocity_constraints(onto).abs().max() <= 32 * eps * onto.abs().max()
    torch.testing.assert_close(system.project(onto), onto, rtol=0, atol=64 * eps * float(onto.abs().max()))
    # The velocity moved by M^-1 J^T only: orthogonally, in the mass metric, to every tangent velocity.
    moved = onto[:, 1] - off[:, 1]
    product = (system.masses.to(z).unsqueeze(-1) * moved * onto[:, 1]).sum((-2, -1))
    assert product.abs().max() <= 1e3 * eps * onto.abs().max() ** 2


def test_energy_is_kinetic_plus_potential_and_rest_is_lowest():
    system = ChainPendulum(2, masses=[2.0, 3.0], lengths=[1.0, 0.5])
    z = torch.tensor([[[[0.0, -1.0], [0.5, -1.0]], [[1.0, 0.0], [1.0, 2.0]]]], dtype=torch.float64)
    expected = 0.5 * 2 * 1 + 0.5 * 3 * 5 - GRAVITY * (2 * 1 + 3 * 1)
    torch.testing.assert_close(system.energy(z), torch.tensor([expected], dtype=torch.float64))
    for each in SYSTEMS:
        assert (each.energy_scale(each.sample(200, generator=generator())) > 0).all()
        assert each.field(each.rest()).abs().max() < 1e-13


def chain_in_angles(system: ChainPendulum):
    """The n-link pendulum in minimal coordinates, derived from the Lagrangian in angles (theta from hanging).

    M_ij = m_(max(i, j)...) l_i l_j cos(theta_i - theta_j); the centrifugal term is
    sum_j mu_ij sin(theta_i - theta_j) omega_j^2 and the weight mu_ii / l_i g sin theta_i.
    """
    masses, lengths = system.masses.numpy(), system.constraints_on_points.lengths.numpy()
    n = len(masses)
    beyond = np.cumsum(masses[::-1])[::-1]
    mu = np.array([[beyond[max(i, j)] * lengths[i] * lengths[j] for j in range(n)] for i in range(n)])

    def field(_, y):
        theta, omega = y[:n], y[n:]
        difference = theta[:, None] - theta[None]
        rhs = -(mu * np.sin(difference)) @ omega**2 - GRAVITY * beyond * lengths * np.sin(theta)
        return np.concatenate([omega, np.linalg.solve(mu * np.cos(difference), rhs)])

    return field


@pytest.mark.parametrize("system", [ChainPendulum(1), ChainPendulum(2, masses=[1.0, 2.0], lengths=[0.8, 1.2]),
                                    ChainPendulum(3)], ids=lambda s: str(s.num_points))  # fmt: skip
def test_simulation_agrees_with_minimal_coordinates(system: ChainPendulum):
    """1e-9 relative over one second; beyond, chaos multiplies the rounding of both."""
    z0 = system.sample(5, generator=generator())
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    z = system.simulate(z0, t, rtol=1e-12)
    angles = system.to_angles(z0)
    for start, got in zip(angles, z, strict=True):
        truth = solve_ivp(chain_in_angles(system), (0, 1), start.flatten().numpy(), "DOP853", t.numpy(), rtol=1e-13,
                          atol=1e-13)  # fmt: skip
        expected = system.from_angles(torch.from_numpy(truth.y.T.copy()).unflatten(-1, (2, -1)))
        assert (got - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_angles_and_their_inverse_also_for_horizontal_rods(dtype):
    system = ChainPendulum(3, lengths=[0.5, 1.0, 2.0])
    angles = torch.rand(50, 2, 3, dtype=dtype, generator=generator()) * 6 - 3
    angles[0, 0] = torch.tensor([torch.pi / 2, -torch.pi / 2, 0.0])
    z = system.from_angles(angles)
    assert system.constraints(z).abs().max() <= 64 * torch.finfo(dtype).eps
    # Rates divide by the shortest rod; positions of the last link are sums of three.
    torch.testing.assert_close(system.to_angles(z), angles, rtol=0, atol=200 * torch.finfo(dtype).eps)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(system.to_angles(z).sum(), z)
    assert torch.isfinite(gradient).all()


def test_errors_name_the_body_and_the_remedy():
    with pytest.raises(UserError, match="at least one link, got 0"):
        ChainPendulum(0)
    with pytest.raises(UserError, match="positive finite masses, got -1 for body 1"):
        ChainPendulum(2, masses=[1.0, -1.0])
    with pytest.raises(UserError, match="expected 2 lengths, one a body, got 3"):
        ChainPendulum(2, lengths=[1.0, 1.0, 1.0])
    with pytest.raises(UserError, match="spring constant"):
        CoupledPendulum(2, spring_constant=-1.0)
    with pytest.raises(UserError, match=r"expected states of shape \(\.\.\., 2, 2, 2\)"):
        ChainPendulum(2).energy(torch.zeros(3, 2, 2))
    with pytest.raises(UserError, match=r"cannot project sample \[0\]"):
        ChainPendulum(1).project(torch.zeros(1, 2, 1, 2))
