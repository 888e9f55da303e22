"""Ordinary differential equations: torchdiffeq's methods, a step per sample, and methods that keep structure."""

from lie.integrators.adaptive import DenseOutput, dop853, dopri5
from lie.integrators.errors import IntegrationError
from lie.integrators.explicit import explicit
from lie.integrators.gauss import gauss4, gauss6, implicit_midpoint
from lie.integrators.lie_group import crouch_grossman, rkmk4
from lie.integrators.odeint import METHODS, odeint
from lie.integrators.projection import projection
from lie.integrators.rattle import rattle, rattle4
from lie.integrators.symplectic import leapfrog, yoshida4, yoshida6, yoshida8

__all__ = [
    "METHODS",
    "DenseOutput",
    "IntegrationError",
    "crouch_grossman",
    "dop853",
    "dopri5",
    "explicit",
    "gauss4",
    "gauss6",
    "implicit_midpoint",
    "leapfrog",
    "odeint",
    "projection",
    "rattle",
    "rattle4",
    "rkmk4",
    "yoshida4",
    "yoshida6",
    "yoshida8",
]
