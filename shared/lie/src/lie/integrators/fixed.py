"""The walk of every fixed-step method: equal steps from output time to output time.

A step is a function ``step(t, h, *state) -> state`` of tensors; the first of the state is what is returned, the rest
(a force, stages) is carried on. One host sync decides the numbers of steps before the loop; inside it there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from jaxtyping import Float
from torch import Tensor

from lie.integrators.adjoint import checkpointed
from lie.integrators.compiling import compiled_step

Field = Callable[[Tensor, Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[..., State]


def step_counts(t: Tensor, step_size: float | None) -> list[int]:
    """How many steps of at most ``step_size`` each interval of ``t`` takes; one for None."""
    if step_size is not None and not step_size > 0:
        raise ValueError(f"expected a positive step_size, got {step_size}; the direction comes from the times")
    # Shortened by the rounding of the times, so that a step which divides the interval is not cut once more.
    shortened = 1.0 - 4.0 * torch.finfo(t.dtype).eps
    lengths = t.diff().abs().tolist()
    return [1 if step_size is None else max(1, math.ceil(x * shortened / step_size)) for x in lengths]


def walk(
    make_step: Callable[[], Step],
    state: State,
    t: Float[Tensor, " T"],
    *,
    field: Field,
    key: Hashable,
    step_size: float | None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """The first tensor of the state at the times ``t``.

    Args:
        make_step: gives ``step(t, h, *state) -> state``; called once.
        state: the state at ``t[0]``.
        t: times, (T,).
        field, key: what the compiled step is remembered by.
        step_size: largest step; None takes one step an interval.
        project: applied to the first tensor after every step.
        compile: compile the step, with an eager fallback.
        checkpoint: differentiate by the checkpointed discrete adjoint: memory of the square root of the steps.
    """
    counts = step_counts(t, step_size)
    step = compiled_step(make_step, field, (key, str(t.dtype))) if compile else make_step()

    def whole(now: Tensor, h: Tensor, *before: Tensor) -> State:
        after = step(now, h, *before)
        return after if project is None else (project(after[0]), *after[1:])

    outputs = [state[0]]
    starts, sizes, marks = [], [], []
    for index, count in enumerate(counts):
        h = (t[index + 1] - t[index]) / count
        starts.append(t[index] + h * torch.arange(count, dtype=t.dtype, device=t.device))
        sizes.append(h.expand(count))
        marks.extend([False] * (count - 1) + [True])
    if not counts:
        return torch.stack(outputs)
    now, h = torch.cat(starts).unbind(), torch.cat(sizes).unbind()
    if checkpoint:
        return checkpointed(whole, state, now, h, marks)
    for i, mark in enumerate(marks):
        state = whole(now[i], h[i], *state)
        if mark:
            outputs.append(state[0])
    return torch.stack(outputs)
