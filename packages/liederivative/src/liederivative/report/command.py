"""The command ``liederivative report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from lie.run import UserError, output_directory, print_table, provenance, unknown_name, write_json, write_text

if TYPE_CHECKING:
    from liederivative.report.page import Section
    from liederivative.report.tables import Row

MEASURES = ("mean_squared", "mean_absolute")


@dataclass(frozen=True)
class ReportCommand:
    """Figures and one self-contained page of a sweep's (or a measurement's) results.

    Example: liederivative report runs/sweep --accuracies results-imagenet.csv

    Writes report.html, PNG files and metrics.json (the correlations) to --out. Accuracies come from one of timm's
    published tables, results/*.csv in its source repository, or from any csv of model,top1; without one, the
    page goes without the figure of error against accuracy.
    """

    folder: tyro.conf.Positional[str]
    """the --out of a sweep or of a measurement"""
    accuracies: str | None = None
    """csv of accuracies in per cent, with columns model and top1"""
    column: str = "top1"
    """the column of --accuracies"""
    measure: str = "mean_squared"
    """mean_squared, the paper's LEE, or mean_absolute, what its code computes"""
    generators: tuple[str, ...] = ()
    """generators with a panel in the figures, at most four; the first three measured by default"""
    out: str | None = None
    """folder for the page and figures; report below the results by default"""

    def run(self) -> None:
        """Read, check, draw, write."""
        from liederivative.report.accuracies import join_accuracies, read_accuracies
        from liederivative.report.tables import report_rows
        from liederivative.sweep.records import read_records

        if self.measure not in MEASURES:
            raise unknown_name("measure", self.measure, MEASURES)
        accuracies = read_accuracies(self.accuracies, self.column) if self.accuracies is not None else {}
        records = list(read_records(self.folder).values())
        measured = [record for record in records if record["status"] == "ok"]
        if not measured:
            raise UserError(f"every one of the {len(records)} models in {self.folder} failed; there is nothing to show")
        rows = report_rows(records, self.measure, join_accuracies(records, accuracies))
        common = [name for name in rows[0].errors if all(name in row.errors for row in rows)]
        for name in self.generators:
            if name not in common:
                raise UserError(
                    f"{name!r} was not measured for all models; choose --generators from {', '.join(common)}"
                )
        if len(self.generators) > 4:
            raise UserError(f"expected at most four generators with a panel, got {len(self.generators)}")
        panels = self.generators or tuple(common[:3])
        with output_directory(self.out or Path(self.folder) / "report") as out:
            self._write(out, records, rows, panels, common)

    def _write(
        self, out: Path, records: list[dict[str, Any]], rows: list[Row], panels: Sequence[str], common: Sequence[str]
    ) -> None:
        from liederivative.measurement import DEFINITIONS
        from liederivative.report.accuracies import unjoined
        from liederivative.report.correlations import correlations_by_family
        from liederivative.report.page import build_page

        family = {row.model: row.family for row in rows}
        quantities = {
            "accuracy": {row.model: row.accuracy for row in rows if row.accuracy is not None},
            "parameters": {row.model: float(row.parameters) for row in rows},
        }
        correlations = {
            quantity: {
                name: correlations_by_family({row.model: row.errors[name] for row in rows}, values, family)
                for name in common
            }
            for quantity, values in quantities.items()
        }
        failures = {record["model"]: record["error"]["message"] for record in records if record["status"] != "ok"}
        sections = [
            *self._scatters(out, rows, panels, correlations, len(quantities["accuracy"])),
            *self._layers(out, records),
            self._models(out, rows, common),
            *_failures(failures),
        ]
        versions = sorted({f"{k} {v}" for r in records for k, v in r.get("versions", {}).items() if k != "platform"})
        facts = dict(DEFINITIONS) | {
            "rank correlations": "Spearman's rho and Kendall's tau-b; p two-sided, against independence; families of "
            "at least four models",
            "weights": ", ".join(sorted({row.weights for row in rows}))
            + "; accuracies are of the table given, and are "
            "never joined to random weights",
            "versions": ", ".join(versions) or "as in metrics.json of the measurement",
        }
        quantity = " and ".join(sorted({record.get("quantity", "outputs") for record in records}))
        lead = f"Lie derivatives of the {quantity} of {len(rows)} models; {len(failures)} failed."
        write_text(out / "report.html", build_page("How equivariant are these models?", lead, sections, facts))
        metrics = {
            "command": "report",
            "configuration": asdict(self),
            "versions": provenance("liederivative", "matplotlib", "scipy"),
            "measured": len(rows),
            "failed": failures,
            "with_accuracy": len(quantities["accuracy"]),
            "correlations": correlations,
        }
        write_json(out / "metrics.json", metrics)
        shown = [
            [quantity, name, values["n"], values["spearman"], values["kendall"]]
            for quantity, by_name in correlations.items()
            for name, by_family in by_name.items()
            for group, values in by_family.items()
            if group == "all"
        ]
        if shown:
            columns = ["error against", "generator", "models", "Spearman", "Kendall"]
            print_table(f"rank correlations of {self.measure}", columns, shown)
        else:
            print(f"no rank correlation: {len(rows)} models, and at least four that differ are needed")
        if self.accuracies is not None:
            joined = quantities["accuracy"]
            without = "; without: " + "; ".join(reasons) if (reasons := unjoined(records, joined)) else ""
            print(f"accuracies joined to {len(joined)} of {len(rows)} models{without}")
        print(f"report in {out}: report.html, {', '.join(sorted(p.name for p in out.glob('*.png')))}")

    def _scatters(
        self, out: Path, rows: list[Row], panels: Sequence[str], correlations: Mapping[str, Any], joined: int
    ) -> list[Section]:
        from liederivative.report.figures import plot_scatter
        from liederivative.report.page import Section

        titles = {"accuracy": "Error against accuracy", "parameters": "Error against size"}
        sections = []
        for quantity, title in titles.items():
            path = out / f"lee_vs_{quantity}.png"
            path.unlink(missing_ok=True)  # of an earlier report
            if quantity == "accuracy" and not joined:
                text = "No accuracies: none were given by --accuracies, or none belongs to the weights measured here."
                sections.append(Section(quantity, title, text))
                continue
            found = correlations[quantity]
            notes = {
                name: f"Spearman {all_['spearman']:+.2f}, n = {all_['n']}"
                for name, groups in found.items()
                if (all_ := groups.get("all"))
            }
            plot_scatter(path, rows, panels, quantity, self.measure, notes)
            table = [
                [
                    name,
                    group,
                    values["n"],
                    values["spearman"],
                    values["spearman_p"],
                    values["kendall"],
                    values["kendall_p"],
                ]
                for name, groups in found.items()
                for group, values in groups.items()
            ]
            number = joined if quantity == "accuracy" else len(rows)
            text = f"{number} models, a colour a family." + (
                " Rank correlations below, over all models and inside families." if table else ""
            )
            columns = ["generator", "models", "n", "Spearman", "p", "Kendall", "p "]
            sections.append(Section(quantity, title, text, [(path, title)], columns if table else (), table))
        return sections

    def _layers(self, out: Path, records: list[dict[str, Any]]) -> list[Section]:
        from liederivative.report.figures import plot_depth, plot_layer_types
        from liederivative.report.page import Section
        from liederivative.report.tables import depth_curves, layer_type_shares

        for stale in [*out.glob("layer_types_*.png"), *out.glob("depth_*.png")]:
            stale.unlink()
        generators = dict.fromkeys(name for record in records for name in record.get("layers") or {})
        sections = []
        for name in generators:
            shares, curves = layer_type_shares(records, name), depth_curves(records, name)
            bars, lines = out / f"layer_types_{name}.png", out / f"depth_{name}.png"
            plot_layer_types(bars, shares, name)
            plot_depth(lines, curves, name)
            types = sorted({kind for by_type in shares.values() for kind in by_type})
            table = [[model, *(by_type.get(kind) for kind in types)] for model, by_type in shares.items()]
            text = (
                "Each layer's term of the Lie derivative, pushed to the output, as its share along the total; shares "
                "may be negative, and those of a model sum to 1."
            )
            captions = [(bars, f"share by layer type, {name}"), (lines, f"cumulative share over depth, {name}")]
            sections.append(Section(f"layers-{name}", f"Layers: {name}", text, captions, ["model", *types], table))
        return sections

    def _models(self, out: Path, rows: list[Row], common: Sequence[str]) -> Section:
        from liederivative.report.figures import LABELS, plot_generators
        from liederivative.report.page import Section

        path = out / "generators.png"
        plot_generators(path, rows, self.measure)
        columns = ["model", "family", "parameters", "weights", "top-1 %", *common, "seconds"]
        table = [
            [
                row.model,
                row.family,
                row.parameters,
                row.weights,
                row.accuracy,
                *(row.errors[name] for name in common),
                row.seconds,
            ]
            for row in rows
        ]
        text = f"{LABELS[self.measure]} of each model and generator. A click on a column's name sorts by it."
        return Section("models", "All models", text, [(path, "errors of all models by generator")], columns, table)


def _failures(failures: Mapping[str, str]) -> list[Section]:
    from liederivative.report.page import Section

    if not failures:
        return []
    return [Section("failed", "Failed", "", (), ["model", "reason"], list(map(list, failures.items())))]
