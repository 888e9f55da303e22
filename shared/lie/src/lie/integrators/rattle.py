r"""RATTLE for constrained separable Hamiltonian systems, and its composition of order 4.

With positions q, momenta p, constraints g(q) = 0, G = g'(q) and dq/dt = M^-1 p:

.. math::
    p_{1/2} &= p_0 + \tfrac{h}{2} \dot p(q_0) - G(q_0)^T \lambda, \quad
    q_1 = q_0 + h M^{-1} p_{1/2}, \quad g(q_1) = 0 \\
    p_1 &= p_{1/2} + \tfrac{h}{2} \dot p(q_1) - G(q_1)^T \mu, \quad G(q_1) M^{-1} p_1 = 0

Symplectic on the constraint surface, symmetric, of order 2; three steps with the weights of the triple jump have
order 4. Source: Andersen 1983; Hairer, Lubich, Wanner 2006, Geometric Numerical Integration, sections VII.1.4 and
VII.1.5; Reich 1996 for the compositions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lie.integrators.checks import check_step_size, entrance
from lie.integrators.errors import IntegrationError
from lie.integrators.fields import Field, in_dtype_of
from lie.integrators.fixed import State, check_iterations, walk
from lie.integrators.projection import MAXIMUM_ITERATIONS, along, constraint_rows, newton, solve_multipliers
from lie.integrators.symplectic import TRIPLE_JUMP, check_halves, half
from lie.integrators.transforms import anywhere, largest, positions


@entrance(half=False)
def rattle(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    constraint: Callable[[Tensor], Tensor],
    step_size: float | None = None,
    dim: int = -1,
    iterations: int | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """The states at ``t`` of a constrained separable Hamiltonian system, of order 2.

    Args:
        field: velocity ``field(t, y)`` of the system without its constraints: dq/dt linear in p alone (the inverse
            mass matrix, which also carries the multipliers), dp/dt of q alone. With velocities in place of momenta
            it holds for equal masses only.
        y0: initial state on the constraint surface, with momenta tangent to it.
        t: times, (T,). Each interval is cut into equal steps no longer than ``step_size``.
        constraint: residuals of the positions, (..., n) -> (..., C) for ``dim=-1``; for another axis of length 2
            the positions come without that axis, (..., n, d) for ``dim=-3``.
        step_size: largest step; None takes one step an interval.
        dim: axis of positions and momenta: -1 for (..., 2n), -3 for (..., 2, n, d).
        iterations: a fixed number of Newton's, without a test of convergence: no host sync, so that the step can be
            compiled. They converge quadratically: 4 or 5 do for steps that are not too long. None iterates to rounding.
        compile: compile the step (with ``iterations``).
        checkpoint: differentiate with memory of the square root of the number of steps, for one more forward pass.

    Returns:
        States at the times, (T, ...).

    Raises:
        ValueError: for positions off the surface or momenta across it, by more than 1e-6 of their size; for a number
            of iterations that is not positive, or ``compile`` without one.
        IntegrationError: if the multipliers do not converge: a step too long, or dependent constraints. With a fixed
            number of iterations nothing is tested, and dependent constraints give NaN.

    Laws: ``g(q) == 0`` and ``G M^-1 p == 0`` to rounding after every step; reversing the times retraces the states.
    """
    return _rattle((1.0,), field, y0, t, constraint, step_size, dim, iterations, compile, checkpoint)


@entrance(half=False)
def rattle4(
    field: Field,
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    constraint: Callable[[Tensor], Tensor],
    step_size: float | None = None,
    dim: int = -1,
    iterations: int | None = None,
    compile: bool = False,
    checkpoint: bool = False,
) -> Float[Tensor, "T ..."]:
    """As `rattle`, of order 4 by three steps of it, the middle one backwards."""
    return _rattle(TRIPLE_JUMP, field, y0, t, constraint, step_size, dim, iterations, compile, checkpoint)


def _rattle(
    weights: tuple[float, ...],
    field: Field,
    y0: Tensor,
    t: Tensor,
    constraint: Callable[[Tensor], Tensor],
    step_size: float | None,
    dim: int,
    iterations: int | None,
    compile: bool,
    checkpoint: bool,
) -> Tensor:
    check_halves(y0, dim)
    check_step_size(step_size)
    field = in_dtype_of(field, y0, t)
    check_iterations(iterations, compile)
    dim = dim - y0.ndim if dim >= 0 else dim
    axes = -dim  # trailing axes of one state
    squeezed = dim < -1 and y0.shape[dim] == 2

    def g(q: Tensor) -> Tensor:
        return constraint(q.squeeze(dim) if squeezed else q)

    def momenta_to_velocities(t: Tensor, q: Tensor, rows: Tensor) -> Tensor:
        return torch.func.vmap(lambda p: half(field, t, q, p, dim, 0))(rows)

    def one(t: Tensor, h: Tensor, q: Tensor, p: Tensor, force: Tensor) -> State:
        _, rows = constraint_rows(g, q, axes)
        directions = momenta_to_velocities(t, q, rows)  # M^-1 G^T
        p = p + 0.5 * h * force
        free = q + h * half(field, t, q, p, dim, 0)
        # Newton on nu = h lambda: q1 = free - M^-1 G(q0)^T nu; the change of q1 is the change of the state.
        count = rows.shape[0]

        def improve(state: Tensor) -> Tensor:
            position, nu = state[..., :-count], state[..., -count:]
            residual, now = constraint_rows(g, position.view_as(free), axes)
            nu = nu + solve_multipliers(now, directions, residual, axes)
            return torch.cat([(free - along(directions, nu, axes)).flatten(-axes), nu], dim=-1)

        start = torch.cat([free.flatten(-axes), free.new_zeros(*free.shape[:-axes], count)], dim=-1)
        if iterations is None:
            found, failed = newton(improve, start, 1, MAXIMUM_ITERATIONS)
            _raise_if(failed, t, h, "the multipliers of the positions did not converge")
        else:
            found = start
            for _ in range(iterations):
                found = improve(found)
        q_new = found[..., :-count].view_as(free)
        p = p - along(rows, found[..., -count:], axes) / h
        force = half(field, t + h, q_new, p, dim, 1)
        p = p + 0.5 * h * force
        p = _tangent(t + h, h, q_new, p)
        return q_new, p, force

    def _tangent(t: Tensor, h: Tensor, q: Tensor, p: Tensor) -> Tensor:
        _, rows = constraint_rows(g, q, axes)
        directions = momenta_to_velocities(t, q, rows)
        speed = half(field, t, q, p, dim, 0)
        residual = torch.einsum("c...n,...n->...c", rows.flatten(-axes), speed.flatten(-axes))
        mu = solve_multipliers(rows, directions, residual, axes)
        if iterations is None:
            _raise_if(~torch.isfinite(mu.detach()).all(-1), t, h, "the constraints are dependent")
        return p - along(rows, mu, axes)

    def make() -> Callable[..., State]:
        def step(t: Tensor, h: Tensor, y: Tensor, force: Tensor) -> State:
            q, p = y.chunk(2, dim=dim)
            now = t
            for weight in weights:
                q, p, force = one(now, weight * h, q, p, force)
                now = now + weight * h
            return torch.cat([q, p], dim=dim), force

        return step

    q, p = y0.chunk(2, dim=dim)
    residual, _ = constraint_rows(g, q, axes)
    offset = float(largest(residual.detach().abs().max()))
    size = max(1.0, float(largest(q.detach().abs().max())) ** 2)
    # A float32 state projected elsewhere sits within a few 1e-7 of the surface.
    if not offset <= 1e-6 * size:
        raise ValueError(
            f"expected an initial state on the constraint surface, got a residual of {offset:.3g}; project it first, "
            "for example with lie.integrators.projection (which says so where no state satisfies the constraints)"
        )
    if len(t) == 1:
        return y0.unsqueeze(0)
    first = t[1] - t[0]
    if step_size is not None:
        first = first.sign() * torch.minimum(first.abs(), torch.as_tensor(step_size, dtype=t.dtype, device=t.device))
    tangent = _tangent(t[0], first, q, p)
    across = float(largest((tangent - p).detach().abs().max()))
    if not across <= 1e-6 * max(1.0, float(largest(p.detach().abs().max()))):
        raise ValueError(
            f"expected momenta tangent to the constraint surface, got a part of {across:.3g} across it; take it away "
            "first: p - G^T (G M^-1 G^T)^-1 G M^-1 p"
        )
    p = tangent
    state = (torch.cat([q, p], dim=dim), half(field, t[0], q, p, dim, 1))
    return walk(
        make, state, t, field=field, key=("rattle", weights, dim, iterations, constraint),
        evaluations=len(weights) * (2 + (iterations or 1)), step_size=step_size, compile=compile, checkpoint=checkpoint,
    )  # fmt: skip


def _raise_if(failed: Tensor, t: Tensor, h: Tensor, reason: str) -> None:
    if anywhere(failed):
        raise IntegrationError(
            reason, "take a smaller step_size, or check the constraints: dependent ones have no unique multipliers",
            time=float(largest(t)), step_size=float(largest(h)), samples=positions(failed), reached=None,
        )  # fmt: skip
