"""Pointwise operations: one derivative at the value, multiplied into every tangent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.rules.call import Call

aten = torch.ops.aten

UNARY = (
    "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "mish",
    "softplus", "exp", "log", "sqrt", "rsqrt", "pow", "reciprocal", "abs", "sin", "cos", "erf", "log1p", "expm1",
    "clamp", "clamp_min", "clamp_max", "celu", "selu", "exp2", "log2", "log10", "tan", "atan", "asin", "acos", "sinh",
    "cosh", "square", "erfc", "sgn", "trunc", "atanh", "asinh", "acosh", "nan_to_num", "threshold",
)  # fmt: skip


def _times(call: Call, tangents: Tensor, slope: Tensor, owned: bool) -> Tensor:
    if call.spare and tangents.shape[1:] == slope.shape:
        return torch.mul(tangents, slope, out=call.empty(slope.shape))
    return tangents.mul_(slope) if owned else tangents * slope


def _relu(call: Call) -> Tensor | None:
    tangents, owned = call.take(0)
    return None if tangents is None else _times(call, tangents, (call.out > 0).to(call.out.dtype), owned)


def slope_of(call: Call, index: int) -> Tensor:
    """The derivative of a pointwise operation by its argument at ``index``, of the output's shape."""
    x = call.args[index]

    def f(u: Tensor) -> Tensor:
        args = list(call.args)
        args[index] = u
        out = call.func(*args, **call.kwargs)
        return out[0] if isinstance(out, tuple) else out

    with torch._C._ForceDispatchKeyGuard(*OUTSIDE):
        return torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]  # type: ignore[return-value]


# Where nothing is traced: torch's forward mode works below a dispatch mode only with these restored.
OUTSIDE = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())

_BY_BACKWARD = {
    "gelu": lambda c, one: aten.gelu_backward(one, c.args[0], approximate=c.kwargs.get("approximate", "none")),
    "silu": lambda c, one: aten.silu_backward(one, c.args[0]),
    "sigmoid": lambda c, one: aten.sigmoid_backward(one, c.out),
    "tanh": lambda c, one: aten.tanh_backward(one, c.out),
    "hardswish": lambda c, one: aten.hardswish_backward(one, c.args[0]),
    "hardsigmoid": lambda c, one: aten.hardsigmoid_backward(one, c.args[0]),
}


def _unary(name: str) -> Any:
    def rule(call: Call) -> Any:
        if any(getattr(raw, "moves", False) for raw in call.raw[1:]) or call.args[0].is_complex():
            return NotImplemented  # of a complex number, a slope may not be all (its absolute value has two)
        tangents, owned = call.take(0)
        if tangents is None:
            return NotImplemented
        slope = _BY_BACKWARD[name](call, torch.ones_like(call.args[0])) if name in _BY_BACKWARD else slope_of(call, 0)
        return _times(call, tangents, slope, owned)

    return rule


def _log_sigmoid(call: Call) -> Any:
    tangents = call.t(0)
    return None if tangents is None else (tangents * torch.sigmoid(-call.args[0]), None)


def _add(call: Call, sign: float = 1.0) -> Any:
    alpha = call.kwargs.get("alpha", 1) * sign
    joined = _add_rows(call, alpha)
    if joined is not None:
        return joined
    a, b = call.t(0), call.t(1)
    shape = (call.count, *call.out.shape)
    if a is not None:
        a = call.broadcast(a, 0)
    if b is not None:
        b = call.broadcast(b, 1)
    if a is None:
        return None if b is None else (b if alpha == 1 else alpha * b).expand(shape)
    return a.expand(shape) if b is None else torch.add(a, b, alpha=alpha).expand(shape)


def _add_rows(call: Call, alpha: float) -> Tensor | None:
    """Where one side has all rows and the other the first of them, as at the end of a residual branch."""
    x, y = call.dual(0), call.dual(1)
    if x is None or y is None or x.rows == y.rows or x.shape != y.shape or x.dtype != y.dtype:
        return None
    few, many, weight = (x, y, alpha) if len(x.rows) < len(y.rows) else (y, x, 1)
    count = len(few.rows)
    if many.rows != call.rows or many.rows[:count] != few.rows:
        return None
    out = call.empty(call.out.shape)
    torch.add(x.tangents[:count], y.tangents[:count], alpha=alpha, out=out[:count])
    torch.mul(many.tangents[count:], weight, out=out[count:])
    return out


def _sub(call: Call) -> Any:
    return _add(call, -1.0)


def _rsub(call: Call) -> Any:
    """other - alpha x."""
    alpha = call.kwargs.get("alpha", call.get(2, 1, "alpha"))
    a, b = call.t(0), call.t(1)
    if a is None or b is not None:
        return NotImplemented
    return (call.broadcast(a, 0) * -alpha).expand(call.count, *call.out.shape)


def _mul(call: Call) -> Any:
    x, y = call.args[0], call.args[1]
    a, b = call.t(0), call.t(1)
    shape = (call.count, *call.out.shape)
    first = None if a is None else call.broadcast(a, 0) * y
    if b is None:
        return None if first is None else first.expand(shape)
    second = call.broadcast(b, 1)
    if first is None:
        return (second * x).expand(shape)
    return torch.addcmul(first, second, x).expand(shape)


def _div(call: Call) -> Any:
    if call.kwargs.get("rounding_mode") is not None:
        return None
    a, b = call.t(0), call.t(1)
    y = call.args[1]
    shape = (call.count, *call.out.shape)
    first = None if a is None else call.broadcast(a, 0) / y
    if b is None:
        return None if first is None else first.expand(shape)
    second = call.broadcast(b, 1) * (call.out / y)
    return -second.expand(shape) if first is None else (first - second).expand(shape)


def _partials(call: Call) -> Any:
    """Any pointwise operation of two or three tensors: the sum of slope times tangent."""
    total = None
    for index, raw in enumerate(call.raw):
        if not getattr(raw, "moves", False):
            continue
        if not isinstance(call.args[index], Tensor):
            return NotImplemented
        tangents = call.t(index)
        assert tangents is not None
        part = call.broadcast(tangents, index) * slope_of(call, index)
        total = part if total is None else total + part
    return total


def _nothing(call: Call) -> None:
    """Piecewise constant: zero almost everywhere."""
    del call


RULES = {
    "relu": _relu,
    **{name: _unary(name) for name in UNARY},
    "log_sigmoid_forward": _log_sigmoid,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    **dict.fromkeys(
        ("maximum", "minimum", "addcmul", "addcdiv", "lerp", "atan2", "_prelu_kernel", "hypot", "logaddexp"), _partials
    ),
    **dict.fromkeys(
        ("floor", "ceil", "round", "sign", "floor_divide", "zeros_like", "ones_like", "empty_like"), _nothing
    ),
    **dict.fromkeys(
        ("new_zeros", "new_ones", "new_empty", "new_full", "full_like", "rand_like", "randn_like"), _nothing
    ),
}
