"""Systems by the names people type, with the parameters each takes."""

from __future__ import annotations

import inspect
from typing import Any

from lie.run import UserError, unknown_name

from chnn.systems.base import System
from chnn.systems.bead import Bead
from chnn.systems.cart_pole import CartPole
from chnn.systems.chain import ChainPendulum
from chnn.systems.coupled import CoupledPendulum
from chnn.systems.four_bar import FourBar
from chnn.systems.magnet import MagnetPendulum
from chnn.systems.rigid import Gyroscope, Rotor
from chnn.systems.rope import Rope
from chnn.systems.satellite import Satellite

_CLASSES: tuple[type[System], ...] = (ChainPendulum, CoupledPendulum, MagnetPendulum, Gyroscope, Rotor, CartPole,
                                      Satellite, FourBar, Bead, Rope)  # fmt: skip
SYSTEMS: dict[str, type[System]] = {each.name: each for each in _CLASSES}
"""Name on the command line to class."""


def system_by_name(name: str, **parameters: Any) -> System:
    """The system called ``name``; parameters that are None take the system's default.

    Raises:
        UserError: for an unknown name, or a parameter that the system does not have.

    >>> system_by_name("chain-pendulum", links=3).num_points
    3
    """
    if name not in SYSTEMS:
        raise unknown_name("system", name, SYSTEMS)
    given = {key: value for key, value in parameters.items() if value is not None}
    own = [key for key in inspect.signature(SYSTEMS[name].__init__).parameters if key != "self"]
    for key in given:
        if key not in own:
            shown = ", ".join("--" + option.replace("_", "-") for option in own)
            raise UserError(f"{name} has no parameter --{key.replace('_', '-')}; it has {shown}")
    return SYSTEMS[name](**given)
