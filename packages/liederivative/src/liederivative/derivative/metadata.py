"""The layout of a timm model's features, from what the model says of itself; nothing is concluded from a shape alone.

timm's models carry ``num_features``, ``output_fmt``, ``num_prefix_tokens``, ``patch_embed`` and ``feature_info``. What
they say is checked against the value; where they say too little, or something else, the layout stays unknown and the
user declares it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from liederivative.actions import NCHW, NHWC, Domain, Layout, Tokens
from liederivative.derivative.evaluation import module_of


def declared_layout(model: Callable[..., Any], value: Tensor, domain: Domain) -> Layout | None:
    """The layout of ``value``, the features that ``model.forward_features`` of a timm model gives for images.

    Args:
        model: the callable that is measured.
        value: what it returned.
        domain: of the input.

    Returns:
        `NCHW`, `NHWC` or `Tokens`; None for another callable, and where the model's metadata do not tell.
    """
    module = module_of(model)
    if module is None or len(domain.size) != 2 or getattr(model, "__name__", "") != "forward_features":
        return None
    return feature_layout(module, value, domain.size)


def feature_layout(module: nn.Module, value: Tensor, image_size: tuple[int, ...]) -> Layout | None:
    """As `declared_layout`, for the features of ``module`` on images of this height and width."""
    channels = getattr(module, "num_features", None)
    if not isinstance(channels, int):
        return None
    if value.ndim == 4:
        if getattr(module, "output_fmt", None) == "NHWC":
            return NHWC() if value.shape[-1] == channels else None
        first, last = value.shape[1] == channels, value.shape[-1] == channels
        return NCHW() if first and not last else NHWC() if last and not first else None
    if value.ndim == 3 and value.shape[-1] == channels:
        for grid in _grids(module, image_size):
            for prefix in _prefixes(module):
                if value.shape[1] == prefix + grid[0] * grid[1]:
                    return Tokens(grid=grid, prefix=prefix)
    return None


def _prefixes(module: nn.Module) -> list[int]:
    declared = getattr(module, "num_prefix_tokens", None)
    if isinstance(declared, int):
        return [declared]
    # Without the attribute a class token shows as the parameter of that name, as in volo.
    return [1 if getattr(module, "cls_token", None) is not None else 0]


def _grids(module: nn.Module, image_size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Rows and columns of patches: of the patch embedding, and of the last stage's reduction."""
    grids = []
    embed = getattr(module, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if isinstance(patch, tuple | list) and len(patch) == 2:
        grids.append((image_size[0] // int(patch[0]), image_size[1] // int(patch[1])))
    size = getattr(embed, "grid_size", None)
    if isinstance(size, tuple | list) and len(size) == 2:
        grids.append((int(size[0]), int(size[1])))
    info: Any = getattr(module, "feature_info", None)
    if isinstance(info, list) and info and isinstance(info[-1], dict) and "reduction" in info[-1]:
        reduction = int(info[-1]["reduction"])
        grids.append((-(-image_size[0] // reduction), -(-image_size[1] // reduction)))
    return grids
