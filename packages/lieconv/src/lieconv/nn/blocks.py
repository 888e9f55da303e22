"""The residual bottleneck block and the global pool of the LieConv networks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import Geometry
from lieconv.geometry.lifts import Coordinates, LiftName
from lieconv.nn.conv import LieConv
from lieconv.nn.layout import laid_out, rows_of
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
        standardise: bool = False,
    ) -> None:
        super().__init__()
        inner = max(1, channels // bottleneck)
        self.channels = channels
        self.norms = nn.ModuleList([make_norm(norm, channels), make_norm(norm, inner), make_norm(norm, inner)])
        self.reduce = nn.Linear(channels, inner)
        self.conv = LieConv(
            inner, inner, group=group, num_neighbors=num_neighbors, lift=lift, coordinates=coordinates,
            standardise=standardise,
        )  # fmt: skip
        self.expand = nn.Linear(inner, channels)

    def forward(self, geometry: Geometry, x: Float[Tensor, "*points c"]) -> Float[Tensor, "*points c"]:
        """One block; padded points stay zero in what is added."""
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
    valid = mask.unsqueeze(-1)
    return torch.where(valid, x, torch.zeros_like(x)).sum(-2) / valid.sum(-2).clamp(min=1)


def pool(geometry: Geometry, x: Float[Tensor, "S M c"]) -> Float[Tensor, "B c"]:
    """The mean over the valid points (or elements) of each sample, from rows."""
    if geometry.shape is not None:
        B, M = geometry.shape  # noqa: N806
        if x.shape[0] > 1:
            return masked_mean(x, geometry.mask)
        return masked_mean(x.reshape(B, M, x.shape[-1]), geometry.mask.view(B, M))
    x = torch.where(geometry.mask.unsqueeze(-1), x, torch.zeros_like(x)).squeeze(0)
    total = x.new_zeros(geometry.count, x.shape[-1]).index_add(0, geometry.sample, x)
    number = x.new_zeros(geometry.count).index_add(0, geometry.sample, geometry.mask.to(x.dtype))
    return total / number.clamp(min=1).unsqueeze(-1)
