"""A batch of double pendulums, by torchdiffeq, by diffrax and by a step for each sample; fixed steps, compiled.

Run with ``pytest benchmarks -s`` on a quiet machine, by ``nox -s "bench(lie)"``, which installs diffrax. 200 samples,
float64, rtol 1e-7, atol 1e-9, t in [0, 3], 31 outputs; errors are the largest over all samples and times, against
order 8 at a tolerance of 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lie.integrators import odeint
from torch import Tensor

RTOL, ATOL = 1e-7, 1e-9
Z0 = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TIMES = torch.linspace(0, 3, 31, dtype=torch.float64)


def velocities(sin: Callable, cos: Callable, a: Any, b: Any, p: Any, q: Any) -> tuple[Any, Any, Any, Any]:
    """Angles a, b and their velocities p, q: unit masses and lengths, 9.81."""
    s, c = sin(a - b), cos(a - b)
    scale = 2 - c * c
    first = (-9.81 * 2 * sin(a) + 9.81 * sin(b) * c - s * (q * q + p * p * c)) / scale
    second = (2 * s * p * p + 2 * 9.81 * (sin(a) * c - sin(b)) + s * c * q * q) / scale
    return p, q, first, second


def field(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack(velocities(torch.sin, torch.cos, *z.unbind(-1)), -1)


def torchdiffeq(z0: Tensor) -> Tensor:
    return odeint(field, z0, TIMES, rtol=RTOL, atol=ATOL)


def per_sample(z0: Tensor, **options: Any) -> Tensor:
    return odeint(field, z0, TIMES, rtol=RTOL, atol=ATOL, per_sample=True, options=options)


def slope(solve: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    z0 = Z0.clone().requires_grad_()
    return lambda: torch.autograd.grad(solve(z0)[-1].square().sum(), z0)[0]


def diffrax_ways() -> dict[str, Callable[[], Any]]:
    diffrax = pytest.importorskip("diffrax", reason="the peer; pip install 'lie-core[bench]'")
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    term = diffrax.ODETerm(lambda t, z, _: jnp.stack(velocities(jnp.sin, jnp.cos, *z)))
    controller = diffrax.PIDController(rtol=RTOL, atol=ATOL)
    save = diffrax.SaveAt(ts=jnp.asarray(TIMES.numpy()))

    def one(z: Any) -> Any:
        solver = diffrax.Dopri5()
        return diffrax.diffeqsolve(term, solver, 0.0, 3.0, None, z, saveat=save, stepsize_controller=controller).ys

    solve = jax.jit(jax.vmap(one))
    gradient = jax.jit(jax.grad(lambda z: (solve(z)[:, -1] ** 2).sum()))
    z0 = jnp.asarray(Z0.numpy())
    return {
        "diffrax": lambda: jax.block_until_ready(solve(z0)),
        "diffrax gradient": lambda: jax.block_until_ready(gradient(z0)),
    }


def test_double_pendulum(compare) -> None:
    truth = odeint(field, Z0, TIMES, method="dop853", rtol=1e-12, atol=1e-13)
    jax_ways = diffrax_ways()
    found = {
        "torchdiffeq": torchdiffeq(Z0),
        "per sample": per_sample(Z0, compile=True),
        "diffrax": torch.tensor(jax_ways["diffrax"]().__array__()).transpose(0, 1),
    }
    print()
    for name, z in found.items():
        print(f"largest error, {name}: {float((z - truth).abs().max()):.1e}")
    ways = {
        "diffrax, compiled": jax_ways["diffrax"],
        "per sample, compiled": lambda: per_sample(Z0, compile=True),
        "per sample, eager": lambda: per_sample(Z0),
        "torchdiffeq": lambda: torchdiffeq(Z0),
    }
    best = compare("double pendulum, forward", ways)
    assert best["torchdiffeq"] > best["per sample, compiled"]
    ways = {
        "diffrax, compiled": jax_ways["diffrax gradient"],
        "per sample, compiled": slope(lambda z: per_sample(z, compile=True)),
        "checkpoints, compiled": slope(lambda z: per_sample(z, compile=True, checkpoint=True)),
        "torchdiffeq": slope(torchdiffeq),
    }
    best = compare("double pendulum, gradient of the end", ways, rounds=4)
    assert best["torchdiffeq"] > best["per sample, compiled"]


@pytest.mark.parametrize("method", ["leapfrog", "yoshida4", "yoshida8", "gauss4"])
def test_fixed_steps(method: str, compare) -> None:
    def separable(t: Tensor, z: Tensor) -> Tensor:
        q, p = z.chunk(2, -1)
        return torch.cat([p, -q.sin() - q.sum(-1, keepdim=True).sin()], -1)

    options = {"step_size": 0.02, **({"iterations": 8} if method.startswith("gauss") else {})}

    def solve(**more: Any) -> Tensor:
        return odeint(separable, Z0, TIMES, method=method, options={**options, **more})

    torch.testing.assert_close(solve(compile=True), solve(), rtol=1e-9, atol=1e-9)
    best = compare(f"{method}, 150 steps, 200 samples", {"compiled": lambda: solve(compile=True), "eager": solve})
    assert best["eager"] > best["compiled"]
