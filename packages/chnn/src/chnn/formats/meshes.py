"""Triangle meshes from STL (binary and text) and OBJ files: vertices (V, 3), equal ones merged, triangles (F, 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lie.run import UserError, regular_file

from chnn.formats.xml import FARTHEST, LARGEST_NUMBER, Element, shortened

_LARGEST = 64 * 2**20  # bytes of a file; a million triangles of a binary STL take 50
_LARGEST_ALL = 256 * 2**20  # bytes of all files of a robot
_MOST_TRIANGLES = 2_000_000  # of a robot, a mesh that is drawn twice counted twice; each takes about 100 bytes
_VERTEX = re.compile(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)


class Meshes:
    """The meshes of one robot: each file is read once, and all together are bounded.

    Args:
        folder: where the robot's file lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self._bytes = self._triangles = 0

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """What `read_mesh` gives.

        Raises:
            UserError: as there, and where all meshes together are too large.
        """
        if path not in self._read:
            self._bytes += _size(path)
            if self._bytes > _LARGEST_ALL:
                raise UserError(f"the meshes have more than {_LARGEST_ALL} bytes with {path.name}; simplify them")
            self._read[path] = read_mesh(path)
        self.count(len(self._read[path][1]))
        return self._read[path]

    def count(self, triangles: int) -> None:
        """Add to the number of triangles that are drawn.

        Raises:
            UserError: for too many.
        """
        self._triangles += triangles
        if self._triangles > _MOST_TRIANGLES:
            raise UserError(f"the meshes have more than {_MOST_TRIANGLES} triangles in all; simplify them")


def scaled(element: Element, vertices: np.ndarray, scale: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """Vertices times the scale that an element gives.

    Raises:
        UserError: for vertices farther than `FARTHEST`; names the element.
    """
    vertices = vertices * np.asarray(scale)
    if np.abs(vertices).max() > FARTHEST:
        element.fail(f"has vertices at {np.abs(vertices).max():.3g} m, at most {FARTHEST:g} can be; correct scale=")
    return vertices


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of an STL or OBJ file.

    Raises:
        UserError: for a file that is absent, too large, of another format, or broken; names it.
    """
    if path.suffix.lower() not in (".stl", ".obj"):
        raise UserError(f"cannot read the mesh {path.name}: expected .stl or .obj; convert it")
    try:
        if _size(path) > _LARGEST:
            raise UserError(f"the mesh {path.name} has more than {_LARGEST} bytes; simplify it")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the mesh {path}: {error.strerror or error}") from None
    try:
        vertices, triangles = _obj(data) if path.suffix.lower() == ".obj" else _stl(data)
    except (ValueError, IndexError) as error:
        raise UserError(f"the mesh {path.name} is broken: {shortened(str(error))}") from None
    if len(triangles) == 0:
        raise UserError(f"the mesh {path.name} has no triangles")
    if not np.isfinite(vertices).all():
        raise UserError(f"the mesh {path.name} has vertices that are NaN or infinite")
    if np.abs(vertices).max() > LARGEST_NUMBER:
        raise UserError(f"the mesh {path.name} has coordinates beyond {LARGEST_NUMBER:g}")
    merged, places = np.unique(vertices, axis=0, return_inverse=True)
    triangles = places.reshape(-1)[triangles]
    distinct = (np.diff(np.sort(triangles, axis=1), axis=1) > 0).all(1)  # slivers within one point bound nothing
    return merged, triangles[distinct]


def _size(path: Path) -> int:
    """Bytes of a mesh file, which is no device and no folder."""
    try:
        return regular_file(path).stat().st_size
    except UserError as error:
        raise UserError(f"cannot read the mesh: {error}") from None


def _stl(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        facets = np.frombuffer(data, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")]),
                               count, 84)  # fmt: skip
        corners = facets["corners"].astype(float).reshape(-1, 3)
    else:
        if data[:1000].split()[:1] not in ([b"solid"], [b"SOLID"]):
            raise ValueError("neither a binary STL of the length it declares nor a text that begins with 'solid'")
        if len(_VERTEX.findall(data)) != len(re.findall(rb"\bvertex\b", data, re.IGNORECASE)):
            raise ValueError("a vertex has fewer than three coordinates")
        numbers = (float(number) for match in _VERTEX.finditer(data) for number in match.groups())
        corners = np.fromiter(numbers, float).reshape(-1, 3)
        if len(corners) % 3:
            raise ValueError(f"{len(corners)} vertices, which is no multiple of 3")
    return corners, np.arange(len(corners)).reshape(-1, 3)


def _obj(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    vertices: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    for line in data.decode("utf-8", errors="replace").splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif word == "f":
            corners = [int(item.split("/")[0]) for item in rest]
            corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
            if not all(0 <= c < len(vertices) for c in corners):
                raise ValueError(f"a face names vertices that are not there: {line.strip()[:60]}")
            triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
    return np.array(vertices, dtype=float).reshape(-1, 3), np.array(triangles, dtype=int).reshape(-1, 3)
