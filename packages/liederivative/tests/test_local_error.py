"""What the local equivariance error reports: normalised variants, intervals, classes, precision, the floor."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from lie.groups import SE3
from liederivative import Images, Joint, Points, PrecisionWarning, Vectors, lee, lie_derivative, resampling_floor
from liederivative.actions import GENERATORS, NCHW, image_tangents
from liederivative.metrics import ideal_resampling
from scipy import stats
from torch import nn


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
        )
    return layers.to(dtype)


def test_normalised_variants_are_their_formulas():
    model, x, names = net(), images(5, 3, 16, 16), ("rotate", "scale", "saturate")
    errors = lee(model, x, names, batch_size=2)
    value = model(x).detach()
    assert errors.variance == pytest.approx(float(value.var(dim=0).mean()))
    for g, name in enumerate(names):
        L = lie_derivative(model, x, name)
        torch.testing.assert_close(errors.relative[g], L.square().sum(1) / value.square().sum(1))
        assert errors.per_variance[name] == pytest.approx(float(L.square().mean() / value.var(dim=0).mean()))
        torch.testing.assert_close(errors.output_absolute[g], L.abs().mean(0))
        torch.testing.assert_close(errors.output_squared[g], L.square().mean(0))
        assert errors.mean_relative[name] == pytest.approx(float(errors.relative[g].mean()))
    assert math.isnan(lee(model, x[:1], names).variance)


def test_relative_errors_do_not_see_the_scale_of_the_output_and_random_ones_not_that_of_the_input():
    model, x = net(), images(4, 3, 16, 16)
    generator = torch.Generator().manual_seed(3)
    errors = lee(model, x, ["rotate"], random_directions=3, generator=generator)
    large = lee(lambda x: 10 * model(x), x, ["rotate"], random_directions=3, generator=generator.manual_seed(3))
    assert large.mean_squared["rotate"] == pytest.approx(100 * errors.mean_squared["rotate"])
    for name in ("relative", "per_random"):
        torch.testing.assert_close(getattr(large, name), getattr(errors, name))
    assert large.per_variance["rotate"] == pytest.approx(errors.per_variance["rotate"])
    # A model that sees white noise only, through a random projection, moves as much as under any other change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        project = nn.Sequential(nn.Flatten(), nn.Linear(768, 400, bias=False)).double()
    level = lee(project, x, ["rotate", "translate_x"], random_directions=8, generator=generator).per_random
    # Both sums of 400 squares: relative deviation sqrt(2 / 400) = 7 %, and the numerator's projection is one draw.
    assert (level - 1).abs().max() < 0.4
    with pytest.raises(ValueError, match="random_directions=4"):
        lee(model, x, ["rotate"]).mean_per_random  # noqa: B018


def test_the_change_under_random_directions_by_hand():
    model, x = net(), images(2, 3, 16, 16)
    found = lee(model, x, ["hyperbolic"], random_directions=2, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(2, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    noise = noise / noise.flatten(2).norm(dim=2)[..., None, None, None]
    v = image_tangents(x, torch.tensor([GENERATORS["hyperbolic"].coefficients], dtype=x.dtype))[0]
    changes = torch.stack([torch.func.jvp(model, (x,), (n,))[1] for n in noise])
    expected = lie_derivative(model, x, "hyperbolic").square().sum(1) / (
        v.flatten(1).square().sum(1) * changes.square().sum(2).mean(0)
    )
    torch.testing.assert_close(found.per_random[0], expected)


def test_intervals_are_students():
    errors = lee(net(), images(6, 3, 16, 16), ["rotate"])
    for measure in ("absolute", "squared", "relative"):
        values = getattr(errors, measure)[0].numpy()
        expected = stats.t.interval(0.9, 5, loc=values.mean(), scale=stats.sem(values))
        assert errors.interval(measure, 0.9)["rotate"] == pytest.approx(expected)
    assert all(math.isnan(end) for end in lee(net(), images(1, 3, 16, 16), ["rotate"]).interval()["rotate"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        errors.interval(level=95)


def test_means_of_each_label():
    errors = lee(net(), images(5, 3, 16, 16), ["rotate", "scale"])
    found = errors.by_label([1, 0, 1, 1, 0])
    assert set(found) == {0, 1}
    assert found[0]["scale"] == pytest.approx(float(errors.squared[1, [1, 4]].mean()))
    with pytest.raises(ValueError, match="expected 5 labels"):
        errors.by_label([0, 1])


def test_finite_precision_is_measured_and_said():
    x = images(2, 3, 16, 16).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = lee(net(torch.float32), x, check_precision=True)
    assert good.float64_difference < 1e-4  # the goal for well-conditioned nets
    exact = lee(net(), x.double(), check_precision=True)
    assert math.isnan(exact.float64_difference)

    class Invariant(nn.Module):  # a mean over a wrapped image: zero in exact arithmetic, rounding in float32
        def forward(self, x):
            return (nn.functional.pad(x[..., 2:-2, 2:-2], (2,) * 4) + 1e3).mean(dim=(2, 3)) ** 3

    with pytest.warns(PrecisionWarning, match=r"finite precision spoils the errors of Invariant: .*measure in float64"):
        spoilt = lee(
            Invariant(), nn.functional.pad(x[..., 4:-4, 4:-4], (4,) * 4), ["translate_x"], check_precision=True
        )
    assert spoilt.float64_difference > 1e-2


def test_a_generator_that_vanishes_beside_others_gives_no_alarm():
    """A network that divides by the norm does not see a gain: `saturate` is zero up to rounding, `rotate` is not."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(256, 3, generator=torch.Generator().manual_seed(1)))

        def forward(self, x):
            flat = x.flatten(1)
            return (flat / flat.norm(dim=1, keepdim=True)) @ self.weight

    x = images(2, 1, 16, 16).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors = lee(Normalised(), x, ["rotate", "saturate"], check_precision=True)
    assert errors.mean_squared["saturate"] < 1e-8 * errors.mean_squared["rotate"]
    assert errors.float64_difference < 1e-3
    with pytest.warns(PrecisionWarning, match="Normalised: in float64 the first image's under saturate differs by"):
        lee(Normalised(), x, ["saturate"], check_precision=True)


def test_lee_of_other_inputs():
    x = (images(4, 5, 3), images(4, 5, seed=1))
    action = Joint((Points(SE3()), None))
    errors = lee(
        lambda p, q: ((p - p.mean(1, keepdim=True)) * q[..., None]).sum(1),
        x, action=action, output=Vectors(SE3()), batch_size=3, random_directions=2,
    )  # fmt: skip
    assert errors.generators == ("rotate_x", "rotate_y", "rotate_z", "translate_x", "translate_y", "translate_z")
    assert errors.absolute.shape == (6, 4)
    assert errors.absolute.max() < 1e-14


@pytest.mark.parametrize(("size", "grid"), [(16, 8), (15, 5), (12, 7)])
def test_the_ideal_map_keeps_what_the_grid_holds_and_drops_the_rest(size, grid):
    R = ideal_resampling(size, grid)
    j = torch.arange(size, dtype=torch.float64)
    place = (torch.arange(grid, dtype=torch.float64) + 0.5) * size / grid - 0.5
    for k in range(size):
        wave = torch.cos(math.pi * k * j / (size - 1))
        expected = torch.cos(math.pi * k * place / (size - 1)) if k * size / (size - 1) < grid else 0 * place
        torch.testing.assert_close(R @ wave, expected, rtol=0, atol=1e-12)


def test_the_floor_vanishes_with_resolution_and_without_resampling():
    r, c = torch.meshgrid(*[torch.linspace(-1, 1, 64, dtype=torch.float64)] * 2, indexing="ij")
    bump = torch.exp(-20 * (r**2 + c**2))[None, None]  # smooth, and nothing at the border
    floors = [
        resampling_floor(bump, (n, n), ["translate_x", "rotate"], action=Images("spectral")).mean_relative
        for n in (8, 16, 32)
    ]
    # With exact derivatives on both grids only frequencies cut off and the border remain, and both die out here.
    assert floors[0]["translate_x"] > floors[1]["translate_x"]
    assert floors[2]["translate_x"] < 1e-9
    central = [resampling_floor(bump, (n, n), ["translate_x"]).mean_relative["translate_x"] for n in (16, 32)]
    # Of the difference of two central derivatives, k^2 h^2 / 6: fourth power in the square.
    assert 10 < central[0] / central[1] < 22
    plain = lee(nn.AvgPool2d(4), bump, ["translate_x"], output=NCHW()).mean_relative["translate_x"]
    assert plain > 0  # what the floor is to be compared with
    with pytest.raises(ValueError, match="grid of 1 to 64"):
        resampling_floor(bump, (65, 65))
