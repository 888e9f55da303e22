"""Integration of mechanical systems: adaptive per sample, projected."""

from lie.integrators import IntegrationError

from chnn.simulation.run import BACKENDS, simulate

__all__ = ["BACKENDS", "IntegrationError", "simulate"]
