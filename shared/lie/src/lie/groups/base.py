"""A Lie group from its exponential and logarithm alone; everything else is derived and may be overridden.

Conventions, here once for all groups: an algebra element is a vector ``a`` of ``dim`` coordinates, a
group element a matrix ``g`` of size ``matrix_dim``, a point a vector ``x``. Batch axes lead and
broadcast. Angles are radians, ``act`` is the left action, elements compose by ``@``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lie.groups.bch import baker_campbell_hausdorff
from lie.groups.checks import (
    check_alike,
    check_batches,
    check_floating,
    check_generator,
    check_num_samples,
    check_tensor,
    floating_dtype,
    sizes,
)
from lie.groups.lifting import numeric_lift
from lie.groups.mean import karcher_mean
from lie.groups.precision import FLOATING, HALF, computed_in_float32
from lie.groups.recompute import recomputed

_VERBS = (
    *("exp", "log", "hat", "vee", "bracket", "adjoint", "left_jacobian", "right_jacobian", "left_jacobian_inverse"),
    *("right_jacobian_inverse", "bch", "inverse", "normalise", "relative", "pairwise", "distance", "act"),
    *("vector_field", "lift", "orbit_origin"),
)


class LieGroup(ABC):
    """A matrix Lie group with a surjective exponential.

    A group of your own sets ``dim`` and ``matrix_dim`` and defines `exp` and `log`; nothing else is
    required. ``lie.testing.check_group`` then runs the laws below on it.

    Every verb takes float16, bfloat16, float32 and float64 and returns tensors of its own memory. Half precisions are
    computed in float32 and rounded once, in groups of your own too; a result beyond the range of its dtype has entries
    that are inf or NaN.

    Laws:
        - ``exp(log(g)) == g``; ``exp(0)`` is the identity; ``exp(-a) == inverse(exp(a))``
        - ``act(g @ h, x) == act(g, act(h, x))``
        - ``vee(hat(a)) == a``; ``hat(bracket(a, b)) == hat(a) @ hat(b) - hat(b) @ hat(a)``
        - ``exp(adjoint(g) @ a) == g @ exp(a) @ inverse(g)``
        - ``relative(g @ u, g @ v) == relative(u, v)``
        - ``exp(a + da) == exp(left_jacobian(a) da) exp(a) == exp(a) exp(right_jacobian(a) da)`` to first order
        - ``exp(bch(a, b, order)) == exp(a) exp(b)`` up to terms of higher order
        - ``interpolate(g @ u, g @ v, s) == g @ interpolate(u, v, s)``, u at s = 0 and v at s = 1

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
    orbit_dim: int | None = None
    """How many numbers name an orbit, where the group has a lift; 0 where the action is transitive."""
    _names: tuple[str, ...] | None = None
    isometric: bool = False
    """Whether the action on points preserves Euclidean distance."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make each verb that a group defines compute half precisions in float32 (`lie.groups.precision`)."""
        super().__init_subclass__(**kwargs)
        for name in _VERBS:
            verb = cls.__dict__.get(name)
            if inspect.isfunction(verb):
                setattr(cls, name, computed_in_float32(verb))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # What defines a group

    @abstractmethod
    def exp(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch m m"]:
        """The group element at time 1 of the one-parameter subgroup with velocity ``a``."""

    @abstractmethod
    def log(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch dim"]:
        """The principal ``a`` with ``exp(a) == g``."""

    # The algebra

    @property
    def _generators_float64(self) -> Tensor:
        return _constants(self)[0]

    @property
    def _dual_float64(self) -> Tensor:
        return _constants(self)[1]

    @property
    def _structure_float64(self) -> Tensor:
        return _constants(self)[2]

    def generators(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "dim m m"]:
        """The basis of the algebra as matrices: the derivative of `exp` at 0 along each coordinate."""
        return self._generators_float64.to(device=device, dtype=floating_dtype(dtype), copy=True)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """The name of each coordinate of the algebra, all different: ``a0``, ``a1``, ... for a group that sets none.

        >>> from lie.groups import SE2
        >>> SE2().coordinate_names
        ('theta', 'x', 'y')
        """
        return self._names or tuple(f"a{i}" for i in range(self.dim))

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
        self._check_algebras(a, b)
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

    def right_jacobian(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim dim"]:
        """J(-a), with ``exp(a + da) == exp(a) exp(J(-a) da)`` to first order."""
        self._check_algebra(a)
        return self.left_jacobian(-a)

    def left_jacobian_inverse(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim dim"]:
        """The inverse of `left_jacobian`: ``log(exp(b) exp(a)) == a + J(a)^-1 b`` to first order in b.

        It exists where ad_a has no eigenvalue 2 pi i k but 0: for rotation angles below 2 pi.
        """
        return torch.linalg.inv(self.left_jacobian(a))

    def right_jacobian_inverse(self, a: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim dim"]:
        """The inverse of `right_jacobian`: ``log(exp(a) exp(b)) == a + J(-a)^-1 b`` to first order in b."""
        self._check_algebra(a)
        return self.left_jacobian_inverse(-a)

    def bch(
        self, a: Float[Tensor, "*batch dim"], b: Float[Tensor, "*#batch dim"], order: int = 4
    ) -> Float[Tensor, "*batch dim"]:
        """The Baker-Campbell-Hausdorff series of ``log(exp(a) exp(b))`` up to ``order``, at most 5.

        Raises:
            ValueError: for another order.
        """
        self._check_algebras(a, b)
        return baker_campbell_hausdorff(self.bracket, a, b, order)

    # The group

    def identity(
        self, *shape: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "*shape m m"]:
        """The identity element, repeated to ``shape``; a tensor of its own, which may be written to."""
        m = self.matrix_dim
        return torch.eye(m, dtype=floating_dtype(dtype), device=device).expand(*sizes(shape), m, m).clone()

    def inverse(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The inverse element."""
        self._check_element(g)
        return torch.linalg.inv(g)

    def contains(self, g: Float[Tensor, "*batch m m"], *, tolerance: float | None = None) -> Bool[Tensor, "*batch"]:
        """Whether ``g`` is an element: ``exp(log(g)) == g`` up to ``tolerance``, relative to the largest entry.

        The default tolerance is the square root of the machine epsilon: elements that drifted a little still count.
        """
        self._check_element(g)
        allowed = torch.finfo(g.dtype).eps ** 0.5 if tolerance is None else tolerance
        g = g.float() if g.dtype in HALF else g
        size = g.abs().flatten(-2).amax(-1).clamp(min=1.0)
        difference = (self.exp(self.log(g)) - g).abs().flatten(-2).amax(-1)
        return difference <= allowed * size  # false for NaN

    def normalise(self, g: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m m"]:
        """The element nearest to ``g``, in the Frobenius norm of the matrices, where the group knows how.

        Rotations and similarities take any matrix that has a nearest one, by the polar decomposition. A matrix that has
        none gives NaN: of determinant 0 or below (a reflection), or singular to the precision of its dtype.
        Here, where nothing is known of the group, a copy of g.
        """
        self._check_element(g)
        return g.clone()

    def _renormalised(self, g: Tensor) -> Tensor:
        """``g``, an element but for the rounding of one step of an integrator, with that taken out at little cost."""
        return self.normalise(g)

    def relative(self, u: Float[Tensor, "*batch m m"], v: Float[Tensor, "*#batch m m"]) -> Float[Tensor, "*batch dim"]:
        """``log(v^-1 u)``: where ``u`` is as seen from ``v``. Unchanged when both are multiplied from the left.

        Without a compiler, what backward needs of each pair is computed again rather than kept, for the groups of this
        package.
        """
        self._check_elements(u, v)
        if not torch.compiler.is_compiling() and self._is_closed:
            return recomputed(self._relative, u, v)
        return self._relative(u, v)

    @property
    def _is_closed(self) -> bool:
        """Whether the verbs depend on their arguments alone, as those of this package do.

        A group of a user may have parameters, whose gradient a computation done again in backward would lose.
        """
        factors = [value for value in vars(self).values() if isinstance(value, LieGroup)]
        return type(self).__module__.startswith("lie.groups.") and all(factor._is_closed for factor in factors)

    def _relative(self, u: Tensor, v: Tensor) -> Tensor:
        """What `relative` computes; a group that knows a shorter way overrides this."""
        return self.log(self.inverse(v) @ u)

    def pairwise(
        self, u: Float[Tensor, "*batch n m m"], v: Float[Tensor, "*#batch k m m"] | None = None
    ) -> Float[Tensor, "*batch n k dim"]:
        """``relative(u_i, v_j)`` of all pairs (of u with itself for None): each element is prepared once.

        The closed forms of SO(3), SE(2) and SE(3) make no matrix of a pair. Compiled, a pair costs one kernel.
        """
        v = u if v is None else v
        for elements in (u, v):
            self._check_element(elements)
            if elements.ndim < 3:
                m = self.matrix_dim
                raise ValueError(f"expected elements of shape (..., n, {m}, {m}), got {tuple(elements.shape)}")
        return self.relative(u.unsqueeze(-3), v.unsqueeze(-4))

    def interpolate(
        self,
        u: Float[Tensor, "*batch m m"],
        v: Float[Tensor, "*#batch m m"],
        s: Float[Tensor, "*#batch"] | float,
    ) -> Float[Tensor, "*batch m m"]:
        """``u exp(s log(u^-1 v))``: the point at ``s`` of the geodesic from u (s = 0) to v (s = 1).

        The geodesics are those of the Cartan-Schouten connection, translates of one-parameter subgroups: for
        rotations the shortest turn at constant speed, for rigid motions a screw.
        """
        self._check_elements(u, v)
        if u.dtype in HALF:
            return self.interpolate(u.float(), v.float(), s).to(u.dtype)
        along = self.relative(v, u)
        s = _parameter(s, along, "s")
        return u @ self.exp(s.unsqueeze(-1) * along)

    def geodesic(
        self, u: Float[Tensor, "*batch m m"], a: Float[Tensor, "*#batch dim"], t: Float[Tensor, "*#batch"] | float
    ) -> Float[Tensor, "*batch m m"]:
        """``u exp(t a)``: the geodesic that leaves ``u`` with body velocity ``a``."""
        self._check_element(u)
        self._check_algebra(a)
        check_alike(u, a, "elements and algebra coordinates")
        check_batches(u.shape[:-2], a.shape[:-1], "elements and algebra coordinates")
        if u.dtype in HALF:
            return self.geodesic(u.float(), a.float(), t).to(u.dtype)
        t = _parameter(t, a, "t")
        return u @ self.exp(t.unsqueeze(-1) * a)

    def mean(
        self,
        g: Float[Tensor, "*batch N m m"],
        weights: Float[Tensor, "*#batch N"] | None = None,
        *,
        max_iterations: int = 64,
    ) -> Float[Tensor, "*batch m m"]:
        """The Karcher mean m of elements close together: ``sum_i w_i log(m^-1 g_i) == 0``.

        Args:
            g: elements, (..., N, m, m).
            weights: not negative, (..., N), normalised here; None weighs all alike.
            max_iterations: of the fixed point; it converges in a few where the elements are close.

        Raises:
            ValueError: if the iteration does not settle, for no elements, or for negative weights.

        Law: ``mean(h @ g) == h @ mean(g)``. Source: `lie.groups.mean`.
        """
        self._check_element(g)
        if g.dtype in HALF:
            return karcher_mean(self, g.float(), weights, max_iterations).to(g.dtype)
        return karcher_mean(self, g, weights, max_iterations)

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
        if (orbit_u is None) != (orbit_v is None):
            raise ValueError("expected the orbit ids of both elements or of none, got those of one")
        self._check_elements(u, v)
        if orbit_u is not None and orbit_v is not None:
            _check_orbits(orbit_u, orbit_v, u)
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
        """Random elements: rotations by Haar, the coordinates of all else standard normal.

        Args:
            shape: of the batch, ``sample(3, 2)`` or ``sample((3, 2))``.
            generator: source of randomness; None is torch's own.
            dtype, device: of the elements.

        Raises:
            TypeError: for a generator that is none, sizes that are no integers, or a dtype that is not floating-point.
            ValueError: for negative sizes.
        """
        check_generator(generator)
        dtype = floating_dtype(dtype)
        if dtype in HALF:  # the uniform numbers of a half precision are too coarse for an angle
            drawn = self._sample(*sizes(shape), generator=generator, dtype=torch.float32, device=device)
            return drawn.to(dtype)
        return self._sample(*sizes(shape), generator=generator, dtype=dtype, device=device)

    def _sample(self, *shape: int, **options: Any) -> Float[Tensor, "*shape m m"]:
        """What `sample` draws: here ``exp`` of standard normal coordinates."""
        return self.exp(torch.randn(*shape, self.dim, **options))

    def act(self, g: Float[Tensor, "*batch m m"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """``g`` applied to the point ``x``: linear if x has ``matrix_dim`` coordinates, affine if one less.

        A group that declares `point_dim` takes points of so many coordinates, and homogeneous ones.

        Raises:
            ValueError: for points of another dimension, or batches that do not broadcast.
            TypeError: for elements and points of different dtypes.
        """
        self._check_element(g)
        self._check_acted(x)
        check_alike(g, x, "elements and points")
        several = "for several points an element use g.unsqueeze(-3)"
        check_batches(g.shape[:-2], x.shape[:-1], "elements and points", several)
        d = x.shape[-1]
        if d == self.matrix_dim:
            return (g @ x.unsqueeze(-1)).squeeze(-1)
        return (g[..., :d, :d] @ x.unsqueeze(-1)).squeeze(-1) + g[..., :d, d]

    def vector_field(self, a: Float[Tensor, "*batch dim"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:
        """The fundamental vector field of ``a`` at ``x``: the derivative of ``act(exp(t a), x)`` at t = 0."""
        self._check_algebra(a)
        check_tensor(x, "points")
        check_alike(a, x, "algebra coordinates and points")
        if type(self).act is LieGroup.act:
            self._check_acted(x)
            check_batches(a.shape[:-1], x.shape[:-1], "algebra coordinates and points")
            d, A = x.shape[-1], self.hat(a)  # noqa: N806
            velocity = (A[..., :d, :d] @ x.unsqueeze(-1)).squeeze(-1)
            return velocity if d == self.matrix_dim else velocity + A[..., :d, d]
        return torch.func.jvp(lambda b: self.act(self.exp(b), x), (torch.zeros_like(a),), (a,))[1]

    def _check_acted(self, x: Tensor) -> None:
        """Raise unless the matrices act on points of this many coordinates."""
        check_tensor(x, "points")
        check_floating(x, "points")
        m, d = self.matrix_dim, x.shape[-1] if x.ndim else 0
        allowed = (m - 1, m) if self.point_dim is None else tuple(sorted({self.point_dim, m}))
        if d not in allowed:
            shapes = " or ".join(f"(..., {size})" for size in allowed)
            raise ValueError(
                f"expected points of shape {shapes} for {type(self).__name__}, got {tuple(x.shape)}; "
                "override `act` if the group acts otherwise"
            )

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
            ValueError: if the action is not transitive on the points, for a group without a lift of its own.

        A group that defines no lift gets this one: one orbit, its origin that of `orbit_origin` (override it where the
        default is a point that the group does not move everywhere), and for each point an element found by
        Gauss-Newton in the algebra (`lie.groups.lifting`). It is exact to rounding and can be differentiated, but takes
        one element of the coset and draws none at random.

        Source: Finzi et al. 2020 (LieConv), section on lifting from X to G x X/G.
        """
        check_tensor(x, "points")
        check_floating(x, "points")
        check_num_samples(num_samples, generator)
        if x.ndim == 0 or (self.point_dim is not None and x.shape[-1] != self.point_dim):
            d = "d" if self.point_dim is None else self.point_dim
            raise ValueError(f"expected points of shape (..., {d}) for {type(self).__name__}, got {tuple(x.shape)}")
        d, m = x.shape[-1], self.matrix_dim
        points = x.reshape(-1, d)
        own = type(self).orbit_origin is not LieGroup.orbit_origin
        # Made anew: a tensor made from x would belong to a vmap of x.
        none = torch.zeros(0, dtype=x.dtype, device=x.device)
        origin = self.orbit_origin(none) if own else self._numeric_origin(none, d)
        u = numeric_lift(self, points, origin).view(*x.shape[:-1], m, m)
        if num_samples is not None:
            u = u.unsqueeze(-3).repeat(*[1] * (x.ndim - 1), num_samples, 1, 1)
        return u, with_samples(x, num_samples)[..., :0]

    @property
    def lifts_numerically(self) -> bool:
        """Whether `lift` searches for elements, for want of one that is defined."""
        return type(self).lift is LieGroup.lift

    def orbit_origin(self, orbit: Float[Tensor, "*batch q"]) -> Float[Tensor, "*batch d"]:
        """The chosen origin of each orbit, from which `lift` starts.

        For a group without a lift of its own, with points of `point_dim` (else `matrix_dim`) coordinates: 0 where
        the group moves it in every direction, else the first unit vector.
        """
        self._check_orbit(orbit)
        d = self.point_dim or self.matrix_dim
        return orbit.new_zeros(*orbit.shape[:-1], d) + self._numeric_origin(orbit, d)

    def _numeric_origin(self, like: Tensor, d: int) -> Tensor:
        basis = torch.eye(self.dim, dtype=like.dtype, device=like.device)
        zero = torch.zeros(d, dtype=like.dtype, device=like.device)
        fields = self.vector_field(basis, zero)  # (dim, d)
        if self.dim and int(torch.linalg.matrix_rank(fields)) == d:
            return zero
        return torch.eye(d, dtype=like.dtype, device=like.device)[0]

    # Checks where users enter

    def _check_algebra(self, a: Tensor) -> None:
        check_tensor(a, "algebra coordinates")
        if a.shape[-1:] != (self.dim,):
            raise ValueError(
                f"expected algebra coordinates of shape (..., {self.dim}) for {type(self).__name__}, "
                f"got {tuple(a.shape)}"
            )
        if a.dtype not in FLOATING:
            check_floating(a, "algebra coordinates")

    def _check_algebras(self, a: Tensor, b: Tensor) -> None:
        self._check_algebra(a)
        self._check_algebra(b)
        check_alike(a, b, "algebra coordinates")
        check_batches(a.shape[:-1], b.shape[:-1], "algebra coordinates")

    def _check_element(self, g: Tensor) -> None:
        check_tensor(g, "elements")
        m = self.matrix_dim
        if g.shape[-2:] != (m, m):
            raise ValueError(
                f"expected elements of shape (..., {m}, {m}) for {type(self).__name__}, got {tuple(g.shape)}"
            )
        if g.dtype not in FLOATING:
            check_floating(g, "elements")

    def _check_elements(self, u: Tensor, v: Tensor) -> None:
        self._check_element(u)
        self._check_element(v)
        check_alike(u, v, "elements")
        check_batches(u.shape[:-2], v.shape[:-2], "elements")

    def _check_points(self, x: Tensor, num_samples: int | None, generator: torch.Generator | None = None) -> None:
        check_tensor(x, "points")
        if x.shape[-1:] != (self.point_dim,):
            raise ValueError(
                f"expected points of shape (..., {self.point_dim}) for {type(self).__name__}, got {tuple(x.shape)}"
            )
        check_floating(x, "points")
        check_num_samples(num_samples, generator)

    def _check_orbit(self, orbit: Tensor) -> None:
        check_tensor(orbit, "orbit ids")
        check_floating(orbit, "orbit ids")
        if self.orbit_dim is not None and orbit.shape[-1:] != (self.orbit_dim,):
            raise ValueError(
                f"expected orbit ids of shape (..., {self.orbit_dim}) for {type(self).__name__}, "
                f"got {tuple(orbit.shape)}; they are the second result of lift"
            )


for _name in _VERBS:
    setattr(LieGroup, _name, computed_in_float32(LieGroup.__dict__[_name]))


def _constants(group: LieGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Generators (dim, m, m), their dual basis (dim, m, m) and the structure constants, in float64, once a group."""
    known = group.__dict__.get("_constants")
    if known is not None:
        return known
    # Outside of every transform of torch.func that may be under way: constants made inside would belong to it.
    with temporarily_clear_interpreter_stack():
        return _new_constants(group)


def _new_constants(group: LieGroup) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        jacobian = torch.func.jacrev(group.exp)(torch.zeros(group.dim, dtype=torch.float64))
    if jacobian.requires_grad:
        raise ValueError(
            f"expected the generators of {type(group).__name__} to be constants, got an exp whose derivative at 0 "
            "depends on a tensor that requires a gradient; put that into the coordinates, or detach it in exp"
        )
    generators = jacobian.movedim(-1, 0).detach()  # (dim, m, m)
    if not torch.isfinite(generators).all():
        raise ValueError(
            f"the derivative of {type(group).__name__}.exp at 0 is not finite; write exp so that both sides of "
            "every torch.where stay finite at 0 (see lie.groups.functions)"
        )
    dual = torch.linalg.pinv(generators.flatten(1)).mT.unflatten(-1, (group.matrix_dim,) * 2)
    products = generators[:, None] @ generators[None]  # (dim, dim, m, m)
    structure = torch.einsum("ijmn,kmn->ijk", products - products.transpose(0, 1), dual)
    constants = (generators, dual, structure)
    object.__setattr__(group, "_constants", constants)  # on a frozen dataclass too
    return constants


# Made while tracing, they would be traced: slowly, or not at all. This is all that
# `torch.compiler.assume_constant_result` does, but that imports the compiler: seconds at every start.
_constants._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_is_group(group: Any, name: str = "group") -> None:
    """Raise for what is no group: a class instead of an instance, a name, or a group that lacks its dimensions."""
    if isinstance(group, type) and issubclass(group, LieGroup):
        raise TypeError(f"expected an instance for {name}, got the class {group.__name__}; write {group.__name__}()")
    if not isinstance(group, LieGroup):
        hint = "; use lie.groups.by_name for a name" if isinstance(group, str) else ""
        raise TypeError(f"expected a LieGroup for {name}, got {group!r}{hint}")
    for attribute in ("dim", "matrix_dim"):
        if not isinstance(getattr(group, attribute, None), int):
            raise TypeError(f"expected {type(group).__name__} to set {attribute} to an integer; see LieGroup")


def with_samples(x: Tensor, num_samples: int | None) -> Tensor:
    """``x`` of shape (..., d) repeated to (..., num_samples, d), or as it is for None: a view."""
    return x if num_samples is None else x.unsqueeze(-2).expand(*x.shape[:-1], num_samples, x.shape[-1])


def affine_matrix(linear: Float[Tensor, "*batch d d"], t: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch m m"]:
    """The matrix ``[[linear, t], [0, 1]]`` of an affine map."""
    batch = torch.broadcast_shapes(linear.shape[:-2], t.shape[:-1])
    d = t.shape[-1]
    top = torch.cat([linear.expand(*batch, d, d), t.expand(*batch, d).unsqueeze(-1)], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom = torch.cat([bottom[..., :d], torch.ones_like(bottom[..., d:])], dim=-1)
    return torch.cat([top, bottom], dim=-2)


def _parameter(s: Tensor | float, like: Tensor, name: str) -> Tensor:
    """A curve parameter as a tensor like ``like`` (..., dim), with whose batch it must broadcast."""
    if isinstance(s, complex) or (isinstance(s, Tensor) and s.is_complex()):
        raise TypeError(f"expected a real {name}, got {s.dtype if isinstance(s, Tensor) else s!r}")
    s = torch.as_tensor(s, dtype=like.dtype, device=like.device)
    check_batches(like.shape[:-1], s.shape, f"a batch and {name}")
    return s


def _check_orbits(orbit_u: Tensor, orbit_v: Tensor, elements: Tensor) -> None:
    for orbit in (orbit_u, orbit_v):
        check_tensor(orbit, "orbit ids")
        check_alike(elements, orbit, "elements and orbit ids")
    check_alike(orbit_u, orbit_v, "orbit ids")
    if orbit_u.ndim == 0 or orbit_v.ndim == 0 or orbit_u.shape[-1] != orbit_v.shape[-1]:
        raise ValueError(
            f"expected orbit ids of one length along the last axis, got {tuple(orbit_u.shape)} and "
            f"{tuple(orbit_v.shape)}"
        )
    check_batches(orbit_u.shape[:-1], orbit_v.shape[:-1], "orbit ids")


def _safe_norm(a: Tensor) -> Tensor:
    """The length of ``a`` (..., n), with derivatives of zero at 0. No square leaves the range of the dtype."""
    if a.shape[-1] == 0:
        return a.sum(-1)
    zero = (a == 0).all(-1)
    safe = torch.where(zero.unsqueeze(-1), torch.ones_like(a), a)
    if a.dtype == torch.float64 or a.device.type == "mps":  # no wider dtype: squares of what is scaled to 1
        scale = torch.linalg.vector_norm(safe.detach(), torch.inf, -1, keepdim=True).clamp(max=torch.finfo(a.dtype).max)
        length = torch.linalg.vector_norm(safe / scale, dim=-1) * scale.squeeze(-1)
    else:
        length = torch.linalg.vector_norm(safe, dim=-1, dtype=torch.float64).to(a.dtype)
    return torch.where(zero, torch.zeros_like(length), length)
