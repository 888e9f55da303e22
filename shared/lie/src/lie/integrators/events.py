r"""The first time at which a function of time and state changes its sign, and the state there, with derivatives.

The event is located on the continuous extension of `dopri5` or `dop853`, by the sign at four points of every step and
by bisection. The method then integrates to that time, and Newton's steps along

.. math::  y(t_e + \delta) = y_e + \delta f + \tfrac12 \delta^2 \dot f

remove what remains. They are part of the graph: the event time has the derivatives of the implicit function,
:math:`dt_e = -c_\theta / \dot c`, also by parameters of the event, first and second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lie.integrators.adaptive import dense_solution
from lie.integrators.errors import IntegrationError
from lie.integrators.fields import Field, Wrapped

Event = Callable[[Tensor, Any], Tensor]
_DOUBLINGS = 40  # of the horizon, after which there is no event
_STEPS = 10_000  # attempted in all, after which there is none either
_FRACTIONS = (0.25, 0.5, 0.75, 1.0)
_REFINEMENTS = 8


@dataclass(frozen=True)
class Events:
    """Values (B, K) of all events, for a state (B, ...); of one sample (1, K) for a state that is one."""

    functions: tuple[Event, ...]
    single: bool

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The values at ``t`` (B,)."""
        batch = len(y)
        if self.single:
            values = [_checked(f(t[0], y[0])).reshape(1, -1) for f in self.functions]
        else:
            now = t.reshape(-1, *([1] * (y.ndim - 1)))
            values = [_checked(f(now, y)) for f in self.functions]
            for x in values:
                if x.ndim == 0 or len(x) != batch:
                    raise ValueError(
                        f"expected events of every sample, ({batch},) or ({batch}, K), got {tuple(x.shape)}; with one "
                        "step size for the batch, an event may be a number"
                    )
        return torch.cat([x.reshape(batch, -1) for x in values], -1)


def _checked(value: object) -> Tensor:
    """Raise unless an event returned a floating-point tensor, whose sign can change."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"expected an event to return a floating-point tensor that changes its sign, got {got}; return the "
            "difference of the two sides of a condition"
        )
    return value


@dataclass(frozen=True)
class _Unit(Wrapped):
    """The field in the time from 0 to 1 of each sample."""

    start: Tensor
    length: Tensor

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        column = (-1, *([1] * (y.ndim - 1)))
        length = self.length.reshape(column)
        now = self.start.reshape(column) + x.to(length.dtype) * length
        return (length * self.field(now, y)).to(y.dtype)


def as_events(events: Event | Sequence[Event]) -> tuple[Event, ...]:
    functions = tuple(events) if isinstance(events, Sequence) else (events,)
    if not functions or not all(callable(f) for f in functions):
        raise TypeError(f"expected events as functions (t, y) -> value, got {events!r}")
    return functions


def until_event(
    solve: Callable[[Field, Tensor, Tensor], Tensor],
    field: Field,
    y0: Tensor,
    t: Tensor,
    events: Events,
    order: int,
    tolerances: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The times (B,) of the first event and the states (2, B, ...) at ``t[0]`` and there.

    Args:
        solve: ``solve(field, y0, t)``, states at the times by the method.
        field: of the samples y0 (B, ...), with a time (B, 1, ..., 1).
        t: start, and a time on the side to look on.
        events: values of all samples.
        order, tolerances: of the solution that locates the event.
    """
    with torch.no_grad():
        at, which = _locate(field, y0.detach(), t.detach(), events, order, tolerances)
    start = t[0].to(at.dtype)
    column = (-1, *([1] * (y0.ndim - 1)))
    eps = torch.finfo(y0.dtype).eps
    for _ in range(_REFINEMENTS):
        length = at - start
        if events.single:
            end = solve(field, y0, torch.stack([start, at[0]]))[-1]
        else:
            unit = torch.tensor([0.0, 1.0], dtype=at.dtype, device=at.device)
            end = solve(_Unit(field, start.expand_as(at), length), y0, unit)[-1]
        delta = _newton(field, events, which, at, end, length.detach(), eps)
        if bool((delta.detach().abs() <= 1e-5 * length.detach().abs()).all()):
            break  # the cube of it, which the expansion leaves out, is at rounding
        at = (at + delta).detach()
    else:
        raise IntegrationError(
            "the event was not met by the method", "take a smaller step_size", time=float(at[0]),
            step_size=float("nan"), samples=[], reached=None,
        )  # fmt: skip
    now, state = at, end
    f, slope = _motion(field, now, state, length.detach(), eps)
    shift = delta.to(state.dtype).reshape(column)
    end = state + shift * f + 0.5 * shift.square() * slope
    return (at + delta).to(t.dtype), torch.stack([y0, end])


def _motion(field: Field, t: Tensor, y: Tensor, length: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The velocity and its rate along the motion, by a central difference."""
    column = (-1, *([1] * (y.ndim - 1)))
    now = t.reshape(column)
    step = (eps ** (1 / 3) * length).reshape(column)
    f = field(now, y)
    ahead, behind = (field(now + s * step, y + (s * step).to(y.dtype) * f) for s in (1, -1))
    return f, (ahead - behind) / (2 * step).to(y.dtype)


def _newton(field: Field, events: Events, which: Tensor, t: Tensor, y: Tensor, length: Tensor, eps: float) -> Tensor:
    """By how much the event is later than t (B,), where the state is y; four steps, whose error squares or better."""
    column = (-1, *([1] * (y.ndim - 1)))
    f, slope = _motion(field, t, y, length, eps)

    def value(delta: Tensor) -> Tensor:
        shift = delta.to(y.dtype).reshape(column)
        state = y + shift * f + 0.5 * shift.square() * slope
        return events(t + delta, state).gather(1, which.unsqueeze(-1)).squeeze(-1).to(t.dtype)

    delta, step = torch.zeros_like(t), eps ** (1 / 3) * length
    for _ in range(4):
        rate = (value(delta + step) - value(delta - step)) / (2 * step)
        delta = delta - value(delta) / rate
    if not bool(torch.isfinite(delta.detach()).all()):
        raise ValueError("the event touches zero without crossing it there, and has no time that can be differentiated")
    return delta


def _locate(
    field: Field, y0: Tensor, t: Tensor, events: Events, order: int, tolerances: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The times (B,) at which the first event changes its sign, and which it is."""
    clock = torch.promote_types(torch.float64, t.dtype)
    start, horizon = t[0].to(clock), (t[1] - t[0]).to(clock)
    begin = events(start.to(torch.promote_types(t.dtype, y0.dtype)).expand(len(y0)), y0)
    signs = torch.sign(begin)  # 0 where an event starts at zero: then the first sign after it counts
    batch, y = len(y0), y0
    low, high = start.expand(batch).clone(), torch.full((batch,), torch.nan, dtype=clock, device=t.device)
    which = torch.zeros(batch, dtype=torch.long, device=t.device)
    done = torch.zeros(batch, dtype=torch.bool, device=t.device)
    roots = torch.zeros(batch, dtype=clock, device=t.device)
    budget = _STEPS
    for _ in range(_DOUBLINGS):
        if budget < 1:
            break
        ends = torch.stack([start, start + horizon])
        dense = dense_solution(field, y, ends, order=order, return_reached=True, max_steps=budget, **tolerances)
        budget -= dense.starts.shape[1]
        crossed = torch.zeros_like(done)
        for step in range(dense.starts.shape[1]):
            if bool((done | crossed).all()):
                break
            accepted = dense.ends[:, step] > dense.starts[:, step]
            for fraction in _FRACTIONS:
                now = dense.direction * (dense.starts[:, step] + fraction * dense.sizes[:, step])
                new = torch.sign(events(now, dense.at(now.unsqueeze(0))[0]))
                active = accepted & ~done & ~crossed
                changed = (signs * new < 0) | ((signs != 0) & (new == 0))
                hit = active & changed.any(-1)
                high = torch.where(hit, now, high)
                which = torch.where(hit, changed.to(torch.int8).argmax(-1), which)
                crossed = crossed | hit
                going = active & ~hit
                low = torch.where(going, now, low)
                signs = torch.where(going.unsqueeze(-1) & (signs == 0), new, signs)
        if bool(crossed.any()):
            sign = signs.gather(1, which.unsqueeze(-1)).squeeze(-1)
            a, b = low.clone(), high.nan_to_num(nan=float(ends[1]))
            for _ in range(60):
                middle = 0.5 * (a + b)
                value = events(middle, dense.at(middle.unsqueeze(0))[0]).gather(1, which.unsqueeze(-1)).squeeze(-1)
                before = torch.sign(value) == sign
                a, b = torch.where(before, middle, a), torch.where(before, b, middle)
            roots = torch.where(crossed, b, roots)
        done = done | crossed
        if bool(done.all()):
            return roots, which
        y = dense.states[-1]
        running = (~done).reshape(-1, *([1] * (y.ndim - 1)))
        if not bool(torch.isfinite(torch.where(running, y, torch.zeros_like(y))).all()):
            break
        y = torch.where(running, y, y0)
        start, horizon = ends[1], 2 * horizon
        low = torch.where(done, low, start)
    raise IntegrationError(
        "no event before the solution ends", "check the sign of the event and the direction of the times",
        time=float(start), step_size=float("nan"), samples=(~done).nonzero().squeeze(-1).tolist(), reached=None,
    )  # fmt: skip
