"""The laws on every group, what a user's group gets for free, sampling, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lie.groups import SE2, SE3, SO2, SO3, LieGroup, T, Trivial, by_name
from lie.testing import check_group
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

GROUPS = [T(1), T(2), T(3), SO2(), SE2(), SO3(), SE3(), Trivial(2), Trivial(3)]
DTYPES = [torch.float32, torch.float64]


class Heisenberg(LieGroup):
    """Upper triangular 3 x 3 matrices with ones on the diagonal, coordinates (x, y, z)."""

    dim, matrix_dim = 3, 3

    def exp(self, a):
        x, y, z = a.split(1, -1)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        entries = [one, x, z + x * y / 2, zero, one, y, zero, zero, one]
        return torch.cat(entries, -1).unflatten(-1, (3, 3))

    def log(self, g):
        x, y = g[..., 0, 1], g[..., 1, 2]
        return torch.stack([x, y, g[..., 0, 2] - x * y / 2], -1)


class PositiveScaling(LieGroup):
    """Dilations of R^2, coordinate log r; exp and log alone, with a linear action."""

    dim, matrix_dim = 1, 2

    def exp(self, a):
        return a.exp().unsqueeze(-1) * torch.eye(2, dtype=a.dtype, device=a.device)

    def log(self, g):
        return g[..., 0, :1].log()


@pytest.mark.parametrize("default", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [*GROUPS, Heisenberg(), PositiveScaling()], ids=repr)
def test_laws(group, dtype, default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        check_group(group, dtype=dtype)
    finally:
        torch.set_default_dtype(before)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.7), st.sampled_from(GROUPS))
@settings(deadline=None, max_examples=60)
def test_laws_at_random_scales(seed, scale, group):
    # Up to 1.7, where normal coordinates often make angles beyond pi: the laws hold on the group, not on coordinates.
    check_group(group, scale=scale, seed=seed, count=4, tolerance=1e-11)


@pytest.mark.parametrize("law_breaker", ["log", "exp", "not_closed"])
def test_check_group_catches_a_broken_group(law_breaker):
    class Broken(Heisenberg):
        def log(self, g):
            return super().log(g) * (1.001 if law_breaker == "log" else 1.0)

        def exp(self, a):
            scaled = a * torch.tensor([1.0, 1.0, 1.001], dtype=a.dtype) if law_breaker == "exp" else a
            g = super().exp(scaled)
            return g + a.square().sum(-1)[..., None, None] if law_breaker == "not_closed" else g

    with pytest.raises(AssertionError, match="breaks the law"):
        check_group(Broken())


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_exp_is_scipy_expm(group):
    a = torch.randn(20, group.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.from_numpy(expm(A.numpy())) for A in group.hat(a)])
    torch.testing.assert_close(group.exp(a), expected, rtol=1e-13, atol=1e-13)  # expm itself is good to 10 eps


def test_rotations_are_those_of_scipy():
    a = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    R = SO3().exp(a)
    torch.testing.assert_close(R, torch.from_numpy(Rotation.from_rotvec(a.numpy()).as_matrix()), rtol=0, atol=1e-14)
    log = torch.from_numpy(Rotation.from_matrix(R.numpy()).as_rotvec())
    torch.testing.assert_close(SO3().log(R), log, rtol=0, atol=1e-13)


def test_coordinates_are_in_the_contracts_order():
    quarter = math.pi / 2
    x_axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    turned = SO2().act(SO2().exp(torch.tensor([quarter], dtype=torch.float64)), x_axis)
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-15)
    shift = SE2().exp(torch.tensor([0.0, 2.0, 3.0]))
    assert torch.equal(SE2().act(shift, torch.zeros(2)), torch.tensor([2.0, 3.0]))
    motion = SE3().exp(torch.tensor([0.0, 0.0, quarter, 0.0, 0.0, 1.0], dtype=torch.float64))
    expected = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    moved = SE3().act(motion, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-15)
    # [rotation, translation along x] is translation along y: brackets have the sign of matrix commutators.
    e = torch.eye(3)
    assert torch.equal(SE2().bracket(e[0], e[1]), e[2])


@pytest.mark.parametrize("group", [T(2), SO2(), SE2(), SO3(), SE3(), Trivial(3)], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lift_reaches_every_point_to_four_epsilons(group, dtype):
    d = group.point_dim
    x = torch.randn(50, d, dtype=dtype, generator=torch.Generator().manual_seed(0))
    special = torch.cat([torch.eye(d), -torch.eye(d), torch.zeros(1, d), 1e-20 * torch.eye(d), 1e18 * torch.eye(d)])
    x = torch.cat([x, special.to(dtype)])
    x[-1, -1] += 1e-3
    for shape in ((-1,), (3, -1), (1, 1, -1)):
        points = x[: len(x) // 3 * 3].reshape(*shape, d)
        u, q = group.lift(points, num_samples=3, generator=torch.Generator().manual_seed(1))
        error = group.act(u, group.orbit_origin(q)) - points.unsqueeze(-2)
        norm = points.norm(dim=-1, keepdim=True).unsqueeze(-2)
        assert u.shape == (*points.shape[:-1], 3, group.matrix_dim, group.matrix_dim)
        assert (error.norm(dim=-1, keepdim=True) <= 4 * torch.finfo(dtype).eps * norm).all()


def test_stabilisers_are_sampled_uniformly():
    """Kolmogorov-Smirnov at 1e5 samples: with p >= 1e-3 a fixed seed does not fail, a wrong density has p = 0."""
    count, generator = 100_000, torch.Generator().manual_seed(0)
    uniform = "uniform"
    u, _ = SE2().lift(torch.zeros(1, 2, dtype=torch.float64), num_samples=count, generator=generator)
    assert kstest(SE2().log(u)[0, :, 0] / (2 * math.pi) + 0.5, uniform).pvalue > 1e-3
    u, _ = SO3().lift(torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64), num_samples=count, generator=generator)
    second_axis = u[0, :, :, 1]  # perpendicular to z: its angle in the plane is the stabiliser's
    angle = torch.atan2(second_axis[:, 1], second_axis[:, 0])
    assert kstest(angle / (2 * math.pi) + 0.5, uniform).pvalue > 1e-3
    u, _ = SE3().lift(torch.zeros(1, 3, dtype=torch.float64), num_samples=count, generator=generator)
    theta = SO3().log(u[0, :, :3, :3]).norm(dim=-1)
    assert kstest((theta - theta.sin()) / math.pi, uniform).pvalue > 1e-3  # the Haar distribution of the angle
    assert kstest((u[0, :, 2, 2] + 1) / 2, uniform).pvalue > 1e-3  # heights on the sphere (Archimedes)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_same_seed_same_sample_and_other_transforms(group):
    first = group.sample(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    again = group.sample(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(first, again)
    a = group.log(first)
    # vmap may choose other kernels for the same arithmetic: a few roundings.
    torch.testing.assert_close(torch.func.vmap(group.exp)(a), group.exp(a), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.func.vmap(group.log)(first), a, rtol=0, atol=1e-14)
    compiled = torch.compile(lambda b: group.log(group.exp(b)), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(a), group.log(group.exp(a)), rtol=0, atol=1e-14)
    assert not group.log(group.exp(a)).is_complex()


def test_distance_is_left_invariant_and_has_the_papers_mixture():
    G = SE3()
    u, v, g = G.sample(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(G.distance(g @ u, g @ v), G.distance(u, v), rtol=1e-13, atol=0)
    q, r = torch.rand(2, 5, 1, dtype=torch.float64)
    mixed = 0.2 * G.distance(u, v) + 0.8 * (q - r).norm(dim=-1)
    torch.testing.assert_close(G.distance(u, v, q, r), mixed, rtol=1e-13, atol=0)
    a = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(G.distance(G.exp(a), G.identity(dtype=torch.float64)), a)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "group"),
    [("se3", SE3()), ("SE(3)", SE3()), ("so2", SO2()), ("t2", T(2)), ("T(3)", T(3)), ("trivial2", Trivial(2))],
)
def test_by_name(name, group):
    assert by_name(name) == group
    assert by_name("trivial", n=3) == Trivial(3)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"unknown group 'se4'.*did you mean.*'se"):
        by_name("se4")
    with pytest.raises(ValueError, match=r"expected algebra coordinates of shape \(\.\.\., 3\).*got \(2,\)"):
        SO3().exp(torch.zeros(2))
    with pytest.raises(TypeError, match="floating-point"):
        SO3().exp(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected elements of shape \(\.\.\., 4, 4\)"):
        SE3().log(torch.eye(3))
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 2\)"):
        SE2().lift(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="num_samples of at least 1"):
        SE2().lift(torch.zeros(5, 2), num_samples=0)
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 3\) or \(\.\.\., 2\)"):
        SE2().act(torch.eye(3), torch.zeros(5))
    with pytest.raises(NotImplementedError, match="defines no lift"):
        Heisenberg().lift(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one dimension"):
        T(0)
