r"""Translations and rotations of images by whole pixels and in between, each with the mask of what is known.

Shifts are in pixels, positive to the right (dx) and downwards (dy); angles in radians, turning as the
generator ``rotate`` does: :math:`(R_\alpha I)(p) = I(\phi_\alpha p)`,
:math:`\phi_\alpha (x, y) = (x \cos\alpha + y \sin\alpha, -x \sin\alpha + y \cos\alpha)` around the centre.

In between pixels an image is its Lanczos interpolant,

.. math:: I(x) = \sum_j I_j \, \ell(x - j), \qquad \ell(s) = \mathrm{sinc}(s)\,\mathrm{sinc}(s / a), |s| < a = 3 .

The square of frequencies that a pixel grid can hold is not kept by a rotation: its corners leave the grid. So
a rotation first applies the low-pass :math:`K_\alpha` that keeps the intersection of the square S with the
rotated square, :math:`\hat K_\alpha = 1_S \, 1_{\phi_\alpha S}`, and what is compared with a rotated image must
have lost the same frequencies: `band_limit` is that *pseudo-rotation*.

Values outside of the image are 0, and the mask (True inside) marks the pixels that no such value reached.

Source: Karras et al. 2021, Alias-Free Generative Adversarial Networks, arXiv 2106.12423, appendix on
equivariance metrics (operators T, R and R*). Here the low-pass and the interpolation are two steps, the first
with a window of its own, where theirs are one kernel on a grid four times as fine.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from liederivative.actions.differences import check_values

LANCZOS = 3
"""half width of the interpolation kernel, in pixels"""
LOW_PASS = 6
"""half width of the low-pass of a rotation, in pixels"""
_FREQUENCIES = 256
"""quadrature points per axis of the low-pass's spectrum"""


def translate_integer(x: Float[Tensor, "*B h w"], dx: int, dy: int) -> tuple[Float[Tensor, "*B h w"], Tensor]:
    """``x`` moved by whole pixels, 0 where nothing is known, and the mask (h, w) of what is.

    >>> translate_integer(torch.tensor([[1.0, 2.0, 3.0]]), 1, 0)
    (tensor([[0., 1., 2.]]), tensor([[False,  True,  True]]))
    """
    check_values(x, 2)
    height, width = x.shape[-2:]
    moved, mask = torch.zeros_like(x), torch.zeros(height, width, dtype=torch.bool, device=x.device)
    rows, columns = height - abs(dy), width - abs(dx)
    if rows > 0 and columns > 0:
        target = (slice(max(dy, 0), max(dy, 0) + rows), slice(max(dx, 0), max(dx, 0) + columns))
        source = (slice(max(-dy, 0), max(-dy, 0) + rows), slice(max(-dx, 0), max(-dx, 0) + columns))
        moved[(..., *target)] = x[(..., *source)]
        mask[target] = True
    return moved, mask


def translate_fractional(x: Float[Tensor, "*B h w"], dx: float, dy: float) -> tuple[Float[Tensor, "*B h w"], Tensor]:
    """``x`` moved by any shift in pixels through its Lanczos interpolant, and the mask (h, w) of what is known.

    A whole shift gives what `translate_integer` gives.
    """
    wide = _at_least_single(x)
    rows, inside_rows = _shift_matrix(x.shape[-2], dy, wide)  # (h, h)
    columns, inside_columns = _shift_matrix(x.shape[-1], dx, wide)  # (w, w)
    return (rows @ wide @ columns.T).to(x.dtype), inside_rows[:, None] & inside_columns


def rotate(x: Float[Tensor, "*B h w"], angle: float) -> tuple[Float[Tensor, "*B h w"], Bool[Tensor, "h w"]]:
    """``x`` limited to the frequencies that survive, turned by ``angle`` radians, and the mask of what is known.

    At a multiple of a quarter turn of a square image nothing is lost.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        rotated, mask = rotate(_at_least_single(x), angle)
        return rotated.to(x.dtype), mask
    limited, _ = band_limit(x, -angle)
    height, width = x.shape[-2:]
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - (height - 1) / 2
    column = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    cosine, sine = math.cos(angle), math.sin(angle)
    from_column = column * cosine + row * sine + (width - 1) / 2  # (h, w), where each pixel comes from
    from_row = row * cosine - column * sine + (height - 1) / 2
    first_column, first_row = from_column.floor(), from_row.floor()
    weights_column = _lanczos_taps(from_column - first_column)  # (6, h, w)
    weights_row = _lanczos_taps(from_row - first_row)
    moved = torch.zeros_like(x)
    for i, weight_row in enumerate(weights_row, start=1 - LANCZOS):  # 6 x 6 taps
        for j, weight_column in enumerate(weights_column, start=1 - LANCZOS):
            at_row, at_column = (first_row + i).long(), (first_column + j).long()
            known = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
            tap = limited[..., at_row.clamp(0, height - 1), at_column.clamp(0, width - 1)]
            moved += tap * (weight_row * weight_column * known)
    # A tap of weight zero needs no margin: a quarter turn loses the low-pass's margin only, and that only if it blurs.
    margin = (LOW_PASS if _blurs(angle) else 0) + (LANCZOS - 1 if _blurs(angle) else 0)
    slack = 1e-6 * max(height, width)
    inside = (from_row >= margin - slack) & (from_row <= height - 1 - margin + slack)
    inside &= (from_column >= margin - slack) & (from_column <= width - 1 - margin + slack)
    return moved, inside


def band_limit(x: Float[Tensor, "*B h w"], angle: float) -> tuple[Float[Tensor, "*B h w"], Bool[Tensor, "h w"]]:
    """``x`` with the frequencies that it would have after a rotation *into* it by ``angle``, not rotated.

    ``rotate(x, a)`` has the frequencies of ``band_limit(y, a)``. The identity at multiples of a quarter turn.
    """
    check_values(x, 2)
    height, width = x.shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    if not _blurs(angle):
        return x, ~mask
    kernel = low_pass_kernel(angle).to(x)
    flat = x.reshape(-1, 1, height, width)
    limited = torch.nn.functional.conv2d(flat, kernel[None, None], padding=LOW_PASS)  # symmetric: no flip
    mask[LOW_PASS : height - LOW_PASS, LOW_PASS : width - LOW_PASS] = True
    return limited.reshape(x.shape), mask


def _at_least_single(x: Tensor) -> Tensor:
    """``x`` in a precision that holds places between pixels."""
    check_values(x, 2)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def low_pass_kernel(angle: float) -> Float[Tensor, "13 13"]:
    r"""The windowed kernel of :math:`K_\alpha`, float64, of sum 1; a single one at a quarter turn."""
    f = (torch.arange(_FREQUENCIES, dtype=torch.float64) + 0.5) / _FREQUENCIES - 0.5  # cycles per pixel
    cosine, sine = math.cos(angle), math.sin(angle)
    fx, fy = f[None, :], f[:, None]
    reach = torch.maximum((fx * cosine + fy * sine).abs(), (fy * cosine - fx * sine).abs())
    # Soft over one quadrature cell, so that the edge's place is known better than to a cell.
    spectrum = ((0.5 - reach) * _FREQUENCIES + 0.5).clamp(0, 1)
    p = torch.arange(-LOW_PASS, LOW_PASS + 1, dtype=torch.float64)
    wave = torch.exp(2j * math.pi * f[:, None] * p[None, :])  # (F, 13)
    kernel = (wave.T @ spectrum.to(wave.dtype) @ wave).real / _FREQUENCIES**2
    window = torch.sinc(p / (LOW_PASS + 1))
    kernel = kernel * window[:, None] * window[None, :]
    return kernel / kernel.sum()


def _blurs(angle: float) -> bool:
    quarter = angle / (math.pi / 2)
    return abs(quarter - round(quarter)) > 1e-9  # below that the lost corner is below rounding


def _lanczos_taps(offset: Tensor) -> Tensor:
    """The six weights at ``floor + (-2 ... 3)`` for a point ``offset`` past its floor, of sum 1."""
    taps = torch.arange(1 - LANCZOS, LANCZOS + 1, device=offset.device, dtype=offset.dtype)
    distance = taps.reshape(-1, *([1] * offset.ndim)) - offset
    inside = (distance.abs() < LANCZOS).to(offset.dtype)
    weights = torch.sinc(distance) * torch.sinc(distance / LANCZOS) * inside
    return weights / weights.sum(0, keepdim=True)


def _shift_matrix(size: int, shift: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix (size, size) that moves a row of pixels by ``shift``, and which results rest on known pixels only."""
    whole = math.floor(shift)
    weights = _lanczos_taps(torch.tensor(1 - (shift - whole), dtype=like.dtype, device=like.device))
    # Pixel i comes from i - shift, whose floor is i - whole - 1 for a fractional shift.
    index = torch.arange(size, device=like.device)
    matrix = torch.zeros(size, size, dtype=like.dtype, device=like.device)
    known = torch.ones(size, dtype=torch.bool, device=like.device)
    for tap, weight in zip(range(1 - LANCZOS, LANCZOS + 1), weights, strict=True):
        if shift == whole and tap != 1:  # a single tap of weight one: nothing else is needed
            continue
        source = index - whole - 1 + tap
        inside = (source >= 0) & (source < size)
        matrix[index[inside], source[inside]] = weight
        known &= inside
    return matrix, known
