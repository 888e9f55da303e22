r"""The neighbourhoods of every point, with a window that closes smoothly at the edge.

A hard cut at the k-th neighbour makes the output jump whenever two points are equally far, which on a
lattice is the rule: rounding then decides who belongs, and equivariance is lost. So neighbour j of i counts
with :math:`w_{ij} = (1 - d_{ij}^2 / r_i^2)^2`, which vanishes at the radius r: the distance of the first point
outside, or a given radius where that is smaller. Whoever is tied there counts nothing, whichever is chosen. Where a
sample has no point outside, every weight is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.lifts import ElementLift, Lift
from lieconv.geometry.periodic import nearest_images
from lieconv.geometry.search import Space, ball_radius, nearest, random_within

_ROWS = 1 << 22  # group elements compared at once where a group has no Euclidean space to search


@dataclass(frozen=True)
class Neighbourhoods:
    """Who is near whom.

    Fields:
        indices: neighbours of each of M points among P sources, (M, k).
        weights: their window weights, zero where there is none, summing to 1 for a valid point, (M, k).
        offsets: neighbour minus point, under the minimum image where a cell repeats, (M, k, d).
        squared: squared distances in the metric of the lift, (M, k).
        squared_radius: of the window, (M, 1).
    """

    indices: Int[Tensor, "M k"]
    weights: Float[Tensor, "M k"]
    offsets: Float[Tensor, "M k d"]
    squared: Float[Tensor, "M k"]
    squared_radius: Float[Tensor, "M 1"]


def gather(values: Float[Tensor, "P *c"], indices: Int[Tensor, "M k"]) -> Float[Tensor, "M k *c"]:
    """``values[indices]``, by one index_select, whose gradient is one index_add."""
    return values.index_select(0, indices.flatten()).view(*indices.shape, *values.shape[1:])


def find_neighbours(
    lift: Lift,
    sources: Cloud,
    targets: Cloud,
    num_neighbors: int,
    *,
    radius: Float[Tensor, ""] | None = None,
    at_random: bool = False,
    elements: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    quadrature: Float[Tensor, " P"] | None = None,
    generator: torch.Generator | None = None,
) -> Neighbourhoods:
    """The neighbours of ``targets`` among ``sources``.

    Args:
        lift: says where neighbours are sought and how far two points are apart.
        sources, targets: points; the same cloud where points look for each other.
        num_neighbors: at most so many; the window closes at the next one.
        radius: no neighbour is further away than this; None for no such limit.
        at_random: with a radius, draw the neighbours uniformly from the ball instead of taking the nearest.
        elements: group elements and orbit ids of the sources and of the targets, where distances are a group's own.
        quadrature: how much each source counts, not negative, (P,); None counts all alike.
        generator: of the random choice.
    """
    embedded = lift.embedding(sources), lift.embedding(targets)
    ours, theirs = (Space(e, c.mask, c.sample, c.shape) for e, c in zip(embedded, (sources, targets), strict=True))
    on_group = lift if isinstance(lift, ElementLift) and lift.searched_on_group else None
    images = None
    k = num_neighbors if at_random else num_neighbors + 1
    if sources.cell is not None:
        indices, found, images = nearest_images(sources, targets, k)
    elif on_group is not None:
        assert elements is not None
        indices, found = _nearest_on_group(on_group, sources, targets, *elements, k)
    elif at_random:
        assert radius is not None
        indices, found = random_within(ours, theirs, radius, k, generator)
    else:
        indices, found = nearest(ours, theirs, k)
    offsets = gather(sources.coords, indices) - targets.coords.unsqueeze(1)  # (M, k, d)
    if images is not None and sources.cell is not None:
        offsets = offsets + (images.unsqueeze(-2) @ sources.cell[targets.sample].unsqueeze(1)).squeeze(-2)
    if on_group is not None:
        assert elements is not None
        (v, r), (u, q) = elements
        there = gather(v, indices), gather(r, indices)
        squared = on_group.group.distance(u.unsqueeze(1), there[0], q.unsqueeze(1), there[1]).square()
    else:
        squared = lift.squared(embedded[1].unsqueeze(1), gather(embedded[0], indices), offsets)
    weights, squared_radius = _window(squared, found, num_neighbors, radius, at_random)
    kept = weights.shape[1]
    if quadrature is not None:
        weights = weights * gather(quadrature, indices[:, :kept])
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total > 0, total, torch.ones_like(total)) * targets.mask.unsqueeze(-1)
    return Neighbourhoods(indices[:, :kept], weights, offsets[:, :kept], squared[:, :kept], squared_radius)


def _window(
    squared: Tensor, found: Bool[Tensor, "M k"], num_neighbors: int, radius: Tensor | None, at_random: bool
) -> tuple[Tensor, Tensor]:
    """Window weights, not normalised, of the first ``num_neighbors`` columns, and the squared radius (M, 1)."""
    k = num_neighbors if at_random or squared.shape[1] > num_neighbors else squared.shape[1]
    inside, valid = squared[:, :k], found[:, :k]
    within = torch.where(found, squared, torch.zeros_like(squared))
    farthest = within.amax(-1, keepdim=True) if squared.shape[1] else squared.new_zeros(len(squared), 1)
    crowded = torch.zeros_like(found[:, :1]) if at_random else found[:, k:].any(-1, keepdim=True)
    if radius is None:
        # The first point outside sets the radius; without one, twice the farthest point inside serves as a scale.
        limit, closes = torch.where(crowded, farthest, 2.0 * farthest), crowded & (farthest > 0)
    else:
        ball = radius.square().expand_as(farthest)
        limit = torch.where(crowded, torch.minimum(farthest, ball), ball)
        closes = torch.ones_like(crowded)
    # Coincident points at radius zero, and samples that fit inside, are weighted equally.
    limit = torch.where(limit > 0, limit, torch.ones_like(limit))
    window = (1.0 - inside / limit).clamp(min=0.0).square()
    return torch.where(closes, window, torch.ones_like(window)) * valid, limit


def _nearest_on_group(
    lift: ElementLift,
    sources: Cloud,
    targets: Cloud,
    source_elements: tuple[Tensor, Tensor],
    target_elements: tuple[Tensor, Tensor],
    k: int,
) -> tuple[Tensor, Tensor]:
    """The nearest by the group's own distance, a block of rows at a time: no (M, P, dim) tensor is held."""
    with torch.no_grad():
        (v, r), (u, q) = source_elements, target_elements
        rows = max(1, _ROWS // max(1, len(v) * lift.group.matrix_dim**2))
        indices, found = [], []
        count = min(k, len(v))
        for start in range(0, len(u), rows):
            part = slice(start, start + rows)
            distance = lift.group.distance(u[part, None], v[None], q[part, None], r[None])
            other = (targets.sample[part].unsqueeze(1) != sources.sample) | ~sources.mask
            best, columns = distance.masked_fill(other, torch.inf).topk(count, dim=-1, largest=False)
            exists = torch.isfinite(best)
            columns = torch.where(exists, columns, torch.zeros_like(columns))
            indices.append(torch.nn.functional.pad(columns, (0, k - count)))
            found.append(torch.nn.functional.pad(exists, (0, k - count)))
        if not indices:
            none = torch.zeros(0, k, dtype=torch.long, device=v.device)
            return none, none.bool()
        return torch.cat(indices), torch.cat(found)


def fill_radius(lift: Lift, sources: Cloud, fraction: float) -> Float[Tensor, ""]:
    """The radius of a ball that holds ``fraction`` of the points of a sample, on average over points."""
    return ball_radius(Space(lift.embedding(sources), sources.mask, sources.sample, sources.shape), fraction)
