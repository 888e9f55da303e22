"""One visible training loop, and evaluation."""

from lieconv.training.config import DataFacts, RunConfig, build_model, resolve_group
from lieconv.training.evaluate import evaluate, plot_accuracy_by_angle, predict
from lieconv.training.train import train

__all__ = [
    "DataFacts",
    "RunConfig",
    "build_model",
    "evaluate",
    "plot_accuracy_by_angle",
    "predict",
    "resolve_group",
    "train",
]
