"""Pendulums in space, side by side, coupled to their neighbours by springs."""

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


class CoupledPendulum(System):
    """``bobs`` point masses on rods from anchors 1 m apart along x, with springs between neighbours.

    Args:
        bobs: number of pendulums, n.
        masses: kg; 1 each by default.
        lengths: of the rods, m; 1 each by default.
        spring_constant: of every spring, N/m; the rest length is 1 m.

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): small swings about hanging, here tilts and rates of
    0.3 standard normal about both horizontal axes.
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
        if bobs < 1:
            raise UserError(f"expected at least one bob, got {bobs}")
        if not 0.0 <= spring_constant < float("inf"):
            raise UserError(f"expected a spring constant of at least 0, got {spring_constant}")
        self.bobs, self.spring_constant = bobs, float(spring_constant)
        self.masses = positive("masses", masses, bobs)
        anchors = torch.zeros(bobs, 3, dtype=torch.float64)
        anchors[:, 0] = torch.arange(bobs, dtype=torch.float64)
        self.constraints_on_points = QuadraticConstraints(
            torch.eye(bobs, dtype=torch.float64), anchors, positive("lengths", lengths, bobs)
        )

    def _stretch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and stretch of each spring, from bob i to bob i + 1."""
        offset = x[..., 1:, :] - x[..., :-1, :]
        length = offset.norm(dim=-1, keepdim=True)
        return offset / length, length - 1.0

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """Gravity and springs."""
        gravity = GRAVITY * (self.masses.to(x) * x[..., -1]).sum(-1)
        return gravity + 0.5 * self.spring_constant * self._stretch(x)[1].square().sum((-2, -1))

    def force(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The weights and the springs' pull."""
        direction, stretch = self._stretch(x)
        pull = self.spring_constant * stretch * direction  # on the left bob of each spring
        none = torch.zeros_like(x[..., :1, :])
        weight = torch.zeros_like(x)
        weight[..., -1] = -GRAVITY * self.masses.to(x)
        return weight + torch.cat([pull, none], dim=-2) - torch.cat([none, pull], dim=-2)

    def rest(self) -> Float[Tensor, "2 n d"]:
        """All hanging straight down; with equal lengths the springs are at rest too."""
        x = self.constraints_on_points.b.clone()
        x[:, -1] -= self.constraints_on_points.lengths
        return torch.stack([x, torch.zeros_like(x)])

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n d"]:
        """Random initial states on the constraints, float64."""
        if num < 1:
            raise UserError(f"expected at least one initial state, got {num}")
        tilt, rate = 0.3 * torch.randn(2, num, self.bobs, 2, generator=generator, dtype=torch.float64)
        x, v = self.rest().expand(num, 2, self.bobs, 3).clone().unbind(1)
        length = self.constraints_on_points.lengths.unsqueeze(-1)
        x[..., :2] += length * tilt.sin()
        v[..., :2] = length * rate
        return self.project(torch.stack([x, v], dim=1))

    def parameters(self) -> dict[str, Any]:
        """Number of bobs, masses, lengths, spring constant, gravity."""
        lengths = self.constraints_on_points.lengths.tolist()
        return {"bobs": self.bobs, "masses": self.masses.tolist(), "lengths": lengths,
                "spring_constant": self.spring_constant, "gravity": GRAVITY}  # fmt: skip

    def drawing(self) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
        """An anchor and a rod for each bob, springs between neighbours."""
        rods = [(-1 - i, i) for i in range(self.bobs)]
        return self.constraints_on_points.b, rods, [(i, i + 1) for i in range(self.bobs - 1)]
