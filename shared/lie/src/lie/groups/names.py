"""Groups by the names people type: ``by_name("se3")``."""

from __future__ import annotations

import re

from lie.groups.base import LieGroup
from lie.groups.se2 import SE2
from lie.groups.se3 import SE3
from lie.groups.so2 import SO2
from lie.groups.so3 import SO3
from lie.groups.translation import T
from lie.groups.trivial import Trivial

_FIXED: dict[str, type[LieGroup]] = {"so2": SO2, "se2": SE2, "so3": SO3, "se3": SE3}
_FAMILIES = {"t": T, "trivial": Trivial}


def by_name(name: str, *, n: int | None = None) -> LieGroup:
    """The group called ``name``: ``"so2"``, ``"se2"``, ``"so3"``, ``"se3"``, ``"t2"``, ``"trivial3"`` and so on.

    Case, brackets and hyphens do not matter: ``"SE(3)"`` is ``"se3"``.

    Args:
        name: the group; the dimension may be left out of the families ``"t"`` and ``"trivial"``.
        n: the dimension for a family named without one.

    Raises:
        lie.run.UserError: (a ValueError) for an unknown name, with the nearest known ones.
    """
    key = re.sub(r"[()\s_-]", "", name.lower())
    if key in _FIXED:
        return _FIXED[key]()
    match = re.fullmatch(r"(t|trivial)([1-9]\d*)?", key)
    dimension = int(match[2]) if match and match[2] else n
    if match is None or dimension is None:
        from lie.run.errors import unknown_name

        known = [*_FIXED, *(f"{family}{i}" for family in _FAMILIES for i in (2, 3))]
        raise unknown_name("group", name, known)
    return _FAMILIES[match[1]](dimension)
