"""The command ``chnn``: simulate true systems, analyse their motion, train models on them, evaluate and animate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from mimetypes import MimeTypes
from pathlib import Path
from typing import Annotated, Any

import tyro
from lie.run import (
    Positive,
    RunFlags,
    RunFolder,
    Seed,
    UserError,
    check_free,
    check_resumable,
    load_config,
    load_model,
    load_run,
    output_directory,
    print_table,
    provenance,
    resolve_device,
    run_command,
    seeded_generator,
    write_json,
)
from msgspec import Meta

from chnn.analysis.command import Analyse
from chnn.storage.command import Simulate
from chnn.storage.flags import SystemFlags
from chnn.training.config import TrainChoices


@dataclass(frozen=True)
class Train(RunFlags, TrainChoices, SystemFlags):
    """Train a model on simulated trajectories and report its rollout and energy errors.

    Example: chnn train chain-pendulum --links 2 --model chnn --out runs/chnn2
    """

    system: tyro.conf.Positional[str | None] = None
    """System: chain-pendulum (the default), coupled-pendulum, magnet-pendulum, gyroscope, rotor, cart-pole, satellite,
    four-bar, bead or rope."""
    file: Path | None = None
    """URDF or MJCF file of a robot without damping, to learn instead of a SYSTEM."""
    ignore: tuple[str, ...] = ()
    """What to leave out of the file, such as limits contacts actuators; an error names what there is."""
    base: str | None = None
    """Of a URDF file: fixed or floating, whether its root link is held in space."""
    horizon: Positive | None = None
    """Length of the trajectories, s; the paper's by default."""
    dt: Positive | None = None
    """Spacing of the states, s; the paper's by default."""
    device: str = "cpu"
    """Device: cpu, cuda, auto."""

    def run(self) -> None:
        """Train, evaluate, and write the run's folder."""
        from chnn.systems import arguments_of
        from chnn.training import TrainConfig, build_model, build_system, train

        folder, resume = self.folder(), self.resume is not None
        device = resolve_device(self.device)
        if resume:
            config, facts = load_config(folder, TrainConfig, program="chnn")
            check_resumable(folder, facts)
            assert self.resume is not None
            self.refuse_other_system(self.resume, config.system, config.parameters)
            self.check_unchanged(config, free=("system",))
        else:
            check_free(folder)
            named = "chain-pendulum" if self.system is None and self.file is None else self.system
            system = self.system_of(named, self.file, self.ignore, self.base)
            choices = {field.name: getattr(self, field.name) for field in fields(TrainChoices)}
            config = TrainConfig(
                system=named or "robot",
                parameters=arguments_of(system),
                dt=system.dt if self.dt is None else self.dt,
                horizon=system.horizon if self.horizon is None else self.horizon,
                **choices,
            )
        system = build_system(config)
        build_model(config, system)  # fails here, before the simulation, if the model does not fit the system
        with RunFolder(folder, config, program="chnn", resume=resume) as run:
            started = time.perf_counter()
            model = train(config, system, run, device)
            _report(model, config, system, run.path, {"train_seconds": round(time.perf_counter() - started, 1)})


@dataclass(frozen=True)
class Evaluate:
    """Reload a trained model and report its errors again: the same numbers, bit for bit.

    Example: chnn evaluate runs/chnn2
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    out: Path | None = None
    """Folder for metrics.json and the plot; RUN_DIR/evaluation by default."""
    seed: Seed | None = None
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
    speed: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0
    """Simulated seconds a second."""
    fps: Annotated[int, Meta(ge=1, le=1000)] = 25
    """Frames a second."""
    size: Annotated[int, Meta(ge=1, le=4096)] = 480
    """Pixels of the sides of a gif or mp4."""
    trajectory: Annotated[int, Meta(ge=0, lt=10**12)] = 0
    """Which trajectory."""
    seed: Seed = 0
    """Seed of the initial states of a trained model's animation."""
    device: str = "cpu"
    """Device: cpu, cuda, auto."""

    def run(self) -> None:
        """Draw."""
        import torch

        from chnn.animation import KINDS, animate, check_kind
        from chnn.evaluation import relative_error
        from chnn.storage import load_run as load_simulation
        from chnn.storage.write import RUN

        file = self.out if self.out is not None and self.out.suffix.lower().lstrip(".") in KINDS else None
        if file is None and self.out is not None and self.out.suffix.lower() in _OTHER_FILES and not self.out.is_dir():
            raise UserError(f"expected a file that ends in .gif, .mp4 or .html, or a folder, got --out {self.out}")
        kinds = () if file is not None else tuple(dict.fromkeys(self.animation))
        for kind in kinds or (self.out or Path()).suffix.lower().lstrip(".").split():
            check_kind(kind)
        device = resolve_device(self.device)
        metrics: dict[str, Any] = {"trajectory": self.trajectory, "seed": self.seed, "versions": provenance("chnn")}
        if (self.run_dir / RUN).exists():
            run = load_simulation(self.run_dir)
            if self.trajectory >= len(run):
                raise UserError(f"expected --trajectory below {len(run)}, got {self.trajectory}")
            system, t, chosen, truth = run.system, run.t, run[self.trajectory], None
        else:
            config, system, model = _load_run(self.run_dir, device)
            if self.trajectory >= 1_000_000:
                raise UserError(f"expected --trajectory below 1000000 of a trained model, got {self.trajectory}")
            t = config.times()
            z0 = system.sample(self.trajectory + 1, generator=seeded_generator(self.seed))[-1:]
            both = system.simulate(z0, t)
            with torch.no_grad():
                predicted = model.double().rollout(z0.to(device), t).cpu()
            chosen, truth = predicted[0], both[0]
            metrics["relative_error_at_end"] = float(relative_error(predicted, both)[0, -1])
        options: dict[str, Any] = {"truth": truth, "speed": self.speed, "fps": self.fps, "size": self.size}
        if file is not None:
            with output_directory(file.parent, lock=False):
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


def _load_run(run_dir: Path, device: Any) -> tuple[Any, Any, Any]:
    from chnn.training import TrainConfig, build_model, build_system

    config, _ = load_run(run_dir, TrainConfig, program="chnn")
    system = build_system(config)
    model = build_model(config, system)
    load_model(run_dir, config, model)
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
