"""Moving pictures of trajectories: GIF, MP4, and interactive pages, drawn without a screen."""

from chnn.animation.film import KINDS, animate, check_kind, snapshot
from chnn.animation.render import Camera

__all__ = ["KINDS", "Camera", "animate", "check_kind", "snapshot"]
