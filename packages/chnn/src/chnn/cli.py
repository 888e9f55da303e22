"""The command ``chnn``: simulate true systems, train models on them, evaluate and animate."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from lie.run import (
    UserError,
    atomic_path,
    load_weights,
    output_directory,
    print_table,
    provenance,
    read_json,
    resolve_device,
    run_command,
    seeded_generator,
    write_json,
)

_UNITS = {
    "t": "s",
    "z": "positions in m, velocities in m/s, axes (trajectory, time, position or velocity, point, axis)",
}


@dataclass(frozen=True)
class Simulate:
    """Simulate a system in float64, report its energy and constraint drift, and draw it.

    Example: chnn simulate chain-pendulum --links 3 --out runs/chain3
    """

    system: tyro.conf.Positional[str]
    """System: chain-pendulum, coupled-pendulum, magnet-pendulum, gyroscope, rotor, cart-pole, satellite, four-bar, bead
    or rope."""
    out: Path
    """Folder for trajectories.npz, metrics.json and animation.gif."""
    links: int | None = None
    """Links of a chain-pendulum."""
    bobs: int | None = None
    """Bobs of a coupled-pendulum."""
    masses: tuple[float, ...] | None = None
    """Masses, kg, one a body; 1 each by default."""
    lengths: tuple[float, ...] | None = None
    """Lengths of the rods, m; 1 each by default."""
    spring_constant: float | None = None
    """Spring constant of a coupled-pendulum, N/m."""
    set: tuple[str, ...] = ()
    """Any parameter of the system's class as NAME=VALUE, for example --set magnets=3 dipole=0.2."""
    trajectories: int = 10
    """Number of random initial states."""
    horizon: float | None = None
    """Length of the simulation, s; the paper's by default."""
    dt: float | None = None
    """Spacing of the output times, s; the paper's by default."""
    rtol: float = 1e-10
    """Relative tolerance of a step; the absolute one is a hundredth of it."""
    animation: bool = True
    """Draw the first trajectory to animation.gif."""
    seed: int = 0
    """Seed of the initial states."""
    device: str = "cpu"
    """Device: cpu, cuda, auto. On the cpu, code compiled for the system simulates it."""

    def run(self) -> None:
        """Simulate, write and report."""
        import numpy as np
        import torch

        from chnn.animation import animate
        from chnn.simulation import IntegrationError
        from chnn.training import simulate_with_progress

        system = _system(self)
        device = resolve_device(self.device)
        dt, horizon = self.dt or system.dt, self.horizon or system.horizon
        if not 0.0 < dt <= horizon < float("inf"):
            raise UserError(f"expected 0 < --dt <= --horizon, got {dt} and {horizon}")
        if self.seed < 0:
            raise UserError(f"expected a --seed of at least 0, got {self.seed}")
        t = torch.arange(round(horizon / dt) + 1, dtype=torch.float64) * dt
        with output_directory(self.out) as out:
            z0 = system.sample(self.trajectories, generator=seeded_generator(self.seed)).to(device)
            started = time.perf_counter()
            try:
                z = simulate_with_progress(system, z0, t, f"simulate {system.name}", self.rtol).cpu()
            except IntegrationError as error:
                raise UserError(str(error)) from None
            seconds = time.perf_counter() - started
            scale = system.energy_scale(z[:, 0]).clamp(min=1e-300).unsqueeze(1)
            drift = (system.energy(z) - system.energy(z[:, :1])).abs() / scale
            drift = drift.amax(1)
            numbers = {
                "energy_drift_median": float(drift.median()),
                "energy_drift_max": float(drift.max()),
                "position_violation_max": _largest(system.constraints(z)),
                "velocity_violation_max": _largest(system.velocity_constraints(z)),
            }
            with atomic_path(out / "trajectories.npz") as temporary:
                np.savez_compressed(temporary, t=t.numpy(), z=z.numpy())
            metrics = {
                **numbers,
                "energy_drift_is": "largest |E(t) - E(0)| over the energy above rest, per trajectory",
                "violation_is": "residual |U|^2 - l^2 (m^2) or distance of a joint (m), and J v",
                "system": system.name,
                "parameters": system.parameters(),
                "units": _UNITS,
                "trajectories": self.trajectories,
                "horizon": float(t[-1]),
                "dt": dt,
                "rtol": self.rtol,
                "simulate_seconds": round(seconds, 3),
                "seed": self.seed,
                "device": str(device),
                "versions": provenance("chnn"),
            }
            if self.animation:
                animate(system, z[0], t, out / "animation.gif")
            write_json(out / "metrics.json", metrics)
            print_table(
                f"{system.name} {system.parameters()}: {self.trajectories} trajectories of {float(t[-1]):g} s, "
                f"rtol {self.rtol:g}, {seconds:.1f} s",
                ["quantity", "value"],
                [
                    ["relative energy drift, median", f"{numbers['energy_drift_median']:.2e}"],
                    ["relative energy drift, largest", f"{numbers['energy_drift_max']:.2e}"],
                    ["position constraint, largest (m^2 or m)", f"{numbers['position_violation_max']:.2e}"],
                    ["velocity constraint, largest (m^2/s or m/s)", f"{numbers['velocity_violation_max']:.2e}"],
                ],
            )
            print(f"written to {out}")


@dataclass(frozen=True)
class Train:
    """Train a model on simulated trajectories and report its rollout and energy errors.

    Example: chnn train chain-pendulum --links 2 --model chnn --out runs/chnn2
    """

    system: tyro.conf.Positional[str] = "chain-pendulum"
    """System: chain-pendulum, coupled-pendulum, magnet-pendulum, gyroscope, rotor, cart-pole, satellite, four-bar, bead
    or rope."""
    out: Path | None = None
    """Folder for the run."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; its own configuration holds, other flags are ignored."""
    model: str = "chnn"
    """chnn: constrained Hamiltonian; clnn: constrained Lagrangian; hnn: Hamiltonian in angles."""
    links: int | None = None
    """Links of a chain-pendulum."""
    bobs: int | None = None
    """Bobs of a coupled-pendulum."""
    masses: tuple[float, ...] | None = None
    """Masses, kg, one a body; 1 each by default."""
    lengths: tuple[float, ...] | None = None
    """Lengths of the rods, m; 1 each by default."""
    spring_constant: float | None = None
    """Spring constant of a coupled-pendulum, N/m."""
    set: tuple[str, ...] = ()
    """Any parameter of the system's class as NAME=VALUE, for example --set magnets=3 dipole=0.2."""
    trajectories: int = 800
    """Training trajectories; one random chunk of each is used (the paper's 800)."""
    test_trajectories: int = 50
    """Held-out trajectories for evaluation."""
    chunk: int = 5
    """States in a training chunk (the paper's 5)."""
    horizon: float | None = None
    """Length of the trajectories, s; the paper's by default."""
    dt: float | None = None
    """Spacing of the states, s; the paper's by default."""
    steps: int = 3000
    """Training steps."""
    batch_size: int = 200
    """Chunks a step (the paper's 200)."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW (the paper's); it falls to zero along a cosine."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW (the paper's)."""
    hidden: int = 128
    """Width of the networks (the paper's is 256)."""
    depth: int = 3
    """Hidden layers of the networks."""
    dtype: str = "float32"
    """Dtype of training: float32 or float64. Truth and evaluation are always float64."""
    seed: int = 0
    """Seed of data, weights and order."""
    device: str = "cpu"
    """Device: cpu, cuda, auto."""

    def run(self) -> None:
        """Train, evaluate, and write the run's folder."""
        from chnn.training import TrainConfig

        if (self.out is None) == (self.resume is None):
            raise UserError("give either --out DIR for a new run or --resume DIR to go on with one")
        device = resolve_device(self.device)
        if self.resume is not None:
            config = _read_config(self.resume)
            with output_directory(self.resume) as out:
                self._train(config, out, device, resume=True)
            return
        assert self.out is not None
        system = _system(self)
        parameters = {key: value for key, value in system.parameters().items() if key != "gravity"}
        own = asdict(self) | {"parameters": parameters, "dt": self.dt or system.dt,
                              "horizon": self.horizon or system.horizon}  # fmt: skip
        config = TrainConfig(**{name: own[name] for name in TrainConfig.__dataclass_fields__})
        if (self.out / "config.json").exists():
            raise UserError(f"{self.out} already holds a run; go on with --resume {self.out}, or give another --out")
        with output_directory(self.out) as out:
            self._train(config, out, device, resume=False)

    def _train(self, config: Any, out: Path, device: Any, *, resume: bool) -> None:
        from chnn.training import build_model, build_system, train

        system = build_system(config)
        build_model(config, system)  # fails here, before the simulation, if the model does not fit the system
        started = time.perf_counter()
        model = train(config, system, out, device, resume=resume)
        _report(model, config, system, out, {"train_seconds": round(time.perf_counter() - started, 1)})


@dataclass(frozen=True)
class Evaluate:
    """Reload a trained model and report its errors again: the same numbers, bit for bit.

    Example: chnn evaluate runs/chnn2
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    out: Path | None = None
    """Folder for metrics.json and the plot; RUN_DIR/evaluation by default."""
    seed: int | None = None
    """Seed of other held-out initial states; the run's own by default."""
    device: str = "cpu"
    """Device: cpu, cuda, auto."""

    def run(self) -> None:
        """Evaluate and write metrics."""
        from dataclasses import replace

        config, system, model = _load_run(self.run_dir, resolve_device(self.device))
        if self.seed is not None:
            config = replace(config, seed=self.seed)
        with output_directory(self.out or self.run_dir / "evaluation") as out:
            _report(model, config, system, out, {})


@dataclass(frozen=True)
class Animate:
    """Draw a simulation, or a model's prediction over the truth in grey, as GIF.

    Example: chnn animate runs/chnn2 --out runs/chnn2/animation
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a simulation or of a finished training run."""
    out: Path | None = None
    """Folder for animation.gif and metrics.json; RUN_DIR/animation by default."""
    trajectory: int = 0
    """Which trajectory."""
    seed: int = 0
    """Seed of the initial states of a trained model's animation."""
    device: str = "cpu"
    """Device: cpu, cuda, auto."""

    def run(self) -> None:
        """Draw."""
        import torch

        from chnn.animation import animate
        from chnn.evaluation import relative_error

        if self.trajectory < 0:
            raise UserError(f"expected a --trajectory of at least 0, got {self.trajectory}")
        device = resolve_device(self.device)
        metrics: dict[str, Any] = {"trajectory": self.trajectory, "seed": self.seed, "versions": provenance("chnn")}
        if (self.run_dir / "trajectories.npz").exists():
            system, t, z = _load_simulation(self.run_dir)
            if self.trajectory >= len(z):
                raise UserError(f"expected --trajectory below {len(z)}, got {self.trajectory}")
            chosen, truth = z[self.trajectory], None
        else:
            config, system, model = _load_run(self.run_dir, device)
            t = config.times()
            z0 = system.sample(self.trajectory + 1, generator=seeded_generator(self.seed))[-1:]
            both = system.simulate(z0, t)
            with torch.no_grad():
                predicted = model.double().rollout(z0.to(device), t).cpu()
            chosen, truth = predicted[0], both[0]
            metrics["relative_error_at_end"] = float(relative_error(predicted, both)[0, -1])
        with output_directory(self.out or self.run_dir / "animation") as out:
            animate(system, chosen, t, out / "animation.gif", truth=truth)
            write_json(out / "metrics.json", metrics)
            rows = [[key, value] for key, value in metrics.items() if key != "versions"]
            print_table(f"animation of {self.run_dir}", ["quantity", "value"], rows)
            print(f"written to {out}")


def _system(flags: Any) -> Any:
    from chnn.systems import system_by_name

    names = ("links", "bobs", "masses", "lengths", "spring_constant")
    parameters = {name: getattr(flags, name) for name in names}
    for pair in flags.set:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"expected --set NAME=VALUE, got {pair!r}")
        try:
            parameters[name.replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name.replace("-", "_")] = text  # a name, such as surface=torus
    try:
        return system_by_name(flags.system, **parameters)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{flags.system} cannot be made of {flags.set}: {error}") from None


def _largest(residuals: Any) -> float:
    return float(residuals.abs().max()) if residuals.numel() else 0.0  # a free point has no constraint


def _read_config(run_dir: Path) -> Any:
    from chnn.training import TrainConfig

    if not run_dir.is_dir():
        raise UserError(f"no run at {run_dir}: the folder does not exist")
    stored = read_json(run_dir / "config.json")
    return TrainConfig.from_json(stored.get("config") if isinstance(stored, dict) else None)


def _load_run(run_dir: Path, device: Any) -> tuple[Any, Any, Any]:
    from chnn.training import build_model, build_system

    config = _read_config(run_dir)
    if not (run_dir / "model.safetensors").exists() and (run_dir / "checkpoint.safetensors").exists():
        raise UserError(f"the run in {run_dir} is not finished; go on with: chnn train --resume {run_dir}")
    system = build_system(config)
    model = build_model(config, system)
    load_weights(run_dir / "model.safetensors", model)
    return config, system, model.to(device)


def _load_simulation(run_dir: Path) -> tuple[Any, Any, Any]:
    import zipfile

    import numpy as np
    import torch

    from chnn.systems import system_by_name

    metrics = read_json(run_dir / "metrics.json")
    try:
        parameters = {key: value for key, value in metrics["parameters"].items() if key != "gravity"}
        system = system_by_name(metrics["system"], **parameters)
        with np.load(run_dir / "trajectories.npz", allow_pickle=False) as file:
            t, z = torch.from_numpy(file["t"]), torch.from_numpy(file["z"])
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{run_dir} does not hold a whole simulation: {error}") from None
    if z.shape[1:] != (len(t), 2, system.num_points, system.spatial_dim):
        raise UserError(f"the trajectories in {run_dir} do not fit {system.name}: got shape {tuple(z.shape)}")
    return system, t, z


def _report(model: Any, config: Any, system: Any, out: Path, extra: dict[str, Any]) -> None:
    from chnn.evaluation import evaluate, plot_errors
    from chnn.training import test_trajectories

    truth, t = test_trajectories(config, system), config.times()
    device = next(model.parameters()).device
    try:
        numbers, curves = evaluate(model, system, truth.to(device), t)
    except FloatingPointError as error:
        raise UserError(
            f"the model's rollout failed: {error}; train longer or with a smaller --learning-rate"
        ) from None
    plot_errors(curves, f"{config.model} on {system.name}, {config.steps} steps", out / "errors.png")
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {
        **numbers,
        **extra,
        "model_parameters": parameters,
        "config": asdict(config),
        "seed": config.seed,
        "error_is": "|z - z*| / (|z| + |z*|), geometric mean over times and trajectories",
        "versions": provenance("chnn"),
        "curves": {key: [float(f"{x:.6g}") for x in values.tolist()] for key, values in curves.items()},
    }
    write_json(out / "metrics.json", metrics)
    print_table(
        f"{config.model} on {system.name} {system.parameters()}: {numbers['trajectories']} held-out trajectories of "
        f"{numbers['horizon']:g} s",
        ["model", "rollout error", "median", "largest", "energy error", "constraint (m^2)"],
        [[config.model, *(f"{numbers[key]:.2e}" for key in ("rollout_error", "rollout_error_median",
          "rollout_error_max", "energy_error", "constraint_violation"))]],
    )  # fmt: skip
    print(f"written to {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    description = (
        "Mechanical systems with explicit constraints: true trajectories, and networks that learn the motion "
        "(CHNN, Finzi, Wang, Wilson 2020)."
    )
    commands = {"simulate": Simulate, "train": Train, "evaluate": Evaluate, "animate": Animate}
    return run_command("chnn", description, commands, argv)
