"""Devices and seeds given on a command line."""

from __future__ import annotations

import warnings

import torch

from lie.run.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is the accelerator if there is one, else the CPU.

    Raises:
        UserError: if the name is no device, the device is not on this machine, or it holds no numbers ("meta").
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of device types that torch will drop; the error below says enough
            device = torch.device(name)
            torch.zeros(1, device=device).item()  # "meta" has no numbers to give
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"device {name!r} is not available here ({reason}); try --device cpu") from None
    return device


def seeded_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on ``device`` with ``seed``; same seed, same numbers."""
    return torch.Generator(device=device).manual_seed(seed)
