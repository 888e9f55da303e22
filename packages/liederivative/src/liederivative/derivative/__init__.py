"""The Lie derivative of a model, by forward-mode differentiation."""

from liederivative.derivative.evaluation import evaluation_mode
from liederivative.derivative.lie_derivative import (
    LieDerivatives,
    check_images,
    check_inputs,
    lie_derivative,
    lie_derivatives,
)
from liederivative.derivative.metadata import declared_layout, feature_layout
from liederivative.derivative.pushforward import LADDER, PushForward, Rung, push_forward

__all__ = [
    "LADDER",
    "LieDerivatives",
    "PushForward",
    "Rung",
    "check_images",
    "check_inputs",
    "declared_layout",
    "evaluation_mode",
    "feature_layout",
    "lie_derivative",
    "lie_derivatives",
    "push_forward",
]
