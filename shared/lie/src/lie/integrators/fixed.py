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
from lie.integrators.checks import check_count, check_step_size
from lie.integrators.compiling import compiled_step
from lie.integrators.fields import Field
from lie.integrators.transforms import concrete, differentiates_forward

State = tuple[Tensor, ...]
Step = Callable[..., State]
_EVALUATIONS = 16  # of the field in one compiled call, whose own cost its steps share


def step_counts(t: Tensor, step_size: float | None) -> list[int]:
    """How many steps of at most ``step_size`` each interval of ``t`` takes; one for None."""
    check_step_size(step_size)
    # Shortened by the rounding of the times, so that a step which divides the interval is not cut once more.
    shortened = 1.0 - 4.0 * torch.finfo(t.dtype).eps
    if step_size is None:
        return [1] * (len(t) - 1)
    lengths = concrete(t.diff().abs())
    if lengths.ndim > 1:
        raise ValueError("expected the same times for all samples of vmap with step_size; leave step_size out")
    check_step_size(step_size, max(lengths.tolist(), default=0.0))
    return [max(1, math.ceil(x * shortened / step_size)) for x in lengths.tolist()]


def check_iterations(iterations: int | None, compile: bool) -> None:
    """Raise for a number of iterations that is not positive, or none where the step is to be compiled."""
    if iterations is not None:
        check_count(iterations, "iterations")
    if compile and iterations is None:
        raise ValueError("a test of convergence cannot be compiled: give a number of iterations with compile=True")


def walk(
    make_step: Callable[[], Step],
    state: State,
    t: Float[Tensor, " T"],
    *,
    field: Field,
    key: Hashable,
    evaluations: int,
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
        evaluations: of the field in a step.
        step_size: largest step; None takes one step an interval.
        project: applied to the first tensor after every step.
        compile: compile the step, with an eager fallback.
        checkpoint: differentiate by the checkpointed discrete adjoint: memory of the square root of the steps.
    """
    counts = step_counts(t, step_size)
    t = t.to(torch.promote_types(t.dtype, state[0].dtype))  # steps as exact as the state
    outputs = [state[0]]
    starts, sizes, marks = [], [], []
    for index, count in enumerate(counts):
        h = (t[index + 1] - t[index]) / count
        starts.append(t[index] + h * torch.arange(count, dtype=t.dtype, device=t.device))
        sizes.append(h.expand(count))
        marks.extend([False] * (count - 1) + [True])
    if not counts:
        return torch.stack(outputs)
    now, h = torch.cat(starts), torch.cat(sizes)
    key = (key, str(t.dtype))
    if compile and project is None and not checkpoint:
        return _in_blocks(make_step, state, now, h, marks, field, key, max(1, _EVALUATIONS // evaluations))
    step = compiled_step(make_step, field, key) if compile else make_step()

    def whole(now: Tensor, h: Tensor, *before: Tensor) -> State:
        after = step(now, h, *before)
        return after if project is None else (project(after[0]), *after[1:])

    if checkpoint and not differentiates_forward():
        return checkpointed(whole, state, now.unbind(), h.unbind(), marks, field)
    for at, size, mark in zip(now.unbind(), h.unbind(), marks, strict=True):
        state = whole(at, size, *state)
        if mark:
            outputs.append(state[0])
    return torch.stack(outputs)


def _in_blocks(
    make_step: Callable[[], Step],
    state: State,
    now: Tensor,
    h: Tensor,
    marks: list[bool],
    field: Field,
    key: Hashable,
    length: int,
) -> Tensor:
    """The marked states, several steps in one compiled call; the last call is filled up with steps of size 0."""
    count = len(marks)
    length = min(length, count)

    def make_block() -> Step:
        step = make_step()

        def block(now: Tensor, h: Tensor, *before: Tensor) -> State:
            passed = []
            for i in range(length):
                before = step(now[i], h[i], *before)
                passed.append(before[0])
            return (torch.stack(passed), *before)

        return block

    block = compiled_step(make_block, field, (key, length))
    missing = -count % length
    starts = torch.cat([now, (now[-1:] + h[-1:]).expand(missing)]).split(length)
    sizes = torch.cat([h, torch.zeros_like(h[:1]).expand(missing)]).split(length)
    outputs = [state[0]]
    for number, (at, size) in enumerate(zip(starts, sizes, strict=True)):
        passed, *rest = block(at, size, *state)
        state = tuple(rest)
        outputs.extend(passed[i] for i, mark in enumerate(marks[number * length : (number + 1) * length]) if mark)
    return torch.stack(outputs)
