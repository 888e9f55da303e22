"""Devices and seeds given on a command line."""

from __future__ import annotations

import torch

from lie.run.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is the accelerator if there is one, else the CPU.

    Raises:
        UserError: if the name is no device or the device is not on this machine.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} is not available here ({reason}); try --device cpu") from None
    return device


def seeded_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on ``device`` with ``seed``; same seed, same numbers."""
    return torch.Generator(device=device).manual_seed(seed)
