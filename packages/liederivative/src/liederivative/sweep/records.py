"""The result files of a sweep: one JSON a model, each whole or absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lie.run import UserError, read_json, write_json


def record_path(folder: Path, name: str) -> Path:
    """The file of a model below the sweep's folder."""
    return folder / "models" / f"{name}.json"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write one model's record atomically."""
    write_json(record_path(folder, record["model"]), record)


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """All records of the sweep (or of the measurement) in ``folder``, by model.

    Raises:
        UserError: if the folder holds none, or one that is no record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the --out of a sweep or of a measurement")
    paths = sorted(path for path in (folder / "models").glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"no result in {folder}/models; give the --out of a sweep or of a measurement")
    records = {}
    for path in paths:
        record = read_json(path)
        if not isinstance(record, dict) or not ("result" in record or "error" in record):
            raise UserError(f"{path} is not the result of a model; remove it, and measure again with --resume")
        name = path.name.removesuffix(".json")
        records[name] = {"model": name, "status": "ok", **record}  # `measure` writes fewer fields
    return records


def kept_record(folder: Path, name: str, fingerprint: str, *, retry_failed: bool) -> dict[str, Any] | None:
    """The record in a model's file if it is of the same settings and images, else None."""
    path = record_path(folder, name)
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("fingerprint") != fingerprint:
        return None
    return None if retry_failed and record.get("status") != "ok" else record


def results_table(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One flat row a model: name, family, status, parameters, weights, and both measures of each generator."""
    rows = []
    for record in records:
        row: dict[str, Any] = {key: record.get(key) for key in ("model", "family", "status", "seconds")}
        if record["status"] == "ok":
            result = record["result"]
            row |= {
                "parameters": result["parameters"],
                "weights": result["weights"]["kind"],
                "weights_sha256": result["weights"]["sha256"],
                "method": result["method"],
            }
            for name, numbers in result["generators"].items():
                row |= {f"{name}_{measure}": numbers[measure]["mean"] for measure in ("mean_absolute", "mean_squared")}
        else:
            row["error"] = record["error"]["message"]
        rows.append(row)
    return rows
