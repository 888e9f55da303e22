r"""The floor of the local equivariance error: what an ideally band-limited map has at a resolution.

A model is not to blame for what sampling itself costs. The ideal map to h x w pixels takes the cosine series of the
image (reflected at its border, as everywhere here), drops every frequency that the coarser grid cannot hold, and
evaluates what is left at the centres of its pixels. It commutes with every translation of a continuous image; its Lie
derivative is the difference between the derivative of the fine grid and that of the coarse one, and the effect of two
borders. Errors of feature maps at that resolution mean something above this floor only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor, nn

from liederivative.actions import GeneratorLike, Images
from liederivative.actions.differences import check_values
from liederivative.metrics.local_error import LEE, lee


def ideal_resampling(size: int, grid: int) -> Float[Tensor, "grid size"]:
    """The ideal low-pass and sampling along one axis as a matrix, in float64.

    Args:
        size: samples of the input, at least 2.
        grid: pixels of the output, at most ``size``; pixel j lies at ``(j + 1/2) size / grid - 1/2``.

    >>> torch.allclose(ideal_resampling(8, 8), torch.eye(8, dtype=torch.float64))
    True
    """
    if not 1 <= grid <= size or size < 2:
        raise UserError(f"expected a grid of 1 to {size} pixels for an input of {size}, got {grid}")
    j = torch.arange(size, dtype=torch.float64)
    k = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(math.pi * k[:, None] * j / (size - 1))  # (frequency, sample)
    end = torch.ones_like(j)
    end[0] = end[-1] = 0.5
    series = 2 / (size - 1) * end[:, None] * wave * end  # values to coefficients: the first kind of cosine transform
    place = (torch.arange(grid, dtype=torch.float64) + 0.5) * size / grid - 0.5
    held = k * size / (size - 1) < grid if grid < size else k < size
    back = torch.cos(math.pi * place[:, None] * k / (size - 1)) * held
    return back @ series


class IdealMap(nn.Module):
    """The ideally band-limited map of images (B, C, H, W) to (B, C, h, w)."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """The low-passed image at the centres of the grid's pixels."""
        check_values(x, 2)
        rows = ideal_resampling(x.shape[-2], self.grid[0]).to(x)
        columns = ideal_resampling(x.shape[-1], self.grid[1]).to(x)
        return rows @ x @ columns.mT


def resampling_floor(
    x: Float[Tensor, "N C H W"],
    grid: tuple[int, int],
    generators: str | GeneratorLike | Iterable[str | GeneratorLike] | None = None,
    *,
    action: Images | None = None,
    batch_size: int = 8,
) -> LEE:
    """The errors of the ideally band-limited map of these images to ``grid`` pixels.

    Args:
        x: images, normalised as for the model whose maps are compared.
        grid: rows and columns of the feature map.
        generators: names or elements; all ten by default.
        action: the kind of image gradient; `Images` by default.
        batch_size: images at once.

    Returns:
        `LEE`; compare ``relative`` with that of the model's map, which has other units.

    >>> floor = resampling_floor(torch.rand(2, 1, 16, 16), (16, 16), "rotate")
    >>> floor.mean_squared["rotate"] < 1e-8  # nothing is resampled
    True
    """
    return lee(IdealMap(grid), x, generators, action=action, output="NCHW", batch_size=batch_size)
