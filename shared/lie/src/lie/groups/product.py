"""The direct product of two groups: block-diagonal matrices, acting on the parts of a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, check_is_group
from lie.groups.checks import check_alike, check_batches, check_tensor


@dataclass(frozen=True)
class Product(LieGroup):
    """``G x H``. Coordinates: those of G, then those of H; matrices ``[[g, 0], [0, h]]``; points likewise.

    A factor without a `point_dim` acts on points of its `matrix_dim` coordinates. Products nest.
    """

    G: LieGroup
    H: LieGroup

    def __post_init__(self) -> None:
        for name, factor in (("G", self.G), ("H", self.H)):
            check_is_group(factor, name)

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Sum of the numbers of coordinates."""
        return self.G.dim + self.H.dim

    @property
    def matrix_dim(self) -> int:  # type: ignore[override]
        """Sum of the sizes of the matrices."""
        return self.G.matrix_dim + self.H.matrix_dim

    @property
    def point_dim(self) -> int:  # type: ignore[override]
        """Sum of the dimensions of the points."""
        return _point_dim(self.G) + _point_dim(self.H)

    @property
    def stabiliser_dim(self) -> int | None:  # type: ignore[override]
        """Sum of the dimensions of the stabilisers, where both are known."""
        first, second = self.G.stabiliser_dim, self.H.stabiliser_dim
        return None if first is None or second is None else first + second

    @property
    def orbit_dim(self) -> int | None:  # type: ignore[override]
        """Sum of the numbers that name the orbits, where both are known."""
        first, second = self.G.orbit_dim, self.H.orbit_dim
        return None if first is None or second is None else first + second

    @property
    def isometric(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.G.isometric and self.H.isometric

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """The names of both factors; one that both have becomes ``G.x`` and ``H.x``."""
        first, second = self.G.coordinate_names, self.H.coordinate_names
        common = set(first) & set(second)
        return (
            *(f"G.{name}" if name in common else name for name in first),
            *(f"H.{name}" if name in common else name for name in second),
        )

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The exponentials of the two parts."""
        self._check_algebra(a)
        return _block_diagonal(self.G.exp(a[..., : self.G.dim]), self.H.exp(a[..., self.G.dim :]))

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The logarithms of the two blocks."""
        first, second = self._blocks(g)
        return torch.cat([self.G.log(first), self.H.log(second)], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverses of the two blocks."""
        first, second = self._blocks(g)
        return _block_diagonal(self.G.inverse(first), self.H.inverse(second))

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """Both blocks."""
        first, second = self._blocks(g)
        return _block_diagonal(self.G.normalise(first), self.H.normalise(second))

    def _renormalised(self, g: Tensor) -> Tensor:
        first, second = self._blocks(g)
        return _block_diagonal(self.G._renormalised(first), self.H._renormalised(second))

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """The relative elements of the two blocks."""
        (ug, uh), (vg, vh) = self._blocks(u), self._blocks(v)
        return torch.cat([self.G.relative(ug, vg), self.H.relative(uh, vh)], dim=-1)

    def act(self, g: Float[Tensor, "*batch m m"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """Each block on its part of the point."""
        first, second = self._blocks(g)
        check_tensor(x, "points")
        check_alike(g, x, "elements and points")
        check_batches(g.shape[:-2], x.shape[:-1], "elements and points")
        x, y = self._parts(x)
        return torch.cat([self.G.act(first, x), self.H.act(second, y)], dim=-1)

    def vector_field(self, a: Float[Tensor, "*batch dim"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """The fundamental fields of the two parts."""
        self._check_algebra(a)
        check_tensor(x, "points")
        check_alike(a, x, "algebra coordinates and points")
        x, y = self._parts(x)
        first = self.G.vector_field(a[..., : self.G.dim], x)
        return torch.cat([first, self.H.vector_field(a[..., self.G.dim :], y)], dim=-1)

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Independent samples of the two (Haar where both are)."""
        return _block_diagonal(
            self.G.sample(*shape, **options),
            self.H.sample(*shape, **options),
        )

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The lifts of the two parts; orbit ids side by side."""
        self._check_points(x, num_samples, generator)
        d = _point_dim(self.G)
        u, q = self.G.lift(x[..., :d], num_samples, generator)
        v, r = self.H.lift(x[..., d:], num_samples, generator)
        return _block_diagonal(u, v), torch.cat([q, r], dim=-1)

    @property
    def lifts_numerically(self) -> bool:
        """Whether a factor does."""
        return self.G.lifts_numerically or self.H.lifts_numerically

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origins of the two parts."""
        self._check_orbit(orbit)
        size = self.G.orbit_dim or 0  # a factor with the numeric lift has one orbit
        return torch.cat([self.G.orbit_origin(orbit[..., :size]), self.H.orbit_origin(orbit[..., size:])], dim=-1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tensor(x, "points")
        if x.shape[-1:] != (self.point_dim,):
            raise ValueError(f"expected points of shape (..., {self.point_dim}) for {self!r}, got {tuple(x.shape)}")
        d = _point_dim(self.G)
        return x[..., :d], x[..., d:]

    def _blocks(self, g: Tensor) -> tuple[Tensor, Tensor]:
        self._check_element(g)
        m = self.G.matrix_dim
        return g[..., :m, :m], g[..., m:, m:]


def _point_dim(group: LieGroup) -> int:
    return group.matrix_dim if group.point_dim is None else group.point_dim


def _block_diagonal(g: Tensor, h: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(g.shape[:-2], h.shape[:-2])
    m, n = g.shape[-1], h.shape[-1]
    top = torch.cat([g.expand(*batch, m, m), g.new_zeros(*batch, m, n)], dim=-1)
    bottom = torch.cat([h.new_zeros(*batch, n, m), h.expand(*batch, n, n)], dim=-1)
    return torch.cat([top, bottom], dim=-2)
