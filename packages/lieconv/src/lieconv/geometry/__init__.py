"""Geometry of point sets on a group: neighbourhoods, lifts, kernel coordinates, subsampling. Holds no features."""

from lieconv.geometry.build import build_geometry
from lieconv.geometry.geometry import Geometry
from lieconv.geometry.lifts import kernel_dim
from lieconv.geometry.subsample import density_weights, farthest_points

__all__ = ["Geometry", "build_geometry", "density_weights", "farthest_points", "kernel_dim"]
