"""The commands ``liederivative layers`` and ``liederivative aliasing``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from lie.run import (
    Count,
    Seed,
    UserError,
    output_directory,
    print_table,
    provenance,
    resolve_device,
    unknown_name,
    write_json,
)
from msgspec import Meta

from liederivative.options import ModelOptions, NumClasses

if TYPE_CHECKING:
    from torch import Tensor, nn


_MAX_SAMPLES = 2**26  # on the finest grid: half a gigabyte in float64, and a few times that with spectra


@dataclass(frozen=True, kw_only=True)
class LayersCommand(ModelOptions):
    """Split a timm model's Lie derivative into exact terms of its layers and operations, on photographs.

    Example: liederivative layers resnet18 --generators translate_x rotate --images sample --out runs/layers

    Prints the largest terms and writes metrics.json (every term's share, norm and cumulative share) and layers.png.
    """

    model: tyro.conf.Positional[str]
    """a name in timm, with or without a tag"""
    generators: tuple[str, ...] = ("translate_x",)
    """names of generators, each decomposed by itself"""
    checkpoint: str | None = None
    """use the weights in this file: .safetensors, or a PyTorch file of plain tensors"""
    num_classes: NumClasses | None = None
    """size of the classifier, where the checkpoint's is not the model's usual one"""
    by: str = "layer"
    """layer, or type: one term a class of layers, several times faster"""
    show: Count = 15
    """so many of the largest terms are printed"""
    out: str = "runs/layers"
    """folder for the results, made if absent"""

    def run(self) -> None:
        """Check everything given, then decompose image after image, then write and show."""
        import torch

        from liederivative.actions import resolve_generators
        from liederivative.images import load_photographs
        from liederivative.layerwise.over_images import DEFINITIONS
        from liederivative.measurement import naming
        from liederivative.plots import plot_layers
        from liederivative.zoo import check_model_names, describe

        names = [one.name for one in resolve_generators(self.generators)]
        if self.by not in ("layer", "type"):
            raise unknown_name("grouping", self.by, ("layer", "type"))
        device, dtype = resolve_device(self.device), getattr(torch, self.dtype)
        check_model_names([self.model], pretrained=self.pretrained)  # last: timm takes seconds to import
        photographs = load_photographs(self.images, self.limit)
        with output_directory(self.out) as out:
            zoo = self.load(self.model, checkpoint=self.checkpoint, num_classes=self.num_classes)
            if not self.logits and zoo.num_classes < 1:
                raise UserError(f"{self.model} has no classifier head; decompose its outputs with --logits")
            x = zoo.images([photograph.image for photograph in photographs]).to(device, dtype)
            module = zoo.module.to(device, dtype)
            with naming(self.model, x):
                tables = {name: self._table(module, x, name) for name in names}
            metrics = {
                "command": "layers",
                "configuration": asdict(self),
                "versions": provenance("liederivative", "timm", "scikit-learn", "scikit-image", "pillow"),
                "seed": self.seed,
                "device": str(device),
                "quantity": self.quantity,
                "definitions": DEFINITIONS,
                "images": [{"name": photo.name, "sha256": photo.sha256} for photo in photographs],
                "model": {"name": self.model, **describe(zoo)},
                "generators": tables,
            }
            plot_layers(out / "layers.png", self.model, {name: table["terms"] for name, table in tables.items()})
            write_json(out / "metrics.json", metrics)
            self._show(tables)
            print(f"results in {out}: metrics.json, layers.png")

    def _table(self, module: nn.Module, x: Tensor, generator: str) -> dict[str, Any]:
        """The terms of one generator, their shares over all images together."""
        from tqdm import tqdm

        from liederivative.layerwise.over_images import terms_over_images

        start = time.perf_counter()
        table = terms_over_images(
            module,
            tqdm(x.split(1), desc=f"{self.model} {generator}", unit="image"),
            generator,
            probabilities=not self.logits,
            by="type" if self.by == "type" else "layer",
        )
        return {**table, "seconds": round(time.perf_counter() - start, 2)}

    def _show(self, tables: dict[str, dict[str, Any]]) -> None:
        for generator, table in tables.items():
            largest = sorted(table["terms"], key=lambda row: -row["norm"])[: self.show]
            rows = [
                [row["name"], row["kind"], f"{row['share']:+.1%}", f"{row['squared']:.3g}", f"{row['cumulative']:.1%}"]
                for row in largest
            ]
            headings = ["term", "kind", "share", "mean square", "up to here"]
            print_table(f"{self.model}, {generator}: the {len(rows)} largest of {len(table['terms'])}", headings, rows)
            closure = "rounding" if table["closure"] is None else f"{table['closure']:.0e}"
            print(f"terms add up to the whole within {closure}; {table['seconds']} s")
            if table["unknown"]:
                print(f"{len(table['unknown'])} operations could not be followed; their terms are in the next ones'")


@dataclass(frozen=True)
class AliasingCommand:
    """Measure how non-linearities and downsampling break translations, over the band limit, against theory.

    Example: liederivative aliasing relu "filtered relu" "stride 2" "blur 2" --out runs/aliasing

    Prints a table and writes metrics.json and aliasing.png.
    """

    operations: tyro.conf.Positional[tuple[str, ...]] = ()
    """relu gelu silu tanh sigmoid leaky_relu square, each also as "filtered relu"; "stride 2", "blur 2", "blur7 2",
    "average 2", "maxpool 2" and the same for 4; all by default"""
    band_limits: tuple[Annotated[float, Meta(gt=0.0, le=1.0)], ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """of the input, as fractions of the Nyquist frequency"""
    size: Annotated[int, Meta(ge=4, le=65_536)] = 128
    """samples of a signal"""
    signals: Count = 32
    """random signals a band limit"""
    fine: Annotated[int, Meta(ge=1, le=1024)] = 16
    """how much finer the grid is that stands for the continuum in the theory"""
    seed: Seed = 0
    """of the signals"""
    out: str = "runs/aliasing"
    """folder for the results, made if absent"""

    def run(self) -> None:
        """Measure, compare, write."""
        import torch

        from liederivative.layerwise.aliasing import aliasing_study, operations
        from liederivative.plots import plot_aliasing

        operations(self.operations or None)
        samples = self.size * self.fine * self.signals
        if samples > _MAX_SAMPLES:
            raise UserError(
                f"expected --size times --fine times --signals of at most {_MAX_SAMPLES} samples, got {samples}"
            )
        with output_directory(self.out) as out:
            study = aliasing_study(
                self.operations or None,
                band_limits=self.band_limits,
                size=self.size,
                signals=self.signals,
                fine=self.fine,
                generator=torch.Generator().manual_seed(self.seed),
            )
            rows = study.table()
            metrics = {
                "command": "aliasing",
                "configuration": asdict(self),
                "versions": provenance("liederivative"),
                "seed": self.seed,
                "definitions": {
                    "measured": "mean over signals of |L f|^2 / |d f|^2 under translation, by differentiation",
                    "theory": "the same from the aliased Fourier coefficients of the continuous result",
                },
                "results": rows,
            }
            plot_aliasing(out / "aliasing.png", rows)
            write_json(out / "metrics.json", metrics)
            shown = _picked(self.band_limits)
            print_table(
                "translation error |L f|^2 / |d f|^2, measured (theory), by band limit",
                ["operation", *(f"{limit:g}" for limit in shown)],
                [
                    [
                        name,
                        *(
                            f"{row['measured']:.1e} ({row['theory']:.1e})"
                            for row in rows
                            if row["operation"] == name and row["band_limit"] in shown
                        ),
                    ]
                    for name in study.measured
                ],
            )
            print(f"results in {out}: metrics.json, aliasing.png")


def _picked(limits: Sequence[float]) -> list[float]:
    """At most five of the band limits, for a table that fits a terminal."""
    step = max(1, -(-len(limits) // 5))
    return list(limits)[step - 1 :: step]
