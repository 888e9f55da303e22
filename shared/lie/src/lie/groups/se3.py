r"""Rigid motions SE(3) of space.

exp of :math:`(\omega, t)` is :math:`(\exp\hat\omega, V t)` with
:math:`V = A + B \hat\omega + C \omega\omega^T`, :math:`V^{-1} = h - \hat\omega/2 + D \omega\omega^T`
(Eade, Lie groups for 2D and 3D transformations, 2013, section 3; A to D and h in `lie.groups.functions`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, affine_matrix, with_samples
from lie.groups.functions import cosc, half_cot, sinc, sinc_remainder
from lie.groups.so3 import rotation_from_vector, uniform_rotations, vector_from_rotation


@dataclass(frozen=True)
class SE3(LieGroup):
    """Rotations and translations of space. Coordinates ``(wx, wy, wz, x, y, z)``; matrices 4 x 4, homogeneous."""

    dim = 6
    matrix_dim = 4
    point_dim = 3
    stabiliser_dim = 3
    isometric = True

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The motion after unit time with angular velocity ``w`` and body velocity ``(x, y, z)``."""
        self._check_algebra(a)
        w, t = a[..., :3], a[..., 3:]
        squared = w.square().sum(-1, keepdim=True)
        along = (w * t).sum(-1, keepdim=True) * w
        # Split along and across the axis: 1 + C w^2 across would cancel to A near a half turn.
        shift = sinc(squared) * t + cosc(squared) * torch.linalg.cross(w, t, dim=-1) + sinc_remainder(squared) * along
        return affine_matrix(rotation_from_vector(w), shift)

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The coordinates with rotation vector of length at most pi."""
        self._check_element(g)
        w, shift = vector_from_rotation(g[..., :3, :3]), g[..., :3, 3]
        squared = w.square().sum(-1, keepdim=True)
        h, remainder = half_cot(squared)
        along = (w * shift).sum(-1, keepdim=True) * w
        t = h * shift - 0.5 * torch.linalg.cross(w, shift, dim=-1) + remainder * along
        return torch.cat([w, t], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse motion, ``(R^T, -R^T t)``."""
        self._check_element(g)
        transposed = g[..., :3, :3].mT
        return affine_matrix(transposed, -(transposed @ g[..., :3, 3:]).squeeze(-1))

    def sample(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "*shape m m"]:
        """Uniform rotations with standard normal translations (the group is not compact)."""
        rotation = uniform_rotations(*shape, generator=generator, dtype=dtype, device=device)
        return affine_matrix(rotation, torch.randn(*shape, 3, generator=generator, dtype=dtype, device=device))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Motions that take the origin to ``x``, with Haar rotations; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples)
        x = with_samples(x, num_samples)
        rotation = uniform_rotations(*x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        return affine_matrix(rotation, x), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of space."""
        return orbit.new_zeros(*orbit.shape[:-1], 3)
