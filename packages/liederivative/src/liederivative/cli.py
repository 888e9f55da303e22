"""The command ``liederivative``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from lie.run import (
    UserError,
    output_directory,
    print_table,
    provenance,
    read_json,
    resolve_device,
    run_command,
    write_json,
)

from liederivative.layerwise.command import AliasingCommand, LayersCommand
from liederivative.options import MeasureOptions, NumClasses
from liederivative.report.command import ReportCommand
from liederivative.sweep.command import SweepCommand

if TYPE_CHECKING:
    import torch

    from liederivative.actions import Generator
    from liederivative.images import Photograph
    from liederivative.zoo import ZooModel

_FREE = ("device", "batch_size", "tangents_per_pass")
"""settings that change how fast a result comes, not the result: a resumed run may choose them anew"""


@dataclass(frozen=True)
class Measure(MeasureOptions):
    """Measure how far timm models are from invariance, under ten generators, on photographs.

    Example: liederivative measure resnet18 vit_tiny_patch16_224 --images sample --out runs/measure

    Prints a table and writes metrics.json, lee.png and one file a model to --out.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """names in timm, with or without a tag: resnet18, convnext_atto.d2_in1k"""
    checkpoint: str | None = None
    """use the weights in this file for the one model given: .safetensors, or a PyTorch file of plain tensors"""
    num_classes: NumClasses | None = None
    """size of the classifier, where the checkpoint's is not the model's usual one"""
    out: str = "runs/measure"
    """folder for the results, made if absent"""
    resume: str | None = None
    """resume the interrupted run in this folder, with its settings: models already measured are kept"""

    def run(self) -> None:
        """Check everything given, then measure model after model, then write and show the results."""
        settings = self
        if self.resume is not None:
            settings = self.resumed(self.resume, kind="measure run", done="run", free=_FREE)
        with warnings.catch_warnings():
            # Of torch's own insides; nothing that a user could act on.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            warnings.filterwarnings("ignore", message="finite precision")  # said below the table
            settings._measure()

    def _measure(self) -> None:
        import torch

        from liederivative.actions import GENERATORS, resolve_generators
        from liederivative.images import load_photographs
        from liederivative.measurement import DEFINITIONS
        from liederivative.plots import plot_errors
        from liederivative.zoo import check_model_names

        generators = resolve_generators(self.generators or tuple(GENERATORS))
        if self.checkpoint is not None and len(self.models) > 1:
            raise UserError(f"expected one model with --checkpoint, got {len(self.models)}: {', '.join(self.models)}")
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise UserError(f"no checkpoint at {self.checkpoint}: the file does not exist")
        device = resolve_device(self.device)
        check_model_names(self.models, pretrained=self.pretrained)  # last: timm takes seconds to import
        photographs = load_photographs(self.images, self.limit)

        with output_directory(self.out) as out:
            records = self._records(out, photographs, generators, device, getattr(torch, self.dtype))
            metrics = {
                "command": "measure",
                "configuration": asdict(replace(self, resume=None)),
                "versions": provenance("liederivative", "timm", "scikit-learn", "scikit-image", "pillow"),
                "seed": self.seed,
                "device": str(device),
                "quantity": self.quantity,
                "definitions": DEFINITIONS,
                "images": [{"name": photo.name, "sha256": photo.sha256} for photo in photographs],
                "models": records,
            }
            plot_errors(out / "lee.png", records, self.quantity)
            write_json(out / "metrics.json", metrics)
            _show(records, self.quantity, len(photographs))
            print(f"results in {out}: metrics.json, lee.png")

    def _records(
        self,
        out: Path,
        photographs: Sequence[Photograph],
        generators: Sequence[Generator],
        device: torch.device,
        dtype: torch.dtype,
    ) -> dict[str, Any]:
        """One record a model, each written to ``out/models`` as soon as it is there."""
        from tqdm import tqdm

        from liederivative.measurement import fingerprint, measure_model

        def load(name: str) -> ZooModel:
            return self.load(name, checkpoint=self.checkpoint, num_classes=self.num_classes)

        configuration = asdict(replace(self, resume=None))
        decisive = {key: value for key, value in configuration.items() if key not in (*_FREE, "models", "out")}
        stamp = fingerprint(decisive, photographs, self.checkpoint)
        folder = out / "models"
        records: dict[str, Any] = {}
        if self.resume is not None:
            records = {name: found for name in self.models if (found := _kept(folder / f"{name}.json", stamp))}
            print(f"measured before, kept: {', '.join(records) or 'none'}", file=sys.stderr)
        models = {name: load(name) for name in self.models[:1] if name not in records}  # wrong weights show here
        for stale in (out / "metrics.json", out / "lee.png"):  # of an earlier run in this folder
            stale.unlink(missing_ok=True)
        write_json(out / "config.json", configuration)
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("*.json"):
            if stale.stem not in records:
                stale.unlink()
        try:
            for name in self.models:
                if name in records:
                    continue
                with tqdm(total=len(photographs), desc=name, unit="image") as bar:
                    record = measure_model(
                        models.pop(name, None) or load(name),
                        photographs,
                        generators,
                        probabilities=not self.logits,
                        batch_size=self.batch_size,
                        tangents_per_pass=self.tangents_per_pass,
                        device=device,
                        dtype=dtype,
                        progress=bar.update,
                    )
                write_json(folder / f"{name}.json", {"fingerprint": stamp, "result": record})
                records[name] = record
        except UserError:
            if not records and not any(folder.iterdir()):  # nothing to resume
                folder.rmdir()
                (out / "config.json").unlink()
            raise
        return {name: records[name] for name in self.models}


def _kept(path: Path, stamp: str) -> dict[str, Any] | None:
    """The result in a model's file, if it is whole and was measured with the same settings, images and weights."""
    from liederivative.sweep.records import check_record

    if not path.exists():
        return None
    try:
        record = check_record(read_json(path), path)
    except UserError as error:
        print(f"{error}; it is measured again", file=sys.stderr)
        return None
    return record["result"] if "result" in record and record.get("fingerprint") == stamp else None


def _show(records: Mapping[str, Any], quantity: str, num_images: int) -> None:
    """Both tables, and a word where the numbers need one."""
    from liederivative.metrics.local_error import PRECISION

    spread = "of one image" if num_images == 1 else f"± standard error over {num_images} images"
    for measure, title in (("mean_absolute", "mean |L f|"), ("mean_squared", "mean |L f|^2 (LEE)")):
        rows = [
            [name, *(_cell(record["generators"][name][measure]) for record in records.values())]
            for name in next(iter(records.values()))["generators"]
        ]
        print_table(f"{title} of the {quantity}, {spread}", ["generator", *records], rows)
    for name, record in records.items():
        weights = record["weights"]
        print(f"{name}: {weights['kind']} weights ({weights['source']}), {record['method']}, {record['seconds']} s")
        if (record["float64_difference"] or 0.0) > PRECISION:
            print(f"{name}: finite precision spoils the errors: in float64 the first image's differ by up to "
                  f"{record['float64_difference']:.1%}; measure with --dtype float64")  # fmt: skip
        if all(errors["mean_absolute"]["mean"] == 0 for errors in record["generators"].values()):
            print(f"{name}: every derivative is exactly zero, as of a head that was initialised to zero")
    if any(record["weights"]["kind"] == "random" for record in records.values()):
        print("Random weights: these numbers say nothing about trained models; see --pretrained and --checkpoint.")


def _cell(number: Mapping[str, Any]) -> str:
    error = number["standard_error"]
    return f"{number['mean']:.3g}" + ("" if error is None else f" ± {error:.1g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(
        "liederivative",
        "How equivariant is a trained network? Lie derivatives of any timm model. "
        "Example: liederivative measure resnet18 vit_tiny_patch16_224 --images sample",
        {
            "measure": Measure,
            "layers": LayersCommand,
            "sweep": SweepCommand,
            "report": ReportCommand,
            "aliasing": AliasingCommand,
        },
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
