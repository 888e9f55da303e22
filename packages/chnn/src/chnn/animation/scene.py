"""What to draw of a system, as plain arrays: places that move with its points, and the things that stand on them.

Everything that moves hangs on *places*, affine combinations of the points: a rod, a spring, a bar between two, a dot
on one, a mesh on the places of a body's origin and axis tips. So a picture of a configuration x (n, d) is
``weights @ x + offset`` and nothing else, here as in the player of the HTML file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chnn.mechanics import Body, Description, Dipoles
from chnn.systems import System
from chnn.systems.shapes import Mesh, cuboid, lathe, sphere

PALETTE = ("#d1495b", "#2e86ab", "#edae49", "#3d9970", "#8e6c8a", "#f28f3b", "#588b8b", "#5c6bc0")
"""Colours of the bodies, one after the other."""
_MANY = 16  # point masses from which on they are knots of a rope, not bobs


@dataclass
class Scene:
    """The drawing of a system for a trajectory of the extent ``low`` to ``high``; indices are places.

    Fields:
        weights, offset: of the places, (P, n) and (P, d).
        rods: thin links (r, 2). bars: uniform beams (b, 2). springs: (s, 2).
        dots: places of point masses. radii: theirs, m. sliders: places of point masses on a rail, with its direction.
        anchors: places that are fixed in space.
        meshes: (places of a body's origin and axis tips, vertices in its axes, triangles, outwards).
        sectors: of each mesh, which triangles are lighter: a body that is round about its third axis shows its spin.
        colors: of dots, bars, sliders and meshes, by kind.
        tracks: places that leave a trail, with colours.
        magnets: position and direction of fixed ones.
        wires: polylines (k, d) that stand still: a surface, a rail.
        size: of the whole, m.
    """

    weights: np.ndarray
    offset: np.ndarray
    rods: list[tuple[int, int]] = field(default_factory=list)
    bars: list[tuple[int, int]] = field(default_factory=list)
    springs: list[tuple[int, int]] = field(default_factory=list)
    dots: list[int] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    sliders: list[tuple[int, np.ndarray]] = field(default_factory=list)
    anchors: list[int] = field(default_factory=list)
    meshes: list[tuple[list[int], np.ndarray, np.ndarray]] = field(default_factory=list)
    sectors: list[np.ndarray] = field(default_factory=list)
    colors: dict[str, list[str]] = field(default_factory=dict)
    tracks: list[tuple[int, str]] = field(default_factory=list)
    magnets: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    wires: list[np.ndarray] = field(default_factory=list)
    centre: np.ndarray = field(default_factory=lambda: np.zeros(3))
    size: float = 1.0

    @property
    def dim(self) -> int:
        """Dimension of space."""
        return self.offset.shape[1]

    def places(self, x: np.ndarray) -> np.ndarray:
        """All places (..., P, d) at positions (..., n, d)."""
        return self.weights @ x + self.offset


def scene_of(system: System, x: np.ndarray) -> Scene:
    """The scene of a system for the positions (T, n, d) of a trajectory."""
    description, drawing = system.description, system.drawing
    n, d = system.num_points, system.spatial_dim
    anchors = drawing.anchors.numpy()
    marks = np.zeros((len(drawing.marks), n))
    for mark, combination in enumerate(drawing.marks):
        for index, weight in combination:
            marks[mark, index] += weight
    weights = np.concatenate([np.eye(n), marks, np.zeros((len(anchors), n))])
    offset = np.concatenate([np.zeros((n + len(marks), d)), anchors])
    scene = Scene(weights, offset)
    scene.anchors = list(range(n + len(marks), len(weights)))

    def place(end: int) -> int:
        return end if end >= 0 else n + len(marks) - 1 - end

    color = {body.name: PALETTE[k % len(PALETTE)] for k, body in enumerate(description.bodies)}
    bar_colors, drawn = [], set()
    for a, b in ((place(a), place(b)) for a, b in drawing.rods):
        owner = _owner(description, weights[a], weights[b])
        if owner is not None and owner.dim == 1:  # both ends on one body: the body itself
            scene.bars.append((a, b))
            bar_colors.append(color[owner.name])
            drawn.add(owner.name)
        else:
            scene.rods.append((a, b))
    scene.springs = [(place(a), place(b)) for a, b in drawing.springs]

    shapes: list[tuple[Body, np.ndarray, np.ndarray]] = []
    for name, vertices, triangles in drawing.meshes:
        shapes.append((description.body(name), vertices.numpy(), triangles.numpy()))
        drawn.add(name)
    for body in description.bodies:
        if body.dim == 1 and body.name not in drawn:
            scene.bars.append(_bar(scene, body))
            bar_colors.append(color[body.name])
        elif body.dim > 1 and body.name not in drawn:
            shapes.append((body, *_shape(body, d)))
    scene.meshes = [(list(body.points), vertices, triangles) for body, vertices, triangles in shapes]
    scene.sectors = [_sectors(body, vertices, triangles) for body, vertices, triangles in shapes]

    points = [body for body in description.bodies if body.dim == 0]
    rails = _rails(description)
    bobs = [body for body in points if body.first not in rails]
    sliders = [body for body in points if body.first in rails]
    scene.dots = [body.first for body in bobs]
    scene.sliders = [(body.first, rails[body.first]) for body in sliders]
    knots = len(bobs) >= _MANY
    scene.colors = {
        "dots": ["#34495e" if knots else color[body.name] for body in bobs],
        "sliders": [color[body.name] for body in sliders],
        "bars": bar_colors,
        "meshes": [color[body.name] for body, *_ in shapes],
    }
    tracked = bobs[-1:] if knots else [body for body in description.bodies if body.first not in rails]
    scene.tracks = [(_track(scene, description, body), color[body.name]) for body in tracked]
    _fit(scene, x)
    mean = np.mean([body.inertia.mass for body in bobs]) if bobs else 1.0
    # A bob's volume goes with its mass.
    scene.radii = [
        scene.size * (0.0045 if knots else 0.032 * float(np.clip(body.inertia.mass / mean, 0.1, 4.0)) ** (1 / 3))
        for body in bobs
    ]
    for force in description.forces:
        if isinstance(force, Dipoles):
            scene.magnets += list(zip(force.positions.numpy(), force.moments.numpy(), strict=True))
    scene.wires = [*_surfaces(description, scene, x), *_rail_lines(description, scene)]
    return scene


def frames(
    z: np.ndarray, t: np.ndarray, fps: float, max_frames: int, speed: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (F, n, d) and times (F,) of a film of the states (T, 2, n, d), by cubic Hermite interpolation."""
    last = min(t[-1] - t[0], (max_frames - 1) * speed / fps)
    times = t[0] + np.arange(max(2, int(last * fps / speed + 1e-9) + 1)) * min(speed / fps, t[-1] - t[0])
    k = np.clip(np.searchsorted(t, times, side="right") - 1, 0, len(t) - 2)
    h = (t[k + 1] - t[k])[:, None, None]
    s = (times - t[k])[:, None, None] / h
    (x0, v0), (x1, v1) = (z[k, 0], z[k, 1]), (z[k + 1, 0], z[k + 1, 1])
    x = ((1 + 2 * s) * (1 - s) ** 2 * x0 + s * (1 - s) ** 2 * h * v0 + s * s * (3 - 2 * s) * x1
         + s * s * (s - 1) * h * v1)  # fmt: skip
    return x, times


def coil(a: np.ndarray, b: np.ndarray, radius: float, turns: int = 9, steps: int = 12) -> np.ndarray:
    """A helix of this radius with straight ends from a to b, (k, d); its shadow, a wave, in the plane."""
    along = b - a
    length = float(np.linalg.norm(along))
    u = along / length if length > 1e-12 else np.eye(len(a))[0]
    if len(a) == 2:
        frame = np.array([[-u[1], u[0]], [0.0, 0.0]])
    else:
        first = np.cross(u, np.eye(3)[np.argmin(np.abs(u))])
        first /= np.linalg.norm(first)
        frame = np.stack([first, np.cross(u, first)])
    s = np.linspace(0.0, 1.0, turns * steps + 1)
    turn = 2.0 * np.pi * turns * s
    winding = radius * np.stack([np.sin(turn), np.cos(turn)], -1) @ frame
    middle = a + (0.1 + 0.8 * s)[:, None] * along + winding
    return np.concatenate([[a], middle, [b]])


def magnet(position: np.ndarray, moment: np.ndarray, size: float) -> tuple[Mesh, Mesh]:
    """The north and the south half of a magnet at a place, as meshes."""
    up = moment / max(float(np.linalg.norm(moment)), 1e-300)
    side = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(up, side), up])
    halves = []
    for low, high in ((0.0, size), (-size, 0.0)):
        profile = [(0.0, low), (0.45 * size, low), (0.45 * size, high), (0.0, high)]
        vertices, triangles = lathe(profile, 16)
        halves.append((position - 0.5 * size * up + vertices @ frame, triangles))
    return halves[0], halves[1]


def _owner(description: Description, *rows: np.ndarray) -> Body | None:
    """The body that all these places lie on."""
    used = set(np.flatnonzero(np.any(rows, axis=0)).tolist())
    for body in description.bodies:
        if used and all(np.any(row) for row in rows) and used <= set(body.points):
            return body
    return None


def _bar(scene: Scene, body: Body) -> tuple[int, int]:
    """Places at the ends of a uniform rod with the mass and moment of a body of dimension 1."""
    half = (3.0 * float(np.asarray(body.inertia.moments, dtype=float).ravel()[0]) / body.inertia.mass) ** 0.5
    middle = body.inertia.centre[0] if body.inertia.centre else 0.0
    return (_add_place(scene, body, [middle - half]), _add_place(scene, body, [middle + half]))


def _add_place(scene: Scene, body: Body, coordinates: Sequence[float]) -> int:
    """A new place, at these coordinates in the axes of a body."""
    row = np.zeros((1, scene.weights.shape[1]))
    for point, weight in body.weights(coordinates).items():
        row[0, point] += weight
    scene.weights = np.concatenate([scene.weights, row])
    scene.offset = np.concatenate([scene.offset, np.zeros((1, scene.dim))])
    return len(scene.weights) - 1


def _shape(body: Body, dim: int) -> Mesh:
    """A body of dimension 2 or 3 that has no mesh, as a disk or plate, a ball or box of the same mass and moments."""
    k = body.dim
    moments = np.asarray(body.inertia.moments, dtype=float)
    moments = np.diag(moments) if moments.ndim == 1 else moments
    values, axes = np.linalg.eigh(moments / body.inertia.mass)
    if float(np.linalg.det(axes)) < 0:
        axes = axes * np.array([-1.0, *[1.0] * (k - 1)])
    centre = np.asarray(body.inertia.centre or (0.0,) * k, dtype=float)
    even = float(values.max() - values.min()) < 1e-6 * float(values.max())
    if k == 3:
        vertices, triangles = (
            sphere(np.sqrt(5.0 * values).tolist()) if even else cuboid(np.sqrt(12.0 * values).tolist())
        )
        return vertices @ axes.T + centre, triangles
    if even:
        turn = np.arange(32) * (2.0 * np.pi / 32)
        outline = 2.0 * np.sqrt(values[0]) * np.stack([np.cos(turn), np.sin(turn)], 1)
    else:
        outline = 0.5 * np.sqrt(12.0 * values) * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    sides = len(outline)
    fan = np.array([[sides, i, (i + 1) % sides] for i in range(sides)])
    outline = np.concatenate([outline, [[0.0, 0.0]]])
    # In space a plate has two faces.
    return outline @ axes.T + centre, fan if dim == 2 else np.concatenate([fan, fan[:, ::-1]])


def _sectors(body: Body, vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Every second sector of a body with two equal moments about its third axis, or of a disk."""
    light = np.zeros(len(triangles), dtype=bool)
    moments = np.asarray(body.inertia.moments, dtype=float)
    if body.dim < 2 or moments.ndim != 1 or abs(moments[0] - moments[1]) > 1e-6 * moments[0] or len(triangles) < 30:
        return light
    middle = vertices[triangles].mean(1)
    return np.floor(np.arctan2(middle[:, 1], middle[:, 0]) * (3.0 / np.pi) + 1e-9).astype(int) % 2 == 1


def _track(scene: Scene, description: Description, body: Body) -> int:
    """The place of a body that leaves a trail: a bob, where a beam ends, the far end of a body that is alone."""
    if body.dim == 1 and len(description.bodies) > 1:
        ends = [b for _, b in scene.bars if set(np.flatnonzero(scene.weights[b])) <= set(body.points)]
        return ends[0] if ends else body.first
    if body.dim == 3 and len(description.bodies) == 1 and scene.meshes:
        vertices = scene.meshes[0][1]
        fixed = scene.offset[scene.anchors[0]] if scene.anchors else None
        reference = scene.places(description.reference.numpy())
        turned = posed(reference, list(body.points), vertices)
        far = np.linalg.norm(turned - (reference[body.first] if fixed is None else fixed), axis=1)
        return _add_place(scene, body, vertices[int(far.argmax())].tolist())
    return body.first


def _fit(scene: Scene, x: np.ndarray) -> None:
    """Centre and size of all that is drawn along a trajectory."""
    places = scene.places(x)  # (T, P, d)
    tips = {k for points, *_ in scene.meshes for k in points[1:]}
    bars = {k for bar in scene.bars for k in bar}
    drawn = [k for k in range(places.shape[1]) if k not in tips or k in bars]
    every = [places[:, drawn].reshape(-1, scene.dim)] if drawn else []
    for points, vertices, _ in scene.meshes:
        every += [posed(places[f], points, vertices) for f in range(0, len(x), max(1, len(x) // 50))]
    cloud = np.concatenate(every)
    cloud = cloud[np.isfinite(cloud).all(1)]
    low, high = cloud.min(0), cloud.max(0)
    scene.centre = 0.5 * (low + high)
    extent = high - low
    scene.size = float(max(extent.max(), 0.6 * np.linalg.norm(extent), 1e-3))


def posed(places: np.ndarray, points: list[int], vertices: np.ndarray) -> np.ndarray:
    """The vertices of a mesh (V, d) where its body is; ``places`` (P, d)."""
    origin = places[points[0]]
    axes = places[points[1 : 1 + vertices.shape[1]]] - origin
    return origin + vertices @ axes


def _rails(description: Description) -> dict[int, np.ndarray]:
    """Points that a plane constraint holds to a line, with its direction."""
    constraints = description.constraints
    normals: dict[int, list[np.ndarray]] = {}
    for row in range(len(constraints.lengths)):
        normal, on = constraints.normals[row].numpy(), np.flatnonzero(constraints.A[row].numpy())
        if np.any(normal) and len(on) == 1:
            normals.setdefault(int(on[0]), []).append(normal)
    rails = {}
    for point, found in normals.items():
        if len(found) == description.spatial_dim - 1:
            rails[point] = np.array([-found[0][1], found[0][0]]) if len(found) == 1 else np.cross(found[0], found[1])
            rails[point] = rails[point] / np.linalg.norm(rails[point])
    return rails


def _rail_lines(description: Description, scene: Scene) -> list[np.ndarray]:
    lines = []
    for point, direction in _rails(description).items():
        through = description.reference[point].numpy()
        middle = through + ((scene.centre - through) @ direction) * direction
        lines.append(np.stack([middle - 0.7 * scene.size * direction, middle + 0.7 * scene.size * direction]))
    return lines


def _surfaces(description: Description, scene: Scene, x: np.ndarray) -> list[np.ndarray]:
    """Wires on every surface that a place is held to: where it meets planes across the axes."""
    if scene.dim != 3:
        return []
    constraints, wires = description.constraints, []
    for function, rows in constraints.surfaces:
        for row in rows.tolist():
            A, b = constraints.A[row].numpy(), constraints.b[row].numpy()  # noqa: N806
            if abs(A.sum() - 1.0) > 1e-9:
                continue  # a surface in relative coordinates stands nowhere
            path = np.einsum("n,tnd->td", A, x)
            path = path[np.isfinite(path).all(1)]
            wires += _slices(function, b, path)
    if wires:
        cloud = np.concatenate([*wires, scene.places(x[:1])[0]])
        scene.centre, extent = 0.5 * (cloud.min(0) + cloud.max(0)), np.ptp(cloud, axis=0)
        scene.size = float(max(extent.max(), 0.6 * np.linalg.norm(extent)))
    return wires


def _slices(function: Any, b: np.ndarray, path: np.ndarray, count: int = 11, fine: int = 41) -> list[np.ndarray]:
    import torch
    from contourpy import contour_generator

    reach = 1.1 * float(np.abs(path[:, :2]).max()) + 0.1
    low = np.array([-reach, -reach, path[:, 2].min() - 0.6 * reach])
    high = np.array([reach, reach, path[:, 2].max() + 0.3 * reach])
    wires = []
    for axis in (0, 1):
        first, second = [k for k in range(3) if k != axis]
        p, q = np.linspace(low[first], high[first], fine), np.linspace(low[second], high[second], fine)
        for place in np.linspace(low[axis], high[axis], count):
            grid = np.empty((fine, fine, 3))
            grid[..., axis] = place
            grid[..., first], grid[..., second] = p[None, :], q[:, None]
            with torch.no_grad():
                values = function(torch.from_numpy(grid - b)).numpy()
            for line in contour_generator(p, q, values).lines(0.0):
                wire = np.empty((len(line), 3))
                wire[:, axis] = place
                wire[:, [first, second]] = line
                wires.append(wire)
    return wires
