"""Figures of what layers contribute, and of aliasing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lie.run import atomic_path


def plot_layers(path: str | Path, model: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write a figure with the share of each kind of layer and the cumulative share over depth, by generator.

    Args:
        path: of the PNG.
        model: its name.
        tables: by generator, the rows of ``metrics.json``: kind, share and cumulative share of each term.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    kinds = list(dict.fromkeys(row["kind"] for rows in tables.values() for row in rows))
    for place, (generator, rows) in enumerate(tables.items()):
        shares = [sum(row["share"] for row in rows if row["kind"] == kind) for kind in kinds]
        height = 0.8 / len(tables)
        left.barh([i + (place - (len(tables) - 1) / 2) * height for i in range(len(kinds))], shares, height,
                  label=generator)  # fmt: skip
        depth = [i / len(rows) for i in range(len(rows) + 1)]
        right.plot(depth, [0.0, *(row["cumulative"] for row in rows)], label=generator)
    left.set_yticks(range(len(kinds)), kinds, fontsize="small")
    left.invert_yaxis()
    left.axvline(0, color="black", linewidth=0.8)
    left.set_xlabel("signed share of the whole Lie derivative")
    right.set_xlabel("depth: share of terms passed, in order of the run")
    right.set_ylabel("cumulative signed share")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    right.legend(fontsize="small")
    figure.suptitle(f"Where {model} loses equivariance")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_aliasing(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a figure of translation errors over the input's band limit: points measured, lines from theory.

    Args:
        path: of the PNG.
        rows: operation, band_limit, measured and theory, as `AliasingStudy.table` gives them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    sampling = ("stride", "blur", "average", "maxpool")
    groups = {"non-linearities": [], "downsampling": []}
    for name in dict.fromkeys(row["operation"] for row in rows):
        groups["downsampling" if name.startswith(sampling) else "non-linearities"].append(name)
    for axes, (title, names) in zip(figure.subplots(1, 2), groups.items(), strict=True):
        for number, name in enumerate(names):
            mine = [row for row in rows if row["operation"] == name]
            limits = [row["band_limit"] for row in mine]
            style = {"color": f"C{number % 10}", "linestyle": "--" if name.startswith(("filtered", "blur")) else "-"}
            axes.plot(limits, [max(row["theory"], 1e-18) for row in mine], label=name, **style)
            axes.plot(limits, [max(row["measured"], 1e-18) for row in mine], "o", markersize=3, color=style["color"])
        axes.set_yscale("log")
        axes.set_ylim(1e-9, 10)
        axes.set_title(title)
        axes.set_xlabel("band limit of the input, of the Nyquist frequency")
        axes.set_ylabel("|L f|² / |d f|²")
        axes.grid(alpha=0.3)
        if names:
            axes.legend(fontsize="x-small", ncols=2)
    figure.suptitle("Translation errors: measured (points) and from the aliased Fourier coefficients (lines)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
