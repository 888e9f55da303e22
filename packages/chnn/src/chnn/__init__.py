"""Constrained Hamiltonian and Lagrangian neural networks for mechanical systems in Cartesian coordinates."""

from chnn import mechanics, models, simulation, systems

__version__ = "0.1.0"
__all__ = ["mechanics", "models", "simulation", "systems"]
