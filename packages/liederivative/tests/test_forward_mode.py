"""Torch's forward mode with fewer operations: the same derivatives, for constant and for moving weights."""

from __future__ import annotations

import pytest
import torch
from liederivative import VectorFields, lie_derivatives
from liederivative.derivative import LADDER
from liederivative.derivative.forward_mode import LeanForwardMode
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W5x6 = normal(5, 6)
W5 = normal(5)
W6x6 = normal(6, 6)
W4x6x3 = normal(4, 6, 3)
W4 = normal(4)
W6x1x3x3 = normal(6, 1, 3, 3)
W2x1x2x3x3 = normal(2, 1, 2, 3, 3)
W2 = normal(2)
W4x3x3x3 = normal(4, 3, 3, 3)
LAYERS = {
    "linear": lambda x: F.linear(x, W5x6),
    "linear with bias": lambda x: F.linear(x, W5x6, W5),
    "by name": lambda x: F.linear(input=x, weight=W5x6, bias=W5),
    "moving weight": lambda x: F.linear(x, x[0, 0] @ W6x6, x[0, 0, 0]),
    "moving bias": lambda x: F.linear(x, W6x6, x[0, 0, 0]),
    "conv1d": lambda x: F.conv1d(x[:, 0], W4x6x3, W4, 2, 1),
    "conv2d": lambda x: F.conv2d(x, W6x1x3x3, None, 1, 1, 1, 3),
    "conv3d": lambda x: F.conv3d(x[:, None], W2x1x2x3x3, W2),
    "one sample": lambda x: F.conv2d(x[0], W4x3x3x3, W4),
    "moving kernel": lambda x: F.conv2d(x, x[:1, :, :3, :3].tanh(), x.mean((2, 3))[0, :1]),
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_plain_forward_mode(name):
    f, x, v = LAYERS[name], normal(2, 3, 6, 6), normal(4, 2, 3, 6, 6, seed=1)

    def along(v: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(f, (x,), (v,))[1]

    expected = torch.func.vmap(along)(v)
    with LeanForwardMode():
        torch.testing.assert_close(torch.func.vmap(along)(v), expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(along(v[0]), expected[0], rtol=1e-12, atol=1e-13)
        assert torch.equal(f(x), LAYERS[name](x))


def test_samples_by_vmap_too():
    x, v, weight = normal(2, 3, 6), normal(2, 3, 6, seed=1), normal(5, 6)

    def along(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(lambda x: F.gelu(F.linear(x, weight)), (x,), (v,))[1]

    with LeanForwardMode():
        found = torch.func.vmap(along)(x, v)
    torch.testing.assert_close(found, along(x, v), rtol=1e-12, atol=1e-13)


def test_a_model_that_takes_a_gradient_itself():
    """Forces from an energy: the derivative runs through `torch.func.grad`, in which layers need a backward pass."""
    first, second = normal(16, 6), normal(1, 16)

    def forces(x: torch.Tensor) -> torch.Tensor:
        return -torch.func.grad(lambda u: F.linear(F.gelu(F.linear(u, first)), second).sum())(x)

    x, v = normal(4, 6), normal(4, 6, seed=1)
    expected = torch.func.jvp(forces, (x,), (v,))[1]
    assert expected.abs().max() > 0.1
    with LeanForwardMode():
        torch.testing.assert_close(torch.func.jvp(forces, (x,), (v,))[1], expected, rtol=1e-12, atol=1e-13)
    # By the rung of forward mode as by the rules.
    found = [lie_derivatives(forces, x, "grow", action=VectorFields({"grow": lambda z: z}), output="invariant",
                              ladder=ladder).derivatives for ladder in (LADDER[:1], LADDER[3:4])]  # fmt: skip
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_constant_weights_have_no_part():
    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return func(*args, **(kwargs or {}))

    net, x = nn.Linear(4, 3).double(), normal(2, 4)

    def products() -> int:
        with Products() as products:
            torch.func.jvp(net, (x,), (x,))
        return products.count

    plain = products()
    with LeanForwardMode():
        assert products() < plain


def test_the_rung_of_forward_mode_uses_it_and_agrees_with_the_rules():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)).double()
    x = normal(2, 3, 8, 8)
    rules = lie_derivatives(net, x, ["rotate", "scale"])
    forward = lie_derivatives(net, x, ["rotate", "scale"], ladder=LADDER[2:])
    assert (rules.rung.way, forward.rung.way) == ("rules", "forward mode")
    torch.testing.assert_close(forward.derivatives, rules.derivatives, rtol=1e-11, atol=1e-13)
