"""Errors a user can mend: one clear line that says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor


class UserError(ValueError):
    """A mistake in what the user gave; a command prints it on one line and exits with code 2."""


class WriteError(UserError):
    """A file that the system does not let us write: the disk is full, or not ours."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a ``name`` that is no known ``kind``, with the nearest known names.

    >>> print(unknown_name("group", "se22", ["se2", "so2", "trivial"]))
    unknown group 'se22': did you mean 'se2' or 'so2'? known: se2, so2, trivial
    """
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in names}
    close = [folded[key] for key in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.3)]
    hint = f" did you mean {' or '.join(repr(candidate) for candidate in close)}?" if close else ""
    shown = names if len(names) <= 20 else [*names[:20], f"... ({len(names)} in all)"]
    return UserError(f"unknown {kind} {name!r}:{hint} known: {', '.join(shown)}")


def check_finite(name: str, values: Tensor, *, remedy: str = "clean the data and run again") -> None:
    """Raise `UserError` with the count, the first index and the remedy if ``values`` holds NaN or infinity."""
    bad = ~torch.isfinite(values)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise UserError(
            f"expected finite {name}, got {int(bad.sum())} NaN or infinite of {values.numel()} values "
            f"(first at index {first}); {remedy}"
        )
