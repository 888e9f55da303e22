"""A rope of many links, hung at one end, that bends freely and does not stretch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly
from chnn.mechanics.bodies import number
from chnn.systems.base import System, check_count


class Rope(System):
    """``links`` point masses in space, each at a fixed distance from the one before, the first from the origin.

    Args:
        links: number of links; the Gram matrix is tridiagonal.
        mass: of the whole rope, kg.
        length: of the whole rope, m.
        damping: of every point's velocity, N s/m.

    Initial states: hanging in three random smooth waves of 0.3 N rad, with velocities of 0.3 N m/s, smooth too.
    """

    name = "rope"
    dt, horizon = 0.02, 2.0

    def __init__(self, links: int = 50, mass: float = 1.0, length: float = 2.0, damping: float = 0.0) -> None:
        check_count(links, "link")
        mass, length, damping = number(mass, "mass"), number(length, "length"), number(damping, "damping")
        if not (0.0 < mass < float("inf") and 0.0 < length < float("inf")):
            raise UserError(f"expected a positive finite mass and length, got {mass} and {length}")
        self.links, self.mass, self.length, self.damping = links, mass, length, damping
        world = Assembly(3)
        step = length / links
        before = None
        for i in range(links):
            knot = world.point(f"knot {i}", mass / links, position=(0.0, 0.0, -(i + 1) * step))
            if before is None:
                world.tether(knot, (0.0, 0.0, 0.0), step)
            else:
                world.distance(before, knot, step)
            before = knot
        world.gravity()
        if damping:
            world.damping(damping)
        super().__init__(world.build(self.name, check=False))

    def rest(self) -> Float[Tensor, "2 n 3"]:
        """Hanging straight down."""
        return torch.stack([self.description.reference, torch.zeros_like(self.description.reference)])

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        s = (torch.arange(self.links, dtype=torch.float64) + 0.5) / self.links
        waves = torch.stack([torch.sin(torch.pi * (k + 0.5) * s) for k in range(3)])  # (3, links)
        noise = torch.randn(2, num, 2, 3, generator=generator, dtype=torch.float64)
        tilt = 0.3 * (noise[0] @ waves)  # (num, 2, links): towards x and y
        speed = 0.3 * (noise[1] @ waves)
        angle = tilt.norm(dim=1).clamp(min=1e-12)
        side = (tilt * (angle.sin() / angle).unsqueeze(1)).mT  # (num, links, 2)
        rod = torch.cat([side, -angle.cos().unsqueeze(-1)], dim=-1) * (self.length / self.links)
        v = torch.cat([speed.mT, torch.zeros(num, self.links, 1, dtype=torch.float64)], dim=-1)
        return self.project(torch.stack([rod.cumsum(1), v], dim=1))

    def parameters(self) -> dict[str, Any]:
        """Links, mass, length, damping, gravity."""
        return {"links": self.links, "mass": self.mass, "length": self.length, "damping": self.damping,
                "gravity": GRAVITY}  # fmt: skip
