r"""Actions on inputs that live on a grid: images, volumes, videos and sequences.

Each moves by the affine group of its axes and a gain; the coordinate along an axis runs from -1 at the first sample
to 1 at the last. A sequence's ``translate_t`` is therefore a shift by half its length (first to last sample) per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from liederivative.actions.action import Action, check_dimension, check_tensor
from liederivative.actions.differences import resolve_gradient
from liederivative.actions.generators import BASIS, GENERATORS, Element, GeneratorLike, affine_elements
from liederivative.actions.tangents import Domain, as_domain, grid_tangents, pixel_coordinates


class _Grid(Action):
    """What the actions on grids share: channels first, the space last."""

    gradient: str
    axes: str
    """names of the axes, X (the last) first"""
    kind: str
    shape: str
    channel_dim = 1

    def __post_init__(self) -> None:
        resolve_gradient(self.gradient)

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a finite batch with at least two samples along each axis."""
        n = len(self.axes)
        check_tensor(x, self.kind, self.shape, ndim=n + 2)
        if min(x.shape[-n:]) < 2:
            wanted = " x ".join(["2"] * n)
            raise UserError(f"expected {self.kind} of at least {wanted} pixels, got shape {tuple(x.shape)}")

    def domain(self, x: Tensor) -> Domain:
        """The input's size, and this action's kind of derivative."""
        return Domain(tuple(x.shape[-len(self.axes) :]), resolve_gradient(self.gradient))

    def tangents(
        self,
        value: Float[Tensor, "B C *space"],
        coefficients: Float[Tensor, "K D"],
        domain: Domain | tuple[int, ...] = (),
    ) -> Float[Tensor, "K B C *space"]:
        """The velocity of the values; without a ``domain`` they are the input itself."""
        check_tensor(value, self.kind, self.shape, ndim=len(self.axes) + 2)
        domain = as_domain(domain) if domain != () else self.domain(value)
        n = len(self.axes)
        check_dimension(coefficients, n * (n + 1) + 1 + len(domain.flows), self)
        return grid_tangents(value, coefficients, domain)


@dataclass(frozen=True)
class Images(_Grid):
    """Images (B, C, H, W) under Aff(2) and the gain: the ten generators, and flows of your own.

    ``flows`` maps names to velocity fields of the sampling point, ``(X, Y) -> (u, v)``, not necessarily affine:

    >>> swirl = Images(flows={"swirl": lambda X, Y: (Y * (1 - X * X - Y * Y), -X * (1 - X * X - Y * Y))})
    >>> list(swirl.generators)[-1]
    'swirl'
    """

    gradient: str = "central"
    """one of `liederivative.actions.GRADIENTS`: central, spectral, bilinear-forward, bilinear-backward"""
    flows: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    axes = "xy"
    kind = "images"
    shape = "(B, C, H, W)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, flow in self.flows.items():
            if not callable(flow):
                raise UserError(f"expected the flow {name!r} to be a function (X, Y) -> (u, v), got {flow!r}")

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a finite batch of images, at whose pixels every flow gives velocities."""
        super().check(x)
        X, Y = (pixel_coordinates(size, size, x).view(shape) for size, shape in  # noqa: N806
                ((x.shape[-1], (1, -1)), (x.shape[-2], (-1, 1))))  # fmt: skip
        for name, flow in self.flows.items():
            velocity = flow(X, Y)
            fits = isinstance(velocity, tuple | list) and len(velocity) == 2
            if not fits or not all(isinstance(part, Tensor | float | int) for part in velocity):
                got = f"{len(velocity)} parts" if isinstance(velocity, tuple | list) else type(velocity).__name__
                raise UserError(f"expected the flow {name!r} to return (u, v), the velocity along X and Y, got {got}")

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """The ten generators of the paper, then the flows by name."""
        if not self.flows:
            return GENERATORS
        count = len(self.flows)
        known: dict[str, GeneratorLike] = {
            name: Element(name, (*one.coefficients, *[0.0] * count)) for name, one in GENERATORS.items()
        }
        for index, name in enumerate(self.flows):
            row = [0.0] * (len(BASIS) + count)
            row[len(BASIS) + index] = 1.0
            known[name] = Element(name, tuple(row))
        return known

    def domain(self, x: Tensor) -> Domain:
        """The input's height and width, the kind of derivative and the flows."""
        return Domain(tuple(x.shape[-2:]), resolve_gradient(self.gradient), tuple(self.flows.values()))


@dataclass(frozen=True)
class Volumes(_Grid):
    """Volumes (B, C, D, H, W) under Aff(3) and the gain; X along W, Y along H, Z along D.

    Generators: ``translate_a``, ``stretch_a``, ``shear_ab`` (velocity b along a), ``rotate_a`` for a, b in x, y, z,
    ``scale`` and ``saturate``; `rotate_z` turns every slice as an image's ``rotate``.
    """

    gradient: str = "central"
    axes = "xyz"
    kind = "volumes"
    shape = "(B, C, D, H, W)"

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """Those of Aff(3), and the gain."""
        return affine_elements(self.axes)


@dataclass(frozen=True)
class Videos(_Grid):
    """Videos (B, C, T, H, W): as volumes, with time t as third axis.

    ``translate_t`` is a delay, ``stretch_t`` a change of speed, ``shear_xt`` a pan along X; ``rotate_t`` turns every
    frame.
    """

    gradient: str = "central"
    axes = "xyt"
    kind = "videos"
    shape = "(B, C, T, H, W)"

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """Those of Aff(3), named by x, y and t, and the gain."""
        return affine_elements(self.axes)


@dataclass(frozen=True)
class Sequences(_Grid):
    """Sequences (B, C, T): audio, series; ``translate_t`` (a time shift), ``stretch_t`` (speed), ``saturate``."""

    gradient: str = "central"
    axes = "t"
    kind = "sequences"
    shape = "(B, C, T)"

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """Shift, speed and gain; ``scale`` is minus the stretch, as for images."""
        return affine_elements(self.axes)
