"""Convolutions equivariant to any Lie group with a surjective exponential, on arbitrary continuous data."""

from lieconv.geometry import Geometry, build_geometry, density_weights, farthest_points
from lieconv.models import LieResNet
from lieconv.nn import LieConv

__version__ = "0.1.0"
__all__ = ["Geometry", "LieConv", "LieResNet", "build_geometry", "density_weights", "farthest_points"]
