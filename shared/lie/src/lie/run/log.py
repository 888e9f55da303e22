"""The log of a run: one JSON object a line, and tables for people."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lie.run.errors import UserError
from lie.run.files import regular_file, write_text, writing

_MAX_BYTES = 2**30  # ten million lines
_log = logging.getLogger(__name__)


class RunLog:
    """A JSON-lines log that can be cut back to a checkpoint and appended to.

    Each record is flushed when it is written, so a killed run keeps what it logged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record at the end."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a last line cut short by a kill is dropped.

        Raises:
            UserError: names a line that is damaged.
        """
        records = []
        for number, line in enumerate(self._lines(), 1):
            record = _record(line)
            if record is None:
                raise UserError(f"line {number} of {self.path} is damaged: expected a JSON object; remove the line")
            records.append(record)
        return records

    def rewind(self, key: str, last: float) -> None:
        """Keep the records whose ``record[key] <= last``: what came after the checkpoint is done again.

        A damaged line is left out, with a warning: a run goes on from its checkpoint, not from its log.
        """
        kept: list[dict[str, Any]] = []
        damaged: list[str] = []
        for number, line in enumerate(self._lines(), 1):
            record = _record(line)
            value = None if record is None else record.get(key)
            if record is None or isinstance(value, bool) or not isinstance(value, int | float):
                damaged.append(str(number))
            elif value <= last:
                kept.append(record)
        if damaged:
            _log.warning("%s: line %s is damaged and left out", self.path, ", ".join(damaged[:5]))
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def _lines(self) -> list[bytes]:
        """The lines that end as they should."""
        if not self.path.exists():
            return []
        try:
            content = regular_file(self.path, max_bytes=_MAX_BYTES).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        return content[: content.rfind(b"\n") + 1].splitlines()


def _record(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line; None for anything else."""
    try:
        record = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on the terminal: first column to the left, numbers to the right, floats to 4 digits.

    A number that does not fit ends in an ellipsis rather than on the next line, where it could be misread; beside a
    terminal (a file, a pipe) the table is as wide as it needs to be.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right",
                         overflow="fold" if index == 0 else "ellipsis", no_wrap=index > 0)  # fmt: skip
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
