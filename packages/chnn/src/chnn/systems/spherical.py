"""What systems of bobs on rods in space share: spherical angles about their anchors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.systems.base import System, infinite_to_nan
from chnn.systems.coordinates import direction, direction_angles


class SphericalSystem(System):
    """Bobs, each on a rod from an anchor of its own; `anchors` (n, 3) and `lengths` (n,) say where."""

    anchors: Tensor
    lengths: Tensor

    @property
    def num_angles(self) -> int:
        """Two for each bob."""
        return 2 * self.num_points

    def to_angles(self, z: Float[Tensor, "*batch 2 n 3"]) -> Float[Tensor, "*batch 2 angles"]:
        """Spherical angles (phi, theta) of each bob about the x axis and their rates; hanging is (pi, pi/2)."""
        x, v = map(infinite_to_nan, self._split(z))
        angles, rates = torch.func.jvp(direction_angles, (x - self.anchors.to(z),), (v,))  # type: ignore[misc]  (two without has_aux)
        return torch.stack([angles, rates], dim=-3).flatten(-2)

    def from_angles(self, angles: Float[Tensor, "*batch 2 angles"]) -> Float[Tensor, "*batch 2 n 3"]:
        """The inverse of `to_angles`, up to full turns."""
        pairs = angles.unflatten(-1, (-1, 2))
        u, rate = torch.func.jvp(direction, (pairs[..., 0, :, :],), (pairs[..., 1, :, :],))  # type: ignore[misc]  (two without has_aux)
        length = self.lengths.to(angles).unsqueeze(-1)
        return torch.stack([self.anchors.to(angles) + length * u, length * rate], dim=-3)

    def rest(self) -> Float[Tensor, "2 n 3"]:
        """All hanging straight down."""
        x = self.anchors.clone()
        x[:, -1] -= self.lengths
        return torch.stack([x, torch.zeros_like(x)])

    def _numbers(self, **more: Any) -> dict[str, Any]:
        return {"masses": self.masses.tolist(), "lengths": self.lengths.tolist(), **more}
