"""Local equivariance errors as bars: one group a generator, one colour a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lie.run import atomic_path


def plot_errors(path: str | Path, models: Mapping[str, Mapping[str, Any]], quantity: str) -> None:
    """Write a figure with the mean absolute and the mean squared Lie derivative per generator and model.

    Args:
        path: of the PNG.
        models: name to record, as in ``metrics.json``.
        quantity: what is differentiated, for the axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {"mean_absolute": "mean |L f|", "mean_squared": "mean |L f|² (LEE)"}
    for axes, (measure, label) in zip(figure.subplots(2, 1, sharex=True), labels.items(), strict=True):
        names: list[str] = []
        for place, (model, record) in enumerate(models.items()):
            names = list(record["generators"])
            numbers = [record["generators"][name][measure] for name in names]
            errors = [number["standard_error"] for number in numbers]  # None for a single image
            width = 0.8 / len(models)
            axes.bar(
                [group + (place - (len(models) - 1) / 2) * width for group in range(len(names))],
                [number["mean"] for number in numbers],
                width,
                yerr=None if errors[0] is None else errors,
                capsize=2,
                label=f"{model}, {record['weights']['kind']} weights",
            )
        axes.set_xticks(range(len(names)), names, rotation=20)
        axes.set_ylabel(label)
        highest = max(record["generators"][name][measure]["mean"] for record in models.values() for name in names)
        if highest > 0:  # models differ by orders of magnitude; what is 0 to rounding stays below the frame
            axes.set_yscale("log")
            axes.set_ylim(max(axes.get_ylim()[0], 1e-6 * highest), 3 * highest)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), fontsize="small")
    figure.suptitle(f"Lie derivative of the {quantity}, mean over images with standard error; what is below a "
                    "millionth of the largest is not drawn", fontsize="medium")  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
