"""Finite metrics: transformations against closed forms and plain loops, laws, published conventions, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lie.run import UserError
from liederivative import GENERATORS, Tokens, lee, lie_derivative
from liederivative.actions import image_tangents
from liederivative.metrics import (
    band_limit,
    eq_r,
    eq_t,
    rotate,
    sample_invariance,
    shift_consistency,
    transform_image,
    translate_fractional,
    translate_integer,
)
from liederivative.metrics.resampling import low_pass_kernel
from torch import nn


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def blob(size: int, x: float, y: float, width: float, stretch: float = 1.0) -> torch.Tensor:
    """A Gaussian at (x, y) pixels from the centre: all but band-limited for widths above two pixels."""
    grid = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-((grid - x) ** 2 + stretch * (grid[:, None] - y) ** 2) / (2 * width**2))


# --- moving by pixels ---


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, -3), (-4, 1), (5, 0), (9, 0), (0, -12)])
def test_whole_shifts_are_scipys(dx, dy):
    from scipy.ndimage import shift

    x = noise(2, 7, 9)
    moved, mask = translate_integer(x, dx, dy)
    expected = shift(x.numpy(), (0, dy, dx), order=0, mode="constant", cval=0)
    assert np.array_equal(moved.numpy(), expected)
    assert np.array_equal(mask.numpy(), shift(np.ones((7, 9)), (dy, dx), order=0, mode="constant", cval=0) == 1)
    fractional, inside = translate_fractional(x, float(dx), float(dy))
    assert torch.equal(fractional, moved)
    assert torch.equal(inside, mask)


def test_a_shift_between_pixels_is_the_lanczos_interpolant():
    x, dx, dy = noise(8, 9), 1.3, -2.6
    moved, mask = translate_fractional(x, dx, dy)

    def weight(s):
        return np.sinc(s) * np.sinc(s / 3) if abs(s) < 3 else 0.0

    for row in range(8):
        for column in range(9):
            taps = [(r, c) for r in range(-3, 14) for c in range(-5, 11)]
            weights = np.array([weight(row - dy - r) * weight(column - dx - c) for r, c in taps])
            known = [0 <= r < 8 and 0 <= c < 9 for r, c in taps]
            values = np.array([float(x[r, c]) if inside else 0.0 for (r, c), inside in zip(taps, known, strict=True)])
            # 1e-12: sums of 36 products of order one in float64.
            assert float(moved[row, column]) == pytest.approx((weights * values).sum() / weights.sum(), abs=1e-12)
            reached = [inside for inside, w in zip(known, weights, strict=True) if w != 0]
            assert bool(mask[row, column]) == all(reached)


def test_there_and_back_is_the_identity_for_a_smooth_image():
    x = blob(48, 1.0, -2.0, 4.0)
    back = translate_fractional(translate_fractional(x, 3.4, -1.7)[0], -3.4, 1.7)[0]
    # A Gaussian of width 4 px holds less than 1e-30 beyond Nyquist; what is left is Lanczos-3's ripple of 0.5 %
    # at low frequencies, twice.
    assert (back - x).abs().max() < 2e-3


# --- turning ---


def test_a_quarter_turn_moves_pixels_exactly():
    x = noise(3, 16, 16)
    for quarters in (-1, 0, 1, 2):
        moved, mask = rotate(x, quarters * math.pi / 2)
        # A quarter turn samples at (y, -x): what stood right of the centre, y = 0, then stands below... as rot90(-1).
        expected = torch.rot90(x, -quarters, dims=(1, 2))
        torch.testing.assert_close(moved, expected, atol=1e-12, rtol=0)  # cos(pi/2) is 6e-17
        assert mask.all()


def test_a_turned_blob_is_where_it_should_be():
    size, angle, width = 65, 0.7, 3.0
    moved, mask = rotate(blob(size, 8.0, -3.0, width), angle)
    # I(phi p) has its maximum where phi p = c: p = phi^-1 c.
    x = 8 * math.cos(angle) + 3 * math.sin(angle)
    y = 8 * math.sin(angle) - 3 * math.cos(angle)
    # Lanczos-3 and the windowed low-pass both ripple by less than 1 % on so smooth an image.
    assert (moved - blob(size, x, y, width)).abs().max() < 1e-2
    assert mask[size // 2, size // 2]
    assert not mask[0, 0]


def test_direction_of_a_turn_is_that_of_the_generator():
    x = blob(33, 4.0, 2.0, 3.0, stretch=0.5)[None, None]
    step = 1e-3
    turned = (rotate(x, step)[0] - rotate(x, -step)[0]) / (2 * step)
    tangent = image_tangents(x, torch.tensor([GENERATORS["rotate"].coefficients], dtype=x.dtype))[0]
    inner = (..., slice(8, -8), slice(8, -8))
    cosine = torch.cosine_similarity(turned[inner].flatten(), tangent[inner].flatten(), dim=0)
    assert cosine > 0.99  # +1 or -1 by the sign; Lanczos-3's slope and the central difference differ by percents


@pytest.mark.parametrize("angle", [0.3, math.pi / 4, 2.0])
def test_the_low_pass_keeps_what_survives_a_turn(angle):
    kernel = low_pass_kernel(angle)
    assert kernel.shape == (13, 13)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))
    p = torch.arange(-6, 7, dtype=torch.float64)

    def response(fx, fy):
        wave = torch.exp(2j * math.pi * (fx * p[None, :] + fy * p[:, None]))
        return float((kernel * wave).sum().real)

    # A window of 13 pixels has a transition of about 1/13 on each side of the edge; away from it the pass band is
    # within 3 % and the stop band below 3 %.
    assert response(0.2, 0.1) == pytest.approx(1, abs=0.03)
    if abs(angle - math.pi / 4) < 0.1:
        assert abs(response(0.49, 0.49)) < 0.03  # 0.69 from the centre, the turned square ends at 0.5


def test_plain_loops_agree_with_a_rotation():
    x, angle = noise(24, 24), 0.4
    kernel = low_pass_kernel(-angle).numpy()
    padded = np.pad(x.numpy(), 6)
    limited = np.array([[(kernel * padded[r : r + 13, c : c + 13]).sum() for c in range(24)] for r in range(24)])
    moved, _ = rotate(x, angle)
    for row, column in ((12, 12), (3, 17), (20, 9)):
        cx, cy = column - 11.5, row - 11.5
        from_x = cx * math.cos(angle) + cy * math.sin(angle) + 11.5
        from_y = -cx * math.sin(angle) + cy * math.cos(angle) + 11.5
        wx = [np.sinc(from_x - c) * np.sinc((from_x - c) / 3) if abs(from_x - c) < 3 else 0 for c in range(-9, 33)]
        wy = [np.sinc(from_y - r) * np.sinc((from_y - r) / 3) if abs(from_y - r) < 3 else 0 for r in range(-9, 33)]
        value = np.array(wy) @ np.pad(limited, 9) @ np.array(wx) / (sum(wx) * sum(wy))
        assert float(moved[row, column]) == pytest.approx(value, abs=1e-12)  # sums of order one in float64


# --- EQ-T and EQ-R ---


def test_equivariant_maps_have_infinitely_many_decibels():
    x = noise(3, 2, 32, 32)
    assert eq_t(torch.tanh, x, output="NCHW").psnr == math.inf
    assert eq_t(lambda x: nn.functional.avg_pool2d(x, 4), x, output="NCHW").psnr == math.inf
    blank = eq_t(lambda x: torch.ones(len(x), 3, dtype=x.dtype), x, value_range=1.0)
    assert blank.psnr == math.inf
    convolution = nn.Conv2d(2, 3, 5, padding=2, bias=False).double()
    # Half a kernel of margin: 2 of 32 pixels, beside the shifted border, which the mask leaves out and whose zeros
    # are the padding's zeros.
    assert eq_t(convolution, x, output="NCHW", margin=2 / 32).psnr > 280  # of float64 rounding, 1e-16


def test_eq_t_against_its_formula():
    x, ramp = noise(2, 1, 16, 16), torch.linspace(0, 1, 16, dtype=torch.float64)
    quality = eq_t(lambda x: x * ramp, x, output="NCHW", samples=5, max_shift=0.2)
    draws = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    total = count = 0
    for uniform in draws:
        dy, dx = (round(float(u) * 0.2 * 16) for u in uniform)
        for image in x[:, 0].numpy():
            for row in range(16):
                for column in range(16):
                    if 0 <= row - dy < 16 and 0 <= column - dx < 16:
                        source = image[row - dy, column - dx]
                        total += (source * float(ramp[column]) - source * float(ramp[column - dx])) ** 2
                        count += 1
    span = float((x * ramp).max() - (x * ramp).min())
    assert quality.value_range == pytest.approx(span)
    assert quality.mse == pytest.approx(total / count, rel=1e-12)
    assert quality.psnr == pytest.approx(10 * math.log10(span**2 / (total / count)), rel=1e-12)
    assert len(quality.per_image) == 2
    assert quality.mse == pytest.approx(sum(span**2 / 10 ** (p / 10) for p in quality.per_image) / 2)


def test_batches_and_value_range_do_not_change_the_error():
    x = noise(5, 1, 16, 16)

    def model(x):
        return x.square() * torch.linspace(0, 1, 16, dtype=x.dtype)

    one = eq_t(model, x, output="NCHW", fractional=True)
    other = eq_t(model, x, output="NCHW", fractional=True, batch_size=2, value_range=2.0)
    assert other.mse == pytest.approx(one.mse, rel=1e-12)
    assert other.psnr == pytest.approx(20 * math.log10(2) - 10 * math.log10(one.mse))


def test_fractional_shifts_see_the_aliasing_that_whole_ones_do_not():
    x = nn.functional.interpolate(noise(4, 1, 8, 8), size=32, mode="bicubic")
    whole, fraction = (eq_t(torch.relu, x, output="NCHW", fractional=f) for f in (False, True))
    assert whole.psnr == math.inf
    assert 20 < fraction.psnr < 80
    smooth = eq_t(lambda x: 2 * x, x, output="NCHW", fractional=True)
    assert smooth.psnr > 250  # linear: interpolation commutes with it to rounding


def test_tokens_and_prefix():
    x = noise(2, 3, 32, 32)

    def patches(x):  # a ViT's patch means, with a class token that does not move
        mean = nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2)
        return torch.cat([torch.ones_like(mean[:, :1]), mean], dim=1)

    layout = Tokens(grid=(4, 4), prefix=1)
    assert eq_t(patches, x, output=layout, max_shift=0.3).psnr == math.inf
    maps = eq_t(lambda x: nn.functional.avg_pool2d(x, 8).square(), x, output="NCHW")
    assert maps.psnr == math.inf


def test_eq_r_tells_isotropic_from_anisotropic():
    x = nn.functional.interpolate(noise(3, 1, 16, 16), size=64, mode="bicubic")
    isotropic = blob(9, 0, 0, 1.5)[None, None]
    along_x = isotropic * (torch.arange(9) - 4)
    both = {}
    for name, kernel in (("isotropic", isotropic), ("along x", along_x)):
        both[name] = eq_r(lambda x, k=kernel: nn.functional.conv2d(x, k, padding=4), x, output="NCHW").psnr
    # Interpolation alone leaves more than 40 dB; an axis that does not turn with the image leaves next to nothing.
    assert both["isotropic"] > 40
    assert both["along x"] < 20
    identity = eq_r(lambda x: x, noise(2, 1, 64, 64), output="NCHW")  # white noise: every frequency there is
    assert identity.psnr > 25


def test_the_pseudo_rotation_matters():
    """Without it the branch f(g x) would hold frequencies that the turned output has lost."""
    x, angle = noise(2, 1, 64, 64), math.pi / 4
    wanted, mask = rotate(band_limit(x, -angle)[0].square(), angle)
    raw = rotate(x, angle)[0].square()
    limited, also = band_limit(raw, angle)
    with_it, without = (float(((got - wanted).square() * (mask & also)).sum()) for got in (limited, raw))
    assert with_it < 0.9 * without


def test_invariant_outputs_are_compared_with_the_output_at_rest():
    x = noise(4, 1, 24, 24)
    weights = noise(24, 24, 3)

    def model(x):
        return torch.einsum("bchw,hwk->bk", x, weights)

    quality = eq_t(model, x, samples=3, probabilities=True, value_range=1.0)
    draws = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    reference, errors = model(x).softmax(1), []
    for dy, dx in (draws * 0.125 * 24).tolist():
        moved = torch.zeros_like(x)
        dy, dx = round(dy), round(dx)
        moved[..., max(dy, 0) : 24 + min(dy, 0), max(dx, 0) : 24 + min(dx, 0)] = x[
            ..., max(-dy, 0) : 24 - max(dy, 0), max(-dx, 0) : 24 - max(dx, 0)
        ]
        errors.append((model(moved).softmax(1) - reference).square())
    assert quality.mse == pytest.approx(float(torch.stack(errors).mean()), rel=1e-12)


def test_errors_of_eq():
    x = noise(2, 1, 32, 32)
    with pytest.raises(UserError, match=r"all equal.*value_range"):
        eq_t(lambda x: torch.ones(len(x), 3), x)
    with pytest.raises(UserError, match="whole pixels of the 32 x 32 image, got 30 x 30"):
        eq_t(lambda x: x[..., 1:-1, 1:-1], x, output="NCHW")
    with pytest.raises(UserError, match="less than half a pixel of the 2 x 2 map"):
        eq_t(lambda x: nn.functional.avg_pool2d(x, 16), x, output="NCHW")
    with pytest.raises(UserError, match="no pixel of the output is inside the mask"):
        eq_r(lambda x: nn.functional.avg_pool2d(x, 4), x, output="NCHW", max_angle=1.0)
    with pytest.raises(UserError, match="square images to rotate, got 32 x 16"):
        eq_r(lambda x: x, x[..., :16], output="NCHW")
    with pytest.raises(UserError, match="declare it"):
        eq_t(lambda x: x, x)
    with pytest.raises(UserError, match="batch of zero"):
        eq_t(lambda x: x, x[:0], output="NCHW")
    with pytest.raises(UserError, match="floating-point images"):
        eq_t(lambda x: x, torch.ones(1, 1, 8, 8, dtype=torch.int64), output="NCHW")
    with pytest.raises(UserError, match="expected finite outputs"):
        eq_t(lambda x: x / 0, x, output="NCHW")
    with pytest.raises(UserError, match="max_shift between 0 and 1"):
        eq_t(lambda x: x, x, max_shift=2.0)
    with pytest.raises(UserError, match="max_angle"):
        eq_r(lambda x: x, x, max_angle=9.0)
    with pytest.raises(UserError, match="one floating-point tensor"):
        eq_t(lambda x: (x, x), x)
    with pytest.raises(UserError, match=r"margin in \[0, 0.5\)"):
        eq_t(lambda x: x, x, margin=0.5)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, x: eq_t(model, x, value_range=1.0),
        lambda model, x: eq_r(model, x, value_range=1.0),
        lambda model, x: shift_consistency(model, x, max_shift=2),
        lambda model, x: sample_invariance(model, x, "rotate"),
    ],
)
def test_bad_input_of_every_metric(measure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    x = noise(2, 1, 8, 8, dtype=torch.float32)
    measure(model, x)
    for bad, message in [
        (x.to(torch.int32), "floating-point images, got torch.int32"),
        (x[:0], "batch of zero"),
        (x[0], "expected images"),
        (x.double(), "model's dtype"),
        (torch.full_like(x, math.nan), "expected finite images"),
    ]:
        with pytest.raises(UserError, match=message):
            measure(model, bad)
    with torch.no_grad():
        model[0].bias[0] = math.inf
    with pytest.raises(UserError, match="come from the layer '0'"):
        measure(model, x)
    assert not model[0]._forward_hooks


# --- consistency ---


def test_consistency_by_hand_on_both_axes():
    class Sees(nn.Module):
        """Class 1 where the pixel at (0, 0) is bright."""

        def forward(self, x):
            bright = x[:, 0, 0, 0]
            return torch.stack([0.5 - bright, bright - 0.5], dim=1)

    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 0, -2:] = 1.0  # rolling right by 1 and 2 brings these to the corner; by 3 not
    image[0, 0, -1, 0] = 1.0  # rolling down by 1 brings this one
    model = Sees().train()
    found = shift_consistency(model, image, max_shift=3)
    assert found.classes_x[:, 0].tolist() == [0, 1, 1, 0]
    assert found.classes_y[:, 0].tolist() == [0, 1, 0, 0]
    assert found.x == pytest.approx(1 / 3)
    assert found.y == pytest.approx(2 / 3)
    assert found.pairs_x == pytest.approx(2 / 6)
    assert found.pairs_y == pytest.approx(3 / 6)
    assert model.training  # as it was


def test_consistency_with_windows_needs_no_seam():
    images = noise(3, 2, 20, 24, dtype=torch.float32)
    seen = []

    def model(x):
        seen.append(x.clone())
        return x.mean(dim=(2, 3))

    shift_consistency(model, images, max_shift=4, boundary="crop")
    assert {tuple(x.shape) for x in seen} == {(3, 2, 16, 20)}
    assert torch.equal(seen[2], images[..., :16, 2:22])  # along x first: 0, 1, 2
    assert torch.equal(seen[-1], images[..., 4:20, :20])


def test_a_circular_network_is_consistent_and_batches_do_not_matter():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    x = noise(6, 1, 16, 16)
    found = shift_consistency(model, x)
    assert found.x == found.y == found.pairs_x == 1.0
    strided = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4), nn.Flatten(), nn.Linear(128, 10)).double()
    one, other = shift_consistency(strided, x), shift_consistency(strided, x, batch_size=4)
    assert torch.equal(one.classes_x, other.classes_x)
    assert one.x < 1


def test_errors_of_consistency():
    x = noise(2, 1, 8, 8)
    with pytest.raises(UserError, match="did you mean 'circular'"):
        shift_consistency(lambda x: x.flatten(1), x, boundary="circle")
    with pytest.raises(UserError, match="max_shift from 1 to 7"):
        shift_consistency(lambda x: x.flatten(1), x, max_shift=8)
    with pytest.raises(UserError, match="expected class scores"):
        shift_consistency(lambda x: x, x, max_shift=2)


# --- finite transformations ---


@pytest.mark.parametrize("name", GENERATORS)
def test_the_derivative_of_the_flow_is_the_tangent(name):
    x = noise(2, 3, 9, 12)
    step = 1e-5
    slope = (transform_image(x, name, step) - transform_image(x, name, -step)) / (2 * step)
    tangent = image_tangents(x, torch.tensor([GENERATORS[name].coefficients], dtype=x.dtype))[0]
    # Cubic convolution has a kink in its second derivative at pixels: the quotient is off by order step.
    torch.testing.assert_close(slope, tangent, atol=5e-3 * float(tangent.abs().max()), rtol=0)


def test_flows_compose_and_translate_exactly():
    x = noise(1, 2, 9, 9)
    assert torch.equal(transform_image(x, "shear_x", 0.0), x)
    moved = transform_image(x, "translate_x", 0.5)  # half of a half width: 2 of 4 pixels
    torch.testing.assert_close(moved[..., :7], x[..., 2:], atol=1e-12, rtol=0)  # exact but for rounding of the grid
    torch.testing.assert_close(moved[..., 7:], x[..., [7, 6]], atol=1e-12, rtol=0)  # reflected without the edge
    torch.testing.assert_close(transform_image(x, "saturate", 1.0), math.e * x)
    turned = transform_image(x, "rotate", math.pi / 2)
    torch.testing.assert_close(turned, torch.rot90(x, -1, dims=(2, 3)), atol=1e-12, rtol=0)
    per_image = transform_image(torch.cat([x, x]), "rotate", torch.tensor([0.0, math.pi / 2], dtype=x.dtype))
    torch.testing.assert_close(per_image, torch.cat([x, turned]), atol=1e-12, rtol=0)
    stretched = transform_image(blob(65, 0.0, 0.0, 8.0)[None, None], "scale", 0.2)  # scale samples at e^-t p
    assert (stretched[0, 0] - blob(65, 0.0, 0.0, 8.0 * math.exp(0.2))).abs().max() < 1e-3  # cubic, width of 8 px


def test_sample_invariance_tends_to_the_lie_derivative():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    x = noise(3, 1, 15, 15)
    for name in ("translate_y", "rotate", "scale", "saturate"):
        found = sample_invariance(model, x, name, max_parameter=1e-5, samples=3, probabilities=True)
        errors = lee(model, x, [name], probabilities=True)
        # A step of 1e-5 leaves a relative error of that order times the image's roughness (white noise).
        assert found.absolute_per_unit == pytest.approx(errors.mean_absolute[name], rel=1e-3)
        assert found.squared_per_unit == pytest.approx(errors.mean_squared[name], rel=1e-3)


def test_sample_invariance_of_feature_maps_tends_to_it_too():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh()).double()
    x = noise(2, 1, 12, 12)
    found = sample_invariance(model, x, "rotate", max_parameter=1e-5, samples=2, output="NCHW")
    L = lie_derivative(model, x, "rotate", output="NCHW")
    assert found.absolute_per_unit == pytest.approx(float(L.abs().mean()), rel=1e-3)  # as above


def test_sample_invariance_against_its_formula():
    x = noise(5, 1, 10, 10)

    def model(x):
        return x[:, 0, :2, :2].flatten(1)

    found = sample_invariance(
        model, x, "translate_x", max_parameter=0.4, samples=3, batch_size=2, random=torch.Generator().manual_seed(4)
    )
    assert found.parameters.shape == found.absolute.shape == (3, 5)
    assert float(found.parameters.abs().max()) <= 0.4
    assert len(set(found.parameters.flatten().tolist())) == 15
    for n in range(3):
        for i in range(5):
            change = model(transform_image(x[i : i + 1], "translate_x", float(found.parameters[n, i])) - x[i : i + 1])
            assert float(found.absolute[n, i]) == pytest.approx(float(change.abs().mean()), rel=1e-12)
            assert float(found.squared[n, i]) == pytest.approx(float(change.square().mean()), rel=1e-12)
    assert found.standard_error == pytest.approx(float(found.absolute.mean(0).std()) / 5**0.5)
    with pytest.raises(UserError, match="max_parameter above 0"):
        sample_invariance(model, x, "rotate", max_parameter=0.0)
    with pytest.raises(UserError, match="did you mean 'rotate'"):
        sample_invariance(model, x, "rotat")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_inputs_dtype(dtype):
    x = noise(2, 1, 32, 32, dtype=dtype)
    for moved, mask in (
        rotate(x, 0.3),
        band_limit(x, 0.3),
        translate_fractional(x, 0.3, 1),
        translate_integer(x, 1, 2),
    ):
        assert moved.dtype == dtype
        assert moved.shape == x.shape
        assert mask.shape == (32, 32)
        assert mask.dtype == torch.bool
    assert transform_image(x, "rotate", 0.1).dtype == dtype


@pytest.mark.parametrize(
    "module", ["consistency", "equivariance_quality", "finite", "local_error", "resampling", "sample_invariance"]
)
def test_the_examples_in_docstrings(module):
    import doctest
    import importlib

    found = doctest.testmod(importlib.import_module(f"liederivative.metrics.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
