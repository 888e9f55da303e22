"""Trajectories keep constraints and energy, agree with minimal coordinates, treat samples alone, and fail clearly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from chnn.mechanics import Assembly, ball
from chnn.simulation import IntegrationError
from chnn.systems import Bead, CartPole, ChainPendulum, CoupledPendulum, FourBar, Gyroscope, Rotor, Satellite, System
from lie.run import UserError
from scipy.special import ellipj, ellipk


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SYSTEMS = [
    ChainPendulum(2),
    ChainPendulum(5),
    CoupledPendulum(3),
    Gyroscope(),
    Rotor(),
    CartPole(),
    Satellite(),
    FourBar(),
]
each_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")


@each_system
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_constraints_and_energy_along_a_trajectory(system: System, backend: str):
    z0 = system.sample(4, generator=generator())
    t = torch.linspace(0, 0.5 if backend == "torch" else 1.5, 16, dtype=torch.float64)
    for rtol, bound in ((1e-7, 1e-5), (1e-11, 1e-9)):
        z = system.simulate(z0, t, rtol=rtol, backend=backend)
        drift = (system.energy(z) - system.energy(z0).unsqueeze(1)).abs() / system.energy_scale(z0).unsqueeze(1)
        assert drift.max() < bound  # the tolerance times the number of steps, under 100 here
        assert system.constraints(z).abs().max() <= 1e-14
        assert system.velocity_constraints(z).abs().max() <= 1e-13 * max(1.0, float(z.abs().max()))
    assert z.dtype == torch.float64 and z.shape == (4, 16, 2, system.num_points, system.spatial_dim)
    torch.testing.assert_close(z[:, 0], z0, rtol=0, atol=1e-13)


def test_the_exact_pendulum():
    """A single pendulum from rest at angle a: sin(theta/2) = k sn(K - w t), k = sin(a/2) (elliptic functions)."""
    a, t = 2.0, torch.linspace(0, 3, 31, dtype=torch.float64)
    system = ChainPendulum(1)
    z0 = system.from_angles(torch.tensor([[[a], [0.0]]], dtype=torch.float64))
    z = system.simulate(z0, t, rtol=1e-12)
    k, w = math.sin(a / 2), math.sqrt(9.81)
    sn = torch.from_numpy(ellipj(ellipk(k**2) - w * t.numpy(), k**2)[0])
    torch.testing.assert_close(system.to_angles(z)[0, :, 0, 0], 2 * (k * sn).asin(), rtol=0, atol=1e-10)


def test_momenta_that_symmetry_keeps():
    """Free bodies keep both momenta, a top the vertical angular momentum, a bead in a round bowl too."""
    t = torch.linspace(0, 2, 5, dtype=torch.float64)
    for system, axes, linear in ((Satellite(), [0, 1, 2], True), (Rotor(), [0, 1, 2], True), (Gyroscope(), [2], False),
                                 (Bead(), [2], False)):  # fmt: skip
        z0 = system.sample(3, generator=generator())
        z = system.simulate(z0, t, rtol=1e-11)
        spin = system.angular_momentum(z)
        assert spin[..., axes].sub(spin[:, :1, axes]).abs().max() <= 1e-9 * spin.abs().max()
        if linear:
            momentum = system.momentum(z)
            assert momentum.sub(momentum[:, :1]).abs().max() <= 1e-11 * momentum.abs().max()


def test_damping_takes_and_a_push_gives_energy():
    system = CartPole(damping=0.5)
    z0, t = system.sample(3, generator=generator()), torch.linspace(0, 2, 21, dtype=torch.float64)
    z = system.simulate(z0, t, rtol=1e-9)
    assert (system.energy(z).diff(dim=1) < 0).all()
    # dE/dt = u v - c v^2: the balance over time, by Simpson's rule on fine outputs.
    t = torch.linspace(0, 2, 401, dtype=torch.float64)
    push = system.control(lambda t, x, v: 2.0 * torch.sin(3.0 * t.reshape(-1)) - 0.3 * v[..., 0, 0])
    z = system.simulate(z0, t, rtol=1e-10, external=push)
    speed = z[:, :, 1, 0, 0]
    power = (2.0 * torch.sin(3.0 * t) - 0.3 * speed) * speed - 0.5 * speed.square()
    weights = torch.ones(401, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    work = (power * weights).sum(1) * (0.005 / 3)
    torch.testing.assert_close(work, system.energy(z[:, -1]) - system.energy(z0), rtol=0, atol=1e-7)


def test_gradients_through_a_simulation():
    system = ChainPendulum(2)
    z0 = system.sample(2, generator=generator()).requires_grad_()
    t = torch.tensor([0.0, 0.2], dtype=torch.float64)
    w = torch.randn(z0.shape, dtype=torch.float64, generator=generator(1))
    (gradient,) = torch.autograd.grad((system.simulate(z0, t, rtol=1e-10)[:, -1] * w).sum(), z0)
    # Along a motion that stays on the constraints: turning the first rod and what hangs on it.
    angles = system.to_angles(z0.detach())
    h, turn = 1e-5, torch.tensor([[1.0, 0.5], [0.3, -1.0]], dtype=torch.float64)
    ends = [
        (system.simulate(system.from_angles(angles + s * h * turn), t, rtol=1e-12)[:, -1] * w).sum() for s in (1, -1)
    ]
    along = (system.from_angles(angles + h * turn) - system.from_angles(angles - h * turn)) / (2 * h)
    # Truncation h^2, and step sizes count as constants: an error of the size of the tolerance over h.
    assert float((gradient * along).sum()) == pytest.approx(float((ends[0] - ends[1]) / (2 * h)), rel=1e-5)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_samples_do_not_change_one_another(backend: str):
    system = ChainPendulum(2)
    z0 = system.sample(6, generator=generator())
    z0[3, 1] *= 6.0  # one fast sample takes many more steps
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    together = system.simulate(z0, t, rtol=1e-9, backend=backend)
    alone = system.simulate(z0[1:2], t, rtol=1e-9, backend=backend)
    # The same steps; batched kernels may sum in another order.
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-11)


def singular() -> System:
    """A body that falls into a centre of attraction -1/r^2 from rest: it arrives at t = pi / 4 with infinite speed."""
    world = Assembly(2)
    world.point("comet", 1.0, position=(1.0, 0.0))
    world.potential(lambda x: -0.5 / (x[..., 0, :] ** 2).sum(-1))
    return System(world.build("comet"))


def test_gradients_through_outputs_within_steps():
    """Step sizes count as constants: the gradient is that of outputs that are steps, up to the error of both."""
    system = ChainPendulum(2)
    start = system.sample(2, generator=generator())
    t = torch.tensor([0.0, 0.13, 0.2], dtype=torch.float64)
    w = torch.randn(2, 3, *start.shape[1:], dtype=torch.float64, generator=generator(1))
    gradients = []
    for dense in (False, True):
        z0 = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad((system.simulate(z0, t, 1e-11, dense=dense) * w).sum(), z0)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-8 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_failures_name_sample_and_time_and_keep_what_was_reached(backend: str, dense: bool):
    system = singular()
    z0 = torch.zeros(2, 2, 1, 2, dtype=torch.float64)
    z0[0, 0, 0, 0], z0[1, 0, 0, 0] = 3.0, 1.0
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    # x'' = -1/x^3: x^2 = 1 - t^2, so it arrives at t = 1.
    with pytest.raises(IntegrationError, match=r"at t = (1|0\.99999\d*) .*sample 1") as failure:
        system.simulate(z0, t, backend=backend, dense=dense)
    reached = failure.value.reached
    assert reached is not None and failure.value.samples == [1]
    assert reached.shape == (2, 9, 2, 1, 2)
    assert float(reached[1, 2, 0, 0, 0]) == pytest.approx(math.sqrt(1 - 0.25), abs=1e-5)
    assert reached[1, 8].isnan().all()
    with pytest.raises(IntegrationError, match="not done after 3 steps"):
        ChainPendulum(2).simulate(ChainPendulum(2).sample(1), t, max_steps=3, backend=backend, dense=dense)


def test_simulate_refuses_bad_input():
    system = ChainPendulum(2)
    z0, t = system.sample(3, generator=generator()), torch.linspace(0, 1, 3)
    with pytest.raises(UserError, match=r"shape \(B, 2, n, d\), got \(2, 2, 2\)"):
        system.simulate(z0[0], t)
    with pytest.raises(UserError, match="increasing finite times"):
        system.simulate(z0, t.flip(0))
    with pytest.raises(UserError, match="between 0 and 1"):
        system.simulate(z0, t, rtol=0.0)
    with pytest.raises(UserError, match="did you mean 'numba'"):
        system.simulate(z0, t, backend="nunba")
    bad = z0.clone()
    bad[1, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="NaN or infinity in sample 1"):
        system.simulate(bad, t)
    with pytest.raises(UserError, match=r"sample 0 starts off the constraints.*bob 0 is off.*project"):
        system.simulate(z0 + 0.1, t)
    assert system.simulate(z0.float(), t).dtype == torch.float64  # float32 states are projected
    with pytest.raises(UserError, match=r"sample \d starts off the constraints.*off_constraints='project'"):
        system.simulate(z0.float(), t, off_constraints="refuse")
    moving = z0.clone()
    moving[2, 1] += 0.1
    with pytest.raises(UserError, match="sample 2 moves off the constraints"):
        system.simulate(moving, t, off_constraints="refuse")
    with pytest.raises(UserError, match="'project' or 'refuse'"):
        system.simulate(z0, t, off_constraints="ignore")


@each_system
def test_sampling_is_reproducible_and_on_the_constraints(system: System):
    first, again = system.sample(50, generator=generator(1)), system.sample(50, generator=generator(1))
    assert torch.equal(first, again) and not torch.equal(first, system.sample(50, generator=generator(2)))
    if system.constraints_on_points.num_constraints:
        assert system.constraints(first).abs().max() <= 1e-13
        assert system.velocity_constraints(first).abs().max() <= 1e-12 * max(1.0, float(first.abs().max()))
    assert (system.energy_scale(first) > 0).all()
    # Bodies stay right-handed.
    for body in system.description.bodies:
        if body.dim == 3:
            axes = first[:, 0, body.first + 1 : body.first + 4] - first[:, 0, body.first, None]
            assert (torch.linalg.det(axes) > 0.99).all()


def test_a_system_of_ones_own_in_a_few_lines():
    world = Assembly(3)
    top = world.body("top", 3, ball(2.0, 0.1))
    bob = world.point("bob", 1.0, position=(1.0, 0.0, 0.0))
    world.pin(top.at(0.0, 0.0, 0.2), (0.0, 0.0, 0.0))
    world.distance(top.at(0.0, 0.0, -0.3), bob, 1.0)
    world.gravity()
    system = System(world.build("own"))
    assert system.description.degrees_of_freedom == 5
    z = system.simulate(system.sample(2, generator=generator()), torch.linspace(0, 1, 6), 1e-10)
    energy = system.energy(z)
    assert (energy - energy[:, :1]).abs().max() <= 1e-8 * energy.abs().max()
    rest = system.rest()
    assert system.field(rest)[1].abs().max() < 1e-4  # the search ends where the energy is flat to rounding
    assert float(rest[0, bob.body.first, 2]) == pytest.approx(-1.5, abs=1e-6)


def spring_of(k: torch.Tensor | float) -> System:
    """A point of 1 kg in the plane with the potential k x^2 along the first axis: x'' = -2 k x."""
    world = Assembly(2)
    world.point("bob", 1.0)
    world.potential(lambda x: k * x[..., 0, 0] ** 2)
    return System(world.build("spring"))


@pytest.mark.parametrize(
    "options", [{}, {"backend": "torch"}, {"dense": True}, {"method": "rattle4", "dt": 1e-3}], ids=str
)
def test_gradients_by_a_parameter_of_a_potential(options):
    """From rest at 1 it is at cos(sqrt(2 k) t), whose derivative by k is -t sin(sqrt(2 k) t) / sqrt(2 k)."""
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z0 = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    z0[0, 0, 0, 0] = 1.0
    z = spring_of(k).simulate(z0, torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64), 1e-11, **options)
    (gradient,) = torch.autograd.grad(z[0, -1, 0, 0, 0], k)
    w = math.sqrt(1.4)
    # RATTLE of order 4: (w dt)^4 times its large constant; the others: the tolerance.
    assert float(gradient) == pytest.approx(-1.5 * math.sin(1.5 * w) / w, abs=1e-8)


def test_a_parameter_that_was_changed_is_not_that_of_old_code():
    """Without gradients too: after a step of an optimiser the motion is that of the new parameter."""
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    system, t = spring_of(k), torch.tensor([0.0, 1.0], dtype=torch.float64)
    z0 = torch.ones(1, 2, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        system.simulate(z0, t)
        k.mul_(2.0)
        z = system.simulate(z0, t)
        torch.testing.assert_close(z, spring_of(1.4).simulate(z0, t), rtol=0, atol=1e-8)  # rtol of a step is 1e-7
    assert not z.requires_grad
    with torch.inference_mode():
        assert torch.equal(system.simulate(z0, t), z)
        with pytest.raises(UserError, match="a tensor that requires gradients may change; use backend='torch'"):
            system.simulate(z0, t, backend="numba")
    with pytest.raises(UserError, match="it gives no gradients; use backend='torch'"):
        system.simulate(z0, t, backend="numba")


def test_gradients_by_a_parameter_of_a_force_from_outside():
    """x'' = a from rest: a t^2 / 2."""
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    world = Assembly(2)
    world.point("bob", 1.0)
    system = System(world.build("free"))
    t = torch.tensor([0.0, 2.0], dtype=torch.float64)
    z = system.simulate(torch.zeros(3, 2, 1, 2, dtype=torch.float64), t,
                        external=lambda t, x, v: a * torch.ones_like(x))  # fmt: skip
    (gradient,) = torch.autograd.grad(z[0, -1, 0, 0, 0], a)
    assert float(gradient) == pytest.approx(2.0, abs=1e-12)


def test_gradients_by_masses_and_moments():
    """By `with_inertia`, gravity included: against differences of systems that are made anew."""
    start, t = ChainPendulum(2), torch.tensor([0.0, 0.7], dtype=torch.float64)
    z0 = start.sample(2, generator=generator())

    def end(masses: list[float]) -> torch.Tensor:
        return ChainPendulum(2, masses=masses).simulate(z0, t, 1e-12)[:, -1].sum()

    inertia = start.description.inertia.clone().requires_grad_()
    system = System(start.description.with_inertia(inertia))
    (gradient,) = torch.autograd.grad(system.simulate(z0, t, 1e-11)[:, -1].sum(), inertia)
    h = 1e-4
    for row in range(2):
        a, b = ([1.0 + s * h * (i == row) for i in range(2)] for s in (1, -1))
        # Truncation h^2 and the tolerance over h.
        assert float(gradient[row]) == pytest.approx(float((end(a) - end(b)) / (2 * h)), abs=1e-6)


LEARNT: Any = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChainPendulum(2, masses=(1.0, LEARNT)), lambda: ChainPendulum(1, lengths=LEARNT.reshape(1)),
        lambda: Gyroscope(mass=LEARNT), lambda: Rotor(moments=(LEARNT, 1.0, 1.0)), lambda: CartPole(pole_mass=LEARNT),
        lambda: CoupledPendulum(spring_constant=LEARNT), lambda: FourBar(crank=LEARNT), lambda: Bead(mass=LEARNT),
        lambda: Assembly(2).point("bob", LEARNT), lambda: Assembly(2).gravity(LEARNT),
        lambda: Assembly(2).damping(LEARNT), lambda: Assembly(3).body("b", 3, ball(LEARNT, 1.0)),
        lambda: Assembly(2).point("bob", 1.0, position=(0.0, LEARNT)),
    ],
)  # fmt: skip
def test_no_gradient_is_lost_without_a_word(make):
    with pytest.raises(UserError, match=r"requires gradients, and its gradient would be lost.*with_inertia"):
        make()
