r"""A lift for any transitive action, found numerically: Gauss-Newton in the Lie algebra.

Given an origin o and a point x, solve ``act(u, o) == x``. At y = act(u, o) the fundamental fields span the
directions in which y can move, a d x dim matrix F(y); the step is ``u <- exp(F(y)^+ (x - y)) u`` with the
pseudo-inverse (Nocedal and Wright 2006, section 10.3), halved until it comes closer. Where a start does not reach
its point, the next of some random elements is tried.

The last step is taken once more with derivatives, so that the lift can be differentiated with respect to x. The search
itself has none and decides by values: a `torch.func.vmap` hands it all points at once (`_Search.vmap`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lie.groups.base import LieGroup

_STARTS = 12
_STEPS = 60


def numeric_lift(group: LieGroup, x: Tensor, origin: Tensor) -> Tensor:
    """Elements (N, m, m) that take ``origin`` (d,) to the points ``x`` (N, d).

    Raises:
        ValueError: if a point is not reached: the action is then not transitive on these points.
    """
    best = _Search.apply(x.detach(), group, origin)
    y = group.act(best, origin)
    return group.exp(_step(group, y, x - y)) @ best


class _Search(torch.autograd.Function):
    """The elements that `_search` finds: constants for every derivative."""

    @staticmethod
    def forward(x: Tensor, group: LieGroup, origin: Tensor) -> Tensor:  # type: ignore[override]
        return _search(group, x, origin)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:  # type: ignore[override]
        return None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, group: LieGroup, origin: Tensor
    ) -> tuple[Tensor, int]:
        if in_dims[2] is not None:
            raise ValueError("expected one origin for all points of a vmap; see LieGroup.orbit_origin")
        rows = x.movedim(in_dims[0] or 0, 0)  # (B, N, d)
        u = _Search.apply(rows.flatten(0, 1), group, origin)
        return u.unflatten(0, rows.shape[:2]), 0


def _search(group: LieGroup, target: Tensor, origin: Tensor) -> Tensor:
    x = target
    scale = target.abs().amax(-1, keepdim=True).clamp(min=float(origin.abs().max()))  # (N, 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    # A dozen rounded operations; a caller's act may use more.
    allowed = 16.0 * torch.finfo(x.dtype).eps * scale.squeeze(-1)
    generator = torch.Generator(device=x.device).manual_seed(0)
    starts = group.exp(
        torch.randn(_STARTS, 1, group.dim, generator=generator, dtype=x.dtype, device=x.device)
        * torch.linspace(0.0, 2.0, _STARTS, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    )
    m = group.matrix_dim
    best = starts[0].expand(len(x), m, m)
    distance = _distance(group, best, origin, target)
    with torch.no_grad():
        for start in starts:
            missing = distance > allowed
            if not bool(missing.any()):
                break
            rows = missing.nonzero().squeeze(-1)
            u, now = _gauss_newton(group, start.expand(len(rows), m, m), origin, target[rows], allowed[rows])
            better = now < distance[rows]
            best = best.index_put((rows[better],), u[better])
            distance = distance.index_put((rows[better],), now[better])
    missing = distance > allowed
    if bool(missing.any()):
        first = int(missing.nonzero()[0, 0])
        raise ValueError(
            f"the action of {group!r} is not transitive on these points: {int(missing.sum())} of {len(x)} are not "
            f"reached from {origin.tolist()}, first {target[first].tolist()} (distance {float(distance[first]):.3g}); "
            "define `lift` and `orbit_origin` with an orbit id, or leave these points out"
        )
    return best


def _distance(group: LieGroup, u: Tensor, origin: Tensor, target: Tensor) -> Tensor:
    return (target - group.act(u, origin)).norm(dim=-1).nan_to_num(nan=torch.inf)


def _step(group: LieGroup, y: Tensor, residual: Tensor) -> Tensor:
    """The shortest algebra element whose field at ``y`` is ``residual``, (N, dim)."""
    basis = torch.eye(group.dim, dtype=y.dtype, device=y.device)
    fields = group.vector_field(basis, y.unsqueeze(-2)).mT  # (N, d, dim)
    return (torch.linalg.pinv(fields) @ residual.unsqueeze(-1)).squeeze(-1)  # (N, d, dim)^+ (N, d)


def _gauss_newton(group: LieGroup, u: Tensor, origin: Tensor, target: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    distance = _distance(group, u, origin, target)
    length = torch.ones_like(distance)
    for _ in range(_STEPS):
        if bool(((distance <= 0.25 * allowed) | (length < 1e-4)).all()):  # arrived, or stuck
            break
        y = group.act(u, origin)
        a = _step(group, y, target - y).nan_to_num()
        # No further than 1 in the algebra, where the exponential is still near its linear part.
        a = a * (length / a.norm(dim=-1).clamp(min=1.0)).unsqueeze(-1)
        moved = group.exp(a) @ u
        now = _distance(group, moved, origin, target)
        closer = now < distance
        u = torch.where(closer[:, None, None], moved, u)
        distance = torch.where(closer, now, distance)
        length = torch.where(closer, (2.0 * length).clamp(max=1.0), 0.5 * length)
    return u, distance
