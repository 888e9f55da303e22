"""The decomposition by layers: closure, terms computed another way, functional operations, awkward models."""

from __future__ import annotations

import math

import pytest
import torch
from liederivative import Sequences, Tokens, decompose, lie_derivative
from liederivative.actions import GENERATORS, NCHW, Axis, Domain, image_tangents
from liederivative.layerwise.axes import Atom, Line, Union, plain, reshaped, velocity
from torch import nn
from torch.nn import functional as F


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(build, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().to(dtype).eval()


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


def vit() -> nn.Module:
    from timm.models import VisionTransformer

    net = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5, reg_tokens=2, init_values=0.1
    )
    nn.init.normal_(net.cls_token)
    return net


# --- exactness ---


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("build", [cnn, vit])
def test_terms_and_remainder_add_up_to_the_total_for_every_generator(build, name):
    net, x = seeded(build), images(2, 3, 16, 16)
    found = decompose(net, x, name)
    assert found.closure < 1e-12
    torch.testing.assert_close(found.total, lie_derivative(net, x, name), rtol=1e-11, atol=1e-12)
    assert not found.unknown
    single = decompose(net.float(), x.float(), name)
    assert single.closure < 1e-5
    assert sum(found.shares().values()) == pytest.approx(1)
    if found.functional:
        torch.testing.assert_close(found.remainder, sum(found.functional.values()))


@pytest.mark.parametrize("name", ["translate_x", "rotate", "scale", "saturate"])
def test_each_term_is_the_pushed_local_derivative_computed_by_hand(name):
    net, x = seeded(cnn), images(2, 3, 16, 16)
    found = decompose(net, x, name)
    a = torch.tensor([GENERATORS[name].coefficients], dtype=x.dtype)
    h = x
    for i, layer in enumerate(net):
        out = layer(h)

        def ideal(value: torch.Tensor) -> torch.Tensor:
            if value.ndim < 4 or value.shape[-1] == 1:  # pooled: nothing is left to move
                return torch.zeros_like(value)
            return image_tangents(value, a, (16, 16))[0]

        pushed = torch.func.jvp(layer, (h,), (ideal(h),))[1]
        local = pushed - ideal(out)
        term = torch.func.jvp(lambda u, rest=net[i + 1 :]: rest(u), (out,), (local,))[1] if i < len(net) - 1 else local
        expected = found.terms.get(str(i), torch.zeros_like(term))
        # Terms that vanish by rounding only are left where they are: no more than that.
        torch.testing.assert_close(expected, term, rtol=1e-10, atol=1e-12)
        if str(i) in found.terms:
            assert term.abs().max() > 1e-10
        h = out
    if name != "saturate":
        assert "1" in found.zero  # a normalisation in evaluation multiplies channels: it commutes
        assert "7" in found.zero


def test_the_gain_makes_every_bias_a_term():
    net, x = seeded(cnn), images(1, 3, 16, 16)
    net[1].running_mean.copy_(images(6))
    assert {"0", "1", "4"} <= set(decompose(net, x, "saturate").terms)
    for layer in (net[0], net[4], net[8]):
        nn.init.zeros_(layer.bias)
    net[1].running_mean.zero_()
    left = decompose(net, x, "saturate").terms
    assert "4" not in left  # linear without a bias
    assert "2" not in left  # and ReLU is homogeneous


# --- functional operations ---


def test_embeddings_attention_and_pooling_are_attributed_in_a_vision_transformer():
    net, x = seeded(vit), images(2, 3, 16, 16)
    found = decompose(net, x, "translate_x")
    a = torch.tensor([GENERATORS["translate_x"].coefficients], dtype=x.dtype)
    assert {"model:add", "blocks.0.attn:_scaled_dot_product_flash_attention_for_cpu"} <= set(found.functional)
    assert {"patch_embed.proj", "blocks.0.norm1", "blocks.1.mlp.act"} <= set(found.terms)
    assert {"blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.0.ls1"} <= set(found.zero)
    # The embedding's own term: minus its motion on the patches, pushed through what follows.
    embedded = net._pos_embed(net.patch_embed(x)).detach()
    grid = Tokens(grid=(4, 4), prefix=embedded.shape[1] - 16)
    embedding = net.pos_embed.detach()
    padded = torch.cat([embedding.new_zeros(1, embedded.shape[1] - 16, 24), embedding[:, -16:]], 1)
    local = -grid.tangents(padded, a, (16, 16))[0].expand(2, -1, -1)

    def rest(tokens):
        return net.forward_head(net.norm(net.blocks(tokens)))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.func.jvp(rest, (embedded,), (local,))[1]
    torch.testing.assert_close(found.functional["model:add"], expected, rtol=1e-9, atol=1e-11)


class Functional(nn.Module):
    """Everything by functions: convolutions, a concatenation, a residual sum, a mean, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4, 4, 1, 1))
        self.table = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x):
        h = F.conv2d(x, self.w1, stride=2, padding=1)
        h = h + F.conv2d(h, self.w2)  # commutes
        h = torch.cat([h, h * 2], 1)[:, 2:6]  # commutes
        h = h * h.mean((2, 3), keepdim=True).sigmoid()
        h = h + self.table
        return (h.flatten(2).mT @ self.w2[:, :3, 0, 0]).softmax(-1).mean(1)


def test_operations_outside_of_layers_are_told_apart():
    net, x = seeded(Functional), images(2, 3, 16, 16)
    found = decompose(net, x, "rotate")
    assert not found.terms
    assert found.closure < 1e-12
    assert set(found.functional) == {
        "model:convolution", "model:mean", "model:add", "model:_softmax",
    }  # fmt: skip
    # A gate that is the same everywhere commutes. Of two additions the residual one has no term, and the table's
    # is minus its motion.
    assert found.kinds["model:add"] == "add"


def test_a_plain_function_and_a_bound_method_are_decomposed_too():
    net, x = seeded(vit), images(1, 3, 16, 16)
    by_function = decompose(lambda x: net(x), x, "rotate")
    assert by_function.closure < 1e-12
    assert not by_function.terms
    features = decompose(net.forward_features, x, "rotate")
    assert features.total.shape == (1, 19, 24)
    assert features.closure < 1e-12
    assert "norm" in features.terms


# --- awkward models ---


class Twice(nn.Module):
    """One ReLU for all, in place; a layer registered under two names; a detour through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = self.second  # tied

    def forward(self, x):
        h = self.relu(self.first(x))
        h = self.relu(self.second(h))
        skip = h
        h = self.third(h)
        h += skip
        h[:, :2].mul_(0.5)
        return self.relu(h).mean((2, 3))


def test_layers_called_twice_tied_and_in_place():
    net, x = seeded(Twice), images(2, 3, 12, 12)
    found = decompose(net, x, "rotate")
    assert list(found.terms) == ["first", "relu", "second", "relu#2", "second#2", "relu#3"]
    assert found.closure < 1e-12
    # The same network written out, without anything shared.
    flat = nn.Sequential(net.first, nn.ReLU(), net.second, nn.ReLU()).eval()

    def tail(h):
        out = net.second(h) + h
        return torch.cat([out[:, :2] * 0.5, out[:, 2:]], 1).relu().mean((2, 3))

    a = torch.tensor([GENERATORS["rotate"].coefficients], dtype=x.dtype)
    h = flat[:3](x)
    ideal = image_tangents(h, a)[0]
    local = (h > 0) * ideal - image_tangents(h.relu(), a)[0]
    expected = torch.func.jvp(tail, (h.relu(),), (local,))[1]
    torch.testing.assert_close(found.terms["relu#2"], expected, rtol=1e-9, atol=1e-12)


class Windows(nn.Module):
    """Attention in shifted windows, written by hand, and a downsampling that joins four neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.mix = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(32, 6)
        self.bias = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        h = self.embed(x).permute(0, 2, 3, 1)  # (B, 8, 8, 8)
        h = h.roll((-2, -2), (1, 2))
        w = h.view(-1, 2, 4, 2, 4, 8).transpose(2, 3).reshape(-1, 16, 8)
        q, k, v = self.qkv(w).view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        p = (q @ k.mT + self.bias).softmax(-1)
        w = (p @ v).transpose(1, 2).reshape(-1, 16, 8)
        h = h + w.view(-1, 2, 2, 4, 4, 8).transpose(2, 3).reshape(-1, 8, 8, 8)
        h = h.roll((2, 2), (1, 2))
        h = torch.cat([h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.mix(h).mean((1, 2))


def test_windows_rolls_and_pixel_shuffles_are_followed():
    net, x = seeded(Windows), images(2, 3, 16, 16)
    found = decompose(net, x, "translate_y")
    assert found.closure < 1e-12
    assert not found.unknown
    # Keys and queries move along, so their products do: only the bias, the softmax and the sum over keys are left.
    assert {"model:add", "model:_softmax", "model:bmm"} <= set(found.functional)
    # Every second row of the map is another grid, half a step away: the reader of those views sees it.
    assert "model:cat" in found.functional


def test_patches_by_a_reshape_are_those_of_a_strided_convolution():
    conv = seeded(lambda: nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.act = nn.Linear(48, 5).double(), nn.Tanh()
            self.proj.weight.data = conv[0].weight.data.flatten(1)
            self.proj.bias.data = conv[0].bias.data

        def forward(self, x):
            cut = x.view(-1, 3, 4, 4, 6, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 24, 48)
            return self.act(self.proj(cut)).mean(1)

    x = images(2, 3, 16, 24)
    one, two = decompose(conv, x, "rotate"), decompose(Patches().eval(), x, "rotate")
    assert not two.unknown
    torch.testing.assert_close(two.terms["proj"], one.terms["0"])
    torch.testing.assert_close(two.terms["act"], one.terms["1"])


def test_blocks_folded_into_channels_are_followed():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(48, 5, 3, padding=1), nn.Tanh()

        def forward(self, x):
            x = x.view(-1, 3, 4, 4, 6, 4).permute(0, 3, 5, 1, 2, 4).reshape(-1, 48, 4, 6)
            return self.act(self.conv(x)).mean((2, 3))

    found = decompose(seeded(Folded), images(2, 3, 16, 24), "rotate")
    assert found.closure < 1e-12
    assert not found.unknown
    assert list(found.terms) == ["conv", "act"]


class Overwritten(nn.Module):
    """Memory that is shared or written into between an operation and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Conv2d(3, 4, 3, padding=1), Both()
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        h = self.first(x)
        h = F.relu(h.tanh() + h, inplace=True)  # the sum's memory has room for a term: it must not be used after
        one, two = self.both(h)
        return (self.last(one) * two).mean((2, 3))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        a = x.sigmoid()
        return a, F.conv2d(a, self.weight, padding=1)


def test_what_is_overwritten_or_put_off_keeps_its_tangents():
    net, x = seeded(Overwritten), images(2, 3, 12, 12)
    for by in ("layer", "type"):
        found = decompose(net, x, "rotate", by=by)
        assert found.closure < 1e-12
        torch.testing.assert_close(found.total, lie_derivative(net, x, "rotate"), rtol=1e-10, atol=1e-12)


class Unfolded(nn.Module):
    """Patches cut out by im2col, put back by col2im: apart, or overlapping; and recurrent layers along the rows."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.options = {"kernel_size": kernel, "stride": stride, "padding": padding}
        self.lift, self.act = nn.Conv2d(3, 4, 1), nn.Tanh()
        self.rows = nn.LSTM(4, 3, batch_first=True, bidirectional=True)

    def forward(self, x):
        h = F.unfold(self.lift(x), **self.options)
        h = F.fold(self.act(h), x.shape[-2:], **self.options)
        h = h.permute(0, 2, 3, 1)  # (B, H, W, 4)
        rows = self.rows(h.flatten(0, 1))[0].unflatten(0, h.shape[:2])
        return rows.square().mean((1, 2))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 4, 0), (3, 2, 1)])
def test_patches_by_im2col_and_recurrent_layers_are_followed(kernel, stride, padding):
    net, x = seeded(lambda: Unfolded(kernel, stride, padding)), images(2, 3, 12, 16)
    found = decompose(net, x, "rotate")
    assert found.closure < 1e-12
    assert not found.unknown
    torch.testing.assert_close(found.total, lie_derivative(net, x, "rotate"), rtol=1e-10, atol=1e-12)
    # Blocks that neither overlap nor leave gaps are a permutation, which moves nothing but places.
    moves_only = kernel == stride
    assert ("model:im2col" in found.functional) is not moves_only
    assert ("model:col2im" in found.functional) is not moves_only
    assert "rows" in found.terms
    by_pixel = decompose(nn.Sequential(net.lift, nn.Tanh()), x, "rotate", output="NCHW")
    assert by_pixel.closure < 1e-12


def test_overlapping_blocks_by_unfold_lie_at_their_middles():
    class Halo(nn.Module):
        def forward(self, x):
            x = F.pad(x, (1, 1, 1, 1))
            blocks = x.unfold(2, 6, 4).unfold(3, 6, 4)  # (B, C, 3, 4, 6, 6)
            return blocks.amax((4, 5)).tanh().mean((2, 3))

    class Pooled(nn.Module):
        def forward(self, x):
            return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 6, 4).tanh().mean((2, 3))

    x = images(2, 3, 12, 16).abs()
    one, two = decompose(Halo(), x, "rotate"), decompose(Pooled(), x, "rotate")
    assert not one.unknown
    torch.testing.assert_close(one.total, two.total)
    torch.testing.assert_close(one.functional["model:tanh"], two.functional["model:tanh"])


def test_convolutions_and_pooling_within_windows_are_followed():
    class Within(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()

        def forward(self, x):
            w = x.view(-1, 3, 3, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
            w = self.act(self.pool(self.conv(w)))  # (12 B, 4, 2, 2)
            h = w.view(-1, 3, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 6, 8)
            return F.gelu(h).mean((2, 3))

    net, x = seeded(Within), images(2, 3, 12, 16)
    found = decompose(net, x, "rotate")
    assert found.closure < 1e-12
    assert not found.unknown
    # The map put together again lies on the grid that a pooling of the whole image has.
    a = torch.tensor([GENERATORS["rotate"].coefficients], dtype=x.dtype)
    w = x.view(-1, 3, 3, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
    w = net.act(net.pool(net.conv(w)))
    h = w.view(-1, 3, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 6, 8)
    domain = Domain((12, 16))
    ideal = NCHW().tangents(h, a, domain)[0]
    local = torch.func.jvp(F.gelu, (h,), (ideal,))[1] - NCHW().tangents(F.gelu(h), a, domain)[0]
    torch.testing.assert_close(found.functional["model:gelu"], local.mean((2, 3)), rtol=1e-9, atol=1e-12)


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()
        self.register_buffer("order", torch.randperm(64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        tokens = self.conv(x).flatten(2)[..., self.order]  # where each lies is no longer known
        return self.act(tokens).mean(-1)


def test_an_operation_that_cannot_be_followed_is_named_and_merged_not_guessed():
    net, x = seeded(Shuffled), images(2, 3, 8, 8)
    found = decompose(net, x, "rotate")
    assert found.closure < 1e-12
    assert "act" in found.unknown
    assert "act" not in found.terms
    declared = decompose(net, x, "rotate", layouts={"act": "invariant"})
    assert declared.closure < 1e-12
    assert "act" in declared.terms
    torch.testing.assert_close(declared.total, found.total)


def test_the_split_depends_on_the_layouts_and_the_sum_does_not():
    net, x = seeded(cnn), images(2, 3, 16, 16)
    moved = decompose(net, x, "translate_x")
    still = decompose(net, x, "translate_x", layouts={"0": "invariant"})
    assert (moved.terms["0"] - still.terms["0"]).abs().max() > 1e-4
    torch.testing.assert_close(still.total, moved.total)
    assert still.closure < 1e-12
    with pytest.raises(ValueError, match="unknown module 'blocks'"):
        decompose(net, x, "translate_x", layouts={"blocks": "NCHW"})


def test_dense_and_structured_outputs_probabilities_and_sequences():
    net, x = seeded(cnn), images(2, 3, 16, 16)
    dense = decompose(net[:6], x, "rotate", output=NCHW())
    torch.testing.assert_close(dense.total, lie_derivative(net[:6], x, "rotate", output="NCHW"))
    assert dense.closure < 1e-12
    assert "output" not in dense.functional
    soft = decompose(net, x, "rotate", probabilities=True)
    torch.testing.assert_close(soft.total, lie_derivative(net, x, "rotate", probabilities=True))
    assert soft.closure < 1e-12
    invariant = decompose(net[:6], x, "rotate", output="invariant")  # as if a map were a label
    assert invariant.closure < 1e-12
    assert set(invariant.functional) == {"output"}
    audio = seeded(lambda: nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()))
    found = decompose(audio, images(2, 2, 40), "translate_t", action=Sequences())
    assert list(found.terms) == ["0", "1", "2"]
    assert found.closure < 1e-12


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        self.conv(x)
        raise RuntimeError("no such luck")


def test_hooks_flags_and_state_come_back_also_after_an_error():
    for net, error in ((seeded(cnn), None), (seeded(Failing), "no such luck")):
        net.train()
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        if error:
            with pytest.raises(RuntimeError, match=error):
                decompose(net, images(2, 3, 16, 16), "rotate")
        else:
            decompose(net, images(2, 3, 16, 16), "rotate")
        for part in net.modules():
            assert part.training
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_outputs_that_are_not_finite_name_the_layer():
    net = seeded(cnn)
    net[4].weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match="come from the layer '4'"):
        decompose(net, images(1, 3, 16, 16), "rotate")


def test_a_users_hook_is_part_of_its_layer():
    net, x = seeded(cnn), images(2, 3, 16, 16)
    handle = net[2].register_forward_hook(lambda module, args, out: 2 * out)
    found = decompose(net, x, "rotate")
    handle.remove()
    assert found.closure < 1e-12
    scaled = nn.Sequential(*net[:2], Doubled(), *net[3:])
    torch.testing.assert_close(found.terms["2"], decompose(scaled, x, "rotate").terms["2"])


def test_an_encoder_layer_and_a_compiled_module_are_decomposed_as_written():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

        def forward(self, x):
            return self.encoder(self.embed(x).flatten(2).mT).mean(1)

    net, x = seeded(Encoder), images(2, 3, 16, 16)
    before = torch.backends.mha.get_fastpath_enabled()
    found = decompose(net, x, "rotate")
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert found.closure < 1e-12
    assert "encoder.norm1" in found.terms
    compiled = decompose(torch.compile(net), x, "rotate")
    assert compiled.terms.keys() == found.terms.keys()
    torch.testing.assert_close(compiled.total, lie_derivative(torch.compile(net), x, "rotate"))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x.relu()


def test_sums_by_type_and_depth_and_the_cumulative_curve():
    net, x = seeded(vit), images(2, 3, 16, 16)
    found = decompose(net, x, "scale")
    kinds = found.by_type()
    assert {"LayerNorm", "GELU", "Conv2d", "add"} <= set(kinds)
    torch.testing.assert_close(sum(kinds.values()), found.total)
    assert list(found.by_depth()) == ["patch_embed", "model", "blocks", "norm"] or "blocks" in found.by_depth()
    torch.testing.assert_close(sum(found.by_depth(2).values()), found.total)
    curve = list(found.cumulative().values())
    assert curve[-1] == pytest.approx(1)
    few = decompose(net, x, "scale", by="type")
    assert few.closure < 1e-12
    for kind, term in few.all_terms().items():
        torch.testing.assert_close(term, kinds[kind], rtol=1e-9, atol=1e-11)
    row = found.table()[0]
    assert row["norm"] == pytest.approx(float(found.all_terms()[row["name"]].norm()))
    assert found.squared()[row["name"]] == pytest.approx(float(found.all_terms()[row["name"]].square().mean()))


def test_a_mixer_mixes_tokens_and_is_followed():
    from timm.models.mlp_mixer import MlpMixer

    net, x = seeded(lambda: MlpMixer(5, img_size=16, patch_size=4, num_blocks=2, embed_dim=12)), images(2, 3, 16, 16)
    nn.init.normal_(net.head.weight)
    found = decompose(net, x, "shear_y")
    assert found.closure < 1e-12
    assert not found.unknown
    # The layers that mix tokens do not commute with a motion of them; those that mix channels do.
    assert "blocks.0.mlp_tokens.fc2" in found.terms or "blocks.0.mlp_tokens.fc1" in found.terms
    assert "blocks.0.mlp_channels.fc1" in found.zero


def test_models_of_the_zoo_in_every_common_layout():
    import timm

    for name, options in {
        "test_resnet": {}, "test_vit": {}, "test_convnext": {}, "test_efficientnet": {},
        "swin_tiny_patch4_window7_224": {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4), "img_size": 56},
    }.items():  # fmt: skip
        net = seeded(lambda name=name, options=options: timm.create_model(name, num_classes=7, **options))
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):  # heads that start at zero would hide everything
                p += 0.02 * images(*p.shape, seed=i)
        size = options.get("img_size", 64 if name != "test_vit" else 160)
        found = decompose(net, images(1, 3, size, size), "rotate")
        assert found.closure < 1e-12, name
        assert not found.unknown, name


# --- where tensors lie ---


def test_reshapes_split_and_join_and_refuse_what_they_would_cut():
    rows, columns = Line(0, Axis.over(6, 6)), Line(1, Axis.over(8, 8))
    axes = (plain(2), (Atom(6, rows),), (Atom(8, columns),), plain(3))
    cut = reshaped(axes, (2, 2, 3, 2, 4, 3))
    assert cut == (
        plain(2),
        (Atom(2, rows, 3),),
        (Atom(3, rows),),
        (Atom(2, columns, 4),),
        (Atom(4, columns),),
        plain(3),
    )
    assert reshaped(cut, (2, 6, 8, 3)) == axes
    assert reshaped(axes, (2, 48, 3))[1] == (Atom(6, rows), Atom(8, columns))
    assert reshaped(axes, (2, 4, 12, 3)) is None
    tokens = (plain(2), (Union((plain(1), (Atom(6, rows), Atom(8, columns)))),), plain(3))
    assert reshaped(reshaped(tokens, (98, 3)), (2, 49, 3)) == tokens
    assert reshaped(tokens, (2, 7, 7, 3)) is None


@pytest.mark.parametrize("name", GENERATORS)
def test_motion_by_axes_is_that_of_the_declared_layouts(name):
    a = torch.tensor([GENERATORS[name].coefficients], dtype=torch.float64)
    value, domain = images(2, 5, 6, 8), Domain((24, 40))
    rows, columns = (Atom(6, Line(0, Axis.over(6, 24))),), (Atom(8, Line(1, Axis.over(8, 40))),)
    reference = image_tangents(value, a, (24, 40))[0]
    found = velocity(value, (plain(2), plain(5), rows, columns), a, domain)
    torch.testing.assert_close(found, reference, rtol=1e-13, atol=1e-13)
    tokens = torch.cat([images(2, 3, 5, seed=1), value.flatten(2).mT], 1)
    axes = (plain(2), (Union((plain(3), (*rows, *columns))),), plain(5))
    expected = Tokens(grid=(6, 8), prefix=3).tangents(tokens, a, (24, 40))[0]
    torch.testing.assert_close(velocity(tokens, axes, a, domain), expected, rtol=1e-13, atol=1e-13)
    assert velocity(value, tuple(plain(n) for n in value.shape), a, domain) is None


# --- the recorded run ---


class Overwriting(nn.Module):
    """Values that a rule reads (of a sigmoid, a ReLU, a product) are overwritten before the terms are pushed."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.second, self.in_place = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        gate = h.sigmoid()
        z = gate * h
        if self.in_place:
            gate.mul_(3.0)
            h.relu_().add_(gate)
            z[:, 1:].copy_(z[:, :-1].clone())
        else:
            gate = gate * 3.0
            h = h.relu() + gate
            z = torch.cat([z[:, :1], z[:, :-1]], 1)
        y = self.second(z * h)
        return F.silu(y, inplace=self.in_place).mean((2, 3))


def test_what_is_overwritten_later_is_kept_for_the_terms():
    x = images(2, 3, 9, 9)
    plain, written = (decompose(seeded(lambda i=i: Overwriting(i)), x, "rotate") for i in (False, True))
    assert written.closure < 1e-12 and plain.closure < 1e-12
    for name in ("first", "model:sigmoid", "second"):
        torch.testing.assert_close(written.all_terms()[name], plain.all_terms()[name], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("build", [cnn, vit])
@pytest.mark.parametrize("by", ["layer", "type"])
def test_how_many_terms_are_pushed_at_once_does_not_matter(build, by, monkeypatch):
    from liederivative.layerwise import tape

    net, x = seeded(build), images(2, 3, 16, 16)
    together = decompose(net, x, "rotate", by=by).all_terms()
    monkeypatch.setattr(tape, "ROWS", 1)
    alone = decompose(net, x, "rotate", by=by).all_terms()
    assert alone.keys() == together.keys()
    for name, term in together.items():
        torch.testing.assert_close(alone[name], term, rtol=1e-11, atol=1e-14)  # sums in another order


@pytest.mark.parametrize("pool", ["token", "avg", "max"])
def test_terms_go_through_what_the_output_depends_on_alone(pool, monkeypatch):
    from liederivative.layerwise import demand, tape

    def build() -> nn.Module:
        from timm.models import VisionTransformer

        net = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5, global_pool=pool
        )
        nn.init.normal_(net.cls_token)
        return net

    narrowed: list[str] = []
    original = tape.narrowed

    def watched(name, call, region):
        found = original(name, call, region)
        narrowed.extend([name] if found is not None else [])
        return found

    monkeypatch.setattr(tape, "narrowed", watched)
    net, x = seeded(build), images(2, 3, 32, 32)
    short = decompose(net, x, "scale")
    assert ("_scaled_dot_product_flash_attention_for_cpu" in narrowed) == (pool == "token")
    narrowed.clear()
    monkeypatch.setattr(demand, "WORTH", 0.0)
    monkeypatch.setattr(tape, "WORTH", 0.0)
    whole = decompose(net, x, "scale")
    assert not narrowed
    assert short.closure < 1e-12 and whole.closure < 1e-12
    assert short.kinds == whole.kinds
    for name, term in whole.all_terms().items():
        torch.testing.assert_close(short.all_terms()[name], term, rtol=1e-11, atol=1e-14)
