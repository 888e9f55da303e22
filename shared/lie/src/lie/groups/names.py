"""Groups by the names people type: ``by_name("se3")``."""

from __future__ import annotations

import re
from collections.abc import Callable

from lie.groups.base import LieGroup
from lie.groups.heisenberg import Heisenberg
from lie.groups.product import Product
from lie.groups.rxso2 import RxSO2
from lie.groups.rxsq import RxSQ
from lie.groups.se2 import SE2
from lie.groups.se3 import SE3
from lie.groups.sim2 import Sim2
from lie.groups.sim3 import Sim3
from lie.groups.so2 import SO2
from lie.groups.so3 import SO3
from lie.groups.translation import T
from lie.groups.trivial import Trivial

_FIXED: dict[str, Callable[[], LieGroup]] = {
    "so2": SO2,
    "rxso2": RxSO2,
    "rxsq": RxSQ,
    "se2": SE2,
    "so3": SO3,
    "se3": SE3,
    "sim2": Sim2,
    "sim3": Sim3,
    "heisenberg": Heisenberg,
}
_FAMILIES = {"t": T, "trivial": Trivial}


def by_name(name: str, *, n: int | None = None) -> LieGroup:
    """The group called ``name``: ``"so2"``, ``"se3"``, ``"rxso2"``, ``"sim3"``, ``"t2"``, ``"trivial3"`` and so on.

    Case, brackets and hyphens do not matter: ``"SE(3)"`` is ``"se3"``. An ``x`` between two names is their direct
    product: ``"so2xt1"`` is ``Product(SO2(), T(1))``.

    Args:
        name: the group; the dimension may be left out of the families ``"t"`` and ``"trivial"``.
        n: the dimension for a family named without one.

    Raises:
        lie.run.UserError: (a ValueError) for an unknown name, with the nearest known ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the name of a group, got {name!r}")
    key = re.sub(r"[()\s_-]", "", name.lower())
    if key in _FAMILIES and n is None:
        raise ValueError(f"{name!r} is a family of groups: name the dimension, as {key}3, or give n=3")
    group = _parse(key, n)
    if group is None:
        from lie.run.errors import unknown_name

        raise unknown_name("group", name, [*_FIXED, *(f"{family}{i}" for family in _FAMILIES for i in (2, 3))])
    return group


def _parse(key: str, n: int | None) -> LieGroup | None:
    if key in _FIXED:
        return _FIXED[key]()
    match = re.fullmatch(r"(t|trivial)([1-9]\d*)?", key)
    if match is not None:
        dimension = int(match[2]) if match[2] else n
        return None if dimension is None else _FAMILIES[match[1]](dimension)
    for cut in (i for i, letter in enumerate(key) if letter == "x"):
        first, second = _parse(key[:cut], n), _parse(key[cut + 1 :], n)
        if first is not None and second is not None:
            return Product(first, second)
    return None
