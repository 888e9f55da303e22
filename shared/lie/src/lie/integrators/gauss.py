r"""Gauss collocation: the implicit midpoint rule (order 2) and the methods of two and three stages (4 and 6).

.. math::
    K_i = f(t + c_i h,\; y + h \sum_j a_{ij} K_j), \qquad y_1 = y + h \sum_i b_i K_i

Symplectic for every Hamiltonian, separable or not; symmetric; they keep quadratic invariants exactly. The stages are
found by fixed-point iteration from the extrapolated stages of the step before, until each sample's change is its
rounding: stopping earlier would let the energy drift.

Source: Hairer, Lubich, Wanner 2006, Geometric Numerical Integration, sections II.1.3, VI.4 and VIII.6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lie.integrators.checks import entrance
from lie.integrators.errors import IntegrationError
from lie.integrators.fields import Field, in_dtype_of
from lie.integrators.fixed import State, check_iterations, walk
from lie.integrators.transforms import anywhere, differentiates_forward, largest, positions

_NODES = {
    1: (0.5,),
    2: (0.5 - sqrt(3) / 6, 0.5 + sqrt(3) / 6),
    3: (0.5 - sqrt(15) / 10, 0.5, 0.5 + sqrt(15) / 10),
}
MAXIMUM_ITERATIONS = 100
_FEW = 5  # iterations to rounding, by the stages: fewer than that say little about their derivatives


@cache
def collocation(stages: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes c (s,), weights b (s,), matrix A (s, s), and the extrapolation (s, s) of stages to the next step."""
    c = np.array(_NODES[stages])
    # Lagrange polynomials in powers: column j holds the coefficients of the one that is 1 at c_j.
    lagrange = np.linalg.inv(np.vander(c, increasing=True))
    powers = np.arange(1, stages + 1)
    A = (c[:, None] ** powers / powers) @ lagrange  # noqa: N806
    b = (1.0 / powers) @ lagrange
    return c, b, A, np.vander(1.0 + c, stages, increasing=True) @ lagrange


@entrance(half=False)
def implicit_midpoint(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    iterations: int | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """The states at ``t`` by the implicit midpoint rule, of order 2.

    Args:
        field: velocity ``field(t, y)``, any; its Lipschitz constant times the step must be below 2.
        y0: initial state. Samples lie along the leading axis where there are two axes or more: each is iterated
            to its own convergence, and none changes another.
        t: times, (T,). Each interval is cut into equal steps no longer than ``step_size``.
        step_size: largest step; None takes one step an interval.
        iterations: a fixed number of them, without a test of convergence: no host sync, so that the step can be
            compiled and mapped. None iterates to rounding.
        project: applied to the state after every step.
        compile: compile the step (with ``iterations``).
        checkpoint: differentiate with memory of the square root of the number of steps, for one more forward pass.

    Returns:
        States at the times, (T, ...). Derivatives are those of the iteration, which converges with it.

    Raises:
        IntegrationError: if the iteration does not converge; names time, step and samples.
        ValueError: for a step size or a number of iterations that is not positive, or ``compile`` without a number.

    Laws: ``y . Q y`` is constant wherever its exact flow keeps it; reversing the times retraces the states.
    """
    return _gauss(1, field, y0, t, step_size, iterations, project, compile, checkpoint)


@entrance(half=False)
def gauss4(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    iterations: int | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """As `implicit_midpoint`, with two stages and order 4."""
    return _gauss(2, field, y0, t, step_size, iterations, project, compile, checkpoint)


@entrance(half=False)
def gauss6(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    iterations: int | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """As `implicit_midpoint`, with three stages and order 6."""
    return _gauss(3, field, y0, t, step_size, iterations, project, compile, checkpoint)


def _gauss(
    stages: int,
    field: Field,
    y0: Tensor,
    t: Tensor,
    step_size: float | None,
    iterations: int | None,
    project: Callable[[Tensor], Tensor] | None,
    compile: bool,
    checkpoint: bool,
) -> Tensor:
    check_iterations(iterations, compile)
    field = in_dtype_of(field, y0, t)
    c, b, A, ahead = collocation(stages)  # noqa: N806
    rows, weights, following = A.tolist(), b.tolist(), ahead.tolist()

    def make() -> Callable[..., State]:
        def stage_velocities(t: Tensor, h: Tensor, y: Tensor, K: list[Tensor]) -> list[Tensor]:  # noqa: N803
            return [field(t + float(c[i]) * h, y + h * _combine(rows[i], K)) for i in range(stages)]

        def step(t: Tensor, h: Tensor, y: Tensor, *guess: Tensor) -> State:
            K = list(guess)  # noqa: N806
            if iterations is None:
                K = _converged(stage_velocities, t, h, y, K)  # noqa: N806
            else:
                for _ in range(iterations):
                    K = stage_velocities(t, h, y, K)  # noqa: N806
            return (y + h * _combine(weights, K), *(_combine(following[i], K) for i in range(stages)))

        return step

    state = (y0, *([field(t[0], y0)] * stages)) if len(t) > 1 else (y0,)
    return walk(
        make, state, t, field=field, key=("gauss", stages, iterations), evaluations=stages * (iterations or 1),
        step_size=step_size, project=project, compile=compile, checkpoint=checkpoint,
    )  # fmt: skip


def _combine(weights: list[float], K: list[Tensor]) -> Tensor:  # noqa: N803
    total = weights[0] * K[0]
    for weight, velocity in zip(weights[1:], K[1:], strict=True):
        total = total + weight * velocity
    return total


def _converged(
    velocities: Callable[[Tensor, Tensor, Tensor, list[Tensor]], list[Tensor]],
    t: Tensor,
    h: Tensor,
    y: Tensor,
    K: list[Tensor],  # noqa: N803
) -> list[Tensor]:
    """The stages iterated until, sample by sample, the change is zero or is small and no longer shrinks."""
    batched = y.ndim >= 2
    flat = (lambda x: x.flatten(1)) if batched else (lambda x: x.reshape(1, -1))
    shape = (-1,) + (1,) * (y.ndim - 1) if batched else ()
    eps = torch.finfo(y.dtype).eps
    scale = flat(y.detach()).abs().amax(-1)
    before = torch.full_like(scale, torch.inf)
    done = torch.zeros_like(scale, dtype=torch.bool)
    for number in range(1, MAXIMUM_ITERATIONS + 1):
        new = velocities(t, h, y, K)
        with torch.no_grad():
            change = torch.stack([flat(a - b).abs().amax(-1) for a, b in zip(new, K, strict=True)]).amax(0)
            change = h.abs() * change
            size = torch.maximum(scale, h.abs() * torch.stack([flat(a).abs().amax(-1) for a in new]).amax(0))
            finished = (change == 0) | ((change >= 0.5 * before) & (change <= 1e3 * eps * size))
        keep = done.view(shape)
        K = [torch.where(keep, a, b) for a, b in zip(K, new, strict=True)]  # noqa: N806
        done, before = done | finished, change
        if not anywhere(~done):
            differentiated = differentiates_forward() or any(x.requires_grad for x in K)
            return _with_derivatives(velocities, t, h, y, K, number) if differentiated else K
    missing = positions(~done)
    raise IntegrationError(
        f"the stages did not converge in {MAXIMUM_ITERATIONS} iterations",
        "take a smaller step_size, or check that the field is finite and smooth there",
        time=float(largest(t)), step_size=float(largest(h)), samples=missing if batched else [], reached=None,
    )  # fmt: skip


def _with_derivatives(
    velocities: Callable[[Tensor, Tensor, Tensor, list[Tensor]], list[Tensor]],
    t: Tensor,
    h: Tensor,
    y: Tensor,
    K: list[Tensor],  # noqa: N803
    number: int,
) -> list[Tensor]:
    """The stages, as they are after ``number`` iterations, with derivatives that have converged as well.

    At an equilibrium the first guess is right, and so no iteration has carried derivatives through the field. How many
    are needed follows from how fast differences shrink; it is asked where the stages took suspiciously few.
    """
    if number > _FEW:
        return K
    with torch.no_grad():
        eps = torch.finfo(y.dtype).eps
        fixed = [x.detach() for x in K]
        size = max(1.0, *(float(largest(x.abs().amax())) for x in fixed)) if y.numel() else 1.0
        length = eps**0.5 * size
        base = velocities(t.detach(), h.detach(), y.detach(), fixed)
        moved = [length * torch.linspace(1.0, 2.0, x.numel(), dtype=x.dtype, device=x.device).view_as(x) for x in fixed]
        remainder, needed = 1.0, 0
        while remainder > eps and needed < MAXIMUM_ITERATIONS:
            ahead = velocities(t.detach(), h.detach(), y.detach(), [a + b for a, b in zip(fixed, moved, strict=True)])
            change = [a - b for a, b in zip(ahead, base, strict=True)]
            before, after = (max(float(largest(x.abs().amax())) for x in xs) for xs in (moved, change))
            needed += 1
            if not 0.0 < after < float("inf"):
                break
            remainder *= after / before
            moved = [x * (length / after) for x in change]
    for _ in range(needed - number):
        new = velocities(t, h, y, K)
        K = [a.detach() + (b - b.detach()) for a, b in zip(K, new, strict=True)]  # noqa: N806
    return K
