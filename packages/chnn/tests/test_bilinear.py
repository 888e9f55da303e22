"""The bilinear forms of the equations of motion against the equations as `chnn.mechanics.dynamics` has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chnn.mechanics import Assembly, MotionForms, box, cylinder
from chnn.simulation.kernels import by_dynamics
from chnn.systems import (
    Bead,
    CartPole,
    ChainPendulum,
    CoupledPendulum,
    FourBar,
    Gyroscope,
    MagnetPendulum,
    Rotor,
    System,
)
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planes_and_forces() -> System:
    """Planes, tethers away from the origin, a hinge, and every kind of force: affine ones and others."""
    world = Assembly(3)
    door = world.body("door", 3, box(2.0, (0.9, 0.1, 1.0)))
    bob = world.point("bob", 0.5, position=(1.0, 0.3, -0.4))
    world.hinge(door.at(-0.45, 0, 0), (-0.45, 0, 0), axis_a=door.along(0, 0, 1), axis_b=(0, 0, 1))
    world.on_plane(bob, (0.0, 0.0, -0.4), (0.1, 0.0, 1.0))
    world.tether(bob, (2.0, 0.3, -0.4), 1.0)
    world.gravity((0.5, 0.0, -9.81))
    world.spring(door.at(0.45, 0.0, 0.0), bob, 20.0, 0.3)
    world.damping(0.3, door.at(0.0, 0.4, 0.0), bob)
    world.rotational_damping(0.2, door)
    world.torsion_spring(door.along(1, 0, 0), (1, 0, 0), (0, 1, 0), 1.5, 0.4)
    return System(world.build("planes and forces"))


def affine_forces() -> System:
    world = Assembly(2)
    a, b = world.point("a", 1.0, position=(1.0, 0.0)), world.point("b", 2.0, position=(1.0, -1.0))
    world.distance(a, b, 1.0)
    world.spring(a, (0.3, 0.2), 5.0)  # without a rest length
    world.spring(a, b, 3.0)
    world.damping(0.4, a, b)
    world.damping(0.1)
    world.gravity()
    return System(world.build("affine"))


def free() -> System:
    world = Assembly(3)
    world.point("alone", 2.0)
    world.gravity()
    return System(world.build("free"))


def joints_alone() -> System:
    world = Assembly(2)
    a, b = world.point("a", 1.0), world.point("b", 2.0)
    world.ball_joint(a, b)
    world.gravity()
    return System(world.build("joints"))


SYSTEMS = [
    ChainPendulum(3, masses=[1.0, 3.0, 0.2]), ChainPendulum(12), CoupledPendulum(3), MagnetPendulum(), Gyroscope(),
    Rotor(), CartPole(damping=0.1), FourBar(), planes_and_forces(), affine_forces(), free(), joints_alone(),
]  # fmt: skip


def states(system: System, num: int) -> Tensor:
    """Off the constraints: there every term counts."""
    z = system.description.reference.expand(num, 2, -1, -1)
    return z + 0.1 * torch.randn(z.shape, dtype=z.dtype, generator=generator())


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")
@pytest.mark.parametrize("form", ["field", "momentum_field"])
def test_forms_are_the_equations_of_motion(system, form):
    """1e-11 of the largest number of a state: rounding, times the condition of states as random as these (1e4)."""
    assert system._forms is not None
    ours, general = getattr(system, form), getattr(by_dynamics(system), form)
    z = states(system, 12)
    if form == "momentum_field":
        z = torch.stack([z[:, 0], system.description.mass @ z[:, 1]], 1)
    got, expected = ours(z), general(z)
    size = expected.abs().amax((-3, -2, -1), keepdim=True)
    assert ((got - expected).abs() <= 1e-11 * size).all()
    for shape in ((3, 4), (12, 1), (2, 3, 2)):
        view = z.view(*shape, *z.shape[1:])
        torch.testing.assert_close(ours(view), got.view(view.shape), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours(z[3]), got[3], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(ours)(z), got, rtol=1e-9, atol=1e-9)
    assert ours(z[:0]).shape == z[:0].shape
    single = z.float()
    assert ours(single).dtype == torch.float32
    # Of float32 the error is that of the equations by other products; both are judged by float64.
    truth = general(single.double())
    size = truth.abs().amax((-3, -2, -1))
    error, theirs = ((f(single) - truth).abs().amax((-3, -2, -1)) / size for f in (ours, general))
    assert (error <= 10 * theirs + 1e-5).all()


@pytest.mark.parametrize("system", [SYSTEMS[0], Gyroscope(), planes_and_forces()], ids=lambda s: s.name)
def test_derivatives_and_forces_from_outside(system):
    general = by_dynamics(system)
    z = states(system, 3)
    w, u = (torch.randn(z.shape, dtype=z.dtype, generator=generator(seed)) for seed in (1, 2))
    for form in ("field", "momentum_field"):
        values = []
        for each in (system, general):
            field = getattr(each, form)
            gradient = torch.func.grad(lambda y, f=field: (f(y) * w).sum())
            values.append(torch.cat([torch.func.jvp(field, (z,), (u,))[1], *torch.func.jvp(gradient, (z,), (u,))]))
        size = values[1].abs().max()
        assert (values[0] - values[1]).abs().max() <= 1e-10 * size  # of second derivatives, as conditioned as values
    push: Any = lambda t, x, v: t * x - 0.3 * v  # noqa: E731
    t = torch.tensor(0.7, dtype=z.dtype)
    torch.testing.assert_close(system.field(z, t, push), general.field(z, t, push), rtol=1e-10, atol=1e-10)


def test_degenerate_states_are_not_a_number_and_leave_others_alone():
    for system in (ChainPendulum(3), Gyroscope(), ChainPendulum(12)):
        z = states(system, 4)
        z[1, 0] = 0.0
        z[2, 0, 0, 0] = torch.nan
        for field in (system.field, system.momentum_field):
            rate = field(z)
            good = rate.isfinite().flatten(1).all(1)
            assert good.tolist() == [True, False, False, True]
            assert rate[1:3, 1].isnan().all()
            torch.testing.assert_close(rate[[0, 3]], field(z[[0, 3]]), rtol=1e-12, atol=1e-12)


def test_systems_without_forms_go_by_the_general_equations():
    class Pushed(ChainPendulum):
        def force(self, x: Tensor, v: Tensor | None = None) -> Tensor:
            return super().force(x, v) + 3.0

    assert Bead()._forms is None  # a surface is not bilinear
    assert ChainPendulum(40)._forms is None  # its matrices would be nearly all zeros
    pushed, z = Pushed(2), states(ChainPendulum(2), 3)
    assert pushed._forms is None
    by_hand = ChainPendulum(2).field(z, external=lambda t, x, v: torch.full_like(x, 3.0))
    torch.testing.assert_close(pushed.field(z), by_hand)


def test_masses_that_are_learnt_are_differentiated_through_the_forms():
    description = Gyroscope().description
    z = states(System(description), 3)
    gradients = []
    for way in (lambda system: system, by_dynamics):
        inertia = description.inertia.clone().requires_grad_()
        with torch.enable_grad():
            system = way(System(description.with_inertia(inertia)))
        value = system.field(z).square().sum() + system.momentum_field(z).square().sum()
        gradients.append(torch.autograd.grad(value, inertia)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_a_disk_is_no_special_case():
    world = Assembly(3)
    disk = world.body("disk", 3, cylinder(2.0, 0.3, 0.1))
    world.hinge(disk, (0, 0, 0), disk.along(0, 0, 1), (0, 0, 1))
    description = System(world.build("disk")).description
    forms = MotionForms.of(description.constraints, description.metric, description.mass, description.inverse_mass, ())
    assert forms is not None
    z = states(System(description), 2).flatten(1)
    force = torch.randn(2, z.shape[1] // 2, dtype=z.dtype, generator=generator())
    given = forms.velocity_field(z, force)
    expected = System(description).field(z.view(2, 2, -1, 3), external=lambda t, x, v: force.view_as(x)).flatten(1)
    torch.testing.assert_close(given, expected)
