"""The geometry of a set of points: neighbourhoods, window weights and kernel coordinates.

A `Geometry` holds no features. It is computed once and shared by every layer of one resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from lieconv.geometry.cloud import plain_values


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
        check_targets(targets, self.mask.shape[0] // K)
        copies = 1 if target_shape is None or self.shape is None else self.shape[0] // max(1, target_shape[0])
        copies = max(1, copies)  # of no samples
        rows = element_rows(repeated_index(targets, copies, self.mask.shape[0] // (K * copies)), K)
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


def element_rows(points: Int[Tensor, " M"], num_samples: int) -> Int[Tensor, " MK"]:
    """Rows of the elements of points."""
    if num_samples == 1:
        return points
    return (points.unsqueeze(1) * num_samples + torch.arange(num_samples, device=points.device)).flatten()


def repeated_index(index: Int[Tensor, " M"], copies: int, step: int) -> Int[Tensor, " copies*M"]:
    """Numbers along an axis of ``copies`` blocks of length ``step``: those of one block, for every block."""
    if copies == 1 or not index.numel():
        return index
    return (torch.arange(copies, device=index.device).unsqueeze(1) * step + index).flatten()


def _flatten(geometry: Geometry) -> tuple[list[Any], tuple[Any, ...]]:
    return [getattr(geometry, name) for name in _TENSORS], tuple(getattr(geometry, name) for name in _REST)


def _unflatten(tensors: Any, rest: tuple[Any, ...]) -> Geometry:
    return Geometry(**dict(zip((*_TENSORS, *_REST), (*tensors, *rest), strict=True)))


_TENSORS = ("indices", "weights", "kernel_coords", "offsets", "positions", "mask", "source_mask", "sample", "targets")
_REST = ("count", "shape", "num_samples", "source_shape", "full", "source_full")
register_pytree_node(Geometry, _flatten, _unflatten, serialized_type_name="lieconv.geometry.Geometry")


def check_targets(targets: Tensor, count: int) -> None:
    """Raise if ``targets`` are not numbers of ``count`` points."""
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
