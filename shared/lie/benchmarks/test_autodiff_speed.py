"""The Euler-Lagrange field against the Hessian of each sample, and stacked tangents against a loop over them.

Run with ``pytest benchmarks -s``. All ways take the same batch in float64, in one process; what counts is their ratio.
"""

from __future__ import annotations

import pytest
import torch
from lie.autodiff import jvp_along, lagrangian_field
from torch import Tensor

SECONDS: dict[str, float] = {}


def double_pendulum(z: Tensor) -> Tensor:
    (a, b), (va, vb) = z[..., :2].unbind(-1), z[..., 2:].unbind(-1)
    return va**2 + 0.5 * vb**2 + va * vb * (a - b).cos() + 9.81 * (2 * a.cos() + b.cos())


def by_hessian(z: Tensor) -> Tensor:
    def one(y: Tensor) -> Tensor:
        hessian = torch.func.hessian(double_pendulum)(y)
        slope = torch.func.grad(double_pendulum)(y)
        return torch.cat([y[2:], torch.linalg.solve(hessian[2:, 2:], slope[:2] - hessian[2:, :2] @ y[2:])])

    return torch.func.vmap(one)(z)


@pytest.mark.parametrize("way", ["hessian", "field", "field compiled"])
def test_lagrangian_field(way: str, benchmark) -> None:
    z = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = lagrangian_field(double_pendulum)
    work = {"hessian": by_hessian, "field": field, "field compiled": torch.compile(field, fullgraph=True)}[way]
    result = benchmark.pedantic(work, args=(z,), rounds=20, warmup_rounds=3)
    torch.testing.assert_close(result, by_hessian(z), rtol=1e-12, atol=1e-12)  # two solvers, condition about 6
    SECONDS[way] = benchmark.stats.stats.min
    print(f"\ndouble pendulum, 200 samples: {way} {1e3 * SECONDS[way]:.2f} ms")
    if way != "hessian" and "hessian" in SECONDS:
        print(f"{SECONDS['hessian'] / SECONDS[way]:.1f} times as fast as the Hessian of each sample")
        assert SECONDS["hessian"] > SECONDS[way]


@pytest.mark.parametrize("way", ["loop", "stacked", "chunks of 8"])
def test_tangents(way: str, benchmark) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 256, 256, generator=generator, dtype=torch.float64) / 16
    x = torch.randn(256, generator=generator, dtype=torch.float64)
    v = torch.randn(32, 256, generator=generator, dtype=torch.float64)

    def network(y: Tensor) -> Tensor:
        for weight in weights:
            y = (weight @ y).tanh()
        return y

    def loop() -> Tensor:
        return torch.stack([jvp_along(network, x, tangent)[1] for tangent in v])

    work = {
        "loop": loop,
        "stacked": lambda: jvp_along(network, x, v)[1],
        "chunks of 8": lambda: jvp_along(network, x, v, chunk_size=8)[1],
    }[way]
    result = benchmark.pedantic(work, rounds=10, warmup_rounds=2)
    torch.testing.assert_close(result, loop(), rtol=1e-12, atol=1e-13)
    SECONDS[way] = benchmark.stats.stats.min
    print(f"\n32 tangents of a network: {way} {1e3 * SECONDS[way]:.2f} ms")
    if way != "loop" and "loop" in SECONDS:
        print(f"{SECONDS['loop'] / SECONDS[way]:.1f} times as fast as the loop")
        assert SECONDS["loop"] > SECONDS[way]
