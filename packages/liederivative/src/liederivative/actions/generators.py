r"""The ten one-parameter groups that move an image, as vector fields linear in seven tangents.

An image is a function I(X, Y) on the square, X to the right along columns and Y downwards along rows,
-1 at the first pixel centre and 1 at the last. A generator is an affine velocity field and a gain,

.. math:: \frac{dI}{dt} = u \, \partial_X I + v \, \partial_Y I + w I, \qquad
          u = u_0 + u_1 X + u_2 Y, \quad v = v_0 + v_1 X + v_2 Y,

so that all generators span a space of dimension seven: the six of the affine algebra aff(2) and the gain.
The set of generators is that of Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the
transformations; the sign of each is fixed by the table below. ``stretch_x`` is here the derivative at the
identity, which the published code's is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor

BASIS = ("translate_x", "stretch_x", "shear_x", "translate_y", "shear_y", "stretch_y", "saturate")
"""The seven tangents: d_X I, X d_X I, Y d_X I, d_Y I, X d_Y I, Y d_Y I and I, in the order of the coefficients."""


@dataclass(frozen=True)
class Generator:
    """One generator; ``u`` and ``v`` hold the coefficients of 1, X and Y.

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


def resolve_generators(generators: str | Generator | Iterable[str | Generator]) -> tuple[Generator, ...]:
    """The generators meant by names, in order.

    Raises:
        UserError: for an unknown name, a name given twice, or none at all.
    """
    given = [generators] if isinstance(generators, str | Generator) else list(generators)
    chosen = []
    for item in given:
        if isinstance(item, Generator):
            chosen.append(item)
        elif item in GENERATORS:
            chosen.append(GENERATORS[item])
        else:
            raise unknown_name("generator", item, GENERATORS)
    names = [generator.name for generator in chosen]
    if not names:
        raise UserError(f"expected at least one generator, got none; known: {', '.join(GENERATORS)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"expected each generator once, got {', '.join(twice)} more than once")
    return tuple(chosen)


def spanning_tangents(
    generators: Sequence[Generator], like: Tensor
) -> tuple[Float[Tensor, "K 7"], Float[Tensor, "G K"]]:
    """Fewest tangents whose combinations are all ``generators``: at most seven.

    Args:
        generators: G generators.
        like: tensor that gives dtype and device.

    Returns:
        The tangents' coefficients along `BASIS` and the ``mixing`` with
        ``mixing @ tangents == coefficients of the generators``.
    """
    coefficients = torch.tensor([g.coefficients for g in generators], dtype=like.dtype, device=like.device)
    used = [j for j in range(len(BASIS)) if any(g.coefficients[j] for g in generators)]
    if len(generators) <= len(used):
        return coefficients, torch.eye(len(generators), dtype=like.dtype, device=like.device)
    basis = torch.eye(len(BASIS), dtype=like.dtype, device=like.device)
    return basis[used], coefficients[:, used]
