r"""Similarities Sim(2) of the plane: rotations, dilations, translations.

As complex numbers, :math:`x \mapsto e^{z} x + \varphi(z) t` with :math:`z = \sigma + i\theta` and
:math:`\varphi(z) = (e^z - 1) / z` (Eade, Lie groups for 2D and 3D transformations, 2013, section 6, in the plane).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, affine_matrix, with_samples
from lie.groups.functions import scaled_exponential_functions
from lie.groups.nearest import nearest_similarity
from lie.groups.rxso2 import RxSO2
from lie.groups.so2 import SO2


@dataclass(frozen=True)
class Sim2(LieGroup):
    """Similarities of the plane. Coordinates ``(log s, theta, x, y)``; matrices ``[[s R, t], [0, 1]]``.

    The stabiliser of a point, rotations and dilations, is not compact: `lift` draws the rotation uniformly and
    takes the dilation 1.
    """

    dim = 4
    _names = ("log_s", "theta", "x", "y")
    matrix_dim = 3
    point_dim = 2
    stabiliser_dim = 2
    orbit_dim = 0

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The similarity after unit time with these velocities."""
        self._check_algebra(a)
        _, _, x, y = a.split(1, dim=-1)
        p, q = _translation_factor(a)
        return affine_matrix(RxSO2().exp(a[..., :2]), torch.cat([p * x - q * y, q * x + p * y], dim=-1))

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The coordinates with angle in (-pi, pi]."""
        self._check_element(g)
        z = RxSO2().log(g[..., :2, :2])
        p, q = _translation_factor(z)
        x, y = g[..., :1, 2], g[..., 1:2, 2]
        norm = p.square() + q.square()
        return torch.cat([z, (p * x + q * y) / norm, (p * y - q * x) / norm], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse similarity, ``(M^-1, -M^-1 t)``."""
        self._check_element(g)
        linear = RxSO2().inverse(g[..., :2, :2])
        return affine_matrix(linear, -(linear @ g[..., :2, 2:]).squeeze(-1))

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The similarity with the linear part nearest to that of ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return affine_matrix(nearest_similarity(g[..., :2, :2]), g[..., :2, 2])

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform rotations, log-normal dilations and normal translations (the group is not compact)."""
        linear = RxSO2().sample(*shape, **options)
        return affine_matrix(linear, torch.randn(*shape, 2, **options))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rigid motions that take the origin to ``x``, with uniform angles; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        rotation = SO2().sample(*x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        return affine_matrix(rotation, x), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of the plane."""
        self._check_orbit(orbit)
        return orbit.new_zeros(*orbit.shape[:-1], 2)


def _translation_factor(a: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of phi(log s + i theta)."""
    p, q, _ = scaled_exponential_functions(a[..., :1], a[..., 1:2].square())
    return p, a[..., 1:2] * q
