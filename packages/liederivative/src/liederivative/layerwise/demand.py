"""What of each intermediate tensor the output depends on, so that terms are pushed through nothing else.

A classifier that reads one token of the last layer asks of the whole last block, up to its attention's keys and values,
for that token alone. Needs are followed backwards from the output: as a `Region`, a choice of places along one axis, or
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from liederivative.derivative.rules import Call
from liederivative.derivative.rules.pointwise import UNARY

PER_ENTRY = frozenset(
    {*UNARY, "relu", "add", "sub", "rsub", "mul", "div", "neg", "clone", "_to_copy", "maximum", "minimum"}
)
"""Operations of which an entry depends on the entries at the same place."""
WORTH = 1 / 8
"""largest part of a tensor that is followed as a region; more is taken for everything"""


@dataclass(frozen=True)
class Region:
    """Places ``index``, in order, along axis ``dim``."""

    dim: int
    index: Tensor

    def of(self, value: Tensor, offset: int = 0) -> Tensor:
        """These places of ``value``, whose axes begin ``offset`` later."""
        return value.index_select(self.dim + offset, self.index)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what `of` gives."""
        return (*shape[: self.dim], len(self.index), *shape[self.dim + 1 :])

    def same(self, other: Region | None) -> bool:
        """Whether the places are those of ``other``."""
        return other is not None and self.dim == other.dim and torch.equal(self.index, other.index)


def union(a: Region | None, b: Region | None) -> Region | None:
    """Places of both; None stands for everything."""
    if a is None or b is None or a.dim != b.dim:
        return None
    return a if a.same(b) else Region(a.dim, torch.cat([a.index, b.index]).unique())


def enclosing(positions: Tensor, value: Tensor) -> Region | None:
    """The smallest region of ``value`` with the entries at flat ``positions``; None if it is too large."""
    best: Region | None = None
    share, rest = WORTH, positions.flatten()
    for dim in reversed(range(value.ndim)):
        size = value.shape[dim]
        index, rest = (rest % size).unique(), rest // size
        if len(index) <= share * size:
            best, share = Region(dim, index), len(index) / size
    return best


def positions(value: Tensor, region: Region | None, view: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Flat positions, in ``value``, of the entries of (a region of) a view of it."""
    flat = torch.arange(value.numel(), device=value.device).view(1, *value.shape)
    flat = (flat if view is None else view(flat))[0]
    return flat if region is None else region.of(flat)


def narrowed(name: str, call: Call, region: Region) -> tuple[Call, dict[int, Region]] | None:
    """The operation that gives ``region`` of its (first) output alone, and the regions of its arguments that it reads.

    None if the operation is not known to act on those places alone. Arguments without a region are read whole.
    """
    out = call.out[0] if isinstance(call.out, tuple | list) else call.out
    if any(isinstance(a, Tensor) and a.layout is not torch.strided for a in call.args):
        return None  # a region of a sparse tensor is not taken
    regions = _regions(name, call, out, region)
    if regions is None:
        return None
    args = [regions[i].of(a) if i in regions and isinstance(a, Tensor) else a for i, a in enumerate(call.args)]
    if name == "native_layer_norm":  # the means and deviations of the same places
        outs = tuple(region.of(o) for o in call.out)
    elif isinstance(call.out, tuple | list):
        outs = (region.of(out), *call.out[1:])
    else:
        outs = region.of(out)
    return Call(call.func, call.raw, call.raw_kwargs, args, call.kwargs, outs, ()), regions


def _regions(name: str, call: Call, out: Tensor, region: Region) -> dict[int, Region] | None:
    dim, args = region.dim, call.args
    if name in PER_ENTRY:
        found = {}
        for i, a in enumerate(args):
            at = dim - out.ndim + a.ndim if isinstance(a, Tensor) else -1
            if at >= 0 and a.shape[at] == out.shape[dim]:
                found[i] = Region(at, region.index)
        return found
    if name == "native_layer_norm":
        return {0: region} if dim < out.ndim - len(args[1]) else None
    if name in ("_softmax", "_log_softmax"):
        return {0: region} if dim != args[1] % out.ndim else None
    if name == "mm":
        return {0: region} if dim == 0 else None
    if name == "addmm":
        bias = {0: region} if args[0].ndim == 2 and args[0].shape[0] == out.shape[0] else {}
        return {1: region, **bias} if dim == 0 else None
    if name == "_unsafe_view":
        flat = positions(out, region)
        before = enclosing(flat, args[0])
        exact = before is not None and positions(args[0], before).numel() == flat.numel()
        return {0: before} if before is not None and exact else None
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        plain = call.kwargs.get("attn_mask") is None and not call.get(4, False, "is_causal")
        return {0: region} if plain and dim == 2 else None
    return None


def gathered(tangents: Tensor, places: Tensor) -> Tensor:
    """(K, ...) -> (K, *places.shape), the entries at these flat places."""
    return tangents.flatten(1).index_select(1, places.flatten()).unflatten(1, places.shape)


def renumbered(places: Tensor, value: Tensor, kept: Region) -> Tensor:
    """Flat places in ``value`` as those in its region ``kept``, which holds them all."""
    there = positions(value, kept).flatten()
    numbers = torch.empty(value.numel(), dtype=torch.long, device=value.device).fill_(-1)
    numbers[there] = torch.arange(len(there), device=value.device)
    return numbers[places]
