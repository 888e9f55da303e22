"""A connected subgroup spanned by some of the coordinates of a group, such as the turns about one axis in SE(3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lie.groups.affine_lift import affine_lift, orbit_basis
from lie.groups.base import LieGroup, affine_matrix, check_is_group
from lie.groups.checks import indices
from lie.groups.structure import AffineStructure, affine_structure


@dataclass(frozen=True)
class Subgroup(LieGroup):
    """The subgroup of ``G`` whose algebra is spanned by the coordinates ``axes``, in that order.

    ``Subgroup(SE3(), (2, 3, 4, 5))`` is SE(2) x R: turns about z and translations. Matrices and action are those
    of G. The span must be closed under the bracket.

    Raises:
        ValueError: if an axis repeats or does not exist, or the span is no subalgebra; the message names the two
            generators whose bracket leaves it.
    """

    G: LieGroup
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        check_is_group(self.G, "G")
        axes = indices(self.axes, "axes")
        if not axes or len(set(axes)) < len(axes) or not all(0 <= axis < self.G.dim for axis in axes):
            raise ValueError(
                f"expected distinct coordinates between 0 and {self.G.dim - 1} of {self.G!r}, got {self.axes}"
            )
        object.__setattr__(self, "axes", axes)
        basis = torch.eye(self.G.dim, dtype=torch.float64)
        outside = [axis for axis in range(self.G.dim) if axis not in axes]
        for i in axes:
            for j in axes:
                leak = self.G.bracket(basis[i], basis[j])[outside].abs()
                if leak.numel() and leak.max() > 1e-12:  # structure constants are small integers up to rounding
                    raise ValueError(
                        f"the coordinates {axes} of {self.G!r} span no subalgebra: the bracket of {i} and {j} has a "
                        f"part along {outside[int(leak.argmax())]}; add that coordinate"
                    )

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Number of the coordinates."""
        return len(self.axes)

    @property
    def matrix_dim(self) -> int:  # type: ignore[override]
        """Size of the matrices of G."""
        return self.G.matrix_dim

    @property
    def point_dim(self) -> int | None:  # type: ignore[override]
        """Dimension of the points of G."""
        return self.G.point_dim

    @property
    def isometric(self) -> bool:  # type: ignore[override]
        """Whether G is."""
        return self.G.isometric

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """The names that the coordinates have in G."""
        return tuple(self.G.coordinate_names[axis] for axis in self.axes)

    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The exponential of G, the other coordinates being 0."""
        return self.G.exp(self._embed(a))

    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The coordinates of the logarithm of G."""
        return _pick(self.G.log(g), self.axes)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse of G."""
        return self.G.inverse(g)

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """As in G."""
        return self.G.normalise(g)

    def _renormalised(self, g: Tensor) -> Tensor:
        return self.G._renormalised(g)

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """The coordinates of the relative element of G."""
        return _pick(self.G.relative(u, v), self.axes)

    def act(self, g: Float[Tensor, "*batch m m"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """The action of G."""
        return self.G.act(g, x)

    def vector_field(self, a: Float[Tensor, "*batch dim"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """The fundamental field of G, the other coordinates being 0."""
        return self.G.vector_field(self._embed(a), x)

    @property
    def orbit_dim(self) -> int | None:  # type: ignore[override]
        """How many numbers name an orbit, where the action has the parts of `lie.groups.structure`."""
        structure = self._parts()
        return (
            None
            if structure is None
            else len(structure.fixed) + (structure.rotations > 0 and not structure.moves_plane)
        )

    @property
    def stabiliser_dim(self) -> int | None:  # type: ignore[override]
        """Dimension of the stabiliser of a generic point, where the action has the parts of `lie.groups.structure`."""
        structure = self._parts()
        if structure is None:
            return None
        reached = structure.d - (self.orbit_dim or 0) + (structure.dilation and bool(self.orbit_dim))
        return self.dim - reached

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """By the translations, turns and dilations in the subgroup (`lie.groups.affine_lift`), else numerically.

        The orbit id is what none of them changes: coordinates, or the distance from an axis or centre.
        """
        structure = self._parts()
        if structure is None:
            return super().lift(x, num_samples, generator)
        self._check_points(x, num_samples, generator)
        linear, t, orbit = affine_lift(structure, x, num_samples, generator)
        return (affine_matrix(linear, t) if self.matrix_dim > structure.d else linear), orbit

    @property
    def lifts_numerically(self) -> bool:
        """Whether the action is not made of the parts of `lie.groups.structure`."""
        return self._parts() is None

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The representative of the orbit, along the directions of `lie.groups.affine_lift.orbit_basis`."""
        structure = self._parts()
        self._check_orbit(orbit)
        return super().orbit_origin(orbit) if structure is None else orbit @ orbit_basis(structure, orbit)

    def _parts(self) -> AffineStructure | None:
        """The parts of the action, where the matrices are those of the affine maps."""
        if type(self.G).act is not LieGroup.act or self.point_dim not in (self.matrix_dim, self.matrix_dim - 1):
            return None
        return affine_structure(self)

    def _embed(self, a: Tensor) -> Tensor:
        self._check_algebra(a)
        zero = torch.zeros_like(a[..., :1])
        columns = [a[..., self.axes.index(i), None] if i in self.axes else zero for i in range(self.G.dim)]
        return torch.cat(columns, dim=-1)


def _pick(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.cat([a[..., axis, None] for axis in axes], dim=-1)
