"""Files that are either whole or absent: write beside the target, then rename."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lie.run.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on failure.

    The temporary name keeps the suffix, so that writers which look at it (images, npz) agree.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp files are private; give the result the permissions an ordinary open() would.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON value in ``path``; a missing or broken file raises `UserError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}; is this the folder of a run?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from None


@contextmanager
def output_directory(path: str | Path) -> Iterator[Path]:
    """Yield the writable directory ``path``, made if absent.

    If the body fails, the directories made here are removed again where nothing was written in them.

    Raises:
        UserError: if ``path`` is a file or cannot be created or written.
    """
    target = Path(path)
    made: list[Path] = []
    try:
        missing = [folder for folder in (target, *target.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.append(folder)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        _remove_empty(made)
        raise UserError(f"cannot write to --out {target}: {error.strerror or error}; give a writable folder") from None
    try:
        yield target
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        if any(folder.iterdir()):
            return
        folder.rmdir()
