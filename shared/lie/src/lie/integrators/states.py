"""States that are tuples of tensors, as one tensor: their numbers in a row, or in a row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lie.integrators.fields import Wrapped


@dataclass(frozen=True)
class Parts:
    """How a tuple lies in one tensor: (n,), or (B, n) with samples along the leading axis of every part."""

    shapes: tuple[torch.Size, ...]
    batched: bool

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.flatten(1) if self.batched else x.reshape(-1) for x in parts], dim=-1)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The parts of y (..., n) or (..., B, n)."""
        inner = [shape[1:] if self.batched else shape for shape in self.shapes]
        parts = y.split([shape.numel() for shape in inner], dim=-1)
        return tuple(part.reshape((*y.shape[:-1], *shape)) for part, shape in zip(parts, inner, strict=True))


@dataclass(frozen=True)
class OfParts(Wrapped):
    """A field of the joined tensor, of a field of tuples."""

    parts: Parts

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.parts.batched:
            t = t.reshape(-1, *([1] * (len(self.parts.shapes[0]) - 1)))
        velocity = self.field(t, self.parts.split(y))
        shapes = [tuple(x.shape) for x in velocity] if isinstance(velocity, tuple | list) else type(velocity).__name__
        if shapes != [tuple(x) for x in self.parts.shapes]:
            raise ValueError(
                f"expected a tuple of the state's shapes {[tuple(x) for x in self.parts.shapes]} from field(t, y), "
                f"got {shapes}"
            )
        return self.parts.join(velocity)


@dataclass(frozen=True)
class AsParts:
    """A map of the joined tensor, such as a norm, of one of tuples."""

    function: Callable
    parts: Parts
    joins: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        value = self.function(self.parts.split(y))
        return self.parts.join(value) if self.joins else value


def parts_of(y0: Sequence[Tensor], *, batched: bool) -> Parts:
    """Raise unless ``y0`` holds floating-point tensors of one dtype, and of one batch where that is needed."""
    for x in y0:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError("expected a state of floating-point tensors; use torch.as_tensor")
    if not y0 or len({x.dtype for x in y0}) > 1:
        raise TypeError(f"expected tensors of one dtype in a state, got {[x.dtype for x in y0]}")
    batched = batched and any(x.ndim != 1 for x in y0)  # parts of one axis make one sample
    if batched and (len({x.ndim for x in y0}) > 1 or y0[0].ndim == 0 or len({len(x) for x in y0}) > 1):
        raise ValueError(
            "a step size for each sample needs the samples along the leading axis of every part, and parts of as many "
            f"axes, got {[tuple(x.shape) for x in y0]}"
        )
    return Parts(tuple(x.shape for x in y0), batched)


@dataclass(frozen=True)
class OfPartsEvent:
    """An event of the joined tensor, of an event of tuples."""

    event: Callable
    parts: Parts

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.parts.batched:
            t = t.reshape(-1, *([1] * (len(self.parts.shapes[0]) - 1)))
        return self.event(t, self.parts.split(y))


def mixed_norm(parts: Sequence[Tensor]) -> Tensor:
    """The largest root mean square of the parts, torchdiffeq's norm of tuples."""
    return torch.stack([x.square().mean().sqrt() for x in parts if x.numel()]).amax()
