"""The distance by which neighbours are sought."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.cloud import Cloud
from lieconv.geometry.frames import SOFTNESS

FAR = 1e4
"""Distance of points that no group element brings together.

More than twice the logarithm of any floating-point number; its square is far from overflow.
"""


class Metric(ABC):
    """A distance between points, Euclidean in an embedding or the group's own."""

    squared_floor: float = 0.0
    """Added to the squared length scale of a neighbourhood."""

    @property
    def search_group(self) -> LieGroup | None:
        """The group whose own distance orders the neighbours; None where the distance in the embedding does."""
        return None

    @abstractmethod
    def embedding(self, cloud: Cloud) -> Float[Tensor, "P e"]:
        """Points of a Euclidean space whose distances order the neighbours."""

    @abstractmethod
    def squared(self, points: Tensor, neighbours: Tensor, offsets: Tensor) -> Float[Tensor, "M k"]:
        """Squared distances of the pairs of the embedded ``points`` (M, 1, e) and ``neighbours`` (M, k, e)."""


def distances_between(points: Tensor, neighbours: Tensor, marks: int) -> Float[Tensor, "M k"]:
    """Squared distances, all the same where one of the last ``marks`` coordinates differs.

    A point that the group keeps is infinitely far from one that it moves: rounding must not order such pairs.
    """
    difference = neighbours - points
    inside = difference[..., :-marks].square().sum(-1)
    other = (difference[..., -marks:] != 0).any(-1)
    return torch.where(other, torch.full_like(inside, FAR**2), inside)


def pair_size(a: Float[Tensor, "M 1 c"], b: Float[Tensor, "M k c"], weights: Tensor) -> Float[Tensor, "M k c"]:
    """The means of the squares of two points, and a small part of the neighbourhood's mean, so that both may be zero.

    Where all of a neighbourhood is zero, so are numerators, and the result is 1. A number that no dilation changes has
    no limit neighbours.
    """
    around = weights.unsqueeze(-2) @ b  # (M, 1, c)
    size = 0.5 * (a + b) + SOFTNESS**2 * around
    return torch.where(size > 0, size, torch.ones_like(size))
