r"""The derivative of sampled values along one axis of a grid, per pixel; four kinds.

Beyond the border the values are reflected without repeating the edge, I[-1] = I[1], in all four.

- ``central``: (I[i + 1] - I[i - 1]) / 2, zero at both ends. Exact for quadratics, off by k^2/6 of a wave of
  k radians a pixel. The default.
- ``spectral``: the exact derivative of the trigonometric interpolant of the reflected signal (its cosine series);
  the frequency pi, whose derivative no sample shows, is left out. Exact for band-limited reflected signals.
- ``bilinear-forward``: I[i + 1] - I[i], and ``bilinear-backward``: I[i] - I[i - 1]: the two one-sided derivatives of
  bilinear interpolation. The published code's derivative is one or the other, row by row and column by column, as
  rounding of its float32 grid decides; these two are here to compare with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of values that move."""


def check_values(value: Tensor, ndim: int, *, smallest: int = 1) -> None:
    """Raise `UserError` unless ``value`` has one of the dtypes that move, ``ndim`` axes and a size along the last two
    of at least ``smallest``.
    """
    if not isinstance(value, Tensor) or value.dtype not in FLOATING:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"expected a tensor of real floating-point values of 16 to 64 bits, got {got}; convert it")
    if value.ndim < ndim or (smallest > 1 and min(value.shape[-2:]) < smallest):
        size = f" with {smallest} or more along the last two" if smallest > 1 else ""
        raise UserError(f"expected {ndim} or more axes{size}, got shape {tuple(value.shape)}")


def _along(image: Tensor, dim: int) -> int:
    """The size of ``image`` along ``dim``."""
    check_values(image, 1)
    if not -image.ndim <= dim < image.ndim:
        raise UserError(f"expected an axis of the {image.ndim} of shape {tuple(image.shape)}, got dim={dim}")
    return image.shape[dim]


def central_difference(image: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Derivative along ``dim`` per pixel, ``(I[i + 1] - I[i - 1]) / 2``; 0 at both ends by reflection.

    >>> central_difference(torch.tensor([0.0, 1.0, 4.0, 9.0]), dim=0)
    tensor([0., 2., 4., 0.])
    """
    size = _along(image, dim)
    derivative = torch.zeros_like(image)
    if size > 2:
        after, before = image.narrow(dim, 2, size - 2), image.narrow(dim, 0, size - 2)
        derivative.narrow(dim, 1, size - 2).copy_(after.sub(before).mul_(0.5))
    return derivative


def forward_difference(image: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Derivative along ``dim`` per pixel, ``I[i + 1] - I[i]``; the last by reflection.

    >>> forward_difference(torch.tensor([0.0, 1.0, 4.0, 9.0]), dim=0)
    tensor([ 1.,  3.,  5., -5.])
    """
    size = _along(image, dim)
    if size < 2:
        return torch.zeros_like(image)
    inside = image.narrow(dim, 1, size - 1) - image.narrow(dim, 0, size - 1)
    return torch.cat([inside, -inside.narrow(dim, size - 2, 1)], dim)


def backward_difference(image: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Derivative along ``dim`` per pixel, ``I[i] - I[i - 1]``; the first by reflection.

    >>> backward_difference(torch.tensor([0.0, 1.0, 4.0, 9.0]), dim=0)
    tensor([-1.,  1.,  3.,  5.])
    """
    size = _along(image, dim)
    if size < 2:
        return torch.zeros_like(image)
    inside = image.narrow(dim, 1, size - 1) - image.narrow(dim, 0, size - 1)
    return torch.cat([-inside.narrow(dim, 0, 1), inside], dim)


def spectral_derivative(image: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Derivative along ``dim`` per pixel of the trigonometric interpolant of the reflected values.

    >>> i = torch.arange(5.0)
    >>> spectral_derivative(torch.cos(math.pi / 4 * i), dim=0).abs().max() <= math.pi / 4 + 1e-6
    tensor(True)
    """
    size = _along(image, dim)
    if size < 3:  # two samples hold the mean and the frequency pi only
        return torch.zeros_like(image)
    half = image.dtype in (torch.float16, torch.bfloat16)  # for which there is no Fourier transform
    values = image.movedim(dim, -1).to(torch.float32 if half else image.dtype)
    period = torch.cat([values, values[..., 1:-1].flip(-1)], -1)  # (..., 2 size - 2)
    k = torch.arange(size, device=image.device, dtype=values.dtype) * (math.pi / (size - 1))
    k = torch.where(torch.arange(size, device=image.device) == size - 1, torch.zeros_like(k), k)
    derivative = torch.fft.irfft(torch.fft.rfft(period) * (1j * k), n=2 * size - 2)
    return derivative[..., :size].movedim(-1, dim).to(image.dtype)


GRADIENTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "central": central_difference,
    "spectral": spectral_derivative,
    "bilinear-forward": forward_difference,
    "bilinear-backward": backward_difference,
}
"""The kinds of derivative along an axis, by name."""


def resolve_gradient(name: str) -> str:
    """``name``, if it is one of `GRADIENTS`.

    Raises:
        UserError: for an unknown name, with the nearest known ones.
    """
    if name not in GRADIENTS:
        raise unknown_name("image gradient", name, GRADIENTS)
    return name
