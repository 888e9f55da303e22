"""LieResNet: lift, linear plus LieConv stem, residual LieConv blocks, global pool, linear head."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import build_geometry
from lieconv.geometry.geometry import Lift, check_points, has_soft_lift
from lieconv.nn.blocks import BottleneckBlock, masked_mean
from lieconv.nn.conv import LieConv, check_values
from lieconv.nn.norm import MaskedBatchNorm


class LieResNet(nn.Module):
    """A residual network on point sets that is invariant (pooled) or equivariant (per point) to ``group``.

    Call it as ``net(coords, values, mask)`` with coords (B, N, d), values (B, N, in_channels), mask bool (B, N).

    Args:
        in_channels, out_channels: features a point in, and out (of the whole set where pooled).
        group: a group of `lie.groups` or your own.
        lift: ``"exact"`` (default): invariant up to rounding, deterministic. ``"sampled"``: the paper's
            random lifts, invariant in expectation; in evaluation they are drawn from a fixed seed.
        num_samples: elements a point, for the sampled lift.
        channels: width between the blocks.
        num_layers: number of blocks.
        num_neighbors: neighbours a point, itself included.
        bottleneck: divisor of the width inside the blocks.
        pool: mean over the points before the head, (B, out); False gives (B, N, out).
        generator: randomness of sampled lifts while training; None is torch's own.

    Laws (exact lift): ``net(g coords, values, mask) == net(coords, values, mask)`` for every g of the
    group; the order of the points and padding change nothing.

    Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, section on the network architecture. The exact lift
    and the convolution in the stem are ours.

    >>> import lie, torch
    >>> net = LieResNet(1, 10, group=lie.SE2(), channels=16, num_layers=2)
    >>> net(torch.randn(4, 30, 2), torch.randn(4, 30, 1), torch.ones(4, 30, dtype=torch.bool)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: LieGroup,
        lift: Lift = "exact",
        num_samples: int = 1,
        channels: int = 128,
        num_layers: int = 6,
        num_neighbors: int = 32,
        bottleneck: int = 4,
        pool: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("channels", channels),
            ("num_layers", num_layers),
            ("num_neighbors", num_neighbors),
            ("bottleneck", bottleneck),
        ):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.group, self.num_samples = group, num_samples
        self.lift: Lift = lift
        self.num_neighbors, self.pool, self.generator = num_neighbors, pool, generator
        self.frame_features = nn.Linear(in_channels, 2) if lift == "exact" and has_soft_lift(group) else None
        self.embed = nn.Linear(in_channels, channels)
        # Where the values are the same everywhere (bare points), a linear map alone would hand the first
        # normalisation features without variance: the convolution reads the shape of the neighbourhoods first.
        self.stem = LieConv(in_channels, channels, group=group, num_neighbors=num_neighbors, lift=lift)
        self.blocks = nn.ModuleList(
            BottleneckBlock(channels, group=group, num_neighbors=num_neighbors, lift=lift, bottleneck=bottleneck)
            for _ in range(num_layers)
        )
        self.norm = MaskedBatchNorm(channels)
        self.head = nn.Linear(channels, out_channels)

    def forward(
        self,
        coords: Float[Tensor, "B N d"],
        values: Float[Tensor, "B N c"],
        mask: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B out"] | Float[Tensor, "B N out"]:
        """The network's output for a batch of point sets."""
        mask = check_points(self.group, coords, mask, self.num_neighbors, self.lift, self.num_samples)
        check_values(coords, values, self.in_channels)
        values = torch.where(mask.unsqueeze(-1), values, torch.zeros_like(values))
        geometry = build_geometry(
            self.group,
            coords,
            mask,
            num_neighbors=self.num_neighbors,
            lift=self.lift,
            num_samples=self.num_samples,
            frame_features=None if self.frame_features is None else self.frame_features(values),
            generator=self._generator(coords.device),
        )
        values = geometry.spread(values)
        x = self.embed(values) + self.stem(geometry, values)
        for block in self.blocks:
            x = block(geometry, x)
        x = nn.functional.silu(self.norm(x, geometry.mask))
        if self.pool:
            return self.head(masked_mean(x, geometry.mask))
        return self.head(geometry.gather_samples(x)).masked_fill(
            ~geometry.mask[:, :: self.num_samples].unsqueeze(-1), 0.0
        )

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if self.lift == "exact" or self.training:
            return self.generator
        return torch.Generator(device).manual_seed(0)
