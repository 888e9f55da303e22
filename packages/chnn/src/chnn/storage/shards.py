"""A file of trajectories with their drifts, as npz or parquet; whole or absent, the same bits for the same numbers.

npz: ``t (T,)``, ``z (B, T, 2, n, d)``, and of each trajectory ``energy_drift``, ``position_violation`` and
``velocity_violation (B,)``; not compressed, as the last bits of a trajectory are noise.
parquet: a row for each trajectory and time, columns ``trajectory``, ``t``, and of each point ``bob 0.x`` ...
``bob 0.vx``; drifts in the metadata of the file, units in those of the columns.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from lie.run import UserError, atomic_path, read_npz, regular_file

from chnn.systems import System

AXES = "xyz"
_CHECKSUM = b"sha256 of drifts"
# UserError is a ValueError; pyarrow's errors are these, or of Exception's other children.
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, EOFError, NotImplementedError,
           RuntimeError, RecursionError, OverflowError, MemoryError)  # fmt: skip


@dataclass(frozen=True)
class Drifts:
    """Errors of each trajectory, (B,) each."""

    energy_drift: np.ndarray
    """Largest |E(t) - E(0)| over the energy above rest."""
    position_violation: np.ndarray
    """Largest residual of a constraint: |U|^2 - l^2 (m^2), or distance of a joint (m)."""
    velocity_violation: np.ndarray
    """Largest J v."""

    @staticmethod
    def join(parts: list[Drifts]) -> Drifts:
        """Of one shard after the other."""
        return Drifts(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Drifts)))


def point_names(system: System) -> list[str]:
    """A name for each point: that of its body, and with ``.tip1`` to ``.tip3`` for the tips of a body's axes."""
    names = [""] * system.num_points
    for body in system.description.bodies:
        for k in range(body.dim + 1):
            names[body.first + k] = f"{body.name}.tip{k}" if k else body.name
    return names


def column_names(system: System) -> list[str]:
    """A name for each of the 2 n d numbers of a state, in their order."""
    axes, points = AXES[: system.spatial_dim], point_names(system)
    return [f"{point}.{prefix}{axis}" for prefix in ("", "v") for point in points for axis in axes]


def write_shard(path: Path, system: System, rows: range, t: np.ndarray, z: np.ndarray, drifts: Drifts) -> None:
    """Write the states (B, T, 2, n, d) of trajectories ``rows`` atomically, in the format of the suffix."""
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            np.savez(temporary, t=t, z=z, **{f.name: getattr(drifts, f.name) for f in fields(drifts)})
        else:
            _write_parquet(temporary, system, rows, t, z, drifts)


def read_states(path: Path, system: System, count: int, times: int) -> np.ndarray:
    """The states (count, times, 2, n, d) of a file.

    Raises:
        UserError: if the file is missing, damaged or of other numbers.
    """
    expected = (count, times, 2, system.num_points, system.spatial_dim)
    regular_file(path)
    if path.suffix == ".npz":
        with _reading(path):
            z = _arrays(path, ["z"], 8 * math.prod(expected))["z"]
    else:
        names = column_names(system)
        parquet = parquet_library()
        with _reading(path), parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            held = (file.metadata.num_rows, file.schema_arrow.names)
            if held != (count * times, ["trajectory", "t", *names]):
                raise ValueError(
                    f"{held[0]} rows of {len(held[1])} columns, expected {count * times} of {len(names) + 2}"
                )
            table = file.read(columns=names)
            z = np.stack([column.to_numpy() for column in table.columns], axis=-1).reshape(-1, *expected[1:])
    if z.shape != expected or z.dtype != np.float64:
        raise UserError(f"{path} does not fit its run: expected states {expected} float64, got {z.shape} {z.dtype}")
    return z


def read_drifts(path: Path, count: int) -> Drifts:
    """The drifts of the trajectories of a file, without its states.

    Raises:
        UserError: if the file is missing, damaged or of other numbers.
    """
    names = [f.name for f in fields(Drifts)]
    regular_file(path)
    if path.suffix == ".npz":
        with _reading(path):
            values = _arrays(path, names, 8 * count * len(names))
    else:
        parquet = parquet_library()
        with _reading(path):
            metadata = parquet.read_schema(path).metadata or {}
            texts = [metadata[name.encode()].decode() for name in names]
            if metadata[_CHECKSUM].decode() != _checksum(texts):
                raise ValueError("the checksum of the drifts differs")
            values = {name: np.array(json.loads(text), dtype=float) for name, text in zip(names, texts, strict=True)}
    if any(value.shape != (count,) or value.dtype != np.float64 for value in values.values()):
        raise UserError(f"{path} does not fit its run: expected drifts of {count} trajectories")
    return Drifts(**values)


def _arrays(path: Path, names: list[str], size: int) -> dict[str, np.ndarray]:
    """These arrays of an npz file, of at most so many bytes in all."""
    arrays = read_npz(path, names, max_bytes=size + 256 * len(names))  # with their headers of 128 bytes
    lost = [name for name in names if name not in arrays]
    if lost:
        raise ValueError(f"it lacks {', '.join(lost)}")
    return arrays


def _checksum(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into one line with the remedy."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is damaged or cut short ({reason}); make it again with: chnn simulate --resume {path.parent}"
        ) from None


def parquet_library() -> Any:
    """``pyarrow.parquet``.

    Raises:
        UserError: names the extra that brings it.
    """
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"parquet needs pyarrow, which is not here ({error}): pip install 'chnn[parquet]' or pip install pyarrow, "
            "or use --format npz"
        ) from None
    return pyarrow.parquet


def _write_parquet(path: Path, system: System, rows: range, t: np.ndarray, z: np.ndarray, drifts: Drifts) -> None:
    parquet = parquet_library()
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    half = system.num_points * system.spatial_dim
    names = column_names(system)
    schema = [pa.field("trajectory", pa.int64()), pa.field("t", pa.float64(), metadata={"unit": "s"})]
    schema += [
        pa.field(name, pa.float64(), metadata={"unit": "m" if k < half else "m/s"}) for k, name in enumerate(names)
    ]
    metadata = {f.name: json.dumps(getattr(drifts, f.name).tolist()) for f in fields(drifts)}
    metadata[_CHECKSUM.decode()] = _checksum(list(metadata.values()))  # pages have their own, the metadata have none
    flat = z.reshape(len(z) * len(t), -1)
    columns = [np.repeat(np.arange(rows.start, rows.stop), len(t)), np.tile(t, len(z)), *flat.T]
    table = pa.table([pa.array(np.ascontiguousarray(column)) for column in columns],
                     schema=pa.schema(schema, metadata=metadata))  # fmt: skip
    # The bytes of doubles apart, sign and exponent by themselves: a fifth smaller, and faster to write.
    split = ["t", *names]
    parquet.write_table(table, path, compression="zstd", use_dictionary=["trajectory"], use_byte_stream_split=split,
                        write_page_checksum=True)  # fmt: skip
