r"""Charts of spheres and rotations, with rates by the chain rule: smooth, batched, on any device.

Directions in space: the spherical angles (phi, theta) about the x axis, so that hanging, (pi, pi/2), is regular,
:math:`u = (-\cos\theta, \sin\phi \sin\theta, \cos\phi \sin\theta)`; singular only
along the x axis.

Orientations: ZXZ Euler angles to matrices (never singular in this direction), and rotation vectors both ways
(`lie.groups.SO3`; smooth but at half turns).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from lie.groups import SO3
from torch import Tensor


def direction(angles: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3"]:
    """The unit vector at spherical angles (phi, theta) about the x axis."""
    phi, theta = angles.unbind(-1)
    return torch.stack([-theta.cos(), phi.sin() * theta.sin(), phi.cos() * theta.sin()], dim=-1)


def direction_angles(u: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
    """(phi, theta) of a vector that is not along the x axis; phi in (0, 2 pi), without a jump near hanging."""
    phi = torch.pi + torch.atan2(-u[..., 1], -u[..., 2])
    theta = torch.atan2(u[..., 1:].norm(dim=-1), -u[..., 0])
    return torch.stack([phi, theta], dim=-1)


def euler_matrix(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rz(alpha) Rx(beta) Rz(gamma); its columns are the body's axes."""
    (ca, cb, cg), (sa, sb, sg) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [ca * cg - sa * cb * sg, -ca * sg - sa * cb * cg, sa * sb],
        [sa * cg + ca * cb * sg, -sa * sg + ca * cb * cg, -ca * sb],
        [sb * sg, sb * cg, cb],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rotation_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation by |vector| about it."""
    return SO3().exp(vector)


def rotation_vector(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:  # noqa: N803
    """The inverse of `rotation_matrix`, with an angle of at most pi."""
    return SO3().log(R)
