"""The laws on every group, what a user's group gets for free, sampling, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    affine_field,
    affine_generators,
    affine_structure,
    by_name,
)
from lie.testing import check_group
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

GROUPS = [
    *(T(1), T(2), T(3), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg()),
    *(Trivial(2), Trivial(3), Product(SO3(), T(2)), Product(SE2(), Product(RxSQ(), SO2()))),
    *(Subgroup(SE3(), (2, 3, 4, 5)), Subgroup(Sim3(), (0, 1, 2, 3))),
]
DTYPES = [torch.float32, torch.float64]


class Polynomials(LieGroup):
    """Unipotent upper triangular 3 x 3 matrices, coordinates (x, y, z)."""

    dim, matrix_dim = 3, 3

    def exp(self, a):
        x, y, z = a.split(1, -1)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        entries = [one, x, z + x * y / 2, zero, one, y, zero, zero, one]
        return torch.cat(entries, -1).unflatten(-1, (3, 3))

    def log(self, g):
        x, y = g[..., 0, 1], g[..., 1, 2]
        return torch.stack([x, y, g[..., 0, 2] - x * y / 2], -1)


class Renamed(LieGroup):
    """A group from the exp and log of another, alone."""

    def __init__(self, group: LieGroup) -> None:
        self.group, self.dim, self.matrix_dim, self.point_dim = group, group.dim, group.matrix_dim, group.point_dim

    def exp(self, a):
        return self.group.exp(a)

    def log(self, g):
        return self.group.log(g)


class PositiveScaling(LieGroup):
    """Dilations of R^2, coordinate log r; exp and log alone, with a linear action."""

    dim, matrix_dim = 1, 2

    def exp(self, a):
        return a.exp().unsqueeze(-1) * torch.eye(2, dtype=a.dtype, device=a.device)

    def log(self, g):
        return g[..., 0, :1].log()


@pytest.mark.parametrize("default", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [*GROUPS, Polynomials(), PositiveScaling()], ids=repr)
def test_laws(group, dtype, default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        check_group(group, dtype=dtype)
    finally:
        torch.set_default_dtype(before)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.7), st.sampled_from(GROUPS))
@settings(deadline=None, max_examples=40)
def test_laws_at_random_scales(seed, scale, group):
    # Up to 1.7, where normal coordinates often make angles beyond pi: the laws hold on the group, not on coordinates.
    check_group(group, scale=scale, seed=seed, count=4, tolerance=1e-11)


def test_elements_are_told_from_other_matrices():
    generator = torch.Generator().manual_seed(0)
    for group in GROUPS:
        g = group.sample(5, generator=generator, dtype=torch.float64)
        assert group.contains(g).all()
        if group.dim:
            assert not group.contains(g + 0.1 * torch.arange(1.0, 6.0).view(5, 1, 1)).any(), group
    assert SO3().contains(torch.stack([torch.eye(3), -torch.eye(3), 2 * torch.eye(3)])).tolist() == [True, False, False]


def test_sizes_one_by_one_or_as_a_tuple_and_elements_of_ones_own():
    G = SE3()
    draws = [G.sample(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((3, 2), ((3, 2),))]
    assert torch.equal(*draws) and draws[0].shape == (3, 2, 4, 4)
    for group in (G, Trivial(2)):
        g = group.identity(3)
        g[0, 0, 1] = 5.0
        assert (g[1:, 0, 1] == 0).all()
        torch.func.jvp(group.log, (group.identity(4),), (torch.zeros(4, group.matrix_dim, group.matrix_dim),))
        torch.func.jvp(group.inverse, (group.sample(4),), (torch.zeros(4, group.matrix_dim, group.matrix_dim),))


def test_one_point_alone_can_be_lifted():
    for group in (SO3(), SE2(), SE3(), RxSO2(), Product(SE3(), SO3()), Subgroup(SE3(), (2, 3, 4, 5))):
        x = torch.linspace(0.5, 1.0, group.point_dim)
        u, q = group.lift(x)
        torch.testing.assert_close(group.act(u, group.orbit_origin(q)), x)


def test_an_origin_of_ones_own_serves_the_numeric_lift():
    class Rays(LieGroup):
        """Scalings of the two axes, on points of the open quadrant: the default origin (1, 0) is of no use."""

        dim, matrix_dim, point_dim = 2, 2, 2

        def exp(self, a):
            return torch.diag_embed(a.exp())

        def log(self, g):
            return g.diagonal(dim1=-2, dim2=-1).log()

        def orbit_origin(self, orbit):
            return orbit.new_ones(*orbit.shape[:-1], 2)

    G, x = Rays(), torch.tensor([[3.0, 4.0], [0.1, 7.0]], dtype=torch.float64)
    check_group(G)
    u, q = G.lift(x)
    torch.testing.assert_close(G.act(u, G.orbit_origin(q)), x, rtol=1e-14, atol=0)
    check_group(Product(PositiveScaling(), SO2()))  # a factor that is not transitive is no reason to fail


@pytest.mark.parametrize("law_breaker", ["log", "exp", "not_closed", "sample", "normalise", "distance", "orbit_origin"])
def test_check_group_catches_a_broken_group(law_breaker):
    class Broken(Polynomials):
        point_dim = 2

        def log(self, g):
            return super().log(g) * (1.001 if law_breaker == "log" else 1.0)

        def exp(self, a):
            scaled = a * torch.tensor([1.0, 1.0, 1.001], dtype=a.dtype) if law_breaker == "exp" else a
            g = super().exp(scaled)
            return g + a.square().sum(-1)[..., None, None] if law_breaker == "not_closed" else g

        def _sample(self, *shape, **options):
            g = super()._sample(*shape, **options)
            return 1.01 * g if law_breaker == "sample" else g

        def normalise(self, g):
            return 1.01 * g if law_breaker == "normalise" else g

        def distance(self, u, v, *orbits, **options):
            return self.relative(u, v)[..., 0] if law_breaker == "distance" else super().distance(u, v)

        def lift(self, x, num_samples=None, generator=None):
            u, q = super().lift(x, num_samples, generator)
            return (1.5 * u if law_breaker == "orbit_origin" else u), q

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


@pytest.mark.parametrize(
    "group",
    [T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg(), Trivial(3), Product(SO3(), T(1))],
    ids=repr,
)
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
    """Kolmogorov-Smirnov at 1e6 samples: with p >= 1e-3 a fixed seed does not fail, a wrong density has p = 0."""
    count, generator = 1_000_000, torch.Generator().manual_seed(0)
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
    torch._dynamo.reset()
    compiled = torch.compile(lambda b: group.log(group.exp(b)), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(a), group.log(group.exp(a)), rtol=0, atol=1e-14)
    assert not group.log(group.exp(a)).is_complex()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.vmap, "jvp", "dual numbers"])
def test_constants_first_needed_inside_a_transform_do_not_belong_to_it(transform):
    G, x = SE3(), torch.ones(3)  # a new instance, which knows no constants yet
    a = torch.linspace(0.1, 0.6, 6)

    def total(b):
        return G.vector_field(b, x).sum()

    if transform == "jvp":
        torch.func.jvp(total, (a,), (a,))
    elif transform == "dual numbers":
        with torch.autograd.forward_ad.dual_level():
            total(torch.autograd.forward_ad.make_dual(a, a))
    else:
        transform(total)(a.expand(2, 6) if transform is torch.func.vmap else a)
    for constant in (G._generators_float64, G._dual_float64, G._structure_float64):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(constant)
    assert torch.equal(G.generators(), SE3().generators())


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
    [("se3", SE3()), ("SE(3)", SE3()), ("so2", SO2()), ("t2", T(2)), ("T(3)", T(3)), ("trivial2", Trivial(2)),
     ("RxSO2", RxSO2()), ("rx-sq", RxSQ()), ("Sim(3)", Sim3()), ("sim2", Sim2()), ("heisenberg", Heisenberg()),
     ("SO(2) x T(1)", Product(SO2(), T(1))), ("rxso2xt1", Product(RxSO2(), T(1)))],
)  # fmt: skip
def test_by_name(name, group):
    assert by_name(name) == group
    assert by_name("trivial", n=3) == Trivial(3)


def test_numeric_lift_of_groups_that_define_none():
    """Exact to rounding, differentiable, and the same as the closed form where there is no stabiliser."""
    generator = torch.Generator().manual_seed(0)

    points = torch.randn(50, 2, dtype=torch.float64, generator=generator)
    points = torch.cat([points, torch.tensor([[-1.0, 0.0], [1e-6, 0.0], [1e6, -1e6]], dtype=torch.float64)])
    u, q = Renamed(RxSO2()).lift(points.view(53, 1, 2), num_samples=2)
    assert u.shape == (53, 1, 2, 2, 2) and q.shape == (53, 1, 2, 0)
    torch.testing.assert_close(u[:, 0, 0], RxSO2().lift(points)[0], rtol=1e-13, atol=1e-13)
    # The rigid motions along all axes and about z move every point of space; the origin is 0.
    screw = Renamed(Subgroup(SE3(), (2, 3, 4, 5)))
    x = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    u, q = screw.lift(x)
    assert torch.equal(screw.orbit_origin(q), torch.zeros(20, 3, dtype=torch.float64))
    torch.testing.assert_close(screw.act(u, screw.orbit_origin(q)), x, rtol=0, atol=4e-15)
    # Rotations reach the points of one sphere, -e_1 included, and no others.
    sphere = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64, generator=generator), dim=-1)
    turns = Renamed(SO3())
    u, q = turns.lift(torch.cat([sphere, -turns.orbit_origin(sphere[:1, :0])]))
    torch.testing.assert_close(turns.act(u, turns.orbit_origin(q))[:20], sphere, rtol=0, atol=4e-15)
    with pytest.raises(ValueError, match="not transitive"):
        turns.lift(2.0 * sphere)
    J = torch.func.jacrev(lambda p: Renamed(RxSO2()).lift(p)[0][:, 0].sum())(points[:3])
    torch.testing.assert_close(J, torch.tensor([[1.0, -1.0]] * 3, dtype=torch.float64), rtol=1e-10, atol=1e-10)


PARTS = {  # group: rotations, number of translations, dilation, numbers of an orbit id, dimension of the stabiliser
    Subgroup(SE3(), (2, 3, 4, 5)): (1, 3, False, 0, 1),
    Subgroup(SE3(), (2, 5)): (1, 1, False, 1, 0),
    Subgroup(SE3(), (3, 4)): (0, 2, False, 1, 0),
    Subgroup(T(2), (1,)): (0, 1, False, 1, 0),
    Subgroup(SO3(), (1,)): (1, 0, False, 2, 0),
    Subgroup(RxSO2(), (0,)): (0, 0, True, 2, 0),
    Subgroup(Sim3(), (1, 2, 3)): (3, 0, False, 1, 1),
    Subgroup(Sim3(), (0, 4, 5, 6)): (0, 3, True, 0, 1),
    Subgroup(Sim3(), (0, 3, 6)): (1, 1, True, 1, 0),
}


@pytest.mark.parametrize("group", PARTS, ids=repr)
def test_affine_structure_and_the_lift_of_subgroups(group):
    rotations, translations, dilation, orbit_dim, stabiliser_dim = PARTS[group]
    parts = affine_structure(group)
    assert parts is not None
    assert (parts.rotations, len(parts.translations), parts.dilation) == (rotations, translations, dilation)
    assert (group.orbit_dim, group.stabiliser_dim) == (orbit_dim, stabiliser_dim)
    assert parts.free == (stabiliser_dim == 0)
    x = torch.randn(6, 1, group.point_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = group.sample(6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (u, q), (v, r) = group.lift(x, 3), group.lift(group.act(g, x), 3)
    torch.testing.assert_close(q, r, rtol=0, atol=1e-13)  # an orbit id does not change under the group
    torch.testing.assert_close(group.exp(group.log(u)), u, rtol=0, atol=1e-12)  # elements of the subgroup itself
    if stabiliser_dim == 0:
        torch.testing.assert_close(v, g.unsqueeze(-3) @ u, rtol=0, atol=1e-12)


def test_affine_structure_knows_a_users_group_and_refuses_what_has_no_such_parts():
    for group in (T(3), SO2(), SE2(), SO3(), SE3(), Sim2(), Sim3(), RxSO2()):
        assert affine_structure(Renamed(group)) == affine_structure(group)
    assert affine_structure(Product(SO2(), T(1))) == affine_structure(Subgroup(SE3(), (2, 5)))
    for group in (RxSQ(), Heisenberg(), Product(SO3(), T(2))):
        assert affine_structure(group) is None
    structure = affine_structure(Trivial(2))
    assert structure is not None and structure.fixed == ((1.0, 0.0), (0.0, 1.0))


def test_bch_has_the_order_it_claims():
    G, generator = SE3(), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    for order in range(1, 6):
        errors = [(G.bch(h * a, h * b, order) - G.log(G.exp(h * a) @ G.exp(h * b))).norm() for h in (0.1, 0.05)]
        assert abs(math.log2(errors[0] / errors[1]) - (order + 1)) < 0.15
    a, b = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    exact = Heisenberg().log(Heisenberg().exp(a) @ Heisenberg().exp(b))
    torch.testing.assert_close(Heisenberg().bch(a, b, 2), exact, rtol=0, atol=1e-15)  # nilpotent: the series ends


def test_karcher_mean_is_scipys():
    R = SO3().exp(0.7 * torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    weights = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = SO3().mean(R, weights)
    gradient = (weights.unsqueeze(-1) * SO3().relative(R, mean)).sum(0)
    assert gradient.abs().max() < 1e-14
    # scipy's mean minimises the chordal distance, which agrees to second order in the spread.
    chordal = Rotation.from_matrix(R.numpy()).mean(weights.numpy())
    assert Rotation.from_matrix((mean.T).numpy() @ chordal.as_matrix()).magnitude() < 0.1


def test_affine_generators_span_the_affine_fields():
    for n in (2, 3):
        basis = affine_generators(n, dtype=torch.float64)
        stacked = torch.stack(list(basis.values()))
        assert len(basis) == n * n + n and torch.linalg.matrix_rank(stacked.flatten(1)) == len(basis)
        x = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)[:n]
        velocity = {name: affine_field(A, x) for name, A in basis.items()}
        e = torch.eye(n, dtype=torch.float64)
        assert torch.equal(velocity["translate_y"], e[1])
        assert torch.equal(velocity["stretch_x"], 2.0 * e[0])
        assert torch.equal(velocity["shear_xy"], 3.0 * e[0])


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
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 2\) or \(\.\.\., 3\) for SE2"):
        SE2().act(torch.eye(3), torch.zeros(5))
    for group in (SO3(), RxSO2(), SO2(), RxSQ()):  # a linear group takes no affine points
        d = group.matrix_dim
        with pytest.raises(ValueError, match=rf"points of shape \(\.\.\., {d}\) for"):
            group.act(group.identity(), torch.zeros(d - 1))
        with pytest.raises(ValueError, match=rf"points of shape \(\.\.\., {d}\) for"):
            group.vector_field(torch.zeros(group.dim), torch.zeros(d - 1))
    with pytest.raises(
        ValueError, match=r"broadcast, got \(4,\) and \(4, 7\); for several points an element use g.uns"
    ):
        SO3().act(SO3().identity(4), torch.zeros(4, 7, 3))
    with pytest.raises(TypeError, match="of one dtype"):
        SO3().act(SO3().identity(), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"as a tensor, got list; use torch.as_tensor"):
        SO3().exp([0.0, 0.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of both elements or of none"):
        SE3().distance(SE3().identity(), SE3().identity(), torch.zeros(1))
    with pytest.raises(TypeError, match=r"a torch\.Generator, got 0"):
        SO3().sample(2, generator=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer sizes"):
        SO3().sample(2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole number of dimensions"):
        T(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="family of groups: name the dimension"):
        by_name("t")
    with pytest.raises(TypeError, match="got the class SE3; write SE3"):
        check_group(SE3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"use lie\.groups\.by_name"):
        check_group("se3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count of at least 3"):
        check_group(SE3(), count=0)

    class WithoutSize(PositiveScaling):
        dim = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="WithoutSize to set dim to an integer"):
        check_group(WithoutSize())
    with pytest.raises(ValueError, match=r"not transitive on these points: 1 of 2 are not\s+reached.*define `lift`"):
        PositiveScaling().lift(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"span no subalgebra: the bracket of 0 and 1 has a part along 2"):
        Subgroup(SE2(), (0, 1))
    with pytest.raises(ValueError, match="distinct coordinates between 0 and 2"):
        Subgroup(SE2(), (0, 3))
    with pytest.raises(TypeError, match=r"an instance for G, got the class SO3; write SO3\(\)"):
        Product(SO3, SO2())
    with pytest.raises(ValueError, match="a whole order between 1 and 5"):
        SO3().bch(torch.zeros(3), torch.zeros(3), order=6)
    with pytest.raises(ValueError, match="at least one element"):
        SO3().mean(torch.zeros(0, 3, 3))
    with pytest.raises(ValueError, match="not negative"):
        SO3().mean(torch.eye(3).expand(2, 3, 3), weights=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="did not settle in 2 iterations"):
        SO3().mean(SO3().sample(20, generator=torch.Generator().manual_seed(0)), max_iterations=2)
    with pytest.raises(ValueError, match="the plane or space"):
        affine_generators(4)
    with pytest.raises(ValueError, match="homogeneous matrices"):
        affine_field(torch.zeros(3, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least one dimension"):
        T(0)
