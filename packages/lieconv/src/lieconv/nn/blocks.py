"""The residual bottleneck block and the global pool of the LieConv networks."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import Geometry
from lieconv.geometry.checks import check_numbers
from lieconv.geometry.lift import Coordinates, LiftName
from lieconv.nn.conv import LieConv
from lieconv.nn.kernel import Standardise
from lieconv.nn.layout import check_geometry, check_weights, laid_out, rows_of
from lieconv.nn.norm import make_norm


class BottleneckBlock(nn.Module):
    """``x + linear(act(norm(LieConv(act(norm(linear(act(norm(x))))))))``, the convolution at a fraction of the width.

    Called as ``block(geometry, x)``. Where the points of the geometry are fewer than its sources, x is read at them.

    Source: Finzi et al. 2020 (LieConv), section on the network architecture.

    Args:
        channels: features in and out.
        group, num_neighbors, lift, coordinates, standardise: as of `LieConv`.
        bottleneck: divisor of the width inside the block (the paper's 4).
        norm: ``"batch"`` or ``"layer"``.
    """

    def __init__(
        self,
        channels: int,
        *,
        group: LieGroup,
        num_neighbors: int = 32,
        lift: LiftName = "exact",
        coordinates: Coordinates = "auto",
        bottleneck: int = 4,
        norm: str = "batch",
        standardise: Standardise = False,
    ) -> None:
        super().__init__()
        check_numbers(channels=channels, bottleneck=bottleneck)
        inner = max(1, channels // bottleneck)
        self.channels = channels
        self.norms = nn.ModuleList([make_norm(norm, channels), make_norm(norm, inner), make_norm(norm, inner)])
        self.reduce = nn.Linear(channels, inner)
        self.conv = LieConv(
            inner,
            inner,
            group=group,
            num_neighbors=num_neighbors,
            lift=lift,
            coordinates=coordinates,
            standardise=standardise,
        )
        self.expand = nn.Linear(inner, channels)

    def forward(self, geometry: Geometry, x: Float[Tensor, "*points c"]) -> Float[Tensor, "*points c"]:
        """One block; padded points stay zero in what is added."""
        check_geometry(geometry, None, {}, self.conv.kernel.first.in_features)
        check_weights(x, self.reduce.weight)
        return laid_out(geometry, self.from_rows(geometry, rows_of(geometry, x, self.channels)))

    def from_rows(self, geometry: Geometry, rows: Float[Tensor, "S P c"]) -> Float[Tensor, "S M c"]:
        """The block on copies of the rows of the sources."""
        source_mask = None if geometry.source_full else geometry.source_mask
        mask = None if geometry.full else geometry.mask
        y = self.reduce(nn.functional.silu(self.norms[0](rows, source_mask)))
        y = self.conv.from_rows(geometry, nn.functional.silu(self.norms[1](y, source_mask)))
        y = self.expand(nn.functional.silu(self.norms[2](y, mask)))
        return geometry.at_targets(rows) + y


def masked_mean(x: Float[Tensor, "*batch N c"], mask: Bool[Tensor, "*#batch N"]) -> Float[Tensor, "*batch c"]:
    """Mean over the valid points; zero for a sample that has none."""
    check_masked(x, mask)
    return (_masked_sum(x, mask) / mask.sum(-1, keepdim=True).clamp(min=1)).to(x.dtype)


def check_masked(x: Tensor, mask: Tensor) -> None:
    """Raise where x (..., N, c) is not floating-point, or mask not boolean (..., N) of as many points."""
    if not x.is_floating_point():
        raise TypeError(f"expected floating-point features, got {x.dtype}; use x.float()")
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}; use mask.bool()")
    if x.ndim < 2 or mask.ndim < 1 or mask.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"expected features (..., N, c) and a mask (..., N), got {tuple(x.shape)}, {tuple(mask.shape)}"
        )


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the valid points in at least single precision: half precision overflows or stops to grow."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.where(mask.unsqueeze(-1), y, torch.zeros_like(y)).sum(-2)


def pool(geometry: Geometry, x: Float[Tensor, "S M c"], kind: Literal["mean", "sum"] = "mean") -> Float[Tensor, "B c"]:
    """The mean or the sum over the valid points (or elements) of each sample, from rows; zero where there are none.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("mean", "sum"):
        raise ValueError(f"expected pool 'mean' or 'sum', got {kind!r}")
    if x.ndim != 3 or x.shape[1] != geometry.mask.shape[0]:
        raise ValueError(f"expected rows (S, {geometry.mask.shape[0]}, c) of the geometry, got {tuple(x.shape)}")
    if geometry.shape is not None:
        B, M = geometry.shape
        rows, mask = (x, geometry.mask) if x.shape[0] > 1 else (x.reshape(B, M, x.shape[-1]), geometry.mask.view(B, M))
        return masked_mean(rows, mask) if kind == "mean" else _masked_sum(rows, mask).to(x.dtype)
    rows = x.squeeze(0).to(torch.promote_types(x.dtype, torch.float32))
    rows = torch.where(geometry.mask.unsqueeze(-1), rows, torch.zeros_like(rows))
    total = rows.new_zeros(geometry.count, x.shape[-1]).index_add(0, geometry.sample, rows)
    if kind == "mean":
        number = rows.new_zeros(geometry.count).index_add(0, geometry.sample, geometry.mask.to(rows.dtype))
        total = total / number.clamp(min=1).unsqueeze(-1)
    return total.to(x.dtype)
