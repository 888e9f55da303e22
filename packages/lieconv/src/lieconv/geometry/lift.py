"""The interface of a lift: from points to group elements, and from pairs of points to kernel coordinates."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.geometry import Geometry
from lieconv.geometry.metric import Metric
from lieconv.geometry.request import Request

LiftName = Literal["exact", "sampled"]
Coordinates = Literal["auto", "log", "entries", "invariants"]


class Lift(Metric):
    """How points become group elements and pairs of points become kernel coordinates."""

    group: LieGroup
    dim: int
    """Number of kernel coordinates of a pair."""

    @abstractmethod
    def geometry(self, request: Request) -> Geometry:
        """Find the neighbours of the targets and compute the kernel coordinates of each pair."""

    @property
    def without_unit(self) -> bool:
        """Whether the group dilates, so that lengths have no unit and are compared with each other alone."""
        return False

    @property
    def uses_features(self) -> bool:
        """Whether invariant features of the points weigh the neighbours in the frames."""
        return False

    def elements(self, coords: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor] | None:
        """Group elements and orbit ids of points (P, d); None for a lift that makes kernel coordinates without them."""
        return None

    def check_elements(self, elements: tuple[Tensor, Tensor], points: int) -> None:
        """Raise if ``elements`` are not those of so many points."""
        raise ValueError("the exact lift finds the elements of points itself; leave elements out")

    def check_ball(self, *, fill: bool, at_random: bool) -> None:
        """Raise if a radius (or with ``fill`` a fraction of the points) makes no sense for the group."""
        return

    def check_smooth(self, *, radius: bool) -> None:
        """Raise if kernel coordinates are not continuously differentiable in the points."""
        return


def no_limit_error(group: LieGroup) -> ValueError:
    """The error for a radius where dilations about a centre or an axis make the energy of a ball jump."""
    return ValueError(
        f"{group!r} dilates lengths: near what it keeps, points within a radius have energies without a limit, and "
        "forces jump; leave radius out"
    )
