r"""Normalisations, softmax and pooling by a maximum.

The Jacobian of a layer normalisation, :math:`\frac{1}{\sigma}(I - \frac{1}{d} 1 1^T - \frac{1}{d} \hat x \hat x^T)`,
and that of a softmax, :math:`\mathrm{diag}(p) - p p^T`, are symmetric: torch's fused backward kernels apply them to
tangents just as well as to gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.rules.call import Call, fold, shifted

aten = torch.ops.aten


def _layer_norm(call: Call) -> Any:
    x, shape, weight = call.args[0], call.args[1], call.get(2, None, "weight")
    tangents = call.t(0)
    if tangents is None or call.dual(2) is not None or call.dual(3) is not None:
        return NotImplemented
    _, mean, rstd = call.out
    x = x.contiguous()
    moved = call.empty(x.shape)
    options = (x, shape, mean, rstd, None, None, [True, False, False])
    for out, tangent in zip(moved, tangents, strict=True):
        normal = aten.native_layer_norm_backward(tangent.contiguous(), *options)[0]
        if weight is None:
            out.copy_(normal)
        else:
            torch.mul(normal, weight, out=out)
    return moved, None, None


def _batch_norm(call: Call) -> Any:
    """In evaluation: a factor for each channel, folded into the convolution before it where there is one."""
    name = call.func._schema.name[6:]
    x, weight, mean, variance = call.args[0], call.args[1], call.args[3], call.args[4]
    places = {
        "native_batch_norm": 7,
        "cudnn_batch_norm": 7,
        "miopen_batch_norm": 7,
        "_native_batch_norm_legit_no_training": 6,
        "_batch_norm_no_update": 6,
    }
    training = name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm") and call.args[5]
    dual = call.dual(0)
    if training or dual is None or mean is None or any(getattr(raw, "moves", False) for raw in call.raw[1:]):
        return NotImplemented
    scale = torch.rsqrt(variance + call.args[places[name]])
    if weight is not None:
        scale = scale * weight
    scale = scale.to(x.dtype)
    others = [None] * (len(call.out) - 1)
    if dual.lazy is not None and dual.rows == call.rows:
        folded = dual.lazy.scaled(scale)
        if folded is not None:
            return folded, *others
    tangents, owned = call.take(0)
    assert tangents is not None
    wide = scale.view(-1, *[1] * (x.ndim - 2))
    return (tangents.mul_(wide) if owned else tangents * wide), *others


def _group_norm(call: Call) -> Any:
    x, weight, groups = call.args[0], call.args[1], call.args[6]
    tangents = call.t(0)
    if tangents is None or call.dual(1) is not None or call.dual(2) is not None:
        return NotImplemented
    _, mean, rstd = call.out
    mean, rstd = mean.view(len(x), groups, 1), rstd.view(len(x), groups, 1)
    normal = (x.reshape(len(x), groups, -1) - mean) * rstd  # (B, G, M)
    t = tangents.reshape(call.count, len(x), groups, -1)
    moved = t - t.mean(-1, keepdim=True) - normal * (t * normal).mean(-1, keepdim=True)
    moved = (moved * rstd).view(tangents.shape)
    if weight is not None:
        moved.mul_(weight.view(-1, *[1] * (x.ndim - 2)))
    return moved, None, None


def _softmax(call: Call) -> Tensor | None:
    tangents, p = call.t(0), call.out
    if tangents is None:
        return None
    dim = call.args[1] % max(p.ndim, 1)
    moved = call.empty(p.shape)
    for out, tangent in zip(moved, tangents, strict=True):
        out.copy_(aten._softmax_backward_data(tangent.contiguous().to(p.dtype), p, dim, p.dtype))
    return moved


def _log_softmax(call: Call) -> Tensor | None:
    tangents = call.t(0)
    if tangents is None:
        return None
    dim = shifted(call.args[1], call.args[0].ndim)
    return tangents - (tangents * call.out.exp()).sum(dim, keepdim=True)


def _max_pool(call: Call) -> Any:
    """The tangents at the entries that are the largest."""
    x, indices = call.args[0], call.out[1]
    tangents = call.t(0)
    if tangents is None:
        return None
    axes = 3 if call.func._schema.name.endswith("3d_with_indices") or "pool3d" in call.func._schema.name else 2
    flat = tangents.flatten(-axes)
    chosen = flat.gather(-1, indices.flatten(-axes).expand(call.count, *indices.shape[: x.ndim - axes], -1))
    return chosen.view(call.count, *indices.shape), None


def _max_along(call: Call) -> Any:
    """max, min, sort and topk along an axis return the indices of what they chose."""
    x, tangents = call.args[0], call.t(0)
    if tangents is None or x.ndim == 0 or isinstance(call.out, Tensor):  # the largest of all has no index
        return NotImplemented
    indices = call.out[1]
    name = call.func._schema.name[6:]
    if name in ("max", "min"):
        if len(call.args) < 2:
            return NotImplemented
        dim, keep = call.args[1] % x.ndim, call.get(2, False, "keepdim")
        where = indices if keep else indices.unsqueeze(dim)
        chosen = tangents.gather(dim + 1, where.expand(call.count, *where.shape))
        return (chosen if keep else chosen.squeeze(dim + 1)), None
    if name == "topk":
        dim = call.get(2, -1, "dim") % x.ndim
    elif call.func._overloadname == "stable":
        dim = call.kwargs.get("dim", call.get(2, -1)) % x.ndim
    else:
        dim = call.get(1, -1, "dim") % x.ndim
    return tangents.gather(dim + 1, indices.expand(call.count, *indices.shape)), None


def _vector_norm(call: Call) -> Any:
    """The Euclidean norm: <x, dx> / |x|, zero at the origin."""
    x, order = call.args[0], call.get(1, 2, "ord")
    tangents = call.t(0)
    if tangents is None or order != 2 or call.kwargs.get("dtype") is not None:
        return NotImplemented
    dims = call.get(2, None, "dim")
    keep = call.get(3, False, "keepdim")
    norm = torch.linalg.vector_norm(x, 2, dims, keepdim=True)
    direction = torch.where(norm > 0, x / norm, torch.zeros_like(x))
    return (tangents * direction).sum(shifted(dims, x.ndim), keep)


def _var_mean(call: Call) -> Any:
    x = call.args[0]
    tangents = call.t(0)
    dims = call.get(1, None, "dim")
    if tangents is None or "correction" not in call.func._overloadname:
        return NotImplemented
    correction = call.kwargs.get("correction")
    correction = 1 if correction is None else correction
    keep = call.kwargs.get("keepdim", False)
    axes = list(range(x.ndim)) if not dims else [d % x.ndim for d in dims]
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    centred = x - x.mean(axes, keepdim=True)
    variance = 2 * (tangents * centred).sum(shifted(axes, x.ndim), keep) / (count - correction)
    if call.func._schema.name[6:] == "var":
        return variance
    return variance, tangents.mean(shifted(axes, x.ndim), keep)


RULES = {
    "native_layer_norm": _layer_norm,
    **dict.fromkeys(
        (
            "native_batch_norm",
            "cudnn_batch_norm",
            "miopen_batch_norm",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_no_update",
        ),
        _batch_norm,
    ),
    "native_group_norm": _group_norm,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "max_pool2d_with_indices": _max_pool,
    "adaptive_max_pool2d": _max_pool,
    "max_pool3d_with_indices": _max_pool,
    **dict.fromkeys(("max", "min", "topk", "sort"), _max_along),
    "linalg_vector_norm": _vector_norm,
    "var_mean": _var_mean,
    "var": _var_mean,
}

__all__ = ["RULES", "fold"]
