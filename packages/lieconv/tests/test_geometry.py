"""Neighbours against brute force, windows, a user's group, and errors that name the remedy."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SE2, SO2, LieGroup, T, Trivial
from lie.testing import assert_equivariant, check_group
from lieconv import LieConv, LieResNet, build_geometry
from lieconv.geometry import kernel_dim, nearest_neighbours


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


def test_neighbours_are_those_of_a_loop_and_weights_close_at_the_next_one():
    x = torch.randn(2, 15, 2, dtype=torch.float64, generator=generator())
    mask = torch.ones(2, 15, dtype=torch.bool)
    mask[1, 9:] = False
    k = 4
    indices, weights, radius = nearest_neighbours(T(2), x, None, None, mask, k)
    for b in range(2):
        for i in range(15):
            if not mask[b, i]:
                assert (weights[b, i] == 0).all()
                continue
            distances = sorted((float((x[b, i] - x[b, j]).norm()), j) for j in range(15) if mask[b, j])
            assert indices[b, i].tolist() == [j for _, j in distances[:k]]
            edge = distances[k][0]
            window = torch.tensor([(1 - (r / edge) ** 2) ** 2 for r, _ in distances[:k]], dtype=torch.float64)
            torch.testing.assert_close(weights[b, i], window / window.sum())
            assert math.isclose(float(radius[b, i]), edge**2, rel_tol=1e-12)


def test_a_tie_at_the_edge_counts_nothing():
    """On a square lattice the fifth to eighth neighbours tie: whichever is chosen as the last has weight zero."""
    axis = torch.arange(-1.0, 2.0)
    lattice = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, 9, 2)
    _, weights, _ = nearest_neighbours(T(2), lattice, None, None, torch.ones(1, 9, dtype=torch.bool), 7)
    centre = weights[0, 4]
    assert (centre[:5] > 0).all() and (centre[5:] == 0).all()


def test_a_set_that_fits_inside_weighs_all_points_equally():
    x = torch.randn(1, 5, 2, generator=generator())
    _, weights, _ = nearest_neighbours(T(2), x, None, None, torch.ones(1, 5, dtype=torch.bool), 8)
    torch.testing.assert_close(weights, torch.full((1, 5, 5), 0.2))


@pytest.mark.parametrize("group", [T(2), SO2(), SE2(), Trivial(2), ScaledRotation()], ids=repr)
@pytest.mark.parametrize("lift", ["exact", "sampled"])
def test_a_precomputed_geometry_is_the_same_as_coordinates(group, lift):
    x, values = torch.randn(2, 12, 2, generator=generator()), torch.randn(2, 12, 3, generator=generator(1))
    geometry = build_geometry(group, x, num_neighbors=5, lift=lift, generator=generator(2))
    assert geometry.kernel_coords.shape == (2, 12, 5, kernel_dim(group, lift))
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
    u, _ = SE2().lift(x, num_samples=1, generator=generator(3))
    u = u.flatten(1, 2)
    for i in range(6):
        for slot, j in enumerate(geometry.indices[0, i].tolist()):
            torch.testing.assert_close(geometry.kernel_coords[0, i, slot], SE2().relative(u[0, i], u[0, j]))


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

    with pytest.raises(ValueError, match="no exact lift"):
        build_geometry(WithoutLift(), x)
