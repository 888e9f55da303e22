"""The command ``chnn analyse``: what the motion of a system, or of a run on disk, conserves, and how chaotic it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from lie.run import (
    Count,
    NonNegative,
    Positive,
    Seed,
    UserError,
    atomic_path,
    output_directory,
    print_table,
    provenance,
    seeded_generator,
    unknown_name,
    write_json,
)
from msgspec import Meta
from tqdm import tqdm

from chnn.storage.flags import SystemFlags
from chnn.storage.settings import Tolerance
from chnn.systems.times import check_times

if TYPE_CHECKING:
    from chnn.analysis import Crossings, LyapunovExponents
    from chnn.systems import System

_MAX_BYTES = 2**34  # of the states of all trajectories, which are in memory together
_DIRECTIONS = {"both": 0, "up": 1, "down": -1}


@dataclass(frozen=True)
class Analyse(SystemFlags):
    """Lyapunov exponents, a Poincare section, and what is conserved, of a system or of a run of chnn simulate.

    Writes metrics.json, conservation.png, lyapunov.png, and with --section crossings.npz and section.png.

    Example: chnn analyse chain-pendulum --links 2 --horizon 200 --section angle0 --direction up --out runs/chaos

    Example: chnn analyse runs/chain3 --exponents 1 --out runs/chain3/analysis
    """

    system: tyro.conf.Positional[str]
    """A system's name, such as chain-pendulum, or the folder of a run, whose trajectories and initial states are
    taken."""
    out: Path
    """Folder for the results; made if it is not there."""
    trajectories: Count = 10
    """Number of random initial states, or of trajectories of the run."""
    horizon: Positive | None = None
    """Time, s; ten of the paper's horizons by default. What is conserved of a run is that over the run."""
    rtol: Tolerance = 1e-9
    """Relative tolerance of a step."""
    exponents: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    """How many Lyapunov exponents, the largest first; all by default, 0 for none."""
    every: Positive | None = None
    """Time between two orthonormalisations of the tangent vectors, s; ten of the system's dt by default."""
    transient: NonNegative = 0.0
    """Time before growth counts, s."""
    section: str | None = None
    """Poincare section: a coordinate and its value, such as angle0=0, rate1, x0.1=-0.5 or v0.0 (point 0, axis 0)."""
    direction: str = "both"
    """Crossings where the coordinate grows (up), falls (down), or both."""
    axes: tuple[str, str] | None = None
    """Two coordinates over which the section is drawn, such as angle1 rate1; by default an angle that varies on it, or
    a position, and its rate."""
    seed: Seed = 0
    """Seed of the initial states and of the tangent vectors."""
    device: str = "cpu"
    """Device: cpu, cuda, auto. On the cpu, code compiled for the system does the work."""

    def run(self) -> None:
        """Analyse, write and report."""
        import torch
        from lie.integrators import IntegrationError
        from lie.run import resolve_device

        from chnn.analysis import conservation, coordinate, lyapunov, poincare

        if self.direction not in _DIRECTIONS:
            raise unknown_name("direction", self.direction, _DIRECTIONS)
        device = resolve_device(self.device)
        system, z, t = self._start()
        horizon = self._horizon(system)
        section = None if self.section is None else coordinate(system, self.section)
        for name in self.axes or ():
            coordinate(system, name)
        started = time.perf_counter()
        metrics: dict[str, Any] = {"system": system.name, "parameters": system.parameters(), "horizon": horizon,
                                   "trajectories": len(z), "rtol": self.rtol, "seed": self.seed}  # fmt: skip
        with output_directory(self.out) as out:
            try:
                if t is None:
                    t = torch.arange(check_times(system.dt, horizon), dtype=torch.float64) * system.dt
                    z = system.simulate(z[:, 0].to(device), t.to(device), self.rtol, dense=True)
                z0 = z[:, 0].to(device)
                report = conservation(system, z.cpu(), t)
                report.plot(out / "conservation.png", f"{system.name}, {len(z)} trajectories")
                metrics["conservation"], metrics["damped"] = report.summary(), system.damped
                print_table(f"{system.name}: {len(z)} trajectories of {float(t[-1] - t[0]):g} s",
                            ["quantity", "median", "largest"], report.rows())  # fmt: skip
                if system.damped:
                    print("the energy changes by damping: what is shown of it is no error")
                if self.exponents != 0:
                    with _progress("exponents") as progress:
                        found = lyapunov(
                            system, z0, horizon, num=self.exponents, every=self.every, transient=self.transient,
                            rtol=self.rtol, generator=seeded_generator(self.seed), progress=progress,
                        )  # fmt: skip
                    metrics["lyapunov"] = summary = found.summary()
                    _draw_exponents(found, out / "lyapunov.png")
                    rows = [[str(i + 1), f"{mean:.5f}", f"{error:.5f}"] for i, (mean, error) in enumerate(
                        zip(summary["exponents_mean"], summary["exponents_standard_error"], strict=True))]  # fmt: skip
                    print_table(f"Lyapunov exponents over {horizon:g} s (1/s)", ["", "mean", "standard error"], rows)
                    if found.complete and system.damped:
                        print(f"they sum to {summary['sum_mean']:.5f} 1/s (mean): damping contracts phase volume")
                    elif found.complete:
                        print(f"they sum to {summary['sum_mean']:.1e} 1/s (mean), {summary['sum_max']:.1e} in size at "
                              f"most, and pair to {summary['pairing_max']:.1e} at worst")  # fmt: skip
                if section is not None:
                    with _progress("section") as progress:
                        crossings = poincare(system, z0, horizon, section, direction=_DIRECTIONS[self.direction],
                                             rtol=min(self.rtol, 1e-9), progress=progress)  # fmt: skip
                    count = len(crossings.times)
                    metrics["section"] = {"section": self.section, "direction": self.direction, "crossings": count}
                    _write_crossings(crossings, out / "crossings.npz")
                    labels = _draw_section(system, crossings, out / "section.png", self.section or "", self.axes)
                    print(f"{count} crossings of {self.section}, drawn as {labels[1]} over {labels[0]}")
            except IntegrationError as error:
                raise UserError(str(error)) from None
            metrics |= {"seconds": round(time.perf_counter() - started, 3), "device": str(device),
                        "versions": provenance("chnn")}  # fmt: skip
            write_json(out / "metrics.json", metrics)
            print(f"written to {out}")

    def _horizon(self, system: System) -> float:
        horizon = 10.0 * system.horizon if self.horizon is None else self.horizon
        if not system.dt <= horizon < float("inf"):
            raise UserError(f"expected a --horizon of at least {system.dt:g} s, got {horizon:g}")
        return horizon

    def _start(self) -> tuple[Any, Any, Any]:
        """The system, states (B, T, 2, n, d), and their times; None for states that are yet to be simulated."""
        from chnn.storage import load_run

        if Path(self.system).is_dir():
            run = load_run(self.system)
            return run.system, run[: self.trajectories], run.t
        system = self.system_called(self.system)
        count = check_times(system.dt, self._horizon(system))
        size = self.trajectories * count * 2 * system.num_points * system.spatial_dim * 8
        if size > _MAX_BYTES:
            raise UserError(
                f"{self.trajectories} trajectories of {count} times take {size / 2**30:.3g} GiB, at most 16 are "
                "possible; give fewer --trajectories or a shorter --horizon"
            )
        return system, system.sample(self.trajectories, generator=seeded_generator(self.seed)).unsqueeze(1), None


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float], object]]:
    """A bar with the time left, moved by the fraction done."""
    with tqdm(total=1.0, desc=what, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:
        yield lambda done: bar.update(done - bar.n)


def _write_crossings(crossings: Crossings, path: Path) -> None:
    import numpy as np

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, sample=crossings.sample.cpu().numpy(), times=crossings.times.cpu().numpy(),
            states=crossings.states.cpu().numpy(), direction=crossings.direction.cpu().numpy(),
        )  # fmt: skip


def _draw_exponents(found: LyapunovExponents, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for k in range(found.running.shape[-1]):
        lines = axes.plot(found.times.cpu(), found.running[..., k].cpu(), lw=0.8, color=f"C{k % 10}")
        lines[0].set_label(f"exponent {k + 1}")
    axes.axhline(0.0, color="0.6", lw=0.6)
    axes.legend(fontsize="small", ncols=2)
    axes.set(
        xlabel="time (s)", ylabel="Lyapunov exponents (1/s)", title="running estimates, a line for each trajectory"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_section(
    system: Any, crossings: Crossings, path: Path, title: str, chosen: tuple[str, str] | None
) -> tuple[str, str]:
    """The crossings in the plane of the coordinates ``chosen``, or of the last that varies on them and its rate."""
    from matplotlib.figure import Figure

    from chnn.analysis import coordinate

    names = chosen or _varying(system, crossings)
    x, y = (coordinate(system, name)(crossings.states) for name in names)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x.cpu(), y.cpu(), s=2, c=crossings.sample.cpu() % 10, cmap="tab10", vmin=0, vmax=9, linewidths=0)
    units = {"x": "m", "v": "m/s", "angle": "rad", "rate": "rad/s"}
    for k in getattr(system, "length_coordinates", ()):
        units |= {f"angle{k}": "m", f"rate{k}": "m/s"}
    labels = [
        f"{name} ({unit})" if (unit := units.get(name) or units.get(name.rstrip("0123456789."))) else name
        for name in names
    ]
    axes.set(xlabel=labels[0], ylabel=labels[1], title=f"section {title}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return labels[0], labels[1]


def _varying(system: Any, crossings: Crossings) -> tuple[str, str]:
    """The last angle, or where there are none the last position, that varies over the crossings as its rate does."""
    from chnn.analysis import coordinate

    count = getattr(system, "num_angles", 0)
    pairs = [(f"angle{k}", f"rate{k}") for k in reversed(range(count))] or [
        (f"x{point}.{axis}", f"v{point}.{axis}")
        for point in reversed(range(system.num_points))
        for axis in range(system.spatial_dim)
    ]
    for pair in pairs if len(crossings.times) > 1 else ():
        values = [coordinate(system, name)(crossings.states) for name in pair]
        # A coordinate that the section fixes is constant to the tolerance of its crossings, 1e-10.
        if all(float(value.max() - value.min()) > 1e-6 * float(value.abs().max().clamp(min=1.0)) for value in values):
            return pair
    return pairs[0]
