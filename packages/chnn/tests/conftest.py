"""What tests of several rooms use. Kernels of the tests are kept in one folder for all processes and runs, apart from
the user's."""

from __future__ import annotations

import math
import operator
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

os.environ.setdefault("CHNN_CACHE", str(Path(tempfile.gettempdir()) / f"chnn-test-kernels-{os.getuid()}"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with one line of error; that line."""
    from chnn.cli import main

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture(scope="session")
def by_python() -> Callable[..., torch.Tensor]:
    """Runs a `chnn.simulation.graph.Program` by Python's arithmetic."""
    others = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
              "eq": operator.eq, "neg": operator.neg, "select": lambda c, a, b: a if c else b}  # fmt: skip

    def run(program, *inputs: torch.Tensor) -> torch.Tensor:
        values = torch.cat([x.flatten() for x in inputs]).tolist()

        def get(x):
            return x if isinstance(x, float) else values[x]

        for name, *operands in program.operations:
            values.append((others.get(name) or getattr(math, name))(*map(get, operands)))
        return torch.tensor([get(x) for x in program.outputs], dtype=torch.float64)

    return run
