"""Parts of a derivative that automatic differentiation misses without an error: found by difference quotients.

The right values are closed forms: of linear and homogeneous maps (Euler: under ``saturate``, dx/dt = x, a map of degree
d has the derivative d f), and of special functions by scipy.
"""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext

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


# --- against plain central differences, along a direction that no symmetry or homogeneity favours ---

PUSH = VectorFields({"push": lambda z: torch.sin(7 * z)})
ROWS, MATRICES, TALL = (
    images(2, 4, 6) - 0.6,
    images(2, 4, 4, seed=3) + 4 * torch.eye(4).double(),
    images(2, 5, 3, seed=4),
)
RIGHT = images(2, 5, 2, seed=5)
CHANNEL = images(4, seed=6)


def agrees(model, x, ladder=LADDER, **options):
    """The derivatives of ``model`` at ``x``, compared with differences."""
    found = lie_derivatives(
        lambda x: model(x).flatten(1), x, ["push"], action=PUSH, output="invariant", ladder=ladder, **options
    )
    step, v = 1e-5, torch.sin(7 * x)
    with torch.no_grad():
        reference = (model(x + step * v) - model(x - step * v)).flatten(1) / (2 * step)
    assert reference.abs().max() > 1e-3  # the comparison is of something
    # Of second order: step^2 = 1e-10 times a third derivative; rounding 1e-16 / step.
    torch.testing.assert_close(found.derivatives[0], reference, rtol=1e-6, atol=1e-7)
    return found


def per_batch(statistics):
    """Statistics of the whole batch as an output with one entry a sample."""
    return statistics[None].expand(2, -1)


BY_PRODUCTS = {
    "layer norm": lambda x, i: torch.native_layer_norm(x, [6], x[0, 0].detach(), None, 1e-5)[i],
    "layer norm of all": lambda x, i: torch.native_layer_norm(x, [4, 6], None, None, 1e-5)[i],
    "group norm": lambda x, i: torch.native_group_norm(x, CHANNEL, None, 2, 4, 6, 2, 1e-5)[i],
    "batch norm": lambda x, i: per_batch(torch.native_batch_norm(x, CHANNEL, None, None, None, True, 0.1, 1e-5)[i]),
    "batch norm without state": lambda x, i: per_batch(
        torch.ops.aten._native_batch_norm_legit.no_stats(x, CHANNEL, None, True, 0.1, 1e-5)[i]
    ),
    "root mean square": lambda x, i: torch.ops.aten._fused_rms_norm(x, [6], None, 1e-5)[1] * i,
}
"""Means (1) and reciprocal deviations (2), which torch takes for constants."""


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_statistics_of_normalisations_as_outputs(name, index, ladder):
    found = agrees(lambda x: BY_PRODUCTS[name](x, index), ROWS, ladder)
    if ladder is RULES:
        assert found.rung.name == "fused rules"
    found = agrees(lambda x: BY_PRODUCTS[name](3 * x, index).exp() * x.sum(), ROWS, ladder)  # used further on


@pytest.mark.parametrize("causal", [False, True])
def test_log_sums_of_attention_as_outputs(causal):
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found = agrees(lambda x: attention(x[:, None], x[:, None].sin(), x[:, None], 0.0, causal)[1], ROWS)
    assert found.rung.name == "fused rules"


def test_factors_and_other_by_products():
    for f in (
        lambda A: torch.ops.aten._linalg_det(A)[1],
        lambda A: torch.ops.aten._linalg_slogdet(A)[2],
        lambda A: torch.ops.aten._linalg_solve_ex(A, A.sin())[1],
        lambda A: torch.ops.aten.log_sigmoid_forward(A)[1],
    ):
        agrees(f, MATRICES)


def test_a_by_product_of_what_was_overwritten_since():
    def model(x):
        y = x.sin()
        _, mean, rstd = torch.native_layer_norm(y, [6], None, None, 1e-5)
        y.mul_(2)
        return mean * rstd + y.sum(-1, keepdim=True)

    agrees(model, ROWS)


def test_by_products_cost_nothing_unused_and_are_followed_by_a_decomposition():
    class Head(nn.Module):
        def forward(self, x):
            return torch.native_layer_norm(x.flatten(1), [256], None, None, 1e-5)[2].exp()

    net, x = nn.Sequential(nn.Conv2d(3, 4, 3).double(), nn.ReLU(), Head()), images(1, 3, 10, 10)
    found = decompose(net, x, "translate_x", output="invariant")
    expected = lie_derivative(
        lambda x: 1 / (net[:2](x).flatten(1).var(1, False, keepdim=True) + 1e-5).sqrt(), x, "translate_x"
    )
    torch.testing.assert_close(
        found.total, net(x) * expected, rtol=1e-7, atol=0
    )  # differences, to 1e-10 of the largest
    torch.testing.assert_close(sum(found.terms.values()) + found.remainder, found.total, rtol=1e-7, atol=1e-12)
    plain = lie_derivatives(lambda x: nn.functional.layer_norm(x, [6]).flatten(1), ROWS, ["push"], action=PUSH)
    assert plain.method == "fused rules"


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
def test_running_statistics_written_in_training(ladder):
    """torch's operator writes them unannounced: they depend on the input, and a second run would write again."""

    def model(normalise):
        def f(x):
            mean, variance = torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
            return normalise(x, mean, variance).square().mean(2) * mean + variance

        return f

    F = nn.functional  # noqa: N806
    agrees(model(lambda x, m, v: F.batch_norm(x, m, v, training=True, momentum=0.5)), ROWS, ladder)
    agrees(model(lambda x, m, v: F.instance_norm(x, m, v, use_input_stats=True, momentum=0.5)), ROWS, ladder)

    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4).double()

        def forward(self, x):
            y = self.norm.train()(x)  # as the author of a model may have it
            return (y + self.norm.get_buffer("running_mean")[:, None]).flatten(1)

    net = Training()
    found = lie_derivatives(net, ROWS, ["push"], action=PUSH, output="invariant", ladder=ladder)
    step, v = 1e-5, torch.sin(7 * ROWS)
    with torch.no_grad():
        values = []
        for x in (ROWS, ROWS + step * v, ROWS - step * v):
            net.norm.reset_running_stats()
            values.append(net(x))
    torch.testing.assert_close(found.value, values[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.derivatives[0], (values[1] - values[2]) / (2 * step), rtol=1e-6, atol=1e-7)


LEAST_SQUARES = {
    "matrix": lambda A, driver: torch.linalg.lstsq(A, RIGHT, driver=driver)[0],
    "right side": lambda A, driver: torch.linalg.lstsq(A.detach() * 0 + TALL, A[..., :2], driver=driver)[0],
    "both": lambda A, driver: torch.linalg.lstsq(A, A[..., :2].exp(), driver=driver)[0],
    "wide": lambda A, driver: torch.linalg.lstsq(A.mT, A[:, :3, :2], driver=driver)[0],
}


@pytest.mark.parametrize("driver", ["gelsy", "gels", "gelsd", "gelss"])
@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_least_squares(name, driver):
    agrees(lambda A: LEAST_SQUARES[name](A, driver), TALL)
    if driver != "gels":  # which takes no other
        deficient = torch.cat([TALL[..., :2], TALL[..., :1]], -1)  # moves so that its rank stays
        agrees(lambda A: LEAST_SQUARES[name](A, driver), deficient)
    if driver == "gels":
        agrees(lambda A: torch.linalg.lstsq(A, RIGHT, driver=driver)[1], TALL)  # residuals
    if driver in ("gelsd", "gelss"):
        agrees(lambda A: torch.linalg.lstsq(A, RIGHT, driver=driver)[3], TALL)  # singular values


@pytest.mark.parametrize("upper", [False, True])
def test_solutions_by_one_triangle(upper):
    A = MATRICES + images(2, 4, 4, seed=7)  # noqa: N806 (both triangles are full)
    agrees(lambda A: torch.cholesky_solve(A[..., :2].sin(), A, upper=upper), A)
    for transpose in (False, True):
        for unit in (False, True):

            def solve(A, transpose=transpose, unit=unit):  # noqa: N803
                return torch.triangular_solve(
                    A[..., :2].sin(), A, upper=upper, transpose=transpose, unitriangular=unit
                )[0]

            agrees(solve, A)
            agrees(
                lambda A, u=unit, t=transpose: torch.linalg.solve_triangular(
                    A, A[:, :2].sin() if t else A[..., :2].sin(), upper=upper, left=not t, unitriangular=u
                ),
                A,
            )


def test_matrices_beyond_one_real_triangle():
    A = MATRICES + images(2, 4, 4, seed=8)  # noqa: N806
    agrees(lambda A: torch.linalg.pinv(A, hermitian=True), A)  # reads one triangle too
    agrees(lambda A: torch.linalg.eigvalsh(torch.complex(A, A.mT)), A)  # Hermitian by its lower triangle
    agrees(lambda A: torch.linalg.eigvalsh(torch.complex(A, A.mT), UPLO="U"), A)
    agrees(lambda A: torch.view_as_real(torch.linalg.cholesky(torch.complex(A, A.sin()) + 9 * torch.eye(4))), A)
    agrees(lambda A: torch.linalg.svd(A)[0].abs(), TALL)  # two columns beyond its rank: the basis that LAPACK takes


def test_axes_and_tensors_that_are_empty():
    for ladder in (RULES, FORWARD_MODE):
        agrees(lambda x: x.flip(()), ROWS, ladder)
        agrees(lambda x: x.flip(()).exp().flip((0, -1)), ROWS, ladder)
        agrees(lambda x: torch.cat([x.new_zeros(0), x, x.sin(), x.new_zeros(0)], 1), ROWS, ladder)
        agrees(lambda x: torch.cat([x[:, :0], x, x.new_zeros(2, 0, 6)], 1), ROWS, ladder)
        agrees(lambda x: torch.cat([torch.empty(0, dtype=x.dtype), x.exp()]), ROWS, ladder)


# --- operators that write into their arguments, nested tensors, compiled and other programs ---


@pytest.fixture(scope="module")
def writers():
    with torch.library._scoped_library("abcdw", "FRAGMENT") as lib:
        lib.define("square_(Tensor(a!) x) -> Tensor(a!)")
        lib.impl("square_", lambda x: x.copy_(x * x), "CPU")
        lib.define("square_into(Tensor x, Tensor(a!) out) -> ()")

        def into(x, out):
            out.copy_(x * x)

        def both(x, out):
            out.copy_(x * x)
            return x + 1

        lib.impl("square_into", into, "CPU")
        lib.define("square_and(Tensor x, Tensor(a!) out) -> Tensor")
        lib.impl("square_and", both, "CPU")
        yield torch.ops.abcdw


@pytest.mark.parametrize("ladder", [RULES, FORWARD_MODE])
def test_operators_of_a_library_that_write(writers, ladder):
    def in_place(x):
        y = x.clone()
        writers.square_(y[:, 1:])
        return y

    def into(x):
        out = torch.zeros_like(x)
        writers.square_into(x, out)
        return out

    def into_constant(x):
        out = torch.zeros(2, 4, 6, dtype=x.dtype)
        return writers.square_and(x, out) * out

    def out_of_torch(x):
        out = torch.empty(0, dtype=x.dtype)
        torch.sin(x, out=out)
        return out

    def data(x):
        y = x.clone()
        y.data = y.data * y.data
        return y

    for model in (in_place, into, into_constant, out_of_torch, data):
        agrees(model, ROWS, ladder)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    linear = nn.Linear(6, 6).double()

    def model(x):
        nested = torch.nested.as_nested_tensor([x[0, :2], x[1]], layout=layout)
        return torch.nested.to_padded_tensor(linear(nested).sin(), 0.0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: a prototype
        agrees(model, ROWS)
        agrees(lambda x: torch.nested.to_padded_tensor(torch.nested.nested_tensor([x[0, :2], x[1]]), 0.0) ** 2, ROWS)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_on_the_cpu(inside):
    layer = nn.Conv2d(3, 4, 3)
    x = images(2, 3, 8, 8, dtype=torch.float32)

    def model(x):
        with torch.autocast("cpu", dtype=torch.bfloat16) if inside else nullcontext():
            return layer(x).exp().flatten(1)

    with nullcontext() if inside else torch.autocast("cpu", dtype=torch.bfloat16):
        found = saturated(model, x)
        torch.testing.assert_close(found.value, model(x))
    exact = nn.Conv2d(3, 4, 3).double()
    exact.load_state_dict(layer.state_dict())
    z = exact(x.double())
    expected = ((z - exact.bias[:, None, None]) * z.exp()).flatten(1)  # type: ignore[index]
    # A few roundings to eight bits, 2^-9 each, of the convolution, its derivative and their product.
    assert (found.derivatives[0] - expected).abs().max() < 8 * 2**-9 * expected.abs().max()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_modules(reentrant):
    from torch.utils.checkpoint import checkpoint, checkpoint_sequential

    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double()
    for ladder in (RULES, FORWARD_MODE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own: no input requires a gradient
            agrees(lambda x: checkpoint(net, x, use_reentrant=reentrant), ROWS, ladder)
            agrees(lambda x: checkpoint_sequential(net, 2, x, use_reentrant=reentrant), ROWS, ladder)
            agrees(lambda x: checkpoint(lambda z: z / z.max().item(), x, use_reentrant=reentrant), ROWS, ladder)


class Numbers(nn.Module):
    """Loops, branches and a number of Python's."""

    def forward(self, x):
        scaled = x
        while bool(scaled.abs().max() > 0.1):
            scaled = scaled / 2
        return scaled * scaled / float(x.max())


@pytest.mark.filterwarnings("ignore")  # torch's own, of its scripts: deprecated
@pytest.mark.parametrize("way", ["script", "freeze", "optimise", "trace", "export", "compile", "inside"])
def test_programs_of_torch(way):
    layer = nn.Conv1d(4, 3, 3, padding=1)
    net = nn.Sequential(layer, nn.BatchNorm1d(3), nn.GELU()).double().eval()
    made = {
        "script": lambda: torch.jit.script(net),
        "freeze": lambda: torch.jit.freeze(torch.jit.script(net)),
        "optimise": lambda: torch.jit.optimize_for_inference(torch.jit.script(net)),
        "trace": lambda: torch.jit.trace(net, ROWS),
        "export": lambda: torch.export.export(net, (ROWS,)).module(),
        "compile": lambda: torch.compile(net, backend="aot_eager"),
        "inside": lambda: nn.Sequential(torch.compile(net, backend="aot_eager"), nn.Tanh()),  # type: ignore[arg-type]
    }[way]()
    agrees(made, ROWS)
    module = lie_derivatives(made, ROWS, ["push"], action=PUSH, output="invariant")  # the module itself, with its flags
    torch.testing.assert_close(module.value, made(ROWS), rtol=1e-12, atol=1e-12)
    if way == "script":
        agrees(torch.jit.script(Numbers()), ROWS)


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_operators_of_higher_order():
    from torch._higher_order_ops.map import map as map_
    from torch.nn.attention.flex_attention import flex_attention

    def branch(x):
        return torch.cond(x.sum() > 1e3, lambda z: z.cos() * z, lambda z: z.sin() * z, (x,))

    agrees(branch, ROWS)
    agrees(lambda x: map_(lambda z, *_: z.sin() * z, x), ROWS)
    x = images(1, 1, 4, 16)
    agrees(lambda x: flex_attention(x, x.sin(), x**2, score_mod=lambda s, b, h, i, j: s * x[0, 0, 0, 0] + i - j), x)


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
