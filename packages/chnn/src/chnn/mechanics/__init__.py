"""Bodies, constraints, forces and their equations of motion; knows no network and no particular system."""

from chnn.mechanics.assembly import GRAVITY, Assembly, BodyHandle, Place
from chnn.mechanics.bilinear import MotionForms
from chnn.mechanics.bodies import (
    Body,
    Inertia,
    ball,
    box,
    cylinder,
    disk,
    from_mesh,
    from_rotational,
    inverse_mass_matrix,
    mass_matrix,
    rod,
)
from chnn.mechanics.constraints import Constraints, Metric
from chnn.mechanics.description import Description, Drawing
from chnn.mechanics.dynamics import hamiltonian_velocity, lagrangian_acceleration
from chnn.mechanics.forces import Damping, Dipoles, Force, Gravity, Potential, Springs, potential_gradient
from chnn.mechanics.projection import project_fixed, project_positions, project_velocity
from chnn.mechanics.rotation_forces import RotationalDamping, TorsionSprings

__all__ = [
    "GRAVITY",
    "Assembly",
    "Body",
    "BodyHandle",
    "Constraints",
    "Damping",
    "Description",
    "Dipoles",
    "Drawing",
    "Force",
    "Gravity",
    "Inertia",
    "Metric",
    "MotionForms",
    "Place",
    "Potential",
    "RotationalDamping",
    "Springs",
    "TorsionSprings",
    "ball",
    "box",
    "cylinder",
    "disk",
    "from_mesh",
    "from_rotational",
    "hamiltonian_velocity",
    "inverse_mass_matrix",
    "lagrangian_acceleration",
    "mass_matrix",
    "potential_gradient",
    "project_fixed",
    "project_positions",
    "project_velocity",
    "rod",
]
