r"""Projection of positions and velocities onto constraints, nearest in the mass metric, each sample on its own.

Joints are linear: one correction satisfies them exactly. The scalar constraints take Newton steps
:math:`x \leftarrow x - P J^T (J P J^T)^{-1} g`, the shortest in the mass metric, which converge quadratically and
stay on the joints. Then :math:`v \leftarrow v - P J^T (J P J^T)^{-1} J v`, orthogonal in the same metric, twice
against rounding.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from lie.run import UserError
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from chnn.mechanics.constraints import Constraints, Metric, solve_factor

NEWTON_LIMIT = 100
SINGULAR = 1e-12
"""Of a scaled Gram matrix, a pivot that counts as none; chains of a thousand links have 1e-3."""
_ROUNDING = 16.0  # residuals are sums of a few products of that many units in the last place


def position_step(
    constraints: Constraints, metric: Metric, x: Float[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch n d"]:
    """One Newton step of the positions."""
    if constraints.joint_A.shape[0]:
        x = x - metric.lift @ (constraints.joint_A @ x - constraints.joint_b)
    if constraints.A.shape[0] == 0:
        return x
    U = constraints.spans(x)  # noqa: N806
    D = constraints.directions(U)  # noqa: N806
    factor = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT)).L
    return x - metric.back @ (solve_factor(factor, constraints.values(U)).unsqueeze(-1) * D)


def project_velocity(
    constraints: Constraints, metric: Metric, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch n d"]:
    """Velocities made tangent to the constraints at ``x``, orthogonally in the mass metric."""
    if constraints.joint_A.shape[0]:
        v = v - metric.lift @ (constraints.joint_A @ v)
    if constraints.A.shape[0] == 0:
        return v
    D = constraints.directions(constraints.spans(x))  # noqa: N806
    factor = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT)).L
    for _ in range(2):
        rate = (D * (constraints.A @ v)).sum(-1)
        v = v - metric.back @ (solve_factor(factor, rate).unsqueeze(-1) * D)
    return v


def project_fixed(
    constraints: Constraints,
    metric: Metric,
    x: Float[Tensor, "*batch n d"],
    v: Float[Tensor, "*batch n d"],
    iterations: int = 3,
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
    """Projection of states that are nearly there, by a fixed number of simplified Newton steps; no test, no host sync.

    All steps share one factor, that of the Gram matrix at ``x``: each divides the violation by about the size of the
    first one, so that three take 1e-4 of a length to rounding, as two of Newton's would.
    """
    if constraints.joint_A.shape[0]:
        x = x - metric.lift @ (constraints.joint_A @ x - constraints.joint_b)
        v = v - metric.lift @ (constraints.joint_A @ v)
    if constraints.A.shape[0] == 0:
        return x, v
    U = constraints.spans(x)  # noqa: N806
    start = constraints.directions(U)
    factor = torch.linalg.cholesky_ex(metric.coupling * (start @ start.mT)).L
    for _ in range(iterations):
        x = x - metric.back @ (solve_factor(factor, constraints.values(U)).unsqueeze(-1) * start)
        U = constraints.spans(x)  # noqa: N806
    D = constraints.directions(U)  # noqa: N806
    for _ in range(iterations):
        rate = (D * (constraints.A @ v)).sum(-1)
        v = v - metric.back @ (solve_factor(factor, rate).unsqueeze(-1) * D)
    return x, v


def project_positions(
    constraints: Constraints, metric: Metric, x: Float[Tensor, "*batch n d"], limit: int = NEWTON_LIMIT
) -> tuple[Float[Tensor, "*batch n d"], Bool[Tensor, "*batch"]]:
    """Positions on the constraints, and which samples did not converge.

    Each sample takes steps until its own residual is at rounding; a sample that is there is not moved further.

    Raises:
        UserError: where derivatives are wanted and constraints depend on one another, so that there are none.
    """
    if constraints.num_constraints == 0:
        return x, torch.zeros(x.shape[:-2], dtype=torch.bool, device=x.device)
    bound = residual_bound(constraints, x)
    done = (constraints.residual(x).abs() <= bound).all(-1)
    for _ in range(limit):
        if bool(done.all()):
            break
        moved = position_step(constraints, metric, x)
        x = torch.where(done[..., None, None], x, moved)
        done = done | (constraints.residual(x).abs() <= bound).all(-1)
    # A sample that is on the constraints is not moved, and the derivative of that is the identity. That of the
    # projection is the derivative of Newton's steps: the first of one, the second of two.
    moved = position_step(constraints, metric, position_step(constraints, metric, x))
    if _is_differentiated(moved):
        singular = (pivots(constraints, metric, x.detach()) < SINGULAR).any(-1) & done
        if bool(singular.any()):
            samples = singular.reshape(-1).nonzero().flatten().tolist()
            raise UserError(
                f"cannot differentiate the projection of sample {samples[:5]}: constraints depend on one another "
                "there, and it has no derivative; project it without gradients, or start from a state beside it"
            )
    change = moved - moved.detach()  # zero, or not a number where nothing is differentiated
    return torch.where(change == 0.0, x.detach() + change, x), ~done


def pivots(constraints: Constraints, metric: Metric, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C"]:
    """Of the Gram matrix with a unit diagonal: below `SINGULAR` where a constraint depends on those before it."""
    D = constraints.directions(constraints.spans(x))  # noqa: N806
    gram = metric.coupling * (D @ D.mT)
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    factor, info = torch.linalg.cholesky_ex(gram * scale.unsqueeze(-1) * scale.unsqueeze(-2))
    squares = factor.diagonal(dim1=-2, dim2=-1).square().nan_to_num()
    # Of a failed factor the pivots from the failure on mean nothing; its number is that of the first, from 1.
    place = torch.arange(1, squares.shape[-1] + 1, device=x.device)
    return squares.masked_fill((info > 0).unsqueeze(-1) & (place >= info.unsqueeze(-1)), 0.0)


def _is_differentiated(x: Tensor) -> bool:
    """Whether derivatives flow through x, in reverse or forward mode."""
    return x.requires_grad or peek_interpreter_stack() is not None or forward_ad.unpack_dual(x).tangent is not None


def residual_bound(constraints: Constraints, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch R"]:
    """The residual of each constraint that rounding leaves, by the size of the positions, lengths and anchors.

    In any unit of length; but of a surface, whose function may have any scale, it is that of sizes in metres.
    """
    x = x.detach()
    if constraints.num_constraints == 0:
        return x.new_zeros(*x.shape[:-2], 0)
    C = constraints.A.shape[0]  # noqa: N806
    rows, offsets = torch.cat([constraints.A, constraints.joint_A]), torch.cat([constraints.b, constraints.joint_b])
    fixed = torch.cat([constraints.lengths, offsets.norm(dim=-1)]).amax()
    size = torch.maximum(x.square().sum(-1).amax(-1).clamp(max=1e30).sqrt(), fixed).unsqueeze(-1)
    # A span is a difference of positions: it is off by the rounding of these, and its square by the length times that.
    off = size * (0.5 * rows.abs().sum(-1)).clamp(min=1.0)
    scale = torch.ones_like(rows[:, 0])
    scale[:C] = torch.where(constraints.quadratic > 0, constraints.lengths, 1.0)
    bound = off * scale
    for _, each in constraints.surfaces:
        longest = constraints.lengths.max().clamp(min=1.0)
        bound = bound.index_copy(-1, each, (size.clamp(min=1e-3) * longest).expand(*size.shape[:-1], len(each)))
    bound = _ROUNDING * torch.finfo(x.dtype).eps * bound
    return torch.cat([bound[..., :C], bound[..., C:].repeat_interleave(constraints.spatial_dim, -1)], -1)
