"""Command lines from dataclasses: one dataclass a subcommand, its fields the flags.

A subcommand's dataclass has a method ``run()``. What a user can mend ends with one line on stderr and exit code 2: an
argument that does not parse or is out of the bounds of its annotation (`lie.run.check_flags`), a full disk, memory that
does not suffice. Ctrl-C ends with 130 and the command that resumes the run, where there is one.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Protocol

from lie.run.errors import UserError, WriteError, unknown_name
from lie.run.provenance import provenance
from lie.run.schema import check_flags


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
    if arguments == ["--version"]:
        print(prog, provenance(prog)[prog])
        return 0
    if not arguments:
        return _fail(prog, f"expected a command, one of {', '.join(commands)}; see {prog} --help")
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        return _fail(prog, str(unknown_name("command", arguments[0], commands)))
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            command = tyro.extras.subcommand_cli_from_dict(
                dict(commands), prog=prog, description=description, args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        name = f"{prog} {arguments[0]}" if arguments[0] in commands else prog
        return _fail(prog, f"{_plain(said.getvalue())}; see {name} --help")
    name = f"{prog} {arguments[0]}"
    try:
        check_flags(command)
        with warnings.catch_warnings():
            # Of torch's own insides at the first forward derivative; nothing that a user could act on.
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
            command.run()
            sys.stdout.flush()  # a full disk behind standard output is noticed here
    except WriteError as error:
        return _fail(prog, f"{error}{_go_on(name, command)}")
    except UserError as error:
        return _fail(prog, str(error))
    except BrokenPipeError:
        # Whoever read the output, such as head, has closed it; Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # Files are written within `lie.run.files.writing`, which names them: what has no name is the output itself.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
        where = f"{error.filename}: " if error.filename else "cannot write the output: " if full else ""
        return _fail(prog, f"{where}{error.strerror or error or type(error).__name__}{_go_on(name, command)}")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _fail(prog, f"not enough memory ({str(error).strip().partition(chr(10))[0] or 'none left'}); "
                           "give smaller sizes")  # fmt: skip
    except KeyboardInterrupt:
        folder = _folder(command)
        resumes = hasattr(command, "resume") and folder is not None
        print(f"{prog}: interrupted{f'; resume with: {name} --resume {folder}' if resumes else ''}", file=sys.stderr)
        return 130
    return 0


def _folder(command: Any) -> Any:
    """The folder that a command writes to, if one was given."""
    return getattr(command, "resume", None) or getattr(command, "out", None)


def _go_on(name: str, command: Any) -> str:
    """How to resume the run once there is room again, where there is a run."""
    folder = _folder(command)
    if not hasattr(command, "resume") or folder is None:
        return ""
    started = any((Path(folder) / file).exists() for file in ("config.json", "run.json"))
    return f"; complete files are kept: mend that and resume with {name} --resume {folder}" if started else ""


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted: Python's, numpy's, torch's on the CPU or an accelerator."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("can't allocate memory", "out of memory", "not enough memory")
    )


def _fail(prog: str, message: str) -> int:
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _plain(box: str) -> str:
    """The message in a framed error of the parser, on one line: what is wrong, and the nearest flag if it has one."""
    lines = [line.strip("\u2502 ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]]  # below the title
    parts = [
        part.strip() for part in re.split(r"(?m)^[\u2500-]{4,}$", "\n".join(lines))
    ]  # frames are drawn, or in ASCII
    message = next((part for part in parts if part), "cannot be understood").partition("\nGot errors:")[0]
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", "\n".join(parts))
    return message.rstrip(". \n") + (f"; did you mean {near[1]}?" if near else "")
