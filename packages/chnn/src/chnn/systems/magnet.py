"""A magnetic pendulum in space above magnets fixed on the floor."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly
from chnn.mechanics.bodies import number
from chnn.systems.base import check_count
from chnn.systems.spherical import SphericalSystem


class MagnetPendulum(SphericalSystem):
    """A point mass with a dipole along its rod, from the origin, above fixed upright dipoles.

    Args:
        mass: kg.
        length: of the rod, m.
        dipole: strength of every dipole, in units where the vacuum permeability is 1.
        magnets: number of fixed dipoles, on a circle of radius 0.1 m at depth 1.05 lengths.
        published_sign: the dipole energy with the minus sign of the published implementation, for comparison.

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): spherical angles phi = pi + 0.3 N, theta = pi/2 + 0.2 N, with
    rates 0.05 N and 0.4 N, N standard normal.
    """

    name = "magnet-pendulum"
    dt, horizon = 0.05, 5.0

    def __init__(
        self,
        mass: float = 3.0,
        length: float = 1.0,
        dipole: float = 0.3,
        magnets: int = 2,
        published_sign: bool = False,
    ) -> None:
        check_count(magnets, "magnet", least=0)
        if not math.isfinite(dipole):
            raise UserError(f"expected a finite dipole, got {dipole}")
        self.mass, self.length, self.dipole = number(mass, "mass"), number(length, "length"), number(dipole, "dipole")
        self.magnets, self.published_sign = magnets, bool(published_sign)
        world = Assembly(3)
        bob = world.point("bob", self.mass, position=(0.0, 0.0, -self.length))
        world.tether(bob, (0.0, 0.0, 0.0), self.length)
        world.gravity()
        turn = torch.arange(magnets, dtype=torch.float64) * (2.0 * math.pi / max(magnets, 1))
        self.places = torch.stack([0.1 * turn.cos(), 0.1 * turn.sin(), torch.full_like(turn, -1.05 * self.length)], -1)
        if magnets:
            moments = torch.zeros_like(self.places)
            moments[:, 2] = self.dipole
            world.magnets(
                bob, bob.at(), (0.0, 0.0, 0.0), self.dipole, self.places, moments, published_sign=published_sign
            )
        self.anchors = torch.zeros(1, 3, dtype=torch.float64)
        self.lengths = torch.tensor([self.length], dtype=torch.float64)
        super().__init__(world.build(self.name, check=False))

    def energy_scale(self, z: Float[Tensor, "*batch 2 n 3"]) -> Float[Tensor, "*batch"]:
        """Energy above the lowest one on the sphere, joules."""
        return self.energy(z) - self._lowest

    @property
    def _lowest(self) -> float:
        if not hasattr(self, "_lowest_energy"):
            phi = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)
            theta = torch.linspace(0, torch.pi, 361, dtype=torch.float64)
            grid = torch.stack(torch.meshgrid(phi, theta, indexing="ij"), -1).flatten(0, 1)
            states = self.from_angles(torch.stack([grid, torch.zeros_like(grid)], -2))
            self._lowest_energy = float(self.energy(states).min())
        return self._lowest_energy

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 1 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        noise = torch.randn(num, 2, 2, generator=generator, dtype=torch.float64)
        scale = torch.tensor([[0.3, 0.2], [0.05, 0.4]], dtype=torch.float64)
        middle = torch.tensor([[math.pi, 0.5 * math.pi], [0.0, 0.0]], dtype=torch.float64)
        return self.project(self.from_angles(middle + scale * noise))

    def parameters(self) -> dict[str, Any]:
        """Mass, length, dipole, magnets, sign, gravity."""
        return {"mass": self.mass, "length": self.length, "dipole": self.dipole, "magnets": self.magnets,
                "published_sign": self.published_sign, "gravity": GRAVITY}  # fmt: skip
