"""Command lines from dataclasses: one dataclass a subcommand, its fields the flags.

A subcommand's dataclass has a method ``run()``. What a user can mend ends with one line on stderr and
exit code 2; Ctrl-C ends with 130 and a word on how to go on.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lie.run.errors import UserError, unknown_name


class Command(Protocol):
    """What `run_command` asks of a subcommand: a dataclass with ``run``."""

    def run(self) -> None:
        """Do the work; raise `UserError` for what the user can mend."""


def run_command(
    prog: str, description: str, commands: Mapping[str, type[Any]], argv: Sequence[str] | None = None
) -> int:
    """Parse ``argv`` into one of ``commands`` and run it; returns the exit code (0, 2 or 130).

    Args:
        prog: name of the program, as typed.
        description: one paragraph for ``--help``.
        commands: subcommand name to dataclass with a ``run()`` method; its docstring is its help.
        argv: arguments after the program's name; ``sys.argv[1:]`` by default.
    """
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        return _fail(prog, str(unknown_name("command", arguments[0], commands)))
    command = tyro.extras.subcommand_cli_from_dict(
        dict(commands), prog=prog, description=description, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        with warnings.catch_warnings():
            # Of torch's own insides at the first forward derivative; nothing that a user could act on.
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
            command.run()
    except UserError as error:
        return _fail(prog, str(error))
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; what has --resume goes on with --resume DIR", file=sys.stderr)
        return 130
    return 0


def _fail(prog: str, message: str) -> int:
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
