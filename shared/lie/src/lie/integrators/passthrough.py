"""torchdiffeq's methods: its solver as it is, and what it leaves open.

- It gives the field a time rounded to the dtype of the state. Where the times are finer, the steps are taken in their
  dtype, and the field alone sees the state in its own.
- It has no transforms of torch.func. Under one, its Runge-Kutta methods with fixed steps are those of `explicit` on its
  grid, and ``dopri5`` is ours with the whole state as one sample; the others are refused.
- Its adjoint has first derivatives alone, which is said when more are asked for.

Source: Chen 2018, torchdiffeq 0.2.5.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lie.groups.precision import HALF
from lie.integrators.adaptive import dopri5
from lie.integrators.adjoint import captured_leaves
from lie.integrators.checks import check_count, check_first_step, check_step_size, no_half
from lie.integrators.explicit import EXPLICIT, explicit
from lie.integrators.fields import Field, Finer, Wrapped, unwrapped
from lie.integrators.transforms import active, anywhere, concrete

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun3", "rk4", "explicit_adams", "implicit_adams")
SCIPY = ("scipy_solver",)
MAXIMUM_STEPS = 100_000
"""Attempted steps after which an adaptive method gives up, unless its options say otherwise."""


@dataclass(frozen=True)
class OneSample(Wrapped):
    """The field of a batch of one sample, of the field of that sample alone."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t.reshape(()), y[0]).unsqueeze(0)


@dataclass(frozen=True)
class _Finite(Wrapped):
    """A field for scipy, whose LSODA does not return from infinite velocities."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        velocity = self.field(t, y)
        if anywhere(~torch.isfinite(velocity.detach())):
            raise FloatingPointError(
                f"the field is not finite at t = {float(t):g} (scipy_solver); check the field, or end earlier"
            )
        return velocity


def solve_by_torchdiffeq(
    field: Field,
    y0: Tensor,
    t: Tensor,
    *,
    method: str,
    rtol: Any,
    atol: Any,
    adjoint: bool,
    options: dict[str, Any],
) -> Tensor:
    """The states at ``t``, (T, ...), by the method of torchdiffeq.

    Raises:
        ValueError: for options that the method does not use, and where a gradient is asked for that it has not.
        FloatingPointError: if the solver gives up.
    """
    span = 0.0 if options.get("step_size") is None else float(concrete(t[-1] - t[0]).abs().max())
    check_step_size(options.get("step_size"), span)
    if options.get("step_size") == float("inf"):
        del options["step_size"]  # one step an interval, as for our methods
    check_first_step(options.get("first_step"))
    if "max_num_steps" in options:
        check_count(options["max_num_steps"], "max_num_steps")
    if y0.dtype in HALF and method not in FIXED:
        raise no_half(method, y0.dtype)
    if len(t) == 1:
        return y0.unsqueeze(0)
    if active():
        return _transformed(field, y0, t, method, rtol, atol, options)
    if adjoint and method not in SCIPY and not isinstance(unwrapped(field), torch.nn.Module):
        raise TypeError(
            "expected a torch.nn.Module for torchdiffeq's adjoint (its parameters receive gradients), got "
            f"{type(field).__name__}; call the field from a module's forward, or use per_sample=True or dop853, "
            "whose adjoint takes any callable"
        )
    wanted = adjoint or method in SCIPY
    leaves = captured_leaves(lambda y: (field(t[0], y),), y0, field=field) if wanted else []
    if method in SCIPY and not adjoint and torch.is_grad_enabled() and (y0.requires_grad or t.requires_grad or leaves):
        raise ValueError("scipy_solver has no gradient through its steps: use adjoint=True, or torch.no_grad()")
    if method in ("explicit_adams", "implicit_adams"):
        options.setdefault("max_order", 4)  # torchdiffeq's own 12 is unstable at steps of any use
    if method in ADAPTIVE:
        options.setdefault("max_num_steps", MAXIMUM_STEPS)
    # Steps end at outputs: torchdiffeq interpolates bosh3 and fehlberg2 to low order, and dopri8 to 3e-5 only.
    if method in ("bosh3", "dopri8", "fehlberg2"):
        options.setdefault("step_t", t.detach())
    dtype = y0.dtype
    finer = torch.promote_types(t.dtype, dtype)
    if finer in HALF:
        finer = torch.float32
        t = t.to(finer)
    if finer != dtype:
        field, y0 = Finer(field, dtype), y0.to(finer)
    if method in SCIPY:
        field = _Finite(field)
    if method in SCIPY and adjoint:
        from lie.integrators.stiff import solve_with_adjoint

        solution = solve_with_adjoint(field, y0, t, leaves, rtol=rtol, atol=atol, options=options)
    else:
        solution = _solve(field, y0, t, method, rtol, atol, adjoint, options, leaves)
    if len(solution) != len(t):
        raise FloatingPointError(
            f"{method} gave up between t = {float(t[len(solution) - 1]):g} and {float(t[-1]):g}; the field may be "
            "singular there: loosen rtol and atol, or shorten the horizon"
        )
    if adjoint and solution.requires_grad:
        solution.register_hook(_refuse_second_derivatives)
    return solution.to(dtype)


def _solve(
    field: Field,
    y0: Tensor,
    t: Tensor,
    method: str,
    rtol: Any,
    atol: Any,
    adjoint: bool,
    options: dict[str, Any],
    leaves: list[Tensor],
) -> Tensor:
    import torchdiffeq

    solve: Callable[..., Any] = torchdiffeq.odeint
    more: dict[str, Any] = {}
    if adjoint:  # with the tensors that a module captures beside its parameters
        solve, more = torchdiffeq.odeint_adjoint, {"adjoint_params": tuple(leaves)}
    try:
        with warnings.catch_warnings():
            # torchdiffeq warns of options a method does not use: here the caller is told by an error.
            warnings.filterwarnings("error", message=".*[Uu]nexpected arguments.*")
            # It passes a smallest step of 0 to all of scipy's solvers; the implicit ones have none.
            warnings.filterwarnings("ignore", message=".*no relevance to the chosen solver.*min_step.*")
            return solve(field, y0, t, method=method, rtol=rtol, atol=atol, options=options or None, **more)
    except AssertionError as error:
        raise FloatingPointError(
            f"{method} failed between t = {float(t[0]):g} and {float(t[-1]):g}: {error}; the field may be stiff "
            "or singular there: loosen rtol and atol, or shorten the horizon"
        ) from error
    except UserWarning as error:
        raise ValueError(f"{method}: {error}; see torchdiffeq for its options") from None


def _refuse_second_derivatives(gradient: Tensor) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this adjoint has first derivatives alone, and create_graph=True asks for more: use adjoint=False (not for "
            "scipy_solver), or dop853 or per_sample=True, whose adjoints have derivatives of every order"
        )


def _transformed(
    field: Field, y0: Tensor, t: Tensor, method: str, rtol: Any, atol: Any, options: dict[str, Any]
) -> Tensor:
    """The states under a transform of torch.func."""
    names = {"first_step": "first_step", "max_num_steps": "max_steps"} if method == "dopri5" else {}
    allowed = {"step_size": "step_size"} if method in EXPLICIT else names
    if not allowed:
        raise ValueError(
            f"{method} of torchdiffeq cannot be transformed by torch.func: use dopri5, dop853, rk4 or one of "
            "lie.integrators' own methods"
        )
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ValueError(
            f"the option {unknown[0]!r} of {method} cannot be transformed by torch.func, only {', '.join(allowed)}"
        )
    if method == "dopri5":
        renamed = {allowed[name]: value for name, value in options.items()}
        return dopri5(OneSample(field), y0.unsqueeze(0), t, rtol=rtol, atol=atol, **renamed).squeeze(1)
    return _on_grid(field, y0, t, method, options.get("step_size"))


def _on_grid(field: Field, y0: Tensor, t: Tensor, method: str, step_size: float | None) -> Tensor:
    """Steps from ``t[0]`` of equal size but for the last, and outputs on their chords, as torchdiffeq has them."""
    if step_size is None or len(t) == 1:
        return explicit(field, y0, t, method=method)
    values = concrete(t)
    if values.ndim > 1:
        raise ValueError("expected the same times for all samples of vmap with step_size; leave step_size out")
    span = float(values[-1] - values[0])
    count = max(1, int(torch.ceil((values[-1] - values[0]).abs() / step_size)))
    sign = 1.0 if span > 0 else -1.0
    inner = t[0] + sign * step_size * torch.arange(count, dtype=t.dtype, device=t.device)
    grid = torch.cat([inner, t[-1:]])
    states = explicit(field, y0, grid, method=method)
    nodes = sign * concrete(grid)
    index = torch.searchsorted(nodes, sign * values).clamp(1, count)
    x = ((t - grid[index - 1]) / (grid[index] - grid[index - 1])).to(y0.dtype)
    x = x.view(-1, *([1] * (states.ndim - 1)))
    return states[index - 1] + x * (states[index] - states[index - 1])
