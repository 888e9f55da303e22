"""Shapes in annotations are checked at run time in this suite."""

import jaxtyping

# Not `lie_derivative` and `lee`: users enter there, and their own checks are what the tests look at.
jaxtyping.install_import_hook(
    ["liederivative.actions", "liederivative.derivative.pushforward", "liederivative.images", "liederivative.zoo"],
    "beartype.beartype",
)
