"""Closed forms against the general way: ``exp`` of a batch of rotations and rigid motions, and ``matrix_exp``.

Run with ``pytest benchmarks -s``. Both take the same batch in float64, in one process; what counts is their ratio.
"""

from __future__ import annotations

import pytest
import torch
from lie.groups import SE3, SO3, LieGroup

SECONDS: dict[tuple[str, str], float] = {}


@pytest.mark.parametrize("way", ["matrix_exp", "closed form"])
@pytest.mark.parametrize("G", [SO3(), SE3()], ids=repr)
def test_exp(G: LieGroup, way: str, benchmark) -> None:
    name = type(G).__name__
    a = torch.randn(20_000, G.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    work = {"matrix_exp": lambda: torch.linalg.matrix_exp(G.hat(a)), "closed form": lambda: G.exp(a)}[way]
    result = benchmark.pedantic(work, rounds=10, warmup_rounds=2)
    # matrix_exp loses a few digits on matrices of norm 4 or so.
    torch.testing.assert_close(result, torch.linalg.matrix_exp(G.hat(a)), rtol=1e-10, atol=1e-12)
    SECONDS[name, way] = benchmark.stats.stats.min
    print(f"\n{name}, 20000 elements: {way} {1e3 * SECONDS[name, way]:.1f} ms")
    if way == "closed form" and (name, "matrix_exp") in SECONDS:
        ratio = SECONDS[name, "matrix_exp"] / SECONDS[name, way]
        print(f"{name}: the closed form is {ratio:.1f} times as fast")
        assert ratio > 1
