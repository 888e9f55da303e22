"""Networks against the algorithm as published and against the time of their own matrix products, in one run.

    nox -s "bench(lieconv)"

The same widths, neighbours and points for both. Images are 28 x 28 grids in batches of 4, their geometry shared; the
molecules are random sets of 15 to 29 atoms in batches of 16, the published network with four lifts an atom. Times are
processor seconds of one thread, the best of several turns; the ratio is to the time that the matrix products of the
step itself would take at the rate of a 1024 x 1024 product measured between them.
"""

from __future__ import annotations

import pytest
import torch
from lie.groups import SE2, SE3, SO2, T
from lieconv import LieResNet
from published import PublishedResNet, lifted
from timing import GEMM_FLOPS, fastest, flops, gemm, peak_megabytes

PER_BLOCK = 0.1 ** (1 / 6)  # a tenth of the points is left after six blocks, as in the paper's image network


def grid(size: int = 28):
    axis = torch.linspace(-3.0, 3.0, size)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)


def molecules(count: int = 16):
    sizes = torch.randint(15, 30, (count, 1))
    mask = torch.arange(29) < sizes
    return torch.randn(count, 29, 3) * mask.unsqueeze(-1), torch.randn(count, 29, 12), mask


def step_of(net, *arguments):
    def step():
        net.zero_grad()
        out = net(*arguments)
        out.square().mean().backward()

    return step


def show(name: str, ours: float, theirs: float, work: float, product: float) -> None:
    floor = work / GEMM_FLOPS * product
    print(f"\n{name}: {ours * 1e3:.1f} ms, {theirs / ours:.1f} times quicker than as published ({theirs * 1e3:.0f} ms)")
    print(f"  {ours / floor:.2f} times its {work / 1e9:.2f} GFLOP of products")


@pytest.mark.parametrize(("group", "samples"), [(T(2), 1), (SO2(), 1), (SE2(), 2)], ids=["T2", "SO2", "SE2"])
def test_images(group, samples):
    coords, values = grid(), torch.randn(4, 784, 1)
    ours = LieResNet(1, 10, group=group, channels=128, num_layers=6, num_neighbors=25, downsample=PER_BLOCK)
    pairs_dim = group.dim + 2 * group.lift(coords)[1].shape[-1]
    theirs = PublishedResNet(1, 10, group, pairs_dim, samples=samples, k=25, fraction=PER_BLOCK)
    theirs_given = (coords.expand(4, -1, -1), values, torch.ones(4, 784, dtype=torch.bool))
    step, published = step_of(ours, coords, values), step_of(theirs, *theirs_given)
    known = step if ours.frame_features is not None else step_of(ours, ours.resolutions(coords), values)
    a, b, c, product = fastest(step, published, known, gemm(), rounds=4)
    show(f"image {group!r}, step", a, b, flops(step), product)
    if known is not step:
        show(f"image {group!r}, step, resolutions known", c, b, flops(step), product)
    ours.eval()
    with torch.no_grad():
        a, b, product = fastest(lambda: ours(coords, values), lambda: theirs(*theirs_given), gemm(), rounds=4)
        show(f"image {group!r}, forward with fresh geometry", a, b, flops(lambda: ours(coords, values)), product)


@pytest.mark.parametrize("channels", [256, 1536])
@pytest.mark.parametrize(("group", "samples"), [(T(3), 1), (SE3(), 4)], ids=["T3", "SE3"])
def test_molecules(group, samples, channels):
    given = molecules()
    ours = LieResNet(12, 1, group=group, channels=channels, num_layers=6, num_neighbors=29)
    theirs = PublishedResNet(
        12, 1, group, group.dim + (2 if samples > 1 else 0), samples=samples, channels=channels, k=29 * samples
    )
    theirs.blocks[0].conv.weights[0] = torch.nn.Linear(lifted(group, *given, samples).pairs.shape[-1], 32)
    for block in theirs.blocks:
        block.conv.weights[0] = theirs.blocks[0].conv.weights[0]
    step, published = step_of(ours, *given), step_of(theirs, *given)
    a, b, product = fastest(step, published, gemm(), rounds=3)
    show(f"molecules {group!r}, width {channels}, step", a, b, flops(step), product)


MEMORY = """
import sys
sys.path.insert(0, {folder!r})
from lie.groups import SE2, SE3
{body}
before = resident()
run()
print(peak() - before)
"""

BODIES = {
    "image SE2 forward, ours": """
from lieconv import LieResNet
axis = torch.linspace(-3.0, 3.0, 28)
coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)
net = LieResNet(1, 10, group=SE2(), channels=128, num_layers=6, num_neighbors=25, downsample=0.1 ** (1 / 6)).eval()
net(coords[:, :64], torch.randn(4, 64, 1))
def run():
    with torch.no_grad():
        net(coords, torch.randn(4, 784, 1))
""",
    "image SE2 forward, as published": """
from published import PublishedResNet
axis = torch.linspace(-3.0, 3.0, 28)
coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2).expand(4, -1, -1)
net = PublishedResNet(1, 10, SE2(), 3, samples=2, k=25, fraction=0.1 ** (1 / 6)).eval()
net(coords[:, :64], torch.randn(4, 64, 1), torch.ones(4, 64, dtype=torch.bool))
def run():
    with torch.no_grad():
        net(coords, torch.randn(4, 784, 1), torch.ones(4, 784, dtype=torch.bool))
""",
    "layer SE3 on 2048 points, ours": """
from lieconv import LieConv
layer = LieConv(64, 64, group=SE3(), num_neighbors=32)
layer(torch.randn(1, 64, 3), torch.randn(1, 64, 64)).sum().backward()
def run():
    layer(torch.randn(1, 2048, 3), torch.randn(1, 2048, 64)).square().mean().backward()
""",
    "layer SE3 on 2048 points, as published": """
from published import PublishedConv, Pairs, lifted
layer = PublishedConv(64, 64, 6, 32)
def step(n):
    x = lifted(SE3(), torch.randn(1, n, 3), torch.randn(1, n, 64), torch.ones(1, n, dtype=torch.bool), 1)
    layer(x)[0].values.square().mean().backward()
step(64)
def run():
    step(2048)
""",
}


def test_memory():
    from pathlib import Path

    folder = str(Path(__file__).parent)
    print()
    for name, body in BODIES.items():
        print(f"{name}: {peak_megabytes(MEMORY.format(folder=folder, body=body)):.0f} MB above rest")
