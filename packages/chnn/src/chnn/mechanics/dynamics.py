r"""Equations of motion of points under constraints, in velocities and in momenta.

Lagrangian form: :math:`M \ddot x = F - J^T \lambda` with :math:`(J P J^T) \lambda = J P F + \dot J v`, where P is the
inverse mass on the motions that the joints allow (`Metric`); the joints' own multipliers never appear.

Hamiltonian form: with :math:`\Psi(x, p) = (g(x), J M^{-1} p)` for all constraints, joints included, the flow is
:math:`\dot z = \mathbb{J} \nabla H + \mathbb{J} D\Psi^T \mu`, tangent to :math:`\Psi = 0`: the oblique (symplectic)
projection. The matrix :math:`D\Psi \mathbb{J} D\Psi^T` has blocks
:math:`\begin{pmatrix} 0 & G \\ -G & S \end{pmatrix}` with the Gram matrix G and an antisymmetric S; it is solved
by two solves with one Cholesky factor of the C x C part of G that the joints leave. On the constraint set both forms
give the same motion.

Source: Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, sections on the constrained Hamiltonian and
Lagrangian equations; the block elimination is ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics.constraints import Constraints, Metric, solve_factor


def lagrangian_acceleration(
    constraints: Constraints,
    metric: Metric,
    x: Float[Tensor, "*batch n d"],
    v: Float[Tensor, "*batch n d"],
    force: Float[Tensor, "*batch n d"],
) -> Float[Tensor, "*batch n d"]:
    """The acceleration of the points, m/s^2, for a force (..., n, d) in newtons; NaN where constraints degenerate.

    The metric may have batch axes, which broadcast against those of the states.
    """
    U, W = constraints.spans(x), constraints.A @ v  # noqa: N806
    free = metric.inverse @ force
    if constraints.A.shape[0] == 0:
        return free
    D, rate = constraints.directions(U), constraints.curvature(U, W)  # noqa: N806
    # The spans of the free acceleration, not A P times the force: they differ by the rounding of P's largest entry.
    rhs = (D * (constraints.A @ free) + rate * W).sum(-1)  # (..., C)
    # Of a failed factor the multipliers are not a number: degenerate samples show without a branch.
    factor, info = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT))
    multipliers = solve_factor(factor, rhs).masked_fill((info != 0).unsqueeze(-1), torch.nan)
    return free - metric.back @ (multipliers.unsqueeze(-1) * D)


def hamiltonian_velocity(
    constraints: Constraints,
    metric: Metric,
    mass: Float[Tensor, "*#batch n n"],
    inverse_mass: Float[Tensor, "*#batch n n"],
    x: Float[Tensor, "*batch n d"],
    p: Float[Tensor, "*batch n d"],
    force: Float[Tensor, "*batch n d"],
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
    """(dx/dt, dp/dt) of H = p M^-1 p / 2 + V with F = -grad V, projected obliquely onto the constraints."""
    A = constraints.A  # noqa: N806
    v = inverse_mass @ p
    U, W = constraints.spans(x), A @ v  # noqa: N806
    D, rate = constraints.directions(U), constraints.curvature(U, W)  # noqa: N806
    factor, info = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT))
    mu_2 = -solve_factor(factor, (D * (metric.back.mT @ p)).sum(-1))
    mu_2 = mu_2.masked_fill((info != 0).unsqueeze(-1), torch.nan)  # which makes all that follows NaN
    dx = metric.inverse @ p + metric.back @ (mu_2.unsqueeze(-1) * D)  # without its part across the joints
    # d/dt (D . A v) = (dD/dt) . A v + D . A M^-1 dp, with dD/dt along dx.
    turning = constraints.curvature(U, A @ dx)
    pushed = force - A.mT @ (mu_2.unsqueeze(-1) * rate)
    mu_1 = solve_factor(factor, (turning * W + D * (metric.back.mT @ pushed)).sum(-1))
    dp = mass @ (metric.inverse @ pushed - metric.back @ (mu_1.unsqueeze(-1) * D))
    return dx, dp
