"""Simulate to a folder: shard after shard, each whole or absent, so that a run goes on where it was stopped.

The folder holds ``run.json`` (settings, units, versions) from the start, then the shards, and at the end
``drifts.csv`` and ``metrics.json``; ``SHA256SUMS`` has the checksum of each shard as soon as it is whole. Memory is
that of one shard, a small multiple of 64 MiB.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lie.run import Seed, UserError, WriteError, output_directory, provenance, resolve_device, validate, write_text
from torch import Tensor
from tqdm import tqdm

from chnn.simulation import IntegrationError
from chnn.storage.checksums import (
    SUMS,
    append_sum,
    check_sum,
    file_checksum,
    read_sealed,
    read_sums,
    write_sealed,
    write_sums,
)
from chnn.storage.settings import Plan, Settings, Shard, initial_states
from chnn.storage.shards import Drifts, parquet_library, read_drifts, write_shard
from chnn.systems import SYSTEMS, Robot, System, arguments_of

UNITS = {
    "t": "s",
    "z": "positions in m, velocities in m/s, axes (trajectory, time, position or velocity, point, axis)",
    "energy_drift": "largest |E(t) - E(0)| of a trajectory over its energy above rest",
    "position_violation": "largest |U|^2 - l^2 (m^2) or distance of a joint (m)",
    "velocity_violation": "largest J v (m^2/s or m/s)",
}
RUN, METRICS, DRIFTS = "run.json", "metrics.json", "drifts.csv"
_SLICE = 2**23  # bytes of states whose energies are computed together
_log = getLogger(__name__)


def simulate_run(
    settings: Settings, out: str | Path, *, system: System | None = None, animation: Sequence[str] = ()
) -> dict[str, Any]:
    """Simulate trajectories from random initial states into the folder ``out``, or resume what is there.

    A run that was killed anywhere and goes on ends with the same bits as one that was not: what is whole stays,
    what is missing or damaged is made again. Every file is read and compared with its checksum for that.

    Args:
        settings: of the run; for a folder with a run in it they must be its own.
        out: the folder, made if it is not there; see `chnn.storage.load_run`.
        system: a system of your own; by default the one that the settings name.
        animation: kinds of pictures to draw when the run is resumed; those of a new run are kept in run.json.

    Returns:
        What ``metrics.json`` holds: drifts, settings, units, versions, seconds.

    Raises:
        UserError: if a trajectory cannot be integrated, the disk is full, or the folder holds another run.

    >>> import tempfile
    >>> settings = Settings("chain-pendulum", {"links": 1}, trajectories=20, dt=0.1, horizon=1.0)
    >>> simulate_run(settings, tempfile.mkdtemp())["energy_drift_max"] < 1e-8
    True
    """
    out = Path(out)
    device = resolve_device(settings.device)
    if settings.format == "parquet":
        parquet_library()
    if system is not None:
        _check_same(settings, system)
    system = system or settings.build()
    plan = settings.plan(system)
    with output_directory(out):
        return _simulate(settings, out, system, plan, device, animation)


def _simulate(
    settings: Settings, out: Path, system: System, plan: Plan, device: torch.device, animation: Sequence[str]
) -> dict[str, Any]:
    """The work of `simulate_run` in its folder, which is locked."""
    stored = open_run(settings, out, plan, system, animation)
    for name in ("trajectories", RUN, METRICS, DRIFTS, SUMS):
        for leftover in out.glob(f".{Path(name).stem}-*"):  # of a process that was killed while writing
            leftover.unlink()
    sums = read_sums(out)
    parts = [_finished(out / plan.name(k), len(plan.rows(k)), sums) for k in range(plan.num_shards)]
    done = sum(len(plan.rows(k)) for k, part in enumerate(parts) if part is not None)
    started = time.perf_counter()
    seconds = 0.0
    with tqdm(total=settings.trajectories, initial=done, desc=f"simulate {system.name}", unit=" trajectories",
              smoothing=0.0, disable=done == settings.trajectories) as bar:  # fmt: skip
        for k, part in enumerate(parts):
            if part is None:
                bar.set_postfix_str("compiled once for each system" if bar.n == 0 and device.type == "cpu" else "")
                parts[k], spent = _simulate_shard(settings, system, plan, k, out, device, bar)
                seconds += spent
    drifts = Drifts.join([part for part in parts if part is not None])
    _write_table(out / DRIFTS, drifts)
    names = [*(plan.name(k) for k in range(plan.num_shards)), DRIFTS]
    write_sums(out, names, {**read_sums(out), DRIFTS: file_checksum(out / DRIFTS)})
    metrics = {
        **_summary(drifts),
        "energy_drift_is": UNITS["energy_drift"],
        "violation_is": "residual |U|^2 - l^2 (m^2) or distance of a joint (m), and J v",
        "damped": system.damped,
        **{key: stored[key] for key in ("system", "parameters", "units")},
        **{key: getattr(settings, key) for key in ("trajectories", "dt", "rtol", "seed", "device", "format")},
        "horizon": float(settings.times[-1]),
        "shards": plan.num_shards,
        "trajectories_before_resume": done,
        "simulate_seconds": round(seconds, 3),
        "total_seconds": round(time.perf_counter() - started, 3),
        "versions": stored["versions"],
    }
    write_sealed(out / METRICS, metrics)
    return metrics


def _check_same(settings: Settings, system: System) -> None:
    """Refuse a system of a known name whose arguments are not those that the run would be read back with."""
    if type(system) is not {**SYSTEMS, Robot.name: Robot}.get(settings.system):
        return  # of your own, which `load_run` is given again
    given = arguments_of(system)
    if given == settings.parameters:
        return
    wanted = arguments_of(settings.build())
    changed = [name for name in {**given, **wanted} if given.get(name) != wanted.get(name)]
    if changed:
        name = changed[0]
        raise UserError(
            f"the settings make a {settings.system} with {name} {wanted.get(name)!r}, got a system with "
            f"{given.get(name)!r}; use Settings({settings.system!r}, arguments_of(system), ...)"
        )


def open_run(
    settings: Settings, out: Path, plan: Plan, system: System, animation: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``run.json`` in ``out`` holds: that of a run with these settings, or a new one."""
    path = out / RUN
    versions = provenance("chnn", "numba")
    if path.exists():
        stored = read_run(path)
        was = Settings.from_json(stored["settings"], str(path))
        if was != settings:
            changed = [name for name, value in settings.to_json().items() if value != getattr(was, name)]
            shown = "; ".join(f"{name} is {getattr(was, name)!r}, got {getattr(settings, name)!r}" for name in changed)
            raise UserError(f"the run in {out} has other settings: {shown}; give another --out")
        other = [name for name, version in versions.items() if stored["versions"].get(name) != version]
        if other:
            _log.warning("the run in %s was begun with another %s: its last bits may differ", out, ", ".join(other))
        return stored
    if (out / METRICS).exists() or any(out.glob("trajectories*")):
        raise UserError(f"{out} already holds results that are of no run that can go on; give another --out")
    needed, free = plan.trajectory_bytes * plan.trajectories, shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{plan.trajectories} trajectories take about {needed / 2**30:.3g} GiB and {out} has {free / 2**30:.3g} "
            "GiB free; ask for fewer --trajectories, a larger --dt or a shorter --horizon, or give another --out"
        )
    stored = {
        "system": settings.system,
        "parameters": system.parameters(),
        "units": UNITS,
        "seed": settings.seed,
        "settings": settings.to_json(),
        "animation": list(animation),
        "shards": [plan.name(k) for k in range(plan.num_shards)],
        "shard_trajectories": plan.size,
        "versions": versions,
    }
    write_sealed(path, stored)
    return stored


@dataclass(frozen=True)
class _RunFile:
    """Types of the entries of ``run.json``."""

    system: str
    parameters: dict[str, Any]
    units: dict[str, str]
    seed: Seed
    settings: dict[str, Any]
    animation: list[str]
    shards: list[str]
    shard_trajectories: Shard
    versions: dict[str, str]


def read_run(path: Path) -> dict[str, Any]:
    """What a ``run.json`` holds, with the types that it has to have.

    Raises:
        UserError: if it is missing, damaged, or of another kind.
    """
    stored = read_sealed(path, "restore the file as it was, or make the run again in another --out")
    settings = stored.get("settings")
    if not isinstance(settings, dict) or not settings:
        raise UserError(f"{path} holds no settings of a simulation; restore the file as it was")
    validate(_RunFile, stored, str(path))
    return stored


def _finished(path: Path, count: int, sums: dict[str, str]) -> Drifts | None:
    """The drifts of a shard that is there and whole."""
    if not path.exists():
        return None
    try:
        check_sum(path, sums)
        return read_drifts(path, count)
    except UserError as error:
        _log.warning("%s; it is made again", error)
        return None


def _simulate_shard(
    settings: Settings, system: System, plan: Plan, k: int, out: Path, device: torch.device, bar: Any
) -> tuple[Drifts, float]:
    rows, t = plan.rows(k), settings.times
    z0 = initial_states(system, settings.seed, rows).to(device)
    before = bar.n

    def advance(fraction: float) -> None:
        bar.update(before + round(len(rows) * fraction) - bar.n)

    started = time.perf_counter()
    try:
        z = system.simulate(z0, t, settings.rtol, progress=advance).cpu()
    except IntegrationError as error:
        failed = [rows.start + sample for sample in error.samples or []]
        if settings.failures == "stop" or error.reached is None:
            raise UserError(
                f"trajectory {', '.join(map(str, failed[:5]))}{' ...' if len(failed) > 5 else ''}: {error}; or go on "
                "without with --failures keep, which leaves NaN from where a trajectory stopped"
            ) from None
        z = error.reached.cpu()
    seconds = time.perf_counter() - started
    advance(1.0)
    drifts = measure(system, z)
    name = out / plan.name(k)
    try:
        write_shard(name, system, rows, t.numpy(), z.numpy(), drifts)
        append_sum(name)
    except WriteError as error:
        raise UserError(
            f"{error}; complete files are kept: mend that and resume with chnn simulate --resume {out}"
        ) from None
    return drifts, seconds


def measure(system: System, z: Tensor) -> Drifts:
    """Drift of energy and violations of constraints of states (B, T, 2, n, d), trajectory by trajectory."""
    count = max(1, _SLICE // max(1, z[0].numel() * 8))
    parts = []
    for some in z.split(count):
        energy = system.energy(some)
        scale = system.energy_scale(some[:, 0]).clamp(min=1e-300)
        drift = (energy - energy[:, :1]).abs().amax(1) / scale
        position, velocity = (_largest(each(some)) for each in (system.constraints, system.velocity_constraints))
        parts.append(Drifts(drift.numpy(), position.numpy(), velocity.numpy()))
    return Drifts.join(parts)


def _largest(residuals: Tensor) -> Tensor:
    """Over times and constraints; 0 for a free point."""
    return residuals.abs().flatten(1).amax(1) if residuals.numel() else residuals.new_zeros(len(residuals))


def _summary(drifts: Drifts) -> dict[str, Any]:
    whole = ~np.isnan(drifts.energy_drift)
    if not whole.any():
        raise UserError("no trajectory could be integrated to the end; loosen --rtol or shorten --horizon")
    return {
        "energy_drift_median": float(np.median(drifts.energy_drift[whole])),
        "energy_drift_max": float(drifts.energy_drift[whole].max()),
        "position_violation_max": float(drifts.position_violation[whole].max()),
        "velocity_violation_max": float(drifts.velocity_violation[whole].max()),
        "failed": int((~whole).sum()),
    }


def _write_table(path: Path, drifts: Drifts) -> None:
    rows = zip(drifts.energy_drift, drifts.position_violation, drifts.velocity_violation, strict=True)
    lines = [f"{k},{a:.3e},{b:.3e},{c:.3e}" for k, (a, b, c) in enumerate(rows)]
    write_text(path, "\n".join(["trajectory,energy_drift,position_violation,velocity_violation", *lines]) + "\n")
