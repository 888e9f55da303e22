r"""The equations of motion of one system as products of constant matrices with whole batches of states.

Of lengths and planes the spans, their directions D and the rates of these are affine in the state, so that the Gram
matrix and the right sides of its systems are bilinear:

.. math:: G_{ij} = (A P A^T)_{ij} \, D_i \cdot D_j, \qquad r_i = D_i \cdot (A P F)_i + \dot D_i \cdot (A v)_i

One product with a constant matrix gives the factors of all such terms, an elementwise one multiplies them, and another
with a constant matrix sums them into G and r. A force that is affine in the state belongs to the first matrix; any
other is an input beside the state. It is the mathematics of `chnn.mechanics.dynamics`, where it is explained, by 21
operations on tensors in place of 65 for velocities and 32 in place of 135 for momenta, of which each costs its dispatch
and hardly its size.

The matrices are full of zeros, which cost more than they save where points are many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics.constraints import Constraints, Metric, solve_factor
from chnn.mechanics.forces import Force

_COORDINATES = 32  # n d up to which zeros cost less than calls, by measurement with 100 states
_TERMS = 96  # products of numbers in the Gram matrix up to which they are summed by one matrix


@dataclass(frozen=True)
class _Affine:
    """A row of numbers that is affine in the input row (x, v or p, F): ``input @ matrix + offset``."""

    matrix: Tensor
    offset: Tensor

    def __add__(self, other: _Affine) -> _Affine:
        return _Affine(self.matrix + other.matrix, self.offset + other.offset)

    def __matmul__(self, onto: Tensor) -> _Affine:
        return _Affine(self.matrix @ onto, self.offset @ onto)

    def __mul__(self, factors: Tensor | float) -> _Affine:
        return _Affine(self.matrix * factors, self.offset * factors)

    def take(self, columns: list[int]) -> _Affine:
        return _Affine(self.matrix[:, columns], self.offset[columns])


@dataclass(frozen=True)
class Bilinear:
    """What is bilinear and what is affine in a row, by two products.

    Fields:
        matrix, offset: (k, sum of widths) and (sum of widths,), of all that is affine.
        sums: of the products of the first with the second part of it, (widths[0], results).
        widths: of the left factors, the right factors, and the parts that are results themselves.
    """

    matrix: Tensor
    offset: Tensor
    sums: Tensor
    widths: tuple[int, ...]

    @staticmethod
    def of(left: list[_Affine], right: list[_Affine], sums: Tensor, rest: list[list[_Affine]]) -> Bilinear:
        """From pairs of factors, and from what is wanted itself, in parts."""
        every = [part for parts in (left, right, *rest) for part in parts]
        widths = tuple(sum(len(part.offset) for part in parts) for parts in (left, right, *rest))
        return Bilinear(
            torch.cat([part.matrix for part in every], 1), torch.cat([part.offset for part in every]), sums, widths
        )

    def to(self, like: Tensor) -> Bilinear:
        """The same in the dtype and on the device of ``like``."""
        return Bilinear(self.matrix.to(like), self.offset.to(like), self.sums.to(like), self.widths)

    def __call__(self, row: Float[Tensor, "B k"], force: Float[Tensor, "B f"] | None) -> tuple[Tensor, ...]:
        """The sums of products, then the parts that are affine."""
        matrix = self.matrix
        if force is None:
            matrix = matrix[: row.shape[-1]]
        else:
            row = torch.cat([row, force], -1)
        left, right, *rest = torch.addmm(self.offset, row, matrix).split(self.widths, -1)
        return ((left * right) @ self.sums, *rest)


@dataclass(frozen=True)
class MotionForms:
    """Both fields of a system of lengths, planes and joints, on states in rows.

    Fields:
        velocity: of (x, v, F): G and r; then D; then (v, P F).
        momentum: of (x, p, F): G and -D . (A P p); then the rates of D with D; then (P p, M P F, A P p, A P F).
        turn: from multipliers times (rates, D) to what they add to (dx, M a, A dx, A a), (2 C d, 2 n d + 2 C d).
        push, pull: from multipliers times D to what they add to (v, a) and to (dx, dp), (C d, 2 n d).
        spread, spread_twice: a number for each constraint to one for each of its components, (C, C d), and (C, 2 C d).
        coupling: ``A P A^T`` (C, C), where the Gram matrix has too many terms to be summed, else None.
    """

    velocity: Bilinear
    momentum: Bilinear
    turn: Tensor
    push: Tensor
    pull: Tensor
    spread: Tensor
    spread_twice: Tensor
    coupling: Tensor | None

    @staticmethod
    def of(
        constraints: Constraints,
        metric: Metric,
        mass: Float[Tensor, "n n"],
        inverse_mass: Float[Tensor, "n n"],
        forces: Sequence[Force],
    ) -> MotionForms | None:
        """The forms of a system with those of its ``forces`` that are affine; None with surfaces or many points."""
        n, d, C = constraints.num_points, constraints.spatial_dim, constraints.A.shape[0]  # noqa: N806
        if constraints.surfaces or n * d > _COORDINATES:
            return None
        like = metric.inverse

        def on_rows(matrix: Tensor) -> Tensor:  # of points in a row, from the right
            eye = torch.eye(d, dtype=like.dtype, device=like.device)
            return torch.einsum("ij,kl->jlik", matrix, eye).flatten(2).flatten(0, 1)  # also without rows or columns

        x, other, given = (
            _Affine(part, like.new_zeros(n * d))
            for part in torch.eye(3 * n * d, dtype=like.dtype, device=like.device).split(n * d, 1)
        )
        span, inverse, spread = on_rows(constraints.A), on_rows(metric.inverse), like.new_zeros(C, C, d)
        spread[range(C), range(C)] = 1.0
        spread = spread.flatten(1)
        quadratic = constraints.quadratic @ spread
        anchored = x @ span + _Affine(torch.zeros_like(span).repeat(3, 1), -constraints.b.flatten())
        D = anchored * quadratic + _Affine(0.0 * anchored.matrix, constraints.normals.flatten())  # noqa: N806
        summed = int((metric.coupling != 0).sum()) * d <= 2 * _TERMS
        left, right, gram = _gram(metric.coupling, D) if summed else (D.take([]), D.take([]), like.new_zeros(0, 0))
        sums = torch.block_diag(gram, spread.mT)

        def pushed(force: _Affine) -> _Affine:
            """P F. By the factor of P what is zero for rounding stays so, also where P has large entries."""
            if metric.factor is None:
                return force @ inverse
            return force @ on_rows(metric.factor.mT) @ on_rows(metric.factor)

        force = _total(forces, given, n, d, None)
        W = other @ span  # noqa: N806
        velocity = Bilinear.of(
            [left, D, W * quadratic], [right, pushed(force) @ span, W],
            torch.cat([sums, torch.cat([like.new_zeros(C * d, gram.shape[1]), spread.mT], 1)]),
            [[D], [other, pushed(force)]],
        )  # fmt: skip
        force = _total(forces, given, n, d, inverse_mass)
        inside = other @ inverse
        rate = other @ on_rows(inverse_mass) @ span * quadratic
        momentum = Bilinear.of(
            [left, D], [right, inside @ span * -1.0], sums,
            [[rate, D], [inside, force @ on_rows(mass @ metric.inverse), inside @ span, pushed(force) @ span]],
        )  # fmt: skip
        back, pulled, coupled = on_rows(metric.back), on_rows(mass @ metric.back), on_rows(metric.coupling)
        zero, square = torch.zeros_like(back), torch.zeros_like(coupled)
        turn = torch.cat([torch.cat([zero, -pulled, square, -coupled], 1), torch.cat([back, zero, coupled, square], 1)])
        return MotionForms(
            velocity, momentum, turn, torch.cat([zero, -back], 1), torch.cat([zero, -pulled], 1), spread,
            torch.cat([spread, spread], 1), None if summed else metric.coupling,
        )  # fmt: skip

    def to(self, like: Tensor) -> MotionForms:
        """The same in the dtype and on the device of ``like``."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: None if value is None else value.to(like) for name, value in values.items()}
        return MotionForms(**moved)

    def velocity_field(self, z: Float[Tensor, "B s"], force: Float[Tensor, "B f"] | None) -> Float[Tensor, "B s"]:
        """The time derivative of (x, v), with the forces that are not affine; NaN where constraints degenerate."""
        sums, D, free = self.velocity(z, force)  # noqa: N806
        if len(self.spread) == 0:
            return free
        factor, failed, rhs = self._factor(sums, D)
        multipliers = solve_factor(factor, rhs).masked_fill(failed, torch.nan)
        return torch.addmm(free, (multipliers @ self.spread) * D, self.push)

    def momentum_field(self, y: Float[Tensor, "B s"], force: Float[Tensor, "B f"] | None) -> Float[Tensor, "B s"]:
        """The time derivative of (x, p), with the forces that are not affine; NaN where constraints degenerate."""
        sums, bend, free = self.momentum(y, force)
        if len(self.spread) == 0:
            return free
        D = bend[:, self.spread.shape[1] :]  # noqa: N806
        factor, failed, rhs = self._factor(sums, D)
        mu_2 = solve_factor(factor, rhs).masked_fill(failed, torch.nan)  # which makes all that follows NaN
        moved = torch.addmm(free, (mu_2 @ self.spread_twice) * bend, self.turn)
        velocity, rates = moved.split((y.shape[1], bend.shape[1]), -1)  # (dx, M a) and (A dx, A a)
        mu_1 = solve_factor(factor, (rates * bend) @ self.spread_twice.mT)
        return torch.addmm(velocity, (mu_1 @ self.spread) * D, self.pull)

    def _factor(self, sums: Tensor, D: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: N803
        """The factor of the Gram matrix, where there is none (B, 1), and the right side (B, C)."""
        C = len(self.spread)  # noqa: N806
        if self.coupling is None:
            gram, rhs = sums.split((C * C, C), -1)
            gram = gram.unflatten(-1, (C, C))
        else:
            directions, rhs = D.unflatten(-1, (C, -1)), sums
            gram = self.coupling * (directions @ directions.mT)
        factor, info = torch.linalg.cholesky_ex(gram)
        return factor, (info != 0).unsqueeze(-1), rhs


def _gram(coupling: Tensor, D: _Affine) -> tuple[_Affine, _Affine, Tensor]:  # noqa: N803
    """Factors whose products are the terms of the Gram matrix, and how they sum to it, (terms, C C)."""
    C = len(coupling)  # noqa: N806
    d = len(D.offset) // max(C, 1)
    pairs = [(i, j) for i in range(C) for j in range(i, C) if float(coupling[i, j].detach()) != 0.0]
    sums = coupling.new_zeros(len(pairs), d, C, C)
    for term, (i, j) in enumerate(pairs):
        sums[term, :, i, j] = sums[term, :, j, i] = coupling[i, j]
    first, second = ([side[k] * d + axis for side in pairs for axis in range(d)] for k in (0, 1))
    return D.take(first), D.take(second), sums.flatten(2).flatten(0, 1)


def _total(forces: Sequence[Force], given: _Affine, n: int, d: int, inverse_mass: Tensor | None) -> _Affine:
    """All forces, of (x, v, F), or of (x, p, F) with an inverse mass; affine ones by their values at unit vectors."""
    size = n * d
    total = given
    for force in forces:
        unit = torch.eye(size, dtype=given.matrix.dtype, device=given.matrix.device).view(size, n, d)
        zero = torch.zeros_like(unit)
        moving = unit if inverse_mass is None else inverse_mass @ unit
        offset = force.force(zero, zero)[0]
        columns = [force.force(unit, zero) - offset, force.force(zero, moving) - offset, zero]
        total = total + _Affine(torch.cat(columns).flatten(1), offset.flatten())
    return total
