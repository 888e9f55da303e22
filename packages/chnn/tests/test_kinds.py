"""Every kind of constraint and force alone: derivatives against autograd, what it conserves, both paths."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from chnn import mechanics
from chnn.mechanics import Assembly, BodyHandle, Inertia
from chnn.systems import (
    CartPole,
    ChainPendulum,
    CoupledPendulum,
    Gyroscope,
    MagnetPendulum,
    Rotor,
    System,
)
from lie.groups import SO3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def solid(world: Assembly, name: str, position: tuple[float, ...]) -> BodyHandle:
    """A body without symmetry, its centre of mass off its origin."""
    moments = ((0.3, 0.05, 0.0), (0.05, 0.2, -0.02), (0.0, -0.02, 0.4))
    return world.body(name, 3, Inertia(1.5, moments, (0.1, -0.05, 0.02)), position=position)


def two(join: Callable[[Assembly, BodyHandle, BodyHandle], object]) -> Callable[[Assembly], object]:
    def build(world: Assembly) -> None:
        join(world, solid(world, "a", (0.0, 0.0, 0.0)), solid(world, "b", (1.0, 0.0, 0.0)))

    return build


def one(join: Callable[[Assembly, BodyHandle], object]) -> Callable[[Assembly], object]:
    return lambda world: join(world, solid(world, "a", (0.0, 0.0, 0.0)))


def four_dimensions(world: Assembly) -> None:
    """A point, a rod, a plate and a solid in one system."""
    point = world.point("point", 1.0, position=(0.0, 0.0, 1.0))
    rod = world.body("rod", 1, mechanics.rod(2.0, 1.0), position=(0.5, 0.0, 1.0))
    plate = world.body("plate", 2, mechanics.box(1.0, (1.0, 0.6)), position=(1.5, 0.3, 1.0))
    box = solid(world, "box", (2.0, 1.0, 1.0))
    world.ball_joint(point, rod.at(-0.5))
    world.ball_joint(rod.at(0.5), plate.at(-0.5, -0.3))
    world.distance(plate.at(0.5, 0.3), box.at(0.0, 0.1, 0.0), 0.7)


def ring(world: Assembly) -> None:
    """A closed loop of four rods with ball joints."""
    corners = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0)]
    rods = []
    for i in range(4):
        a, b = (torch.tensor(corners[k % 4], dtype=torch.float64) for k in (i, i + 1))
        rods.append(world.body(f"rod {i}", 1, mechanics.rod(1.0, 1.0), position=0.5 * (a + b), axes=(b - a)[None]))
    for i in range(4):
        world.ball_joint(rods[i].at(0.5), rods[(i + 1) % 4].at(-0.5))


# Kind: how to build it, degrees of freedom, and what is conserved without forces beside the energy: "both" momenta of a
# system that nothing holds, "spin" about the origin of one held there, "axis" about the third axis only, or nothing.
KINDS: dict[str, tuple[Callable[[Assembly], object], int, str]] = {
    "free": (one(lambda w, a: None), 6, "both"),
    "dimensions 0 to 3": (four_dimensions, 3 + 5 + 6 + 6 - 3 - 3 - 1, "both"),
    "distance": (two(lambda w, a, b: w.distance(a.at(0.2, 0, 0), b.at(0, 0.1, 0), 1.1)), 11, "both"),
    "tether": (one(lambda w, a: w.tether(a.at(0.3, 0, 0), (0, 0, 0), 0.5)), 5, "spin"),
    "ball joint": (two(lambda w, a, b: w.ball_joint(a.at(0.5, 0, 0), b.at(-0.5, 0, 0))), 9, "both"),
    "pin": (one(lambda w, a: w.pin(a.at(0.3, 0.1, 0), (0, 0, 0))), 3, "spin"),
    "hinge": (two(lambda w, a, b: w.hinge(a.at(0.5, 0, 0), b.at(-0.5, 0, 0), a.along(0, 0.6, 0.8),
                                          b.along(0, 0.6, 0.8))), 7, "both"),
    "hinge in space": (one(lambda w, a: w.hinge(a.at(0.3, 0, 0), (0, 0, 0), a.along(0, 0, 1), (0, 0, 1))), 1, "axis"),
    "universal joint": (two(lambda w, a, b: (w.ball_joint(a.at(0.5, 0, 0), b.at(-0.5, 0, 0)),
                                             w.keep_angle(a.along(0, 1, 0), b.along(0, 0, 1)))), 8, "both"),
    "slanted universal joint": (one(lambda w, a: (w.pin(a.at(0.3, 0, 0), (0, 0, 0)),
                                                  w.keep_angle(a.along(0, 1, 0), (0, 0, 1), 1.1))), 2, "axis"),
    "parallel axes": (two(lambda w, a, b: w.weld_direction(a.along(0, 0, 1), b.along(0, 0, 1))), 10, "both"),
    "line": (one(lambda w, a: w.on_line(a.at(0.2, 0.1, 0), (0, 0, 0), (0, 0, 1))), 4, "axis"),
    "plane": (one(lambda w, a: w.on_plane(a.at(0.2, 0.1, 0), (0, 0, 0.1), (0, 0, 1))), 5, "axis"),
    "surface": (one(lambda w, a: w.on_surface(a.at(0.2, 0, 0), lambda u: u[..., 2] - u[..., :2].square().sum(-1))),
                5, "axis"),
    "loop": (ring, 2 * 4 + 12 - 4 * 3, "both"),
}  # fmt: skip


def system_of(name: str) -> System:
    world = Assembly(3)
    KINDS[name][0](world)
    return System(world.build(name))


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_of_each_kind(name):
    system = system_of(name)
    constraints = system.constraints_on_points
    z = system.sample(3, generator=generator())
    z = z + 0.1 * torch.randn(z.shape, dtype=z.dtype, generator=generator(1))  # off the constraints too
    C = constraints.A.shape[0]
    scale = torch.cat([1.0 + constraints.quadratic, torch.ones(constraints.num_constraints - C)])
    for x, v in z:
        J, rate = torch.func.jvp(torch.func.jacrev(lambda x: constraints.residual(x) / scale), (x,), (v,))
        torch.testing.assert_close(constraints.jacobian(x), J)
        torch.testing.assert_close(constraints.jacobian_rate(x, v), rate)
        torch.testing.assert_close(constraints.velocity_residual(x, v), (J * v).sum((-2, -1)))
    # In a batch as alone, and under vmap.
    x, v = z.unbind(1)
    torch.testing.assert_close(torch.func.vmap(constraints.jacobian_rate)(x, v), constraints.jacobian_rate(x, v))


@pytest.mark.parametrize("name", KINDS)
def test_motion_of_each_kind_conserves(name):
    system = system_of(name)
    _, freedom, law = KINDS[name]
    assert system.description.degrees_of_freedom == freedom
    z0 = system.sample(3, generator=generator())
    z = system.simulate(z0, torch.linspace(0, 0.5, 4, dtype=torch.float64), 1e-9, backend="torch")
    energy, spin, momentum = system.energy(z), system.angular_momentum(z), system.momentum(z)
    # A tolerance of 1e-9 over a few dozen steps.
    assert (energy - energy[:, :1]).abs().max() <= 1e-7 * energy.abs().max()
    kept = {"both": [0, 1, 2], "spin": [0, 1, 2], "axis": [2]}[law]
    assert (spin - spin[:, :1])[..., kept].abs().max() <= 1e-7 * spin.abs().max()
    if law == "both":
        assert (momentum - momentum[:, :1]).abs().max() <= 1e-9 * momentum.abs().max()
    if name in ("line", "plane"):  # which take no force along the third axis, or across it
        free = [2] if name == "line" else [0, 1]
        assert (momentum - momentum[:, :1])[..., free].abs().max() <= 1e-9 * momentum.abs().max()
    if system.constraints_on_points.num_constraints:
        assert system.constraints(z).abs().max() <= 1e-13
    # Both forms of the equations say the same.
    field, mass = system.field(z0), system.description.mass
    momenta = system.momentum_field(torch.stack([z0[:, 0], mass @ z0[:, 1]], dim=1))
    torch.testing.assert_close(system.description.inverse_mass @ momenta[:, 1], field[:, 1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["universal joint", "surface"])
def test_fields_of_kinds_compile_in_one_graph(name):
    system = system_of(name)
    z = system.sample(2, generator=generator())
    for field in (system.field, system.momentum_field):
        compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(z), field(z))


def test_momenta_with_a_batch_of_parameters():
    """Each sample with masses of its own, in one call: as each system alone."""
    system = system_of("hinge")
    description = system.description
    inertia = description.inertia * torch.tensor([[1.0], [0.5], [3.0]], dtype=torch.float64)
    inertia[:, 0] += torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)
    mass = mechanics.mass_matrix(description.inertia_factor, inertia)
    inverse = mechanics.inverse_mass_matrix(description.inertia_factor, inertia)
    z = system.sample(3, generator=generator())
    p, force = mass @ z[:, 1], torch.randn(z[:, 0].shape, dtype=z.dtype, generator=generator(1))
    constraints = system.constraints_on_points
    got = mechanics.hamiltonian_velocity(constraints, constraints.metric(inverse), mass, inverse, z[:, 0], p, force)
    for i in range(3):
        alone = constraints.metric(inverse[i])
        one = mechanics.hamiltonian_velocity(constraints, alone, mass[i], inverse[i], z[i, 0], p[i], force[i])
        for a, b in zip(got, one, strict=True):
            torch.testing.assert_close(a[i], b)


ANGLES = [ChainPendulum(3), ChainPendulum(2, beams=True), CoupledPendulum(2), MagnetPendulum(), Gyroscope(), Rotor(),
          CartPole()]  # fmt: skip


@pytest.mark.parametrize("system", ANGLES, ids=lambda system: f"{system.name}{system.num_points}")
def test_conversions_are_inverse_smooth_and_alone_as_in_a_batch(system):
    z = system.sample(5, generator=generator())
    q = system.to_angles(z)
    torch.testing.assert_close(system.from_angles(q), z, rtol=0, atol=1e-10)
    torch.testing.assert_close(system.from_angles(q[2:3]), z[2:3], rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.func.vmap(system.to_angles)(z), q)
    # The rates are derivatives of the angles.
    _, rate = torch.func.jvp(lambda q: system.from_angles(q)[:, 0], (q,), (torch.stack([q[:, 1], 0 * q[:, 1]], 1),))
    torch.testing.assert_close(rate, z[:, 1], rtol=0, atol=1e-10)
    start = q[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(system.from_angles, start, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda q: system.from_angles(q).sin().sum(), start, fast_mode=True)
    assert torch.autograd.gradcheck(system.to_angles, z[0].clone().requires_grad_(), fast_mode=True)
    # At rest, where angles are zero or a pole could be.
    still = system.to_angles(system.rest()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(system.from_angles(still).square().sum(), still)
    assert gradient.isfinite().all()


def everything(published_sign: bool = False) -> System:
    """A pinned solid and a point with every force that there is."""
    world = Assembly(3)
    a = solid(world, "a", (0.0, 0.0, 0.0))
    bob = world.point("bob", 0.5, position=(0.8, 0.3, -0.4))
    world.pin(a.at(0.3, 0.1, 0.0), (0.3, 0.1, 0.0))
    world.gravity((0.5, 0.0, -9.81))
    world.spring(a.at(0.0, 0.4, 0.0), bob, 20.0, 0.3)
    world.spring(bob, (1.0, 0.0, 0.0), 5.0)
    world.magnets(bob, bob.at(), (0.0, 0.0, 2.0), 0.4, [(0.9, 0.2, -1.4), (0.4, 0.5, -1.2)],
                  [(0, 0, 0.3), (0.1, 0, 0.5)], published_sign=published_sign)  # fmt: skip
    world.potential(lambda x: 0.3 * (x[..., 4, :] ** 4).sum(-1) + 0.1 * torch.exp(-x[..., 4, 0]))
    world.torsion_spring(a.along(1, 0, 0), (1, 0, 0), (0, 1, 0), 1.5, 0.4)
    world.damping(0.3, a.at(0.0, 0.4, 0.0), bob)
    world.damping(0.1, bob)
    world.rotational_damping(0.2, a)
    return System(world.build("everything"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("published_sign", [False, True])
def test_forces_are_gradients_of_their_potentials_and_drag_takes_energy(published_sign, dtype):
    system = everything(published_sign)
    z = system.sample(4, generator=generator()).to(dtype)
    x, v = z.unbind(1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for force in system.parts(z)[3]:
        assert force.force(x, v).dtype == dtype
        still = force.force(x, torch.zeros_like(v))
        gradient = torch.func.vmap(torch.func.grad(force.potential))(x)
        torch.testing.assert_close(still, -gradient, rtol=tolerance, atol=tolerance * 10)
        drag = force.force(x, v) - still
        assert ((drag * v).sum((-2, -1)) <= tolerance).all()
    # Twice differentiable: the gradient of a function of the force, along a direction.
    y = x[0].double()
    system.parts(y)
    w = torch.randn(y.shape, dtype=y.dtype, generator=generator(1))
    assert torch.autograd.gradgradcheck(lambda y: (system.force(y) * w).sum(), y.requires_grad_(), fast_mode=True)


def test_the_physical_dipole_energy():
    """Two dipoles in line at distance r: -2 m0 m1 / (4 pi r^3); side by side: + m0 m1 / (4 pi r^3)."""
    for sign, side in ((False, 1.0), (True, -1.0)):
        world = Assembly(3)
        bob = world.point("bob", 1.0, position=(0.0, 0.0, 1.0))
        world.magnets(bob, bob.at(), (0.0, 0.0, 0.0), 0.7, [(0.0, 0.0, 3.0)], [(0.0, 0.0, 0.4)], published_sign=sign)
        energy = System(world.build("line")).potential(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
        parallel = 0.7 * 0.4 / (4 * math.pi * 2.0**3)
        assert float(energy) == pytest.approx((side - 3.0) * parallel)
        world = Assembly(3)
        bob = world.point("bob", 1.0, position=(0.0, 0.0, 1.0))
        world.magnets(bob, bob.at(), (0.0, 0.0, 0.0), 0.7, [(2.0, 0.0, 1.0)], [(0.0, 0.0, 0.4)], published_sign=sign)
        energy = System(world.build("side")).potential(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
        assert float(energy) == pytest.approx(side * parallel)


def test_rotational_damping_is_the_torque_against_the_relative_angular_velocity():
    """Two bodies that turn as they like: power -c |w_a - w_b|^2, and no net force or torque on both."""
    world = Assembly(3)
    a, b = solid(world, "a", (0.0, 0.0, 0.0)), solid(world, "b", (1.0, 0.0, 0.0))
    world.rotational_damping(0.7, a, b)
    system = System(world.build("two"))
    turns = torch.randn(2, 3, dtype=torch.float64, generator=generator())
    rates = torch.randn(2, 3, dtype=torch.float64, generator=generator(1))
    R = SO3().exp(turns)
    places = torch.tensor([[0.0, 0.1, 0.2], [1.0, 0.5, 0.0]], dtype=torch.float64)
    speed = SO3().hat(rates) @ R
    x = torch.cat([places[:, None], places[:, None] + R.mT], 1).flatten(0, 1)
    v = torch.cat([torch.zeros(2, 1, 3).double(), speed.mT], 1).flatten(0, 1)
    force = system.force(x, v)
    assert float((force * v).sum()) == pytest.approx(-0.7 * float((rates[0] - rates[1]).square().sum()))
    torch.testing.assert_close(force.view(2, 4, 3).sum(1), torch.zeros(2, 3).double(), rtol=0, atol=1e-14)
    torque = torch.linalg.cross(x.view(2, 4, 3), force.view(2, 4, 3)).sum(1)
    torch.testing.assert_close(torque[0], -0.7 * (rates[0] - rates[1]))
    torch.testing.assert_close(torque.sum(0), torch.zeros(3).double(), rtol=0, atol=1e-13)


def test_both_paths_simulate_every_force():
    system = everything()
    z0 = system.sample(3, generator=generator())
    t = torch.linspace(0, 0.5, 4, dtype=torch.float64)
    ours, compiled = (system.simulate(z0, t, 1e-10, backend=backend) for backend in ("torch", "numba"))
    torch.testing.assert_close(compiled, ours, rtol=0, atol=1e-9)
    # The energy goes where the drag puts it: dE/dt is its power.
    v = z0[:, 1]
    drag = system.force(z0[:, 0], v) - system.force(z0[:, 0])
    h = 1e-4
    near = system.simulate(z0, torch.tensor([0.0, h], dtype=torch.float64), 1e-12, backend="torch")
    fall = (system.energy(near[:, 1]) - system.energy(z0)) / h
    mean = 0.5 * ((drag * v).sum((-2, -1)) + sum_of_drag(system, near[:, 1]))
    torch.testing.assert_close(fall, mean, rtol=1e-4, atol=1e-6)  # the trapezoidal rule over h


def sum_of_drag(system: System, z: torch.Tensor) -> torch.Tensor:
    x, v = z.unbind(1)
    return ((system.force(x, v) - system.force(x)) * v).sum((-2, -1))


def test_a_torsion_spring_against_the_torsion_pendulum():
    """A disk on a spring about its axis: theta = a cos(sqrt(k / I) t)."""
    world = Assembly(3)
    disk = world.body("disk", 3, mechanics.cylinder(2.0, 0.3, 0.1))
    world.hinge(disk, (0, 0, 0), disk.along(0, 0, 1), (0, 0, 1))
    world.torsion_spring(disk.along(1, 0, 0), (1, 0, 0), (0, 1, 0), 0.8, 0.5)
    system = System(world.build("torsion"))
    x = system.description.reference
    z0 = torch.stack([x, torch.zeros_like(x)])[None]
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    z = system.simulate(z0, t, 1e-11, backend="torch")
    axis = z[0, :, 0, 1] - z[0, :, 0, 0]
    expected = 0.5 - 0.5 * torch.cos(math.sqrt(0.8 / (0.5 * 2.0 * 0.09)) * t)
    torch.testing.assert_close(torch.atan2(axis[:, 1], axis[:, 0]), expected, rtol=0, atol=1e-9)


def test_control_from_outside_does_its_work():
    """A torque on a hinge through `TorsionSprings.spread`: I theta'' = torque."""
    world = Assembly(3)
    disk = world.body("disk", 3, mechanics.cylinder(2.0, 0.3, 0.1))
    world.hinge(disk, (0, 0, 0), disk.along(0, 0, 1), (0, 0, 1))
    world.torsion_spring(disk.along(1, 0, 0), (1, 0, 0), (0, 1, 0), 0.0)
    system = System(world.build("driven"))
    (motor,) = system.description.forces
    x = system.description.reference
    z0 = torch.stack([x, torch.zeros_like(x)])[None]
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    z = system.simulate(z0, t, 1e-11, external=lambda t, x, v: motor.spread(x, torch.full_like(x[..., :1, 0], 0.05)))
    axis = z[0, :, 0, 1] - z[0, :, 0, 0]
    expected = 0.5 * 0.05 / (0.5 * 2.0 * 0.09) * t**2
    torch.testing.assert_close(torch.atan2(axis[:, 1], axis[:, 0]), expected, rtol=0, atol=1e-9)
