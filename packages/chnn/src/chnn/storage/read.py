"""Runs read back: system, times, parameters and states, all of them or a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.storage.checksums import check_sum, read_sealed, read_sums
from chnn.storage.settings import Plan, Settings
from chnn.storage.shards import Drifts, parquet_library, read_drifts, read_states
from chnn.storage.write import METRICS, RUN, read_run
from chnn.systems import System


@dataclass(frozen=True)
class Run:
    """A finished run of simulations on disk; states are read when they are asked for.

    ``run[3]`` is trajectory 3, (T, 2, n, d); ``run[10:20]`` are ten of them, (10, T, 2, n, d); ``run.z`` is all;
    ``for z in run.shards(): ...`` goes through any number in bounded memory. float64, SI units.
    """

    path: Path
    """The folder."""
    system: System
    """The system that was simulated."""
    settings: Settings
    """All settings: parameters, tolerance, seed."""
    metrics: dict[str, Any]
    """Drifts, units, versions, seconds: what ``metrics.json`` holds."""
    plan: Plan
    """The cut into files."""
    sums: dict[str, str] = field(repr=False)
    """The SHA-256 of each file with trajectories, with which it is compared when it is first read."""
    _compared: set[int] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def t(self) -> Float[Tensor, " T"]:
        """Output times, s."""
        return self.settings.times

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers that define the system."""
        return self.system.parameters()

    @property
    def seed(self) -> int:
        """Seed of the initial states."""
        return self.settings.seed

    @property
    def z(self) -> Float[Tensor, "B T 2 n d"]:
        """All states, in memory."""
        return self[:]

    def __len__(self) -> int:
        """Number of trajectories."""
        return self.settings.trajectories

    @overload
    def __getitem__(self, key: int) -> Float[Tensor, "T 2 n d"]: ...
    @overload
    def __getitem__(self, key: slice) -> Float[Tensor, "B T 2 n d"]: ...
    def __getitem__(self, key: int | slice) -> Tensor:
        """One trajectory, or a slice of them; only the files that hold them are read."""
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"expected a trajectory below {len(self)}, got {key}")
            row = key % len(self)
            return self._shard(row // self.plan.size)[row % self.plan.size].clone()
        rows = range(len(self))[key]
        shape = (len(rows), len(self.t), 2, self.system.num_points, self.system.spatial_dim)
        z = torch.empty(shape, dtype=torch.float64)
        places = torch.tensor(list(rows), dtype=torch.long)
        for k in sorted({row // self.plan.size for row in rows}):
            here = places // self.plan.size == k
            z[here] = self._shard(k)[places[here] - k * self.plan.size]
        return z

    def shards(self) -> Iterator[Float[Tensor, "B T 2 n d"]]:
        """The states file by file, in order."""
        return (self._shard(k) for k in range(self.plan.num_shards))

    def drifts(self) -> Drifts:
        """Drift of energy and violation of constraints of every trajectory."""
        files = ((self.path / self.plan.name(k), len(self.plan.rows(k))) for k in range(self.plan.num_shards))
        return Drifts.join([read_drifts(path, count) for path, count in files])

    def _shard(self, k: int) -> Tensor:
        path, count = self.path / self.plan.name(k), len(self.plan.rows(k))
        if k not in self._compared:
            check_sum(path, self.sums)
            self._compared.add(k)
        return torch.from_numpy(read_states(path, self.system, count, len(self.t)))


def load_run(path: str | Path, *, system: System | None = None) -> Run:
    """The run that ``chnn simulate --out`` or `simulate_run` left at ``path``.

    Args:
        path: the folder.
        system: a system of your own, for a run of one; by default the one that the run names.

    Raises:
        UserError: if there is no run, it is not finished, or it is damaged.

    >>> import tempfile
    >>> from chnn.storage import Settings, simulate_run
    >>> folder = tempfile.mkdtemp()
    >>> _ = simulate_run(Settings("rotor", {}, trajectories=3, dt=0.1, horizon=1.0), folder)
    >>> load_run(folder)[0].shape
    torch.Size([11, 2, 4, 3])
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no run at {path}: the folder does not exist")
    settings = read_settings(path)
    if not (path / METRICS).exists():
        raise UserError(f"the run in {path} is not finished; resume with: chnn simulate --resume {path}")
    if settings.format == "parquet":
        parquet_library()
    system = system or settings.build()
    plan = settings.plan(system)
    for k in range(plan.num_shards):
        if not (path / plan.name(k)).exists():
            raise UserError(
                f"{path / plan.name(k)} is missing; make it again with: chnn simulate --resume {path}"
            )  # fmt: skip
    metrics = read_sealed(path / METRICS, f"write it again with: chnn simulate --resume {path}")
    return Run(path, system, settings, metrics, plan, read_sums(path))


def read_settings(path: Path) -> Settings:
    """The settings of the run in a folder, finished or not."""
    if not path.is_dir():
        raise UserError(f"no run at {path}: the folder does not exist")
    return Settings.from_json(_read_run(path)["settings"], str(path / RUN))


def read_animation(path: Path) -> tuple[str, ...]:
    """The kinds of pictures that the run in a folder was started with."""
    if not path.is_dir():
        raise UserError(f"no run at {path}: the folder does not exist")
    return tuple(_read_run(path)["animation"])


def _read_run(path: Path) -> dict[str, Any]:
    """What ``run.json`` in a folder holds."""
    return read_run(path / RUN)
