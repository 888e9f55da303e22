"""The examples run, in a small setting, and write what they say; an import loads no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "own_group.py": [],
    "geodesic.py": ["picture.svg"],
    "pendulum_energy.py": ["picture.svg", "--end", "20"],
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_example(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name), *ARGUMENTS[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if ARGUMENTS[name]:
        assert (tmp_path / "picture.svg").read_text().rstrip().endswith("</svg>")


def test_import_loads_no_compiler() -> None:
    code = "import sys, lie.groups, lie.integrators, lie.testing; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)  # it would take some seconds
