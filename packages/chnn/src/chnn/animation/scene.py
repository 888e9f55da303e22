"""What to draw of a state, as numpy arrays: ends of rods and springs, dots, body axes and turned meshes."""

from __future__ import annotations

import numpy as np

from chnn.systems import System

_COILS = 9


class Scene:
    """The drawing of a system, ready to be evaluated at positions (n, d)."""

    def __init__(self, system: System) -> None:
        drawing, description = system.drawing, system.description
        n, d = system.num_points, system.spatial_dim
        self.anchors = drawing.anchors.numpy()
        self.rods, self.springs = list(drawing.rods), list(drawing.springs)
        self.weights = np.zeros((n + len(drawing.marks), n))  # points, then marks
        self.weights[:n] = np.eye(n)
        for mark, combination in enumerate(drawing.marks):
            for index, weight in combination:
                self.weights[n + mark, index] += weight
        self.origins = [body.first for body in description.bodies]
        self.dots = [body.first for body in description.bodies if body.dim == 0]
        self._meshes = []
        drawn = set()
        for name, vertices, triangles in drawing.meshes:
            body = description.body(name)
            drawn.add(name)
            self._meshes.append((body.first, vertices.numpy(), triangles.numpy()))
        # Plates and solids without a mesh show their axes; a rod is its line.
        bare = [body for body in description.bodies if body.name not in drawn and body.dim >= 2]
        self._axes = [(body.first, tip) for body in bare for tip in body.points[1:]]
        self.dim = d

    def ends(self, x: np.ndarray, lines: list[tuple[int, int]]) -> np.ndarray:
        """Both ends (..., lines, 2, d) of each line at positions (..., n, d)."""
        places = self.weights @ x  # (..., n + marks, d)
        fixed = np.broadcast_to(self.anchors[::-1], (*x.shape[:-2], *self.anchors.shape))
        every = np.concatenate([places, fixed], axis=-2)  # anchor -1 is the last one
        return every[..., np.array(lines, dtype=int).reshape(-1, 2), :]

    def lines(self, x: np.ndarray, lines: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Both ends of each line at one configuration."""
        return [(a, b) for a, b in self.ends(x, lines)]

    def axes(self, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Origin and tip of each axis of bodies that have no mesh."""
        return [(x[a], x[b]) for a, b in self._axes]

    def meshes(self, x: np.ndarray) -> list[np.ndarray]:
        """The turned triangles (F, 3, d) of each mesh."""
        turned = []
        for first, vertices, triangles in self._meshes:
            axes = x[first + 1 : first + 1 + vertices.shape[1]] - x[first]
            turned.append((x[first] + vertices @ axes)[triangles])
        return turned

    def mesh_data(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Each mesh as the first point of its body, vertices in its axes, and triangles."""
        return self._meshes

    def extent(self, x: np.ndarray) -> np.ndarray:
        """Points (k, d) that a picture of the configurations (T, n, d) must hold."""
        return (self.weights[[*self.origins, *range(x.shape[-2], len(self.weights))]] @ x).reshape(-1, x.shape[-1])


def coil(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A zigzag from a to b."""
    along = b - a
    across = np.zeros_like(along)
    across[-1] = 1.0
    across -= along * (across @ along) / max(float(along @ along), 1e-12)
    s = np.linspace(0.0, 1.0, 4 * _COILS + 1)
    height = 0.06 * np.sin(2 * np.pi * _COILS * s) * ((s > 0.1) & (s < 0.9))
    return a + s[:, None] * along + height[:, None] * across
