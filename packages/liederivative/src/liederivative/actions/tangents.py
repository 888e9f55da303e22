r"""How a generator moves an image or a feature map: the velocity of its values, by analytic tangents.

With coordinates X, Y of the *input* image (-1 at the first pixel centre, 1 at the last, so that one unit
is (W - 1) / 2 columns), the tangent under the field (u, v) with gain w is

.. math:: \frac{dI}{dt} = u \frac{W-1}{2} \frac{\partial I}{\partial c}
                        + v \frac{H-1}{2} \frac{\partial I}{\partial r} + w I .

No image is warped. The derivatives along columns c and rows r are central differences with reflection at
the border without repetition of the edge, so that the one normal to the border is 0 on the border.

A feature map of width w seen by an input of width W has its pixel j over the input column
c_j = (j + 1/2) W / w - 1/2: every output pixel sits at the centre of the W / w columns it stands for.
Therefore X_j = W (2 j + 1 - w) / ((W - 1) w), and the action commutes with strided averaging; the same
formula with w = W gives the input's own coordinates. (The published code gives feature maps corner-aligned
coordinates of their own, which adds a spurious derivative: 7 % of a linear ramp's at stride 16.)

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the Lie derivative of images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def pixel_coordinates(size: int, input_size: int, like: Tensor) -> Float[Tensor, " size"]:
    """Coordinate of each of ``size`` pixels on an axis that the input divides into ``input_size``.

    Whole numbers up to a single division, so that the grid is the same on every device.

    >>> pixel_coordinates(3, 3, torch.zeros(()))
    tensor([-1.,  0.,  1.])
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot hold the numerator
    numerator = input_size * (2 * torch.arange(size, device=like.device) + 1 - size)
    return (numerator.to(dtype) / ((input_size - 1) * size)).to(like.dtype)


def central_difference(image: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Derivative along ``dim`` per pixel, ``(I[i + 1] - I[i - 1]) / 2``; 0 at both ends by reflection.

    >>> central_difference(torch.tensor([0.0, 1.0, 4.0, 9.0]), dim=0)
    tensor([0., 2., 4., 0.])
    """
    size = image.shape[dim]
    derivative = torch.zeros_like(image)
    if size > 2:
        after, before = image.narrow(dim, 2, size - 2), image.narrow(dim, 0, size - 2)
        derivative.narrow(dim, 1, size - 2).copy_((after - before) / 2)
    return derivative


def image_tangents(
    image: Float[Tensor, "*batch h w"],
    coefficients: Float[Tensor, "K 7"],
    input_size: tuple[int, int] | None = None,
) -> Float[Tensor, "K *batch h w"]:
    """The velocity of an image's or feature map's values under each of K generators.

    Args:
        image: values, (..., h, w); rows first.
        coefficients: K generators along `liederivative.actions.BASIS`.
        input_size: height and width in pixels of the model's input, at least 2; None means that ``image``
            is the input itself.

    Returns:
        K tangents of the shape of ``image``, linear in ``coefficients`` and in ``image``.
    """
    height, width = input_size or (image.shape[-2], image.shape[-1])
    X = pixel_coordinates(image.shape[-1], width, image)  # (w,)
    Y = pixel_coordinates(image.shape[-2], height, image)[:, None]  # (h, 1)
    # Pixels of this map per unit of X and Y: (W - 1) / 2 on the input, fewer on a coarser map.
    along_x = central_difference(image, -1) * ((width - 1) / 2 * image.shape[-1] / width)
    along_y = central_difference(image, -2) * ((height - 1) / 2 * image.shape[-2] / height)

    tangents = []
    for row in coefficients:  # at most seven generators
        u = row[0] + row[1] * X + row[2] * Y  # (h, w)
        v = row[3] + row[4] * X + row[5] * Y
        tangents.append(along_x * u + along_y * v + row[6] * image)
    return torch.stack(tangents)
