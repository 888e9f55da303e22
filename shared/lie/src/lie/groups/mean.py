r"""The Karcher mean on a group: the element m with :math:`\sum_i w_i \log(m^{-1} g_i) = 0`.

The fixed point of ``m <- m exp(sum_i w_i log(m^-1 g_i))`` (Pennec and Arsigny 2013, Exponential barycenters of the
canonical Cartan connection, section 4), which for rotations is the Riemannian centre of mass (Karcher 1977). It is
unique where the elements are close enough together, for rotations within a ball of radius pi/2.

Under `torch.func.vmap` the iteration ends when the means of the whole batch have settled, as it does for a batch axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor  # type: ignore[import-not-found]
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lie.groups.checks import check_batches, check_floating, check_tensor

if TYPE_CHECKING:
    from lie.groups.base import LieGroup


def karcher_mean(group: LieGroup, g: Tensor, weights: Tensor | None, max_iterations: int) -> Tensor:
    """The mean over axis -3 of elements (..., N, m, m); weights (..., N) are normalised to sum 1."""
    if g.ndim < 3 or g.shape[-3] == 0:
        raise ValueError(f"expected at least one element, shape (..., N, m, m) with N >= 1, got {tuple(g.shape)}")
    if weights is None:
        weights = torch.full(g.shape[-3:-2], 1.0 / g.shape[-3], dtype=g.dtype, device=g.device)
    else:
        check_tensor(weights, "weights")
        check_floating(weights, "weights")
        if weights.shape[-1:] != (g.shape[-3],):
            raise ValueError(f"expected {g.shape[-3]} weights, got shape {tuple(weights.shape)}")
        if weights.device != g.device:
            raise ValueError(f"expected weights on {g.device}, as the elements, got {weights.device}")
        check_batches(g.shape[:-3], weights.shape[:-1], "elements and weights")
        weights = weights.to(g.dtype)
        # One number of all weights decides, so that an accelerator is waited for once. NaN is refused too.
        allowed = (weights >= 0).all(-1) & (weights.sum(-1) > 0)
        if not holds_everywhere(allowed):
            raise ValueError("expected weights that are not negative, with a positive sum")
        weights = weights / weights.sum(-1, keepdim=True)
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(f"expected max_iterations of at least 1, got {max_iterations!r}")
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
        if holds_everywhere(settled):
            return mean
    last = without_transforms(size)
    raise ValueError(
        f"the mean did not settle in {max_iterations} iterations (last relative step "
        f"{float(last.nan_to_num(nan=torch.inf).max()):.3g}): the elements may be too far apart for a unique mean; "
        "take closer ones or raise max_iterations"
    )


def holds_everywhere(condition: Tensor) -> bool:
    """Whether a condition holds for all entries, of all members of a `torch.func.vmap` that may be under way."""
    return bool(without_transforms(condition).all())


def without_transforms(x: Tensor) -> Tensor:
    """The tensor of plain numbers that transforms of `torch.func` have wrapped, with the axes of every vmap."""
    if torch.compiler.is_compiling():
        return x
    with temporarily_clear_interpreter_stack():
        while is_functorch_wrapped_tensor(x):
            x = get_unwrapped(x)
        return x.detach()
