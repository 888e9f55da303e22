"""One call for both formats: the root element says which it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lie.run import UserError

from chnn.formats.mjcf import included, read_mjcf
from chnn.formats.tree import Leftover, Tree, fused
from chnn.formats.urdf import read_urdf
from chnn.formats.xml import Budget, Element, read_xml
from chnn.mechanics import GRAVITY


def read_robot(
    path: str | Path,
    *,
    ignore: Sequence[str] = (),
    base: str | None = None,
    gravity: float | Sequence[float] | None = None,
) -> tuple[Tree, Leftover]:
    """The robot of a URDF or MJCF file, with welded links merged, and what is not simulated of it.

    Args:
        path: of the file.
        ignore: features to leave out, from `FEATURES`; call ``check`` of the second result after `assemble`.
        base: of a URDF file, "fixed" or "floating": whether its root link, where it has mass, is held in space.
        gravity: m/s^2, along the negative last axis or a vector; by default that of an MJCF file, 9.81 for URDF.

    Raises:
        UserError: names file, line and element.
    """
    target = Path(path)
    budget = Budget()
    root = read_xml(target, budget)
    left = Leftover(target.name, ignore)
    if gravity is None or isinstance(gravity, (int, float)):
        down = (0.0, 0.0, -float(GRAVITY if gravity is None else gravity))
    else:
        down = tuple(map(float, gravity))
    if root.tag == "robot":
        tree = read_urdf(root, target.parent, left, base=base, gravity=down)
    elif root.tag == "mujoco":
        if base is not None:
            raise UserError(f"{root.where} says itself what is held, by <freejoint>; give no base for an MJCF file")
        root = included(root, target.parent, (target.name,), budget)
        tree = read_mjcf(root, target.parent, left)
        if gravity is not None:
            tree.gravity[:] = down
    else:
        root.fail("is neither <robot> (URDF) nor <mujoco> (MJCF)")
    tree = fused(tree)
    tree.digest = _digest(root, tree)
    return tree, left


def _digest(root: Element, tree: Tree) -> str:
    """SHA-256 of all that the elements say, without layout and comments, and of the meshes of the bodies.

    Every string stands behind its length and every element behind its numbers of attributes and children, so that
    different trees never give the same bytes.
    """
    digest = hashlib.sha256()

    def add(text: str) -> None:
        data = text.encode()
        digest.update(b"%d:" % len(data) + data)

    stack = [root]
    while stack:
        element = stack.pop()
        digest.update(b"<%d,%d>" % (len(element.attributes), len(element.children)))
        add(element.tag)
        for name, value in sorted(element.attributes.items()):
            add(name)
            add(value)
        stack += reversed(element.children)
    # Meshes of MJCF have mass; those of URDF are only drawn.
    for shape in (shape for link in tree.links for shape in link.shapes if root.tag == "mujoco"):
        for array in shape.mesh or ():
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
