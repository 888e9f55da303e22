r"""Farthest-point sampling, and quadrature weights for unevenly sampled points.

Farthest-point sampling starts at the most isolated point (the one whose neighbourhood reaches furthest, which no motion
and no order of the points changes) and repeatedly adds the point furthest from all chosen ones. Distances that differ
by less than a part in 10^4 count as equal and the first point wins, so that on a lattice rounding decides nothing.
Points at the same place are chosen one after the other once every place has been; no point is chosen twice.
Distances to the chosen points are kept and updated: time is points times chosen points, memory linear. The first points
of a sample are well spread too, and what a further subsampling would choose.

Source: Gonzalez 1985, Clustering to minimize the maximum intercluster distance, Theoretical Computer Science 38.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.checks import check_flags, check_generator, check_group, check_numbers
from lieconv.geometry.cloud import Cloud, cloud_of, plain_values
from lieconv.geometry.element_lift import ElementLift
from lieconv.geometry.lift import Lift
from lieconv.geometry.lifts import make_lift
from lieconv.geometry.neighbours import find_neighbours
from lieconv.geometry.periodic import minimum_image_distances
from lieconv.geometry.search import numbers

_TIE = 1e-4


@torch.no_grad()
def farthest_points(
    group: LieGroup,
    coords: Tensor,
    mask: Tensor | None = None,
    *,
    fraction: float,
    batch: Tensor | None = None,
    cell: Tensor | None = None,
    at_random: bool = False,
    elements: tuple[Float[Tensor, "P m m"], Float[Tensor, "P q"]] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Well spread points of each sample, by distance on the group.

    Args:
        group: acts on the points; distances are those by which its neighbours are found.
        coords, mask, batch, cell: as of `build_geometry`; in a periodic cell distances are those of nearest images.
        fraction: of the valid points of each sample to keep, above 0 and up to 1; at least one point.
        at_random: start at a random point of each sample (for training) instead of the most isolated one.
        elements: group elements and orbit ids of the points where they are known already; used by groups whose own
            distance no Euclidean space has.
        generator: of the start, and of elements.

    Returns:
        Numbers of the chosen points along the axis of all points, (B * M,), M the most that a sample keeps; ``(B, M)``;
        and which are valid, (B * M,): samples with fewer points are filled up. As `build_geometry` takes them.

    Raises:
        ValueError: for a fraction outside of (0, 1].
    """
    check_fraction(fraction)
    check_group(group)
    check_flags(at_random=at_random)
    check_generator(generator)
    cloud = cloud_of(group, coords, mask, batch=batch, cell=cell)
    return farthest_of(group, cloud, fraction=fraction, at_random=at_random, elements=elements, generator=generator)


@torch.no_grad()
def farthest_of(
    group: LieGroup,
    cloud: Cloud,
    *,
    fraction: float,
    at_random: bool,
    elements: tuple[Tensor, Tensor] | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """`farthest_points` of points and options that are checked already."""
    lift = _search_lift(group)
    if lift.search_group is None:
        elements = None  # distances are those of an embedding
    elif elements is None:
        elements = lift.elements(cloud.coords, generator)
    place, valid = _padded(cloud)  # (B, N)
    B, N = place.shape
    if N == 0:
        return place.flatten(), (B, 0), valid.flatten()
    counts = valid.sum(1)
    wanted = _wanted(fraction, counts)
    most = max(1, math.ceil(fraction * N))
    if at_random:
        score = torch.rand(B, N, generator=generator, device=cloud.coords.device)
    else:
        pair = None if elements is None else (elements, elements)
        near = find_neighbours(lift, cloud, cloud, min(8, max(1, N - 1)), elements=pair)
        score = near.squared_radius.squeeze(-1)[place]
    first = _first_largest(score.masked_fill(~valid, -1.0))  # (B,)
    if elements is not None:
        index = _one_after_another(_on_group(group, *(x[place] for x in elements)), valid, first, most)
    else:
        points = lift.embedding(cloud).detach()[place]  # (B, N, e)
        index = _by_numbers(points, valid, first, most, cloud.cell)
        if index is None and cloud.cell is not None:
            raise ValueError(
                "farthest points in a cell need the numbers of the points, which vmap and compilers do not have"
            )
        if index is None:
            index = _one_after_another(_euclidean(points), valid, first, most)
    chosen = torch.arange(most, device=cloud.coords.device) < wanted.unsqueeze(1)
    return place.gather(1, index).flatten(), (B, most), chosen.flatten()


def check_fraction(fraction: float) -> None:
    """Raise where a fraction of points is not a number above 0 and up to 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(f"expected a number as fraction, got {fraction!r}")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"expected a fraction above 0 and up to 1, got {fraction}")


def first_points(
    shape: tuple[int, int], mask: Bool[Tensor, "B N"] | None, fraction: float, device: torch.device
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """`farthest_points` of points that it returned before: the first of them.

    Each is the furthest of all points from those before it, and so also the furthest of those that were kept.
    """
    B, N = shape
    most = min(N, max(1, math.ceil(fraction * N)))
    columns = torch.arange(most, device=device)
    index = (torch.arange(B, device=device) * N).unsqueeze(1) + columns
    counts = torch.full((B,), N, device=device) if mask is None else mask.sum(1)
    return index.flatten(), (B, most), (columns < _wanted(fraction, counts).unsqueeze(1)).flatten()


def _wanted(fraction: float, counts: Tensor) -> Tensor:
    return (fraction * counts.double()).ceil().long().clamp(min=1).minimum(counts)


Distances = Callable[[Tensor], Float[Tensor, "B N"]]  # of all points from one of each sample, by its number (B,)


def _euclidean(points: Float[Tensor, "B N e"]) -> Distances:
    return lambda chosen: (points - points.take_along_dim(chosen.view(-1, 1, 1), 1)).square().sum(-1)


def _on_group(group: LieGroup, u: Float[Tensor, "B N m m"], q: Float[Tensor, "B N o"]) -> Distances:
    def distances(chosen: Tensor) -> Tensor:
        v = u.take_along_dim(chosen.view(-1, 1, 1, 1), 1)
        return group.distance(u, v, q, q.take_along_dim(chosen.view(-1, 1, 1), 1))

    return distances


def _one_after_another(distances: Distances, valid: Tensor, chosen: Tensor, most: int) -> Int[Tensor, "B M"]:
    nearest, index = None, []
    for _ in range(most):
        index.append(chosen)
        distance = distances(chosen)
        nearest = distance if nearest is None else torch.minimum(nearest, distance)
        # Chosen points, and padding, come after points at distance zero from a chosen one.
        nearest = nearest.scatter(1, chosen.unsqueeze(1), -1.0)
        chosen = _first_largest(nearest.masked_fill(~valid, -1.0))
    return torch.stack(index, 1)


def _by_numbers(
    points: Tensor, valid: Tensor, first: Tensor, most: int, cell: Tensor | None
) -> Int[Tensor, "B M"] | None:
    """`_one_after_another` in numpy, whose many small steps take a tenth of the time of torch's on a CPU."""
    values = [plain_values(x) for x in (points, valid, first)]
    if any(x is None for x in values) or (points.device.type != "cpu" and cell is None):
        return None
    p, usable_points, start = (numbers(x) for x in (points, valid, first))
    cells = [None] * len(p) if cell is None else numbers(cell)
    index = np.empty((len(p), most), np.int64)
    for row, of_sample, usable, last, in_cell in zip(index, p, usable_points, start, cells, strict=True):
        _order(row, of_sample, usable, int(last), in_cell)
    return torch.from_numpy(index).to(points.device)


def _order(index: np.ndarray, p: np.ndarray, usable: np.ndarray, last: int, cell: np.ndarray | None) -> None:
    """Fill ``index`` with the order of the points (N, e) of one sample, from ``last`` on."""
    coordinates = np.ascontiguousarray(p.T)  # (e, N)
    difference, distance = np.empty_like(coordinates), np.empty_like(coordinates[0])
    in_cell = None if cell is None else minimum_image_distances(cell)
    nearest = np.where(usable, np.inf, -1.0).astype(p.dtype)
    for i in range(len(index)):
        index[i] = last
        np.subtract(coordinates, coordinates[:, last, None], out=difference)
        if in_cell is None:
            np.einsum("ij,ij->j", difference, difference, out=distance)
        else:
            distance[:] = in_cell(difference.T)
        np.minimum(nearest, distance, out=nearest)
        nearest[last] = -1.0  # after points at distance zero from a chosen one
        largest = nearest.max()
        last = int((nearest >= largest - _TIE * abs(largest)).argmax())


def _first_largest(score: Tensor) -> Tensor:
    """The first column of each row within `_TIE` of the largest."""
    largest = score.amax(1, keepdim=True)
    return (score >= largest - _TIE * largest.abs()).to(torch.uint8).argmax(1)


def _search_lift(group: LieGroup) -> Lift:
    try:
        return make_lift(group, "exact", "auto", 1)
    except ValueError:
        return ElementLift(group, log=True)


def _padded(cloud: Cloud) -> tuple[Tensor, Tensor]:
    """Numbers of the points of each sample, (B, N), and which are valid and no padding."""
    if cloud.shape is not None:
        place = torch.arange(len(cloud.coords), device=cloud.coords.device).view(cloud.shape)
        return place, cloud.mask[place]
    counts = cloud.sample.bincount(minlength=cloud.count)
    N = int(counts.max()) if len(counts) else 0
    column = torch.arange(max(N, 1), device=cloud.coords.device)
    place = (counts.cumsum(0) - counts).unsqueeze(1) + column
    usable = column < counts.unsqueeze(1)
    place = torch.where(usable, place, torch.zeros_like(place))
    return place, usable & cloud.mask[place]


def density_weights(
    group: LieGroup,
    coords: Tensor,
    mask: Tensor | None = None,
    *,
    num_neighbors: int = 8,
    batch: Tensor | None = None,
    cell: Tensor | None = None,
) -> Float[Tensor, "*points"]:
    """Quadrature weights of unevenly sampled points: the volume of the ball that reaches the ``num_neighbors``-th one.

    They are proportional to 1 / density, of mean 1 over the valid points of each sample, zero for padding, and
    unchanged when the group moves the points. Source: Loftsgaarden and Quesenberry 1965, Annals of Mathematical
    Statistics 36 (nearest-neighbour density estimate).

    Raises:
        ValueError: for a group that does not preserve lengths, or fewer than one neighbour.
    """
    check_group(group)
    if not group.isometric:
        raise ValueError(f"a density of points is a number a volume: expected a group that preserves it, got {group!r}")
    check_numbers(num_neighbors=num_neighbors)
    cloud = cloud_of(group, coords, mask, batch=batch, cell=cell)
    lift = _search_lift(group)
    reach = find_neighbours(lift, cloud, cloud, num_neighbors).squared_radius.squeeze(-1)
    volume = reach ** (0.5 * coords.shape[-1]) * cloud.mask
    zero = volume.new_zeros(cloud.count)
    total, count = zero.index_add(0, cloud.sample, volume), zero.index_add(0, cloud.sample, cloud.mask.to(volume.dtype))
    mean = total / count.clamp(min=1.0)
    weights = volume / torch.where(mean > 0, mean, torch.ones_like(mean))[cloud.sample]
    return weights.view(cloud.shape) if cloud.shape is not None else weights
