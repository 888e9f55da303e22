r"""The derivative of an operator that torch's forward mode cannot be trusted with.

Such are those from outside of torch's own library, ``torchvision::deform_conv2d`` for one, and a few of its own.

Torch's forward mode takes an operator without a forward-mode formula for a constant, without a word. Therefore
nothing that such an operator registers is trusted. These strategies are tried in order, and the first whose result
agrees with a difference quotient of that operator alone, along a random direction, is used from then on:

1. forward mode;
2. double backward: the gradient :math:`J^T u` is linear in u, and its own gradient along v is :math:`J v`;
3. the difference quotients themselves, in float64 or, where the operator has no kernel for it, in its own precision.

An operator that rounds to integers (quantisation) is piecewise constant: its derivative says nothing, and is refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lie.run import UserError
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from liederivative.derivative.quotients import Quotient, difference_quotient, in_precision, largest
from liederivative.derivative.rules.call import Call

AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference between a strategy and the quotient, by precision: far above what rounding does to one
operator, far below a missing part of its derivative. Half precision is judged as its own quotients allow."""

SMOOTH = 1e-2
"""Error estimate of a quotient from which an operator is taken to have no derivative."""

QUANTISED = ("quantized", "quantized_decomposed", "_quantized", "onednn", "torchao", "bitsandbytes")
"""Namespaces of operators on integers that stand for real numbers."""

_CHOSEN: dict[Any, str] = {}
"""The strategy of each operator, by overload, differentiated arguments, dtype, device type and options."""


class NotDifferentiableError(UserError):
    """An operation whose derivative does not exist or says nothing; no other strategy changes that."""


def is_quantised(name: str) -> bool:
    """Whether an operator, by its name with the namespace, rounds values to integers that stand for real numbers."""
    namespace, _, short = name.partition("::")
    return namespace in QUANTISED or (namespace == "aten" and ("quantize" in short or "int_mm" in short))


def refuse_quantised(func: Any) -> None:
    """Raise `NotDifferentiableError` that names the quantised operator."""
    raise NotDifferentiableError(
        f"the model rounds values to integers by {func._schema.name}: it is piecewise constant, and its derivative "
        "says nothing of it; measure the model before quantisation, or this one by eq_t, eq_r or shift_consistency"
    )


def operator_tangents(call: Call, outside: Callable[[], AbstractContextManager[Any]]) -> tuple[Any, str]:
    """The tangents of each output of an operator from outside of torch, and the strategy used.

    Args:
        call: the operator's run on values.
        outside: context in which torch's autograd works although a dispatch mode is on.

    Raises:
        NotDifferentiableError: if quotients with different steps disagree.
    """
    places, points, velocities = call.moving()
    index = [i for i, out in enumerate(_outputs(call.out)) if differentiable(out)]
    operator = _Operator(call, places, points, index, outside)
    options = repr([_options(call.args), _options(list(call.kwargs.items()))])  # may decide what a formula leaves out
    modes = len(_get_current_dispatch_mode_stack())  # below one, a kernel written in Python records no gradient
    key = (call.func, tuple(places), points[0].dtype, points[0].device.type, options, modes)
    strategy = _CHOSEN.get(key)
    if strategy is None:
        strategy, conclusive = _choose(operator, points, velocities)
        if conclusive:
            _CHOSEN[key] = strategy
    push = _STRATEGIES[strategy]
    along = [push(operator, points, list(velocity)) for velocity in zip(*velocities, strict=True)]
    tangents: list[Any] = [None] * len(_outputs(call.out))
    for position, i in enumerate(index):
        like = _outputs(call.out)[i]
        tangents[i] = torch.stack([parts[position] for parts in along]).to(like.dtype).view(call.count, *like.shape)
    return (tangents[0] if isinstance(call.out, Tensor) else tuple(tangents)), strategy


class ByProductTangents:
    """Tangents of one output of an operator, computed when they are asked for."""

    def __init__(
        self,
        call: Call,
        index: int,
        outside: Callable[[], AbstractContextManager[Any]],
        note: Callable[[str], None],
    ) -> None:
        self.call, self.index, self.outside, self.note = call, index, outside, note
        self.taken = False
        self._tangents: Tensor | None = None

    def evaluate(self) -> Tensor:
        """(K, *shape)."""
        if self._tangents is not None:
            return self._tangents
        tangents, how = operator_tangents(self.call, self.outside)
        self.note(how)
        self._tangents = along = tangents[self.index]
        return along

    def reads(self, memory: int) -> bool:
        """Whether an argument lies in the storage at the address ``memory``."""
        tensors = [a for a in [*self.call.args, *self.call.kwargs.values()] if isinstance(a, Tensor)]
        return any(a.layout is torch.strided and a.untyped_storage().data_ptr() == memory for a in tensors)

    def scaled(self, scale: Tensor) -> None:
        """No normalisation folds into these tangents."""


def differentiable(out: Any) -> bool:
    """Whether a value can have tangents: floating-point and complex tensors."""
    return isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex())


class _Operator:
    """An operator as a function of its arguments with tangents."""

    def __init__(
        self,
        call: Call,
        places: Sequence[Any],
        points: Sequence[Tensor],
        index: Sequence[int],
        outside: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.call, self.places, self.index, self.outside = call, places, index, outside
        self.name = call.func._schema.name

    def outputs(self, *moved: Tensor) -> tuple[Tensor, ...]:
        """The differentiable outputs."""
        outs = _outputs(self.call.with_moved(self.places, moved))
        return tuple(outs[i] for i in self.index)

    def joined(self, dtype: torch.dtype) -> Callable[..., Tensor]:
        """All differentiable outputs as one vector, every floating-point argument in the precision ``dtype``."""
        call = self.call
        exact = Call(
            call.func,
            call.raw,
            call.raw_kwargs,
            [_in_precision(a, dtype) for a in call.args],
            {key: _in_precision(a, dtype) for key, a in call.kwargs.items()},
            call.out,
            call.rows,
        )
        operator = _Operator(exact, self.places, (), self.index, self.outside)
        return lambda *moved: torch.cat([out.reshape(-1) for out in operator.outputs(*moved)])

    def split(self, joined: Tensor) -> list[Tensor]:
        """The parts of a vector of all differentiable outputs."""
        sizes = [_outputs(self.call.out)[i].numel() for i in self.index]
        return list(joined.split(sizes))


def _forward_mode(operator: _Operator, points: Sequence[Tensor], velocity: Sequence[Tensor]) -> list[Tensor]:
    with operator.outside(), torch.no_grad():
        return list(torch.func.jvp(operator.outputs, tuple(points), tuple(velocity))[1])


def _double_backward(operator: _Operator, points: Sequence[Tensor], velocity: Sequence[Tensor]) -> list[Tensor]:
    with operator.outside(), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a derivative that is missing: the comparison shows it
        x = [point.detach().requires_grad_() for point in points]
        y = operator.outputs(*x)
        u = [torch.zeros_like(part, requires_grad=True) for part in y]
        gradients = torch.autograd.grad(y, x, u, create_graph=True, materialize_grads=True)
        along = torch.autograd.grad(gradients, u, list(velocity), materialize_grads=True)
    return [part.detach() for part in along]


def _differences(operator: _Operator, points: Sequence[Tensor], velocity: Sequence[Tensor]) -> list[Tensor]:
    return operator.split(_quotient(operator, points, velocity).derivative)


_STRATEGIES: dict[str, Callable[[_Operator, Sequence[Tensor], Sequence[Tensor]], list[Tensor]]] = {
    "forward mode": _forward_mode,
    "double backward": _double_backward,
    "differences": _differences,
}


def _quotient(operator: _Operator, points: Sequence[Tensor], velocity: Sequence[Tensor]) -> Quotient:
    """The difference quotient of an operator in the best precision that it has a kernel for."""
    with torch.no_grad():
        try:
            quotient = difference_quotient(operator.joined(torch.float64), points, velocity, torch.float64)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # no kernel in double precision
            dtype = points[0].dtype.to_real()
            quotient = difference_quotient(operator.joined(dtype), points, velocity, dtype)
    if quotient.error > SMOOTH:
        raise NotDifferentiableError(
            f"{operator.name} has no forward-mode derivative, and its difference quotients depend on the step by "
            f"{min(quotient.error, 9.99):.0%}: it is not smooth here, random, or too imprecise; register a derivative "
            "that torch.func.jvp uses, or measure the model by eq_t or eq_r"
        )
    return quotient


def _choose(operator: _Operator, points: Sequence[Tensor], velocities: Sequence[Tensor]) -> tuple[str, bool]:
    """The first strategy that agrees with the difference quotient along a random direction, and whether that shows
    anything: a derivative of zero is no evidence for a strategy that gives zero.

    The direction is zero where the tangents (K, *shape) are: an entry may be an index, such as a box's image.
    """
    generator = torch.Generator().manual_seed(0)  # on the CPU, so that it is the same direction on every device
    direction = [
        torch.randn(along.shape[1:], generator=generator, dtype=torch.float64).to(along) * along.abs().sum(0)
        for along in velocities
    ]
    direction = [
        part * (largest(point) / largest(part)) for point, part in zip(points, direction, strict=True)
    ]  # arguments of different units change alike
    quotient = _quotient(operator, points, direction)
    expected = quotient.derivative
    size = float(expected.abs().max()) if expected.numel() else 0.0
    allowed = max(AGREEMENT.get(points[0].dtype.to_real(), SMOOTH), 10 * quotient.error)
    for name in ("forward mode", "double backward"):
        try:
            parts = _STRATEGIES[name](operator, points, direction)
            along = torch.cat([part.reshape(-1) for part in parts]).to(expected.dtype)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # not there; each operator says it its way
            continue
        apart = float((along - expected).abs().sub(quotient.bend).max()) if expected.numel() else 0.0
        if math.isfinite(apart) and apart <= allowed * size:
            return name, size > 0
    return "differences", size > 0


def _outputs(out: Any) -> Sequence[Any]:
    return out if isinstance(out, tuple | list) else (out,)


def _options(a: Any) -> Any:
    """The arguments that switch what an operator does: flags, whole numbers and words."""
    if isinstance(a, list | tuple):
        return [_options(item) for item in a]
    return a if isinstance(a, bool | int | str) else None


def _in_precision(a: Any, dtype: torch.dtype) -> Any:
    if isinstance(a, Tensor):
        return in_precision(a, dtype)
    return [_in_precision(item, dtype) for item in a] if isinstance(a, list | tuple) else a
