"""Rotations and dilations of the plane, R_+ x SO(2): transitive on the plane without its origin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples
from lie.groups.nearest import nearest_similarity
from lie.groups.so2 import rotation_matrix


@dataclass(frozen=True)
class RxSO2(LieGroup):
    """Rotations with dilations. Coordinates ``(log r, theta)``; the matrix is ``r R(theta)``, a complex number."""

    dim = 2
    _names = ("log_r", "theta")
    matrix_dim = 2
    point_dim = 2
    stabiliser_dim = 0
    orbit_dim = 1

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The rotation by ``theta`` with dilation by ``exp(log r)``."""
        self._check_algebra(a)
        r, theta = a[..., :1].exp(), a[..., 1:]
        return rotation_matrix(r * theta.cos(), r * theta.sin())

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The logarithm of the dilation, and the angle in (-pi, pi]."""
        self._check_element(g)
        x, y = g[..., 0, :1], g[..., 1, :1]
        return torch.cat([torch.hypot(x, y).log(), torch.atan2(y, x)], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The complex reciprocal: the transpose over the squared dilation."""
        self._check_element(g)
        x, y = g[..., :1, :1], g[..., 1:2, :1]
        size = torch.hypot(x, y)  # whose square may leave the range of the dtype, as those of x and y may
        return g.mT / size / size

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The rotation with dilation nearest to ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return nearest_similarity(g)

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform rotations with log-normal dilations (the group is not compact)."""
        theta = (2.0 * torch.rand(*shape, 1, **options) - 1.0) * math.pi
        log_r = torch.randn(*shape, 1, **options)
        return self.exp(torch.cat([log_r, theta], dim=-1))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The one element that takes (1, 0) to ``x``; orbit id 1. The origin is an orbit by itself, id 0."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        moved = (x != 0).any(-1, keepdim=True)
        one = torch.ones_like(x[..., :1])
        zero = torch.zeros_like(one)
        u = rotation_matrix(torch.where(moved, x[..., :1], one), torch.where(moved, x[..., 1:], zero))
        return u, torch.where(moved, one, zero)

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """(1, 0), or the origin for id 0."""
        self._check_orbit(orbit)
        return torch.cat([orbit, torch.zeros_like(orbit)], dim=-1)
