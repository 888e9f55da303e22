r"""The k nearest neighbours of every point, with a window that closes smoothly at the edge.

A hard cut at the k-th neighbour makes the output jump whenever two points are equally far, which on a
lattice is the rule: rounding then decides who belongs, and equivariance is lost. So neighbour j of i counts
with :math:`w_{ij} = (1 - d_{ij}^2 / d_{i,k+1}^2)^2`, which vanishes at the distance of the first point
outside: whoever is tied there counts nothing, whichever is chosen. Where a sample has no point
outside, every weight is 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from lie.groups import LieGroup
from torch import Tensor

_ROWS = 1 << 22  # group elements compared at once where a group has no cheap distance on points


def gather(values: Float[Tensor, "B N *c"], indices: Int[Tensor, "B M k"]) -> Float[Tensor, "B M k *c"]:
    """``values[b, indices[b, m, j]]``, by one index_select, whose gradient is one index_add."""
    B, N = values.shape[:2]  # noqa: N806
    offset = torch.arange(B, device=indices.device).view(B, 1, 1) * N
    flat = values.flatten(0, 1).index_select(0, (indices + offset).flatten())
    return flat.view(*indices.shape, *values.shape[2:])


def nearest_neighbours(
    group: LieGroup,
    coords: Float[Tensor, "B N d"],
    elements: Float[Tensor, "B N m m"] | None,
    orbits: Float[Tensor, "B N q"] | None,
    mask: Bool[Tensor, "B N"],
    num_neighbors: int,
) -> tuple[Int[Tensor, "B N k"], Float[Tensor, "B N k"], Float[Tensor, "B N 1"]]:
    """Indices of the nearest valid points (the point itself among them), their weights, and the radius squared.

    Distances are Euclidean where the group preserves them (or no elements are given), else the group's own
    left-invariant distance between elements and orbits.

    Returns:
        Indices (B, N, k) with k = min(num_neighbors, N); window weights (B, N, k), zero for invalid points
        and summing to 1 over the neighbours of a valid point; squared radius of the window (B, N, 1).
    """
    N = coords.shape[1]  # noqa: N806
    k = min(num_neighbors, N)
    with torch.no_grad():
        if group.isometric or elements is None or orbits is None:
            fixed = coords.detach()  # the choice has no derivative, and cdist none in forward mode
            distance = torch.cdist(fixed, fixed, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            distance = _group_distance(group, elements, orbits)
        distance = distance.masked_fill(~mask.unsqueeze(1), torch.inf)
        indices = distance.topk(min(k + 1, N), dim=-1, largest=False, sorted=True).indices  # (B, N, k + 1)
    valid = gather(mask, indices)
    if group.isometric or elements is None or orbits is None:
        squared = (gather(coords, indices) - coords.unsqueeze(2)).square().sum(-1)
    else:
        squared = group.distance(
            elements.unsqueeze(2), gather(elements, indices), orbits.unsqueeze(2), gather(orbits, indices)
        ).square()
    inside = squared[..., :k]
    # The first point outside sets the radius; without one, twice the farthest point inside serves as a scale.
    has_outside = valid[..., k:].any(-1, keepdim=True) if k < N else torch.zeros_like(valid[..., :1])
    farthest = torch.where(valid, squared, torch.zeros_like(squared)).amax(-1, keepdim=True)
    radius = torch.where(has_outside, farthest, 2.0 * farthest)
    radius = torch.where(radius > 0, radius, torch.ones_like(radius))
    window = (1.0 - inside / radius).clamp(min=0.0).square()
    # Coincident points at radius zero, and samples that fit inside, are weighted equally.
    equal = ~has_outside | (farthest == 0)
    window = torch.where(equal, torch.ones_like(window), window) * valid[..., :k]
    total = window.sum(-1, keepdim=True)
    weights = window / torch.where(total > 0, total, torch.ones_like(total))
    return indices[..., :k], weights * mask.unsqueeze(-1), radius


def _group_distance(group: LieGroup, elements: Tensor, orbits: Tensor) -> Tensor:
    """All pair distances (B, N, N), a block of rows at a time so that no (N, N, dim) tensor is held."""
    B, N = elements.shape[:2]  # noqa: N806
    rows = max(1, _ROWS // (B * N * group.matrix_dim**2))
    blocks = [
        group.distance(
            elements[:, i : i + rows, None], elements[:, None], orbits[:, i : i + rows, None], orbits[:, None]
        )
        for i in range(0, N, rows)
    ]
    return torch.cat(blocks, dim=1)
