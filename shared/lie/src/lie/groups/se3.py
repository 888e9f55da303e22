r"""Rigid motions SE(3) of space.

exp of :math:`(\omega, t)` is :math:`(\exp\hat\omega, V t)` with
:math:`V = A + B \hat\omega + C \omega\omega^T`,
:math:`V^{-1} = (1 - D\theta^2) - \hat\omega/2 + D \omega\omega^T`
(Eade, Lie groups for 2D and 3D transformations, 2013, section 3; A to D in
`lie.groups.functions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, affine_matrix, with_samples
from lie.groups.functions import components, half_angle_and_C, half_cot_remainder
from lie.groups.nearest import nearest_rotation, one_newton_step
from lie.groups.so3 import (
    cross,
    quaternion,
    relative_quaternion,
    rotation_entries,
    uniform_rotations,
    vector_from_quaternion,
)


def _entries(g: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The nine entries of the rotation and the three of the translation, each (..., 1)."""
    rows = components(g[..., :3, :].flatten(-2))
    return (*rows[:3], *rows[4:7], *rows[8:11]), rows[3::4]


def _logarithm(q: tuple[Tensor, ...], shift: Sequence[Tensor]) -> Float[Tensor, "*batch 6"]:
    """The coordinates of the motion with quaternion ``q`` and translation ``shift``, components (..., 1)."""
    w, squared = vector_from_quaternion(q)
    D = half_cot_remainder(squared)  # noqa: N806
    h = 1.0 - squared * D
    along = D * (w[0] * shift[0] + w[1] * shift[1] + w[2] * shift[2])
    across = cross(w, tuple(shift))
    return torch.cat([*w, *(h * shift[i] + (along * w[i] - 0.5 * across[i]) for i in range(3))], dim=-1)


@dataclass(frozen=True)
class SE3(LieGroup):
    """Rotations and translations of space. Coordinates ``(wx, wy, wz, x, y, z)``; matrices 4 x 4, homogeneous."""

    dim = 6
    _names = ("wx", "wy", "wz", "x", "y", "z")
    matrix_dim = 4
    point_dim = 3
    stabiliser_dim = 3
    orbit_dim = 0
    isometric = True

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The motion after unit time with angular velocity ``w`` and body velocity ``(x, y, z)``."""
        self._check_algebra(a)
        wx, wy, wz, x, y, z = components(a)
        w, t = (wx, wy, wz), (x, y, z)
        c, s, C = half_angle_and_C(wx * wx + wy * wy + wz * wz)  # noqa: N806
        R, two = rotation_entries(w, c, s)  # noqa: N806
        scaled = two * s
        A, B = scaled * c, scaled * s  # noqa: N806
        # Split along and across the axis: 1 + C w^2 across would cancel to A near a half turn.
        along = C * (wx * x + wy * y + wz * z)
        across = cross(w, t)
        shift = [A * t[i] + (B * across[i] + along * w[i]) for i in range(3)]
        zero = torch.zeros_like(x)
        rows = [*R[:3], shift[0], *R[3:6], shift[1], *R[6:], shift[2], zero, zero, zero, torch.ones_like(x)]
        return torch.cat(rows, dim=-1).unflatten(-1, (4, 4))

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The coordinates with rotation vector of length at most pi."""
        self._check_element(g)
        R, t = _entries(g)  # noqa: N806
        return _logarithm(quaternion(R), t)

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """By quaternions: each element is converted once, however many pairs it is part of."""
        (S, s), (R, t) = _entries(u), _entries(v)  # noqa: N806
        q = relative_quaternion(quaternion(S), quaternion(R))
        x, y, z = (a - b for a, b in zip(s, t, strict=True))
        return _logarithm(q, [R[i] * x + R[3 + i] * y + R[6 + i] * z for i in range(3)])

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse motion, ``(R^T, -R^T t)``."""
        self._check_element(g)
        transposed = g[..., :3, :3].mT
        return affine_matrix(transposed, -(transposed @ g[..., :3, 3:]).squeeze(-1))

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The motion with the rotation nearest to that of ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return affine_matrix(nearest_rotation(g[..., :3, :3]), g[..., :3, 3])

    def _renormalised(self, g: Tensor) -> Tensor:
        return affine_matrix(one_newton_step(g[..., :3, :3]), g[..., :3, 3])

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform rotations with standard normal translations (the group is not compact)."""
        rotation = uniform_rotations(*shape, **options)
        return affine_matrix(rotation, torch.randn(*shape, 3, **options))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Motions that take the origin to ``x``, with Haar rotations; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        rotation = uniform_rotations(*x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        return affine_matrix(rotation, x), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of space."""
        self._check_orbit(orbit)
        return orbit.new_zeros(*orbit.shape[:-1], 3)
