r"""The push-forward of several tangents through a model, :math:`Df(x)[v_k]`, by forward-mode differentiation.

Not every model can be differentiated in the fastest way: fused attention has no forward-mode rule in torch, fused
recurrent kernels neither, a user's own operation may have none at all. So there is a ladder of rungs; the first one
that carries the model is used, and its name stands beside the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from lie.autodiff import jvp_along
from lie.run import UserError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from liederivative.derivative.dual import DualMode
from liederivative.derivative.forward_mode import LeanForwardMode


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
"""From fast to slow. The last one is exact to about 1e-7 only, where the model is smooth."""

STEP = 1e-3
"""Largest change of an input in the differences: of fourth order, off by STEP^4 = 1e-12, rounding 1e-16 / STEP."""


@dataclass(frozen=True)
class PushForward:
    """What `push_forward` found."""

    value: Tensor
    """``f(x)``"""
    derivative: Tensor
    """``Df(x)[v_k]``, of shape (K, ...)"""
    rung: Rung


def push_forward(
    f: Callable[..., Tensor],
    x: Tensor | Sequence[Tensor],
    tangents: Tensor | Sequence[Tensor],
    *,
    tangents_per_pass: int = 7,
    ladder: Sequence[Rung] = LADDER,
    in_float64: Callable[[], Callable[..., Tensor]] | None = None,
) -> PushForward:
    """The value of ``f`` at ``x`` and its derivative along K tangents.

    Args:
        f: map on one or several tensors; no gradient with respect to its parameters is recorded.
        x: point, or the points of several arguments.
        tangents: K tangents at ``x``, (K, *x.shape), or those of each argument.
        tangents_per_pass: how many are pushed in one pass; fewer take less memory and more time.
        ladder: rungs to try, in order.
        in_float64: makes ``f`` in double precision, for the last rung; None where ``f`` takes any.

    Raises:
        UserError: if ``f`` runs but no rung can differentiate it. An error of ``f`` itself comes through.
    """
    points = [x] if isinstance(x, Tensor) else list(x)
    velocities = [tangents] if isinstance(tangents, Tensor) else list(tangents)
    failures: list[Exception] = []
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
                if rung.way == "differences":
                    g = f if in_float64 is None else in_float64()
                    value, derivative = _differences(f, g, points, velocities)
                else:
                    push = _push_by_rules if rung.way == "rules" else _push
                    value, derivative = push(f, points, velocities, tangents_per_pass if rung.vectorised else 1)
                return PushForward(value, derivative, rung)
            except torch.OutOfMemoryError:
                raise  # another rung would only need more time
            except Exception as error:  # a model may stumble over tensors with tangents in any way
                if not failures:
                    f(*points)  # if the model cannot run at all, its own error is the one to show
                failures.append(error)
    reason = (str(failures[0]).strip() or type(failures[0]).__name__).splitlines()[0]
    raise UserError(
        f"the model runs but cannot be differentiated in forward mode: {reason}; replace that operation by one "
        "with a forward-mode rule"
    ) from failures[0]


def _push_by_rules(
    f: Callable[..., Tensor], points: list[Tensor], tangents: list[Tensor], tangents_per_pass: int
) -> tuple[Tensor, Tensor]:
    value, derivatives = None, []
    for chunk in zip(*(tangent.split(tangents_per_pass) for tangent in tangents), strict=True):
        with DualMode() as mode:
            out = f(*(mode.dual(point, velocity) for point, velocity in zip(points, chunk, strict=True)))
        primal, moved = mode.result(out)
        derivatives.append(primal.new_zeros(len(chunk[0]), *primal.shape) if moved is None else moved)
        value = primal if value is None else value
    assert value is not None
    return value, torch.cat(derivatives) if len(derivatives) > 1 else derivatives[0]


def _push(
    f: Callable[..., Tensor], points: list[Tensor], tangents: list[Tensor], tangents_per_pass: int
) -> tuple[Tensor, Tensor]:
    value, derivatives = None, []
    for chunk in zip(*(tangent.split(tangents_per_pass) for tangent in tangents), strict=True):
        single = len(chunk[0]) == 1  # without the overhead of vmap
        velocity = [tangent[0] for tangent in chunk] if single else list(chunk)
        with LeanForwardMode():
            first_value, derivative = jvp_along(lambda parts: f(*parts), points, velocity)
        derivatives.append(derivative[None] if single else derivative)
        value = first_value if value is None else value
    assert value is not None
    return value, torch.cat(derivatives)


def _differences(
    f: Callable[..., Tensor], g: Callable[..., Tensor], points: list[Tensor], tangents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    value = f(*points)
    doubles = [point.double() for point in points]
    derivatives = []
    for velocity in zip(*tangents, strict=True):
        size = max(float(part.abs().max()) for part in velocity)
        if size == 0:
            derivatives.append(torch.zeros_like(value))
            continue
        step = STEP / size

        def at(t: float, velocity: Sequence[Tensor] = velocity) -> Tensor:
            return g(*(point + t * part.double() for point, part in zip(doubles, velocity, strict=True)))

        near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
        derivatives.append(((8 * near - far) / (12 * step)).to(value.dtype))
    return value, torch.stack(derivatives)
