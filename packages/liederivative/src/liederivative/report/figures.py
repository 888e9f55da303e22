"""The figures of a report, as PNG files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lie.run import atomic_path

from liederivative.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (
    "#2457a6", "#d1495b", "#2e8b57", "#e39b1f", "#7b4ea3", "#17a2b8", "#8c564b", "#e377c2", "#5b8c2a", "#3f4a5a",
)  # fmt: skip
_MARKERS = "osD^vPX<>h"
_OTHER = "#b9c0ca"
LABELS = {"mean_absolute": "mean |L f|", "mean_squared": "LEE, mean |L f|²"}
"""axis labels of the two measures"""


def plot_scatter(
    path: Path, rows: Sequence[Row], generators: Sequence[str], horizontal: str, measure: str, notes: Mapping[str, str]
) -> None:
    """Error against accuracy or parameters, one panel a generator, one colour and marker a family.

    Args:
        path: of the PNG.
        rows: models; those without the quantity are left out.
        generators: one panel each.
        horizontal: "accuracy" or "parameters".
        measure: which of the two measures the rows hold.
        notes: generator to a line below its title.
    """
    value: Callable[[Row], float | None]
    value = (lambda row: row.accuracy) if horizontal == "accuracy" else (lambda row: row.parameters / 1e6)
    shown = [(row, place) for row in rows if (place := value(row)) is not None]
    common = [family for family, _ in Counter(row.family for row, _ in shown).most_common(len(_COLOURS))]
    with _figure(path, (5.2 * len(generators), 5.6)) as figure:
        panels = figure.subplots(1, len(generators), squeeze=False)[0]
        for axes, generator in zip(panels, generators, strict=True):
            for family in [None, *common]:
                points = [
                    (place, row.errors[generator])
                    for row, place in shown
                    if (row.family == family if family else row.family not in common) and row.errors[generator] > 0
                ]
                if points:
                    index = common.index(family) if family else 0
                    axes.scatter(
                        *zip(*points, strict=True),
                        s=34,
                        marker=_MARKERS[index] if family else "o",
                        color=_COLOURS[index] if family else _OTHER,
                        edgecolors="white",
                        linewidths=0.5,
                        label=family or "other families",
                    )
            axes.set_title(generator + (f"\n{notes[generator]}" if generator in notes else ""), fontsize=11)
            axes.set_yscale("log")
            places = [place for _, place in shown]
            if horizontal == "parameters" and places and max(places) > 4 * min(places):  # else labels run together
                axes.set_xscale("log")
            axes.set_xlabel("top-1 accuracy, %" if horizontal == "accuracy" else "parameters, millions")
            axes.set_ylabel(LABELS[measure])
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
        handles = {}
        for axes in panels:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            columns = min(6, len(handles))
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def plot_layer_types(path: Path, shares: Mapping[str, Mapping[str, float]], generator: str) -> None:
    """Signed share of each layer type, stacked by model: above zero what adds, below what takes away."""
    weight = Counter[str]()
    for by_type in shares.values():
        weight.update({name: abs(share) for name, share in by_type.items()})
    types = [name for name, _ in weight.most_common(len(_COLOURS))]
    models = list(shares)
    with _figure(path, (9, 1.6 + 0.45 * len(models))) as figure:
        axes = figure.subplots()
        for sign in (1, -1):
            start = [0.0] * len(models)
            for index, name in enumerate([*types, None] if len(weight) > len(types) else types):
                widths = []
                for model in models:
                    by_type = shares[model]
                    others = sum(share for key, share in by_type.items() if key not in types)
                    share = others if name is None else by_type.get(name, 0.0)
                    widths.append(share if share * sign > 0 else 0.0)
                colour = _OTHER if name is None else _COLOURS[index]
                label = (name or "other") if sign == 1 else None
                axes.barh(models, widths, left=start, color=colour, label=label, height=0.7)
                start = [a + b for a, b in zip(start, widths, strict=True)]
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.invert_yaxis()
        axes.set_xlabel(f"share of the Lie derivative under {generator}; each model's shares sum to 1")
        figure.legend(loc="outside lower center", ncols=4, fontsize="small")


def plot_depth(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], generator: str) -> None:
    """Cumulative share over depth, a curve a model."""
    with _figure(path, (8, 5)) as figure:
        axes = figure.subplots()
        for index, (model, curve) in enumerate(curves.items()):
            style = ("-", "--", ":", "-.")[index // len(_COLOURS) % 4]
            depths, totals = zip(*curve, strict=True)
            axes.plot(depths, totals, style, color=_COLOURS[index % len(_COLOURS)], label=model, linewidth=1.6)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel("depth: share of layers passed, in order of use")
        axes.set_ylabel(f"cumulative share of the Lie derivative\nunder {generator}")
        axes.grid(alpha=0.25)
        if len(curves) <= 24:
            axes.legend(fontsize="small")


def plot_generators(path: Path, rows: Sequence[Row], measure: str) -> None:
    """The spread of all models' errors, a box a generator."""
    generators = list(rows[0].errors)
    with _figure(path, (1.5 + 0.95 * len(generators), 4.6)) as figure:
        axes = figure.subplots()
        positive = [[row.errors[name] for row in rows if row.errors[name] > 0] for name in generators]
        axes.boxplot(positive, showfliers=False, medianprops={"color": _COLOURS[1]})
        for place, values in enumerate(positive, start=1):
            offsets = [place + 0.24 * ((7 * index) % 11 / 10 - 0.5) for index in range(len(values))]
            axes.scatter(offsets, values, s=10, color=_COLOURS[0], alpha=0.5)
        axes.set_xticks(range(1, len(generators) + 1), generators, rotation=25)
        if any(positive):
            axes.set_yscale("log")
        axes.set_ylabel(LABELS[measure])
        axes.grid(axis="y", alpha=0.25)


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is written to ``path`` atomically at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
