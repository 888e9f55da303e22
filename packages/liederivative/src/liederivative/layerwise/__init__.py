"""Where in a network equivariance is lost: exact terms of its layers, probes of deep ones, and aliasing in theory."""

from liederivative.layerwise.aliasing import AliasingStudy, aliasing_study, operations
from liederivative.layerwise.decomposition import CancellationWarning, Decomposition, decompose
from liederivative.layerwise.probes import ProbeEstimate, probe_terms

__all__ = [
    "AliasingStudy",
    "CancellationWarning",
    "Decomposition",
    "ProbeEstimate",
    "aliasing_study",
    "decompose",
    "operations",
    "probe_terms",
]
