"""A robot from a URDF or MJCF file as a system, with conversions between its joints' coordinates and its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

from chnn.formats import WORLD, Motion, Shape, assemble, read_robot
from chnn.mechanics.bodies import number
from chnn.systems.base import System, check_count, infinite_to_nan, relax
from chnn.systems.coordinates import rotation_matrix, rotation_vector
from chnn.systems.shapes import Mesh, cuboid, lathe, sphere


class Robot(System):
    """The robot of a URDF or MJCF file: each moving link is its centre of mass and the tips of its frame's axes there.

    Args:
        file: path of the file.
        ignore: what to leave out of it (`chnn.formats.FEATURES`), such as ("limits", "contacts").
        base: of a URDF file, "fixed" or "floating": whether its root link, where it has mass, is held in space.
        gravity: m/s^2, along the negative last axis or a vector; by default that of an MJCF file, 9.81 for URDF.
        digest: refuse the file if it says something else than the one with this digest, which `parameters` gives.

    Its coordinates, in the order of `angle_names`, are 0 in the file's own configuration: for every link its slides
    (m), then the angle of a hinge (rad), the two of two hinges in one body, or the rotation vector against the parent
    of a ball joint or three hinges; for a free link its centre and the rotation vector of its frame. Loops take
    coordinates away, and `from_angles` then gives the nearest state that closes them.

    Initial states: angles uniform in a full turn (a tenth of it where loops close), rotation vectors and rates standard
    normal, centres and slides 0.1 N. A robot with a free link has the file's own configuration as its state of rest.

    Raises:
        UserError: for what is not simulated, by file, line and element, with the remedy.
    """

    name = "robot"

    def __init__(
        self,
        file: str | Path,
        *,
        ignore: Sequence[str] = (),
        base: str | None = None,
        gravity: float | Sequence[float] | None = None,
        digest: str | None = None,
    ) -> None:
        tree, left = read_robot(file, ignore=ignore, base=base, gravity=gravity)
        if digest is not None and digest != tree.digest:
            raise UserError(f"{file} has changed since its digest was taken; bring back the file as it was")
        if not tree.links:
            left.check()
            raise UserError(f"{Path(file).name} has no link that moves; give a joint to one, or base='floating'")
        world, motions, shapes, reference = assemble(tree, left)
        left.check()
        self.file = Path(file).resolve()
        plain = gravity if gravity is None or np.ndim(gravity) == 0 else [float(each) for each in gravity]  # type: ignore[union-attr]
        plain = float(plain) if plain is not None and np.ndim(plain) == 0 else plain  # type: ignore[arg-type]
        self._arguments = {"ignore": list(left.ignore), "base": base, "gravity": plain, "digest": tree.digest}
        self._motions, self._looped = motions, bool(tree.loops)
        self._reference = torch.from_numpy(reference)
        for link, drawn in zip(tree.links, shapes, strict=True):
            for shape in drawn:
                vertices, triangles = mesh_of(shape)
                world.draw_mesh(world.handle(link.name), vertices @ shape.rotation.T + shape.position, triangles)
        description = world.build(tree.name, states=None if self._looped else self._configurations())
        if not self._looped and description.degrees_of_freedom != self.num_angles:
            raise UserError(
                f"{Path(file).name} has {self.num_angles} joint coordinates, but its constraints leave "
                f"{description.degrees_of_freedom} degrees of freedom; its sizes differ by more than double precision "
                "holds: weld what is far smaller than the rest, or leave it out"
            )
        super().__init__(description)

    def _configurations(self) -> Tensor:
        """The reference and seven random configurations."""
        generator = torch.Generator().manual_seed(0)
        angles = torch.randn(7, 2, self.num_angles, generator=generator, dtype=torch.float64)
        found = self._tree_positions(angles[:, 0])
        return torch.cat([self._reference.unsqueeze(0), found])

    # --- coordinates ---

    @property
    def angle_names(self) -> tuple[str, ...]:
        """The names of the coordinates."""
        return tuple(name for motion in self._motions for name in motion.names)

    @property
    def num_angles(self) -> int:
        """Number of coordinates of the tree."""
        return len(self.angle_names)

    @property
    def length_coordinates(self) -> tuple[int, ...]:
        """Which coordinates are lengths, m."""
        ends = np.cumsum([0, *(len(motion.names) for motion in self._motions)])
        return tuple(int(end) + k for end, motion in zip(ends, self._motions, strict=False)
                     for k in range(motion.num_lengths))  # fmt: skip

    def to_angles(self, z: Float[Tensor, "*batch 2 n 3"]) -> Float[Tensor, "*batch 2 a"]:
        """Coordinates and their rates; angles in (-pi, pi], rotation vectors of at most half a turn."""
        x, v = map(infinite_to_nan, self._split(z))
        angles, rates = torch.func.jvp(self._tree_angles, (x,), (v,))  # type: ignore[misc]  (two without has_aux)
        return torch.stack([angles, rates], dim=-2)

    def from_angles(self, angles: Float[Tensor, "*batch 2 a"]) -> Float[Tensor, "*batch 2 n 3"]:
        """The inverse of `to_angles`; with loops, the nearest state that closes them."""
        if angles.shape[-2:] != (2, self.num_angles):
            raise UserError(
                f"expected coordinates and rates of shape (..., 2, {self.num_angles}) for {self.name}, got "
                f"{tuple(angles.shape)}; they are {', '.join(self.angle_names)}"
            )
        x, v = torch.func.jvp(self._tree_positions, (angles[..., 0, :],), (angles[..., 1, :],))  # type: ignore[misc]  (two without has_aux)
        z = torch.stack([x, v], dim=-3)
        return self.project(z) if self._looped else z

    def state(
        self, angles: Mapping[str, float] | None = None, rates: Mapping[str, float] | None = None
    ) -> Float[Tensor, "1 2 n 3"]:
        """The state in which the named coordinates and rates have these values and the others are 0, float64.

        Several states are made by `from_angles`, which is differentiable too.

        Raises:
            UserError: for a value that is no plain number, and for a name that is not in `angle_names`, with the
                nearest that is.
        """
        q = torch.zeros(1, 2, self.num_angles, dtype=torch.float64)
        for row, values in enumerate((angles or {}, rates or {})):
            for name, value in values.items():
                if name not in self.angle_names:
                    raise unknown_name("coordinate", name, self.angle_names)
                q[0, row, self.angle_names.index(name)] = number(value, f"the coordinate '{name}'")
        return self.from_angles(q)

    def _tree_positions(self, q: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch n 3"]:
        centres: list[Tensor] = []
        frames: list[Tensor] = []
        start = 0
        for motion in self._motions:
            count = len(motion.names)
            own = q[..., start : start + count]
            start += count
            if motion.kind == "free":
                centre, R = own[..., :3], rotation_matrix(own[..., 3:])  # noqa: N806
            else:
                slides = len(motion.slides)
                turn = _turn(motion, own[..., slides:])
                rotation, at_parent, at_body = (_like(q, each) for each in
                                                (motion.rotation, motion.at_parent, motion.at_body))  # fmt: skip
                if motion.parent == WORLD:
                    R, place = rotation @ turn, at_parent + own[..., :slides] @ _like(q, motion.slides)  # noqa: N806
                else:
                    above = frames[motion.parent]
                    R, place = above @ rotation @ turn, centres[motion.parent] + above @ at_parent  # noqa: N806
                centre = place - R @ at_body
            centres.append(centre)
            frames.append(R)
        bodies = [torch.cat([c.unsqueeze(-2), c.unsqueeze(-2) + R.mT], dim=-2) for c, R in
                  zip(centres, frames, strict=True)]  # fmt: skip
        return torch.cat(bodies, dim=-2)

    def _tree_angles(self, x: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch a"]:
        points = x.unflatten(-2, (-1, 4))  # (..., bodies, 4, 3)
        centres, frames = points[..., 0, :], (points[..., 1:, :] - points[..., :1, :]).mT
        parts: list[Tensor] = []
        for i, motion in enumerate(self._motions):
            R, centre = frames[..., i, :, :], centres[..., i, :]  # noqa: N806
            if motion.kind == "free":
                parts += [centre, rotation_vector(R)]
                continue
            if len(motion.slides):
                place = centre + R @ _like(x, motion.at_body) - _like(x, motion.at_parent)
                parts.append(place @ _like(x, np.linalg.pinv(motion.slides)))
            rotation = _like(x, motion.rotation)
            turn = (rotation.mT if motion.parent == WORLD else (frames[..., motion.parent, :, :] @ rotation).mT) @ R
            parts.append(_turned(motion, turn))
        return torch.cat(parts, dim=-1)

    # --- states ---

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        shape = (num, self.num_angles)
        noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        turn = torch.pi * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)
        q = torch.where(self._kinds() == 0, turn, noise[0] * torch.where(self._kinds() == 2, 0.1, 1.0))
        if self._looped:
            q = 0.1 * q
        return self.from_angles(torch.stack([q, noise[1]], dim=1))

    def _kinds(self) -> Tensor:
        """Of each coordinate: 0 an angle, 1 of a rotation vector, 2 a length."""
        kinds: list[int] = []
        for motion in self._motions:
            lengths = 3 if motion.kind == "free" else len(motion.slides)
            turns = len(motion.names) - lengths
            kinds += [2] * lengths + [1 if motion.kind in ("free", "ball") else 0] * turns
        return torch.tensor(kinds)

    @cached_property
    def _rest(self) -> Tensor:
        starts = [self.description.reference]
        if not any(motion.kind == "free" for motion in self._motions):
            # From the file's own configuration alone, a robot that stands on its joints would count as at rest.
            starts += list(self.sample(4, generator=torch.Generator().manual_seed(0))[:, 0])
            starts = [relax(self, start=start) for start in starts]
        x = min(starts, key=lambda x: float(self.potential(x)))
        return torch.stack([x, torch.zeros_like(x)])

    def parameters(self) -> dict[str, Any]:
        """The file, a digest of what it says, and how it was read."""
        return {"file": str(self.file), **self._arguments}


def _like(x: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(x)


def _turn(motion: Motion, angles: Tensor) -> Tensor:
    """The rotation (..., 3, 3) of a body against its place in the reference configuration, in its own axes."""
    if motion.kind == "fixed":
        return torch.eye(3, dtype=angles.dtype, device=angles.device).expand(*angles.shape[:-1], 3, 3)
    if motion.kind == "ball":
        return rotation_matrix(angles)
    axes = _like(angles, motion.axes)
    turn = rotation_matrix(angles[..., :1] * axes[0])
    return turn if motion.kind == "hinge" else turn @ rotation_matrix(angles[..., 1:] * axes[1])


def _turned(motion: Motion, R: Tensor) -> Tensor:  # noqa: N803
    """The inverse of `_turn`."""
    if motion.kind == "fixed":
        return R[..., 0, :0]
    if motion.kind == "ball":
        return rotation_vector(R)
    axes = _like(R, motion.axes)
    if motion.kind == "hinge":
        across = _like(R, _across(motion.axes[0]))
        return _angle(axes[0], across, R @ across).unsqueeze(-1)
    # R = T_1 T_2: R a_2 is a_2 turned by the first angle about a_1; R^T a_1 is a_1 turned back by the second about a_2.
    first = _angle(axes[0], axes[1], R @ axes[1])
    second = -_angle(axes[1], axes[0], R.mT @ axes[0])
    return torch.stack([first, second], dim=-1)


def _across(axis: np.ndarray) -> np.ndarray:
    """A unit vector at a right angle to the axis."""
    return np.linalg.svd(axis[None])[2][1]


def _angle(axis: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The angle about a unit axis from one vector to another, which need not be at right angles to it."""
    a = start - (start @ axis) * axis
    sine = (torch.linalg.cross(axis, a) * end).sum(-1)
    return torch.atan2(sine, (a * end).sum(-1))


def mesh_of(shape: Shape) -> Mesh:
    """Vertices and triangles of a solid in its own frame, for drawing."""
    if shape.kind == "mesh":
        assert shape.mesh is not None
        return shape.mesh
    if shape.kind == "box":
        return cuboid([2.0 * half for half in shape.size])
    if shape.kind in ("sphere", "ellipsoid"):
        return sphere(shape.size if shape.kind == "ellipsoid" else shape.size * 3)
    radius, half = shape.size
    if shape.kind == "cylinder":
        return lathe([(0.0, -half), (radius, -half), (radius, half), (0.0, half)])
    bend = np.linspace(0.0, 0.5 * np.pi, 7)
    cap = [(radius * float(np.sin(a)) if a > 0.0 else 0.0, half + radius * float(np.cos(a))) for a in bend]
    return lathe([(r, -z) for r, z in cap] + cap[::-1])
