"""How equivariant is a trained network? The Lie derivative answers, for any model on images.

Rooms: `liederivative.actions` (how images and outputs move), `liederivative.derivative` (forward-mode
differentiation), `liederivative.metrics` (the local equivariance error), `liederivative.zoo` (timm models
by name), `liederivative.images` (photographs), `liederivative.plots`.
"""

from liederivative.actions import (
    GENERATORS,
    NCDHW,
    NCHW,
    NCT,
    NHWC,
    NTC,
    Action,
    Colours,
    Element,
    Generator,
    Images,
    Invariant,
    Joint,
    Layout,
    Points,
    Sequences,
    Tokens,
    VectorFields,
    VectorGrid,
    Vectors,
    Videos,
    Volumes,
    Windows,
)
from liederivative.derivative import lie_derivative, lie_derivatives
from liederivative.layerwise import Decomposition, decompose
from liederivative.metrics import LEE, PrecisionWarning, lee, resampling_floor

__version__ = "0.1.0"
__all__ = [
    "GENERATORS",
    "LEE",
    "NCDHW",
    "NCHW",
    "NCT",
    "NHWC",
    "NTC",
    "Action",
    "Colours",
    "Decomposition",
    "Element",
    "Generator",
    "Images",
    "Invariant",
    "Joint",
    "Layout",
    "Points",
    "PrecisionWarning",
    "Sequences",
    "Tokens",
    "VectorFields",
    "VectorGrid",
    "Vectors",
    "Videos",
    "Volumes",
    "Windows",
    "decompose",
    "lee",
    "lie_derivative",
    "lie_derivatives",
    "resampling_floor",
]
