"""From points to neighbourhoods on the group: who is near whom, with which relative element.

A `Geometry` knows no channel. It is computed once and shared by every layer of one resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from lie.groups import SE2, SE3, SO2, SO3, LieGroup
from torch import Tensor

from lieconv.geometry.frames import local_vectors, soft_frame_2d, soft_frame_3d
from lieconv.geometry.neighbours import gather, nearest_neighbours

Lift = Literal["exact", "sampled"]


@dataclass(frozen=True)
class Geometry:
    """Neighbourhoods of N points (N * num_samples with sampled lifts) and their kernel coordinates.

    Fields:
        indices: neighbours of each point, (B, N, k).
        weights: their window weights, which sum to 1 (0 for padding), (B, N, k).
        kernel_coords: coordinates of the relative group element and the orbit ids, (B, N, k, c).
        mask: which points are valid, (B, N).
        num_samples: group elements a point.
    """

    indices: Int[Tensor, "B N k"]
    weights: Float[Tensor, "B N k"]
    kernel_coords: Float[Tensor, "B N k c"]
    mask: Bool[Tensor, "B N"]
    num_samples: int = 1

    def spread(self, values: Tensor) -> Tensor:
        """Values of the points (B, P, C) repeated for the elements of each point, (B, P * num_samples, C)."""
        return values if self.num_samples == 1 else values.repeat_interleave(self.num_samples, dim=1)

    def gather_samples(self, values: Tensor) -> Tensor:
        """Mean over the elements of each point, (B, P * num_samples, C) -> (B, P, C)."""
        return values if self.num_samples == 1 else values.unflatten(1, (-1, self.num_samples)).mean(2)


@cache
def _varying_entries(group: LieGroup) -> tuple[int, ...]:
    """Flat positions of the matrix entries that are not the same on the whole group."""
    generator = torch.Generator().manual_seed(0)
    elements = group.sample(64, generator=generator, dtype=torch.float64).flatten(1)
    return tuple((elements - elements[:1]).abs().amax(0).nonzero().flatten().tolist())


def has_soft_lift(group: LieGroup) -> bool:
    """Whether the exact lift of ``group`` goes by soft frames: some of its points have a stabiliser.

    For SO2 that is the origin alone, where the angle of a point is undefined.
    """
    return isinstance(group, SO2 | SE2 | SO3 | SE3)


def kernel_dim(group: LieGroup, lift: Lift) -> int:
    """Number of kernel coordinates of `build_geometry` for a group and a lift."""
    if lift == "exact" and has_soft_lift(group):
        d = group.point_dim or 0
        return d * d + (2 if isinstance(group, SO2 | SO3) else d) + 1
    orbit = group.lift(torch.zeros(1, group.point_dim or group.matrix_dim))[1].shape[-1]
    return (group.dim if lift == "sampled" else len(_varying_entries(group))) + 2 * orbit


def build_geometry(
    group: LieGroup,
    coords: Float[Tensor, "B N d"],
    mask: Bool[Tensor, "B N"] | None = None,
    *,
    num_neighbors: int = 32,
    lift: Lift = "exact",
    num_samples: int = 1,
    frame_features: Float[Tensor, "B N 2"] | None = None,
    generator: torch.Generator | None = None,
) -> Geometry:
    """Lift the points to the group and find the neighbours and relative elements of each.

    Args:
        group: acts on points of dimension d.
        coords: points (B, N, d).
        mask: valid points (B, N); None means all.
        num_neighbors: neighbours a point, itself included; the window closes at the next one.
        lift: ``"exact"``: every output is exactly equivariant; kernel coordinates are the entries of the
            relative element, with soft frames for SO2, SE2, SO3 and SE3 (`lieconv.geometry.frames`).
            ``"sampled"``: the paper's: elements drawn uniformly from each point's coset, coordinates
            ``log(v^-1 u)``; equivariant in expectation, and the log jumps at rotations by pi.
        num_samples: elements a point; only for ``"sampled"``.
        frame_features: invariant features that weigh the neighbours in the frames; None means ones.
        generator: source of randomness of ``"sampled"``.

    Raises:
        ValueError: for wrong shapes, non-finite valid coordinates, fewer than one neighbour or sample, or a
            group without an exact lift.
        TypeError: for coordinates that are not floating-point or a mask that is not boolean.
    """
    mask = check_points(group, coords, mask, num_neighbors, lift, num_samples)
    # Padding may hold anything; from here on it is zero, so that no NaN of it reaches a gradient.
    coords = torch.where(mask.unsqueeze(-1), coords, torch.zeros_like(coords))
    if lift == "exact" and has_soft_lift(group):
        return _soft_geometry(group, coords, mask, num_neighbors, frame_features)
    elements, orbits = group.lift(coords, num_samples=num_samples, generator=generator)
    elements, orbits = elements.flatten(1, 2), orbits.flatten(1, 2)  # (B, N * K, ...)
    if num_samples > 1:
        coords = coords.repeat_interleave(num_samples, dim=1)
        mask = mask.repeat_interleave(num_samples, dim=1)
    indices, weights, _ = nearest_neighbours(group, coords, elements, orbits, mask, num_neighbors)
    here, there = elements.unsqueeze(2), gather(elements, indices)
    if lift == "sampled":
        relative = group.relative(here, there)  # log(v_j^-1 u_i), (B, N, k, dim)
    else:
        entries = _varying_entries(group)
        difference = group.inverse(there) @ here - group.identity(dtype=coords.dtype, device=coords.device)
        relative = difference.flatten(-2)[..., entries]
    orbit_here = orbits.unsqueeze(2).expand(*indices.shape, orbits.shape[-1])
    kernel_coords = torch.cat([relative, orbit_here, gather(orbits, indices)], dim=-1)
    return Geometry(indices, weights, kernel_coords, mask, num_samples)


def _soft_geometry(
    group: LieGroup, coords: Tensor, mask: Tensor, num_neighbors: int, features: Tensor | None
) -> Geometry:
    indices, weights, squared_radius = nearest_neighbours(group, coords, None, None, mask, num_neighbors)
    if features is None:
        features = torch.ones(*coords.shape[:2], 2, dtype=coords.dtype, device=coords.device)
    vectors = local_vectors(coords, indices, weights, squared_radius, features)  # (B, N, 2, d)
    if isinstance(group, SE2):
        frames = soft_frame_2d(vectors[..., 0, :])
    elif isinstance(group, SE3):
        # The second vector weighs by the squared distance, so that it differs from the first also for equal features.
        outer = local_vectors(
            coords, indices, weights * _squared_offsets(coords, indices) / squared_radius, squared_radius, features
        )
        frames = soft_frame_3d(vectors[..., 0, :], outer[..., 1, :])
    elif isinstance(group, SO2):
        frames = soft_frame_2d(coords / squared_radius.sqrt())
    else:  # SO3: the stabiliser of a point is the turns about it
        frames = soft_frame_3d(coords / squared_radius.sqrt(), vectors[..., 1, :])
    there = gather(frames, indices)  # (B, N, k, d, d)
    turned = (there.mT @ frames.unsqueeze(2)).flatten(-2)
    squared = _squared_offsets(coords, indices).unsqueeze(-1)
    if isinstance(group, SO2 | SO3):
        radius = _safe_length(coords)
        rest = torch.cat([radius.unsqueeze(2).expand(*indices.shape, 1), gather(radius, indices)], dim=-1)
    else:
        offsets = coords.unsqueeze(2) - gather(coords, indices)
        rest = (there.mT @ offsets.unsqueeze(-1)).squeeze(-1)
    return Geometry(indices, weights, torch.cat([turned, rest, squared], dim=-1), mask)


def _squared_offsets(coords: Tensor, indices: Tensor) -> Tensor:
    return (gather(coords, indices) - coords.unsqueeze(2)).square().sum(-1)


def _safe_length(x: Tensor) -> Tensor:
    squared = x.square().sum(-1, keepdim=True)
    zero = squared == 0
    return torch.where(zero, torch.zeros_like(squared), torch.where(zero, torch.ones_like(squared), squared).sqrt())


def check_points(
    group: LieGroup, coords: Tensor, mask: Tensor | None, num_neighbors: int, lift: str, num_samples: int
) -> Tensor:
    """Raise where the input does not fit, as `build_geometry` says; returns the mask, all true for None."""
    if coords.ndim != 3:
        raise ValueError(f"expected points of shape (B, N, d), got {tuple(coords.shape)}; add a batch axis in front")
    if not coords.is_floating_point():
        raise TypeError(f"expected floating-point points, got {coords.dtype}; use coords.float()")
    d = coords.shape[-1]
    if group.point_dim is not None and d != group.point_dim:
        raise ValueError(
            f"expected points of dimension {group.point_dim} for {group!r}, got shape {tuple(coords.shape)}; "
            "choose a group that acts on your points"
        )
    if mask is None:
        mask = torch.ones(coords.shape[:2], dtype=torch.bool, device=coords.device)
    if mask.shape != coords.shape[:2]:
        raise ValueError(f"expected a mask of shape {tuple(coords.shape[:2])}, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}; use mask.bool()")
    if num_neighbors < 1:
        raise ValueError(f"expected num_neighbors of at least 1, got {num_neighbors}")
    if lift not in ("exact", "sampled"):
        raise ValueError(f"expected lift 'exact' or 'sampled', got {lift!r}")
    if num_samples < 1:
        raise ValueError(f"expected num_samples of at least 1, got {num_samples}")
    if lift == "exact":
        if num_samples != 1:
            raise ValueError(
                f"the exact lift has one element a point, got num_samples={num_samples}; use lift='sampled'"
            )
        if not has_soft_lift(group) and group.stabiliser_dim != 0:
            raise ValueError(
                f"{group!r} has no exact lift (its points have a stabiliser, or none is declared by "
                "stabiliser_dim = 0); use lift='sampled'"
            )
    if not torch.compiler.is_compiling():
        finite = torch.isfinite(coords).all(-1) | ~mask
        if not finite.all():
            where = tuple((~finite).nonzero()[0].tolist())
            raise ValueError(f"expected finite coordinates, got NaN or infinity at point {where} (sample, point)")
    return mask
