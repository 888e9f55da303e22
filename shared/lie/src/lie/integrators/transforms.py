"""Decisions of an integrator under the transforms of torch.func: the numbers behind mapped and traced tensors.

Loops end when every sample is done. Under ``vmap`` a sample is one of many, whose numbers ``bool(x)`` may not see: the
loop then runs until all of them are done, and those which are done before stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def active() -> bool:
    """Whether a transform of torch.func is."""
    return torch._C._are_functorch_transforms_active()


def differentiates_forward() -> bool:
    """Whether forward-mode derivatives may pass, or those of torch.func: both know nothing of checkpoints."""
    return active() or torch.autograd.forward_ad._current_level >= 0


def concrete(x: Tensor) -> Tensor:
    """The numbers of ``x`` without any transform; mapped axes come last."""
    functorch = torch._C._functorch  # type: ignore[attr-defined]  (made at run time)
    while functorch.is_functorch_wrapped_tensor(x):
        axis = functorch.maybe_get_bdim(x)
        x = functorch.get_unwrapped(x)
        x = x if axis < 0 else x.movedim(axis, -1)
    return x.detach()


def largest(x: Tensor) -> Tensor:
    """The maximum of ``x`` over mapped samples, entry by entry, without any transform."""
    if not active():
        return x
    axes = x.ndim
    values = concrete(x)
    return values if values.ndim == axes else values.flatten(axes).amax(-1)


def positions(condition: Tensor) -> list[int]:
    """Where a condition holds, counted along all axes; nowhere under a transform, whose samples have no position."""
    return [] if active() else condition.reshape(-1).nonzero().squeeze(-1).tolist()


def anywhere(condition: Tensor) -> bool:
    """Whether a condition holds for any entry of any sample."""
    return bool(largest(condition.any()))
