"""One entrance to all integrators: ``odeint(field, y0, t, method=...)``, shaped as torchdiffeq's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lie.integrators.adaptive import DenseOutput, dense_solution, dop853, dopri5
from lie.integrators.checks import check_problem, check_tolerances, unchecked
from lie.integrators.events import Event, Events, as_events, until_event
from lie.integrators.explicit import EXPLICIT, explicit
from lie.integrators.gauss import gauss4, gauss6, implicit_midpoint
from lie.integrators.lie_group import crouch_grossman, rkmk4
from lie.integrators.passthrough import ADAPTIVE, FIXED, SCIPY, OneSample, solve_by_torchdiffeq
from lie.integrators.rattle import rattle, rattle4
from lie.integrators.states import AsParts, OfParts, OfPartsEvent, mixed_norm, parts_of
from lie.integrators.symplectic import leapfrog, yoshida4, yoshida6, yoshida8
from lie.integrators.transforms import active, largest

_FIXED_STEP: dict[str, Callable[..., Tensor]] = {
    "leapfrog": leapfrog,
    "yoshida4": yoshida4,
    "yoshida6": yoshida6,
    "yoshida8": yoshida8,
    "implicit_midpoint": implicit_midpoint,
    "gauss4": gauss4,
    "gauss6": gauss6,
    "rattle": rattle,
    "rattle4": rattle4,
    "rkmk4": rkmk4,
    "crouch_grossman": crouch_grossman,
}
_REQUIRED = {
    "rattle": ("constraint",),
    "rattle4": ("constraint",),
    "rkmk4": ("group",),
    "crouch_grossman": ("group",),
}
_ON_GROUPS = ("rkmk4", "crouch_grossman")
_SEPARABLE = ("leapfrog", "yoshida4", "yoshida6", "yoshida8")
_DENSE_OPTIONS = ("first_step", "max_steps", "norm", "compile")
_OUR_OPTIONS = ("project", "compile", "checkpoint")
"""With one of these a fixed-step method of torchdiffeq takes its steps by `explicit`."""
_PER_SAMPLE: dict[str, Callable[..., Tensor]] = {"dopri5": dopri5, "dop853": dop853}
METHODS = (*ADAPTIVE, *FIXED, *SCIPY, "dop853", *_FIXED_STEP)
"""Names that `odeint` takes as ``method``."""


def odeint(
    field: Callable[[Tensor, Tensor], Tensor],
    y0: Float[Tensor, "..."] | Sequence[Tensor],
    t: Float[Tensor, " T"],
    *,
    method: str = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-9,
    per_sample: bool = False,
    adjoint: bool = False,
    events: Event | Sequence[Event] | None = None,
    dense: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The solution of ``dy/dt = field(t, y)``, ``y(t[0]) = y0``, at the times ``t``.

    Args:
        field: velocity at time t (a scalar tensor) and state y, of the shape of y. The methods on groups take
            algebra coordinates; those with a step per sample pass t as (B, 1, ..., 1).
        y0: initial state, any shape. With a step size for each sample, samples lie along the leading axis, and a state
            of one axis is one sample. Or a tuple of tensors: the field then takes and gives tuples, and the result is
            a tuple; for leapfrog and its kin the positions first, then as many momenta of the same shapes.
        t: times, strictly increasing or strictly decreasing, at least one.
        method: a name in `METHODS`: torchdiffeq's, or one of ours (see the page on choosing an integrator).
        rtol, atol: relative and absolute tolerance of the adaptive methods.
        per_sample: for ``dopri5``: a step size for each sample along the leading axis, by `dopri5` of this package,
            instead of one for the whole batch by torchdiffeq. ``dop853`` always has one for each.
        adjoint: differentiate by the continuous adjoint (constant memory; ``field`` must be a module) instead of
            through the steps, for torchdiffeq's methods; by checkpoints (memory of the square root of the number of
            steps, the exact gradient of the steps) for ours.
        events: a function ``(t, y) -> value``, or several. As in torchdiffeq, the solution ends where any of their
            values first changes its sign, however far that is; ``t`` gives start and side to look on, in two times.
            An event that starts at zero counts from its first sign on. Signs are compared at four points of each step
            of ``dopri5`` or ``dop853``: an event that crosses zero twice between two of them is missed. With a step
            size for each sample the values are (B,) or (B, K), and each sample has an event of its own.
        dense: give the solution between the output times too, a `DenseOutput`; of ``dopri5`` and ``dop853``.
        options: passed to the method. ``norm`` is as in torchdiffeq, and with a step size for each sample maps errors
            (B, ...) to (B,). Fixed-step methods take one step per interval of ``t`` unless ``step_size``
            is given; ours are listed on the function of the same name: ``dim``, ``constraint``, ``group``, ``project``,
            ``compile``, ``iterations``, ``max_steps``, ``return_reached`` and so on. With ``compile``, ``project`` or
            ``checkpoint`` the methods ``euler``, ``midpoint``, ``heun3`` and ``rk4`` are those of `explicit`.

    Returns:
        States at the times, (T, ...). With ``events`` the time of the event, () or (B,), and the states at the start
        and at the event, (2, ...); both have the derivatives of the implicit function. With ``dense`` a `DenseOutput`.

    Raises:
        ValueError: for an unknown method or option, times that are not strictly monotonic, non-finite input, or a
            field whose output has another shape than the state.
        FloatingPointError: if the solution leaves the finite numbers; the message names the first such time. Ours
            raise `IntegrationError`, a kind of it, which also names the step and the samples.

    Source: torchdiffeq (Chen 2018) for its methods; for ours the module of each.
    """
    if not isinstance(method, str) or method not in METHODS:
        from lie.run.errors import unknown_name

        raise unknown_name("method", str(method), METHODS)
    check_tolerances(rtol, atol, positive=method in (*ADAPTIVE, *SCIPY, *_PER_SAMPLE))
    options = dict(options or {})
    settings = {"method": method, "rtol": rtol, "atol": atol, "per_sample": per_sample, "adjoint": adjoint}
    if isinstance(y0, tuple | list):
        return _of_parts(field, y0, t, events, dense, options, settings)
    y0 = cast(Tensor, y0)  # or refused by the check
    ours = _solvers(method, per_sample, options)
    each = method in ours and method in _PER_SAMPLE
    check_problem(field, y0, t, same_shape=method not in _ON_GROUPS, per_sample=each and y0.ndim != 1)
    if events is not None:
        return _until_event(field, y0, t, events, dense, each, options, settings)
    if dense:
        return _densely(field, y0, t, each, options, settings)
    if y0.numel() == 0:
        return y0.unsqueeze(0).expand(len(t), *y0.shape).clone()
    if each and y0.ndim == 1:  # one sample of several components
        return odeint(OneSample(field), y0.unsqueeze(0), t, options=_of_one(options), **settings).squeeze(1)
    if method in ours:
        solution = _by_ours(ours[method], field, y0, t, options, settings)
        if options.get("return_reached"):
            return solution
    else:
        solution = solve_by_torchdiffeq(
            field, y0, t, method=method, rtol=rtol, atol=atol, adjoint=adjoint, options=options
        )  # fmt: skip
    if torch.compiler.is_compiling():
        return solution  # a test of values would end the graph
    finite = ~largest(~torch.isfinite(solution.detach()).reshape(len(t), -1).all(1))
    if not finite.all():
        first = int((~finite).nonzero()[0, 0])
        raise FloatingPointError(
            f"the solution is not finite from t = {float(largest(t[first])):g} on ({method}); "
            "use smaller steps or check the field"
        )
    return solution


def _solvers(method: str, per_sample: bool, options: dict[str, Any]) -> dict[str, Callable[..., Tensor]]:
    """Our methods by name, for these options; raise where a step size for each sample is meant and cannot be."""
    ours = {**_FIXED_STEP, **({"dop853": dop853} if not per_sample else _PER_SAMPLE)}
    if method in EXPLICIT and any(name in options for name in _OUR_OPTIONS):
        ours[method] = partial(explicit, method=method)
    if per_sample and method not in _PER_SAMPLE:
        raise ValueError(f"a step size for each sample is for {' and '.join(_PER_SAMPLE)}, not {method}")
    if method == "dopri5" and not per_sample:
        shared = ("first_step", "norm")
        mine = [name for name in options if name in inspect.signature(dopri5).parameters and name not in shared]
        if mine:
            raise ValueError(f"the option {mine[0]!r} of dopri5 is for per_sample=True, a step size for each sample")
    return ours


def _by_ours(
    solver: Callable[..., Tensor],
    field: Callable[..., Tensor],
    y0: Tensor,
    t: Tensor,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> Tensor:
    method = settings["method"]
    allowed = [name for name in inspect.signature(solver).parameters if name != "method"][3:]
    for name in options:
        if name not in allowed:
            from lie.run.errors import unknown_name

            raise unknown_name(f"option of {method}", name, allowed)
    missing = [name for name in _REQUIRED.get(method, ()) if name not in options]
    if missing:
        raise ValueError(f"{method} needs options={{{missing[0]!r}: ...}}; see lie.integrators.{method}")
    more: dict[str, Any] = {"checkpoint": True} if settings["adjoint"] else {}
    if method in _PER_SAMPLE:
        for name in ("rtol", "atol"):
            if not isinstance(settings[name], int | float):
                raise TypeError(f"expected one number as {name} of {method}, got {type(settings[name]).__name__}")
            more[name] = settings[name]
    return unchecked(solver)(field, y0, t, **{**options, **more})


def _of_one(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a single state, for a batch of one sample."""
    norm = options.get("norm")
    return options if norm is None else {**options, "norm": lambda errors: norm(errors[0]).reshape(1)}


def _densely(
    field: Callable[..., Tensor], y0: Tensor, t: Tensor, each: bool, options: dict[str, Any], settings: dict[str, Any]
) -> DenseOutput:
    method = settings["method"]
    if method not in _PER_SAMPLE:
        raise ValueError(f"dense output is for {' and '.join(_PER_SAMPLE)}, not {method}")
    if settings["adjoint"] or active() or y0.numel() == 0 or len(t) < 2:
        raise ValueError("dense output needs two times, a state with entries, and neither adjoint nor torch.func")
    options = {"max_steps" if name == "max_num_steps" and not each else name: x for name, x in options.items()}
    for name in options:
        if name not in _DENSE_OPTIONS:
            raise ValueError(f"the option {name!r} does not go together with dense output, only {_DENSE_OPTIONS}")
    single = not each or y0.ndim == 1
    output = dense_solution(
        OneSample(field) if single else field, y0.unsqueeze(0) if single else y0, t,
        order=8 if method == "dop853" else 5,
        rtol=settings["rtol"], atol=settings["atol"], **(_of_one(options) if single else options),
    )  # fmt: skip
    return replace(output, states=output.states[:, 0], batched=False) if single else output


def _until_event(
    field: Callable[..., Tensor],
    y0: Tensor,
    t: Tensor,
    events: Any,
    dense: bool,
    each: bool,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> Any:
    """The time of the first event and the states at the start and there, or the dense output up to it."""
    method = settings["method"]
    if method in (*_REQUIRED, *SCIPY):
        raise ValueError(f"events are not for {method}: use dopri5, dop853 or a method of torchdiffeq")
    if len(t) != 2:
        raise ValueError(f"expected two times with events, the start and one that gives the direction, got {len(t)}")
    if y0.numel() == 0:
        raise ValueError(f"expected a state with entries with events, got shape {tuple(y0.shape)}")
    if active():
        raise ValueError("events do not work under torch.func (vmap, grad, ...): use torch.autograd, or a batch")
    fixed = method in (*FIXED, *_FIXED_STEP)
    if fixed and options.get("step_size") is None:
        raise ValueError(f"{method} needs options={{'step_size': ...}} with events: their time is not known before")
    single = not each or y0.ndim == 1
    if dense and not single:
        raise ValueError("dense output up to events needs one sample: they end at different times")
    order = 8 if method == "dop853" else 5
    tolerances = {"rtol": settings["rtol"], "atol": settings["atol"]}
    if any(isinstance(x, Tensor | tuple | list) for x in tolerances.values()):
        raise TypeError("expected one number as rtol and as atol with events")

    def solve(inner: Callable[..., Tensor], y: Tensor, times: Tensor) -> Tensor:
        if single:
            return odeint(field, y[0], times, options=options, **settings).unsqueeze(1)
        return odeint(inner, y, times, options=options, **settings)

    at, states = until_event(
        solve, OneSample(field) if single else field, y0.unsqueeze(0) if single else y0, t,
        Events(as_events(events), single), order, tolerances,
    )  # fmt: skip
    if not single:
        return at, states
    if dense:
        return at[0], _densely(field, y0, torch.stack([t[0], at[0].detach()]), each, options, settings)
    return at[0], states[:, 0]


def _of_parts(
    field: Callable[..., Any],
    y0: Sequence[Tensor],
    t: Tensor,
    events: Any,
    dense: bool,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> Any:
    """The solution of a state that is a tuple, (T, ...) for each part."""
    method = settings["method"]
    if method in _REQUIRED or dense:
        raise ValueError(f"{'dense output' if dense else method} takes one tensor as state, got a tuple of {len(y0)}")
    parts = parts_of(y0, batched=method == "dop853" or settings["per_sample"])
    half = len(y0) // 2
    if method in _SEPARABLE and ("dim" in options or parts.shapes[:half] != parts.shapes[half:]):
        raise ValueError(
            f"{method} takes a tuple of positions and as many momenta of the same shapes, without dim, got "
            f"{[tuple(x) for x in parts.shapes]}"
        )
    for name, joins in (("norm", False), ("project", True)):
        if name in options:
            options[name] = AsParts(options[name], parts, joins)
    if method in ADAPTIVE and not settings["per_sample"]:
        options.setdefault("norm", AsParts(mixed_norm, parts))
    for name in ("rtol", "atol"):
        value = settings[name]
        if isinstance(value, tuple | list):
            if len(value) != len(y0):
                raise ValueError(f"expected {name} of {len(y0)} parts, got {len(value)}")
            each = [torch.as_tensor(x).expand(shape.numel()) for x, shape in zip(value, parts.shapes, strict=True)]
            settings[name] = torch.cat(each)
    if events is not None:
        events = [OfPartsEvent(f, parts) for f in as_events(events)]
    result = odeint(OfParts(field, parts), parts.join(y0), t, events=events, options=options, **settings)
    return (result[0], parts.split(result[1])) if events is not None else parts.split(result)
