"""Animations of trajectories as GIF, drawn without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from lie.run import UserError, atomic_path
from torch import Tensor
from tqdm import tqdm

from chnn.animation.scene import Scene, coil
from chnn.systems import System

KINDS = ("gif",)
"""Suffixes of the files that `animate` writes."""
_TRAIL = 25  # frames of past positions that are drawn


def check_kind(kind: str) -> None:
    """Nothing to miss for a GIF."""


def animate(
    system: System,
    z: Float[Tensor, "T 2 n d"],
    t: Float[Tensor, " T"],
    path: str | Path,
    *,
    fps: int = 25,
    max_frames: int = 200,
    truth: Float[Tensor, "T 2 n d"] | None = None,
) -> None:
    """Draw one trajectory with rods, springs, bobs and trails to a GIF at ``path``.

    Args:
        system: says what to draw between the points.
        z, t: states and their times, s; the animation runs in real time where the frames allow.
        path: file to write, whole or not at all.
        fps: frames a second.
        max_frames: longest animation; later times are left out.
        truth: a second trajectory, drawn in grey.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    if len(t) < 2:
        raise UserError(f"expected at least two times to animate, got {len(t)}")
    wanted = np.arange(float(t[0]), float(t[-1]) + 1e-9, 1.0 / fps)[:max_frames]
    frames = np.abs(t.cpu().numpy()[None] - wanted[:, None]).argmin(1)
    x = z[:, 0].detach().cpu().numpy()
    ghost = None if truth is None else truth[:, 0].detach().cpu().numpy()
    scene = Scene(system)
    points = np.concatenate([scene.extent(x), scene.anchors])
    low, high = points.min(0), points.max(0)
    centre, half = (low + high) / 2, 0.55 * float((high - low).max()) + 0.1

    figure = Figure(figsize=(4.0, 4.0), dpi=80, layout="constrained")
    flat = x.shape[-1] == 2
    axes: Any = figure.add_subplot() if flat else figure.add_subplot(projection="3d")
    limits = [(c - half, c + half) for c in centre]
    writer = PillowWriter(fps=fps)
    with atomic_path(path) as temporary, writer.saving(figure, str(temporary), dpi=80):
        for number, frame in enumerate(tqdm(frames, desc="draw", unit="frame")):
            axes.clear()
            axes.set(xlim=limits[0], ylim=limits[1], title=f"{system.name}, t = {float(t[frame]):.2f} s")
            if flat:
                axes.set_aspect("equal")
            else:
                axes.set(zlim=limits[2])
            if ghost is not None:
                _draw(axes, scene, ghost[frame], "0.75")
            _draw(axes, scene, x[frame], "C0")
            past = x[frames[max(0, number - _TRAIL) : number + 1]]  # (k, n, d)
            for point in scene.origins:
                axes.plot(*past[:, point].T, color="C1", alpha=0.5, linewidth=1)
            writer.grab_frame()


def _draw(axes: Any, scene: Scene, x: np.ndarray, color: str) -> None:
    for a, b in scene.lines(x, scene.rods):
        axes.plot(*np.stack([a, b]).T, color=color, linewidth=2)
    for a, b in scene.lines(x, scene.springs):
        axes.plot(*coil(a, b).T, color="C2", linewidth=1)
    for corners in scene.meshes(x):
        if x.shape[-1] == 3:
            from mpl_toolkits.mplot3d.art3d import Poly3DCollection

            axes.add_collection3d(Poly3DCollection(corners, facecolor=color, edgecolor="none", alpha=0.35))
    for origin, tip in scene.axes(x):
        axes.plot(*np.stack([origin, tip]).T, color="0.4", linewidth=1)
    axes.plot(*x[scene.dots].T, "o", color=color, markersize=8 if len(scene.dots) < 20 else 3)
    axes.plot(*scene.anchors.T, "s", color="0.3", markersize=5)
