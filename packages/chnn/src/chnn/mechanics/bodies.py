r"""Rigid bodies of dimension 0 to 3 as points, and their mass matrices.

A body of dimension k is its origin x_0 and the tips of k orthonormal axes, x_i = x_0 + e_i. A mass element with body
coordinates xi moves as :math:`w(\xi) \cdot x`, :math:`w = (1 - \sum_i \xi_i, \xi_1, \dots, \xi_k)`, so that with the
mass m, the centre of mass c and the second moments :math:`S = \int \rho\, (\xi - c)(\xi - c)^T` about it

.. math:: T = \tfrac12 \sum_{ab} M_{ab}\, v_a \cdot v_b, \qquad M = m\, w(c) w(c)^T + \sum_{ij} S_{ij}\, u_i u_j^T,
          \qquad u_i = w(e_i) - w(0)

In principal axes this is :math:`M = E\, \mathrm{diag}(m, J_1, \dots, J_k)\, E^T` with a constant E: the inverse needs
no solve, and the n numbers on the diagonal are what a model may learn.

Source: Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, section on rigid bodies; the form with E is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor


@dataclass(frozen=True)
class Inertia:
    """Mass, centre and second moments of a body, in its own axes.

    Fields:
        mass: kg.
        moments: second moments about the centre, kg m^2: k numbers (principal axes), or (k, k) rows.
        centre: centre of mass, k numbers, m.
    """

    mass: float
    moments: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()
    centre: tuple[float, ...] = ()


@dataclass(frozen=True)
class Body:
    """A body in a system: its name, dimension, inertia, and the index of its first point."""

    name: str
    dim: int
    inertia: Inertia
    first: int

    @property
    def points(self) -> range:
        """Indices of its k + 1 points."""
        return range(self.first, self.first + self.dim + 1)

    def weights(self, coordinates: Sequence[float]) -> dict[int, float]:
        """The point at body ``coordinates`` as weights of the body's points."""
        if len(coordinates) != self.dim:
            raise UserError(
                f"expected {self.dim} coordinates of a point of body '{self.name}', got {len(coordinates)}: "
                f"{tuple(coordinates)}"
            )
        numbers = [float(c) for c in coordinates]
        if not np.isfinite(numbers).all():
            raise UserError(f"expected finite coordinates of a point of body '{self.name}', got {tuple(coordinates)}")
        return {self.first: 1.0 - sum(numbers), **{self.first + 1 + i: c for i, c in enumerate(numbers)}}

    def internal_lengths(self) -> list[tuple[int, int, float]]:
        """The distances between its points that make it rigid: 1 to the tips, sqrt 2 between them."""
        return [(i, j, 1.0 if i == self.first else 2.0**0.5) for i, j in combinations(self.points, 2)]


def number(value: float, what: str) -> float:
    """A plain number.

    Raises:
        UserError: for what is none, and for a tensor that requires gradients, whose gradient would be lost.
    """
    refuse_learnt(value, what)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"expected a number for {what}, got {value!r}") from None


def refuse_learnt(value: Any, what: str) -> None:
    """An error for a tensor that requires gradients, or numbers with one among them: they become plain numbers."""
    if isinstance(value, (list, tuple)):
        for each in value:
            refuse_learnt(each, what)
    elif isinstance(value, Tensor) and value.requires_grad:
        raise UserError(
            f"expected plain numbers for {what}, got a tensor that requires gradients, and its gradient would be lost; "
            "pass x.detach(). Differentiable are masses and moments, by "
            "System(description.with_inertia(inertia)), and what a potential(...) or an external force uses"
        )


def check_inertia(name: str, dim: int, inertia: Inertia) -> tuple[np.ndarray, np.ndarray]:
    """The centre (k,) and second moments (k, k) of a body, checked.

    Raises:
        UserError: for a mass or a moment matrix that is not positive, or of another size; names the body.
    """
    mass = number(inertia.mass, f"the mass of body '{name}'")
    for each, what in ((inertia.moments, "the second moments"), (inertia.centre, "the centre")):
        refuse_learnt(each, f"{what} of body '{name}'")
    if not 0.0 < mass < float("inf"):
        raise UserError(f"expected a positive finite mass, got {mass:g} for body '{name}'")
    moments = np.asarray(inertia.moments, dtype=float)
    if moments.shape == (dim,):
        moments = np.diag(moments)
    if moments.shape != (dim, dim) and not (dim == 0 and moments.size == 0):
        raise UserError(
            f"expected {dim} second moments or a {dim} x {dim} matrix for body '{name}' of dimension {dim}, got shape "
            f"{np.asarray(inertia.moments).shape}"
        )
    moments = moments.reshape(dim, dim)
    if not np.isfinite(moments).all() or not np.allclose(moments, moments.T, rtol=1e-9, atol=0.0):
        raise UserError(f"expected a finite symmetric matrix of second moments for body '{name}', got {moments}")
    smallest = float(np.linalg.eigvalsh(moments).min()) if dim else 1.0
    if not smallest > 0.0:
        raise UserError(
            f"expected positive second moments for body '{name}', got smallest eigenvalue {smallest:g}; a body without "
            "extent along an axis has fewer axes: use a smaller dim"
        )
    centre = np.asarray(inertia.centre or (0.0,) * dim, dtype=float)
    if centre.shape != (dim,) or not np.isfinite(centre).all():
        raise UserError(f"expected {dim} finite coordinates of the centre of body '{name}', got {inertia.centre}")
    return centre, moments


def inertia_factors(bodies: Sequence[Body]) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
    """E and the diagonal I of the mass matrix ``M = E diag(I) E^T`` of all bodies together, float64."""
    n = sum(body.dim + 1 for body in bodies)
    E = np.zeros((n, n))  # noqa: N806
    diagonal = np.zeros(n)
    for body in bodies:
        centre, moments = check_inertia(body.name, body.dim, body.inertia)
        first, tips = body.first, slice(body.first + 1, body.first + 1 + body.dim)
        E[first, first], E[tips, first] = 1.0 - centre.sum(), centre
        diagonal[first] = body.inertia.mass
        if np.count_nonzero(moments - np.diag(np.diag(moments))):
            values, axes = np.linalg.eigh(moments)
        else:
            values, axes = np.diag(moments), np.eye(body.dim)
        E[tips, tips], E[first, tips] = axes, -axes.sum(0)
        diagonal[tips] = values
    return torch.from_numpy(E), torch.from_numpy(diagonal)


def mass_matrix(E: Float[Tensor, "n n"], inertia: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:  # noqa: N803
    """``M = E diag(I) E^T`` for one or a batch of inertias."""
    return (E * inertia.unsqueeze(-2)) @ E.mT


def inverse_mass_matrix(E: Float[Tensor, "n n"], inertia: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:  # noqa: N803
    """The inverse of `mass_matrix`, by the inverse of the constant E."""
    back = torch.linalg.inv(E.mT)
    return (back / inertia.unsqueeze(-2)) @ back.mT


# --- bodies of uniform density ---


def _lengths(what: str, *values: float) -> None:
    if not all(0.0 < value < float("inf") for value in values):
        raise UserError(f"expected positive finite lengths of {what}, got {', '.join(map(str, values))}")


def rod(mass: float, length: float) -> Inertia:
    """A thin rod along its one axis, centred: ``m l^2 / 12``."""
    _lengths("a rod", length)
    return Inertia(mass, (mass * length**2 / 12.0,))


def disk(mass: float, radius: float) -> Inertia:
    """A thin disk in its two axes: ``m r^2 / 4`` each."""
    _lengths("a disk", radius)
    return Inertia(mass, (mass * radius**2 / 4.0,) * 2)


def ball(mass: float, radius: float) -> Inertia:
    """A solid ball: ``m r^2 / 5`` each."""
    _lengths("a ball", radius)
    return Inertia(mass, (mass * radius**2 / 5.0,) * 3)


def box(mass: float, sides: Sequence[float]) -> Inertia:
    """A solid box, or in two dimensions a plate: ``m a^2 / 12`` for each of the full ``sides``."""
    _lengths("a box", *sides)
    return Inertia(mass, tuple(mass * side**2 / 12.0 for side in sides))


def cylinder(mass: float, radius: float, height: float) -> Inertia:
    """A solid cylinder along its third axis: ``m r^2 / 4`` twice, ``m h^2 / 12``."""
    _lengths("a cylinder", radius, height)
    return Inertia(mass, (mass * radius**2 / 4.0, mass * radius**2 / 4.0, mass * height**2 / 12.0))


def from_rotational(
    mass: float, tensor: Sequence[Sequence[float]], centre: Sequence[float] = (0.0, 0.0, 0.0)
) -> Inertia:
    """From the moment of inertia tensor I about the centre (as robot files give it): ``S = tr(I)/2 - I``."""
    refuse_learnt(tensor, "a moment of inertia")
    I = np.asarray(tensor, dtype=float)  # noqa: E741, N806
    if I.shape != (3, 3):
        raise UserError(f"expected a moment of inertia tensor of shape (3, 3), got {I.shape}; principal moments "
                        "a, b, c are numpy.diag([a, b, c])")  # fmt: skip
    S = 0.5 * np.trace(I) * np.eye(3) - I  # noqa: N806
    return Inertia(mass, tuple(map(tuple, S.tolist())), tuple(float(c) for c in centre))


def from_mesh(
    vertices: np.ndarray, triangles: np.ndarray, *, mass: float | None = None, density: float = 1.0
) -> Inertia:
    r"""Inertia of the solid within a closed mesh, exactly: a sum over the triangles.

    Each triangle and the origin span a tetrahedron with signed volume det(a, b, c)/6 and second moments
    :math:`\tfrac{\det}{120} (s s^T + \sum_i p_i p_i^T)`, s the sum of its corners (the integral of a quadratic over a
    simplex).

    Args:
        vertices: (V, 3), m.
        triangles: (F, 3), indices, all oriented alike (outwards or inwards).
        mass: kg; None takes ``density`` times the volume.
        density: kg/m^3.

    Raises:
        UserError: for a mesh that is not closed or has no volume.
    """
    vertices, triangles = np.asarray(vertices, dtype=float), np.asarray(triangles)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise UserError(f"expected a mesh of shapes (V, 3) and (F, 3), got {vertices.shape} and {triangles.shape}")
    if not np.isfinite(vertices).all():
        row = int(np.flatnonzero(~np.isfinite(vertices).all(1))[0])
        raise UserError(f"expected finite vertices of a mesh, got {vertices[row].tolist()} for vertex {row}")
    if not np.issubdtype(triangles.dtype, np.integer):
        raise UserError(f"expected triangles as whole indices of vertices, got {triangles.dtype}; use .astype(int)")
    outside = (triangles < 0) | (triangles >= len(vertices))
    if outside.any():
        row = int(np.flatnonzero(outside.any(1))[0])
        raise UserError(
            f"expected triangles of indices from 0 to {len(vertices) - 1}, got {triangles[row].tolist()} for triangle "
            f"{row}; count from 0"
        )
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    count = len(vertices)
    forward, backward = edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0]
    if not np.array_equal(np.sort(forward), np.sort(backward)):
        raise UserError("expected a closed mesh: every edge in two triangles, once in each direction; got an open one")
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    det = np.einsum("fi,fi->f", a, np.cross(b, c))
    volume = det.sum() / 6.0
    if not abs(volume) > 1e-300:
        raise UserError("expected a mesh that encloses a volume, got volume 0")
    total = a + b + c
    centre = (det[:, None] * total).sum(0) / 24.0 / volume
    corners = np.stack([a, b, c, total], axis=1)  # (F, 4, 3)
    second = np.einsum("f,fpi,fpj->ij", det, corners, corners) / 120.0 / volume - np.outer(centre, centre)
    total_mass = density * abs(volume) if mass is None else mass
    moments = tuple(map(tuple, (0.5 * total_mass * (second + second.T)).tolist()))
    return Inertia(total_mass, moments, tuple(centre.tolist()))


def combined(weights: Mapping[int, float], n: int) -> np.ndarray:
    """Weights of points as a row of length n."""
    row = np.zeros(n)
    for index, weight in weights.items():
        row[index] += weight
    return row
