"""The equivariance assertion holds where it should and fails where it should."""

from __future__ import annotations

import pytest
import torch
from lie.groups import SE3, SO3, Product, RxSO2, Sim3, T
from lie.testing import assert_equivariant, check_group, equivariance_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equivariant_and_invariant_maps(dtype):
    g = SO3().sample(generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = torch.randn(7, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def turn(y):
        return SO3().act(g, y)

    assert_equivariant(lambda y: y * y.norm(dim=-1, keepdim=True), turn, turn, x)
    assert_equivariant(lambda y, scale: scale * y.norm(dim=-1), turn, lambda y: y, x, 2.0)
    with pytest.raises(AssertionError, match=r"not equivariant: .* = [0-9.]+, expected at most"):
        assert_equivariant(torch.sin, turn, turn, x)
    with pytest.raises(AssertionError, match="nan"):
        assert_equivariant(lambda y: y * torch.nan, turn, turn, x)
    with pytest.raises(AssertionError, match="does not fit the output"):
        assert_equivariant(lambda y: y[:, :2], turn, lambda y: y[:3], x)
    assert equivariance_error(lambda y: 0 * y, turn, turn, x) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_tested_at_its_own_epsilon(dtype):
    group = SO3()
    g = group.sample(generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_equivariant(lambda y: 2.0 * y, lambda y: group.act(g, y), lambda y: group.act(g, y), x)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda y: y + 1.0, lambda y: group.act(g, y), lambda y: group.act(g, y), x)
    for group in (SO3(), SE3(), Sim3(), Product(SO3(), T(2)), RxSO2()):
        check_group(group, dtype=dtype, scale=0.3)

    class Broken(SE3):
        def inverse(self, g):
            return super().inverse(g) * 1.5

    with pytest.raises(AssertionError, match="inverse"):
        check_group(Broken(), dtype=dtype, scale=0.3)


def test_an_empty_output_tests_nothing_and_is_refused():
    with pytest.raises(ValueError, match=r"outputs with entries to compare, got shape \(0, 3\)"):
        assert_equivariant(lambda y: y, lambda y: y, lambda y: y, torch.zeros(0, 3))
