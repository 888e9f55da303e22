"""How a layer or network chooses neighbours: the options, and the radius that a fill fraction has learnt."""

from __future__ import annotations

from typing import Any

import torch
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import Geometry, build_geometry
from lieconv.geometry.cloud import cloud_of
from lieconv.geometry.geometry import check_neighbourhood, check_smooth
from lieconv.geometry.lifts import Coordinates, FrameLift, LiftName, check_flags, check_generator, make_lift
from lieconv.geometry.neighbours import fill_radius


class Neighbourhood(nn.Module):
    """Builds the geometry of a batch by one set of options.

    With ``fill`` the radius that holds this fraction of the points is measured on every training batch and averaged
    over batches; evaluation uses the average, a buffer. Nothing waits for an accelerator.

    Args:
        group, num_neighbors, radius, fill, lift, coordinates, num_samples, smooth: as of `lieconv.build_geometry`.
        at_random: while training, draw a ball's neighbours from it uniformly, where it holds more than
            ``num_neighbors``; else, and always in evaluation, they are the nearest in it. None draws with ``fill`` (the
            paper's), and not with ``radius``.
        generator: randomness of sampled lifts and balls while training; None is torch's own. In evaluation sampled
            lifts come from a fixed seed.
    """

    fill_radius: Tensor
    batches: Tensor

    def __init__(
        self,
        group: LieGroup,
        *,
        num_neighbors: int = 32,
        radius: float | None = None,
        fill: float | None = None,
        lift: LiftName = "exact",
        coordinates: Coordinates = "auto",
        num_samples: int = 1,
        at_random: bool | None = None,
        smooth: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_flags(smooth=smooth, **({} if at_random is None else {"at_random": at_random}))
        check_generator(generator)
        made = make_lift(group, lift, coordinates, num_samples)
        check_neighbourhood(made, group, num_neighbors, radius, fill, bool(at_random), None)
        if smooth:
            check_smooth(made, group, radius, fill, bool(at_random))
        self.at_random = fill is not None if at_random is None else at_random
        self.draws_in_cells = at_random is True  # refused; by default cells take the nearest
        self.smooth = smooth
        self.group, self.num_neighbors, self.radius, self.fill = group, num_neighbors, radius, fill
        self.lift: LiftName = lift
        self.coordinates: Coordinates = coordinates
        self.num_samples, self.generator, self.made = num_samples, generator, made
        if fill is not None:
            self.register_buffer("batches", torch.zeros((), dtype=torch.long))
            self.register_buffer("fill_radius", torch.zeros(()))

    @property
    def uses_features(self) -> bool:
        """Whether frames can be weighed by invariant features of the points."""
        if not isinstance(self.made, FrameLift) or self.made.about_centre:
            return False
        # Turns of the plane about a fixed centre: the point itself is the frame.
        return self.made.structure.rotations > int(not self.made.structure.moves_plane)

    def forward(self, coords: Tensor, mask: Tensor | None = None, **options: Any) -> Geometry:
        """The geometry; further options are those of `lieconv.build_geometry`."""
        radius: float | Tensor | None = self.radius
        if self.fill is not None:
            radius = self._filled(coords, mask, options.get("batch"))
        at_random = self.training and self.at_random and (options.get("cell") is None or self.draws_in_cells)
        return build_geometry(
            self.group,
            coords,
            mask,
            num_neighbors=self.num_neighbors,
            radius=radius,
            at_random=at_random,
            smooth=self.smooth,
            lift=self.lift,
            coordinates=self.coordinates,
            num_samples=self.num_samples,
            generator=self.random(coords.device),
            **options,
        )

    def random(self, device: torch.device) -> torch.Generator | None:
        """The generator of this call: while training the one given, in evaluation a fresh one of a fixed seed."""
        if self.training or self.lift == "exact":
            return self.generator
        return torch.Generator(device).manual_seed(0)

    def _filled(self, coords: Tensor, mask: Tensor | None, batch: Tensor | None) -> Tensor:
        assert self.fill is not None
        known = self.batches > 0
        if not self.training:
            measured = fill_radius(self.made, cloud_of(self.group, coords, mask, batch=batch), self.fill)
            return torch.where(known, self.fill_radius.to(measured), measured)
        with torch.no_grad():
            measured = fill_radius(self.made, cloud_of(self.group, coords, mask, batch=batch), self.fill)
            here = measured.to(self.fill_radius)
            self.fill_radius.copy_(torch.where(known, self.fill_radius.lerp(here, 0.1), here))
            self.batches.add_(1)
        return self.fill_radius.to(measured)

    def extra_repr(self) -> str:
        """The line shown by ``print``."""
        reach = "" if self.radius is None else f", radius={self.radius}"
        reach += "" if self.fill is None else f", fill={self.fill}"
        return f"{self.group!r}, num_neighbors={self.num_neighbors}{reach}, lift={self.lift!r}"
