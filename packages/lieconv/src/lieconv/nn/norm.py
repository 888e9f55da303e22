"""Batch normalisation that sees only valid points."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of (B, N, channels) over the points where the mask is true.

    Padding changes neither the output at valid points nor the running statistics. The variance is of the
    centred values, without the cancellation of E[x^2] - E[x]^2; with one valid point it counts as 1 in the
    running average, with none nothing is updated.

    Args:
        channels: features a point.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "B N c"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N c"]:
        """Normalise; padded points come out as zero."""
        valid = mask.unsqueeze(-1)
        if self.training:
            count = valid.sum()
            safe = count.clamp(min=1)
            mean = torch.where(valid, x, torch.zeros_like(x)).sum((0, 1)) / safe
            centred = torch.where(valid, x - mean, torch.zeros_like(x))
            var = centred.square().sum((0, 1)) / safe
            with torch.no_grad():
                some = (count > 0).to(x.dtype)
                unbiased = torch.where(count > 1, var * safe / (safe - 1).clamp(min=1), torch.ones_like(var))
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum * some.to(self.running_mean))
                self.running_var.lerp_(unbiased.to(self.running_var), self.momentum * some.to(self.running_var))
        else:
            mean, var = self.running_mean, self.running_var
        normalised = (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias
        return torch.where(valid, normalised, torch.zeros_like(normalised))
