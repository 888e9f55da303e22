"""The residual bottleneck block and the global pool of the LieConv networks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import Geometry
from lieconv.geometry.geometry import Lift
from lieconv.nn.conv import LieConv
from lieconv.nn.norm import MaskedBatchNorm


class BottleneckBlock(nn.Module):
    """``x + linear(act(bn(LieConv(act(bn(linear(act(bn(x))))))))``, the convolution at a fraction of the width.

    Source: Finzi et al. 2020 (LieConv), section on the network architecture.

    Args:
        channels: features in and out.
        group, num_neighbors, lift: as of `LieConv`.
        bottleneck: divisor of the width inside the block (the paper's 4).
    """

    def __init__(
        self, channels: int, *, group: LieGroup, num_neighbors: int = 32, lift: Lift = "exact", bottleneck: int = 4
    ) -> None:
        super().__init__()
        inner = max(1, channels // bottleneck)
        self.norms = nn.ModuleList([MaskedBatchNorm(channels), MaskedBatchNorm(inner), MaskedBatchNorm(inner)])
        self.reduce = nn.Linear(channels, inner)
        self.conv = LieConv(inner, inner, group=group, num_neighbors=num_neighbors, lift=lift)
        self.expand = nn.Linear(inner, channels)

    def forward(self, geometry: Geometry, x: Float[Tensor, "B N c"]) -> Float[Tensor, "B N c"]:
        """One block; padded points stay zero in what is added."""
        mask = geometry.mask
        y = self.reduce(nn.functional.silu(self.norms[0](x, mask)))
        y = self.conv(geometry, nn.functional.silu(self.norms[1](y, mask)))
        return x + self.expand(nn.functional.silu(self.norms[2](y, mask)))


def masked_mean(x: Float[Tensor, "B N c"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B c"]:
    """Mean over the valid points; zero for a sample that has none."""
    valid = mask.unsqueeze(-1)
    return torch.where(valid, x, torch.zeros_like(x)).sum(1) / valid.sum(1).clamp(min=1)
