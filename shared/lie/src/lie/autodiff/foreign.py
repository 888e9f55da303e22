"""Operators from outside torch that have no derivative, which `torch.func` takes for constants.

An operator of ``torch.ops.aten`` without a formula raises. One that a library registers (``torch.library``, a C++
extension such as ``torchvision::roi_align``) drops the tangents of its arguments and says nothing, with a backward or
without; one without a backward has gradient 0. `RefuseForeign` looks at what such operators return.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor  # type: ignore[import-not-found]
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_OPERATORS = (OpOverload, OpOverloadPacket)
_OF_TORCH = frozenset({"aten", "prim", "prims", "profiler"})
_WITH_BACKWARD = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")


class RefuseForeign(TorchFunctionMode):
    """Raise at an operator that drops derivatives.

    Raises:
        ValueError: naming the operator, where its arguments have a tangent and its floating-point results have none,
            or where they require a gradient and it has no backward.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and look at what a foreign operator returns."""
        result = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(func, _OPERATORS) and _name(func).split("::")[0] not in _OF_TORCH:
            _check(func, (args, kwargs), result)
        return result


def refusing_foreign() -> contextlib.AbstractContextManager[object]:
    """The mode, as a context; nothing inside of itself, or under a compiler, which traces operators and no modes."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    active = torch.overrides._get_current_function_mode_stack()
    return contextlib.nullcontext() if any(type(mode) is RefuseForeign for mode in active) else RefuseForeign()


def _check(operator: OpOverload | OpOverloadPacket, arguments: Any, result: Any) -> None:
    inputs = [x for x in tree_leaves(arguments) if isinstance(x, Tensor) and _differentiable(x)]
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor) and _differentiable(x)]
    if not outputs:
        return
    forward = any(map(_has_tangent, inputs)) and not any(map(_has_tangent, outputs))
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in inputs) and not _has_backward(operator)
    if forward or backward:
        raise ValueError(
            f"expected operators with a {'forward-mode derivative' if forward else 'backward'}, got "
            f"{_name(operator)}, which has none and which torch.func would take for a constant; write it with torch's "
            "own operators or as a torch.autograd.Function with jvp and backward, or take difference quotients"
        )


def _name(operator: OpOverload | OpOverloadPacket) -> str:
    return operator.name() if isinstance(operator, OpOverload) else operator._qualified_op_name


@cache
def _has_backward(operator: OpOverload | OpOverloadPacket) -> bool:
    if isinstance(operator, OpOverloadPacket):
        return all(_has_backward(getattr(operator, overload)) for overload in operator.overloads())
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key) for key in _WITH_BACKWARD)


def _differentiable(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _has_tangent(x: Tensor) -> bool:
    while is_batchedtensor(x):  # of a vmap inside the function: the tangent belongs to what it maps over
        x = get_unwrapped(x)
    return unpack_dual(x).tangent is not None
