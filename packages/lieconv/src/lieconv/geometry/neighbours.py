r"""The neighbourhoods of every point, with a window that closes smoothly at the edge.

A hard cut at the k-th neighbour makes the output jump whenever two points are equally far, which on a
lattice is the rule: rounding then decides who belongs, and equivariance is lost. So neighbour j of i counts
with :math:`w_{ij} = (1 - d_{ij}^2 / r_i^2)^2`, which vanishes at the radius r: the distance of the first point
outside, or a given radius where that is smaller. Points tied at the radius get weight zero, so it does not matter which
are kept. Where a sample has no point outside, every weight is 1.

The weights of a point are divided by their sum S, as long as that is at least 1, which a point that is its own
neighbour guarantees; below, by (1 + S^2) / 2, so that a query that loses its last neighbour fades to zero.

With a given radius that holds no more than the wanted number of points, and in a sample that fits inside, all of this
is continuously differentiable in the points. A radius set by the first point outside is not: its slope changes whenever
another point becomes the first. Where forces are wanted, such neighbourhoods are refused (``smooth``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.cloud import Cloud, plain_values
from lieconv.geometry.metric import Metric
from lieconv.geometry.periodic import check_one_image, nearest_images
from lieconv.geometry.search import Space, ball_radius, nearest, random_within

_ROWS = 1 << 22  # group elements compared at once where a group has no Euclidean space to search


@dataclass(frozen=True)
class Neighbourhoods:
    """k-nearest-neighbour lists with smooth cutoff weights.

    Fields:
        indices: neighbours of each of M points among P sources, (M, k).
        weights: their window weights, zero where there is none, summing to 1 for a valid point, (M, k).
        offsets: neighbour minus point, under the minimum image where a cell repeats, (M, k, d).
        squared: squared distances in the metric of the lift, (M, k).
        squared_radius: of the window, (M, 1).
        squared_scale: square of a length of each neighbourhood that is smooth wherever the weights are, (M, 1): the
            given radius; without one three times the mean squared distance, which in a homogeneous ball is the squared
            radius, and `Metric.squared_floor` more; in a crowd the window's radius.
    """

    indices: Int[Tensor, "M k"]
    weights: Float[Tensor, "M k"]
    offsets: Float[Tensor, "M k d"]
    squared: Float[Tensor, "M k"]
    squared_radius: Float[Tensor, "M 1"]
    squared_scale: Float[Tensor, "M 1"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The fields, in order."""
        return (self.indices, self.weights, self.offsets, self.squared, self.squared_radius, self.squared_scale)

    def rows(self, index: Int[Tensor, " M"], mask: Bool[Tensor, " M"]) -> Neighbourhoods:
        """The neighbourhoods of the points with these numbers; those outside of the mask get weight zero."""
        indices, weights, *others = (x.index_select(0, index) for x in self.tensors)
        return Neighbourhoods(indices, weights * mask.unsqueeze(-1), *others)

    def repeated(self, copies: int, step: int) -> Neighbourhoods:
        """The neighbourhoods of ``copies`` samples of ``step`` sources, all equal to this one sample's."""
        if copies == 1:
            return self
        block = torch.arange(copies, device=self.indices.device).repeat_interleave(len(self.indices))
        indices, *others = (x.repeat(copies, *([1] * (x.ndim - 1))) for x in self.tensors)
        return Neighbourhoods(indices + block.unsqueeze(1) * step, *others)


def gather(values: Float[Tensor, "P *c"], indices: Int[Tensor, "M k"]) -> Float[Tensor, "M k *c"]:
    """``values[indices]``, by one index_select, whose gradient is one index_add."""
    return values.index_select(0, indices.flatten()).view(*indices.shape, *values.shape[1:])


def find_neighbours(
    metric: Metric,
    sources: Cloud,
    targets: Cloud,
    num_neighbors: int,
    *,
    radius: Float[Tensor, ""] | None = None,
    at_random: bool = False,
    smooth: bool = False,
    elements: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    quadrature: Float[Tensor, " P"] | None = None,
    generator: torch.Generator | None = None,
) -> Neighbourhoods:
    """The neighbours of ``targets`` among ``sources``.

    Args:
        metric: says where neighbours are sought and how far two points are apart.
        sources, targets: points; the same cloud where points look for each other.
        num_neighbors: at most so many; the window closes at the next one.
        radius: no neighbour is further away than this; None for no such limit.
        at_random: with a radius, draw the neighbours uniformly from the ball instead of taking the nearest.
        smooth: raise where points within the radius (any, without one) are left out for want of ``num_neighbors``, or
            where a radius reaches two images of one point.
        elements: group elements and orbit ids of the sources and of the targets, where distances are a group's own.
        quadrature: how much each source counts, not negative, (P,); None counts all alike.
        generator: of the random choice.
    """
    embedded = metric.embedding(sources), metric.embedding(targets)
    source_space, target_space = (
        Space(points, cloud.mask, cloud.sample, cloud.shape)
        for points, cloud in zip(embedded, (sources, targets), strict=True)
    )
    group, images = metric.search_group, None
    k = num_neighbors if at_random else num_neighbors + 1  # one more, whose distance closes the window
    if sources.cell is not None:
        indices, exists, images = nearest_images(sources, targets, k)
    elif group is not None:
        assert elements is not None
        indices, exists = _nearest_on_group(group, sources, targets, *elements, k)
    elif at_random:
        assert radius is not None
        indices, exists = random_within(source_space, target_space, radius, k, generator)
    else:
        indices, exists = nearest(source_space, target_space, k)
    # A place without a neighbour has weight zero, but zero times what another sample holds may be NaN: it points to the
    # nearest instead, which comes first.
    indices = torch.where(exists, indices, indices[:, :1])
    offsets = gather(sources.coords, indices) - targets.coords.unsqueeze(1)  # (M, k, d)
    if images is not None and sources.cell is not None:
        offsets = offsets + (images.unsqueeze(-2) @ sources.cell[targets.sample].unsqueeze(1)).squeeze(-2)
    if group is not None:
        assert elements is not None
        (v, r), (u, q) = elements
        near, near_orbits = gather(v, indices), gather(r, indices)
        squared = group.distance(u.unsqueeze(1), near, q.unsqueeze(1), near_orbits).square()
    else:
        squared = metric.squared(embedded[1].unsqueeze(1), gather(embedded[0], indices), offsets)
    window = _window(squared, exists, num_neighbors, radius, at_random, metric.squared_floor)
    if smooth and (sources.shape is None or sources.shape[1] > num_neighbors):
        _check_complete(window.cut & targets.mask.unsqueeze(-1), targets, num_neighbors, radius)
    if smooth and sources.cell is not None:
        check_one_image(sources.cell, radius)
    weights = window.weights
    k = weights.shape[1]
    if quadrature is None:
        weights = weights / _smooth_total(weights.sum(-1, keepdim=True))
    else:
        counts = gather(quadrature, indices[:, :k])
        total = (weights * (counts > 0)).sum(-1, keepdim=True)
        weights = weights * counts
        mass = weights.sum(-1, keepdim=True)
        weights = weights / torch.where(mass > 0, mass, torch.ones_like(mass)) * (total / _smooth_total(total))
    weights = weights * targets.mask.unsqueeze(-1)
    return Neighbourhoods(
        indices[:, :k], weights, offsets[:, :k], squared[:, :k], window.squared_radius, window.squared_scale
    )


def _check_complete(cut: Tensor, targets: Cloud, num_neighbors: int, radius: Tensor | None) -> None:
    """Raise where neighbours were left out of a geometry that should be smooth."""
    if cut.numel() == 0:
        return
    where = "" if radius is None else " within the radius"
    remedy = "give a radius, or more num_neighbors" if radius is None else "use more num_neighbors or a smaller radius"
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        torch.ops.aten._assert_async.msg(
            ~cut.any(), f"forces jump: points have over {num_neighbors} neighbours{where}; {remedy}"
        )
        return
    values = plain_values(cut)
    if values is None:
        raise ValueError(
            "whether neighbours are left out, which makes forces jump, cannot be seen under vmap; give "
            "num_neighbors of at least the number of points, or one batch in place of vmap"
        )
    if bool(values.any()):
        place = int(values.flatten().nonzero()[0])
        sample, point = int(targets.sample[place]), place
        if targets.shape is not None:
            point = place % max(1, targets.shape[1])
        raise ValueError(
            f"expected at most {num_neighbors} neighbours{where}, since forces jump where others are left out; point "
            f"{point} of sample {sample} has more: {remedy}"
        )


def _smooth_total(total: Float[Tensor, "M 1"]) -> Float[Tensor, "M 1"]:
    """The sum of window weights from 1 on, and from there down to 1/2 at zero, continuously differentiable."""
    return torch.where(total < 1.0, 0.5 * (1.0 + total.square()), total)


@dataclass(frozen=True)
class _Window:
    """Window weights, not normalised, of the first ``num_neighbors`` columns; radius and scale as of `Neighbourhoods`.

    ``cut`` (M, 1): whether points within the radius (any, without one) are left out.
    """

    weights: Tensor
    squared_radius: Tensor
    squared_scale: Tensor
    cut: Tensor


def _window(
    squared: Tensor,
    exists: Bool[Tensor, "M k"],
    num_neighbors: int,
    radius: Tensor | None,
    at_random: bool,
    squared_floor: float,
) -> _Window:
    k = num_neighbors if at_random or squared.shape[1] > num_neighbors else squared.shape[1]
    inside, valid = squared[:, :k], exists[:, :k]
    within = torch.where(exists, squared, torch.zeros_like(squared))
    farthest = within.amax(-1, keepdim=True) if squared.shape[1] else squared.new_zeros(len(squared), 1)
    crowded = torch.zeros_like(exists[:, :1]) if at_random else exists[:, k:].any(-1, keepdim=True)
    ball = None if radius is None else radius.square().expand_as(farthest)
    if ball is None:
        # The first point outside sets the radius; without one, twice the farthest point inside.
        limit, closes = torch.where(crowded, farthest, 2.0 * farthest), crowded & (farthest > 0)
        # A mean is smooth where a maximum is not: when the two farthest points change places.
        mean = within.sum(-1, keepdim=True) / exists.sum(-1, keepdim=True).clamp(min=1)
        scale = torch.where(crowded, farthest, 3.0 * mean) + squared_floor
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        cut = crowded
    else:
        limit = torch.where(crowded, torch.minimum(farthest, ball), ball)
        closes = torch.ones_like(crowded)
        scale = torch.where(ball > 0, ball, torch.ones_like(ball))
        cut = crowded & (farthest < ball)
    # Coincident points at radius zero, and samples that fit inside, are weighted equally.
    limit = torch.where(limit > 0, limit, torch.ones_like(limit))
    window = (1.0 - inside / limit).clamp(min=0.0).square()
    if ball is not None:  # zero where its square is below the smallest number: only coincident points are within
        window = torch.where(ball > 0, window, (inside == 0).to(window.dtype))
    weights = torch.where(closes, window, torch.ones_like(window)) * valid
    return _Window(weights, limit, scale, cut)


def _nearest_on_group(
    group: LieGroup,
    sources: Cloud,
    targets: Cloud,
    source_elements: tuple[Tensor, Tensor],
    target_elements: tuple[Tensor, Tensor],
    k: int,
) -> tuple[Tensor, Tensor]:
    """The nearest by the group's own distance, a block of rows at a time: no (M, P, dim) tensor is held."""
    with torch.no_grad():
        (v, r), (u, q) = source_elements, target_elements
        rows = max(1, _ROWS // max(1, len(v) * group.matrix_dim**2))
        indices, exists = [], []
        count = min(k, len(v))
        for start in range(0, len(u), rows):
            part = slice(start, start + rows)
            distance = group.distance(u[part, None], v[None], q[part, None], r[None])
            other = (targets.sample[part].unsqueeze(1) != sources.sample) | ~sources.mask
            best, columns = distance.masked_fill(other, torch.inf).topk(count, dim=-1, largest=False)
            finite = torch.isfinite(best)
            columns = torch.where(finite, columns, torch.zeros_like(columns))
            indices.append(torch.nn.functional.pad(columns, (0, k - count)))
            exists.append(torch.nn.functional.pad(finite, (0, k - count)))
        if not indices:
            none = torch.zeros(0, k, dtype=torch.long, device=v.device)
            return none, none.bool()
        return torch.cat(indices), torch.cat(exists)


def fill_radius(metric: Metric, sources: Cloud, fraction: float) -> Float[Tensor, ""]:
    """The radius of a ball that holds ``fraction`` of the points of a sample, on average over points."""
    return ball_radius(Space(metric.embedding(sources), sources.mask, sources.sample, sources.shape), fraction)
