"""Constraints, masses and equations of motion against automatic differentiation and textbook formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from chnn import mechanics
from chnn.mechanics import Assembly, Inertia
from chnn.systems import (
    Bead,
    CartPole,
    ChainPendulum,
    CoupledPendulum,
    FourBar,
    Gyroscope,
    MagnetPendulum,
    Rope,
    Rotor,
    Satellite,
    System,
)
from chnn.systems.shapes import cuboid, lathe, racket, sphere
from lie.run import UserError

DTYPES = [torch.float32, torch.float64]


def on_a_line() -> System:
    """Two masses on lines and planes, a spring, damping and a potential of the user's own."""
    world = Assembly(3)
    a = world.point("a", 1.0, position=(0.5, 0.0, 1.0))
    plate = world.body("plate", 2, mechanics.box(2.0, (1.0, 0.5)), position=(0.5, 1.0, 1.0))
    world.on_line(a, (0.5, 0.0, 0.0), (0.0, 0.0, 1.0))
    world.on_plane(plate.at(0.5, 0.25), (1.0, 1.25, 1.0), (1.0, 0.0, 1.0))
    world.spring(a, plate.at(-0.5, 0.0), 3.0, 0.2)
    world.spring(a, (0.0, 0.0, 0.0), 2.0)
    world.damping(0.3, a, plate)
    world.damping(0.1)
    world.potential(lambda x: (x[..., 0, :] ** 4).sum(-1))
    world.gravity()
    return System(world.build("lines"))


SYSTEMS = [
    ChainPendulum(1),
    ChainPendulum(3, masses=[1.0, 2.0, 0.5], lengths=[0.7, 1.1, 1.3]),
    ChainPendulum(2, masses=[1.0, 2.0], lengths=[0.7, 1.1], beams=True),
    CoupledPendulum(3, masses=[1.0, 2.0, 0.5]),
    MagnetPendulum(),
    Gyroscope(),
    Rotor(),
    CartPole(damping=0.2),
    Satellite(),
    FourBar(),
    Bead(),
    Bead(surface="torus"),
    Rope(8),
    on_a_line(),
]
each_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.name}{s.num_points}")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def anywhere(system: System, count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """States near the constraints, but not on them."""
    z = system.sample(count, generator=generator())
    return (z + 0.05 * torch.randn(z.shape, dtype=z.dtype, generator=generator(1))).to(dtype)


def jacobian_of(f, x):
    return torch.func.jacrev(f)(x).flatten(-x.ndim)  # (..., x.numel())


@each_system
def test_jacobian_rates_and_forces_are_derivatives(system: System):
    constraints = system.constraints_on_points
    C = constraints.A.shape[0]
    for x, v in anywhere(system):
        scale = torch.cat([1.0 + constraints.quadratic, torch.ones(constraints.num_constraints - C)])

        def residual(x, scale=scale):
            return constraints.residual(x) / scale

        J, Jdot = torch.func.jvp(lambda x, f=residual: torch.func.jacrev(f)(x), (x,), (v,))
        torch.testing.assert_close(constraints.jacobian(x), J)
        torch.testing.assert_close(constraints.jacobian_rate(x, v), Jdot)
        torch.testing.assert_close(constraints.velocity_residual(x, v), (J * v).sum((-2, -1)))
        torch.testing.assert_close(system.force(x), -torch.func.grad(system.potential)(x), rtol=1e-10, atol=1e-10)


@each_system
def test_acceleration_solves_the_saddle_point_system(system: System):
    """An independent computation: the dense KKT system with autograd's Jacobian, by LU; off the constraints too."""
    constraints = system.constraints_on_points
    for z in anywhere(system):
        x, v = z
        J = jacobian_of(lambda x: constraints.residual(x), x)
        H = torch.func.jvp(lambda x: jacobian_of(lambda y: constraints.residual(y), x), (x,), (v,))[1]
        M = torch.kron(system.description.mass, torch.eye(system.spatial_dim, dtype=torch.float64))
        C = len(J)
        kkt = torch.cat([torch.cat([M, J.T], 1), torch.cat([J, torch.zeros(C, C, dtype=M.dtype)], 1)])
        solution = torch.linalg.solve(kkt, torch.cat([system.force(x, v).flatten(), -(H @ v.flatten())]))
        got = system.field(z)[1].flatten()
        size = float(solution[: x.numel()].abs().max())
        torch.testing.assert_close(got, solution[: x.numel()], rtol=0, atol=1e-9 * size)  # condition up to 1e5


@each_system
def test_oblique_projection_is_tangent_and_symplectic_off_the_constraints_too(system: System):
    """D Psi z' = 0 for Psi = (g, J M^-1 p) at any (x, p), against a dense solve of the 2C x 2C system."""
    n, d = system.num_points, system.spatial_dim
    constraints, inverse = system.constraints_on_points, system.description.inverse_mass
    for x, v in anywhere(system):
        p = system.description.mass @ v
        got = system.momentum_field(torch.stack([x, p])).flatten()

        def psi(flat):
            x, p = flat.view(2, n, d)
            return torch.cat([constraints.residual(x), constraints.velocity_residual(x, inverse @ p)])

        flat = torch.cat([x.flatten(), p.flatten()])
        D = torch.func.jacrev(psi)(flat)
        eye = torch.eye(n * d, dtype=torch.float64)
        J = torch.zeros(2 * n * d, 2 * n * d, dtype=torch.float64)
        J[: n * d, n * d :], J[n * d :, : n * d] = eye, -eye
        free = torch.cat([(inverse @ p).flatten(), system.force(x, inverse @ p).flatten()])
        expected = free - J @ D.T @ torch.linalg.solve(D @ J @ D.T, D @ free)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
        assert (D @ got).abs().max() < 1e-9 * D.abs().max() * got.abs().max()


@each_system
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_forms_agree_on_the_constraints_and_batch_mates_do_not_matter(system: System, dtype):
    z = system.sample(6, generator=generator()).to(dtype)
    mass, inverse = (m.to(dtype) for m in (system.description.mass, system.description.inverse_mass))
    field = system.field(z)
    momenta = system.momentum_field(torch.stack([z[:, 0], mass @ z[:, 1]], dim=1))
    condition = float(torch.linalg.cond(system.description.mass))
    tolerance = 2e4 * condition**0.5 * torch.finfo(dtype).eps  # Gram matrices are conditioned up to a few thousand
    assert field.dtype == momenta.dtype == dtype
    assert (momenta[:, 0] - z[:, 1]).abs().max() <= tolerance * z[:, 1].abs().max()
    difference = (inverse @ momenta[:, 1] - field[:, 1]).abs().max()
    assert difference <= tolerance * max(1.0, float(field[:, 1].abs().max()))
    torch.testing.assert_close(system.field(z[2:3]), field[2:3], rtol=100 * tolerance, atol=tolerance)


@each_system
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projection(system: System, dtype):
    z = system.sample(20, generator=generator()).to(dtype)
    size = 0.02 / system.num_points
    off = z + size * torch.randn(z.shape, dtype=dtype, generator=generator(1))
    before = off.clone()
    onto = system.project(off)
    assert torch.equal(off, before)
    if system.constraints_on_points.num_constraints == 0:
        return
    eps, scale = torch.finfo(dtype).eps, max(1.0, float(onto.abs().max()))
    assert system.constraints(onto).abs().max() <= 64 * eps * scale
    assert system.velocity_constraints(onto).abs().max() <= 256 * eps * scale**2
    torch.testing.assert_close(system.project(onto), onto, rtol=0, atol=1e3 * eps * scale)
    # The velocity moved by M^-1 J^T only: orthogonally, in the mass metric, to every tangent velocity.
    mass = system.description.mass.to(dtype)
    product = ((mass @ (onto[:, 1] - off[:, 1])) * onto[:, 1]).sum((-2, -1))
    assert product.abs().max() <= 1e4 * eps * float(mass.abs().max()) * scale**2
    # Each sample on its own.
    torch.testing.assert_close(system.project(off[3:4]), onto[3:4], rtol=0, atol=1e3 * eps * scale)


def test_projection_converges_quadratically():
    system = Gyroscope()
    constraints, metric, *_ = system.parts(torch.zeros((), dtype=torch.float64))
    x = system.sample(1, generator=generator())[0, 0] + 0.03
    sizes = []
    for _ in range(4):
        x = mechanics.projection.position_step(constraints, metric, x)
        sizes.append(float(constraints.residual(x).abs().max()))
    for before, after in itertools.pairwise(sizes):
        assert after <= 10 * before**2 + 1e-15


@each_system
def test_fields_transform_compile_and_differentiate_twice(system: System):
    z = system.sample(4, generator=generator())
    torch.testing.assert_close(torch.func.vmap(system.field)(z), system.field(z), rtol=1e-9, atol=1e-9)
    one = z[0]
    direction = torch.randn(one.shape, dtype=one.dtype, generator=generator(2))
    for field in (system.field, system.momentum_field):
        jvp = torch.func.jvp(field, (one,), (direction,))[1]
        h = 1e-5
        difference = (field(one + h * direction) - field(one - h * direction)) / (2 * h)
        # Truncation h^2 times the third derivative, which stiff systems make large.
        assert (jvp - difference).norm() <= 1e-5 * jvp.norm()
    w = torch.randn(one.shape, dtype=one.dtype, generator=generator(3))
    second = torch.func.jvp(torch.func.grad(lambda z: (system.field(z) * w).sum()), (one,), (direction,))[1]
    gradient = torch.func.grad(lambda z: (system.field(z) * w).sum())
    difference = (gradient(one + 1e-5 * direction) - gradient(one - 1e-5 * direction)) / 2e-5
    assert (second - difference).norm() <= 1e-4 * second.norm() + 1e-8


@pytest.mark.parametrize("system", [ChainPendulum(3), Gyroscope()], ids=lambda s: s.name)
def test_fields_compile_in_one_graph(system: System):
    z = system.sample(4, generator=generator())
    compiled = torch.compile(system.field, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), system.field(z))


def test_a_batch_of_parameters_is_each_system_alone():
    masses = torch.tensor([[1.0, 2.0, 0.5], [0.3, 1.0, 1.0]], dtype=torch.float64)
    systems = [ChainPendulum(3, masses=row.tolist()) for row in masses]
    z = systems[0].sample(2, generator=generator())
    constraints = systems[0].constraints_on_points
    inverse = mechanics.inverse_mass_matrix(systems[0].description.inertia_factor, masses)
    metric = constraints.metric(inverse)  # batched over parameters
    force = torch.stack([system.force(z[i, 0]) for i, system in enumerate(systems)])
    got = mechanics.lagrangian_acceleration(constraints, metric, z[:, 0], z[:, 1], force)
    for i, system in enumerate(systems):
        torch.testing.assert_close(got[i], system.field(z[i])[1])


# --- masses ---


def test_kinetic_energy_is_the_integral_over_the_body():
    """A cloud of mass points is a body: its kinetic energy by the mass matrix and point by point."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 3):
        cloud, weights = rng.normal(size=(50, k)) + 0.3, rng.uniform(0.1, 1.0, 50)
        centre = weights @ cloud / weights.sum()
        moments = (cloud - centre).T @ np.diag(weights) @ (cloud - centre)
        inertia = Inertia(weights.sum(), tuple(map(tuple, moments)), tuple(centre))
        world = Assembly(3)
        world.body("first", 0, Inertia(2.0))
        world.body("cloud", k, inertia)
        world.gravity()
        system = System(world.build("cloud", check=False))
        z = torch.randn(2, k + 2, 3, dtype=torch.float64, generator=generator())  # any affine motion, not only rigid
        x, v = z.numpy()
        place, speed = (y[1] + cloud @ (y[2:] - y[1]) for y in (x, v))
        kinetic = 0.5 * (weights * (speed**2).sum(1)).sum() + 0.5 * 2.0 * (v[0] ** 2).sum()
        assert float(system.kinetic(z)) == pytest.approx(kinetic, rel=1e-12)
        potential = 9.81 * (weights @ place[:, 2] + 2.0 * x[0, 2])
        assert float(system.potential(z[0])) == pytest.approx(potential, rel=1e-12)
        assert system.momentum(z).numpy() == pytest.approx(weights @ speed + 2.0 * v[0], rel=1e-12)
        spin = (weights[:, None] * np.cross(place, speed)).sum(0) + 2.0 * np.cross(x[0], v[0])
        assert system.angular_momentum(z).numpy() == pytest.approx(spin, rel=1e-11)
        M, inverse = system.description.mass, system.description.inverse_mass
        torch.testing.assert_close(M @ inverse, torch.eye(k + 2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_kinetic_energy_of_the_contract():
    """m/2 |v0|^2 + 1/2 sum_i J_i |v_i - v0|^2 for a body by its centre and unit axis tips."""
    system = Gyroscope()
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator())
    v = z[1]
    J = torch.tensor(system.moments, dtype=torch.float64)
    expected = 0.05 * v[0].square().sum() + 0.5 * (J * (v[1:] - v[0]).square().sum(-1)).sum()
    torch.testing.assert_close(system.kinetic(z), expected)


def test_primitives_are_their_meshes():
    """Formulas of uniform bodies against the exact integral over a closed mesh."""
    box = mechanics.from_mesh(*cuboid((1.0, 2.0, 3.0)), mass=5.0)
    assert np.allclose(box.moments, np.diag(mechanics.box(5.0, (1.0, 2.0, 3.0)).moments), rtol=1e-13, atol=1e-14)
    assert np.allclose(box.centre, 0.0, atol=1e-15)
    vertices, triangles = cuboid((1.0, 2.0, 3.0))
    moved = mechanics.from_mesh(vertices + [1.0, 2.0, 3.0], triangles, density=0.5)
    assert moved.mass == pytest.approx(3.0) and np.allclose(moved.centre, (1, 2, 3))
    assert np.allclose(moved.moments, np.diag(mechanics.box(3.0, (1.0, 2.0, 3.0)).moments), rtol=1e-12, atol=1e-12)
    inwards = mechanics.from_mesh(vertices, triangles[:, ::-1], mass=5.0)
    assert np.allclose(inwards.moments, box.moments, rtol=1e-13, atol=1e-14)
    # Round bodies: the polyhedron within converges with the square of the angle between its sides.
    fine = mechanics.from_mesh(*lathe([(0.0, -1.0), (0.5, -1.0), (0.5, 1.0), (0.0, 1.0)], sides=400), mass=2.0)
    assert np.allclose(np.diag(fine.moments), mechanics.cylinder(2.0, 0.5, 2.0).moments, rtol=2e-4)
    ball = mechanics.from_mesh(*sphere((0.5,) * 3, rings=100, sides=200), mass=2.0)
    assert np.allclose(np.diag(ball.moments), mechanics.ball(2.0, 0.5).moments, rtol=2e-3)
    assert np.array(mechanics.from_mesh(*racket(), mass=0.1).moments).shape == (3, 3)
    # The moment of inertia tensor of a body is tr(S) 1 - S.
    S = np.diag(mechanics.cylinder(2.0, 0.5, 2.0).moments)
    again = mechanics.from_rotational(2.0, (np.trace(S) * np.eye(3) - S).tolist())
    assert np.allclose(again.moments, S)
    with pytest.raises(UserError, match="closed mesh"):
        mechanics.from_mesh(vertices, triangles[1:])


# --- declaring systems ---


def test_redundant_constraints_are_found_and_solved():
    """A plane four-bar linkage in space: four parallel hinges, three constraints too many per loop, one motion."""
    world = Assembly(3)
    corners = np.array([[0, 0, 0], [0.2, 0.4, 0], [1.1, 0.8, 0], [1.0, 0, 0]], dtype=float)
    bodies = []
    for i in range(3):
        along = corners[i + 1] - corners[i]
        axis = along / np.linalg.norm(along)
        axes = [axis, np.cross([0, 0, 1.0], axis), [0, 0, 1.0]]
        bodies.append(world.body(f"bar {i}", 3, mechanics.box(1.0, (np.linalg.norm(along), 0.1, 0.1)),
                                 position=0.5 * (corners[i] + corners[i + 1]), axes=axes))  # fmt: skip
    half = [0.5 * np.linalg.norm(corners[i + 1] - corners[i]) for i in range(3)]
    z = [body.along(0, 0, 1) for body in bodies]
    world.hinge(bodies[0].at(-half[0], 0, 0), (0, 0, 0), z[0], (0, 0, 1))
    world.hinge(bodies[0].at(half[0], 0, 0), bodies[1].at(-half[1], 0, 0), z[0], z[1])
    world.hinge(bodies[1].at(half[1], 0, 0), bodies[2].at(-half[2], 0, 0), z[1], z[2])
    world.hinge(bodies[2].at(half[2], 0, 0), (1.0, 0, 0), z[2], (0, 0, 1))
    world.gravity((0.0, -9.81, 0.0))
    system = System(world.build("loop"))
    assert system.description.degrees_of_freedom == 1
    assert any("hinge axis" in name for name in system.description.redundant)
    # The same linkage in the plane: bars of the same mass and second moment along their length.
    flat = Assembly(2)
    beams = []
    for i in range(3):
        along = corners[i + 1, :2] - corners[i, :2]
        length = float(np.linalg.norm(along))
        inertia = Inertia(1.0, (length**2 / 12, 0.01 / 12))
        axes = [along / length, [-along[1] / length, along[0] / length]]
        beams.append(flat.body(f"bar {i}", 2, inertia, position=0.5 * (corners[i, :2] + corners[i + 1, :2]), axes=axes))
    flat.pin(beams[0].at(-half[0], 0), (0, 0))
    flat.ball_joint(beams[0].at(half[0], 0), beams[1].at(-half[1], 0))
    flat.ball_joint(beams[1].at(half[1], 0), beams[2].at(-half[2], 0))
    flat.pin(beams[2].at(half[2], 0), (1.0, 0))
    flat.gravity()
    plane = System(flat.build("plane loop"))
    assert plane.description.degrees_of_freedom == 1
    rest = torch.zeros(12, 3, dtype=torch.float64)
    a = system.simulate(torch.stack([system.description.reference, rest])[None], torch.tensor([0.0, 0.4, 0.8]), 1e-11)
    b = plane.simulate(
        torch.stack([plane.description.reference, rest[:9, :2]])[None], torch.tensor([0.0, 0.4, 0.8]), 1e-11
    )
    origins = [0, 4, 8], [0, 3, 6]
    torch.testing.assert_close(a[..., origins[0], :2], b[..., origins[1], :], rtol=0, atol=1e-9)
    assert a[..., origins[0], 2].abs().max() < 1e-12
    assert system.constraints(a[:, -1]).abs().max() < 1e-13


def test_satellite_has_two_redundant_lengths():
    system = Satellite()
    assert system.description.degrees_of_freedom == 8 and len(system.description.redundant) == 2
    # What was left out holds too.
    x = system.sample(5, generator=generator())[:, 0]
    for body in system.description.bodies:
        for i, j, length in body.internal_lengths():
            torch.testing.assert_close((x[:, i] - x[:, j]).norm(dim=-1), torch.full((5,), length, dtype=torch.float64))


def test_what_cannot_be_declared_is_refused_by_name():
    def world_of_two(distance: float = 1.0) -> Assembly:
        world = Assembly(2)
        a, b = world.point("a", 1.0, position=(0.5, 0.1)), world.point("b", 1.0, position=(0.6, 0.7))
        world.tether(a, (0, 0), 1.0)
        world.tether(b, (5.0, 0), 1.0)
        world.distance(a, b, distance)
        return world

    world_of_two(3.5).build("reachable")
    with pytest.raises(UserError, match=r"impossible constraints.*distance of a and b"):
        world_of_two(1.0).build("unreachable")
    world = Assembly(3)
    body = world.body("box", 3, mechanics.box(1.0, (1, 1, 1)))
    world.pin(body.at(0, 0, 0), (0, 0, 0))
    world.pin(body.at(0, 0, 0), (0, 0, 1))
    with pytest.raises(
        UserError, match=r"impossible constraint: pin of box cannot hold given pin of box; it is off by 1"
    ):
        world.build("torn")
    with pytest.raises(UserError, match="expected a positive finite mass, got -1 for body 'bob'"):
        Assembly(2).point("bob", -1.0)
    with pytest.raises(UserError, match=r"positive second moments for body 'box', got smallest eigenvalue -0\.5"):
        Assembly(3).body("box", 3, Inertia(1.0, ((1.0, 1.5, 0.0), (1.5, 1.0, 0.0), (0.0, 0.0, 1.0))))
    with pytest.raises(UserError, match="symmetric matrix of second moments for body 'box'"):
        Assembly(3).body("box", 3, Inertia(1.0, ((1.0, 0.5, 0.0), (0.1, 1.0, 0.0), (0.0, 0.0, 1.0))))
    with pytest.raises(UserError, match="expected 3 second moments or a 3 x 3 matrix for body 'box'"):
        Assembly(3).body("box", 3, Inertia(1.0, (1.0, 1.0)))
    with pytest.raises(UserError, match="the anchor of the tether of bob"):
        world = Assembly(2)
        world.tether(world.point("bob", 1.0), (0, 0, 0), 1.0)
    with pytest.raises(UserError, match="positive finite length for the tether of bob, got 0"):
        world = Assembly(2)
        world.tether(world.point("bob", 1.0), (0, 0), 0.0)
    with pytest.raises(UserError, match="joins a point to itself"):
        world = Assembly(2)
        bob = world.point("bob", 1.0)
        world.ball_joint(bob, bob)
    with pytest.raises(UserError, match="unique names"):
        world = Assembly(2)
        world.point("bob", 1.0)
        world.point("bob", 1.0)
    with pytest.raises(UserError, match="axes of a hinge"):
        world = Assembly(3)
        world.hinge(world.body("box", 3, mechanics.ball(1.0, 1.0)), (0, 0, 0))
    with pytest.raises(UserError, match="right-handed axes for body 'box'"):
        Assembly(3).body("box", 3, mechanics.ball(1.0, 1.0), axes=((0, 1, 0), (1, 0, 0), (0, 0, 1)))
    with pytest.raises(UserError, match="3 coordinates of a point of body 'box', got 2"):
        Assembly(3).body("box", 3, mechanics.ball(1.0, 1.0)).at(0.0, 1.0)
    with pytest.raises(UserError, match="impossible"):
        FourBar(crank=0.1, coupler=0.1, rocker=0.1, ground=5.0)


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
    with pytest.raises(UserError, match=r"cannot project sample \[0\].*tether of bob 0 is left off"):
        ChainPendulum(1).project(torch.zeros(1, 2, 1, 2))
