"""The chain pendulum: point masses hung one from the other by massless rods, in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import QuadraticConstraints
from chnn.mechanics.constraints import positive
from chnn.systems.base import GRAVITY, System


class ChainPendulum(System):
    """``links`` point masses in the plane, each on a rod from the one before, the first from the origin.

    Args:
        links: number of rods and masses, n.
        masses: of the points from the anchor outwards, kg; 1 each by default.
        lengths: of the rods from the anchor outwards, m; 1 each by default.

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): standard normal angles and rates, positions and velocities
    blurred, projected onto the constraints.

    >>> import torch
    >>> system = ChainPendulum(links=3)
    >>> system.simulate(system.sample(5), torch.linspace(0, 1, 11)).shape
    torch.Size([5, 11, 2, 3, 2])
    """

    name = "chain-pendulum"
    dt, horizon = 0.03, 3.0

    def __init__(
        self, links: int = 2, masses: Sequence[float] | None = None, lengths: Sequence[float] | None = None
    ) -> None:
        if links < 1:
            raise UserError(f"expected at least one link, got {links}")
        self.links = links
        self.masses = positive("masses", masses, links)
        A = torch.eye(links, dtype=torch.float64) - torch.diag(torch.ones(links - 1, dtype=torch.float64), -1)  # noqa: N806
        self.constraints_on_points = QuadraticConstraints(
            A, torch.zeros(links, 2, dtype=torch.float64), positive("lengths", lengths, links)
        )

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """Gravity: the sum of m g y."""
        return GRAVITY * (self.masses.to(x) * x[..., -1]).sum(-1)

    def force(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The weights."""
        weight = -GRAVITY * self.masses.to(x)
        return torch.stack([torch.zeros_like(weight), weight], dim=-1).expand_as(x)

    def rest(self) -> Float[Tensor, "2 n d"]:
        """Hanging straight down."""
        return self.from_angles(torch.zeros(2, self.links, dtype=torch.float64))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n d"]:
        """Random initial states on the constraints, float64."""
        if num < 1:
            raise UserError(f"expected at least one initial state, got {num}")
        kwargs: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        x, v = self.from_angles(torch.randn(num, 2, self.links, **kwargs)).unbind(1)
        noise = torch.randn(num, 2, self.links, 2, **kwargs)
        blurred = torch.stack([x + 0.2 * noise[:, 0], 3.0 * (0.5 * v + 0.4 * noise[:, 1])], dim=1)
        return self.project(blurred)

    def parameters(self) -> dict[str, Any]:
        """Number of links, masses, lengths, gravity."""
        lengths = self.constraints_on_points.lengths.tolist()
        return {"links": self.links, "masses": self.masses.tolist(), "lengths": lengths, "gravity": GRAVITY}

    def drawing(self) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
        """One anchor, a rod to each mass from the one before."""
        rods = [(link - 1, link) for link in range(self.links)]  # -1 is the anchor
        return torch.zeros(1, 2, dtype=torch.float64), rods, []

    def to_angles(self, z: Float[Tensor, "*batch 2 n 2"]) -> Float[Tensor, "*batch 2 n"]:
        """Angles of the rods from the downward vertical, counter-clockwise, in (-pi, pi], and their rates.

        The rates come from the cross product of rod and relative velocity, which has no singular direction.
        """
        x, v = self._split(z)
        A = self.constraints_on_points.A.to(z)  # noqa: N806
        rod, rate = A @ x, A @ v
        angle = torch.atan2(rod[..., 0], -rod[..., 1])
        turning = (rod[..., 0] * rate[..., 1] - rod[..., 1] * rate[..., 0]) / rod.square().sum(-1)
        return torch.stack([angle, turning], dim=-2)

    def from_angles(self, angles: Float[Tensor, "*batch 2 n"]) -> Float[Tensor, "*batch 2 n 2"]:
        """The state with rods at these angles and rates; the inverse of `to_angles` up to full turns."""
        theta, omega = angles[..., 0, :], angles[..., 1, :]
        length = self.constraints_on_points.lengths.to(angles)
        sin, cos = length * theta.sin(), length * theta.cos()
        rod = torch.stack([sin, -cos], dim=-1)
        rate = torch.stack([cos * omega, sin * omega], dim=-1)
        return torch.stack([rod.cumsum(-2), rate.cumsum(-2)], dim=-3)
