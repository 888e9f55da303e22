"""A system from the flags of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from lie.run import NonNegative, UserError, unknown_name
from msgspec import Meta

if TYPE_CHECKING:
    from chnn.systems import System


_FLAGS = ("links", "bobs", "masses", "lengths", "spring_constant")
_OF_FILES = ("file", "ignore", "base")


def flag_of(parameter: str) -> str:
    """How a parameter of a system is written on the command line."""
    flag = parameter.replace("_", "-")
    return f"--{flag}" if parameter in (*_FLAGS, *_OF_FILES) else f"--set {parameter}="


@dataclass(frozen=True, kw_only=True)
class SystemFlags:
    """Parameters of a system, as every command that makes one takes them."""

    links: Annotated[int, Meta(ge=1, le=1000)] | None = None
    """Links of a chain-pendulum or rope."""
    bobs: Annotated[int, Meta(ge=1, le=1000)] | None = None
    """Bobs of a coupled-pendulum."""
    masses: tuple[float, ...] | None = None
    """Masses, kg, one a body; 1 each by default."""
    lengths: tuple[float, ...] | None = None
    """Lengths of the rods, m; 1 each by default."""
    spring_constant: NonNegative | None = None
    """Spring constant of a coupled-pendulum, N/m."""
    set: tuple[str, ...] = ()
    """Any parameter of the system's class as NAME=VALUE, for example --set magnets=3 dipole=0.2."""

    def system_called(self, name: str) -> System:
        """The system of that name with these parameters.

        Raises:
            UserError: for an unknown name, and for parameters that the system does not have or cannot be made of.
        """
        from chnn.systems import SYSTEMS
        from chnn.systems.names import check_parameters, system_from

        if name == "robot":
            raise UserError("a robot needs a file: chnn simulate --file ROBOT.xml, and then the folder of the run")
        if name not in SYSTEMS:
            raise unknown_name("system", name, SYSTEMS)
        given = self.given()
        check_parameters(name, {key: value for key, value in given.items() if value is not None}, flag_of)
        return system_from(name, given)

    def given(self) -> dict[str, Any]:
        """Parameter -> value; None where not given.

        Raises:
            UserError: for ``--set`` that is no NAME=VALUE.
        """
        parameters = {name: getattr(self, name) for name in _FLAGS}
        for pair in self.set:
            name, equals, text = pair.partition("=")
            if not equals or not name:
                raise UserError(f"expected --set NAME=VALUE, got {pair!r}")
            try:
                parameters[name.replace("-", "_")] = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError):
                parameters[name.replace("-", "_")] = text  # a name, such as surface=torus
        return parameters
