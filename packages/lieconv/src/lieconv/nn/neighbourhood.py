"""How a layer or network chooses neighbours: the options, and the radius measured for a fill fraction."""

from __future__ import annotations

from typing import Any

import torch
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import Geometry, build_geometry
from lieconv.geometry.build import check_cell_group, check_choice, geometry_of
from lieconv.geometry.checks import check_flags, check_generator
from lieconv.geometry.cloud import Cloud, cloud_of
from lieconv.geometry.lift import Coordinates, LiftName
from lieconv.geometry.lifts import make_lift
from lieconv.geometry.neighbours import fill_radius
from lieconv.geometry.request import Targets


class Neighbourhood(nn.Module):
    """Build the geometry of each batch with one set of options.

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
        self.point_lift = make_lift(group, lift, coordinates, num_samples)
        check_choice(self.point_lift, num_neighbors, radius, fill, at_random=bool(at_random), smooth=smooth)
        self.at_random = fill is not None if at_random is None else at_random
        self.draws_in_cells = at_random is True  # refused; by default cells take the nearest
        self.smooth = smooth
        self.group, self.num_neighbors, self.radius, self.fill = group, num_neighbors, radius, fill
        self.lift: LiftName = lift
        self.coordinates: Coordinates = coordinates
        self.num_samples, self.generator = num_samples, generator
        if fill is not None:
            self.register_buffer("batches", torch.zeros((), dtype=torch.long))
            self.register_buffer("fill_radius", torch.zeros(()))

    @property
    def uses_features(self) -> bool:
        """Whether frames can be weighed by invariant features of the points."""
        return self.point_lift.uses_features

    def forward(self, coords: Tensor, mask: Tensor | None = None, **options: Any) -> Geometry:
        """The geometry of points; further options are those of `lieconv.build_geometry`."""
        radius: float | Tensor | None = self.radius
        if self.fill is not None:
            radius = self._average_radius(cloud_of(self.group, coords, mask, batch=options.get("batch")))
        return build_geometry(
            self.group,
            coords,
            mask,
            num_neighbors=self.num_neighbors,
            radius=radius,
            at_random=self._draws(in_cell=options.get("cell") is not None),
            smooth=self.smooth,
            lift=self.lift,
            coordinates=self.coordinates,
            num_samples=self.num_samples,
            generator=self.random(coords.device),
            **options,
        )

    def cloud(
        self, coords: Tensor, mask: Tensor | None = None, *, batch: Tensor | None = None, cell: Tensor | None = None
    ) -> Cloud:
        """Check a batch of points once, for any number of calls of `from_cloud`; arguments as of `build_geometry`."""
        if cell is not None:
            check_cell_group(self.group, at_random=self._draws(in_cell=True))
        return cloud_of(self.group, coords, mask, batch=batch, cell=cell)

    def from_cloud(
        self,
        sources: Cloud,
        targets: Targets | None = None,
        *,
        quadrature: Tensor | None = None,
        frame_features: Tensor | None = None,
        elements: tuple[Tensor, Tensor] | None = None,
    ) -> Geometry:
        """The geometry of points that are checked already, at ``targets`` or at all of them.

        Args:
            sources: points, as of `cloud`.
            targets: where to evaluate; None for the sources.
            quadrature, frame_features, elements: of the sources, as of `lieconv.geometry.request.Request`.
        """
        return geometry_of(
            self.point_lift,
            sources,
            Targets(sources, None) if targets is None else targets,
            num_neighbors=self.num_neighbors,
            radius=self.radius if self.fill is None else self._average_radius(sources),
            at_random=self._draws(in_cell=sources.cell is not None),
            smooth=self.smooth,
            quadrature=quadrature,
            frame_features=frame_features,
            elements=elements,
            generator=self.random(sources.coords.device),
        )

    def random(self, device: torch.device) -> torch.Generator | None:
        """The generator of this call: while training the one given, in evaluation a fresh one of a fixed seed."""
        if self.training or self.lift == "exact":
            return self.generator
        return torch.Generator(device).manual_seed(0)

    def _draws(self, *, in_cell: bool) -> bool:
        """Whether this call draws neighbours at random."""
        return self.training and self.at_random and (not in_cell or self.draws_in_cells)

    def _average_radius(self, cloud: Cloud) -> Tensor:
        """The radius that holds the fill fraction: averaged over training batches, this one included in training."""
        assert self.fill is not None
        measured_before = self.batches > 0  # a tensor: a Python branch would wait for an accelerator
        if not self.training:
            measured = fill_radius(self.point_lift, cloud, self.fill)
            return torch.where(measured_before, self.fill_radius.to(measured), measured)
        with torch.no_grad():
            measured = fill_radius(self.point_lift, cloud, self.fill)
            of_batch = measured.to(self.fill_radius)
            self.fill_radius.copy_(torch.where(measured_before, self.fill_radius.lerp(of_batch, 0.1), of_batch))
            self.batches.add_(1)
        return self.fill_radius.to(measured)

    def extra_repr(self) -> str:
        """The line shown by ``print``."""
        reach = "" if self.radius is None else f", radius={self.radius}"
        reach += "" if self.fill is None else f", fill={self.fill}"
        return f"{self.group!r}, num_neighbors={self.num_neighbors}{reach}, lift={self.lift!r}"
