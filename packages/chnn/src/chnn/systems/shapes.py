"""Closed triangle meshes made by formulas, for drawing bodies and for exact moments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray]
"""Vertices (V, 3) and triangles (F, 3), oriented outwards."""


def lathe(profile: Sequence[tuple[float, float]], sides: int = 24) -> Mesh:
    """The solid of revolution about the third axis of a profile (radius, height) from bottom to top.

    The first and last radius must be 0.
    """
    inner = np.asarray(profile, dtype=float)
    turn = np.arange(sides) * (2.0 * np.pi / sides)
    rings = [np.stack([r * np.cos(turn), r * np.sin(turn), np.full(sides, z)], 1) for r, z in inner[1:-1]]
    vertices = np.concatenate([[[0.0, 0.0, inner[0, 1]]], *rings, [[0.0, 0.0, inner[-1, 1]]]])
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    zero, top = np.zeros(sides, dtype=int), np.full(sides, len(vertices) - 1)
    last = 1 + (len(rings) - 1) * sides
    triangles = [np.stack([zero, 1 + j, 1 + i], 1), np.stack([top, last + i, last + j], 1)]
    for ring in range(len(rings) - 1):
        low, high = 1 + ring * sides, 1 + (ring + 1) * sides
        triangles += [np.stack([low + i, low + j, high + i], 1), np.stack([low + j, high + j, high + i], 1)]
    return vertices, np.concatenate(triangles)


def sphere(radii: Sequence[float] = (1.0, 1.0, 1.0), rings: int = 12, sides: int = 24) -> Mesh:
    """An ellipsoid with these half axes."""
    angle = np.linspace(0.0, np.pi, rings + 1)
    profile = [(float(np.sin(a)) if 0 < k < rings else 0.0, float(-np.cos(a))) for k, a in enumerate(angle)]
    vertices, triangles = lathe(profile, sides)
    return vertices * np.asarray(radii, dtype=float), triangles


def cuboid(sides: Sequence[float]) -> Mesh:
    """A box with these full sides, centred."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return corners * np.asarray(sides, dtype=float), triangles


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    vertices, triangles, offset = [], [], 0
    for points, faces in meshes:
        vertices.append(points)
        triangles.append(faces + offset)
        offset += len(points)
    return np.concatenate(vertices), np.concatenate(triangles)


def racket() -> Mesh:
    """A flat oval head on a handle along the second axis."""
    head, faces = sphere((0.12, 0.16, 0.01))
    handle, more = cuboid((0.03, 0.25, 0.03))
    return joined((head + [0.0, 0.12, 0.0], faces), (handle + [0.0, -0.16, 0.0], more))
