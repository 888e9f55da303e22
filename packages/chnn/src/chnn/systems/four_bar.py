"""A four-bar linkage: a closed loop of three beams on two fixed pins, in the plane."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly, rod
from chnn.mechanics.bodies import number
from chnn.systems.base import System, check_count


class FourBar(System):
    """Crank, coupler and rocker as uniform beams; the crank is pinned at (0, 0), the rocker at (ground, 0).

    Args:
        crank, coupler, rocker, ground: lengths, m. By default the crank turns fully (Grashof's condition).
        density: mass per length of the beams, kg/m.

    Initial states: a uniform crank angle, turning at 3 N rad/s.
    """

    name = "four-bar"
    dt, horizon = 0.02, 4.0

    def __init__(
        self, crank: float = 0.4, coupler: float = 1.0, rocker: float = 0.8, ground: float = 1.0, density: float = 1.0
    ) -> None:
        for what, value in {"crank": crank, "coupler": coupler, "rocker": rocker, "ground": ground,
                            "density": density}.items():  # fmt: skip
            if not 0.0 < number(value, what) < float("inf"):
                raise UserError(f"expected a positive finite {what}, got {value}")
        self.bars, self.ground, self.density = (
            (float(crank), float(coupler), float(rocker)),
            float(ground),
            float(density),
        )
        world = Assembly(2)
        names = ("crank", "coupler", "rocker")
        start = self._corners(torch.tensor(1.0, dtype=torch.float64))
        reachable = bool(torch.isfinite(start).all())
        if not reachable:  # an honest start for the search that then names what is impossible
            start = torch.tensor([[0.0, 0.0], [0.5, 0.8], [0.6, 0.9], [1.0, 0.0]], dtype=torch.float64)
        beams = []
        for i, (name, length) in enumerate(zip(names, self.bars, strict=True)):
            middle, along = 0.5 * (start[i] + start[i + 1]), start[i + 1] - start[i]
            axis = (along / along.norm()).unsqueeze(0)
            beams.append(world.body(name, 1, rod(density * length, length), position=middle, axes=axis))
        ends = [(beam.at(-0.5 * length), beam.at(0.5 * length)) for beam, length in zip(beams, self.bars, strict=True)]
        world.pin(ends[0][0], (0.0, 0.0))
        world.ball_joint(ends[0][1], ends[1][0])
        world.ball_joint(ends[1][1], ends[2][0])
        world.pin(ends[2][1], (self.ground, 0.0))
        for a, b in ends:
            world.draw_rod(a, b)
        world.gravity()
        super().__init__(world.build(self.name))

    def _corners(self, theta: Tensor) -> Tensor:
        """The four pins (..., 4, 2) at crank angles, the coupler above; NaN where the bars do not reach."""
        crank, coupler, rocker = self.bars
        first = torch.zeros(*theta.shape, 2, dtype=theta.dtype)
        joint = crank * torch.stack([theta.cos(), theta.sin()], -1)
        last = torch.zeros_like(first)
        last[..., 0] = self.ground
        gap = last - joint
        distance = gap.norm(dim=-1, keepdim=True)
        along = (coupler**2 - rocker**2 + distance.square()) / (2.0 * distance)
        height = (coupler**2 - along.square()).sqrt()  # NaN out of reach
        unit = gap / distance
        normal = torch.stack([-unit[..., 1], unit[..., 0]], -1)
        return torch.stack([first, joint, joint + along * unit + height * normal, last], dim=-2)

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 6 2"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        found: list[Tensor] = []
        count = 0
        while count < num:  # a crank that does not turn fully: angles out of reach are drawn again
            theta = 2.0 * torch.pi * torch.rand(2 * num, generator=generator, dtype=torch.float64)
            corners = self._corners(theta)
            corners = corners[torch.isfinite(corners).flatten(1).all(1)]
            found.append(corners)
            count += len(corners)
        corners = torch.cat(found)[:num]
        bars = corners.diff(dim=1)
        middle = corners[:, :-1] + 0.5 * bars
        x = torch.stack([middle, middle + bars / bars.norm(dim=-1, keepdim=True)], dim=2).flatten(1, 2)
        v = torch.zeros_like(x)
        # The crank turns; the projection finds what the other bars do.
        omega = 3.0 * torch.randn(num, generator=generator, dtype=torch.float64)
        v[:, :2, 0], v[:, :2, 1] = -omega[:, None] * x[:, :2, 1], omega[:, None] * x[:, :2, 0]
        z = self.project(torch.stack([x, v], dim=1))
        return self.project(z)

    def parameters(self) -> dict[str, Any]:
        """Lengths, density, gravity."""
        crank, coupler, rocker = self.bars
        return {"crank": crank, "coupler": coupler, "rocker": rocker, "ground": self.ground, "density": self.density,
                "gravity": GRAVITY}  # fmt: skip
