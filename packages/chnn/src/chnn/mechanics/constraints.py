r"""Holonomic constraints as index tensors: each restricts one affine combination of points.

With points x of shape (n, d) every scalar constraint is a function of one span U_c = A_c x - b_c, and its gradient is
the outer product of the row A_c with a direction D_c in space:

- length (distance, tether): :math:`g = \tfrac12 (|U|^2 - l^2)`, :math:`D = U`;
- plane: :math:`g = N \cdot U`, :math:`D = N`; a point on a line is d - 1 of them;
- surface: :math:`g = f(U)`, :math:`D = \nabla f(U)`.

Joints fix all d components of a combination, :math:`A_L x = b_L`: they restrict the motion linearly and are eliminated
once and for all in the `Metric`. Then everything that mechanics asks of constraints is a product of small
matrices, without a loop over bodies or constraints:

- the Jacobian applied to velocities, :math:`(J v)_c = D_c \cdot (A v)_c`;
- its transpose applied to multipliers, :math:`J^T \lambda = A^T (\lambda \circ D)`;
- its time derivative, :math:`(\dot J v)_c = |(A v)_c|^2` for lengths, 0 for planes, :math:`(Av)^T \nabla^2 f (Av)`;
- the Gram matrix, :math:`J P J^T = (A P A^T) \circ (D D^T)`, for the inverse mass P on the joints.

Source of the constrained form: Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, section on explicit constraints;
spans, directions and the elimination are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics.bodies import refuse_learnt

Surface = Callable[[Tensor], Tensor]
"""A function of points (..., d) -> (...) whose zeros are a surface; arithmetic on its last axis and torch functions."""


@dataclass(frozen=True)
class Constraints:
    """Scalar constraints on spans ``A x - b`` and joints ``joint_A x = joint_b``, on points x of shape (n, d).

    Fields:
        A: combinations of the points, (C, n).
        b: offsets, the anchors of tethers, (C, d), metres.
        lengths: (C,), metres; 0 where the constraint is no length.
        quadratic: (C,), 1 for a length, 0 for a plane or surface.
        normals: (C, d), the normals of planes, 0 elsewhere.
        surfaces: pairs of a function and the rows, (k,), that it restricts.
        joint_A, joint_b: (L, n) and (L, d).
        names: of the C scalar constraints, then of the L joints.
    """

    A: Float[Tensor, "C n"]
    b: Float[Tensor, "C d"]
    lengths: Float[Tensor, " C"]
    quadratic: Float[Tensor, " C"]
    normals: Float[Tensor, "C d"]
    surfaces: tuple[tuple[Surface, Tensor], ...]
    joint_A: Float[Tensor, "L n"]  # noqa: N815
    joint_b: Float[Tensor, "L d"]
    names: tuple[str, ...]
    pure_lengths: bool = field(init=False, repr=False)
    """Whether all scalar constraints are lengths; a plain value, so that no field waits for a device to look."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pure_lengths", not self.surfaces and bool((self.quadratic == 1).all()))

    @property
    def num_points(self) -> int:
        """Number of points n."""
        return self.A.shape[1]

    @property
    def num_constraints(self) -> int:
        """Number of scalar equations, C + L d."""
        return self.A.shape[0] + self.joint_A.shape[0] * self.spatial_dim

    @property
    def spatial_dim(self) -> int:
        """Dimension d of space."""
        return self.b.shape[1]

    def to(self, like: Tensor) -> Constraints:
        """The same constraints in the dtype and on the device of ``like``."""
        if self.A.dtype == like.dtype and self.A.device == like.device:
            return self
        names = ("A", "b", "lengths", "quadratic", "normals", "joint_A", "joint_b")
        moved = {name: getattr(self, name).to(like) for name in names}
        surfaces = tuple((f, rows.to(like.device)) for f, rows in self.surfaces)
        return replace(self, surfaces=surfaces, **moved)

    def spans(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C d"]:
        """U = A x - b, the vectors that are restricted."""
        return self.A @ x - self.b

    def directions(self, U: Float[Tensor, "*batch C d"]) -> Float[Tensor, "*batch C d"]:  # noqa: N803
        """D, the gradient of each constraint by its span."""
        if self.pure_lengths:
            return U
        D = U * self.quadratic.unsqueeze(-1) + self.normals  # noqa: N806
        for f, rows in self.surfaces:
            D = D.index_add(-2, rows, gradient_of(f, U[..., rows, :]))  # noqa: N806
        return D

    def values(self, U: Float[Tensor, "*batch C d"]) -> Float[Tensor, "*batch C"]:  # noqa: N803
        """g, whose gradient by x is the outer product of A and D."""
        if self.pure_lengths:
            return 0.5 * (U.square().sum(-1) - self.lengths.square())
        g = 0.5 * self.quadratic * (U.square().sum(-1) - self.lengths.square()) + (self.normals * U).sum(-1)
        for f, rows in self.surfaces:
            g = g.index_add(-1, rows, f(U[..., rows, :]))
        return g

    def curvature(
        self,
        U: Float[Tensor, "*batch C d"],  # noqa: N803
        W: Float[Tensor, "*batch C d"],  # noqa: N803
    ) -> Float[Tensor, "*batch C d"]:
        """The derivative of D along W = A v; its product with W is (dJ/dt v)."""
        if self.pure_lengths:
            return W
        rate = W * self.quadratic.unsqueeze(-1)
        for f, rows in self.surfaces:
            at, along = U[..., rows, :], W[..., rows, :]
            rate = rate.index_add(-2, rows, torch.func.jvp(lambda u, f=f: gradient_of(f, u), (at,), (along,))[1])
        return rate

    def residual(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch R"]:
        """All R = C + L d residuals, zero where the constraints hold.

        ``|U|^2 - lengths^2`` (m^2) for lengths, the distance to planes (m), the function of surfaces, then the
        components of the joints (m).
        """
        U = self.spans(x)  # noqa: N806
        g = self.values(U) * (1.0 + self.quadratic)
        return torch.cat([g, (self.joint_A @ x - self.joint_b).flatten(-2)], dim=-1)

    def velocity_residual(
        self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch R"]:
        """``J v``: half the time derivative of `residual` for lengths, the time derivative for the others."""
        rate = (self.directions(self.spans(x)) * (self.A @ v)).sum(-1)
        return torch.cat([rate, (self.joint_A @ v).flatten(-2)], dim=-1)

    def jacobian(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch R n d"]:
        """J as a tensor, R = C + L d, such that ``(J v) == velocity_residual``."""
        scalar = self.A.unsqueeze(-1) * self.directions(self.spans(x)).unsqueeze(-2)  # (..., C, n, d)
        return torch.cat([scalar, self._joint_rows(x)], dim=-3)

    def jacobian_rate(
        self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch R n d"]:
        """The time derivative of `jacobian` along velocities v."""
        scalar = self.A.unsqueeze(-1) * self.curvature(self.spans(x), self.A @ v).unsqueeze(-2)
        return torch.cat([scalar, torch.zeros_like(self._joint_rows(x))], dim=-3)

    def _joint_rows(self, x: Tensor) -> Tensor:
        eye = torch.eye(self.spatial_dim, dtype=x.dtype, device=x.device)
        rows = (self.joint_A[:, None, :, None] * eye[None, :, None, :]).flatten(0, 1)  # (L d, n, d)
        return rows.expand(*x.shape[:-2], *rows.shape)

    def select(self, keep: Sequence[int]) -> Constraints:
        """The same with the scalar constraints ``keep`` only."""
        index = torch.as_tensor(list(keep), dtype=torch.long)
        place = {row: position for position, row in enumerate(keep)}
        surfaces = []
        for f, rows in self.surfaces:
            kept = [place[row] for row in rows.tolist() if row in place]
            if kept:
                surfaces.append((f, torch.as_tensor(kept)))
        moved = {name: getattr(self, name)[index] for name in ("A", "b", "lengths", "quadratic", "normals")}
        names = tuple(self.names[row] for row in keep) + self.names[self.A.shape[0] :]
        return replace(self, surfaces=tuple(surfaces), names=names, **moved)

    def metric(self, inverse_mass: Float[Tensor, "*batch n n"]) -> Metric:
        """What the equations of motion need of the masses; once for a system, or a batch of masses."""
        back = inverse_mass @ self.joint_A.mT
        if self.joint_A.shape[0]:
            lift = torch.linalg.solve(self.joint_A @ back, back.mT).mT  # (n, L)
            P = inverse_mass - lift @ back.mT  # noqa: N806
            P = 0.5 * (P + P.mT)  # noqa: N806
        else:
            lift, P = back, inverse_mass  # noqa: N806
        away = P @ self.A.mT
        return Metric(P, away, self.A @ away, lift)


@dataclass(frozen=True)
class Metric:
    """Products of masses with constraints that do not depend on the state.

    Fields:
        inverse: P, the inverse mass on the motions that the joints allow, (..., n, n).
        back: ``P A^T``, (..., n, C).
        coupling: ``A P A^T``, (..., C, C).
        lift: takes residuals of the joints to the shortest correction of the points, (..., n, L).
        factor: G with ``P = G G^T``, (..., n, n - L), where it is known.
    """

    inverse: Float[Tensor, "*batch n n"]
    back: Float[Tensor, "*batch n C"]
    coupling: Float[Tensor, "*batch C C"]
    lift: Float[Tensor, "*batch n L"]
    factor: Float[Tensor, "*batch n m"] | None = None

    def to(self, like: Tensor) -> Metric:
        """The same in the dtype and on the device of ``like``."""
        if self.inverse.dtype == like.dtype and self.inverse.device == like.device:
            return self
        factor = None if self.factor is None else self.factor.to(like)
        return Metric(self.inverse.to(like), self.back.to(like), self.coupling.to(like), self.lift.to(like), factor)


def gradient_of(f: Surface, u: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """The gradient of a function of each point, differentiable again and usable under `torch.func`."""
    return torch.func.grad(lambda point: f(point).sum())(u)


def solve_gram(gram: Float[Tensor, "*batch C C"], rhs: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """The multipliers of a Gram system by Cholesky; NaN, not an exception, where the constraints degenerate."""
    factor, info = torch.linalg.cholesky_ex(gram)
    solution = solve_factor(factor, rhs)
    return torch.where((info == 0).unsqueeze(-1), solution, torch.nan)


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
    refuse_learnt(values, name)
    numbers = torch.as_tensor(values, dtype=torch.float64)
    if numbers.shape != (count,):
        raise UserError(f"expected {count} {name}, one a body, got {numbers.numel()}")
    for body, value in enumerate(numbers.tolist()):
        if not 0.0 < value < float("inf"):
            raise UserError(f"expected positive finite {name}, got {value:g} for body {body}")
    return numbers
