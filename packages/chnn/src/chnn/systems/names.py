"""Systems by the names people type, with the parameters each takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import inf
from numbers import Integral
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
from chnn.systems.robot import Robot
from chnn.systems.rope import Rope
from chnn.systems.satellite import Satellite

_CLASSES: tuple[type[System], ...] = (ChainPendulum, CoupledPendulum, MagnetPendulum, Gyroscope, Rotor, CartPole,
                                      Satellite, FourBar, Bead, Rope)  # fmt: skip
SYSTEMS: dict[str, type[System]] = {each.name: each for each in _CLASSES}
"""Name on the command line to class."""
MAX_COUNT = 1000
"""Links, bobs, magnets, or numbers in a list, of a system by name: the equations are dense in them."""
_BY_NAME: dict[str, type[System]] = {**SYSTEMS, Robot.name: Robot}  # a robot has no defaults: it needs a file


def system_by_name(name: str, **parameters: Any) -> System:
    """The system called ``name``; parameters that are None take the system's default.

    "robot" with ``file=`` is a `Robot`.

    Raises:
        UserError: for an unknown name, or a parameter that the system does not have or lacks.

    >>> system_by_name("chain-pendulum", links=3).num_points
    3
    """
    if name not in _BY_NAME:
        raise unknown_name("system", name, _BY_NAME)
    given = {key: value for key, value in parameters.items() if value is not None}
    check_parameters(name, given)
    return _BY_NAME[name](**given)


def system_from(name: str, parameters: Mapping[str, Any]) -> System:
    """`system_by_name` of what a file or a command line holds: whatever the class does not take is one line.

    Raises:
        UserError: names the system and the parameters.
    """
    try:
        return system_by_name(name, **parameters)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} cannot be made of {dict(parameters)!r:.200}: {reason}") from None


def check_parameters(name: str, given: Mapping[str, Any], write: Callable[[str], str] = str) -> None:
    """That the system called ``name`` has these parameters and needs no others.

    Args:
        name: of the system.
        given: parameter to value.
        write: how the user writes a parameter, for the error.

    Raises:
        UserError: names the parameter, and those there are.
    """
    if name not in _BY_NAME:
        raise unknown_name("system", name, _BY_NAME)
    own = _parameters(_BY_NAME[name])
    for key, value in given.items():
        if key not in own:
            shown = ", ".join(map(write, own)) or "none"
            close = get_close_matches(key, own, n=1)
            hint = f"; did you mean {write(close[0])}?" if close else ""
            raise UserError(f"{name} has no parameter {write(key)}{hint}; it has {shown}")
        _check_parameter(name, key, value, own[key].annotation)
    for key, parameter in own.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{name} needs {write(key)}")


def _check_parameter(name: str, key: str, value: Any, annotation: str) -> None:
    """Types and sizes that no system takes, as a file or a flag may hold them."""
    if annotation == "int":
        if isinstance(value, bool) or not isinstance(value, Integral):
            shown = f"{value:g}" if isinstance(value, float) else repr(value)
            raise UserError(f"expected a whole number for {key} of {name}, got {shown[:80]}")
        if abs(int(value)) > MAX_COUNT:
            raise UserError(f"expected {key} of {name} to be at most {MAX_COUNT}, got {str(value)[:80]}")
    elif annotation == "bool" and not isinstance(value, bool):
        raise UserError(f"expected true or false for {key} of {name}, got {value!r:.80}")
    elif annotation == "float":
        if isinstance(value, bool | str | list | tuple | dict):
            raise UserError(f"expected a number for {key}, got {value!r:.80}")
        if isinstance(value, int | float) and not abs(value) < inf:
            raise UserError(f"expected a finite number for {key} of {name}, got {value!r:.80}")
    elif "Sequence[float]" in annotation and isinstance(value, str | dict | bool):
        raise UserError(f"expected numbers for {key} of {name}, got {value!r:.80}")
    if isinstance(value, list | tuple):
        if len(value) > MAX_COUNT:
            raise UserError(f"expected at most {MAX_COUNT} values for {key} of {name}, got {len(value)}")
        if "float" in annotation:
            for number in value:
                if isinstance(number, bool | str | list | dict | None) or (
                    isinstance(number, int | float) and not abs(number) < inf
                ):
                    raise UserError(f"expected finite numbers for {key} of {name}, got {number!r:.80}")


def arguments_of(system: System) -> dict[str, Any]:
    """What `system_by_name` needs to make the system again: those of its parameters that its class takes."""
    own = _parameters(type(system))
    return {key: value for key, value in system.parameters().items() if key in own}


def _parameters(kind: type[System]) -> dict[str, inspect.Parameter]:
    return {key: value for key, value in inspect.signature(kind.__init__).parameters.items() if key != "self"}
