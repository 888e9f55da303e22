"""A training step of one layer against the time of its own matrix products, in the same run.

    nox -s "bench(lieconv)"

1024 points, 32 neighbours, 64 channels; the neighbour search is part of the step. Prints the ratio.
"""

from __future__ import annotations

import time

import pytest
import torch
from lie.groups import SE2, SE3, T
from lieconv import LieConv
from torch.utils.flop_counter import FlopCounterMode

POINTS, NEIGHBOURS, CHANNELS = 1024, 32, 64


def gemm_rate() -> float:
    """Floating-point operations a second of a matrix product on this machine, with its present threads."""
    a = torch.randn(1024, 1024)
    a @ a
    started = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * 1024**3 / (time.perf_counter() - started)


@pytest.mark.parametrize("group", [T(2), SE2(), T(3), SE3()], ids=repr)
def test_training_step(benchmark, group):
    torch.manual_seed(0)
    layer = LieConv(CHANNELS, CHANNELS, group=group, num_neighbors=NEIGHBOURS)
    x, values = torch.randn(1, POINTS, group.point_dim), torch.randn(1, POINTS, CHANNELS)

    def step():
        layer.zero_grad()
        layer(x, values).square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    benchmark(step)
    floor = counter.get_total_flops() / gemm_rate()
    seconds, work = benchmark.stats["median"], counter.get_total_flops() / 1e9
    print(f"\n{group!r}: {seconds * 1e3:.1f} ms a step, {seconds / floor:.1f} times its {work:.2f} GFLOP of products")
