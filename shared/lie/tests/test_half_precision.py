"""Half precision against the same input in float64: each verb of each group, with gradients, where it is hard."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import (
    SE2,
    SE3,
    SO2,
    SO3,
    Heisenberg,
    LieGroup,
    Product,
    RxSO2,
    RxSQ,
    Sim2,
    Sim3,
    Subgroup,
    T,
    Trivial,
)
from scipy.linalg import expm


class OnlyExpAndLog(LieGroup):
    """Rigid motions as a user defines them, by exp and log alone and by what is wrong in half precision."""

    dim, matrix_dim, point_dim = 6, 4, 3

    def exp(self, a):
        return torch.linalg.matrix_exp(SE3().hat(a))

    def log(self, g):
        return SE3().log(g)


GROUPS = [
    *(T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg(), Trivial(3)),
    *(Product(SO3(), Product(T(2), OnlyExpAndLog())), Subgroup(SE3(), (2, 3, 4, 5)), OnlyExpAndLog()),
]
HALF = [torch.float16, torch.bfloat16]
each_group = pytest.mark.parametrize("group", GROUPS, ids=lambda G: type(G).__name__)
each_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
SIZES = (1e-3, 0.3, 1.0, 3.1)  # of |a|: near the identity, where matrix_exp gave inf, and near a half turn


def coordinates(group: LieGroup, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Algebra elements of each of the sizes, (4, 3, dim), representable in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(len(SIZES), 3, group.dim, generator=generator, dtype=torch.float64)
    a = torch.tensor(SIZES, dtype=torch.float64).view(-1, 1, 1) * torch.nn.functional.normalize(a, dim=-1)
    return a.to(dtype)


def verbs(group: LieGroup, dtype: torch.dtype) -> dict:
    """Each verb as a function of one tensor, with that tensor in ``dtype``."""
    a, b = coordinates(group, dtype, 0), coordinates(group, dtype, 1)
    g, h = (group.exp(x.double()).to(dtype) for x in (a, b))
    d = group.point_dim or group.matrix_dim
    x = torch.linspace(-1.0, 1.3, 12 * d).view(4, 3, d).to(dtype)

    def like(y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return y.to(other.dtype)

    return {
        "exp": (group.exp, a),
        "log": (group.log, g),
        "hat": (group.hat, a),
        "vee": (group.vee, group.hat(a)),
        "inverse": (group.inverse, g),
        "normalise": (group.normalise, g),
        "adjoint": (group.adjoint, g),
        "left_jacobian": (group.left_jacobian, a),
        "right_jacobian": (group.right_jacobian, a),
        "left_jacobian_inverse": (group.left_jacobian_inverse, a),
        "right_jacobian_inverse": (group.right_jacobian_inverse, a),
        "bracket": (lambda y: group.bracket(y, like(b, y)), a),
        "bch": (lambda y: group.bch(y, like(b, y), 5), a),
        "relative": (lambda y: group.relative(y, like(h, y)), g),
        "pairwise": (lambda y: group.pairwise(y, like(h, y)), g),
        # Apart: the direction between two elements that rounding makes equal is not defined.
        "distance": (lambda y: group.distance(y, like(h[1:], y)), g[1:]),
        "interpolate": (lambda y: group.interpolate(y, like(h, y), 0.3), g),
        "geodesic": (lambda y: group.geodesic(like(h, y), y, 0.3), a),
        "mean": (lambda y: group.mean(y), g[:3]),
        "act": (lambda y: group.act(y, like(x, y)), g),
        "vector_field": (lambda y: group.vector_field(y, like(x, y)), a),
    }


@each_dtype
@each_group
def test_each_verb_and_its_gradient_are_right_to_epsilon(group, dtype):
    for name, (verb, y) in verbs(group, dtype).items():
        half, exact = y.clone().requires_grad_(), y.double().requires_grad_()
        got, expected = verb(half), verb(exact)
        assert got.dtype == dtype, name
        # One rounding is half an epsilon of each entry. What float32 loses before is amplified by 2 at worst here.
        allowed = 2.0 * torch.finfo(dtype).eps * expected.abs() + 1e-6
        assert ((got.double() - expected).abs() <= allowed).all(), name
        if not group.dim:
            continue  # the trivial group has one element, whatever its argument
        weights = torch.linspace(0.3, 97.0, got.numel()).sin().view_as(got).to(dtype)
        (slope,) = torch.autograd.grad((got * weights).sum(), half)
        (exact_slope,) = torch.autograd.grad((expected * weights).sum(), exact)
        # The sum of some dozen products of weights may cancel; its size is that of the largest gradient.
        size = exact_slope.abs().amax().clamp(min=1.0)
        assert (slope.double() - exact_slope).abs().max() <= 4.0 * torch.finfo(dtype).eps * size, name


@each_dtype
def test_exponentials_and_jacobians_against_scipy(dtype):
    group, eps = SE3(), torch.finfo(dtype).eps
    for size in SIZES:
        a = (size * torch.tensor([0.48, -0.6, 0.64, 1.0, 2.0, -3.0])).to(dtype)
        exact = torch.from_numpy(expm(group.hat(a.double()).numpy()))
        # Half an epsilon of rounding of each entry, and as much for its float32 arithmetic.
        torch.testing.assert_close(group.exp(a).double(), exact, rtol=eps, atol=1e-6)
        ad = torch.stack([group.bracket(a.double(), e) for e in torch.eye(6, dtype=torch.float64)], dim=-1)
        block = torch.zeros(12, 12, dtype=torch.float64)
        block[:6, :6], block[:6, 6:] = ad, torch.eye(6)
        exact = torch.from_numpy(expm(block.numpy()))[:6, 6:]
        torch.testing.assert_close(group.left_jacobian(a).double(), exact, rtol=eps, atol=1e-6)
    assert torch.equal(group.left_jacobian(torch.zeros(6, dtype=dtype)), torch.eye(6, dtype=dtype))


@each_dtype
@each_group
def test_lifts_and_samples_are_those_of_float32_rounded(group, dtype):
    d = group.point_dim or group.matrix_dim
    x = torch.linspace(-1.0, 1.3, 4 * d).view(4, d).to(dtype)
    for samples in (None, 2):
        (u, q), (v, r) = (
            group.lift(points, samples, generator=torch.Generator().manual_seed(0)) for points in (x, x.float())
        )
        assert u.dtype == q.dtype == dtype
        assert torch.equal(u, v.to(dtype)) and torch.equal(q, r.to(dtype))
        # The rounded elements move points of size 1 by half an epsilon an entry; a product sums at most 4 of them.
        moved = group.act(u.double(), group.orbit_origin(q.double()))
        target = x.double() if samples is None else x.double().unsqueeze(-2)
        assert (moved - target).abs().max() <= 8.0 * torch.finfo(dtype).eps
    g, h = (group.sample(50, generator=torch.Generator().manual_seed(1), dtype=t) for t in (dtype, torch.float32))
    assert torch.equal(g, h.to(dtype))


def test_uniform_angles_are_finer_than_the_numbers_of_the_dtype():
    g = SO2().sample(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    # bfloat16 has 256 uniform numbers in [0, 1): angles drawn in it would take no more values.
    assert len(torch.unique(SO2().log(g.double()))) > 500


def test_beyond_the_range_of_float16_results_are_infinite():
    big = torch.tensor([0.5, 60_000.0, 60_000.0], dtype=torch.float16)
    g = SE2().exp(big)
    exact = SE2().exp(big.double())
    assert exact[:2, 2].abs().max() > 65504 and torch.equal(g, exact.to(torch.float16))
    assert SE2().exp(big)[1, 2] == math.inf
    far = T(2).exp(torch.tensor([300.0, 400.0], dtype=torch.float16))
    assert float(T(2).distance(far, T(2).identity(dtype=torch.float16))) == 500.0  # the square is 250000
    assert float(RxSO2().exp(torch.tensor([20.0, 0.0], dtype=torch.float16))[0, 0]) == math.inf


def test_two_dtypes_are_refused_and_so_are_those_without_arithmetic():
    half = SE3().identity(dtype=torch.float16)
    single = SE3().identity(dtype=torch.float32)
    for verb in (SE3().relative, lambda u, v: SE3().interpolate(u, v, 0.5), SE3().distance):
        with pytest.raises(TypeError, match=r"one dtype, got torch.float16 and torch.float32"):
            verb(half, single)
    with pytest.raises(TypeError, match="one dtype"):
        SE3().act(half, torch.zeros(3))
    with pytest.raises(TypeError, match=r"floating-point algebra coordinates .*float8_e4m3fn"):
        SE3().exp(torch.zeros(6).to(torch.float8_e4m3fn))


@each_dtype
def test_keywords_and_transforms(dtype):
    a = coordinates(SE3(), dtype, 0)[1]
    g = SE3().exp(a=a)
    assert torch.equal(g, SE3().exp(a)) and torch.equal(torch.func.vmap(SE3().exp)(a), g)
    forward = torch.func.jacfwd(SE3().left_jacobian)(a[0])
    backward = torch.func.jacrev(SE3().left_jacobian)(a[0])
    exact = torch.func.jacrev(SE3().left_jacobian)(a[0].double())
    for got in (forward, backward):
        assert (got.double() - exact).abs().max() <= 2.0 * torch.finfo(dtype).eps  # derivatives of size 1, rounded
