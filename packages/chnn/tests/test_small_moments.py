"""Bodies of small moments on long levers stay rigid, in any units: against closed forms and MuJoCo."""

from __future__ import annotations

from itertools import pairwise

import mujoco
import numpy as np
import pytest
import torch
from chnn.mechanics import Assembly, Description, Inertia
from chnn.mechanics.bodies import box
from chnn.systems import System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

LEVER = 0.5


def hinged(moment: float, turn: np.ndarray, *, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Description:
    """A body of 1 kg and three equal second moments, hanging half a metre below a hinge along y."""
    world = Assembly(3)
    down = np.array([0.0, 0.0, -LEVER])
    body = world.body(
        "cube", 3, Inertia(1.0, (moment,) * 3, centre), position=down - np.array(centre) @ turn, axes=turn
    )
    pivot = tuple(np.array(centre) - turn @ down)
    world.hinge(body.at(*pivot), (0.0, 0.0, 0.0), body.along(*turn[:, 1]), (0.0, 1.0, 0.0))
    world.gravity()
    return world.build("hinged")


TURNS = [np.eye(3), Rotation.from_rotvec([0.3, 0.5, -0.7]).as_matrix(), Rotation.from_rotvec([1, 2, 3]).as_matrix()]


def swinging(description: Description, rate: float, angle: float = 0.0) -> torch.Tensor:
    """The state turned by an angle about y, with a rate about y."""
    R = torch.from_numpy(Rotation.from_rotvec([0.0, angle, 0.0]).as_matrix())  # noqa: N806
    x = description.reference @ R.mT
    omega = torch.tensor([0.0, rate, 0.0], dtype=torch.float64).expand_as(x)
    return torch.stack([x, torch.linalg.cross(omega, x)])[None]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("moment", [1e-2, 1.0 / 12.0 * 1e-8, 1.0 / 12.0 * 9e-10, 1e-12, 1e-14])
def test_a_small_cube_on_a_hinge_is_a_pendulum(moment, turn):
    """One degree of freedom; at the bottom the centre accelerates by omega^2 r, elsewhere by gravity's torque too."""
    system = System(hinged(moment, turn))
    assert system.description.degrees_of_freedom == 1
    bottom = swinging(system.description, 3.0)
    expected = torch.tensor([0.0, 0.0, 9.0 * LEVER], dtype=torch.float64)
    z = swinging(system.description, 3.0, 0.7)
    about = LEVER**2 + 2.0 * moment  # of the pivot; the moment of inertia is the sum of two second moments
    alpha = -9.81 * LEVER * np.sin(0.7) / about  # the centre is at (-sin, 0, -cos) of the angle
    out = np.array([-np.sin(0.7), 0.0, -np.cos(0.7)])
    closed = torch.from_numpy(-9.0 * LEVER * out + np.cross([0.0, alpha, 0.0], LEVER * out))
    forms = (system.field, system.compiled_field())
    for field in forms:
        # Twelve digits: the Gram matrix is solved with a condition of its own scaled rows, whatever the moments.
        torch.testing.assert_close(field(bottom)[0, 1, 0], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(field(z)[0, 1, 0], closed, rtol=0, atol=1e-11)
    mass = system.description.mass
    y = torch.stack([z[:, 0], mass @ z[:, 1]], 1)
    torch.testing.assert_close(system.momentum_field(y)[:, 0], z[:, 1], rtol=0, atol=1e-11)


def test_a_centre_off_the_origin_of_a_small_body():
    """Gravity acts on the centre: the pendulum of the body whose origin is elsewhere."""
    for turn in TURNS:
        system = System(hinged(1e-12, turn, centre=(0.2, -0.1, 0.3)))
        assert system.description.degrees_of_freedom == 1
        weights = torch.tensor([1.0 - 0.4, 0.2, -0.1, 0.3], dtype=torch.float64)
        acceleration = weights @ system.field(swinging(system.description, 3.0))[0, 1]
        expected = torch.tensor([0.0, 0.0, 4.5], dtype=torch.float64)
        torch.testing.assert_close(acceleration, expected, rtol=0, atol=1e-9)  # P F cancels 1e12 within the factor


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("turn", TURNS[:2])
def test_a_small_cube_swings_as_a_pendulum(turn, backend):
    """Both paths of simulation, against the elliptic period; energy, constraints and projection."""
    from scipy.special import ellipk

    system = System(hinged(1e-12, turn))
    z0 = swinging(system.description, 0.0, 1.0)
    period = 4.0 * np.sqrt(LEVER / 9.81) * ellipk(np.sin(0.5) ** 2)
    z = system.simulate(z0, torch.tensor([0.0, 0.3, period], dtype=torch.float64), rtol=1e-9, backend=backend)
    torch.testing.assert_close(z[0, 2, 0], z0[0, 0], rtol=0, atol=1e-7)  # a hundred steps of 1e-9
    torch.testing.assert_close(system.energy(z), system.energy(z[:, :1]).expand(1, 3), rtol=0, atol=1e-8)
    assert float(system.constraints(z).abs().max()) < 1e-13
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    slow = system.simulate(z0, t, method="rattle4", dt=1e-3, backend=backend)
    exact = system.simulate(z0, t, rtol=1e-10, backend=backend)
    torch.testing.assert_close(slow[:, -1], exact[:, -1], rtol=0, atol=1e-6)  # order 4 with steps of 1e-3
    shaken = z0 + 1e-3 * torch.randn(z0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = system.project(shaken)
    assert float(system.constraints(back).abs().max()) < 1e-13
    assert float(system.velocity_constraints(back).abs().max()) < 1e-12


def test_a_hinge_that_joints_make_redundant_leaves_out_lengths_only_once():
    """A lever on both sides of a small body: two hinges in one axis, between heavy bodies."""
    world = Assembly(3)
    turn = TURNS[1]
    first = world.body("first", 3, box(1.0, (0.1, 0.2, 0.3)), position=(0.0, 0.0, -0.5))
    small = world.body("small", 3, Inertia(1.0, (1e-12, 2e-12, 3e-12)), position=(0.5, 0.0, -0.5), axes=turn)
    last = world.body("last", 3, box(1e3, (0.1, 0.2, 0.3)), position=(1.5, 0.0, -0.5))
    world.hinge(first.at(0, 0, 0.5), (0, 0, 0), first.along(0, 1, 0), (0.0, 1.0, 0.0))
    world.hinge(first.at(), small.at(*(turn @ [-0.5, 0, 0])), first.along(0, 1, 0), small.along(*turn[:, 1]))
    world.hinge(small.at(*(turn @ [0.5, 0, 0])), last.at(-0.5, 0, 0), small.along(*turn[:, 1]), last.along(0, 1, 0))
    world.gravity()
    assert world.build("levers").degrees_of_freedom == 3


# --- units ---


def four_bar(length: float, mass: float, time: float, dim: int) -> System:
    """A closed loop of three rods or, in space, boxes, with every quantity in other units."""
    world = Assembly(dim)
    gravity = 9.81 * length / time**2

    def at(x: float, z: float) -> tuple[float, ...]:
        return (x * length, z * length) if dim == 2 else (x * length, 0.0, z * length)

    places = [(0.0, 0.0), (0.3, 0.4), (1.2, 0.5), (1.0, 0.0)]
    handles = []
    for k, ((x0, z0), (x1, z1)) in enumerate(pairwise(places)):
        along = np.array([x1 - x0, z1 - z0])
        size = np.linalg.norm(along)
        c, s = along / size
        axes = [[c, s], [-s, c]] if dim == 2 else [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]
        inertia = box(mass * (1.0 + k), (size * length, 0.1 * length, 0.05 * length)[:dim])
        handles.append((world.body(str(k), dim, inertia, position=at(0.5 * (x0 + x1), 0.5 * (z0 + z1)), axes=axes),
                        0.5 * size * length))  # fmt: skip

    def end(k: int, sign: float):
        body, half = handles[k]
        return body.at(sign * half, *[0.0] * (dim - 1))

    y = (0.0, 1.0, 0.0)
    extra = [{}, {}, {}, {}]
    if dim == 3:
        extra = [{"axis_a": handles[k][0].along(*y), "axis_b": axis} for k, axis in
                 [(0, y), (1, handles[0][0].along(*y)), (2, handles[1][0].along(*y)), (2, y)]]  # fmt: skip
    world.hinge(end(0, -1.0), at(*places[0]), **extra[0])
    world.hinge(end(1, -1.0), end(0, 1.0), **extra[1])
    world.hinge(end(2, -1.0), end(1, 1.0), **extra[2])
    world.hinge(end(2, 1.0), at(*places[3]), **extra[3])
    world.gravity(gravity)
    return System(world.build("loop"))


SCALES = [(1e-3, 1.0, 1.0), (1e3, 1.0, 1.0), (1e-6, 1e-9, 1e-3), (1.0, 1e3, 60.0), (1e4, 1e6, 1e3)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dim", [2, 3])
def test_freedom_and_accelerations_do_not_depend_on_units(scales, dim):
    """A four-bar linkage in the plane and, with three dependent equations, in space: one degree of freedom."""
    length, mass, time = scales
    plain, scaled = four_bar(1.0, 1.0, 1.0, dim), four_bar(length, mass, time, dim)
    assert plain.description.degrees_of_freedom == scaled.description.degrees_of_freedom == 1
    x, other = plain.description.reference, scaled.description.reference
    rest = torch.stack([x, torch.zeros_like(x)])[None]
    moved = torch.stack([other, torch.zeros_like(other)])[None]
    a, b = plain.field(rest)[0, 1, :: dim + 1], scaled.field(moved)[0, 1, :: dim + 1]  # of the centres
    # The tips of axes of 1 m at 1e4 m are rounded to 1e-12, and plates are ten times longer than wide.
    torch.testing.assert_close(b * time**2 / length, a, rtol=1e-8, atol=1e-8)


# --- robots against MuJoCo ---


@st.composite
def trees(draw) -> str:
    """A random tree of up to six links with hinges and balls, levers from 1 mm to 1 m, moments from 1e-12 to 1."""
    count = draw(st.integers(1, 6))
    number = st.floats(-1.0, 1.0, allow_subnormal=False)
    inside = {k: [] for k in range(-1, count)}
    for k in range(count):
        inside[draw(st.integers(-1, k - 1))].append(k)
    free = draw(st.booleans())

    def vector(size: float) -> str:
        values = np.array([draw(number) for _ in range(3)])
        return " ".join(f"{v:.6f}" for v in size * (values + np.array([0.3, 0.2, 1.5])))

    def body(k: int, root: bool) -> str:
        lever, mass = 10.0 ** draw(st.integers(-3, 0)), 10.0 ** draw(st.integers(-2, 2))
        moment = 10.0 ** draw(st.integers(-12, -1))
        a, b = (1.0 + 0.5 * draw(number) for _ in range(2))
        kind = "free" if root and free else draw(st.sampled_from(["hinge", "ball"]))
        axis = f'axis="{vector(1.0)}"' if kind == "hinge" else ""
        # Moments that a body has: no moment above the sum of the others.
        moments = f"{moment * (a + b):.9g} {moment * (a + 1.0):.9g} {moment * (b + 1.0):.9g}"
        joint = "<freejoint/>" if kind == "free" else f'<joint name="j{k}" type="{kind}" {axis}/>'
        return (
            f'<body name="b{k}" pos="{vector(lever)}" euler="{vector(30.0)}">{joint}<inertial pos="{vector(lever)}" '
            f'mass="{mass}" diaginertia="{moments}"/>{"".join(body(child, False) for child in inside[k])}</body>'
        )

    links = "".join(body(k, True) for k in inside[-1])
    return f'<mujoco><compiler boundmass="0" boundinertia="0"/><worldbody>{links}</worldbody></mujoco>'


@given(text=trees(), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_random_trees_have_their_joints_freedom_and_mujocos_accelerations(text, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "robot.xml"
    path.write_text(text)
    robot = System.from_file(path)
    model = mujoco.MjModel.from_xml_path(str(path))
    assert robot.description.degrees_of_freedom == robot.num_angles == model.nv
    data = mujoco.MjData(model)
    rng = np.random.default_rng(seed)
    places = []
    mujoco.mj_forward(model, data)
    for body in robot.description.bodies:
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body.name)
        x = robot.description.reference[body.first].numpy()
        places.append((index, data.xmat[index].reshape(3, 3).T @ (x - data.xpos[index])))
    mujoco.mj_integratePos(model, data.qpos, rng.normal(size=model.nv), 1.0)
    data.qvel[:] = rng.normal(size=model.nv)
    mujoco.mj_forward(model, data)
    points, jacobians, rates = [], [], []
    for index, centre in places:
        R = data.xmat[index].reshape(3, 3)  # noqa: N806
        place = data.xpos[index] + R @ centre
        for point in (place, *(place + R.T)):
            J, rate = np.zeros((3, model.nv)), np.zeros((3, model.nv))  # noqa: N806
            mujoco.mj_jac(model, data, J, None, point, index)
            mujoco.mj_jacDot(model, data, rate, None, point, index)
            points.append(point)
            jacobians.append(J)
            rates.append(rate @ data.qvel)
    J, rate = np.concatenate(jacobians), np.concatenate(rates)  # noqa: N806
    z = torch.from_numpy(np.stack([np.array(points), (J @ data.qvel).reshape(-1, 3)]))
    acceleration = robot.field(z)[1].numpy().ravel()
    columns = []
    for unit in np.eye(model.nv):
        column = np.zeros(model.nv)
        mujoco.mj_mulM(model, data, column, unit)
        columns.append(column)
    M = np.array(columns)  # noqa: N806
    # Rounding of the state is amplified by the condition of the mass matrix, free of units. Over 150 trees beyond those
    # drawn here the worst error was 300 roundings times the condition, at 4e-7.
    scale = np.sqrt(np.diag(M))
    rtol = max(1e-8, 1e3 * np.finfo(np.float64).eps * float(np.linalg.cond(M / np.outer(scale, scale))))
    # The law, not MuJoCo's own solution, whose mass matrix is as ill-conditioned as levers^2 over moments: what our
    # accelerations need as generalised forces is nothing, beside the sum of the terms.
    data.qacc[:] = np.linalg.lstsq(J, acceleration - rate, rcond=None)[0]
    size = max(1.0, float(np.abs(acceleration).max()))
    np.testing.assert_allclose(J @ data.qacc + rate, acceleration, rtol=0, atol=rtol * size)
    off = np.abs(M @ data.qacc + data.qfrc_bias)
    terms = np.abs(M) @ np.abs(data.qacc) + np.abs(data.qfrc_bias)
    # Gravity on a lever along an axis has no moment about it but for rounding.
    weights = float(model.body_mass.sum()) * float(np.abs(acceleration).max() + 10.0) * float(np.abs(points).max())
    # Eight digits: six links, each with the rounding of MuJoCo's own terms.
    assert (off <= rtol * terms + 1e-14 * weights).all()
