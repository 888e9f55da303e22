r"""EQ-T and EQ-R: how well a model commutes with finite translations and rotations, as a PSNR in decibels.

.. math:: \mathrm{EQ} = 10 \log_{10} \frac{I_{\max}^2}{\mathrm{MSE}}, \qquad
          \mathrm{MSE} = \frac{\sum_{x, g} \sum_p m_g(p)\, \big( g f(x) - f(g x) \big)_p^2}{\sum_{x, g} \sum_p m_g(p)}

over images x and transformations g drawn at random, with the mask m of the output pixels that both sides know.
Higher is better; an equivariant model has infinitely many decibels.

- **EQ-T**: g moves by whole pixels, in [-1/8, 1/8] of the width and height, uniformly; on a feature map that is
  n times coarser, by whole pixels of the map, which are multiples of n pixels of the image.
- **EQ-T-frac**: any shift, through the Lanczos interpolant.
- **EQ-R**: rotations about the centre by an angle in [-pi, pi], uniformly. A rotation loses the frequencies that
  the turned pixel grid cannot hold, so f(g x) passes the pseudo-rotation :math:`R^*`, which loses the same ones
  and turns nothing; and where the input loses some in g x, the other branch starts from x without them too:
  the difference is :math:`R_\alpha f(R^*_{-\alpha} x) - R^*_\alpha f(R_\alpha x)`, zero but for interpolation if f
  commutes with rotations.

The authors apply g inside a generator's own coordinates, where nothing leaves the frame; here g acts on the
input image, and what enters the frame is 0. A model with a large receptive field sees that; ``margin`` leaves
out more of the border. For an invariant output (class scores) g f = f, and there is no mask.

Source: Karras et al. 2021, Alias-Free Generative Adversarial Networks, arXiv 2106.12423, section on
equivariance metrics. I_max is 2 there, for images in [-1, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError, seeded_generator
from torch import Tensor

from liederivative.actions import Layout
from liederivative.metrics.outputs import Evaluator
from liederivative.metrics.resampling import band_limit, rotate, translate_fractional, translate_integer


@dataclass(frozen=True)
class EquivarianceQuality:
    """What EQ-T or EQ-R found on N images."""

    squared_error: Float[Tensor, " N"]
    """sum over transformations and unmasked values of the squared difference, per image"""
    count: int
    """how many unmasked values of one image went into it"""
    value_range: float
    """I_max"""

    @property
    def mse(self) -> float:
        """Mean squared error over all unmasked values."""
        return float(self.squared_error.mean()) / self.count

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in decibels; infinite for no error."""
        return self._decibels(self.mse)

    @property
    def per_image(self) -> list[float]:
        """The ratio of each image alone, in decibels."""
        return [self._decibels(value) for value in (self.squared_error / self.count).tolist()]

    def _decibels(self, mse: float) -> float:
        return math.inf if mse == 0 else 20 * math.log10(self.value_range) - 10 * math.log10(mse)


def eq_t(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "N C H W"],
    *,
    fractional: bool = False,
    max_shift: float = 0.125,
    samples: int = 8,
    generator: torch.Generator | None = None,
    output: str | Layout | None = None,
    probabilities: bool = False,
    value_range: float | None = None,
    margin: float = 0.0,
    batch_size: int = 8,
) -> EquivarianceQuality:
    """Translation equivariance in decibels: EQ-T, or EQ-T-frac with ``fractional``.

    Args:
        model: any callable from images (B, C, H, W) to one tensor.
        x: images.
        fractional: shifts between pixels too.
        max_shift: largest shift along each axis, as a fraction of the image's width and height.
        samples: shifts drawn; each is applied to all images.
        generator: of the shifts, on the CPU; a fresh one with seed 0 by default.
        output: layout of the output, as for `liederivative.lie_derivative`.
        probabilities: take the softmax first.
        value_range: I_max; by default the span, largest minus smallest, of the outputs on ``x``.
        margin: share of the map's width and height left out at each border, beyond the mask.
        batch_size: images at once.

    Raises:
        UserError: for a map whose pixels are not whole pixels of the input (without ``fractional``), a mask
            with nothing inside, a model whose outputs are all equal (give ``value_range``), or bad input.

    Law: infinite for a pointwise map, and for a convolution inside a margin of its half width.

    >>> eq_t(torch.tanh, torch.rand(2, 3, 16, 16), output="NCHW").psnr
    inf
    """
    if not 0 < max_shift < 1:
        raise UserError(f"expected max_shift between 0 and 1, a fraction of the image's size, got {max_shift}")

    def make(uniform: Tensor, stride: tuple[int, int]) -> _Move:
        dy, dx = (uniform * max_shift * torch.tensor(x.shape[-2:])).tolist()
        if fractional:
            return _Shift(dx, dy, (x.shape[-2], x.shape[-1]))
        return _WholeShift(round(dx / stride[1]), round(dy / stride[0]), stride)

    def stride_of(maps: Tensor | None) -> tuple[int, int]:
        if fractional or maps is None:
            return 1, 1
        (height, width), (h, w) = x.shape[-2:], maps.shape[-2:]
        if height % h or width % w:
            raise UserError(
                f"expected a feature map whose pixels are whole pixels of the {height} x {width} image, got "
                f"{h} x {w}; use fractional=True"
            )
        if max(max_shift * h, max_shift * w) < 0.5:
            raise UserError(
                f"max_shift={max_shift} is less than half a pixel of the {h} x {w} map: every shift would be 0; "
                "raise it or use fractional=True"
            )
        return height // h, width // w

    options = _Options(samples, generator, output, probabilities, value_range, margin, batch_size)
    return _quality(model, x, stride_of, make, options)


def eq_r(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "N C H W"],
    *,
    max_angle: float = math.pi,
    samples: int = 8,
    generator: torch.Generator | None = None,
    output: str | Layout | None = None,
    probabilities: bool = False,
    value_range: float | None = None,
    margin: float = 0.0,
    batch_size: int = 8,
) -> EquivarianceQuality:
    """Rotation equivariance in decibels: EQ-R, with the pseudo-rotation on the branch f(g x).

    Args:
        model: any callable from images (B, C, H, W) to one tensor.
        x: square images.
        max_angle: largest angle in radians.
        samples: angles drawn; each is applied to all images.
        generator: of the angles, on the CPU; a fresh one with seed 0 by default.
        output: layout of the output; a map of fewer than about 20 x 20 pixels has nothing inside the mask.
        probabilities: take the softmax first.
        value_range: I_max; by default the span of the outputs on ``x``.
        margin: share of the map's width and height left out at each border, beyond the mask.
        batch_size: images at once.

    Raises:
        UserError: for images that are not square, a mask with nothing inside, outputs that are all equal, or
            bad input.
    """
    if not 0 < max_angle <= math.pi:
        raise UserError(f"expected max_angle in (0, pi] radians, got {max_angle}")
    if isinstance(x, Tensor) and x.ndim == 4 and x.shape[-1] != x.shape[-2]:
        raise UserError(f"expected square images to rotate, got {x.shape[-2]} x {x.shape[-1]}; crop them")
    options = _Options(samples, generator, output, probabilities, value_range, margin, batch_size)
    return _quality(model, x, lambda maps: (1, 1), lambda u, _: _Rotation(float(u[0]) * max_angle), options)


class _Move(ABC):
    """One transformation g."""

    @abstractmethod
    def image(self, x: Tensor) -> Tensor:
        """``g x``, the model's input."""

    def rest(self, x: Tensor) -> Tensor:
        """``x``, without what ``g x`` cannot hold."""
        return x

    @abstractmethod
    def maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """``g f(x)`` and its mask."""

    def compared(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """``f(g x)`` as it is compared, and its mask."""
        return maps, torch.ones(maps.shape[-2:], dtype=torch.bool, device=maps.device)


@dataclass(frozen=True)
class _WholeShift(_Move):
    dx: int
    dy: int
    stride: tuple[int, int]

    def image(self, x: Tensor) -> Tensor:
        return translate_integer(x, self.dx * self.stride[1], self.dy * self.stride[0])[0]

    def maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return translate_integer(maps, self.dx, self.dy)


@dataclass(frozen=True)
class _Shift(_Move):
    dx: float
    dy: float
    size: tuple[int, int]

    def image(self, x: Tensor) -> Tensor:
        return translate_fractional(x, self.dx, self.dy)[0]

    def maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        h, w = maps.shape[-2:]
        return translate_fractional(maps, self.dx * w / self.size[1], self.dy * h / self.size[0])


@dataclass(frozen=True)
class _Rotation(_Move):
    angle: float

    def image(self, x: Tensor) -> Tensor:
        return rotate(x, self.angle)[0]

    def rest(self, x: Tensor) -> Tensor:
        return band_limit(x, -self.angle)[0]

    def maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(maps, self.angle)

    def compared(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return band_limit(maps, self.angle)


@dataclass(frozen=True)
class _Options:
    samples: int
    generator: torch.Generator | None
    output: str | Layout | None
    probabilities: bool
    value_range: float | None
    margin: float
    batch_size: int

    def __post_init__(self) -> None:
        if min(self.samples, self.batch_size) < 1:
            raise UserError(f"expected samples and batch_size of at least 1, got {self.samples}, {self.batch_size}")
        if not 0 <= self.margin < 0.5:
            raise UserError(f"expected a margin in [0, 0.5), got {self.margin}")
        if self.value_range is not None and not self.value_range > 0:
            raise UserError(f"expected a value_range above 0, got {self.value_range}")


def _quality(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    stride_of: Callable[[Tensor | None], tuple[int, int]],
    make: Callable[[Tensor, tuple[int, int]], _Move],
    options: _Options,
) -> EquivarianceQuality:
    moves: Sequence[_Move] = ()
    errors, count, lowest, highest = [], 0, math.inf, -math.inf
    with Evaluator(model, x, options.output, options.probabilities) as f:
        for batch in x.split(options.batch_size):
            reference = start = f.parts(batch)
            if not moves:
                uniform = torch.rand(options.samples, 2, generator=options.generator or seeded_generator(0)) * 2 - 1
                moves = [make(row, stride_of(reference.maps)) for row in uniform]
            for part in (reference.still, reference.maps):
                if part is not None:
                    lowest, highest = min(lowest, float(part.min())), max(highest, float(part.max()))
            total, count = batch.new_zeros(len(batch), dtype=torch.float64), 0
            for move in moves:
                moved, rest = f.parts(move.image(batch)), move.rest(batch)
                reference = start if rest is batch else f.parts(rest)
                if reference.still is not None and moved.still is not None:
                    total += (moved.still - reference.still).double().square().sum(1)
                    count += reference.still.shape[1]
                if reference.maps is not None and moved.maps is not None:
                    wanted, known = move.maps(reference.maps)
                    got, also = move.compared(moved.maps)
                    mask = known & also & _frame(known, options.margin)
                    total += ((got - wanted).double().square() * mask).sum((1, 2, 3))
                    count += int(mask.sum()) * wanted.shape[1]
            errors.append(total)
    if count == 0:
        raise UserError(
            "no pixel of the output is inside the mask of any transformation; use smaller transformations, a "
            "smaller margin, or a larger feature map"
        )
    value_range = options.value_range if options.value_range is not None else highest - lowest
    if value_range <= 0:
        raise UserError("the outputs of the model are all equal, so a PSNR has no scale; give value_range")
    return EquivarianceQuality(torch.cat(errors), count, value_range)


def _frame(mask: Tensor, margin: float) -> Tensor:
    """True but for a border of ``margin`` of the size on each side."""
    height, width = mask.shape
    rows, columns = math.ceil(margin * height), math.ceil(margin * width)
    inside = torch.zeros_like(mask)
    inside[rows : height - rows, columns : width - columns] = True
    return inside
