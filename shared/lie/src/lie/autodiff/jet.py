r"""Higher derivatives along a curve, :math:`\frac{d^j}{dt^j} f(x(t))` at t = 0, by nested forward mode.

On the space of jets :math:`(x, x', x'', \dots)` the derivative along every curve is the one vector field
:math:`D = x' \partial_x + x'' \partial_{x'} + \dots` (the total derivative; Olver 1993, Applications of Lie Groups
to Differential Equations, section 2.3), and the j-th derivative of f along the curve is :math:`D^j f`. D is applied by
a forward-mode product; nested, j of them give all derivatives up to the j-th.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lie.autodiff.jvp import pushforward
from lie.groups.precision import FLOATING


def jet(
    f: Callable[[Tensor], Tensor],
    x: Float[Tensor, "..."],
    v: Float[Tensor, "..."] | Sequence[Float[Tensor, "..."]],
    *,
    order: int,
) -> tuple[Tensor, Tensor]:
    """The value ``f(x)`` and the first ``order`` derivatives of ``f(x + t v)`` by t at 0.

    Args:
        f: map on tensors, ``order`` times differentiable in forward mode.
        x: point, any shape.
        v: tangent at ``x`` of the same shape; or the derivatives ``[x', x'', ...]`` at t = 0 of a curve ``x(t)``
            through x, each of that shape, in a sequence or stacked along one new leading axis; those missing at the
            end are zero. The derivatives are then of f(x(t)).
        order: of the highest derivative, at least 1. f is called once; work and memory grow as 2^order.

    Returns:
        ``f(x)``, and the derivatives, (order, ...): the j-th at index j - 1. They are not divided by factorials.

    Raises:
        ValueError: if a tangent is not shaped as ``x``, there is none, or ``order`` is below 1.
        TypeError: if dtypes differ or are not floating-point.

    Laws: ``jet(f, x, s * v)`` has the derivatives ``s^j d_j``; ``jet(g o f, x, v) == jet(g, f(x), jet(f, x, v)[1])``
    (the chain rule of Faa di Bruno).

    Up to order 2 it compiles as one graph; of higher orders torch's compiler cannot trace the nested forward mode of
    every f (as of torch 2.15).

    >>> jet(torch.exp, torch.zeros(1), torch.ones(1), order=3)[1].squeeze(-1)
    tensor([1., 1., 1.])
    """
    if order < 1:
        raise ValueError(f"expected an order of at least 1, got {order}")
    curve = [v] if isinstance(v, Tensor) and v.ndim != x.ndim + 1 else list(v)[:order]
    if not curve:
        raise ValueError("expected a tangent or the derivatives of a curve, got an empty sequence")
    for derivative in curve:
        if x.dtype not in FLOATING or derivative.dtype != x.dtype:
            raise TypeError(
                f"expected a point and tangents of one floating-point dtype, got {x.dtype} and {derivative.dtype}"
            )
        if derivative.shape != x.shape:
            raise ValueError(
                f"expected a tangent of shape {tuple(x.shape)}, or a sequence of them (the derivatives of a curve), "
                f"got {tuple(derivative.shape)}"
            )

    last = curve[-1]  # the derivative of this one is zero, or beyond the order

    def value(*state: Tensor) -> tuple[Tensor, ...]:
        return (f(state[0]),)

    def differentiated(g: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def extended(*state: Tensor) -> tuple[Tensor, ...]:
            values, along = pushforward(g, state, (*state[1:], last))
            return (*values, along[-1])

        return extended

    derivatives = value
    for _ in range(order):
        derivatives = differentiated(derivatives)
    at_x, *along_x = derivatives(x, *curve[:-1])
    return at_x, torch.stack(along_x)
