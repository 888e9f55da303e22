r"""Equivariant local frames, for an exact lift where rotations keep a point.

A point of the plane fixes an element of SE(2) only up to a rotation. The paper draws that rotation at random;
here it is read off the data. The neighbours j of a point i give vectors

.. math:: v_i = \sum_j w_{ij}\, s_j\, (x_j - x_i) / r_i

with window weights w, weights s made of invariant features and the radius r of the neighbourhood, which
turn with the points. A *soft frame* is made of them by division by :math:`\sqrt{|v|^2 + \epsilon^2}` instead
of :math:`|v|`: where the vectors are well determined it is a rotation matrix, and where a
symmetric neighbourhood leaves them undetermined (a lattice, benzene, CO2, a single point) it shrinks
smoothly to zero, which leaves a kernel of distances alone. No frame is continuous without such a fallback.
Soft frames F turn as the data do, F -> R F, so the entries of :math:`F_j^T F_i` and
:math:`F_j^T (x_i - x_j)`, those of the relative element :math:`v_j^{-1} u_i`, do not change at all.

Which turns there are (in the plane, about an axis, about all) and whether translations carry their centre to every
point says the group's `lie.groups.AffineStructure`; where the centre is fixed, the point itself is the first vector.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from lie.groups import AffineStructure
from torch import Tensor

SOFTNESS = 0.05
"""Length of v, in units of the neighbourhood's radius, below which a frame fades."""


def soft_unit(v: Float[Tensor, "*batch d"], softness: float = SOFTNESS) -> Float[Tensor, "*batch d"]:
    """``v / sqrt(|v|^2 + softness^2)``: nearly a unit vector, and smooth through zero."""
    return v / (v.square().sum(-1, keepdim=True) + softness**2).sqrt()


def soft_frame_2d(v: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2 2"]:
    """The soft rotation that takes the x axis to the direction of ``v``."""
    n = soft_unit(v)
    return torch.stack([n[..., 0], -n[..., 1], n[..., 1], n[..., 0]], dim=-1).unflatten(-1, (2, 2))


def soft_frame_3d(v: Float[Tensor, "*batch 3"], w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The soft rotation with first axis along ``v`` and second along the part of ``w`` across it (Gram-Schmidt)."""
    first = soft_unit(v)
    # Multiplied through by |first|^2, so that it too fades with the first axis instead of turning undefined.
    across = first.square().sum(-1, keepdim=True) * w - (first * w).sum(-1, keepdim=True) * first
    second = soft_unit(across)
    third = torch.linalg.cross(first, second, dim=-1)
    return torch.stack([first, second, third], dim=-1)


def local_frames(
    structure: AffineStructure,
    positions: Float[Tensor, "M d"],
    offsets: Float[Tensor, "M k d"],
    weights: Float[Tensor, "M k"],
    squared_radius: Float[Tensor, "M 1"],
    features: Float[Tensor, "M k 2"] | None,
) -> Float[Tensor, "M r r"] | None:
    """Compute the soft frame of each point in the r directions that rotate; None where nothing rotates.

    Args:
        structure: the parts of the group's action.
        positions: the points.
        offsets: neighbours minus point.
        weights: window weights of the neighbours.
        squared_radius: of the window.
        features: two invariant numbers of each neighbour that weigh it in the vectors; None means ones.
    """
    if structure.rotations == 0:
        return None
    radius = squared_radius.sqrt()  # (M, 1)
    scaled = offsets / radius.unsqueeze(-1)
    if structure.rotations == 1:
        plane = torch.tensor(structure.plane, dtype=offsets.dtype, device=offsets.device)  # (2, d)
        if not structure.moves_plane:
            return soft_frame_2d(positions @ plane.mT / radius)
        return soft_frame_2d(_vector(weights, features, 0, scaled @ plane.mT))
    if not structure.moves_plane:  # SO(3): the stabiliser of a point is the turns about it
        return soft_frame_3d(positions / radius, _vector(weights, features, 1, scaled))
    # The second vector weighs by the squared distance, so that it differs from the first also for equal features.
    outer = weights * scaled.square().sum(-1)
    return soft_frame_3d(_vector(weights, features, 0, scaled), _vector(outer, features, 1, scaled))


def _vector(weights: Tensor, features: Tensor | None, which: int, scaled: Tensor) -> Tensor:
    """The weighted sum of scaled offsets (M, k, r), as (M, r)."""
    if features is not None:
        weights = weights * features[..., which]
    return (weights.unsqueeze(-2) @ scaled).squeeze(-2)
