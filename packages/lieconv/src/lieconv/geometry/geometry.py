"""From points to neighbourhoods on the group: who is near whom, with which relative element.

A `Geometry` knows no channel. It is computed once and shared by every layer of one resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lie.groups import LieGroup, affine_structure
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from lieconv.geometry.cloud import Cloud, cloud_of, plain_values
from lieconv.geometry.frames import local_frames
from lieconv.geometry.lifts import (
    AxesLift,
    Coordinates,
    ElementLift,
    FrameLift,
    Lift,
    LiftName,
    check_flags,
    check_generator,
    check_numbers,
    frame_structure,
    make_lift,
)
from lieconv.geometry.neighbours import Neighbourhoods, fill_radius, find_neighbours, gather


@dataclass(frozen=True)
class Geometry:
    """Neighbourhoods of M points among P sources, and their kernel coordinates.

    All points of a batch lie along one axis. With sampled lifts a source or point is one of the elements of a point.

    Fields:
        indices: neighbours of each point among the sources, (M, k).
        weights: their window weights, which sum to 1 (0 for padding), (M, k).
        kernel_coords: invariant coordinates of each pair, (M, k, c).
        offsets: neighbour minus point, (M, k, d); turns with the points.
        positions: the points as seen from the centre of their sample, or from the origin where the group keeps it,
            (M, d); turns with the points. Zero in a periodic cell, which has no centre.
        mask, source_mask: which points and which sources are valid, (M,) and (P,).
        sample: to which sample each point belongs, (M,).
        targets: where the points are among the sources, (M,); None where they are the sources, in order.
        count: number of samples.
        shape: (B, N) of the points of a padded batch, None of a ragged one.
        num_samples: group elements a point.
        source_shape: (B, N) of the sources of a padded batch, None of a ragged one.
        full, source_full: whether all points and all sources are known to be valid.
    """

    indices: Int[Tensor, "M k"]
    weights: Float[Tensor, "M k"]
    kernel_coords: Float[Tensor, "M k c"]
    offsets: Float[Tensor, "M k d"]
    positions: Float[Tensor, "M d"]
    mask: Bool[Tensor, " M"]
    source_mask: Bool[Tensor, " P"]
    sample: Int[Tensor, " M"]
    targets: Int[Tensor, " M"] | None
    count: int
    shape: tuple[int, int] | None
    num_samples: int = 1
    source_shape: tuple[int, int] | None = None
    full: bool = False
    source_full: bool = False

    def spread(self, values: Float[Tensor, "*copies P C"]) -> Float[Tensor, "*copies PK C"]:
        """Values of the sources repeated for the elements of each, a sample axis flattened if there is one."""
        return values if self.num_samples == 1 else values.repeat_interleave(self.num_samples, dim=-2)

    def gather_samples(self, values: Float[Tensor, "*copies MK C"]) -> Float[Tensor, "*copies M C"]:
        """Mean over the elements of each point."""
        return values if self.num_samples == 1 else values.unflatten(-2, (-1, self.num_samples)).mean(-2)

    def at_targets(self, values: Float[Tensor, "*copies P C"]) -> Float[Tensor, "*copies M C"]:
        """Values of the sources at the points of this geometry.

        Raises:
            ValueError: where the points are not among the sources.
        """
        if self.targets is None:
            return values
        if not self.targets.numel() and self.mask.numel():
            raise ValueError("the points of this geometry are not among its sources")
        return values.index_select(-2, self.targets)

    def restricted(
        self,
        targets: Int[Tensor, " M"],
        *,
        target_shape: tuple[int, int] | None = None,
        target_mask: Bool[Tensor, " M"] | None = None,
    ) -> Geometry:
        """The neighbourhoods of some of the points alone; arguments as of `build_geometry`, of which it is a part.

        Raises:
            ValueError: where the points of this geometry are not its sources.
        """
        if self.targets is not None:
            raise ValueError("expected a geometry whose points are its sources")
        K = self.num_samples
        _check_targets(targets, self.mask.shape[0] // K)
        copies = 1 if target_shape is None or self.shape is None else self.shape[0] // max(1, target_shape[0])
        copies = max(1, copies)  # of no samples
        rows = _element_rows(_repeated_index(targets, copies, self.mask.shape[0] // (K * copies)), K)
        mask = self.mask[rows]
        if target_mask is not None:
            mask = mask & target_mask.repeat(copies).repeat_interleave(K)
        tensors = (self.indices, self.weights, self.kernel_coords, self.offsets, self.positions)
        indices, weights, kernel_coords, offsets, positions = (x.index_select(0, rows) for x in tensors)
        return Geometry(
            indices,
            weights * mask.unsqueeze(-1),
            kernel_coords,
            offsets,
            positions * mask.unsqueeze(-1),
            mask,
            self.source_mask,
            self.sample[rows],
            rows,
            self.count,
            None if target_shape is None else (copies * target_shape[0], K * target_shape[1]),
            K,
            self.source_shape,
            self.full and target_mask is None,
            self.source_full,
        )


def _element_rows(points: Int[Tensor, " M"], num_samples: int) -> Int[Tensor, " MK"]:
    """Rows of the elements of points."""
    if num_samples == 1:
        return points
    return (points.unsqueeze(1) * num_samples + torch.arange(num_samples, device=points.device)).flatten()


def _flatten(geometry: Geometry) -> tuple[list[Any], tuple[Any, ...]]:
    return [getattr(geometry, name) for name in _TENSORS], tuple(getattr(geometry, name) for name in _REST)


def _unflatten(tensors: Any, rest: tuple[Any, ...]) -> Geometry:
    return Geometry(**dict(zip((*_TENSORS, *_REST), (*tensors, *rest), strict=True)))


_TENSORS = ("indices", "weights", "kernel_coords", "offsets", "positions", "mask", "source_mask", "sample", "targets")
_REST = ("count", "shape", "num_samples", "source_shape", "full", "source_full")
register_pytree_node(Geometry, _flatten, _unflatten, serialized_type_name="lieconv.geometry.Geometry")


def kernel_dim(group: LieGroup, lift: LiftName = "exact", coordinates: Coordinates = "auto") -> int:
    """Number of kernel coordinates of `build_geometry` for a group, a lift and a choice of coordinates."""
    return make_lift(group, lift, coordinates, 1).dim


def build_geometry(
    group: LieGroup,
    coords: Float[Tensor, "B N d"] | Float[Tensor, "P d"],
    mask: Bool[Tensor, "*points"] | None = None,
    *,
    num_neighbors: int = 32,
    radius: float | Float[Tensor, ""] | None = None,
    fill: float | None = None,
    at_random: bool = False,
    smooth: bool = False,
    lift: LiftName = "exact",
    coordinates: Coordinates = "auto",
    num_samples: int = 1,
    frame_features: Float[Tensor, "*points 2"] | None = None,
    queries: Float[Tensor, "*queries d"] | None = None,
    query_mask: Bool[Tensor, "*queries"] | None = None,
    targets: Int[Tensor, " M"] | None = None,
    target_shape: tuple[int, int] | None = None,
    target_mask: Bool[Tensor, " M"] | None = None,
    batch: Int[Tensor, " P"] | None = None,
    query_batch: Int[Tensor, " M"] | None = None,
    cell: Float[Tensor, "*batch d d"] | None = None,
    quadrature: Float[Tensor, "*points"] | None = None,
    elements: tuple[Float[Tensor, "PK m m"], Float[Tensor, "PK q"]] | None = None,
    generator: torch.Generator | None = None,
) -> Geometry:
    """Lift the points to the group and find the neighbours and relative elements of each.

    Args:
        group: acts on points of dimension d.
        coords: points (B, N, d), or (P, d) with ``batch``.
        mask: valid points, of the shape of the points without d; None means all.
        num_neighbors: at most so many neighbours a point, itself included; the window closes at the next one.
        radius: no neighbour is further away; a length where the group preserves lengths.
        fill: in place of a radius, the fraction of a sample's points that a ball should hold (the paper's): the
            radius is the average over the points of this batch.
        at_random: with a radius or fill, draw the neighbours uniformly from the ball (the paper's training) instead of
            taking the nearest.
        smooth: refuse neighbourhoods that do not depend on the points in a continuously differentiable way, as forces
            need: where ``num_neighbors`` leaves out points within the radius (any, without a radius), and where a
            radius in a periodic cell reaches two images of one point. An accelerator is waited for.
        lift: ``"exact"``: every output is exactly equivariant. ``"sampled"``: the paper's: elements drawn uniformly
            from each point's coset; equivariant in expectation. See `lieconv.geometry.lifts`.
        coordinates: what the kernel sees of a pair: ``"invariants"`` (exact lift, the default where the group is made
            of translations, turns and dilations), ``"log"`` of the relative element (the paper's, default of the
            sampled lift; it jumps at half turns), or its ``"entries"``.
        num_samples: elements a point; only for ``"sampled"``.
        frame_features: invariant features that weigh the neighbours in the frames; None means ones.
        queries: points at which to evaluate, (B, M, d) or (M, d) with ``query_batch``; None evaluates at the points.
        query_mask: valid queries.
        targets: in place of queries, numbers of the points at which to evaluate, (M,), as `farthest_points` gives.
        target_shape, target_mask: (B, M') of padded targets, and which of them are valid.
        batch, query_batch: sample of each point of a ragged batch; integers from 0 that do not fall.
        cell: vectors of a periodic cell as rows, (d, d) or (B, d, d), for groups that preserve lengths.
        quadrature: how much each point counts, not negative, of the shape of the points: 1 / density makes the sum
            over unevenly sampled points stand for an integral (see `lieconv.geometry.density_weights`).
        elements: group elements and orbit ids of the points where they are known already (``num_samples`` of each point
            after one another), as `lifted_elements` gives: the layers of a coarser resolution keep those of the finer.
        generator: source of randomness of ``"sampled"`` and ``at_random``.

    Raises:
        ValueError: for wrong shapes, non-finite valid coordinates, fewer than one neighbour or sample, a group without
            an exact lift, a radius that is not positive, a cell or radius with a group that does not preserve lengths;
            with ``smooth``, for neighbourhoods that are not.
        TypeError: for coordinates that are not floating-point or a mask that is not boolean.
    """
    made = make_lift(group, lift, coordinates, num_samples)
    if queries is None and (query_mask is not None or query_batch is not None):
        raise ValueError("expected queries beside query_mask or query_batch, got none")
    if targets is None and (target_shape is not None or target_mask is not None):
        raise ValueError("expected targets beside target_shape or target_mask, got none")
    check_flags(at_random=at_random, smooth=smooth)
    check_generator(generator)
    check_neighbourhood(made, group, num_neighbors, radius, fill, at_random, cell)
    if smooth:
        check_smooth(made, group, radius, fill, at_random)
    sources = cloud_of(group, coords, mask, batch=batch, cell=cell)
    if isinstance(made, AxesLift) or (isinstance(made, FrameLift) and made.structure.dilation):
        _check_not_tiny(group, sources)
    if quadrature is not None:
        quadrature = check_quadrature(quadrature, sources)
    if fill is not None:
        radius = fill_radius(made, sources, fill)
    if radius is not None:
        if isinstance(radius, int | float) and float(radius) ** 2 >= torch.finfo(coords.dtype).max:
            raise ValueError(f"expected a radius whose square is a number in {coords.dtype}, got {radius}; use None")
        radius = torch.as_tensor(radius, dtype=coords.dtype, device=coords.device)
    search: dict[str, Any] = {
        "num_neighbors": num_neighbors,
        "radius": radius,
        "at_random": at_random,
        "smooth": smooth,
        "quadrature": quadrature,
        "generator": generator,
    }
    if frame_features is not None:
        _check_frame_features(frame_features, sources)
        _check_frame_shape(frame_features, sources)
    if elements is not None:
        _check_elements(elements, made, len(sources.coords))
    where = _targets(group, sources, queries, query_mask, query_batch, targets, target_shape, target_mask)
    centre = _centres(made, group, sources)
    if isinstance(made, ElementLift):
        return _element_geometry(made, sources, where, search, centre, elements)
    if isinstance(made, AxesLift):
        return _axes_geometry(made, sources, where, search, centre)
    return _frame_geometry(made, sources, where, search, centre, frame_features)


@dataclass(frozen=True)
class _Where:
    """The points at which to evaluate, as a cloud, and where they are among the sources."""

    cloud: Cloud
    targets: Tensor | None


def _targets(
    group: LieGroup,
    sources: Cloud,
    queries: Tensor | None,
    query_mask: Tensor | None,
    query_batch: Tensor | None,
    targets: Tensor | None,
    target_shape: tuple[int, int] | None,
    target_mask: Tensor | None,
) -> _Where:
    if queries is not None and targets is not None:
        raise ValueError("expected queries or targets, got both")
    if queries is not None:
        if (query_batch is None) != (sources.shape is not None):
            raise ValueError("expected queries of the layout of the points: a batch axis, or query_batch beside batch")
        cloud = cloud_of(group, queries, query_mask, batch=query_batch, name="queries")
        if cloud.count > sources.count or (cloud.shape is not None and cloud.count != sources.count):
            raise ValueError(f"expected queries for {sources.count} samples, got {cloud.count}")
        if queries.dtype != sources.coords.dtype:
            raise TypeError(f"expected queries of {sources.coords.dtype}, as the points, got {queries.dtype}")
        cloud = replace(cloud, count=sources.count)
        return _Where(cloud, targets=cloud.sample[:0])
    if targets is not None:
        _check_targets(targets, len(sources.coords))
        _check_target_layout(targets, target_shape, target_mask, sources)
        mask = sources.mask[targets] if target_mask is None else sources.mask[targets] & target_mask
        coords = sources.coords[targets]
        full = sources.full and target_mask is None
        cloud = Cloud(coords, mask, sources.sample[targets], sources.count, target_shape, full=full)
        return _Where(cloud, targets)
    return _Where(sources, None)


def _check_target_layout(targets: Tensor, shape: tuple[int, int] | None, mask: Tensor | None, sources: Cloud) -> None:
    """Raise where the shape or mask of targets is not of as many points, or a row is of another sample."""
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"expected a boolean target_mask, got {got}; use mask.bool()")
        if mask.shape != targets.shape:
            raise ValueError(f"expected target_mask of shape {tuple(targets.shape)}, got {tuple(mask.shape)}")
    if shape is None:
        return
    if len(shape) != 2 or shape[0] * shape[1] != len(targets) or shape[0] != sources.count:
        raise ValueError(
            f"expected target_shape of {sources.count} samples and {len(targets)} targets together, got {tuple(shape)}"
        )
    rows = torch.arange(shape[0], device=targets.device).repeat_interleave(shape[1])
    other = (sources.sample[targets] != rows) & sources.mask[targets]
    plain = plain_values(other if mask is None else other & mask) if targets.device.type == "cpu" else None
    if plain is not None and bool(plain.any()):
        place = int(plain.nonzero()[0])
        raise ValueError(f"expected the targets of sample b in row b, got one of another sample at place {place}")


def _check_targets(targets: Tensor, count: int) -> None:
    if not isinstance(targets, Tensor):
        raise TypeError(f"expected targets as a tensor, got {type(targets).__name__}; use torch.as_tensor")
    if targets.dtype not in (torch.int32, torch.int64) or targets.ndim != 1:
        raise TypeError(f"expected integer targets (M,), got {tuple(targets.shape)} of {targets.dtype}")
    plain = plain_values(targets) if targets.device.type == "cpu" else None
    if plain is not None and plain.numel() and not 0 <= int(plain.min()) <= int(plain.max()) < count:
        raise ValueError(
            f"expected targets from 0 to {count - 1}, numbers along the axis of all points, got "
            f"{int(plain.min())} to {int(plain.max())}"
        )


def _check_not_tiny(group: LieGroup, cloud: Cloud) -> None:
    """Raise where squares of all coordinates of a sample vanish: lengths are what a dilation leaves no unit for."""
    values = plain_values(cloud.coords) if cloud.coords.device.type == "cpu" else None
    if values is None or not values.numel():
        return
    limit = 1e3 * torch.finfo(values.dtype).tiny ** 0.5
    largest = values.new_zeros(cloud.count).scatter_reduce(0, cloud.sample, values.abs().amax(-1), "amax")
    tiny = (largest > 0) & (largest < limit)
    if bool(tiny.any()):
        raise ValueError(
            f"expected points above {limit:.0e} in {values.dtype}, whose squares are numbers, for {group!r}, got a "
            f"largest coordinate of {float(largest[tiny][0]):.0e} in sample {int(tiny.nonzero()[0])}; choose a smaller "
            "unit"
        )


def _check_frame_features(features: Tensor, sources: Cloud) -> None:
    if not isinstance(features, Tensor) or features.dtype != sources.coords.dtype:
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        if isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type):
            return
        raise TypeError(f"expected frame_features of {sources.coords.dtype}, as the points, got {got}")


def _check_frame_shape(features: Tensor, sources: Cloud) -> None:
    shape = tuple(features.shape)
    expected = (len(sources.coords), 2) if sources.shape is None else (*sources.shape, 2)
    shared = len(expected) == len(shape) == 3 and expected[0] == 1 and shape[1:] == expected[1:]
    if shape != expected and not shared:
        raise ValueError(f"expected frame_features (..., 2) of the points, {expected}, got {shape}")


def _check_elements(elements: tuple[Tensor, Tensor], lift: Lift, points: int) -> None:
    if not isinstance(lift, ElementLift):
        raise ValueError("the exact lift finds the elements of points itself; leave elements out")
    m, count = lift.group.matrix_dim, points * lift.num_samples
    shapes = [tuple(x.shape) for x in elements]
    if len(shapes) != 2 or shapes[0] != (count, m, m) or shapes[1][:-1] != (count,):
        raise ValueError(f"expected elements ({count}, {m}, {m}) and orbit ids ({count}, q), got {shapes}")


def _frame_geometry(
    lift: FrameLift,
    sources: Cloud,
    where: _Where,
    search: dict[str, Any],
    centre: Tensor,
    features: Tensor | None,
) -> Geometry:
    if features is not None:
        features = sources.flat(features)
    own, copies = where.cloud is sources, 1
    about_sources = lift.structure.rotations > 0 or lift.structure.dilation  # frames or sizes of all neighbours
    around = None
    if own or about_sources:
        around = find_neighbours(lift, sources, sources, **search)
    if own:
        near = around
    elif around is not None and where.targets is not None and where.targets.numel():
        near = _rows_of(around, where)
    else:
        near = find_neighbours(lift, sources, where.cloud, **search)
    assert near is not None
    around = near if around is None else around
    if features is not None and features.shape[0] != sources.coords.shape[0]:
        # One set of points, many sets of features: neighbours are found once, frames belong to each.
        copies = len(features) // len(sources.coords)
        near, around = (_repeated(x, copies, len(sources.coords)) for x in (near, around))
        sources, where = (
            _repeated_cloud(sources, copies),
            _Where(
                _repeated_cloud(where.cloud, copies),
                None if where.targets is None else _repeated_index(where.targets, copies, len(sources.coords)),
            ),
        )
        centre = centre.repeat(copies, 1)
    frames = None
    if lift.structure.rotations > 0 and not lift.about_centre:
        theirs = _frames(lift, sources, around, features)
        assert theirs is not None
        if own:
            mine = theirs
        elif where.targets is not None and where.targets.numel():
            mine = theirs.index_select(0, where.targets)
        else:
            mine = _frames(lift, where.cloud, near, features)
        assert mine is not None
        frames = mine, gather(theirs.mT.contiguous(), near.indices)
    size = None
    if lift.structure.dilation and not lift.about_centre:
        size = near.squared_scale.sqrt().unsqueeze(1), gather(around.squared_scale.sqrt(), near.indices)
    here = where.cloud.coords.unsqueeze(1)
    there = here + near.offsets if sources.cell is not None else gather(sources.coords, near.indices)
    coords = lift.pairs(here, there, near.offsets, near.squared, near.weights, frames, size)
    return _assembled(near, coords, sources, where, centre, 1)


def _axes_geometry(lift: AxesLift, sources: Cloud, where: _Where, search: dict[str, Any], centre: Tensor) -> Geometry:
    near = find_neighbours(lift, sources, where.cloud, **search)
    there = gather(sources.coords, near.indices)
    coords = lift.pairs(where.cloud.coords.unsqueeze(1), there, near.weights)
    return _assembled(near, coords, sources, where, centre, 1)


def _frames(lift: FrameLift, points: Cloud, near: Neighbourhoods, features: Tensor | None) -> Tensor | None:
    weighing = None if features is None else gather(features, near.indices)
    return local_frames(lift.structure, points.coords, near.offsets, near.weights, near.squared_scale, weighing)


def _element_geometry(
    lift: ElementLift,
    sources: Cloud,
    where: _Where,
    search: dict[str, Any],
    centre: Tensor,
    elements: tuple[Tensor, Tensor] | None,
) -> Geometry:
    K, generator = lift.num_samples, search["generator"]
    v = lift.elements(sources.coords, generator) if elements is None else elements
    if where.targets is not None and where.targets.numel():
        rows = _element_rows(where.targets, K)
        u = v[0][rows], v[1][rows]
    else:
        u = v if where.cloud is sources else lift.elements(where.cloud.coords, generator)
        rows = where.targets
    own = where.cloud is sources
    sources = _elements_of(sources, K)
    points = sources if own else _elements_of(where.cloud, K)
    if search["quadrature"] is not None:
        search = search | {"quadrature": search["quadrature"].repeat_interleave(K)}
    near = find_neighbours(lift, sources, points, elements=(v, u), **search)
    there = gather(v[0], near.indices), gather(v[1], near.indices)
    coords = lift.pairs((u[0].unsqueeze(1), u[1].unsqueeze(1)), there)
    return _assembled(near, coords, sources, _Where(points, rows), centre, K)


def lifted_elements(
    group: LieGroup, coords: Tensor, mask: Tensor | None, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Elements and orbit ids of all points, ``num_samples`` of each after one another, for `build_geometry`."""
    if mask is not None:
        coords = torch.where(mask.unsqueeze(-1), coords, torch.zeros_like(coords))
    return ElementLift(group, log=True, num_samples=num_samples).elements(coords.flatten(0, -2), generator)


def _elements_of(cloud: Cloud, count: int) -> Cloud:
    """The cloud with each point repeated for its elements."""
    if count == 1:
        return cloud
    shape = None if cloud.shape is None else (cloud.shape[0], cloud.shape[1] * count)
    coords, mask, sample = (x.repeat_interleave(count, dim=0) for x in (cloud.coords, cloud.mask, cloud.sample))
    return Cloud(coords, mask, sample, cloud.count, shape, cloud.cell, cloud.full)


def _assembled(
    near: Neighbourhoods, coords: Tensor, sources: Cloud, where: _Where, centre: Tensor, num_samples: int
) -> Geometry:
    points = where.cloud
    return Geometry(
        near.indices,
        near.weights,
        coords,
        near.offsets,
        _positions(points, sources, centre),
        points.mask,
        sources.mask,
        points.sample,
        where.targets,
        points.count,
        points.shape,
        num_samples,
        sources.shape,
        points.full,
        sources.full,
    )


def _positions(points: Cloud, sources: Cloud, centre: Tensor) -> Tensor:
    if sources.cell is not None:
        return torch.zeros_like(points.coords)
    return (points.coords - centre[points.sample]) * points.mask.unsqueeze(-1)


def _rows_of(near: Neighbourhoods, where: _Where) -> Neighbourhoods:
    assert where.targets is not None
    indices, weights, *rest = (x.index_select(0, where.targets) for x in near.tensors)
    return Neighbourhoods(indices, weights * where.cloud.mask.unsqueeze(-1), *rest)


def _repeated(near: Neighbourhoods, copies: int, step: int) -> Neighbourhoods:
    shift = torch.arange(copies, device=near.indices.device).repeat_interleave(len(near.indices)).unsqueeze(1) * step
    indices, *rest = (x.repeat(copies, *([1] * (x.ndim - 1))) for x in near.tensors)
    return Neighbourhoods(indices + shift, *rest)


def _repeated_cloud(cloud: Cloud, copies: int) -> Cloud:
    assert cloud.shape is not None and cloud.count == 1
    sample = torch.arange(copies, device=cloud.sample.device).repeat_interleave(len(cloud.sample))
    cell = None if cloud.cell is None else cloud.cell.repeat(copies, 1, 1)
    shape = (copies, cloud.shape[1])
    return Cloud(cloud.coords.repeat(copies, 1), cloud.mask.repeat(copies), sample, copies, shape, cell, cloud.full)


def _repeated_index(index: Tensor, copies: int, step: int) -> Tensor:
    if copies == 1 or not index.numel():
        return index
    return (torch.arange(copies, device=index.device).unsqueeze(1) * step + index).flatten()


def _centres(lift: Lift, group: LieGroup, cloud: Cloud) -> Float[Tensor, "B d"]:
    """The mean of the valid points of each sample along what translations move; zero across, and in a cell."""
    d = cloud.coords.shape[-1]
    zero = cloud.coords.new_zeros(cloud.count, d)
    structure = lift.structure if isinstance(lift, FrameLift) else _structure(group)
    if structure is None or not structure.translations or cloud.cell is not None:
        return zero
    valid = cloud.mask.unsqueeze(-1).to(cloud.coords.dtype)
    if cloud.shape is not None:
        B, N = cloud.shape
        total, number = (cloud.coords * valid).view(B, N, d).sum(1), valid.view(B, N, 1).sum(1)
    else:
        total = zero.index_add(0, cloud.sample, cloud.coords * valid)
        number = zero[:, :1].index_add(0, cloud.sample, valid)
    W = torch.tensor(structure.translations, dtype=zero.dtype, device=zero.device).view(-1, d)
    return total / number.clamp(min=1.0) @ W.mT @ W


def _structure(group: LieGroup):
    return affine_structure(group)


_NEIGHBOURS = 1 << 16  # memory is that times the points


def check_neighbourhood(
    lift: Lift,
    group: LieGroup,
    num_neighbors: int,
    radius: float | Tensor | None,
    fill: float | None,
    at_random: bool,
    cell: Tensor | None,
) -> None:
    """Raise where the choice of neighbours makes no sense, as `build_geometry` says."""
    check_numbers(num_neighbors=num_neighbors)
    if num_neighbors > _NEIGHBOURS:
        raise ValueError(f"expected num_neighbors of at most {_NEIGHBOURS}, got {num_neighbors}; use as many as points")
    for name, value in (("radius", radius), ("fill", fill)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | Tensor)):
            raise TypeError(f"expected a number as {name}, got {value!r}")
    if radius is not None and fill is not None:
        raise ValueError("expected a radius or a fill fraction, got both")
    if isinstance(radius, int | float) and not 0.0 < radius < float("inf"):
        raise ValueError(f"expected a positive radius, got {radius}")
    if isinstance(radius, Tensor):
        _check_radius(radius)
    if isinstance(fill, Tensor):
        raise TypeError("expected a number as fill, got a tensor; use float(fill)")
    if fill is not None and not 0.0 < fill <= 1.0:
        raise ValueError(f"expected a fill fraction above 0 and up to 1, got {fill}")
    limited = radius is not None or fill is not None
    if at_random and not limited:
        raise ValueError("a random choice of neighbours is from a ball: give a radius or a fill fraction")
    if limited and isinstance(lift, FrameLift) and lift.structure.dilation and lift.structure.translations:
        raise ValueError(f"{group!r} dilates lengths: use num_neighbors alone, which no dilation changes")
    if limited and isinstance(lift, ElementLift) and lift.searched_on_group and at_random:
        raise ValueError(f"{group!r} has no Euclidean distance to draw from a ball by; leave at_random out")
    if fill is not None and isinstance(lift, ElementLift) and lift.searched_on_group:
        raise ValueError(f"{group!r} has no Euclidean distance to measure a fill fraction by; give a radius")
    if cell is not None:
        if not group.isometric:
            raise ValueError(f"a periodic cell needs a group that preserves lengths, got {group!r}")
        structure = lift.structure if isinstance(lift, FrameLift) else _structure(group)
        if structure is not None and structure.rotations and not structure.moves_plane:
            raise ValueError(f"{group!r} turns about one fixed centre, which a periodic cell does not have")
        if at_random:
            raise ValueError("neighbours in a periodic cell are the nearest; leave at_random out")


def _check_radius(radius: Tensor) -> None:
    if radius.numel() != 1 or not radius.is_floating_point():
        raise TypeError(f"expected one floating-point number as radius, got {tuple(radius.shape)} of {radius.dtype}")
    values = plain_values(radius) if radius.device.type == "cpu" else None
    # Zero is the measured radius of sets of one point.
    if values is not None and not 0.0 <= float(values) < float("inf"):
        raise ValueError(f"expected a positive radius, got {float(values)}")


def check_smooth(
    lift: Lift, group: LieGroup, radius: float | Tensor | None, fill: float | None, at_random: bool
) -> None:
    """Raise where no choice of points makes a geometry continuously differentiable in them."""
    if at_random:
        raise ValueError("forces need neighbours that are not drawn at random; use at_random=False")
    if fill is not None:
        raise ValueError("forces need a length that depends on no other point, got a fill fraction; use radius")
    if isinstance(lift, ElementLift) and (not lift.exact or lift.log or frame_structure(group) is not None):
        raise ValueError(
            f"forces need kernel coordinates that are smooth in the points, which draws and logarithms are not; use "
            f"lift='exact' and coordinates='auto', got {group!r} without"
        )
    if isinstance(lift, AxesLift) and lift.kind != "invariants":
        raise ValueError("forces need kernel coordinates that are smooth across the axes; use coordinates='auto'")
    if radius is not None and (isinstance(lift, AxesLift) or (isinstance(lift, FrameLift) and lift.about_centre)):
        raise ValueError(
            f"{group!r} dilates lengths: near what it keeps, points within a radius have energies without a limit, and "
            "forces jump; leave radius out"
        )


def check_quadrature(quadrature: Tensor, cloud: Cloud) -> Tensor:
    """The weights of the points, flat; raises where they do not fit."""
    if not isinstance(quadrature, Tensor) or quadrature.is_complex():
        got = quadrature.dtype if isinstance(quadrature, Tensor) else type(quadrature).__name__
        raise TypeError(f"expected quadrature weights as a real tensor, got {got}; use torch.as_tensor")
    expected = cloud.shape if cloud.shape is not None else (len(cloud.coords),)
    if tuple(quadrature.shape) != tuple(expected):
        raise ValueError(f"expected quadrature weights of shape {tuple(expected)}, got {tuple(quadrature.shape)}")
    quadrature = quadrature.flatten().to(cloud.coords)
    if not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()):
        valid = quadrature.detach()[cloud.mask]
        if not bool((torch.isfinite(valid) & (valid >= 0)).all()):
            raise ValueError("expected quadrature weights that are finite and not negative")
    return torch.where(cloud.mask, quadrature, torch.zeros_like(quadrature))
