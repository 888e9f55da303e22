"""From a robot's tree to bodies with constraints and forces, and to the joints' motions for conversions.

Every moving link becomes a body of dimension 3: its centre of mass, and the tips of the axes of its link's frame there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lie.run import UserError

from chnn.formats.frames import from_z_axis
from chnn.formats.shapes import Shape
from chnn.formats.tree import WORLD, Joint, Leftover, Link, Loop, Tree
from chnn.mechanics import Assembly, BodyHandle, Inertia, Place

_THIN = 1e-9  # smallest over largest second moment: below it the mass lies in a plane as far as rounding tells
_LEAST, _MOST = 1e-15, 1e15  # kg, and their squares kg m^2: products of masses and moments stay within float64
_SAME = 1e-9  # of a metre: axes that miss one another by less cross


@dataclass(frozen=True)
class Motion:
    """How a body moves against its parent, in coordinates: slides (m), then angles about its axes, or three of a ball.

    Fields:
        kind: "hinge", "universal", "ball", "fixed" (to a slide) or "free".
        parent: index of a body, or `WORLD`.
        rotation: of the body's axes in those of its parent, in the reference configuration.
        at_parent, at_body: the joint's point in the axes of either, from its centre.
        slides: unit directions in space, (k, 3).
        axes: unit axes in the body, one for a hinge, two for a universal joint.
        names: of its coordinates.
    """

    kind: str
    parent: int
    rotation: np.ndarray
    at_parent: np.ndarray
    at_body: np.ndarray
    slides: np.ndarray
    axes: np.ndarray
    names: tuple[str, ...]

    @property
    def num_lengths(self) -> int:
        """How many of the coordinates, the first, are in metres."""
        return 3 if self.kind == "free" else len(self.slides)


@dataclass(frozen=True)
class _Pose:
    """A body in the reference configuration: its centre and axes in space."""

    centre: np.ndarray
    rotation: np.ndarray

    def coordinates(self, place: np.ndarray) -> np.ndarray:
        return self.rotation.T @ (place - self.centre)


_SPACE = _Pose(np.zeros(3), np.eye(3))


def assemble(tree: Tree, left: Leftover) -> tuple[Assembly, list[Motion], list[list[Shape]], np.ndarray]:
    """The bodies, constraints and forces of a fused tree.

    Returns:
        The assembly; the motion of each body; the shapes of each body in its axes; the reference configuration (n, 3).

    Raises:
        UserError: for joints that cannot be combined and for moments that no body has; names file, line and link.
    """
    world = Assembly(3)
    world.gravity(tree.gravity)
    frames: list[tuple[np.ndarray, np.ndarray]] = []  # of the links, in space
    poses: list[_Pose] = []
    handles: list[BodyHandle] = []
    motions: list[Motion] = []
    shapes: list[list[Shape]] = []
    for link in tree.links:
        R, p = (np.eye(3), np.zeros(3)) if link.parent == WORLD else frames[link.parent]  # noqa: N806
        position, rotation = p + R @ link.position, R @ link.rotation
        frames.append((rotation, position))
        mass = link.mass
        assert mass is not None
        if not _LEAST <= mass.mass <= _MOST:
            raise UserError(f"{link.where} has a mass of {mass.mass:.4g} kg, expected {_LEAST:g} to {_MOST:g}; correct "
                            "<inertial>, or the density and size of its geoms")  # fmt: skip
        _check_moments(link, mass.moments)
        pose = _Pose(position + rotation @ mass.centre, rotation)
        inertia = Inertia(mass.mass, tuple(map(tuple, (0.5 * (mass.moments + mass.moments.T)).tolist())))
        handles.append(world.body(link.name, 3, inertia, position=pose.centre, axes=rotation.T))
        poses.append(pose)
        shapes.append([shape.moved(-mass.centre, np.eye(3)) for shape in link.shapes])
        joints = [_in_space(joint, position, rotation) for joint in link.joints]
        above = _SPACE if link.parent == WORLD else poses[link.parent]
        handle = None if link.parent == WORLD else handles[link.parent]
        motions.append(_hold(world, link, joints, handles[-1], handle, pose, above, left))
    for loop in tree.loops:
        R, p = (np.eye(3), np.zeros(3)) if loop.a == WORLD else frames[loop.a]  # noqa: N806
        place = p + R @ loop.anchor
        other = place
        if loop.other is not None:
            S, q = (np.eye(3), np.zeros(3)) if loop.b == WORLD else frames[loop.b]  # noqa: N806
            other = q + S @ loop.other
        _close(world, loop, (place, other), handles, poses)
    reference = np.concatenate([np.vstack([pose.centre, pose.centre + pose.rotation.T]) for pose in poses])
    return world, motions, shapes, reference


def _check_moments(link: Link, moments: np.ndarray) -> None:
    tensor = np.trace(moments) * np.eye(3) - moments
    if not np.isfinite(tensor).all():
        raise UserError(f"{link.where} has moments of inertia that are not finite")
    values = np.linalg.eigvalsh(tensor)
    shown = ", ".join(f"{value:.4g}" for value in values)
    smallest, largest = np.linalg.eigvalsh(moments)[[0, -1]]
    if not values[0] > 0.0:
        raise UserError(f"{link.where} has moments of inertia {shown}; expected three positive ones")
    if not _LEAST**2 <= values[0] <= values[-1] <= _MOST**2:
        raise UserError(
            f"{link.where} has moments of inertia {shown} kg m^2, expected {_LEAST**2:g} to {_MOST**2:g}; correct them"
        )
    if smallest < -_THIN * largest:
        raise UserError(
            f"{link.where} has moments of inertia {shown}, which no body has: the largest is at most the sum of the "
            "other two; correct <inertial>"
        )
    if smallest < _THIN * largest:
        raise UserError(
            f"{link.where} has moments of inertia {shown}, of a mass without thickness (the largest is the sum of the "
            "other two); make it a little thicker, such as by lowering the largest moment by a thousandth"
        )


def _in_space(joint: Joint, position: np.ndarray, rotation: np.ndarray) -> Joint:
    return Joint(joint.kind, joint.name, position + rotation @ joint.anchor, rotation @ joint.axis, joint.damping,
                 joint.stiffness, joint.rest, joint.where)  # fmt: skip


def _hold(
    world: Assembly, link: Link, joints: Sequence[Joint], body: BodyHandle, parent: BodyHandle | None,
    pose: _Pose, above: _Pose, left: Leftover,
) -> Motion:  # fmt: skip
    """Add the constraints and forces of the joints of one body; joints stand in space."""
    slides = [joint for joint in joints if joint.kind == "slide"]
    turns = [joint for joint in joints if joint.kind != "slide"]
    if slides and parent is not None:
        raise UserError(
            f"{slides[0].where} slides on a body that moves; only slides against the world can be simulated. Fix the "
            "joint, or put its body into the world"
        )
    if joints[: len(slides)] != slides:
        raise UserError(f"{slides[0].where} slides after a joint that turns; write the slides before it")
    kind, place = _kind(link, turns) if turns else ("fixed", pose.centre)
    if kind == "free" and len(joints) > 1:
        raise UserError(f"{joints[-1].where} stands beside a free joint; a free body needs no other")
    name = " and ".join(f"'{joint.name}'" for joint in joints)
    hinges = np.array([joint.axis for joint in turns if joint.kind == "hinge"]).reshape(-1, 3)
    own, outer = hinges @ pose.rotation, hinges @ above.rotation  # in the body and in its parent
    at_body, at_parent = pose.coordinates(place), above.coordinates(place)
    directions = np.array([joint.axis for joint in slides]).reshape(-1, 3)

    def of_parent(vector: np.ndarray) -> Place | np.ndarray:
        return vector if parent is None else parent.along(*vector)

    point = body.at(*at_body)
    if kind != "free":
        if slides:
            _slide(world, point, place, directions, name)
        elif parent is None:
            world.pin(point, place, name=f"joint {name}")
        else:
            world.ball_joint(point, parent.at(*at_parent), name=f"joint {name}")
    if kind == "hinge":
        world.weld_direction(body.along(*own[0]), of_parent(outer[0]), name=f"axis of joint {name}")
    elif kind == "universal":
        angle = float(np.arccos(np.clip(hinges[0] @ hinges[1], -1.0, 1.0)))
        world.keep_angle(body.along(*own[1]), of_parent(outer[0]), angle, name=f"axes of joint {name}")
    elif kind == "fixed":
        for row, fixed in zip(np.eye(3), pose.rotation.T, strict=True):
            world.weld_direction(body.along(*row), fixed, name=f"direction of joint {name}")
    for joint in slides:
        if len(slides) > 1:
            _leave(joint, f"one of {len(slides)} slides of a body", left)
            continue
        if joint.damping > 0.0:
            world.damping(joint.damping, point)
        if joint.stiffness > 0.0:
            world.spring(point, place + joint.rest * joint.axis, joint.stiffness)
    for joint in turns:
        if len(turns) > 1:
            _leave(joint, f"one of {len(turns)} hinges of a body", left)
            continue
        if joint.damping > 0.0:
            world.rotational_damping(joint.damping, body, parent)
        if joint.stiffness > 0.0:
            across = from_z_axis(joint.axis)[:, :2].T  # two directions at right angles to the axis, in space
            zero, quarter = (of_parent(row) for row in across @ above.rotation)
            turning = body.along(*(pose.rotation.T @ across[0]))
            world.torsion_spring(turning, zero, quarter, joint.stiffness, joint.rest)
    return Motion(kind, link.parent, above.rotation.T @ pose.rotation, at_parent, at_body, directions,
                  own if kind in ("hinge", "universal") else own[:0], _names(slides, turns, kind))  # fmt: skip


def _leave(joint: Joint, what: str, left: Leftover) -> None:
    if joint.damping > 0.0:
        left.note("damping", joint.where, f"damps {what}")
    if joint.stiffness > 0.0:
        left.note("springs", joint.where, f"has a spring on {what}")


def _names(slides: Sequence[Joint], turns: Sequence[Joint], kind: str) -> tuple[str, ...]:
    names = [joint.name for joint in slides]
    if kind in ("hinge", "universal"):
        return (*names, *(joint.name for joint in turns))
    if kind == "fixed":
        return tuple(names)
    turning = "+".join(joint.name for joint in turns)
    vector = [f"{turning} turn {axis}" for axis in "xyz"]
    return (*names, *([f"{turning} centre {axis}" for axis in "xyz"] if kind == "free" else []), *vector)


def _kind(link: Link, turns: Sequence[Joint]) -> tuple[str, np.ndarray]:
    """What the joints of a body that turn make together, and the point about which they do."""
    if len(turns) == 1:
        return turns[0].kind, turns[0].anchor
    names = ", ".join(f"'{joint.name}'" for joint in turns)
    if len(turns) > 3 or any(joint.kind != "hinge" for joint in turns):
        raise UserError(
            f"{turns[1].where}: the joints {names} act on one body, '{link.name}'; one, two or three hinges can be "
            "combined. Put a body with mass between them"
        )
    place = _crossing([(joint.anchor, joint.axis) for joint in turns])
    if place is None:
        raise UserError(
            f"{turns[1].where}: the axes of the hinges {names} of '{link.name}' miss one another; without mass between "
            "them they can be combined only where they cross in one point. Put a body with mass between them"
        )
    if np.linalg.svd([joint.axis for joint in turns], compute_uv=False)[-1] < 1e-6:
        raise UserError(f"{turns[1].where}: the hinges {names} of '{link.name}' turn about the same axes; keep one")
    return ("universal" if len(turns) == 2 else "ball"), place


def _crossing(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """The point that is on all lines (anchor, unit axis), or None."""
    across = [np.eye(3) - np.outer(axis, axis) for _, axis in lines]
    rhs = sum((P @ anchor for P, (anchor, _) in zip(across, lines, strict=True)), np.zeros(3))
    place = np.linalg.lstsq(sum(across, np.zeros((3, 3))), rhs, rcond=1e-12)[0]
    size = max(1.0, max(float(np.abs(anchor).max()) for anchor, _ in lines))
    missed = max(float(np.linalg.norm(P @ (place - anchor))) for P, (anchor, _) in zip(across, lines, strict=True))
    return place if missed <= _SAME * size else None


def _slide(world: Assembly, point: Place, place: np.ndarray, directions: np.ndarray, name: str) -> None:
    """The point stays where slides in these directions take it from its place."""
    _, sizes, basis = np.linalg.svd(directions)
    rank = int((sizes > 1e-6).sum())
    if rank < len(directions):
        raise UserError(f"the slides {name} move along the same directions; keep one of them")
    for normal in basis[rank:]:
        world.on_plane(point, place, normal)


def _close(
    world: Assembly, loop: Loop, ends: Sequence[np.ndarray], handles: Sequence[BodyHandle], poses: Sequence[_Pose]
) -> None:
    """Hold two links together at a place each, or wholly."""
    label = f"{loop.kind} '{loop.name}'"
    a, b = ((index, place) for index, place in zip((loop.a, loop.b), ends, strict=True))
    if a[0] == b[0]:
        raise UserError(f"{loop.where} ties a body to itself")
    if a[0] == WORLD:
        a, b = b, a
    body, pose = handles[a[0]], poses[a[0]]
    point = body.at(*pose.coordinates(a[1]))
    other = None if b[0] == WORLD else handles[b[0]]
    if other is None:
        world.pin(point, b[1], name=label)
    else:
        world.ball_joint(point, other.at(*poses[b[0]].coordinates(b[1])), name=label)
    if loop.kind == "weld":
        turn = pose.rotation if other is None else poses[b[0]].rotation.T @ pose.rotation
        for row, column in zip(np.eye(3), turn.T, strict=True):
            fixed = column if other is None else other.along(*column)
            world.weld_direction(body.along(*row), fixed, name=f"direction of {label}")
