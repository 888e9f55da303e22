"""Geometries: layouts, coordinates, targets, queries, quadrature, subsampling, a user's group, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SE2, SE3, SO2, Heisenberg, LieGroup, RxSO2, RxSQ, Sim2, T, Trivial
from lie.testing import assert_equivariant, check_group
from lieconv import LieConv, LieResNet, build_geometry, density_weights, farthest_points
from lieconv.geometry import kernel_dim, subsample
from lieconv.geometry.element_lift import varying_entries
from lieconv.geometry.subsample import first_points
from lieconv.nn import Neighbourhood


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ScaledRotation(LieGroup):
    """R* x SO(2) on the plane without its origin, coordinates (log r, theta): exp, log and a lift."""

    dim, matrix_dim, point_dim, stabiliser_dim = 2, 2, 2, 0

    def exp(self, a):
        scale, (cos, sin) = a[..., :1].exp(), (a[..., 1:].cos(), a[..., 1:].sin())
        return torch.cat([scale * cos, -scale * sin, scale * sin, scale * cos], -1).unflatten(-1, (2, 2))

    def log(self, g):
        x, y = g[..., 0, :1], g[..., 1, :1]
        return torch.cat([0.5 * (x**2 + y**2).log(), torch.atan2(y, x)], -1)

    def lift(self, x, num_samples=None, generator=None):
        x = x if num_samples is None else x.unsqueeze(-2).expand(*x.shape[:-1], num_samples, 2)
        a, b = x[..., :1], x[..., 1:]
        return torch.cat([a, -b, b, a], -1).unflatten(-1, (2, 2)), x[..., :0]

    def orbit_origin(self, orbit):
        first = torch.zeros(*orbit.shape[:-1], 2, dtype=orbit.dtype)
        first[..., 0] = 1.0
        return first


@pytest.mark.parametrize("group", [T(2), SO2(), SE2(), Trivial(2), ScaledRotation()], ids=repr)
@pytest.mark.parametrize("lift", ["exact", "sampled"])
def test_a_precomputed_geometry_is_the_same_as_coordinates(group, lift):
    x, values = torch.randn(2, 12, 2, generator=generator()), torch.randn(2, 12, 3, generator=generator(1))
    geometry = build_geometry(group, x, num_neighbors=5, lift=lift, generator=generator(2))
    assert geometry.kernel_coords.shape == (24, 5, kernel_dim(group, lift))
    layer = LieConv(3, 4, group=group, num_neighbors=5, lift=lift)
    torch.manual_seed(0)
    given = layer(build_geometry(group, x, num_neighbors=5, lift=lift), values)
    torch.manual_seed(0)
    torch.testing.assert_close(given, layer(x, values))


def test_a_users_group_works_and_is_exact():
    group = ScaledRotation()
    check_group(group)
    x = torch.randn(2, 20, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(2, 20, 1, dtype=torch.float64, generator=generator(1))
    net = LieResNet(1, 3, group=group, channels=8, num_layers=2, num_neighbors=6).double().eval()
    g = group.exp(torch.tensor([0.8, 2.5], dtype=torch.float64))
    assert_equivariant(net, lambda y: group.act(g, y), lambda y: y, x, values)
    shift = torch.tensor([0.3, 0.1], dtype=torch.float64)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(net, lambda y: y + shift, lambda y: y, x, values)


def test_kernel_coordinates_of_the_sampled_lift_are_the_logarithm():
    x = torch.randn(1, 6, 2, dtype=torch.float64, generator=generator())
    geometry = build_geometry(SE2(), x, num_neighbors=6, lift="sampled", generator=generator(3))
    u, _ = SE2().lift(x.flatten(0, 1), num_samples=1, generator=generator(3))
    u = u.flatten(0, 1)
    for i in range(6):
        for slot, j in enumerate(geometry.indices[i].tolist()):
            torch.testing.assert_close(geometry.kernel_coords[i, slot], SE2().relative(u[i], u[j]))


def test_kernel_coordinates_by_choice():
    """The logarithm and the entries of the relative element where points have an element each."""
    x = torch.randn(1, 7, 2, dtype=torch.float64, generator=generator())
    for group in (T(2), RxSO2(), RxSQ(), ScaledRotation(), SO2()):
        u, q = group.lift(x[0])
        for name in ("log", "entries"):
            geometry = build_geometry(group, x, num_neighbors=7, coordinates=name)
            assert geometry.kernel_coords.shape[-1] == kernel_dim(group, coordinates=name)
            for i in range(7):
                for slot, j in enumerate(geometry.indices[i].tolist()):
                    got = geometry.kernel_coords[i, slot, : -2 * q.shape[-1] or None]
                    relative = group.relative(u[i], u[j])
                    if name == "entries":
                        relative = (group.exp(relative) - group.identity(dtype=x.dtype)).asinh().flatten()
                        relative = relative[list(varying_entries(group))]
                    torch.testing.assert_close(got, relative, rtol=1e-10, atol=1e-10)
    with pytest.raises(
        ValueError, match=r"SE2\(\) has no coordinates 'log' \(its points have a stabiliser\); use 'inv"
    ):
        build_geometry(SE2(), x, coordinates="log")
    with pytest.raises(ValueError, match="not made of translations, turns and dilations; use coordinates='entries'"):
        build_geometry(Heisenberg(), torch.randn(1, 5, 3), coordinates="invariants")
    with pytest.raises(ValueError, match="'log' or 'entries'"):
        build_geometry(SE2(), x, lift="sampled", coordinates="invariants")
    with pytest.raises(ValueError, match="expected coordinates 'auto', 'log'"):
        build_geometry(SE2(), x, coordinates="polar")


@pytest.mark.parametrize("lift", ["exact", "sampled"])
@pytest.mark.parametrize("group", [T(2), SE2(), RxSO2(), Trivial(2)], ids=repr)
def test_ragged_batches_are_padded_ones_without_the_padding(group, lift):
    counts = [5, 1, 8, 3]
    x = torch.randn(4, 8, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(4, 8, 3, dtype=torch.float64, generator=generator(1))
    mask = torch.arange(8) < torch.tensor(counts).unsqueeze(1)
    batch = torch.arange(4).repeat_interleave(torch.tensor(counts))
    torch.manual_seed(0)
    layer = LieConv(3, 4, group=group, num_neighbors=4, lift=lift).double().eval()
    if lift == "sampled" and group.stabiliser_dim:
        return  # the padded batch draws elements for its padding too
    padded, ragged = layer(x, values, mask), layer(x[mask], values[mask], batch=batch)
    assert ragged.shape == (17, 4)
    torch.testing.assert_close(ragged, padded[mask])
    net = LieResNet(3, 2, group=group, channels=8, num_layers=2, num_neighbors=4, lift=lift, downsample=[1.0, 0.5])
    net = net.double().eval()
    torch.testing.assert_close(net(x[mask], values[mask], batch=batch), net(x, values, mask))


def test_shared_coordinates_are_those_of_every_sample():
    """Images: the coordinates of one, features of many; frames of each sample's own features where the group turns."""
    axis = torch.linspace(-1, 1, 6, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, 36, 2)
    values = torch.randn(5, 36, 2, dtype=torch.float64, generator=generator())
    for group in (T(2), SE2(), SO2(), Trivial(2)):
        torch.manual_seed(0)
        for options in ({}, {"pool": False}, {"downsample": 0.5}, {"out_vectors": 2}):
            net = LieResNet(2, 3, group=group, channels=8, num_layers=2, num_neighbors=9, **options).double().eval()
            shared, every = net(grid, values), net(grid.expand(5, -1, -1), values)
            torch.testing.assert_close(shared, every)
        layer = LieConv(2, 3, group=group, num_neighbors=9).double()
        torch.testing.assert_close(layer(grid, values), layer(grid.expand(5, -1, -1), values))


def test_points_at_which_to_evaluate():
    """Queries at the points are the points; elsewhere outputs follow the group, and targets pick from all."""
    x = torch.randn(2, 15, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(2, 15, 3, dtype=torch.float64, generator=generator(1))
    for group in (T(2), SE2(), SO2(), RxSO2(), Trivial(2)):
        torch.manual_seed(0)
        layer = LieConv(3, 4, group=group, num_neighbors=6).double()
        at_points = layer(x, values)
        torch.testing.assert_close(layer(x, values, queries=x), at_points)
        index = torch.tensor([3, 7, 15 + 2, 15 + 14])
        some = layer(x, values, targets=index, target_shape=(2, 2))
        torch.testing.assert_close(some, at_points.flatten(0, 1)[index].view(2, 2, 4))
        q = torch.randn(2, 4, 2, dtype=torch.float64, generator=generator(2))
        mask = torch.tensor([[True] * 4, [True, False, True, False]])
        out = layer(x, values, queries=q, query_mask=mask)
        assert out.shape == (2, 4, 4) and (out[1, 1::2] == 0).all()
        g = group.sample(generator=generator(3), dtype=torch.float64)
        moved = layer(group.act(g, x), values, queries=group.act(g, q), query_mask=mask)
        torch.testing.assert_close(moved, out, rtol=1e-9, atol=1e-12)
        batch, which = torch.arange(2).repeat_interleave(15), torch.arange(2).repeat_interleave(4)
        ragged = layer(
            x.flatten(0, 1),
            values.flatten(0, 1),
            batch=batch,
            queries=q.flatten(0, 1),
            query_batch=which,
            query_mask=mask.flatten(),
        )
        torch.testing.assert_close(ragged, out.flatten(0, 1))
    with pytest.raises(ValueError, match="queries or targets, got both"):
        layer(x, values, queries=x, targets=index)
    with pytest.raises(ValueError, match="queries for 2 samples, got 1"):
        layer(x, values, queries=x[:1])
    with pytest.raises(ValueError, match="the layout of the points"):
        layer(x, values, queries=x[0], query_batch=torch.zeros(15, dtype=torch.long))
    with pytest.raises(TypeError, match=r"queries of torch\.float64"):
        layer(x, values, queries=x.float())
    geometry = build_geometry(T(2), x, num_neighbors=6, queries=q)
    with pytest.raises(ValueError, match="not among its sources"):
        geometry.at_targets(values.flatten(0, 1))


def test_quadrature_undoes_uneven_sampling():
    """Many points on one half of a square and few on the other: the weighted layer sees the field, not the sampling."""
    random = generator()
    axis = torch.linspace(0, 1, 25, dtype=torch.float64)
    even = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)
    right = even[0, even[0, :, 0] > 0.5]
    extra = right[torch.randint(len(right), (1500,), generator=random)]
    extra = extra + 0.04 * (torch.rand(1500, 2, dtype=torch.float64, generator=random) - 0.5)
    uneven = torch.cat([even[0], extra]).unsqueeze(0)

    def field(x):
        return (6 * x[..., :1] + x[..., 1:]).sin()

    torch.manual_seed(0)
    layer = LieConv(1, 4, group=T(2), num_neighbors=700, radius=0.25).double().eval()
    query = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64)
    truth = layer(even, field(even), queries=query)
    plain = layer(uneven, field(uneven), queries=query)
    weighted = layer(uneven, field(uneven), queries=query, quadrature=density_weights(T(2), uneven))
    assert (weighted - truth).norm() < 0.35 * (plain - truth).norm()
    for group in (T(2), SE2()):
        weights = density_weights(group, uneven)
        g = group.sample(generator=generator(1), dtype=torch.float64)
        torch.testing.assert_close(density_weights(group, group.act(g, uneven)), weights)
    mask = torch.rand(uneven.shape[:2], generator=random) < 0.9
    weights = density_weights(T(2), uneven, mask)
    assert (weights[~mask] == 0).all() and weights[mask].mean() == pytest.approx(1.0)
    ragged = density_weights(T(2), uneven[mask], batch=torch.zeros(int(mask.sum()), dtype=torch.long))
    torch.testing.assert_close(ragged, weights[mask])
    ones = layer(even, field(even), quadrature=torch.ones(even.shape[:2], dtype=torch.float64))
    torch.testing.assert_close(ones, layer(even, field(even)))
    for bad, message in ((torch.ones(1, 3), r"weights of shape \(1, 625\)"), (-torch.ones(1, 625), "not negative")):
        with pytest.raises(ValueError, match=message):
            layer(even, field(even), quadrature=bad)
    with pytest.raises(ValueError, match="preserves it"):
        density_weights(RxSO2(), uneven)


def test_farthest_points_by_a_distance_of_the_group_alone():
    group = Heisenberg()
    x = torch.randn(2, 25, 2, dtype=torch.float64, generator=generator())
    u, q = group.lift(x, generator=generator(1))
    index, shape, kept = farthest_points(group, x, fraction=0.3, elements=(u.flatten(0, 1), q.flatten(0, 1)))
    assert kept.all()
    for b, order in enumerate(index.view(shape) - torch.tensor([[0], [25]])):
        distances = group.distance(u[b].unsqueeze(1), u[b], q[b].unsqueeze(1), q[b])
        for i in range(1, shape[1]):
            nearest = distances[:, order[:i]].amin(1)
            assert float(nearest[order[i]]) == pytest.approx(float(nearest.max()), rel=1e-4)  # ties count as equal
    net = (
        LieResNet(
            1, 2, group=group, lift="sampled", num_samples=2, channels=8, num_layers=1, num_neighbors=5, downsample=0.5
        )
        .double()
        .eval()
    )
    values = torch.randn(2, 25, 1, dtype=torch.float64, generator=generator(2))
    assert torch.equal(net(x, values), net(x, values))


def test_the_first_of_well_spread_points_are_well_spread():
    x = torch.randn(2, 60, 2, generator=generator())
    mask = torch.arange(60) < torch.tensor([[60], [33]])
    index, shape, kept = farthest_points(SE2(), x, mask, fraction=0.5)
    chosen, there = x.view(-1, 2)[index].view(*shape, 2), kept.view(shape)
    _, again_shape, again_kept = farthest_points(SE2(), chosen, there, fraction=0.4)
    _, first_shape, first_kept = first_points(shape, there, 0.4, x.device)
    assert first_shape == again_shape and torch.equal(first_kept, again_kept)
    # The start may differ; from the same start the order is the same.
    for b in range(2):
        distances = torch.cdist(chosen[b, there[b]].double(), chosen[b, there[b]].double())
        order, nearest = [0], distances[0]
        for _ in range(int(first_kept.view(first_shape)[b].sum()) - 1):
            order.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, distances[order[-1]])
        assert order == list(range(len(order)))


def test_farthest_points_are_well_spread_and_follow_the_points():
    x = torch.randn(2, 60, 2, dtype=torch.float64, generator=generator())
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 21:] = False
    index, shape, kept = farthest_points(SE2(), x, mask, fraction=0.25)
    assert shape == (2, 15) and kept.view(2, 15).sum(1).tolist() == [15, 6]  # a quarter of 60 and of 21
    for b, chosen in enumerate(index.view(2, 15)):
        chosen = chosen[kept.view(2, 15)[b]] - 60 * b
        assert len(set(chosen.tolist())) == len(chosen) and mask[b, chosen].all()
        points, all_points = x[b, chosen], x[b, mask[b]]
        spread = torch.cdist(points, points).fill_diagonal_(torch.inf).min()
        assert torch.cdist(all_points, points).amin(1).max() <= spread * (1 + 1e-3)  # the greedy invariant
    g = SE2().sample(generator=generator(1), dtype=torch.float64)
    assert torch.equal(farthest_points(SE2(), SE2().act(g, x), mask, fraction=0.25)[0], index)
    order = torch.randperm(60, generator=generator(2))
    shuffled = farthest_points(SE2(), x[:1, order], fraction=0.25)[0]
    assert torch.equal(order[shuffled], index[:15])
    starts = {
        int(farthest_points(T(2), x, fraction=0.1, at_random=True, generator=generator(s))[0][0]) for s in range(9)
    }
    assert len(starts) > 3
    # On a lattice everything ties: rounding must not decide.
    axis = torch.arange(6.0)
    lattice = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, 36, 2)
    chosen = farthest_points(SE2(), lattice, fraction=0.3)[0]
    for seed in range(10):
        g = SE2().sample(generator=generator(seed))
        assert torch.equal(farthest_points(SE2(), SE2().act(g, lattice), fraction=0.3)[0], chosen)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"fraction above 0 and up to 1"):
            farthest_points(T(2), x, fraction=fraction)


def test_a_ball_learns_its_radius_while_training_and_keeps_it_in_evaluation():
    torch.manual_seed(0)
    near = Neighbourhood(T(2), num_neighbors=20, fill=0.1, generator=generator())
    small, large = torch.rand(2, 200, 2, generator=generator(1)), 10 * torch.rand(2, 200, 2, generator=generator(2))
    near.eval()
    near(small)
    assert near.batches == 0  # evaluation before training measures, and learns nothing
    near.train()
    a, b = near(small), near(small)
    assert near.batches == 2 and near.fill_radius == pytest.approx(0.18, rel=0.2)  # 0.1 = pi r^2
    assert not torch.equal(a.indices, b.indices)  # at random from the ball
    near.eval()
    before = near.fill_radius.clone()
    assert torch.equal(near(small).indices, near(small).indices)
    reach = near(large).offsets.norm(dim=-1) * (near(large).weights > 0)
    assert reach.max() <= before and torch.equal(near.fill_radius, before)
    state = near.state_dict()
    assert set(state) == {"batches", "fill_radius"}
    layer = LieConv(1, 2, group=T(2), fill=0.1)
    assert "neighbourhood.fill_radius" in layer.state_dict()


def test_errors_name_what_was_expected_and_the_remedy():
    x, v = torch.randn(2, 5, 2), torch.randn(2, 5, 1)
    layer = LieConv(1, 2, group=SE2(), num_neighbors=3)
    net = LieResNet(1, 2, group=SE2(), channels=4, num_layers=1)
    for model in (layer, net):
        with pytest.raises(ValueError, match=r"dimension 2 for SE2\(\), got shape \(2, 5, 3\)"):
            model(torch.randn(2, 5, 3), v)
        with pytest.raises(ValueError, match=r"values of shape \(2, 5, 1\)"):
            model(x, torch.randn(2, 5, 2))
        with pytest.raises(TypeError, match="one dtype"):
            model(x, v.double())
        with pytest.raises(ValueError, match=r"mask of shape \(2, 5\), got \(2, 4\)"):
            model(x, v, torch.ones(2, 4, dtype=torch.bool))
        with pytest.raises(TypeError, match="boolean mask"):
            model(x, v, torch.ones(2, 5))
        bad = x.clone()
        bad[1, 3, 0] = math.nan
        with pytest.raises(ValueError, match=r"NaN or infinity at point \(1, 3\)"):
            model(bad, v)
    with pytest.raises(TypeError, match="floating-point points"):
        layer(torch.ones(2, 5, 2, dtype=torch.int64), v)
    with pytest.raises(ValueError, match="batch axis"):
        layer(x[0], v)
    for options, message in [({"num_neighbors": 0}, "num_neighbors"), ({"in_channels": 0}, "in_channels")]:
        with pytest.raises(ValueError, match=f"{message} of at least 1, got 0"):
            LieConv(**{"in_channels": 1, "out_channels": 1, "group": SE2()} | options)
    with pytest.raises(ValueError, match="num_layers of at least 1"):
        LieResNet(1, 1, group=SE2(), num_layers=0)
    with pytest.raises(ValueError, match="'exact' or 'sampled'"):
        build_geometry(SE2(), x, lift="other")
    with pytest.raises(ValueError, match="use lift='sampled'"):
        build_geometry(SE2(), x, num_samples=2)

    class WithoutLift(ScaledRotation):
        stabiliser_dim = None

    assert build_geometry(WithoutLift(), x).kernel_coords.isfinite().all()  # its action says what its parts are
    with pytest.raises(ValueError, match=r"Heisenberg\(\) has no exact lift \(its points have a stabiliser\)"):
        build_geometry(Heisenberg(), x)
    for options, message in (
        ({"num_neighbors": 0}, "num_neighbors of at least 1, got 0"),
        ({"radius": -1.0}, "positive radius, got -1"),
        ({"radius": 1.0, "fill": 0.1}, "a radius or a fill fraction, got both"),
        ({"fill": 0.0}, "fill fraction above 0 and up to 1"),
        ({"at_random": True}, "give a radius or a fill fraction"),
    ):
        with pytest.raises(ValueError, match=message):
            build_geometry(SE2(), x, **options)
    with pytest.raises(ValueError, match=r"Sim2\(\) dilates lengths: use num_neighbors alone"):
        build_geometry(Sim2(), x, radius=1.0)
    with pytest.raises(TypeError, match="integer sample numbers"):
        build_geometry(SE2(), x[0], batch=torch.zeros(5))
    with pytest.raises(ValueError, match=r"batch of shape \(5,\), got \(4,\)"):
        build_geometry(SE2(), x[0], batch=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="non-decreasing; sort the points"):
        build_geometry(SE2(), x[0], batch=torch.tensor([0, 1, 0, 1, 1]))
    geometry = build_geometry(SE2(), x)
    with pytest.raises(ValueError, match=r"values of shape \(2, 5, 1\) for this geometry, got \(2, 4, 1\)"):
        layer(geometry, v[:, :4])


class Shear(LieGroup):
    """Translations and shears of the plane, which wrongly says that no element keeps a point."""

    dim, matrix_dim, point_dim, stabiliser_dim = 3, 3, 2, 0

    def exp(self, a):
        s, x, y = a.unbind(-1)
        zero, one = torch.zeros_like(s), torch.ones_like(s)
        return torch.stack([one, s, x + 0.5 * s * y, zero, one, y, zero, zero, one], -1).unflatten(-1, (3, 3))

    def log(self, g):
        s, y = g[..., 0, 1], g[..., 1, 2]
        return torch.stack([s, g[..., 0, 2] - 0.5 * s * y, y], -1)


def test_errors_of_what_does_not_belong_together():
    x, v = torch.randn(2, 8, 3), torch.randn(2, 8, 2)
    layer = LieConv(2, 4, group=SE3(), num_neighbors=4)
    mask = torch.ones(2, 8, dtype=torch.bool)
    geometry = build_geometry(SE3(), x, mask, num_neighbors=4)
    assert torch.equal(layer(geometry, v, mask), layer(geometry, v))  # the same mask once more does no harm
    with pytest.raises(ValueError, match="has its mask from where it was built"):
        layer(geometry, v, mask & False)
    with pytest.raises(ValueError, match="has its queries from where it was built"):
        layer(geometry, v, queries=x)
    with pytest.raises(ValueError, match="expected a geometry with 13 kernel coordinates"):
        layer(build_geometry(T(3), x), v)
    with pytest.raises(ValueError, match="queries beside query_mask"):
        build_geometry(SE3(), x, query_mask=mask)
    with pytest.raises(ValueError, match=r"frame_features \(..., 2\)"):
        build_geometry(SE3(), x, frame_features=torch.randn(2, 8, 3))
    with pytest.raises(ValueError, match="targets from 0 to 15"):
        build_geometry(SE3(), x, targets=torch.tensor([16]))
    with pytest.raises(TypeError, match="integer targets"):
        build_geometry(SE3(), x, targets=torch.tensor([1.0]))
    with pytest.raises(ValueError, match="sample numbers from 0 up, one after another"):
        build_geometry(SE3(), x[0], batch=torch.arange(8) * 10**12)
    with pytest.raises(ValueError, match=r"stabiliser_dim = 0, but some of its elements keep a point"):
        LieConv(2, 4, group=Shear())


def test_errors_of_types_and_dtypes():
    x, v = torch.randn(2, 8, 3), torch.randn(2, 8, 2)
    layer = LieConv(2, 4, group=SE3(), num_neighbors=4)
    net = LieResNet(2, 1, group=SE3(), channels=8, num_layers=1, num_neighbors=4)
    with pytest.raises(TypeError, match=r"make one: SE3\(\)"):
        LieConv(2, 4, group=SE3)
    with pytest.raises(TypeError, match=r"by_name\('se3'\)"):
        LieConv(2, 4, group="se3")
    for options in ({"num_neighbors": 2.5}, {"in_channels": "8"}, {"num_samples": True, "lift": "sampled"}):
        with pytest.raises(TypeError, match=f"expected an integer {next(iter(options))}"):
            LieConv(**{"in_channels": 2, "out_channels": 4, "group": SE3()} | options)
    with pytest.raises(TypeError, match="expected a number as radius"):
        LieConv(2, 4, group=SE3(), radius="1")
    for model in (layer, net):
        with pytest.raises(TypeError, match=r"expected points and values of torch.float32.*use layer.double\(\)"):
            model(x.double(), v.double())
        with pytest.raises(TypeError, match=r"torch.as_tensor"):
            model(x.numpy(), v)
        with pytest.raises(ValueError, match="mask on cpu, where the points are, got meta"):
            model(x, v, torch.ones(2, 8, dtype=torch.bool, device="meta"))
        with pytest.raises(TypeError, match=r"torch.autocast"):
            model.half()(x.half(), v.half())
        model.float()
    with pytest.raises(TypeError, match="got a Geometry"):
        net(build_geometry(SE3(), x), v)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0)])
def test_nothing_in_nothing_out(shape):
    x, v = torch.randn(*shape, 3), torch.randn(*shape, 2)
    for model in (
        LieConv(2, 4, group=SE3(), num_neighbors=4),
        LieResNet(2, 1, group=SE3(), channels=8, num_layers=1, num_neighbors=4, pool=False),
    ):
        assert model.eval()(x, v).shape[:2] == shape
    pooled = LieResNet(2, 1, group=SE3(), channels=8, num_layers=1, num_neighbors=4).eval()
    assert pooled(x, v).shape == (shape[0], 1) and torch.isfinite(pooled(x, v)).all()


@pytest.mark.parametrize("group", [T(2), SE2(), SO2(), RxSO2(), RxSQ(), Sim2(), Heisenberg()], ids=repr)
@pytest.mark.parametrize("by_torch", [False, True])
def test_no_point_is_chosen_twice_where_positions_repeat(group, by_torch, monkeypatch):
    """Twenty points on five positions: twelve points, with all five positions among the first five."""
    if by_torch:
        monkeypatch.setattr(subsample, "_by_numbers", lambda *arguments: None)
    positions = torch.randn(3, 5, 2, dtype=torch.float64, generator=generator())
    x = positions[:, torch.arange(20) % 5]
    mask = torch.arange(20) < torch.tensor([[20], [13], [0]])
    layouts = [{"coords": x, "mask": mask}]
    layouts += [{"coords": x[mask], "batch": torch.arange(3).repeat_interleave(torch.tensor([20, 13, 0]))}]
    if group.isometric and not by_torch and not isinstance(group, SO2):
        layouts += [{"coords": x, "mask": mask, "cell": 9 * torch.eye(2, dtype=torch.float64)}]
    for options in layouts:
        for at_random in (False, True):
            index, shape, kept = farthest_points(
                group, fraction=0.6, at_random=at_random, generator=generator(1), **options
            )
            counts = kept.view(shape).sum(1).tolist()
            assert counts == [12, 8, 0][: len(counts)]
            start = 0
            for b, (row, there) in enumerate(zip(index.view(shape), kept.view(shape), strict=True)):
                chosen = row[there] - start
                start += 20
                assert len(set(chosen.tolist())) == len(chosen) and bool((chosen >= 0).all())
                assert bool((chosen < [20, 13, 0][b]).all())
                if len(chosen) and not isinstance(group, Heisenberg):  # whose elements of a place are drawn, and differ
                    assert len(set((chosen[:5] % 5).tolist())) == 5
    with pytest.raises(TypeError, match="expected a number as fraction"):
        farthest_points(group, x, fraction=True)
