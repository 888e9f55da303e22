"""A model's outputs by their declared layout: the part that stands still, and the maps that move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from lie.run import UserError
from torch import Tensor

from liederivative.actions import NCHW, NHWC, Invariant, Layout, Tokens, resolve_layout
from liederivative.derivative import check_images, evaluation_mode
from liederivative.derivative.lie_derivative import check_outputs


@dataclass(frozen=True)
class Parts:
    """An output of B images: ``still`` (B, P) does not move, ``maps`` (B, C, h, w) moves; either may be absent."""

    still: Tensor | None
    maps: Tensor | None


def split_output(value: Tensor, layout: Layout) -> Parts:
    """The parts of ``value``.

    Raises:
        UserError: if the layout has no finite transformation here, or does not fit.
    """
    if isinstance(layout, Invariant):
        return Parts(value.flatten(1) if value.ndim > 1 else value[:, None], None)
    if isinstance(layout, NCHW | NHWC):
        if value.ndim != 4:
            name = type(layout).__name__
            raise UserError(f"expected an output of four axes for layout {name}, got shape {tuple(value.shape)}")
        return Parts(None, value if isinstance(layout, NCHW) else value.movedim(-1, 1))
    if isinstance(layout, Tokens):
        h, w = layout.grid
        if value.ndim != 3 or value.shape[1] != layout.prefix + h * w:
            raise UserError(
                f"expected an output of shape (B, {layout.prefix + h * w}, C) for {layout}, got {tuple(value.shape)}"
            )
        maps = value[:, layout.prefix :].transpose(1, 2).unflatten(-1, (h, w))
        return Parts(value[:, : layout.prefix].flatten(1) if layout.prefix else None, maps)
    raise UserError(
        f"layout {layout} has no finite transformation here; declare 'invariant', 'NCHW', 'NHWC' or Tokens(...), "
        "or measure it with lie_derivative"
    )


class Evaluator:
    """``model`` in evaluation mode without gradients, its outputs split by the declared layout.

    A context: the model comes back as it was.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], x: Tensor, output: str | Layout | None, probabilities: bool
    ) -> None:
        check_images(model, x)
        self._model, self._output, self._probabilities = model, output, probabilities
        self._stack = ExitStack()
        self._begin: Callable[[], None] = lambda: None

    def __enter__(self) -> Evaluator:
        self._begin = self._stack.enter_context(evaluation_mode(self._model))
        self._stack.enter_context(torch.no_grad())
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def output(self, x: Tensor) -> tuple[Tensor, Layout]:
        """The model's output, after the softmax if so asked, and its layout."""
        self._begin()
        value = self._model(x)
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(x) or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"expected the model to return one floating-point tensor with an entry for each of the {len(x)} "
                f"images in front, got {got}; wrap it in a function that selects one"
            )
        layout = resolve_layout(self._output, value)
        check_outputs(self._model, value, value, lambda: self._model(x))
        return (value.softmax(dim=layout.channel_dim) if self._probabilities else value), layout

    def parts(self, x: Tensor) -> Parts:
        """The parts of the model's output."""
        return split_output(*self.output(x))
