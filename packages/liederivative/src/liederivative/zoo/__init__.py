"""Models by name, with their weights and preprocessing."""

from liederivative.zoo.models import Weights, ZooModel, check_model_names, current_name, describe, load_model
from liederivative.zoo.weights import load_checkpoint_file, read_torch_state, weights_checksum

__all__ = [
    "Weights",
    "ZooModel",
    "check_model_names",
    "current_name",
    "describe",
    "load_checkpoint_file",
    "load_model",
    "read_torch_state",
    "weights_checksum",
]
