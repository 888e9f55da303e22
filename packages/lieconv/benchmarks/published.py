r"""The algorithm as published, as plainly as it reads: the baseline of the benchmarks.

All pairs of group elements are compared, ``log(v_j^-1 u_i)`` for every i and j, an (N, N, dim) tensor; every layer
gathers from it the pairs of its neighbours, and every subsampling the pairs of the points it keeps. Logs and lifts are
`lie.groups`', whose closed forms are quicker than the published ones: what is compared is the algorithm.
`plain_relative` compares the arithmetic too.

Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, sections on discretisation, subsampling and the architecture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from lie.groups import LieGroup
from torch import Tensor, nn


class Pairs:
    """Lifted points with all their pairs: values (B, N, C), pairs (B, N, N, c), mask (B, N)."""

    def __init__(self, pairs: Tensor, values: Tensor, mask: Tensor) -> None:
        self.pairs, self.values, self.mask = pairs, values, mask


def lifted(
    group: LieGroup,
    coords: Tensor,
    values: Tensor,
    mask: Tensor,
    samples: int,
    relative_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Pairs:
    """Lift every point ``samples`` times and compare all elements with all, by ``group.relative`` unless told."""
    u, q = group.lift(coords, num_samples=samples)  # (B, N, S, m, m)
    u, q = u.flatten(1, 2), q.flatten(1, 2)
    relative = (relative_of or group.relative)(u.unsqueeze(2), u.unsqueeze(1))  # (B, N, N, dim)
    n = u.shape[1]
    ids = torch.cat([q.unsqueeze(2).expand(-1, -1, n, -1), q.unsqueeze(1).expand(-1, n, -1, -1)], -1)
    spread = (x.repeat_interleave(samples, 1) for x in (values, mask))
    return Pairs(torch.cat([relative, ids], -1), *spread)


def plain_relative(u: Tensor, v: Tensor) -> Tensor:
    """log(v^-1 u) of SE(3) by the formulas of the paper's appendix, as they are, an operation at a time."""
    g = torch.linalg.inv(v) @ u
    R, t = g[..., :3, :3], g[..., :3, 3]
    trace = R.diagonal(dim1=-2, dim2=-1).sum(-1)
    theta = ((trace - 1) / 2).clamp(-1 + 1e-6, 1 - 1e-6).arccos()[..., None]
    small = theta < 1e-3
    safe = torch.where(small, 1.0, theta)
    scale = torch.where(small, 0.5 + theta**2 / 12, safe / (2 * safe.sin()))
    antisymmetric = R - R.mT
    w = scale * torch.stack([antisymmetric[..., 2, 1], antisymmetric[..., 0, 2], antisymmetric[..., 1, 0]], -1)
    c = torch.where(small, 1 / 12 + theta**2 / 720, (1 - safe * safe.sin() / (2 * (1 - safe.cos()))) / safe**2)
    wt = torch.linalg.cross(w, t, dim=-1)
    return torch.cat([w, t - wt / 2 + c * torch.linalg.cross(w, wt, dim=-1)], -1)


def farthest(distances: Tensor, number: int) -> Tensor:
    """Farthest points by a matrix of distances (B, N, N), one after another."""
    B, N, _ = distances.shape
    chosen = torch.zeros(B, number, dtype=torch.long)
    nearest = torch.full((B, N), 1e8)
    each, last = torch.arange(B), torch.randint(0, N, (B,))
    for i in range(number):
        chosen[:, i] = last
        nearest = torch.minimum(nearest, distances[each, last])
        last = nearest.argmax(-1)
    return chosen


class PublishedConv(nn.Module):
    """One convolution: neighbours from the matrix of distances, kernel network, product."""

    def __init__(self, c_in: int, c_out: int, dim: int, k: int, fraction: float = 1.0) -> None:
        super().__init__()
        self.k, self.fraction = k, fraction
        self.weights = nn.Sequential(
            nn.Linear(dim, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 16), nn.SiLU()
        )
        self.linear = nn.Linear(16 * c_in, c_out)

    def forward(self, x: Pairs) -> tuple[Pairs, Tensor | None]:
        """The convolution at the points that are kept, and which those are."""
        pairs, values, mask = x.pairs, x.values, x.mask
        each = torch.arange(len(values)).unsqueeze(1)
        kept = None
        if self.fraction < 1.0:
            kept = farthest(pairs.norm(dim=-1), max(1, round(self.fraction * values.shape[1])))
            rows = pairs[each, kept]  # (B, M, N, c)
            columns = torch.arange(kept.shape[1])[None, :, None]
            new_pairs, new_mask = rows[each.unsqueeze(-1), columns, kept[:, None]], mask[each, kept]
        else:
            rows, new_pairs, new_mask = pairs, pairs, mask
        distances = torch.where(mask.unsqueeze(1), rows.norm(dim=-1), 1e8)
        index = distances.topk(min(self.k, rows.shape[2]), dim=-1, largest=False).indices  # (B, M, k)
        near = rows.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))
        features = values[each.unsqueeze(-1), index]  # (B, M, k, C)
        there = mask[each.unsqueeze(-1), index].unsqueeze(-1)
        kernel = torch.where(there, self.weights(near), torch.zeros(()))
        products = (features.mT @ kernel).flatten(-2)  # (B, M, C * 16)
        out = self.linear(products) / there.sum(-2).clamp(min=1)
        return Pairs(new_pairs, torch.where(new_mask.unsqueeze(-1), out, torch.zeros(())), new_mask), kept


class PublishedBlock(nn.Module):
    """The bottleneck block."""

    def __init__(self, channels: int, dim: int, k: int, fraction: float) -> None:
        super().__init__()
        inner = channels // 4
        self.norms = nn.ModuleList(nn.BatchNorm1d(c) for c in (channels, inner, inner))
        self.reduce, self.expand = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.conv = PublishedConv(inner, inner, dim, k, fraction)

    def forward(self, x: Pairs) -> Pairs:
        """One block."""
        y = self.reduce(self._act(0, x.values))
        there, kept = self.conv(Pairs(x.pairs, self._act(1, y), x.mask))
        skip = x.values if kept is None else x.values[torch.arange(len(kept)).unsqueeze(1), kept]
        return Pairs(there.pairs, skip + self.expand(self._act(2, there.values)), there.mask)

    def _act(self, i: int, values: Tensor) -> Tensor:
        return nn.functional.silu(self.norms[i](values.flatten(0, 1)).view_as(values))


class PublishedResNet(nn.Module):
    """The residual network, of the widths of `lieconv.LieResNet`; pairs may be kept, as for images of one grid."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        group: LieGroup,
        dim: int,
        *,
        samples: int = 1,
        channels: int = 128,
        layers: int = 6,
        k: int = 32,
        fraction: float = 1.0,
    ) -> None:
        super().__init__()
        self.group, self.samples = group, samples
        self.embed, self.head = nn.Linear(c_in, channels), nn.Linear(channels, c_out)
        self.blocks = nn.ModuleList(PublishedBlock(channels, dim, k, fraction) for _ in range(layers))

    def forward(self, coords: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Logits or predictions (B, c_out)."""
        x = lifted(self.group, coords, values, mask, self.samples)
        x = Pairs(x.pairs, self.embed(x.values), x.mask)
        for block in self.blocks:
            x = block(x)
        valid = x.mask.unsqueeze(-1)
        return self.head((x.values * valid).sum(1) / valid.sum(1).clamp(min=1))
