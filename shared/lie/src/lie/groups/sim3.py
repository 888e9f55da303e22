r"""Similarities Sim(3) of space: rotations, dilations, translations.

exp of :math:`(\sigma, \omega, t)` is :math:`(e^\sigma \exp\hat\omega, V t)` with V the integral of
:math:`e^{s\sigma} \exp(s\hat\omega)` over s in [0, 1], a combination of :math:`1, \hat\omega` and
:math:`\omega\omega^T` (Eade, Lie groups for 2D and 3D transformations, 2013, section 6; `lie.groups.functions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, affine_matrix, with_samples
from lie.groups.functions import components, half_angle, scaled_exponential_functions, scaled_logarithm_functions
from lie.groups.nearest import nearest_similarity, one_newton_step
from lie.groups.so3 import cross, quaternion, rotation_entries, uniform_rotations, vector_from_quaternion


@dataclass(frozen=True)
class Sim3(LieGroup):
    """Similarities of space. Coordinates ``(log s, wx, wy, wz, x, y, z)``; matrices ``[[s R, t], [0, 1]]``.

    The stabiliser of a point, rotations and dilations, is not compact: `lift` draws the rotation uniformly and
    takes the dilation 1.
    """

    dim = 7
    _names = ("log_s", "wx", "wy", "wz", "x", "y", "z")
    matrix_dim = 4
    point_dim = 3
    stabiliser_dim = 4
    orbit_dim = 0

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The similarity after unit time with these velocities."""
        self._check_algebra(a)
        sigma, wx, wy, wz, x, y, z = components(a)
        w, t = (wx, wy, wz), (x, y, z)
        squared = wx * wx + wy * wy + wz * wz
        c, s = half_angle(squared)
        R = torch.cat(rotation_entries(w, c, s)[0], dim=-1).unflatten(-1, (3, 3))  # noqa: N806
        p, q, r = scaled_exponential_functions(sigma, squared)
        along = r * (wx * x + wy * y + wz * z)
        across = cross(w, t)
        shift = torch.cat([p * t[i] + (q * across[i] + along * w[i]) for i in range(3)], dim=-1)
        return affine_matrix(sigma.exp().unsqueeze(-1) * R, shift)

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The coordinates with rotation vector of length at most pi."""
        self._check_element(g)
        linear, t = g[..., :3, :3], components(g[..., :3, 3])
        dilation = _dilation(linear)
        sigma = dilation.log().squeeze(-1)  # (..., 1)
        w, squared = vector_from_quaternion(quaternion(components((linear / dilation).flatten(-2))))
        p, q, r = scaled_logarithm_functions(sigma, squared)
        along = r * (w[0] * t[0] + w[1] * t[1] + w[2] * t[2])
        across = cross(w, t)
        return torch.cat([sigma, *w, *(p * t[i] + (q * across[i] + along * w[i]) for i in range(3))], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse similarity, ``(M^-1, -M^-1 t)`` with ``M^-1 = M^T / s^2``."""
        self._check_element(g)
        linear = g[..., :3, :3]
        dilation = _dilation(linear)
        inverse = linear.mT / dilation / dilation
        return affine_matrix(inverse, -(inverse @ g[..., :3, 3:]).squeeze(-1))

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The similarity with the linear part nearest to that of ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return affine_matrix(nearest_similarity(g[..., :3, :3]), g[..., :3, 3])

    def _renormalised(self, g: Tensor) -> Tensor:
        size = _dilation(g[..., :3, :3])
        return affine_matrix(size * one_newton_step(g[..., :3, :3] / size), g[..., :3, 3])

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform rotations, log-normal dilations and normal translations (the group is not compact)."""
        rotation = uniform_rotations(*shape, **options)
        scale = torch.randn(*shape, 1, 1, **options).exp()
        return affine_matrix(scale * rotation, torch.randn(*shape, 3, **options))

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rigid motions that take the origin to ``x``, with Haar rotations; the orbit id is empty (one orbit)."""
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        rotation = uniform_rotations(*x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        return affine_matrix(rotation, x), x[..., :0]

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The origin of space."""
        self._check_orbit(orbit)
        return orbit.new_zeros(*orbit.shape[:-1], 3)


def _dilation(linear: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 1 1"]:
    """The factor s of ``s R``, from all nine entries: their squares sum to 3 s^2."""
    # Scaled, because the square of a tiny or huge entry leaves the range of the dtype.
    scale = linear.detach().abs().amax((-2, -1), keepdim=True)
    return ((linear / scale).square().sum((-2, -1), keepdim=True) / 3.0).sqrt() * scale
