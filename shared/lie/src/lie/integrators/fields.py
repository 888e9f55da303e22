"""Fields as the integrators call them: wrappers that a compiled step is still remembered by, and their parameters."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Wrapped:
    """A field made of a field. Two of the same parts are equal, so that a step is compiled once for both."""

    field: Callable


@dataclass(frozen=True)
class _Cast(Wrapped):
    """The velocities in the dtype of the state: a time in float64 would make those of a float32 state float64."""

    dtype: torch.dtype

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t, y).to(self.dtype)


@dataclass(frozen=True)
class Finer(Wrapped):
    """The field of a state in a finer dtype, of a field of a state in ``dtype``."""

    dtype: torch.dtype

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t, y.to(self.dtype)).to(y.dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("callback_"):  # torchdiffeq's
            return getattr(self.field, name)
        raise AttributeError(name)


def in_dtype_of(field: Field, y0: Tensor, t: Tensor) -> Field:
    """``field``, or where times are finer than the state, ``field`` with velocities in the state's dtype."""
    return field if torch.promote_types(t.dtype, y0.dtype) == y0.dtype else _Cast(field, y0.dtype)


def parameters_of(field: object) -> list[Tensor]:
    """The parameters that require gradients of the module which ``field`` is, wraps or is a method of."""
    while not isinstance(field, torch.nn.Module):
        if isinstance(field, Wrapped):
            field = field.field
        elif isinstance(field, partial):
            field = field.func
        elif isinstance(field, types.MethodType):
            field = field.__self__
        else:
            return []
    return [x for x in field.parameters() if x.requires_grad]


def unwrapped(field: object) -> object:
    """The user's field behind our wrappers."""
    while isinstance(field, Wrapped):
        field = field.field
    return field
