"""A system from the flags of a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


def _as_flags(message: str) -> str:
    """An error of a file with its remedies as flags: ignore=('limits', 'mimic') as --ignore limits mimic."""
    message = re.sub(r"ignore=\(([^)]*)\)", lambda m: "--ignore " + " ".join(re.findall(r"[\w-]+", m[1])), message)
    return re.sub(r"base=['\"](\w+)['\"]", r"--base \1", message)


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

    def system_of(
        self, name: str | None, file: Path | None, ignore: Sequence[str] = (), base: str | None = None
    ) -> System:
        """The system called ``name``, or the robot of a file.

        Raises:
            UserError: for both or neither, and for what is wrong with either, with remedies as flags.
        """
        from chnn.systems import system_by_name
        from chnn.systems.names import check_parameters

        if file is None:
            if name is None:
                raise UserError(
                    "expected a SYSTEM to simulate, for example chain-pendulum, or --file ROBOT.xml; "
                    "chnn simulate --help lists all"
                )
            if ignore or base is not None:
                raise UserError("--ignore and --base say how to read a --file; give one")
            return self.system_called(name)
        if name is not None:
            raise UserError(f"expected either SYSTEM or --file, got {name} and --file {file}")
        given = {**self.given(), "file": str(file), "ignore": list(ignore), "base": base}
        check_parameters("robot", {key: value for key, value in given.items() if value is not None}, flag_of)
        try:
            return system_by_name("robot", **given)
        except UserError as error:
            raise UserError(_as_flags(str(error))) from None

    def refuse_other_system(self, resumed: Path, name: str, parameters: dict[str, Any]) -> None:
        """Verify that no flag beside --resume asks for another system than that of the run.

        Args:
            resumed: folder of the run.
            name, parameters: of its system.

        Raises:
            UserError: names the flag.
        """
        if self.set:
            raise UserError(f"a resumed run keeps its own parameters {parameters}; leave out --set")
        for flag in ("system", *_FLAGS, *_OF_FILES):
            value = getattr(self, flag)
            if value is None or value == ():
                continue
            was = name if flag == "system" else parameters.get(flag)
            if isinstance(value, Path):
                value = str(value.resolve())
            elif isinstance(value, tuple):
                value = list(value)
            if value != was:
                label = "SYSTEM" if flag == "system" else flag_of(flag)
                raise UserError(
                    f"the run in {resumed} has {flag} {was!r}, got {label} {value!r}; a resumed run keeps its own "
                    "settings: leave the flag out, or begin another run with --out"
                )

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
