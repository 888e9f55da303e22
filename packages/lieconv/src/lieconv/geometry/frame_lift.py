"""The exact lift by soft local frames, for actions made of translations, rotations and dilations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.groups import AffineStructure, LieGroup, affine_structure
from torch import Tensor

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.frames import local_frames
from lieconv.geometry.geometry import Geometry
from lieconv.geometry.lift import Lift, no_limit_error
from lieconv.geometry.metric import FAR, distances_between, pair_size
from lieconv.geometry.neighbours import Neighbourhoods, gather
from lieconv.geometry.request import Request

FLOOR = 0.1
"""Length in the unit of the points, far below the distances that matter, at which neighbourhoods lose their frames."""


@dataclass(frozen=True)
class FrameLift(Lift):
    """The exact lift by soft frames and invariants of a group with an affine structure."""

    group: LieGroup
    structure: AffineStructure

    @property
    def squared_floor(self) -> float:  # type: ignore[override]
        """The square of a small length where the group keeps lengths; zero where it dilates, and has none.

        Frames in units of their neighbourhood alone would jump where all points of it meet in one, as two atoms do
        that pass through each other.
        """
        return 0.0 if self.structure.dilation else FLOOR**2

    @property
    def about_centre(self) -> bool:
        """Whether the group dilates, and no translation moves the centre."""
        return self.structure.dilation and not self.structure.translations

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Entries of the relative element, orbit ids of both points, and the squared distance."""
        parts = self.structure
        if self.about_centre:
            return 3 if parts.rotations else 2 * parts.d + 1
        turning = {0: 0, 1: 2, 3: 9}[parts.rotations]
        radii = 2 if parts.rotations and not parts.moves_plane else 0
        return turning + len(parts.translations) + radii + 2 * len(parts.fixed) + 1 + int(parts.dilation)

    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """The points; about a fixed centre of dilations the logarithm of the distance from it, and the direction."""
        if not self.about_centre:
            return cloud.coords
        squared = cloud.coords.square().sum(-1, keepdim=True)
        zero = squared == 0
        safe = torch.where(zero, torch.ones_like(squared), squared)
        direction = torch.where(zero, torch.zeros_like(cloud.coords), cloud.coords / safe.sqrt())
        return torch.cat([0.5 * safe.log(), direction, FAR * zero.to(safe.dtype)], dim=-1)

    def squared(self, points: Tensor, neighbours: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared lengths of the offsets, or of the differences of the embedded points."""
        return distances_between(points, neighbours, 1) if self.about_centre else offsets.square().sum(-1)

    def geometry(self, request: Request) -> Geometry:
        """Neighbourhoods of the targets, with frames or sizes of both points of each pair where the group has them."""
        near, around = self._neighbourhoods(request)
        # shape[0], not len(): len makes an exported graph depend on the number of points.
        features, step = request.frame_features, request.sources.coords.shape[0]
        if features is not None and features.shape[0] != step:
            # One set of points, many sets of features: neighbours are sought once, frames belong to each set.
            copies = features.shape[0] // step
            request = request.repeated(copies)
            near, around = near.repeated(copies, step), around.repeated(copies, step)
        sources, points = request.sources, request.targets.cloud.coords.unsqueeze(1)
        frames = self._pair_frames(request, near, around, features)
        sizes = None
        if self.structure.dilation and not self.about_centre:
            sizes = near.squared_scale.sqrt().unsqueeze(1), gather(around.squared_scale.sqrt(), near.indices)
        # In a cell a neighbour stands for its nearest image.
        neighbours = points + near.offsets if sources.cell is not None else gather(sources.coords, near.indices)
        kernel_coords = self.pairs(points, neighbours, near.offsets, near.squared, near.weights, frames, sizes)
        return request.assembled(near, kernel_coords)

    def _neighbourhoods(self, request: Request) -> tuple[Neighbourhoods, Neighbourhoods]:
        """Neighbourhoods of the targets, and of the sources where frames or sizes of all sources are needed."""
        sources, targets = request.sources, request.targets
        if request.at_sources:
            near = request.neighbours(self, sources)
            return near, near
        if not (self.structure.rotations or self.structure.dilation):
            near = request.neighbours(self, targets.cloud)
            return near, near
        around = request.neighbours(self, sources)
        if targets.chosen is not None:
            return around.rows(targets.chosen, targets.cloud.mask), around
        return request.neighbours(self, targets.cloud), around

    def _pair_frames(
        self, request: Request, near: Neighbourhoods, around: Neighbourhoods, features: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Soft frames of the targets, and transposed of their neighbours; None where nothing rotates."""
        if not self.structure.rotations or self.about_centre:
            return None
        source_frames = self._frames(request.sources, around, features)
        if request.at_sources:
            frames = source_frames
        elif request.targets.chosen is not None:
            frames = source_frames.index_select(0, request.targets.chosen)
        else:
            frames = self._frames(request.targets.cloud, near, features)
        return frames, gather(source_frames.mT.contiguous(), near.indices)

    def _frames(self, points: Cloud, near: Neighbourhoods, features: Tensor | None) -> Float[Tensor, "M r r"]:
        near_features = None if features is None else gather(features, near.indices)
        frames = local_frames(
            self.structure, points.coords, near.offsets, near.weights, near.squared_scale, near_features
        )
        assert frames is not None
        return frames

    @property
    def without_unit(self) -> bool:
        """Whether the group dilates."""
        return self.structure.dilation

    @property
    def uses_features(self) -> bool:
        """Whether vectors to the neighbours make the frames, and invariant features can weigh them."""
        # Rotations of the plane about a fixed centre: the point itself is the frame.
        return not self.about_centre and self.structure.rotations > int(not self.structure.moves_plane)

    def check_ball(self, *, fill: bool, at_random: bool) -> None:
        """Raise if dilations move about: no length is the same for all of them."""
        if self.structure.dilation and self.structure.translations:
            raise ValueError(f"{self.group!r} dilates lengths: use num_neighbors alone, which no dilation changes")

    def check_smooth(self, *, radius: bool) -> None:
        """Raise for a radius with dilations about a fixed centre."""
        if radius and self.about_centre:
            raise no_limit_error(self.group)

    def pairs(
        self,
        points: Tensor,
        neighbours: Tensor,
        offsets: Tensor,
        squared: Tensor,
        weights: Tensor,
        frames: tuple[Tensor, Tensor] | None,
        sizes: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "M k c"]:
        """Kernel coordinates.

        Args:
            points, neighbours: the points (M, 1, d) and their neighbours (M, k, d).
            offsets: neighbour minus point under the minimum image, (M, k, d).
            squared: their squared distances, (M, k).
            weights: their window weights, (M, k).
            frames: soft frames of the points (M, r, r), and transposed of the neighbours (M, k, r, r).
            sizes: where the group dilates, radii of the neighbourhoods of both, (M, 1, 1) and (M, k, 1): lengths that
                dilate with the points.
        """
        parts = self.structure
        if self.about_centre:
            return _about_centre(parts, points, neighbours, weights)
        rotation, inverse = [], None
        if frames is not None:
            frame, inverse = frames
            relative = (inverse.flatten(1, 2) @ frame).view_as(inverse)  # one product a point, not one a pair
            # Two entries determine a rotation of the plane.
            rotation = [relative[..., 0] if parts.rotations == 1 else relative.flatten(-2)]
        translation = self._translation(offsets, inverse)
        distance = squared.unsqueeze(-1)
        if sizes is not None:
            translation = [part / sizes[1] for part in translation]
            ratio = (sizes[0] / sizes[1]).log()
            distance = torch.cat([ratio, distance / (sizes[0] * sizes[1])], dim=-1)
        return torch.cat([*rotation, *translation, *self._orbit_ids(points, neighbours), distance], dim=-1)

    def _translation(self, offsets: Tensor, inverse: Tensor | None) -> list[Tensor]:
        """Translation part of the relative elements, seen from the frames of the neighbours where there are any."""
        parts = self.structure
        translations = _rows(parts.translations, offsets)
        if inverse is None and len(translations) == parts.d:
            return [-offsets]
        if inverse is None or not parts.moves_plane:
            return [-(offsets @ translations.mT)]
        plane = _rows(parts.plane, offsets)  # (r, d)
        in_plane = _rotated(inverse, offsets @ plane.mT)
        return [-in_plane, -(offsets @ _across_plane(translations, plane).mT)]

    def _orbit_ids(self, points: Tensor, neighbours: Tensor) -> list[Tensor]:
        """Numbers (M, k, c) of both points that the group keeps: coordinates, and distances from a fixed centre."""
        parts, k = self.structure, neighbours.shape[1]
        ids = []
        if parts.rotations and not parts.moves_plane:
            plane = _rows(parts.plane, neighbours)
            ids = [_soft_length(points @ plane.mT).expand(-1, k, -1), _soft_length(neighbours @ plane.mT)]
        fixed = _rows(parts.fixed, neighbours)
        return [*ids, (points @ fixed.mT).expand(-1, k, -1), neighbours @ fixed.mT]


def _about_centre(parts: AffineStructure, points: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
    """Invariants of two points under dilations about the origin: over the mean of their squared distances from it."""
    a, b = points.square().sum(-1, keepdim=True), neighbours.square().sum(-1, keepdim=True)
    size = pair_size(a, b, weights)
    ratio = 0.5 * (a - b) / size
    if parts.rotations == 0:
        root = size.sqrt()
        return torch.cat([points / root, neighbours / root, ratio], dim=-1)
    across = points[..., 1:] * neighbours[..., :1] - points[..., :1] * neighbours[..., 1:]
    return torch.cat([(points * neighbours).sum(-1, keepdim=True) / size, across / size, ratio], dim=-1)


def _rows(basis: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    return torch.tensor(basis, dtype=like.dtype, device=like.device).view(-1, like.shape[-1])


def _rotated(R: Float[Tensor, "M k r r"], x: Float[Tensor, "M k r"]) -> Float[Tensor, "M k r"]:
    """``R x`` for many small matrices, by columns: batched products of such sizes take longer."""
    product = R[..., 0] * x[..., :1]
    for i in range(1, x.shape[-1]):
        product = product + R[..., i] * x[..., i : i + 1]
    return product


def _across_plane(translations: Float[Tensor, "t d"], plane: Float[Tensor, "r d"]) -> Float[Tensor, "n d"]:
    """Orthonormal directions of translation perpendicular to the plane of rotation; none where it holds them all."""
    if len(translations) == len(plane):
        return translations[:0]
    return torch.linalg.cross(plane[0], plane[1]).unsqueeze(0)  # rotations about an axis in space


def _soft_length(x: Tensor) -> Tensor:
    """``sqrt(|x|^2 + FLOOR^2) - FLOOR``: the distance from the centre, without its kink there."""
    return (x.square().sum(-1, keepdim=True) + FLOOR**2).sqrt() - FLOOR


def frame_structure(group: LieGroup) -> AffineStructure | None:
    """The parts of the group's action where `FrameLift` supports them, else None."""
    structure = affine_structure(group)
    return structure if structure is not None and _supported(structure) else None


def _supported(parts: AffineStructure) -> bool:
    """Dilations go with translations in all directions, or about one centre with turns of the plane or none."""
    if not parts.dilation:
        return True
    if len(parts.translations) == parts.d:
        return True
    return not parts.translations and (parts.rotations == 0 or parts.d == 2)
