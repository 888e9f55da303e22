"""Checks of what users pass to a group: the kind of a tensor, its dtype, and whether two of them fit together."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from lie.groups.precision import FLOATING


def check_tensor(x: Any, name: str) -> None:
    """Raise for what is no tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected {name} as a tensor, got {type(x).__name__}; use torch.as_tensor")


def check_floating(x: Tensor, name: str) -> None:
    """Raise unless the dtype is one that the groups compute in."""
    if x.dtype not in FLOATING:
        raise TypeError(
            f"expected floating-point {name} (float16, bfloat16, float32 or float64), got {x.dtype}; "
            "use x.to(torch.float32)"
        )


def check_alike(a: Tensor, b: Tensor, names: str) -> None:
    """Raise unless two tensors have one dtype and one device; ``names`` is what an error calls the two."""
    if a.dtype != b.dtype:
        raise TypeError(f"expected {names} of one dtype, got {a.dtype} and {b.dtype}; use x.to({a.dtype})")
    if a.device != b.device:
        raise ValueError(f"expected {names} on one device, got {a.device} and {b.device}; use x.to({str(a.device)!r})")


def check_batches(first: torch.Size, second: torch.Size, names: str, hint: str = "insert axes of size 1") -> None:
    """Raise unless two batches broadcast."""
    if first == second:
        return
    # By hand: torch.broadcast_shapes takes as long as three small operations, at each call.
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b and a != 1 and b != 1:
            raise ValueError(
                f"expected {names} whose batches broadcast, got {tuple(first)} and {tuple(second)}; {hint}"
            )


def check_num_samples(num_samples: Any, generator: Any) -> None:
    """Raise unless ``num_samples`` is None or a positive integer, and the generator is None or torch's."""
    if num_samples is not None:
        if not isinstance(num_samples, int | torch.SymInt) or isinstance(num_samples, bool):
            raise TypeError(f"expected num_samples as an integer, got {num_samples!r}")
        if num_samples < 1:
            raise ValueError(f"expected num_samples of at least 1, got {num_samples}")
    check_generator(generator)


def check_generator(generator: Any) -> None:
    """Raise unless the generator is None or torch's."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"expected a torch.Generator, got {generator!r}; for a seed use torch.Generator().manual_seed(0)"
        )


def floating_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype asked for, torch's default for None.

    Raises:
        TypeError: for one that the groups do not compute in.
    """
    dtype = dtype or torch.get_default_dtype()
    if dtype not in FLOATING:
        raise TypeError(f"expected a dtype of float16, bfloat16, float32 or float64, got {dtype}")
    return dtype


def sizes(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The sizes of a batch, given one by one or as one tuple."""
    if len(shape) == 1 and isinstance(shape[0], tuple | list | torch.Size):
        shape = tuple(shape[0])
    if not all(isinstance(size, int | torch.SymInt) and not isinstance(size, bool) for size in shape):
        raise TypeError(f"expected integer sizes, as sample(3, 2), got {shape}")
    if any(size < 0 for size in shape):
        raise ValueError(f"expected sizes of at least 0, got {shape}")
    return shape


def indices(values: Any, name: str) -> tuple[int, ...]:
    """A sequence of integers as a tuple; a number with a fraction is refused, not cut."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"expected {name} as a sequence of integers, such as (0, 1), got {values!r}") from None
