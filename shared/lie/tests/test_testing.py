"""The equivariance assertion holds where it should and fails where it should."""

from __future__ import annotations

import pytest
import torch
from lie.groups import SO3
from lie.testing import assert_equivariant, equivariance_error


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
