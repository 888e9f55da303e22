r"""Explicit Runge-Kutta with a step size per sample and dense output: Dormand-Prince 5(4) and DOP853.

Every sample of a batch has its own time, step and error control, so that a stiff one neither slows nor changes the
others. A step (stages, error, acceptance, next size) is one function without a branch, which `torch.compile` makes
one kernel. Outputs come from the continuous extension of the accepted steps and do not shorten them.

The error of a step is measured by the maximum over the entries of ``|error| / (atol + rtol |y|)``: unlike a mean it
is the same number however many samples there are beside it, to the last bit.

Source: Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, sections II.4 to II.6 and II.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.precision import FLOATING
from lie.integrators.adjoint import captured_leaves, run_segment, segments
from lie.integrators.checks import check_count, check_first_step, check_tolerances, entrance
from lie.integrators.compiling import compiled_step
from lie.integrators.errors import IntegrationError
from lie.integrators.fields import Field, in_dtype_of
from lie.integrators.tableaux import DOP853, DOPRI5, LARGEST_FACTOR, SAFETY, SMALLEST_FACTOR, Row, Tableau
from lie.integrators.transforms import anywhere, concrete, differentiates_forward, largest, positions

_FLUSH = 2**22  # numbers kept of the steps before the outputs within them are written
_STAGES = 28  # of the attempts in one compiled call, whose own cost they share: 4 of dopri5, 1 of dop853


@entrance(per_sample=True, half=False)
def dopri5(
    field: Field,
    y0: Float[Tensor, "B *state"],
    t: Float[Tensor, " T"],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    first_step: float | None = None,
    max_steps: int = 100_000,
    norm: Callable[[Tensor], Tensor] | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
    return_reached: bool = False,
) -> Float[Tensor, "T B *state"]:
    """The states at ``t`` by Dormand and Prince's order 5, with a step size for each sample.

    Args:
        field: velocity ``field(t, y)`` of all samples, each of its own state alone; t has shape (B, 1, ..., 1) and
            broadcasts against y.
        y0: initial states, samples along the leading axis.
        t: times, (T,), strictly increasing or strictly decreasing.
        rtol, atol: relative and absolute tolerance of the error of one step, entry by entry.
        first_step: size of the first step; None finds one per sample.
        max_steps: attempted steps after which to give up.
        norm: of the error over the tolerance, (B, *state) -> (B,), a step is accepted up to 1; None is the maximum of
            the entries.
        project: applied to every accepted state, (B, *state) -> (B, *state); outputs are then steps, not
            interpolated, so that they are projected too.
        compile: compile the step; where the field cannot be, run eagerly and log the reason once.
        checkpoint: differentiate by the discrete adjoint with checkpoints: the steps are found without a graph, then
            taken again; memory of the square root of their number, for two more forward passes.
        return_reached: return what was reached, NaN after it, in place of an error.

    Returns:
        States at the times, (T, B, ...). The gradient is that of the steps taken; their sizes count as constants.

    Raises:
        IntegrationError: on step underflow, values that are not finite, or too many steps; names the time, the step
            and the samples, and holds what was reached.

    Laws: a sample's result is the same, bit for bit, whatever samples are beside it, where the field computes each
    sample by the same operations.
    """
    options = _Options(DOPRI5, rtol, atol, first_step, max_steps, project, compile, checkpoint, return_reached, norm)
    return _solve(field, y0, t, options)


@entrance(per_sample=True, half=False)
def dop853(
    field: Field,
    y0: Float[Tensor, "B *state"],
    t: Float[Tensor, " T"],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    first_step: float | None = None,
    max_steps: int = 100_000,
    norm: Callable[[Tensor], Tensor] | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
    return_reached: bool = False,
) -> Float[Tensor, "T B *state"]:
    """As `dopri5`, of order 8 with dense output of order 7: fewer steps where the tolerance is tight."""
    options = _Options(DOP853, rtol, atol, first_step, max_steps, project, compile, checkpoint, return_reached, norm)
    return _solve(field, y0, t, options)


@dataclass(frozen=True)
class _Options:
    tableau: Tableau
    rtol: float
    atol: float
    first_step: float | None
    max_steps: int
    project: Callable[[Tensor], Tensor] | None
    compile: bool
    checkpoint: bool
    return_reached: bool
    norm: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, positive=True)
        check_first_step(self.first_step)
        check_count(self.max_steps, "max_steps")


@dataclass
class _Record:
    """Attempted steps, stacked when outputs are written."""

    times: list[Tensor]
    """Start, size and end, (S, 3, B, 1) each."""
    polynomial: list[Tensor]
    """Coefficients of the continuous extension, (S, C, B, n), or the final states, (S, 1, B, n)."""


def _solve(field: Field, y0: Tensor, t: Tensor, options: _Options, steps: _Record | None = None) -> Tensor:
    if y0.ndim < 1 or y0.shape[0] == 0:
        raise ValueError(f"expected samples along the leading axis, shape (B, ...), got {tuple(y0.shape)}")
    if len(t) == 1:
        return y0.unsqueeze(0)
    shape = y0.shape
    # The clock is in float64 where there is one: a step shorter than the rounding of a late time would be lost. The
    # field has the time in the finer of the dtypes of times and state.
    shown = torch.promote_types(t.dtype, y0.dtype)
    times = t.to(shown if t.device.type == "mps" else torch.float64)
    field = in_dtype_of(field, y0, t)
    direction = 1.0 if bool(largest(times[1] > times[0])) else -1.0
    times = direction * times  # increasing from here on
    column = (-1,) + (1,) * (y0.ndim - 1)

    def velocity(now: Tensor, y: Tensor) -> Tensor:  # (B, 1), (B, n)
        return direction * field((direction * now).to(shown).reshape(column), y.reshape(shape)).reshape(y.shape)

    y = y0.reshape(shape[0], -1)
    project = options.project
    projected = None if project is None else lambda state: project(state.reshape(shape)).reshape(state.shape)

    lands = projected is not None
    together = max(1, _STAGES // len(options.tableau.c)) if options.compile and not lands else 1

    def make_attempt() -> Callable[..., tuple[Tensor, ...]]:
        return _attempts_of(_attempt_of(options, velocity, projected), together)

    def make_again() -> Callable[..., tuple[Tensor, ...]]:
        return _again_of(options.tableau, velocity, projected)

    key = (options.tableau.order, options.rtol, options.atol, direction, shape, y0.dtype, shown, project, options.norm)
    norm = options.norm
    if norm is not None:
        options = replace(options, norm=lambda errors: norm(errors.reshape(shape)))
    attempt = compiled_step(make_attempt, field, key) if options.compile else make_attempt()
    if options.checkpoint and not differentiates_forward():
        with torch.no_grad():
            taken: list[Tensor] = []
            _integrate(velocity, attempt, y, times, options, direction, lands, taken)
        again = compiled_step(make_again, field, ("again", *key)) if options.compile else make_again()
        out = _replay(again, velocity, y, times, lands, taken, field)
    else:
        out = _integrate(velocity, attempt, y, times, options, direction, lands, None, steps)
    return out.view(len(t), *shape)


def dense_solution(
    field: Field, y0: Tensor, t: Tensor, *, order: int, return_reached: bool = False, **options: Any
) -> DenseOutput:
    """The continuous extension of the steps of `dopri5` (order 5) or `dop853` (8), from ``t[0]`` to ``t[-1]``."""
    given = {"rtol": 1e-7, "atol": 1e-9, "first_step": None, "max_steps": 100_000, "compile": False, **options}
    tableau = {5: DOPRI5, 8: DOP853}[order]
    steps = _Record([], [])
    settings = _Options(tableau, **given, project=None, checkpoint=False, return_reached=return_reached)
    states = _solve(field, y0, t, settings, steps)
    direction = 1.0 if bool(t[-1] > t[0]) else -1.0
    starts, sizes, ends = (x.T for x in torch.cat(steps.times).squeeze(-1).unbind(1))  # (B, S) each
    return DenseOutput(t, states, direction, starts, sizes, ends, torch.cat(steps.polynomial))


# --- one attempted step ---


def _sum(weights: Row, K: list[Tensor]) -> Tensor:  # noqa: N803
    total: Tensor | None = None
    for weight, velocity in zip(weights, K, strict=True):
        if weight != 0.0:
            total = weight * velocity if total is None else total + weight * velocity
    assert total is not None
    return total


def _advance(
    tableau: Tableau, velocity: Field, now: Tensor, h: Tensor, y: Tensor, k: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The new state and all stage velocities (the last is the velocity at the new state)."""
    K = [k]  # noqa: N806
    new, step = y, h.to(y.dtype)
    for c, row in zip(tableau.c[1:], tableau.A[1:], strict=True):
        new = y + step * _sum(row, K)
        K.append(velocity(now + c * h, new))
    return new, K


def _polynomial(
    tableau: Tableau,
    velocity: Field,
    now: Tensor,
    h: Tensor,
    y: Tensor,
    new: Tensor,
    K: list[Tensor],  # noqa: N803
) -> list[Tensor]:
    """The coefficients, (B, n) each, of the continuous extension y + x (F0 + (1 - x) (F1 + x (F2 + ...)))."""
    K = list(K)  # noqa: N806
    step = h.to(y.dtype)
    for c, row in zip(tableau.extra_c, tableau.extra_A, strict=True):
        K.append(velocity(now + c * h, y + step * _sum(row, K)))
    change = new - y
    first = step * K[0] - change
    last = step * K[len(tableau.c) - 1]
    return [y, change, first, change - last - first, *(step * _sum(row, K) for row in tableau.D)]


def evaluate(coefficients: Tensor, x: Tensor) -> Tensor:
    """The continuous extension with coefficients (C, ..., n) at the fractions ``x`` (..., 1) of the step."""
    parts = coefficients.unbind(0)
    rest = 1.0 - x
    value = parts[-1]
    for i in range(len(parts) - 2, -1, -1):
        value = parts[i] + (x if i % 2 == 0 else rest) * value
    return value


def _measure(errors: Tensor, norm: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The norm (B, 1) of the errors (B, n) of each sample."""
    if norm is None:
        return errors.abs().amax(-1, keepdim=True)
    size = norm(errors)
    if size.shape != errors.shape[:1]:
        raise ValueError(
            f"expected a norm of every sample, ({len(errors)},), got {tuple(size.shape)}; take it over all axes but "
            "the first, or use dopri5 with one step size for the batch, whose norm is a number"
        )
    return size.abs().unsqueeze(-1)


def _error(options: _Options, h: Tensor, y: Tensor, new: Tensor, K: list[Tensor]) -> Tensor:  # noqa: N803
    """The error of the step over the tolerance, (B, 1), by the norm or the maximum over the entries."""
    scale = options.atol + options.rtol * torch.maximum(y.abs(), new.abs())
    errors = [_measure(h.to(y.dtype) * _sum(row, K) / scale, options.norm) for row in options.tableau.E]
    if len(errors) == 1:
        return errors[0]
    fifth, third = errors
    size = (fifth.square() + 0.01 * third.square()).sqrt()
    return torch.where(size == 0, size, fifth.square() / torch.where(size == 0, torch.ones_like(size), size))


def _power(x: Tensor, exponent: float) -> Tensor:
    """``x ** exponent``, rounded alike wherever the number lies: torch's pow differs at the end of a vector."""
    return (exponent * x.log()).exp()


def _attempt_of(
    options: _Options, velocity: Field, project: Callable[[Tensor], Tensor] | None
) -> Callable[..., tuple[Any, ...]]:
    tableau = options.tableau

    def attempt(
        now: Tensor, h: Tensor, limit: Tensor, final: Tensor, smallest: Tensor, y: Tensor, k: Tensor
    ) -> tuple[Any, ...]:
        """One step of every sample from ``now`` (B, 1) by ``h``, not beyond ``limit``; at the limit, none."""
        idle = now >= limit
        lands = now + h * (1.0 + 1e-10) >= limit
        size = torch.where(lands, limit - now, h).detach()
        new, K = _advance(tableau, velocity, now, size, y, k)  # noqa: N806
        with torch.no_grad():
            error = _error(options, size, y, new, K)
            accepted = (error <= 1.0) & ~idle  # false for NaN
            factor = SAFETY * _power(error.clamp(min=1e-12), tableau.error_exponent)
            # NaN, or infinite: as short as allowed. A rejected step may not grow.
            factor = torch.where(torch.isfinite(error), factor, torch.full_like(factor, SMALLEST_FACTOR))
            factor = factor.clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
            factor = torch.where(accepted, factor, factor.clamp(max=1.0)).to(now.dtype)
            # A step cut short by its limit says little about the next one: it may not shrink the proposal.
            wanted = torch.where(lands & accepted, torch.maximum(h, size * factor), size * factor)
            h_next = torch.where(idle, h, wanted)
            end = torch.where(accepted, torch.where(lands, limit, now + size), now)
            going = end < final
            stuck = going & ~accepted & ~idle & (h_next < smallest)
            status = (going.to(torch.int8) + stuck.to(torch.int8)).amax()  # 0 done, 1 going, 2 stuck
        # Step sizes are constants: when the start of the time moves, every later step moves with it.
        # Detached, since forward mode and outer transforms of torch.func pass through no_grad.
        end, h_next = end.detach() + (now - now.detach()), h_next.detach()
        last = K[-1]
        if project is None:
            polynomial = _polynomial(tableau, velocity, now, size, y, new, K)
        else:
            new = project(new)
            last = velocity(now + size, new)
            polynomial = [new]
        # A rejected stage may be infinite: chosen away, not multiplied away, and its gradient with it.
        y_next = torch.where(accepted, new, y)
        k_next = torch.where(accepted, last, k)
        return [now, size, end], h_next, y_next, k_next, polynomial, status

    return attempt


def _attempts_of(attempt: Callable[..., tuple[Any, ...]], count: int) -> Callable[..., tuple[Tensor, ...]]:
    """``count`` attempts one after the other; their records stacked in front, as in `_Record`."""

    def attempts(
        now: Tensor, h: Tensor, limit: Tensor, final: Tensor, smallest: Tensor, y: Tensor, k: Tensor
    ) -> tuple[Tensor, ...]:
        spans, polynomials, status = [], [], None
        for _ in range(count):
            span, h, y, k, polynomial, status = attempt(now, h, limit, final, smallest, y, k)
            now = span[-1]
            spans += span
            polynomials += polynomial
        assert status is not None
        spans, polynomials = (torch.stack(x).unflatten(0, (count, -1)) for x in (spans, polynomials))
        return spans, now, h, y, k, polynomials, status

    return attempts


def _first_step(velocity: Field, now: Tensor, y: Tensor, k: Tensor, options: _Options) -> Tensor:
    """A first step per sample, (B, 1) (Hairer, Norsett, Wanner 1993, section II.4)."""
    scale = options.atol + options.rtol * y.abs()
    d0, d1 = (_measure(x / scale, options.norm) for x in (y, k))
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.where(tiny, torch.full_like(d0, 1e-6), 0.01 * d0 / torch.where(tiny, torch.ones_like(d1), d1))
    d2 = _measure((velocity(now + h0, y + h0 * k) - k) / scale, options.norm) / h0
    largest = torch.maximum(d1, d2)
    power = -options.tableau.error_exponent
    flat = (h0 * 1e-3).clamp(min=1e-6)
    h1 = torch.where(largest <= 1e-15, flat, _power(0.01 / largest.clamp(min=1e-15), power))
    return torch.minimum(100.0 * h0, h1).nan_to_num(nan=1e-6).to(now.dtype)


# --- the loop ---


def _integrate(
    velocity: Field,
    attempt: Callable[..., tuple[Tensor, ...]],
    y: Tensor,
    times: Tensor,
    options: _Options,
    direction: float,
    lands_on_outputs: bool,
    taken: list[Tensor] | None,
    steps: _Record | None = None,
) -> Tensor:
    """All outputs (T, B, n); the steps taken (start, size, end) are appended to ``taken`` where it is
    a list, and all of them to ``steps`` where that is a record.
    """
    batch = y.shape[0]
    now = times[:1].expand(batch).unsqueeze(-1).clone()  # (B, 1)
    k = velocity(now, y)
    with torch.no_grad():
        span = times[-1] - times[0]
        if options.first_step is None:
            h = torch.minimum(_first_step(velocity, now, y, k, options), span).detach()
        else:
            h = torch.full_like(now, options.first_step)
    out = torch.full((len(times), *y.shape), torch.nan, dtype=y.dtype, device=y.device)
    out = torch.cat([y.unsqueeze(0), out[1:]])
    record = _Record([], [])
    final = times[-1].detach().expand_as(now).contiguous()
    eps = torch.finfo(times.dtype).eps
    smallest = 16.0 * eps * times.abs().max().clamp(min=eps)
    failure, limit = None, final
    attempted = 0
    while attempted < options.max_steps:
        if lands_on_outputs:
            following = torch.searchsorted(times.detach(), now.detach().squeeze(-1).contiguous(), right=True)
            limit = times.detach()[following.clamp(max=len(times) - 1)].unsqueeze(-1)
        spans, now, h, y, k, polynomial, status = attempt(now, h, limit, final, smallest, y, k)
        attempted += len(spans)
        record.times.append(spans)
        record.polynomial.append(polynomial)
        if steps is not None:
            steps.times.append(spans)
            steps.polynomial.append(polynomial)
        if taken is not None:
            taken.extend(spans)
        if len(record.times) * polynomial.numel() >= _FLUSH:
            out = _write(out, times, record, lands_on_outputs)
            record = _Record([], [])
        code = int(largest(status))  # the one host sync
        if code == 2:
            going = now < times[-1]
            stuck = going & (now == spans[-1, 0]) & (h < smallest)
            finite = torch.isfinite(polynomial[-1]).all(0).all(-1, keepdim=True)
            reason = "the field is not finite" if anywhere(stuck & ~finite) else "the step size underflowed"
            failure = (reason, "the field may be singular or stiff there: loosen rtol and atol, or end earlier", stuck)
            break
        if code == 0:
            break
    else:
        going = now < times[-1]
        remedy = "raise max_steps, loosen rtol and atol, or use a method for stiff fields"
        failure = (f"not done after {options.max_steps} steps", remedy, going)
    out = _write(out, times, record, lands_on_outputs)
    if failure is not None and not options.return_reached:
        reason, remedy, which = failure
        stopped, at, size = concrete(torch.stack([which.to(now.dtype), now.detach(), h])).flatten(1)
        earliest = torch.where(stopped > 0, at, torch.inf).argmin()
        raise IntegrationError(
            reason, remedy, time=direction * float(at[earliest]), step_size=direction * float(size[earliest]),
            samples=positions(which), reached=out.detach(),
        )  # fmt: skip
    return out


def _write(out: Tensor, times: Tensor, record: _Record, lands_on_outputs: bool) -> Tensor:
    """``out`` with the outputs that lie within the recorded steps."""
    if not record.times:
        return out
    starts, sizes, ends = (x.T for x in torch.cat(record.times).squeeze(-1).unbind(1))  # (B, S) each
    ends = ends.detach().contiguous()
    wanted = (times > starts[:, :1]) & (times <= ends[:, -1:])  # (B, T)
    columns = largest(wanted.any(0)).nonzero().squeeze(-1)
    if len(columns) == 0:
        return out
    first, last = int(columns[0]), int(columns[-1]) + 1
    query = times[first:last].expand(starts.shape[0], -1).contiguous()
    index = torch.searchsorted(ends, query.detach()).clamp(
        max=starts.shape[1] - 1
    )  # (B, T'): the first step that gets there
    polynomial = torch.cat(record.polynomial)  # (S, C, B, n)
    _, count, batch, n = polynomial.shape
    samples = torch.arange(batch, device=out.device).unsqueeze(-1)
    each = torch.arange(count, device=out.device).view(-1, 1, 1)
    rows = (index * count + each) * batch + samples  # whole rows: many times as fast as an index for each axis
    coefficients = polynomial.view(-1, n).index_select(0, rows.flatten()).view(count, *index.shape, n)
    if lands_on_outputs:
        values = coefficients[0]
    else:
        x = (query - starts.gather(1, index)) / sizes.gather(1, index).clamp(min=torch.finfo(query.dtype).tiny)
        values = evaluate(coefficients, x.unsqueeze(-1).to(out.dtype))
    mask = wanted[:, first:last].T.unsqueeze(-1)  # (T', B, 1)
    block = torch.where(mask, values.transpose(0, 1), out[first:last])
    return torch.cat([out[:first], block, out[last:]])


@dataclass(frozen=True)
class DenseOutput:
    """A solution between its output times, read off the continuous extension of the steps (order 4 or 7)."""

    t: Tensor
    """Output times, (T,)."""
    states: Tensor
    """States at them, (T, B, *state)."""
    direction: float
    starts: Tensor
    sizes: Tensor
    ends: Tensor
    coefficients: Tensor
    batched: bool = True

    def interpolate(self, times: Tensor) -> Tensor:
        """The states at ``times``.

        Args:
            times: (Q,), common to all samples, or one number (); between the first and the last output time.

        Returns:
            (Q, *shape of the initial state), or without Q.

        Raises:
            TypeError: for times that are no floating-point tensor.
            ValueError: for another shape, and for times that are not finite or outside of the solution.

        Laws: at an output time, the output; gradients pass to times, initial states and parameters.
        """
        if not isinstance(times, Tensor) or times.dtype not in FLOATING:
            given = times.dtype if isinstance(times, Tensor) else type(times).__name__
            raise TypeError(f"expected times as a floating-point tensor, got {given}; use torch.as_tensor")
        if times.ndim > 1:
            raise ValueError(f"expected times of shape (Q,) or (), got {tuple(times.shape)}; flatten them first")
        if times.device != self.states.device:
            raise ValueError(
                f"expected times on the solution's device {self.states.device}, got {times.device}; use times.to(...)"
            )
        if anywhere(~torch.isfinite(times)):
            raise ValueError("expected finite times, got NaN or infinity")
        first, last = (float(largest(self.t[i].detach())) for i in (0, -1))
        if anywhere((times < min(first, last)) | (times > max(first, last))):
            raise ValueError(f"expected times between {first:g} and {last:g}, those of the solution; integrate further")
        values = self.at(times.reshape(-1, 1).expand(-1, len(self.starts)))
        values = values if self.batched else values[:, 0]
        return values if times.ndim else values[0]

    __call__ = interpolate

    def at(self, times: Tensor) -> Tensor:
        """The states (Q, B, *state) at a time for each sample, (Q, B), unchecked."""
        query = (self.direction * times).to(self.ends.dtype).T.contiguous()  # (B, Q)
        index = torch.searchsorted(self.ends.detach().contiguous(), query.detach())
        index = index.clamp(max=self.ends.shape[1] - 1)
        x = (query - self.starts.gather(1, index)) / self.sizes.gather(1, index)
        samples = torch.arange(len(query), device=query.device).unsqueeze(-1)
        coefficients = self.coefficients[index, :, samples].movedim(2, 0)  # (C, B, Q, n)
        values = evaluate(coefficients, x.unsqueeze(-1).to(coefficients.dtype))
        shape = self.states.shape[1:] if self.batched else (1, *self.states.shape[1:])
        return values.transpose(0, 1).reshape(len(times), *shape)


def _again_of(
    tableau: Tableau, velocity: Field, project: Callable[[Tensor], Tensor] | None
) -> Callable[..., tuple[Tensor, ...]]:
    def again(span_of_step: Tensor, y: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """The step of known start, size and end, (3, B, 1); as the attempt was."""
        start, size, end = span_of_step.unbind(0)
        new, K = _advance(tableau, velocity, start, size, y, k)  # noqa: N806
        last = K[-1]
        if project is None:
            polynomial = _polynomial(tableau, velocity, start, size, y, new, K)
        else:
            new = project(new)
            last = velocity(start + size, new)
            polynomial = [new]
        accepted = end > start
        return torch.where(accepted, new, y), torch.where(accepted, last, k), torch.stack(polynomial)

    return again


def _replay(
    again: Callable[..., tuple[Tensor, ...]],
    velocity: Field,
    y: Tensor,
    times: Tensor,
    lands_on_outputs: bool,
    taken: list[Tensor],
    field: Field,
) -> Tensor:
    """The outputs again, by the steps ``taken``, with the graph of a segment at a time."""
    out = torch.cat([y.unsqueeze(0), y.detach().new_full((len(times) - 1, *y.shape), torch.nan)])
    k = velocity(times[:1].expand(y.shape[0]).unsqueeze(-1), y)
    moved = (times[0] - times[0].detach()) * torch.tensor([1.0, 0.0, 1.0], dtype=times.dtype, device=times.device)
    shift = moved.view(3, 1, 1)  # zero, and how the start of the time moves all steps
    leaves = captured_leaves(lambda y, k, shift: again(taken[0] + shift, y, k), y, k, shift, field=field)

    for steps in segments(len(taken)):

        def segment(
            y: Tensor, k: Tensor, out: Tensor, times: Tensor, shift: Tensor, steps: range = steps
        ) -> tuple[Tensor, ...]:
            record = _Record([], [])
            for i in steps:
                span = taken[i] + shift
                y, k, polynomial = again(span, y, k)
                record.times.append(span.unsqueeze(0))
                record.polynomial.append(polynomial.unsqueeze(0))
            return y, k, _write(out, times, record, lands_on_outputs)

        y, k, out = run_segment(segment, leaves, y, k, out, times, shift)
    return out
