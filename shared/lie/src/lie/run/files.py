"""Files that are either whole or absent: write beside the target, then rename."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from lie.run.errors import UserError, WriteError

_LOCK = ".lock"
_MAX_JSON = 2**28  # bytes; the records of a sweep of a thousand images take less than one MiB


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turn an error of the system while ``target`` is written into a `WriteError` that names it and the reason."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {target}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno == errno.EFBIG:
        return "the file would be larger than this process may write"
    if error.errno == errno.EIO:
        return "the disk does not take it (input/output error)"
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on failure.

    The temporary name keeps the suffix, so that writers which look at it (images, npz) agree.

    Raises:
        WriteError: for an error of the system, such as a full disk. What stood at ``path`` is unchanged.
    """
    target = Path(path)
    with writing(target):
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


def regular_file(path: str | Path, *, max_bytes: int | None = None) -> Path:
    """``path``, if a regular file is there: a directory, a device or a pipe would be read without end, or never.

    Args:
        path: the file; a link is followed.
        max_bytes: bound on its size.

    Raises:
        UserError: if it is missing, of another kind, or larger than the bound.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no file {path}") from None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        raise UserError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise UserError(f"expected a file, got {path}, which is {kind}")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(f"{path} has {status.st_size} bytes, at most {max_bytes} are read")
    return path


def read_json(path: str | Path) -> Any:
    """The JSON value in ``path``; a missing, broken or too large file raises `UserError`.

    NaN, infinity, numbers beyond float64 and values nested deeper than the recursion limit are refused.
    """
    try:
        return msgspec.json.decode(regular_file(path, max_bytes=_MAX_JSON).read_bytes())
    except UserError as error:
        raise UserError(f"{error}; is this the folder of a run?") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from None


@contextmanager
def output_directory(path: str | Path, *, lock: bool = True) -> Iterator[Path]:
    """Yield the writable directory ``path``, made if absent, that no other process writes to meanwhile.

    If the body fails, the directories made here are removed again where nothing was written in them. The lock is
    that of the operating system on a file in the directory, so that of a killed process does not stand.

    Args:
        path: the directory.
        lock: False for a directory in which others may write other files.

    Raises:
        UserError: if ``path`` is a file, cannot be created or written, or is locked by another process.
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
    except (OSError, ValueError) as error:
        _remove_empty(made)
        reason = _reason(error) if isinstance(error, OSError) else error
        raise UserError(f"cannot write to --out {target}: {reason}; give a writable folder") from None
    try:
        with _locked(target) if lock else nullcontext():
            yield target
    except BaseException:
        _remove_empty(made)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the process that holds it may take it again."""
    from filelock import FileLock, Timeout

    path = folder.resolve() / _LOCK
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process writes to {folder}; wait until it ends, or give another --out") from None
    except OSError as error:
        raise UserError(f"cannot lock {folder}: {_reason(error)}; give another --out") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # While it is held: whoever waits for this file sees that it is gone, and makes another.
            path.unlink(missing_ok=True)
        lock.release()


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()
