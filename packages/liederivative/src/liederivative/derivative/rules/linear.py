"""Convolutions, matrix products, sums: bilinear at most, so that tangents are further samples or rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.rules.call import Call, fold, shifted

aten = torch.ops.aten


class LazyConvolution:
    """The convolution of tangents, put off in case that a normalisation follows, which is then folded into it."""

    def __init__(self, tangents: Tensor, weight: Tensor, options: tuple[Any, ...]) -> None:
        self.tangents, self.weight, self.options = tangents, weight, options
        self.taken = False

    def evaluate(self) -> Tensor:
        """(K, B, C, ...)."""
        count = len(self.tangents)
        moved = aten.convolution(fold(self.tangents), self.weight, None, *self.options)
        return moved.unflatten(0, (count, -1))

    def scaled(self, scale: Tensor) -> LazyConvolution | None:
        """The same with every output channel multiplied by ``scale``; None for a transposed convolution."""
        if self.options[3]:
            return None
        weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))
        return LazyConvolution(self.tangents, weight, self.options)


def _convolution(call: Call) -> Any:
    x, weight = call.args[0], call.args[1]
    tangents, along_weight, along_bias = call.t(0), call.t(1), call.t(2)
    if x.ndim != weight.ndim:
        return NotImplemented
    options = tuple(call.args[3:])
    if tangents is not None and along_weight is None and along_bias is None:
        return LazyConvolution(tangents, weight, options)
    total = torch.zeros(call.count, *call.out.shape, dtype=call.out.dtype, device=call.out.device)
    if tangents is not None:
        total += LazyConvolution(tangents, weight, options).evaluate()
    if along_weight is not None:
        for sum_, kernel in zip(total, along_weight, strict=True):
            sum_ += aten.convolution(x, kernel, None, *options)
    if along_bias is not None:
        total += along_bias.reshape(call.count, 1, -1, *[1] * (x.ndim - 2))
    return total


def matrix_product(a: Tensor, b: Tensor, along_a: Tensor | None, along_b: Tensor | None) -> Tensor:
    """Tangents of ``a @ b`` for (B, n, m) and (B, m, l), tangent by tangent: no copy of the values is made."""
    some = along_a if along_a is not None else along_b
    assert some is not None
    total = torch.empty(len(some), len(a), a.shape[1], b.shape[2], dtype=a.dtype, device=a.device)
    for k, out in enumerate(total):
        if along_a is not None:
            torch.bmm(along_a[k], b, out=out)
            if along_b is not None:
                out.baddbmm_(a, along_b[k])
        elif along_b is not None:
            torch.bmm(a, along_b[k], out=out)
    return total


def _mm_tangents(a: Tensor, b: Tensor, along_a: Tensor | None, along_b: Tensor | None) -> Tensor | None:
    total = None
    if along_a is not None:
        total = (fold(along_a) @ b).unflatten(0, (len(along_a), -1))
    if along_b is not None:
        other = torch.matmul(a, along_b)
        total = other if total is None else total.add_(other)
    return total


def _mm(call: Call) -> Tensor | None:
    return _mm_tangents(call.args[0], call.args[1], call.t(0), call.t(1))


def _addmm(call: Call) -> Tensor | None:
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    total = _mm_tangents(call.args[1], call.args[2], call.t(1), call.t(2))
    if total is not None and alpha != 1:
        total = total * alpha
    bias = call.t(0)
    if bias is not None:
        wide = beta * call.broadcast(bias, 0)
        total = wide.expand(call.count, *call.out.shape) if total is None else total + wide
    return total


def _bmm(call: Call) -> Tensor:
    return matrix_product(call.args[0], call.args[1], call.t(0), call.t(1))


def _baddbmm(call: Call) -> Tensor:
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    bias, a, b = call.t(0), call.t(1), call.t(2)
    total = None
    if a is not None or b is not None:
        total = matrix_product(call.args[1], call.args[2], a, b)
        total = total * alpha if alpha != 1 else total
    if bias is not None:
        wide = beta * call.broadcast(bias, 0)
        total = wide.expand(call.count, *call.out.shape) if total is None else total + wide
    assert total is not None
    return total


def _sparse(first: int, rule: Callable[[Call], Tensor | None]) -> Callable[[Call], Any]:
    """``rule`` of a product whose factors are the arguments ``first`` and ``first + 1``, one of which may be sparse.

    Sparse tensors have no batch axes, so a constant sparse factor multiplies one tangent at a time.
    """

    def product(call: Call) -> Any:
        places = (first, first + 1)
        sparse = [i for i in places if call.args[i].layout is not torch.strided]
        if not sparse:
            return rule(call)
        moving = [i for i in places if call.dual(i) is not None]
        if set(sparse) & set(moving) or len(moving) > 1:
            return NotImplemented
        total = None
        if moving:
            tangents = call.t(moving[0])
            assert tangents is not None
            multiply = aten.bmm if call.out.ndim == 3 else aten.mm
            factors = [call.args[i] for i in places]
            rows = []
            for tangent in tangents:
                factors[moving[0] - first] = tangent
                rows.append(multiply(*factors))
            total = torch.stack(rows) * call.kwargs.get("alpha", 1)
        bias = call.t(0) if first else None
        if bias is not None:
            wide = (call.kwargs.get("beta", 1) * call.broadcast(bias, 0)).expand(call.count, *call.out.shape)
            total = wide if total is None else total + wide
        return total

    return product


def _sum(call: Call) -> Tensor | None:
    tangents = call.t(0)
    if tangents is None:
        return None
    dims = shifted(call.get(1, None, "dim"), call.args[0].ndim)
    return tangents.sum(dims, call.get(2, False, "keepdim")) if dims != [] else tangents


def _mean(call: Call) -> Tensor | None:
    tangents = call.t(0)
    if tangents is None:
        return None
    dims = shifted(call.get(1, None, "dim"), call.args[0].ndim)
    return tangents.mean(dims, call.get(2, False, "keepdim")) if dims != [] else tangents


def _cumsum(call: Call) -> Tensor | None:
    tangents = call.t(0)
    return None if tangents is None else tangents.cumsum(shifted(call.args[1], call.args[0].ndim))


def _scalar_multiple(call: Call) -> Tensor | None:
    tangents = call.t(0)
    return None if tangents is None else -tangents


RULES = {
    "convolution": _convolution,
    "mm": _sparse(0, _mm),
    "addmm": _sparse(1, _addmm),
    "_sparse_addmm": _sparse(1, _addmm),
    "bmm": _sparse(0, _bmm),
    "baddbmm": _sparse(1, _baddbmm),
    "sum": _sum,
    "mean": _mean,
    "cumsum": _cumsum,
    "neg": _scalar_multiple,
}
