r"""The push-forward of several tangents through a model, :math:`Df(x)[v_k]`, by forward-mode differentiation.

Not every model can be differentiated in the fastest way: fused attention has no forward-mode rule in torch, fused
recurrent kernels neither, a user's own operation may have none at all. So there is a ladder of rungs; the first one
that carries the model is used, and its name stands beside the result.

A strategy may miss a part of the derivative without an error: torch's forward mode takes an operator without a formula
for a constant, follows `torch.autograd.Function` in what it declares instead of what it computes, and stops at
``detach``; a value that becomes a number of Python's is lost to every strategy but differences. So the derivative is
compared with a difference quotient along one random combination of the tangents: always for torch's forward mode, for
the rules where the run made a number of a value, and on demand. What disagrees gives way to the next strategy.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from lie.autodiff import jvp_along
from lie.run import UserError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from liederivative.derivative.dual import DualMode, operator_kind
from liederivative.derivative.forward_mode import LeanForwardMode
from liederivative.derivative.operators import NotDifferentiableError
from liederivative.derivative.quotients import Quotient, difference_quotient, largest


@dataclass(frozen=True)
class Rung:
    """One way to differentiate a model."""

    name: str
    way: Literal["rules", "forward mode", "differences"] = "forward mode"
    """rules of `liederivative.derivative.rules`, torch's forward mode, or central differences in float64"""
    vectorised: bool = True
    """several tangents in one pass"""
    math_attention: bool = True
    """attention by its plain formula, which has a forward mode"""
    mkldnn: bool = True
    """oneDNN kernels allowed"""


LADDER = (
    Rung("fused rules", way="rules", math_attention=False),
    Rung("fused rules, oneDNN off", way="rules", math_attention=False, mkldnn=False),
    Rung("forward mode", math_attention=False),
    Rung("forward mode, math attention"),
    Rung("forward mode, math attention, oneDNN off", mkldnn=False),
    Rung("forward mode, one tangent a pass", vectorised=False),
    Rung("forward mode, one tangent a pass, oneDNN off", vectorised=False, mkldnn=False),
    Rung("float64 differences", way="differences", vectorised=False, math_attention=False),
)
"""From fast to slow. The last one comes with an estimate of its error, and is refused above `SMOOTH`."""

AGREEMENT = 1e-5
"""Largest difference, relative to the derivative's largest entry, between a strategy and a difference quotient in
double precision: rounding in a deep network is below it, a missing part of the derivative above."""

SMOOTH = 1e-2
"""Largest estimated error of differences that are taken for a derivative: one per cent."""


@dataclass(frozen=True)
class PushForward:
    """What `push_forward` found."""

    value: Tensor
    """``f(x)``"""
    derivative: Tensor
    """``Df(x)[v_k]``, of shape (K, ...)"""
    rung: Rung
    operators: Mapping[str, str] = field(default_factory=dict)
    """operators from outside of torch, and how each was differentiated"""
    difference: float | None = None
    """relative difference from a difference quotient along a random combination of the tangents; None where it was not
    taken, NaN where the quotients were too coarse to tell"""
    error: float | None = None
    """estimated relative error, of differences only"""


@dataclass
class _Run:
    """What a strategy gave."""

    value: Tensor
    derivative: Tensor
    operators: Mapping[str, str] = field(default_factory=dict)
    conversions: Sequence[str] = ()
    """operators at which a part of the derivative may have been lost"""
    error: float | None = None


def push_forward(
    f: Callable[..., Tensor],
    x: Tensor | Sequence[Tensor],
    tangents: Tensor | Sequence[Tensor],
    *,
    tangents_per_pass: int = 7,
    ladder: Sequence[Rung] = LADDER,
    in_float64: Callable[[], Callable[..., Tensor]] | None = None,
    verify: bool | None = None,
) -> PushForward:
    """The value of ``f`` at ``x`` and its derivative along K tangents.

    Args:
        f: map on one or several tensors; no gradient with respect to its parameters is recorded.
        x: point, or the points of several arguments.
        tangents: K tangents at ``x``, (K, *x.shape), or those of each argument.
        tangents_per_pass: how many are pushed in one pass; fewer take less memory and more time.
        ladder: rungs to try, in order.
        in_float64: makes ``f`` in double precision, for differences; None where ``f`` takes any.
        verify: compare the derivative with a difference quotient along a random combination of the tangents, about 15
            runs of ``f``; None where there is reason to (see above), False never.

    Raises:
        UserError: if ``f`` runs but no rung can differentiate it. An error of ``f`` itself comes through.
    """
    points = [x] if isinstance(x, Tensor) else list(x)
    velocities = [tangents] if isinstance(tangents, Tensor) else list(tangents)
    failures: list[Exception] = []
    in_float64 = None if in_float64 is None else functools.cache(in_float64)  # one copy of the model for all quotients
    for rung in ladder:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # said by the switch
            warnings.filterwarnings("ignore", message="There is a performance drop")  # said by vmap's slow loops
            stack.enter_context(torch.no_grad())
            if rung.math_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if not rung.mkldnn:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            try:
                run = _push(rung, f, in_float64, points, velocities, tangents_per_pass)
                doubtful = rung.way == "forward mode" or bool(run.conversions)
                difference = None
                if rung.way != "differences" and (doubtful if verify is None else verify):
                    difference = _difference(rung, f, in_float64, points, velocities, run.conversions, doubtful)
                return PushForward(run.value, run.derivative, rung, run.operators, difference, run.error)
            except (torch.OutOfMemoryError, NotDifferentiableError):
                raise  # another rung would only need more time
            except Exception as error:  # a model may stumble over tensors with tangents in any way
                if not failures:
                    f(*points)  # if the model cannot run at all, its own error is the one to show
                failures.append(error)
    reason = (str(failures[0]).strip() or type(failures[0]).__name__).splitlines()[0]
    raise UserError(
        f"the model runs but cannot be differentiated in forward mode: {reason}; {_last(failures)}replace that "
        "operation by one with a forward-mode rule"
    ) from failures[0]


class MissedError(RuntimeError):
    """A strategy whose derivative is not that of the function."""


def _last(failures: Sequence[Exception]) -> str:
    return f"{failures[-1]}; " if isinstance(failures[-1], MissedError) and len(failures) > 1 else ""


def _push(
    rung: Rung,
    f: Callable[..., Tensor],
    in_float64: Callable[[], Callable[..., Tensor]] | None,
    points: list[Tensor],
    tangents: list[Tensor],
    tangents_per_pass: int,
) -> _Run:
    """The run of one strategy."""
    if rung.way == "differences":
        return _by_differences(f, in_float64, points, tangents)
    push = _by_rules if rung.way == "rules" else _by_forward_mode
    return push(f, points, tangents, tangents_per_pass if rung.vectorised else 1)


def _by_rules(f: Callable[..., Tensor], points: list[Tensor], tangents: list[Tensor], tangents_per_pass: int) -> _Run:
    value, derivatives = None, []
    operators: dict[str, str] = {}
    conversions: list[str] = []
    for chunk in zip(*(tangent.split(tangents_per_pass) for tangent in tangents), strict=True):
        with DualMode() as mode:
            out = f(*(mode.dual(point, velocity) for point, velocity in zip(points, chunk, strict=True)))
        primal, moved = mode.result(out)
        derivatives.append(primal.new_zeros(len(chunk[0]), *primal.shape) if moved is None else moved)
        value = primal if value is None else value
        operators |= mode.operators
        conversions += mode.conversions
    assert value is not None
    derivative = torch.cat(derivatives) if len(derivatives) > 1 else derivatives[0]
    return _Run(value, derivative, operators, conversions)


def _by_forward_mode(
    f: Callable[..., Tensor], points: list[Tensor], tangents: list[Tensor], tangents_per_pass: int
) -> _Run:
    value, derivatives = None, []
    for chunk in zip(*(tangent.split(tangents_per_pass) for tangent in tangents), strict=True):
        single = len(chunk[0]) == 1  # without the overhead of vmap
        velocity = [tangent[0] for tangent in chunk] if single else list(chunk)
        with LeanForwardMode():
            first_value, derivative = jvp_along(lambda parts: f(*parts), points, velocity)
        derivatives.append(derivative[None] if single else derivative)
        value = first_value if value is None else value
    assert value is not None
    return _Run(value, torch.cat(derivatives))


def _by_differences(
    f: Callable[..., Tensor],
    in_float64: Callable[[], Callable[..., Tensor]] | None,
    points: list[Tensor],
    tangents: list[Tensor],
) -> _Run:
    value, error = f(*points), 0.0
    derivatives = []
    for velocity in zip(*tangents, strict=True):
        quotient = _quotient(f, in_float64, points, velocity)
        error = max(error, quotient.error)
        if error > SMOOTH:
            raise MissedError(
                f"its difference quotients depend on the step by {min(error, 9.99):.0%}, since it is not smooth here, "
                "random, or imprecise"
            )
        derivatives.append(quotient.derivative.to(value.dtype))
    return _Run(value, torch.stack(derivatives), error=error)


def _quotient(
    f: Callable[..., Tensor],
    in_float64: Callable[[], Callable[..., Tensor]] | None,
    points: Sequence[Tensor],
    velocity: Sequence[Tensor],
) -> Quotient:
    """The difference quotient of the model in double precision, or in its own if it has no kernels for that."""
    try:
        with InDouble():
            return difference_quotient(f if in_float64 is None else in_float64(), points, velocity, torch.float64)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model that fails in double precision fails in any way
        return difference_quotient(f, points, velocity)


def _difference(
    rung: Rung,
    f: Callable[..., Tensor],
    in_float64: Callable[[], Callable[..., Tensor]] | None,
    points: Sequence[Tensor],
    tangents: Sequence[Tensor],
    conversions: Sequence[str],
    doubtful: bool,
) -> float:
    """Relative difference between the derivative by ``rung`` and the difference quotient, along one direction.

    Both are taken in double precision if the model runs in it, so that rounding does not hide what is missing. NaN if
    the quotients depend on the step and there is no other reason to doubt the strategy.

    Raises:
        MissedError: if they differ by more than is allowed.
    """
    direction = _combination(tangents)
    quotient = _quotient(f, in_float64, points, direction)
    dtype = quotient.derivative.dtype
    if dtype == torch.float64:
        with InDouble():
            g = f if in_float64 is None else in_float64()
            run = _push(rung, g, None, [p.double() for p in points], [v.double()[None] for v in direction], 1)
    else:
        run = _push(rung, f, None, list(points), [v[None] for v in direction], 1)
    apart = (run.derivative[0] - quotient.derivative).abs() - quotient.bend
    difference = max(0.0, float(apart.max())) / quotient.scale if quotient.scale and apart.numel() else 0.0
    if quotient.error > SMOOTH and not doubtful:
        return float("nan")
    allowed = max(AGREEMENT if dtype == torch.float64 else SMOOTH, 10 * quotient.error)
    if quotient.error > SMOOTH or not difference <= allowed:
        lost = f": a value becomes a number by {', '.join(sorted(set(conversions)))}" if conversions else ""
        raise MissedError(f"{rung.name} differ from difference quotients by {min(difference, 9.99):.2g} of them{lost}")
    return difference


def _combination(tangents: Sequence[Tensor]) -> list[Tensor]:
    """A random combination of K tangents, each brought to the same size."""
    sizes = [max(largest(tangent[k]) for tangent in tangents) for k in range(len(tangents[0]))]
    generator = torch.Generator().manual_seed(0)  # on the CPU, so that it is the same on every device
    weights = torch.randn(len(sizes), generator=generator, dtype=torch.float64) / torch.tensor(sizes)
    return [torch.tensordot(weights.to(tangent), tangent, dims=1) for tangent in tangents]


class InDouble(TorchDispatchMode):
    """While it is on, operations on tensors of several precisions are done in double precision.

    A function may hold weights in single precision that no copy can reach; its input in double precision is not
    rounded to theirs.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's hook."""
        kwargs = kwargs or {}
        if operator_kind(func) == "plain":
            tensors = [a for a in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(a, Tensor)]
            precisions = {a.dtype for a in tensors if a.is_floating_point()}
            if torch.float64 in precisions and len(precisions) > 1:
                args, kwargs = pytree.tree_map_only(Tensor, _doubled, (args, kwargs))
        return func(*args, **kwargs)


def _doubled(a: Tensor) -> Tensor:
    return a.double() if a.is_floating_point() else a
