"""The result files of a sweep: one JSON a model, each whole or absent."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from lie.run import UserError, read_json, write_json


@dataclass(frozen=True)
class _Weights:
    kind: str
    source: str
    sha256: str | None = None


@dataclass(frozen=True)
class _Number:
    mean: float
    standard_error: float | None = None


@dataclass(frozen=True)
class _Errors:
    mean_absolute: _Number
    mean_squared: _Number


@dataclass(frozen=True)
class _Preprocessing:
    input_size: Annotated[list[int], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class _Result:
    """What is read of the result of a model; `measure_model` writes more."""

    weights: _Weights
    parameters: Annotated[int, msgspec.Meta(ge=0)]
    method: str
    seconds: float
    generators: Annotated[dict[str, _Errors], msgspec.Meta(min_length=1)]
    preprocessing: _Preprocessing
    float64_difference: float | None = None


@dataclass(frozen=True)
class _Layer:
    type: str
    share: float


@dataclass(frozen=True)
class _Failure:
    message: str


@dataclass(frozen=True)
class _Record:
    """What is read of the record of a model."""

    model: str | None = None
    family: str | None = None
    status: Literal["ok", "failed"] = "ok"
    fingerprint: str | None = None
    result: _Result | None = None
    error: _Failure | None = None
    layers: dict[str, list[_Layer]] | None = None
    quantity: str = "outputs"
    seconds: float | None = None
    versions: dict[str, str] | None = None


def check_record(record: Any, path: Path) -> dict[str, Any]:
    """``record``, if it has the types of the result or the failure of a model.

    Raises:
        UserError: names the file and what is wrong in it.
    """
    remedy = f"{path} is not the result of a model"
    try:
        typed = msgspec.convert(record, _Record)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{remedy} ({error}); remove it, and measure again with --resume"[:500]) from None
    if (typed.result if typed.status == "ok" else typed.error) is None:
        raise UserError(f"{remedy}: it holds neither a result nor an error; remove it, and measure again with --resume")
    return record


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
        record = check_record(read_json(path), path)
        name = path.name.removesuffix(".json")
        records[name] = {"model": name, "status": "ok", **record}  # `measure` writes fewer fields
    return records


def kept_record(folder: Path, name: str, fingerprint: str, *, retry_failed: bool) -> dict[str, Any] | None:
    """The record in a model's file if it is whole and of the same settings and images, else None."""
    path = record_path(folder, name)
    if not path.exists():
        return None
    try:
        record = check_record(read_json(path), path)
    except UserError as error:
        print(f"{error}; it is measured again", file=sys.stderr)
        return None
    if record.get("fingerprint") != fingerprint or record.get("model", name) != name:
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
