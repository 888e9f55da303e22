"""Accuracies of models from a table: timm's published results, or the user's own csv.

timm's tables lie in its source repository, ``results/results-imagenet.csv`` and its siblings, and not in the
installed distribution; download the one you want and give its path. Columns used: ``model`` and ``top1``
(per cent), and ``img_size`` where a model stands in more than one row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lie.run import UserError, regular_file

_MAX_BYTES = 2**26  # timm's largest table has 0.2 MB

Accuracies = dict[str, dict[int | None, float]]
"""model to image size to accuracy in per cent; size None where the table does not say"""


def read_accuracies(path: str | Path, column: str = "top1") -> Accuracies:
    """The accuracies in a csv file, by model and image size.

    Args:
        path: file with a header; a column ``model``, and ``column``.
        column: accuracy in per cent.

    Raises:
        UserError: if the file cannot be read, lacks a column, or holds something that is no percentage.
    """
    path = regular_file(path, max_bytes=_MAX_BYTES)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the accuracies in {path} ({reason}); expected a csv of model,top1") from None
    for needed in ("model", column):
        if needed not in columns:
            raise UserError(f"{path} has no column {needed!r} (it has {', '.join(columns) or 'none'}); expected a csv "
                            f"of model,{column}, or name the column of accuracies by --column")  # fmt: skip
    accuracies: Accuracies = {}
    for number, row in enumerate(rows, start=2):
        try:
            value = float(row[column])
            size = int(row["img_size"]) if row.get("img_size") else None
        except (TypeError, ValueError):
            raise UserError(f"{path}:{number}: expected a number in {column}, got {row[column]!r}") from None
        if not 0 <= value <= 100:
            raise UserError(f"{path}:{number}: expected {column} in per cent, 0 to 100, got {value}")
        accuracies.setdefault(row["model"], {})[size] = value
    if accuracies and all(value <= 1 for sizes in accuracies.values() for value in sizes.values()):
        raise UserError(f"expected {column} of {path} in per cent, got fractions: every value is at most 1")
    return accuracies


def unjoined(records: Iterable[Mapping[str, Any]], joined: Mapping[str, float]) -> list[str]:
    """Why the other measured models have no accuracy, in words: their weights are random, or no row is theirs."""
    measured = [record for record in records if record["status"] == "ok" and record["model"] not in joined]
    random = [r["model"] for r in measured if r["result"]["weights"]["kind"] == "random"]
    others = [r["model"] for r in measured if r["result"]["weights"]["kind"] != "random"]
    reasons = [f"{len(random)} with random weights, which have none"] if random else []
    if others:
        shown = f"{', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
        reasons.append(f"{len(others)} of which the table has no row, or none at their resolution: {shown}")
    return reasons


def join_accuracies(records: Iterable[Mapping[str, Any]], accuracies: Accuracies) -> dict[str, float]:
    """Accuracy in per cent by model, for those records whose weights the table describes.

    A model with timm's weights is looked up by their full name (``resnet18.a1_in1k``), then by its own; one
    with weights from a file by its own name. Random weights have no published accuracy and are never joined.
    Where the table has several image sizes, that of the record counts, or the only one.
    """
    joined = {}
    for record in records:
        if record["status"] != "ok" or record["result"]["weights"]["kind"] == "random":
            continue
        weights = record["result"]["weights"]
        names = [weights["source"], record["model"]] if weights["kind"] == "pretrained" else [record["model"]]
        sizes = next((accuracies[name] for name in names if name in accuracies), None)
        if sizes is None:
            continue
        size = record["result"]["preprocessing"]["input_size"][-1]
        if size in sizes:
            joined[record["model"]] = sizes[size]
        elif len(sizes) == 1:
            joined[record["model"]] = next(iter(sizes.values()))
    return joined
