"""One way to time: all ways in turn, round after round, and the least time of each."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def compare() -> Callable[..., dict[str, float]]:
    """``compare(title, ways, rounds=..., unit=...)`` times ``ways`` and prints each against the last.

    The rounds interleave, so that a busy moment of the machine meets all ways alike, and the least time of each
    counts. The first two calls of each (compilation, first memory) are not timed. Times are printed in units of
    ``scale`` seconds.
    """

    def run(
        title: str, ways: dict[str, Callable[[], object]], *, rounds: int = 7, unit: str = "ms", scale: float = 1e-3
    ) -> dict[str, float]:
        assert torch.get_num_threads() == 1 or print("several threads: set OMP_NUM_THREADS=1 to compare") is None
        for way in ways.values():
            way()
            way()
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                best[name] = min(best[name], time.perf_counter() - start)
        peer = list(ways)[-1]
        print(f"\n{title}")
        for name, seconds in best.items():
            print(f"  {name:32s} {seconds / scale:10.2f} {unit}   {best[peer] / seconds:7.2f} x {peer}")
        return best

    return run
