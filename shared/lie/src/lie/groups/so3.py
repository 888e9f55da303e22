r"""Rotations SO(3) of space about the origin.

exp is Rodrigues' formula, :math:`R = 1 + A \hat\omega + B (\omega\omega^T - \theta^2)`. log takes the
quaternion (w, v) of R by the largest of its four squared components (Shepperd 1978), where no cancellation
occurs at any angle, and then :math:`\omega = v\,\theta/|v|` by a function that is smooth
on all of [0, pi]. At an angle of pi, where :math:`\pm\omega` name the same rotation, one of the two is returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples
from lie.groups.functions import cosc, rotation_angle_factor, sinc
from lie.groups.so2 import direction_and_norm


def cross_matrix(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix of the map ``x -> w x x`` (cross product)."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def rotation_from_vector(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation by ``|w|`` radians about ``w`` (Rodrigues' formula)."""
    squared = w.square().sum(-1, keepdim=True)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    outer = w.unsqueeze(-1) * w.unsqueeze(-2) - squared.unsqueeze(-1) * eye
    return eye + sinc(squared).unsqueeze(-1) * cross_matrix(w) + cosc(squared).unsqueeze(-1) * outer


def quaternion_from_rotation(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:  # noqa: N803
    """The quaternion (w, x, y, z) of a rotation, w >= 0, not normalised (its length is between 8 and 16).

    It is the row of the matrix 4 q q^T with the largest diagonal entry (at least 1), times that matrix.
    """
    r = R.flatten(-2).split(1, dim=-1)
    rows = torch.cat(
        [
            *(1.0 + r[0] + r[4] + r[8], r[7] - r[5], r[2] - r[6], r[3] - r[1]),
            *(r[7] - r[5], 1.0 + r[0] - r[4] - r[8], r[3] + r[1], r[2] + r[6]),
            *(r[2] - r[6], r[3] + r[1], 1.0 - r[0] + r[4] - r[8], r[7] + r[5]),
            *(r[3] - r[1], r[2] + r[6], r[7] + r[5], 1.0 - r[0] - r[4] + r[8]),
        ],
        dim=-1,
    ).unflatten(-1, (4, 4))
    pivot = rows.diagonal(dim1=-2, dim2=-1).argmax(-1, keepdim=True).unsqueeze(-1)  # (..., 1, 1)
    row = torch.take_along_dim(rows, pivot, dim=-2)  # (..., 1, 4)
    q = (row @ rows).squeeze(-2)  # one step of the power method averages the rounding of all nine entries
    return torch.where(q[..., :1] < 0, -q, q)


def vector_from_rotation(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:  # noqa: N803
    """The rotation vector of length at most pi."""
    q = quaternion_from_rotation(R)
    v = q[..., 1:]
    return rotation_angle_factor(q[..., :1], v.square().sum(-1, keepdim=True)) * v


def uniform_rotations(
    *shape: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*shape 3 3"]:
    """Haar-uniform rotations, from normalised normal quaternions."""
    q = torch.nn.functional.normalize(torch.randn(*shape, 4, generator=generator, dtype=dtype, device=device), dim=-1)
    w, v = q[..., :1, None], q[..., 1:]
    eye = torch.eye(3, dtype=q.dtype, device=q.device)
    outer = v.unsqueeze(-1) * v.unsqueeze(-2)
    return eye + 2.0 * (w * cross_matrix(v) + outer - v.square().sum(-1)[..., None, None] * eye)


@dataclass(frozen=True)
class SO3(LieGroup):
    """Rotations of space. Coordinates: the rotation vector ``(wx, wy, wz)``, angle times unit axis."""

    dim = 3
    matrix_dim = 3
    point_dim = 3
    stabiliser_dim = 1
    isometric = True

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The rotation by ``|a|`` about ``a``."""
        self._check_algebra(a)
        return rotation_from_vector(a)

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The rotation vector of length at most pi."""
        self._check_element(g)
        return vector_from_rotation(g)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The transpose."""
        self._check_element(g)
        return g.mT

    def sample(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "*shape m m"]:
        """Uniform (Haar) rotations."""
        return uniform_rotations(*shape, generator=generator, dtype=dtype, device=device)

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotations that take the positive x axis to ``x``, uniform among them, and the radius.

        The turn about the axis is uniform in angle (Haar on the stabiliser SO(2)), not a Haar SO(3) angle.
        """
        self._check_points(x, num_samples)
        x = with_samples(x, num_samples)
        n, radius = direction_and_norm(x)
        # The shortest turn from the nearer of +x and -x to n, after a half turn about z in the second case.
        side = torch.where(n[..., :1] < 0, -torch.ones_like(radius), torch.ones_like(radius))  # (..., 1)
        axis = torch.stack([torch.zeros_like(radius), -side * n[..., 2:], side * n[..., 1:2]], dim=-1).squeeze(-2)
        K = cross_matrix(axis)  # noqa: N806
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        shortest = eye + K + K @ K / (1.0 + side * n[..., :1]).unsqueeze(-1)
        half_turn = torch.cat([side, side, torch.ones_like(side)], dim=-1)
        uniform = torch.rand(*x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        phi = (2.0 * uniform - 1.0) * math.pi
        turn = rotation_from_vector(torch.stack([phi, torch.zeros_like(phi), torch.zeros_like(phi)], dim=-1))
        return shortest * half_turn.unsqueeze(-2) @ turn, radius

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The point of the sphere on the positive x axis."""
        return torch.cat([orbit, torch.zeros_like(orbit), torch.zeros_like(orbit)], dim=-1)
