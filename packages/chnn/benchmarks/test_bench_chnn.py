"""Simulation against SciPy's DOP853 in minimal angles, in the same run.

    nox -s "bench(chnn)"

Prints microseconds per trajectory and unit of time, and the ratio.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from chnn.systems import GRAVITY, ChainPendulum
from scipy.integrate import solve_ivp

BATCH = 100


def chain_in_angles(links: int):
    beyond = np.arange(links, 0, -1.0)
    mu = np.array([[beyond[max(i, j)] for j in range(links)] for i in range(links)])

    def field(_, y):
        theta, omega = y[:links], y[links:]
        difference = theta[:, None] - theta[None]
        rhs = -(mu * np.sin(difference)) @ omega**2 - GRAVITY * beyond * np.sin(theta)
        return np.concatenate([omega, np.linalg.solve(mu * np.cos(difference), rhs)])

    return field


@pytest.mark.parametrize("links", [2, 3])
def test_scipy_in_angles(benchmark, links):
    system = ChainPendulum(links)
    z0 = system.sample(BATCH, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 34, dtype=torch.float64)
    benchmark.pedantic(system.simulate, (z0, t), rounds=5, warmup_rounds=1)
    ours = benchmark.stats["min"] / BATCH
    angles = system.to_angles(z0).flatten(1).numpy()
    started = time.perf_counter()
    for start in angles[:5]:
        solve_ivp(chain_in_angles(links), (0, 1), start, "DOP853", t.numpy(), rtol=1e-7, atol=1e-9)
    scipy = (time.perf_counter() - started) / 5
    print(f"\nsimulate, {links} links: {ours * 1e6:.0f} us per trajectory and second, scipy in angles "
          f"{scipy * 1e6:.0f} us, ratio {scipy / ours:.1f}")  # fmt: skip
