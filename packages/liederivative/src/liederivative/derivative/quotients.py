r"""Central difference quotients of fourth order along a direction, with an estimate of their error.

.. math:: D(h) = \frac{8 (f(x + h v) - f(x - h v)) - (f(x + 2 h v) - f(x - 2 h v))}{12 h},

off by O(h^4) from truncation and by O(eps / h) from rounding. The difference between D(h / 2) and D(h) estimates both:
it is large where the function jumps or has a kink within the step, where part of it is computed in a lower precision,
and where it is random. Several steps are tried until the estimate is small; the best quotient is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

STEPS = {
    torch.float64: (2.17e-4, 1.93e-6, 1.07e-2),
    torch.float32: (4.1e-2, 1.07e-2),
    torch.bfloat16: (0.4,),
    torch.float16: (0.2,),
}
"""Steps by the precision of the evaluation, relative to the largest entry of the point. In double precision: for
smooth functions (truncation 1e-15, rounding 1e-12), for those with kinks nearby, and for those that compute partly in
single precision (rounding 1e-5). Below double precision they balance truncation and rounding. No round numbers: a
function that jumps at those would seem smooth."""

ACCURATE = 1e-7
"""Error estimate at which no other step is tried."""

ODD, CONSISTENT = 0.37, {torch.float64: 1e-3, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}
"""A step in no simple ratio to the others, as a share of the best: of a function that jumps more often than at every
step, quotients of steps h / 2, h and 2 h may agree on a wrong value. The quotient there is of second order only, off by
the square of the step, and is no estimate below a relative difference that allows for that."""

NEGLIGIBLE = 1e-3
"""Share of the natural rate of change, |f| per |x|, below which the size of a derivative is no scale for its error."""


@dataclass(frozen=True)
class Quotient:
    """A difference quotient along one direction."""

    derivative: Tensor
    """of the shape of the function's value, in the precision of the evaluation"""
    error: float
    """estimate of its largest error over ``scale``"""
    scale: float
    """the largest entry of the derivative, at least a thousandth of the natural rate of change"""
    bend: Tensor
    """half the difference of the two one-sided quotients: at a kink, any value that close is a one-sided derivative"""


def difference_quotient(
    f: Callable[..., Tensor], points: Sequence[Tensor], velocity: Sequence[Tensor], dtype: torch.dtype | None = None
) -> Quotient:
    """The derivative of ``f`` at ``points`` along ``velocity``, by the best of a few difference quotients.

    Args:
        f: function of as many tensors as there are points; random draws in it are repeated, so that they cancel.
        points: where to differentiate.
        velocity: along what, each of the shape of its point.
        dtype: precision of the evaluation; that of the points by default.

    >>> difference_quotient(torch.exp, [torch.zeros(1)], [torch.ones(1)], torch.float64).derivative
    tensor([1.0000], dtype=torch.float64)
    """
    dtype = points[0].dtype if dtype is None else dtype
    x = [in_precision(point, dtype) for point in points]
    v = [in_precision(part, dtype) for part in velocity]
    rate = max((_rate(a, b) for a, b in zip(x, v, strict=True)), default=0.0)
    f = _repeatable(f, x[0].device)

    def at(t: float) -> Tensor:
        return f(*(a + t * b for a, b in zip(x, v, strict=True)))

    value = at(0.0)
    if rate == 0 or not value.numel():
        zero = torch.zeros_like(value)
        return Quotient(zero, 0.0, 0.0, zero)
    smallest = NEGLIGIBLE * rate * float(value.abs().max())
    best: Quotient | None = None
    best_step = 0.0
    for step in STEPS[dtype]:
        quotient = _quotient(at, value, step / rate, smallest)
        if best is None or quotient.error < best.error:
            best, best_step = quotient, step / rate
        if best.error <= ACCURATE:
            break
    assert best is not None
    odd = ODD * best_step
    apart = float(((at(odd) - at(-odd)) / (2 * odd) - best.derivative).abs().max())
    if best.scale and not apart <= CONSISTENT[dtype] * best.scale:
        return replace(best, error=max(best.error, apart / best.scale))
    return best


def in_precision(a: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point or complex tensor in a precision, any other as it is."""
    if a.is_complex():
        return a.to(dtype.to_complex())
    return a.to(dtype) if a.is_floating_point() else a


def largest(point: Tensor) -> float:
    """The largest absolute entry, 1 where that is 0."""
    return (float(point.abs().max()) if point.numel() else 0.0) or 1.0


def _rate(point: Tensor, velocity: Tensor) -> float:
    """The largest velocity over the largest entry of the point."""
    if not point.numel():
        return 0.0
    return float(velocity.abs().max()) / largest(point)


def _quotient(at: Callable[[float], Tensor], value: Tensor, h: float, smallest: float) -> Quotient:
    ahead, behind = at(h / 2), at(-h / 2)
    half, one, two = ahead - behind, at(h) - at(-h), at(2 * h) - at(-2 * h)
    fine, coarse = (8 * half - one) / (6 * h), (8 * one - two) / (12 * h)
    scale = max(float(fine.abs().max()), smallest)
    error = float((fine - coarse).abs().max()) / scale if scale else 0.0
    bend = (ahead + behind - 2 * value).abs() / h
    return Quotient(fine, error if math.isfinite(error) else math.inf, scale, bend)


def _repeatable(f: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """``f`` with the same random draws in every call; those of the caller are not used up."""
    devices = [device] if device.type != "cpu" else []

    def run(*x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
            return f(*x)

    return run
