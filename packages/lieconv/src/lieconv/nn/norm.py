"""Normalisation over the valid points of a batch, of one process or of all processes together."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lieconv.geometry.checks import check_flags, check_numbers
from lieconv.nn.layout import check_weights
from lieconv.nn.processes import many_processes, over_processes


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
        check_numbers(channels=channels)
        check_flags(synchronise=synchronise)
        for name, value in (("eps", eps), ("momentum", momentum)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < float("inf"):
                raise ValueError(f"expected {name} as a number of at least 0, got {value!r}")
        self.eps, self.momentum, self.synchronise = eps, momentum, synchronise
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self, x: Float[Tensor, "*batch P c"], mask: Bool[Tensor, "*#batch P"] | None = None
    ) -> Float[Tensor, "*batch P c"]:
        """Normalise; padded points come out as zero. Without a mask every point is valid."""
        check_features(x, mask, len(self.weight))
        dtype = x.dtype
        y = x.to(torch.promote_types(dtype, torch.float32))
        if mask is None:
            return self._plain(y).to(dtype)
        padding = ~mask.unsqueeze(-1)
        y = y.masked_fill(padding, 0.0)  # padding may hold anything, NaN too
        if self.training:
            centred, var = self._centred(y, mask)
            y = torch.addcmul(self.bias.to(y), centred, self.weight * (var + self.eps).rsqrt())
        else:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            y = torch.addcmul(self.bias - self.running_mean * scale, y, scale)
        return y.masked_fill(padding, 0.0).to(dtype)

    def _plain(self, y: Tensor) -> Tensor:
        if self.training and (y[..., 0].numel() < 2 or (self.synchronise and many_processes())):
            return self(y, y.new_ones(y.shape[:-1], dtype=torch.bool))
        rows = y.reshape(-1, y.shape[-1])
        statistics = self.running_mean, self.running_var
        normalised = nn.functional.batch_norm(
            rows, *statistics, self.weight, self.bias, training=self.training, momentum=self.momentum, eps=self.eps
        )
        return normalised.view_as(y)

    def _centred(self, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The values minus their mean over valid points, and their variance; the running averages follow."""
        rows = y.reshape(-1, y.shape[-1])  # (P, c)
        valid = mask.expand(y.shape[:-1]).reshape(-1).to(y.dtype)
        count = self._over_all(valid.sum())
        share = valid / count.clamp(min=1)
        mean = self._over_all(share @ rows)
        centred = rows - mean
        var = self._over_all(share @ centred.square())
        with torch.no_grad():
            nonempty = (count > 0).to(self.running_mean)
            unbiased = torch.where(count > 1, var * count / (count - 1).clamp(min=1), torch.ones_like(var))
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum * nonempty)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum * nonempty)
        return centred.view_as(y), var

    def _over_all(self, total: Tensor) -> Tensor:
        return over_processes(total) if self.synchronise else total


class PointLayerNorm(nn.Module):
    """Layer normalisation of the features of each point; padded points come out as zero.

    No other point enters: the forces on one molecule do not depend on the others of its batch.

    Args:
        channels: features a point.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_numbers(channels=channels)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, x: Float[Tensor, "*batch P c"], mask: Bool[Tensor, "*#batch P"] | None = None
    ) -> Float[Tensor, "*batch P c"]:
        """Normalise. Without a mask every point is valid."""
        check_features(x, mask, len(self.norm.weight))
        check_weights(x, self.norm.weight)
        y = self.norm(x)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0.0)


def check_features(x: Tensor, mask: Tensor | None, channels: int) -> None:
    """Raise where x (..., P, channels) or its mask (..., P) cannot be normalised."""
    if not x.is_floating_point():
        raise TypeError(f"expected floating-point features, got {x.dtype}; use x.float()")
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(f"expected features (..., P, {channels}), got {tuple(x.shape)}")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}; use mask.bool()")
    fits = mask.ndim < x.ndim and all(
        m in (1, n) for m, n in zip(reversed(mask.shape), reversed(x.shape[:-1]), strict=False)
    )
    if not fits:
        raise ValueError(f"expected a mask (..., P) of features {tuple(x.shape)}, got {tuple(mask.shape)}")


def make_norm(kind: str, channels: int) -> nn.Module:
    """``"batch"`` or ``"layer"`` normalisation, called as ``norm(x, mask)``, the mask None where all is valid."""
    if kind == "batch":
        return MaskedBatchNorm(channels)
    if kind == "layer":
        return PointLayerNorm(channels)
    raise ValueError(f"expected norm 'batch' or 'layer', got {kind!r}")
