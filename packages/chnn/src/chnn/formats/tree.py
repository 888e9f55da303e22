"""What a robot file says, whatever its format: links on joints in a tree, loops that close it, and gravity."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import numpy as np
from lie.run import UserError, unknown_name

from chnn.formats.shapes import Mass, Shape, together
from chnn.formats.xml import Element

WORLD = -1
"""The parent of what is fixed in space."""
MOST_BODIES = 200
"""Links that move; 80 take some seconds to set up."""
_MOST_SHAPES = 10_000  # each is drawn by some hundred triangles

FEATURES: dict[str, str] = {
    "limits": "joints turn beyond their limits",
    "contacts": "bodies pass through one another",
    "actuators": "nothing drives the joints",
    "sensors": "nothing is measured",
    "tendons": "without tendons",
    "equality": "without the constraint",
    "mimic": "the joint moves on its own",
    "friction": "joints without dry friction",
    "damping": "joints without damping",
    "springs": "joints without springs",
    "armature": "without the rotor's inertia",
    "fluid": "without the medium",
    "gravcomp": "gravity acts on the body",
    "meshes": "the mesh is not drawn",
    "extensions": "without what other programs add",
}
"""What ``ignore`` may leave out, and what that means."""


@dataclass(frozen=True)
class Joint:
    """One way in which a link moves against its parent: "hinge", "ball", "slide" or "free".

    Fields:
        kind, name: as in the file.
        anchor, axis: a point and a unit vector in the frame of the link.
        damping: N m s/rad, or N s/m of a slide.
        stiffness: N m/rad, or N/m of a slide.
        rest: angle or distance from the reference configuration at which the spring is slack.
        where: file, line, tag.
    """

    kind: str
    name: str
    anchor: np.ndarray
    axis: np.ndarray
    damping: float = 0.0
    stiffness: float = 0.0
    rest: float = 0.0
    where: str = ""


@dataclass
class Link:
    """A rigid part: where it stands in its parent's frame in the reference configuration, and what it holds.

    The joints act one after the other, the first nearest to the parent; without any it is welded to the parent.
    """

    name: str
    parent: int
    position: np.ndarray
    rotation: np.ndarray
    joints: list[Joint] = field(default_factory=list)
    masses: list[Mass] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    where: str = ""

    @property
    def mass(self) -> Mass | None:
        """All its masses as one, in its frame."""
        return together(self.masses)


@dataclass(frozen=True)
class Loop:
    """Two links held together: at a point ("connect"), or wholly ("weld"), as in the reference configuration.

    Fields:
        kind, name: as above.
        a, b: indices of links, or `WORLD`.
        anchor: in the frame of a.
        where: file, line, tag.
        other: the point in the frame of b; None for the one that is at ``anchor`` in the reference configuration.
    """

    kind: str
    name: str
    a: int
    b: int
    anchor: np.ndarray
    where: str = ""
    other: np.ndarray | None = None


@dataclass
class Tree:
    """A robot: links with parents before children, loops, gravity (m/s^2), and what is fixed in space."""

    name: str
    links: list[Link]
    loops: list[Loop]
    gravity: np.ndarray
    shapes: list[Shape] = field(default_factory=list)
    """Of the world, in its frame."""
    digest: str = ""
    """Of all that the file says and includes, without its layout."""


class Leftover:
    """Collects what a file has and we do not simulate, so that one error names it all and how to leave it out."""

    def __init__(self, file: str, ignore: Sequence[str]) -> None:
        if isinstance(ignore, str):
            ignore = (ignore,)
        for name in ignore:
            if name not in FEATURES:
                raise unknown_name("feature to ignore", name, FEATURES)
        self.file, self.ignore = file, tuple(ignore)
        self._first: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def note(self, feature: str, where: str, message: str, count: int = 1) -> None:
        """Something at ``where`` that ``ignore`` may leave out, the first of ``count`` alike."""
        if feature not in self.ignore:
            self._first.setdefault(feature, f"{where} {message}")
            self._count[feature] = self._count.get(feature, 0) + count

    def of(self, element: Element, feature: str, message: str) -> None:
        """The same for an element."""
        self.note(feature, element.where, message)

    def check(self) -> None:
        """Raise a `UserError` that names the first of each feature and the way to leave them out."""
        if not self._first:
            return
        more = {feature: f" (and {count - 1} more)" if count > 1 else "" for feature, count in self._count.items()}
        shown = [message + more[feature] for feature, message in self._first.items()]
        names = (*self.ignore, *self._first)
        what = "; ".join(FEATURES[feature] for feature in self._first)
        raise UserError(
            f"{self.file} has what is not simulated: {'; '.join(shown)}. Remove it, or leave it out with ignore="
            f"({', '.join(map(repr, names))}{',' if len(names) == 1 else ''}): {what}"
        )


def fused(tree: Tree) -> Tree:
    """The same robot with welded links merged and massless links between joints dissolved into those they carry.

    Raises:
        UserError: for a link that moves and has neither mass nor exactly one link that it carries.
    """
    links = [replace(link, joints=list(link.joints), masses=list(link.masses), shapes=list(link.shapes))
             for link in tree.links]  # fmt: skip
    drawn = sum(len(link.shapes) for link in links)
    if drawn > _MOST_SHAPES:
        raise UserError(f"{tree.name} has {drawn} shapes on its links, at most {_MOST_SHAPES} are read; simplify it")
    shapes, loops = list(tree.shapes), list(tree.loops)
    below: dict[int, list[int]] = {}
    ties: dict[int, set[int]] = {}  # of each link, the loops that hold it
    for i, link in enumerate(links):
        below.setdefault(link.parent, []).append(i)
    for k, loop in enumerate(loops):
        for end in (loop.a, loop.b):
            ties.setdefault(end, set()).add(k)
    alive = set(range(len(links)))
    waiting = list(range(len(links)))  # a heap: the first link that can be merged is, as it may decide about the others
    while waiting:
        i = heappop(waiting)
        if i not in alive:
            continue
        link, own = links[i], below.get(i, [])
        if not link.joints:
            _weld(links, i, own, shapes)
            for k in ties.pop(i, ()):
                loops[k] = _moved_loop(loops[k], i, link, link.parent)
                ties.setdefault(link.parent, set()).add(k)
        elif len(own) == 1 and not ties.get(i) and link.mass is None:
            _dissolve(link, links[own[0]])
        else:
            continue
        alive.remove(i)
        beside = below[link.parent]
        beside.remove(i)
        for k in own:
            insort(beside, k)
            heappush(waiting, k)
        if link.parent != WORLD:
            heappush(waiting, link.parent)
    order = sorted(alive)
    if len(order) > MOST_BODIES:
        raise UserError(
            f"{tree.name} has {len(order)} links that move, at most {MOST_BODIES} are simulated: the time to set the "
            "robot up grows with the third power; fix joints, or cut the robot into parts"
        )
    place = {WORLD: WORLD, **{old: new for new, old in enumerate(order)}}
    kept = [replace(links[old], parent=place[links[old].parent]) for old in order]
    for link in kept:
        if link.mass is None:
            raise UserError(f"{link.where} moves and has no mass; give it mass, or fix it to another link")
    loops = [replace(loop, a=place[loop.a], b=place[loop.b]) for loop in loops]
    return Tree(tree.name, kept, loops, tree.gravity, shapes, tree.digest)


def _weld(links: list[Link], i: int, below: Sequence[int], shapes: list[Shape]) -> None:
    """Give all that link i holds to its parent."""
    link = links[i]
    target = links[link.parent].shapes if link.parent != WORLD else shapes
    target += [shape.moved(link.position, link.rotation) for shape in link.shapes]
    if link.parent != WORLD:
        links[link.parent].masses += [mass.moved(link.position, link.rotation) for mass in link.masses]
    for k in below:
        links[k].position = link.position + link.rotation @ links[k].position
        links[k].rotation = link.rotation @ links[k].rotation
        links[k].parent = link.parent


def _moved_loop(loop: Loop, i: int, link: Link, parent: int) -> Loop:
    if loop.a == i:
        loop = replace(loop, a=parent, anchor=link.position + link.rotation @ loop.anchor)
    if loop.b == i:
        other = None if loop.other is None else link.position + link.rotation @ loop.other
        loop = replace(loop, b=parent, other=other)
    return loop


def _dissolve(link: Link, child: Link) -> None:
    """Let the joints of a massless link act before those of the only link it carries."""
    back = child.rotation.T
    before = [replace(joint, anchor=back @ (joint.anchor - child.position), axis=back @ joint.axis)
              for joint in link.joints]  # fmt: skip
    child.joints = before + child.joints
    child.shapes += [shape.moved(-back @ child.position, back) for shape in link.shapes]
    child.position = link.position + link.rotation @ child.position
    child.rotation = link.rotation @ child.rotation
    child.parent = link.parent
