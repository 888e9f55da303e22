r"""The derivative of a map along a tangent, :math:`Df(x)[v]`, by forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lie.autodiff.foreign import refusing_foreign
from lie.groups.precision import FLOATING


def jvp_along(
    f: Callable[[Any], Any],
    x: Any,  # a tensor, or a nested structure of tensors
    v: Any,
    *,
    chunk_size: int | None = None,
    randomness: Literal["error", "same", "different"] = "error",
) -> tuple[Any, Any]:
    """The value ``f(x)`` and its derivative along ``v``, in one forward pass.

    Args:
        f: map on tensors, differentiable in forward mode; of a tensor, or of tuples, lists and dictionaries of them.
        x: point, any shape.
        v: tangent at ``x`` of the same shape; or several, stacked along one new leading axis (of every tensor).
        chunk_size: how many of several tangents go through ``f`` together, to bound the memory; None takes all.
        randomness: what random operations in ``f`` do for several tangents, as of `torch.func.vmap`: ``"same"`` for
            one mask of a dropout, say.

    Returns:
        ``f(x)``, and ``Df(x)[v]`` of the same shape (with the leading axis of ``v`` where it has one).
        ``f`` runs once, for several tangents once a chunk, and computes its value once however many tangents there are.

    Raises:
        ValueError: if ``v`` is not shaped as ``x`` (or one axis more in front), or ``chunk_size`` is not positive; if
            ``f`` uses an operator from outside torch that has no forward-mode derivative (`lie.autodiff.foreign`).
        TypeError: if dtypes differ or are not floating-point, or ``f`` returns what is no tensor.

    Laws: linear in ``v``; ``jvp_along(g o f, x, v) == jvp_along(g, f(x), Df(x)[v])`` (chain rule).

    >>> jvp_along(torch.sin, torch.zeros(2), torch.ones(2))[1]
    tensor([1., 1.])
    """
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"expected a chunk_size of at least 1, got {chunk_size}; None takes all tangents at once")
    points, structure = tree_flatten(x)
    tangents, tangent_structure = tree_flatten(v)
    if structure != tangent_structure:
        raise ValueError(f"expected a tangent of the structure of the point, {structure}, got {tangent_structure}")
    count = _number_of_tangents(points, tangents)

    if count is None:
        return pushforward(f, (x,), (v,))

    # The primal does not depend on the mapped tangent, so vmap computes it once and hands out a view that repeats it
    # (out_dims=None would say so, but fails inside another vmap).
    push = torch.func.vmap(lambda u: pushforward(f, (x,), (u,)), randomness=randomness)
    size = chunk_size or count
    chunks = zip(*(tangent.split(size) for tangent in tangents), strict=True)
    value, along = push(tree_unflatten(list(next(chunks)), structure))
    value = tree_map(lambda repeated: repeated[0], value)
    others = [push(tree_unflatten(list(chunk), structure))[1] for chunk in chunks]
    return value, tree_map(lambda *parts: torch.cat(parts), along, *others) if others else along


def pushforward(f: Callable[..., Any], points: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`torch.func.jvp` with derivatives of the dtype of the values.

    Forward mode of a tensor without axes times a Python number, ``0.5 * x.sum()``, is float64 whatever x is.
    """
    points, tangents = tree_map(_without_overlap, points), tree_map(_without_overlap, tangents)

    def checked(*args: Any) -> Any:
        with refusing_foreign():
            value = f(*args)
        for result in tree_leaves(value):
            if not isinstance(result, Tensor):
                raise TypeError(f"expected a map to tensors, got {type(result).__name__} among the values of f(x)")
        return value

    value, along = torch.func.jvp(checked, points, tangents)  # type: ignore[misc]  (two without has_aux)
    return value, tree_map(lambda a, b: b.to(a.dtype), value, along)


def _without_overlap(x: Tensor) -> Tensor:
    """``x``, copied where several of its entries share memory, as of `expand`: forward mode writes to its tangents."""
    return x.contiguous() if any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)) else x


def _number_of_tangents(points: list[Tensor], tangents: list[Tensor]) -> int | None:
    """How many tangents are stacked in front; None for a single one, without an axis for them."""
    for x, v in zip(points, tangents, strict=True):
        if not isinstance(x, Tensor) or not isinstance(v, Tensor):
            other = v if isinstance(x, Tensor) else x
            raise TypeError(f"expected tensors for a point and its tangent, got {type(other).__name__}")
        if x.device != v.device:
            raise ValueError(f"expected a point and a tangent on one device, got {x.device} and {v.device}")
        if x.dtype not in FLOATING or v.dtype != x.dtype:
            raise TypeError(f"expected a point and a tangent of one floating-point dtype, got {x.dtype} and {v.dtype}")
    if all(v.shape == x.shape for x, v in zip(points, tangents, strict=True)):
        return None
    for x, v in zip(points, tangents, strict=True):
        if v.ndim != x.ndim + 1 or v.shape[1:] != x.shape or v.shape[0] != tangents[0].shape[0]:
            raise ValueError(
                f"expected a tangent of shape {tuple(x.shape)}, or several of them stacked in front, "
                f"got {tuple(v.shape)}"
            )
    if tangents[0].shape[0] == 0:
        raise ValueError("expected at least one tangent, got an empty stack of them")
    return tangents[0].shape[0]
