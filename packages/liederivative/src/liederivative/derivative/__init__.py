"""The Lie derivative of a model, by forward-mode differentiation."""

from liederivative.derivative.evaluation import (
    double_copy,
    evaluation_mode,
    module_of,
    outside_inference_mode,
    uncompiled,
)
from liederivative.derivative.lie_derivative import (
    LieDerivatives,
    Selector,
    check_images,
    check_inputs,
    lie_derivative,
    lie_derivatives,
    method_name,
)
from liederivative.derivative.metadata import declared_layout, feature_layout
from liederivative.derivative.pushforward import LADDER, PushForward, Rung, push_forward

__all__ = [
    "LADDER",
    "LieDerivatives",
    "PushForward",
    "Rung",
    "Selector",
    "check_images",
    "check_inputs",
    "declared_layout",
    "double_copy",
    "evaluation_mode",
    "feature_layout",
    "lie_derivative",
    "lie_derivatives",
    "method_name",
    "module_of",
    "outside_inference_mode",
    "push_forward",
    "uncompiled",
]
