"""The chain pendulum: point masses on massless rods, or beams, hung one from the other in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly, rod
from chnn.mechanics.constraints import positive
from chnn.systems.base import System, check_count, infinite_to_nan


class ChainPendulum(System):
    """``links`` bodies in the plane, each hung from the one before, the first from the origin.

    Args:
        links: number of links.
        masses: from the anchor outwards, kg; 1 each by default.
        lengths: from the anchor outwards, m; 1 each by default.
        beams: uniform beams, each two points (centre, and the tip of its axis towards the next) joined end to end, in
            place of point masses on massless rods.

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): standard normal angles and rates; for point masses positions
    and velocities are blurred, three times their mean taken as in the published code, and projected.

    >>> import torch
    >>> system = ChainPendulum(links=3)
    >>> system.simulate(system.sample(5), torch.linspace(0, 1, 11)).shape
    torch.Size([5, 11, 2, 3, 2])
    """

    name = "chain-pendulum"
    dt, horizon = 0.03, 3.0

    def __init__(
        self,
        links: int = 2,
        masses: Sequence[float] | None = None,
        lengths: Sequence[float] | None = None,
        *,
        beams: bool = False,
    ) -> None:
        check_count(links, "link")
        self.links, self.beams = links, beams
        mass, length = positive("masses", masses, links).tolist(), positive("lengths", lengths, links).tolist()
        self.lengths = torch.tensor(length, dtype=torch.float64)
        world = Assembly(2)
        before, depth = None, 0.0
        for i in range(links):
            if beams:
                beam = world.body(f"beam {i}", 1, rod(mass[i], length[i]), position=(0.0, -depth - 0.5 * length[i]),
                                  axes=[[0.0, -1.0]])  # fmt: skip
                top, bottom = beam.at(-0.5 * length[i]), beam.at(0.5 * length[i])
                if before is None:
                    world.pin(top, (0.0, 0.0))
                else:
                    world.ball_joint(before, top)
                world.draw_rod(top, bottom)
                before = bottom
            else:
                bob = world.point(f"bob {i}", mass[i], position=(0.0, -depth - length[i]))
                if before is None:
                    world.tether(bob, (0.0, 0.0), length[i])
                else:
                    world.distance(before, bob, length[i])
                before = bob
            depth += length[i]
        world.gravity()
        super().__init__(world.build(self.name, check=False))

    @property
    def num_angles(self) -> int:
        """One for each link."""
        return self.links

    def rest(self) -> Float[Tensor, "2 n d"]:
        """Hanging straight down."""
        return self.from_angles(torch.zeros(2, self.links, dtype=torch.float64))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n d"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        z = self.from_angles(torch.randn(num, 2, self.links, generator=generator, dtype=torch.float64))
        if self.beams:
            return z
        blur = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        x, v = z.unbind(1)
        x, v = x + 0.2 * blur[:, 0], 3.0 * (0.5 * v + 0.4 * blur[:, 1])
        return self.project(torch.stack([x, v], dim=1))

    def parameters(self) -> dict[str, Any]:
        """Number of links, masses, lengths, whether beams, gravity."""
        return {"links": self.links, "masses": self.masses.tolist(), "lengths": self.lengths.tolist(),
                "beams": self.beams, "gravity": GRAVITY}  # fmt: skip

    def to_angles(self, z: Float[Tensor, "*batch 2 n 2"]) -> Float[Tensor, "*batch 2 links"]:
        """Angles of the rods from the downward vertical, counter-clockwise, in (-pi, pi], and their rates.

        The rates come from the cross product of rod and relative velocity, which has no singular direction.
        """
        x, v = map(infinite_to_nan, self._split(z))
        if self.beams:
            along, rate = x[..., 1::2, :] - x[..., ::2, :], v[..., 1::2, :] - v[..., ::2, :]
        else:
            A = self.parts(z)[0].A  # noqa: N806
            along, rate = A @ x, A @ v
        angle = torch.atan2(along[..., 0], -along[..., 1])
        turning = (along[..., 0] * rate[..., 1] - along[..., 1] * rate[..., 0]) / along.square().sum(-1)
        return torch.stack([angle, turning], dim=-2)

    def from_angles(self, angles: Float[Tensor, "*batch 2 links"]) -> Float[Tensor, "*batch 2 n 2"]:
        """The state with rods at these angles and rates; the inverse of `to_angles` up to full turns."""
        theta, omega = angles[..., 0, :], angles[..., 1, :]
        sin, cos = theta.sin(), theta.cos()
        unit = torch.stack([torch.stack([sin, -cos], dim=-1), torch.stack([cos * omega, sin * omega], dim=-1)], dim=-3)
        ends = (self.lengths.to(angles).unsqueeze(-1) * unit).cumsum(-2)  # (..., 2, links, 2)
        if not self.beams:
            return ends
        centres = ends - 0.5 * self.lengths.to(angles).unsqueeze(-1) * unit
        return torch.stack([centres, centres + unit], dim=-2).flatten(-3, -2)
