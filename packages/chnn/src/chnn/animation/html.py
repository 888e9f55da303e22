"""A page that plays a trajectory: one file with the data and a player of our own, no network."""

from __future__ import annotations

import base64
import html
import json
from importlib.resources import files
from typing import Any

import numpy as np

from chnn.animation import render
from chnn.animation.render import Camera
from chnn.animation.scene import Scene, magnet


def page(
    name: str,
    scene: Scene,
    places: np.ndarray,
    t: np.ndarray,
    ghost: np.ndarray | None,
    fps: int,
    past: int,
    camera: Camera,
) -> str:
    """The text of the page for places (F, P, d) at times (F,), with those of a second trajectory in grey.

    The element ``scene`` holds JSON: numbers that move as base64 of little-endian float32, in the order of the axes.
    """
    magnets = []
    for position, moment in scene.magnets:
        for (vertices, triangles), color in zip(magnet(position, moment, 0.07 * scene.size), render.POLES, strict=True):
            magnets.append({"vertices": vertices.tolist(), "triangles": triangles.tolist(), "color": color})
    data: dict[str, Any] = {
        "name": name,
        "dim": scene.dim,
        "frames": len(t),
        "places": places.shape[1],
        "fps": fps,
        "past": past,
        "camera": [camera.azimuth, camera.elevation],
        "centre": scene.centre.tolist(),
        "size": scene.size,
        "colors": {**scene.colors, "background": render.BACKGROUND, "ink": render.INK, "spring": render.SPRING,
                   "wire": render.WIRE, "floor": render.FLOOR, "ghost": render.GHOST},
        "rods": scene.rods,
        "bars": scene.bars,
        "springs": scene.springs,
        "dots": scene.dots,
        "radii": scene.radii,
        "sliders": [[k, direction.tolist()] for k, direction in scene.sliders],
        "anchors": scene.anchors,
        "meshes": [{"points": points, "vertices": np.round(vertices, 6).tolist(), "triangles": triangles.tolist(),
                    "light": np.flatnonzero(light).tolist()}
                   for (points, vertices, triangles), light in zip(scene.meshes, scene.sectors, strict=True)],
        "tracks": scene.tracks,
        "magnets": magnets,
        "wires": [np.round(wire, 5).tolist() for wire in scene.wires],
        "t": _packed(t),
        "x": _packed(places),
        "ghost": None if ghost is None else _packed(ghost),
    }  # fmt: skip
    # A name could end the script element early.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    player = files("chnn.animation").joinpath("player.html").read_text(encoding="utf-8")
    return player.replace("{{title}}", html.escape(name)).replace("{{scene}}", text)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
