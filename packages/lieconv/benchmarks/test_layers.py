"""One layer: its growth with the number of points, its matrix products, the published algorithm and its peers.

    nox -s "bench(lieconv)"

64 channels, 32 neighbours. The neighbour search is part of our time; the peers are handed their edges.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from lie.groups import SE2, SE3, T
from lieconv import LieConv
from published import PublishedConv, lifted, plain_relative
from timing import GEMM_FLOPS, fastest, flops, gemm, peak_megabytes

NEIGHBOURS, CHANNELS = 32, 64


def step_of(layer, *arguments):
    def step():
        layer.zero_grad()
        layer(*arguments).square().mean().backward()

    return step


@pytest.mark.parametrize("group", [T(2), SE2(), T(3), SE3()], ids=repr)
def test_a_step_and_its_products(group):
    layer = LieConv(CHANNELS, CHANNELS, group=group, num_neighbors=NEIGHBOURS)
    x, values = torch.randn(1, 1024, group.point_dim), torch.randn(1, 1024, CHANNELS)
    values.requires_grad_()
    geometry = layer.neighbourhood(x)
    whole, known = step_of(layer, x, values), step_of(layer, geometry, values)
    compiled = step_of(torch.compile(layer), geometry, values)
    *seconds, product = fastest(whole, known, compiled, gemm(), rounds=10)
    floor = flops(whole) / GEMM_FLOPS * product
    print(f"\n{group!r}, 1024 points, step in milliseconds and in times of its products:")
    for what, s in zip(("search included", "neighbours known", "neighbours known, compiled"), seconds, strict=True):
        print(f"  {what}: {s * 1e3:.1f} ms, {s / floor:.2f}")


def test_2048_points_against_the_published_algorithm():
    x, values, mask = torch.randn(1, 2048, 3), torch.randn(1, 2048, CHANNELS), torch.ones(1, 2048, dtype=torch.bool)
    ours = step_of(LieConv(CHANNELS, CHANNELS, group=SE3(), num_neighbors=NEIGHBOURS), x, values)
    dim = lifted(SE3(), x[:, :2], values[:, :2], mask[:, :2], 1).pairs.shape[-1]
    layer = PublishedConv(CHANNELS, CHANNELS, dim, NEIGHBOURS)

    def published(relative=None):
        layer.zero_grad()
        layer(lifted(SE3(), x, values, mask, 1, relative))[0].values.square().mean().backward()

    u, _ = SE3().lift(x[:, :50].double(), num_samples=None)
    pairs = u.unsqueeze(2), u.unsqueeze(1)
    difference = (plain_relative(*pairs) - SE3().relative(*pairs)).abs().amax(-1)
    assert (difference < 1e-3).double().mean() > 0.99  # the published formula fails near half turns
    a, b, c = fastest(ours, published, lambda: published(plain_relative), rounds=3)
    print(f"\nSE3 layer on 2048 points, step: {a * 1e3:.0f} ms, {c / a:.1f} times quicker than as published")
    print(f"  {b / a:.1f} times with the closed form of the core in the place of the published log")


GROWTH = """
from lie.groups import {group}
from lieconv import LieConv
layer = LieConv(64, 64, group={group}{arguments}, num_neighbors=32)
layer(torch.randn(1, 64, 3), torch.randn(1, 64, 64)).sum().backward()
before = resident()
layer(torch.randn(1, {points}, 3), torch.randn(1, {points}, 64)).square().mean().backward()
print(peak() - before)
"""


@pytest.mark.parametrize(("group", "name", "arguments"), [(T(3), "T", "(3)"), (SE3(), "SE3", "()")], ids=["T3", "SE3"])
def test_growth(group, name, arguments):
    layer = LieConv(CHANNELS, CHANNELS, group=group, num_neighbors=NEIGHBOURS)
    times, sizes = [], (1024, 4096, 16384, 65536)
    print()
    for n in sizes:
        step = step_of(layer, torch.randn(1, n, 3), torch.randn(1, n, CHANNELS))
        times.append(fastest(step, rounds=5 if n < 10000 else 2)[0])
        memory = peak_megabytes(GROWTH.format(group=name, arguments=arguments, points=n))
        print(f"{group!r}, {n} points: step {times[-1]:.3f} s, {memory:.0f} MB above rest")
    for (n, s), (m, t) in itertools.pairwise(zip(sizes, times, strict=True)):
        print(f"  from {n} to {m}: time grows like n^{math.log(t / s) / math.log(m / n):.2f}")
    whole = math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
    print(f"  from {sizes[0]} to {sizes[-1]}: like n^{whole:.2f}")


def edges_of(x):
    """Pairs (neighbour, point) of the 32 nearest points."""
    from scipy.spatial import KDTree

    index = torch.from_numpy(KDTree(x.numpy()).query(x.numpy(), k=NEIGHBOURS)[1])
    return torch.stack([index.flatten(), torch.arange(len(x)).repeat_interleave(NEIGHBOURS)])


def peers(x, values):
    """Name -> a training step of a peer."""
    import e3nn.o3
    from egnn_pytorch import EGNN
    from torch_geometric.nn import PointNetConv

    edges = edges_of(x)
    mlp = torch.nn.Sequential(torch.nn.Linear(CHANNELS + 3, 64), torch.nn.ReLU(), torch.nn.Linear(64, CHANNELS))
    pointnet = PointNetConv(mlp, add_self_loops=False)
    egnn = EGNN(dim=CHANNELS, num_nearest_neighbors=NEIGHBOURS, m_dim=16)
    irreps, sh = e3nn.o3.Irreps("64x0e"), e3nn.o3.Irreps.spherical_harmonics(1)
    product = e3nn.o3.FullyConnectedTensorProduct(irreps, sh, "64x0e", shared_weights=False)
    wide = e3nn.o3.FullyConnectedTensorProduct("64x0e", sh, "32x0e + 8x1o", shared_weights=False)

    def tensor_product(layer):
        radial = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.SiLU(), torch.nn.Linear(32, layer.weight_numel))

        def step():
            radial.zero_grad()
            offsets = x[edges[0]] - x[edges[1]]
            weights = radial(offsets.norm(dim=-1, keepdim=True) * torch.arange(1.0, 9.0))
            harmonics = e3nn.o3.spherical_harmonics(sh, offsets, normalize=True)
            messages = layer(values[edges[0]], harmonics, weights)
            out = torch.zeros(len(x), messages.shape[-1]).index_add(0, edges[1], messages)
            out.square().mean().backward()

        return step

    def egnn_step():
        egnn.zero_grad()
        egnn(values.unsqueeze(0), x.unsqueeze(0))[0].square().mean().backward()

    def pointnet_step():
        mlp.zero_grad()
        pointnet(values, x, edges).square().mean().backward()

    return {
        "torch_geometric PointNetConv": pointnet_step,
        "egnn-pytorch EGNN (its own search)": egnn_step,
        "e3nn 64x0e to 64x0e by harmonics to degree 1": tensor_product(product),
        "e3nn 64x0e to 32x0e + 8x1o": tensor_product(wide),
    }


def test_peers_on_1024_points():
    pytest.importorskip("e3nn", reason="the peers come with lieconv[bench]")
    x, values = torch.randn(1024, 3), torch.randn(1024, CHANNELS)
    ours = {
        f"LieConv {group!r}, search included": step_of(
            LieConv(CHANNELS, CHANNELS, group=group, num_neighbors=NEIGHBOURS), x.unsqueeze(0), values.unsqueeze(0)
        )
        for group in (T(3), SE3())
    }
    every = ours | peers(x, values)
    times = dict(zip(every, fastest(*every.values(), rounds=4), strict=True))
    print()
    for name, seconds in sorted(times.items(), key=lambda item: item[1]):
        print(f"{name}: {seconds * 1e3:.0f} ms a step")
