"""Figures of results."""

from liederivative.plots.bars import plot_errors

__all__ = ["plot_errors"]
