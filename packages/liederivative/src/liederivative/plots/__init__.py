"""Figures of results."""

from liederivative.plots.bars import plot_errors
from liederivative.plots.layers import plot_aliasing, plot_layers
from liederivative.plots.over_steps import plot_histories

__all__ = ["plot_aliasing", "plot_errors", "plot_histories", "plot_layers"]
