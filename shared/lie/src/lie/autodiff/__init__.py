"""Derivatives along vector fields: forward-mode products and Hamiltonian fields."""

from lie.autodiff.hamiltonian import hamiltonian_field
from lie.autodiff.jvp import jvp_along

__all__ = ["hamiltonian_field", "jvp_along"]
