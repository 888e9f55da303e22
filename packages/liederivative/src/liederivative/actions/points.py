r"""Actions of the groups of `lie.groups` on point clouds and on vectors, such as atoms' positions and forces.

A point x moves with the fundamental field of the algebra element a, :math:`\frac{d}{dt} e^{ta} x`; a vector at a point
moves by its linear part. Coordinates of the algebra are the group's own (radians, see its class).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lie.groups import LieGroup
from lie.run import UserError
from torch import Tensor

from liederivative.actions.action import Action, check_dimension, check_tensor
from liederivative.actions.generators import Element, GeneratorLike

_NAMES = {
    "SO2": ("rotate",),
    "SE2": ("rotate", "translate_x", "translate_y"),
    "RxSO2": ("scale", "rotate"),
    "RxSQ": ("scale", "squeeze"),
    "SO3": ("rotate_x", "rotate_y", "rotate_z"),
    "SE3": ("rotate_x", "rotate_y", "rotate_z", "translate_x", "translate_y", "translate_z"),
    "Sim2": ("scale", "rotate", "translate_x", "translate_y"),
    "Sim3": ("scale", "rotate_x", "rotate_y", "rotate_z", "translate_x", "translate_y", "translate_z"),
}


def group_elements(group: LieGroup) -> dict[str, Element]:
    """The basis of a group's algebra by name: ``rotate``, ``translate_x``, ...; ``e0``, ``e1``, ... where it has none.

    >>> from lie.groups import SE2
    >>> list(group_elements(SE2()))
    ['rotate', 'translate_x', 'translate_y']
    """
    names = _NAMES.get(type(group).__name__, ())
    if type(group).__name__ == "T":
        names = tuple(f"translate_{'xyz'[i]}" if group.dim <= 3 else f"translate_{i}" for i in range(group.dim))
    if len(names) != group.dim:
        names = tuple(f"e{i}" for i in range(group.dim))
    rows = torch.eye(group.dim).tolist()
    return {name: Element(name, tuple(row)) for name, row in zip(names, rows, strict=True)}


@dataclass(frozen=True)
class Points(Action):
    """Points (B, ..., d) on which ``group`` acts; also the layout of outputs that are points.

    >>> from lie.groups import SO2
    >>> Points(SO2()).tangents(torch.tensor([[1.0, 0.0]]), torch.ones(1, 1))
    tensor([[[0., 1.]]])
    """

    group: LieGroup

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """The basis of the group's algebra."""
        return group_elements(self.group)

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a finite batch of points the group acts on."""
        if self.group.dim == 0:
            raise UserError(f"expected a group with a generator, got {self.group!r}, which moves nothing")
        check_tensor(x, "points", "(B, ..., d)")
        self.tangents(x, torch.ones(1, self.group.dim, dtype=x.dtype, device=x.device))

    def tangents(
        self, value: Float[Tensor, "B *shape d"], coefficients: Float[Tensor, "K D"], domain: Any = ()
    ) -> Float[Tensor, "K B *shape d"]:
        """The group's fundamental fields at the points."""
        del domain
        check_dimension(coefficients, self.group.dim, self)
        a = coefficients.to(value.dtype).view(len(coefficients), *[1] * (value.ndim - 1), -1)
        try:
            found = self.group.vector_field(a, value)
        except ValueError as error:
            raise UserError(str(error)) from None
        return found.expand(len(coefficients), *value.shape)


@dataclass(frozen=True)
class Vectors(Action):
    """Vectors (B, ..., d): differences of points, velocities, forces; they turn and scale, and are not shifted."""

    group: LieGroup

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """The basis of the group's algebra."""
        return group_elements(self.group)

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a finite batch of vectors between points the group acts on."""
        Points(self.group).check(x)

    def tangents(
        self, value: Float[Tensor, "B *shape d"], coefficients: Float[Tensor, "K D"], domain: Any = ()
    ) -> Float[Tensor, "K B *shape d"]:
        """The linear part of the group's fundamental fields."""
        points = Points(self.group)
        # The fields of an affine action are affine: what is left of them at 0 is the shift.
        return points.tangents(value, coefficients, domain) - points.tangents(torch.zeros_like(value), coefficients)
