"""Pendulums in space, side by side, coupled to their neighbours by springs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly
from chnn.mechanics.bodies import number
from chnn.mechanics.constraints import positive
from chnn.systems.base import check_count
from chnn.systems.spherical import SphericalSystem


class CoupledPendulum(SphericalSystem):
    """``bobs`` point masses on rods from anchors 1 m apart along x, with springs between neighbours.

    Args:
        bobs: number of pendulums, n.
        masses: kg; 1 each by default.
        lengths: of the rods, m; 1 each by default.
        spring_constant: of every spring, N/m; the rest length is 1 m.

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): spherical angles and rates 0.3 standard normal about hanging.
    """

    name = "coupled-pendulum"
    dt, horizon = 0.05, 5.0

    def __init__(
        self,
        bobs: int = 3,
        masses: Sequence[float] | None = None,
        lengths: Sequence[float] | None = None,
        spring_constant: float = 10.0,
    ) -> None:
        check_count(bobs, "bob")
        spring_constant = number(spring_constant, "spring_constant")
        if not 0.0 <= spring_constant < float("inf"):
            raise UserError(f"expected a spring constant of at least 0, got {spring_constant}")
        self.bobs, self.spring_constant = bobs, spring_constant
        mass = positive("masses", masses, bobs).tolist()
        self.lengths = positive("lengths", lengths, bobs)
        self.anchors = torch.zeros(bobs, 3, dtype=torch.float64)
        self.anchors[:, 0] = torch.arange(bobs, dtype=torch.float64)
        world = Assembly(3)
        before = None
        for i, length in enumerate(self.lengths.tolist()):
            bob = world.point(f"bob {i}", mass[i], position=(i, 0.0, -length))
            world.tether(bob, (i, 0.0, 0.0), length)
            if before is not None:
                world.spring(before, bob, spring_constant, 1.0)
            before = bob
        world.gravity()
        super().__init__(world.build(self.name, check=False))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        angles = 0.3 * torch.randn(num, 2, 2 * self.bobs, generator=generator, dtype=torch.float64)
        angles[:, 0, ::2] += torch.pi
        angles[:, 0, 1::2] += 0.5 * torch.pi
        return self.project(self.from_angles(angles))

    def parameters(self) -> dict[str, Any]:
        """Number of bobs, masses, lengths, spring constant, gravity."""
        return {"bobs": self.bobs, **self._numbers(spring_constant=self.spring_constant, gravity=GRAVITY)}
