"""How a generator of a grid (images, volumes, sequences) moves a model's output, by the layout declared for it.

A layout is never guessed from a shape: a batch of class scores (B, C) may be taken as invariant, because
nothing else is possible, but a tensor of four axes can be channels first, channels last or attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lie.run import UserError, unknown_name
from torch import Tensor

from liederivative.actions.action import Layout, check_dimension
from liederivative.actions.tangents import Domain, as_domain, grid_tangents


@dataclass(frozen=True)
class Invariant(Layout):
    """Class scores, labels, embeddings: the ideal output does not change when the input moves."""

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """Zero."""
        del domain
        return value.new_zeros(1).expand(len(coefficients), *value.shape)


@dataclass(frozen=True)
class NCHW(Layout):
    """Feature maps with channels first, (B, C, h, w): they move as the image does, gain included."""

    channel_dim: int = 1

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The image tangents in the coordinates of the input."""
        _check_rank(value, 4, "NCHW", "(B, C, h, w)")
        return _on_grid(value, coefficients, domain, 2, self)


@dataclass(frozen=True)
class NHWC(Layout):
    """Feature maps with channels last, (B, h, w, C)."""

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The image tangents in the coordinates of the input."""
        _check_rank(value, 4, "NHWC", "(B, h, w, C)")
        return _on_grid(value.movedim(-1, 1), coefficients, domain, 2, self).movedim(2, -1)


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

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The image tangents on the patches, zero on the prefix."""
        h, w = self.grid
        if value.ndim != 3 or value.shape[1] != self.prefix + h * w:
            raise UserError(
                f"expected an output of shape (B, {self.prefix + h * w}, C) for {self}, got {tuple(value.shape)}; "
                "declare the grid and the number of prefix tokens of this model"
            )
        patches = value[:, self.prefix :].transpose(1, 2).unflatten(-1, (h, w))  # (B, C, h, w)
        moved = _on_grid(patches, coefficients, domain, 2, self)  # (K, B, C, h, w)
        still = value[:, : self.prefix].new_zeros(len(coefficients), len(value), self.prefix, value.shape[-1])
        return torch.cat([still, moved.flatten(-2).transpose(-1, -2)], dim=2)


@dataclass(frozen=True)
class Windows(Layout):
    """Tokens in windows, (B nh nw, wh ww, C): nh x nw windows of wh x ww tokens each, both row by row.

    They move as the map (B, nh wh, nw ww, C) that they are cut from, across the borders of the windows.
    """

    windows: tuple[int, int]
    """rows and columns of windows"""
    size: tuple[int, int]
    """rows and columns of tokens in one window"""

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The image tangents of the whole map, cut into the same windows."""
        (m, n), (h, w) = self.windows, self.size
        if value.ndim != 3 or value.shape[0] % (m * n) or value.shape[1] != h * w:
            raise UserError(
                f"expected an output of shape (B {m * n}, {h * w}, C) for {self}, got {tuple(value.shape)}; "
                "declare the rows and columns of windows and of tokens in each"
            )
        cut = value.view(-1, m, n, h, w, value.shape[-1])  # (B, m, n, h, w, C)
        whole = cut.permute(0, 5, 1, 3, 2, 4).reshape(len(cut), -1, m * h, n * w)
        moved = _on_grid(whole, coefficients, domain, 2, self).unflatten(-2, (m, h)).unflatten(-1, (n, w))
        return moved.permute(0, 1, 3, 5, 4, 6, 2).reshape(len(coefficients), *value.shape)


@dataclass(frozen=True)
class VectorGrid(Layout):
    r"""Fields of plane vectors on the image, (B, 2, h, w) with components along columns and rows in pixels.

    Optical flow, displacements, gradients of contravariant kind: under the velocity w of the sampling point a vector
    field v moves by the Lie bracket :math:`(w \cdot \nabla) v - (Dw) v`: it is carried along and turned.
    Affine generators only; the gain scales the vectors.
    """

    channel_dim: int = 1

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The image tangents, and the vectors' own turn."""
        if value.ndim != 4 or value.shape[1] != 2:
            raise UserError(f"expected an output of shape (B, 2, h, w) for {self}, got {tuple(value.shape)}")
        domain = as_domain(domain)
        carried = _on_grid(value, coefficients, domain, 2, self)
        if domain.flows:
            raise UserError("expected affine generators for vectors on a grid, got flows; declare their own field")
        height, width = domain.size
        # Dw in pixels: columns and rows per unit of X and Y differ where the image is not square.
        columns = (width - 1) * value.shape[-1] / width
        rows = (height - 1) * value.shape[-2] / height
        row = coefficients.to(value.dtype)
        turn = torch.stack([row[:, 1], row[:, 2] * (columns / rows), row[:, 4] * (rows / columns), row[:, 5]], -1).view(
            -1, 2, 2
        )
        return carried - torch.einsum("kij,bjhw->kbihw", turn, value)


@dataclass(frozen=True)
class NCDHW(Layout):
    """Volumes or videos with channels first, (B, C, d, h, w)."""

    channel_dim: int = 1

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The tangents in the coordinates of the input volume."""
        _check_rank(value, 5, "NCDHW", "(B, C, d, h, w)")
        return _on_grid(value, coefficients, domain, 3, self)


@dataclass(frozen=True)
class NCT(Layout):
    """Sequences with channels first, (B, C, t)."""

    channel_dim: int = 1

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The tangents in the coordinates of the input sequence."""
        _check_rank(value, 3, "NCT", "(B, C, t)")
        return _on_grid(value, coefficients, domain, 1, self)


@dataclass(frozen=True)
class NTC(Layout):
    """Sequences with channels last, (B, t, C)."""

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The tangents in the coordinates of the input sequence."""
        _check_rank(value, 3, "NTC", "(B, t, C)")
        return _on_grid(value.mT, coefficients, domain, 1, self).mT


LAYOUTS: dict[str, Layout] = {
    "invariant": Invariant(),
    "NCHW": NCHW(),
    "NHWC": NHWC(),
    "NCDHW": NCDHW(),
    "NCT": NCT(),
    "NTC": NTC(),
    "vector grid": VectorGrid(),
}
"""The layouts that have a name; token grids are declared as ``Tokens(grid=..., prefix=...)``, windows as
``Windows(windows=..., size=...)``, points and vectors as ``Points(group)`` and ``Vectors(group)``."""


class Velocity(Layout):
    """A user's own: the velocity of the output, ``field(value, coefficients) -> (K, *value.shape)``."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field = field

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """What the field says."""
        del domain
        found = self.field(value, coefficients)
        if found.shape != (len(coefficients), *value.shape):
            raise UserError(
                f"expected the output's velocities to have shape {(len(coefficients), *value.shape)}, one for each of "
                f"{len(coefficients)} generators, got {tuple(found.shape)}"
            )
        return found


def resolve_layout(output: str | Layout | Callable[[Tensor, Tensor], Tensor] | None, value: Tensor) -> Layout:
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
            "output='NCHW', 'NHWC', 'invariant', Tokens(grid=(h, w), prefix=k), Windows(...), Points(group), ..."
        )
    if not isinstance(output, str):
        return Velocity(output)
    if output not in LAYOUTS:
        raise unknown_name("output layout", output, LAYOUTS)
    return LAYOUTS[output]


def _check_rank(value: Tensor, rank: int, name: str, shape: str) -> None:
    if value.ndim != rank:
        raise UserError(f"expected an output of shape {shape} for layout {name}, got {tuple(value.shape)}")


def _on_grid(
    value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...], axes: int, layout: Layout
) -> Tensor:
    domain = as_domain(domain)
    if len(domain.size) != axes:
        raise UserError(
            f"expected an input with {axes} spatial axes for outputs of layout {layout!r}, got {len(domain.size)}; "
            "declare a layout that belongs to the action of the input"
        )
    check_dimension(coefficients, axes * (axes + 1) + 1 + len(domain.flows), layout)
    return grid_tangents(value, coefficients, domain)
