"""One call for both paths of simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from lie.run import unknown_name
from torch import Tensor

from chnn.simulation.reference import simulate_torch

BACKENDS = ("auto", "torch", "numba")
"""What ``backend=`` takes."""


def simulate(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, " T"],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    external: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    backend: str = "auto",
    max_steps: int = 1_000_000,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T 2 n d"]:
    """Trajectories of a `chnn.systems.System` from checked states; see its ``simulate``."""
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if len(t) == 1:
        return z0.unsqueeze(1)
    return simulate_torch(
        system, z0, t, rtol=rtol, atol=atol, external=external, max_steps=max_steps, progress=progress
    )
