"""How one-parameter groups move images, feature maps and tokens."""

from liederivative.actions.generators import BASIS, GENERATORS, Generator, resolve_generators, spanning_tangents
from liederivative.actions.layouts import LAYOUTS, NCHW, NHWC, Invariant, Layout, Tokens, resolve_layout
from liederivative.actions.tangents import central_difference, image_tangents, pixel_coordinates

__all__ = [
    "BASIS",
    "GENERATORS",
    "LAYOUTS",
    "NCHW",
    "NHWC",
    "Generator",
    "Invariant",
    "Layout",
    "Tokens",
    "central_difference",
    "image_tangents",
    "pixel_coordinates",
    "resolve_generators",
    "resolve_layout",
    "spanning_tangents",
]
