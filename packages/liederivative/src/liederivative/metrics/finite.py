r"""An image after a finite transformation: the flow of a generator, followed for a parameter t.

A generator's velocity field (u, v) is affine, so its flow on homogeneous coordinates is a matrix exponential,
and the image flows along it while its values grow at the rate w:

.. math:: I_t(p) = e^{w t}\, I(\phi_t(p)), \qquad \phi_t = \exp\Big(t \begin{pmatrix} u_1 & u_2 & u_0 \\
          v_1 & v_2 & v_0 \\ 0 & 0 & 0 \end{pmatrix}\Big) .

Between pixels the image is the cubic convolution of Keys with a = -1/2, whose slope at a pixel is the central
difference, and beyond the border it is its reflection without repetition of the edge. Both are the conventions
of `liederivative.actions.image_tangents`, so that ``d/dt`` of this at t = 0 *is* that tangent (a test).
(The published code samples bilinearly, which has no derivative at pixels.)

Source of the kernel: Keys 1981, Cubic convolution interpolation for digital image processing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from liederivative.actions import Generator, pixel_coordinates, resolve_generators
from liederivative.actions.differences import check_values


def transform_image(
    x: Float[Tensor, "B *C h w"],
    generator: str | Generator,
    t: Float[Tensor, " B"] | float,
    *,
    input_size: tuple[int, int] | None = None,
) -> Float[Tensor, "B *C h w"]:
    """The images or feature maps ``x`` after ``generator`` has acted for the parameter ``t``.

    Args:
        x: values, rows before columns.
        generator: a name, or a `Generator`.
        t: one parameter, or one an image; units of the generator (half widths, radians, logarithms).
        input_size: height and width of the model's input where ``x`` is a feature map, as for tangents.

    Laws: t = 0 is the identity; the derivative at 0 is the tangent; a translation by a whole number of
    pixels moves them exactly.

    >>> transform_image(torch.tensor([[[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]]]), "translate_x", 1.0)[0, 0, 0]
    tensor([2., 3., 2.])
    """
    (chosen,) = resolve_generators(generator)
    check_values(x, 3, smallest=1 if input_size else 2)
    if x.dtype in (torch.float16, torch.bfloat16):  # which hold no places between pixels
        t = t.float() if isinstance(t, Tensor) else t
        return transform_image(x.float(), chosen, t, input_size=input_size).to(x.dtype)
    height, width = input_size or (x.shape[-2], x.shape[-1])
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
    field = x.new_tensor([[*chosen.u[1:], chosen.u[0]], [*chosen.v[1:], chosen.v[0]], [0.0, 0.0, 0.0]])
    flow = torch.linalg.matrix_exp(t[:, None, None] * field)  # (B, 3, 3)
    X = pixel_coordinates(x.shape[-1], width, x).expand(x.shape[-2], -1)  # (h, w)
    Y = pixel_coordinates(x.shape[-2], height, x)[:, None].expand(-1, x.shape[-1])
    points = torch.stack([X, Y, torch.ones_like(X)], dim=-1)  # (h, w, 3)
    moved = points @ flow.transpose(-1, -2)[:, None]  # (B, h, w, 3)
    column = _pixel(moved[..., 0], x.shape[-1], width)
    row = _pixel(moved[..., 1], x.shape[-2], height)
    gain = torch.exp(chosen.gain * t)
    return _sample(x, row, column) * gain.reshape(-1, *([1] * (x.ndim - 1)))


def _pixel(coordinate: Tensor, size: int, input_size: int) -> Tensor:
    """The inverse of `pixel_coordinates`: where in a row of ``size`` pixels a coordinate of the input lies."""
    return (coordinate * (input_size - 1) * size / input_size + size - 1) / 2


def _sample(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Cubic convolution at the points (row, column), both (B, h, w), of ``x`` (B, ..., h, w)."""
    flat = x.flatten(1, -3) if x.ndim > 3 else x[:, None]  # (B, C, h, w)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    first_row, first_column = row.floor(), column.floor()
    weights_row, weights_column = _keys(row - first_row), _keys(column - first_column)
    channels_last = flat.movedim(1, -1)  # (B, h, w, C): one gather takes all channels
    result = torch.zeros_like(channels_last)
    for i in range(4):
        at_row = _reflect((first_row + (i - 1)).long(), x.shape[-2])
        for j in range(4):
            at_column = _reflect((first_column + (j - 1)).long(), x.shape[-1])
            weight = (weights_row[i] * weights_column[j])[..., None]
            result += weight * channels_last[batch, at_row, at_column]
    return result.movedim(-1, 1).reshape(x.shape)


def _keys(s: Tensor) -> tuple[Tensor, ...]:
    """Weights of the pixels at -1, 0, 1, 2 for a point ``s`` in [0, 1) past pixel 0."""
    return (
        ((2 - s) * s - 1) * s / 2,
        ((3 * s - 5) * s * s + 2) / 2,
        ((4 - 3 * s) * s + 1) * s / 2,
        (s - 1) * s * s / 2,
    )


def _reflect(index: Tensor, size: int) -> Tensor:
    """``index`` folded into [0, size) by reflection about the first and the last pixel."""
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    folded = index.remainder(period)
    return torch.minimum(folded, period - folded)
