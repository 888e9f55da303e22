"""The networks are as equivariant as they claim: exactly, for every group, on every kind of point set."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, T, Trivial
from lie.testing import assert_equivariant, equivariance_error
from lieconv import LieConv, LieResNet

GROUPS = [T(1), T(2), T(3), SO2(), SE2(), SO3(), SE3(), Trivial(2)]
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


def network(group, dtype, kind: str):
    """A layer without residual path, or a network, with weights away from initialisation."""
    torch.manual_seed(0)
    if kind == "layer":
        model = LieConv(2, 3, group=group, num_neighbors=8)
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


@pytest.mark.parametrize(("group", "other"), [(T(2), SO2()), (Trivial(2), T(2)), (SO2(), T(2)), (T(3), SO3())],
                         ids=repr)  # fmt: skip
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
        padded = model(torch.cat([x, padding], 1), torch.cat([values, torch.full((2, 5, 2), math.inf)], 1),
                       torch.cat([mask, torch.zeros(2, 5, dtype=torch.bool)], 1))  # fmt: skip
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
            gradients = torch.autograd.grad(model.train(training)(x, values, mask).square().sum(),
                                            (x, values, *model.parameters()), allow_unused=True)  # fmt: skip
            for gradient in gradients:
                assert gradient is None or torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("group", [SE2(), SO2(), SE3(), T(3)], ids=repr)
def test_gradients_are_right(group):
    layer = LieConv(1, 2, group=group, num_neighbors=4, hidden=4, basis=2).double()
    x = torch.randn(1, 6, group.point_dim, dtype=torch.float64, generator=generator(), requires_grad=True)
    values = torch.randn(1, 6, 1, dtype=torch.float64, generator=generator(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: layer(a, b), (x, values), atol=1e-6, rtol=1e-4)


def test_the_sampled_lift_is_invariant_in_expectation():
    """Means of 1600 draws before and after a rotation agree within 4 standard errors; single draws do not."""
    torch.manual_seed(0)
    layer = LieConv(2, 3, group=SE2(), num_neighbors=16, lift="sampled", num_samples=2).double()
    x = torch.randn(1, 8, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(1, 8, 2, dtype=torch.float64, generator=generator(1))
    turn = SE2().exp(torch.tensor([1.9, 0.4, -0.3], dtype=torch.float64))
    with torch.no_grad():
        draws = [layer(y.expand(1600, -1, -1), values.expand(1600, -1, -1)).mean(1) for y in (x, SE2().act(turn, x))]
    difference = draws[0].mean(0) - draws[1].mean(0)
    error = (draws[0].var(0) / 1600 + draws[1].var(0) / 1600).sqrt()
    assert (difference.abs() < 4 * error).all()
    assert (draws[0].std(0) > 1e-3).all()


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
