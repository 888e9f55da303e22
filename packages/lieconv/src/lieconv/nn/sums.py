"""Sums over neighbours whose gradients have the memory layout of their tensors, so that no copy is made.

The gradient that autograd makes of ``near.mT @ phi`` is the transpose of a product, and is copied, once for every
neighbour and channel, before it can be added up over the points. In the right order no product needs a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def kernel_sums(near: Float[Tensor, "M k c"], phi: Float[Tensor, "M k basis"]) -> Float[Tensor, "M c basis"]:
    """``near.mT @ phi``: the sum over neighbours of each feature times each kernel function."""
    if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return near.mT @ phi
    if torch.autograd.forward_ad._current_level >= 0:  # tangents pass through plain operations
        return near.mT @ phi
    return _KernelSums.apply(near, phi)  # type: ignore[no-any-return]


class _KernelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, near: Tensor, phi: Tensor) -> Tensor:
        ctx.save_for_backward(near, phi)
        return near.mT @ phi

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        near, phi = ctx.saved_tensors
        for_near = phi @ gradient.mT if ctx.needs_input_grad[0] else None
        return for_near, near @ gradient if ctx.needs_input_grad[1] else None
