r"""Rotations SO(3) of space about the origin.

exp is Rodrigues' formula, :math:`R = 1 + A \hat\omega + B (\omega\omega^T - \theta^2)`, by a quaternion. log takes the
quaternion (w, v) of R by the largest of its four squared components (Shepperd 1978), where no cancellation
occurs at any angle, and then :math:`\omega = v\,\theta/|v|` by a function that is smooth
on all of [0, pi]. At an angle of pi, where :math:`\pm\omega` name the same rotation, one of the two is returned.

The arithmetic is by components, each of shape (..., 1): one kernel when compiled, and quick without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, with_samples
from lie.groups.functions import chooser, components, half_angle, rotation_angle_factor, select
from lie.groups.nearest import nearest_rotation, one_newton_step
from lie.groups.so2 import direction_and_norm


def cross_matrix(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix of the map ``x -> w x x`` (cross product)."""
    x, y, z = w.split(1, dim=-1)
    zero = torch.zeros_like(x)
    return torch.cat([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def cross(w: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The cross product of two vectors given by their components, each (..., 1)."""
    return w[1] * t[2] - w[2] * t[1], w[2] * t[0] - w[0] * t[2], w[0] * t[1] - w[1] * t[0]


def rotation_entries(w: tuple[Tensor, ...], c: Tensor, s: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The nine entries, row by row, of the rotation with quaternion ``(c, s w)``; and two over its squared length.

    The quaternion is normalised here: a rounding of the angle then turns the rotation but does not deform it.
    Its length is 1 for every w, so that the derivative of the normalisation is nothing but rounding.
    """
    x, y, z = (s * component for component in w)
    two = 2.0 / (c * c + (x * x + y * y + z * z)).detach()
    tx, ty, tz = two * x, two * y, two * z
    xx, yy, zz, xy, xz, yz = tx * x, ty * y, tz * z, tx * y, tx * z, ty * z
    wx, wy, wz = c * tx, c * ty, c * tz
    entries = (
        *(1.0 - (yy + zz), xy - wz, xz + wy),
        *(xy + wz, 1.0 - (xx + zz), yz - wx),
        *(xz - wy, yz + wx, 1.0 - (xx + yy)),
    )
    return entries, two


def rotation_from_vector(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation by ``|w|`` radians about ``w``."""
    x, y, z = components(w)
    c, s = half_angle(x * x + y * y + z * z)
    return torch.cat(rotation_entries((x, y, z), c, s)[0], dim=-1).unflatten(-1, (3, 3))


def quaternion(R: Sequence[Tensor], scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: N803
    """The components (w, x, y, z), each (..., 1), of a quaternion of a rotation, not normalised, of either sign.

    The rotation is given by its nine entries, row by row, as of `components`. The quaternion is the row of the matrix
    4 q q^T with the largest diagonal entry (at least 1), so of length 2 to 4; chosen by comparisons of the diagonal of
    R alone. A rotation times ``scale`` gives the row times that.
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = R
    down, first, last = chooser(r22 < 0, r22), chooser(r00 > r11, r22), chooser(r00 < -r11, r22)
    less, more = scale - r22, scale + r22
    sw, sx, sy, sz = more + (r00 + r11), less + (r00 - r11), less - (r00 - r11), more - (r00 + r11)
    wx, wy, wz = r21 - r12, r02 - r20, r10 - r01
    xy, xz, yz = r10 + r01, r02 + r20, r21 + r12
    return (
        select(down, select(first, wx, wy), select(last, wz, sw)),
        select(down, select(first, sx, xy), select(last, xz, wx)),
        select(down, select(first, xy, sy), select(last, yz, wy)),
        select(down, select(first, xz, yz), select(last, sz, wz)),
    )


def vector_from_quaternion(q: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The rotation vector of length at most pi, by components, and its squared length, each (..., 1)."""
    w, x, y, z = q
    n = x * x + y * y + z * z
    negative = chooser(w < 0, w)
    factor = rotation_angle_factor(select(negative, -w, w), n)  # abs has no derivative at 0, a half turn
    factor = select(negative, -factor, factor)
    return (factor * x, factor * y, factor * z), factor.square() * n


def vector_from_rotation(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:  # noqa: N803
    """The rotation vector of length at most pi."""
    return torch.cat(vector_from_quaternion(quaternion(components(R.flatten(-2))))[0], dim=-1)


def relative_quaternion(u: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The product ``conj(v) u``: the quaternion of the rotation u as seen from v."""
    uw, ux, uy, uz = u
    vw, vx, vy, vz = v
    return (
        (vw * uw + vx * ux) + (vy * uy + vz * uz),
        (vw * ux - vx * uw) + (vz * uy - vy * uz),
        (vw * uy - vy * uw) + (vx * uz - vz * ux),
        (vw * uz - vz * uw) + (vy * ux - vx * uy),
    )


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
    _names = ("wx", "wy", "wz")
    matrix_dim = 3
    point_dim = 3
    stabiliser_dim = 1
    orbit_dim = 1
    isometric = True

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The rotation by ``|a|`` about ``a``."""
        self._check_algebra(a)
        return rotation_from_vector(a)

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The rotation vector of length at most pi."""
        self._check_element(g)
        return vector_from_rotation(g)

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """By quaternions: each element is converted once, however many pairs it is part of."""
        q = relative_quaternion(quaternion(components(u.flatten(-2))), quaternion(components(v.flatten(-2))))
        return torch.cat(vector_from_quaternion(q)[0], dim=-1)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The transpose."""
        self._check_element(g)
        return g.mT.clone()

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The rotation nearest to ``g``; NaN for a reflection or a singular matrix."""
        self._check_element(g)
        return nearest_rotation(g)

    def _renormalised(self, g: Tensor) -> Tensor:
        return one_newton_step(g)

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """Uniform (Haar) rotations."""
        return uniform_rotations(*shape, **options)

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotations that take the positive x axis to ``x``, uniform among them, and the radius.

        The turn about the axis is uniform in angle (Haar on the stabiliser SO(2)), not a Haar SO(3) angle.
        """
        self._check_points(x, num_samples, generator)
        x = with_samples(x, num_samples)
        n, radius = direction_and_norm(x)
        # The shortest turn from the nearer of +x and -x to n, after a half turn about z in the second case.
        side = torch.where(n[..., :1] < 0, -torch.ones_like(radius), torch.ones_like(radius))  # (..., 1)
        axis = torch.stack([torch.zeros_like(radius), -side * n[..., 2:], side * n[..., 1:2]], dim=-1).squeeze(-2)
        K = cross_matrix(axis)  # noqa: N806
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        shortest = eye + K + K @ K / (1.0 + side * n[..., :1]).unsqueeze(-1)
        half_turn = torch.cat([side, side, torch.ones_like(side)], dim=-1)
        uniform = torch.rand(x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        phi = (2.0 * uniform - 1.0) * math.pi
        turn = rotation_from_vector(torch.stack([phi, torch.zeros_like(phi), torch.zeros_like(phi)], dim=-1))
        return shortest * half_turn.unsqueeze(-2) @ turn, radius

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The point of the sphere on the positive x axis."""
        self._check_orbit(orbit)
        return torch.cat([orbit, torch.zeros_like(orbit), torch.zeros_like(orbit)], dim=-1)
