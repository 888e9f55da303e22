"""Lie groups, automatic differentiation along vector fields, and structure-preserving integrators.

Rooms: `lie.groups`, `lie.autodiff`, `lie.integrators`, `lie.testing`; `lie.run` holds what command
lines and trainers share and is imported only by them.
"""

from lie import autodiff, groups, integrators, testing
from lie.groups import (
    SE2,
    SE3,
    SO2,
    SO3,
    Heisenberg,
    LieGroup,
    Product,
    RxSO2,
    RxSQ,
    Sim2,
    Sim3,
    Subgroup,
    T,
    Trivial,
)

__version__ = "0.1.0"
__all__ = [
    "SE2",
    "SE3",
    "SO2",
    "SO3",
    "Heisenberg",
    "LieGroup",
    "Product",
    "RxSO2",
    "RxSQ",
    "Sim2",
    "Sim3",
    "Subgroup",
    "T",
    "Trivial",
    "autodiff",
    "groups",
    "integrators",
    "testing",
]
