r"""Leapfrog (Stoermer-Verlet): symplectic, time-reversible, order 2, for separable Hamiltonians.

.. math::
    p_{1/2} = p_0 + \tfrac{h}{2} \dot p(q_0), \quad q_1 = q_0 + h\, \dot q(p_{1/2}), \quad
    p_1 = p_{1/2} + \tfrac{h}{2} \dot p(q_1)

Source: Hairer, Lubich, Wanner 2006, Geometric Numerical Integration, section I.1.4 and theorem VI.3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def leapfrog(
    field: Callable[[Tensor, Tensor], Tensor],
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    dim: int = -1,
) -> Float[Tensor, "T ..."]:
    """The states at ``t`` of a separable Hamiltonian system by the leapfrog method.

    Args:
        field: velocity ``field(t, y)``; dq/dt may depend on p alone and dp/dt on q alone (and on t).
            Where they depend on more, the method is neither symplectic nor of order 2.
        y0: initial state, positions and momenta (or velocities) equally many along ``dim``.
        t: times, (T,). Each interval is cut into equal steps no longer than ``step_size``.
        step_size: largest step; None takes one step an interval.
        dim: axis of positions and momenta: -1 for (..., 2n), -3 for (..., 2, n, d).

    Returns:
        States at the times, (T, ...).

    Raises:
        ValueError: if ``dim`` has odd length or ``step_size`` is not positive.

    Laws: reversing the times retraces the states; the energy error stays bounded, of order step_size^2.
    """
    if y0.shape[dim] % 2:
        raise ValueError(f"expected positions and momenta, equally many, along axis {dim}, got {tuple(y0.shape)}")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"expected a positive step_size, got {step_size}; the direction comes from the times")
    intervals = t.diff().tolist()  # the only host sync: the step counts are decided before the loop
    q, p = y0.chunk(2, dim=dim)
    states = [y0]
    force = _half(field, t[0], q, p, dim, 1)
    for index, interval in enumerate(intervals):
        # Shortened by the rounding of the times, so that a step which divides the interval is not cut once more.
        length = abs(interval) * (1.0 - 4.0 * torch.finfo(t.dtype).eps)
        count = 1 if step_size is None else max(1, math.ceil(length / step_size))
        h = interval / count
        for step in range(count):
            now = t[index] + step * h
            half = p + 0.5 * h * force
            q = q + h * _half(field, now + 0.5 * h, q, half, dim, 0)
            force = _half(field, now + h, q, half, dim, 1)
            p = half + 0.5 * h * force
        states.append(torch.cat([q, p], dim=dim))
    return torch.stack(states)


def _half(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, q: Tensor, p: Tensor, dim: int, half: int) -> Tensor:
    return field(t, torch.cat([q, p], dim=dim)).chunk(2, dim=dim)[half]
