"""`decompose` where feature maps are padded: padding does not move, so its zeros are not blown up by a norm."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from liederivative import GENERATORS, decompose, lie_derivative
from liederivative.actions import image_tangents
from liederivative.layerwise import CancellationWarning, Decomposition
from torch import nn
from torch.nn import functional as F


def images(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def seeded(build, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().to(dtype).eval()


class ChannelNorm(nn.Module):
    def forward(self, x):
        return F.normalize(x, dim=1)


def check(net, x, generator, limit=1e3, **options):
    """Terms add up, to the derivative of the whole, and are no larger than that is beside ``limit``."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CancellationWarning)
        found = decompose(net, x, generator, **options)
    sum_ = sum(found.all_terms().values())
    total = lie_derivative(net, x, generator)
    eps = torch.finfo(x.dtype).eps
    # Rounding of some hundred operations; the terms are at most ``limit`` times the total.
    assert float((sum_ - total).norm()) < 1e3 * eps * max(found.norms().values())
    assert found.closure < 1e3 * eps * limit
    assert max(found.norms().values()) < limit * float(total.norm())
    assert sum(found.shares().values()) == pytest.approx(1, abs=1e3 * eps * limit)
    return found


@pytest.mark.parametrize("name", ["translate_x", "rotate", "scale", "saturate"])
def test_terms_are_the_definition_with_constant_padding_outside(name):
    """The term of a layer: the rest of the network applied to its own Lie derivative, both by differences in float64.

    The motion of a padded map is written out: that of the map inside, none in the padding.
    """
    pads = (1, 2, 0, 2)
    net = seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ZeroPad2d(pads), ChannelNorm(), nn.Tanh(),
        nn.Conv2d(4, 5, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ))  # fmt: skip
    x = images(2, 3, 16, 16)
    a = torch.tensor([GENERATORS[name].coefficients], dtype=x.dtype)
    found = check(net, x, name)

    def ideal(value, index):
        if value.ndim < 4 or value.shape[-1] == 1:
            return torch.zeros_like(value)
        if index in (1, 2, 3):
            inside = value[:, :, pads[2] : value.shape[2] - pads[3], pads[0] : value.shape[3] - pads[1]]
            return F.pad(image_tangents(inside, a, (16, 16))[0], pads)
        return image_tangents(value, a, (16, 16))[0]

    def along(f, point, velocity):
        step = 1e-4 / float(velocity.abs().max().clamp_min(1e-300))
        near, far = (f(point + k * step * velocity) - f(point - k * step * velocity) for k in (1, 2))
        return (8 * near - far) / (12 * step)

    h = x
    for index, layer in enumerate(net):
        out = layer(h)
        local = along(layer, h, ideal(h, index - 1)) - ideal(out, index)
        term = along(net[index + 1 :], out, local) if index < len(net) - 1 else local
        # Differences of fourth order at step 1e-4 keep about ten digits.
        torch.testing.assert_close(found.terms.get(str(index), torch.zeros_like(term)), term, rtol=1e-7, atol=1e-9)
        h = out
    assert name == "saturate" or "1" in found.zero  # padding commutes with the motion


class PaddedAttention(nn.Module):
    """The case of issue 13: padding, a norm, attention."""

    def __init__(self, pad):
        super().__init__()
        self.conv, self.head, self.pad = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), pad

    def forward(self, x):
        h = self.pad(self.conv(x)).flatten(2).transpose(1, 2)
        q = F.normalize(h, dim=-1)
        h = F.scaled_dot_product_attention(q[:, None], q[:, None], h[:, None])[:, 0]
        return self.head(h.mean(1))


def beside(x):
    return torch.cat([torch.cat([x, x.new_zeros(*x.shape[:3], 3)], 3), x.new_zeros(*x.shape[:2], 2, x.shape[3] + 3)], 2)


def written(x):
    room = x.new_zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3)
    room[:, :, : x.shape[2], : x.shape[3]] = x
    return room


PADDINGS = {
    "zero": lambda x: F.pad(x, (0, 3, 2, 1)),
    "constant": lambda x: F.pad(x, (0, 3, 2, 1), value=0.7),
    "reflect": lambda x: F.pad(x, (0, 3, 2, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (0, 3, 2, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (0, 3, 2, 1), mode="circular"),
    "twice": lambda x: F.pad(F.pad(x, (1, 1, 1, 1)), (0, 2, 0, 2)),
    "rolled": lambda x: F.pad(x, (0, 3, 0, 3)).roll((-2, -2), (2, 3)),
    "flipped": lambda x: F.pad(x, (0, 3, 0, 3)).flip(3),
    "padded and cropped": lambda x: F.pad(F.pad(x, (2, 2, 2, 2)), (-1, -2, -3, 1)),
    "every other": lambda x: F.pad(x, (3, 2, 0, 3))[:, :, ::2, 1::2],
    "averaged": lambda x: F.avg_pool2d(F.pad(x, (4, 4, 4, 4)), 3, 1, 1),
    "convolved": lambda x: F.conv2d(F.pad(x, (5, 4, 3, 4)), torch.ones(8, 1, 3, 3).to(x), stride=2, groups=8),
    "transposed": lambda x: F.conv_transpose2d(F.pad(x, (4, 4, 4, 4)), torch.ones(8, 1, 3, 3).to(x), groups=8),
    "adaptive": lambda x: F.adaptive_avg_pool2d(F.pad(x, (4, 4, 4, 4)), 11),
    "enlarged": lambda x: F.interpolate(F.pad(x, (0, 3, 0, 3)), scale_factor=2.0),
    "interpolated": lambda x: F.interpolate(F.pad(x, (3, 3, 3, 3)), scale_factor=2.0, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(F.pad(x, (3, 3, 3, 3)), scale_factor=2.0, mode="bicubic"),
    "unshuffled": lambda x: F.pixel_shuffle(F.pixel_unshuffle(F.pad(x, (0, 7, 0, 7)), 4), 4),
    "pooled": lambda x: F.max_pool2d(F.pad(x, (0, 3, 0, 3)), 2),
    "channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:9],
    "cat": beside,
    "written": written,
}


@pytest.mark.parametrize("generator", ["translate_x", "rotate", "saturate"])
@pytest.mark.parametrize("name", PADDINGS)
def test_no_padding_is_blown_up_by_a_norm(name, generator):
    for dtype in (torch.float64, torch.float32):
        check(seeded(lambda: PaddedAttention(PADDINGS[name]), dtype), images(2, 3, 13, 13, dtype=dtype), generator)


@pytest.mark.parametrize(("size", "generator"), [(40, "rotate"), (28, "translate_x")])
def test_windows_padded_to_a_multiple_and_shifted(size, generator):
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    net = seeded(lambda: SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5,
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    ))  # fmt: skip
    for dtype in (torch.float64, torch.float32):
        found = check(net.to(dtype), images(1, 3, size, size, dtype=dtype), generator)
        assert not found.unknown


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 224])
def test_swin_v2_in_single_precision(size):
    from torchvision.models import swin_v2_t

    found = check(seeded(swin_v2_t, torch.float32), images(1, 3, size, size, dtype=torch.float32), "rotate")
    assert not found.unknown


def test_terms_that_cancel_are_a_warning_that_names_them():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1)), torch.float32)
    x = images(1, 3, 8, 8, dtype=torch.float32)

    class Cancelling(nn.Module):
        """Equivariant but for a part in a million; its first layer is declared not to move."""

        def __init__(self):
            super().__init__()
            self.first, self.last = net[0], net[2]

        def forward(self, x):
            y = self.last(self.first(x))
            return y + 1e-6 * y.flip(3)

    with pytest.warns(
        CancellationWarning, match=r"Cancelling under translate_x cancel .* those of (first|last)"
    ) as log:
        found = decompose(Cancelling(), x, "translate_x", output="NCHW", layouts={"first": "invariant"})
    assert len([w for w in log if w.category is CancellationWarning]) == 1
    assert max(found.norms().values()) > 1e4 * float(found.total.norm())


def test_closure_is_relative_to_the_total():
    one = torch.ones(1, 1, dtype=torch.float64)
    terms = {"a": one, "b": -one + 3e-6}
    found = Decomposition("rotate", one, 1e-6 * one, terms, {}, {"a": "Linear", "b": "Linear"})
    assert found.closure == pytest.approx(2)  # (3e-6 - 1e-6) / 1e-6
    nothing = Decomposition("rotate", one, 0 * one, terms, {}, {"a": "Linear", "b": "Linear"})
    assert math.isinf(nothing.closure) and math.isnan(nothing.shares()["a"])
    assert Decomposition("rotate", one, 0 * one, {}, {}, {}).closure == 0
