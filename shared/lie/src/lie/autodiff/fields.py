r"""Vector fields: the Lie derivative of a map between two spaces with fields, and the bracket of fields.

The Lie derivative of :math:`f: X \to Y` along a field on each space is the defect of equivariance

.. math:: (L f)(x) = Df(x)[X_{in}(x)] - X_{out}(f(x)).

For the fundamental fields of two actions of a group it is
:math:`\frac{d}{dt} \rho_{out}(e^{-ta})\, f(\rho_{in}(e^{ta})\, x)` at t = 0: it vanishes for all x and a just
where f is equivariant under the connected component of the group (Gruver, Finzi, Goldblum, Wilson 2023, The Lie
Derivative for Measuring Learned Equivariance, arXiv 2210.02984, section 4).

The bracket has the sign of Jacobi and Lie, :math:`[X, Y] = DY[X] - DX[Y]`: as operators on functions,
:math:`L_{[X,Y]} = L_X L_Y - L_Y L_X` (Marsden, Ratiu 1999, Introduction to Mechanics and Symmetry, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from lie.autodiff.jvp import jvp_along, pushforward
from lie.groups.checks import check_floating, check_tensor


def lie_derivative(
    f: Callable[[Tensor], Tensor],
    x: Float[Tensor, "..."],
    field_in: Callable[[Tensor], Tensor],
    field_out: Callable[[Tensor], Tensor] | None = None,
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, "..."]:
    """The Lie derivative ``Df(x)[field_in(x)] - field_out(f(x))``: how far f is from equivariance, to first order.

    Args:
        f: map between two spaces, differentiable in forward mode.
        x: point (or points: whatever ``f`` takes), any shape.
        field_in: velocity of ``x`` as the group starts to act on it, of the shape of x; or several, stacked
            along one new leading axis, as of all generators of a group.
        field_out: velocity of ``f(x)`` as the same motion starts to act there, likewise. None: f should be invariant.
        chunk_size: how many of several fields are treated together, to bound the memory; None takes all.

    Returns:
        The derivative at t = 0 of ``act_out(exp(-t a), f(act_in(exp(t a), x)))``, of the shape of ``f(x)`` (with
        the leading axis of the fields where they have one). Zero everywhere just where the flows commute with f.

    Raises:
        ValueError: if a field has another shape.
        TypeError: if dtypes differ or are not floating-point.

    Laws: ``lie_derivative(g o f) == Dg[lie_derivative(f)] + lie_derivative(g)`` at f(x), with the field between
    them; linear in the fields. Example: rotations of the plane, and the part of a map that does not turn.

    >>> turn = lambda x: torch.stack([-x[..., 1], x[..., 0]], -1)
    >>> lie_derivative(lambda x: x * x.norm(), torch.tensor([3.0, 4.0]), turn, turn)
    tensor([0., 0.])
    >>> lie_derivative(lambda x: x[..., 0], torch.tensor([3.0, 4.0]), turn)
    tensor(-4.)
    """
    value, along = jvp_along(f, x, field_in(x), chunk_size=chunk_size)
    if field_out is None:
        return along
    expected = field_out(value)
    if not isinstance(expected, Tensor) or expected.dtype != along.dtype:
        got = expected.dtype if isinstance(expected, Tensor) else type(expected).__name__
        raise TypeError(f"expected field_out to give a tensor of {along.dtype}, the dtype of f(x), got {got}")
    if expected.shape != along.shape:
        raise ValueError(
            f"expected field_out to give {tuple(along.shape)}, the shape of the derivative of f(x), for f(x) of shape "
            f"{tuple(value.shape)}, got {tuple(expected.shape)}; stack the same generators in field_in and field_out"
        )
    return along - expected


def lie_bracket(X: Callable[[Tensor], Tensor], Y: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:  # noqa: N803
    """The bracket of two vector fields, ``[X, Y](x) = DY(x)[X(x)] - DX(x)[Y(x)]`` (the sign of Jacobi and Lie).

    Args:
        X, Y: fields on one space, velocities of the shape of the point; twice differentiable where the bracket
            is differentiated again.

    Returns:
        The field ``x -> [X, Y](x)`` of the shape of x. It also takes ``(t, x)``, and may enter another bracket.

    Raises:
        ValueError: when called, if a field is not shaped as the point.
        TypeError: when called, if a field has another dtype, or the point is not floating-point.

    Laws: ``[X, Y] == -[Y, X]``; ``[X, f Y] == f [X, Y] + (Df[X]) Y`` (Leibniz);
    ``[X, [Y, Z]] + [Y, [Z, X]] + [Z, [X, Y]] == 0`` (Jacobi). The flows of X and Y commute where it vanishes.

    The fundamental fields of a left action, ``X_a(x) = group.vector_field(a, x)``, obey
    ``[X_a, X_b] == -X_[a, b]``. The minus belongs to left actions with this sign: for matrices X_a(x) = A x, so that
    ``DX_b[X_a] - DX_a[X_b] = B A x - A B x``. The law without it holds for ``lie_bracket(X_b, X_a)``, for the fields of
    the right action ``act(exp(-a), x)``, and for left-invariant fields on the group itself.

    >>> X, Y = (lambda x: torch.stack([x[1], 0 * x[0]])), (lambda x: torch.stack([0 * x[0], x[0]]))
    >>> lie_bracket(X, Y)(torch.tensor([1.0, 2.0]))
    tensor([-1.,  2.])
    """

    def bracket(*args: Tensor) -> Tensor:
        x = args[-1]
        check_tensor(x, "the point")
        check_floating(x, "points")
        along_y = _shaped_as(x, Y(x), "Y")
        along_x, change_of_x = pushforward(X, (x,), (along_y,))
        _, change_of_y = pushforward(Y, (x,), (_shaped_as(x, along_x, "X"),))
        return change_of_y - change_of_x

    return bracket


def _shaped_as(x: Tensor, velocity: Tensor, name: str) -> Tensor:
    if not isinstance(velocity, Tensor) or velocity.dtype != x.dtype:
        got = velocity.dtype if isinstance(velocity, Tensor) else type(velocity).__name__
        raise TypeError(f"expected the field {name} to give a tensor of {x.dtype}, the dtype of the point, got {got}")
    if velocity.shape != x.shape:
        raise ValueError(
            f"expected the field {name} to give a velocity of the shape of the point, {tuple(x.shape)}, "
            f"got {tuple(velocity.shape)}"
        )
    return velocity
