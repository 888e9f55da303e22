"""The command ``chnn``: simulate true systems, analyse their motion, train models on them, evaluate and animate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from mimetypes import MimeTypes
from pathlib import Path
from typing import Any

import tyro
from lie.run import (
    UserError,
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

from chnn.analysis.command import Analyse
from chnn.storage.command import Simulate
from chnn.storage.flags import SystemFlags


@dataclass(frozen=True)
class Train(SystemFlags):
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
        system = self.system_called(self.system)
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


_OTHER_FILES = {".apng", ".flac", ".m4v", ".mkv", ".ogg", ".webm", ".webp", *MimeTypes().types_map[True]}
"""Suffixes of files: the usual ones, and those that the tables of MIME types of this Python lack."""


@dataclass(frozen=True)
class Animate:
    """Draw a simulation, or a model's prediction over the truth in grey: GIF, MP4 or an interactive page.

    Example: chnn animate runs/chain3 --trajectory 2 --out chain.html
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a simulation or of a finished training run."""
    out: Path | None = None
    """File to write, by its suffix .gif, .mp4 or .html; or a folder for animation.gif and metrics.json, by default
    RUN_DIR/animation."""
    animation: tuple[str, ...] = ("gif",)
    """In a folder: any of gif, mp4 and html."""
    speed: float = 1.0
    """Simulated seconds a second."""
    fps: int = 25
    """Frames a second."""
    size: int = 480
    """Pixels of the sides of a gif or mp4."""
    trajectory: int = 0
    """Which trajectory."""
    seed: int = 0
    """Seed of the initial states of a trained model's animation."""
    device: str = "cpu"
    """Device: cpu, cuda, auto."""

    def run(self) -> None:
        """Draw."""
        import torch

        from chnn.animation import KINDS, animate, check_kind
        from chnn.evaluation import relative_error
        from chnn.storage import load_run
        from chnn.storage.write import RUN

        if self.trajectory < 0:
            raise UserError(f"expected a --trajectory of at least 0, got {self.trajectory}")
        file = self.out if self.out is not None and self.out.suffix.lower().lstrip(".") in KINDS else None
        if file is None and self.out is not None and self.out.suffix.lower() in _OTHER_FILES and not self.out.is_dir():
            raise UserError(f"expected a file that ends in .gif, .mp4 or .html, or a folder, got --out {self.out}")
        kinds = () if file is not None else tuple(dict.fromkeys(self.animation))
        for kind in kinds or (self.out or Path()).suffix.lower().lstrip(".").split():
            check_kind(kind)
        if not (0 < self.speed < float("inf") and self.fps > 0 and self.size > 0):
            raise UserError(
                f"expected positive --speed, --fps and --size, got {self.speed:g}, {self.fps} and {self.size}"
            )
        device = resolve_device(self.device)
        metrics: dict[str, Any] = {"trajectory": self.trajectory, "seed": self.seed, "versions": provenance("chnn")}
        if (self.run_dir / RUN).exists():
            run = load_run(self.run_dir)
            if self.trajectory >= len(run):
                raise UserError(f"expected --trajectory below {len(run)}, got {self.trajectory}")
            system, t, chosen, truth = run.system, run.t, run[self.trajectory], None
        else:
            config, system, model = _load_run(self.run_dir, device)
            t = config.times()
            z0 = system.sample(self.trajectory + 1, generator=seeded_generator(self.seed))[-1:]
            both = system.simulate(z0, t)
            with torch.no_grad():
                predicted = model.double().rollout(z0.to(device), t).cpu()
            chosen, truth = predicted[0], both[0]
            metrics["relative_error_at_end"] = float(relative_error(predicted, both)[0, -1])
        options: dict[str, Any] = {"truth": truth, "speed": self.speed, "fps": self.fps, "size": self.size}
        if file is not None:
            with output_directory(file.parent):
                animate(system, chosen, t, file, **options)
            print(f"written to {file}")
            return
        with output_directory(self.out or self.run_dir / "animation") as out:
            for kind in kinds:
                animate(system, chosen, t, out / f"animation.{kind}", **options)
            write_json(out / "metrics.json", metrics)
            rows = [[key, value] for key, value in metrics.items() if key != "versions"]
            print_table(f"animation of {self.run_dir}", ["quantity", "value"], rows)
            print(f"written to {out}")


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
    commands = {"simulate": Simulate, "analyse": Analyse, "train": Train, "evaluate": Evaluate, "animate": Animate}
    return run_command("chnn", description, commands, argv)
