"""Pictures of a scene, drawn by Pillow from back to front: flat shading, perspective, no screen and no graphics card.

The picture is drawn at twice its size and halved, which smooths the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from chnn.animation.scene import Scene, coil, magnet, posed

BACKGROUND = "#fbfbfd"
INK = "#34495e"
SPRING = "#3d9970"
WIRE = "#c3ccd8"
FLOOR = "#e6e9ef"
GHOST = "#c9ced6"
POLES = ("#d1495b", "#2e86ab")
_OVER = 2  # pictures are drawn larger by this and reduced
_LIGHT = np.array([-0.35, -0.55, 0.76])


@dataclass(frozen=True)
class Camera:
    """From where a scene of three dimensions is seen, in degrees; it turns about the vertical."""

    azimuth: float = -60.0
    elevation: float = 18.0

    def matrix(self) -> np.ndarray:
        """Rows: to the right, up, towards the eye."""
        a, e = np.radians(self.azimuth), np.radians(self.elevation)
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        back = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        return np.stack([right, np.cross(back, right), back])


class Painter:
    """Draws a scene again and again on pictures of ``size`` pixels; see `picture`."""

    def __init__(self, scene: Scene, size: int = 480, camera: Camera | None = None) -> None:
        self.scene, self.size = scene, size
        self.pixels = size * _OVER
        self.flat = scene.dim == 2
        self.matrix = np.eye(3) if self.flat else (camera or Camera()).matrix()
        self.centre = np.zeros(3)
        self.centre[: scene.dim] = scene.centre
        self.scale = 0.84 * self.pixels / scene.size / (1.0 if self.flat else 1.12)
        self.distance = 3.2 * scene.size
        self.still = self._standing()

    def picture(
        self, places: np.ndarray, trail: np.ndarray, title: str = "", ghost: np.ndarray | None = None
    ) -> Image.Image:
        """One picture of places (P, d), their past (k, P, d), and those of a second trajectory in grey."""
        image = Image.new("RGB", (self.pixels, self.pixels), BACKGROUND)
        self.draw = ImageDraw.Draw(image)
        self.items: list[tuple[float, int, Any]] = list(self.still)
        if ghost is not None:
            self._moving(ghost, GHOST)
        self._trails(trail)
        self._moving(places, None)
        # Far things first; in the plane, in the order of their kinds.
        for _, _, paint in sorted(self.items, key=lambda item: item[:2]):
            paint()
        if title:
            self.draw.text((0.03 * self.pixels, 0.025 * self.pixels), title, fill=INK, font=_font(self.pixels // 28))
        return image.reduce(_OVER)

    # --- projection ---

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (k, 2) and nearness (k,) of points (k, d)."""
        if points.shape[-1] == 2:
            points = np.concatenate([points, np.zeros((*points.shape[:-1], 1))], -1)
        seen = (points - self.centre) @ self.matrix.T
        near = seen[..., 2]
        factor = self.scale / (1.0 if self.flat else np.maximum(1.0 - near / self.distance, 0.1))
        pixels = seen[..., :2] * np.array([1.0, -1.0]) * np.expand_dims(factor, -1) + 0.5 * self.pixels
        return pixels, near

    def _width(self, meters: float, near: float) -> float:
        return max(1.5, meters * self.scale / (1.0 if self.flat else max(1.0 - near / self.distance, 0.1)))

    # --- what stands still ---

    def _standing(self) -> list[tuple[float, int, Any]]:
        self.items = []
        if not self.flat:
            self._floor()
        for wire in self.scene.wires:
            self._path(wire, WIRE, 0.004 * self.scene.size, layer=0)
        size = 0.07 * self.scene.size
        for position, moment in self.scene.magnets:
            for (vertices, triangles), color in zip(magnet(position, moment, size), POLES, strict=True):
                self._mesh(vertices, triangles, color, layer=1)
        return self.items

    def _floor(self) -> None:
        """A grid below everything."""
        half, z = 0.62 * self.scene.size, self.centre[2] - 0.55 * self.scene.size
        for s in np.linspace(-half, half, 9):
            for ends in ([[s, -half], [s, half]], [[-half, s], [half, s]]):
                line = np.concatenate([np.array(ends) + self.centre[:2], np.full((2, 1), z)], 1)
                pixels, _ = self.project(line)
                self._add(-1e9, 0, self._line, pixels, FLOOR, 2.0)

    # --- what moves ---

    def _moving(self, places: np.ndarray, tint: str | None) -> None:
        scene, size = self.scene, self.scene.size
        colors = scene.colors
        for a, b in scene.springs:
            self._path(coil(places[a], places[b], 0.03 * size), tint or SPRING, 0.006 * size, layer=3)
        for a, b in scene.rods:
            # In pieces, so that what crosses in front of a part of it hides that part only.
            steps = np.linspace(0.0, 1.0, 2 if self.flat or len(scene.rods) > 20 else 7)[:, None]
            self._path(places[a] + steps * (places[b] - places[a]), tint or INK, 0.011 * size, layer=4)
        for (a, b), color in zip(scene.bars, colors.get("bars", []), strict=True):
            self._bar(places[a], places[b], tint or color)
        for (points, vertices, triangles), color, light in zip(
            scene.meshes, colors.get("meshes", []), scene.sectors, strict=True
        ):
            turned = posed(places, points, vertices)
            for part, tone in ((~light, color), (light, _mix(color, "#ffffff", 0.45))):
                (self._plate if self.flat else self._mesh)(turned, triangles[part], tint or tone, layer=5)
        for k in scene.anchors:
            self._dot(places[k], 0.014 * size, tint or INK, layer=7, shine=False)
        for (k, direction), color in zip(scene.sliders, colors.get("sliders", []), strict=True):
            self._slider(places[k], direction, tint or color)
        for k, radius, color in zip(scene.dots, scene.radii, colors.get("dots", []), strict=True):
            self._dot(places[k], radius, tint or color, layer=8)

    def _trails(self, trail: np.ndarray) -> None:
        count = len(trail)
        if count < 2:
            return
        for k, color in self.scene.tracks:
            pixels, near = self.project(trail[:, k])
            for s in range(count // 8, count - 1):  # its end is too pale to see, and shows on what is behind
                shade = _mix(BACKGROUND, color, 0.75 * ((s + 1) / count) ** 1.5)
                self._add(0.5 * float(near[s] + near[s + 1]) - 1e-3 * self.scene.size, 2, self._line, pixels[s : s + 2],
                          shade, self._width(0.009 * self.scene.size, float(near[s])))  # fmt: skip

    # --- shapes ---

    def _add(self, near: float, layer: int, paint: Any, *arguments: Any) -> None:
        key = (0.0 if self.flat else near, layer)
        self.items.append((*key, lambda: paint(*arguments)) if not self.flat else (layer, 0, lambda: paint(*arguments)))

    def _path(self, points: np.ndarray, color: str, width: float, layer: int) -> None:
        pixels, near = self.project(points)
        for s in range(len(points) - 1):
            middle = 0.5 * float(near[s] + near[s + 1])
            self._add(middle, layer, self._line, pixels[s : s + 2], color, self._width(width, middle))

    def _line(self, pixels: np.ndarray, color: str, width: float) -> None:
        if not np.isfinite(pixels).all():
            return
        whole = max(1, round(width))
        self.draw.line([tuple(p) for p in pixels.tolist()], fill=color, width=whole)
        if whole > 3:
            r = 0.5 * (whole - 1)
            for x, y in pixels.tolist():
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def _dot(self, place: np.ndarray, radius: float, color: str, layer: int, shine: bool = True) -> None:
        pixels, near = self.project(place[None])
        self._add(float(near[0]) + radius, layer, self._ball, pixels[0], self._width(radius, float(near[0])), color,
                  shine)  # fmt: skip

    def _ball(self, centre: np.ndarray, radius: float, color: str, shine: bool) -> None:
        if not np.isfinite(centre).all():
            return
        steps = 6 if shine and radius > 6 else 1
        for s in range(steps):  # from the rim, darker, to a highlight above on the left
            r = radius * (1.0 - s / steps)
            x, y = centre + np.array([-0.3, -0.35]) * (radius - r)
            shade = _mix(_mix(color, "#000000", 0.18), _mix(color, "#ffffff", 0.45), s / max(1, steps - 1))
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=shade if shine else color)

    def _bar(self, a: np.ndarray, b: np.ndarray, color: str) -> None:
        width = 0.034 * self.scene.size
        self._path(np.stack([a, b]), _mix(color, "#000000", 0.25), width, layer=5)
        self._path(np.stack([a, b]), color, 0.72 * width, layer=6)
        for end in (a, b):
            self._dot(end, 0.16 * width, BACKGROUND, layer=7, shine=False)

    def _slider(self, place: np.ndarray, direction: np.ndarray, color: str) -> None:
        half = 0.07 * self.scene.size
        if self.flat:
            side = np.array([-direction[1], direction[0]])
            corners = [place + half * (s * direction + 0.5 * r * side) for s, r in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            self._plate(np.stack(corners), np.array([[0, 1, 2], [0, 2, 3]]), color, layer=3)
        else:
            self._dot(place, half, color, layer=8)

    def _plate(self, vertices: np.ndarray, triangles: np.ndarray, color: str, layer: int) -> None:
        pixels, _ = self.project(vertices)
        if vertices.shape[1] == 2 and len(triangles):
            self._add(0.0, layer, self._polygons, pixels[triangles], color)

    def _polygons(self, corners: np.ndarray, color: str) -> None:
        for polygon in corners[np.isfinite(corners).all((1, 2))].tolist():
            self.draw.polygon([tuple(corner) for corner in polygon], fill=color)

    def _mesh(self, vertices: np.ndarray, triangles: np.ndarray, color: str, layer: int) -> None:
        """The triangles that face the eye, each shaded by how it faces the light."""
        pixels, near = self.project(vertices)
        a, b, c = (vertices[triangles[:, i]] for i in range(3))
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal, axis=1)
        p, q, r = (pixels[triangles[:, i]] for i in range(3))
        facing = (q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0] < 0  # pixels count downwards
        keep = np.flatnonzero(facing & (length > 0) & np.isfinite(length))
        light = 0.5 + 0.5 * (normal[keep] / length[keep, None]) @ _LIGHT
        depth = near[triangles[keep]].mean(1)
        for k, shade, middle in zip(keep, light, depth, strict=True):
            tone = _mix(_mix(color, "#1b2838", 0.45), _mix(color, "#ffffff", 0.4), float(shade))
            self._add(float(middle), layer, self._polygons, pixels[triangles[k]][None], tone)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(max(8, size))


@cache
def _rgb(color: str) -> tuple[int, ...]:
    return ImageColor.getrgb(color)[:3]


def _mix(a: str, b: str, share: float) -> str:
    """Colour between a and b; in 32 steps, so that few are made."""
    return _mixed(a, b, round(32 * min(max(share, 0.0), 1.0)))


@cache
def _mixed(a: str, b: str, steps: int) -> str:
    return "#" + "".join(f"{round(x + (y - x) * steps / 32):02x}" for x, y in zip(_rgb(a), _rgb(b), strict=True))
