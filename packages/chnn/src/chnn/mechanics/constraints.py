r"""Holonomic constraints that fix the length of affine combinations of points.

With points x of shape (n, d) every constraint is

.. math:: g_c(x) = \tfrac12 (|U_c|^2 - l_c^2) = 0, \qquad U = A x - b

A distance between points i and j has a row of A with +1 at i and -1 at j; a tether of point i to an anchor has +1
at i and the anchor as its row of b. Then everything that mechanics asks of constraints is a product of
small matrices, without a Jacobian tensor and without a loop over constraints:

- the Jacobian applied to velocities, :math:`(J v)_c = U_c \cdot (A v)_c`;
- its transpose applied to multipliers, :math:`J^T \lambda = A^T (\lambda \circ U)`;
- its time derivative, :math:`(\dot J v)_c = |(A v)_c|^2`;
- the Gram matrix, :math:`J M^{-1} J^T = (A M^{-1} A^T) \circ (U U^T)`.

Source of the constrained form: Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, section on explicit constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor


@dataclass(frozen=True)
class QuadraticConstraints:
    """The constraints ``|A x - b| = lengths`` on points x of shape (n, d).

    Fields:
        A: combinations of the points, (C, n).
        b: offsets, the anchors of tethers, (C, d), metres.
        lengths: (C,), metres, positive.
    """

    A: Float[Tensor, "C n"]
    b: Float[Tensor, "C d"]
    lengths: Float[Tensor, " C"]

    @property
    def num_points(self) -> int:
        """Number of points n."""
        return self.A.shape[1]

    @property
    def num_constraints(self) -> int:
        """Number of constraints C."""
        return self.A.shape[0]

    @property
    def spatial_dim(self) -> int:
        """Dimension d of space."""
        return self.b.shape[1]

    def to(self, like: Tensor) -> QuadraticConstraints:
        """The same constraints in the dtype and on the device of ``like``."""
        if self.A.dtype == like.dtype and self.A.device == like.device:
            return self
        return QuadraticConstraints(self.A.to(like), self.b.to(like), self.lengths.to(like))

    def spans(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C d"]:
        """U = A x - b, the vectors whose lengths are fixed."""
        return self.A @ x - self.b

    def residual(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C"]:
        """``|U|^2 - lengths^2``, square metres; zero where the constraints hold."""
        return self.spans(x).square().sum(-1) - self.lengths.square()

    def velocity_residual(
        self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch C"]:
        """``J v = U . A v``, square metres per second; zero where velocities keep the constraints."""
        return (self.spans(x) * (self.A @ v)).sum(-1)

    def gram(
        self,
        U: Float[Tensor, "*batch C d"],
        inverse_mass: Float[Tensor, "n n"],  # noqa: N803 (as in the formula)
    ) -> Float[Tensor, "*batch C C"]:
        """``J M^-1 J^T``."""
        return (self.A @ inverse_mass @ self.A.mT) * (U @ U.mT)

    def project(
        self,
        x: Float[Tensor, "*batch n d"],
        v: Float[Tensor, "*batch n d"],
        inverse_mass: Float[Tensor, "n n"],
        *,
        iterations: int,
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
        """Positions and velocities moved onto the constraints, each sample on its own.

        Newton steps ``x - M^-1 J^T (J M^-1 J^T)^-1 g``, the smallest in the mass metric; they converge
        quadratically. Then the velocity is projected orthogonally in the mass metric, twice against rounding.
        Inputs are not changed.
        """
        back = inverse_mass @ self.A.mT  # (n, C): M^-1 A^T
        for _ in range(iterations):
            U = self.spans(x)  # noqa: N806
            g = 0.5 * (U.square().sum(-1) - self.lengths.square())
            x = x - back @ (solve_gram(self.gram(U, inverse_mass), g).unsqueeze(-1) * U)
        U = self.spans(x)  # noqa: N806
        factor = torch.linalg.cholesky_ex(self.gram(U, inverse_mass)).L
        for _ in range(2):
            rate = (U * (self.A @ v)).sum(-1)
            v = v - back @ (solve_factor(factor, rate).unsqueeze(-1) * U)
        return x, v


def solve_gram(gram: Float[Tensor, "*batch C C"], rhs: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """The multipliers of a Gram system by Cholesky; NaN, not an exception, where the constraints degenerate."""
    factor, info = torch.linalg.cholesky_ex(gram)
    solution = solve_factor(factor, rhs)
    return torch.where((info == 0).unsqueeze(-1), solution, torch.full_like(solution, torch.nan))


def solve_factor(factor: Float[Tensor, "*batch C C"], rhs: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Solve with a lower Cholesky factor at hand."""
    return torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1)


def positive(name: str, values: Sequence[float] | None, count: int, default: float = 1.0) -> Tensor:
    """``count`` positive float64 numbers, or ``default`` each for None.

    Raises:
        UserError: for another count or a value that is not positive and finite; names the body.
    """
    if values is None:
        return torch.full((count,), default, dtype=torch.float64)
    numbers = torch.as_tensor(values, dtype=torch.float64)
    if numbers.shape != (count,):
        raise UserError(f"expected {count} {name}, one a body, got {numbers.numel()}")
    for body, value in enumerate(numbers.tolist()):
        if not 0.0 < value < float("inf"):
            raise UserError(f"expected positive finite {name}, got {value:g} for body {body}")
    return numbers
