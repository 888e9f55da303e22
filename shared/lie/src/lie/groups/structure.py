r"""What an affine action is made of: turns about an origin, translations, dilations.

An action on R^d whose fundamental fields are affine, :math:`X_a(x) = A_a x + b_a`, is taken apart into the span W of
its pure translations and the span of its linear parts, which for the actions met in practice is one of turns
(antisymmetric matrices) with or without the dilations (multiples of the identity). Two groups with the same parts
have the same orbits and invariants, whatever their coordinates are; what is exact for one is exact for the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

if TYPE_CHECKING:
    from lie.groups.base import LieGroup

_TOLERANCE = 1e-9  # structure constants of groups in use are small numbers, exact to rounding


@dataclass(frozen=True)
class AffineStructure:
    """The parts of an affine action on R^d, for d up to 3.

    Fields:
        d: dimension of the points.
        rotations: dimension of the group of turns about the origin: 0, 1 (in the plane, or about ``axis``) or 3.
        axis: the unit vector of the axis for one turn in space, else None.
        translations: orthonormal basis of the directions of the translations, rows (w, d), float64.
        dilation: whether the group dilates about the origin.
    """

    d: int
    rotations: int
    axis: tuple[float, ...] | None
    translations: tuple[tuple[float, ...], ...]
    dilation: bool

    plane: tuple[tuple[float, ...], ...] = field(init=False)
    """Orthonormal basis of the directions that turn, rows: right-handed with the axis in space."""
    moves_plane: bool = field(init=False)
    """Whether the translations reach all directions that turn, so that every point may be a centre of turns."""
    fixed: tuple[tuple[float, ...], ...] = field(init=False)
    """Orthonormal basis of the directions that neither turn nor are translated, rows."""

    def __post_init__(self) -> None:
        # Kept, not computed when asked for: a compiler that traces a use would trace the computation.
        plane = self._plane()
        turning, moved = _rows(plane, self.d), _rows(self.translations, self.d)
        span = _span(torch.cat([turning, moved]))
        fixed = _span(torch.eye(self.d, dtype=torch.float64) - span.mT @ span)
        object.__setattr__(self, "plane", plane)
        object.__setattr__(self, "moves_plane", self.rotations > 0 and _residual(turning, moved) < _TOLERANCE)
        object.__setattr__(self, "fixed", tuple(map(tuple, fixed.tolist())))

    def _plane(self) -> tuple[tuple[float, ...], ...]:
        if self.rotations == 0:
            return ()
        if self.axis is None:
            return tuple(tuple(row) for row in torch.eye(self.d, dtype=torch.float64).tolist())
        n = torch.tensor(self.axis, dtype=torch.float64)
        helper = torch.eye(3, dtype=torch.float64)[int((n.abs() < 0.9).nonzero()[0])]
        first = helper - (helper @ n) * n
        first = first / first.norm()
        return tuple(first.tolist()), tuple(torch.linalg.cross(n, first).tolist())

    @property
    def free(self) -> bool:
        """Whether only the identity keeps a generic point."""
        fixed_turns = self.rotations == 3 or (self.rotations > 0 and self.moves_plane)
        return not fixed_turns and not (self.dilation and len(self.translations) == self.d)


def affine_structure(group: LieGroup) -> AffineStructure | None:
    """The parts of the action of ``group`` on its points; None where it is not made of such parts.

    Found from the fundamental fields of the generators, once a group. ``point_dim`` (else ``matrix_dim``) says what
    the group acts on. None too for squeezes and shears, turns about a point other than the origin, screws without
    their turns, and points of more than three coordinates that turn.
    """
    known = group.__dict__.get("_affine_structure", False)
    if known is False:
        with temporarily_clear_interpreter_stack():
            known = _find(group)
        object.__setattr__(group, "_affine_structure", known)
    return known


# Made while tracing, it would be traced; see `lie.groups.base`.
affine_structure._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _find(group: LieGroup) -> AffineStructure | None:
    d = group.point_dim or group.matrix_dim
    basis = torch.eye(group.dim, dtype=torch.float64).unsqueeze(1)  # (dim, 1, dim)
    points = torch.cat([torch.zeros(1, d), torch.eye(d), torch.linspace(0.3, 1.7, d)[None]]).double()
    if group.dim == 0:
        return AffineStructure(d, 0, None, (), dilation=False)
    try:
        fields = group.vector_field(basis, points).detach()  # (dim, d + 2, d)
    except (ValueError, RuntimeError):
        return None  # a group that does not act on points of that many coordinates
    b = fields[:, 0]  # (dim, d)
    A = (fields[:, 1 : d + 1] - b.unsqueeze(1)).mT  # noqa: N806 (dim, d, d): columns are images of unit vectors
    if (A @ points[-1] + b - fields[:, -1]).abs().max() > _TOLERANCE:
        return None
    still = _null_space(A.flatten(1))  # coefficients (t, dim) of the elements without linear part
    translations = _span(still @ b)
    moving = _span_rows(A.flatten(1))  # coefficients of independent linear parts
    linear, offsets = torch.einsum("ki,imn->kmn", moving, A), moving @ b
    if _residual(offsets, translations) > _TOLERANCE:
        return None
    antisymmetric = _span((linear - linear.mT).flatten(1))
    turns = _intersection_dim(antisymmetric, linear.flatten(1))
    eye = torch.eye(d, dtype=torch.float64).view(1, -1)
    dilation = len(linear) > 0 and _residual(eye, _span(linear.flatten(1))) < _TOLERANCE
    if turns + int(dilation) != len(linear) or turns not in ({2: (0, 1), 3: (0, 1, 3)}.get(d, (0,))):
        return None
    axis = None
    if d == 3 and turns == 1:
        K = antisymmetric[0].view(3, 3)  # noqa: N806
        w = torch.stack([K[2, 1] - K[1, 2], K[0, 2] - K[2, 0], K[1, 0] - K[0, 1]])
        axis = tuple((w / w.norm() * (1.0 if w[w.abs().argmax()] > 0 else -1.0) + 0.0).tolist())
    return AffineStructure(d, turns, axis, tuple(map(tuple, translations.tolist())), bool(dilation))


def _rows(basis: tuple[tuple[float, ...], ...], d: int) -> Tensor:
    return torch.tensor(basis, dtype=torch.float64).view(-1, d)


def _span(rows: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows: unit vectors where it is one of coordinate axes."""
    if not rows.numel():
        return rows.new_zeros(0, rows.shape[-1])
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    basis = vh[s > _TOLERANCE * s.max().clamp(min=1.0)]
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype)
    inside = ((eye @ basis.mT @ basis - eye).abs().amax(-1) < _TOLERANCE).nonzero().squeeze(-1)
    return eye[inside] if len(inside) == len(basis) else basis


def _null_space(rows: Tensor) -> Tensor:
    """Coefficients (t, n) of the combinations of the n rows that vanish."""
    u, s, _ = torch.linalg.svd(rows, full_matrices=True)
    rank = int((s > _TOLERANCE * s.max().clamp(min=1.0)).sum())
    return u[:, rank:].mT


def _span_rows(rows: Tensor) -> Tensor:
    """Coefficients (r, n) of combinations of the n rows that are a basis of their span."""
    u, s, _ = torch.linalg.svd(rows, full_matrices=True)
    rank = int((s > _TOLERANCE * s.max().clamp(min=1.0)).sum())
    return u[:, :rank].mT


def _residual(rows: Tensor, basis: Tensor) -> float:
    """How far the rows reach out of the span of an orthonormal basis."""
    if not rows.numel():
        return 0.0
    return float((rows - rows @ basis.mT @ basis).abs().max())


def _intersection_dim(first: Tensor, second: Tensor) -> int:
    """Dimension of the intersection of two spans of rows."""
    if not len(first) or not len(second):
        return 0
    a, b = _span(first), _span(second)
    return len(a) + len(b) - len(_span(torch.cat([a, b])))
