"""Integrators of ordinary differential equations: torchdiffeq's methods and structure-preserving ones."""

from lie.integrators.odeint import METHODS, odeint
from lie.integrators.symplectic import leapfrog

__all__ = ["METHODS", "leapfrog", "odeint"]
