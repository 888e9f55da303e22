"""Moving pictures of trajectories."""

from chnn.animation.gif import KINDS, animate, check_kind

__all__ = ["KINDS", "animate", "check_kind"]
