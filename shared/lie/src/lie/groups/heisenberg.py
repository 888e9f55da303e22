"""The Heisenberg group: unipotent upper triangular 3 x 3 matrices; exp and log are polynomials."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples


@dataclass(frozen=True)
class Heisenberg(LieGroup):
    """Matrices ``[[1, x, z], [0, 1, y], [0, 0, 1]]``. Coordinates ``(x, y, z)`` with ``[e_x, e_y] = e_z``.

    On points (p, r) of the plane it acts by ``(p + x r + c, r + y)``: shears and translations. The stabiliser of a
    point is a line of shears and has no uniform distribution: `lift` takes the pure translation.
    """

    dim = 3
    _names = ("x", "y", "z")
    matrix_dim = 3
    point_dim = 2
    stabiliser_dim = 1
    orbit_dim = 0

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """``1 + hat(a) + hat(a)^2 / 2``."""
        self._check_algebra(a)
        x, y, z = a.split(1, dim=-1)
        return _matrix(x, y, z + 0.5 * (x * y))

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """``(g - 1) - (g - 1)^2 / 2``."""
        self._check_element(g)
        x, y, corner = g[..., 0, 1:2], g[..., 1, 2:], g[..., 0, 2:]
        return torch.cat([x, y, corner - 0.5 * (x * y)], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The exponential of the opposite coordinates."""
        self._check_element(g)
        x, y, corner = g[..., 0, 1:2], g[..., 1, 2:], g[..., 0, 2:]
        return _matrix(-x, -y, x * y - corner)

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The three entries above the diagonal of ``g``, with ones and zeros elsewhere."""
        self._check_element(g)
        return _matrix(g[..., 0, 1:2], g[..., 1, 2:], g[..., 0, 2:])

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The translation that takes the origin to ``x``; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        return _matrix(torch.zeros_like(x[..., :1]), x[..., 1:], x[..., :1]), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of the plane."""
        self._check_orbit(orbit)
        return orbit.new_zeros(*orbit.shape[:-1], 2)


def _matrix(x: Tensor, y: Tensor, corner: Tensor) -> Float[Tensor, "*batch 3 3"]:
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.cat([one, x, corner, zero, one, y, zero, zero, one], dim=-1).unflatten(-1, (3, 3))
