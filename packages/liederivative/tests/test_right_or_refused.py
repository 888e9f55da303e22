"""Each public function is right for its input, whatever the dtype and layout, or refuses it in one line.

The right value is the same function's in double precision, whose own values are tested elsewhere; beside it stand laws:
linearity in values and generators, difference quotients of finite transformations, zero for equivariant maps, Euler's
theorem under ``saturate``, and that samples of a batch do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lie.groups import SE3
from lie.run import UserError
from liederivative import actions, decompose, lee, lie_derivative, lie_derivatives, metrics
from liederivative.derivative.lie_derivative import check_images
from liederivative.layerwise import probe_terms
from liederivative.training import LEETracker
from torch import Tensor, nn


@pytest.fixture(autouse=True, scope="module")
def without_checks_of_types():
    """The suite's checks of annotations would refuse first, in words that no user sees."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


VALUES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def basis(count: int) -> Tensor:
    return torch.eye(count, dtype=torch.float32)


def scores(x: Tensor) -> Tensor:
    return torch.stack([x.square().mean((1, 2, 3)), x[:, 0].sin().mean((1, 2)), x.abs().amax((1, 2, 3))], 1)


def of_network(x: Tensor) -> nn.Module:
    """A small network in the precision of ``x``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).double()
    return net.to(x.dtype) if x.is_floating_point() else net


FIELDS: dict[str, Callable[[Tensor], Tensor]] = {
    "central_difference": lambda x: actions.central_difference(x, -1)[None],
    "forward_difference": lambda x: actions.forward_difference(x, -2)[None],
    "backward_difference": lambda x: actions.backward_difference(x, -1)[None],
    "spectral_derivative": lambda x: actions.spectral_derivative(x, -1)[None],
    "image_tangents": lambda x: actions.image_tangents(x, basis(7)),
    "grid_tangents": lambda x: actions.grid_tangents(x, basis(7), actions.Domain((16, 16), "spectral")),
    "Images": lambda x: actions.Images(gradient="spectral").tangents(x, basis(7)),
    "Volumes": lambda x: actions.Volumes().tangents(x[:, :, None].expand(-1, -1, 2, -1, -1), basis(13)),
    "Videos": lambda x: actions.Videos().tangents(x[:, :, None].expand(-1, -1, 2, -1, -1), basis(13)),
    "Sequences": lambda x: actions.Sequences().tangents(x[:, :, 3], basis(3)),
    "Points": lambda x: actions.Points(SE3()).tangents(x[:, :, 3, 2:5], basis(6)[:3]),  # rotations; shifts are affine
    "Vectors": lambda x: actions.Vectors(SE3()).tangents(x[:, :, 3, 2:5], basis(6)),
    "Colours": lambda x: actions.Colours((0.0, 0.0, 0.0), (0.2, 0.3, 0.4)).tangents(x, basis(4)),
    "VectorFields": lambda x: actions.VectorFields({"f": lambda z: z.flip(-1)}).tangents(x, basis(1)),
    "NCHW": lambda x: actions.NCHW().tangents(x, basis(7), (16, 16)),
    "NHWC": lambda x: actions.NHWC().tangents(x.movedim(1, -1), basis(7), (16, 16)),
    "Tokens": lambda x: actions.Tokens(grid=(8, 7), prefix=8).tangents(x.flatten(2).mT, basis(7), (16, 16)),
    "VectorGrid": lambda x: actions.VectorGrid().tangents(x[:, :2], basis(7), (8, 8)),
    "translate_integer": lambda x: metrics.translate_integer(x, 2, -1)[0][None],
    "translate_fractional": lambda x: metrics.translate_fractional(x, 0.4, -1.3)[0][None],
    "rotate": lambda x: metrics.rotate(x, 0.3)[0][None],
    "band_limit": lambda x: metrics.band_limit(x, 0.3)[0][None],
    "transform_image": lambda x: metrics.transform_image(x, "rotate", 0.2)[None],
    "transform_image of each": lambda x: metrics.transform_image(x, "scale", torch.linspace(-0.2, 0.3, len(x)))[None],
    "IdealMap": lambda x: metrics.IdealMap((4, 4))(x)[None],
}
"""Linear maps of values, (B, C, H, W) -> (K, B, ...)."""

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "lie_derivative": lambda x: lie_derivative(scores, x, "rotate")[None],
    "lie_derivatives": lambda x: lie_derivatives(of_network(x), x, ["scale", "shear_x"]).derivatives,
    "lee": lambda x: lee(scores, x).absolute,
    "decompose": lambda x: (
        torch.stack([decompose(of_network(x), x[i : i + 1], "rotate").total for i in range(len(x))])
        if len(x)
        else decompose(of_network(x), x, "rotate").total
    ),
    "resampling_floor": lambda x: metrics.resampling_floor(x, (4, 4), ["rotate"]).absolute,
    "eq_t": lambda x: metrics.eq_t(scores, x, samples=2, generator=seeded(), value_range=1.0).squared_error[None],
    "eq_t fractional": lambda x: metrics.eq_t(
        torch.tanh, x, fractional=True, samples=2, generator=seeded(), value_range=1.0, output="NCHW", margin=0.0
    ).squared_error[None],
    "eq_r": lambda x: metrics.eq_r(scores, x, samples=2, generator=seeded(), value_range=1.0).squared_error[None],
    "shift_consistency": lambda x: metrics.shift_consistency(scores, x, max_shift=1).classes_x,
    "sample_invariance": lambda x: metrics.sample_invariance(scores, x, "rotate", samples=1, random=seeded()).absolute,
    "LEETracker": lambda x: LEETracker(scores, x, ["scale"]).measure(0).absolute,
}
"""Measures of a model on a batch, (K, B, ...)."""

OF_PLACES = {"sample_invariance", "transform_image of each"}
"""Those whose parameters belong to the place in the batch."""

PRECISIONS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.2}
"""Tolerances relative to the largest entry: some tens of roundings, of a difference of neighbouring pixels at that."""

OTHERS = [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x.expand(3, -1, -1, -1) if layout == "expanded" else x


def refusal(f: Callable[[Tensor], object], x: Tensor) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        f(x)
    message = str(caught.value)
    assert "\n" not in message
    assert any(word in message for word in ("expected", "finite", "known:"))
    return message


LAYOUTS = st.sampled_from(["plain", "channels last", "strided", "expanded"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(FIELDS | MEASURES)), dtype=st.sampled_from(list(PRECISIONS)), layout=LAYOUTS,
    requires_grad=st.booleans(),
)  # fmt: skip
def test_values_of_each_precision_and_layout(name, dtype, layout, requires_grad):
    f = (FIELDS | MEASURES)[name]
    x = laid_out(VALUES[:1] if layout == "expanded" else VALUES, layout).to(dtype)
    if layout == "expanded":
        x = x[:1].expand(3, -1, -1, -1)
    before = x.clone()
    expected = f(before.double())
    x = x.detach().requires_grad_(requires_grad and layout != "expanded")
    value = f(x)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    if name in MEASURES:
        assert not value.requires_grad
    elif value.requires_grad:  # linear: the gradient along ones is the sum of the transpose
        value.double().sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
    if value.is_floating_point():
        apart = (value.detach().double() - expected.detach()).abs().max()
        assert apart <= PRECISIONS[dtype] * expected.abs().max(), (name, dtype, layout, float(apart))
    elif dtype in (torch.float32, torch.float64):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("name", sorted(FIELDS | MEASURES))
def test_no_other_dtype_shape_or_value(name):
    f = (FIELDS | MEASURES)[name]
    for dtype in OTHERS:
        x = (10 * VALUES).abs().to(dtype)
        message = refusal(f, x)
        assert str(dtype) in message or "floating" in message, message
    if name in MEASURES:
        refusal(f, VALUES[:0])
        for value in (float("nan"), float("inf")):
            x = VALUES.clone()
            x[0, 0, 3, 3] = value
            refusal(f, x)
        refusal(f, VALUES[0, 0])
        refusal(f, VALUES[..., :1, :1])
    else:
        if name in ("Images", "Volumes", "Videos", "Sequences"):  # the input itself
            refusal(f, VALUES[:0])
        else:
            assert f(VALUES[:0]).shape[1] == 0


@settings(max_examples=12, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(set(FIELDS) - {"transform_image of each"})), seed=st.integers(0, 9))
def test_fields_are_linear(name, seed):
    f = FIELDS[name]
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(f(2 * x - 3 * VALUES), 2 * f(x) - 3 * f(VALUES), rtol=1e-10, atol=1e-10)  # rounding


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted((FIELDS.keys() | MEASURES.keys()) - {"sample_invariance", "transform_image of each"}))
)
def test_samples_do_not_see_each_other(name):
    f = (FIELDS | MEASURES)[name]
    order = torch.tensor([2, 0, 1])
    whole = f(VALUES)
    if name == "decompose":
        whole = whole[:, 0][None]
        torch.testing.assert_close(f(VALUES[order])[:, 0][None], whole[:, order], rtol=1e-10, atol=1e-12)
        return
    torch.testing.assert_close(f(VALUES[order]), whole[:, order], rtol=1e-10, atol=1e-12)  # sums in another order
    torch.testing.assert_close(f(VALUES[1:2]), whole[:, 1:2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["translate_x", "rotate", "scale", "shear_y", "saturate"])
def test_tangents_are_velocities_of_finite_transformations(name, dtype):
    x = VALUES.to(dtype)
    (element,) = actions.resolve_generators(name)
    coefficients, mixing = actions.spanning_tangents([element], x)
    tangent = torch.tensordot(mixing.double(), actions.image_tangents(x, coefficients).double(), dims=1)[0]
    step, exact = 1e-5, x.double()
    quotient = metrics.transform_image(exact, name, step) - metrics.transform_image(exact, name, -step)
    # The cubic convolution has second derivatives that jump: first order in the step, at a scale of 4 pixels a unit.
    allowed = max(1e-3, PRECISIONS[dtype]) * float(tangent.abs().max())
    assert (quotient / (2 * step) - tangent).abs().max() <= allowed


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_laws_of_the_derivative(dtype):
    x, tolerance = VALUES.to(dtype), PRECISIONS[dtype]

    def norm(x: Tensor) -> Tensor:
        return x.flatten(1).square().mean(1, keepdim=True).sqrt()

    degree_one = lie_derivative(norm, x, "saturate")
    torch.testing.assert_close(degree_one, norm(x), rtol=tolerance, atol=0)
    for output, f in (("NCHW", torch.tanh), ("NCHW", lambda x: x.relu() * x)):
        pointwise = lie_derivatives(f, x, ["translate_x", "translate_y"], output=output).derivatives
        # A pointwise map commutes with flows, up to what central differences of it miss.
        fine = torch.linspace(0, 3, 64, dtype=torch.float64).sin().expand(1, 1, 64, 64).to(dtype)
        smooth = lie_derivatives(f, fine, ["translate_x"], output=output).derivatives
        inside = smooth[..., 2:-2].double().abs().max()
        assert inside <= max(0.05, 32 * tolerance), (dtype, float(inside))
        assert pointwise.isfinite().all()
    rotate, shear_x, shear_y = lie_derivatives(scores, x, ["rotate", "shear_x", "shear_y"]).derivatives.double()
    apart = (rotate - (shear_x - shear_y)).abs().max()
    assert apart <= tolerance * max(float(shear_x.abs().max()), float(shear_y.abs().max()))


def test_probes_and_parts_of_the_other_public_names():
    net = of_network(VALUES)
    estimate = probe_terms(net, VALUES[:1], ["rotate"], probes=4, generator=seeded())
    assert estimate is not None
    for dtype in (torch.int64, torch.complex64):
        refusal(lambda x: probe_terms(net, x, ["rotate"], probes=2), VALUES[:1].to(dtype))
    with pytest.raises(UserError, match="dtype"):
        check_images(net, VALUES.float())
    for bad in ("rotat", "", None, 3, ["rotate", "rotate"]):
        refusal(lambda x, bad=bad: lie_derivatives(scores, x, bad), VALUES)  # type: ignore[arg-type]
    for grid in ((0, 4), (9, 9)):
        refusal(lambda x, grid=grid: metrics.resampling_floor(x, grid), VALUES)
    refusal(lambda x: metrics.transform_image(x, "rotate", 0.1), VALUES[..., :1, :1])
    refusal(lambda x: actions.central_difference(x, 4), VALUES)
    refusal(lambda x: actions.Colours().tangents(x, basis(4)), VALUES[:, :2])
    refusal(lambda x: actions.NCHW().tangents(x, basis(7), (1, 8)), VALUES)
