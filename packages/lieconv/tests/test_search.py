"""Neighbours against loops: by tree and pair by pair, in balls, at random, on a group, and in periodic cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from lie.groups import SE2, SE3, LieGroup, RxSO2, RxSQ, T
from lieconv import LieResNet, build_geometry, farthest_points
from lieconv.geometry import search
from lieconv.geometry.cloud import cloud_of
from lieconv.geometry.lifts import make_lift
from lieconv.geometry.neighbours import fill_radius, find_neighbours
from lieconv.geometry.periodic import reduced
from lieconv.geometry.search import Space, nearest, random_within

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["tree", "pairs"])
def way(request, monkeypatch):
    """Both ways of searching, whatever the size."""
    monkeypatch.setattr(search, "_TREE_FROM", 0 if request.param == "tree" else 1 << 62)
    monkeypatch.setattr(search, "_BLOCK", 1 << 7)  # several blocks of rows
    return request.param


def space(x: torch.Tensor, mask: torch.Tensor, ragged: bool) -> Space:
    B, N = mask.shape
    sample = torch.arange(B).repeat_interleave(N)
    return Space(x.flatten(0, 1), mask.flatten(), sample, None if ragged else (B, N))


def near(group, x, k, mask=None, **options):
    cloud = cloud_of(group, x, mask)
    return find_neighbours(make_lift(group, "exact", "auto", 1), cloud, cloud, k, **options)


@pytest.mark.parametrize("ragged", [False, True])
def test_nearest_are_those_of_a_loop(way, ragged):
    x = torch.randn(3, 15, 2, dtype=F64, generator=generator())
    q = torch.randn(3, 4, 2, dtype=F64, generator=generator(1))
    mask = torch.ones(3, 15, dtype=torch.bool)
    mask[1, 9:] = False
    mask[2, 3:] = False
    sources, targets = space(x, mask, ragged), space(q, torch.ones(3, 4, dtype=torch.bool), ragged)
    index, found = nearest(sources, targets, 6)
    for m in range(12):
        b = m // 4
        order = sorted((float((x[b, j] - q[b, m % 4]).norm()), 15 * b + j) for j in range(15) if mask[b, j])
        expected = [j for _, j in order[:6]]
        assert index[m][found[m]].tolist() == expected
        assert found[m].sum() == len(expected) and (index[m][~found[m]] == 0).all()


def test_an_empty_batch_and_a_set_without_valid_points(way):
    for count, valid in ((0, True), (5, False)):
        points = Space(torch.zeros(count, 2), torch.full((count,), valid), torch.zeros(count, dtype=torch.long), None)
        index, found = nearest(points, points, 3)
        assert index.shape == (count, 3) and not found.any()
        index, found = random_within(points, points, torch.tensor(1.0), 3, None)
        assert index.shape == (count, 3) and not found.any()


@pytest.mark.parametrize("ragged", [False, True])
def test_a_ball_is_sampled_uniformly_and_without_repetition(way, ragged):
    x = torch.randn(2, 12, 2, dtype=F64, generator=generator())
    points = space(x, torch.ones(2, 12, dtype=torch.bool), ragged)
    inside = (torch.cdist(x, x) <= 1.2).flatten(0, 1)  # (24, 12)
    counts = torch.zeros(24, 12)
    draws, random = 1500, generator(1)
    for _ in range(draws):
        index, found = random_within(points, points, torch.tensor(1.2, dtype=F64), 3, random)
        rows = torch.arange(24).unsqueeze(1).expand_as(index)
        drawn = torch.zeros(24, 12).index_put((rows[found], index[found] % 12), torch.ones(int(found.sum())), True)
        assert drawn.max() <= 1
        counts += drawn
    assert (counts[~inside] == 0).all()
    expected = (3.0 / inside.sum(1).clamp(min=3)).unsqueeze(1).expand(24, 12)[inside]
    deviation = (counts[inside] / draws - expected).abs() / (expected * (1 - expected) / draws).sqrt().clamp(min=1e-9)
    assert deviation[expected < 1].max() < 4.5  # standard errors; the largest of a few hundred
    assert (counts[inside][expected == 1] == draws).all()


def test_weights_close_at_the_next_one(way):
    x = torch.randn(2, 15, 2, dtype=F64, generator=generator())
    mask = torch.ones(2, 15, dtype=torch.bool)
    mask[1, 9:] = False
    k = 4
    found = near(T(2), x, k, mask)
    for row in range(30):
        b, i = divmod(row, 15)
        if not mask[b, i]:
            assert (found.weights[row] == 0).all()
            continue
        distances = sorted((float((x[b, i] - x[b, j]).norm()), 15 * b + j) for j in range(15) if mask[b, j])
        assert found.indices[row].tolist() == [j for _, j in distances[:k]]
        edge = distances[k][0]
        window = torch.tensor([(1 - (r / edge) ** 2) ** 2 for r, _ in distances[:k]], dtype=F64)
        torch.testing.assert_close(found.weights[row], window / window.sum())
        assert math.isclose(float(found.squared_radius[row]), edge**2, rel_tol=1e-12)


def test_a_tie_at_the_edge_counts_nothing(way):
    """On a square lattice the fifth to eighth neighbours tie: whichever is chosen as the last has weight zero."""
    axis = torch.arange(-1.0, 2.0)
    lattice = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, 9, 2)
    centre = near(T(2), lattice, 7).weights[4]
    assert (centre[:5] > 0).all() and (centre[5:] == 0).all()


def test_a_set_that_fits_inside_weighs_all_points_equally_but_not_within_a_radius(way):
    x = torch.randn(1, 5, 2, generator=generator())
    weights = near(T(2), x, 8).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert ((weights - 0.2).abs() < 1e-6).sum() == 25 and (weights > 0).sum() == 25
    within = near(T(2), x, 8, radius=torch.tensor(1.0))
    distance = torch.cdist(x, x)[0]
    for i in range(5):
        expected = (1 - distance[i].square()).clamp(min=0).square()
        row = torch.zeros(5).index_add(0, within.indices[i], within.weights[i])
        torch.testing.assert_close(row, expected / expected.sum())


def test_a_crowded_ball_closes_at_the_next_neighbour(way):
    x = 0.1 * torch.randn(1, 20, 2, dtype=F64, generator=generator())
    crowded, wide = near(T(2), x, 5, radius=torch.tensor(9.0, dtype=F64)), near(T(2), x, 5)
    assert torch.equal(crowded.indices, wide.indices)
    torch.testing.assert_close(crowded.weights, wide.weights)


def test_the_radius_of_a_fill_fraction_follows_the_scale_of_the_data():
    x = torch.rand(2, 400, 2, dtype=F64, generator=generator())
    lift = make_lift(T(2), "exact", "auto", 1)
    radii = [float(fill_radius(lift, cloud_of(T(2), s * x), 0.1)) for s in (1e-3, 1.0, 1e3)]
    assert radii[0] * 1e3 == pytest.approx(radii[1]) and radii[2] / 1e3 == pytest.approx(radii[1])
    inside = (torch.cdist(x, x) <= radii[1]).double().mean()
    assert inside == pytest.approx(0.1, rel=0.1)  # an average radius, not a radius of averages


@pytest.mark.parametrize("group", [RxSO2(), RxSQ()], ids=repr)
def test_neighbours_under_dilations_do_not_depend_on_the_dilation(group, way):
    x = torch.randn(1, 40, 2, dtype=F64, generator=generator())
    g = group.sample(generator=generator(1), dtype=F64)
    a, b = near(group, x, 5), near(group, group.act(g, x), 5)
    assert torch.equal(a.indices, b.indices)
    torch.testing.assert_close(a.weights, b.weights, rtol=1e-10, atol=1e-12)


class Affine(LieGroup):
    """x -> s x + t on the line: not abelian, not isometric, free on pairs only; here acting on (s, t) by itself."""

    dim, matrix_dim, point_dim, stabiliser_dim, orbit_dim = 2, 2, 2, 0, 0

    def exp(self, a):
        log_s, t = a.split(1, -1)
        from lie.groups.functions import expm1_ratio

        zero = torch.zeros_like(t)
        return torch.cat([log_s.exp(), t * expm1_ratio(log_s), zero, zero + 1], -1).unflatten(-1, (2, 2))

    def log(self, g):
        from lie.groups.functions import expm1_ratio

        log_s = g[..., 0, :1].log()
        return torch.cat([log_s, g[..., 0, 1:] / expm1_ratio(log_s)], -1)

    def act(self, g, x):
        """Points are elements (log s, t) of the group; it multiplies them from the left."""
        return self.log(g @ self.exp(x))

    def lift(self, x, num_samples=None, generator=None):
        x = x if num_samples is None else x.unsqueeze(-2).expand(*x.shape[:-1], num_samples, 2)
        return self.exp(x), x[..., :0]

    def orbit_origin(self, orbit):
        return orbit.new_zeros(*orbit.shape[:-1], 2)


def test_a_users_group_is_searched_by_its_own_distance(monkeypatch):
    from lieconv.geometry import neighbours

    monkeypatch.setattr(neighbours, "_ROWS", 200)  # several blocks
    G = Affine()
    x = torch.randn(2, 11, 2, dtype=F64, generator=generator())
    geometry = build_geometry(G, x, num_neighbors=4)
    u = G.exp(x)
    for row in range(22):
        b, i = divmod(row, 11)
        distances = sorted((float(G.distance(u[b, i], u[b, j])), 11 * b + j) for j in range(11))
        assert geometry.indices[row].tolist() == [j for _, j in distances[:4]]


# --- periodic cells ---


def cells(count: int, d: int) -> np.ndarray:
    """Skewed cells: products of shears with integer and random entries."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        shear = np.eye(d)
        for _ in range(4):
            i, j = rng.permutation(d)[:2]
            step = np.eye(d)
            step[i, j] = rng.integers(-3, 4)
            shear = step @ shear
        made.append(shear @ (np.eye(d) * rng.uniform(0.5, 2, (d, 1)) + 0.2 * rng.normal(size=(d, d))))
    return np.stack(made)


@pytest.mark.parametrize("d", [2, 3])
def test_reduction_keeps_the_lattice_and_finds_its_shortest_vectors(d):
    for cell in cells(20, d):
        Z = reduced(cell)
        assert abs(round(np.linalg.det(Z))) == 1
        short = Z @ cell
        span = np.array([s for s in itertools.product(range(-4, 5), repeat=d) if any(s)]) @ short
        assert np.sort(np.linalg.norm(short, axis=1))[0] == pytest.approx(np.linalg.norm(span, axis=1).min())


@pytest.mark.parametrize("d", [2, 3])
def test_periodic_neighbours_are_those_of_many_images(d):
    group = SE2() if d == 2 else SE3()
    cell = torch.from_numpy(cells(4, d))
    x = 3 * torch.randn(4, 9, d, dtype=F64, generator=generator())  # also outside of the cell
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[2, 5:] = False
    geometry = build_geometry(group, x, mask, num_neighbors=4, cell=cell)
    shifts = torch.tensor(list(itertools.product(range(-25, 26), repeat=d)), dtype=F64) if d == 2 else None
    for row in range(36):
        b, i = divmod(row, 9)
        if not mask[b, i]:
            continue
        Z = torch.from_numpy(reduced(cell[b].numpy())).double()
        short = Z @ cell[b]
        fractions = (x[b] - x[b, i]) @ torch.linalg.inv(short)
        around = torch.tensor(list(itertools.product(range(-2, 3), repeat=d)), dtype=F64)
        images = (fractions - fractions.round()).unsqueeze(1) + around  # (9, 5^d, d)
        length = (images @ short).norm(dim=-1).amin(1)
        if shifts is not None:  # without any reduction at all
            length_2 = ((x[b] - x[b, i]).unsqueeze(1) + shifts @ cell[b]).norm(dim=-1).amin(1)
            torch.testing.assert_close(length, torch.minimum(length, length_2))
        order = sorted((float(length[j]), 9 * b + j) for j in range(9) if mask[b, j])
        assert geometry.indices[row].tolist() == [j for _, j in order[:4]]
        torch.testing.assert_close(
            geometry.offsets[row].norm(dim=-1), torch.tensor([r for r, _ in order[:4]], dtype=F64)
        )


def test_a_cell_that_repeats_in_two_directions_only():
    """A slab: images along x and y, none along z."""
    cell = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    x = torch.tensor([[[0.05, 0.5, 0.0], [0.95, 0.5, 0.0], [0.05, 0.5, 0.9]]], dtype=F64)
    geometry = build_geometry(T(3), x, num_neighbors=3, cell=cell)
    assert geometry.indices[0].tolist() == [0, 1, 2]
    expected = torch.tensor([[0.0, 0.0, 0.0], [-0.1, 0.0, 0.0], [0.0, 0.0, 0.9]], dtype=F64)
    torch.testing.assert_close(geometry.offsets[0], expected, rtol=0, atol=1e-15)


def test_a_small_cell_asks_for_more_images_until_enough_points_are_found():
    """Fewer points than neighbours, and cells in which one point's images crowd all others out."""
    x = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 4.9]]], dtype=F64)
    cell = torch.diag(torch.tensor([0.1, 0.1, 10.0], dtype=F64))
    geometry = build_geometry(T(3), x, num_neighbors=2, cell=cell)
    assert geometry.indices[0].tolist() == [0, 1] and (geometry.weights.sum(-1) - 1).abs().max() < 1e-12
    assert build_geometry(T(3), x[:, :1], num_neighbors=4, cell=cell).weights[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_cell_receives_gradients():
    """Stress: the derivative of an output by the cell is that of differences."""
    cell = torch.from_numpy(cells(1, 3)).requires_grad_()
    x = torch.randn(1, 7, 3, dtype=F64, generator=generator())

    def energy(cell):
        geometry = build_geometry(SE3(), x, num_neighbors=4, cell=cell)
        return (geometry.kernel_coords.square() * geometry.weights.unsqueeze(-1)).sum()

    assert torch.autograd.gradcheck(energy, cell, atol=1e-6, rtol=1e-5)


def test_what_a_periodic_cell_refuses():
    x = torch.randn(2, 5, 3)
    eye = torch.eye(3)
    for cell, message in (
        (torch.eye(2), r"cell of shape \(3, 3\) or \(2, 3, 3\), got \(2, 2\)"),
        (torch.ones(3, 3), "flat cell"),
        (eye * math.nan, "finite periodic cell"),
    ):
        with pytest.raises(ValueError, match=message):
            build_geometry(T(3), x, cell=cell)
    with pytest.raises(ValueError, match="preserves lengths"):
        build_geometry(RxSO2(), x[..., :2], cell=eye[:2, :2])
    from lie.groups import SO3

    with pytest.raises(ValueError, match="one fixed centre"):
        build_geometry(SO3(), x, cell=eye)
    with pytest.raises(ValueError, match="build the geometry outside"):
        torch.func.vmap(lambda y: build_geometry(T(3), y, cell=eye).offsets)(x.unsqueeze(1))


def test_nothing_that_repeats_is_no_cell():
    x = torch.randn(1, 7, 3, dtype=F64, generator=generator())
    with_zero, without = (build_geometry(SE3(), x, num_neighbors=4, cell=c) for c in (torch.zeros(3, 3), None))
    torch.testing.assert_close(with_zero.kernel_coords, without.kernel_coords, rtol=0, atol=0)
    torch.testing.assert_close(with_zero.positions, without.positions, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [3, 2, 1])
def test_subsampling_in_a_cell_does_not_know_which_image_was_drawn(rows):
    cell = torch.tensor([[2.0, 0.0, 0.0], [1.9, 1.0, 0.0], [0.7, 0.4, 1.5]], dtype=F64)
    cell[rows:] = 0.0
    x = torch.rand(2, 20, 3, dtype=F64, generator=generator()) * 2
    whole = torch.randint(-2, 3, (2, 20, 3), generator=generator(1)).to(F64)
    moved = x + whole @ cell
    index, shape, kept = farthest_points(SE3(), x, fraction=0.4, cell=cell)
    again = farthest_points(SE3(), moved, fraction=0.4, cell=cell)
    assert torch.equal(index, again[0]) and torch.equal(kept, again[2])
    # By brute force over images: each point is the furthest from those before it.
    images = torch.tensor(list(itertools.product(range(-4, 5), repeat=3)), dtype=F64) @ cell
    for points, order in zip(x, index.view(shape) - torch.tensor([[0], [20]]), strict=True):
        offsets = points.unsqueeze(1) - points
        distances = (offsets.unsqueeze(2) + images).norm(dim=-1).amin(-1)
        for i in range(1, shape[1]):
            nearest = distances[order[:i]].amin(0)
            assert float(nearest[order[i]]) == pytest.approx(float(nearest.max()), rel=1e-4)
    torch.manual_seed(0)
    net = LieResNet(1, 1, group=SE3(), channels=8, num_layers=2, num_neighbors=6, downsample=0.5).double().eval()
    values = torch.randn(2, 20, 1, dtype=F64, generator=generator(2))
    torch.testing.assert_close(net(moved, values, cell=cell), net(x, values, cell=cell))
