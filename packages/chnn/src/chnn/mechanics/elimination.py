r"""Elimination of joints: which are independent, the coordinates they leave free, and the inverse mass on these.

A body is described by its origin and axes, y = (x_0, e_1, ..., e_k), with x = T y. A joint :math:`A_L T y = b_L` is
solved for an origin where it has one, whose coefficients are of order 1 in any unit of length, else for an axis. What
the joints leave is :math:`x = x_p + N u`. With the mass matrix :math:`M = E\, \mathrm{diag}(I)\, E^T` the inverse mass
on the motions that the joints allow is

.. math:: P = N (N^T M N)^{-1} N^T = G G^T, \qquad G = N R^{-1}, \qquad \mathrm{diag}(I)^{1/2} E^T N = Q R

The small difference of two large matrices, :math:`M^{-1}` and what the joints take from it, never appears, so that
moments far below mass times lever squared keep their digits. Rows sorted by size and pivoted columns keep a QR
factorisation accurate row by row.

Source of the row-wise stability: Cox, Higham 1998, Stability of Householder QR factorization for weighted least squares
problems; the elimination is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics.bodies import Body
from chnn.mechanics.constraints import Constraints, Metric

_INDEPENDENT = 1e-10  # entry of an eliminated row, over the terms that it is the sum of; rounding is 1e-15
_CONSISTENT = 1e-9  # offset that a dependent joint may have, over the lengths in it
_EPS = torch.finfo(torch.float64).eps


def axes_of(bodies: Sequence[Body]) -> np.ndarray:
    """T, (n, n): points from the origins and axes of bodies, x = T y."""
    n = sum(body.dim + 1 for body in bodies)
    T = np.eye(n)  # noqa: N806
    for body in bodies:
        T[body.first : body.first + body.dim + 1, body.first] = 1.0
    return T


def eliminate_joints(
    A: np.ndarray,  # noqa: N803
    b: np.ndarray,
    names: Sequence[str],
    bodies: Sequence[Body],
) -> tuple[list[int], np.ndarray]:
    """Independent joints of ``A x = b``, and a basis N (n, n - L) of the motions that they allow.

    Joints are taken in order: one that follows from those before it is left out.

    Raises:
        UserError: if a dependent joint contradicts the others; names it.
    """
    T = axes_of(bodies)  # noqa: N806
    n, sums = len(T), np.abs(A) @ T  # of the weights of a direction the origin's sum is zero but for rounding
    A = A @ T  # noqa: N806
    origin = np.zeros(n, dtype=bool)
    origin[[body.first for body in bodies]] = True
    kept: list[int] = []
    pivots: list[int] = []
    reduced, offset = np.zeros((len(A), n)), np.zeros((len(A), b.shape[1]))
    for number, row in enumerate(A):
        count = len(kept)
        rest, missing = row.copy(), b[number].copy()
        terms, lengths = sums[number], np.abs(b[number])
        factors = row[pivots]
        used = np.flatnonzero(factors)
        if len(used):
            rest -= factors[used] @ reduced[used]
            missing -= factors[used] @ offset[used]
            terms = terms + np.abs(factors[used]) @ np.abs(reduced[used])
            lengths = lengths + np.abs(factors[used]) @ np.abs(offset[used])
        # Origins have numbers as coefficients and axes have lengths (or numbers, in a direction): rounding is told by
        # the size of each kind, so that units do not matter.
        for part in (origin, ~origin):
            size = terms[part].max(initial=0.0)
            rest[part & (np.abs(rest) <= _INDEPENDENT * size)] = 0.0
        rest[pivots] = 0.0
        if not rest.any():
            size = max(lengths.max(initial=0.0), terms[~origin].max(initial=0.0))
            if np.linalg.norm(missing) > _CONSISTENT * size:
                others = f" given {', '.join(names[k] for k in kept)}" if kept else ""
                raise UserError(
                    f"impossible constraint: {names[number]} cannot hold{others}; it is off by "
                    f"{np.linalg.norm(missing):.3g}"
                )
            continue
        part = origin if rest[origin].any() else ~origin
        pivot = int(np.argmax(np.where(part, np.abs(rest), 0.0)))
        missing /= rest[pivot]
        rest /= rest[pivot]
        others = np.flatnonzero(reduced[:count, pivot])
        factors = reduced[others, pivot]
        reduced[others] -= factors[:, None] * rest
        offset[others] -= factors[:, None] * missing
        reduced[others, pivot] = 0.0
        reduced[count], offset[count] = rest, missing
        kept.append(number)
        pivots.append(pivot)
    free = np.setdiff1d(np.arange(n), pivots)
    N = np.zeros((n, len(free)))  # noqa: N806
    N[free, range(len(free))] = 1.0
    N[pivots] = -reduced[: len(kept), free]
    return kept, T @ N


def joint_metric(
    constraints: Constraints,
    basis: Float[Tensor, "n m"],
    inertia_factor: Float[Tensor, "n n"],
    inertia: Float[Tensor, "*batch n"],
) -> Metric:
    """The products of masses with constraints, by the free coordinates of the joints; differentiable by ``inertia``."""
    m = basis.shape[1]
    product = inertia_factor.mT @ basis
    rows = inertia.sqrt().unsqueeze(-1) * product  # (..., n, m)
    if not len(constraints.joint_A):
        G = torch.linalg.inv(inertia_factor.mT) / inertia.sqrt().unsqueeze(-2)  # noqa: N806
    elif m:
        sample = rows.detach().abs().flatten(0, -3).amax(0) if rows.ndim > 2 else rows.detach()
        order = sample.abs().amax(-1).argsort(descending=True)
        _, pivots = scipy.linalg.qr(sample[order].cpu().numpy(), mode="r", pivoting=True)  # type: ignore[misc]
        columns = torch.from_numpy(np.asarray(pivots, dtype=np.int64)).to(rows.device)
        R = torch.linalg.qr(rows[..., order, :][..., columns]).R  # noqa: N806
        G = torch.linalg.solve_triangular(R, basis[:, columns].expand(*R.shape[:-2], -1, -1), upper=True, left=False)  # noqa: N806
    else:
        G = rows  # (..., n, 0)  # noqa: N806
    spans = constraints.A @ G
    lift = inertia.new_zeros(*inertia.shape[:-1], len(inertia_factor), len(constraints.joint_A))
    if len(constraints.joint_A):
        joints = torch.linalg.pinv(constraints.joint_A)  # (n, L), any correction; then the shortest in the mass metric
        mass = inertia.unsqueeze(-1) * (inertia_factor.mT @ joints)
        lift = joints - G @ ((inertia_factor.mT @ G).mT @ mass)
    return Metric(_outer(G, G), _outer(G, spans), _outer(spans, spans), lift, G)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` with zeros where only rounding remains, which the code made for a system leaves out."""
    product = a @ b.mT
    return torch.where(product.abs() <= 4.0 * _EPS * (a.abs() @ b.mT.abs()), 0.0, product)
