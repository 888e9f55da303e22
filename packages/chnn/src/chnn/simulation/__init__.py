"""Integration of mechanical systems: adaptive per sample and projected, or symplectic by RATTLE with fixed steps."""

from lie.integrators import IntegrationError

from chnn.simulation.run import BACKENDS, METHODS, simulate

__all__ = ["BACKENDS", "METHODS", "IntegrationError", "simulate"]
