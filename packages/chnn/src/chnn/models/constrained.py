r"""CHNN and CLNN: motion in Cartesian coordinates with explicit constraints; potential and masses are learnt.

Source: Finzi, Wang, Wilson 2020, "Simplifying Hamiltonian and Lagrangian Neural Networks via Explicit
Constraints", arXiv 2010.13581. Masses are learnt as logarithms; their common scale and that of V cannot be told
apart by motion alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor, nn

from chnn.mechanics import (
    Constraints,
    Description,
    Metric,
    hamiltonian_velocity,
    inverse_mass_matrix,
    lagrangian_acceleration,
    mass_matrix,
)
from chnn.mechanics.conservative import refuse_dissipation
from chnn.models.base import DynamicsModel
from chnn.models.potential import MLPPotential, potential_gradient


class _Constrained(DynamicsModel):
    """Masses, potential and constraints: what both forms share."""

    def __init__(
        self,
        system: Description | Constraints,
        *,
        potential: nn.Module | None = None,
        hidden: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        if not isinstance(system, (Constraints, Description)):
            raise UserError(f"expected a description (system.description) or constraints, got {type(system).__name__}")
        if isinstance(system, Description):
            refuse_dissipation(system, type(self).__name__)
        constraints = system if isinstance(system, Constraints) else system.constraints
        n, d = constraints.num_points, constraints.spatial_dim
        self.constraints = constraints
        factor = torch.eye(n, dtype=torch.float64) if isinstance(system, Constraints) else system.inertia_factor
        self.inertia_factor = factor  # in float64; not a buffer, which a model in float32 would round
        self.log_mass = nn.Parameter(torch.zeros(n))
        self.potential = MLPPotential(n, d, hidden=hidden, depth=depth) if potential is None else potential

    def mass(self) -> Float[Tensor, "n n"]:
        """The learnt mass matrix: of masses and principal second moments, whose logarithms are learnt."""
        return mass_matrix(self._factor(), self.log_mass.exp())

    def inverse_mass(self) -> Float[Tensor, "n n"]:
        """The inverse of `mass`."""
        return inverse_mass_matrix(self._factor(), self.log_mass.exp())

    def metric(self) -> Metric:
        """Products of the learnt masses with the constraints."""
        return self.constraints.to(self.log_mass).metric(self.inverse_mass())

    def _factor(self) -> Tensor:
        return self.inertia_factor.to(self.log_mass)

    def force(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Minus the gradient of the learnt potential."""
        return -potential_gradient(self.potential, x)

    def energy(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """Learnt kinetic plus potential energy of a Cartesian state (positions, velocities)."""
        x, v = z[..., 0, :, :], z[..., 1, :, :]
        return 0.5 * ((self.mass() @ v) * v).sum((-2, -1)) + self.potential(x)


class CHNN(_Constrained):
    """The constrained Hamiltonian network, in positions and momenta, by the oblique symplectic projection.

    Args:
        system: the description of a system (``system.description``), whose constraints and bodies are given and whose
            masses and forces are learnt; or constraints alone, on point masses. What a subclass of `System` adds in
            a ``force`` of its own is no part of its description; `chnn.training.build_model` checks that too.
        potential: any module x (..., n, d) -> (...); a tanh network by default.
        hidden, depth: width and hidden layers of the default potential.

    Raises:
        UserError: for a system with damping or another force that is no gradient of a potential.

    Laws: the flow is tangent to the constraints and keeps the learnt energy.

    >>> from chnn.systems import ChainPendulum
    >>> system = ChainPendulum(links=2)
    >>> model = CHNN(system.description)
    >>> model.rollout(system.sample(4).float(), torch.linspace(0, 0.1, 3), rtol=1e-5, atol=1e-6).shape
    torch.Size([4, 3, 2, 2, 2])
    """

    def encode(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """(x, v) -> (x, p = M v)."""
        return torch.stack([z[..., 0, :, :], self.mass() @ z[..., 1, :, :]], dim=-3)

    def decode(self, state: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """(x, p) -> (x, v = M^-1 p)."""
        return torch.stack([state[..., 0, :, :], self.inverse_mass() @ state[..., 1, :, :]], dim=-3)

    def field(self, state: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """(dx/dt, dp/dt)."""
        x, p = state[..., 0, :, :], state[..., 1, :, :]
        constraints = self.constraints.to(state)
        inverse = self.inverse_mass()
        metric = constraints.metric(inverse)
        dx, dp = hamiltonian_velocity(constraints, metric, self.mass(), inverse, x, p, self.force(x))
        return torch.stack([dx, dp], dim=-3)


class CLNN(_Constrained):
    """The constrained Lagrangian network, in positions and velocities, by Lagrange multipliers.

    Arguments as of `CHNN`; on the constraints both describe the same motion.
    """

    def encode(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """The state itself."""
        return z

    def decode(self, state: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """The state itself."""
        return state

    def field(self, state: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """(dx/dt, dv/dt)."""
        x, v = state[..., 0, :, :], state[..., 1, :, :]
        constraints = self.constraints.to(state)
        acceleration = lagrangian_acceleration(constraints, self.metric(), x, v, self.force(x))
        return torch.stack([v, acceleration], dim=-3)
