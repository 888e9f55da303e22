"""Masked normalisation against torch's, serialisation, compilation."""

from __future__ import annotations

import pytest
import torch
from lie.groups import SE2, T
from lie.run import load_weights, save_weights
from lieconv import LieConv, LieResNet, build_geometry
from lieconv.nn import MaskedBatchNorm, masked_mean


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


def test_weights_round_trip_through_safetensors(tmp_path):
    torch.manual_seed(0)
    net, other = (LieResNet(1, 2, group=SE2(), channels=8, num_layers=1) for _ in range(2))
    x, values = torch.randn(2, 10, 2), torch.randn(2, 10, 1)
    net(x, values)  # running statistics that are not the initial ones
    save_weights(tmp_path / "net.safetensors", net)
    load_weights(tmp_path / "net.safetensors", other)
    assert torch.equal(net.eval()(x, values), other.eval()(x, values))


def test_a_layer_compiles_without_breaks_once_neighbours_are_known():
    x, values = torch.randn(2, 10, 2), torch.randn(2, 10, 3)
    layer = LieConv(3, 4, group=T(2), num_neighbors=4)
    geometry = build_geometry(T(2), x, num_neighbors=4)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")  # a geometry is a pytree of tensors
    torch.testing.assert_close(compiled(geometry, values), layer(x, values))


def test_printing_names_the_group():
    assert "SE2()" in repr(LieConv(1, 2, group=SE2()))
