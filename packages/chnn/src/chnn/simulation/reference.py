"""The portable path: torch on any device, differentiable, by `lie.integrators.dop853` with a projection of every step.

The compiled path (`chnn.simulation.compiled`) takes the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from lie.integrators import IntegrationError, dop853
from torch import Tensor

from chnn.mechanics import project_fixed
from chnn.simulation.dense import integrate_dense

_PROGRESS_EVERY = 64  # evaluations between two looks at the clock, each of which waits for the device


def simulate_torch(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, "*rows T"],
    *,
    rtol: float,
    atol: float,
    dense: bool = False,
    external: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    max_steps: int = 1_000_000,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T 2 n d"]:
    """Trajectories of ``system`` (`chnn.systems.System`), each sample with steps of its own.

    Gradients are recorded where autograd is on. With ``dense`` outputs lie within steps that they do not shorten, and
    times may be (B, T), a row for each sample.

    Raises:
        IntegrationError: names samples and time; its ``reached`` is (B, T, 2, n, d), NaN from where a sample stopped.
    """
    constraints, metric, *_ = system.parts(z0)
    start, span, count = float(t.min()), float(t.max() - t.min()), 0

    def field(now: Tensor, z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if progress is not None and count % _PROGRESS_EVERY == 0 and span > 0:
            progress(min(1.0, (float(now.min()) - start) / span))
        clock = now.reshape(-1, *[1] * (z.ndim - 2)) if now.ndim else now
        return system.field(z, clock, external)

    def onto(z: Tensor) -> Tensor:
        # A step violates by its error, about 1e-7 of a length: two quadratic iterations reach rounding.
        return torch.stack(project_fixed(constraints, metric, z[..., 0, :, :], z[..., 1, :, :]), dim=-3)

    project = onto if constraints.num_constraints else None
    try:
        if dense:
            return integrate_dense(field, z0, torch.atleast_2d(t), rtol=rtol, atol=atol, project=project,
                                   max_steps=max_steps)  # fmt: skip
        z = dop853(field, z0, t, rtol=rtol, atol=atol, project=project, max_steps=max_steps)
    except IntegrationError as error:
        if error.reached is not None and not dense:
            error.reached = error.reached.reshape(len(t), *z0.shape).transpose(0, 1)
        raise
    return z.transpose(0, 1)
