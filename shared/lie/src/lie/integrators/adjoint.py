r"""The discrete adjoint with checkpoints: the gradient of the steps that were taken, in memory of order sqrt(n).

The n steps are cut into about sqrt(n) segments. Forward keeps the state at their ends alone; backward runs each
segment once more with its graph, from the last to the first. The gradient is that of the numerical solution itself,
not of a second integration as in the continuous adjoint (Griewank and Walther 2008, Evaluating Derivatives, ch. 12).

torch's own checkpoints do not go together with torch.func inside the field, which Hamiltonian fields use; these do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lie.integrators.fields import parameters_of

State = tuple[Tensor, ...]


def segments(count: int) -> list[range]:
    """The steps 0 to ``count`` in runs of about the square root of their number."""
    length = max(1, math.isqrt(max(count - 1, 0)) + 1)
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def graph_leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The leaf tensors that the graph of ``outputs`` reaches."""
    pending = [x.grad_fn for x in outputs if x.grad_fn is not None]
    leaves, seen = [], set(pending)
    while pending:
        node = pending.pop()
        following = node.next_functions
        if not following:
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                leaves.append(leaf)
        for child, _ in following:
            if child is not None and child not in seen:
                seen.add(child)
                pending.append(child)
    return leaves


def captured_leaves(function: Callable[..., State], *state: Tensor, field: object = None) -> list[Tensor]:
    """The tensors that require gradients and enter ``function`` otherwise than by its arguments: parameters.

    Those in the graph of one call, and those of the module that ``field`` is: it may use some at later times only.
    """
    if not torch.is_grad_enabled():
        return []
    with torch.enable_grad():
        probes = [x.detach().requires_grad_() for x in state]
        leaves = graph_leaves(function(*probes))
    known = {id(x) for x in probes}
    return [*{id(x): x for x in (*leaves, *parameters_of(field)) if id(x) not in known}.values()]


class _Segment(torch.autograd.Function):
    """A function of a state and of leaves, whose graph is made when its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., State], count: int, *inputs: Tensor) -> State:
        ctx.function, ctx.count, ctx.leaves = function, count, inputs[count:]
        ctx.save_for_backward(*inputs)  # the leaves too: changed in place since, they raise
        # Without its history: the gradient of a segment must not reach the leaves through the segments before it.
        return function(*(x.detach() for x in inputs[:count]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        function, count = ctx.function, ctx.count
        state, leaves = ctx.saved_tensors[:count], ctx.leaves
        present: list[bool] = []

        def slopes(*inputs: Tensor) -> State:
            """The gradients by state and leaves, without the absent ones, from the state and the given gradients."""
            found = _gradients(function, inputs[:count], leaves, inputs[count:])
            present[:] = [x is not None for x in found]
            distinct = {id(x): x for x in found if x is not None}
            # An output may not be returned twice.
            return tuple(distinct.pop(id(x)) if id(x) in distinct else x.clone() for x in found if x is not None)

        inputs = (*state, *gradients)
        # Where a graph of the gradient is wanted, grad mode is on here. The gradient is then a segment of its own, a
        # function of the state, the gradients and the leaves; so derivatives of every order are those of the steps.
        if torch.is_grad_enabled():
            found = iter(run_segment(slopes, leaves, *inputs))
        else:
            found = iter(slopes(*(x.detach() for x in inputs)))
        return (None, None, *(next(found) if x else None for x in present))


def _gradients(
    function: Callable[..., State], state: Sequence[Tensor], leaves: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients by ``state`` and ``leaves`` of the outputs of ``function``, weighted by ``gradients``."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        state = [x if x.requires_grad else x.detach().requires_grad_() for x in state]
        outputs = function(*state)
    chosen = [i for i, output in enumerate(outputs) if output.requires_grad]
    check_leaves(graph_leaves(outputs[i] for i in chosen), [*state, *leaves])
    # Retained, because leaves may be reached through a graph that was made outside, once for all segments.
    return torch.autograd.grad(
        [outputs[i] for i in chosen], [*state, *leaves], [gradients[i] for i in chosen], retain_graph=True,
        allow_unused=True, create_graph=wanted,
    )  # fmt: skip


def check_leaves(used: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raise where a leaf is ``used`` that is not among the ``known`` ones."""
    names = {id(x) for x in known}
    unknown = [x for x in used if id(x) not in names]
    if unknown:
        raise ValueError(
            f"the field depends on a tensor of shape {tuple(unknown[0].shape)} that requires gradients in later steps, "
            "but not in the first: checkpoints would lose its gradient; make it a parameter of a torch.nn.Module that "
            "is the field, or integrate without checkpoint or adjoint"
        )


def run_segment(function: Callable[..., State], leaves: Sequence[Tensor], *state: Tensor) -> State:
    """``function(*state)``, run again when its gradient is asked for; ``leaves`` are those of `captured_leaves`."""
    return _Segment.apply(function, len(state), *state, *leaves)  # type: ignore[no-any-return]


def checkpointed(
    step: Callable[..., State],
    state: State,
    t: Sequence[Tensor],
    h: Sequence[Tensor],
    marks: Sequence[bool],
    field: object = None,
) -> Tensor:
    """The first tensor of the state at the start and after the marked steps, (1 + number of marks, ...).

    Args:
        step: ``step(t, h, *state) -> state``.
        state: the state before the first step.
        t, h: time and size of each step.
        marks: after which steps the state is an output.
        field: the field of the step; where it is a module, its parameters receive gradients from every step.
    """
    outputs = [state[0]]
    leaves = captured_leaves(lambda *before: step(t[0], h[0], *before), *state, field=field)
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
