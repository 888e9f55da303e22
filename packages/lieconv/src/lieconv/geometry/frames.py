r"""Equivariant local frames: an exact lift where points have a stabiliser.

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
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lieconv.geometry.neighbours import gather

SOFTNESS = 0.05
"""Length of v, in units of the neighbourhood's radius, below which a frame fades."""


def local_vectors(
    coords: Float[Tensor, "B N d"],
    indices: Int[Tensor, "B N k"],
    weights: Float[Tensor, "B N k"],
    squared_radius: Float[Tensor, "B N 1"],
    features: Float[Tensor, "B N f"],
) -> Float[Tensor, "B N f d"]:
    """One vector per feature: the weighted mean of the offsets to the neighbours, in units of the radius."""
    offsets = gather(coords, indices) - coords.unsqueeze(2)  # (B, N, k, d)
    offsets = offsets * (weights / squared_radius.sqrt()).unsqueeze(-1)
    return gather(features, indices).mT @ offsets  # (B, N, f, d)


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
