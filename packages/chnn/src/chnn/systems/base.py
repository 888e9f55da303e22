"""A mechanical system of point masses in Cartesian coordinates with explicit constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import QuadraticConstraints, lagrangian_acceleration
from chnn.simulation import integrate

GRAVITY = 9.81
"""Acceleration of gravity along the negative last axis, m/s^2."""

_PROJECTED = 1e-4  # relative violation up to which an initial state is projected; float32 states have 1e-7
_NEWTON_LIMIT = 100


class System(ABC):
    """Points with masses and quadratic constraints under a potential.

    States are (B, 2, n, d): positions (m) and velocities (m/s) of n points in d dimensions. Everything is
    in SI units; gravity is 9.81 m/s^2 along the negative last axis.

    A concrete system sets the fields below and defines `potential`, `force`, `rest` and `sample`.
    """

    name: str
    """Name on the command line."""
    constraints_on_points: QuadraticConstraints
    masses: Float[Tensor, " n"]
    """Masses of the points, kg, float64."""
    dt: float
    """Default spacing of output times, s (the paper's)."""
    horizon: float
    """Default horizon, s (the paper's)."""

    @property
    def num_points(self) -> int:
        """Number of points n."""
        return self.constraints_on_points.num_points

    @property
    def spatial_dim(self) -> int:
        """Dimension d of space."""
        return self.constraints_on_points.spatial_dim

    @abstractmethod
    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """Potential energy of positions, joules."""

    @abstractmethod
    def force(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Minus the gradient of the potential, newtons."""

    @abstractmethod
    def rest(self) -> Float[Tensor, "2 n d"]:
        """The stable state of rest, float64."""

    @abstractmethod
    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n d"]:
        """Random initial states on the constraints, float64."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The numbers that define the system, as plain values in SI units, for a file."""

    @abstractmethod
    def drawing(self) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
        """What to draw: anchors (a, d); rods and springs as pairs of indices, the anchors being -1, -2, ..."""

    def energy(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """Kinetic plus potential energy, joules."""
        x, v = self._split(z)
        kinetic = 0.5 * (self.masses.to(z) * v.square().sum(-1)).sum(-1)
        return kinetic + self.potential(x)

    def energy_scale(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """Energy above the state of rest, joules: what energy errors are measured against."""
        return self.energy(z) - self.energy(self.rest().to(z))

    def constraints(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch C"]:
        """Position residuals ``|U|^2 - length^2``, square metres; zero on the constraints."""
        return self.constraints_on_points.to(z).residual(self._split(z)[0])

    def velocity_constraints(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch C"]:
        """Velocity residuals, half the time derivative of `constraints`, m^2/s."""
        return self.constraints_on_points.to(z).velocity_residual(*self._split(z))

    def field(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """Time derivative of the state by the true equations of motion."""
        x, v = self._split(z)
        inverse_mass = self._inverse_mass(z)
        acceleration = lagrangian_acceleration(self.constraints_on_points.to(z), inverse_mass, x, v, self.force(x))
        return torch.stack([v, acceleration], dim=-3)

    def project(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """The state moved onto the position and velocity constraints, nearest in the mass metric to first order.

        Raises:
            UserError: if Newton's iteration does not converge; names the sample.
        """
        constraints, inverse_mass = self.constraints_on_points.to(z), self._inverse_mass(z)
        x, v = self._split(z)
        bound = 16 * torch.finfo(z.dtype).eps * constraints.lengths.square().max()
        residual = constraints.residual(x).abs().amax(-1)
        for _ in range(_NEWTON_LIMIT):
            x, moved = constraints.project(x, v, inverse_mass, iterations=1)
            residual = constraints.residual(x).abs().amax(-1)
            if bool((residual <= bound).all()):
                return torch.stack([x, moved], dim=-3)
        bad = (~(residual <= bound)).nonzero().flatten().tolist()
        raise UserError(
            f"cannot project sample {bad[:5]} of the state onto the constraints of {self.name}: Newton's iteration "
            f"did not converge in {_NEWTON_LIMIT} steps; start nearer to a possible state"
        )

    def simulate(
        self,
        z0: Float[Tensor, "B 2 n d"],
        t: Float[Tensor, " T"],
        rtol: float = 1e-7,
        *,
        atol: float | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Float[Tensor, "B T 2 n d"]:
        """True trajectories: DOP853 in float64, a step size per sample, projected after every step.

        Args:
            z0: initial states on the constraints; a violation up to 1e-4 is projected away, a larger one refused.
            t: output times, s, increasing.
            rtol: relative tolerance of a step; the absolute one is a hundredth of it by default.
            atol: absolute tolerance of a step.
            progress: called with the fraction done.

        Raises:
            UserError: for wrong shapes, non-finite states, states off the constraints or times out of order.
            IntegrationError: if the integration cannot go on; names samples and time.
        """
        self._split(z0)
        if z0.ndim != 4:
            raise UserError(f"expected initial states of shape (B, 2, n, d), got {tuple(z0.shape)}")
        t = torch.as_tensor(t, dtype=torch.float64, device=z0.device)
        if t.ndim != 1 or len(t) == 0 or not bool((t.diff() > 0).all()) or not bool(torch.isfinite(t).all()):
            raise UserError(f"expected increasing finite times of shape (T,), got shape {tuple(t.shape)}")
        if not 0 < rtol < 1:
            raise UserError(f"expected a tolerance rtol between 0 and 1, got {rtol}")
        z = z0.detach().to(torch.float64)
        finite = torch.isfinite(z).flatten(1).all(1)
        if not bool(finite.all()):
            raise UserError(f"expected finite initial states, got NaN or infinity in sample {_first(~finite)}")
        scale = self.constraints_on_points.to(z).lengths.square()
        off = (self.constraints(z).abs() / scale).amax(-1) > _PROJECTED
        if bool(off.any()):
            worst = float(self.constraints(z)[off].abs().max())
            raise UserError(
                f"sample {_first(off)} starts off the constraints of {self.name} (by {worst:.3g} m^2, allowed "
                f"{_PROJECTED:g} of the length squared); use system.project(z0)"
            )
        constraints, inverse_mass = self.constraints_on_points.to(z), self._inverse_mass(z)

        def onto(state: Tensor) -> Tensor:
            # A step violates by its error, about 1e-7: two quadratic iterations reach rounding.
            return torch.stack(constraints.project(state[:, 0], state[:, 1], inverse_mass, iterations=2), dim=1)

        atol = 1e-2 * rtol if atol is None else atol
        with torch.no_grad():
            return integrate(self.field, self.project(z), t, rtol=rtol, atol=atol, project=onto, progress=progress)

    def _inverse_mass(self, like: Tensor) -> Tensor:
        return torch.diag(1.0 / self.masses.to(like))

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        n, d = self.num_points, self.spatial_dim
        if z.shape[-3:] != (2, n, d):
            raise UserError(f"expected states of shape (..., 2, {n}, {d}) for {self.name}, got {tuple(z.shape)}")
        if not z.is_floating_point():
            raise UserError(f"expected floating-point states, got {z.dtype}; use z.double()")
        return z[..., 0, :, :], z[..., 1, :, :]


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])
