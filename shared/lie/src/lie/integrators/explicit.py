r"""Explicit Runge-Kutta methods with fixed steps: Euler, midpoint, Heun's of order 3, and the 3/8 rule of order 4.

.. math::
    k_i = f(t + c_i h,\; y + h \sum_{j<i} a_{ij} k_j), \qquad y_1 = y + h \sum_i b_i k_i

The methods that torchdiffeq calls ``euler``, ``midpoint``, ``heun3`` and ``rk4``, here with a compiled step, a
projection after each step, and the checkpointed discrete adjoint.

Source: Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, section II.1, tables 1.1 and 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lie.integrators.checks import entrance
from lie.integrators.fields import Field, in_dtype_of
from lie.integrators.fixed import State, walk

Row = tuple[float, ...]


@dataclass(frozen=True)
class ExplicitTableau:
    """Coefficients of one method."""

    c: Row
    """Times of the stages."""
    A: tuple[Row, ...]
    """Stages from those before."""
    b: Row
    """The solution from the stages."""


EXPLICIT = {
    "euler": ExplicitTableau((0.0,), ((),), (1.0,)),
    "midpoint": ExplicitTableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun3": ExplicitTableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "rk4": ExplicitTableau(
        (0.0, 1 / 3, 2 / 3, 1.0), ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    ),
}
"""Tableaux by the names of `odeint`."""


@entrance()
def explicit(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    method: str = "rk4",
    step_size: float | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """The states at ``t`` by an explicit Runge-Kutta method with equal steps between the times.

    Args:
        field: velocity ``field(t, y)``.
        y0: initial state.
        t: times, (T,). Each interval is cut into equal steps no longer than ``step_size``.
        method: ``euler`` (order 1), ``midpoint`` (2), ``heun3`` (3) or ``rk4`` (4, the 3/8 rule).
        step_size: largest step; None takes one step an interval.
        project: applied to the state after every step, such as `lie.integrators.projection`.
        compile: compile the step; where the field cannot be, run eagerly and log the reason once.
        checkpoint: differentiate with memory of the square root of the number of steps, for one more forward pass.

    Returns:
        States at the times, (T, ...).

    Raises:
        ValueError: for an unknown method or a ``step_size`` that is not positive.
    """
    if method not in EXPLICIT:
        from lie.run.errors import unknown_name

        raise unknown_name("explicit method", method, EXPLICIT)
    tableau = EXPLICIT[method]
    field = in_dtype_of(field, y0, t)

    def make() -> Callable[..., State]:
        def step(t: Tensor, h: Tensor, y: Tensor) -> State:
            K: list[Tensor] = []  # noqa: N806
            for c, row in zip(tableau.c, tableau.A, strict=True):
                K.append(field(t + c * h, _moved(y, h, row, K)))
            return (_moved(y, h, tableau.b, K),)

        return step

    return walk(
        make, (y0,), t, field=field, key=("explicit", method), evaluations=len(tableau.c), step_size=step_size,
        project=project, compile=compile, checkpoint=checkpoint,
    )  # fmt: skip


def _moved(y: Tensor, h: Tensor, weights: Row, K: list[Tensor]) -> Tensor:  # noqa: N803
    terms = [weight * velocity for weight, velocity in zip(weights, K, strict=True) if weight != 0.0]
    return y + h * sum(terms[1:], terms[0]) if terms else y
