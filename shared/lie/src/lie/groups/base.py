"""A Lie group from its exponential and logarithm alone; everything else is derived and may be overridden.

Conventions, here once for all groups: an algebra element is a vector ``a`` of ``dim`` coordinates, a
group element a matrix ``g`` of size ``matrix_dim``, a point a vector ``x``. Batch axes lead and
broadcast. Angles are radians, ``act`` is the left action, elements compose by ``@``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


class LieGroup(ABC):
    """A matrix Lie group with a surjective exponential.

    A group of your own sets ``dim`` and ``matrix_dim`` and defines `exp` and `log`; nothing else is
    required. ``lie.testing.check_group`` then runs the laws below on it.

    Laws:
        - ``exp(log(g)) == g``; ``exp(0)`` is the identity; ``exp(-a) == inverse(exp(a))``
        - ``act(g @ h, x) == act(g, act(h, x))``
        - ``vee(hat(a)) == a``; ``hat(bracket(a, b)) == hat(a) @ hat(b) - hat(b) @ hat(a)``
        - ``exp(adjoint(g) @ a) == g @ exp(a) @ inverse(g)``
        - ``relative(g @ u, g @ v) == relative(u, v)``

    Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, section 3 (groups with surjective exponential).
    """

    dim: int
    """Number of coordinates of the Lie algebra."""
    matrix_dim: int
    """Size m of the m x m matrices of the group."""
    point_dim: int | None = None
    """Dimension d of the points that `lift` takes, where the group has a lift."""
    stabiliser_dim: int | None = None
    """Dimension of the stabiliser of a generic point; 0 where the lift of a point is a single element."""
    isometric: bool = False
    """Whether the action on points preserves Euclidean distance."""

    # What defines a group

    @abstractmethod
    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The group element at time 1 of the one-parameter subgroup with velocity ``a``."""

    @abstractmethod
    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The principal ``a`` with ``exp(a) == g``."""

    # The algebra

    @cached_property
    def _generators_float64(self) -> Tensor:
        jacobian = torch.func.jacfwd(self.exp)(torch.zeros(self.dim, dtype=torch.float64))
        generators = jacobian.movedim(-1, 0).detach()  # (dim, m, m)
        if not torch.isfinite(generators).all():
            raise ValueError(
                f"the derivative of {type(self).__name__}.exp at 0 is not finite; write exp so that both sides of "
                "every torch.where stay finite at 0 (see lie.groups.functions)"
            )
        return generators

    @cached_property
    def _dual_float64(self) -> Tensor:
        return torch.linalg.pinv(self._generators_float64.flatten(1)).mT.unflatten(-1, (self.matrix_dim,) * 2)

    @cached_property
    def _structure_float64(self) -> Tensor:
        basis = self._generators_float64
        products = basis[:, None] @ basis[None]  # (dim, dim, m, m)
        return torch.einsum("ijmn,kmn->ijk", products - products.transpose(0, 1), self._dual_float64)

    def generators(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "dim m m"]:
        """The basis of the algebra as matrices: the derivative of `exp` at 0 along each coordinate."""
        return self._generators_float64.to(device=device, dtype=dtype or torch.get_default_dtype())

    def hat(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The matrix of the algebra element ``a``."""
        self._check_algebra(a)
        return torch.einsum("...i,imn->...mn", a, self._generators_float64.to(a))

    def vee(self, A: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:  # noqa: N803 (the field's letter)
        """The coordinates of a matrix of the algebra: the inverse of `hat` (least squares off the algebra)."""
        self._check_element(A)
        return torch.einsum("...mn,imn->...i", A, self._dual_float64.to(A))

    def bracket(self, a: Float[Tensor, "*batch dim"], b: Float[Tensor, "*#batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The Lie bracket ``vee(hat(a) hat(b) - hat(b) hat(a))``."""
        return torch.einsum("...i,...j,ijk->...k", a, b, self._structure_float64.to(a))

    def adjoint(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim dim"]:
        """The matrix Ad_g on coordinates: ``hat(Ad_g a) == g hat(a) g^-1``."""
        self._check_element(g)
        conjugated = g.unsqueeze(-3) @ self._generators_float64.to(g) @ self.inverse(g).unsqueeze(-3)
        return self.vee(conjugated).mT  # (..., dim, dim): column i is the image of generator i

    def left_jacobian(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim dim"]:
        """J(a) with ``exp(a + da) == exp(J(a) da) exp(a)`` to first order: sum over n of ad_a^n / (n + 1)!.

        It is the upper right block of the exponential of ``[[ad_a, 1], [0, 0]]``.
        """
        self._check_algebra(a)
        ad = torch.einsum("...i,ijk->...kj", a, self._structure_float64.to(a))  # ad_a b = [a, b]
        eye = torch.eye(self.dim, dtype=a.dtype, device=a.device).expand(ad.shape)
        top = torch.cat([ad, eye], dim=-1)
        block = torch.cat([top, torch.zeros_like(top)], dim=-2)  # (..., 2 dim, 2 dim)
        return torch.linalg.matrix_exp(block)[..., : self.dim, self.dim :]

    # The group

    def identity(
        self, *shape: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "*shape m m"]:
        """The identity element, repeated to ``shape``."""
        m = self.matrix_dim
        return torch.eye(m, dtype=dtype, device=device).expand(*shape, m, m)

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse element."""
        self._check_element(g)
        return torch.linalg.inv(g)

    def relative(self, u: Float[Tensor, "*batch m m"], v: Float[Tensor, "*#batch m m"]) -> Float[Tensor, "*batch dim"]:
        """``log(v^-1 u)``: where ``u`` is as seen from ``v``. Unchanged when both are multiplied from the left."""
        return self.log(self.inverse(v) @ u)

    def distance(
        self,
        u: Float[Tensor, "*batch m m"],
        v: Float[Tensor, "*#batch m m"],
        orbit_u: Float[Tensor, "*#batch q"] | None = None,
        orbit_v: Float[Tensor, "*#batch q"] | None = None,
        *,
        alpha: float = 0.2,
    ) -> Float[Tensor, "*batch"]:
        """The left-invariant distance ``|log(v^-1 u)|``, or with orbit ids the mixture of the LieConv paper.

        With orbit ids: ``alpha |log(v^-1 u)| + (1 - alpha) |orbit_u - orbit_v|``, alpha 0.2 as in the
        published implementation. Its derivative where the two coincide is zero, not NaN.
        """
        along = _safe_norm(self.relative(u, v))
        if orbit_u is None or orbit_v is None:
            return along
        return alpha * along + (1.0 - alpha) * _safe_norm(orbit_u - orbit_v)

    def sample(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "*shape m m"]:
        """Random elements: ``exp`` of standard normal coordinates (groups with rotations draw those by Haar)."""
        return self.exp(torch.randn(*shape, self.dim, generator=generator, dtype=dtype, device=device))

    # The action on points

    def act(self, g: Float[Tensor, "*batch m m"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """``g`` applied to the point ``x``: linear if x has ``matrix_dim`` coordinates, affine if one less."""
        self._check_element(g)
        m, d = self.matrix_dim, x.shape[-1]
        if d == m:
            return (g @ x.unsqueeze(-1)).squeeze(-1)
        if d == m - 1:
            return (g[..., :d, :d] @ x.unsqueeze(-1)).squeeze(-1) + g[..., :d, d]
        raise ValueError(
            f"expected points of shape (..., {m}) or (..., {m - 1}) for {type(self).__name__}, got {tuple(x.shape)}; "
            "override `act` if the group acts otherwise"
        )

    def vector_field(self, a: Float[Tensor, "*batch dim"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """The fundamental vector field of ``a`` at ``x``: the derivative of ``act(exp(t a), x)`` at t = 0."""
        self._check_algebra(a)
        return torch.func.jvp(lambda b: self.act(self.exp(b), x), (torch.zeros_like(a),), (a,))[1]

    def lift(
        self, x: Float[Tensor, "*batch d"], num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Group elements ``u`` and orbit ids ``q`` with ``act(u, orbit_origin(q)) == x``.

        Where the point has a stabiliser H, u is drawn uniformly from its coset u H.

        Args:
            x: points (..., d).
            num_samples: how many elements a point; None gives one, without an axis for the samples.
            generator: source of the stabiliser's randomness.

        Returns:
            Elements (..., m, m) and orbit ids (..., q), or (..., num_samples, m, m) and (..., num_samples, q).

        Raises:
            NotImplementedError: if the group defines no lift.

        Source: Finzi et al. 2020 (LieConv), section on lifting from X to G x X/G.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no lift; define `lift` and `orbit_origin` to use it on points"
        )

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The chosen origin of each orbit, from which `lift` starts."""
        raise NotImplementedError(f"{type(self).__name__} defines no lift, so its orbits have no origins")

    # Checks where users enter

    def _check_algebra(self, a: Tensor) -> None:
        if a.shape[-1:] != (self.dim,):
            raise ValueError(
                f"expected algebra coordinates of shape (..., {self.dim}) for {type(self).__name__}, "
                f"got {tuple(a.shape)}"
            )
        if not a.is_floating_point():
            raise TypeError(f"expected floating-point algebra coordinates, got {a.dtype}; use a.to(torch.float32)")

    def _check_element(self, g: Tensor) -> None:
        m = self.matrix_dim
        if g.shape[-2:] != (m, m):
            raise ValueError(
                f"expected elements of shape (..., {m}, {m}) for {type(self).__name__}, got {tuple(g.shape)}"
            )
        if not g.is_floating_point():
            raise TypeError(f"expected floating-point elements, got {g.dtype}; use g.to(torch.float32)")

    def _check_points(self, x: Tensor, num_samples: int | None) -> None:
        if x.shape[-1:] != (self.point_dim,):
            raise ValueError(
                f"expected points of shape (..., {self.point_dim}) for {type(self).__name__}, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point points, got {x.dtype}; use x.to(torch.float32)")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"expected num_samples of at least 1, got {num_samples}")


def with_samples(x: Tensor, num_samples: int | None) -> Tensor:
    """``x`` of shape (..., d) repeated to (..., num_samples, d), or as it is for None."""
    return x if num_samples is None else x.unsqueeze(-2).expand(*x.shape[:-1], num_samples, x.shape[-1])


def affine_matrix(linear: Float[Tensor, "*batch d d"], t: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch m m"]:
    """The matrix ``[[linear, t], [0, 1]]`` of an affine map."""
    batch = torch.broadcast_shapes(linear.shape[:-2], t.shape[:-1])
    d = t.shape[-1]
    top = torch.cat([linear.expand(*batch, d, d), t.expand(*batch, d).unsqueeze(-1)], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom = torch.cat([bottom[..., :d], torch.ones_like(bottom[..., d:])], dim=-1)
    return torch.cat([top, bottom], dim=-2)


def _safe_norm(a: Tensor) -> Tensor:
    square = a.square().sum(-1)
    zero = square == 0
    safe = torch.where(zero, torch.ones_like(square), square)
    return torch.where(zero, torch.zeros_like(square), safe.sqrt())
