"""The Lie derivative of a model, by forward-mode differentiation."""

from liederivative.derivative.evaluation import evaluation_mode
from liederivative.derivative.lie_derivative import LieDerivatives, check_images, lie_derivative, lie_derivatives
from liederivative.derivative.pushforward import LADDER, PushForward, Rung, push_forward

__all__ = [
    "LADDER",
    "LieDerivatives",
    "PushForward",
    "Rung",
    "check_images",
    "evaluation_mode",
    "lie_derivative",
    "lie_derivatives",
    "push_forward",
]
