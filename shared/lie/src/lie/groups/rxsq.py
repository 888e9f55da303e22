"""Dilations and squeezes of the plane: positive scalings of the two axes, transitive on every open quadrant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples


@dataclass(frozen=True)
class RxSQ(LieGroup):
    """Dilations with squeezes. Coordinates ``(log r, s)``; the matrix is ``diag(exp(log r + s), exp(log r - s))``."""

    dim = 2
    _names = ("log_r", "s")
    matrix_dim = 2
    point_dim = 2
    stabiliser_dim = 0
    orbit_dim = 2

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The dilation by ``exp(log r)`` with the squeeze by ``exp(s)``."""
        self._check_algebra(a)
        log_r, s = a[..., :1], a[..., 1:]
        return torch.diag_embed(torch.cat([log_r + s, log_r - s], dim=-1).exp())

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """Half the sum and half the difference of the logarithms of the two scales."""
        self._check_element(g)
        x, y = g[..., 0, :1].log(), g[..., 1, 1:].log()
        return torch.cat([0.5 * (x + y), 0.5 * (x - y)], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The reciprocal scales."""
        self._check_element(g)
        return torch.diag_embed(g.diagonal(dim1=-2, dim2=-1).reciprocal())

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The positive diagonal of ``g``; NaN where an entry of it is not positive."""
        self._check_element(g)
        scales = g.diagonal(dim1=-2, dim2=-1)
        return torch.diag_embed(torch.where(scales > 0, scales, torch.full_like(scales, torch.nan)))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The scales that take the corner of the quadrant of ``x`` to it; the orbit id is the signs of ``x``.

        A coordinate 0 stays 0 under every scale: its id is 0, its scale 1.
        """
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        return torch.diag_embed(torch.where(x == 0, torch.ones_like(x), x.abs())), x.sign()

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The corner (+-1, +-1) of the quadrant."""
        self._check_orbit(orbit)
        return orbit.clone()
