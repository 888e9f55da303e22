"""Tangents through single operations and writes: each against torch's own forward mode, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from liederivative import lie_derivative, lie_derivatives
from liederivative.derivative import LADDER
from liederivative.derivative.dual import Dual, DualMode, UnsupportedError
from liederivative.derivative.rules import RULES
from torch import nn
from torch.nn import functional as F

K = 3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pushed(f, *points):
    """Value and tangents by the mode, and by torch's forward mode one tangent at a time."""
    velocities = [normal(K, *point.shape, seed=7 + i) for i, point in enumerate(points)]
    with torch.no_grad(), DualMode() as mode:
        out = f(*(mode.dual(point.clone(), v) for point, v in zip(points, velocities, strict=True)))
    primal, tangents = mode.result(out)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        alone = [torch.func.jvp(f, points, tuple(v[k] for v in velocities)) for k in range(K)]
    return primal, tangents, alone[0][0], torch.stack([a[1] for a in alone])


CONV, DEPTHWISE = normal(5, 4, 3, 3, seed=3), normal(4, 1, 3, 3, seed=4)
UP = normal(4, 3, 2, 2, seed=5)
SCALE, SHIFT = normal(4, seed=6), normal(4, seed=8)
TABLE = normal(6, 5, seed=9)
MASK = normal(6, 6, seed=10) > 0
EYE, BIAS = torch.eye(6, dtype=torch.bool), normal(6, 6, seed=11)
INDEX = torch.tensor([[0, 2], [1, 1]])

ONE = {
    "relu in place": lambda x: (x * 1).relu_(),
    "gelu": F.gelu, "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "relu6": F.relu6,
    "leaky": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu, "mish": F.mish, "softplus": F.softplus, "exp": torch.exp,
    "sqrt": lambda x: (x * x + 1).sqrt(), "rsqrt": lambda x: (x * x + 1).rsqrt(), "pow": lambda x: x**3,
    "log": lambda x: (x * x + 1).log(), "abs": torch.abs, "clamp": lambda x: x.clamp(-0.5, 0.7), "erf": torch.erf,
    "reciprocal": lambda x: 1 / (x * x + 1), "prelu": lambda x: F.prelu(x, SCALE), "cos": torch.cos,
    "silu in place": lambda x: F.silu(x * 2, inplace=True), "logsigmoid": F.logsigmoid,
    "softmax": lambda x: x.softmax(1), "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(1),
    "conv": lambda x: F.conv2d(x, CONV, SHIFT.new_ones(5), stride=2, padding=1),
    "conv then norm": lambda x: F.batch_norm(
        F.conv2d(x, DEPTHWISE, groups=4, padding=1), SHIFT, SCALE**2, SCALE, SHIFT),
    "norm": lambda x: F.batch_norm(x, SHIFT, SCALE**2, None, None),
    "transposed then norm": lambda x: F.batch_norm(
        F.conv_transpose2d(x, UP, stride=2), SHIFT[:3], SCALE[:3] ** 2, SCALE[:3], SHIFT[:3]),
    "conv used twice": lambda x: (lambda y: y.relu() + F.batch_norm(y, SHIFT, SCALE**2) + y)(
        F.conv2d(x, CONV[:4], padding=1)),
    "layer_norm": lambda x: F.layer_norm(x, (6, 6), TABLE.new_ones(6, 6) * 2, TABLE.new_zeros(6, 6)),
    "channel layer_norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), SCALE, SHIFT).permute(0, 3, 1, 2),
    "group_norm": lambda x: F.group_norm(x, 2, SCALE, SHIFT), "rms_norm": lambda x: F.rms_norm(x, (6,)),
    "instance_norm": F.instance_norm, "normalize": lambda x: F.normalize(x, dim=1),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1), "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 2), "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, size=(4, 9), mode="bicubic", antialias=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2), "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), "circular": lambda x: F.pad(x, (1,) * 4, "circular"),
    "shuffle": lambda x: F.pixel_shuffle(x, 2), "unshuffle": lambda x: F.pixel_unshuffle(x, 3),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1),
    "mean": lambda x: x.mean((2, 3)), "mean of all": lambda x: x.mean(), "sum": lambda x: x.sum(1, keepdim=True),
    "amax": lambda x: x.amax(1), "max": lambda x: x.max(2).values, "min": lambda x: x.min(2, keepdim=True)[0],
    "max of all": lambda x: x.max(), "topk": lambda x: x.topk(2, 1).values, "sort": lambda x: x.sort(-1)[0],
    "std": lambda x: x.std(1), "var": lambda x: x.var((2, 3), unbiased=False),
    "var_mean": lambda x: torch.var_mean(x, 1)[0], "norm of all": torch.linalg.vector_norm,
    "p norm": lambda x: torch.linalg.vector_norm(x, 3, dim=1), "cumsum": lambda x: x.cumsum(2), "neg": lambda x: -x,
    "views": lambda x: x.view(2, 2, 2, 36).permute(1, 0, 3, 2)[:, ::1, 3:].transpose(1, -1).unsqueeze(1).squeeze(),
    "split": lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.chunk(2, 1))], 1),
    "unbind": lambda x: torch.stack(x.unbind(2)[::-1], -1), "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1) * 2,
    "roll": lambda x: x.roll((1, -2), (2, 3)), "flip": lambda x: x.flip(-1), "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "roll of all": lambda x: x.roll(3), "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "index": lambda x: x[:, INDEX], "mask": lambda x: x[..., MASK],
    "index_select": lambda x: x.index_select(1, INDEX[0]),
    "index apart": lambda x: x[INDEX[0] * 0, :, INDEX[1]], "gather": lambda x: x.gather(1, x.argsort(1)),
    "unfold": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2), "masked_fill": lambda x: x.masked_fill(MASK, 2.0),
    "where": lambda x: torch.where(MASK, x, 2 * x[:, :1]), "diagonal": lambda x: x.diagonal(0, -2, -1),
    "linear": lambda x: F.linear(x, TABLE.T, TABLE.new_ones(5)), "matmul": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "as_strided": lambda x: x.contiguous().as_strided((2, 3), (4, 1)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=MASK | EYE),
    "biased attention": lambda x: F.scaled_dot_product_attention(x, x, x[..., :3], attn_mask=BIAS, scale=2.0),
    "dynamic conv": lambda x: F.conv2d(x, x[:1, :, :3, :3] * 2, x.mean((2, 3))[0, :1]),
    "fft": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2), "grid": lambda x: F.grid_sample(
        x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
    "detached": lambda x: x * 2.0, "constant": lambda x: torch.ones_like(x) * 2 + x.new_zeros(6) + 0 * x,
    "int division": lambda x: x - (x / 2).floor() + x.round() * 0,
    "scalar": lambda x: 0.5 * x.sum() * x, "0-dim": lambda x: x[0, 0, 0, 0] * 3,
}  # fmt: skip
TWO = {
    "add": lambda x, y: torch.add(x, y, alpha=2), "sub": lambda x, y: x - y, "rsub": lambda x, y: 3 - x + y,
    "mul": lambda x, y: x * y[:, :, :1], "div": lambda x, y: x / (y[:1] ** 2 + 1), "bmm": lambda x, y: x[0] @ y[0].mT,
    "mm": lambda x, y: x[0, 0] @ y[0, 0], "maximum": torch.maximum, "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "pow": lambda x, y: (x * x + 1) ** y, "atan2": torch.atan2, "cat": lambda x, y: torch.cat([x, y[:, :2]], 1),
    "stack": lambda x, y: torch.stack([x, y], -1), "where": lambda x, y: torch.where(x > y, x, y),
    "addcmul": lambda x, y: torch.addcmul(x, y, x, value=2), "baddbmm": lambda x, y: torch.baddbmm(x[0], x[1], y[0]),
    "addmm": lambda x, y: torch.addmm(x[0, 0], y[0, 0], x[0, 1], beta=2, alpha=3), "einsum": lambda x, y:
    torch.einsum("bchw,bchv->bwv", x, y), "broadcast": lambda x, y: x.mean() + y.mean((0, 2), keepdim=True) * x,
    "layer_norm with moving weight": lambda x, y: F.layer_norm(x, (6,), y[0, 0, 0], y[0, 0, 1]),
    "linear with moving weight": lambda x, y: F.linear(x, y[0, 0], y[0, 1, 0]),
    "softmax gate": lambda x, y: x.softmax(-1) * y.sigmoid(),
    "keys and values": lambda x, y: F.scaled_dot_product_attention(x, y[:, :1], y[:, :1], enable_gqa=True),
    "moving bias": lambda x, y: F.scaled_dot_product_attention(x, x, x, attn_mask=y),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_an_operation_of_one_tensor(name):
    primal, tangents, value, along = pushed(ONE[name], normal(2, 4, 6, 6))
    torch.testing.assert_close(primal, value, rtol=1e-12, atol=1e-13)
    assert tangents.shape == along.shape
    torch.testing.assert_close(tangents, along, rtol=1e-11, atol=1e-11)  # a few hundred roundings


@pytest.mark.parametrize("name", TWO)
def test_an_operation_of_two_tensors(name):
    f = TWO[name]
    x, y = normal(2, 4, 6, 6), normal(2, 4, 6, 6, seed=1)
    for g, points in ((f, (x, y)), (lambda x: f(x, y), (x,)), (lambda y: f(x, y), (y,))):
        primal, tangents, value, along = pushed(g, *points)
        torch.testing.assert_close(primal, value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(tangents, along, rtol=1e-11, atol=1e-11)


def writes_into_a_view(x):
    y = x * 1
    part = y[:, 1:3].permute(0, 2, 3, 1)
    part.mul_(x[:, :2].permute(0, 2, 3, 1))
    y[:, 0] += 2 * y[:, 1]
    y[..., 0].zero_()
    y.view(2, -1)[:, 5] = x.mean((1, 2, 3))
    return y + part.sum()


def writes_into_fresh_memory(x):
    out = x.new_empty(2, 4, 6, 6)
    out[:, 2:] = x[:, :2]
    out[:, :2].copy_(x[:, 2:] ** 2)
    early = out[:, :1]
    table = torch.zeros(2, 6, dtype=x.dtype)
    row = table[0]
    table[:, 1:3] = x[0, 0, :2, :2]
    out.mul_(2).add_(x, alpha=3).sub_(1)
    return out * early + table[1] + row


def overwrites_itself(x):
    y = x.clone()
    y[:] = 1.0
    y.add_(x.mean())
    y[:, 0].fill_(3.0)
    return y.sigmoid_().mul_(x)


@pytest.mark.parametrize("f", [writes_into_a_view, writes_into_fresh_memory, overwrites_itself])
def test_writes_are_seen_through_views(f):
    primal, tangents, value, along = pushed(f, normal(2, 4, 6, 6))
    torch.testing.assert_close(primal, value, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(tangents, along, rtol=1e-11, atol=1e-11)


def test_a_write_into_a_tensor_from_outside_is_refused():
    buffer = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad(), DualMode() as mode:
        x = mode.dual(normal(3), normal(K, 3))
        with pytest.raises(UnsupportedError, match="made outside"):
            buffer[:] = x
        with pytest.raises(UnsupportedError, match="made outside"):
            torch.mul(x, 2, out=buffer)


def test_what_a_model_keeps_between_runs_is_put_back():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", None)
            self.grid = self.attention = None

        def forward(self, x):
            if self.grid is None:
                self.grid, self.table = torch.arange(6.0, dtype=x.dtype), torch.ones(6, dtype=x.dtype)
            self.attention = (x * self.grid).softmax(-1)
            return (self.attention * self.table).mean(dim=(2, 3))

    model, x = Keeping(), normal(2, 4, 6, 6)
    for _ in range(2):
        lie_derivative(model, x, "rotate")
        assert model.grid is None
        assert model.attention is None
        assert model.table is None
    model(x)
    kept = model.attention
    lie_derivative(model, x, "rotate")
    assert model.attention is kept


def test_values_can_be_looked_at_and_comparisons_do_not_move():
    with torch.no_grad(), DualMode() as mode:
        x = mode.dual(normal(4), normal(K, 4))
        assert not isinstance(x > 0, Dual)
        assert x.sum().item() == pytest.approx(float(normal(4).sum()))
        assert x.argmax().item() == int(normal(4).argmax())
        assert bool((x > 0).any())
        assert isinstance(x.detach(), Dual)  # the derivative of a function, not of a graph
    with pytest.raises(UnsupportedError, match="outside of its DualMode"):
        x + 1


def test_tangents_of_different_rows_meet():
    x, y = normal(4), normal(4, seed=1)
    with torch.no_grad(), DualMode() as mode:
        a = mode.dual(x, torch.ones(1, 4, dtype=torch.float64), rows=(0,))
        b = mode.dual(y, 2 * torch.ones(2, 4, dtype=torch.float64), rows=(1, 3))
        product = a * b
        joined = torch.cat([b, a])
    assert product.rows == (0, 1, 3)
    torch.testing.assert_close(product.tangents, torch.stack([y, 2 * x, 2 * x]))
    assert joined.tangents.tolist() == [[0] * 4 + [1] * 4, [2] * 4 + [0] * 4, [2] * 4 + [0] * 4]


def test_convolutions_wait_for_the_norm_behind_them():
    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).double().eval()
    with torch.no_grad(), Counting() as counting, DualMode() as mode:
        out = net(mode.dual(normal(2, 3, 6, 6), normal(K, 2, 3, 6, 6)))
        assert out.tangents is not None
    # One for the values and one for all tangents; the mask is multiplied in place, with no other pass over them.
    assert sum("convolution" in name for name in counting.seen) == 2
    assert "aten.mul_.Tensor" in counting.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tangents_have_the_dtype_of_the_values_under_either_default(dtype):
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            with torch.no_grad(), DualMode() as mode:
                x = mode.dual(torch.ones(2, 3, 4, 4, dtype=dtype), torch.ones(K, 2, 3, 4, 4, dtype=dtype))
                out = F.gelu(0.5 * x.sum() * x + torch.where(x > 0, x, 0.0)).mean() * math.pi
        finally:
            torch.set_default_dtype(torch.float32)
        assert out.tangents.dtype == out.primal.dtype == dtype


def test_the_rules_have_names_of_operators():
    assert all(hasattr(torch.ops.aten, name) for name in RULES)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_complex_numbers_and_scripted_modules():
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)

    def spectrum(x):
        return torch.fft.fft2(x).abs().mean((2, 3))

    ours = lie_derivatives(spectrum, x, ["rotate", "saturate"])
    torchs = lie_derivatives(spectrum, x, ["rotate", "saturate"], ladder=LADDER[3:])
    torch.testing.assert_close(ours.derivatives, torchs.derivatives, rtol=1e-10, atol=1e-12)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double()
    whole = lie_derivatives(net, x, "rotate", output="NCHW").derivatives
    for module in (torch.jit.script(net.train()), torch.jit.trace(net.eval(), x)):
        flags = [part.training for part in module.modules()]
        found = lie_derivatives(module, x, "rotate", output="NCHW")
        torch.testing.assert_close(found.derivatives, whole, rtol=1e-7, atol=1e-9)  # by whichever rung carries it
        assert [part.training for part in module.modules()] == flags
