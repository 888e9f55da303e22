"""How equivariance moves while a network learns: a callback for any training loop."""

from liederivative.training.tracker import LEETracker

__all__ = ["LEETracker"]
