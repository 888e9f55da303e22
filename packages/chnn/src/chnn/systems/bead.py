"""A bead that slides without friction on a surface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly
from chnn.mechanics.bodies import number
from chnn.systems.base import System, check_count


def bowl(u: Tensor) -> Tensor:
    """z = (x^2 + y^2) / 2."""
    return u[..., 2] - 0.5 * (u[..., 0] * u[..., 0] + u[..., 1] * u[..., 1])


def saddle(u: Tensor) -> Tensor:
    """z = x^2 - y^2 / 2 + y^4 / 4: two valleys beside a pass."""
    y2 = u[..., 1] * u[..., 1]
    return u[..., 2] - u[..., 0] * u[..., 0] + 0.5 * y2 - 0.25 * y2 * y2


def torus(u: Tensor) -> Tensor:
    """A ring of radius 1 with a tube of radius 0.4, about the vertical axis."""
    ring = (u[..., 0] * u[..., 0] + u[..., 1] * u[..., 1]).sqrt() - 1.0
    return ring * ring + u[..., 2] * u[..., 2] - 0.16


SURFACES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float, float]]] = {
    "bowl": (bowl, (0.5, 0.0, 0.125)),
    "saddle": (saddle, (0.1, 1.0, -0.24)),
    "torus": (torus, (0.6, 0.0, 0.0)),
}
"""Name to function, and a point on it or near it."""


class Bead(System):
    """A point mass on a surface f(x) = 0 under gravity.

    Args:
        mass: kg.
        surface: "bowl", "saddle", "torus", or a function of points (..., 3) -> (...).
        start: a point near the surface, for a surface of your own, m.

    Initial states: near ``start``, with velocities N.
    """

    name = "bead"
    dt, horizon = 0.02, 4.0

    def __init__(
        self,
        mass: float = 1.0,
        surface: str | Callable[[Tensor], Tensor] = "bowl",
        start: tuple[float, float, float] | None = None,
    ) -> None:
        if isinstance(surface, str):
            if surface not in SURFACES:
                raise unknown_name("surface", surface, SURFACES)
            function, near = SURFACES[surface]
            self.surface = surface
        elif start is None:
            raise UserError("expected start=(x, y, z), a point near a surface of your own")
        else:
            function, near, self.surface = surface, start, getattr(surface, "__name__", "surface")
        world = Assembly(3)
        bead = world.point("bead", number(mass, "mass"), position=start or near)
        world.on_surface(bead, function)
        world.gravity()
        super().__init__(world.build(self.name))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 1 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        noise = torch.randn(2, num, 1, 3, generator=generator, dtype=torch.float64)
        return self.project(torch.stack([self.description.reference + 0.1 * noise[0], noise[1]], dim=1))

    def parameters(self) -> dict[str, Any]:
        """Mass, surface, gravity."""
        return {"mass": float(self.masses[0]), "surface": self.surface, "gravity": GRAVITY}
