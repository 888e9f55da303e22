"""Local equivariance errors over the steps of one or more trainings: a panel a generator, a curve a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lie.run import UserError, atomic_path, unknown_name

_LABELS = {
    "per_variance": "LEE / variance of f over images",
    "mean_squared": "LEE: mean |L f|²",
    "mean_absolute": "mean |L f|",
}


def plot_histories(
    path: str | Path, histories: Mapping[str, Sequence[Mapping[str, Any]]], measure: str = "per_variance"
) -> None:
    """Write a figure of the errors over steps.

    Args:
        path: of the PNG.
        histories: label of each training to the ``history`` of its `liederivative.training.LEETracker`.
        measure: "per_variance", "mean_squared" or "mean_absolute".

    Raises:
        UserError: for an unknown measure, or histories without a measurement.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if measure not in _LABELS:
        raise unknown_name("measure", measure, _LABELS)
    generators = list(
        dict.fromkeys(name for run in histories.values() for point in run for name in point["generators"])
    )
    if not generators:
        raise UserError("expected at least one measurement to plot, got none; call the tracker in the training loop")
    figure = Figure(figsize=(4.6 * len(generators) + 0.6, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(generators), sharey=True, squeeze=False)[0]
    for axes, generator in zip(panels, generators, strict=True):
        for label, run in histories.items():
            points = [(p["step"], p["generators"][generator][measure]) for p in run if generator in p["generators"]]
            # What is zero or unknown has no place on a logarithmic axis.
            kept = [(step, value) for step, value in points if value]
            if kept:
                axes.plot(*zip(*kept, strict=True), marker=".", label=label or None)
        axes.set_title(generator)
        axes.set_xlabel("step of training")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel(_LABELS[measure])
    if any(histories):
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
