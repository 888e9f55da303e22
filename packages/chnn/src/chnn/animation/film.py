"""One call from a trajectory to a moving picture: GIF, MP4, or an HTML page that plays and turns it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float
from lie.run import UserError, atomic_path, unknown_name, write_text
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from chnn.animation.html import page
from chnn.animation.render import Camera, Painter
from chnn.animation.scene import Scene, frames, scene_of
from chnn.animation.video import check_mp4, write_gif, write_mp4
from chnn.systems import System

KINDS = ("gif", "mp4", "html")
"""Suffixes of the files that `animate` writes."""


def check_kind(kind: str) -> None:
    """Nothing if a film of this kind can be made here.

    Raises:
        UserError: for an unknown kind, or mp4 without its library; names the extra.
    """
    if kind not in KINDS:
        raise unknown_name("kind of animation", kind, KINDS)
    if kind == "mp4":
        check_mp4()


def animate(
    system: System,
    z: Float[Tensor, "T 2 n d"],
    t: Float[Tensor, " T"],
    path: str | Path,
    *,
    fps: int = 25,
    max_frames: int = 250,
    speed: float = 1.0,
    size: int = 480,
    trail: float = 1.0,
    camera: Camera | None = None,
    truth: Float[Tensor, "T 2 n d"] | None = None,
    progress: bool = True,
) -> None:
    """Draw one trajectory, with rods, springs, bodies, magnets, surfaces and trails, to a GIF, MP4 or HTML file.

    Args:
        system: says what to draw.
        z, t: states and their times, s; frames between them come from positions and velocities.
        path: file to write, whole or not at all; the suffix says the kind. The HTML file holds everything it needs:
            it plays, turns by the mouse, and has a slider of time.
        fps: frames a second.
        max_frames: longest film; later times are left out, so raise it or ``speed`` for a long trajectory.
        speed: simulated seconds a second.
        size: pixels of the sides of the picture.
        trail: seconds of the past that are drawn.
        camera: from where a scene in space is seen.
        truth: a second trajectory, drawn in grey.
        progress: show a bar.

    Raises:
        UserError: for another suffix, shapes that do not fit, states that are not finite, or a missing library.

    >>> import tempfile, torch
    >>> from chnn.systems import ChainPendulum
    >>> system, t = ChainPendulum(links=3), torch.linspace(0, 0.2, 6)
    >>> path = Path(tempfile.mkdtemp()) / "chain.html"
    >>> animate(system, system.simulate(system.sample(1), t)[0], t, path, progress=False)
    >>> path.exists()
    True
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in KINDS:
        raise UserError(f"expected a file that ends in .gif, .mp4 or .html, got {path.name!r}")
    check_kind(kind)
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    for what, value in {"fps": fps, "speed": speed, "size": size, "max_frames": max_frames}.items():
        if not 0 < value < float("inf"):
            raise UserError(f"expected a positive finite {what}, got {value}")
    if not trail >= 0:
        raise UserError(f"expected a trail of at least 0 s, got {trail}")
    states, times = _checked(system, z, t, "z"), t.detach().cpu().double().numpy()
    second = None if truth is None else _checked(system, truth, t, "truth")
    x, shown = frames(states, times, fps, max_frames, speed)
    ghost = None if second is None else frames(second, times, fps, max_frames, speed)[0]
    scene = scene_of(system, x if ghost is None else np.concatenate([x, ghost]))
    places = scene.places(x)
    others = None if ghost is None else scene.places(ghost)
    past = round(trail * fps / speed)
    if kind == "html":
        write_text(path, page(system.name, scene, places, shown, others, fps, past, camera or Camera()))
        return
    painter = Painter(scene, size + size % 2, camera)  # videos have even sides
    pictures = _pictures(painter, places, others, shown, past, system.name, progress)
    with atomic_path(path) as temporary:
        (write_gif if kind == "gif" else write_mp4)(temporary, pictures, fps)


def snapshot(
    system: System, z: Float[Tensor, "2 n d"], *, size: int = 480, camera: Camera | None = None
) -> Image.Image:
    """A picture of one state.

    >>> from chnn.systems import Gyroscope
    >>> snapshot(Gyroscope(), Gyroscope().rest(), size=64).size
    (64, 64)
    """
    x = z[:1].detach().cpu().double().numpy()
    scene = scene_of(system, x)
    return Painter(scene, size, camera).picture(scene.places(x)[0], scene.places(x))


def _pictures(
    painter: Painter, places: np.ndarray, others: np.ndarray | None, t: np.ndarray, past: int, name: str, progress: bool
) -> Iterator[Image.Image]:
    for f in tqdm(range(len(places)), desc="draw", unit=" frames", disable=not progress):
        title = f"{name}   t = {t[f]:.2f} s"
        yield painter.picture(places[f], places[max(0, f - past) : f + 1], title, None if others is None else others[f])


def _checked(system: System, z: Tensor, t: Tensor, name: str) -> np.ndarray:
    expected = (len(t), 2, system.num_points, system.spatial_dim)
    if tuple(z.shape) != expected:
        raise UserError(
            f"expected {name} of shape {expected}, one trajectory of {system.name} at the times t, got {tuple(z.shape)}"
            + ("; choose one of the batch, z[0]" if z.ndim == 5 else "")
        )
    if len(t) < 2 or not bool((t.diff() > 0).all()):
        raise UserError(f"expected at least two increasing times to animate, got {len(t)}")
    states = z.detach().cpu().double().numpy()
    bad = ~np.isfinite(states).all((1, 2, 3))
    if bad.any():
        raise UserError(
            f"expected finite states to animate, got NaN or infinity in {name} from "
            f"t = {float(t[int(bad.argmax())]):g} s on; cut the trajectory there"
        )
    return states


__all__ = ["KINDS", "Camera", "Scene", "animate", "check_kind", "snapshot"]
