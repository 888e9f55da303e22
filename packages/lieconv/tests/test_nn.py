"""Masked normalisation against torch's, serialisation, compilation, export, half precision, many processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, RxSO2, RxSQ, T
from lie.run import load_weights, save_weights
from lieconv import LieConv, LieResNet, build_geometry
from lieconv.geometry import search
from lieconv.nn import BottleneckBlock, MaskedBatchNorm, masked_mean
from lieconv.nn.sums import kernel_sums


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masked_batch_norm_is_batch_norm_of_the_valid_points():
    mask = torch.rand(4, 9, generator=generator()) < 0.7
    ours, theirs = MaskedBatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    for step in range(3):
        # A mean of 1e4: the variance must not come from the difference of two large numbers.
        x = 1e4 + torch.randn(4, 9, 3, dtype=torch.float64, generator=generator(step))
        y = ours(x, mask)
        torch.testing.assert_close(y[mask], theirs(x[mask]), rtol=1e-9, atol=1e-9)
        assert (y[~mask] == 0).all()
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, mask)[mask], theirs.eval()(x[mask]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1])
def test_masked_batch_norm_survives_few_points(count):
    norm = MaskedBatchNorm(2)
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, :count] = True
    x = torch.full((1, 4, 2), torch.nan)
    x[mask] = 3.0
    y = norm(x, mask)
    assert torch.isfinite(y).all()
    assert torch.isfinite(norm.running_mean).all() and (norm.running_var > 0).all()
    expected = 0.3 if count else 0.0
    torch.testing.assert_close(norm.running_mean, torch.full((2,), expected))


def test_masked_mean():
    x = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[True, False, True, False]])
    torch.testing.assert_close(masked_mean(x, mask), x[:, [0, 2]].mean(1))
    assert torch.equal(masked_mean(x, ~mask & mask), torch.zeros(1, 3))


GROUPS = [T(2), SO2(), SE2(), RxSO2(), RxSQ(), T(3), SO3(), SE3()]


def batch_for(group, count: int = 3, points: int = 12):
    x = torch.randn(count, points, group.point_dim, generator=generator())
    values = torch.randn(count, points, 2, generator=generator(1))
    mask = torch.ones(count, points, dtype=torch.bool)
    mask[1, points * 2 // 3 :] = False
    return x, values, mask


def small_net(group, **options):
    torch.manual_seed(0)
    options = {"channels": 8, "num_layers": 2, "num_neighbors": 5} | options
    return LieResNet(2, 3, group=group, **options)


@pytest.mark.parametrize("group", [T(3)], ids=repr)
def test_layers_compile_without_breaks_once_neighbours_are_known(group):
    torch._dynamo.reset()
    x, _, mask = batch_for(group)
    values = torch.randn(3, 12, 8, generator=generator(1))
    geometry = build_geometry(group, x, mask, num_neighbors=4)  # a pytree of tensors
    for layer in (LieConv(8, 4, group=group), BottleneckBlock(8, group=group)):
        torch.testing.assert_close(
            torch.compile(layer, fullgraph=True, backend="aot_eager")(geometry, values), layer(geometry, values)
        )


@pytest.mark.parametrize("group", [SE2(), RxSO2(), RxSQ(), SE3()], ids=repr)
def test_whole_networks_compile_without_breaks(group):
    torch._dynamo.reset()
    net, (x, values, mask) = small_net(group, num_layers=1), batch_for(group)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    net.train()
    compiled(x, values, mask).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, values, mask), net(x, values, mask))


@pytest.mark.parametrize("group", [T(2), SE3()], ids=repr)
def test_evaluation_networks_export_for_any_number_of_samples_and_points(group):
    net = small_net(group, num_layers=1)
    net(*batch_for(group))
    net.eval()
    B, N = torch.export.Dim("B"), torch.export.Dim("N")
    exported = torch.export.export(net, batch_for(group), dynamic_shapes=({0: B, 1: N},) * 3).module()
    for count, points in ((3, 12), (2, 40), (5, 9), (2, 2)):
        given = batch_for(group, count, points)
        torch.testing.assert_close(exported(*given), net(*given))


def test_networks_that_subsample_export_for_the_size_they_are_shown():
    net = small_net(SE3(), num_layers=1, downsample=0.5).eval()
    given = batch_for(SE3())
    torch.testing.assert_close(torch.export.export(net, given).module()(*given), net(*given))


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_autocast_to_bfloat16_keeps_the_geometry_in_full(group):
    net, (x, values, mask) = small_net(group), batch_for(group)
    net(x, values, mask)
    expected = net.eval()(x, values, mask)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, values, mask)
    assert y.dtype == torch.bfloat16
    # Eight bits of mantissa: errors of 2^-8 in every layer, of which there are some ten.
    assert (y.float() - expected).abs().max() < 0.05 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.train()(x, values, mask).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in net.parameters())
    turned = group.act(group.sample(generator=generator(3)), x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (net.eval()(turned, values, mask) - net(x, values, mask)).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    "options", [{}, {"downsample": 0.5}, {"fill": 0.5}, {"radius": 2.0}, {"norm": "layer"}], ids=str
)
@pytest.mark.parametrize("tree", [False, True])
def test_transforms_of_functions_go_through(options, tree, monkeypatch):
    """torch.func's gradient, second derivatives and forward mode against plain autograd, and vmap against a batch."""
    if tree:
        monkeypatch.setattr(search, "_TREE_FROM", 0)
    net = small_net(SE2(), num_layers=1, **options)
    net(*batch_for(SE2()))  # a fill fraction measures its radius
    net = net.double().eval()
    x, values, _ = batch_for(SE2(), 2, 6)
    x, values = x.double(), values.double()

    def f(points):
        return net(points, values).square().sum()

    moving = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(moving), moving, create_graph=True)
    torch.testing.assert_close(torch.func.grad(f)(x), expected)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=generator(4))
    torch.testing.assert_close(torch.func.jvp(f, (x,), (direction,))[1], (expected * direction).sum())
    (curvature,) = torch.autograd.grad((expected * direction).sum(), moving)
    hessian = torch.func.hessian(f)(x).reshape(x.numel(), x.numel())
    torch.testing.assert_close(hessian @ direction.flatten(), curvature.flatten())
    each = torch.func.vmap(lambda p, v: net(p.unsqueeze(0), v.unsqueeze(0)))(x, values).squeeze(1)
    torch.testing.assert_close(each, net(x, values))


WORKER = """
import sys
import torch
from lie.groups import SE2
from lieconv import LieResNet
from torch.nn.parallel import DistributedDataParallel

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)
net = LieResNet(2, 3, group=SE2(), channels=8, num_layers=2, num_neighbors=5).double()
x, values, mask, target = torch.load(f"{folder}/batch.pt", weights_only=True)
if size > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    share = slice(rank * len(x) // size, (rank + 1) * len(x) // size)
    x, values, mask, target = x[share], values[share], mask[share], target[share]
    model = DistributedDataParallel(net)
else:
    model = net
for _ in range(2):  # twice: running statistics too must be those of one process
    net.zero_grad()
    (model(x, values, mask) - target).square().mean().backward()
if rank == 0:
    state = {"gradient " + name: parameter.grad for name, parameter in net.named_parameters()}
    state |= {"buffer " + name: buffer for name, buffer in net.named_buffers()}
    torch.save(state, f"{folder}/{size}.pt")
if size > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Normalisation and kernel statistics are summed over the processes, so that the batch is one."""
    x = torch.randn(4, 12, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(4, 12, 2, dtype=torch.float64, generator=generator(1))
    mask = torch.arange(12) < torch.tensor([12, 5, 9, 12]).unsqueeze(1)  # another number of points in each process
    torch.save((x, values, mask, torch.randn(4, 3, dtype=torch.float64, generator=generator(2))), tmp_path / "batch.pt")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    for size in (1, 2):
        workers = [
            subprocess.Popen([sys.executable, str(script), str(rank), str(size), str(tmp_path)]) for rank in range(size)
        ]
        assert [worker.wait(timeout=600) for worker in workers] == [0] * size
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fill": 0.5},
        {"norm": "layer"},
        {"downsample": 0.5},
        {"out_vectors": 1},
        {"lift": "sampled", "num_samples": 2},
    ],
    ids=str,
)
def test_state_round_trips_for_every_option(tmp_path, options):
    net, other = small_net(SE2(), **options), small_net(SE2(), **options)
    given = batch_for(SE2())
    net(*given)  # running statistics that are not the initial ones
    save_weights(tmp_path / "net.safetensors", net)
    load_weights(tmp_path / "net.safetensors", other)
    for a, b in zip(*(torch.utils._pytree.tree_leaves(m.eval()(*given)) for m in (net, other)), strict=True):
        assert torch.equal(a, b)
    third = small_net(SE2(), **options)
    third.load_state_dict(net.state_dict(), strict=True)


def test_printing_names_the_group():
    assert "SE2()" in repr(LieConv(1, 2, group=SE2()))


def test_sums_over_neighbours_have_the_gradients_of_the_product():
    near, phi = (torch.randn(3, 4, n, dtype=torch.float64, requires_grad=True) for n in (5, 2))
    torch.testing.assert_close(kernel_sums(near, phi), near.mT @ phi, rtol=0, atol=0)
    assert torch.autograd.gradcheck(kernel_sums, (near, phi))
    assert torch.autograd.gradgradcheck(kernel_sums, (near, phi))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(near.detach(), torch.ones_like(near))
        tangent = torch.autograd.forward_ad.unpack_dual(kernel_sums(dual, phi.detach())).tangent
    torch.testing.assert_close(tangent, torch.ones_like(near).mT @ phi.detach())


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (T(2), {"downsample": [0.5, 1.0]}),
        (SO2(), {"downsample": [1.0, 0.5], "pool": False}),
        (RxSO2(), {"out_vectors": 2}),
        (SE2(), {"lift": "sampled", "num_samples": 2, "downsample": [0.5, 1.0]}),
    ],
    ids=["T2", "SO2", "RxSO2", "SE2 sampled"],
)
def test_known_resolutions_give_what_the_points_give(group, options):
    net = LieResNet(3, 2, group=group, channels=8, num_layers=2, num_neighbors=5, **options).eval()
    coords, values = torch.randn(2, 12, 2), torch.randn(2, 12, 3)
    mask = torch.arange(12) < torch.tensor([[12], [9]])
    for given in (mask, None):
        known = net.resolutions(coords, given)
        torch.testing.assert_close(net(known, values), net(coords, values, given), rtol=0, atol=0)
        torch.testing.assert_close(net(known, values, given), net(coords, values, given), rtol=0, atol=0)
    shared = net.resolutions(coords[:1])
    torch.testing.assert_close(net(shared, values), net(coords[:1], values), rtol=0, atol=0)


def test_networks_compile_without_breaks_once_resolutions_are_known():
    net = LieResNet(3, 2, group=T(2), channels=8, num_layers=2, num_neighbors=5, downsample=0.5)
    known, values = net.resolutions(torch.randn(2, 12, 2)), torch.randn(2, 12, 3)
    gradients = []
    for f in (net, torch.compile(net, fullgraph=True)):
        net.zero_grad()
        f(known, values).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)  # float32, sums in another order


def test_resolutions_of_another_kind_are_refused():
    net = LieResNet(3, 2, group=T(2), channels=8, num_layers=2, num_neighbors=5)
    coords, values = torch.randn(2, 12, 2), torch.randn(2, 12, 3)
    known = net.resolutions(coords)
    with pytest.raises(ValueError, match="depends on the values too"):
        LieResNet(3, 2, group=SE2(), channels=8, num_layers=2).resolutions(coords)
    with pytest.raises(ValueError, match="expected the resolutions of 1 blocks, got those of a network of 2"):
        LieResNet(3, 2, group=T(2), channels=8, num_layers=1)(known, values)
    with pytest.raises(ValueError, match="kernel coordinates, as of this layer"):
        LieResNet(3, 2, group=SO2(), channels=8, num_layers=2)(known, values)
    with pytest.raises(ValueError, match="has its cell from where it was built"):
        net(known, values, cell=torch.eye(2))
    with pytest.raises(ValueError, match="expected values of shape"):
        net(known, values[:, :5])
