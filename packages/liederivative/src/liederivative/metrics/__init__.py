"""Numbers that say how far a model is from equivariance."""

from liederivative.metrics.local_error import LEE, lee

__all__ = ["LEE", "lee"]
