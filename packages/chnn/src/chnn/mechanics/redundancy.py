"""Constraints that depend on one another, and constraints that nothing can satisfy.

Whether constraints depend on one another is a matter of geometry: neither masses nor units have a say. The search for
configurations and the test of dependence work on the origins and axes of bodies, in the system's own unit of length,
with every row divided by its size. What depends at all of several random states on the constraint set depends by
structure and is left out; the rest is chosen for the largest smallest pivot over these states, first among the lengths
that make bodies rigid, of which only those are left out that the joints imply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics.bodies import Body
from chnn.mechanics.constraints import Constraints
from chnn.mechanics.elimination import axes_of

_FLAT = 1e-6  # gradient of a function of surfaces, which are of the order of 1 for distances
WITHIN = "length within body"
"""How the names of the lengths begin that make bodies rigid."""
_TRIED = 12  # constraints that the search for the culprit does without, one at a time
_IMPLIED = 1e-10  # what joints leave of a row, over the terms of the difference; rounding is 1e-15
_DEPENDENT = 1e-7  # distance of a unit gradient from those before; states are on the constraints to 1e-12
_CLOSED = 1e-10  # violation of a constraint over its size that counts as none


@dataclass(frozen=True)
class Scaled:
    """Constraints on origins and axes in the system's own unit of length, each divided by its size.

    Points are ``x = T y + centre`` for configurations y (n, d) whose origins are of order 1, as axes are.

    Fields:
        constraints: of y.
        original: of x.
        to_points: T, (n, n).
        centre: (d,), m.
        size: unit of length, m.
        origins: (n,), which rows of y are origins.
        basis: motions of y that the joints allow, (n, m).
    """

    constraints: Constraints
    original: Constraints
    to_points: Float[Tensor, "n n"]
    centre: Float[Tensor, " d"]
    size: float
    basis: Float[Tensor, "n m"]

    @staticmethod
    def of(constraints: Constraints, bodies: Sequence[Body], free: np.ndarray, start: Tensor) -> Scaled:
        """The scaled form of ``constraints`` for the motions ``free`` (n, m) and a configuration (n, d)."""
        T = torch.from_numpy(axes_of(bodies))  # noqa: N806
        origins = torch.zeros(len(T), dtype=torch.bool)
        origins[[body.first for body in bodies]] = True
        weights = torch.cat([constraints.A, constraints.joint_A])
        rows = weights @ T
        rows = torch.where(rows.abs() <= _IMPLIED * (weights.abs() @ T), 0.0, rows)
        offsets = torch.cat([constraints.b, constraints.joint_b])
        placed = (rows[:, origins] != 0.0).any(1)  # else a direction, or a vector within one body
        spatial = start[origins]
        centre = spatial.mean(0)
        within = torch.tensor([name.startswith(WITHIN) for name in constraints.names])[: len(constraints.A)]
        lengths = constraints.lengths[~within]
        levers = rows[placed][:, ~origins].abs()
        reach = (offsets[placed] - rows[placed][:, origins].sum(1, keepdim=True) * centre).norm(dim=1)
        parts = [(spatial - centre).norm(dim=1), lengths, levers.flatten(), reach]
        size = float(torch.cat(parts).max()) if any(len(part) for part in parts) else 0.0
        size = size if size > 0.0 else 1.0
        unit = torch.where(origins, size, 1.0).double()
        C = len(constraints.A)  # noqa: N806
        scales = torch.ones(len(rows), dtype=torch.float64)
        scales[placed] = 1.0 / size
        quadratic = constraints.quadratic > 0
        scales[:C][quadratic] = 1.0 / constraints.lengths[quadratic]
        for _, each in constraints.surfaces:
            scales[each] = 1.0  # their functions take metres
        moved = offsets - rows[:, origins].sum(1, keepdim=True) * centre
        rows, moved = rows * unit * scales.unsqueeze(1), moved * scales.unsqueeze(1)
        scaled = replace(constraints, A=rows[:C], b=moved[:C], lengths=constraints.lengths * scales[:C],
                         joint_A=rows[C:], joint_b=moved[C:])  # fmt: skip
        back = torch.linalg.inv(T) / unit.unsqueeze(1)
        basis = back @ torch.from_numpy(free)
        basis = basis / basis.abs().amax(0).clamp(min=1e-300)  # columns of free origins are in metres
        return Scaled(scaled, constraints, T * unit, centre, size, basis)

    def points(self, y: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The points of a configuration, m."""
        return self.to_points @ y + self.centre

    def configuration(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The inverse of `points`."""
        return torch.linalg.solve(self.to_points, x - self.centre)

    def violation(self, y: Float[Tensor, "n d"]) -> Float[Tensor, " R"]:
        """Of each constraint, over its size; of a surface its distance to first order, over the unit of length."""
        off = self.constraints.residual(y).abs()
        if self.constraints.surfaces:
            slopes = self.constraints.directions(self.constraints.spans(y)).norm(dim=-1)
            for _, rows in self.constraints.surfaces:
                distance = off[rows] / (slopes[rows] * self.size)
                off = off.index_copy(0, rows, torch.where(off[rows] == 0.0, 0.0, distance))
        return off


def independent_rows(scaled: Scaled, states: Float[Tensor, "S n d"]) -> list[int]:
    """Scalar constraints, in order, on which the others depend at most of the ``states``, points (S, n, d)."""
    constraints = scaled.constraints
    D = constraints.directions(constraints.spans(scaled.configuration(states)))  # noqa: N806
    for _, rows in constraints.surfaces:
        flat = D[:, rows].norm(dim=-1).median(dim=0).values < _FLAT
        if bool(flat.any()):
            name = constraints.names[int(rows[flat][0])]
            raise UserError(
                f"impossible constraint: the function of {name} has no gradient where it is zero and cannot guide; "
                "use one that changes sign across the surface"
            )
    W = constraints.A @ scaled.basis  # noqa: N806
    terms = constraints.A.abs() @ scaled.basis.abs()
    W = torch.where(W.abs() <= _IMPLIED * terms.amax(1, keepdim=True), 0.0, W)  # noqa: N806
    sizes = W.norm(dim=1, keepdim=True)
    W = torch.where(sizes > 0.0, W / sizes, 0.0)  # noqa: N806
    D = D / D.norm(dim=-1, keepdim=True).clamp(min=1e-300)  # noqa: N806
    gradients = (W.unsqueeze(-1) * D.unsqueeze(-2)).flatten(2)  # (S, C, m d), unit rows
    bodies = torch.tensor([name.startswith(WITHIN) for name in constraints.names[: len(W)]], dtype=torch.bool)
    kept: list[int] = []
    for group in (bodies, ~bodies):
        rest = group.clone()
        while bool(rest.any()):
            worth = gradients.norm(dim=-1).median(dim=0).values.masked_fill(~rest, -torch.inf)
            best = int(worth.argmax())
            if not float(worth[best]) > _DEPENDENT:
                break
            kept.append(best)
            rest[best] = False
            row = gradients[:, best]
            length = row.norm(dim=-1, keepdim=True)
            row = torch.where(length > _DEPENDENT, row / length, 0.0)
            for _ in range(2):  # the second time against rounding
                gradients = gradients - (gradients @ row.unsqueeze(-1)) * row.unsqueeze(-2)
    return sorted(kept)


def find_states(
    scaled: Scaled, start: Float[Tensor, "n d"], *, count: int = 8, spread: float = 0.3, seed: int = 0
) -> Float[Tensor, "S n d"]:
    """Random configurations on the constraints near ``start``, also where constraints depend on one another.

    Damped Gauss-Newton steps by the singular value decomposition.

    Raises:
        UserError: if no start leads to a configuration: impossible constraints; names those without which
            there is one, or what is left off the most.
    """
    generator = torch.Generator().manual_seed(seed)
    n, d = start.shape
    origin = scaled.configuration(start)
    allowed = _CLOSED + 1e3 * torch.finfo(torch.float64).eps * float(start.abs().max()) / scaled.size
    best, worst, lost = None, None, None
    states: list[Tensor] = []
    noise = [0.0, *[spread] * (count - 1), *[10.0 * spread] * 8]
    for scale in noise:
        begin = origin + scale * torch.randn(n, d, dtype=torch.float64, generator=generator)
        y = _descend(scaled, begin)
        off = scaled.violation(y)
        if not bool(off.isfinite().all()):
            lost = off
            continue
        if float(off.amax()) <= allowed:
            states.append(start if y is begin and scale == 0.0 else scaled.points(y))
            if len(states) >= count:
                break
        elif worst is None or float(off.amax()) < worst:
            best, worst = y, float(off.amax())
    constraints = scaled.original
    if not states:
        if best is None:
            assert lost is not None
            rows = (~lost.isfinite()).nonzero().flatten().tolist()
            C, d = constraints.A.shape[0], constraints.spatial_dim  # noqa: N806
            named = ", ".join(dict.fromkeys(constraints.names[row if row < C else C + (row - C) // d] for row in rows))
            raise UserError(f"constraints not finite near the reference configuration: {named}; check functions "
                            "and positions")  # fmt: skip
        named = ", ".join(f"{name} (by {size:.3g})" for name, size in _culprits(scaled, origin, best, allowed))
        raise UserError(f"impossible constraints: no configuration satisfies {named}; check lengths, anchors and axes")
    return torch.stack(states)


def _descend(scaled: Scaled, y: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Damped Gauss-Newton steps from y, to rounding where they lead to a configuration, each of at most 1."""
    constraints = scaled.constraints
    for _ in range(200):
        residual = constraints.residual(y)
        if not bool(residual.isfinite().all()) or float(scaled.violation(y).amax()) <= 1e-13:
            break
        rows = constraints.jacobian(y).flatten(1)
        scales = torch.cat([1.0 + constraints.quadratic, torch.ones(len(rows) - len(constraints.quadratic))])
        # Rows of unit length: a surface's function may have any unit, and a lever may be far below the others.
        sizes = rows.norm(dim=1)
        sizes = torch.where(sizes > 0.0, sizes, 1.0)
        rows, wanted = rows / sizes.unsqueeze(1), (residual / scales / sizes).unsqueeze(-1)
        step = torch.linalg.lstsq(rows, wanted, driver="gelsd", rcond=1e-8).solution
        length = float(step.abs().max())
        y = y - (step * min(1.0, 1.0 / max(length, 1e-300))).view(y.shape)
    return y


def _culprits(
    scaled: Scaled, start: Float[Tensor, "n d"], best: Float[Tensor, "n d"], allowed: float
) -> list[tuple[str, float]]:
    """Names and violations, for an error: of constraints without which the others have a configuration, if any.

    Else of those that are left off the most, where the search ended at ``best``, what was declared before the lengths
    of bodies.
    """
    original = scaled.original
    C, d = original.A.shape[0], original.spatial_dim  # noqa: N806

    def by_name(off: Tensor) -> Tensor:
        return torch.cat([off[:C], off[C:].view(-1, d).amax(-1)]) if len(off) > C else off

    each = by_name(scaled.violation(best))
    order = each.argsort(descending=True).tolist()
    declared = [row for row in order if not original.names[row].startswith(WITHIN)]
    alone: list[tuple[str, float]] = []
    for row in declared[:_TRIED]:
        rest = replace(scaled, constraints=_without(scaled.constraints, row))
        generator = torch.Generator().manual_seed(0)
        for scale in (0.0, 0.3, 0.3):
            y = _descend(rest, start + scale * torch.randn(start.shape, dtype=torch.float64, generator=generator))
            if rest.constraints.num_constraints == 0 or bool((rest.violation(y) <= allowed).all()):
                off = by_name(original.residual(scaled.points(y)).abs())
                alone.append((original.names[row], float(off[row])))
                break
    if alone:
        return alone[:4]
    shown = by_name(original.residual(scaled.points(best)).abs())
    bodies = [row for row in order if row not in declared]
    return [(original.names[row], float(shown[row])) for row in declared + bodies if each[row] > 1e-8][:4]


def _without(constraints: Constraints, row: int) -> Constraints:
    """All constraints but one."""
    C = constraints.A.shape[0]  # noqa: N806
    if row < C:
        return constraints.select([k for k in range(C) if k != row])
    kept = [k for k in range(constraints.joint_A.shape[0]) if k != row - C]
    names = (*constraints.names[:row], *constraints.names[row + 1 :])
    return replace(constraints, joint_A=constraints.joint_A[kept], joint_b=constraints.joint_b[kept], names=names)
