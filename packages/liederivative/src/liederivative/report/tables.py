"""Records of a sweep as the tables behind the page: one row a model, shares of layer types, curves over depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured model."""

    model: str
    family: str
    parameters: int
    weights: str
    errors: dict[str, float]
    """the chosen measure, by generator"""
    accuracy: float | None
    """per cent"""
    seconds: float


def report_rows(
    records: Iterable[Mapping[str, Any]], measure: str, accuracies: Mapping[str, float] | None = None
) -> list[Row]:
    """A row for each record that is a result, in their order."""
    rows = []
    for record in records:
        if record["status"] != "ok":
            continue
        result = record["result"]
        family = record.get("family")
        if family is None:  # of a measurement, not of a sweep
            from liederivative.sweep.selection import family_of

            family = family_of(record["model"])
        rows.append(
            Row(
                model=record["model"],
                family=family,
                parameters=result["parameters"],
                weights=result["weights"]["kind"],
                errors={name: numbers[measure]["mean"] for name, numbers in result["generators"].items()},
                accuracy=(accuracies or {}).get(record["model"]),
                seconds=result["seconds"],
            )
        )
    return rows


def layer_type_shares(records: Iterable[Mapping[str, Any]], generator: str) -> dict[str, dict[str, float]]:
    """Model to layer type to its signed share of the total under ``generator``; the shares of a model sum to 1."""
    found = {}
    for record in records:
        layers = (record.get("layers") or {}).get(generator)
        if record["status"] == "ok" and layers:
            shares: dict[str, float] = {}
            for layer in layers:
                shares[layer["type"]] = shares.get(layer["type"], 0.0) + layer["share"]
            found[record["model"]] = shares
    return found


def depth_curves(records: Iterable[Mapping[str, Any]], generator: str) -> dict[str, list[tuple[float, float]]]:
    """Model to points (depth from 0 to 1, cumulative share of the total) under ``generator``, layer after layer."""
    curves = {}
    for record in records:
        layers = (record.get("layers") or {}).get(generator)
        if record["status"] == "ok" and layers:
            total, curve = 0.0, [(0.0, 0.0)]
            for number, layer in enumerate(layers, start=1):
                total += layer["share"]
                curve.append((number / len(layers), total))
            curves[record["model"]] = curve
    return curves
