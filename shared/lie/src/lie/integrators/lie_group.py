r"""Integrators whose every state is a group element: RKMK of order 4, and Crouch-Grossman of order 3.

They solve :math:`\dot g = \hat\xi(t, g)\, g` (``side="left"``, the velocity as seen from space) or
:math:`\dot g = g\, \hat\xi(t, g)` (``side="right"``, the velocity as seen from the body).

- Runge-Kutta-Munthe-Kaas: the classical Runge-Kutta method for :math:`\dot\Omega = \mathrm{dexp}^{-1}_\Omega \xi`,
  :math:`g = e^\Omega g_0`, with :math:`\mathrm{dexp}^{-1}_\Omega \xi = \xi - \tfrac12 [\Omega, \xi] +
  \tfrac1{12} [\Omega, [\Omega, \xi]]`, which is enough for order 4 (the sign of the middle term is + on the right).
Rounding would still carry a long product off the group: each step ends with ``group.normalise``.

- Crouch-Grossman: products of exponentials of the stage velocities, no brackets.

Source: Munthe-Kaas 1999; Crouch and Grossman 1993; Hairer, Lubich, Wanner 2006, sections IV.7 and IV.8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.base import LieGroup, check_is_group
from lie.integrators.checks import entrance
from lie.integrators.fields import Finer, Wrapped, in_dtype_of
from lie.integrators.fixed import State, walk

Side = Literal["left", "right"]

_CG_NODES = (0.0, 3 / 4, 17 / 24)
_CG_STAGES = ((), (3 / 4,), (119 / 216, 17 / 108))
_CG_WEIGHTS = (13 / 51, -2 / 3, 24 / 17)


@entrance(same_shape=False)
def rkmk4(
    field: Callable[[Tensor, Tensor], Tensor],
    g0: Float[Tensor, "*batch m m"],
    t: Float[Tensor, " T"],
    *,
    group: LieGroup,
    side: Side = "left",
    step_size: float | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T *batch m m"]:
    """The elements at ``t``, of order 4; each is a product of exponentials times ``g0``.

    Args:
        field: algebra coordinates ``field(t, g)``, (..., dim).
        g0: initial elements, (..., m, m).
        t: times, (T,). Each interval is cut into equal steps no longer than ``step_size``.
        group: the group, built in or your own.
        side: on which side of g the velocity stands: ``dg/dt = hat(xi) g`` or ``g hat(xi)``.
        step_size: largest step; None takes one step an interval.
        compile: compile the step; where the field cannot be, run eagerly and log the reason once.
        checkpoint: differentiate with memory of the square root of the number of steps, for one more forward pass.

    Raises:
        ValueError: for another side, elements that are none of the group's, or a field of another shape.

    Laws: with ``side="left"``, solutions from ``g0 h`` are those from g0 times h where the field depends on t alone.
    """
    field = in_dtype_of(field, g0, t)
    _check(group, g0, t, field, side)
    sign = -0.5 if side == "left" else 0.5

    def make() -> Callable[..., State]:
        def pulled(t: Tensor, omega: Tensor, g: Tensor) -> Tensor:
            xi = field(t, _move(group, omega, g, side))
            inner = group.bracket(omega, xi)
            return xi + sign * inner + group.bracket(omega, inner) / 12.0

        def step(t: Tensor, h: Tensor, g: Tensor) -> State:
            k1 = field(t, g)
            k2 = pulled(t + 0.5 * h, 0.5 * h * k1, g)
            k3 = pulled(t + 0.5 * h, 0.5 * h * k2, g)
            k4 = pulled(t + h, h * k3, g)
            return (group._renormalised(_move(group, h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4), g, side)),)

        return step

    return walk(
        make, (g0,), t, field=field, key=("rkmk4", repr(group), side), evaluations=4, step_size=step_size,
        compile=compile, checkpoint=checkpoint,
    )  # fmt: skip


@entrance(same_shape=False)
def crouch_grossman(
    field: Callable[[Tensor, Tensor], Tensor],
    g0: Float[Tensor, "*batch m m"],
    t: Float[Tensor, " T"],
    *,
    group: LieGroup,
    side: Side = "left",
    step_size: float | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T *batch m m"]:
    """As `rkmk4`, of order 3, by products of exponentials without brackets."""
    field = in_dtype_of(field, g0, t)
    _check(group, g0, t, field, side)

    def make() -> Callable[..., State]:
        def product(h: Tensor, weights: tuple[float, ...], K: list[Tensor], g: Tensor) -> Tensor:  # noqa: N803
            for weight, velocity in zip(weights, K, strict=True):
                g = _move(group, weight * h * velocity, g, side)
            return g

        def step(t: Tensor, h: Tensor, g: Tensor) -> State:
            K: list[Tensor] = []  # noqa: N806
            for node, weights in zip(_CG_NODES, _CG_STAGES, strict=True):
                K.append(field(t + node * h, product(h, weights, K, g)))
            return (group._renormalised(product(h, _CG_WEIGHTS, K, g)),)

        return step

    return walk(
        make, (g0,), t, field=field, key=("crouch_grossman", repr(group), side), evaluations=3, step_size=step_size,
        compile=compile, checkpoint=checkpoint,
    )  # fmt: skip


def _move(group: LieGroup, a: Tensor, g: Tensor, side: Side) -> Tensor:
    return group.exp(a) @ g if side == "left" else g @ group.exp(a)


def _check(group: LieGroup, g0: Tensor, t: Tensor, field: Callable[[Tensor, Tensor], Tensor], side: str) -> None:
    if side not in ("left", "right"):
        raise ValueError(f"expected side 'left' (dg/dt = hat(xi) g) or 'right' (g hat(xi)), got {side!r}")
    check_is_group(group)
    m = group.matrix_dim
    if g0.shape[-2:] != (m, m):
        raise ValueError(f"expected elements of shape (..., {m}, {m}) for {group!r}, got {tuple(g0.shape)}")
    velocity = field(t[0], g0)
    wanted = (*g0.shape[:-2], group.dim)
    try:
        fits = torch.broadcast_shapes(velocity.shape, wanted) == wanted and velocity.shape[-1:] == (group.dim,)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"expected a field of algebra coordinates {wanted} for {group!r} and elements {tuple(g0.shape)}, got "
            f"{tuple(velocity.shape)}"
        )
    if velocity.dtype != g0.dtype:
        raise TypeError(f"expected a field of {g0.dtype}, as the elements, got {velocity.dtype}")
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return
    given = field
    while isinstance(given, Wrapped) and not isinstance(given, Finer):
        given = given.field
    # Elements given in half precision are off by its rounding, in each entry.
    tolerance = max(1e-3, 8.0 * torch.finfo(given.dtype).eps) if isinstance(given, Finer) else 1e-3
    outside = ~group.contains(g0, tolerance=tolerance)
    if bool(outside.any()):
        raise ValueError(
            f"expected initial elements of {group!r}, got {int(outside.sum())} of {outside.numel()} matrices that are "
            "none (exp(log(g)) differs from g); make them by exp, or by lift"
        )
