"""One call for both paths of simulation."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

from chnn.simulation.errors import Untraceable
from chnn.simulation.reference import simulate_torch

_log = getLogger(__name__)

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
    wants_gradient = torch.is_grad_enabled() and z0.requires_grad
    reason = "it gives no gradients" if wants_gradient else "it takes no external force" if external is not None else ""
    if backend == "numba" and reason:
        raise UserError(f"backend 'numba' cannot simulate this: {reason}; use backend='torch'")
    if backend != "torch" and not reason and (backend == "numba" or z0.device.type == "cpu"):
        from chnn.simulation.compiled import simulate_compiled  # numba and sympy take a second to import

        try:
            return simulate_compiled(system, z0, t, rtol=rtol, atol=atol, max_steps=max_steps, progress=progress)
        except Untraceable as error:
            if backend == "numba":
                raise UserError(
                    f"backend 'numba' cannot simulate {system.name}: {error}; use backend='torch'"
                ) from None
            _log.info("%s is simulated by torch: %s", system.name, error)
    return simulate_torch(
        system, z0, t, rtol=rtol, atol=atol, external=external, max_steps=max_steps, progress=progress
    )
