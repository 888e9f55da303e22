"""Triangle meshes from STL (binary and text) and OBJ files: vertices (V, 3), equal ones merged, triangles (F, 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lie.run import UserError

_LARGEST = 256 * 2**20  # bytes


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of an STL or OBJ file.

    Raises:
        UserError: for a file that is absent, too large, of another format, or broken; names it.
    """
    if path.suffix.lower() not in (".stl", ".obj"):
        raise UserError(f"cannot read the mesh {path.name}: expected .stl or .obj; convert it")
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"the mesh {path.name} has more than {_LARGEST} bytes; simplify it")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the mesh {path}: {error.strerror or error}") from None
    try:
        vertices, triangles = _obj(data) if path.suffix.lower() == ".obj" else _stl(data)
    except (ValueError, IndexError) as error:
        raise UserError(f"the mesh {path.name} is broken: {error}") from None
    if len(triangles) == 0:
        raise UserError(f"the mesh {path.name} has no triangles")
    if not np.isfinite(vertices).all():
        raise UserError(f"the mesh {path.name} has vertices that are NaN or infinite")
    merged, places = np.unique(vertices, axis=0, return_inverse=True)
    triangles = places.reshape(-1)[triangles]
    distinct = (np.diff(np.sort(triangles, axis=1), axis=1) > 0).all(1)  # slivers within one point bound nothing
    return merged, triangles[distinct]


def _stl(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        facets = np.frombuffer(data, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")]),
                               count, 84)  # fmt: skip
        corners = facets["corners"].astype(float).reshape(-1, 3)
    else:
        words = data.decode("ascii", errors="replace").split()
        if not words or words[0].lower() != "solid":
            raise ValueError("neither a binary STL of the length it declares nor a text that begins with 'solid'")
        at = [i for i, word in enumerate(words) if word.lower() == "vertex"]
        corners = np.array([[float(words[i + k]) for k in (1, 2, 3)] for i in at]).reshape(-1, 3)
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
