"""Data from the true system, and one visible training loop."""

from chnn.training.config import MODELS, TrainConfig, build_model, build_system
from chnn.training.data import simulate_with_progress, test_trajectories, training_chunks
from chnn.training.train import train

__all__ = [
    "MODELS",
    "TrainConfig",
    "build_model",
    "build_system",
    "simulate_with_progress",
    "test_trajectories",
    "train",
    "training_chunks",
]
