"""From points to neighbourhoods on the group; knows no channel."""

from lieconv.geometry.geometry import Geometry, build_geometry, kernel_dim
from lieconv.geometry.neighbours import nearest_neighbours

__all__ = ["Geometry", "build_geometry", "kernel_dim", "nearest_neighbours"]
