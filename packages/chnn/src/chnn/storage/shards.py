"""A file of trajectories with their drifts, as npz or parquet; whole or absent, the same bits for the same numbers.

npz: ``t (T,)``, ``z (B, T, 2, n, d)``, and of each trajectory ``energy_drift``, ``position_violation`` and
``velocity_violation (B,)``; not compressed, as the last bits of a trajectory are noise.
parquet: a row for each trajectory and time, columns ``trajectory``, ``t``, and of each point ``bob 0.x`` ...
``bob 0.vx``; drifts in the metadata of the file, units in those of the columns.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from lie.run import UserError, atomic_path

from chnn.systems import System

AXES = "xyz"


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
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                z = file["z"]
        else:
            parquet = parquet_library()
            table = parquet.read_table(path, columns=column_names(system), memory_map=True)
            columns = [column.to_numpy() for column in table.columns]
            z = np.stack(columns, axis=-1).reshape(-1, *expected[1:]) if columns else np.empty(0)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the folder does not hold a whole simulation") from None
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None
    if z.shape != expected or z.dtype != np.float64:
        raise UserError(f"{path} does not fit its run: expected states {expected} float64, got {z.shape} {z.dtype}")
    return z


def read_drifts(path: Path, count: int) -> Drifts:
    """The drifts of the trajectories of a file, without its states.

    Raises:
        UserError: if the file is missing, damaged or of other numbers.
    """
    names = [f.name for f in fields(Drifts)]
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in names}
                whole = "z" in file.files
        else:
            metadata = parquet_library().read_schema(path).metadata or {}
            values = {name: np.array(json.loads(metadata[name.encode()]), dtype=float) for name in names}
            whole = True
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the folder does not hold a whole simulation") from None
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None
    if not whole or any(value.shape != (count,) for value in values.values()):
        raise UserError(f"{path} does not fit its run: expected drifts of {count} trajectories")
    return Drifts(**values)


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
    flat = z.reshape(len(z) * len(t), -1)
    columns = [np.repeat(np.arange(rows.start, rows.stop), len(t)), np.tile(t, len(z)), *flat.T]
    table = pa.table([pa.array(np.ascontiguousarray(column)) for column in columns],
                     schema=pa.schema(schema, metadata=metadata))  # fmt: skip
    # The bytes of doubles apart, sign and exponent by themselves: a fifth smaller, and faster to write.
    split = ["t", *names]
    parquet.write_table(table, path, compression="zstd", use_dictionary=["trajectory"], use_byte_stream_split=split)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged or cut short ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
        "chnn simulate --resume RUN makes it again"
    )
