"""A satellite: a main body with two rotors on hinges, free in space."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics import Assembly, Inertia
from chnn.systems.base import System, check_count
from chnn.systems.coordinates import rotation_matrix
from chnn.systems.shapes import cuboid

_MAIN = Inertia(12.0, (0.5, 0.5, 0.5))
_ROTOR = Inertia(3.0, (1.0, 1.0, 0.125))


class Satellite(System):
    """Three bodies of dimension 3 with two hinges and no forces: 12 points.

    Bodies as in the published code of Finzi, Wang, Wilson 2020 (CHNN): 12 kg with moments 1/2, and two of 3 kg with
    moments (1, 1, 1/8), centred at (1, 0, 0) and (0, -1, 0) of the main body, turning about these directions, which are
    their third axes. Initial states: random orientation and hinge angles, velocities standard normal, projected.
    """

    name = "satellite"
    dt, horizon = 0.1, 10.0

    def __init__(self) -> None:
        world = Assembly(3)
        main = world.body("main", 3, _MAIN)
        self._arms = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
        self._frames = (((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
                        ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)))  # fmt: skip
        for i, (arm, frame) in enumerate(zip(self._arms, self._frames, strict=True)):
            rotor = world.body(f"rotor {i}", 3, _ROTOR, position=arm, axes=frame)
            world.hinge(main.at(*arm), rotor.at(), main.along(*arm), rotor.along(0.0, 0.0, 1.0))
            world.draw_rod(main.at(), rotor.at())
            world.draw_mesh(rotor, *cuboid((1.2, 1.2, 0.1)))
        world.draw_mesh(main, *cuboid((0.6, 0.6, 0.6)))
        super().__init__(world.build(self.name))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 12 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        turn = torch.randn(num, 4, generator=generator, dtype=torch.float64)
        turn = turn / turn.norm(dim=-1, keepdim=True)  # a uniform quaternion
        half = turn[:, :1].clamp(-1.0, 1.0).acos()
        R = rotation_matrix(2.0 * half * turn[:, 1:] / half.sin().clamp(min=1e-12))  # noqa: N806
        hinge = 2.0 * torch.pi * torch.rand(num, 2, generator=generator, dtype=torch.float64)
        centre = torch.zeros(num, 1, 3, dtype=torch.float64)
        bodies = [torch.cat([centre, R.mT], dim=1)]  # rows of R^T are the turned axes
        for i in range(2):
            arm, frame = (torch.tensor(each, dtype=torch.float64) for each in (self._arms[i], self._frames[i]))
            cos, sin = hinge[:, i].cos()[:, None], hinge[:, i].sin()[:, None]
            axes = torch.stack([cos * frame[0] + sin * frame[1], cos * frame[1] - sin * frame[0],
                                frame[2].expand(num, 3)], dim=1)  # fmt: skip
            place = (R @ arm).unsqueeze(1)
            bodies.append(torch.cat([place, place + axes @ R.mT], dim=1))
        x = torch.cat(bodies, dim=1)
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return self.project(torch.stack([x, v], dim=1))

    def rest(self) -> Float[Tensor, "2 12 3"]:
        """The reference configuration; every state without velocity is one of rest."""
        return torch.stack([self.description.reference, torch.zeros(12, 3, dtype=torch.float64)])

    def parameters(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {}
