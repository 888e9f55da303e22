r"""Solids of uniform density: mass, centre and second moments, which add and turn with the frame.

The second moments :math:`S = \int \rho\, (\xi - c)(\xi - c)^T` about the centre are those of `chnn.mechanics.Inertia`;
with a rotation R they become :math:`R S R^T`, and several solids together have
:math:`\sum S_i + m_i (c_i - c)(c_i - c)^T`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np

from chnn.formats.xml import FARTHEST, Element
from chnn.mechanics import from_mesh


@dataclass(frozen=True)
class Mass:
    """Mass (kg), centre (m) and second moments about the centre (kg m^2), in some frame."""

    mass: float
    centre: np.ndarray
    moments: np.ndarray

    def moved(self, position: np.ndarray, rotation: np.ndarray) -> Mass:
        """The same in the frame in which this one stands at ``position`` with ``rotation``."""
        return Mass(self.mass, position + rotation @ self.centre, rotation @ self.moments @ rotation.T)


@dataclass(frozen=True)
class Shape:
    """A solid in the frame of a link, for its mass and for drawing.

    Fields:
        kind: "box" (half sides), "ellipsoid" (half axes), "sphere" (radius), "cylinder" and "capsule" (radius and half
            length along the third axis) or "mesh".
        size: its lengths, m.
        position, rotation: of its frame in that of the link.
        mesh: vertices (V, 3) and triangles (F, 3) of a mesh.
    """

    kind: str
    size: tuple[float, ...]
    position: np.ndarray
    rotation: np.ndarray
    mesh: tuple[np.ndarray, np.ndarray] | None = None

    def moved(self, position: np.ndarray, rotation: np.ndarray) -> Shape:
        """The same in the frame in which its link stands at ``position`` with ``rotation``."""
        return Shape(self.kind, self.size, position + rotation @ self.position, rotation @ self.rotation, self.mesh)


def together(parts: Sequence[Mass]) -> Mass | None:
    """Several masses as one; None for none."""
    total = sum(part.mass for part in parts)
    if not total > 0.0:
        return None
    centre = sum((part.mass * part.centre for part in parts), np.zeros(3)) / total
    moments = np.zeros((3, 3))
    for part in parts:
        off = part.centre - centre
        moments += part.moments + part.mass * np.outer(off, off)
    return Mass(total, centre, moments)


def from_tensor(mass: float, centre: np.ndarray, tensor: np.ndarray) -> Mass:
    """From the moment of inertia tensor I about the centre: ``S = tr(I)/2 - I``."""
    return Mass(mass, centre, 0.5 * np.trace(tensor) * np.eye(3) - tensor)


def solid(shape: Shape, *, mass: float | None = None, density: float = 1000.0) -> Mass:
    """The mass of a solid shape, by its mass or else its density, in the frame of its link.

    Raises:
        UserError: for a mesh that is not closed.
    """
    if shape.kind == "mesh":
        assert shape.mesh is not None
        inertia = from_mesh(*shape.mesh, mass=mass, density=density)
        own = Mass(inertia.mass, np.array(inertia.centre), np.array(inertia.moments))
        return own.moved(shape.position, shape.rotation)
    volume, square = _PER_MASS[shape.kind](*shape.size)
    total = density * volume if mass is None else mass
    return Mass(total, np.zeros(3), total * np.diag(square)).moved(shape.position, shape.rotation)


def _box(a: float, b: float, c: float) -> tuple[float, list[float]]:
    return 8.0 * a * b * c, [a * a / 3.0, b * b / 3.0, c * c / 3.0]


def _ellipsoid(a: float, b: float, c: float) -> tuple[float, list[float]]:
    return 4.0 / 3.0 * pi * a * b * c, [a * a / 5.0, b * b / 5.0, c * c / 5.0]


def _cylinder(r: float, half: float) -> tuple[float, list[float]]:
    return 2.0 * pi * r * r * half, [r * r / 4.0, r * r / 4.0, half * half / 3.0]


def _capsule(r: float, half: float) -> tuple[float, list[float]]:
    """A cylinder between two half balls, whose centres lie 3 r / 8 beyond its ends."""
    middle, ends = 2.0 * pi * r * r * half, 4.0 / 3.0 * pi * r**3
    volume = middle + ends
    across = (middle * r * r / 4.0 + ends * r * r / 5.0) / volume
    along = (middle * half * half / 3.0 + ends * (half * half + 0.75 * half * r + r * r / 5.0)) / volume
    return volume, [across, across, along]


_PER_MASS = {"box": _box, "ellipsoid": _ellipsoid, "sphere": lambda r: _ellipsoid(r, r, r), "cylinder": _cylinder,
             "capsule": _capsule}  # fmt: skip
SIZES = {"box": 3, "ellipsoid": 3, "sphere": 1, "cylinder": 2, "capsule": 2}
"""How many lengths each kind has."""


SMALLEST = 1e-9
"""Of the lengths of shapes, m: below, volumes times squared distances lose their digits."""


def check_size(element: Element, kind: str, size: Sequence[float]) -> tuple[float, ...]:
    """Lengths within `SMALLEST` and `FARTHEST`, as many as the kind has.

    Raises:
        UserError: names the element.
    """
    if len(size) < SIZES[kind] or not all(SMALLEST <= length <= FARTHEST for length in size[: SIZES[kind]]):
        shown = ", ".join(f"{length:g}" for length in size[:6]) + ", ..." * (len(size) > 6)
        element.fail(f"expects {SIZES[kind]} positive lengths of a {kind}, from {SMALLEST:g} to {FARTHEST:g} m, got "
                     f"[{shown}]")  # fmt: skip
    return tuple(map(float, size[: SIZES[kind]]))
