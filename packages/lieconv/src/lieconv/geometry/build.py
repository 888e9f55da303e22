"""Build a geometry: check points and options, find the targets, and let the lift of the group do the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from lie.groups import LieGroup, affine_structure
from torch import Tensor

from lieconv.geometry.checks import check_flags, check_generator, check_numbers
from lieconv.geometry.cloud import Cloud, chosen_points, cloud_of, plain_values
from lieconv.geometry.geometry import Geometry, check_targets
from lieconv.geometry.lift import Coordinates, Lift, LiftName
from lieconv.geometry.lifts import make_lift
from lieconv.geometry.neighbours import fill_radius
from lieconv.geometry.request import Request, Targets


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
        batch, query_batch: sample of each point of a ragged batch; integers from 0, non-decreasing.
        cell: vectors of a periodic cell as rows, (d, d) or (B, d, d), for groups that preserve lengths.
        quadrature: how much each point counts, not negative, of the shape of the points: 1 / density makes the sum
            over unevenly sampled points stand for an integral (see `lieconv.geometry.density_weights`).
        elements: group elements and orbit ids of the points, if you have them (``num_samples`` of each point after one
            another): the layers of a coarser resolution keep those of the finer.
        generator: source of randomness of ``"sampled"`` and ``at_random``.

    Raises:
        ValueError: for wrong shapes, non-finite valid coordinates, fewer than one neighbour or sample, a group without
            an exact lift, a radius that is not positive, a cell or radius with a group that does not preserve lengths;
            with ``smooth``, for neighbourhoods that are not.
        TypeError: for coordinates that are not floating-point or a mask that is not boolean.
    """
    point_lift = make_lift(group, lift, coordinates, num_samples)
    if queries is None and (query_mask is not None or query_batch is not None):
        raise ValueError("expected queries beside query_mask or query_batch, got none")
    if targets is None and (target_shape is not None or target_mask is not None):
        raise ValueError("expected targets beside target_shape or target_mask, got none")
    if queries is not None and targets is not None:
        raise ValueError("expected queries or targets, got both")
    check_flags(at_random=at_random, smooth=smooth)
    check_generator(generator)
    check_choice(point_lift, num_neighbors, radius, fill, at_random=at_random, smooth=smooth)
    if cell is not None:
        check_cell_group(group, at_random=at_random)
    sources = cloud_of(group, coords, mask, batch=batch, cell=cell)
    if frame_features is not None:
        _check_frame_features(frame_features, sources)
    if elements is not None:
        point_lift.check_elements(elements, len(sources.coords))
    if queries is not None:
        evaluated = _query_targets(group, sources, queries, query_mask, query_batch)
    elif targets is not None:
        _check_target_layout(targets, target_shape, target_mask, sources)
        evaluated = Targets(chosen_points(sources, targets, target_shape, target_mask), targets)
    else:
        evaluated = Targets(sources, None)
    return geometry_of(
        point_lift,
        sources,
        evaluated,
        num_neighbors=num_neighbors,
        radius=radius if fill is None else fill_radius(point_lift, sources, fill),
        at_random=at_random,
        smooth=smooth,
        quadrature=None if quadrature is None else check_quadrature(quadrature, sources),
        frame_features=None if frame_features is None else sources.flat(frame_features),
        elements=elements,
        generator=generator,
    )


def geometry_of(
    lift: Lift,
    sources: Cloud,
    targets: Targets,
    *,
    num_neighbors: int,
    radius: float | Float[Tensor, ""] | None,
    at_random: bool,
    smooth: bool,
    quadrature: Float[Tensor, " P"] | None,
    frame_features: Float[Tensor, "SP 2"] | None,
    elements: tuple[Tensor, Tensor] | None,
    generator: torch.Generator | None,
) -> Geometry:
    """The geometry of points and options that are checked already; arguments as of `Request`."""
    if lift.without_unit:
        _check_not_tiny(lift.group, sources)
    if radius is not None:
        dtype = sources.coords.dtype
        if isinstance(radius, int | float) and float(radius) ** 2 >= torch.finfo(dtype).max:
            raise ValueError(f"expected a radius whose square is a number in {dtype}, got {radius}; use None")
        radius = torch.as_tensor(radius, dtype=dtype, device=sources.coords.device)
    request = Request(
        sources=sources,
        targets=targets,
        centre=_centres(lift.group, sources),
        num_neighbors=num_neighbors,
        radius=radius,
        at_random=at_random,
        smooth=smooth,
        quadrature=quadrature,
        frame_features=frame_features,
        elements=elements,
        generator=generator,
    )
    return lift.geometry(request)


def _query_targets(
    group: LieGroup, sources: Cloud, queries: Tensor, mask: Tensor | None, batch: Tensor | None
) -> Targets:
    if (batch is None) != (sources.shape is not None):
        raise ValueError("expected queries of the layout of the points: a batch axis, or query_batch beside batch")
    cloud = cloud_of(group, queries, mask, batch=batch, name="queries")
    if cloud.count > sources.count or (cloud.shape is not None and cloud.count != sources.count):
        raise ValueError(f"expected queries for {sources.count} samples, got {cloud.count}")
    if queries.dtype != sources.coords.dtype:
        raise TypeError(f"expected queries of {sources.coords.dtype}, as the points, got {queries.dtype}")
    return Targets(replace(cloud, count=sources.count), cloud.sample[:0])


def _check_target_layout(targets: Tensor, shape: tuple[int, int] | None, mask: Tensor | None, sources: Cloud) -> None:
    """Raise if targets are no numbers of sources, have a shape or mask of another size, or lie in a wrong row."""
    check_targets(targets, len(sources.coords))
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
    _check_frame_dtype(features, sources)
    shape = tuple(features.shape)
    expected = (len(sources.coords), 2) if sources.shape is None else (*sources.shape, 2)
    shared = len(expected) == len(shape) == 3 and expected[0] == 1 and shape[1:] == expected[1:]
    if shape != expected and not shared:
        raise ValueError(f"expected frame_features (..., 2) of the points, {expected}, got {shape}")


def _check_frame_dtype(features: Tensor, sources: Cloud) -> None:
    if not isinstance(features, Tensor) or features.dtype != sources.coords.dtype:
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        if isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type):
            return
        raise TypeError(f"expected frame_features of {sources.coords.dtype}, as the points, got {got}")


def _centres(group: LieGroup, cloud: Cloud) -> Float[Tensor, "B d"]:
    """Mean of the valid points of each sample in the directions of the translations; zero in others and in a cell."""
    d = cloud.coords.shape[-1]
    zero = cloud.coords.new_zeros(cloud.count, d)
    structure = affine_structure(group)
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


_NEIGHBOURS = 1 << 16  # memory is that times the points


def check_choice(
    lift: Lift,
    num_neighbors: int,
    radius: float | Tensor | None,
    fill: float | None,
    *,
    at_random: bool,
    smooth: bool,
) -> None:
    """Raise if this choice of neighbours makes no sense with the lift, as `build_geometry` says."""
    check_numbers(num_neighbors=num_neighbors)
    if num_neighbors > _NEIGHBOURS:
        raise ValueError(f"expected num_neighbors of at most {_NEIGHBOURS}, got {num_neighbors}; use as many as points")
    for name, value in (("radius", radius), ("fill", fill)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | Tensor)):
            raise TypeError(f"expected a number as {name}, got {value!r}")
    if radius is not None and fill is not None:
        raise ValueError("expected a radius or a fill fraction, got both")
    if radius is not None:
        _check_radius(radius)
    if fill is not None:
        _check_fill(fill)
    if radius is not None or fill is not None:
        lift.check_ball(fill=fill is not None, at_random=at_random)
    elif at_random:
        raise ValueError("a random choice of neighbours is from a ball: give a radius or a fill fraction")
    if smooth:
        _check_smooth(lift, radius, fill, at_random=at_random)


def check_cell_group(group: LieGroup, *, at_random: bool) -> None:
    """Raise if the group, or a random choice of neighbours, makes no sense in a periodic cell."""
    if not group.isometric:
        raise ValueError(f"a periodic cell needs a group that preserves lengths, got {group!r}")
    structure = affine_structure(group)
    if structure is not None and structure.rotations and not structure.moves_plane:
        raise ValueError(f"{group!r} turns about one fixed centre, which a periodic cell does not have")
    if at_random:
        raise ValueError("neighbours in a periodic cell are the nearest; leave at_random out")


def _check_fill(fill: float) -> None:
    if isinstance(fill, Tensor):
        raise TypeError("expected a number as fill, got a tensor; use float(fill)")
    if not 0.0 < fill <= 1.0:
        raise ValueError(f"expected a fill fraction above 0 and up to 1, got {fill}")


def _check_radius(radius: float | Tensor) -> None:
    if not isinstance(radius, Tensor):
        if not 0.0 < radius < float("inf"):
            raise ValueError(f"expected a positive radius, got {radius}")
        return
    if radius.numel() != 1 or not radius.is_floating_point():
        raise TypeError(f"expected one floating-point number as radius, got {tuple(radius.shape)} of {radius.dtype}")
    values = plain_values(radius) if radius.device.type == "cpu" else None
    # Zero is the measured radius of sets of one point.
    if values is not None and not 0.0 <= float(values) < float("inf"):
        raise ValueError(f"expected a positive radius, got {float(values)}")


def _check_smooth(lift: Lift, radius: float | Tensor | None, fill: float | None, *, at_random: bool) -> None:
    """Raise if these options make the geometry depend on the points in a way that jumps, whatever the points are."""
    if at_random:
        raise ValueError("forces need neighbours that are not drawn at random; use at_random=False")
    if fill is not None:
        raise ValueError("forces need a length that depends on no other point, got a fill fraction; use radius")
    lift.check_smooth(radius=radius is not None)


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
