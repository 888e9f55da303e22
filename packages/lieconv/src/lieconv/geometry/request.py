"""A request for a geometry: checked points and options, as a lift receives them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.geometry import Geometry, repeated_index
from lieconv.geometry.metric import Metric
from lieconv.geometry.neighbours import Neighbourhoods, find_neighbours


@dataclass(frozen=True)
class Targets:
    """The points at which a convolution is evaluated.

    Fields:
        cloud: the points.
        index: their numbers among the sources, (M,); None where they are the sources, in order; empty where they are
            queries, which are not among the sources.
    """

    cloud: Cloud
    index: Int[Tensor, " M"] | None

    @property
    def chosen(self) -> Int[Tensor, " M"] | None:
        """The numbers of targets that were chosen among the sources; None for all sources and for queries."""
        return None if self.index is None or not self.index.numel() else self.index


@dataclass(frozen=True)
class Request:
    """Points and options of `lieconv.build_geometry` after their checks.

    Fields:
        sources, targets: the points to search and the points to evaluate at.
        centre: where positions are measured from, (count, d).
        num_neighbors, radius, at_random, smooth, generator: as of `find_neighbours`.
        quadrature: weights of the sources, flat, (P,).
        frame_features: two invariant numbers of each source for soft frames, flat, (S * P, 2) for S sets of features.
        elements: group elements and orbit ids of the sources, where the caller has them.
    """

    sources: Cloud
    targets: Targets
    centre: Float[Tensor, "B d"]
    num_neighbors: int
    radius: Float[Tensor, ""] | None = None
    at_random: bool = False
    smooth: bool = False
    quadrature: Float[Tensor, " P"] | None = None
    frame_features: Float[Tensor, "SP 2"] | None = None
    elements: tuple[Tensor, Tensor] | None = None
    generator: torch.Generator | None = None

    @property
    def at_sources(self) -> bool:
        """Whether the targets are the sources, in order."""
        return self.targets.cloud is self.sources

    def neighbours(
        self,
        metric: Metric,
        targets: Cloud,
        elements: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Neighbourhoods:
        """Neighbours of ``targets`` among the sources, with the options of the request."""
        return find_neighbours(
            metric,
            self.sources,
            targets,
            self.num_neighbors,
            radius=self.radius,
            at_random=self.at_random,
            smooth=self.smooth,
            elements=elements,
            quadrature=self.quadrature,
            generator=self.generator,
        )

    def repeated(self, copies: int) -> Request:
        """The request for ``copies`` of the one sample, each with frames of its own."""
        if copies == 1:
            return self
        step = self.sources.coords.shape[0]
        index = None if self.targets.index is None else repeated_index(self.targets.index, copies, step)
        sources = _repeated_cloud(self.sources, copies)
        cloud = sources if self.at_sources else _repeated_cloud(self.targets.cloud, copies)
        centre = self.centre.repeat(copies, 1)
        return replace(self, sources=sources, targets=Targets(cloud, index), centre=centre)

    def assembled(self, near: Neighbourhoods, kernel_coords: Float[Tensor, "M k c"], num_samples: int = 1) -> Geometry:
        """The geometry of these neighbourhoods and kernel coordinates."""
        points, sources = self.targets.cloud, self.sources
        return Geometry(
            indices=near.indices,
            weights=near.weights,
            kernel_coords=kernel_coords,
            offsets=near.offsets,
            positions=self._positions(),
            mask=points.mask,
            source_mask=sources.mask,
            sample=points.sample,
            targets=self.targets.index,
            count=points.count,
            shape=points.shape,
            num_samples=num_samples,
            source_shape=sources.shape,
            full=points.full,
            source_full=sources.full,
        )

    def _positions(self) -> Float[Tensor, "M d"]:
        points = self.targets.cloud
        if self.sources.cell is not None:
            return torch.zeros_like(points.coords)  # a periodic cell has no centre
        return (points.coords - self.centre[points.sample]) * points.mask.unsqueeze(-1)


def _repeated_cloud(cloud: Cloud, copies: int) -> Cloud:
    assert cloud.shape is not None and cloud.count == 1
    sample = torch.arange(copies, device=cloud.sample.device).repeat_interleave(len(cloud.sample))
    cell = None if cloud.cell is None else cloud.cell.repeat(copies, 1, 1)
    shape = (copies, cloud.shape[1])
    return Cloud(cloud.coords.repeat(copies, 1), cloud.mask.repeat(copies), sample, copies, shape, cell, cloud.full)
