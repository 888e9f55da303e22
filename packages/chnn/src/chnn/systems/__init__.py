"""Mechanical systems with known equations of motion."""

from chnn.systems.base import GRAVITY, External, System
from chnn.systems.bead import SURFACES, Bead
from chnn.systems.cart_pole import CartPole
from chnn.systems.chain import ChainPendulum
from chnn.systems.coupled import CoupledPendulum
from chnn.systems.four_bar import FourBar
from chnn.systems.magnet import MagnetPendulum
from chnn.systems.names import SYSTEMS, arguments_of, system_by_name
from chnn.systems.rigid import Gyroscope, Rotor
from chnn.systems.robot import Robot
from chnn.systems.rope import Rope
from chnn.systems.satellite import Satellite

__all__ = [
    "GRAVITY",
    "SURFACES",
    "SYSTEMS",
    "Bead",
    "CartPole",
    "ChainPendulum",
    "CoupledPendulum",
    "External",
    "FourBar",
    "Gyroscope",
    "MagnetPendulum",
    "Robot",
    "Rope",
    "Rotor",
    "Satellite",
    "System",
    "arguments_of",
    "system_by_name",
]
