r"""The lift of an affine action from its parts: translations, turns, dilations (`lie.groups.structure`).

A point x is reached from a representative of its orbit by the turn, the dilation and the translation that the parts
allow, ``x = s R o + t``. What no part can change names the orbit: the coordinates along directions that neither turn
nor are translated, the distance from the axis or centre of turns that cannot be moved; relative to the size of these,
where the group dilates. Where turns keep the point, they are drawn uniformly (Haar on the stabiliser).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lie.groups.base import with_samples
from lie.groups.so2 import direction_and_norm, rotation_matrix
from lie.groups.so3 import SO3, uniform_rotations
from lie.groups.structure import AffineStructure


def orbit_basis(structure: AffineStructure, like: Tensor) -> Tensor:
    """The directions (q, d) along which the representatives of the orbits lie, one for each number of an orbit id."""
    rows = list(structure.fixed)
    if structure.rotations and not structure.moves_plane:
        rows = [structure.plane[0], *rows]
    return torch.tensor(rows, dtype=like.dtype, device=like.device).view(-1, structure.d)


def affine_lift(
    structure: AffineStructure, x: Tensor, num_samples: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Linear parts (..., d, d), translations (..., d) and orbit ids (..., q) that take the representatives to ``x``."""
    x = with_samples(x, num_samples)
    d = structure.d
    W = torch.tensor(structure.translations, dtype=x.dtype, device=x.device).view(-1, d)  # noqa: N806
    t = x @ W.mT @ W
    rest = x - t
    R, radius = _turn(structure, rest, generator)  # noqa: N806
    fixed = torch.tensor(structure.fixed, dtype=x.dtype, device=x.device).view(-1, d)
    orbit = torch.cat([radius, rest @ fixed.mT], dim=-1)
    if structure.dilation and orbit.shape[-1]:
        orbit, size = direction_and_norm(orbit)
        zero = size == 0
        orbit = torch.where(zero, torch.zeros_like(orbit), orbit)
        R = torch.where(zero, torch.ones_like(size), size).unsqueeze(-1) * R  # noqa: N806
    return R, t, orbit


def _turn(structure: AffineStructure, rest: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The turn of each point (..., d, d), and its distance from what the turns keep where that cannot be moved."""
    d, none = structure.d, rest[..., :0]
    eye = torch.eye(d, dtype=rest.dtype, device=rest.device)
    if structure.rotations == 0:
        return eye.expand(*rest.shape, d), none
    if structure.rotations == 3:
        if structure.moves_plane:
            return uniform_rotations(*rest.shape[:-1], generator=generator, dtype=rest.dtype, device=rest.device), none
        return SO3().lift(rest, generator=generator)
    plane = torch.tensor(structure.plane, dtype=rest.dtype, device=rest.device)  # (2, d)
    if structure.moves_plane:
        uniform = torch.rand(*rest.shape[:-1], 1, generator=generator, dtype=rest.dtype, device=rest.device)
        angle = (2.0 * uniform - 1.0) * math.pi
        turn, radius = rotation_matrix(angle.cos(), angle.sin()), none
    else:
        direction, radius = direction_and_norm(rest @ plane.mT)
        turn = rotation_matrix(direction[..., :1], direction[..., 1:])
    return plane.mT @ turn @ plane + (eye - plane.mT @ plane), radius
