r"""HNN: the Hamiltonian network in generalised coordinates, the baseline without explicit constraints.

.. math:: H(q, p) = \tfrac12 p^T M^{-1}(q)\, p + V(q), \qquad M^{-1} = L L^T

with networks for the Cholesky factor L and for V, both of cos q and sin q.

Source: Greydanus, Dzamba, Yosinski 2019, arXiv 1906.01563, with the learnt mass matrix of the baselines in Finzi,
Wang, Wilson 2020, arXiv 2010.13581.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chnn.mechanics import Description
from chnn.mechanics.conservative import refuse_own_dissipation
from chnn.models.base import DynamicsModel


class AngleCoordinates(Protocol):
    """A system whose states are given by angles."""

    @property
    def num_angles(self) -> int:
        """Number of angles."""
        ...

    def to_angles(self, z: Tensor) -> Tensor:
        """(..., 2, n, d) -> (..., 2, n), angles and rates."""
        ...

    def from_angles(self, angles: Tensor) -> Tensor:
        """The inverse of `to_angles`."""
        ...


class HNN(DynamicsModel):
    """Hamiltonian network in angles.

    Args:
        coordinates: converts between Cartesian states and angles.
        hidden, depth: width and hidden layers of each network.

    Raises:
        UserError: for a system with damping or another force that is no gradient of a potential.
    """

    def __init__(self, coordinates: AngleCoordinates, *, hidden: int = 128, depth: int = 3) -> None:
        super().__init__()
        description = getattr(coordinates, "description", None)
        if isinstance(description, Description):
            refuse_own_dissipation(coordinates, type(self).__name__)
        n = coordinates.num_angles
        self.coordinates, self.n = coordinates, n
        self.mass_network = _mlp(2 * n, n * (n + 1) // 2, hidden, depth)
        self.potential = _mlp(2 * n, 1, hidden, depth)
        rows, columns = torch.tril_indices(n, n)
        place = torch.zeros(n * (n + 1) // 2, n, n)
        place[torch.arange(len(rows)), rows, columns] = 1.0
        self.register_buffer("place", place, persistent=False)

    place: Tensor

    def factor(self, q: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
        """The Cholesky factor L of the inverse mass matrix; its diagonal is positive."""
        entries = self.mass_network(torch.cat([q.cos(), q.sin()], dim=-1))
        lower = torch.einsum("...k,kij->...ij", entries, self.place)
        diagonal = lower.diagonal(dim1=-2, dim2=-1)
        # Starts near the identity: softplus(0.54) = 1.
        return lower + torch.diag_embed(nn.functional.softplus(diagonal + 0.54) - diagonal)

    def hamiltonian(self, q: Float[Tensor, "*batch n"], p: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """H(q, p)."""
        half = (self.factor(q).mT @ p.unsqueeze(-1)).squeeze(-1)
        return 0.5 * half.square().sum(-1) + self.potential(torch.cat([q.cos(), q.sin()], dim=-1)).squeeze(-1)

    def energy(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """The learnt energy of a Cartesian state (positions, velocities)."""
        state = self.encode(z)
        return self.hamiltonian(state[..., 0, :], state[..., 1, :])

    def encode(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n"]:
        """Angles and momenta p = M(q) dq/dt."""
        q, rate = self.coordinates.to_angles(z).unbind(-2)
        return torch.stack([q, _solve(self.factor(q), rate)], dim=-2)

    def decode(self, state: Float[Tensor, "*batch 2 n"]) -> Float[Tensor, "*batch 2 n d"]:
        """The Cartesian state of angles and momenta."""
        q, p = state.unbind(-2)
        L = self.factor(q)  # noqa: N806
        rate = (L @ (L.mT @ p.unsqueeze(-1))).squeeze(-1)
        return self.coordinates.from_angles(torch.stack([q, rate], dim=-2))

    def field(self, state: Float[Tensor, "*batch 2 n"]) -> Float[Tensor, "*batch 2 n"]:
        """Hamilton's equations."""
        with torch.enable_grad():
            point = state if state.requires_grad else state.detach().requires_grad_()
            H = self.hamiltonian(point[..., 0, :], point[..., 1, :])  # noqa: N806
            (gradient,) = torch.autograd.grad(H.sum(), point, create_graph=True)
        velocity = torch.stack([gradient[..., 1, :], -gradient[..., 0, :]], dim=-2)
        return velocity if torch.is_grad_enabled() else velocity.detach()


def _solve(L: Tensor, rate: Tensor) -> Tensor:  # noqa: N803
    """(L L^T)^-1 rate."""
    half = torch.linalg.solve_triangular(L, rate.unsqueeze(-1), upper=False)
    return torch.linalg.solve_triangular(L.mT, half, upper=True).squeeze(-1)


def _mlp(inputs: int, outputs: int, hidden: int, depth: int) -> nn.Sequential:
    widths = [inputs, *[hidden] * depth]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))
