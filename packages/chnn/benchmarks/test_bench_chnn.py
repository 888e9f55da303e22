"""Field evaluation and simulation against SciPy's DOP853 in minimal angles, in the same run.

    nox -s "bench(chnn)"

Prints microseconds per trajectory and unit of time, and the ratio.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from chnn.systems import GRAVITY, ChainPendulum, Gyroscope
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


@pytest.mark.parametrize(
    ("system", "published"), [(ChainPendulum(3), 1.0e-3), (ChainPendulum(5), 1.4e-3), (Gyroscope(), 2.6e-3)],
    ids=["chain3", "chain5", "gyroscope"],
)  # fmt: skip
def test_field(system, published):
    """Processor time of one evaluation, beside what no eager implementation of it can be below.

    One evaluation is about 20 calls of torch, each of which costs at least the dispatch of an addition, and 8 batched
    products. The published times are of idle AVX-512 cores.
    """
    n, d = system.num_points, system.spatial_dim
    z = system.sample(BATCH, generator=torch.Generator().manual_seed(0))
    m, x = torch.randn(n, n, dtype=torch.float64), z[:, 0].contiguous()
    small = torch.randn(4, dtype=torch.float64)
    best = {"ours": 1e9, "product": 1e9, "dispatch": 1e9}
    ways = {"ours": lambda: system.field(z), "product": lambda: m @ x, "dispatch": lambda: small + small}
    with torch.no_grad():
        for _ in range(20):  # in turn, so that a busy moment meets all alike
            for name, way in ways.items():
                started = time.process_time()
                for _ in range(50):
                    way()
                best[name] = min(best[name], (time.process_time() - started) / 50)
    ours = best["ours"]
    product, dispatch = best["product"] * 1e6, best["dispatch"] * 1e6
    print(
        f"\nfield, {system.name} {n} points, batch {BATCH}: {ours * 1e6:.0f} us; one product ({n}, {n}) @ "
        f"({BATCH}, {n}, {d}) {product:.1f} us, one dispatch {dispatch:.1f} us: {ours * 1e6 / dispatch:.0f} of "
        f"them; published {published * 1e6:.0f} us, ratio {published / ours:.1f}"
    )


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
