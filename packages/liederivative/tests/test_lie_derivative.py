"""The Lie derivative of models: exact zeros, hand-computed aliasing, finite differences, safety, bad input."""

from __future__ import annotations

import functools
import math
import platform

import pytest
import torch
from lie.groups import SO3
from liederivative import GENERATORS, Points, Tokens, lee, lie_derivative, lie_derivatives
from liederivative.actions import image_tangents
from liederivative.derivative import LADDER
from torch import nn


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def small_cnn(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32, 5),
        )
        net(torch.randn(8, 3, 16, 16))  # so that the running statistics are not the neutral ones
    return net.to(dtype)


def small_vit(dtype: torch.dtype = torch.float64) -> nn.Module:
    from timm.models import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    return net.to(dtype)


MODELS = {"cnn": small_cnn, "vit": small_vit}


# --- laws ---


@pytest.mark.parametrize("name", GENERATORS)
def test_zero_for_equivariant_models(name):
    x = images(2, 3, 8, 12)
    mix = nn.Conv2d(3, 4, 1, bias=False).double()
    assert (lie_derivative(lambda x: x, x, name, output="NCHW") == 0).all()
    # A pixelwise linear map commutes with every generator, the gain included; rounding of values up to 30.
    assert lie_derivative(mix, x, name, output="NCHW").abs().max() < 1e-13
    last = lie_derivative(lambda x: mix(x).movedim(1, -1), x, name, output="NHWC")
    assert last.shape == (2, 8, 12, 4)
    assert last.abs().max() < 1e-13
    tokens = lie_derivative(lambda x: mix(x).flatten(2).mT, x, name, output=Tokens(grid=(8, 12)))
    assert tokens.abs().max() < 1e-13


@pytest.mark.parametrize("stride", [2, 4, 16])
@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "saturate"])
def test_zero_for_average_pooling_of_a_ramp(name, stride):
    r, c = torch.meshgrid(torch.arange(5 * stride).double(), torch.arange(6 * stride).double(), indexing="ij")
    ramp = (2 * c - r).expand(1, 1, -1, -1)
    L = lie_derivative(nn.AvgPool2d(stride), ramp, name, output="NCHW")
    assert L[..., 1:-1, 1:-1].abs().max() < 1e-11  # rounding of tangents up to 100
    # Taking one pixel of each block is off centre by (stride - 1) / 2: that is what the coordinates must see.
    if name == "rotate":
        picked = lie_derivative(lambda x: x[..., ::stride, ::stride], ramp, name, output="NCHW")
        assert picked[..., 1:-1, 1:-1].abs().min() > 0.1


def test_saturate_vanishes_for_scale_invariant_models_only():
    x = images(2, 3, 8, 8).abs() + 1
    assert lie_derivative(lambda x: (x / x.mean(dim=(1, 2, 3), keepdim=True)).flatten(1), x, "saturate").abs().max() < (
        1e-14  # rounding of a quotient of order 1
    )
    torch.testing.assert_close(  # degree one: the model itself
        lie_derivative(lambda x: x.mean(dim=(2, 3)), x, "saturate"), x.mean(dim=(2, 3)), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(  # degree two
        lie_derivative(lambda x: x.square().mean(dim=(2, 3)), x, "saturate"), 2 * x.square().mean(dim=(2, 3))
    )


def test_translations_vanish_for_the_mean_of_an_object_inside_the_frame():
    x = nn.functional.pad(images(2, 3, 6, 7), (2, 2, 2, 2))
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for name in ("translate_x", "translate_y", "shear_x", "shear_y", "rotate"):  # fields free of divergence
        assert lie_derivative(mean, x, name).abs().max() < 1e-15  # a telescoping sum, up to rounding
    # A field with divergence changes the area: d/dt of the mean under stretch_x is minus the mean.
    torch.testing.assert_close(
        lie_derivative(mean, x, "stretch_x"), -x.mean(dim=(2, 3)), rtol=1e-12, atol=1e-14
    )  # summation by parts is exact for linear coordinates


def test_the_aliasing_of_a_pointwise_nonlinearity_is_the_hand_computed_one():
    c = torch.arange(9.0, dtype=torch.float64).expand(1, 1, 7, 9)
    assert lie_derivative(torch.square, c, "translate_x", output="NCHW")[..., 1:-1].abs().max() < 1e-12
    # 3 c^2 from the chain rule against ((c + 1)^3 - (c - 1)^3) / 2 = 3 c^2 + 1; one unit is 4 columns.
    cube = lie_derivative(lambda x: x**3, c, "translate_x", output="NCHW")
    torch.testing.assert_close(cube[..., 1:-1], torch.full((1, 1, 7, 7), -4.0, dtype=torch.float64))


# --- references ---


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_agrees_with_finite_differences_along_the_tangent(kind, probabilities):
    net, x, step = MODELS[kind]().eval(), images(3, 3, 16, 16), 1e-4
    found = lie_derivatives(net, x, GENERATORS, probabilities=probabilities)
    assert found.rung.name == "fused rules"
    with torch.no_grad():

        def f(x):
            return net(x).softmax(-1) if probabilities else net(x)

        torch.testing.assert_close(found.value, f(x), rtol=1e-12, atol=1e-12)
        for name, L in zip(GENERATORS, found.derivatives, strict=True):
            v = image_tangents(x, torch.tensor([GENERATORS[name].coefficients], dtype=x.dtype))[0]
            v = v / v.abs().max()
            scale = image_tangents(x, torch.tensor([GENERATORS[name].coefficients], dtype=x.dtype))[0].abs().max()
            d = [f(x + k * step * v) - f(x - k * step * v) for k in (1, 2)]
            reference = scale * (8 * d[0] - d[1]) / (12 * step)
            assert L.abs().max() > 1e-4  # the comparison is of something
            # Fourth order: h^4 = 1e-16; rounding 1e-16 / h = 1e-12, times the scale of about 20.
            torch.testing.assert_close(L, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_float32_agrees_with_float64(kind):
    x = images(2, 3, 16, 16)
    exact = lee(MODELS[kind](), x)
    single = lee(MODELS[kind](torch.float32), x.float())
    assert single.absolute.dtype == torch.float32
    torch.testing.assert_close(single.absolute.double(), exact.absolute, rtol=1e-4, atol=0)  # 100 roundings


@pytest.mark.parametrize("kind", MODELS)
def test_ten_generators_from_seven_tangents_are_those_of_one_at_a_time(kind):
    net, x = MODELS[kind](), images(2, 3, 16, 16)
    together = lie_derivatives(net, x, GENERATORS).derivatives
    alone = torch.stack([lie_derivative(net, x, name) for name in GENERATORS])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)
    for chunk in (1, 3):
        chunked = lie_derivatives(net, x, GENERATORS, tangents_per_pass=chunk).derivatives
        torch.testing.assert_close(together, chunked, rtol=1e-11, atol=1e-12)
    by_name = dict(zip(GENERATORS, alone, strict=True))
    for sum_, (name, parts) in {
        "rotate = shear_x - shear_y": ("rotate", by_name["shear_x"] - by_name["shear_y"]),
        "hyperbolic = shear_x + shear_y": ("hyperbolic", by_name["shear_x"] + by_name["shear_y"]),
        "scale = -(stretch_x + stretch_y)": ("scale", -(by_name["stretch_x"] + by_name["stretch_y"])),
    }.items():
        assert (by_name[name] - parts).abs().max() < 1e-11, sum_


def test_dense_outputs_take_both_terms_from_the_same_pass():
    net, x = small_cnn().eval()[:5], images(2, 3, 16, 16)
    L = lie_derivative(net, x, "rotate", output="NCHW")
    value, pushed = torch.func.jvp(  # pyright: ignore[reportAssignmentType]
        net, (x,), (image_tangents(x, torch.tensor([GENERATORS["rotate"].coefficients]).double())[0],)
    )
    ideal = image_tangents(value, torch.tensor([GENERATORS["rotate"].coefficients]).double(), (16, 16))[0]
    assert L.shape == (2, 8, 8, 8)
    torch.testing.assert_close(L, pushed - ideal)
    probabilities = lie_derivative(net, x, "saturate", output="NCHW", probabilities=True)
    assert probabilities.sum(dim=1).shape == (2, 8, 8)
    # Probabilities sum to one over channels, so their derivatives sum to zero; the action of the gain to one.
    torch.testing.assert_close(probabilities.sum(dim=1), -torch.ones(2, 8, 8, dtype=torch.float64))


def test_lee_is_the_mean_of_the_lie_derivative():
    net, x = small_cnn(), images(5, 3, 16, 16)
    errors = lee(net, x, ["rotate", "saturate"], batch_size=2)
    L = lie_derivative(net, x, "rotate")
    torch.testing.assert_close(errors.absolute[0], L.abs().mean(dim=1))
    torch.testing.assert_close(errors.squared[0], L.square().sum(dim=1) / 5)
    assert errors.mean_squared["rotate"] == pytest.approx(float(L.square().mean()))
    spread = L.abs().mean(dim=1).std() / math.sqrt(5)
    assert errors.standard_error_absolute["rotate"] == pytest.approx(float(spread))
    assert math.isnan(lee(net, x[:1], ["rotate"]).standard_error_squared["rotate"])


# --- the model is left as it was ---


class Watched(nn.Module):
    """Fails on demand, and refuses to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_cnn()
        self.fail = False
        # Out of sight in a function: a list among the attributes comes back empty.
        seen: list[bool] = []
        self.see = seen.append
        self.watched = lambda: seen

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.see(any(part.training for part in self.modules()))
        if self.fail:
            raise RuntimeError("no such luck")
        return self.net(x)

    forward = features


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_in_evaluation_mode_and_comes_back_as_it_was(fail):
    model, x = Watched().train(), images(2, 3, 16, 16)
    model.net[1].eval()
    model.net[3].weight.requires_grad_(False)
    model.fail = fail
    flags = [part.training for part in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    if fail:
        with pytest.raises(RuntimeError, match="no such luck"):
            lie_derivative(model, x, "rotate")
    else:
        L = lie_derivative(model, x, "rotate")
        assert not L.requires_grad
        assert torch.equal(L, lie_derivative(model.eval(), x, "rotate"))
        model.train()
        model.net[1].eval()
    assert model.watched()
    assert not any(model.watched())
    assert [part.training for part in model.modules()] == flags
    assert [p.requires_grad for p in model.net[3].parameters()] == [False, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.backends.mkldnn.enabled


def test_bound_methods_and_partials_are_in_evaluation_mode_too():
    model, x = Watched().train(), images(2, 3, 16, 16)
    lie_derivative(model.features, x, "rotate")
    lie_derivative(functools.partial(model.features), x, "rotate")
    assert not any(model.watched())
    assert model.training


# --- rungs ---


def test_fused_attention_is_replaced_by_its_formula():
    class Attend(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).mT[:, None]  # (B, 1, N, C)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(dim=(1, 2))

    x = images(2, 8, 4, 4, dtype=torch.float32)
    L = lie_derivatives(Attend(), x, ["rotate"])
    tokens_first = lie_derivative(
        lambda x: ((t := x.flatten(2).mT) @ t.mT / math.sqrt(8)).softmax(-1).matmul(t).mean(dim=1), x, "rotate"
    )
    assert L.rung.name == "fused rules"
    torch.testing.assert_close(L.derivatives[0], tokens_first, rtol=1e-4, atol=1e-5)  # single precision


def test_a_fused_recurrent_layer_needs_onednn_off():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(12, 6, batch_first=True)

        def forward(self, x):
            return self.lstm(x.flatten(2))[0][:, -1]

    torch.manual_seed(0)
    net, x = Reader(), images(2, 5, 3, 4, dtype=torch.float32)
    single = lie_derivatives(net, x, ["rotate", "translate_x", "saturate"])
    double = lie_derivatives(net.double(), x.double(), ["rotate", "translate_x", "saturate"])
    if platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available():
        assert single.rung.name == "fused rules, oneDNN off"
    torch.testing.assert_close(single.derivatives.double(), double.derivatives, rtol=1e-4, atol=1e-5)
    assert torch.backends.mkldnn.enabled


def test_an_operation_without_a_rule_for_many_tangents_takes_one_a_pass():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return 2 * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def jvp(ctx, *grad_inputs):
            return 2 * grad_inputs[0]

    x = images(2, 3, 8, 8)
    model = lambda x: Double.apply(x).mean(dim=(2, 3))  # noqa: E731
    plain = lie_derivatives(lambda x: 2 * x.mean(dim=(2, 3)), x, GENERATORS)
    by_rules = lie_derivatives(model, x, GENERATORS)  # the rules see what forward does
    found = lie_derivatives(model, x, GENERATORS, ladder=LADDER[2:])
    assert (by_rules.rung.name, found.rung.name) == ("fused rules", "forward mode, one tangent a pass")
    torch.testing.assert_close(found.derivatives, plain.derivatives)
    torch.testing.assert_close(by_rules.derivatives, plain.derivatives)


def test_models_that_look_at_their_values_or_write_in_place_stay_on_the_first_rung():
    def branching(x):
        out = x.new_zeros(2, 3)
        out[:] = x.mean(dim=(2, 3)) * (2 if x.max().item() > 0 else 3)
        return out

    x = images(2, 3, 8, 8)
    found = lie_derivatives(branching, x, GENERATORS)
    assert found.rung.name == "fused rules"
    torch.testing.assert_close(
        found.derivatives, lie_derivatives(lambda x: 2 * x.mean(dim=(2, 3)), x, GENERATORS).derivatives
    )


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


def test_a_model_without_forward_mode_takes_differences_or_is_one_clear_line():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn(torch.float32)

        def forward(self, x):
            return self.net(Opaque.apply(x))

    model, x = Model(), images(2, 3, 16, 16, dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = lie_derivatives(model, x, GENERATORS, ladder=LADDER[2:])
    assert found.rung.name == "float64 differences"
    assert found.derivatives.dtype == torch.float32
    exact = lie_derivatives(model.net.double(), x.double(), GENERATORS).derivatives
    # In double precision the differences are good to 1e-9; what is left is the rounding to float32.
    torch.testing.assert_close(found.derivatives.double(), exact, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.float().state_dict().items())
    with pytest.raises(ValueError, match="runs but cannot be differentiated in forward mode") as error:
        lie_derivatives(model.float(), x, "rotate", ladder=LADDER[2:-1])
    assert "\n" not in str(error.value)


def test_distances_without_a_forward_mode_take_differences():
    points = images(2, 5, 3)
    found = lie_derivatives(
        lambda p: torch.cdist(p, p[:, :2] ** 2).flatten(1), points, ["rotate_x"], action=Points(SO3())
    )
    assert found.rung.name == "float64 differences"
    formula = lie_derivative(
        lambda p: (p[:, :, None] - p[:, None, :2] ** 2).norm(dim=-1).flatten(1),
        points,
        "rotate_x",
        action=Points(SO3()),
    )
    torch.testing.assert_close(found.derivatives[0], formula, rtol=1e-8, atol=1e-8)  # of fourth order


# --- bad input ---


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "expected floating-point images, got torch.int64"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "convert and normalise"),
        (torch.zeros(0, 3, 8, 8), "at least one image, got a batch of zero"),
        (torch.zeros(3, 8, 8), r"shape \(B, C, H, W\), got shape \(3, 8, 8\)"),
        (torch.zeros(2, 3, 1, 8), "at least 2 x 2 pixels"),
        (torch.full((2, 3, 8, 8), math.nan), "expected finite images, got 384 NaN"),
        ([[1.0]], "got list"),
    ],
)
@pytest.mark.parametrize("measure", [lambda x: lie_derivative(torch.mean, x, "rotate"), lambda x: lee(torch.mean, x)])
def test_bad_images(x, message, measure):
    from lie.run import UserError

    with pytest.raises((UserError, TypeError), match=message) as error:
        measure(x)
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.mean(dim=(2, 3)) * math.nan, "expected finite outputs of the model, got 6 NaN"),
        (lambda x: (x * 0).sum(dim=(2, 3)).sqrt(), "expected finite derivatives"),
        (lambda x: x, "cannot be known; declare it"),
        (lambda x: (x, x), "expected the model to return one tensor, got tuple"),
        (lambda x: {"logits": x}, "got dict"),
        (lambda x: x.mean(), "one entry for each of the 2 samples"),
        (lambda x: x.mean(dim=(2, 3)).argmax(1), "return scores, not labels"),
    ],
)
def test_bad_outputs(model, message):
    with pytest.raises(ValueError, match=message):
        lie_derivative(model, images(2, 3, 8, 8), "rotate")


def test_unknown_names_and_unfit_dtypes():
    net, x = small_cnn(), images(2, 3, 16, 16)
    with pytest.raises(ValueError, match="unknown generator 'rotat': did you mean 'rotate'"):
        lie_derivative(net, x, "rotat")
    with pytest.raises(ValueError, match="unknown output layout"):
        lie_derivative(net, x, "rotate", output="HWC")
    with pytest.raises(ValueError, match=r"model's dtype and device, torch\.float64 on cpu, got torch\.float32"):
        lie_derivative(net, x.float(), "rotate")
    with pytest.raises(ValueError, match="at least one tangent a pass"):
        lie_derivatives(net, x, "rotate", tangents_per_pass=0)


def test_the_models_own_error_comes_through():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        lie_derivative(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).double(), images(1, 3, 8, 8), "rotate")
