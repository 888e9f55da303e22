r"""The lift of a group by name.

A lift says in which space neighbours are sought, how far apart two of them are, and by which numbers the kernel sees
the pair. Three kinds, whose numbers do not change when the group moves the points:

- `FrameLift`, exact, for actions made of translations, rotations and dilations (`lie.groups.AffineStructure`): the
  entries of the relative element :math:`v_j^{-1} u_i` with soft local frames where a rotation keeps a point, lengths in
  units of what dilates with the points, and what names the orbits. Smooth, also at the identity and at half turns.
- `AxesLift`, exact, for positive scalings of the two axes (RxSQ), smooth across the axes.
- `ElementLift`, exact where only the identity keeps a point: the relative element itself, by its logarithm or by its
  entries. For any group, with elements drawn at random from each point's coset: the paper's sampled lift, equivariant
  in expectation.

Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, sections on lifting and on the kernel through the algebra.
"""

from __future__ import annotations

import torch
from lie.groups import LieGroup, RxSQ, Trivial
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lieconv.geometry.axes_lift import AxesLift
from lieconv.geometry.checks import check_group, check_numbers
from lieconv.geometry.element_lift import ElementLift
from lieconv.geometry.frame_lift import FrameLift, frame_structure
from lieconv.geometry.lift import Coordinates, Lift, LiftName


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
        return AxesLift(group, "invariants" if coordinates == "auto" else coordinates)
    structure = frame_structure(group)
    usable = structure is not None
    if coordinates in ("auto", "invariants") and structure is not None:
        return FrameLift(group, structure)
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


def kernel_dim(group: LieGroup, lift: LiftName = "exact", coordinates: Coordinates = "auto") -> int:
    """Number of kernel coordinates of `build_geometry` for a group, a lift and a choice of coordinates."""
    return make_lift(group, lift, coordinates, 1).dim


def _moves_every_point(group: LieGroup) -> bool:
    """Whether the generators are independent at a point in general position: no stabiliser of positive dimension."""
    free = group.__dict__.get("_moves_every_point")
    if free is None:
        point = torch.linspace(0.3, 1.7, group.point_dim or group.matrix_dim, dtype=torch.float64)
        with temporarily_clear_interpreter_stack():
            fields = group.vector_field(torch.eye(group.dim, dtype=torch.float64), point).detach()  # (dim, d)
            free = group.dim == 0 or int(torch.linalg.matrix_rank(fields)) == group.dim
        object.__setattr__(group, "_moves_every_point", free)
    return free


_moves_every_point._dynamo_marked_constant = True  # type: ignore[attr-defined]
