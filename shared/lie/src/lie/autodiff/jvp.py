r"""The derivative of a map along a tangent, :math:`Df(x)[v]`, by forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def jvp_along(f: Callable[[Tensor], Tensor], x: Float[Tensor, "..."], v: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """The value ``f(x)`` and its derivative along ``v``, in one forward pass.

    Args:
        f: map on tensors, differentiable in forward mode.
        x: point, any shape.
        v: tangent at ``x`` of the same shape; or several, stacked along one new leading axis.

    Returns:
        ``f(x)``, and ``Df(x)[v]`` of the same shape (with the leading axis of ``v`` where it has one).

    Raises:
        ValueError: if ``v`` is not shaped as ``x`` (or one axis more in front).
        TypeError: if dtypes differ or are not floating-point.

    Laws: linear in ``v``; ``jvp_along(g o f, x, v) == jvp_along(g, f(x), Df(x)[v])`` (chain rule).

    >>> jvp_along(torch.sin, torch.zeros(2), torch.ones(2))[1]
    tensor([1., 1.])
    """
    if not x.is_floating_point() or v.dtype != x.dtype:
        raise TypeError(f"expected a point and a tangent of one floating-point dtype, got {x.dtype} and {v.dtype}")
    if v.shape == x.shape:
        value, along = torch.func.jvp(f, (x,), (v,))  # type: ignore[misc]  (two without has_aux)
        return value, along
    if v.shape[1:] == x.shape and v.ndim == x.ndim + 1:
        # The primal does not depend on the mapped tangent, so vmap computes it once.
        push = torch.func.vmap(lambda u: torch.func.jvp(f, (x,), (u,)), out_dims=(None, 0))  # type: ignore[arg-type]
        value, along = push(v)  # type: ignore[misc]
        return value, along
    raise ValueError(
        f"expected a tangent of shape {tuple(x.shape)}, or several of them stacked in front, got {tuple(v.shape)}"
    )
