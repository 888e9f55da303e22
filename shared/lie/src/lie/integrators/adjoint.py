r"""The discrete adjoint with checkpoints: the gradient of the steps that were taken, in memory of order sqrt(n).

The n steps are cut into about sqrt(n) segments. Forward keeps the state at their ends alone; backward runs each
segment once more with its graph, from the last to the first. The gradient is that of the numerical solution itself,
not of a second integration as in the continuous adjoint (Griewank and Walther 2008, Evaluating Derivatives, ch. 12).

torch's own checkpoints do not go together with torch.func inside the field, which Hamiltonian fields use; these do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, ...]


def segments(count: int) -> list[range]:
    """The steps 0 to ``count`` in runs of about the square root of their number."""
    length = max(1, math.isqrt(max(count - 1, 0)) + 1)
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def captured_leaves(function: Callable[..., State], *state: Tensor) -> list[Tensor]:
    """The tensors that require gradients and enter ``function`` otherwise than by its arguments: parameters.

    Found in the graph of one call.
    """
    if not torch.is_grad_enabled():
        return []
    with torch.enable_grad():
        probes = [x.detach().requires_grad_() for x in state]
        pending = [x.grad_fn for x in function(*probes) if x.grad_fn is not None]
    known = {id(x) for x in probes}
    leaves, seen = [], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            known.add(id(leaf))
            leaves.append(leaf)
        pending.extend(following for following, _ in node.next_functions if following is not None)
    return leaves


class _Segment(torch.autograd.Function):
    """A function of a state and of leaves, whose graph is made when its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., State], count: int, *inputs: Tensor) -> State:
        ctx.function, ctx.count = function, count
        ctx.save_for_backward(*inputs)
        return function(*inputs[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        leaves = list(inputs[ctx.count :])
        # Where a graph of the gradient is wanted, grad mode is on here: the state then keeps its own history, and the
        # gradient of the gradient is found in it.
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            state = [x.view_as(x) if wanted else x.detach() for x in inputs[: ctx.count]]
            state = [x if x.requires_grad else x.detach().requires_grad_() for x in state]
            outputs = ctx.function(*state)
        pairs = [(x, g) for x, g in zip(outputs, gradients, strict=True) if x.requires_grad and g is not None]
        # Retained, because leaves may be reached through a graph that was made outside, once for all segments.
        found = torch.autograd.grad(
            [x for x, _ in pairs], [*state, *leaves], [g for _, g in pairs], retain_graph=True, allow_unused=True,
            create_graph=wanted,
        )  # fmt: skip
        return (None, None, *found)


def run_segment(function: Callable[..., State], leaves: Sequence[Tensor], *state: Tensor) -> State:
    """``function(*state)``, run again when its gradient is asked for; ``leaves`` are those of `captured_leaves`."""
    return _Segment.apply(function, len(state), *state, *leaves)  # type: ignore[no-any-return]


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
    leaves = captured_leaves(lambda *before: step(t[0], h[0], *before), *state)
    for steps in segments(len(t)):

        def segment(*before: Tensor, steps: range = steps) -> State:
            kept = []
            for i in steps:
                before = step(t[i], h[i], *before)
                if marks[i]:
                    kept.append(before[0])
            return (*before, *(x.clone() for x in kept))  # an output may not be returned twice

        result = run_segment(segment, leaves, *state)
        state, kept = result[: len(state)], result[len(state) :]
        outputs.extend(kept)
    return torch.stack(outputs)
