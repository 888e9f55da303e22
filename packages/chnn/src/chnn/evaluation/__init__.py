"""How far predictions are from truth."""

from chnn.evaluation.rollout import evaluate, plot_errors, relative_error

__all__ = ["evaluate", "plot_errors", "relative_error"]
