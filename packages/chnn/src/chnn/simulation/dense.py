r"""Outputs within steps, by torch: DOP853 with projected steps that no output shortens.

The accepted steps are projected onto the constraints; an output within a step lies on the continuous extension of order
7 from its projected start, and is projected itself. Every sample has its own steps and, if wanted, its own times. The
compiled path (`chnn.simulation.loops`) takes the same steps.

Source: Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, sections II.4, II.6 and II.10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from lie.integrators import IntegrationError
from lie.integrators.adaptive import evaluate
from lie.integrators.tableaux import DOP853, LARGEST_FACTOR, SAFETY, SMALLEST_FACTOR, Row
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


def integrate_dense(
    field: Field,
    y0: Float[Tensor, "B *state"],
    t: Float[Tensor, "#B T"],
    *,
    rtol: float,
    atol: float,
    project: Callable[[Tensor], Tensor] | None,
    max_steps: int = 1_000_000,
) -> Float[Tensor, "B T *state"]:
    """The states at ``t``, a row of increasing times for each sample, from states at the first of them.

    Raises:
        IntegrationError: if the integration cannot go on; its ``reached`` is (B, T, *state), NaN where not reached.
    """
    batch, shape = y0.shape[0], y0.shape
    t = t.expand(batch, -1)
    state: Any = (slice(None), *[None] * (y0.ndim - 1))  # numbers for samples against states
    onto = project if project is not None else lambda y: y
    now, final, y = t[:, 0].clone(), t[:, -1], y0
    k = field(now, y)
    h = torch.minimum(_first_step(field, now, y, k, rtol, atol), final - now)
    rows, columns, values = [torch.arange(batch, device=t.device)], [torch.zeros_like(now, dtype=torch.long)], [y0]
    smallest = 16.0 * torch.finfo(t.dtype).eps * t.abs().amax(1).clamp(min=torch.finfo(t.dtype).eps)
    going, failure = now < final, None
    for attempted in range(max_steps + 1):
        if not bool(going.any()):
            break
        if attempted == max_steps:
            remedy = "raise max_steps, loosen rtol and atol, or use a method for stiff fields"
            failure = (f"not done after {max_steps} steps", remedy, going)
            break
        lands = now + h * (1.0 + 1e-10) >= final
        size = torch.where(lands, final - now, h)
        K, new = [k], y  # noqa: N806
        for c, row in zip(DOP853.c[1:12], DOP853.A[1:12], strict=True):
            K.append(field(now + c * size, y + size[state] * _sum(row, K)))
        new = y + size[state] * _sum(DOP853.A[12], K)
        with torch.no_grad():
            error = _error(size[state], y, new, K, rtol, atol)
            accepted = (error <= 1.0) & going
            factor = (SAFETY * error.clamp(min=1e-12).log().mul(-1 / 8).exp()).nan_to_num(nan=SMALLEST_FACTOR)
            factor = torch.where(torch.isfinite(error), factor.clamp(SMALLEST_FACTOR, LARGEST_FACTOR), SMALLEST_FACTOR)
            wanted = size * torch.where(accepted, factor, factor.clamp(max=1.0))
            wanted = torch.where(lands & accepted, torch.maximum(h, wanted), wanted)
            end = torch.where(accepted, torch.where(lands, final, now + size), now)
            inside = (t > now[:, None]) & (t <= end[:, None])
            some = inside.any(1).nonzero().flatten()
            found, column = inside[some].nonzero(as_tuple=True)
        if len(some):
            pieces = [x[some] for x in K]
            polynomial = _polynomial(field, now[some], size[some], state, y[some], new[some], pieces)
            x = (t[some[found], column] - now[some[found]]) / size[some[found]]
            rows.append(some[found])
            columns.append(column)
            values.append(onto(evaluate(polynomial[:, found], x[state])))
        moved = onto(new)
        y = torch.where(accepted[state], moved, y)
        k = torch.where(accepted[state], field(end, moved), k)
        stuck = going & ~accepted & (wanted < smallest)
        if bool(stuck.any()):
            finite = bool(torch.isfinite(new[stuck]).all())
            reason = "the step size underflowed" if finite else "the field is not finite"
            remedy = "the field may be singular or stiff there: loosen rtol and atol, or end earlier"
            failure, h = (reason, remedy, stuck), wanted
            break
        now, h = end, torch.where(going, wanted, h)
        going = now < final
    out = y0.new_full((batch, t.shape[1], *shape[1:]), torch.nan)
    out = out.index_put((torch.cat(rows), torch.cat(columns)), torch.cat(values))
    if failure is not None:
        reason, remedy, which = failure
        samples = which.nonzero().flatten()
        earliest = samples[now[samples].argmin()]
        raise IntegrationError(
            reason, remedy, time=float(now[earliest]), step_size=float(h[earliest]), samples=samples.tolist(),
            reached=out.detach(),
        )  # fmt: skip
    return out


def _sum(weights: Row, K: list[Tensor]) -> Tensor:  # noqa: N803
    terms = [weight * k for weight, k in zip(weights, K, strict=False) if weight != 0.0]
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def _polynomial(
    field: Field,
    now: Tensor,
    h: Tensor,
    state: Any,
    y: Tensor,
    new: Tensor,
    K: list[Tensor],  # noqa: N803
) -> Tensor:
    """Coefficients (8, B, *state) for `lie.integrators.adaptive.evaluate`."""
    K = [*K, field(now + h, new)]  # noqa: N806
    for c, row in zip(DOP853.extra_c, DOP853.extra_A, strict=True):
        K.append(field(now + c * h, y + h[state] * _sum(row, K)))
    change = new - y
    first = h[state] * K[0] - change
    last = h[state] * K[12]
    return torch.stack([y, change, first, change - last - first, *(h[state] * _sum(row, K) for row in DOP853.D)])


def _error(h: Tensor, y: Tensor, new: Tensor, K: list[Tensor], rtol: float, atol: float) -> Tensor:  # noqa: N803
    """The error of the step over the tolerance, (B,), by the maximum over the entries."""
    scale = h / (atol + rtol * torch.maximum(y.abs(), new.abs()))
    fifth, third = ((scale * _sum(row, K)).abs().flatten(1).amax(1) for row in DOP853.E)
    size = (fifth.square() + 0.01 * third.square()).sqrt()
    return torch.where(size == 0, size, fifth.square() / size)


def _first_step(field: Field, now: Tensor, y: Tensor, k: Tensor, rtol: float, atol: float) -> Tensor:
    """A first step for each sample, (B,)."""
    with torch.no_grad():
        scale = atol + rtol * y.abs()
        d0, d1 = ((x / scale).abs().flatten(1).amax(1) for x in (y, k))
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        wide = h0.reshape(-1, *[1] * (y.ndim - 1))
        d2 = ((field(now + h0, y + wide * k) - k) / scale).abs().flatten(1).amax(1) / h0
        largest = torch.maximum(d1, d2)
        h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / largest.clamp(min=1e-15)) ** 0.125)
        return torch.minimum(100.0 * h0, h1).nan_to_num(nan=1e-6)
