"""Integration of mechanical systems: adaptive per sample, projected."""

from chnn.simulation.dop853 import IntegrationError, integrate

__all__ = ["IntegrationError", "integrate"]
