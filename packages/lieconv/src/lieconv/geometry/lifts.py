r"""From points to kernel coordinates: what a pair of points looks like from the group.

A lift says in which space neighbours are sought, how far two of them are apart, and by which numbers the kernel sees
the pair. Four kinds, all giving numbers that do not change when the group moves the points:

- `FrameLift`, exact, for actions made of translations, turns and dilations (`lie.groups.AffineStructure`): the entries
  of the relative element :math:`v_j^{-1} u_i` with soft local frames where turns keep a point, lengths in units of what
  dilates with the points, and what names the orbits. Smooth, also at the identity and at half turns.
- `AxesLift`, exact, for positive scalings of the two axes (RxSQ), smooth across the axes.
- `ElementLift`, exact where only the identity keeps a point: the relative element itself, by its logarithm or by its
  entries. For any group, by elements drawn at random from each point's coset: the paper's sampled lift, equivariant in
  expectation.

Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, sections on lifting and on the kernel through the algebra.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from lie.groups import AffineStructure, LieGroup, RxSQ, Trivial, affine_structure
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.frames import SOFTNESS

LiftName = Literal["exact", "sampled"]
Coordinates = Literal["auto", "log", "entries", "invariants"]


class AnyLift(ABC):
    """How points become elements and pairs become numbers."""

    dim: int
    """Number of kernel coordinates of a pair."""
    squared_floor: float = 0.0
    """Added to the squared length scale of a neighbourhood."""

    @abstractmethod
    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """Points of a Euclidean space whose distances order the neighbours."""

    @abstractmethod
    def squared(self, here: Tensor, there: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared distances of the pairs of the embedded points ``here`` (M, 1, e) and ``there`` (M, k, e)."""


@dataclass(frozen=True)
class FrameLift(AnyLift):
    """The exact lift by soft frames and invariants of a group with an affine structure."""

    structure: AffineStructure

    @property
    def squared_floor(self) -> float:  # type: ignore[override]
        """The square of a small length where the group keeps lengths; zero where it dilates, and has none.

        Frames in units of their neighbourhood alone would jump where all points of it meet in one, as two atoms do
        that pass through each other.
        """
        return 0.0 if self.structure.dilation else FLOOR**2

    @property
    def about_centre(self) -> bool:
        """Whether the group dilates, and no translation moves the centre."""
        return self.structure.dilation and not self.structure.translations

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Entries of the relative element, orbit ids of both points, and the squared distance."""
        parts = self.structure
        if self.about_centre:
            return 3 if parts.rotations else 2 * parts.d + 1
        turning = {0: 0, 1: 2, 3: 9}[parts.rotations]
        radii = 2 if parts.rotations and not parts.moves_plane else 0
        return turning + len(parts.translations) + radii + 2 * len(parts.fixed) + 1 + int(parts.dilation)

    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """The points; about a fixed centre of dilations the logarithm of the distance from it, and the direction."""
        if not self.about_centre:
            return cloud.coords
        squared = cloud.coords.square().sum(-1, keepdim=True)
        zero = squared == 0
        safe = torch.where(zero, torch.ones_like(squared), squared)
        direction = torch.where(zero, torch.zeros_like(cloud.coords), cloud.coords / safe.sqrt())
        return torch.cat([0.5 * safe.log(), direction, _FAR * zero.to(safe.dtype)], dim=-1)

    def squared(self, here: Tensor, there: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared lengths of the offsets, or of the differences of the embedded points."""
        return _apart(here, there, 1) if self.about_centre else offsets.square().sum(-1)

    def pairs(
        self,
        here: Tensor,
        there: Tensor,
        offsets: Tensor,
        squared: Tensor,
        weights: Tensor,
        frames: tuple[Tensor, Tensor] | None,
        sizes: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "M k c"]:
        """Kernel coordinates.

        Args:
            here, there: the points (M, 1, d) and their neighbours (M, k, d).
            offsets: neighbour minus point under the minimum image, (M, k, d).
            squared: their squared distances, (M, k).
            weights: their window weights, (M, k).
            frames: soft frames of the points (M, r, r), and transposed of the neighbours (M, k, r, r).
            sizes: where the group dilates, radii of the neighbourhoods of both, (M, 1, 1) and (M, k, 1): lengths that
                dilate with the points.
        """
        parts = self.structure
        if self.about_centre:
            return _about_centre(parts, here, there, weights)
        turned, moved = [], [-offsets]
        W = _rows(parts.translations, offsets)
        if frames is not None:
            mine, inverse = frames
            relative = (inverse.flatten(1, 2) @ mine).view_as(inverse)  # one product a point, not one a pair
            turned = [relative[..., 0] if parts.rotations == 1 else relative.flatten(-2)]
            if parts.moves_plane:
                plane = _rows(parts.plane, offsets)  # (r, d)
                across = _turned(inverse, offsets @ plane.mT)
                rest = _difference(W, plane)
                moved = [-across, -(offsets @ rest.mT)]
            else:
                moved = [-(offsets @ W.mT)]
        elif len(W) < parts.d:
            moved = [-(offsets @ W.mT)]
        distance = squared.unsqueeze(-1)
        if sizes is not None:
            moved = [part / sizes[1] for part in moved]
            ratio = (sizes[0] / sizes[1]).log()
            distance = torch.cat([ratio, distance / (sizes[0] * sizes[1])], dim=-1)
        k = offsets.shape[1]
        fixed = _rows(parts.fixed, offsets)
        if parts.rotations and not parts.moves_plane:
            plane = _rows(parts.plane, offsets)
            moved += [_soft_length(here @ plane.mT).expand(-1, k, -1), _soft_length(there @ plane.mT)]
        moved += [(here @ fixed.mT).expand(-1, k, -1), there @ fixed.mT]
        return torch.cat([*turned, *moved, distance], dim=-1)


@dataclass(frozen=True)
class ElementLift(AnyLift):
    """Group elements of the points: the one there is, or ``num_samples`` drawn at random from each coset."""

    group: LieGroup
    log: bool
    """Whether the kernel sees the logarithm of the relative element, or its entries."""
    num_samples: int = 1
    exact: bool = False
    """Whether each point has just one element, and none is drawn at random."""

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Coordinates of the relative element and the two orbit ids."""
        d = self.group.point_dim or self.group.matrix_dim
        orbit = self.group.lift(torch.ones(1, d))[1].shape[-1]
        return (self.group.dim if self.log else len(varying_entries(self.group))) + 2 * orbit

    def elements(self, coords: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Elements (P * num_samples, m, m) and orbit ids (P * num_samples, q)."""
        u, q = self.group.lift(coords, num_samples=self.num_samples, generator=generator)
        return u.flatten(0, 1), q.flatten(0, 1)

    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """The points."""
        return cloud.coords

    def squared(self, here: Tensor, there: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared lengths of the offsets."""
        return offsets.square().sum(-1)

    @property
    def searched_on_group(self) -> bool:
        """Whether distances are the group's own, which no Euclidean space embeds."""
        return not self.group.isometric

    def pairs(self, u: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]) -> Float[Tensor, "M k c"]:
        """Kernel coordinates of the elements and orbit ids of points (M, 1, ...) and neighbours (M, k, ...)."""
        (here, q), (there, r) = u, v
        if self.log:
            relative = self.group.relative(here, there)
        else:
            difference = self.group.inverse(there) @ here - self.group.identity(dtype=here.dtype, device=here.device)
            # asinh: entries may grow without bound as a point comes to where the group keeps it.
            relative = difference.flatten(-2)[..., list(varying_entries(self.group))].asinh()
        return torch.cat([relative, q.expand(*r.shape[:-1], -1), r], dim=-1)


@dataclass(frozen=True)
class AxesLift(AnyLift):
    """The exact lift of positive scalings of the two axes: ratios of coordinates, and their signs.

    A coordinate 0 stays 0 under every scaling. If exactly one of two points lies on an axis, that fact is the pair's
    only invariant. All such pairs get one distance, larger than any other.
    """

    kind: Coordinates
    """What the kernel sees of each axis.

    ``"invariants"``: both coordinates over their root mean square, smooth across the axes. ``"log"`` of the relative
    element, or its ``"entries"``, which are not smooth there: and the signs.
    """

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Two numbers an axis, and two signs of each point where they are apart."""
        return 4 if self.kind == "invariants" else 6

    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """Logarithms of the coordinates, a quadrant each in its place, and which are 0."""
        x = cloud.coords
        zero = x == 0
        size = torch.where(zero, torch.ones_like(x), x).abs().log()
        return torch.cat([size, x.detach().sign(), _FAR * zero.to(x.dtype)], dim=-1)

    def squared(self, here: Tensor, there: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared lengths of the differences of the embedded points."""
        return _apart(here, there, 2)

    def pairs(self, here: Tensor, there: Tensor, weights: Tensor) -> Float[Tensor, "M k c"]:
        """Kernel coordinates of the points (M, 1, 2) and their neighbours (M, k, 2) of window weights (M, k)."""
        if self.kind == "invariants":
            root = _pair_size(here.square(), there.square(), weights).sqrt()
            return torch.cat([here / root, there / root], dim=-1)
        apart = (here == 0) | (there == 0)
        one = torch.ones_like(there)
        ratio = torch.where(apart, one, here).abs() / torch.where(apart, one, there).abs()
        if self.kind == "log":
            x, y = ratio.log().unbind(-1)
            moved = torch.stack([0.5 * (x + y), 0.5 * (x - y)], dim=-1)  # (log r, s), as of RxSQ
        else:  # asinh: a ratio may grow without bound as a point comes to an axis
            moved = (ratio - 1.0).asinh()
        return torch.cat([moved, here.detach().sign().expand_as(there), there.detach().sign()], dim=-1)


Lift = FrameLift | AxesLift | ElementLift

FLOOR = 0.1
"""Length in the unit of the points, far below the distances that matter, at which neighbourhoods lose their frames."""

_FAR = 1e4  # more than twice the logarithm of any number, and its square is no trouble to floats


def _apart(here: Tensor, there: Tensor, marks: int) -> Float[Tensor, "M k"]:
    """Squared distances, all the same where one of the last ``marks`` coordinates differs.

    What does not move is infinitely far from what does: rounding must not say which of the others is nearer to it.
    """
    difference = there - here
    inside = difference[..., :-marks].square().sum(-1)
    other = (difference[..., -marks:] != 0).any(-1)
    return torch.where(other, torch.full_like(inside, _FAR**2), inside)


def make_lift(group: LieGroup, lift: LiftName, coordinates: Coordinates, num_samples: int) -> Lift:
    """The lift of a group by name.

    Raises:
        ValueError: for unknown names, a number of samples with the exact lift, a group without an exact lift, or the
            logarithm where points have no element of their own.
        TypeError: for what is no group.
    """
    check_group(group)
    if lift not in ("exact", "sampled"):
        raise ValueError(f"expected lift 'exact' or 'sampled', got {lift!r}")
    if coordinates not in ("auto", "log", "entries", "invariants"):
        raise ValueError(f"expected coordinates 'auto', 'log', 'entries' or 'invariants', got {coordinates!r}")
    check_numbers(num_samples=num_samples)
    if lift == "sampled":
        if coordinates == "invariants":
            raise ValueError("the sampled lift has coordinates 'log' or 'entries' of the relative element")
        return ElementLift(group, log=coordinates != "entries", num_samples=num_samples)
    if num_samples != 1:
        raise ValueError(f"the exact lift has one element a point, got num_samples={num_samples}; use lift='sampled'")
    if isinstance(group, RxSQ):
        return AxesLift("invariants" if coordinates == "auto" else coordinates)
    structure = frame_structure(group)
    usable = structure is not None
    if coordinates in ("auto", "invariants") and structure is not None:
        return FrameLift(structure)
    if coordinates == "invariants":
        raise ValueError(f"{group!r} is not made of translations, turns and dilations; use coordinates='entries'")
    free = group.stabiliser_dim == 0 or isinstance(group, Trivial)
    if free and not _moves_every_point(group):
        raise ValueError(
            f"{group!r} declares stabiliser_dim = 0, but some of its elements keep a point: its {group.dim} generators "
            "are dependent there; declare the dimension of the stabiliser, and use lift='sampled'"
        )
    if not free:
        reason = "its points have a stabiliser" if group.stabiliser_dim else "no stabiliser_dim = 0 is declared"
        if usable:
            raise ValueError(
                f"with the exact lift {group!r} has no coordinates {coordinates!r} ({reason}); use 'invariants', or "
                "lift='sampled'"
            )
        raise ValueError(f"{group!r} has no exact lift ({reason}); use lift='sampled'")
    return ElementLift(group, log=coordinates == "log", exact=True)


def frame_structure(group: LieGroup) -> AffineStructure | None:
    """The parts of the group's action where `FrameLift` supports them, else None."""
    structure = affine_structure(group)
    return structure if structure is not None and _supported(structure) else None


def check_group(group: LieGroup) -> None:
    """Raise where a name or a class stands in place of a group."""
    if isinstance(group, type):
        raise TypeError(f"expected a group, got the class {group.__name__}; make one: {group.__name__}()")
    if isinstance(group, str):
        raise TypeError(f"expected a group, got the name {group!r}; use lie.groups.by_name({group!r})")
    if not isinstance(group, LieGroup):
        raise TypeError(f"expected a group of lie.groups or your own LieGroup, got {type(group).__name__}")


def check_numbers(**numbers: int) -> None:
    """Raise where a count is no integer of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"expected an integer {name}, got {value!r}")
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")


def check_flags(**flags: bool) -> None:
    """Raise where a switch is neither True nor False: a text or number would be taken for True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"expected True or False as {name}, got {value!r}")


def check_generator(generator: torch.Generator | None) -> None:
    """Raise where a seed or something else stands in place of a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"expected a torch.Generator, got {generator!r}; use torch.Generator().manual_seed(...)")


def _moves_every_point(group: LieGroup) -> bool:
    """Whether the generators are independent at a point in general position: no stabiliser of positive dimension."""
    known = group.__dict__.get("_moves_every_point")
    if known is None:
        point = torch.linspace(0.3, 1.7, group.point_dim or group.matrix_dim, dtype=torch.float64)
        with temporarily_clear_interpreter_stack():
            fields = group.vector_field(torch.eye(group.dim, dtype=torch.float64), point).detach()  # (dim, d)
            known = group.dim == 0 or int(torch.linalg.matrix_rank(fields)) == group.dim
        object.__setattr__(group, "_moves_every_point", known)
    return known


_moves_every_point._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _supported(parts: AffineStructure) -> bool:
    """Dilations go with translations in all directions, or about one centre with turns of the plane or none."""
    if not parts.dilation:
        return True
    if len(parts.translations) == parts.d:
        return True
    return not parts.translations and (parts.rotations == 0 or parts.d == 2)


def _about_centre(parts: AffineStructure, here: Tensor, there: Tensor, weights: Tensor) -> Tensor:
    """Invariants of two points under dilations about the origin: over the mean of their squared distances from it."""
    a, b = here.square().sum(-1, keepdim=True), there.square().sum(-1, keepdim=True)
    size = _pair_size(a, b, weights)
    ratio = 0.5 * (a - b) / size
    if parts.rotations == 0:
        root = size.sqrt()
        return torch.cat([here / root, there / root, ratio], dim=-1)
    across = here[..., 1:] * there[..., :1] - here[..., :1] * there[..., 1:]
    return torch.cat([(here * there).sum(-1, keepdim=True) / size, across / size, ratio], dim=-1)


def _pair_size(a: Float[Tensor, "M 1 c"], b: Float[Tensor, "M k c"], weights: Tensor) -> Float[Tensor, "M k c"]:
    """The means of the squares of two points, and a small part of the neighbourhood's mean, so that both may be zero.

    Where all of a neighbourhood is zero, so are numerators, and the result is 1. A number that no dilation changes has
    no limit there.
    """
    around = weights.unsqueeze(-2) @ b  # (M, 1, c)
    size = 0.5 * (a + b) + SOFTNESS**2 * around
    return torch.where(size > 0, size, torch.ones_like(size))


def varying_entries(group: LieGroup) -> tuple[int, ...]:
    """Flat positions of the matrix entries that are not the same on the whole group."""
    known = group.__dict__.get("_varying_entries")
    if known is None:
        generator = torch.Generator().manual_seed(0)
        elements = group.sample(64, generator=generator, dtype=torch.float64).flatten(1)
        known = tuple((elements - elements[:1]).abs().amax(0).nonzero().flatten().tolist())
        object.__setattr__(group, "_varying_entries", known)
    return known


varying_entries._dynamo_marked_constant = True  # type: ignore[attr-defined]  (made while tracing, it would be traced)


def _rows(basis: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    return torch.tensor(basis, dtype=like.dtype, device=like.device).view(-1, like.shape[-1])


def _turned(R: Float[Tensor, "M k r r"], x: Float[Tensor, "M k r"]) -> Float[Tensor, "M k r"]:
    """``R x`` for many small matrices, by columns: batched products of such sizes take longer."""
    turned = R[..., 0] * x[..., :1]
    for i in range(1, x.shape[-1]):
        turned = turned + R[..., i] * x[..., i : i + 1]
    return turned


def _difference(W: Tensor, plane: Tensor) -> Tensor:
    """The rows of the orthonormal basis W that are across the plane; none where it is the whole."""
    if len(W) == len(plane):
        return W[:0]
    return torch.linalg.cross(plane[0], plane[1]).unsqueeze(0)  # turns about an axis in space


def _soft_length(x: Tensor) -> Tensor:
    """``sqrt(|x|^2 + FLOOR^2) - FLOOR``: the distance from the centre, without its kink there."""
    return (x.square().sum(-1, keepdim=True) + FLOOR**2).sqrt() - FLOOR
