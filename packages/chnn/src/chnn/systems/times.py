"""How many output times a trajectory may have."""

from __future__ import annotations

from lie.run import UserError

MAX_TIMES = 100_000_000
"""Output times of a trajectory: those of one point in the plane would take 3.2 GB."""


def check_times(dt: float, horizon: float) -> int:
    """The number of output times from 0 to ``horizon`` by ``dt``, both positive.

    Raises:
        UserError: for more than `MAX_TIMES`, before memory is taken for them.

    >>> check_times(0.1, 1.0)
    11
    """
    if not horizon / dt < MAX_TIMES:
        raise UserError(
            f"expected at most {MAX_TIMES} output times, got --horizon {horizon:g} by --dt {dt:g}; give a larger --dt "
            "or a shorter --horizon"
        )
    return round(horizon / dt) + 1
