r"""Hue, brightness, contrast and saturation of colour images, as linear fields on the values of a pixel.

On the raw colours I in [0, 1] (before the normalisation (I - mean) / std, which is undone and redone here):

- ``brightness``: dI/dt = I, the gain of torchvision's ``adjust_brightness`` at factor 1 + t;
- ``contrast``: dI/dt = I - m, m the mean of the image's grey values (``adjust_contrast``);
- ``saturation``: dI/dt = I - g, g the pixel's grey value 0.2989 R + 0.587 G + 0.114 B (``adjust_saturation``);
- ``hue``: the rotation of the colours about the grey axis n = (1, 1, 1) / sqrt(3), dI/dt = n x I, t in radians. The
  published libraries shift the hue in HSV, whose derivative jumps between its six sectors; this is its smooth cousin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from liederivative.actions.action import Action, check_dimension, check_tensor
from liederivative.actions.differences import check_values
from liederivative.actions.generators import Element, GeneratorLike
from liederivative.actions.tangents import Domain

_COLOURS = ("hue", "brightness", "contrast", "saturation")
_GREY = (0.2989, 0.587, 0.114)  # luma of ITU-R BT.601, as in torchvision


@dataclass(frozen=True)
class Colours(Action):
    """Colour images (B, 3, H, W), normalised with ``mean`` and ``std`` per channel; generators as above.

    The output is invariant, or an image of the same kind: ``output=Colours(...)``.
    """

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    channel_dim = 1

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """Hue, brightness, contrast and saturation."""
        rows = torch.eye(len(_COLOURS)).tolist()
        return {name: Element(name, tuple(row)) for name, row in zip(_COLOURS, rows, strict=True)}

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a finite batch of colour images."""
        check_tensor(x, "colour images", "(B, 3, H, W)", ndim=4)
        if x.shape[1] != 3:
            raise UserError(f"expected colour images of shape (B, 3, H, W), got {tuple(x.shape)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"expected a mean and a positive std for each of 3 channels, got {self.mean}, {self.std}")

    def domain(self, x: Tensor) -> Domain:
        """No spatial axis moves."""
        return Domain()

    def tangents(
        self, value: Float[Tensor, "B 3 H W"], coefficients: Float[Tensor, "K 4"], domain: Any = ()
    ) -> Float[Tensor, "K B 3 H W"]:
        """The velocity of the normalised values."""
        del domain
        check_dimension(coefficients, len(_COLOURS), self)
        check_values(value, 4)
        if value.shape[1] != 3:
            raise UserError(f"expected colour images of shape (B, 3, H, W), got {tuple(value.shape)}")
        mean = value.new_tensor(self.mean).view(3, 1, 1)
        std = value.new_tensor(self.std).view(3, 1, 1)
        raw = value * std + mean
        red, green, blue = raw.unbind(1)
        hue = torch.stack([blue - green, red - blue, green - red], 1) / 3**0.5
        grey = (raw * value.new_tensor(_GREY).view(3, 1, 1)).sum(1, keepdim=True)
        fields = torch.stack([hue, raw, raw - grey.mean(dim=(1, 2, 3), keepdim=True), raw - grey])
        return torch.tensordot(coefficients.to(value.dtype), fields / std, dims=1)
