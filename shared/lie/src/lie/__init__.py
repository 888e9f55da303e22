"""Lie groups, automatic differentiation along vector fields, and structure-preserving integrators."""

__version__ = "0.1.0"
