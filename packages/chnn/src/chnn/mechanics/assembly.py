"""Declare a system in a few lines: bodies, joints, constraints and forces, then `build`.

world = Assembly(3)
base = world.body("base", 3, ball(2.0, 0.1))
arm = world.body("arm", 1, rod(1.0, 1.0))
world.pin(base.at(0, 0, 0), (0, 0, 0))
world.ball_joint(base.at(0.1, 0, 0), arm.at(-0.5))
world.gravity()
description = world.build("toy")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from lie.run import UserError, unknown_name
from torch import Tensor

from chnn.mechanics.bodies import (
    Body,
    Inertia,
    check_inertia,
    combined,
    inertia_factors,
    mass_matrix,
    number,
    refuse_learnt,
)
from chnn.mechanics.constraints import Constraints, Metric, Surface
from chnn.mechanics.description import Description, Drawing
from chnn.mechanics.elimination import axes_of, eliminate_joints, joint_metric
from chnn.mechanics.forces import Damping, Dipoles, Force, Gravity, Potential, Springs
from chnn.mechanics.redundancy import WITHIN, Scaled, find_states, independent_rows
from chnn.mechanics.rotation_forces import RotationalDamping, TorsionSprings

GRAVITY = 9.81
"""Acceleration of gravity along the negative last axis, m/s^2."""

_MARK = 2**30  # ends of drawn lines that are no points, until the number of points is known

_FIXED = 1e-9  # inverse mass of an axis, as a root, over the largest of its body, below which joints hold it
_MIXED = 1e-2  # the same, below which the axes of a body are exchanged: the Gram matrix loses the square of it

Vector = Sequence[float] | np.ndarray | Tensor
Rows = Sequence[Sequence[float]] | np.ndarray | Tensor


@dataclass(frozen=True)
class Place:
    """An affine combination of points: a point of a body (weights sum to 1), or a direction in it (sum 0)."""

    label: str
    weights: tuple[tuple[int, float], ...]
    owner: object = field(default=None, compare=False, repr=False)
    """Marks the `Assembly` whose points these are."""

    def __sub__(self, other: Place) -> Place:
        """The vector from ``other`` to this place."""
        return Place(f"{self.label} - {other.label}", _sum(self, other, -1.0), self.owner)


@dataclass(frozen=True)
class BodyHandle:
    """A body of an `Assembly`; gives its places and directions."""

    body: Body
    owner: object = field(default=None, compare=False, repr=False)
    """Marks the `Assembly` it is a body of."""

    def at(self, *coordinates: float) -> Place:
        """The point at these body coordinates; without any, its origin."""
        numbers = coordinates or (0.0,) * self.body.dim
        label = self.body.name + (str(tuple(float(c) for c in numbers)) if any(numbers) else "")
        return Place(label, tuple(self.body.weights(numbers).items()), self.owner)

    def along(self, *direction: float) -> Place:
        """The direction with these body components."""
        return self.at(*direction) - self.at()


class Assembly:
    """A system in the making, in ``dim`` = 2 or 3 dimensions of space. SI units throughout."""

    def __init__(self, dim: int) -> None:
        if dim not in (2, 3):
            raise UserError(f"expected a space of 2 or 3 dimensions, got {dim}")
        self.dim = dim
        self._mark = object()
        self._bodies: list[Body] = []
        self._start: list[np.ndarray] = []
        self._scalar: list[tuple[str, Place, np.ndarray, float, np.ndarray | None, Surface | None]] = []
        self._joints: list[tuple[str, Place, np.ndarray]] = []
        self._springs: list[tuple[Place, np.ndarray, float, float]] = []
        self._dampers: list[tuple[Place, float]] = []
        self._gravity: np.ndarray | None = None
        self._forces: list[Callable[[int], Force]] = []  # of the number of points, known at the end
        self._rods: list[tuple[int, int]] = []
        self._coils: list[tuple[int, int]] = []
        self._marks: list[Place] = []
        self._anchors: list[np.ndarray] = []
        self._meshes: list[tuple[str, Tensor, Tensor]] = []

    # --- bodies ---

    def body(
        self, name: str, dim: int, inertia: Inertia, *, position: Vector | None = None, axes: Rows | None = None
    ) -> BodyHandle:
        """Add a rigid body of dimension ``dim`` (0 a point mass, 1 a rod, 2 a plate, 3 a solid).

        Args:
            name: unique, used in errors.
            dim: number of its axes, at most that of space.
            inertia: mass, second moments and centre, in its axes.
            position: of its origin in the reference configuration; the origin by default.
            axes: (dim, d), its orthonormal axes as rows in the reference configuration.
        """
        if any(body.name == name for body in self._bodies):
            raise UserError(f"expected unique names of bodies, got '{name}' twice")
        if not 0 <= dim <= self.dim:
            raise UserError(f"expected body '{name}' of dimension 0 to {self.dim}, got {dim}")
        if not isinstance(inertia, Inertia):
            raise UserError(f"expected an Inertia for body '{name}', such as ball(1.0, 0.1), got {inertia!r}")
        check_inertia(name, dim, inertia)
        first = sum(body.dim + 1 for body in self._bodies)
        body = Body(name, dim, inertia, first)
        self._bodies.append(body)
        origin = np.zeros(self.dim) if position is None else self._vector(position, f"the position of body '{name}'")
        rows = np.eye(dim, self.dim) if axes is None else np.asarray(axes, dtype=float)
        if rows.shape != (dim, self.dim) or not np.allclose(rows @ rows.T, np.eye(dim), atol=1e-9):
            raise UserError(f"expected {dim} orthonormal axes with {self.dim} components for body '{name}', got {rows}")
        if dim == self.dim and np.linalg.det(rows) < 0:
            raise UserError(f"expected right-handed axes for body '{name}', got {rows.tolist()}")
        self._start.append(np.concatenate([origin[None], origin + rows]))
        for i, j, length in body.internal_lengths():
            label = f"{WITHIN} '{name}', {length:.4g}"
            span = Place(label, ((i, 1.0), (j, -1.0)), self._mark)
            self._scalar.append((label, span, np.zeros(self.dim), length, None, None))
        return BodyHandle(body, self._mark)

    def handle(self, name: str) -> BodyHandle:
        """The body called ``name``."""
        for body in self._bodies:
            if body.name == name:
                return BodyHandle(body, self._mark)
        raise unknown_name("body", name, [body.name for body in self._bodies])

    def point(self, name: str, mass: float, *, position: Vector | None = None) -> BodyHandle:
        """Add a point mass."""
        return self.body(name, 0, Inertia(number(mass, f"the mass of '{name}'")), position=position)

    # --- constraints ---

    def distance(self, a: Place | BodyHandle, b: Place | BodyHandle, length: float) -> None:
        """A rod without mass between two points."""
        a, b = self._place(a), self._place(b)
        label = f"distance of {a.label} and {b.label}"
        if not any(weight for _, weight in _sum(a, b, -1.0)):
            raise UserError(f"{label} joins a point to itself; join different points")
        self._scalar.append((label, b - a, np.zeros(self.dim), self._length(length, label), None, None))
        self._draw_rod(a, b)

    def tether(self, a: Place | BodyHandle, anchor: Vector, length: float) -> None:
        """A rod without mass from a fixed anchor."""
        a = self._place(a)
        label = f"tether of {a.label}"
        self._scalar.append((label, a, self._vector(anchor, f"the anchor of the {label}"),
                             self._length(length, label), None, None))  # fmt: skip
        self._draw_rod(anchor, a)

    def ball_joint(self, a: Place | BodyHandle, b: Place | BodyHandle, *, name: str | None = None) -> None:
        """Two points of bodies coincide; errors show the ``name``, by default that of the places."""
        a, b = self._place(a), self._place(b)
        self._joint(name or f"ball joint of {a.label} and {b.label}", a - b, np.zeros(self.dim))

    def pin(self, a: Place | BodyHandle, anchor: Vector, *, name: str | None = None) -> None:
        """A point is fixed in space; the body may turn about it."""
        a = self._place(a)
        label = name or f"pin of {a.label}"
        self._joint(label, a, self._vector(anchor, f"the anchor of the {label}"))
        self._anchor(self._vector(anchor, label))

    def hinge(
        self,
        a: Place | BodyHandle,
        b: Place | BodyHandle | Vector,
        axis_a: Place | None = None,
        axis_b: Place | Vector | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Two points coincide and, in space, two unit directions stay parallel; ``b`` may be fixed in space.

        Args:
            a: point of a body.
            b: point of a body, or a fixed place.
            axis_a: direction in the body of ``a``: ``handle.along(...)``, of length 1. None in the plane.
            axis_b: direction in the body of ``b``, or fixed in space.
            name: what errors call it; by default its places.
        """
        if isinstance(b, (Place, BodyHandle)):
            self.ball_joint(a, b, name=name)
        else:
            self.pin(a, b, name=name)
        if self.dim == 2:
            return
        if axis_a is None or axis_b is None:
            raise UserError("expected the axes of a hinge in space: axis_a=body.along(...), axis_b=other.along(...)")
        label = f"hinge axis {name or self._direction(axis_a).label}"
        self.weld_direction(self._direction(axis_a), axis_b, name=label)

    def weld_direction(self, direction: Place, fixed: Place | Vector, *, name: str | None = None) -> None:
        """A direction of a body stays that of another body (`Place`), or is fixed in space."""
        label = name or f"direction {self._direction(direction).label}"
        if isinstance(fixed, Place):
            self._joint(label, self._direction(direction) - self._direction(fixed), np.zeros(self.dim))
        else:
            self._joint(label, direction, self._vector(fixed, f"the {label}"))

    def keep_angle(self, a: Place, b: Place | Vector, angle: float = 0.5 * np.pi, *, name: str | None = None) -> None:
        """Two unit directions keep an angle (rad), the second in another body or in space: ``|a + b|^2`` is constant.

        With a ball joint at the crossing of the axes this is a universal joint, with a right angle.
        """
        label = name or f"angle of {self._direction(a).label}" + (f" and {b.label}" if isinstance(b, Place) else "")
        if not 1e-6 < angle < np.pi - 1e-6:
            raise UserError(f"expected an angle between 0 and pi for the {label}, got {angle:g}; "
                            "weld_direction keeps two directions parallel")  # fmt: skip
        length = float(2.0 * np.cos(0.5 * angle))
        if isinstance(b, Place):
            span = Place(label, _sum(a, self._direction(b)), self._mark)
            self._scalar.append((label, span, np.zeros(self.dim), length, None, None))
        else:
            unit = self._vector(b, f"the direction of the {label}")
            if not np.isclose(np.linalg.norm(unit), 1.0, rtol=0.0, atol=1e-9):
                raise UserError(f"expected a unit vector for the {label}, got {unit.tolist()}")
            self._scalar.append((label, a, -unit, length, None, None))

    def on_plane(self, a: Place | BodyHandle, origin: Vector, normal: Vector) -> None:
        """A point stays on a plane (in two dimensions, on a line)."""
        a = self._place(a)
        label = f"{a.label} on a plane"
        n = self._vector(normal, f"the normal of {label}")
        if not np.linalg.norm(n) > 0:
            raise UserError(f"expected a normal that is not zero for {label}")
        place = self._vector(origin, f"the origin of {label}")
        self._scalar.append((label, a, place, 0.0, n / np.linalg.norm(n), None))

    def on_line(self, a: Place | BodyHandle, origin: Vector, direction: Vector) -> None:
        """A point stays on a line."""
        along = self._vector(direction, f"the direction of the line of {self._place(a).label}")
        if not np.linalg.norm(along) > 0:
            raise UserError(f"expected a direction that is not zero for the line of {self._place(a).label}")
        _, _, basis = np.linalg.svd(along[None])
        for normal in basis[1:]:
            self.on_plane(a, origin, normal)

    def on_surface(self, a: Place | BodyHandle, surface: Surface, *, origin: Vector | None = None) -> None:
        """A point stays where ``surface(point - origin) == 0``; surface takes (..., d) to (...)."""
        a = self._place(a)
        label = f"{a.label} on a surface"
        place = np.zeros(self.dim) if origin is None else self._vector(origin, f"the origin of {label}")
        if not callable(surface):
            raise UserError(f"expected a function of points for {label}, got {surface!r}")
        example = surface(torch.zeros(2, self.dim, dtype=torch.float64))
        if not isinstance(example, Tensor) or example.shape != (2,):
            shape = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            raise UserError(f"expected the function for {label} to give (2,) for points (2, {self.dim}), got {shape}; "
                            "reduce over the last axis")  # fmt: skip
        self._scalar.append((label, a, place, 0.0, None, surface))

    # --- forces ---

    def gravity(self, acceleration: float | Vector = GRAVITY) -> None:
        """Uniform gravity: a number along the negative last axis, or a vector, m/s^2."""
        refuse_learnt(acceleration, "gravity")
        if isinstance(acceleration, (int, float)):
            down = np.zeros(self.dim)
            down[-1] = -acceleration
            self._gravity = self._vector(down, "gravity")
        else:
            self._gravity = self._vector(acceleration, "gravity")

    def spring(
        self, a: Place | BodyHandle, b: Place | BodyHandle | Vector, stiffness: float, rest: float = 0.0
    ) -> None:
        """A linear spring between two points, or from a point to a fixed place, with a rest length."""
        stiffness, rest = number(stiffness, "the stiffness of a spring"), number(rest, "the rest length of a spring")
        if not (0.0 <= stiffness < float("inf") and 0.0 <= rest < float("inf")):
            raise UserError(
                f"expected a spring with stiffness and rest length of at least 0, got {stiffness} and {rest}"
            )
        a = self._place(a)
        if isinstance(b, (Place, BodyHandle)):
            span = self._place(b) - a
            if not any(weight for _, weight in span.weights):
                raise UserError(f"a spring joins {a.label} to itself; join different points")
            self._springs.append((span, np.zeros(self.dim), stiffness, rest))
        else:
            self._springs.append((a, self._vector(b, f"the end of a spring of {a.label}"), stiffness, rest))
        self._draw_rod(a, b, self._coils)

    def damping(
        self, coefficient: float, a: Place | BodyHandle | None = None, b: Place | BodyHandle | None = None
    ) -> None:
        """Rayleigh damping, N s/m: of the velocity of ``a``, of ``a`` relative to ``b``, or of every body's origin."""
        coefficient = number(coefficient, "a damping coefficient")
        if not 0.0 <= coefficient < float("inf"):
            raise UserError(f"expected a damping coefficient of at least 0, got {coefficient}")
        if a is None:
            for body in self._bodies:
                self._dampers.append((BodyHandle(body, self._mark).at(), coefficient))
        else:
            self._dampers.append((self._place(a) if b is None else self._place(a) - self._place(b), coefficient))

    def rotational_damping(self, coefficient: float, a: BodyHandle, b: BodyHandle | None = None) -> None:
        """The torque ``-coefficient omega``, N m s/rad, on the turning of ``a`` against ``b``, or in space.

        Both need as many axes as space has dimensions.
        """
        coefficient = number(coefficient, "a damping coefficient")
        if not 0.0 <= coefficient < float("inf"):
            raise UserError(f"expected a damping coefficient of at least 0, got {coefficient}")
        d = self.dim
        for handle in (a, b):
            if handle is not None and handle.body.dim != d:
                raise UserError(f"expected a body with {d} axes to damp its turning, got '{handle.body.name}' with "
                                f"{handle.body.dim}; damp the velocity of its points by damping(...)")  # fmt: skip

        def axes(handle: BodyHandle, n: int) -> Tensor:
            rows = [combined(dict(handle.along(*row).weights), n) for row in np.eye(d)]
            return _tensor(rows, 1, d, n)

        def make(n: int) -> RotationalDamping:
            A = torch.zeros(1, d, n, dtype=torch.float64) if b is None else axes(b, n)  # noqa: N806
            fixed = torch.eye(d, dtype=torch.float64)[None] * float(b is None)
            return RotationalDamping(A, fixed, axes(a, n), _tensor([coefficient], 1))

        self._forces.append(make)

    def torsion_spring(
        self, turning: Place, zero: Place | Vector, quarter: Place | Vector, stiffness: float, rest: float = 0.0
    ) -> None:
        """A spring, N m/rad, on the angle of a direction from ``zero`` towards ``quarter``, slack at ``rest`` rad.

        Args:
            turning: unit direction of the body that turns, at a right angle to the axis.
            zero, quarter: unit directions at right angles to the axis and to one another, in the other body or fixed.
            stiffness, rest: of the spring.
        """
        stiffness, rest = number(stiffness, "a torsion spring's stiffness"), number(rest, "a torsion spring's rest")
        if not (0.0 <= stiffness < float("inf") and np.isfinite(rest)):
            raise UserError(f"expected a torsion spring with stiffness of at least 0 and a finite rest angle, got "
                            f"{stiffness} and {rest}")  # fmt: skip
        none = np.zeros(self.dim)
        self._direction(turning)
        ends = [(dict(self._direction(each).weights), none) if isinstance(each, Place) else
                ({}, self._vector(each, f"a direction of the torsion spring of {turning.label}"))
                for each in (zero, quarter)]  # fmt: skip

        def make(n: int) -> TorsionSprings:
            (A, a), (B, b) = ((_tensor(combined(w, n), 1, n), _tensor(v, 1, self.dim)) for w, v in ends)  # noqa: N806
            row = _tensor(combined(dict(turning.weights), n), 1, n)
            return TorsionSprings(row, A, a, B, b, _tensor([stiffness], 1), _tensor([rest], 1))

        self._forces.append(make)

    def potential(self, function: Callable[[Tensor], Tensor]) -> None:
        """Any potential energy of the points: x (..., n, d) -> (...), joules."""
        if not callable(function):
            raise UserError(f"expected a function of positions x (..., n, d) -> (...), got {function!r}")
        self._forces.append(lambda n: Potential(function))

    def magnets(
        self, carried: Place | BodyHandle, axis: Place, axis_origin: Vector, strength: float,
        positions: Rows, moments: Rows, *, published_sign: bool = False,
    ) -> None:  # fmt: skip
        """A dipole carried at a point along ``axis - axis_origin``, in the field of fixed dipoles."""
        strength = number(strength, "the strength of a magnet")
        for each in (positions, moments):
            refuse_learnt(each, "the places and moments of magnets")
        rows = [np.asarray(each, dtype=float) for each in (positions, moments)]
        if rows[0].shape != rows[1].shape or rows[0].ndim != 2 or rows[0].shape[1] != self.dim:
            raise UserError(f"expected magnets of shapes (F, {self.dim}), got {rows[0].shape} and {rows[1].shape}")
        if not (np.isfinite(rows).all() and np.isfinite(strength)):
            raise UserError("expected finite positions, moments and strength of magnets, got NaN or infinity")
        carried, origin = self._place(carried), self._vector(axis_origin, "the origin of a magnet's axis")

        def make(n: int) -> Dipoles:
            tensors = [combined(dict(carried.weights), n)[None], np.zeros((1, self.dim)),
                       combined(dict(axis.weights), n)[None], origin[None],
                       np.array([strength]), *rows]  # fmt: skip
            A, b, axis_A, axis_b, size, places, fixed = (torch.as_tensor(each) for each in tensors)  # noqa: N806
            return Dipoles(A, b, axis_A, axis_b, size, places, fixed, published_sign)

        self._forces.append(make)

    def force(self, force: Force) -> None:
        """Any other `Force`."""
        if not isinstance(force, Force):
            raise UserError(
                f"expected a chnn.mechanics.Force, got {force!r}; a function of positions is a potential(...)"
            )
        self._forces.append(lambda n: force)

    # --- drawing ---

    def draw_mesh(self, handle: BodyHandle, vertices: np.ndarray, triangles: np.ndarray) -> None:
        """A mesh in the axes of a body, for drawing only."""
        self._meshes.append((handle.body.name, torch.as_tensor(vertices), torch.as_tensor(triangles)))

    def draw_rod(self, a: Place | BodyHandle | Vector, b: Place | BodyHandle | Vector) -> None:
        """A rod for drawing only."""
        self._draw_rod(a, b)

    # --- the result ---

    @property
    def _n(self) -> int:
        return sum(body.dim + 1 for body in self._bodies)

    def build(self, name: str, *, check: bool = True, states: Tensor | None = None) -> Description:
        """The finished system.

        Args:
            name: of the system.
            check: look for constraints that depend on one another or cannot hold.
            states: (S, n, d), configurations on the constraints at which to look, the first the reference; by default
                they are searched for.

        Raises:
            UserError: without bodies, or for impossible constraints; names them.
        """
        if not self._bodies:
            raise UserError(f"expected at least one body in {name}")
        n, d = self._n, self.dim
        E, inertia = inertia_factors(self._bodies)  # noqa: N806
        joint_A = np.array([combined(dict(place.weights), n) for _, place, _ in self._joints]).reshape(-1, n)  # noqa: N806
        joint_b = np.array([b for _, _, b in self._joints]).reshape(-1, d)
        joint_names = [label for label, _, _ in self._joints]
        kept, free = eliminate_joints(joint_A, joint_b, joint_names, self._bodies)
        basis = torch.from_numpy(free)
        redundant = [label for row, label in enumerate(joint_names) if row not in kept]
        surfaces: dict[int, tuple[Surface, list[int]]] = {}
        for row, (_, _, _, _, _, f) in enumerate(self._scalar):
            if f is not None:
                surfaces.setdefault(id(f), (f, []))[1].append(row)
        C = len(self._scalar)  # noqa: N806
        constraints = Constraints(
            A=_tensor([combined(dict(place.weights), n) for _, place, *_ in self._scalar], C, n),
            b=_tensor([b for _, _, b, *_ in self._scalar], C, d),
            lengths=_tensor([length for _, _, _, length, _, _ in self._scalar], C),
            quadratic=_tensor([float(length > 0) for _, _, _, length, _, _ in self._scalar], C),
            normals=_tensor([np.zeros(d) if normal is None else normal for *_, normal, _ in self._scalar], C, d),
            surfaces=tuple((f, torch.tensor(rows)) for f, rows in surfaces.values()),
            joint_A=torch.from_numpy(joint_A[kept]),
            joint_b=torch.from_numpy(joint_b[kept]),
            names=(*(label for label, *_ in self._scalar), *(joint_names[row] for row in kept)),
        )
        reference = torch.from_numpy(np.concatenate(self._start))
        constraints = _principal_lengths(constraints, self._bodies, joint_metric(constraints, basis, E, inertia))
        if check and constraints.num_constraints:
            scaled = Scaled.of(constraints, self._bodies, free, reference)
            states = find_states(scaled, reference) if states is None else states
            reference = states[0]
            rows = independent_rows(scaled, states)
            redundant += [constraints.names[row] for row in range(C) if row not in rows]
            constraints = constraints.select(rows)
        weights = mass_matrix(E, inertia).sum(1)
        return Description(name, d, tuple(self._bodies), E, inertia, constraints, tuple(redundant),
                           self._all_forces(n, weights), reference, self._drawing(), basis)  # fmt: skip

    def _all_forces(self, n: int, weights: Tensor) -> tuple[Force, ...]:
        forces: list[Force] = []
        if self._gravity is not None:
            forces.append(Gravity(weights, torch.from_numpy(self._gravity)))
        if self._springs:
            S = len(self._springs)  # noqa: N806
            forces.append(Springs(
                _tensor([combined(dict(place.weights), n) for place, *_ in self._springs], S, n),
                _tensor([b for _, b, _, _ in self._springs], S, self.dim),
                _tensor([k for *_, k, _ in self._springs], S), _tensor([rest for *_, rest in self._springs], S),
            ))  # fmt: skip
        if self._dampers:
            R = len(self._dampers)  # noqa: N806
            forces.append(Damping(_tensor([combined(dict(place.weights), n) for place, _ in self._dampers], R, n),
                                  _tensor([c for _, c in self._dampers], R)))  # fmt: skip
        return (*forces, *(make(n) for make in self._forces))

    def _drawing(self) -> Drawing:
        anchors = torch.from_numpy(np.array(self._anchors).reshape(-1, self.dim))

        def ends(line: tuple[int, int]) -> tuple[int, int]:  # marks come after the points
            a, b = (self._n + end - _MARK if end >= _MARK else end for end in line)
            return a, b

        rods, coils = tuple(map(ends, self._rods)), tuple(map(ends, self._coils))
        return Drawing(anchors, rods, coils, tuple(place.weights for place in self._marks), tuple(self._meshes))

    def _joint(self, label: str, place: Place, offset: np.ndarray) -> None:
        if not any(abs(weight) > 1e-12 for _, weight in place.weights) and not np.linalg.norm(offset) > 0:
            raise UserError(f"{label} joins a point to itself; join points of different bodies")
        self._joints.append((label, place, offset))

    def _vector(self, value: Vector, what: str) -> np.ndarray:
        refuse_learnt(value, what)
        try:
            vector = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise UserError(f"expected {self.dim} finite numbers for {what}, got {value!r}") from None
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise UserError(f"expected {self.dim} finite numbers for {what}, got {np.asarray(value)}")
        return vector

    def _length(self, length: float, label: str) -> float:
        length = number(length, f"the length of the {label}")
        if not 0.0 < length < float("inf"):
            raise UserError(f"expected a positive finite length for the {label}, got {length:g}")
        return length

    def _place(self, value: Place | BodyHandle) -> Place:
        """A place on a body of this assembly."""
        place = value.at() if isinstance(value, BodyHandle) else value
        if not isinstance(place, Place):
            raise UserError(
                f"expected a body or a place on one (body.at(...)), got {value!r}; an anchor takes tether or pin"
            )
        self._own(place)
        total = sum(weight for _, weight in place.weights)
        if abs(total - 1.0) > 1e-9:
            raise UserError(f"expected a place on a body (body.at(...)), got the direction '{place.label}': nothing "
                            "is there to hold")  # fmt: skip
        return place

    def _direction(self, value: Place) -> Place:
        """A direction in a body of this assembly, or a difference of places."""
        if not isinstance(value, Place):
            raise UserError(f"expected a direction in a body (body.along(...)), got {value!r}")
        self._own(value)
        if abs(sum(weight for _, weight in value.weights)) > 1e-9 or not any(weight for _, weight in value.weights):
            raise UserError(f"expected a direction in a body (body.along(...)) that is not zero, got '{value.label}'")
        return value

    def _own(self, place: Place) -> None:
        if place.owner is not self._mark:
            raise UserError(f"'{place.label}' belongs to another Assembly; add its body to this one")

    def _anchor(self, place: np.ndarray) -> int:
        self._anchors.append(place)
        return -len(self._anchors)

    def _end(self, end: Place | BodyHandle | Vector) -> int:
        """The index of an end of a drawn line: a point, a mark after the points, or an anchor below 0."""
        if not isinstance(end, (Place, BodyHandle)):
            return self._anchor(self._vector(end, "an anchor"))
        place = self._place(end)
        heavy = [(index, weight) for index, weight in place.weights if weight != 0.0]
        if len(heavy) == 1 and heavy[0][1] == 1.0:
            return heavy[0][0]
        self._marks.append(place)
        return _MARK + len(self._marks) - 1

    def _draw_rod(
        self, a: Place | BodyHandle | Vector, b: Place | BodyHandle | Vector, into: list | None = None
    ) -> None:
        (self._rods if into is None else into).append((self._end(a), self._end(b)))


def _principal_lengths(constraints: Constraints, bodies: Sequence[Body], metric: Metric) -> Constraints:
    """Lengths within bodies between the tips of other axes, where those of a body mix very light and heavy motions.

    A body of small moments on a long lever is heavy along the lever and light across it. In axes along these a
    constraint has the inverse mass of one motion; in others the Gram matrix would lose the small one beside the large.
    """
    assert metric.factor is not None
    T = axes_of(bodies)  # noqa: N806
    light = np.linalg.inv(T) @ metric.factor.detach().numpy()
    A = constraints.A.clone()  # noqa: N806
    for body in bodies:
        start = f"{WITHIN} '{body.name}',"
        rows = [row for row, name in enumerate(constraints.names[: len(A)]) if name.startswith(start)]
        tips = slice(body.first + 1, body.first + 1 + body.dim)
        if body.dim < 2:
            continue
        axes, sizes, _ = np.linalg.svd(light[tips], full_matrices=True)
        sizes = sizes[sizes > _FIXED * sizes.max(initial=0.0)]
        if not len(sizes) or sizes.min() > _MIXED * sizes.max():
            continue
        tip = np.zeros((body.dim + 1, len(T)))
        tip[1:, tips] = axes.T
        tip = tip @ np.linalg.inv(T)
        for row, (i, j) in zip(rows, combinations(range(body.dim + 1), 2), strict=True):
            A[row] = torch.from_numpy(tip[i] - tip[j])
    return replace(constraints, A=A)


def _sum(a: Place, b: Place, sign: float = 1.0) -> tuple[tuple[int, float], ...]:
    """The weights of ``a + sign b``."""
    joint = dict(a.weights)
    for index, weight in b.weights:
        joint[index] = joint.get(index, 0.0) + sign * weight
    return tuple(joint.items())


def _tensor(rows: Sequence | np.ndarray, *shape: int) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=float).reshape(shape))
