"""Where in a network equivariance is lost: exact terms of its layers."""

from liederivative.layerwise.decomposition import Decomposition, decompose

__all__ = ["Decomposition", "decompose"]
