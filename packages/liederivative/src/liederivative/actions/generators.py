r"""One-parameter groups that move an image, a sequence or a volume, as vector fields linear in few tangents.

An image is a function I(X, Y) on the square, X to the right along columns and Y downwards along rows,
-1 at the first pixel centre and 1 at the last. A generator is an affine velocity field and a gain,

.. math:: \frac{dI}{dt} = u \, \partial_X I + v \, \partial_Y I + w I, \qquad
          u = u_0 + u_1 X + u_2 Y, \quad v = v_0 + v_1 X + v_2 Y,

so that all generators span a space of dimension seven: the six of the affine algebra aff(2) and the gain. On n axes
there are n (n + 1) + 1: three for sequences, thirteen for volumes.
The set of generators is that of Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the
transformations; the sign of each is fixed by the table below. ``stretch_x`` is here the derivative at the
identity, which the published code's is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

BASIS = ("translate_x", "stretch_x", "shear_x", "translate_y", "shear_y", "stretch_y", "saturate")
"""The seven tangents: d_X I, X d_X I, Y d_X I, d_Y I, X d_Y I, Y d_Y I and I, in the order of the coefficients."""


@dataclass(frozen=True)
class Generator:
    """One affine generator of images; ``u`` and ``v`` hold the coefficients of 1, X and Y.

    >>> Generator("translate_x", u=(1.0, 0.0, 0.0)).coefficients
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """

    name: str
    u: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """velocity of the sampling point along X: ``u[0] + u[1] X + u[2] Y``"""
    v: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """velocity of the sampling point along Y: ``v[0] + v[1] X + v[2] Y``"""
    gain: float = 0.0
    """rate at which the values themselves grow"""

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The seven coefficients along `BASIS`."""
        return (*self.u, *self.v, self.gain)


@dataclass(frozen=True)
class Element:
    """An element of the algebra of any action: its coefficients along the action's basis.

    >>> Element("screw", (0.0, 0.0, 1.0, 0.0, 0.0, 0.5)).coefficients  # of Points(SE3())
    (0.0, 0.0, 1.0, 0.0, 0.0, 0.5)
    """

    name: str
    coefficients: tuple[float, ...]


GeneratorLike = Generator | Element
"""A name, and coefficients along the basis of the action it belongs to."""

GENERATORS = {
    generator.name: generator
    for generator in (
        Generator("translate_x", u=(1.0, 0.0, 0.0)),
        Generator("translate_y", v=(1.0, 0.0, 0.0)),
        Generator("rotate", u=(0.0, 0.0, 1.0), v=(0.0, -1.0, 0.0)),
        Generator("shear_x", u=(0.0, 0.0, 1.0)),
        Generator("shear_y", v=(0.0, 1.0, 0.0)),
        Generator("stretch_x", u=(0.0, 1.0, 0.0)),
        Generator("stretch_y", v=(0.0, 0.0, 1.0)),
        Generator("hyperbolic", u=(0.0, 0.0, 1.0), v=(0.0, 1.0, 0.0)),
        Generator("scale", u=(0.0, -1.0, 0.0), v=(0.0, 0.0, -1.0)),
        Generator("saturate", gain=1.0),
    )
}
"""The ten generators by name: (u, v) = translate_x (1, 0), translate_y (0, 1), rotate (Y, -X), shear_x (Y, 0),
shear_y (0, X), stretch_x (X, 0), stretch_y (0, Y), hyperbolic (Y, X), scale (-X, -Y); saturate has gain 1."""


def affine_elements(axes: Sequence[str]) -> dict[str, Element]:
    """The generators of Aff(n) and the gain on a grid whose axes are called ``axes``, X first.

    Per axis a ``translate_a`` (velocity 1 along a) and a ``stretch_a`` (velocity a along a); per pair a ``shear_ab``
    (velocity b along a); for three axes ``rotate_c`` in the plane of the other two, with the sign of the image's
    ``rotate`` (Y along X and -X along Y) in cyclic order; ``scale``, minus all stretches; ``saturate``, the gain.

    >>> affine_elements("x")["stretch_x"].coefficients
    (0.0, 1.0, 0.0)
    """
    n = len(axes)
    place = {axis: i for i, axis in enumerate(axes)}

    def element(name: str, *terms: tuple[float, str, str], gain: float = 0.0) -> Element:
        row = [0.0] * (n * (n + 1) + 1)
        for weight, along, of in terms:
            row[place[along] * (n + 1) + (1 + place[of] if of else 0)] += weight
        row[-1] = gain
        return Element(name, tuple(row))

    found = [element(f"translate_{a}", (1.0, a, "")) for a in axes]
    found += [element(f"stretch_{a}", (1.0, a, a)) for a in axes]
    found += [element(f"shear_{a}{b}", (1.0, a, b)) for a in axes for b in axes if a != b]
    if n == 3:
        for i, c in enumerate(axes):
            a, b = axes[(i + 1) % 3], axes[(i + 2) % 3]
            found.append(element(f"rotate_{c}", (1.0, a, b), (-1.0, b, a)))
    found.append(element("scale", *((-1.0, a, a) for a in axes)))
    found.append(element("saturate", gain=1.0))
    return {one.name: one for one in found}


@overload
def resolve_generators(generators: str | Generator | Iterable[str | Generator]) -> tuple[Generator, ...]: ...


@overload
def resolve_generators(
    generators: str | GeneratorLike | Iterable[str | GeneratorLike], known: Mapping[str, GeneratorLike]
) -> tuple[GeneratorLike, ...]: ...


def resolve_generators(
    generators: str | GeneratorLike | Iterable[str | GeneratorLike],
    known: Mapping[str, GeneratorLike] = GENERATORS,
) -> tuple[GeneratorLike, ...]:
    """The generators meant by names, in order; ``known`` are those of the action, the ten of images by default.

    Raises:
        UserError: for an unknown name, a name given twice, none at all, or one that belongs to another action.
    """
    # What is neither one nor several is refused below, as an item.
    single = isinstance(generators, str | Generator | Element) or not isinstance(generators, Iterable)
    given: list[object] = [generators] if single else list(generators)  # type: ignore[arg-type]
    dimension = len(next(iter(known.values())).coefficients) if known else 0
    chosen: list[GeneratorLike] = []
    for item in given:
        if isinstance(item, str):
            if item not in known:
                raise unknown_name("generator", item, known)
            chosen.append(known[item])
        elif not isinstance(item, Generator | Element):
            raise UserError(
                f"expected the name of a generator, a Generator or an Element, got {type(item).__name__}; "
                f"known: {', '.join(known)}"
            )
        elif len(item.coefficients) > dimension:
            raise UserError(
                f"expected {dimension} coefficients for this action, got {len(item.coefficients)} in {item.name!r}"
            )
        else:  # an affine generator beside further flows has no part of them
            missing = dimension - len(item.coefficients)
            chosen.append(Element(item.name, (*item.coefficients, *[0.0] * missing)) if missing else item)
    names = [generator.name for generator in chosen]
    if not names:
        raise UserError(f"expected at least one generator, got none; known: {', '.join(known)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"expected each generator once, got {', '.join(twice)} more than once")
    return tuple(chosen)


def spanning_tangents(
    generators: Sequence[GeneratorLike], like: Tensor
) -> tuple[Float[Tensor, "K D"], Float[Tensor, "G K"]]:
    """Fewest tangents whose combinations are all ``generators``: at most seven for images.

    Args:
        generators: G generators.
        like: tensor that gives dtype and device.

    Returns:
        The tangents' coefficients along the basis of the action and the ``mixing`` with
        ``mixing @ tangents == coefficients of the generators``.
    """
    coefficients = torch.tensor([g.coefficients for g in generators], dtype=like.dtype, device=like.device)
    used = [j for j in range(coefficients.shape[1]) if any(g.coefficients[j] for g in generators)]
    if len(generators) <= len(used):
        return coefficients, torch.eye(len(generators), dtype=like.dtype, device=like.device)
    basis = torch.eye(coefficients.shape[1], dtype=like.dtype, device=like.device)
    return basis[used], coefficients[:, used]
