r"""Dormand and Prince's order 8 on many samples at once, a step size each, with a projection after every step.

The tableau and the mixed error estimate of orders 5 and 3 are those of DOP853 (Hairer, Norsett, Wanner 1993,
Solving Ordinary Differential Equations I, section II.10), read from scipy. A step never crosses an output time,
so that outputs are steps, projected like all others; a sample neither slows nor changes another one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate._ivp import dop853_coefficients as table
from torch import Tensor

_STAGES = table.N_STAGES  # 12
_SAFETY, _SMALLEST, _LARGEST = 0.9, 0.2, 10.0
_EXPONENT = -1.0 / 8.0


class IntegrationError(FloatingPointError):
    """An integration that cannot go on; ``reached`` holds the states found so far, NaN after them."""

    def __init__(self, message: str, reached: Tensor) -> None:
        super().__init__(message)
        self.reached = reached


def integrate(
    field: Callable[[Tensor], Tensor],
    y0: Float[Tensor, "B *state"],
    t: Float[Tensor, " T"],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    project: Callable[[Tensor], Tensor] | None = None,
    max_steps: int = 1_000_000,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T *state"]:
    """Solve the autonomous ``dy/dt = field(y)`` for a batch.

    Args:
        field: velocity of a batch of states, each of its own state alone.
        y0: initial states, float64.
        t: output times, increasing.
        rtol, atol: tolerances of the error of one step, per entry.
        project: applied to every accepted state.
        max_steps: steps after which to give up.
        progress: called with the fraction of outputs that are done, now and then.

    Returns:
        States at the times, (B, T, ...).

    Raises:
        IntegrationError: on step underflow, non-finite states or too many steps; names samples and time.
    """
    A = torch.as_tensor(table.A[:_STAGES, :_STAGES], dtype=y0.dtype, device=y0.device)  # noqa: N806
    B = torch.as_tensor(table.B, dtype=y0.dtype, device=y0.device)  # noqa: N806
    E = torch.as_tensor(np.stack([table.E3, table.E5])[:, :_STAGES], dtype=y0.dtype, device=y0.device)  # noqa: N806
    batch, size = y0.shape[0], y0[0].numel()
    out = torch.full((batch, len(t), *y0.shape[1:]), torch.nan, dtype=y0.dtype, device=y0.device)
    out[:, 0] = y0

    active = torch.arange(batch, device=y0.device)  # the samples still on their way; the rest of the state follows it
    y = y0.flatten(1)
    now = torch.full((batch,), float(t[0]), dtype=y0.dtype, device=y0.device)
    target = torch.ones(batch, dtype=torch.long, device=y0.device)

    def velocity(states: Tensor) -> Tensor:
        return field(states.unflatten(1, y0.shape[1:])).flatten(1)

    k0 = velocity(y)
    proposal = _initial_step(y, k0, velocity, rtol, atol).clamp(max=float(t[-1] - t[0])) if len(t) > 1 else None
    if len(t) == 1:
        return out
    assert proposal is not None
    for step in range(max_steps):
        goal = t[target]
        lands = now + proposal * (1.0 + 1e-10) >= goal
        h = torch.where(lands, goal - now, proposal).unsqueeze(-1)  # (b, 1)
        K = torch.empty(_STAGES, len(active), size, dtype=y.dtype, device=y.device)  # noqa: N806
        K[0] = k0
        for stage in range(1, _STAGES):
            increment = (A[stage, :stage] @ K[:stage].flatten(1)).view_as(y)
            K[stage] = velocity(y + h * increment)
        new = y + h * (B @ K.flatten(1)).view_as(y)
        error = _error_norm(E, K, h, y, new, rtol, atol)
        accepted = error < 1.0  # false for NaN
        factor = torch.where(error == 0, _LARGEST, _SAFETY * error.pow(_EXPONENT)).nan_to_num(nan=_SMALLEST)
        factor = factor.clamp(_SMALLEST, _LARGEST)
        if project is not None:
            new = project(new.unflatten(1, y0.shape[1:])).flatten(1)
        # A step cut short to land says little about the next one: it may only shorten the proposal.
        step_taken = h.squeeze(-1)
        grown = torch.where(lands & accepted, torch.maximum(proposal, step_taken * factor), step_taken * factor)
        proposal = torch.where(accepted, grown, step_taken * factor.clamp(max=1.0))
        y = torch.where(accepted.unsqueeze(-1), new, y)
        now = torch.where(accepted, torch.where(lands, goal, now + step_taken), now)
        k0 = torch.where(accepted.unsqueeze(-1), velocity(y), k0)

        arrived = lands & accepted
        rows = arrived.nonzero().squeeze(-1)
        if len(rows):
            out[active[rows], target[rows]] = y[rows].unflatten(1, y0.shape[1:])
            target[rows] += 1
        stuck = ~accepted & (proposal <= 16 * torch.finfo(y.dtype).eps * now.abs().clamp(min=1e-3))
        if bool(stuck.any()):
            _fail("the step size underflowed (the field is singular or not finite there)", stuck, active, now, out)
        going = target < len(t)
        if not bool(going.all()):
            active, y, now, target, proposal, k0 = (s[going] for s in (active, y, now, target, proposal, k0))
            if len(active) == 0:
                return out
        if progress is not None and step % 16 == 0:
            progress(1.0 - float((len(t) - target).sum()) / (batch * (len(t) - 1)))
    _fail(f"more than {max_steps} steps", torch.ones_like(active, dtype=torch.bool), active, now, out)
    raise AssertionError  # not reached


def _initial_step(y: Tensor, k: Tensor, velocity: Callable[[Tensor], Tensor], rtol: float, atol: float) -> Tensor:
    """A first step per sample (Hairer, Norsett, Wanner 1993, section II.4)."""
    scale = atol + rtol * y.abs()
    d0, d1 = (y / scale).square().mean(-1).sqrt(), (k / scale).square().mean(-1).sqrt()
    small = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.where(small, torch.full_like(d0, 1e-6), 0.01 * d0 / torch.where(small, torch.ones_like(d1), d1))
    d2 = ((velocity(y + h0.unsqueeze(-1) * k) - k) / scale).square().mean(-1).sqrt() / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / largest).pow(-_EXPONENT))
    return torch.minimum(100 * h0, h1).nan_to_num(nan=1e-6)


def _error_norm(E: Tensor, K: Tensor, h: Tensor, y: Tensor, new: Tensor, rtol: float, atol: float) -> Tensor:  # noqa: N803
    scale = atol + rtol * torch.maximum(y.abs(), new.abs())
    third, fifth = ((E @ K.flatten(1)).view(2, *y.shape) / scale).square().sum(-1)  # (b,) each
    denominator = fifth + 0.01 * third
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return h.squeeze(-1).abs() * fifth / (safe * y.shape[-1]).sqrt()


def _fail(reason: str, which: Tensor, active: Tensor, now: Tensor, out: Tensor) -> None:
    samples = active[which].tolist()
    shown = ", ".join(map(str, samples[:5])) + (" ..." if len(samples) > 5 else "")
    raise IntegrationError(
        f"{reason}: sample {shown} at t = {float(now[which].min()):.6g} s; shorten the horizon, loosen rtol, or check "
        "the initial state",
        out,
    )
