"""Moving pictures of trajectories."""

from chnn.animation.gif import animate

__all__ = ["animate"]
