r"""Projection of positions and velocities onto constraints, nearest in the mass metric, each sample on its own.

Joints are linear: one correction satisfies them exactly. The scalar constraints take Newton steps
:math:`x \leftarrow x - P J^T (J P J^T)^{-1} g`, the shortest in the mass metric, which converge quadratically and
stay on the joints. Then :math:`v \leftarrow v - P J^T (J P J^T)^{-1} J v`, orthogonal in the same metric, twice
against rounding.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from chnn.mechanics.constraints import Constraints, Metric, solve_factor

NEWTON_LIMIT = 100
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
    """
    bound = residual_bound(constraints, x)
    done = constraints.residual(x).abs().amax(-1) <= bound if constraints.num_constraints else None
    if done is None:
        return x, torch.zeros(x.shape[:-2], dtype=torch.bool, device=x.device)
    for _ in range(limit):
        if bool(done.all()):
            break
        moved = position_step(constraints, metric, x)
        x = torch.where(done[..., None, None], x, moved)
        done = done | (constraints.residual(x).abs().amax(-1) <= bound)
    # A sample that is on the constraints is not moved, and the derivative of that is the identity. That of the
    # projection is the derivative of Newton's steps: the first of one, the second of two.
    moved = position_step(constraints, metric, position_step(constraints, metric, x))
    change = moved - moved.detach()  # zero, or not a number at a singular configuration
    return torch.where(change == 0.0, x.detach() + change, x), ~done


def residual_bound(constraints: Constraints, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    """The residual that rounding leaves, by the size of the positions and lengths, (...)."""
    lengths = constraints.lengths.square().max() if len(constraints.lengths) else torch.zeros((), dtype=x.dtype)
    size = torch.maximum(x.detach().square().sum(-1).amax(-1).clamp(max=1e30).sqrt(), lengths.to(x).sqrt())
    # A span is a difference of positions: its square is off by the length times the rounding of the positions.
    return _ROUNDING * torch.finfo(x.dtype).eps * size.clamp(min=1e-3) * lengths.to(x).sqrt().clamp(min=1.0)
