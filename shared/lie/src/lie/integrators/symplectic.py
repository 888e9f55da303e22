r"""Leapfrog (Stoermer-Verlet) and its compositions of order 4, 6 and 8, for separable Hamiltonians.

.. math::
    p_{1/2} = p_0 + \tfrac{h}{2} \dot p(q_0), \quad q_1 = q_0 + h\, \dot q(p_{1/2}), \quad
    p_1 = p_{1/2} + \tfrac{h}{2} \dot p(q_1)

A symmetric sequence of leapfrog steps of sizes w_i h, some of them backwards, has a higher order: Yoshida's triple
jump (order 4, 3 steps) and his solution A (order 6, 7 steps), and the 15 steps of Suzuki and Umeno for order 8. All
are symplectic and time-reversible, and evaluate the force once a leapfrog step.

Source: Hairer, Lubich, Wanner 2006, Geometric Numerical Integration, sections I.1.4, II.4 and V.3.2, theorem VI.3.4;
Yoshida 1990, Physics Letters A 150, table 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lie.integrators.checks import entrance
from lie.integrators.fields import Field, in_dtype_of
from lie.integrators.fixed import State, walk

_CUBE_ROOT = 2.0 ** (1.0 / 3.0)
TRIPLE_JUMP = (1.0 / (2.0 - _CUBE_ROOT), -_CUBE_ROOT / (2.0 - _CUBE_ROOT), 1.0 / (2.0 - _CUBE_ROOT))
"""Weights that raise a symmetric method of order 2 to order 4."""


def _symmetric(*half: float) -> tuple[float, ...]:
    """The weights ``half``, then one that makes the sum 1, then ``half`` reversed."""
    return (*half, 1.0 - 2.0 * sum(half), *reversed(half))


_SIXTH = _symmetric(0.784513610477560, 0.235573213359357, -1.17767998417887)
_EIGHTH = _symmetric(
    *(0.74167036435061295345, -0.40910082580003159400, 0.19075471029623837995, -0.57386247111608226666),
    *(0.29906418130365592384, 0.33462491824529818378, 0.31529309239676659663),
)


@entrance()
def leapfrog(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    dim: int = -1,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """The states at ``t`` of a separable Hamiltonian system by the leapfrog method, of order 2.

    Args:
        field: velocity ``field(t, y)``; dq/dt may depend on p alone and dp/dt on q alone (and on t).
            Where they depend on more, the method is neither symplectic nor of order 2.
        y0: initial state, positions and momenta (or velocities) equally many along ``dim``.
        t: times, (T,). Each interval is cut into equal steps no longer than ``step_size``.
        step_size: largest step; None takes one step an interval.
        dim: axis of positions and momenta: -1 for (..., 2n), -3 for (..., 2, n, d).
        project: applied to the state after every step, such as `lie.integrators.projection`.
        compile: compile the step; where the field cannot be, run eagerly and log the reason once.
        checkpoint: differentiate with memory of the square root of the number of steps, for one more forward pass.

    Returns:
        States at the times, (T, ...).

    Raises:
        ValueError: if ``dim`` has odd length or ``step_size`` is not positive.

    Laws: reversing the times retraces the states; the energy error stays bounded, of order step_size^2.
    """
    return _composed((1.0,), field, y0, t, step_size, dim, project, compile, checkpoint)


@entrance()
def yoshida4(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    dim: int = -1,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """As `leapfrog`, of order 4 with three evaluations of the force a step."""
    return _composed(TRIPLE_JUMP, field, y0, t, step_size, dim, project, compile, checkpoint)


@entrance()
def yoshida6(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    dim: int = -1,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """As `leapfrog`, of order 6 with seven evaluations of the force a step."""
    return _composed(_SIXTH, field, y0, t, step_size, dim, project, compile, checkpoint)


@entrance()
def yoshida8(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    step_size: float | None = None,
    dim: int = -1,
    project: Callable[[Tensor], Tensor] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """As `leapfrog`, of order 8 with fifteen evaluations of the force a step."""
    return _composed(_EIGHTH, field, y0, t, step_size, dim, project, compile, checkpoint)


def check_halves(y0: Tensor, dim: int) -> None:
    """Raise unless positions and momenta are equally many along ``dim``."""
    if y0.ndim < (-dim if dim < 0 else dim + 1) or y0.shape[dim] % 2:
        raise ValueError(f"expected positions and momenta, equally many, along axis {dim}, got {tuple(y0.shape)}")


def half(field: Field, t: Tensor, q: Tensor, p: Tensor, dim: int, which: int) -> Tensor:
    """The velocity of the positions (0) or of the momenta (1)."""
    return field(t, torch.cat([q, p], dim=dim)).chunk(2, dim=dim)[which]


def _force(field: Field, t: Tensor, y: Tensor, dim: int) -> Tensor:
    return field(t, y).chunk(2, dim=dim)[1]


def _composed(
    weights: tuple[float, ...],
    field: Field,
    y0: Tensor,
    t: Tensor,
    step_size: float | None,
    dim: int,
    project: Callable[[Tensor], Tensor] | None,
    compile: bool,
    checkpoint: bool,
) -> Tensor:
    check_halves(y0, dim)
    field = in_dtype_of(field, y0, t)

    def make() -> Callable[..., State]:
        def step(t: Tensor, h: Tensor, y: Tensor, force: Tensor) -> State:
            q, p = y.chunk(2, dim=dim)
            now = t
            for weight in weights:
                part = weight * h
                middle = p + 0.5 * part * force
                q = q + part * half(field, now + 0.5 * part, q, middle, dim, 0)
                now = now + part
                force = half(field, now, q, middle, dim, 1)
                p = middle + 0.5 * part * force
            return torch.cat([q, p], dim=dim), force

        return step

    if project is None:
        state = (y0, _force(field, t[0], y0, dim)) if len(t) > 1 else (y0,)
        return walk(
            make, state, t, field=field, key=("composed", weights, dim), evaluations=len(weights), step_size=step_size,
            compile=compile, checkpoint=checkpoint,
        )  # fmt: skip

    def make_projected() -> Callable[..., State]:
        inner = make()

        def step(t: Tensor, h: Tensor, y: Tensor) -> State:  # the projection moves q: the force is found afresh
            return (inner(t, h, y, _force(field, t, y, dim))[0],)

        return step

    return walk(
        make_projected, (y0,), t, field=field, key=("projected", weights, dim), evaluations=len(weights),
        step_size=step_size, project=project, compile=compile, checkpoint=checkpoint,
    )  # fmt: skip
