"""The lift to group elements: the one element of each point, or elements drawn at random from its coset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.frame_lift import frame_structure
from lieconv.geometry.geometry import Geometry, element_rows
from lieconv.geometry.lift import Lift
from lieconv.geometry.neighbours import gather
from lieconv.geometry.request import Request, Targets


@dataclass(frozen=True)
class ElementLift(Lift):
    """Group elements of the points: the one there is, or ``num_samples`` drawn at random from each coset."""

    group: LieGroup
    log: bool
    """Whether the kernel sees the logarithm of the relative element, or its entries."""
    num_samples: int = 1
    exact: bool = False
    """Whether each point has just one element, and none is drawn at random."""

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Coordinates of the relative element and the two orbit ids."""
        d = self.group.point_dim or self.group.matrix_dim
        orbit = self.group.lift(torch.ones(1, d))[1].shape[-1]
        return (self.group.dim if self.log else len(varying_entries(self.group))) + 2 * orbit

    def elements(self, coords: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Elements (P * num_samples, m, m) and orbit ids (P * num_samples, q)."""
        u, q = self.group.lift(coords, num_samples=self.num_samples, generator=generator)
        return u.flatten(0, 1), q.flatten(0, 1)

    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """The points."""
        return cloud.coords

    def squared(self, points: Tensor, neighbours: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared lengths of the offsets."""
        return offsets.square().sum(-1)

    @property
    def search_group(self) -> LieGroup | None:
        """The group where no Euclidean distance is invariant under it, else None."""
        return None if self.group.isometric else self.group

    def geometry(self, request: Request) -> Geometry:
        """Neighbourhoods among the elements of all points, ``num_samples`` of each."""
        K, generator, targets = self.num_samples, request.generator, request.targets
        elements = request.elements or self.elements(request.sources.coords, generator)
        index = targets.index
        if targets.chosen is not None:
            index = element_rows(targets.chosen, K)
            target_elements = elements[0][index], elements[1][index]
        elif request.at_sources:
            target_elements = elements
        else:
            target_elements = self.elements(targets.cloud.coords, generator)
        sources = _elements_of(request.sources, K)
        cloud = sources if request.at_sources else _elements_of(targets.cloud, K)
        quadrature = None if request.quadrature is None else request.quadrature.repeat_interleave(K)
        request = replace(request, sources=sources, targets=Targets(cloud, index), quadrature=quadrature)
        near = request.neighbours(self, cloud, (elements, target_elements))
        neighbours = gather(elements[0], near.indices), gather(elements[1], near.indices)
        points = target_elements[0].unsqueeze(1), target_elements[1].unsqueeze(1)
        return request.assembled(near, self.pairs(points, neighbours), K)

    def check_elements(self, elements: tuple[Tensor, Tensor], points: int) -> None:
        """Raise if ``elements`` are not ``num_samples`` elements and orbit ids of each of so many points."""
        m, count = self.group.matrix_dim, points * self.num_samples
        shapes = [tuple(x.shape) for x in elements]
        if len(shapes) != 2 or shapes[0] != (count, m, m) or shapes[1][:-1] != (count,):
            raise ValueError(f"expected elements ({count}, {m}, {m}) and orbit ids ({count}, q), got {shapes}")

    def check_ball(self, *, fill: bool, at_random: bool) -> None:
        """Raise if a ball is to be drawn from or filled where only the group's own distance orders the neighbours."""
        if self.search_group is None:
            return
        if at_random:
            raise ValueError(f"{self.group!r} has no Euclidean distance to draw from a ball by; leave at_random out")
        if fill:
            raise ValueError(f"{self.group!r} has no Euclidean distance to measure a fill fraction by; give a radius")

    def check_smooth(self, *, radius: bool) -> None:
        """Raise for elements drawn at random, logarithms, and groups for which smooth invariants exist."""
        if not self.exact or self.log or frame_structure(self.group) is not None:
            raise ValueError(
                f"forces need kernel coordinates that are smooth in the points, which draws and logarithms are not; "
                f"use lift='exact' and coordinates='auto', got {self.group!r} without"
            )

    def pairs(self, points: tuple[Tensor, Tensor], neighbours: tuple[Tensor, Tensor]) -> Float[Tensor, "M k c"]:
        """Kernel coordinates of the elements and orbit ids of points (M, 1, ...) and neighbours (M, k, ...)."""
        (u, q), (v, r) = points, neighbours
        if self.log:
            relative = self.group.relative(u, v)
        else:
            difference = self.group.inverse(v) @ u - self.group.identity(dtype=u.dtype, device=u.device)
            # asinh: entries may grow without bound as a point comes to where the group keeps it.
            relative = difference.flatten(-2)[..., list(varying_entries(self.group))].asinh()
        return torch.cat([relative, q.expand(*r.shape[:-1], -1), r], dim=-1)


def varying_entries(group: LieGroup) -> tuple[int, ...]:
    """Flat positions of the matrix entries that are not the same on the whole group."""
    positions = group.__dict__.get("_varying_entries")
    if positions is None:
        generator = torch.Generator().manual_seed(0)
        elements = group.sample(64, generator=generator, dtype=torch.float64).flatten(1)
        positions = tuple((elements - elements[:1]).abs().amax(0).nonzero().flatten().tolist())
        object.__setattr__(group, "_varying_entries", positions)
    return positions


varying_entries._dynamo_marked_constant = True  # type: ignore[attr-defined]  (made while tracing, it would be traced)


def _elements_of(cloud: Cloud, count: int) -> Cloud:
    """The cloud with each point repeated for its elements."""
    if count == 1:
        return cloud
    shape = None if cloud.shape is None else (cloud.shape[0], cloud.shape[1] * count)
    coords, mask, sample = (x.repeat_interleave(count, dim=0) for x in (cloud.coords, cloud.mask, cloud.sample))
    return Cloud(coords, mask, sample, cloud.count, shape, cloud.cell, cloud.full)
