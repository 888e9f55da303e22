"""The trivial group on R^n: one element, every point its own orbit. LieConv under it is a PointConv."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples


@dataclass(frozen=True)
class Trivial(LieGroup):
    """The group with one element, the identity of R^n. No coordinates; the orbit id of a point is the point."""

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool):
            raise TypeError(f"expected a whole number of dimensions, got Trivial({self.n!r})")
        if self.n < 1:
            raise ValueError(f"expected points of at least one dimension, got Trivial({self.n})")

    dim = 0
    stabiliser_dim = 0
    isometric = True

    @property
    def matrix_dim(self) -> int:  # type: ignore[override]
        """Size of the matrix: n."""
        return self.n

    @property
    def point_dim(self) -> int:  # type: ignore[override]
        """Dimension of the points: n."""
        return self.n

    @property
    def orbit_dim(self) -> int:  # type: ignore[override]
        """Numbers that name an orbit: n."""
        return self.n

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The identity."""
        self._check_algebra(a)
        return self.identity(*a.shape[:-1], dtype=a.dtype, device=a.device)

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The empty vector."""
        self._check_element(g)
        return g[..., 0, :0]

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The identity."""
        return self.normalise(g)

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The identity."""
        self._check_element(g)
        return self.identity(*g.shape[:-2], dtype=g.dtype, device=g.device)

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The identity, and the point itself as its orbit id."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        return self.identity(*x.shape[:-1], dtype=x.dtype, device=x.device), x.clone(
            memory_format=torch.contiguous_format
        )

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The point that names the orbit."""
        self._check_orbit(orbit)
        return orbit.clone()
