"""What cannot be simulated is refused in one line that names the body, the constraint, or the sample and time."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from chnn import mechanics
from chnn.cli import main
from chnn.mechanics import Assembly, BodyHandle, Inertia
from chnn.simulation import IntegrationError
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
    System,
)
from lie.run import UserError

NAN, INF = math.nan, math.inf


def world() -> tuple[Assembly, BodyHandle, BodyHandle]:
    """A plate and a point in space."""
    assembly = Assembly(3)
    box = assembly.body("box", 3, mechanics.box(1.0, (1.0, 1.0, 1.0)))
    return assembly, box, assembly.point("bob", 1.0, position=(0.0, 0.0, 1.0))


DECLARED = {
    "gravity": (lambda w, b, p: w.gravity(NAN), "3 finite numbers for gravity"),
    "gravity-vector": (lambda w, b, p: w.gravity((0.0, -9.81)), "3 finite numbers for gravity"),
    "gravity-word": (lambda w, b, p: w.gravity("down"), "finite numbers for gravity, got 'down'"),
    "tether-of-a-direction": (lambda w, b, p: w.tether(b.along(1, 0, 0), (0, 0, 0), 1.0),
                              "got the direction 'box.*nothing is"),
    "tether-of-nothing": (lambda w, b, p: w.tether(b.at() - b.at(), (0, 0, 0), 1.0), "got the direction"),
    "pin-of-a-direction": (lambda w, b, p: w.pin(b.along(1, 0, 0), (1, 0, 0)), "got the direction"),
    "anchor-for-a-place": (lambda w, b, p: w.ball_joint(b, (0, 0, 0)), "an anchor takes tether or pin"),
    "anchor": (lambda w, b, p: w.tether(p, (0, 0, INF), 1.0), "3 finite numbers for the anchor of the tether of bob"),
    "axis-of-a-place": (lambda w, b, p: w.hinge(b, (0, 0, 0), b.at(0, 0, 1), (0, 0, 1)),
                        "expected a direction in a body"),
    "axis-not-unit": (lambda w, b, p: w.hinge(b, (0, 0, 0), b.along(0, 0, 2), (0, 0, 1)), "impossible constraint"),
    "axis-of-nothing": (lambda w, b, p: w.hinge(b, (0, 0, 0), b.along(0, 0, 0), (0, 0, 1)),
                        "that is not zero, got 'box"),
    "another-world": (lambda w, b, p: w.distance(p, world()[2], 1.0), "'bob' belongs to another Assembly"),
    "itself": (lambda w, b, p: w.distance(p, p, 1.0), "distance of bob and bob joins a point to itself"),
    "length": (lambda w, b, p: w.distance(p, b, NAN), "length for the distance of bob and box, got nan"),
    "length-word": (lambda w, b, p: w.distance(p, b, "long"), "expected a number for the length of the distance"),
    "normal": (lambda w, b, p: w.on_plane(p, (0, 0, 0), (0, 0, 0)), "normal that is not zero for bob on a plane"),
    "line": (lambda w, b, p: w.on_line(p, (0, 0, 0), (0, 0, 0)), "direction that is not zero for the line of bob"),
    "angle": (lambda w, b, p: w.keep_angle(b.along(1, 0, 0), (1, 0, 0), 0.0), "an angle between 0 and pi"),
    "angle-of-no-unit": (lambda w, b, p: w.keep_angle(b.along(1, 0, 0), (0, 2, 0)),
                         "a unit vector for the angle of box"),
    "surface": (lambda w, b, p: w.on_surface(p, 3.0), "a function of points for bob on a surface, got 3.0"),
    "surface-shape": (lambda w, b, p: w.on_surface(p, lambda u: u),
                      r"to give \(2,\) for points \(2, 3\), got \(2, 3\)"),
    "surface-nan": (lambda w, b, p: w.on_surface(p, lambda u: u[..., 0] * NAN), "not finite near .* bob on a surface"),
    "surface-empty": (lambda w, b, p: w.on_surface(p, lambda u: u.square().sum(-1) + 1.0),
                      "impossible constraints: .* bob on a surface"),
    "surface-flat": (lambda w, b, p: w.on_surface(p, lambda u: u.square().sum(-1) ** 2),
                     "bob on a surface has no gradient"),
    "spring": (lambda w, b, p: w.spring(p, b, -1.0), "stiffness and rest length of at least 0, got -1.0"),
    "spring-nan": (lambda w, b, p: w.spring(p, b, 1.0, NAN), "stiffness and rest length"),
    "spring-itself": (lambda w, b, p: w.spring(p, p, 1.0), "a spring joins bob to itself"),
    "torsion": (lambda w, b, p: w.torsion_spring(b.along(1, 0, 0), (1, 0, 0), (0, 1, 0), NAN),
                "stiffness of at least 0"),
    "torsion-of-a-place": (lambda w, b, p: w.torsion_spring(b.at(), (1, 0, 0), (0, 1, 0), 1.0), "expected a direction"),
    "damping": (lambda w, b, p: w.damping(NAN), "damping coefficient of at least 0, got nan"),
    "turning-of-a-point": (lambda w, b, p: w.rotational_damping(1.0, p), "a body with 3 axes .* got 'bob' with 0"),
    "potential": (lambda w, b, p: w.potential(1.0), "a function of positions"),
    "magnet": (lambda w, b, p: w.magnets(p, p.at(), (0, 0, 0), NAN, [[0, 0, -1]], [[0, 0, 1]]),
               "finite positions, moments"),
    "magnet-shape": (lambda w, b, p: w.magnets(p, p.at(), (0, 0, 0), 1.0, [[0, 0]], [[0, 0, 1]]),
                     r"of shapes \(F, 3\)"),
    "force": (lambda w, b, p: w.force(lambda x: x), "expected a chnn.mechanics.Force"),
    "mass": (lambda w, b, p: w.point("heavy", -1.0), "positive finite mass, got -1 for body 'heavy'"),
    "mass-nan": (lambda w, b, p: w.point("heavy", NAN), "positive finite mass, got nan for body 'heavy'"),
    "mass-word": (lambda w, b, p: w.point("heavy", "much"), "expected a number for the mass of 'heavy'"),
    "position": (lambda w, b, p: w.point("far", 1.0, position=(NAN, 0, 0)), "numbers for the position of body 'far'"),
    "axes": (lambda w, b, p: w.body("odd", 3, mechanics.ball(1.0, 1.0), axes=np.full((3, 3), NAN)), "orthonormal axes"),
    "inertia": (lambda w, b, p: w.body("odd", 3, 3.0), "expected an Inertia for body 'odd'"),
    "centre": (lambda w, b, p: w.body("odd", 1, Inertia(1.0, (1.0,), (NAN,))),
               "finite coordinates of the centre of body 'odd'"),
    "moments": (lambda w, b, p: w.body("odd", 3, Inertia(1.0, (1.0, 1.0, 0.0))),
                "positive second moments for body 'odd'"),
    "moments-indefinite": (lambda w, b, p: w.body("odd", 2, Inertia(1.0, ((1.0, 2.0), (2.0, 1.0)))),
                           "positive second moments for body 'odd', got smallest eigenvalue -1"),
    "moments-of-no-body": (lambda w, b, p: w.body("odd", 3, mechanics.from_rotational(1.0, np.diag([1.0, 1.0, 3.0]))),
                           "positive second moments for body 'odd'"),
    "too-many-axes": (lambda w, b, p: w.body("odd", 4, mechanics.ball(1.0, 1.0)), "dimension 0 to 3, got 4"),
    "rod": (lambda w, b, p: mechanics.rod(1.0, -1.0), "positive finite lengths of a rod, got -1"),
    "ball": (lambda w, b, p: mechanics.ball(1.0, NAN), "positive finite lengths of a ball, got nan"),
    "disk": (lambda w, b, p: mechanics.disk(1.0, 0.0), "lengths of a disk"),
    "cylinder": (lambda w, b, p: mechanics.cylinder(1.0, 1.0, 0.0), "lengths of a cylinder"),
    "box": (lambda w, b, p: mechanics.box(1.0, (1.0, -1.0)), "lengths of a box"),
    "tensor": (lambda w, b, p: mechanics.from_rotational(1.0, [0.1, 0.1, 5.0]), r"shape \(3, 3\), got \(3,\)"),
    "triangles": (lambda w, b, p: mechanics.from_mesh(np.eye(4, 3), [[0, 1, 4]]),
                  r"from 0 to 3, got \[0, 1, 4\] for triangle 0"),
    "vertices": (lambda w, b, p: mechanics.from_mesh([[0, 0, 0], [NAN, 0, 0]], [[0, 1, 0]]), "finite vertices .* 1"),
    "space": (lambda w, b, p: Assembly(4), "a space of 2 or 3 dimensions, got 4"),
    "pins-apart": (lambda w, b, p: (w.pin(b, (0, 0, 0)), w.pin(b, (0, 0, 1))),
                   "impossible constraint: pin of box cannot hold"),
    "out-of-reach": (lambda w, b, p: (w.tether(p, (0, 0, 0), 1.0), w.tether(p, (9, 0, 0), 1.0)),
                     "impossible constraints: no configuration satisfies tether of bob"),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
def test_declarations(name):
    declare, message = DECLARED[name]
    with pytest.raises(UserError, match=message):
        assembly, box, bob = world()
        declare(assembly, box, bob)
        assembly.build("bad")


def test_bodies_without_extent_along_an_axis_have_fewer_axes():
    """What is no solid is a plate, a rod or a point: each with its positive moments."""
    assembly = Assembly(3)
    assembly.body("plate", 2, Inertia(1.0, (1.0, 1.0)))
    assembly.body("rod", 1, mechanics.rod(1.0, 1.0))
    assembly.body("point", 0, Inertia(1.0))
    assert assembly.build("thin").num_points == 6


MADE = {
    "mass": (lambda: ChainPendulum(2, masses=[NAN, 1.0]), "positive finite masses, got nan for body 0"),
    "links": (lambda: ChainPendulum(2.5), "a whole number of links, got 2.5"),
    "no-links": (lambda: Rope(0), "at least one link, got 0"),
    "bobs": (lambda: CoupledPendulum("two"), "a whole number of bobs, got 'two'"),
    "spring": (lambda: CoupledPendulum(spring_constant=NAN), "spring constant"),
    "dipole": (lambda: MagnetPendulum(dipole=NAN), "finite dipole, got nan"),
    "bob": (lambda: MagnetPendulum(mass=-1.0), "positive finite mass, got -1 for body 'bob'"),
    "magnets": (lambda: MagnetPendulum(magnets=-1), "at least 0 magnet, got -1"),
    "rod": (lambda: MagnetPendulum(length=NAN), "finite numbers|finite length"),
    "top": (lambda: Gyroscope(moments=(1.0, 1.0, -1.0)), "positive second moments for body 'gyroscope'"),
    "pivot": (lambda: Gyroscope(pivot=(NAN, 0.0, 0.0)), "finite"),
    "rotor": (lambda: Rotor(moments=(1.0, 1.0)), "3 second moments"),
    "cart": (lambda: CartPole(damping=NAN), "damping"),
    "pole": (lambda: CartPole(pole_length=0.0), "expected|positive"),
    "bar": (lambda: FourBar(crank=NAN), "positive finite crank, got nan"),
    "bead": (lambda: Bead(surface="torux"), "did you mean 'torus'"),
    "rope": (lambda: Rope(length=NAN), "positive finite mass and length"),
    "dt": (lambda: System(ChainPendulum(1).description, dt=NAN), "positive finite dt, got nan"),
    "description": (lambda: System(None), r"the result of Assembly\(...\).build\(name\), got None"),
}


@pytest.mark.parametrize("name", MADE)
def test_parameters_of_systems(name):
    make, message = MADE[name]
    with pytest.raises(UserError, match=message):
        make()


SIMULATED = {
    "numpy": (lambda s, z, t: s.simulate(z.numpy(), t), "as a torch tensor, got ndarray"),
    "integers": (lambda s, z, t: s.simulate(z.long(), t), "floating-point states, got torch.int64"),
    "complex": (lambda s, z, t: s.simulate(z.to(torch.complex128), t), "floating-point states"),
    "half": (lambda s, z, t: s.field(z.half()), "float32 or float64, got torch.float16"),
    "shape": (lambda s, z, t: s.field(z[..., :1]), r"states of shape \(..., 2, 2, 2\)"),
    "no-states": (lambda s, z, t: s.simulate(z[:0], t), "at least one initial state, got none"),
    "times": (lambda s, z, t: s.simulate(z, torch.tensor([0.0, NAN])), r"got t\[1\] = nan"),
    "no-times": (lambda s, z, t: s.simulate(z, torch.tensor([])), "increasing finite times"),
    "same-times": (lambda s, z, t: s.simulate(z, torch.tensor([0.0, 0.5, 0.5])),
                   r"t\[2\] = 0.5 is not after t\[1\] = 0.5"),
    "rtol": (lambda s, z, t: s.simulate(z, t, NAN), "rtol between 0 and 1, got nan"),
    "atol": (lambda s, z, t: s.simulate(z, t, atol=NAN), "atol of at least 0, got nan"),
    "negative-atol": (lambda s, z, t: s.simulate(z, t, atol=-1.0), "atol of at least 0, got -1"),
    "steps": (lambda s, z, t: s.simulate(z, t, max_steps=0), "max_steps of at least 1, got 0"),
    "external": (lambda s, z, t: s.simulate(z, t, external=3), "a function .* as external force, got 3"),
    "external-shape": (lambda s, z, t: s.simulate(z, t, external=lambda t, x, v: x[..., 0]), "external force of shape"),
    "external-compiled": (
        lambda s, z, t: s.simulate(z, t, external=lambda t, x, v: x, backend="numba"),
        "backend='torch'",
    ),
    "sample": (lambda s, z, t: s.sample(0), "at least one initial state, got 0"),
    "half-a-sample": (lambda s, z, t: s.sample(0.5), "a whole number of initial states, got 0.5"),
    "nan": (lambda s, z, t: s.project(torch.stack([z[0], z[1] * NAN])), r"sample \[1\] of the state: expected finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", SIMULATED)
def test_states_and_times(name):
    act, message = SIMULATED[name]
    system = ChainPendulum(2)
    z = system.sample(2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=message):
        act(system, z, torch.linspace(0, 1, 3))


def test_a_potential_of_another_shape():
    assembly, *_ = world()
    assembly.potential(lambda x: x[..., 0, :])
    system = System(assembly.build("odd"))
    with pytest.raises(UserError, match=r"positions \(2, 5, 3\) to energies \(2,\), got \(2, 3\)"):
        system.potential(torch.zeros(2, 5, 3, dtype=torch.float64))


def test_a_force_that_is_not_finite_names_sample_and_time():
    system = ChainPendulum(2)
    z = system.sample(3, generator=torch.Generator().manual_seed(0))

    def push(t, x, v):  # breaks for the second sample, at 0.25 s
        late = (t > 0.25) & (torch.arange(len(x)) == 1)[:, None, None]
        return torch.where(late, torch.full_like(x, NAN), torch.zeros_like(x))

    with pytest.raises(IntegrationError, match=r"t = 0\.2[45].*sample 1"):
        system.simulate(z, torch.linspace(0, 1, 3), external=push)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_linkage_at_its_dead_point_names_sample_and_time(backend):
    """A parallelogram that folds flat: there the constraints depend on one another, and steps shrink to nothing."""
    system = FourBar(crank=0.5, coupler=1.0, rocker=0.5, ground=1.0)
    assembly = Assembly(2)
    comet = assembly.point("comet", 1.0, position=(1.0, 0.0))
    assembly.potential(lambda x: -0.5 / x[..., 0, :].square().sum(-1))
    falling = System(assembly.build("comet"))
    assert comet.body.points == range(1)
    z = torch.zeros(2, 2, 1, 2, dtype=torch.float64)
    z[0, 0, 0, 0], z[1, 0, 0, 0] = 3.0, 1.0  # arrives at the centre at t = 1, with infinite speed
    with pytest.raises(IntegrationError, match=r"(underflowed|not finite) at t = (1|0\.99999\d*) .*sample 1"):
        falling.simulate(z, torch.tensor([0.0, 2.0], dtype=torch.float64), backend=backend)
    flat = torch.zeros(6, 2, dtype=torch.float64)
    flat[:, 0] = torch.tensor([0.25, 1.25, 1.0, 2.0, 1.25, 0.25], dtype=torch.float64)  # all bars on one line
    with pytest.raises(
        UserError, match=r"sample 0 .* at a dead point of four-bar: .* depends on the other constraints"
    ):
        system.simulate(torch.stack([flat, torch.zeros_like(flat)])[None], torch.tensor([0.0, 1.0]), backend=backend)


COMMANDS = {
    "mass": (["chain-pendulum", "--masses", "1", "-1"], "positive finite masses, got -1 for body 1"),
    "nan": (["chain-pendulum", "--masses", "nan", "1"], "--masses to be finite, got .nan"),
    "moments": (["gyroscope", "--set", "moments=[1, 1, -1]"], "positive second moments for body 'gyroscope'"),
    "moments-nan": (["rotor", "--set", "moments=[1, 1, NaN]"], "numbers for moments of rotor, got"),
    "word": (["chain-pendulum", "--set", "links=three"], "whole number for links of chain-pendulum, got 'three'"),
    "impossible": (["four-bar", "--set", "ground=9"], "impossible constraints"),
    "pivot": (["gyroscope", "--set", "pivot=[0, 0]"], "3 coordinates of a point of body 'gyroscope'"),
    "dt": (["rotor", "--dt", "nan"], "--dt to be a number above 0, got nan"),
    "rtol": (["rotor", "--rtol", "0"], "--rtol to be a number of at least 1e-15 and below 1, got 0"),
    "trajectories": (["rotor", "--trajectories", "0"], "--trajectories to be a whole number from 1"),
    "underflow": (["rotor", "--rtol", "1e-30", "--horizon", "0.1"], "--rtol to be a number of at least 1e-15"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(tmp_path, capsys, name):
    arguments, message = COMMANDS[name]
    assert main(["simulate", *arguments, "--no-animation", "--out", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]


def linkage(*, apart: float | None = None, reach: float = 1.0) -> Assembly:
    """A four-bar loop on two pins, with a distance between its middle joints if given."""
    world = Assembly(2)
    bars = []
    for name, a, b in (("crank", (0, 0), (0.4, 0.0)), ("coupler", (0.4, 0.0), (1.2, 0.6)),
                       ("rocker", (1.2, 0.6), (1.2, -0.2))):  # fmt: skip
        along = np.subtract(b, a)
        length = float(np.linalg.norm(along))
        bar = world.body(name, 1, mechanics.rod(1.0, length), position=0.5 * np.add(a, b), axes=[along / length])
        bars.append((bar.at(-0.5 * length), bar.at(0.5 * length)))
    world.pin(bars[0][0], (0.0, 0.0))
    world.ball_joint(bars[0][1], bars[1][0])
    world.ball_joint(bars[1][1], bars[2][0])
    world.pin(bars[2][1], (1.2 * reach, -0.2), name="the last pin")
    if apart is not None:
        world.distance(bars[0][1], bars[2][0], apart)
    return world


def test_an_impossible_distance_is_named_and_not_the_bodies_it_bends():
    assert linkage().build("fits").degrees_of_freedom == 1
    with pytest.raises(UserError) as refused:
        linkage(apart=9.0).build("odd")
    message = str(refused.value)
    # Without it the loop closes: 1 m stays of the 9 m, so that it is off by 80 m^2; the loop itself is not at fault.
    assert "satisfies distance of crank(0.2,) and rocker(-0.4,)" in message and "(by 80); check" in message
    assert "within" not in message
    with pytest.raises(UserError, match="impossible constraints") as refused:
        linkage(apart=9.0, reach=90.0).build("odd")  # two are at fault: no single one can be blamed
    named = str(refused.value).split("satisfies ")[1]
    assert not named.startswith("length") and "the last pin" in named and "distance of" in named


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of numpy, when it is given a tensor
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    ("potential", "message"),
    [(lambda x: 0.0, r"to a tensor of energies \(.*got float"),
     (lambda x: np.sin(x.numpy())[..., 0, 0], "in place of numpy|compute it from x by torch"),
     (lambda x: np.sin(x[..., 0, 0]), "in place of numpy"),
     (lambda x: (x[..., 0, 0] - 5.0).log(), "sample 0 starts where")],
)  # fmt: skip
def test_potentials_that_are_none(backend, potential, message):
    assembly = Assembly(2)
    assembly.point("bob", 1.0)
    assembly.potential(potential)
    system = System(assembly.build("odd"))
    with pytest.raises(UserError, match=message):
        system.simulate(torch.ones(1, 2, 1, 2).double(), torch.tensor([0.0, 1.0]), backend=backend)


def test_a_projection_under_a_transform_looks_at_no_numbers():
    """A state on the constraints, moved along them, moves so."""
    system = ChainPendulum(2)
    z = system.sample(2, generator=torch.Generator().manual_seed(0))
    moved, change = torch.func.jvp(system.project, (z,), (torch.zeros_like(z),))  # type: ignore[misc]  (two without has_aux)
    torch.testing.assert_close(moved, z, rtol=0, atol=1e-14)
    assert not change.any()
