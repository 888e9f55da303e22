"""Constraints that depend on one another, and constraints that nothing can satisfy.

Joints are linear: dependence is found once by their rank, and a dependent joint that asks for something else is
impossible. Scalar constraints depend on one another at a state where the Gram matrix is singular. What depends at all
of several random states on the constraint set depends by structure (the unit axis of a hinge is unit in both bodies)
and is left out; the rest is chosen for the largest smallest pivot over these states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics.constraints import Constraints

_FLAT = 1e-6  # gradient of a function of surfaces, which are of the order of 1 for distances
WITHIN = "length within body"
"""How the names of the lengths begin that make bodies rigid."""
_TRIED = 12  # constraints that the search for the culprit does without, one at a time
_DEPENDENT = 1e-9  # pivot of a normalised Gram matrix below which a constraint depends on those before


def independent_joints(A: np.ndarray, b: np.ndarray, names: Sequence[str]) -> list[int]:  # noqa: N803
    """Indices of joints ``A x = b`` on which the others depend.

    Raises:
        UserError: if a dependent joint contradicts the others; names it.
    """
    kept: list[int] = []
    for row in range(len(A)):
        if not kept:
            left, rest = A[row], b[row]
        else:
            combination = np.linalg.lstsq(A[kept].T, A[row], rcond=None)[0]
            left, rest = A[row] - combination @ A[kept], b[row] - combination @ b[kept]
        size = np.linalg.norm(A[row])
        if np.linalg.norm(left) > 1e-10 * max(size, 1e-300):
            kept.append(row)
        elif np.linalg.norm(rest) > 1e-9 * (1.0 + np.linalg.norm(b[row])):
            others = f" given {', '.join(names[k] for k in kept)}" if kept else ""
            raise UserError(
                f"impossible constraint: {names[row]} cannot hold{others}; it is off by {np.linalg.norm(rest):.3g}"
            )
    return kept


def independent_rows(
    constraints: Constraints, inverse_mass: Float[Tensor, "n n"], states: Float[Tensor, "S n d"]
) -> list[int]:
    """Scalar constraints, in order, on which the others depend at most of the ``states``."""
    metric = constraints.metric(inverse_mass)
    D = constraints.directions(constraints.spans(states))  # noqa: N806
    for _, rows in constraints.surfaces:
        flat = D[:, rows].norm(dim=-1).median(dim=0).values < _FLAT
        if bool(flat.any()):
            name = constraints.names[int(rows[flat][0])]
            raise UserError(
                f"impossible constraint: the function of {name} has no gradient where it is zero and cannot guide; "
                "use one that changes sign across the surface"
            )
    gram = metric.coupling * (D @ D.mT)
    # Each against what it would be without joints: one that the joints alone imply is zero but for rounding.
    alone = ((constraints.A @ inverse_mass) * constraints.A).sum(-1) * D.square().sum(-1)
    scale = alone.clamp(min=1e-300).sqrt()
    gram = gram / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    kept: list[int] = []
    left = gram.clone()
    for _ in range(gram.shape[-1]):
        pivots = torch.diagonal(left, dim1=-2, dim2=-1)  # (S, C)
        worth = pivots.median(dim=0).values
        worth[kept] = -torch.inf
        best = int(worth.argmax())
        if not float(worth[best]) > _DEPENDENT:
            break
        kept.append(best)
        column = left[:, :, best] * (pivots[:, best] > _DEPENDENT).unsqueeze(-1)
        left = left - column.unsqueeze(-1) * column.unsqueeze(-2) / pivots[:, best].clamp(min=_DEPENDENT)[:, None, None]
    return sorted(kept)


def find_states(
    constraints: Constraints,
    inverse_mass: Float[Tensor, "n n"],
    start: Float[Tensor, "n d"],
    *,
    count: int = 8,
    spread: float = 0.3,
    seed: int = 0,
) -> Float[Tensor, "S n d"]:
    """Random configurations on the constraints near ``start``, also where constraints depend on one another.

    Damped Gauss-Newton steps by the singular value decomposition.

    Raises:
        UserError: if no start leads to a configuration: impossible constraints; names those without which
            there is one, or what is left off the most.
    """
    generator = torch.Generator().manual_seed(seed)
    n, d = start.shape
    size = max(1.0, float(start.abs().max()))
    best, worst, lost = None, None, None
    found: list[Tensor] = []
    noise = [0.0, *[spread] * (count - 1), *[10.0 * spread] * 8]
    for scale in noise:
        x = start + scale * size * torch.randn(n, d, dtype=torch.float64, generator=generator)
        x = _descend(constraints, x, size)
        off = constraints.residual(x).abs()
        if not bool(off.isfinite().all()):
            lost = off
            continue
        if float(off.amax()) <= 1e-10 * size**2:
            found.append(x)
            if len(found) >= count:
                break
        elif worst is None or float(off.amax()) < worst:
            best, worst = off, float(off.amax())
    if not found:
        if best is None:
            assert lost is not None
            rows = (~lost.isfinite()).nonzero().flatten().tolist()
            C, d = constraints.A.shape[0], constraints.spatial_dim  # noqa: N806
            named = ", ".join(dict.fromkeys(constraints.names[row if row < C else C + (row - C) // d] for row in rows))
            raise UserError(f"constraints not finite near the reference configuration: {named}; check functions "
                            "and positions")  # fmt: skip
        named = ", ".join(f"{name} (by {size:.3g})" for name, size in _culprits(constraints, start, best))
        raise UserError(f"impossible constraints: no configuration satisfies {named}; check lengths, anchors and axes")
    return torch.stack(found)


def _descend(constraints: Constraints, x: Float[Tensor, "n d"], size: float) -> Float[Tensor, "n d"]:
    """Damped Gauss-Newton steps from x, to rounding where they lead to a configuration, each of at most ``size``."""
    for _ in range(200):
        residual = constraints.residual(x)
        if not bool(residual.isfinite().all()) or float(residual.abs().amax()) <= 1e-13 * size**2:
            break
        rows = constraints.jacobian(x).flatten(1)
        scales = torch.cat([1.0 + constraints.quadratic, torch.ones(len(rows) - len(constraints.quadratic))])
        step = torch.linalg.lstsq(rows, (residual / scales).unsqueeze(-1), driver="gelsd", rcond=1e-8).solution
        length = float(step.abs().max())
        x = x - (step * min(1.0, size / max(length, 1e-300))).view(x.shape)
    return x


def _culprits(
    constraints: Constraints, start: Float[Tensor, "n d"], off: Float[Tensor, " C"]
) -> list[tuple[str, float]]:
    """Names and violations, for an error: of constraints without which the others have a configuration, if any.

    Else of those that are left off the most, where the search ended, what was declared before the lengths of bodies.
    """
    C, d = constraints.A.shape[0], constraints.spatial_dim  # noqa: N806
    each = torch.cat([off[:C], off[C:].view(-1, d).amax(-1)]) if len(off) > C else off
    size = max(1.0, float(start.abs().max()))
    order = each.argsort(descending=True).tolist()
    declared = [row for row in order if not constraints.names[row].startswith(WITHIN)]
    alone: list[tuple[str, float]] = []
    for row in declared[:_TRIED]:
        rest = _without(constraints, row)
        generator = torch.Generator().manual_seed(0)
        for scale in (0.0, 0.3, 0.3):
            noise = torch.randn(start.shape, dtype=torch.float64, generator=generator)
            x = _descend(rest, start + scale * size * noise, size)
            left = rest.residual(x).abs()
            if rest.num_constraints == 0 or bool((left <= 1e-10 * size**2).all()):
                own = constraints.residual(x).abs()
                own = own[row] if row < C else own[C:].view(-1, d)[row - C].amax()
                alone.append((constraints.names[row], float(own)))
                break
    if alone:
        return alone[:4]
    bodies = [row for row in order if row not in declared]
    return [(constraints.names[row], float(each[row])) for row in declared + bodies if each[row] > 1e-8][:4]


def _without(constraints: Constraints, row: int) -> Constraints:
    """All constraints but one."""
    C = constraints.A.shape[0]  # noqa: N806
    if row < C:
        return constraints.select([k for k in range(C) if k != row])
    kept = [k for k in range(constraints.joint_A.shape[0]) if k != row - C]
    names = (*constraints.names[:row], *constraints.names[row + 1 :])
    return replace(constraints, joint_A=constraints.joint_A[kept], joint_b=constraints.joint_b[kept], names=names)
