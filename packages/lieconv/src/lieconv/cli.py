"""The command ``lieconv``: train, evaluate and predict on labelled point sets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro
from lie.run import (
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
    validate,
    write_json,
)

from lieconv.training.config import DataFacts, RunConfig

_TEST_SETS = "test_sets.npz"
"""Test sets of a data file, in the folder of the run: it is evaluated without the file."""
_NEIGHBORS = 20


@dataclass(frozen=True)
class Train(RunFlags, RunConfig):
    """Train a LieResNet on labelled point sets and report its accuracy upright and under rotation.

    Example: lieconv train --data digits --group se2 --out runs/se2
    """

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Train, evaluate, and write the run's folder."""
        from lieconv.data import load_data
        from lieconv.training import build_model, train

        folder, resume = self.folder(), self.resume is not None
        device = resolve_device(self.device)
        config = RunConfig(**{field.name: getattr(self, field.name) for field in fields(RunConfig)})
        before = None
        if resume:
            config, facts = load_config(folder, RunConfig, program="lieconv")
            check_resumable(folder, facts)
            self.check_unchanged(config, free=("data",))
            before = _data_facts(folder, facts)
        else:
            check_free(folder)
        # A data file that was moved since is named anew with --resume.
        source = self.data if self.data != RunConfig.data else config.data
        train_sets, test_sets = load_data(source)
        _, num_points, dimension = train_sets.coords.shape
        config = _with_neighbors(config, num_points)
        classes = 1 + int(max(train_sets.labels.max(), test_sets.labels.max()))
        features = train_sets.values.shape[-1]
        data = DataFacts(dimension, features, classes, train_sets.digest(), test_sets.digest())  # type: ignore[arg-type]
        if before is not None and before != data:
            raise UserError(f"{source} holds other point sets than those that {folder} was begun with")
        build_model(config, data)  # what does not fit is refused before anything is written
        with RunFolder(folder, config, program="lieconv", resume=resume, facts={"data": asdict(data)}) as run:
            if config.data.endswith(".npz"):
                test_sets.save(run.path / _TEST_SETS)
            started = time.perf_counter()
            model = train(config, data, train_sets, run, device)
            seconds = round(time.perf_counter() - started, 1)
            try:
                _report(model, config, test_sets, run.path, device, {"train_seconds": seconds})
            except UserError as error:
                if "NaN or infinite" not in str(error):
                    raise
                raise run.diverged(f"the trained network's outputs are not finite ({error})") from None


def _with_neighbors(config: RunConfig, num_points: int) -> RunConfig:
    """The configuration with its number of neighbours, for sets of this many points."""
    if config.num_neighbors is None:
        return replace(config, num_neighbors=min(_NEIGHBORS, num_points))
    if config.num_neighbors > num_points:
        raise UserError(
            f"expected --num-neighbors of at most the {num_points} points of a set, got {config.num_neighbors}"
        )
    return config


@dataclass(frozen=True)
class Evaluate:
    """Reload a trained network and report its accuracy again: the same numbers, bit for bit.

    Example: lieconv evaluate runs/se2
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    out: Path | None = None
    """Folder for metrics.json and the plot; RUN_DIR/evaluation by default."""
    seed: Seed = 0
    """Unused: the rotated test sets are the same for every evaluation. Here so that all commands take it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Evaluate and write metrics."""
        device = resolve_device(self.device)
        config, data, model = _load_run(self.run_dir, device)
        test_sets = _test_sets(self.run_dir, config, data)
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
    """FILE.npz as for training, with or without labels, or digits for the test digits."""
    out: Path | None = None
    """Folder for predictions.json and metrics.json; RUN_DIR/predictions by default."""
    seed: Seed = 0
    """Unused: prediction draws nothing. Here so that all commands take it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Predict and write the classes with their probabilities."""
        from lieconv.data import load_data, load_npz
        from lieconv.training import predict

        device = resolve_device(self.device)
        config, _, model = _load_run(self.run_dir, device)
        sets = load_npz(self.input, labelled=False) if self.input.endswith(".npz") else load_data(self.input)[1]
        expected = (model.group.point_dim, model.in_channels)
        if (got := (sets.coords.shape[-1], sets.values.shape[-1])) != expected:
            raise UserError(f"expected points of dimension {expected[0]} with {expected[1]} features, got {got}")
        probabilities = predict(model, sets, config.batch_size, device).softmax(-1)
        classes = probabilities.argmax(-1)
        accuracy = float((classes == sets.labels).double().mean())
        with output_directory(self.out or self.run_dir / "predictions") as out:
            rows = [
                {"class": int(c), "probabilities": [round(x, 6) for x in p]}
                for c, p in zip(classes.tolist(), probabilities.tolist(), strict=True)
            ]
            write_json(out / "predictions.json", rows)
            metrics = {
                "command": "predict",
                "point_sets": len(rows),
                **({"accuracy_against_labels": accuracy} if bool((sets.labels >= 0).all()) else {}),
                "input": self.input,
                "config": asdict(config),
                "versions": provenance("lieconv"),
            }
            write_json(out / "metrics.json", metrics)
        counts = classes.bincount(minlength=model.out_channels).tolist()
        print_table(f"{len(rows)} point sets of {self.input}", ["class", "predicted"], list(enumerate(counts)))


def _data_facts(run_dir: Path, facts: dict[str, Any]) -> DataFacts:
    return validate(DataFacts, facts.get("data"), f"data in {run_dir / 'config.json'}")


def _load_run(run_dir: Path, device: Any) -> tuple[RunConfig, DataFacts, Any]:
    """Configuration, facts and network of a finished run; its data are not needed."""
    from lieconv.training import build_model

    config, facts = load_run(run_dir, RunConfig, program="lieconv")
    data = _data_facts(run_dir, facts)
    if config.num_neighbors is None:
        raise UserError(f"expected num_neighbors in {run_dir / 'config.json'} to be a whole number, got None")
    model = build_model(config, data)
    load_model(run_dir, config, model)
    return config, data, model.to(device)


def _test_sets(run_dir: Path, config: RunConfig, data: DataFacts) -> Any:
    """The test sets of a run: those in its folder, or of a data set by name."""
    from lieconv.data import load_data, load_npz

    stored = config.data.endswith(".npz")
    sets = load_npz(run_dir / _TEST_SETS, labelled=False) if stored else load_data(config.data)[1]
    if sets.digest() != data.test_sha256:
        raise UserError(f"the test sets of {run_dir} are others than those that it was begun with")
    return sets


def _report(model: Any, config: Any, test_sets: Any, out: Path, device: Any, extra: dict[str, Any]) -> None:
    from lieconv.training import evaluate, plot_accuracy_by_angle

    result = evaluate(model, test_sets, config.batch_size, device)
    if "accuracy_by_angle" in result:
        title = f"{config.data}, {config.group} network trained upright"
        plot_accuracy_by_angle(result, title, out / "accuracy_by_angle.png")
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {
        **result,
        **extra,
        "parameters": parameters,
        "config": asdict(config),
        "seed": config.seed,
        "device": str(device),
        "versions": provenance("lieconv"),
    }
    write_json(out / "metrics.json", metrics)
    print_table(
        f"{config.data}, group {config.group}, {config.lift} lift: test accuracy on {result['test_sets']} sets",
        ["group", "upright %", "rotated %", "logit change under rotation", "parameters"],
        [
            [
                config.group,
                f"{100 * result['accuracy_upright']:.2f}",
                f"{100 * result['accuracy_rotated']:.2f}",
                f"{result['rotation_change']:.1e}",
                parameters,
            ]
        ],
    )
    print(f"written to {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    description = "Networks equivariant to Lie groups on point sets (LieConv, Finzi et al. 2020)."
    return run_command("lieconv", description, {"train": Train, "evaluate": Evaluate, "predict": Predict}, argv)
