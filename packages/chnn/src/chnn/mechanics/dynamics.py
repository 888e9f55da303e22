r"""Equations of motion of points under quadratic constraints, in velocities and in momenta.

Lagrangian form: :math:`M \ddot x = F - J^T \lambda` with :math:`(J M^{-1} J^T) \lambda = J M^{-1} F + \dot J v`.

Hamiltonian form: with :math:`\Psi(x, p) = (g(x), J M^{-1} p)` the flow is
:math:`\dot z = \mathbb{J} \nabla H + \mathbb{J} D\Psi^T \mu`, tangent to :math:`\Psi = 0`: the oblique (symplectic)
projection. The 2C x 2C matrix :math:`D\Psi \mathbb{J} D\Psi^T` has blocks
:math:`\begin{pmatrix} 0 & G \\ -G & S \end{pmatrix}` with the Gram matrix G and an antisymmetric S, so it is solved
by two solves with one Cholesky factor of G. On the constraint set both forms give the same motion.

Source: Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, sections on the constrained Hamiltonian and
Lagrangian equations; the block elimination is ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics.constraints import QuadraticConstraints, solve_factor, solve_gram


def lagrangian_acceleration(
    constraints: QuadraticConstraints,
    inverse_mass: Float[Tensor, "n n"],
    x: Float[Tensor, "*batch n d"],
    v: Float[Tensor, "*batch n d"],
    force: Float[Tensor, "*batch n d"],
) -> Float[Tensor, "*batch n d"]:
    """The acceleration of the points, m/s^2, for a force (..., n, d) in newtons."""
    A = constraints.A  # noqa: N806
    U, W = constraints.spans(x), A @ v  # noqa: N806
    free = inverse_mass @ force
    rhs = (U * (A @ free)).sum(-1) + W.square().sum(-1)
    multipliers = solve_gram(constraints.gram(U, inverse_mass), rhs)  # (..., C)
    return free - inverse_mass @ (A.mT @ (multipliers.unsqueeze(-1) * U))


def hamiltonian_velocity(
    constraints: QuadraticConstraints,
    inverse_mass: Float[Tensor, "n n"],
    x: Float[Tensor, "*batch n d"],
    p: Float[Tensor, "*batch n d"],
    force: Float[Tensor, "*batch n d"],
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
    """(dx/dt, dp/dt) of H = p M^-1 p / 2 + V with F = -grad V, projected obliquely onto the constraints."""
    A = constraints.A  # noqa: N806
    v = inverse_mass @ p
    U, W = constraints.spans(x), A @ v  # noqa: N806
    coupling = A @ inverse_mass @ A.mT  # (C, C)
    factor = torch.linalg.cholesky_ex(coupling * (U @ U.mT)).L
    # S = {Psi_2, Psi_2} in Poisson brackets; mu_2 vanishes on the constraint set.
    S = coupling * (W @ U.mT - U @ W.mT)  # noqa: N806
    mu_2 = -solve_factor(factor, (U * W).sum(-1))
    rate = W.square().sum(-1) + (U * (A @ (inverse_mass @ force))).sum(-1)
    mu_1 = solve_factor(factor, rate + (S @ mu_2.unsqueeze(-1)).squeeze(-1))
    reaction = A.mT @ (mu_2.unsqueeze(-1) * U)
    dx = v + inverse_mass @ reaction
    dp = force - A.mT @ (mu_1.unsqueeze(-1) * U + mu_2.unsqueeze(-1) * W)
    return dx, dp
