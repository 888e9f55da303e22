"""What the models share: states of their own, encoded from and decoded to Cartesian states, and rollouts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from lie.integrators import odeint
from lie.run import UserError
from torch import Tensor, nn


class DynamicsModel(nn.Module, ABC):
    """A learnt vector field on states of its own; ``encode`` and ``decode`` go from and to (B, 2, n, d)."""

    @abstractmethod
    def encode(self, z: Float[Tensor, "*batch 2 n d"]) -> Tensor:
        """The model's state of a Cartesian state (positions, velocities)."""

    @abstractmethod
    def decode(self, state: Tensor) -> Float[Tensor, "*batch 2 n d"]:
        """The Cartesian state (positions, velocities) of the model's state."""

    @abstractmethod
    def field(self, state: Tensor) -> Tensor:
        """Time derivative of the model's state."""

    @abstractmethod
    def energy(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """The learnt energy, up to the scale and constant that motion does not determine."""

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        """`field`, with the time that integrators pass first."""
        return self.field(state)

    def rollout(
        self,
        z0: Float[Tensor, "B 2 n d"],
        t: Float[Tensor, " T"],
        *,
        method: str = "dopri5",
        rtol: float = 1e-7,
        atol: float = 1e-9,
    ) -> Float[Tensor, "B T 2 n d"]:
        """Predicted trajectories from ``z0`` at the times ``t``, by `lie.integrators.odeint`."""
        self._check_states(z0)
        states = odeint(self, self.encode(z0), t.to(z0), method=method, rtol=rtol, atol=atol)
        return self.decode(states).transpose(0, 1)

    def rk4_rollout(self, z0: Float[Tensor, "B 2 n d"], dt: float, steps: int) -> Float[Tensor, "B T 2 n d"]:
        """The training integrator: one classical Runge-Kutta step per interval, T = steps + 1 states."""
        self._check_states(z0)
        state = self.encode(z0)
        states = [state]
        for _ in range(steps):
            k1 = self.field(state)
            k2 = self.field(state + 0.5 * dt * k1)
            k3 = self.field(state + 0.5 * dt * k2)
            k4 = self.field(state + dt * k3)
            state = state + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
            states.append(state)
        return self.decode(torch.stack(states, dim=1))

    def _check_states(self, z0: Tensor) -> None:
        """Refuse states that the model cannot start from, before its layers fail or broadcast."""
        constraints = getattr(self, "constraints", None)
        n, d = ("n", "d") if constraints is None else (constraints.num_points, constraints.spatial_dim)
        if not isinstance(z0, Tensor):
            raise UserError(f"expected initial states as a torch tensor, got {type(z0).__name__}")
        if z0.ndim != 4 or z0.shape[1] != 2 or len(z0) == 0 or (n != "n" and tuple(z0.shape[2:]) != (n, d)):
            raise UserError(f"expected initial states of shape (B, 2, {n}, {d}), at least one, got {tuple(z0.shape)}")
        dtype = next(self.parameters()).dtype
        if z0.dtype != dtype:
            raise UserError(f"expected initial states in the dtype of the model, {dtype}, got {z0.dtype}; use "
                            "z0.to(dtype) or model.to(z0.dtype)")  # fmt: skip
