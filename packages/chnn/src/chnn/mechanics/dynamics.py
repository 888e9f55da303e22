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
    if metric.fused is None:
        A = constraints.A  # noqa: N806
        U, W = constraints.spans(x), A @ v  # noqa: N806
        free = metric.inverse @ force
        pushed = A @ free
    else:
        # One product over all samples each, on points in a row: what many small ones cost is mostly their number.
        n, C = x.shape[-2], constraints.A.shape[0]  # noqa: N806
        spans, both, _ = metric.fused
        U = (x.flatten(-2) @ spans).unflatten(-1, (C, -1)) - constraints.b if C else constraints.spans(x)  # noqa: N806
        W = (v.flatten(-2) @ spans).unflatten(-1, (C, -1)) if C else U  # noqa: N806
        moved = (force.flatten(-2) @ both).unflatten(-1, (n + C, -1))
        free, pushed = moved[..., :n, :], moved[..., n:, :]
    if constraints.A.shape[0] == 0:
        return free
    D, rate = constraints.directions(U), constraints.curvature(U, W)  # noqa: N806
    rhs = (D * pushed + rate * W).sum(-1)  # (..., C)
    # A failed factor is not a number, and so are the multipliers: degenerate samples show without a branch.
    factor, info = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT))
    multipliers = solve_factor(factor, rhs).masked_fill((info != 0).unsqueeze(-1), torch.nan)
    along = multipliers.unsqueeze(-1) * D
    if metric.fused is None:
        return free - metric.back @ along
    return free - (along.flatten(-2) @ metric.fused[2]).view_as(free)


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
    good = (info == 0).unsqueeze(-1)
    inside = metric.inverse @ p  # the velocity without its part across the joints
    mu_2 = torch.where(good, -solve_factor(factor, (D * (A @ inside)).sum(-1)), torch.nan)
    dx = inside + metric.back @ (mu_2.unsqueeze(-1) * D)
    # d/dt (D . A v) = (dD/dt) . A v + D . A M^-1 dp, with dD/dt along dx.
    turning = constraints.curvature(U, A @ dx)
    free = metric.inverse @ (force - A.mT @ (mu_2.unsqueeze(-1) * rate))
    rhs = (turning * W + D * (A @ free)).sum(-1)
    mu_1 = torch.where(good, solve_factor(factor, rhs), torch.nan)
    dp = mass @ (free - metric.back @ (mu_1.unsqueeze(-1) * D))
    return dx, dp
