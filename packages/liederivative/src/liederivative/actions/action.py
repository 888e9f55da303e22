r"""Representations: how the algebra of a group moves a model's output (`Layout`) and its input (`Action`).

The Lie derivative needs both, :math:`Df(x)[\rho_1(X) x] - \rho_2(X) f(x)`. Everything here is linear in the generator,
given by its coefficients along a basis that the action of the input declares; a layout of the output belongs to one
basis, and is never guessed from a shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from lie.run import UserError, check_finite
from torch import Tensor

from liederivative.actions.differences import FLOATING
from liederivative.actions.generators import GeneratorLike
from liederivative.actions.tangents import Domain


class Layout(ABC):
    """How one kind of output moves with the input."""

    channel_dim: int = -1
    """axis over which probabilities sum to one"""

    @abstractmethod
    def tangents(
        self,
        value: Any,  # Float[Tensor, "B *shape"], or a structure of tensors for `Joint`
        coefficients: Float[Tensor, "K D"],
        domain: Domain | tuple[int, ...] = (),
    ) -> Any:
        """The velocity of ``value`` under each of K generators, of its shape with K in front.

        Args:
            value: what moves.
            coefficients: K generators along the basis of the input's action.
            domain: of the input: `Domain`, or its height and width in pixels.

        Raises:
            UserError: if ``value`` does not have this layout, or the generators belong to another kind of action.
        """


class Action(Layout):
    """How an input moves, with the generators it knows. Also a layout for outputs of the same kind."""

    @property
    @abstractmethod
    def generators(self) -> Mapping[str, GeneratorLike]:
        """The generators by name."""

    @abstractmethod
    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a finite batch of what this action moves."""

    def domain(self, x: Any) -> Domain:
        """What the layout of the output has to know of the input ``x``."""
        del x
        return Domain()


def check_tensor(x: Any, kind: str, shape: str, *, ndim: int | None = None) -> None:
    """Raise `UserError` unless ``x`` is a finite floating-point batch; ``kind`` and ``shape`` describe it."""
    if not isinstance(x, Tensor) or (ndim is not None and x.ndim != ndim) or x.ndim == 0:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"expected {kind} as a tensor of shape {shape}, got {got}")
    if x.dtype not in FLOATING:
        raise UserError(
            f"expected floating-point {kind}, got {x.dtype}; convert and normalise them as the model was trained"
        )
    if len(x) == 0:
        raise UserError(f"expected at least one {kind.removesuffix('s')}, got a batch of zero (shape {tuple(x.shape)})")
    check_finite(kind, x)


def check_dimension(coefficients: Tensor, dimension: int, layout: object) -> None:
    """Raise `UserError` unless the generators have as many coefficients as ``layout`` knows basis elements."""
    if coefficients.shape[1] != dimension:
        raise UserError(
            f"expected generators of {dimension} coefficients for {layout!r}, got {coefficients.shape[1]}: the "
            "layout of the output belongs to another kind of action than that of the input"
        )
