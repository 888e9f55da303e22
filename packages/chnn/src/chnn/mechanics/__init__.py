"""Points, constraints and their equations of motion; knows no network and no particular system."""

from chnn.mechanics.constraints import QuadraticConstraints
from chnn.mechanics.dynamics import hamiltonian_velocity, lagrangian_acceleration

__all__ = ["QuadraticConstraints", "hamiltonian_velocity", "lagrangian_acceleration"]
