"""Normalisation that sees only valid points, over one process or many."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lieconv.nn.processes import over_processes


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of (..., P, channels) over the points where the mask (..., P) is true.

    Padding changes neither the output at valid points nor the running statistics. The variance is of the
    centred values, without the cancellation of E[x^2] - E[x]^2; with one valid point it counts as 1 in the
    running average, with none nothing is updated. Statistics are at least float32.

    Where torch.distributed runs, the statistics are those of all processes together, so that N processes train as one
    would on the whole batch.

    Args:
        channels: features a point.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics.
        synchronise: over the processes of torch.distributed, where it runs.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, synchronise: bool = True) -> None:
        super().__init__()
        self.eps, self.momentum, self.synchronise = eps, momentum, synchronise
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "*batch P c"], mask: Bool[Tensor, "*#batch P"]) -> Float[Tensor, "*batch P c"]:
        """Normalise; padded points come out as zero."""
        valid = mask.unsqueeze(-1)
        dtype = x.dtype
        y = x.to(torch.promote_types(dtype, torch.float32))
        if self.training:
            mean, var = self._statistics(y, valid)
        else:
            mean, var = self.running_mean.to(y.dtype), self.running_var.to(y.dtype)
        normalised = (y - mean) * (var + self.eps).rsqrt() * self.weight + self.bias
        return torch.where(valid, normalised, torch.zeros_like(normalised)).to(dtype)

    def _statistics(self, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        axes = tuple(range(y.ndim - 1))
        count = self._over_all(valid.expand(*y.shape[:-1], 1).sum().to(y.dtype))
        safe = count.clamp(min=1)
        mean = self._over_all(torch.where(valid, y, torch.zeros_like(y)).sum(axes)) / safe
        centred = torch.where(valid, y - mean, torch.zeros_like(y))
        var = self._over_all(centred.square().sum(axes)) / safe
        with torch.no_grad():
            some = (count > 0).to(self.running_mean)
            unbiased = torch.where(count > 1, var * safe / (safe - 1).clamp(min=1), torch.ones_like(var))
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum * some)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum * some)
        return mean, var

    def _over_all(self, total: Tensor) -> Tensor:
        return over_processes(total) if self.synchronise else total


class PointLayerNorm(nn.Module):
    """Layer normalisation of the features of each point; padded points come out as zero.

    Args:
        channels: features a point.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "*batch P c"], mask: Bool[Tensor, "*#batch P"]) -> Float[Tensor, "*batch P c"]:
        """Normalise."""
        y = self.norm(x)
        return torch.where(mask.unsqueeze(-1), y, torch.zeros_like(y))


def make_norm(kind: str, channels: int) -> nn.Module:
    """``"batch"`` or ``"layer"`` normalisation, called as ``norm(x, mask)``."""
    if kind == "batch":
        return MaskedBatchNorm(channels)
    if kind == "layer":
        return PointLayerNorm(channels)
    raise ValueError(f"expected norm 'batch' or 'layer', got {kind!r}")
