"""How one-parameter groups move inputs and outputs: images, volumes, sequences, points, vectors, colours, your own."""

from liederivative.actions.action import Action, Layout
from liederivative.actions.colours import Colours
from liederivative.actions.differences import (
    GRADIENTS,
    backward_difference,
    central_difference,
    forward_difference,
    resolve_gradient,
    spectral_derivative,
)
from liederivative.actions.generators import (
    BASIS,
    GENERATORS,
    Element,
    Generator,
    GeneratorLike,
    affine_elements,
    resolve_generators,
    spanning_tangents,
)
from liederivative.actions.grids import Images, Sequences, Videos, Volumes
from liederivative.actions.joint import Joint, VectorFields
from liederivative.actions.layouts import (
    LAYOUTS,
    NCDHW,
    NCHW,
    NCT,
    NHWC,
    NTC,
    Invariant,
    Tokens,
    VectorGrid,
    Velocity,
    Windows,
    resolve_layout,
)
from liederivative.actions.points import Points, Vectors, group_elements
from liederivative.actions.tangents import Axis, Domain, grid_tangents, image_tangents, pixel_coordinates

__all__ = [
    "BASIS",
    "GENERATORS",
    "GRADIENTS",
    "LAYOUTS",
    "NCDHW",
    "NCHW",
    "NCT",
    "NHWC",
    "NTC",
    "Action",
    "Axis",
    "Colours",
    "Domain",
    "Element",
    "Generator",
    "GeneratorLike",
    "Images",
    "Invariant",
    "Joint",
    "Layout",
    "Points",
    "Sequences",
    "Tokens",
    "VectorFields",
    "VectorGrid",
    "Vectors",
    "Velocity",
    "Videos",
    "Volumes",
    "Windows",
    "affine_elements",
    "backward_difference",
    "central_difference",
    "forward_difference",
    "grid_tangents",
    "group_elements",
    "image_tangents",
    "pixel_coordinates",
    "resolve_generators",
    "resolve_gradient",
    "resolve_layout",
    "spanning_tangents",
    "spectral_derivative",
]
