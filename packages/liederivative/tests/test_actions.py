"""The generators' tangents: contract, hand-computed values, an explicit warp, linear relations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from liederivative import GENERATORS, NCHW, NHWC, Generator, Tokens
from liederivative.actions import image_tangents, pixel_coordinates, resolve_generators, spanning_tangents
from liederivative.actions.layouts import resolve_layout
from scipy.ndimage import map_coordinates

# The contract, written a second time: (u, v) of each spatial generator.
VELOCITIES = {
    "translate_x": lambda X, Y: (1 + 0 * X, 0 * Y),
    "translate_y": lambda X, Y: (0 * X, 1 + 0 * Y),
    "rotate": lambda X, Y: (Y, -X),
    "shear_x": lambda X, Y: (Y, 0 * Y),
    "shear_y": lambda X, Y: (0 * X, X),
    "stretch_x": lambda X, Y: (X, 0 * Y),
    "stretch_y": lambda X, Y: (0 * X, Y),
    "hyperbolic": lambda X, Y: (Y, X),
    "scale": lambda X, Y: (-X, -Y),
}
# The finite transformations exp(t X): where the image is sampled.
FLOWS = {
    "translate_x": lambda X, Y, t: (X + t, Y),
    "translate_y": lambda X, Y, t: (X, Y + t),
    "rotate": lambda X, Y, t: (X * math.cos(t) + Y * math.sin(t), -X * math.sin(t) + Y * math.cos(t)),
    "shear_x": lambda X, Y, t: (X + t * Y, Y),
    "shear_y": lambda X, Y, t: (X, Y + t * X),
    "stretch_x": lambda X, Y, t: (math.exp(t) * X, Y),
    "stretch_y": lambda X, Y, t: (X, math.exp(t) * Y),
    "hyperbolic": lambda X, Y, t: (X * math.cosh(t) + Y * math.sinh(t), X * math.sinh(t) + Y * math.cosh(t)),
    "scale": lambda X, Y, t: (math.exp(-t) * X, math.exp(-t) * Y),
}
DTYPES = [torch.float32, torch.float64]


def tangent(image: torch.Tensor, name: str) -> torch.Tensor:
    coefficients = torch.tensor([GENERATORS[name].coefficients], dtype=image.dtype)
    return image_tangents(image, coefficients)[0]


def test_the_ten_generators_of_the_contract_and_no_other():
    assert set(GENERATORS) == {*VELOCITIES, "saturate"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VELOCITIES)
def test_quadratic_images_are_differentiated_exactly_inside(name, dtype):
    H, W = 6, 9
    r, c = torch.meshgrid(torch.arange(H, dtype=dtype), torch.arange(W, dtype=dtype), indexing="ij")
    image = 2 + 3 * c - r + 0.5 * c * c - 0.25 * r * r + c * r
    X, Y = 2 * c / (W - 1) - 1, 2 * r / (H - 1) - 1
    u, v = VELOCITIES[name](X, Y)
    expected = u * (W - 1) / 2 * (3 + c + r) + v * (H - 1) / 2 * (-1 - 0.5 * r + c)
    inside = (slice(1, -1), slice(1, -1))
    # Values up to 60; the central difference of a quadratic is exact, so only rounding is left.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(tangent(image, name)[inside], expected[inside], rtol=0, atol=tolerance)


def test_values_computed_by_hand():
    image = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 8.0], [7.0, 6.0, 9.0]])
    # (W - 1) / 2 = 1, so units are pixels; dI/dc = (1.5, 2.5, 1) in the middle column, dI/dr = (3, 2, 2.5) in
    # the middle row, 0 on the borders they meet head on.
    dx = torch.tensor([[0.0, 1.5, 0.0], [0.0, 2.5, 0.0], [0.0, 1.0, 0.0]])
    dy = torch.tensor([[0.0, 0.0, 0.0], [3.0, 2.0, 2.5], [0.0, 0.0, 0.0]])
    assert torch.equal(tangent(image, "translate_x"), dx)
    assert torch.equal(tangent(image, "translate_y"), dy)
    # (Y, -X) with Y downwards: the top row takes -dx, the left column +dy.
    assert torch.equal(tangent(image, "rotate"), torch.tensor([[0, -1.5, 0], [3.0, 0, -2.5], [0, 1.0, 0]]))
    assert torch.equal(tangent(image, "scale"), torch.zeros(3, 3))
    assert torch.equal(tangent(image, "saturate"), image)
    wide = torch.tensor([[0.0, 1.0, 4.0, 9.0, 16.0]]).expand(5, 5)  # one unit is two columns; X = -1, -1/2, 0, ...
    assert torch.equal(tangent(wide, "stretch_x")[0], torch.tensor([0.0, -2.0, 0.0, 6.0, 0.0]))
    assert torch.equal(tangent(wide, "scale")[0], torch.tensor([0.0, 2.0, 0.0, -6.0, 0.0]))


@pytest.mark.parametrize("name", FLOWS)
def test_tangents_converge_to_the_derivative_of_an_explicit_warp(name):
    errors = []
    for size, width in ((33, 41), (65, 81)):
        r, c = np.meshgrid(np.arange(size), np.arange(width), indexing="ij")
        X, Y = 2 * c / (width - 1) - 1, 2 * r / (size - 1) - 1
        image = np.sin(4 * X + 1) * np.cos(3 * Y - 0.4) + X * Y * Y

        def warped(t, image=image, X=X, Y=Y, size=size, width=width):
            x, y = FLOWS[name](X, Y, t)
            where = np.stack([(y + 1) * (size - 1) / 2, (x + 1) * (width - 1) / 2])
            return map_coordinates(image, where, order=5, mode="mirror")

        step = 1e-4
        reference = (warped(step) - warped(-step)) / (2 * step)
        inside = (slice(size // 4, -(size // 4)),) * 2  # away from where the spline and the warp leave the image
        found = tangent(torch.from_numpy(image), name).numpy()
        errors.append(np.abs(found - reference)[inside].max() / np.abs(reference[inside]).max())
    # Second order: k^2 h^2 / 6 = 4^2 (2/32)^2 / 6 = 1 % for the shorter wave at 33 pixels, a quarter of it at 65.
    assert errors[0] < 1.2e-2
    assert 3.3 < errors[0] / errors[1] < 4.7


def test_saturate_is_the_derivative_of_a_gain():
    image = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-6
    reference = ((1 + step) * image - (1 - step) * image) / (2 * step)
    torch.testing.assert_close(tangent(image, "saturate"), reference, rtol=1e-9, atol=1e-9)  # rounding over the step


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_relations(dtype):
    image = torch.randn(2, 3, 8, 11, dtype=dtype, generator=torch.Generator().manual_seed(1))
    t = {name: tangent(image, name) for name in GENERATORS}
    tolerance = {"rtol": 0, "atol": 30 * torch.finfo(dtype).eps * 5}  # a few roundings of values up to 30
    torch.testing.assert_close(t["rotate"], t["shear_x"] - t["shear_y"], **tolerance)
    torch.testing.assert_close(t["hyperbolic"], t["shear_x"] + t["shear_y"], **tolerance)
    torch.testing.assert_close(t["scale"], -(t["stretch_x"] + t["stretch_y"]), **tolerance)


def test_seven_tangents_span_the_ten_generators_and_few_generators_need_no_more():
    like = torch.zeros((), dtype=torch.float64)
    tangents, mixing = spanning_tangents(list(GENERATORS.values()), like)
    assert tangents.shape == (7, 7)
    coefficients = torch.tensor([g.coefficients for g in GENERATORS.values()], dtype=torch.float64)
    assert torch.equal(mixing @ tangents, coefficients)
    assert len(spanning_tangents(resolve_generators(["rotate"]), like)[0]) == 1
    assert len(spanning_tangents(resolve_generators(["rotate", "hyperbolic", "shear_x"]), like)[0]) == 2


def test_batches_are_moved_image_by_image():
    images = torch.randn(4, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for name in GENERATORS:
        one_by_one = torch.stack([tangent(image, name) for image in images])
        assert torch.equal(tangent(images, name), one_by_one)


def test_coordinates_run_from_first_to_last_pixel_centre_and_do_not_depend_on_the_default_dtype():
    like = torch.zeros((), dtype=torch.float32)
    X = pixel_coordinates(224, 224, like)
    assert X.dtype == torch.float32
    assert X[0] == -1
    assert X[-1] == 1
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(X, pixel_coordinates(224, 224, like))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", VELOCITIES)
@pytest.mark.parametrize("stride", [2, 4, 16])
def test_the_action_commutes_with_strided_averaging_of_a_ramp(stride, name):
    H, W = 6 * stride, 8 * stride
    r, c = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    ramp = (3 * c - 2 * r)[None, None]
    pool = torch.nn.AvgPool2d(stride)
    moved_first = pool(tangent(ramp, name))
    coefficients = torch.tensor([GENERATORS[name].coefficients], dtype=torch.float64)
    moved_last = NCHW().tangents(pool(ramp), coefficients, (H, W))[0]
    inside = (..., slice(1, -1), slice(1, -1))  # border derivatives are 0 by reflection, on different pixels
    scale = moved_first.abs().max()
    assert scale > 1
    # Exact but for rounding in float64; corner-aligned coordinates are off by (1 - 1/s) / (w - 1/s) or so.
    assert (moved_first - moved_last)[inside].abs().max() < 1e-13 * scale
    if name not in ("stretch_x", "stretch_y", "scale"):  # offsets from the centre are the same in both
        aligned = image_tangents(pool(ramp), coefficients)[0]  # as if the map were the input
        assert (moved_first - aligned)[inside].abs().max() > 1e-2 * scale


def test_layouts_agree_where_they_hold_the_same_values():
    value = torch.randn(2, 5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))  # (B, C, h, w)
    coefficients = torch.eye(7, dtype=torch.float64)
    reference = NCHW().tangents(value, coefficients, (32, 48))
    last = NHWC().tangents(value.movedim(1, -1), coefficients, (32, 48))
    assert torch.equal(last.movedim(-1, 2), reference)
    prefix = torch.randn(2, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    tokens = torch.cat([prefix, value.flatten(2).transpose(1, 2)], dim=1)  # (B, 2 + 24, C)
    moved = Tokens(grid=(4, 6), prefix=2).tangents(tokens, coefficients, (32, 48))
    assert (moved[:, :, :2] == 0).all()
    assert torch.equal(moved[:, :, 2:].transpose(-1, -2).unflatten(-1, (4, 6)), reference)


@pytest.mark.parametrize(
    ("output", "shape", "message"),
    [
        (None, (2, 3, 4, 4), "cannot be known; declare it: output="),
        (None, (2, 17, 4), "cannot be known"),
        ("NCWH", (2, 3, 4, 4), "did you mean 'NCHW'"),
    ],
)
def test_a_layout_is_never_guessed(output, shape, message):
    with pytest.raises(ValueError, match=message):
        resolve_layout(output, torch.zeros(shape))


def test_a_layout_that_does_not_fit_the_output_is_an_error():
    coefficients = torch.eye(7)
    for layout in (NCHW(), NHWC()):
        with pytest.raises(ValueError, match=r"got \(2, 17, 4\)"):
            layout.tangents(torch.zeros(2, 17, 4), coefficients, (8, 8))
    with pytest.raises(ValueError, match=r"\(B, 17, C\).*got \(2, 18, 4\)"):
        Tokens(grid=(4, 4), prefix=1).tangents(torch.zeros(2, 18, 4), coefficients, (8, 8))


def test_generators_are_resolved_or_refused():
    own = Generator("diagonal", u=(1.0, 0.0, 0.0), v=(1.0, 0.0, 0.0))
    assert resolve_generators(["rotate", own]) == (GENERATORS["rotate"], own)
    with pytest.raises(ValueError, match="did you mean 'rotate'"):
        resolve_generators(["rotation"])
    with pytest.raises(ValueError, match="rotate more than once"):
        resolve_generators(["rotate", "rotate"])
    with pytest.raises(ValueError, match="at least one generator"):
        resolve_generators([])
