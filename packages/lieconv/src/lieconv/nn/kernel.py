r"""The kernel network: numbers of a pair to the values of the kernel functions :math:`\phi_m`.

Standardised, it sees each kernel coordinate with mean 0 and spread 1 over the pairs of the training data, whatever the
units of the points are. The statistics are running averages over training batches, or those of the first; no gradient
goes through them, and they are folded into the first matrix, so that a pair costs nothing more.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lieconv.geometry import Geometry
from lieconv.geometry.checks import check_numbers
from lieconv.nn.layout import check_weights
from lieconv.nn.processes import over_processes

MOMENTUM = 0.1
Standardise = bool | Literal["once"]


class KernelNetwork(nn.Module):
    """Two hidden layers (the paper's 32 wide) from kernel coordinates to ``basis`` kernel functions.

    Args:
        dim: kernel coordinates of a pair.
        basis: kernel functions.
        hidden: width of the hidden layers.
        standardise: whether running statistics of the coordinates are kept and used. The output of a training step then
            depends on the batch, as with batch normalisation; in evaluation it does not. ``"once"`` keeps the
            statistics of the first training batch: later outputs depend on no other sample, as those of a potential.

    Raises:
        ValueError: for numbers below 1, or an unknown ``standardise``.
    """

    mean: Tensor
    spread: Tensor
    batches: Tensor

    def __init__(self, dim: int, basis: int, *, hidden: int = 32, standardise: Standardise = False) -> None:
        super().__init__()
        check_numbers(dim=dim, basis=basis, hidden=hidden)
        if not (isinstance(standardise, bool) or (isinstance(standardise, str) and standardise == "once")):
            raise ValueError(f"expected standardise as True, False or 'once', got {standardise!r}")
        self.first, self.second, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, basis)
        self.standardise = standardise
        if standardise is not False:
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("spread", torch.ones(dim))
            self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def matrices(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Weight and bias of the first layer for raw coordinates; while training the statistics are updated first."""
        weight, bias = self.first.weight, self.first.bias
        if self.standardise is False:
            return weight, bias
        if self.training and not torch._C._are_functorch_transforms_active():
            self._measure(geometry)
        weight = weight / self.spread.to(weight)
        return weight, bias - weight @ self.mean.to(weight)

    def forward(
        self, kernel_coords: Float[Tensor, "M k c"], matrices: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "M k basis"]:
        """The kernel functions; ``matrices`` as of `matrices`."""
        if kernel_coords.shape[-1] != self.first.in_features:
            raise ValueError(f"expected {self.first.in_features} kernel coordinates, got {tuple(kernel_coords.shape)}")
        check_weights(kernel_coords, matrices[0])
        y = nn.functional.silu(nn.functional.linear(kernel_coords, *matrices))
        return self.last(nn.functional.silu(self.second(y)))

    @torch.no_grad()
    def _measure(self, geometry: Geometry) -> None:
        sums = over_processes(_sums(geometry))
        c = len(self.mean)
        number = sums[-1].clamp(min=torch.finfo(sums.dtype).tiny)
        mean, square = sums[:c] / number, sums[c:-1] / number
        # No smaller than a hundredth of the size: what hardly varies is not blown up, and its rounding with it.
        spread = torch.maximum((square - mean.square()).clamp(min=0).sqrt(), 0.01 * square.sqrt())
        spread = torch.where(spread > 1e-12, spread, torch.ones_like(spread))
        later = MOMENTUM if self.standardise is True else 0.0
        share = torch.where(self.batches > 0, later, 1.0).to(self.mean)  # the first batch sets the statistics alone
        share = torch.where(sums[-1] > 0, share, torch.zeros_like(share))  # a batch without points changes nothing
        self.mean.lerp_(mean.to(self.mean), share)
        self.spread.lerp_(spread.to(self.spread), share)
        self.batches.add_((sums[-1] > 0).to(self.batches))


def _sums(geometry: Geometry) -> Float[Tensor, " 2c+1"]:
    """Weighted sums of the coordinates and of their squares over pairs, and of the weights; cached in the geometry."""
    sums = None if torch.compiler.is_compiling() else geometry.__dict__.get("_sums")
    if sums is None:
        x, weights = geometry.kernel_coords.detach().flatten(0, 1), geometry.weights.detach().flatten()
        sums = torch.cat([weights @ x, weights @ x.square(), weights.sum().view(1)])
        if not torch.compiler.is_compiling():
            object.__setattr__(geometry, "_sums", sums)
    return sums
