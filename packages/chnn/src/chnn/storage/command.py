"""The command ``chnn simulate``: true trajectories of a system to a folder, with their drifts and a picture."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro
from lie.run import Positive, Seed, UserError, output_directory, print_table, unknown_name

from chnn.storage.flags import SystemFlags
from chnn.storage.settings import Shard, Tolerance, Trajectories


def _shown(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters for a title: of a robot the name of its file, without folder and digest."""
    shown = {key: value for key, value in parameters.items() if key != "digest" and value not in (None, [])}
    return {**shown, "file": Path(shown["file"]).name} if "file" in shown else shown


@dataclass(frozen=True)
class Simulate(SystemFlags):
    """Simulate a system in float64 to a folder, report its energy and constraint drift, and draw it.

    The folder holds the states (trajectories.npz, or shards of 64 MiB), run.json, drifts.csv, metrics.json and a
    moving picture; chnn.storage.load_run reads it. A run that was stopped is resumed by --resume RUN and ends with the
    same bits.

    Example: chnn simulate chain-pendulum --links 3 --out runs/chain3

    Example: chnn simulate gyroscope --trajectories 20000 --format parquet --animation html --out runs/tops

    Example: chnn simulate --file arm.urdf --ignore limits contacts --base fixed --out runs/arm

    Example: chnn simulate --resume runs/tops
    """

    system: tyro.conf.Positional[str | None] = None
    """System: chain-pendulum, coupled-pendulum, magnet-pendulum, gyroscope, rotor, cart-pole, satellite, four-bar, bead
    or rope."""
    file: Path | None = None
    """URDF or MJCF file of a robot to simulate instead of a SYSTEM."""
    ignore: tuple[str, ...] = ()
    """What to leave out of the file, such as limits contacts actuators; an error names what there is."""
    base: str | None = None
    """Of a URDF file: fixed or floating, whether its root link is held in space."""
    out: Path | None = None
    """Folder for the run; made if it is not there."""
    resume: Path | None = None
    """Folder of an interrupted run to resume, with its own settings."""
    trajectories: Trajectories = 10
    """Number of random initial states; trajectory k is the same however many there are."""
    horizon: Positive | None = None
    """Length of the simulation, s; the paper's by default."""
    dt: Positive | None = None
    """Spacing of the output times, s; the paper's by default."""
    rtol: Tolerance = 1e-10
    """Relative tolerance of a step; the absolute one is a hundredth of it."""
    format: str = "npz"
    """Of the states: npz or parquet (a row for each trajectory and time; needs chnn[parquet])."""
    shard: Shard | None = None
    """Trajectories in a file; by default as many as make 64 MiB."""
    failures: str = "stop"
    """A trajectory that cannot be integrated to the end: stop the run, or keep it, NaN from where it stopped."""
    animation: tuple[str, ...] | None = None
    """Moving pictures of the first trajectory: any of gif, mp4 (needs chnn[mp4]) and html (interactive), or none; gif
    by default, and with --resume those that the run was started with."""
    no_animation: bool = False
    """Draw nothing."""
    seed: Seed = 0
    """Seed of the initial states."""
    device: str = "cpu"
    """Device: cpu, cuda, auto. On the cpu, code compiled for the system simulates it."""

    def run(self) -> None:
        """Simulate, write and report."""
        from chnn.animation import KINDS, check_kind
        from chnn.storage.read import read_animation, read_settings
        from chnn.storage.settings import Settings
        from chnn.storage.write import RUN, simulate_run
        from chnn.systems import arguments_of

        asked = self.animation
        if asked is None:
            asked = ("gif",) if self.resume is None else read_animation(self.resume)
        kinds = () if self.no_animation or asked == ("none",) else tuple(dict.fromkeys(asked))
        for kind in kinds:
            if kind not in KINDS:
                raise unknown_name("animation", kind, [*KINDS, "none"])
            check_kind(kind)  # before an hour of simulation
        if (self.out is None) == (self.resume is None):
            raise UserError("give either SYSTEM and --out RUN for a new run or --resume RUN to resume one")
        if self.resume is not None:
            settings = read_settings(self.resume)
            self._refuse_changes(settings)
            system, folder = settings.build(), self.resume
        else:
            assert self.out is not None
            system, folder = self.system_of(self.system, self.file, self.ignore, self.base), self.out
            settings = Settings(
                self.system or "robot", arguments_of(system), self.trajectories,
                system.dt if self.dt is None else self.dt, system.horizon if self.horizon is None else self.horizon,
                self.rtol, self.seed, self.format, self.shard, self.failures, self.device,
            )  # fmt: skip
            settings.plan(system)
            if (folder / RUN).exists():
                raise UserError(
                    f"{folder} already holds a run; resume it with --resume {folder}, or give another --out"
                )  # fmt: skip
        with output_directory(folder) as out:
            metrics = simulate_run(settings, out, system=system, animation=kinds)
            self._draw(system, out, kinds)
            self._report(metrics, out)

    def _refuse_changes(self, settings: Any) -> None:
        """With --resume, flags that say otherwise than the run."""
        assert self.resume is not None
        self.refuse_other_system(self.resume, settings.system, settings.parameters)
        defaults = {field.name: field.default for field in fields(self)}
        own = settings.to_json()
        for name in defaults.keys() & own.keys() - {"system"}:
            value = getattr(self, name)
            if value not in (defaults[name], own[name]):
                raise UserError(
                    f"the run in {self.resume} has {name} {own[name]!r}, got --{name} {value!r}; a resumed run "
                    "keeps its own settings: leave the flag out, or begin another run with --out"
                )

    def _draw(self, system: Any, out: Path, kinds: tuple[str, ...]) -> None:
        from chnn.animation import animate
        from chnn.storage.read import load_run

        wanted = [out / f"animation.{kind}" for kind in kinds if not (out / f"animation.{kind}").exists()]
        if wanted:
            run = load_run(out, system=system)
            z = run[0]
            for path in wanted:
                animate(system, z, run.t, path)

    def _report(self, metrics: dict[str, Any], out: Path) -> None:
        change = "change, damped" if metrics["damped"] else "drift"
        rows = [
            [f"relative energy {change}, median", f"{metrics['energy_drift_median']:.2e}"],
            [f"relative energy {change}, largest", f"{metrics['energy_drift_max']:.2e}"],
            ["position constraint, largest (m^2 or m)", f"{metrics['position_violation_max']:.2e}"],
            ["velocity constraint, largest (m^2/s or m/s)", f"{metrics['velocity_violation_max']:.2e}"],
        ]
        if metrics["failed"]:
            rows.append(["trajectories that stopped early", str(metrics["failed"])])
        print_table(
            f"{metrics['system']} {_shown(metrics['parameters'])}: {metrics['trajectories']} trajectories of "
            f"{metrics['horizon']:g} s, rtol {metrics['rtol']:g}, {metrics['total_seconds']:.1f} s",
            ["quantity", "value"],
            rows,
        )
        print(f"written to {out}")
