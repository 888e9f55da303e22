"""Operations that move, pick, repeat or join entries: linear, each along axes that shift by one for tangents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.rules.call import Call, fold, operator_name, shifted

aten = torch.ops.aten


def push_view(func: Any, tangents: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The view that ``func`` takes of a value, of all its tangents."""
    name = operator_name(func)
    ndim, rest = tangents.ndim - 1, args[1:]
    K = len(tangents)  # noqa: N806
    if name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        return tangents.reshape(K, *rest[0])
    if name in ("detach", "alias", "lift_fresh", "_to_copy"):
        return tangents
    if name == "expand":
        missing = len(rest[0]) - ndim
        wide = tangents.reshape(K, *[1] * missing, *tangents.shape[1:])
        return wide.expand(K, *rest[0])
    if name == "permute":
        return tangents.permute(0, *shifted(rest[0], ndim))
    if name == "transpose":
        return tangents.transpose(shifted(rest[0], ndim), shifted(rest[1], ndim)) if ndim else tangents
    if name == "t":
        return tangents.transpose(1, 2) if ndim == 2 else tangents
    if name == "unsqueeze":
        return tangents.unsqueeze(rest[0] % (ndim + 1) + 1)
    if name == "squeeze":
        if not rest:
            return tangents.reshape(K, *(size for size in tangents.shape[1:] if size != 1))
        return tangents.squeeze(shifted(rest[0], ndim)) if ndim else tangents
    if name in ("select", "slice", "split", "split_with_sizes", "unbind", "narrow", "diagonal", "unfold"):
        return _along(name, tangents, rest, kwargs, ndim)
    return torch.func.vmap(lambda u: func(u, *rest, **kwargs))(tangents)


def _along(name: str, tangents: Tensor, rest: Sequence[Any], kwargs: dict[str, Any], ndim: int) -> Any:
    if name == "select":
        return tangents.select(shifted(rest[0], ndim), rest[1])
    if name == "slice":
        dim = shifted(rest[0] if rest else kwargs.get("dim", 0), ndim)
        return aten.slice(tangents, dim, *rest[1:], **{k: v for k, v in kwargs.items() if k != "dim"})
    if name == "diagonal":
        offset = rest[0] if rest else kwargs.get("offset", 0)
        one = rest[1] if len(rest) > 1 else kwargs.get("dim1", 0)
        two = rest[2] if len(rest) > 2 else kwargs.get("dim2", 1)
        return tangents.diagonal(offset, shifted(one, ndim), shifted(two, ndim))
    if name == "unfold":
        return tangents.unfold(shifted(rest[0], ndim), *rest[1:])
    if name == "unbind":
        return tangents.unbind(shifted(rest[0] if rest else kwargs.get("dim", 0), ndim))
    dim = shifted(rest[1] if len(rest) > 1 else kwargs.get("dim", 0), ndim)
    return tangents.split(rest[0] if isinstance(rest[0], int) else list(rest[0]), dim)


def _same(call: Call) -> Tensor | None:
    """Copies and casts."""
    tangents = call.t(0)
    return None if tangents is None else tangents.to(call.out.dtype)


def _unsafe_view(call: Call) -> Tensor | None:
    tangents = call.t(0)
    return None if tangents is None else tangents.reshape(call.count, *call.out.shape)


def _joined(call: Call, dim: int) -> Tensor:
    parts = []
    for value, tangents in zip(call.args[0], call.ts(0), strict=True):
        if value.ndim == 1 and value.shape[0] == 0 and call.out.shape != value.shape:  # cat skips it whatever the rank
            continue
        parts.append(value.new_zeros(()).expand(call.count, *value.shape) if tangents is None else tangents)
    return torch.cat(parts, dim)


def _cat(call: Call) -> Tensor:
    return _joined(call, shifted(call.get(1, 0, "dim"), call.out.ndim))


def _stack(call: Call) -> Tensor:
    dim = call.get(1, 0, "dim") % call.out.ndim + 1
    parts = [
        value.new_zeros(()).expand(call.count, *value.shape) if tangents is None else tangents
        for value, tangents in zip(call.args[0], call.ts(0), strict=True)
    ]
    return torch.stack(parts, dim)


def _index(call: Call) -> Any:
    tangents = call.t(0)
    indices = call.args[1]
    if tangents is None:
        return NotImplemented
    if any(index is not None and index.dtype == torch.bool for index in indices):
        indices = [
            part
            for index in indices
            for part in (index.nonzero().unbind(1) if index is not None and index.dtype == torch.bool else [index])
        ]
    advanced = [i for i, index in enumerate(indices) if index is not None]
    if advanced and advanced[-1] - advanced[0] + 1 != len(advanced):
        return NotImplemented  # indices apart from one another put their axes in front
    return aten.index(tangents, [None, *indices])


def _index_select(call: Call) -> Tensor | None:
    tangents = call.t(0)
    return None if tangents is None else tangents.index_select(shifted(call.args[1], call.args[0].ndim), call.args[2])


def _gather(call: Call) -> Tensor | None:
    tangents = call.t(0)
    if tangents is None:
        return None
    index = call.args[2]
    return tangents.gather(shifted(call.args[1], call.args[0].ndim), index.expand(call.count, *index.shape))


def _roll(call: Call) -> Tensor | None:
    tangents, dims = call.t(0), call.get(2, [], "dims")
    if tangents is None:
        return None
    if not dims:
        return tangents.flatten(1).roll(call.args[1], 1).view_as(tangents)
    return tangents.roll(call.args[1], shifted(dims, call.args[0].ndim))


def _flip(call: Call) -> Tensor | None:
    tangents = call.t(0)
    if tangents is None or not call.args[1]:
        return tangents
    return tangents.flip(shifted(call.args[1], call.args[0].ndim))


def _repeat(call: Call) -> Tensor | None:
    tangents, repeats = call.t(0), call.args[1]
    if tangents is None:
        return None
    missing = len(repeats) - call.args[0].ndim
    return tangents.reshape(call.count, *[1] * missing, *tangents.shape[1:]).repeat(1, *repeats)


def _constant_pad(call: Call) -> Tensor | None:
    tangents = call.t(0)
    return None if tangents is None else aten.constant_pad_nd(tangents, call.args[1], 0)


def _first_axes_folded(call: Call) -> Any:
    """Operations on the last axes of (B, C, ...): the tangents are further samples."""
    tangents = call.t(0)
    if tangents is None or any(getattr(raw, "moves", False) for raw in call.raw[1:]):
        return NotImplemented
    if call.args[0].ndim < 3:
        return NotImplemented
    if call.args[0].ndim == 3 and call.func._schema.name.endswith("2d"):
        return NotImplemented  # a single sample without its axis
    moved = call.func(fold(tangents), *call.args[1:], **call.kwargs)
    return moved.unflatten(0, (call.count, -1))


def _where(call: Call) -> Tensor | None:
    a, b = call.t(1), call.t(2)
    if a is None and b is None:
        return None
    zero = call.out.new_zeros(())
    condition = call.args[0]
    parts = [zero if part is None else call.broadcast(part, i) for i, part in ((1, a), (2, b))]
    return torch.where(condition, *parts).expand(call.count, *call.out.shape)


def _masked_fill(call: Call) -> Tensor | None:
    tangents = call.t(0)
    if tangents is None or call.dual(2) is not None:
        return NotImplemented
    return call.broadcast(tangents, 0).masked_fill(call.args[1], 0)


RULES = {
    "clone": _same,
    "_to_copy": _same,
    "_unsafe_view": _unsafe_view,
    "cat": _cat,
    "stack": _stack,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "roll": _roll,
    "flip": _flip,
    "repeat": _repeat,
    "constant_pad_nd": _constant_pad,
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(
        (
            "avg_pool2d",
            "avg_pool3d",
            "avg_pool1d",
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "adaptive_avg_pool1d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bicubic2d_aa",
            "_upsample_bilinear2d_aa",
            "upsample_nearest1d",
            "upsample_linear1d",
            "upsample_trilinear3d",
            "upsample_nearest3d",
            "reflection_pad2d",
            "replication_pad2d",
            "im2col",
            "col2im",
        ),
        _first_axes_folded,
    ),
}
