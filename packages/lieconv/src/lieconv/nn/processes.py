"""Sums over the processes of torch.distributed, where it runs: statistics are then those of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor


def many_processes() -> bool:
    """Whether more than one process trains together."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def over_processes(total: Tensor) -> Tensor:
    """The sum of ``total`` over all processes; differentiable where gradients are wanted."""
    if not many_processes():
        return total
    if torch.is_grad_enabled() and total.requires_grad:
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(total)  # type: ignore[no-any-return]
    total = total.clone()
    torch.distributed.all_reduce(total)
    return total
