"""One rigid body in space: the gyroscope, pinned at a point, and the free rotor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly, Inertia
from chnn.mechanics.bodies import number
from chnn.systems.base import System, check_count, infinite_to_nan
from chnn.systems.coordinates import euler_matrix, rotation_matrix, rotation_vector
from chnn.systems.shapes import lathe, racket


class _OneBody(System):
    """A body of dimension 3 as its centre and three unit axis tips."""

    pivot: tuple[float, ...] | None = None

    def place(
        self,
        matrix: Float[Tensor, "*batch 3 3"],
        matrix_rate: Float[Tensor, "*batch 3 3"],
        centre: Float[Tensor, "*batch 2 3"] | None = None,
    ) -> Float[Tensor, "*batch 2 4 3"]:
        """The state with the body's axes as the columns of a matrix, and its rate; a pinned body keeps its pivot."""
        axes = torch.stack([matrix, matrix_rate], dim=-3).mT  # (..., 2, 3, 3), axes as rows
        if self.pivot is not None:
            pivot = torch.tensor(self.pivot, dtype=axes.dtype, device=axes.device)
            centre = -(pivot @ axes)
        assert centre is not None
        centre = centre.unsqueeze(-2)
        return torch.cat([centre, centre + axes], dim=-2)

    @property
    def num_angles(self) -> int:
        """Three of orientation, and three of position for a free body."""
        return 3 if self.pivot is not None else 6

    @property
    def length_coordinates(self) -> tuple[int, ...]:
        """Which of them are lengths, m."""
        return () if self.pivot is not None else (0, 1, 2)

    def to_angles(self, z: Float[Tensor, "*batch 2 4 3"]) -> Float[Tensor, "*batch 2 a"]:
        """The rotation vector (rad, of at most half a turn) and its rate; before it, for a free body, the centre."""
        x, v = map(infinite_to_nan, self._split(z))
        axes, rates = ((part[..., 1:, :] - part[..., :1, :]).mT for part in (x, v))
        vector, rate = torch.func.jvp(rotation_vector, (axes,), (rates,))  # type: ignore[misc]  (two without has_aux)
        turned = torch.stack([vector, rate], dim=-2)
        return turned if self.pivot is not None else torch.cat([z[..., 0, :], turned], dim=-1)

    def from_angles(self, angles: Float[Tensor, "*batch 2 a"]) -> Float[Tensor, "*batch 2 4 3"]:
        """The inverse of `to_angles`."""
        vector = angles[..., -3:]
        matrix, rate = torch.func.jvp(rotation_matrix, (vector[..., 0, :],), (vector[..., 1, :],))  # type: ignore[misc]  (two without has_aux)
        return self.place(matrix, rate, None if self.pivot is not None else angles[..., :3])


class Gyroscope(_OneBody):
    """A top: a rigid body under gravity, pinned at the origin.

    Args:
        mass: kg.
        moments: second moments about its centre along its axes, kg m^2 (the published mesh's).
        pivot: the pinned point in body axes from the centre, m.

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): ZXZ Euler angles uniform in +-1.5, rates uniform in +-4.5 and
    +-0.3, spin +-1.5 (N + 7).
    """

    name = "gyroscope"
    dt, horizon = 0.02, 2.0

    def __init__(
        self,
        mass: float = 0.1,
        moments: Sequence[float] = (0.0241378386118703, 0.0241378380645191, 0.0036941541417862),
        pivot: Sequence[float] = (3.2950670281021321e-08, 3.2558068663074598e-08, -0.22172853817099086),
    ) -> None:
        self.moments, self.pivot = (
            tuple(number(each, "moments") for each in moments),
            tuple(number(each, "pivot") for each in pivot),
        )
        world = Assembly(3)
        # Hanging: the centre below the pivot, the body turned by half a turn about its first axis.
        axes = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
        centre = [-sum(p * axis[k] for p, axis in zip(self.pivot, axes, strict=False)) for k in range(3)]
        body = world.body("gyroscope", 3, Inertia(number(mass, "mass"), self.moments), position=centre, axes=axes)
        world.pin(body.at(*self.pivot), (0.0, 0.0, 0.0))
        world.gravity()
        height = abs(self.pivot[2]) or 0.2
        world.draw_mesh(body, *lathe([(0.0, -height), (0.01, -0.7 * height), (0.012, -0.1), (0.12, -0.03), (0.13, 0.0),
                                      (0.12, 0.03), (0.012, 0.08), (0.0, 0.12)]))  # fmt: skip
        super().__init__(world.build(self.name, check=False))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 4 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        angles = 3.0 * (torch.rand(num, 2, 3, generator=generator, dtype=torch.float64) - 0.5)
        rate = angles[:, 1] * torch.tensor([3.0, 0.2, 0.0], dtype=torch.float64)
        sign = 2.0 * torch.randint(2, (num,), generator=generator).double() - 1.0
        rate[:, 2] = 1.5 * sign * (torch.randn(num, generator=generator, dtype=torch.float64) + 7.0)
        return self.project(self.place(*torch.func.jvp(euler_matrix, (angles[:, 0],), (rate,))))

    def rest(self) -> Float[Tensor, "2 4 3"]:
        """The centre straight below the pivot."""
        p = torch.tensor(self.pivot, dtype=torch.float64)
        distance = p.norm()
        if float(distance) == 0.0:
            return torch.stack([self.description.reference, torch.zeros(4, 3, dtype=torch.float64)])
        # A rotation that takes the direction from the centre to the pivot to straight up.
        u, up = p / distance, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        axis = torch.linalg.cross(u, up)
        angle = torch.atan2(axis.norm(), u @ up)
        other = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        unit = axis / axis.norm() if float(axis.norm()) > 1e-12 else other
        return self.place(rotation_matrix(angle * unit), torch.zeros(3, 3, dtype=torch.float64))

    def parameters(self) -> dict[str, Any]:
        """Mass, moments, pivot, gravity."""
        return {"mass": float(self.masses[0]), "moments": list(self.moments), "pivot": list(self.pivot or ()),
                "gravity": GRAVITY}  # fmt: skip


class Rotor(_OneBody):
    """A free rigid body without gravity.

    Args:
        mass: kg.
        moments: second moments about its centre along its axes, kg m^2 (the published mesh's).

    Initial states as in Finzi, Wang, Wilson 2020 (CHNN): centre, ZXZ Euler angles and their rates 2 N, cut off at 3,
    those of the centre times 0.1.
    """

    name = "rotor"
    dt, horizon = 0.05, 5.0

    def __init__(
        self,
        mass: float = 0.1,
        moments: Sequence[float] = (0.0002985134262529, 0.0099063365236186, 0.0021108513379997),
    ) -> None:
        self.moments = tuple(number(each, "moments") for each in moments)
        world = Assembly(3)
        body = world.body("rotor", 3, Inertia(number(mass, "mass"), self.moments))
        world.draw_mesh(body, *racket())
        super().__init__(world.build(self.name, check=False))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 4 3"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        numbers = (2.0 * torch.randn(num, 2, 6, generator=generator, dtype=torch.float64)).clamp(-3.0, 3.0)
        turned = torch.func.jvp(euler_matrix, (numbers[:, 0, 3:],), (numbers[:, 1, 3:],))  # type: ignore[misc]  (two without has_aux)
        return self.project(self.place(*turned, centre=0.1 * numbers[..., :3]))

    def rest(self) -> Float[Tensor, "2 4 3"]:
        """At the origin, unturned; every state without velocity is one of rest."""
        return torch.stack([self.description.reference, torch.zeros(4, 3, dtype=torch.float64)])

    def parameters(self) -> dict[str, Any]:
        """Mass and moments."""
        return {"mass": float(self.masses[0]), "moments": list(self.moments)}
