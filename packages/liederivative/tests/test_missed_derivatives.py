"""Parts of a derivative that automatic differentiation misses without an error: found by difference quotients.

The right values are closed forms: of linear and homogeneous maps (Euler: under ``saturate``, dx/dt = x, a map of degree
d has the derivative d f), and of special functions by scipy.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lie.run import UserError
from liederivative import VectorFields, decompose, lee, lie_derivative, lie_derivatives
from liederivative.derivative import LADDER
from liederivative.derivative.quotients import difference_quotient
from torch import nn

RULES, FORWARD_MODE = LADDER, LADDER[2:]


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) + 0.1


def saturated(model, x, **options):
    """The whole derivative Df(x)[x], for the gain of an invariant output is not subtracted."""
    return lie_derivatives(model, x, ["saturate"], output="invariant", **options)


# --- operators from outside of torch ---

WEIGHT = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OFFSET = 0.3 * torch.randn(2, 18, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
BOXES = torch.tensor([[0.0, 0.0, 0.0, 6.0, 6.0], [1.0, 1.0, 1.0, 7.0, 5.0]], dtype=torch.float64)


def deformable(x: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, OFFSET.to(x), WEIGHT.to(x), padding=(1, 1)).flatten(1)


def regions(x: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import roi_align

    return roi_align(x, BOXES.to(x), 3).flatten(1)


def position_sensitive(x: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import ps_roi_pool

    return ps_roi_pool(x.repeat(1, 3, 1, 1), BOXES.to(x), 3).flatten(1)


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("model", [deformable, regions, position_sensitive])
def test_linear_operators_of_torchvision(model, dtype, ladder):
    x = images(2, 3, 8, 8, dtype=dtype)
    found = saturated(model, x, ladder=ladder)
    # Quotients of a linear map have no truncation; rounding is 1e-16 / 2e-4 in double precision, in which both run.
    torch.testing.assert_close(
        found.derivatives[0], model(x), rtol=1e-6 if dtype == torch.float32 else 1e-10, atol=1e-6
    )
    assert "differences" in found.method
    if ladder is RULES:
        assert found.rung.name == "fused rules"
        assert "torchvision::" in found.method


def test_boxes_move_too():
    """The gradient that torchvision registers for the boxes is zero; the values do depend on them."""
    from torchvision.ops import roi_align

    x = torch.arange(8.0, dtype=torch.float64).expand(1, 1, 8, 8)  # a ramp along columns

    def model(boxes: torch.Tensor) -> torch.Tensor:
        return roi_align(x, torch.cat([boxes.new_zeros(1, 1), boxes], 1), 2, sampling_ratio=2, aligned=True).flatten(1)

    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0]], dtype=torch.float64)
    action = VectorFields({"right": lambda z: torch.tensor([[1.0, 0, 1, 0]], dtype=z.dtype).expand_as(z)})
    moved = lie_derivative(model, boxes, "right", action=action, output="invariant")
    torch.testing.assert_close(moved, torch.ones(1, 4, dtype=torch.float64), rtol=1e-9, atol=0)  # linear inside


@pytest.fixture(scope="module")
def library():
    """Operators as users register them: without a derivative, with a backward pass, with one that is not its own."""
    with torch.library._scoped_library("abcd", "FRAGMENT") as lib:

        def define(name: str, kernel) -> None:
            lib.define(f"{name}(Tensor x) -> Tensor")
            lib.impl(name, kernel, "CPU")

        define("relu", lambda x: x**2)  # a name of which torch has an operator and we have a rule
        define("square", lambda x: x**2)
        define("straight", lambda x: x**2)
        define("stairs", lambda x: (64 * x).floor() / 64)
        define("noisy", lambda x: x + 0.1 * (1e9 * x).frac())

        def backward_of_square(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

        def save(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        torch.library.register_autograd("abcd::square", backward_of_square, setup_context=save, lib=lib)
        torch.library.register_autograd("abcd::straight", lambda ctx, g: g, setup_context=save, lib=lib)
        yield torch.ops.abcd


@pytest.mark.parametrize(
    ("name", "how"),
    [("relu", "differences|double backward"), ("square", "double backward"), ("straight", "differences")],
)
def test_operators_of_a_library(library, name, how):
    x = images(2, 3, 8, 8)
    operator = getattr(library, name)
    found = saturated(lambda x: operator(3 * x).flatten(1), x, verify=True)
    assert re.fullmatch(f"fused rules; abcd::{name} by ({how})", found.method)
    torch.testing.assert_close(found.derivatives[0], 18 * x.square().flatten(1), rtol=1e-9, atol=0)
    assert found.difference is not None and found.difference < 1e-8
    by_forward_mode = saturated(lambda x: operator(3 * x).flatten(1), x, ladder=FORWARD_MODE)
    torch.testing.assert_close(by_forward_mode.derivatives[0], 18 * x.square().flatten(1), rtol=1e-9, atol=0)


def test_an_operator_that_jumps_is_refused_by_name(library):
    x = images(2, 3, 8, 8)
    assert (saturated(lambda x: library.stairs(x).flatten(1), x).derivatives == 0).all()  # between its steps
    with pytest.raises(UserError, match=r"abcd::noisy has no forward-mode derivative.*depend on the step") as error:
        saturated(lambda x: library.noisy(x).flatten(1), x)
    assert "\n" not in str(error.value)


def test_an_operator_in_a_decomposition(library):
    class Head(nn.Module):
        def forward(self, x):
            return library.relu(x).mean((2, 3))

    net = nn.Sequential(nn.Conv2d(3, 4, 3).double(), Head())
    x = images(1, 3, 10, 10)
    found = decompose(net, x, "translate_x")
    conv = net[0]
    expected = lie_derivative(lambda x: conv(x).square().mean((2, 3)), x, "translate_x")
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sum(found.terms.values()) + found.remainder, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dynamic", [True, False])
def test_quantised_models_are_refused_by_name(dynamic):
    class Rounded(nn.Module):
        def forward(self, x):
            return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8).dequantize().flatten(1)

    model: nn.Module = Rounded()
    if dynamic:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own: to be replaced by another package
            layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
            model = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear})
    with pytest.raises(UserError, match="piecewise constant"):
        saturated(model, images(2, 3, 8, 8, dtype=torch.float32))


@pytest.mark.slow
def test_the_masks_of_a_detector():
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.ops import FrozenBatchNorm2d

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=64,
            max_size=64,
            box_score_thresh=0.0,
            box_detections_per_img=5,
        )
    for part in net.modules():
        if isinstance(part, FrozenBatchNorm2d):
            assert isinstance(part.running_var, torch.Tensor)
            part.running_var.fill_(2.0)
    net, x = net.double().eval(), images(1, 3, 64, 64)

    def select(detections):
        return torch.stack([d["masks"][:3] for d in detections]).flatten(1)

    found = lie_derivatives(net, x, ["saturate"], select=select, output="invariant", ladder=LADDER[:1])
    step = 1e-6
    with torch.no_grad():
        reference = (select(net((1 + step) * x)) - select(net((1 - step) * x))) / (2 * step)
    assert reference.abs().max() > 1  # the comparison is of something
    # Central differences of step h: h^2 times a third derivative, and 1e-16 / h times the condition of the detector.
    torch.testing.assert_close(found.derivatives[0], reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


# --- values that become numbers ---


def between(x, low, high):
    return ((x - low) / (high - low)).flatten(1)


def mean_by_list(x):
    return torch.tensor(x.mean((1, 2, 3)).tolist(), dtype=torch.float64)[:, None, None, None]


CONVERTING = {
    "item": (lambda x: between(x, x.min().item(), x.max().item()), 0),
    "float": (lambda x: between(x, float(x.min()), float(x.max())), 0),
    "tolist": (lambda x: (x * mean_by_list(x)).flatten(1), 2),
    "numpy": (lambda x: (x * torch.from_numpy(x.mean((1, 2, 3), keepdim=True).numpy())).flatten(1), 2),
    "array": (lambda x: (x * torch.tensor(x.detach().numpy().max())).flatten(1), 2),
    "complex": (lambda x: (x * complex(x.mean()).real).flatten(1), 2),
    "power": (lambda x: (x ** x.new_tensor(2.0).item() * x.max().item()).flatten(1), 3),
    "format": (lambda x: (x * float(f"{x.max().item():.17g}")).flatten(1), 2),
}
"""Models with a part of the derivative in a number of Python's, and their degree of homogeneity."""


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
@pytest.mark.parametrize("name", CONVERTING)
def test_numbers_of_python_keep_their_derivative(name, ladder):
    model, degree = CONVERTING[name]
    x = images(2, 3, 8, 8)
    found = saturated(model, x, ladder=ladder)
    assert found.rung.name == "float64 differences"
    assert found.error is not None and found.error < 1e-6
    torch.testing.assert_close(found.derivatives[0], degree * model(x), rtol=1e-8, atol=1e-8)  # of fourth order
    errors = lee(model, x, ["saturate"], output="invariant")
    torch.testing.assert_close(errors.absolute[0], degree * model(x).abs().mean(1), rtol=1e-8, atol=1e-8)


def test_single_precision_through_a_function_that_holds_weights():
    net = nn.Linear(192, 5, bias=False)
    x = images(2, 3, 8, 8, dtype=torch.float32)

    def model(x):
        return net((x / x.max().item()).flatten(1))

    found = saturated(model, x)
    assert found.rung.name == "float64 differences"
    assert found.derivatives.abs().max() < 1e-6  # of degree 0; evaluated in double precision all through


def test_a_branch_on_a_number_costs_no_strategy():
    x = images(2, 3, 8, 8)
    found = saturated(lambda x: (x.square() if x.max().item() > 0 else x).flatten(1), x)
    assert found.rung.name == "fused rules"
    assert found.difference is not None and found.difference < 1e-9
    assert saturated(lambda x: x.flatten(1), x).difference is None  # nothing to compare for


def test_a_decomposition_refuses_a_number_it_would_miss():
    class Scaled(nn.Module):
        def forward(self, x):
            return x / x.max().item() if x.max().item() > 0 else x

    x = images(1, 3, 10, 10, dtype=torch.float32)
    with pytest.raises(UserError, match="turns a value into a number by aten::_local_scalar_dense"):
        decompose(nn.Sequential(Scaled(), nn.Conv2d(3, 4, 3), nn.Flatten()), x, "saturate", output="invariant")

    class Branch(nn.Module):
        def forward(self, x):
            return x.relu() if x.max().item() > 0 else x

    decompose(nn.Sequential(nn.Conv2d(3, 4, 3), Branch(), nn.Flatten()), x, "rotate", output="invariant")


# --- what torch's forward mode takes for a constant, or for something else ---


class Straight(torch.autograd.Function):
    """Rounds, and declares the derivative of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return (4 * x).round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, *tangents):
        return tangents[0]


def without_gradients(x):
    with torch.no_grad():
        mean = x.mean((1, 2, 3), keepdim=True)
    return (x * mean).flatten(1)


HIDDEN = {
    "detach": (lambda x: (x * x.mean((1, 2, 3), keepdim=True).detach()).flatten(1), 2),
    "data": (lambda x: (x * x.mean((1, 2, 3), keepdim=True).data).flatten(1), 2),
    "no_grad": (without_gradients, 2),
    "checkpoint": (
        lambda x: torch.utils.checkpoint.checkpoint(torch.square, x, use_reentrant=False).flatten(1),  # type: ignore[union-attr]
        2,
    ),
    "compiled": (torch.compile(lambda x: (x**3).flatten(1), backend="eager"), 3),
    "complex": (lambda x: torch.fft.fft2(x).abs().square().flatten(1), 2),
    "sorted": (lambda x: x.flatten(1).sort(1).values * x.flatten(1).topk(1).values, 2),
    "scattered": (lambda x: x.new_zeros(2, 192).scatter(1, x.flatten(1).argsort(1), x.flatten(1) ** 2), 2),
    "put": (lambda x: x.new_zeros(2, 192).index_put((torch.arange(2),), x.flatten(1) ** 2), 2),
    "sampled": (lambda x: torch.normal(x, 2 * x, generator=torch.Generator().manual_seed(0)).flatten(1), 1),
}


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
@pytest.mark.parametrize("name", HIDDEN)
def test_the_derivative_is_that_of_what_is_computed(name, ladder):
    model, degree = HIDDEN[name]
    x = images(2, 3, 8, 8)
    found = saturated(model, x, ladder=ladder)
    torch.testing.assert_close(found.derivatives[0], degree * model(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
def test_a_straight_through_estimator_is_piecewise_constant(ladder):
    found = saturated(lambda x: Straight.apply(x).flatten(1), images(2, 3, 8, 8), ladder=ladder)
    assert (found.derivatives == 0).all()


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
def test_special_functions_that_torch_takes_for_constants(ladder):
    from scipy import special

    x = images(2, 3, 4, 4)
    known = {
        torch.special.spherical_bessel_j0: lambda z: special.spherical_jn(0, z, derivative=True),
        torch.special.airy_ai: lambda z: special.airy(z)[1],
        lambda x: torch.special.hermite_polynomial_h(x, 3): lambda z: 24 * z**2 - 12,  # of 8 z^3 - 12 z
        lambda x: torch.special.chebyshev_polynomial_t(x, 2): lambda z: 4 * z,  # of 2 z^2 - 1
    }
    for f, slope in known.items():
        found = saturated(lambda x, f=f: f(x).flatten(1), x, ladder=ladder)
        expected = torch.as_tensor(slope(x.numpy())) * x
        torch.testing.assert_close(found.derivatives[0], expected.flatten(1), rtol=1e-7, atol=1e-9)


def test_weights_of_classes_and_reductions_without_their_start():
    x = images(2, 3, 4, 4)
    labels = torch.tensor([1, 2])

    def loss(x):
        return nn.functional.nll_loss(-x[:, :, 0, 0], labels, weight=x[0, :, 1, 1], reduction="none")

    torch.testing.assert_close(saturated(loss, x).derivatives[0], 2 * loss(x), rtol=1e-8, atol=1e-9)

    def product(x, include_self: bool):
        index = torch.zeros_like(x.flatten(1), dtype=torch.int64)[:, :3]
        return x.flatten(1)[:, :2].scatter_reduce(1, index, x.flatten(1)[:, 2:5], "prod", include_self=include_self)

    degrees = torch.tensor([4.0, 1.0], dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
    for include_self, degree in zip((True, False), degrees, strict=True):
        found = saturated(lambda x, s=include_self: product(x, s), x)
        torch.testing.assert_close(found.derivatives[0], degree * product(x, include_self), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("upper", [False, True])
def test_matrices_of_which_one_triangle_is_read(upper):
    """The derivative ignores the other triangle, as the value does."""
    uplo = "U" if upper else "L"
    A = images(2, 4, 4) + 4 * torch.eye(4, dtype=torch.float64)  # noqa: N806
    action = VectorFields({"push": lambda z: torch.sin(7 * z)})  # not symmetric
    models = {
        "cholesky": lambda A: torch.linalg.cholesky(A, upper=upper),
        "eigvalsh": lambda A: torch.linalg.eigvalsh(A, UPLO=uplo),
        "eigh": lambda A: torch.linalg.eigh(A, UPLO=uplo)[1].square(),
        "inverse": lambda A: torch.cholesky_inverse(torch.linalg.cholesky(A) + 0.1 * A, upper=upper),
    }
    step = 1e-5
    for name, f in models.items():
        found = lie_derivatives(lambda A, f=f: f(A).flatten(1), A, ["push"], action=action, output="invariant")
        v = torch.sin(7 * A)
        reference = (f(A + step * v) - f(A - step * v)).flatten(1) / (2 * step)
        assert found.rung.name == "fused rules", name
        torch.testing.assert_close(found.derivatives[0], reference, rtol=1e-6, atol=1e-7)  # of second order, step^2


# --- any input is right or refused ---

OPERATIONS = {
    "square": (lambda x: x.square(), 2.0),
    "conv": (lambda x: nn.functional.conv2d(x, WEIGHT.to(x)), 1.0),
    "pool": (lambda x: nn.functional.max_pool2d(x, 2), 1.0),
    "norm": (lambda x: nn.functional.normalize(x, dim=1), 0.0),
    "attention": (lambda x: nn.functional.scaled_dot_product_attention(x, 0 * x, x), 1.0),
    "deformable": (deformable, 1.0),
    "resize": (lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), 1.0),
    "number": (lambda x: x / x.max().item(), 0.0),
    "detach": (lambda x: x * x.detach(), 2.0),
}
"""Homogeneous maps and their degrees."""

DTYPES = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.2}
"""Tolerances: of differences, and a few dozen roundings of the precision."""


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_homogeneous_maps_of_any_input(data):
    """Euler: under ``saturate`` the derivative of a map of degree d is d f(x); or the input is refused in one line."""
    name = data.draw(st.sampled_from(sorted(OPERATIONS)))
    dtypes = list(DTYPES)[:2] if name == "deformable" else list(DTYPES)  # torchvision has no other kernels
    dtype = data.draw(st.sampled_from(dtypes))
    f, degree = OPERATIONS[name]
    batch = data.draw(st.sampled_from([0, 1, 2] if name != "deformable" else [2]))
    x = images(batch, 3, 8, 8, dtype=torch.float32, seed=data.draw(st.integers(0, 9))).to(dtype)
    kind = data.draw(st.sampled_from(["plain", "channels last", "strided", "nan"]))
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif kind == "strided":
        x = torch.cat([x, x], -1)[..., ::2]
    elif kind == "nan" and batch:
        x[0, 0, 0, 0] = float("nan")
    x.requires_grad_(data.draw(st.booleans()))
    before = x.detach().clone()
    if batch == 0 or kind == "nan":
        with pytest.raises(UserError, match=r"at least one|finite"):
            saturated(lambda x: f(x).flatten(1), x)
        return
    try:
        found = saturated(lambda x: f(x).flatten(1), x)
    except UserError as error:
        refusal = str(error)
        assert dtype in (torch.float16, torch.bfloat16), refusal  # too imprecise for differences
        assert "\n" not in refusal
        return
    value = f(x.detach().double()).flatten(1)
    assert not found.derivatives.requires_grad
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    apart = (found.derivatives[0].double() - degree * value).abs().max()
    assert apart <= DTYPES[dtype] * value.abs().max(), (name, dtype, kind, found.method)


# --- comparison on demand ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_verification_of_a_network_finds_nothing_and_changes_nothing(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
    ).to(dtype)
    x = images(2, 3, 8, 8, dtype=dtype)
    state = torch.get_rng_state()
    plain = lie_derivatives(net, x, ["rotate", "saturate"])
    found = lie_derivatives(net, x, ["rotate", "saturate"], verify=True)
    assert torch.equal(found.derivatives, plain.derivatives)
    assert found.difference is not None and found.difference < 1e-8  # double precision, also of the float32 network
    assert torch.equal(torch.get_rng_state(), state)
    errors = lee(net, x, ["rotate"], verify=True)
    assert errors.difference is not None and errors.difference < 1e-8
    assert errors.method == "fused rules"


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE[-1:]])
def test_what_jumps_or_is_random_is_refused_as_differences(ladder):
    """A model that turns numbers around is piecewise in steps finer than any quotient's."""
    x = images(2, 3, 8, 8)

    def model(x):
        return (x * (1 + 0.1 * (3.3e7 * x.mean().item() % 1))).flatten(1)

    with pytest.raises(UserError, match="depend on the step") as error:
        saturated(model, x, ladder=ladder)
    assert "\n" not in str(error.value)


def test_quotients_estimate_their_error():
    x, v = images(5), images(5, seed=1)
    smooth = difference_quotient(torch.exp, [x], [v])
    torch.testing.assert_close(smooth.derivative, x.exp() * v, rtol=1e-11, atol=0)  # rounding 1e-16 over the step 2e-4
    assert smooth.error < 1e-7
    single = difference_quotient(lambda x: x.float().exp().double(), [x], [v])
    assert 1e-9 < single.error < 1e-3
    assert (single.derivative - x.exp() * v).abs().max() < 1e-2 * single.scale
    jump = difference_quotient(lambda x: (x > x.new_tensor(0.5)).to(x.dtype) + x, [x.new_tensor([0.5])], [v[:1]])
    assert jump.error > 0.1
    assert difference_quotient(lambda x: 0 * x + 3, [x], [v]).error == 0
    assert difference_quotient(lambda x: x[:0], [x], [v]).derivative.shape == (0,)
    kink = difference_quotient(torch.abs, [torch.zeros(1, dtype=torch.float64)], [v[:1]])
    torch.testing.assert_close(kink.bend, v[:1])  # both one-sided derivatives, v and -v, are that far from the mean
