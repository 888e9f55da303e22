"""Rotations SO(2) of the plane about the origin: the orbits are circles, named by their radius."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples
from lie.groups.nearest import nearest_rotation, one_newton_step


def rotation_matrix(cos: Float[Tensor, "*batch 1"], sin: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 2 2"]:
    """The matrix ``[[cos, -sin], [sin, cos]]``."""
    return torch.cat([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


@dataclass(frozen=True)
class SO2(LieGroup):
    """Rotations of the plane. Coordinate: the angle ``theta``, counter-clockwise; log gives (-pi, pi]."""

    dim = 1
    _names = ("theta",)
    matrix_dim = 2
    point_dim = 2
    stabiliser_dim = 0
    orbit_dim = 1
    isometric = True

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The rotation by the angle ``a``."""
        self._check_algebra(a)
        return rotation_matrix(a.cos(), a.sin())

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The angle of the rotation."""
        self._check_element(g)
        return torch.atan2(g[..., 1, :1], g[..., 0, :1])

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The transpose."""
        self._check_element(g)
        return g.mT.clone()

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """As for every group, without a copy of the transpose."""
        return self.log(v.mT @ u)

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The rotation nearest to ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return nearest_rotation(g)

    def _renormalised(self, g: Tensor) -> Tensor:
        return one_newton_step(g)

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform (Haar) rotations."""
        uniform = torch.rand(*shape, 1, **options)
        return self.exp((2.0 * uniform - 1.0) * math.pi)

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rotation that takes the positive x axis to ``x`` (the identity at the origin), and the radius."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        direction, radius = direction_and_norm(x)
        return rotation_matrix(direction[..., :1], direction[..., 1:]), radius

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The point of the circle on the positive x axis."""
        self._check_orbit(orbit)
        return torch.cat([orbit, torch.zeros_like(orbit)], dim=-1)


def direction_and_norm(x: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch 1"]]:
    """The unit vector and the length of ``x``; at 0 the first axis and 0, with zero derivatives."""
    # Scaled, because the square of a tiny or huge coordinate leaves the range of the dtype.
    scale = x.detach().abs().amax(-1, keepdim=True)
    zero = scale == 0
    first = torch.zeros_like(x)
    first[..., 0] = 1.0
    scale = torch.where(zero, torch.ones_like(scale), scale)
    scaled = torch.where(zero, first, x / scale)
    norm = scaled.square().sum(-1, keepdim=True).sqrt()
    return scaled / norm, torch.where(zero, torch.zeros_like(norm), norm * scale)
