"""The laws of a Lie group, checked on random elements: run them on a group of your own.

Each law of `lie.groups.LieGroup` is one function below; `check_group` runs them all and names the law
that fails, with its error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lie.autodiff import jvp_along
from lie.groups.base import LieGroup, check_is_group
from lie.groups.precision import HALF
from lie.groups.product import Product


def check_group(
    G: LieGroup,  # noqa: N803 (the field's letter)
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
    count: int = 32,
    seed: int = 0,
    tolerance: float | None = None,
) -> None:
    """Check the group laws of ``G`` on random elements and raise at the first that fails.

    Args:
        G: the group, built in or your own.
        dtype, device: of the elements that are tried.
        scale: standard deviation of the algebra coordinates; keep ``exp`` of them inside the range of ``log``.
        count: how many random elements.
        seed: of the random elements.
        tolerance: largest error relative to the size of what is compared; None takes 1000 machine epsilons
            (products of three matrices with entries up to exp(scale) and the inverse of a matrix lose some), and 32 in
            half precision, where a ``scale`` of 0.3 leaves them room.

    Raises:
        AssertionError: naming the law and its error.
    """
    check_is_group(G, "G")
    if count < 3:
        raise ValueError(f"expected a count of at least 3 elements, got {count}")
    if not dtype.is_floating_point:
        raise TypeError(f"expected a floating-point dtype, got {dtype}")
    generator = torch.Generator(device=device).manual_seed(seed)
    if tolerance is None:
        tolerance = (32 if dtype in HALF else 1000) * torch.finfo(dtype).eps

    def algebra() -> Tensor:
        return scale * torch.randn(count, G.dim, generator=generator, dtype=dtype, device=device)

    for law in _LAWS:
        failure = law(G, algebra(), algebra(), algebra(), tolerance)
        if failure is not None:
            raise AssertionError(f"{G!r} breaks the law {failure}")


def _differs(law: str, got: Tensor, expected: Tensor, tolerance: float) -> str | None:
    if got.shape != expected.shape:
        return f"{law}: shapes {tuple(got.shape)} and {tuple(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"{law}: dtypes {got.dtype} and {expected.dtype}"
    if got.numel() == 0:
        return None
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    return None if error <= tolerance else f"{law}: relative error {error:.3g}, allowed {tolerance:.3g}"


def _first(*failures: str | None) -> str | None:
    return next((failure for failure in failures if failure is not None), None)


def _shapes(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    m = G.matrix_dim
    for batch in ((), (3,), (2, 0), (2, 1, 3)):
        g = G.exp(a.new_zeros(*batch, G.dim))
        if g.shape != (*batch, m, m):
            return f"exp maps (..., dim) to (..., m, m): got {tuple(g.shape)} for {(*batch, G.dim)}"
        back = G.log(g)
        if back.shape != (*batch, G.dim):
            return f"log maps (..., m, m) to (..., dim): got {tuple(back.shape)} for {tuple(g.shape)}"
        if g.dtype != a.dtype or back.dtype != a.dtype:
            return f"dtype follows the input: got {g.dtype} and {back.dtype} for {a.dtype}"
    return None


def _exponential(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    g = G.exp(a)
    eye = G.identity(dtype=a.dtype, device=a.device)
    return _first(
        _differs("exp(0) == 1", G.exp(torch.zeros_like(a)), eye.expand_as(g), tolerance),
        _differs("log(1) == 0", G.log(eye.expand_as(g)), torch.zeros_like(a), tolerance),
        _differs("exp(log(g)) == g", G.exp(G.log(g)), g, tolerance),
        _differs("exp((s + t) a) == exp(s a) exp(t a)", G.exp(0.7 * a) @ G.exp(0.3 * a), g, tolerance),
    )


def _axioms(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    g, h = G.exp(a), G.exp(b)
    eye = G.identity(dtype=a.dtype, device=a.device).expand_as(g)
    product = g @ h
    return _first(
        _differs("inverse(g) g == 1", G.inverse(g) @ g, eye, tolerance),
        _differs("g inverse(g) == 1", g @ G.inverse(g), eye, tolerance),
        _differs("exp(-a) == inverse(exp(a))", G.exp(-a), G.inverse(g), tolerance),
        _differs("inverse(g h) == inverse(h) inverse(g)", G.inverse(product), G.inverse(h) @ G.inverse(g), tolerance),
        _differs("closure, exp(log(g h)) == g h", G.exp(G.log(product)), product, tolerance),
    )


def _algebra(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    A, B = G.hat(a), G.hat(b)  # noqa: N806
    bracket = G.bracket
    jacobi = bracket(a, bracket(b, c)) + bracket(b, bracket(c, a)) + bracket(c, bracket(a, b))
    return _first(
        _differs("vee(hat(a)) == a", G.vee(A), a, tolerance),
        _differs("hat([a, b]) == hat(a) hat(b) - hat(b) hat(a)", G.hat(bracket(a, b)), A @ B - B @ A, tolerance),
        _differs("[a, b] == -[b, a]", bracket(a, b), -bracket(b, a), tolerance),
        _differs("Jacobi identity", jacobi, torch.zeros_like(jacobi), tolerance),
        _differs("exp(a) == matrix_exp(hat(a))", G.exp(a), _matrix_exp(A), tolerance),
    )


def _matrix_exp(A: Tensor) -> Tensor:  # noqa: N803
    """The exponential of the matrix; of a half precision in float32, since torch's is wrong there."""
    return torch.linalg.matrix_exp(A.float()).to(A.dtype) if A.dtype in HALF else torch.linalg.matrix_exp(A)


def _adjoint(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    g, h = G.exp(a), G.exp(b)
    moved = (G.adjoint(g) @ c.unsqueeze(-1)).squeeze(-1)
    pulled, along = jvp_along(G.exp, a, b)
    trivialised = along @ G.inverse(pulled)
    jacobian = (G.left_jacobian(a) @ b.unsqueeze(-1)).squeeze(-1)
    return _first(
        _differs("exp(Ad_g c) == g exp(c) g^-1", G.exp(moved), g @ G.exp(c) @ G.inverse(g), tolerance),
        _differs("Ad_(g h) == Ad_g Ad_h", G.adjoint(g @ h), G.adjoint(g) @ G.adjoint(h), tolerance),
        _differs("d exp(a)[b] exp(a)^-1 == hat(J(a) b)", G.hat(jacobian), trivialised, tolerance),
        _differs(
            "relative(g u, g v) == relative(u, v)",
            G.exp(G.relative(g @ h, g @ G.exp(c))),
            G.exp(G.relative(h, G.exp(c))),
            tolerance,
        ),
    )


def _series(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    eye = torch.eye(G.dim, dtype=a.dtype, device=a.device).expand(*a.shape, G.dim)
    pulled, along = jvp_along(G.exp, a, b)
    body = G.inverse(pulled) @ along
    jacobian = (G.right_jacobian(a) @ b.unsqueeze(-1)).squeeze(-1)
    # Small enough that the neglected terms of degree 6 are under 1e-10 of the result, where brackets are of size 1.
    a_small, b_small = 0.02 * a, 0.02 * b
    exact = G.relative(G.exp(b_small), G.exp(-a_small))
    size = (a.norm(dim=-1) + b.norm(dim=-1)).amax().clamp(min=1.0) if a.numel() else a.new_ones(())
    neglected = float((0.02 * size * _bracket_norm(G, a)) ** 6) / 100
    return _first(
        _differs("exp(a)^-1 d exp(a)[b] == hat(J(-a) b)", G.hat(jacobian), body, tolerance),
        _differs("J(a) J(a)^-1 == 1", G.left_jacobian(a_small) @ G.left_jacobian_inverse(a_small), eye, tolerance),
        _differs("bch(a, b, 5) == log(exp(a) exp(b))", G.bch(a_small, b_small, 5), exact, tolerance + neglected),
    )


def _bracket_norm(G: LieGroup, a: Tensor) -> float:  # noqa: N803
    basis = torch.eye(G.dim, dtype=a.dtype, device=a.device)
    brackets = G.bracket(basis[:, None], basis[None])  # (dim, dim, dim)
    return max(1.0, float(brackets.norm())) if brackets.numel() else 1.0


def _geodesics(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    u, h = G.exp(0.5 * a), G.exp(0.5 * c)
    step = 0.3 * b
    v = u @ G.exp(step)
    halfway = G.interpolate(u, v, 0.5)
    spread = torch.stack([u @ G.exp(0.2 * s * b) for s in (-1.0, 0.5, 1.0)], dim=-3)
    mean = G.mean(spread)
    return _first(
        _differs("interpolate(u, v, 0) == u", G.interpolate(u, v, 0.0), u, tolerance),
        _differs("interpolate(u, v, 1) == v", G.interpolate(u, v, 1.0), v, tolerance),
        _differs("interpolate(u, u exp(b), 1/2) == u exp(b / 2)", halfway, G.geodesic(u, step, 0.5), tolerance),
        _differs("interpolate(h u, h v, s) == h interpolate(u, v, s)", G.interpolate(h @ u, h @ v, 0.5), h @ halfway,
                 tolerance),
        _differs("mean of u exp(s b) == u exp(mean(s) b)", mean, u @ G.exp(0.2 / 6 * b), tolerance),
        _differs("mean(h g) == h mean(g)", G.mean(h.unsqueeze(-3) @ spread), h @ mean, tolerance),
        _differs("pairwise(u)_ij == relative(u_i, u_j)", G.pairwise(u[:3])[1, 2], G.relative(u[1], u[2]), tolerance),
    )  # fmt: skip


def _action(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    g, h = G.exp(a), G.exp(b)
    d = G.point_dim or G.matrix_dim
    x = torch.linspace(-1.0, 1.0, a.shape[0] * d, dtype=a.dtype, device=a.device).view(a.shape[0], d)
    zero = torch.zeros(1, dtype=a.dtype, device=a.device)
    _, velocity = jvp_along(lambda s: G.act(G.exp(s * a), x), zero, torch.ones_like(zero))
    return _first(
        _differs("act(g h, x) == act(g, act(h, x))", G.act(g @ h, x), G.act(g, G.act(h, x)), tolerance),
        _differs("vector_field(a, x) == d/dt act(exp(t a), x)", G.vector_field(a, x), velocity, tolerance),
    )


def _lift(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    generator = torch.Generator(device=a.device).manual_seed(0)
    if G.lifts_numerically and isinstance(G, Product):
        return None  # one factor may reach all points and the other not: try them one by one
    if G.lifts_numerically:  # on points that the group reaches, whatever they are
        origin = G.orbit_origin(a.new_zeros(0))
        x = G.act(G.exp(0.5 * a[:6]), origin).view(2, 3, -1)
    elif G.point_dim is None:
        return None
    else:
        x = torch.randn(2, 3, G.point_dim, generator=generator, dtype=a.dtype, device=a.device)
        x[0, 0] = 0.0
        x[0, 1, 1:], x[0, 1, 0] = 0.0, -1.0  # the antipode of the usual origin
    for samples in (None, 1, 4):
        u, q = G.lift(x, num_samples=samples, generator=generator)
        expected = x if samples is None else x.unsqueeze(-2).expand(2, 3, samples, x.shape[-1])
        failure = _first(
            _differs("act(u, orbit_origin(q)) == x for (u, q) = lift(x)", G.act(u, G.orbit_origin(q)), expected,
                     tolerance),
            _differs("lift gives group elements, exp(log(u)) == u", G.exp(G.log(u)), u, tolerance),
        )  # fmt: skip
        if failure is not None:
            return failure
    return None


def _sampling(G: LieGroup, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> str | None:  # noqa: N803
    generator = torch.Generator(device=a.device).manual_seed(0)
    g = G.sample(len(a), generator=generator, dtype=a.dtype, device=a.device)
    u, v = G.exp(0.5 * a), G.exp(0.5 * b)
    zero = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    return _first(
        _differs("sample gives group elements, exp(log(g)) == g", G.exp(G.log(g)), g, tolerance),
        _differs("normalise(g) == g", G.normalise(g), g, tolerance),
        _differs("distance(g, g) == 0", G.distance(u, u), zero, tolerance),
        _differs("distance(u, v) == distance(v, u)", G.distance(u, v), G.distance(v, u), tolerance),
        None if bool((G.distance(u, v) >= 0).all()) else "distance(u, v) >= 0",
    )


_LAWS: tuple[Callable[[LieGroup, Tensor, Tensor, Tensor, float], str | None], ...] = (
    _shapes,
    _exponential,
    _axioms,
    _algebra,
    _adjoint,
    _series,
    _geodesics,
    _action,
    _lift,
    _sampling,
)
