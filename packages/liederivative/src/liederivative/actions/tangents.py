r"""How a generator moves an image or a feature map: the velocity of its values, by analytic tangents.

With coordinates X, Y of the *input* image (-1 at the first pixel centre, 1 at the last, so that one unit
is (W - 1) / 2 columns), the tangent under the field (u, v) with gain w is

.. math:: \frac{dI}{dt} = u \frac{W-1}{2} \frac{\partial I}{\partial c}
                        + v \frac{H-1}{2} \frac{\partial I}{\partial r} + w I .

No image is warped. The derivatives along columns c and rows r are those of `liederivative.actions.GRADIENTS`, by
default central differences with reflection at the border without repetition of the edge, so that the one normal to
the border is 0 on the border. Grids of one axis (sequences) and of three (volumes, videos) go the same way.

A feature map of width w seen by an input of width W has its pixel j over the input column
c_j = (j + 1/2) W / w - 1/2: every output pixel sits at the centre of the W / w columns it stands for.
Therefore X_j = W (2 j + 1 - w) / ((W - 1) w), and the action commutes with strided averaging; the same
formula with w = W gives the input's own coordinates. (The published code gives feature maps corner-aligned
coordinates of their own, which adds a spurious derivative: 7 % of a linear ramp's at stride 16.)

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the Lie derivative of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from liederivative.actions.differences import GRADIENTS, central_difference, check_values

__all__ = ["Axis", "Domain", "central_difference", "field_tangents", "grid_tangents", "image_tangents"]

Flow = Callable[..., Sequence[Tensor]]
"""A velocity field on the plane, (X, Y) -> (u, v), each broadcast over the grid."""


@dataclass(frozen=True)
class Domain:
    """What the action on a model's input tells the action on its output."""

    size: tuple[int, ...] = ()
    """pixels along the spatial axes of the input, rows before columns, each at least 2; () without axes"""
    gradient: str = "central"
    """one of `liederivative.actions.GRADIENTS`"""
    flows: tuple[Flow, ...] = ()
    """velocity fields of the user's, after the affine ones"""


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a map: pixel i lies at ``start + i step`` in the coordinate of the input."""

    size: int
    start: float
    step: float

    @staticmethod
    def over(size: int, input_size: int) -> Axis:
        """The axis of ``size`` pixels that an input of ``input_size`` pixels is divided into.

        >>> Axis.over(3, 3)
        Axis(size=3, start=-1.0, step=1.0)
        """
        scale = (input_size - 1) * size
        return Axis(size, input_size * (1 - size) / scale, 2 * input_size / scale)


def as_domain(domain: Domain | tuple[int, ...] | None) -> Domain:
    """``domain``, or that of an input of this height and width."""
    return domain if isinstance(domain, Domain) else Domain(tuple(domain or ()))


def pixel_coordinates(size: int, input_size: int, like: Tensor) -> Float[Tensor, " size"]:
    """Coordinate of each of ``size`` pixels on an axis that the input divides into ``input_size``.

    Whole numbers up to a single division, so that the grid is the same on every device.

    >>> pixel_coordinates(3, 3, torch.zeros(()))
    tensor([-1.,  0.,  1.])
    """
    check_values(like, 0)
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot hold the numerator
    numerator = input_size * (2 * torch.arange(size, device=like.device) + 1 - size)
    return (numerator.to(dtype) / ((input_size - 1) * size)).to(like.dtype)


def image_tangents(
    image: Float[Tensor, "*batch h w"],
    coefficients: Float[Tensor, "K D"],
    input_size: Domain | tuple[int, ...] | None = None,
) -> Float[Tensor, "K *batch h w"]:
    """The velocity of an image's or feature map's values under each of K generators.

    Args:
        image: values, (..., h, w); rows first.
        coefficients: K generators along `liederivative.actions.BASIS`.
        input_size: height and width in pixels of the model's input, at least 2, or its `Domain`; None means that
            ``image`` is the input itself.

    Returns:
        K tangents of the shape of ``image``, linear in ``coefficients`` and in ``image``.
    """
    check_values(image, 2, smallest=1 if input_size else 2)
    return grid_tangents(image, coefficients, as_domain(input_size or tuple(image.shape[-2:])))


def grid_tangents(
    value: Float[Tensor, "*shape"], coefficients: Float[Tensor, "K D"], domain: Domain
) -> Float[Tensor, "K *shape"]:
    """The velocity of values on a grid of n axes, n = ``len(domain.size)``, under each of K affine generators.

    Args:
        value: values, (..., *space), the space over the whole input; rows before columns.
        coefficients: K generators; per axis, that of X (the last) first: the velocity's constant and its coefficients
            of X, Y, ...; then the gain; then one coefficient for each of the domain's flows.
        domain: the input's size in pixels, the kind of derivative and the flows.

    Returns:
        K tangents of the shape of ``value``, linear in ``coefficients`` and in ``value``.
    """
    n = len(domain.size)
    check_values(value, n)
    if any(size < 2 for size in domain.size):
        raise UserError(f"expected an input of at least 2 pixels along each spatial axis, got {tuple(domain.size)}")
    axes = [Axis.over(size, whole) for size, whole in zip(value.shape[-n:], domain.size, strict=True)]
    coordinates = [
        pixel_coordinates(size, whole, value) for size, whole in zip(value.shape[-n:], domain.size, strict=True)
    ]
    return field_tangents(value, coefficients, domain, axes, coordinates)


def field_tangents(
    value: Tensor,
    coefficients: Tensor,
    domain: Domain,
    axes: Sequence[Axis | None],
    coordinates: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """`grid_tangents` of values whose last axes lie anywhere: ``axes`` says where, rows before columns.

    None stands for an axis of the input that ``value`` no longer has, as after a mean along it: what is left moves
    along the others as its middle does. Such a ``value`` has only the other axes.
    """
    n = len(axes)
    present = [axis for axis in axes if axis is not None]
    if coordinates is None:
        coordinates = [
            None
            if axis is None
            else (axis.start + axis.step * torch.arange(axis.size, device=value.device, dtype=torch.float64)).to(
                value.dtype
            )
            for axis in axes
        ]
    rows = coefficients.tolist()  # at most as many as the algebra has dimensions
    along, places, seen = [], [], 0
    for i, (axis, coordinate) in enumerate(zip(axes, coordinates, strict=True)):
        if axis is None or coordinate is None:
            along.append(None)
            places.append(None)
            continue
        dim = seen - len(present)
        seen += 1
        first = (n - 1 - i) * (n + 1)
        moves = any(any(row[first : first + n + 1]) or any(row[n * (n + 1) + 1 :]) for row in rows)
        along.append(GRADIENTS[domain.gradient](value, dim).mul_(1 / axis.step) if moves else None)
        places.append(coordinate.view(-1, *[1] * (-dim - 1)))
    along.reverse()  # X first
    places.reverse()

    tangents = []
    for row in rows:
        terms = [(along[i], _velocity(row[i * (n + 1) : (i + 1) * (n + 1)], places)) for i in range(n)]
        terms.append((value, row[n * (n + 1)] or None))
        for flow, weight in zip(domain.flows, row[n * (n + 1) + 1 :], strict=True):
            if weight:
                middle = [value.new_zeros(()) if place is None else place for place in places]
                terms += [(part, weight * u) for part, u in zip(along, flow(*middle), strict=True)]
        products = [
            part if isinstance(velocity, float) and velocity == 1 and part is not value else part * velocity
            for part, velocity in terms
            if part is not None and velocity is not None
        ]
        tangents.append(sum(products[1:], products[0]) if products else torch.zeros_like(value))
    return torch.stack(tangents) if len(tangents) > 1 else tangents[0][None]


def _velocity(row: Sequence[float], places: Sequence[Tensor | None]) -> Tensor | float | None:
    """``row[0] + row[1] X + row[2] Y + ...``; None for zero."""
    velocity: Tensor | float | None = row[0] or None
    for weight, place in zip(row[1:], places, strict=True):
        if weight and place is not None:
            part = place if weight == 1 else weight * place
            velocity = part if velocity is None else velocity + part
    return velocity
