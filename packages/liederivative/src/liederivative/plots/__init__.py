"""Figures of results."""

from liederivative.plots.bars import plot_errors
from liederivative.plots.over_steps import plot_histories

__all__ = ["plot_errors", "plot_histories"]
