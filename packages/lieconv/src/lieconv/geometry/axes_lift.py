"""The exact lift of positive scalings of the two axes (RxSQ), smooth across the axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.geometry import Geometry
from lieconv.geometry.lift import Coordinates, Lift, no_limit_error
from lieconv.geometry.metric import FAR, distances_between, pair_size
from lieconv.geometry.neighbours import gather
from lieconv.geometry.request import Request


@dataclass(frozen=True)
class AxesLift(Lift):
    """The exact lift of positive scalings of the two axes: ratios of coordinates, and their signs.

    A coordinate 0 stays 0 under every scaling. If exactly one of two points lies on an axis, that fact is the pair's
    only invariant. All such pairs get one distance, larger than any other.
    """

    group: LieGroup
    kind: Coordinates
    """What the kernel sees of each axis.

    ``"invariants"``: both coordinates over their root mean square, smooth across the axes. ``"log"`` of the relative
    element, or its ``"entries"``, which are not smooth there: and the signs.
    """

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Two numbers an axis, and two signs of each point where they are apart."""
        return 4 if self.kind == "invariants" else 6

    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """Logarithms of the coordinates, a quadrant each in its place, and which are 0."""
        x = cloud.coords
        zero = x == 0
        size = torch.where(zero, torch.ones_like(x), x).abs().log()
        return torch.cat([size, x.detach().sign(), FAR * zero.to(x.dtype)], dim=-1)

    def squared(self, points: Tensor, neighbours: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared lengths of the differences of the embedded points."""
        return distances_between(points, neighbours, 2)

    def geometry(self, request: Request) -> Geometry:
        """Neighbourhoods of the targets by ratios of coordinates."""
        near = request.neighbours(self, request.targets.cloud)
        neighbours = gather(request.sources.coords, near.indices)
        points = request.targets.cloud.coords.unsqueeze(1)
        return request.assembled(near, self.pairs(points, neighbours, near.weights))

    @property
    def without_unit(self) -> bool:
        """True: scalings leave no unit of length."""
        return True

    def check_smooth(self, *, radius: bool) -> None:
        """Raise for coordinates that jump across the axes, and for a radius."""
        if self.kind != "invariants":
            raise ValueError("forces need kernel coordinates that are smooth across the axes; use coordinates='auto'")
        if radius:
            raise no_limit_error(self.group)

    def pairs(self, points: Tensor, neighbours: Tensor, weights: Tensor) -> Float[Tensor, "M k c"]:
        """Kernel coordinates of the points (M, 1, 2) and their neighbours (M, k, 2) of window weights (M, k)."""
        if self.kind == "invariants":
            root = pair_size(points.square(), neighbours.square(), weights).sqrt()
            return torch.cat([points / root, neighbours / root], dim=-1)
        on_axis = (points == 0) | (neighbours == 0)
        one = torch.ones_like(neighbours)
        ratio = torch.where(on_axis, one, points).abs() / torch.where(on_axis, one, neighbours).abs()
        if self.kind == "log":
            x, y = ratio.log().unbind(-1)
            element = torch.stack([0.5 * (x + y), 0.5 * (x - y)], dim=-1)  # (log r, s), as of RxSQ
        else:  # asinh: a ratio may grow without bound as a point comes to an axis
            element = (ratio - 1.0).asinh()
        return torch.cat([element, points.detach().sign().expand_as(neighbours), neighbours.detach().sign()], dim=-1)
