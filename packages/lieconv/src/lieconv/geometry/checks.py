"""Checks of arguments that every function and layer of lieconv shares."""

from __future__ import annotations

import torch
from lie.groups import LieGroup


def check_group(group: LieGroup) -> None:
    """Raise if ``group`` is a class, a name or anything else than a group."""
    if isinstance(group, type):
        raise TypeError(f"expected a group, got the class {group.__name__}; make one: {group.__name__}()")
    if isinstance(group, str):
        raise TypeError(f"expected a group, got the name {group!r}; use lie.groups.by_name({group!r})")
    if not isinstance(group, LieGroup):
        raise TypeError(f"expected a group of lie.groups or your own LieGroup, got {type(group).__name__}")


def check_numbers(**numbers: int) -> None:
    """Raise if one of the named counts is not an integer of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"expected an integer {name}, got {value!r}")
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")


def check_flags(**flags: bool) -> None:
    """Raise if one of the named switches is not a bool; any text or number would otherwise count as True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"expected True or False as {name}, got {value!r}")


def check_generator(generator: torch.Generator | None) -> None:
    """Raise if ``generator`` is neither None nor a torch.Generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"expected a torch.Generator, got {generator!r}; use torch.Generator().manual_seed(...)")
