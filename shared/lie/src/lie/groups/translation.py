"""Translations T(n) of R^n: an abelian group, one orbit, trivial stabiliser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, affine_matrix, with_samples


@dataclass(frozen=True)
class T(LieGroup):
    """Translations of R^n. Coordinates: the translation. Matrices (n+1) x (n+1), ``[[1, t], [0, 1]]``."""

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool):
            raise TypeError(f"expected a whole number of dimensions, got T({self.n!r})")
        if self.n < 1:
            raise ValueError(f"expected translations of at least one dimension, got T({self.n})")

    stabiliser_dim = 0
    orbit_dim = 0
    isometric = True

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Number of coordinates: n."""
        return self.n

    @property
    def matrix_dim(self) -> int:  # type: ignore[override]
        """Size of the matrices: n + 1."""
        return self.n + 1

    @property
    def point_dim(self) -> int:  # type: ignore[override]
        """Dimension of the points: n."""
        return self.n

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """``x``, ``y``, ``z``, and ``x0``, ``x1``, ... beyond space."""
        return tuple("xyz"[: self.n]) if self.n <= 3 else tuple(f"x{i}" for i in range(self.n))

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The translation by ``a``."""
        self._check_algebra(a)
        return affine_matrix(torch.eye(self.n, dtype=a.dtype, device=a.device), a)

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The translation vector."""
        self._check_element(g)
        return g[..., :-1, -1].clone()

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The opposite translation."""
        return self.exp(-self.log(g))

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The translation by the last column of ``g``."""
        return self.exp(self.log(g))

    def relative(self, u: Float[Tensor, "*batch m m"], v: Float[Tensor, "*#batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The difference of the translations."""
        self._check_elements(u, v)
        return self.log(u) - self.log(v)

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The one translation that takes the origin to ``x``; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        return self.exp(x), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of R^n."""
        self._check_orbit(orbit)
        return orbit.new_zeros(*orbit.shape[:-1], self.n)
