"""The command ``lieconv``: train, evaluate and predict on labelled point sets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    write_json,
)


@dataclass(frozen=True)
class Train:
    """Train a LieResNet on labelled point sets and report its accuracy upright and under rotation.

    Example: lieconv train --data digits --group se2 --out runs/se2
    """

    data: str = "digits"
    """Data set: digits, or a file FILE.npz with coords (S, N, d), values (S, N, C), labels (S,), mask (S, N)."""
    group: str = "se2"
    """Group: trivial, t2, so2, se2, rxso2, rxsq, sim2 in the plane; trivial, t3, so3, se3, sim3 in space."""
    out: Path | None = None
    """Folder for the run."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; its own configuration holds, other flags are ignored."""
    lift: str = "exact"
    """exact: equivariant up to rounding; sampled: the paper's random lifts, equivariant in expectation."""
    num_samples: int = 1
    """Group elements a point, for --lift sampled."""
    channels: int = 64
    """Width of the network."""
    num_layers: int = 4
    """Residual blocks."""
    num_neighbors: int = 20
    """Neighbours a point, itself included."""
    bottleneck: int = 2
    """Divisor of the width inside the blocks."""
    epochs: int = 15
    """Passes over the training sets."""
    batch_size: int = 64
    """Point sets a step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    seed: int = 0
    """Seed of weights, order and sampled lifts."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Train, evaluate, and write the run's folder."""
        from lieconv.training import RunConfig

        if (self.out is None) == (self.resume is None):
            raise UserError("give either --out DIR for a new run or --resume DIR to go on with one")
        device = resolve_device(self.device)
        if self.resume is not None:
            config = _read_config(self.resume)
            with output_directory(self.resume) as out:
                self._train(config, out, device, resume=True)
            return
        assert self.out is not None
        names = RunConfig.__dataclass_fields__
        config = RunConfig(**{name: value for name, value in asdict(self).items() if name in names})
        if (self.out / "config.json").exists():
            raise UserError(f"{self.out} already holds a run; go on with --resume {self.out}, or give another --out")
        with output_directory(self.out) as out:
            self._train(config, out, device, resume=False)

    def _train(self, config: Any, out: Path, device: Any, *, resume: bool) -> None:
        from lieconv.data import load_data
        from lieconv.training import resolve_group, train

        train_sets, test_sets = load_data(config.data)
        resolve_group(config.group, train_sets.coords.shape[-1])
        num_classes = _num_classes(train_sets, test_sets)
        started = time.perf_counter()
        model = train(config, train_sets, out, device, num_classes=num_classes, resume=resume)
        seconds = time.perf_counter() - started
        _report(model, config, test_sets, out, device, {"train_seconds": round(seconds, 1)})


@dataclass(frozen=True)
class Evaluate:
    """Reload a trained network and report its accuracy again: the same numbers, bit for bit.

    Example: lieconv evaluate runs/se2
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    out: Path | None = None
    """Folder for metrics.json and the plot; RUN_DIR/evaluation by default."""
    seed: int = 0
    """Unused: the rotated test sets are the same for every evaluation. Here so that all commands take it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Evaluate and write metrics."""
        device = resolve_device(self.device)
        config, model, test_sets = _load_run(self.run_dir, device)
        with output_directory(self.out or self.run_dir / "evaluation") as out:
            _report(model, config, test_sets, out, device, {})


@dataclass(frozen=True)
class Predict:
    """Classify the point sets of a file with a trained network.

    Example: lieconv predict runs/se2 --input shapes.npz --out predictions
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    input: str = "digits"
    """FILE.npz as for training (labels may be zeros), or digits for the test digits."""
    out: Path | None = None
    """Folder for predictions.json and metrics.json; RUN_DIR/predictions by default."""
    seed: int = 0
    """Unused: prediction draws nothing. Here so that all commands take it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Predict and write the classes with their probabilities."""
        from lieconv.data import load_data, load_npz
        from lieconv.training import predict

        device = resolve_device(self.device)
        config, model, _ = _load_run(self.run_dir, device)
        sets = load_npz(self.input) if self.input.endswith(".npz") else load_data(self.input)[1]
        expected = (model.group.point_dim, model.in_channels)
        if (got := (sets.coords.shape[-1], sets.values.shape[-1])) != expected:
            raise UserError(f"expected points of dimension {expected[0]} with {expected[1]} features, got {got}")
        probabilities = predict(model, sets, config.batch_size, device).softmax(-1)
        classes = probabilities.argmax(-1)
        with output_directory(self.out or self.run_dir / "predictions") as out:
            rows = [
                {"class": int(c), "probabilities": [round(x, 6) for x in p]}
                for c, p in zip(classes.tolist(), probabilities.tolist(), strict=True)
            ]
            write_json(out / "predictions.json", rows)
            metrics = {
                "command": "predict",
                "point_sets": len(rows),
                "accuracy_against_labels": float((classes == sets.labels).double().mean()),
                "input": self.input,
                "config": asdict(config),
                "versions": provenance("lieconv"),
            }
            write_json(out / "metrics.json", metrics)
        counts = classes.bincount(minlength=model.out_channels).tolist()
        print_table(f"{len(rows)} point sets of {self.input}", ["class", "predicted"], list(enumerate(counts)))


def _num_classes(*sets: Any) -> int:
    return int(max(part.labels.max() for part in sets)) + 1


def _read_config(run_dir: Path) -> Any:
    from lieconv.training import RunConfig

    if not run_dir.is_dir():
        raise UserError(f"no run at {run_dir}: the folder does not exist")
    stored = read_json(run_dir / "config.json")
    return RunConfig.from_json(stored.get("config") if isinstance(stored, dict) else None)


def _load_run(run_dir: Path, device: Any) -> tuple[Any, Any, Any]:
    from lieconv.data import load_data
    from lieconv.training import build_model

    config = _read_config(run_dir)
    if not (run_dir / "model.safetensors").exists() and (run_dir / "checkpoint.safetensors").exists():
        raise UserError(f"the run in {run_dir} is not finished; go on with: lieconv train --resume {run_dir}")
    train_sets, test_sets = load_data(config.data)
    _, _, d = test_sets.coords.shape
    model = build_model(config, d, test_sets.values.shape[-1], _num_classes(train_sets, test_sets))
    load_weights(run_dir / "model.safetensors", model)
    return config, model.to(device), test_sets


def _report(model: Any, config: Any, test_sets: Any, out: Path, device: Any, extra: dict[str, Any]) -> None:
    from lieconv.training import evaluate, plot_accuracy_by_angle

    result = evaluate(model, test_sets, config.batch_size, device)
    if "accuracy_by_angle" in result:
        title = f"{config.data}, {config.group} network trained upright"
        plot_accuracy_by_angle(result, title, out / "accuracy_by_angle.png")
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {**result, **extra, "parameters": parameters, "config": asdict(config), "seed": config.seed,
               "device": str(device), "versions": provenance("lieconv")}  # fmt: skip
    write_json(out / "metrics.json", metrics)
    print_table(
        f"{config.data}, group {config.group}, {config.lift} lift: test accuracy on {result['test_sets']} sets",
        ["group", "upright %", "rotated %", "logit change under rotation", "parameters"],
        [[config.group, f"{100 * result['accuracy_upright']:.2f}", f"{100 * result['accuracy_rotated']:.2f}",
          f"{result['rotation_change']:.1e}", parameters]],
    )  # fmt: skip
    print(f"written to {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    description = "Networks equivariant to Lie groups on point sets (LieConv, Finzi et al. 2020)."
    return run_command("lieconv", description, {"train": Train, "evaluate": Evaluate, "predict": Predict}, argv)
