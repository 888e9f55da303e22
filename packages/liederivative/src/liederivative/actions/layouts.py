"""How a generator moves a model's output, by the layout the user declares for it.

A layout is never guessed from a shape: a batch of class scores (B, C) may be taken as invariant, because
nothing else is possible, but a tensor of four axes can be channels first, channels last or attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

from liederivative.actions.tangents import image_tangents


class Layout(ABC):
    """How one kind of output moves with the input."""

    channel_dim: int = -1
    """axis over which probabilities sum to one"""

    @abstractmethod
    def tangents(
        self, value: Float[Tensor, " B *shape"], coefficients: Float[Tensor, "K 7"], input_size: tuple[int, int]
    ) -> Float[Tensor, "K B *shape"]:
        """The velocity of ``value`` under each of K generators, of its shape.

        Raises:
            UserError: if ``value`` does not have this layout.
        """


@dataclass(frozen=True)
class Invariant(Layout):
    """Class scores, labels, embeddings: the ideal output does not change when the input moves."""

    def tangents(self, value: Tensor, coefficients: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Zero."""
        del input_size
        return value.new_zeros(1).expand(len(coefficients), *value.shape)


@dataclass(frozen=True)
class NCHW(Layout):
    """Feature maps with channels first, (B, C, h, w): they move as the image does, gain included."""

    channel_dim: int = 1

    def tangents(self, value: Tensor, coefficients: Tensor, input_size: tuple[int, int]) -> Tensor:
        """The image tangents in the coordinates of the input."""
        _check_rank(value, 4, "NCHW", "(B, C, h, w)")
        return image_tangents(value, coefficients, input_size)


@dataclass(frozen=True)
class NHWC(Layout):
    """Feature maps with channels last, (B, h, w, C)."""

    def tangents(self, value: Tensor, coefficients: Tensor, input_size: tuple[int, int]) -> Tensor:
        """The image tangents in the coordinates of the input."""
        _check_rank(value, 4, "NHWC", "(B, h, w, C)")
        return image_tangents(value.movedim(-1, 1), coefficients, input_size).movedim(2, -1)


@dataclass(frozen=True)
class Tokens(Layout):
    """Tokens (B, prefix + h w, C): ``prefix`` tokens that do not move, then a grid of patches, row by row.

    >>> Tokens(grid=(14, 14), prefix=1)  # a vision transformer with a class token
    Tokens(grid=(14, 14), prefix=1)
    """

    grid: tuple[int, int]
    """rows and columns of patches"""
    prefix: int = 0
    """class and register tokens in front"""

    def tangents(self, value: Tensor, coefficients: Tensor, input_size: tuple[int, int]) -> Tensor:
        """The image tangents on the patches, zero on the prefix."""
        h, w = self.grid
        if value.ndim != 3 or value.shape[1] != self.prefix + h * w:
            raise UserError(
                f"expected an output of shape (B, {self.prefix + h * w}, C) for {self}, got {tuple(value.shape)}; "
                "declare the grid and the number of prefix tokens of this model"
            )
        patches = value[:, self.prefix :].transpose(1, 2).unflatten(-1, (h, w))  # (B, C, h, w)
        moved = image_tangents(patches, coefficients, input_size)  # (K, B, C, h, w)
        still = value[:, : self.prefix].new_zeros(len(coefficients), len(value), self.prefix, value.shape[-1])
        return torch.cat([still, moved.flatten(-2).transpose(-1, -2)], dim=2)


LAYOUTS: dict[str, Layout] = {"invariant": Invariant(), "NCHW": NCHW(), "NHWC": NHWC()}
"""The layouts that have a name; token grids are declared as ``Tokens(grid=..., prefix=...)``."""


def resolve_layout(output: str | Layout | None, value: Tensor) -> Layout:
    """The layout meant by ``output``; None is accepted for (B,) and (B, C), which can only be invariant.

    Raises:
        UserError: for an unknown name, or None where the layout cannot be known.
    """
    if isinstance(output, Layout):
        return output
    if output is None:
        if value.ndim <= 2:
            return LAYOUTS["invariant"]
        raise UserError(
            f"the layout of an output of shape {tuple(value.shape)} cannot be known; declare it: "
            "output='NCHW', 'NHWC', 'invariant' or Tokens(grid=(h, w), prefix=k)"
        )
    if output not in LAYOUTS:
        raise unknown_name("output layout", output, LAYOUTS)
    return LAYOUTS[output]


def _check_rank(value: Tensor, rank: int, name: str, shape: str) -> None:
    if value.ndim != rank:
        raise UserError(f"expected an output of shape {shape} for layout {name}, got {tuple(value.shape)}")
