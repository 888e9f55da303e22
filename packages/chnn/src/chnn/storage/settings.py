"""What a run of simulations is made of, and how it is cut: settings, times, shards, and the initial states of each.

Trajectory i starts from the same state in every run with the same system and seed, however many trajectories the run
has and however it is cut into shards: the initial states are drawn in blocks of 64, block b by a generator
of its own, seeded by a hash of (seed, b).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from lie.run import Positive, Seed, UserError, unknown_name, validate
from msgspec import Meta
from torch import Tensor

from chnn.systems import System
from chnn.systems.names import system_from
from chnn.systems.times import check_times

FORMATS = ("npz", "parquet")
"""Of the files with trajectories."""
FAILURES = ("stop", "keep")
"""What to do with a trajectory that cannot be integrated to the end."""

BLOCK = 64
"""Trajectories whose initial states are drawn together."""
SHARD_BYTES = 2**26
"""States that a shard holds, unless said otherwise: what is kept in memory is a small multiple."""
Trajectories = Annotated[int, Meta(ge=1, le=10**12)]
"""Number of random initial states."""
Shard = Annotated[int, Meta(ge=1, le=10**12)]
"""Trajectories in a file."""
Tolerance = Annotated[float, Meta(ge=1e-15, lt=1.0)]
"""Relative tolerance of a step; below the bound lies the rounding of float64."""
_LARGEST = 2**31  # bytes of one trajectory; the smallest shard holds one


@dataclass(frozen=True)
class Settings:
    """Everything that decides the bits of a run.

    >>> Settings(system="rope", parameters={"links": 5}, trajectories=1000, dt=0.01, horizon=1.0).build().num_points
    5
    """

    system: str
    """Name of the system."""
    parameters: dict[str, Any]
    """Arguments of the system's class."""
    trajectories: Trajectories
    """Number of random initial states."""
    dt: Positive
    """Spacing of the output times, s."""
    horizon: Positive
    """Length of the simulation, s."""
    rtol: Tolerance = 1e-10
    """Relative tolerance of a step; the absolute one is a hundredth of it."""
    seed: Seed = 0
    """Seed of the initial states."""
    format: str = "npz"
    """npz or parquet."""
    shard: Shard | None = None
    """Trajectories in a file; by default as many as make 64 MiB."""
    failures: str = "stop"
    """stop: a trajectory that cannot be integrated ends the run; keep: it is NaN from where it stopped."""
    device: str = "cpu"
    """Where the system is simulated."""

    def __post_init__(self) -> None:
        for name in ("dt", "horizon", "rtol"):
            if not isinstance(getattr(self, name), int | float):
                raise UserError(f"expected a number for {name}, got {getattr(self, name)!r}")
        if not 0.0 < self.dt <= self.horizon < math.inf:
            raise UserError(f"expected 0 < --dt <= --horizon, got {self.dt} and {self.horizon}")
        check_times(self.dt, self.horizon)
        if not 0.0 < self.rtol < 1.0:
            raise UserError(f"expected --rtol between 0 and 1, got {self.rtol}")
        if self.trajectories < 1:
            raise UserError(f"expected --trajectories of at least one initial state, got {self.trajectories}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"expected a --seed from 0 to 2^63 - 1, got {self.seed}")
        if self.shard is not None and self.shard < 1:
            raise UserError(f"expected --shard of at least one trajectory, got {self.shard}")
        if self.format not in FORMATS:
            raise unknown_name("format", self.format, FORMATS)
        if self.failures not in FAILURES:
            raise unknown_name("way with failures", self.failures, FAILURES)

    @classmethod
    def from_json(cls, stored: Any, where: str) -> Settings:
        """The settings in a parsed file; ``where`` names it in the error."""
        if not isinstance(stored, dict) or not stored:
            raise UserError(f"{where} holds no settings of a simulation")
        return validate(cls, stored, f"the settings in {where}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)

    def build(self) -> System:
        """The system.

        Raises:
            UserError: for an unknown name, or parameters that it does not have or cannot be made of.
        """
        return system_from(self.system, self.parameters)

    @cached_property
    def times(self) -> Float[Tensor, " T"]:
        """Output times, s, float64."""
        return torch.arange(round(self.horizon / self.dt) + 1, dtype=torch.float64) * self.dt

    def plan(self, system: System) -> Plan:
        """The cut into shards.

        Raises:
            UserError: if one trajectory alone is too large.
        """
        count = round(self.horizon / self.dt) + 1
        size = count * 2 * system.num_points * system.spatial_dim * 8
        if size > _LARGEST:
            raise UserError(
                f"one trajectory of {count} times takes {size / 2**30:.3g} GiB, at most {_LARGEST / 2**30:g} are "
                "possible; give a larger --dt or a shorter --horizon"
            )
        # Whole blocks of initial states where there are more than one; none is drawn twice then.
        shard = self.shard or max(1, SHARD_BYTES // size // BLOCK * BLOCK or SHARD_BYTES // size)
        return Plan(self.trajectories, min(shard, self.trajectories), self.format, size)


@dataclass(frozen=True)
class Plan:
    """A run cut into files: trajectories ``[k size, (k + 1) size)`` lie in file k."""

    trajectories: int
    size: int
    format: str
    trajectory_bytes: int

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return -(-self.trajectories // self.size)

    def rows(self, shard: int) -> range:
        """The trajectories of a file."""
        return range(shard * self.size, min((shard + 1) * self.size, self.trajectories))

    def name(self, shard: int) -> str:
        """Name of a file."""
        if self.num_shards == 1:
            return f"trajectories.{self.format}"
        return f"trajectories-{shard:05d}-of-{self.num_shards:05d}.{self.format}"


def initial_states(system: System, seed: int, rows: range) -> Float[Tensor, "B 2 n d"]:
    """Random initial states of these trajectories, float64; they depend on the system, seed and row only.

    >>> from chnn.systems import ChainPendulum
    >>> whole = initial_states(ChainPendulum(), 0, range(100))
    >>> torch.equal(initial_states(ChainPendulum(), 0, range(60, 70)), whole[60:70])
    True
    """
    blocks = range(rows.start // BLOCK, (rows.stop - 1) // BLOCK + 1)
    drawn = []
    for block in blocks:
        hashed = int(np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0])
        drawn.append(system.sample(BLOCK, generator=torch.Generator().manual_seed(hashed >> 1)))
    first = blocks.start * BLOCK
    return torch.cat(drawn)[rows.start - first : rows.stop - first]
