r"""Rigid motions SE(2) of the plane.

exp of :math:`(\theta, x, y)` is the rotation by :math:`\theta` with translation :math:`V(\theta) (x, y)`,
:math:`V = \begin{pmatrix} A & -\theta B \\ \theta B & A \end{pmatrix}`, with A, B of `lie.groups.functions`;
its inverse is :math:`\begin{pmatrix} h & \theta/2 \\ -\theta/2 & h \end{pmatrix}`,
:math:`h = \tfrac{\theta}{2}\cot\tfrac{\theta}{2}` (Eade, Lie groups for 2D and 3D transformations, 2013, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, affine_matrix, with_samples
from lie.groups.functions import half_angle, half_cot_remainder
from lie.groups.nearest import nearest_rotation, one_newton_step
from lie.groups.so2 import SO2, rotation_matrix


def _logarithm(theta: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "*batch 3"]:
    squared = theta.square()
    h = 1.0 - squared * half_cot_remainder(squared)
    half = 0.5 * theta
    return torch.cat([theta, h * x + half * y, h * y - half * x], dim=-1)


@dataclass(frozen=True)
class SE2(LieGroup):
    """Rotations and translations of the plane. Coordinates ``(theta, x, y)``; matrices 3 x 3, homogeneous."""

    dim = 3
    _names = ("theta", "x", "y")
    matrix_dim = 3
    point_dim = 2
    stabiliser_dim = 1
    orbit_dim = 0
    isometric = True

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The motion after unit time with angular velocity ``theta`` and body velocity ``(x, y)``."""
        self._check_algebra(a)
        theta, t = a[..., :1], a[..., 1:]
        squared = theta.square()
        c, s = half_angle(squared)
        V = rotation_matrix(2.0 * s * c, 2.0 * theta * s.square())  # noqa: N806
        return affine_matrix(rotation_matrix(theta.cos(), theta.sin()), (V @ t.unsqueeze(-1)).squeeze(-1))

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The coordinates with angle in (-pi, pi]."""
        self._check_element(g)
        theta = torch.atan2(g[..., 1, :1], g[..., 0, :1])
        return _logarithm(theta, g[..., :1, 2], g[..., 1:2, 2])

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """By components, without the matrices of the pairs."""
        uc, us, ux, uy = u[..., 0, :1], u[..., 1, :1], u[..., :1, 2], u[..., 1:2, 2]
        vc, vs, vx, vy = v[..., 0, :1], v[..., 1, :1], v[..., :1, 2], v[..., 1:2, 2]
        theta = torch.atan2(vc * us - vs * uc, vc * uc + vs * us)
        x, y = ux - vx, uy - vy
        return _logarithm(theta, vc * x + vs * y, vc * y - vs * x)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse motion, ``(R^T, -R^T t)``."""
        self._check_element(g)
        transposed = g[..., :2, :2].mT
        return affine_matrix(transposed, -(transposed @ g[..., :2, 2:]).squeeze(-1))

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The motion with the rotation nearest to that of ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return affine_matrix(nearest_rotation(g[..., :2, :2]), g[..., :2, 2])

    def _renormalised(self, g: Tensor) -> Tensor:
        return affine_matrix(one_newton_step(g[..., :2, :2]), g[..., :2, 2])

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform rotations with standard normal translations (the group is not compact)."""
        rotation = SO2().sample(*shape, **options)
        return affine_matrix(rotation, torch.randn(*shape, 2, **options))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Motions that take the origin to ``x``, with uniform angles; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        rotation = SO2().sample(*x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        return affine_matrix(rotation, x), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of the plane."""
        self._check_orbit(orbit)
        return orbit.new_zeros(*orbit.shape[:-1], 2)
