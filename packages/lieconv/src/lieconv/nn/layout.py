"""Convert between the layouts of a batch (padded, ragged, shared coordinates) and rows of points."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lieconv.geometry import Geometry
from lieconv.geometry.cloud import plain_values


def rows_of(geometry: Geometry, values: Tensor, channels: int) -> Float[Tensor, "S P c"]:
    """Values of the sources as S copies of P rows; S is 1 unless many samples share the coordinates of one.

    Raises:
        ValueError: where the values do not fit the sources.
    """
    P = geometry.source_mask.shape[0]
    shape = geometry.source_shape
    if values.shape[-1:] == (channels,):
        if shape is None and values.shape == (P, channels):
            return values.unsqueeze(0)
        if shape is not None and values.shape[:-1] == shape:
            return values.reshape(1, P, channels)
        if shape is not None and shape[0] == 1 and values.ndim == 3 and values.shape[1] == P:
            return values
    expected = (P, channels) if shape is None else (*shape, channels)
    raise ValueError(f"expected values of shape {expected} for this geometry, got {tuple(values.shape)}")


def laid_out(geometry: Geometry, rows: Float[Tensor, "S M c"], *, per_point: bool = False) -> Tensor:
    """Rows of the points in the layout of the batch; ``per_point`` after the mean over the elements of a point."""
    if geometry.shape is None:
        return rows.squeeze(0)
    if rows.shape[0] > 1:
        return rows
    B, M = geometry.shape
    return rows.reshape(B, M // geometry.num_samples if per_point else M, rows.shape[-1])


def check_values(coords: Tensor, values: Tensor, channels: int) -> None:
    """Raise where ``values`` do not fit the points or the layer."""
    for name, tensor in (("points", coords), ("values", values)):
        if isinstance(tensor, Geometry):
            raise TypeError("expected points, got a Geometry: layers take one in their place, whole networks do not")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"expected {name} as a tensor, got {type(tensor).__name__}; use torch.as_tensor")
    if not coords.is_floating_point():
        raise TypeError(f"expected floating-point points, got {coords.dtype}; use coords.float()")
    if coords.ndim == 2 and values.ndim == 3:
        raise ValueError(
            f"expected points (B, N, d) beside values {tuple(values.shape)}, got {tuple(coords.shape)}; add a "
            "batch axis in front, or give points and values in rows with batch"
        )
    wanted = (*coords.shape[:-1], channels)
    shared = coords.ndim == 3 and coords.shape[0] == 1 and values.shape[1:] == wanted[1:]
    if values.shape != wanted and not shared:
        names = "(B, N, channels)" if coords.ndim == 3 else "(P, channels)"
        raise ValueError(f"expected values of shape {wanted} {names}, got {tuple(values.shape)}")
    if not values.is_floating_point():
        raise TypeError(f"expected floating-point values, got {values.dtype}; use values.float()")
    if values.dtype != coords.dtype:
        raise TypeError(f"expected values and points of one dtype, got {values.dtype} and {coords.dtype}")
    if values.device != coords.device:
        raise ValueError(f"expected the values on {coords.device}, where the points are, got {values.device}")


def check_weights(values: Tensor, weight: Tensor) -> None:
    """Raise where the weights of a layer are of another dtype or device than what it is given."""
    if values.device != weight.device:
        raise ValueError(f"expected points and values on {weight.device}, where the layer is, got {values.device}")
    if values.dtype != weight.dtype and not torch.is_autocast_enabled(values.device.type):
        remedy = "layer.double()" if values.dtype == torch.float64 else f"inputs of {weight.dtype}"
        raise TypeError(
            f"expected points and values of {weight.dtype}, the layer's, got {values.dtype}; use {remedy}"
            + ("" if weight.dtype in (torch.float32, torch.float64) else ", or a float32 layer under torch.autocast")
        )


def check_geometry(geometry: Geometry, mask: Tensor | None, options: dict[str, Any], dim: int) -> None:
    """Raise if a geometry does not fit the layer, or comes with a mask or options that only building one can use."""
    if not isinstance(geometry, Geometry):
        raise TypeError(f"expected a Geometry, got {type(geometry).__name__}; make one by lieconv.build_geometry")
    if options:
        raise ValueError(
            f"a geometry has its {' and '.join(options)} from where it was built: give them to lieconv.build_geometry"
        )
    if geometry.kernel_coords.shape[-1] != dim:
        raise ValueError(
            f"expected a geometry with {dim} kernel coordinates, as of this layer's group, lift and coordinates, got "
            f"{geometry.kernel_coords.shape[-1]}; build it with the same"
        )
    if mask is None:
        return
    mask_of_geometry = geometry.source_mask[:: geometry.num_samples]
    if mask.numel() != mask_of_geometry.numel():
        raise ValueError(
            f"expected the mask of the geometry, of {mask_of_geometry.numel()} points, got {tuple(mask.shape)}"
        )
    plain = [plain_values(x) for x in (mask, mask_of_geometry)] if mask.device.type == "cpu" else [None]
    passed, expected = plain if len(plain) == 2 else (None, None)
    if passed is not None and expected is not None and not torch.equal(passed.flatten().bool(), expected):
        raise ValueError("a geometry has its mask from where it was built, got another; build it with this one")
