"""Lyapunov exponents, Poincare sections and what is conserved, against laws, exact values and minimal coordinates."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from chnn.analysis import Conservation, LyapunovExponents, conservation, coordinate, lyapunov, poincare
from chnn.analysis.lyapunov import _flow_many
from chnn.cli import main
from chnn.mechanics import Assembly
from chnn.simulation.kernels import programs_of, tangent_programs_of
from chnn.systems import GRAVITY, CartPole, ChainPendulum, CoupledPendulum, FourBar, Gyroscope, Rotor, Satellite, System
from lie.run import UserError
from PIL import Image
from scipy.integrate import solve_ivp
from scipy.special import ellipk


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("system", [ChainPendulum(2), CoupledPendulum(2), Gyroscope(), FourBar(), Rotor()],
                         ids=lambda s: s.name)  # fmt: skip
def test_exponents_of_conservative_systems_sum_to_zero_and_pair(system: System):
    """At any horizon, by symplectic frames: what is left is the error of the integration over the time."""
    z0 = system.sample(3, generator=generator())
    found = lyapunov(system, z0, 2.0, every=0.25, rtol=1e-10, generator=generator())
    assert found.exponents.shape == (3, 2 * system.description.degrees_of_freedom) and found.complete
    assert found.total.abs().max() <= 1e-7 and found.pairing.max() <= 1e-7
    assert found.exponents.abs().max() > 0.01  # not by being all zero
    assert torch.equal(found.running[-1], found.exponents) and float(found.times[-1]) == 2.0


def test_both_paths_move_tangent_vectors_alike():
    system = CoupledPendulum(2)
    z0 = system.sample(2, generator=generator())
    a, b = (lyapunov(system, z0, 0.5, every=0.25, backend=name, generator=generator()) for name in ("numba", "torch"))
    torch.testing.assert_close(a.exponents, b.exponents, rtol=0, atol=1e-8)


@pytest.mark.parametrize("system", [ChainPendulum(3), CartPole(damping=0.2), CoupledPendulum(2)], ids=lambda s: s.name)
def test_differentiated_programs_are_the_derivative(system: System, by_python):
    z = system.sample(1, generator=generator())[0]
    change = torch.randn(z.shape, dtype=torch.float64, generator=generator(1))
    velocity, project = tangent_programs_of(system)
    value, rate, *_ = torch.func.jvp(system.field, (z,), (change,))
    expected = torch.cat([value.flatten(), rate.flatten()])
    torch.testing.assert_close(by_python(velocity, z, change), expected, rtol=1e-11, atol=1e-12)
    expected = torch.cat([by_python(programs_of(system)[1], z), change.flatten()])
    assert torch.equal(by_python(project, z, change), expected)


def test_tangent_vectors_of_the_double_pendulum_in_minimal_coordinates():
    """An independent derivation: the equations of the angles, differentiated by a complex step, by SciPy."""
    system, t_end = ChainPendulum(2), 2.0
    z0 = system.sample(1, generator=generator(4))
    start = system.to_angles(z0)[0]
    change = torch.tensor([[0.3, -0.7], [0.5, 0.2]], dtype=torch.float64)

    def field(y):
        a, b, p, q = y
        s, c = np.sin(a - b), np.cos(a - b)
        first = (-2 * GRAVITY * np.sin(a) + GRAVITY * np.sin(b) * c - s * (q * q + p * p * c)) / (2 - c * c)
        second = (2 * s * p * p + 2 * GRAVITY * (np.sin(a) * c - np.sin(b)) + s * c * q * q) / (2 - c * c)
        return np.array([p, q, first, second])

    both = lambda _, y: np.concatenate([field(y[:4]), np.imag(field(y[:4] + 1e-30j * y[4:])) / 1e-30])  # noqa: E731
    first = np.concatenate([start.flatten().numpy(), change.flatten().numpy()])
    y = torch.from_numpy(solve_ivp(both, (0, t_end), first, "DOP853", rtol=1e-13, atol=1e-13).y[:, -1])
    expected = torch.func.jvp(system.from_angles, (y[:4].view(2, 2),), (y[4:].view(2, 2),))[1]
    ambient = torch.func.jvp(system.from_angles, (start,), (change,))[1]
    t = torch.tensor([0.0, t_end], dtype=torch.float64)
    got = _flow_many(system, torch.cat([z0[0], ambient])[None], t, 1e-12, "auto")[0, 2:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))


def test_exponents_of_the_upright_double_pendulum_are_exact():
    """At rest upright: growth with rates sqrt(g (2 +- sqrt 2)), the roots of the linear system."""
    system = ChainPendulum(2)
    z0 = system.from_angles(torch.tensor([[[math.pi, math.pi], [0.0, 0.0]]], dtype=torch.float64))
    found = lyapunov(system, z0, 1.0, every=0.1, transient=2.5, rtol=1e-12, generator=generator())
    rates = [math.sqrt(GRAVITY * (2 + root)) for root in (math.sqrt(2), -math.sqrt(2))]
    expected = torch.tensor([[*rates, *(-r for r in reversed(rates))]], dtype=torch.float64)
    # Rounding grows by exp(3.5 * 5.8) to 1e-7; the frame turns to the directions by exp(-2 * 3.4 * 2.5), 1e-7.
    torch.testing.assert_close(found.exponents, expected, rtol=0, atol=1e-5)


def test_damping_shrinks_phase_volume():
    """The sum of the exponents is the mean divergence of the field, between -c / M and -c / (M_0 of the cart alone)."""
    system = CartPole(damping=0.4)
    found = lyapunov(system, system.sample(2, generator=generator()), 3.0, every=0.5)
    cart, pole = system.masses.tolist()
    assert (found.total < -0.4 / (cart + pole) + 1e-6).all() and (
        found.total > -0.4 / (0.25 * pole + cart) - 0.05
    ).all()


@pytest.mark.slow
def test_zero_exponents_of_symmetries_and_chaos():
    """A heavy asymmetric top keeps energy and vertical spin: four zeros of six; a double pendulum only energy: two."""
    pendulum = ChainPendulum(2)
    z0 = pendulum.from_angles(torch.tensor([[[2.5, 2.8], [0.0, 0.0]]], dtype=torch.float64))
    chaotic = lyapunov(pendulum, z0, 1000.0, transient=20.0, generator=generator())
    assert chaotic.exponents[0, 0] > 1.0 and chaotic.exponents[0, 1].abs() < 0.02  # log(T) / T
    assert 0 < chaotic.error[0, 0] < 0.2 * chaotic.exponents[0, 0]
    top = lyapunov(Gyroscope(), Gyroscope().sample(2, generator=generator()), 500.0, generator=generator())
    assert (top.exponents[:, 1:5].abs() < 0.05).all()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_crossings_of_a_pendulum_are_half_periods_apart(backend: str):
    """From rest at angle a the period is 4 K(sin a/2) / sqrt(g / l) (complete elliptic integral)."""
    system, angle = ChainPendulum(1), 2.0
    z0 = system.from_angles(torch.tensor([[[angle], [0.0]], [[0.5], [0.0]]], dtype=torch.float64))
    section = coordinate(system, "angle0")
    found = poincare(system, z0, 6.0, section, rtol=1e-12, backend=backend)
    for sample, start in enumerate((angle, 0.5)):
        period = 4 * ellipk(math.sin(start / 2) ** 2) / math.sqrt(GRAVITY)
        mine = found.of(sample)
        expected = torch.arange(len(mine.times), dtype=torch.float64) * 0.5 * period + 0.25 * period
        assert len(expected) == int((6.0 - 0.25 * period) / (0.5 * period)) + 1
        torch.testing.assert_close(mine.times, expected, rtol=0, atol=1e-10)
        assert mine.direction.tolist() == [-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1][: len(expected)]
        assert section(mine.states).abs().max() <= 1e-10 and system.constraints(mine.states).abs().max() <= 1e-14
    up = poincare(system, z0, 6.0, section, direction=1, rtol=1e-12, backend=backend)
    assert torch.equal(up.times, found.times[found.direction == 1])


@pytest.mark.parametrize("held", [None, 1, 2, 3])
def test_a_graze_between_two_times_of_the_grid_is_found(held: int | None, monkeypatch):
    """A section just inside the turning point is crossed twice in 0.02 s, within one interval of the grid, also where
    the parts of the grid that are held at a time (of 1, 2 or 3 intervals) meet."""
    if held is not None:
        monkeypatch.setattr(sys.modules["chnn.analysis.poincare"], "_CHUNK", held)
    system = ChainPendulum(1)
    z0 = system.from_angles(torch.tensor([[[0.5], [0.0]]], dtype=torch.float64))
    section = coordinate(system, "angle0=-0.49995")
    found = poincare(system, z0, 1.5, section, spacing=0.05, rtol=1e-12)
    assert found.direction.tolist() == [-1, 1]
    period = 4 * ellipk(math.sin(0.25) ** 2) / math.sqrt(GRAVITY)
    # theta'' = g sin 0.5 there: 5e-5 rad take sqrt(2 * 5e-5 / that) s, to third order in it.
    half = math.sqrt(2 * 5e-5 / (GRAVITY * math.sin(0.5)))
    torch.testing.assert_close(found.times, torch.tensor([0.5 * period - half, 0.5 * period + half]).double(), rtol=0,
                               atol=1e-6)  # fmt: skip
    assert found.times.diff() < 0.05


@pytest.mark.parametrize("value", [0.5, 0.5 + 2 * math.pi])
def test_a_length_is_no_angle(value: float):
    """A cart that coasts 10 m passes a place once, and not again a turn further on."""
    system = CartPole()
    z0 = system.from_angles(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]], dtype=torch.float64))
    found = poincare(system, z0, 5.0, coordinate(system, f"angle0={value}"), rtol=1e-12)
    torch.testing.assert_close(found.times, torch.tensor([value / 2.0], dtype=torch.float64), rtol=0, atol=1e-9)


def test_sections_are_labelled_in_the_units_of_their_coordinates(tmp_path, capsys):
    arguments = ["--horizon", "3", "--trajectories", "2", "--exponents", "0", "--section", "angle1"]
    out = str(tmp_path / "out")
    assert main(["analyse", "cart-pole", *arguments, "--axes", "angle0", "rate1", "--out", out]) == 0
    assert "drawn as rate1 (rad/s) over angle0 (m)" in capsys.readouterr().out


def test_length_coordinates_of_robots(tmp_path):
    (tmp_path / "crane.xml").write_text("""<mujoco><worldbody><body name="cart">
      <joint name="rail" type="slide" axis="1 0 0"/><joint name="swing" type="hinge" axis="0 1 0"/>
      <geom type="box" size="0.1 0.2 0.3" mass="1" pos="0 0 -0.5"/></body></worldbody></mujoco>""")
    assert System.from_file(tmp_path / "crane.xml").length_coordinates == (0,)


def test_conservation_measures_what_is_conserved(tmp_path):
    system = Gyroscope()
    t = torch.linspace(0, 1, 51, dtype=torch.float64)
    z = system.simulate(system.sample(4, generator=generator()), t, 1e-11)
    report = conservation(system, z, t)
    numbers = report.summary()
    assert numbers["energy_drift_max"] < 1e-9 and numbers["angular_momentum_z_change_max"] < 1e-9
    assert numbers["angular_momentum_x_change_max"] > 1e-3  # gravity turns it
    assert numbers["position_violation_max"] <= 1e-14
    assert json.loads(json.dumps(numbers)) == numbers
    # A drift that is put in is measured.
    faster = z.clone()
    faster[:, :, 1] *= (1 + 1e-3 * t).view(1, -1, 1, 1)
    kinetic = system.kinetic(z[:, 0]) / report.scale
    rate = conservation(system, faster, t).rate_of_drift()
    assert (rate / (2e-3 * kinetic) - 1).abs().max() < 0.3  # kinetic energy changes along the way
    report.plot(tmp_path / "energy.png", "a top")
    assert Image.open(tmp_path / "energy.png").size[0] > 500


def test_bad_input_is_named():
    system = ChainPendulum(2)
    z0 = system.sample(1, generator=generator())
    with pytest.raises(UserError, match="between 1 and 4 exponents"):
        lyapunov(system, z0, 1.0, num=5)
    with pytest.raises(UserError, match="every <= horizon"):
        lyapunov(system, z0, 1.0, every=2.0)
    with pytest.raises(UserError, match="did you mean 'numba'"):
        lyapunov(system, z0, 1.0, backend="nunba")
    for text in ("y0", "x5.0", "x0", "angle7", "rate0.1", "x0.0=a"):
        with pytest.raises(UserError, match=r"section|point below"):
            coordinate(system, text)
    with pytest.raises(UserError, match="has no angles"):
        coordinate(Satellite(), "angle0")
    with pytest.raises(UserError, match="direction 1, -1 or 0"):
        poincare(system, z0, 1.0, coordinate(system, "x0.0"), direction=2)
    with pytest.raises(UserError, match=r"\(\.\.\., 2, n, d\) -> \(\.\.\.\)"):
        poincare(system, z0, 1.0, lambda z: z[..., 0, 0, :])
    with pytest.raises(UserError, match="trajectories of shape"):
        conservation(system, z0, torch.zeros(1))


def test_a_system_without_compiled_form_is_analysed_by_torch():
    world = Assembly(1 + 1)
    world.tether(world.point("bob", 1.0, position=(0.0, -1.0)), (0.0, 0.0), 1.0)
    world.potential(lambda x: torch.special.i0(x).sum((-2, -1)))
    system = System(world.build("own"))
    z0 = system.sample(2, generator=generator())
    found = lyapunov(system, z0, 0.5, every=0.25)
    assert found.pairing.max() <= 1e-6
    assert len(poincare(system, z0, 3.0, coordinate(system, "x0.0"), rtol=1e-9).times) > 0


def test_command(tmp_path, capsys):
    out = tmp_path / "analysis"
    command = ["analyse", "chain-pendulum", "--links", "2", "--trajectories", "2", "--horizon", "3", "--section",
               "angle0", "--direction", "up", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Lyapunov" in shown and "energy drift" in shown
    numbers = json.loads((out / "metrics.json").read_text())
    assert len(numbers["lyapunov"]["exponents_mean"]) == 4 and numbers["lyapunov"]["pairing_max"] < 1e-6
    assert numbers["conservation"]["energy_drift_max"] < 1e-6 and numbers["seed"] == 0
    with np.load(out / "crossings.npz", allow_pickle=False) as file:
        assert len(file["times"]) == numbers["section"]["crossings"] > 0 and file["states"].shape[1:] == (2, 2, 2)
    for name in ("conservation.png", "lyapunov.png", "section.png"):
        assert Image.open(out / name).size[0] > 400
    for wrong, message in ((["--section", "q1"], "section such as"), (["--horizon", "-1"], "horizon"),
                           (["--exponents", "9"], "between 1 and")):  # fmt: skip
        capsys.readouterr()
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_command_on_a_run(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["simulate", "rotor", "--trajectories", "2", "--horizon", "0.3", "--out", str(run)]) == 0
    assert main(["analyse", str(run), "--exponents", "0", "--out", str(tmp_path / "analysis")]) == 0
    numbers = json.loads((tmp_path / "analysis" / "metrics.json").read_text())
    assert numbers["conservation"]["angular_momentum_x_change_max"] < 1e-8 and "lyapunov" not in numbers


def test_the_command_on_a_damped_system(tmp_path, capsys):
    """Damping of 0.5 N s/m on a cart of 1 kg: the exponents add to what phase volume loses, and do not pair."""
    out = tmp_path / "damped"
    assert main(["analyse", "cart-pole", "--set", "damping=0.5", "--trajectories", "2", "--horizon", "4", "--out",
                 str(out)]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    numbers = json.loads((out / "metrics.json").read_text())
    total = sum(numbers["lyapunov"]["exponents_mean"])
    assert total < -0.3 and numbers["lyapunov"]["sum_mean"] == pytest.approx(total, abs=1e-9)
    assert f"they sum to {total:.5f} 1/s" in shown and "contracts" in shown and "pair" not in shown
    assert numbers["damped"] and "relative energy change, damped" in shown and "energy drift" not in shown


def test_a_section_is_drawn_over_what_varies_on_it(tmp_path, capsys):
    """On x0.0 = 0 the second angle of a bob, from the x axis, is constant: the other one is drawn, or what is asked."""
    command = ["analyse", "magnet-pendulum", "--trajectories", "2", "--horizon", "4", "--exponents", "0", "--section",
               "x0.0"]  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "drawn as rate0 (rad/s) over angle0 (rad)" in capsys.readouterr().out
    assert main([*command, "--axes", "x0.1", "v0.2", "--out", str(tmp_path / "b")]) == 0
    assert "drawn as v0.2 (m/s) over x0.1 (m)" in capsys.readouterr().out
    assert main([*command, "--axes", "x0.1", "w", "--out", str(tmp_path / "c")]) == 2
    assert "got 'w'" in capsys.readouterr().err


def test_exponents_of_a_summary_descend_and_medians_are_those_of_simulate():
    found = LyapunovExponents(
        torch.tensor([[0.1, 0.3], [0.1, 0.3]]), torch.tensor([[0.01, 0.02], [0.01, 0.02]]), torch.ones(1),
        torch.zeros(1, 2, 2), False,
    )  # fmt: skip
    summary = found.summary()
    assert summary["exponents_mean"] == pytest.approx([0.3, 0.1])
    assert summary["exponents_standard_error"] == pytest.approx([0.02 / 2**0.5, 0.01 / 2**0.5])
    t, z = torch.zeros(1), torch.zeros(2, 1)
    report = Conservation(t, torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.ones(2), *[torch.ones(2, 1, 2)] * 2, z, z)
    assert report.summary()["energy_drift_median"] == 2.0  # of 1 and 3, as numpy has it


def test_sections_by_the_names_of_a_robot(tmp_path):
    path = tmp_path / "arm.xml"
    path.write_text("""<mujoco><worldbody><body><joint name="j1" axis="0 1 0"/>
      <geom type="box" size=".1 .1 .3" contype="0"/></body></worldbody></mujoco>""")
    robot = System.from_file(path)
    z = robot.state({"j1": 0.5}, {"j1": 2.0})
    assert float(coordinate(robot, "j1=0.2")(z)) == pytest.approx(0.3, abs=1e-12)
    assert float(coordinate(robot, "rate:j1")(z)) == pytest.approx(2.0, abs=1e-12)
    with pytest.raises(UserError, match=r"did you mean 'angle0'\?; the coordinates of .* are j1"):
        coordinate(robot, "angel0")
