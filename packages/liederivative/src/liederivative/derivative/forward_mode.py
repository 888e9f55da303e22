r"""Torch's forward mode for many tangents at once, without what they and constant weights make superfluous.

Of a product or convolution :math:`y = W x + b` torch takes all of :math:`\dot y = W \dot x + \dot W x + \dot b`, also
where weights and biases do not move: a product with zeros, and two sums over all tangents. The slope of a GELU it finds
again for every tangent. Here the zeros are left out, and the slope is found once. Where a model takes a gradient of its
own, such as forces from an energy, all within it is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (  # type: ignore[import-not-found]
    TransformType,
    get_interpreter_stack,
    is_functorch_wrapped_tensor,
)
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

_AXES: dict[Any, int | None] = {F.linear: None, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
"""spatial axes of each layer's input"""


class LeanForwardMode(TorchFunctionMode):
    """While it is on, forward-mode derivatives of linear layers, convolutions and GELUs cost less; they are the same.

    >>> x, layer = torch.ones(1, 2), torch.nn.Linear(2, 2)
    >>> with LeanForwardMode():
    ...     moved = torch.func.jvp(layer, (x,), (x,))[1]
    >>> torch.equal(moved, x @ layer.weight.T)
    True
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's hook."""
        kwargs = kwargs or {}
        if (func not in _AXES and func is not F.gelu) or _within_gradient():
            return func(*args, **kwargs)
        if func in _AXES and len(args) >= 2 and not kwargs:
            x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
            axes = _AXES[func]
            if _moves(x) and not _moves(weight) and not _moves(bias) and (axes is None or x.ndim == axes + 2):
                return _Affine.apply(x, weight, bias, func, args[3:])
        if func is F.gelu and len(args) == 1 and _moves(args[0]):
            return _GELU.apply(args[0], kwargs.get("approximate", "none"))
        return func(*args, **kwargs)


class _Affine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, weight: Tensor, bias: Tensor | None, func: Callable[..., Tensor], options: tuple[Any, ...]
    ) -> Tensor:
        return func(x, weight, bias, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        _, ctx.weight, _, ctx.func, ctx.options = inputs

    @staticmethod
    def jvp(ctx: Any, along: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        return ctx.func(along, ctx.weight, None, *ctx.options)


class _GELU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, approximate: str) -> Tensor:  # type: ignore[override]
        return F.gelu(x, approximate=approximate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, ctx.approximate = inputs
        ctx.save_for_forward(x)

    @staticmethod
    def jvp(ctx: Any, along: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return along * torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=ctx.approximate)


def _within_gradient() -> bool:
    """Whether a `torch.func.grad` or ``vjp`` is under way."""
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


def _moves(a: Any) -> bool:
    return isinstance(a, Tensor) and is_functorch_wrapped_tensor(a)
