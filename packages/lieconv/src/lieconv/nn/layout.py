"""Between the layout of a batch and rows of points: padded (B, N, C), ragged (P, C), shared coordinates."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lieconv.geometry import Geometry


def rows_of(geometry: Geometry, values: Tensor, channels: int) -> Float[Tensor, "S P c"]:
    """Values of the sources as S copies of P rows; S is 1 unless many samples share the coordinates of one.

    Raises:
        ValueError: where the values do not fit the sources.
    """
    P = geometry.source_mask.shape[0]  # noqa: N806
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
    B, M = geometry.shape  # noqa: N806
    return rows.reshape(B, M // geometry.num_samples if per_point else M, -1)


def check_values(coords: Tensor, values: Tensor, channels: int) -> None:
    """Raise where ``values`` do not fit the points or the layer."""
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
