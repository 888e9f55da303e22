"""From points to neighbourhoods on the group; knows no channel."""

from lieconv.geometry.geometry import Geometry, build_geometry, kernel_dim
from lieconv.geometry.subsample import density_weights, farthest_points

__all__ = ["Geometry", "build_geometry", "density_weights", "farthest_points", "kernel_dim"]
