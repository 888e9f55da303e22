"""The examples run, and find what they say they find."""

from __future__ import annotations

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_foreign_potential():
    # From 1 towards 9.81: sixty steps of 0.3 get there; the training step's truncation is a percent at most.
    assert abs(load("foreign_potential").main(60) - 9.81) < 0.5


def test_flips_of_a_double_pendulum(tmp_path, capsys):
    below, above, share = load("flips_of_a_double_pendulum").main(tmp_path / "run", 300)
    assert below == 0  # energy is conserved, so none may
    assert above > 10 and 0.2 < share < 0.95
    assert (tmp_path / "run" / "flip.html").stat().st_size > 10_000
    assert len(list((tmp_path / "run").glob("*.npz"))) == 2


def test_load_robots(tmp_path):
    found = load("load_robots").main(str(tmp_path / "hopper.gif"), horizon=0.3)
    # The trapezoidal rule over 40 steps of the damper's power, a joule in all; the tolerance of a step.
    assert found["balance"] < 1e-2 and found["drift"] < 1e-7
    assert (tmp_path / "hopper.gif").stat().st_size > 1000


def test_chaos():
    found = load("chaos").main(30.0)
    assert found["chaotic"] > 0.7 and found["calm"] < 0.4 * found["chaotic"]
    assert found["crossings"] > 10 and found["drift"] < 1e-5
