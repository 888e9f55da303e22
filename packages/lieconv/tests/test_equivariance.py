"""The networks are as equivariant as they claim: exactly, for every group, on every kind of point set."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, RxSO2, RxSQ, Sim2, Sim3, Subgroup, T, Trivial, affine_structure
from lie.testing import assert_equivariant, equivariance_error
from lieconv import LieConv, LieResNet, build_geometry
from lieconv.testing import measure_equivariance

SUBGROUPS = [
    Subgroup(T(3), (0, 1)),  # translations of two directions
    Subgroup(SE3(), (2, 3, 4, 5)),  # turns about the vertical, and translations
    Subgroup(SE3(), (2, 5)),  # turns about and translations along one axis
    Subgroup(SO3(), (0,)),  # turns about one axis
    Subgroup(RxSO2(), (0,)),  # dilations
    Subgroup(Sim3(), (0, 4, 5, 6)),  # dilations and translations
]
GROUPS = [T(1), T(2), T(3), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Trivial(2), *SUBGROUPS]
DTYPES = [torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def point_sets(d: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Sets of points, among them those whose neighbourhoods fix no frame: name -> (2, N, d)."""
    axis = torch.linspace(-1, 1, {1: 12, 2: 5, 3: 3}[d], dtype=dtype)
    lattice = torch.stack(torch.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(1, -1, d)
    line = torch.linspace(-1, 1, 7, dtype=dtype).unsqueeze(-1) * torch.ones(d, dtype=dtype)
    angle = torch.arange(6, dtype=dtype) * math.pi / 3
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros(6, dtype=dtype)], -1)[:, :d]
    sets = {
        "random": torch.randn(2, 30, d, dtype=dtype, generator=generator()),
        "few": torch.randn(2, 4, d, dtype=dtype, generator=generator(1)),
        "one": torch.randn(2, 1, d, dtype=dtype, generator=generator(2)),
        "lattice": lattice,
        "collinear": line.unsqueeze(0),
        "ring": torch.cat([ring, 1.8 * ring]).unsqueeze(0),
        "coincident": torch.ones(1, 5, d, dtype=dtype),
        "origin": torch.randn(1, 7, d, dtype=dtype, generator=generator(3)) * (torch.arange(7) > 0).view(1, 7, 1),
    }
    return {name: x.expand(2, -1, -1).contiguous() for name, x in sets.items()}


class Stack(torch.nn.Module):
    """Convolutions without a residual path to hide behind."""

    def __init__(self, group, k: int = 8) -> None:
        super().__init__()
        widths = (2, 8, 8, 3)
        self.layers = torch.nn.ModuleList(
            LieConv(a, b, group=group, num_neighbors=k) for a, b in itertools.pairwise(widths)
        )

    def forward(self, coords, values, mask=None):
        geometry = build_geometry(
            self.layers[0].group, coords, mask, num_neighbors=self.layers[0].neighbourhood.num_neighbors
        )
        for layer in self.layers:
            values = torch.nn.functional.silu(layer(geometry, values))
        return values


def network(group, dtype, kind: str):
    """Layers without residual path, or a network, with weights away from initialisation."""
    torch.manual_seed(0)
    if kind == "layer":
        model = Stack(group)
    else:
        model = LieResNet(2, 3, group=group, num_neighbors=8, channels=8, num_layers=2, pool=kind == "pooled")
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, dtype=dtype, generator=generator(5))
    return model.eval()


@pytest.mark.parametrize("kind", ["layer", "pooled", "per point"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_outputs_do_not_change_under_the_group(group, dtype, kind):
    model = network(group, dtype, kind)
    for name, x in point_sets(group.point_dim, dtype).items():
        values = torch.randn(2, x.shape[1], 2, dtype=dtype, generator=generator(7))
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
        for seed in range(3):
            g = group.sample(2, 1, generator=generator(seed), dtype=dtype)  # another element for each set
            try:
                assert_equivariant(model, lambda y, g=g: group.act(g, y), lambda y: y, x, values, mask)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("group", [T(3), SO2(), RxSO2(), SE2(), SO3(), SE3()], ids=repr)
def test_thousands_of_points_and_mixed_sizes_in_units_of_the_spread(group):
    """Elements of full range; the change relative to the outputs, and in units of how much they differ."""
    d = group.point_dim
    sizes = torch.tensor([2000, 1, 700, 50])
    mask = torch.arange(2000) < sizes.unsqueeze(1)
    # In units of the spread float32 cannot do better than some 2e-5: rounding the points alone changes so much.
    for dtype, relative, of_spread in ((torch.float32, 1e-5, 1e-4), (torch.float64, 1e-12, 1e-12)):
        model = Stack(group, k=16).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, dtype=dtype, generator=generator(5))
        x = torch.randn(4, 2000, d, dtype=dtype, generator=generator())
        values = torch.randn(4, 2000, 2, dtype=dtype, generator=generator(1))
        elements = group.sample(4, generator=generator(2), dtype=dtype)
        report = measure_equivariance(model, group, x, values, mask, elements=elements)
        assert report.worst <= of_spread, (dtype, str(report))
        for g in elements[:2]:
            assert equivariance_error(model, lambda y, g=g: group.act(g, y), lambda y: y, x, values, mask) <= relative


@pytest.mark.parametrize("group", [SE2(), SO2(), SE3(), SO3()], ids=repr)
def test_points_matter(group):
    """Invariance is no constant: moving one point, or reflecting all, changes the output."""
    model = network(group, torch.float64, "pooled")
    x = point_sets(group.point_dim, torch.float64)["random"]
    values = torch.randn(2, x.shape[1], 2, dtype=torch.float64, generator=generator(7))
    with torch.no_grad():
        y = model(x, values)
        moved = x.clone()
        moved[:, 3] += 0.5
        mirrored = x * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[: x.shape[-1]]
        # A thousandth of a per mille, and still a million times what the group itself may change.
        assert (model(moved, values) - y).abs().max() > 1e-6 * y.abs().max()
        assert (model(mirrored, values) - y).abs().max() > 1e-6 * y.abs().max()


@pytest.mark.parametrize(
    ("group", "other"), [(T(2), SO2()), (Trivial(2), T(2)), (SO2(), T(2)), (T(3), SO3())], ids=repr
)
def test_not_equivariant_to_a_group_it_was_not_made_for(group, other):
    model = network(group, torch.float64, "layer")
    x = point_sets(group.point_dim, torch.float64)["random"]
    values = torch.randn(2, x.shape[1], 2, dtype=torch.float64, generator=generator(7))
    g = other.sample(generator=generator(1), dtype=torch.float64)
    assert equivariance_error(model, lambda y: other.act(g, y), lambda y: y, x, values) > 1e-3


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_evaluation_repeats_bit_for_bit_and_padding_order_and_mates_do_not_matter(group):
    model = network(group, torch.float32, "pooled")
    d = group.point_dim
    x, values = torch.randn(2, 20, d, generator=generator()), torch.randn(2, 20, 2, generator=generator(1))
    mask = torch.ones(2, 20, dtype=torch.bool)
    with torch.no_grad():
        y = model(x, values, mask)
        assert torch.equal(y, model(x, values, mask))
        padding = torch.full((2, 5, d), math.nan)
        padded = model(
            torch.cat([x, padding], 1),
            torch.cat([values, torch.full((2, 5, 2), math.inf)], 1),
            torch.cat([mask, torch.zeros(2, 5, dtype=torch.bool)], 1),
        )
        order = torch.randperm(20, generator=generator(2))
        shuffled = model(x[:, order], values[:, order], mask)
        alone = model(x[1:], values[1:], mask[1:])
    scale = y.abs().max()
    for other in (padded - y, shuffled - y, alone - y[1:]):
        assert other.abs().max() <= 1e-6 * scale


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_gradients_are_finite_everywhere(group):
    torch.manual_seed(0)
    model = LieResNet(2, 3, group=group, num_neighbors=6, channels=8, num_layers=2).double()
    for name, x in point_sets(group.point_dim, torch.float64).items():
        x = x.clone().requires_grad_()
        values = torch.randn(2, x.shape[1], 2, dtype=torch.float64, requires_grad=True)
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
        mask[1] = False  # a sample without any valid point
        for training in (True, False):
            gradients = torch.autograd.grad(
                model.train(training)(x, values, mask).square().sum(),
                (x, values, *model.parameters()),
                allow_unused=True,
            )
            for gradient in gradients:
                assert gradient is None or torch.isfinite(gradient).all(), name


def awkward(group) -> dict[str, tuple[torch.Tensor, torch.Tensor, dict]]:
    """Points, a mask, and options: coincident points, the origin, empty balls, one valid point, a sample without any.

    The coincident points are among the four nearest of every point, and on no window's edge: where two points tie there
    the output is continuous, but has two slopes.
    """
    d = group.point_dim
    x = torch.randn(2, 6, d, dtype=torch.float64, generator=generator())
    every = torch.ones(2, 6, dtype=torch.bool)
    origin = x.clone()
    for seed in range(200):
        coincident = torch.randn(2, 6, d, dtype=torch.float64, generator=generator(seed))
        coincident[:, 1] = coincident[:, 0]
        near = build_geometry(group, coincident, num_neighbors=4)
        first = torch.tensor([[0], [6]]).repeat_interleave(6, 0)
        if all((((near.indices == first + i) & (near.weights > 0)).any(1)).all() for i in range(2)):
            break
    else:
        raise AssertionError("no such set of points")
    origin[1, 2] = 0.0
    one = every.clone()
    one[0, 1:] = False
    none = every.clone()
    none[1] = False
    far = x * 100.0
    return {
        "generic": (x, every, {}),
        "coincident": (coincident, every, {}),
        "origin": (origin, every, {}),
        "empty balls": (far, every, {"radius": 1.0}),
        "one valid point": (x, one, {}),
        "fully masked": (x, none, {}),
    }


@pytest.mark.parametrize("group", [g for g in GROUPS if g.point_dim in (2, 3)], ids=repr)
def test_gradients_by_positions_are_right(group):
    for name, (x, mask, options) in awkward(group).items():
        parts = affine_structure(group)
        if parts is None or parts.dilation:
            if "radius" in options and parts is not None and parts.translations:
                continue  # a radius is refused
            if name == "origin":
                continue  # an orbit of its own: outputs have no derivative there (finite, below)
        torch.manual_seed(0)
        layer = LieConv(1, 2, group=group, num_neighbors=4, hidden=4, basis=2, **options).double().eval()
        values = torch.randn(2, 6, 1, dtype=torch.float64, generator=generator(1), requires_grad=True)
        moving = x.clone().requires_grad_()

        def f(a, b, layer=layer, mask=mask):
            return layer(a, b, mask)

        assert torch.autograd.gradcheck(f, (moving, values), atol=1e-5, rtol=1e-3, eps=1e-7), name


@pytest.mark.parametrize("group", [SE2(), SE3(), T(3), SO3()], ids=repr)
def test_forces_are_the_gradient_of_an_energy_and_turn_with_the_points(group):
    torch.manual_seed(0)
    net = LieResNet(1, 1, group=group, num_neighbors=6, channels=8, num_layers=2).double().eval()
    x = torch.randn(1, 12, group.point_dim, dtype=torch.float64, generator=generator())
    values = torch.randn(1, 12, 1, dtype=torch.float64, generator=generator(1))
    g = group.sample(generator=generator(2), dtype=torch.float64)
    d = group.point_dim

    def force(y):
        y = y.clone().requires_grad_()
        return -torch.autograd.grad(net(y, values).sum(), y)[0]

    turned = force(x) @ g[:d, :d].mT
    scale = turned.abs().max()
    assert scale > 1e-6
    assert (force(group.act(g, x)) - turned).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize("group", [SE2(), SO3(), SE3()], ids=repr)
def test_the_sampled_lift_is_unbiased(group):
    """Means of 2400 draws before and after a motion agree within 4 standard errors; single draws do not.

    A stabiliser drawn with the wrong density, as of a Haar angle of SO(3), fails this by ten standard errors.
    """
    torch.manual_seed(0)
    draws = 2400
    layer = LieConv(2, 3, group=group, num_neighbors=16, lift="sampled", num_samples=2).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2.0)  # a kernel that varies
    x = torch.randn(1, 8, group.point_dim, dtype=torch.float64, generator=generator())
    values = torch.randn(1, 8, 2, dtype=torch.float64, generator=generator(1))
    g = group.sample(generator=generator(3), dtype=torch.float64)
    with torch.no_grad():
        outputs = [
            torch.cat([layer(y.expand(400, -1, -1), values.expand(400, -1, -1)).mean(1) for _ in range(draws // 400)])
            for y in (x, group.act(g, x))
        ]
    difference = outputs[0].mean(0) - outputs[1].mean(0)
    error = (outputs[0].var(0) / draws + outputs[1].var(0) / draws).sqrt()
    assert (difference.abs() < 4 * error).all(), difference / error
    assert (outputs[0].std(0) > 1e-3).all()


def test_the_sampled_lift_is_deterministic_in_evaluation_and_exact_where_nothing_is_sampled():
    x, values = torch.randn(2, 10, 2, generator=generator()), torch.randn(2, 10, 1, generator=generator(1))
    net = LieResNet(1, 2, group=SE2(), lift="sampled", num_samples=3, channels=8, num_layers=1, num_neighbors=8).eval()
    assert torch.equal(net(x, values), net(x, values))
    net.train()
    assert not torch.equal(net(x, values), net(x, values))
    per_point = LieResNet(1, 2, group=SE2(), lift="sampled", num_samples=3, channels=8, num_layers=1, pool=False)
    assert per_point(x, values).shape == (2, 10, 2)
    plane = LieResNet(1, 2, group=T(2), lift="sampled", channels=8, num_layers=1, num_neighbors=8).eval()
    shift = torch.tensor([3.0, -1.0])
    assert_equivariant(plane, lambda y: y + shift, lambda y: y, x, values)


def test_a_seeded_generator_repeats_training_draws():
    x, values = torch.randn(2, 10, 2, generator=generator()), torch.randn(2, 10, 1, generator=generator(1))
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        net = LieResNet(1, 2, group=SE2(), lift="sampled", channels=8, num_layers=1, generator=generator(4))
        torch.manual_seed(len(outputs))  # the global generator must not matter
        outputs.append(net(x, values))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("group", [g for g in GROUPS if not isinstance(g, Trivial)], ids=repr)
def test_vector_outputs_turn_with_the_points(group):
    torch.manual_seed(0)
    d = group.point_dim
    x = torch.randn(3, 14, d, dtype=torch.float64, generator=generator())
    values = torch.randn(3, 14, 2, dtype=torch.float64, generator=generator(1))
    mask = torch.ones(3, 14, dtype=torch.bool)
    mask[1, 5:] = False
    g = group.sample(3, 1, generator=generator(2), dtype=torch.float64)
    for pool in (True, False):
        net = LieResNet(2, 1, group=group, channels=8, num_layers=2, num_neighbors=6, out_vectors=2, pool=pool)
        net = net.double().eval()
        scalars, vectors = net(x, values, mask)
        moved_scalars, moved = net(group.act(g, x), values, mask)
        assert vectors.shape == ((3, 2, d) if pool else (3, 14, 2, d))
        linear = g[..., :d, :d].squeeze(1) if pool else g[..., :d, :d]
        expected = vectors @ linear.mT
        assert vectors.abs().max() > 1e-4
        # Dilations by e^3 or so multiply vectors and their rounding.
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))
        torch.testing.assert_close(moved_scalars, scalars, rtol=1e-10, atol=1e-12)
        if not pool:
            assert (vectors[~mask] == 0).all()


def test_vectors_of_points_depend_on_their_neighbourhood_alone():
    torch.manual_seed(0)
    net = LieResNet(1, 1, group=SE3(), channels=8, num_layers=1, radius=1.0, norm="layer", out_vectors=1, pool=False)
    net = net.double().eval()
    x = torch.randn(1, 6, 3, dtype=torch.float64, generator=generator()) * 0.3
    x[:, 0] = 50.0
    values = torch.randn(1, 6, 1, dtype=torch.float64, generator=generator(1))
    before = net(x, values)
    x[:, 0] = 60.0
    for a, b in zip(before, net(x, values), strict=True):
        torch.testing.assert_close(a[:, 1:], b[:, 1:])


def test_vectors_of_a_symmetric_neighbourhood_keep_its_symmetry():
    """A planar molecule has no force out of its plane, an octahedron none at its centre, and mirror images differ."""
    torch.manual_seed(0)
    net = LieResNet(1, 1, group=SE3(), channels=8, num_layers=1, num_neighbors=7, out_vectors=1, pool=False)
    net = net.double().eval()
    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    benzene = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1).unsqueeze(0)
    _, force = net(benzene, torch.ones(1, 6, 1, dtype=torch.float64))
    assert force[..., 2].abs().max() < 1e-14 and force[..., :2].abs().max() > 1e-4
    eye = torch.eye(3, dtype=torch.float64)
    octahedron = torch.cat([torch.zeros(1, 3, dtype=torch.float64), eye, -eye]).unsqueeze(0)
    _, force = net(octahedron, torch.ones(1, 7, 1, dtype=torch.float64))
    assert force[0, 0].abs().max() < 1e-14


@pytest.mark.parametrize("group", [T(3), SE3(), Subgroup(SE3(), (2, 3, 4, 5))], ids=repr)
def test_periodic_networks_do_not_know_which_cell_was_drawn(group):
    """Motions of points and cell together, points moved by whole cells, another basis of the lattice, a supercell."""
    torch.manual_seed(0)
    net = LieResNet(1, 2, group=group, channels=8, num_layers=2, num_neighbors=5).double().eval()
    cell = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.2, 0.4, 1.1]], dtype=torch.float64)
    x = torch.rand(1, 9, 3, dtype=torch.float64, generator=generator()) @ cell
    values = torch.randn(1, 9, 1, dtype=torch.float64, generator=generator(1))
    y = net(x, values, cell=cell)
    g = group.sample(generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(net(group.act(g, x), values, cell=cell @ g[:3, :3].mT), y)
    whole = torch.randint(-3, 4, (1, 9, 3), generator=generator(3)).double()
    torch.testing.assert_close(net(x + whole @ cell, values, cell=cell), y)
    basis = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [3.0, -1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(net(x, values, cell=basis @ cell), y)
    twice = torch.cat([x, x + cell[0]], 1)
    double = cell * torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64)
    per_point = LieResNet(1, 2, group=group, channels=8, num_layers=1, num_neighbors=3, pool=False).double().eval()
    small, large = per_point(x, values, cell=cell), per_point(twice, values.repeat(1, 2, 1), cell=double)
    reach = build_geometry(group, x, num_neighbors=3, cell=cell).offsets.norm(dim=-1).max()
    assert reach < 0.5  # within half a cell: the nearest images are those of the infinite crystal
    torch.testing.assert_close(large[:, :9], small)


def test_the_equivariance_tester_measures_what_it_says():
    x = torch.randn(3, 10, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(3, 10, 1, dtype=torch.float64, generator=generator(1))
    good, bad = (
        LieResNet(1, 2, group=g, channels=8, num_layers=1, num_neighbors=5).double().eval() for g in (SE2(), T(2))
    )
    exact = measure_equivariance(good, SE2(), x, values, generator=generator(2))
    assert exact.worst < 1e-10 and "worst" in str(exact) and exact.errors.shape == (20,)
    broken = measure_equivariance(bad, SE2(), x, values, generator=generator(2))
    assert broken.worst > 1e-2
    # A constant a million times the signal does not hide the change.
    hidden = measure_equivariance(lambda a, b: bad(a, b) + 1e6, SE2(), x, values, generator=generator(2))
    assert hidden.worst == pytest.approx(broken.worst, rel=1e-6)
    vectors = LieResNet(1, 1, group=SE2(), channels=8, num_layers=1, num_neighbors=5, out_vectors=1).double().eval()
    report = measure_equivariance(
        lambda a, b: vectors(a, b)[1].squeeze(1), SE2(), x, values, action_out=lambda g, y: y @ g[:2, :2].mT
    )
    assert report.worst < 1e-10
    with pytest.raises(ValueError, match="one tensor from the model, got tuple"):
        measure_equivariance(vectors, SE2(), x, values)
    with pytest.raises(ValueError, match="all the same"):
        measure_equivariance(lambda a, b: torch.zeros(3, 2), SE2(), x, values)
