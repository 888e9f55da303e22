"""Learnt dynamics: constrained Hamiltonian and Lagrangian networks, and the Hamiltonian network in angles."""

from chnn.models.base import DynamicsModel
from chnn.models.constrained import CHNN, CLNN
from chnn.models.hnn import HNN
from chnn.models.potential import MLPPotential

__all__ = ["CHNN", "CLNN", "HNN", "DynamicsModel", "MLPPotential"]
