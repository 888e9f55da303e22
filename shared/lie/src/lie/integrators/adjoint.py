r"""The discrete adjoint with checkpoints: the gradient of the steps that were taken, in memory of order sqrt(n).

The n steps are cut into about sqrt(n) segments. Forward keeps the state at their ends alone; backward runs each
segment once more with its graph, from the last to the first. The gradient is that of the numerical solution itself,
not of a second integration as in the continuous adjoint (Griewank and Walther 2008, Evaluating Derivatives, ch. 12).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

State = tuple[Tensor, ...]


def segments(count: int) -> list[range]:
    """The steps 0 to ``count`` in runs of about the square root of their number."""
    length = max(1, math.isqrt(max(count - 1, 0)) + 1)
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def run_segment(function: Callable[..., State], *state: Tensor) -> State:
    """``function(*state)``, computed again when its gradient is asked for instead of kept."""
    result = recomputed(function, *state, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, tuple)
    return result


def checkpointed(
    step: Callable[..., State], state: State, t: Sequence[Tensor], h: Sequence[Tensor], marks: Sequence[bool]
) -> Tensor:
    """The first tensor of the state at the start and after the marked steps, (1 + number of marks, ...).

    Args:
        step: ``step(t, h, *state) -> state``.
        state: the state before the first step.
        t, h: time and size of each step.
        marks: after which steps the state is an output.
    """
    outputs = [state[0]]
    for steps in segments(len(t)):

        def segment(*before: Tensor, steps: range = steps) -> State:
            kept = []
            for i in steps:
                before = step(t[i], h[i], *before)
                if marks[i]:
                    kept.append(before[0])
            return (*before, *kept)

        result = run_segment(segment, *state)
        state, kept = result[: len(state)], result[len(state) :]
        outputs.extend(kept)
    return torch.stack(outputs)
