"""URDF: links with inertia on joints in a tree (wiki.ros.org/urdf/XML). Metres, kilograms, radians.

A joint's origin is the frame of its child at rest; its axis stands in that frame. Joints: revolute, continuous,
prismatic, planar, fixed, floating, and spherical (not in the standard, but common).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lie.run import UserError

from chnn.formats.frames import from_rpy, from_z_axis, unit
from chnn.formats.meshes import Meshes, scaled
from chnn.formats.shapes import Mass, Shape, check_size, from_tensor
from chnn.formats.tree import WORLD, Joint, Leftover, Link, Tree
from chnn.formats.xml import Element, shortened

_KINDS = ("revolute", "continuous", "prismatic", "fixed", "floating", "planar", "spherical")
_ROBOT = ("link", "joint", "material", "transmission", "gazebo", "mujoco", "sensor", "ros2_control")
_LONGEST_NAME = 1000  # characters of a path; systems allow names of 255
BASES = ("fixed", "floating")
"""What holds the root of the tree."""


def read_urdf(root: Element, folder: Path, left: Leftover, *, base: str | None, gravity: Sequence[float]) -> Tree:
    """The robot in the element ``<robot>``.

    Args:
        root: the element.
        folder: where the file lies, for meshes.
        left: collects what is not simulated.
        base: "fixed" or "floating": how the root link is held. None is for roots that need no answer: without mass, or
            called "world".
        gravity: m/s^2; the format has none.
    """
    root.only(("name", "version"), _ROBOT)
    for child in root.all("transmission", "ros2_control"):
        left.of(child, "actuators", "drives a joint")
    for child in root.all("gazebo", "mujoco"):
        left.of(child, "extensions", "is for another program")
    for child in root.all("sensor"):
        left.of(child, "sensors", "measures")
    elements = _by_name(root, "link")
    joints = list(_by_name(root, "joint").values())
    if not elements:
        root.fail("has no <link>")
    above: dict[str, Element] = {}
    for joint in joints:
        ends = {}
        for end in ("parent", "child"):
            node = joint.one(end)
            if node is None:
                joint.fail(f"needs <{end} link=...>")
            node.only(("link",), ())
            ends[end] = node.need("link")
            if ends[end] not in elements:
                node.unknown("link", ends[end], elements)
        if ends["child"] in above:
            joint.fail(f"moves '{ends['child']}', which {above[ends['child']].where} moves too; URDF has no loops")
        above[ends["child"]] = joint
    order = _from_root(root, elements, above)
    name = order[0]
    meshes = Meshes(folder)
    first = _link(elements[name], WORLD, meshes, left)
    if base not in (None, *BASES):
        raise UserError(f"expected base 'fixed' or 'floating', got {base!r}")
    if base is None and name != "world" and first.masses:
        raise UserError(
            f"{elements[name].where} is the root and has mass, and URDF does not say whether it is held: give "
            "base='fixed' or base='floating'"
        )
    if base == "floating":
        first.joints.append(Joint("free", f"{name} in space", np.zeros(3), np.array([0.0, 0.0, 1.0])))
    place, links = {name: 0}, [first]
    for name in order[1:]:
        joint = above[name]
        parent = joint.one("parent")
        assert parent is not None
        link = _link(elements[name], place[parent.need("link")], meshes, left)
        link.position, link.rotation = _origin(joint)
        link.joints += _joints(joint, left)
        place[name] = len(links)
        links.append(link)
    return Tree(root.get("name") or "robot", links, [], np.asarray(gravity, dtype=float))


def _by_name(root: Element, tag: str) -> dict[str, Element]:
    found: dict[str, Element] = {}
    for element in root.all(tag):
        name = element.need("name")
        if name in found:
            element.fail(f"has the name of {found[name].where}; give each {tag} its own")
        found[name] = element
    return found


def _from_root(root: Element, elements: dict[str, Element], above: dict[str, Element]) -> list[str]:
    """Names of the links, parents before children."""
    roots = [name for name in elements if name not in above]
    if len(roots) != 1:
        listed = f": {', '.join(map(shortened, roots[:10]))}{' ...' * (len(roots) > 10)}" if roots else ""
        root.fail(f"needs exactly one link that no joint moves, got {len(roots)}{listed}; URDF is one tree")
    below: dict[str, list[str]] = {}
    for name, joint in above.items():
        parent = joint.one("parent")
        assert parent is not None
        below.setdefault(parent.need("link"), []).append(name)
    order = [roots[0]]
    for name in order:
        order += below.get(name, [])
    if len(order) != len(elements):
        reached = set(order)
        lost = next(name for name in elements if name not in reached)
        elements[lost].fail(f"hangs on itself: no joint leads from the root '{shortened(roots[0])}' to it")
    return order


def _origin(element: Element) -> tuple[np.ndarray, np.ndarray]:
    origin = element.one("origin")
    if origin is None:
        return np.zeros(3), np.eye(3)
    origin.only(("xyz", "rpy"), ())
    rpy = origin.numbers("rpy", 3, (0, 0, 0))
    assert rpy is not None
    return np.array(origin.place("xyz")), from_rpy(rpy)


def _link(element: Element, parent: int, meshes: Meshes, left: Leftover) -> Link:
    element.only(("name", "type"), ("inertial", "visual", "collision", "sensor", "contact", "self_collision_checking"))
    name = element.need("name")
    link = Link(name, parent, np.zeros(3), np.eye(3), where=element.where)
    inertial = element.one("inertial")
    if inertial is not None:
        mass = _inertial(inertial, name, root=parent == WORLD)
        if mass is not None:
            link.masses.append(mass)
    for visual in element.all("visual"):
        shape = _geometry(visual, meshes, left)
        if shape is not None:
            link.shapes.append(shape)
    for collision in element.all("collision"):
        left.of(collision, "contacts", f"of link '{name}' may touch others")
    for sensor in element.all("sensor"):
        left.of(sensor, "sensors", "measures")
    for node in element.all("contact", "self_collision_checking"):
        left.of(node, "contacts", f"says how link '{name}' touches others")
    return link


def _inertial(element: Element, name: str, *, root: bool) -> Mass | None:
    element.only((), ("origin", "mass", "inertia"))
    position, rotation = _origin(element)
    mass, inertia = element.one("mass"), element.one("inertia")
    if mass is None:
        element.fail(f"of link '{name}' needs <mass value=...>")
    mass.only(("value",), ())
    mass.need("value")
    value = mass.number("value", 0.0)
    if value < 0.0:
        mass.fail(f"expects a mass of at least 0 for link '{name}', got {value:g}")
    entries = ("ixx", "ixy", "ixz", "iyy", "iyz", "izz")
    tensor = np.zeros((3, 3))
    if inertia is not None:
        inertia.only(entries, ())
        xx, xy, xz, yy, yz, zz = (inertia.number(entry, 0.0) for entry in entries)
        tensor = rotation @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ rotation.T
    if value == 0.0:
        if not root and inertia is not None and np.any(tensor):  # a root without mass is held: nothing is lost
            element.fail(f"gives link '{name}' moments of inertia without mass; give it mass or remove <inertial>")
        return None
    return from_tensor(value, position, tensor)


def _joints(element: Element, left: Leftover) -> list[Joint]:
    element.only(("name", "type"), ("origin", "parent", "child", "axis", "limit", "dynamics", "mimic", "calibration",
                                    "safety_controller"))  # fmt: skip
    kind = element.choice("type", _KINDS, "missing")
    name = element.need("name")
    axis = np.array([1.0, 0.0, 0.0])
    node = element.one("axis")
    if node is not None:
        node.only(("xyz",), ())
        axis = np.array(node.numbers("xyz", 3, (1, 0, 0)))
        if kind in ("revolute", "continuous", "prismatic", "planar") and not axis.any():
            node.fail(f"of joint '{name}' expects a direction, got the zero vector")
    axis = unit(axis) if axis.any() else axis
    damping = _dynamics(element, kind, left)
    limit = element.one("limit")
    if limit is not None:
        limit.only(("lower", "upper", "effort", "velocity"), ())
        if kind in ("revolute", "prismatic"):  # without numbers they stop at 0
            left.of(limit, "limits", f"stops the joint '{name}'")
    for node in element.all("mimic"):
        left.of(node, "mimic", f"makes the joint '{name}' follow another")
    for node in element.all("safety_controller"):
        left.of(node, "actuators", f"drives the joint '{name}'")
    zero = np.zeros(3)

    def made(kind: str, axis: np.ndarray, damping: float = 0.0, suffix: str = "") -> Joint:
        return Joint(kind, name + suffix, zero, axis, damping, where=element.where)

    if kind == "fixed":
        return []
    if kind == "planar":  # moves in the plane whose normal is the axis, and turns about it
        x, y, z = from_z_axis(axis).T
        return [made("slide", x, suffix=" x"), made("slide", y, suffix=" y"), made("hinge", z)]
    return [made({"revolute": "hinge", "continuous": "hinge", "prismatic": "slide", "floating": "free",
                  "spherical": "ball"}[kind], axis, damping)]  # fmt: skip


def _dynamics(element: Element, kind: str, left: Leftover) -> float:
    node = element.one("dynamics")
    if node is None:
        return 0.0
    node.only(("damping", "friction"), ())
    if node.number("friction", 0.0) != 0.0:
        left.of(node, "friction", "has dry friction")
    damping = node.number("damping", 0.0)
    if damping < 0.0:
        node.fail(f"expects a damping of at least 0, got {damping:g}")
    if damping > 0.0 and kind in ("planar", "floating"):
        left.of(node, "damping", f"damps a {kind} joint")
        return 0.0
    return damping


def _geometry(element: Element, meshes: Meshes, left: Leftover) -> Shape | None:
    element.only(("name",), ("origin", "geometry", "material"))
    geometry = element.one("geometry")
    if geometry is None or len(geometry.children) != 1:
        element.fail("needs one <geometry> with one shape")
    geometry.only((), ("box", "cylinder", "sphere", "capsule", "mesh"))
    position, rotation = _origin(element)
    node = geometry.children[0]
    if node.tag == "mesh":
        return _mesh(node, position, rotation, meshes, left)
    node.only({"box": ("size",), "sphere": ("radius",)}.get(node.tag, ("radius", "length")), ())
    if node.tag == "box":
        size = [0.5 * side for side in node.numbers("size", 3) or []]
    else:
        size = [node.number("radius", 0.0), 0.5 * node.number("length", 0.0)]
    return Shape(node.tag, check_size(node, node.tag, size), position, rotation)


def _mesh(node: Element, position: np.ndarray, rotation: np.ndarray, meshes: Meshes, left: Leftover) -> Shape | None:
    node.only(("filename", "scale"), ())
    name = node.need("filename")
    path = _find(node, name, meshes.folder)
    if path is None or path.suffix.lower() not in (".stl", ".obj"):
        left.of(node, "meshes", f"names {name}, " + ("which is not there" if path is None else "no .stl or .obj"))
        return None
    vertices, triangles = node.while_reading(meshes.read, path)
    vertices = scaled(node, vertices, node.numbers("scale", 3, (1, 1, 1)))
    return Shape("mesh", (), position, rotation, (vertices, triangles))


def _find(node: Element, name: str, folder: Path) -> Path | None:
    """A mesh beside the file, or for package:// below the folder itself or one that holds it."""
    if len(name) > _LONGEST_NAME:
        node.fail(f"names a file by {len(name)} characters, at most {_LONGEST_NAME} are read")
    name = name.removeprefix("file://")
    if not name.startswith("package://"):
        return path if (path := folder / name).is_file() else None
    inside = name.removeprefix("package://")
    beyond = inside.partition("/")[2]
    for up in (folder, *folder.resolve().parents):
        for rest in (inside, beyond):
            if rest and (up / rest).is_file():
                return up / rest
    return None
