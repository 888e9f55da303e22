"""Mechanical systems with known equations of motion."""

from chnn.systems.base import GRAVITY, System
from chnn.systems.chain import ChainPendulum
from chnn.systems.coupled import CoupledPendulum
from chnn.systems.names import SYSTEMS, system_by_name

__all__ = ["GRAVITY", "SYSTEMS", "ChainPendulum", "CoupledPendulum", "System", "system_by_name"]
