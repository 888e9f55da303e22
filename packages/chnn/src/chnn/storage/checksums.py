"""Checksums of the files of a run, so that damage to any of them is noticed before a number of it is used.

``SHA256SUMS`` holds those of the files with trajectories and of the table, in the format of the program ``sha256sum``
(``sha256sum --check SHA256SUMS``). ``run.json`` and ``metrics.json`` each hold their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lie.run import UserError, read_json, regular_file, write_json, write_text
from lie.run.files import writing

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
_LARGEST = 2**28  # bytes; a line takes 100
_SEAL = "sha256"


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    try:
        with regular_file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def read_sums(folder: Path) -> dict[str, str]:
    """The checksum of each file that ``SHA256SUMS`` names; what is damaged in it is left out."""
    try:
        text = regular_file(folder / SUMS, max_bytes=_LARGEST).read_bytes().decode("ascii", errors="replace")
    except (UserError, OSError):
        return {}
    return {match[2]: match[1] for line in text.splitlines() if (match := _LINE.fullmatch(line))}


def append_sum(path: Path) -> None:
    """Add the line of a file that was just written; a line that is cut short by a kill counts as none."""
    sums = path.parent / SUMS
    with writing(sums), sums.open("a+b") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        start = b"" if end == 0 or file.read() == b"\n" else b"\n"
        file.write(start + f"{file_checksum(path)}  {path.name}\n".encode())


def write_sums(folder: Path, names: list[str], sums: dict[str, str]) -> None:
    """Write the lines of these files, in their order."""
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in names))


def check_sum(path: Path, sums: dict[str, str]) -> None:
    """Compare a file with its line.

    Raises:
        UserError: if it is missing, has no line, or differs.
    """
    remedy = f"make it again with: chnn simulate --resume {path.parent}"
    if not path.exists():
        raise UserError(f"{path} is missing; {remedy}")
    if path.name not in sums:
        raise UserError(f"{path.parent / SUMS} has no checksum of {path.name}; {remedy}")
    if file_checksum(path) != sums[path.name]:
        raise UserError(f"{path} is damaged or cut short: its SHA-256 is not that in {SUMS}; {remedy}")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as JSON with its checksum as a last entry."""
    write_json(path, {**value, _SEAL: _checksum(json.loads(json.dumps(value, allow_nan=False)))})


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        UserError: for a file that is missing, damaged, or was changed; ends with the remedy.
    """
    try:
        stored = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}" if path.exists() else str(error)) from None
    if not isinstance(stored, dict) or not isinstance(stored.get(_SEAL), str):
        raise UserError(f"{path} holds no checksum of itself: expected the entry {_SEAL}; {remedy}")
    seal = stored.pop(_SEAL)
    if seal != _checksum(stored):
        raise UserError(f"{path} is damaged or was changed: its checksum is not the one in it; {remedy}")
    return stored


def _checksum(value: dict[str, Any]) -> str:
    """Of what the values are, whatever the layout of the file."""
    try:
        text = json.dumps(value, sort_keys=True)
    except (RecursionError, ValueError):  # nested, or of more digits, than Python writes
        return ""
    return hashlib.sha256(text.encode()).hexdigest()
