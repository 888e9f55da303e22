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
from chnn.simulation.rattle import WEIGHTS, check_conservative, simulate_rattle
from chnn.simulation.reference import simulate_torch

_log = getLogger(__name__)

BACKENDS = ("auto", "torch", "numba")
"""What ``backend=`` takes."""

METHODS = ("dop853", *WEIGHTS)
"""What ``method=`` takes."""


def simulate(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, " T"],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    dense: bool = False,
    method: str = "dop853",
    dt: float | None = None,
    external: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    backend: str = "auto",
    max_steps: int = 1_000_000,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T 2 n d"]:
    """Trajectories of a `chnn.systems.System` from checked states; see its ``simulate``."""
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    fixed = method in WEIGHTS
    if fixed:
        check_conservative(system)
        if external is not None:
            raise UserError(f"method '{method}' takes no external force; use method='dop853'")
        if dt is None or not 0.0 < dt < float("inf"):
            raise UserError(f"expected a positive step dt for method '{method}', got {dt}")
    elif dt is not None:
        raise UserError("method 'dop853' finds its own steps and takes no dt; give rtol, or method='rattle'")
    if len(t) == 1:
        return z0.unsqueeze(1)
    learnt = is_learnt(system, z0, t, external)
    wants_gradient = torch.is_grad_enabled() and (z0.requires_grad or learnt)
    reason = ""
    if wants_gradient:
        reason = "it gives no gradients"
    elif external is not None:
        reason = "it takes no external force"
    elif learnt:
        reason = "it keeps the numbers it was made with, and here a tensor that requires gradients may change"
    if backend == "numba" and reason:
        raise UserError(f"backend 'numba' cannot simulate this: {reason}; use backend='torch'")
    if backend != "torch" and not reason and (backend == "numba" or z0.device.type == "cpu"):
        from chnn.simulation.compiled import march_compiled, simulate_compiled  # numba takes a second to import

        try:
            if fixed:
                assert dt is not None
                return march_compiled(system, z0, t, method=method, dt=dt, progress=progress)
            return simulate_compiled(
                system, z0, t, rtol=rtol, atol=atol, dense=dense, max_steps=max_steps, progress=progress
            )
        except Untraceable as error:
            if backend == "numba":
                raise UserError(
                    f"backend 'numba' cannot simulate {system.name}: {error}; use backend='torch'"
                ) from None
            _log.info("%s is simulated by torch: %s", system.name, error)
    with torch.set_grad_enabled(wants_gradient):
        if fixed:
            assert dt is not None
            return simulate_rattle(system, z0, t, method=method, dt=dt, progress=progress)
        return simulate_torch(
            system, z0, t, rtol=rtol, atol=atol, dense=dense, external=external, max_steps=max_steps, progress=progress
        )


def is_learnt(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, " T"] | None = None,
    external: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> bool:
    """Whether the motion depends on a tensor that requires gradients: a parameter of a force, masses."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z0.detach().clone()
        now = None if t is None else t[:1].clone().expand(len(z)).reshape(-1, *[1] * (z.ndim - 2))
        return system.field(z, now, external).requires_grad
