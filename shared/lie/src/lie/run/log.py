"""The log of a run: one JSON object a line, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lie.run.files import write_text


class RunLog:
    """A JSON-lines log that can be cut back to a checkpoint and appended to.

    Each record is flushed when it is written, so a killed run keeps what it logged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record at the end."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a last line cut short by a kill is dropped."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def rewind(self, key: str, last: float) -> None:
        """Keep the records whose ``record[key] <= last``: what came after the checkpoint is done again."""
        kept = [record for record in self.read() if record[key] <= last]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))


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
