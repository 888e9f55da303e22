"""MJCF, the XML of MuJoCo: nested bodies with joints and geoms (mujoco.readthedocs.io, "XML Reference").

Read are bodies, frames, joints, geoms, meshes, default classes, the compiler's conventions, gravity, connections and
welds. What only draws, or only steers MuJoCo's own solver, is passed over. The rest is refused by name and line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lie.run import UserError

from chnn.formats.frames import about, from_euler, from_quaternion, from_xy_axes, from_z_axis, unit
from chnn.formats.meshes import Meshes, scaled
from chnn.formats.shapes import Mass, Shape, check_size, from_tensor, solid, together
from chnn.formats.tree import WORLD, Joint, Leftover, Link, Loop, Tree
from chnn.formats.xml import Budget, Element, read_xml, shortened

_SECTIONS = ("compiler", "option", "size", "statistic", "visual", "asset", "default", "custom", "worldbody", "contact",
             "equality", "tendon", "actuator", "sensor", "keyframe", "deformable", "extension", "include")  # fmt: skip
_TURNS = ("quat", "axisangle", "euler", "xyaxes", "zaxis")
_LOOKS = ("material", "rgba", "group", "user", "hfield", "fitscale", "fluidshape", "fluidcoef", "plugin")
_SOLVER = ("solref", "solimp", "solmix", "solreflimit", "solimplimit", "solreffriction", "solimpfriction", "margin",
           "gap", "priority", "condim", "friction")  # fmt: skip
_GEOM = ("name", "class", "type", "contype", "conaffinity", "size", "mass", "density", "shellinertia", "fromto", "pos",
         "mesh", *_TURNS, *_LOOKS, *_SOLVER)  # fmt: skip
_JOINT = ("name", "class", "type", "pos", "axis", "springdamper", "stiffness", "range", "limited", "armature",
          "damping", "frictionloss", "ref", "springref", "actuatorfrcrange", "actuatorfrclimited", "actuatorgravcomp",
          "group", "user", *_SOLVER)  # fmt: skip
_BODY = ("name", "childclass", "pos", *_TURNS, "mocap", "gravcomp", "user", "sleep")
_INSIDE = ("body", "frame", "geom", "joint", "freejoint", "inertial", "site", "camera", "light", "include")
_OPTION_OF_THE_SOLVER = (
    "timestep", "impratio", "o_margin", "o_solref", "o_solimp", "o_friction", "integrator", "cone", "jacobian",
    "solver", "iterations", "tolerance", "ls_iterations", "ls_tolerance", "noslip_iterations", "noslip_tolerance",
    "ccd_iterations", "ccd_tolerance", "sdf_iterations", "sdf_initpoints", "actuatorgroupdisable", "magnetic",
    "apirate", "sleep_tolerance",
)  # fmt: skip
_FLAGS_READ = ("constraint", "equality", "frictionloss", "limit", "contact", "passive", "spring", "damper", "gravity",
               "actuation")  # fmt: skip
_OFF = "disable"
_DEEPEST = 200  # elements within one another, with those that are included
_MOST_DEFAULTS = 200  # attributes of an element by its class; the format defines fewer than 50
_MOST_CLASSES = 1000
_MOST_GEOMS = 10_000  # every pair may touch; the largest public models have some hundreds
_MOST_KINDS = 2**31  # contype and conaffinity are 32 bits


@dataclass
class _Settings:
    """The attributes of ``<compiler>`` and ``<option>`` that say what the numbers mean."""

    degree: bool = True
    euler: str = "xyz"
    from_geoms: str = "auto"
    groups: tuple[float, float] = (0.0, 5.0)
    balance: bool = False
    least_mass: float = 0.0
    least_inertia: float = 0.0
    autolimits: bool = True
    folder: Path = Path()
    strip: bool = False
    flags: dict[str, str] = field(default_factory=dict)

    def off(self, *names: str) -> bool:
        return any(self.flags.get(name) == _OFF for name in names)


@dataclass
class _Class:
    """A class of defaults.

    Fields:
        above: the class around it.
        attributes: by tag, those of its elements in their order.
        collected: by tag, those of the classes around it and its own over them, where they were asked for.
    """

    above: _Class | None
    attributes: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    collected: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, element: Element) -> None:
        self.attributes.setdefault(element.tag, []).append(element.attributes)


@dataclass
class _Geom:
    """What contacts need to know of a geom."""

    where: str
    link: int
    kinds: int
    others: int


class _Reader:
    """Reads one file; the parts of the tree collect in its lists."""

    def __init__(self, root: Element, folder: Path, left: Leftover) -> None:
        self.root, self.left = root, left
        self.settings = _Settings(folder=folder)
        self.classes: dict[str, _Class] = {}
        self.num_classes = 0
        self.main = "main"
        self.meshes: dict[str, Element] = {}
        self.links: list[Link] = []
        self.shapes: list[Shape] = []
        self.geoms: list[_Geom] = []
        self.sites: dict[str, tuple[int, np.ndarray]] = {}
        self.names: dict[str, int] = {"world": WORLD}
        self.loaded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.files = Meshes(folder)

    def read(self) -> Tree:
        root, left = self.root, self.left
        root.only(("model",), _SECTIONS)
        gravity = np.array([0.0, 0.0, -9.81])
        for section in root.all("compiler"):
            self.compiler(section)
        for section in root.all("option"):
            gravity = self.option(section, gravity)
        for section in root.all("default"):
            self.default(section, None)
        for section in root.all("asset"):
            self.asset(section)
        for section in root.all("worldbody"):
            section.only((), _INSIDE)
            self.inside(section, WORLD, self.main, np.zeros(3), np.eye(3), None)
        loops: list[Loop] = []
        for section in root.all("equality"):
            loops += self.equality(section)
        for tag, feature, message in (
            ("tendon", "tendons", "pull"),
            ("sensor", "sensors", "measures"),
            ("deformable", "extensions", "bends"),
            ("extension", "extensions", "adds"),
        ):
            for section in root.all(tag):
                for child in section.children:
                    left.of(child, feature, message)
        for section in root.all("actuator"):
            for child in section.children if not self.settings.off("actuation") else ():
                left.of(child, "actuators", "drives a joint")
        self.contacts()
        if self.settings.off("gravity"):
            gravity = np.zeros(3)
        return Tree(root.get("model") or "robot", self.links, loops, gravity, self.shapes)

    # --- sections ---

    def compiler(self, element: Element) -> None:
        passed = (
            "discardvisual",
            "usethread",
            "fusestatic",
            "alignfree",
            "inertiagrouprange",
            "saveinertial",
            "texturedir",
            "exactmeshinertia",
            "fitaabb",
            "conflict",
        )
        used = (
            "autolimits",
            "boundmass",
            "boundinertia",
            "settotalmass",
            "balanceinertia",
            "strippath",
            "coordinate",
            "angle",
            "eulerseq",
            "meshdir",
            "assetdir",
            "inertiafromgeom",
        )
        element.only((*used, *passed), ("lengthrange",))
        settings = self.settings
        if element.choice("coordinate", ("local", "global"), "local") == "global":
            element.fail('has coordinate="global", which MuJoCo gave up in 2.3.4; save the model with an older version')
        if element.number("settotalmass", -1.0) > 0.0:
            element.fail("has settotalmass=, which is not read; write the masses that it gives")
        settings.degree = element.choice("angle", ("degree", "radian"), "degree" if settings.degree else "radian") == (
            "degree"
        )
        settings.euler = element.get("eulerseq", settings.euler) or ""
        if len(settings.euler) != 3 or set(settings.euler.lower()) - set("xyz"):
            element.fail(f'expects three letters out of xyzXYZ in eulerseq=, got "{settings.euler}"')
        settings.from_geoms = element.choice("inertiafromgeom", ("auto", "true", "false"), settings.from_geoms)
        low, high = element.numbers("inertiagrouprange", 2, settings.groups) or settings.groups
        settings.groups = (low, high)
        settings.balance = element.flag("balanceinertia", settings.balance)
        settings.least_mass = element.number("boundmass", settings.least_mass)
        settings.least_inertia = element.number("boundinertia", settings.least_inertia)
        settings.autolimits = element.flag("autolimits", settings.autolimits)
        settings.strip = element.flag("strippath", settings.strip)
        for name in ("assetdir", "meshdir"):
            if (folder := element.get(name)) is not None:
                settings.folder = settings.folder / folder

    def option(self, element: Element, gravity: np.ndarray) -> np.ndarray:
        element.only(("gravity", "wind", "density", "viscosity", *_OPTION_OF_THE_SOLVER), ("flag",))
        if element.number("density", 0.0) != 0.0 or element.number("viscosity", 0.0) != 0.0:
            self.left.of(element, "fluid", "puts the bodies into a medium")
        for flag in element.all("flag"):
            self.settings.flags.update(flag.attributes)
        return np.array(element.numbers("gravity", 3, gravity.tolist()))

    def default(self, element: Element, above: str | None) -> None:
        """A class of defaults: those of the class around it, and its own over them."""
        name = element.get("class") or ("main" if above is None else None)
        if name is None:
            element.fail("needs the attribute class=")
        if above is None:
            self.main = name
        # A section that comes again continues its class; classes within the first one keep what they had from it.
        own = _Class(self.classes.get(name if above is None else above))
        self.num_classes += 1
        if self.num_classes > _MOST_CLASSES:
            element.fail(f"is one of more than {_MOST_CLASSES} classes; simplify the model")
        for child in element.children:
            if child.tag != "default":
                own.add(child)
        self.classes[name] = own
        for child in element.all("default"):
            self.default(child, name)

    def asset(self, element: Element) -> None:
        element.only((), ("mesh", "material", "texture", "skin", "hfield", "model"))
        for mesh in element.all("mesh"):
            full = self.with_defaults(mesh, self.main)
            name = full.get("name") or Path(full.get("file") or "").stem
            if not name:
                mesh.fail("needs the attribute name= or file=")
            self.meshes[name] = full

    def with_defaults(self, element: Element, around: str) -> Element:
        """The element with what its class gives it."""
        name = element.get("class") or around
        if name not in self.classes and name != "main":
            element.unknown("class", name, self.classes)
        given = self.defaults(name, element)
        return Element(element.tag, _over(given, element.attributes), element.file, element.line, element.children)

    def defaults(self, name: str, element: Element) -> dict[str, str]:
        """What a class and those around it give to elements of this tag; collected once for each class and tag."""
        line: list[_Class] = []
        own = self.classes.get(name)
        while own is not None and element.tag not in own.collected:
            line.append(own)
            own = own.above
        given = {} if own is None else own.collected[element.tag]
        for each in reversed(line):
            for attributes in each.attributes.get(element.tag, ()):
                given = _over(given, attributes)
            if len(given) > _MOST_DEFAULTS:
                element.fail(f"has {len(given)} attributes by its class '{shortened(name)}', at most {_MOST_DEFAULTS} "
                             "are read")  # fmt: skip
            each.collected[element.tag] = given
        return given

    # --- bodies ---

    def turn(self, element: Element) -> np.ndarray:
        """The orientation of an element's frame in the one around it."""
        given = [name for name in _TURNS if name in element.attributes]
        alternatives = [name for name in given if name != "quat"]
        if len(alternatives) > 1:
            element.fail(f"turns by {' and by '.join(alternatives)}; keep one")
        if not given:
            return np.eye(3)
        name = (alternatives or given)[0]
        values = element.numbers(name, {"quat": 4, "axisangle": 4, "euler": 3, "xyaxes": 6, "zaxis": 3}[name])
        assert values is not None
        unit = np.pi / 180.0 if self.settings.degree else 1.0
        long = {"quat": values, "axisangle": values[:3], "zaxis": values, "xyaxes": np.cross(values[:3], values[3:])
                if name == "xyaxes" else values, "euler": [1.0]}[name]  # fmt: skip
        if not np.any(long):
            element.fail(f'expects directions in {name}=, got "{element.get(name)}"')
        if name == "quat":
            return from_quaternion(values)
        if name == "axisangle":
            return about(values[:3], unit * values[3])
        if name == "euler":
            return from_euler([unit * angle for angle in values], self.settings.euler)
        return from_xy_axes(values) if name == "xyaxes" else from_z_axis(values)

    def frame(self, element: Element) -> tuple[np.ndarray, np.ndarray]:
        """Position and orientation of an element in the frame around it."""
        return np.array(element.place("pos")), self.turn(element)

    def inside(
        self, element: Element, index: int, around: str, position: np.ndarray, rotation: np.ndarray,
        owner: Link | None,
    ) -> tuple[list[tuple[Mass, int]], Mass | None]:  # fmt: skip
        """Read what stands in a body or frame at ``position`` and ``rotation`` of link ``index``.

        Gives the masses of its geoms with their groups, and its own inertia where it is written.
        """
        masses: list[tuple[Mass, int]] = []
        written: Mass | None = None
        for child in element.children:
            if child.tag == "body":
                self.body(child, index, around, position, rotation)
            elif child.tag == "frame":
                child.only(("name", "childclass", "pos", *_TURNS), _INSIDE)
                place, turn = self.frame(child)
                inner = self.inside(child, index, child.get("childclass") or around, position + rotation @ place,
                                    rotation @ turn, owner)  # fmt: skip
                masses += inner[0]
                written = inner[1] or written
            elif child.tag == "geom":
                mass = self.geom(self.with_defaults(child, around), index, position, rotation, owner)
                if mass is not None:
                    masses.append(mass)
            elif child.tag in ("joint", "freejoint"):
                if owner is None:
                    child.fail("stands in the world, which does not move; put it into a <body>")
                self.joint(child, around, position, rotation, owner)
            elif child.tag == "inertial":
                if owner is None:
                    child.fail("stands in the world, which has no inertia; put it into a <body>")
                written = self.inertial(child, position, rotation)
            elif child.tag == "site" and child.get("name"):
                full = self.with_defaults(child, around)
                place = np.array(full.place("pos"))
                self.sites[full.need("name")] = (index, position + rotation @ place)
        return masses, written

    def body(self, element: Element, parent: int, around: str, position: np.ndarray, rotation: np.ndarray) -> None:
        element.only(_BODY, _INSIDE)
        if element.flag("mocap", False):
            element.fail('is moved from outside (mocap); remove it, or fix it with mocap="false"')
        if element.number("gravcomp", 0.0) != 0.0:
            self.left.of(element, "gravcomp", "is held against gravity")
        index = len(self.links)
        name = element.get("name") or f"body {index}"
        if name in self.names:
            element.fail(f"has the name of another body; give '{shortened(name)}' once")
        self.names[name] = index
        place, turn = self.frame(element)
        link = Link(name, parent, position + rotation @ place, rotation @ turn, where=element.where)
        self.links.append(link)
        inner = element.get("childclass") or around
        if inner not in self.classes and inner != "main":
            element.unknown("childclass", inner, self.classes)
        masses, written = self.inside(element, index, inner, np.zeros(3), np.eye(3), link)
        low, high = self.settings.groups
        from_geoms = together([mass for mass, group in masses if low <= group <= high])
        wanted = {"auto": written or from_geoms, "true": from_geoms, "false": written}[self.settings.from_geoms]
        if wanted is not None:
            link.masses.append(self.bounded(wanted))

    def bounded(self, mass: Mass) -> Mass:
        """A mass after the compiler's balanceinertia, boundmass and boundinertia."""
        settings = self.settings
        if not (settings.balance or settings.least_mass > 0.0 or settings.least_inertia > 0.0):
            return mass
        tensor = np.trace(mass.moments) * np.eye(3) - mass.moments
        values, axes = np.linalg.eigh(tensor)
        if settings.balance and values[0] + values[1] < values[2]:
            values[:] = values.mean()
        values = np.maximum(values, settings.least_inertia)
        return from_tensor(max(mass.mass, settings.least_mass), mass.centre, (axes * values) @ axes.T)

    def inertial(self, element: Element, position: np.ndarray, rotation: np.ndarray) -> Mass:
        element.only(("pos", "mass", "diaginertia", "fullinertia", *_TURNS), ())
        element.need("mass")
        place, turn = self.frame(element)
        mass = element.number("mass", 0.0)
        if mass < 0.0:
            element.fail(f"expects a mass of at least 0, got {mass:g}")
        full, diagonal = element.numbers("fullinertia", 6), element.numbers("diaginertia", 3)
        if full is not None and diagonal is not None:
            element.fail("has diaginertia= and fullinertia=; keep one")
        if full is not None:
            xx, yy, zz, xy, xz, yz = full
            tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        elif diagonal is not None:
            tensor = np.diag(diagonal)
        else:
            element.fail("needs diaginertia= or fullinertia=")
        return from_tensor(mass, place, turn @ tensor @ turn.T).moved(position, rotation)

    def joint(self, element: Element, around: str, position: np.ndarray, rotation: np.ndarray, owner: Link) -> None:
        if element.tag == "freejoint":
            element.only(("name", "group", "align"), ())
            full, kind = element, "free"
        else:
            full = self.with_defaults(element, around)
            full.only(_JOINT, ())
            kind = full.choice("type", ("hinge", "ball", "slide", "free"), "hinge")
        name = full.get("name") or f"{owner.name} {kind}" + (f" {len(owner.joints) + 1}" if owner.joints else "")
        if kind == "free" and owner.parent != WORLD:
            full.fail("is free, but its body stands in another; move the body into <worldbody>")
        axis = np.array(full.numbers("axis", 3, (0, 0, 1)))
        if not axis.any():
            full.fail("expects a direction in axis=, got the zero vector")
        axis = rotation @ unit(axis)
        anchor = position + rotation @ np.array(full.place("pos"))
        if kind == "free":
            anchor = np.zeros(3)
        damping, stiffness, rest = self.passive(full, kind)
        owner.joints.append(Joint(kind, name, anchor, axis / np.linalg.norm(axis), damping, stiffness, rest,
                                  full.where))  # fmt: skip

    def passive(self, element: Element, kind: str) -> tuple[float, float, float]:
        """Damping, stiffness and rest of a joint's spring; notes what is left out."""
        settings, left = self.settings, self.left
        limited = element.choice("limited", ("true", "false", "auto"), "auto")
        given = element.numbers("range", 2) is not None and settings.autolimits
        if (limited == "true" or (limited == "auto" and given)) and not settings.off("limit", "constraint"):
            left.of(element, "limits", "stops the joint")
        if element.number("frictionloss", 0.0) != 0.0 and not settings.off("frictionloss", "constraint"):
            left.of(element, "friction", "has dry friction")
        if element.number("armature", 0.0) != 0.0:
            left.of(element, "armature", "has the inertia of a rotor")
        if element.numbers("springdamper", 2, (0, 0)) != [0.0, 0.0]:
            element.fail("has springdamper=, which is not read; write stiffness= and damping=")
        damping, stiffness = element.number("damping", 0.0), element.number("stiffness", 0.0)
        if damping < 0.0 or stiffness < 0.0:
            element.fail(f"expects damping and stiffness of at least 0, got {damping:g} and {stiffness:g}")
        damping = 0.0 if settings.off("passive", "damper") else damping
        stiffness = 0.0 if settings.off("passive", "spring") else stiffness
        if kind == "free" and damping > 0.0:
            left.of(element, "damping", "damps a free body")
            damping = 0.0
        if kind in ("free", "ball") and stiffness > 0.0:
            left.of(element, "springs", f"has a spring on a {kind} joint")
            stiffness = 0.0
        unit = np.pi / 180.0 if settings.degree and kind == "hinge" else 1.0
        return damping, stiffness, unit * (element.number("springref", 0.0) - element.number("ref", 0.0))

    # --- geoms ---

    def geom(
        self, element: Element, index: int, position: np.ndarray, rotation: np.ndarray, owner: Link | None
    ) -> tuple[Mass, int] | None:
        """Keep a geom for drawing and contacts; gives its mass and group."""
        element.only(_GEOM, ("plugin",))
        kind = element.choice("type", ("plane", "hfield", "sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh",
                                       "sdf"), "sphere")  # fmt: skip
        kinds, others = int(element.number("contype", 1)), int(element.number("conaffinity", 1))
        if not (0 <= kinds < _MOST_KINDS and 0 <= others < _MOST_KINDS):
            element.fail(f"expects contype= and conaffinity= from 0 to 2^31 - 1, got {kinds} and {others}")
        if len(self.geoms) == _MOST_GEOMS:
            element.fail(f"is one of more than {_MOST_GEOMS} geoms; simplify the model")
        self.geoms.append(_Geom(element.where, index, kinds, others))
        if kind in ("plane", "hfield", "sdf"):
            if owner is not None and kind != "plane":
                element.fail(f"is a {kind}, which has no mass that can be read; give the body <inertial> and a box")
            return None
        place, turn = self.frame(element)
        shape = self.shape(element, kind, place, turn)
        moved = shape.moved(position, rotation)
        (self.shapes if owner is None else owner.shapes).append(moved)
        if owner is None:
            return None
        if element.flag("shellinertia", False):
            element.fail("is hollow (shellinertia), which is not read; give the body <inertial>")
        mass, density = element.numbers("mass", 1), element.number("density", 1000.0)
        if density < 0.0 or (mass is not None and mass[0] < 0.0):
            element.fail("expects a mass or density of at least 0")
        if (mass is not None and mass[0] == 0.0) or (mass is None and density == 0.0):
            return None
        try:
            found = solid(moved, mass=None if mass is None else mass[0], density=density)
        except UserError as error:
            element.fail(f"{error}; or give the body <inertial>")
        return found, int(element.number("group", 0))

    def shape(self, element: Element, kind: str, place: np.ndarray, turn: np.ndarray) -> Shape:
        if kind == "mesh":
            name = element.need("mesh")
            mesh = self.mesh(element, name)
            element.while_reading(lambda _: self.files.count(len(mesh[1])), Path())
            return Shape("mesh", (), place, turn, mesh)
        if element.get("mesh"):
            element.fail('fits a primitive to a mesh, which is not read; write its size=, or type="mesh"')
        size = list(element.numbers("size", default=()) or [])
        if kind in ("capsule", "cylinder", "box", "ellipsoid") and (ends := element.place("fromto", None, ends=2)):
            a, b = np.array(ends[:3]), np.array(ends[3:])
            half = 0.5 * float(np.linalg.norm(b - a))
            if not half > 0.0:
                element.fail("expects two different ends in fromto=")
            place, turn = 0.5 * (a + b), from_z_axis(b - a)
            size = [*size[:1], half] if kind in ("capsule", "cylinder") else [*size[:1], *size[:1], half]
        return Shape(kind, check_size(element, kind, size), place, turn)

    def mesh(self, geom: Element, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Vertices and triangles of an asset, in the frame in which they are written."""
        if name in self.loaded:
            return self.loaded[name]
        if name not in self.meshes:
            geom.unknown("mesh", name, self.meshes or ["none"])
        asset = self.meshes[name]
        asset.only(("name", "class", "file", "content_type", "scale", "vertex", "face", "refpos", "refquat", "inertia",
                    "smoothnormal", "maxhullvert", "normal", "texcoord", "facetexcoord", "facenormal", "material",
                    "octree_maxdepth"), ())  # fmt: skip
        if asset.get("inertia") == "shell":
            asset.fail('has inertia="shell", which is not read; give the body <inertial>')
        if (file := asset.get("file")) is not None:
            path = self.settings.folder / (Path(file).name if self.settings.strip else file)
            vertices, triangles = asset.while_reading(self.files.read, path)
        else:
            points, faces = asset.numbers("vertex"), asset.numbers("face")
            if points is None or faces is None or len(points) % 3 or len(faces) % 3:
                asset.fail("needs file=, or vertex= and face= with three numbers each")
            vertices, triangles = np.reshape(points, (-1, 3)), np.reshape(faces, (-1, 3)).astype(int)
            if triangles.min() < 0 or triangles.max() >= len(vertices):
                asset.fail(f"names vertices in face= that are not among the {len(vertices)} of vertex=")
        offset = np.array(asset.place("refpos"))
        quaternion = asset.numbers("refquat", 4, (1, 0, 0, 0)) or []
        if not any(quaternion):
            asset.fail(f'expects a direction in refquat=, got "{asset.get("refquat")}"')
        scale = np.array(asset.numbers("scale", 3, (1, 1, 1)))
        vertices = scaled(asset, (vertices - offset) @ from_quaternion(quaternion), scale)
        if scale.prod() < 0.0:
            triangles = triangles[:, ::-1]
        self.loaded[name] = (vertices, triangles)
        return self.loaded[name]

    # --- what holds or touches ---

    def equality(self, element: Element) -> list[Loop]:
        if self.settings.off("equality", "constraint"):
            return []
        loops = []
        for child in element.children:
            full = self.with_defaults(child, self.main)
            if not full.flag("active", True):
                continue
            if full.tag not in ("connect", "weld"):
                self.left.of(full, "equality", "ties coordinates")
                continue
            name = full.get("name") or f"{full.tag} in line {full.line}"
            other = None
            if full.get("site1") is not None:
                if full.tag == "weld":
                    full.fail("welds sites, which is not read; weld body1= and body2=")
                (a, anchor), (b, other) = (self.site(full, end) for end in ("site1", "site2"))
            else:
                full.need("body1")
                a, b = (self.named(full, full.get(end) or "world") for end in ("body1", "body2"))
                if full.tag == "connect":
                    full.need("anchor")
                if full.numbers("relpose", 7, (0, 0, 0, 0, 0, 0, 0)) not in ([0.0] * 7, [0.0, 1.0] + [0.0] * 5):
                    full.fail("has relpose=, which is not read; weld the bodies as they stand in the file")
                anchor = np.array(full.place("anchor"))
            loops.append(Loop(full.tag, name, a, b, anchor, full.where, other))
        return loops

    def named(self, element: Element, name: str) -> int:
        if name not in self.names:
            element.unknown("body", name, self.names)
        return self.names[name]

    def site(self, element: Element, end: str) -> tuple[int, np.ndarray]:
        name = element.need(end)
        if name not in self.sites:
            element.unknown("site", name, self.sites)
        return self.sites[name]

    def contacts(self) -> None:
        """Note pairs of geoms that MuJoCo would let touch."""
        if self.settings.off("contact", "constraint"):
            return
        excluded: set[frozenset[int]] = set()
        for section in self.root.all("contact"):
            for child in section.children:
                if child.tag == "exclude":
                    ends = [self.named(child, child.need(end)) for end in ("body1", "body2")]
                    excluded.add(frozenset(map(self.held_by, ends)))
                else:
                    self.left.of(child, "contacts", "lets two geoms touch")
        held = [self.held_by(geom.link) for geom in self.geoms]
        links = np.array(held, dtype=int)
        above = np.array([self.above(link) for link in held], dtype=int)
        kinds = np.array([geom.kinds for geom in self.geoms], dtype=np.int64)
        others = np.array([geom.others for geom in self.geoms], dtype=np.int64)
        partners: dict[int, list[int]] = {}
        for pair in excluded:
            for a in pair:
                partners.setdefault(a, []).extend(pair - {a})
        for i, a in enumerate(held):
            b = links[:i]
            touch = (b != a) & ((kinds[i] & others[:i] | kinds[:i] & others[i]) != 0)
            if a != WORLD:  # a body and its parent never touch
                touch &= (b == WORLD) | ((b != above[i]) & (above[:i] != a))
            touch &= ~np.isin(b, partners.get(a, []))
            pairs = np.flatnonzero(touch)
            if len(pairs):
                one, other = self.geoms[i], self.geoms[int(pairs[0])]
                self.left.note("contacts", one.where, f"may touch {other.where}", len(pairs))

    def held_by(self, index: int) -> int:
        """The moving link to which a link is welded."""
        while index != WORLD and not self.links[index].joints:
            index = self.links[index].parent
        return index

    def above(self, index: int) -> int:
        return WORLD if index == WORLD else self.held_by(self.links[index].parent)


def _over(defaults: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """Own attributes over the defaults; an orientation replaces one that is written in another way."""
    if any(name in own for name in _TURNS):
        defaults = {name: value for name, value in defaults.items() if name not in _TURNS}
    return {**defaults, **own}


def read_mjcf(root: Element, folder: Path, left: Leftover) -> Tree:
    """The robot in the element ``<mujoco>`` after `included`; ``folder`` is where its file lies."""
    return _Reader(root, folder, left).read()


def included(element: Element, folder: Path, seen: tuple[str, ...], budget: Budget, depth: int = 1) -> Element:
    """The element of a file with the contents of those it includes, named from the main file's folder.

    Args:
        element: of the file.
        folder: of the main file.
        seen: the files that are being read.
        budget: what those that are included may still take.
        depth: of the element.

    Raises:
        UserError: for a file that includes itself, lies outside the folder or cannot be read, and beyond the bounds.
    """
    if depth > _DEEPEST:
        element.fail(f"lies deeper than {_DEEPEST} elements, with those that are included; flatten the file")
    children: list[Element] = []
    for child in element.children:
        if child.tag != "include":
            children.append(included(child, folder, seen, budget, depth + 1))
            continue
        child.only(("file",), ())
        name = child.need("file")
        if name in seen:
            child.fail(f"includes {shortened(name)}, which is being read already")
        try:
            inside = (folder / name).resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError) as error:  # a name that is too long, or a loop of links
            child.fail(f"includes {shortened(name)}, which cannot be read: {error.__class__.__name__}")
        if not inside:
            child.fail(f"includes {shortened(name)} from outside the folder of the model; put the file there")
        try:
            content = read_xml(folder / name, budget)
        except UserError as error:
            raise UserError(f"{child.where} {error}") from None
        children += included(content, folder, (*seen, name), budget, depth).children
    return Element(element.tag, element.attributes, element.file, element.line, children)
