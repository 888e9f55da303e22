"""A function of a pair of tensors whose intermediate results are computed again in backward rather than kept.

Of n x k pairs made from n + k elements, autograd would keep a few dozen numbers a pair; this keeps none. One more
forward pass is the price. Under a compiler, which decides by itself what to keep, and under `torch.func` the function
runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pairing = Callable[[Tensor, Tensor], Tensor]


def recomputed(f: Pairing, u: Tensor, v: Tensor) -> Tensor:
    """``f(u, v)``, derivatives of every order and mode included."""
    plain = (
        torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        or not (u.requires_grad or v.requires_grad)
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
    return f(u, v) if plain else _Recomputed.apply(f, u, v)  # type: ignore[return-value]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Pairing, u: Tensor, v: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(u, v)
        return f(u, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # Where a graph of the gradient is wanted, grad mode is on here, and u and v lead on to their own history.
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            u, v = (x.view_as(x) if wanted else x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors)
            value = ctx.f(u, v)
        inputs = [x for x in (u, v) if x.requires_grad]
        if not value.requires_grad:
            return None, None, None  # a function constant in both, as of the group with one element
        slopes = torch.autograd.grad(value, inputs, gradients[0], create_graph=wanted, allow_unused=True)
        found = iter(slopes)
        return (None, *(next(found) if x.requires_grad else None for x in (u, v)))
