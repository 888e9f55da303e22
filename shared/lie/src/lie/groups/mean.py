r"""The Karcher mean on a group: the element m with :math:`\sum_i w_i \log(m^{-1} g_i) = 0`.

The fixed point of ``m <- m exp(sum_i w_i log(m^-1 g_i))`` (Pennec and Arsigny 2013, Exponential barycenters of the
canonical Cartan connection, section 4), which for rotations is the Riemannian centre of mass (Karcher 1977). It is
unique where the elements are close enough together, for rotations within a ball of radius pi/2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lie.groups.base import LieGroup


def karcher_mean(group: LieGroup, g: Tensor, weights: Tensor | None, max_iterations: int) -> Tensor:
    """The mean over axis -3 of elements (..., N, m, m); weights (..., N) are normalised to sum 1."""
    if g.ndim < 3 or g.shape[-3] == 0:
        raise ValueError(f"expected at least one element, shape (..., N, m, m) with N >= 1, got {tuple(g.shape)}")
    if weights is None:
        weights = torch.full(g.shape[-3:-2], 1.0 / g.shape[-3], dtype=g.dtype, device=g.device)
    else:
        if weights.shape[-1] != g.shape[-3]:
            raise ValueError(f"expected {g.shape[-3]} weights, got shape {tuple(weights.shape)}")
        if not bool((weights >= 0).all()) or not bool((weights.sum(-1) > 0).all()):
            raise ValueError("expected weights that are not negative, with a positive sum")
        weights = weights / weights.sum(-1, keepdim=True)
    mean = g[..., 0, :, :].expand(torch.broadcast_shapes(g.shape[:-3], weights.shape[:-1]) + g.shape[-2:])
    # The step is a mean of logarithms that cancel. Once it is small and no longer halves, it is their rounding.
    small = torch.finfo(g.dtype).eps ** 0.5
    size = torch.full(mean.shape[:-2], torch.inf, dtype=g.dtype, device=g.device)
    settled = torch.zeros_like(size, dtype=torch.bool)
    for _ in range(max_iterations):
        logs = group.relative(g, mean.unsqueeze(-3))  # (..., N, dim)
        step = (weights.unsqueeze(-1) * logs).sum(-2)
        mean = mean @ group.exp(step)
        now = step.detach().norm(dim=-1) / logs.detach().norm(dim=-1).amax(-1).clamp(min=1.0)
        settled = settled | (now <= torch.finfo(g.dtype).eps) | ((now < small) & (now > 0.5 * size))
        size = now
        if bool(settled.all()):
            return mean
    raise ValueError(
        f"the mean did not settle in {max_iterations} iterations (last relative step "
        f"{float(size.nan_to_num(nan=torch.inf).max()):.3g}): the elements may be too far apart for a unique mean; "
        "take closer ones or raise max_iterations"
    )
