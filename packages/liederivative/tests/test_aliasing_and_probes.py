"""The aliasing study against theory and closed forms, and the probe estimator against the exact terms."""

from __future__ import annotations

import math

import pytest
import torch
from liederivative import decompose
from liederivative.layerwise import aliasing_study, operations, probe_terms
from liederivative.layerwise.aliasing import aliased_motion, band_limited_signals, resample, spectral_derivative
from scipy.signal import resample as scipy_resample
from torch import nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- aliasing ---


def test_smooth_operations_agree_with_theory_sample_by_sample():
    x = band_limited_signals(8, 64, 0.8, generator())
    smooth = ("tanh", "silu", "gelu", "square", "filtered tanh", "filtered silu")
    sampled = ("stride 2", "stride 4", "blur 2", "blur5 4", "average 2")
    for name in smooth + sampled:
        operation = operations([name])[name]
        y, pushed = torch.func.jvp(operation.apply, (x,), (spectral_derivative(x),))
        measured = pushed - spectral_derivative(y)
        predicted = aliased_motion(operation, x, 32)
        # The coefficients of analytic functions decay exponentially: at 32 times Nyquist nothing is left of them.
        torch.testing.assert_close(predicted, measured, rtol=0, atol=1e-8 * float(pushed.abs().max()))
        # Filtering on a grid twice as fine leaves a thousandth of tanh's and less of the smoother ones' errors.
        least = 1e-9 if name.startswith("filtered") else 1e-3
        assert measured.abs().max() > least * pushed.abs().max(), name


def test_kinks_agree_with_theory_as_the_fine_grid_grows():
    x = band_limited_signals(8, 64, 0.5, generator())
    for name in ("relu", "leaky_relu", "maxpool 2"):
        operation = operations([name])[name]
        y, pushed = torch.func.jvp(operation.apply, (x,), (spectral_derivative(x),))
        measured = pushed - spectral_derivative(y)
        gaps = [
            float((aliased_motion(operation, x, fine) - measured).norm() / measured.norm()) for fine in (16, 64, 256)
        ]
        # Coefficients beyond a kink fall as 1 / k^2, weighted by k: the tail left out falls as k^(-1/2) at least.
        assert gaps[2] < 0.5 * gaps[0]
        assert gaps[2] < 0.15


def test_a_square_aliases_above_half_the_band_and_a_single_wave_as_computed_by_hand():
    study = aliasing_study(["square"], band_limits=(0.3, 0.49, 0.6, 0.9), size=64, signals=8, generator=generator())
    assert study.measured["square"][:2].max() < 1e-25
    assert study.measured["square"][2] > 1e-3
    assert study.measured["square"][3] > study.measured["square"][2]
    n, k = 32, 10  # cos^2 has frequency 2 k = 20, which is seen as -12: it moves at 20 and is differentiated at -12
    t = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    x = torch.cos(k * t)[None]
    pushed = torch.func.jvp(torch.square, (x,), (spectral_derivative(x),))[1]
    lie = pushed - spectral_derivative(x.square())
    torch.testing.assert_close(lie[0], -(20 - (-12)) / 2 * torch.sin(20 * t), rtol=0, atol=1e-12)


def test_remedies_reduce_the_error_and_nothing_aliases_below_the_limit():
    names = ["relu", "filtered relu", "gelu", "filtered gelu", "stride 2", "blur 2", "blur7 2", "maxpool 2"]
    study = aliasing_study(names, band_limits=(0.25, 0.45, 0.8), size=64, signals=16, generator=generator())
    m = study.measured
    for limit in range(3):
        assert m["filtered relu"][limit] < m["relu"][limit]
        assert m["filtered gelu"][limit] < m["gelu"][limit]
    assert m["stride 2"][:2].max() < 1e-25  # below the new Nyquist frequency a stride is harmless
    assert m["stride 2"][2] > m["blur 2"][2] > m["blur7 2"][2]
    assert m["relu"][0] > m["gelu"][0]  # a kink has harmonics without end
    rows = study.table()
    assert len(rows) == 24
    assert rows[0]["operation"] == "relu" and rows[0]["band_limit"] == 0.25


def test_resampling_is_scipys():
    x = band_limited_signals(3, 24, 0.9, generator())
    for size in (12, 24, 60):
        expected = torch.from_numpy(scipy_resample(x.numpy(), size, axis=-1))
        if size == 12:  # scipy keeps half of the Nyquist frequency
            x = band_limited_signals(3, 24, 0.45, generator())
            expected = torch.from_numpy(scipy_resample(x.numpy(), size, axis=-1))
        torch.testing.assert_close(resample(x, size), expected, rtol=0, atol=1e-12)


def test_bad_studies():
    with pytest.raises(ValueError, match="unknown operation 'reul': did you mean 'relu'"):
        aliasing_study(["reul"])
    with pytest.raises(ValueError, match="band limit in"):
        aliasing_study(["relu"], band_limits=(1.5,))
    with pytest.raises(ValueError, match="divisible by 4"):
        aliasing_study(["relu"], size=30)


# --- probes ---


def cnn() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3),
            nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
        )  # fmt: skip
    return net.double().eval()


def test_probes_estimate_the_exact_squares_for_all_generators_at_once():
    net = cnn()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=generator())
    names = ["translate_x", "rotate", "saturate"]
    found = probe_terms(net, x, names, probes=1500, generator=generator(1))
    norms = found.squared_norms()
    for name in names:
        exact = {layer: float(term.square().sum()) for layer, term in decompose(net, x, name).terms.items()}
        for layer, square in exact.items():
            # Relative deviation sqrt(2 / 1500) = 3.7 % at most (less where outputs spread it): five of them.
            assert norms[layer][name] == pytest.approx(square, rel=0.19, abs=1e-12)
        for layer in norms.keys() - exact.keys():
            assert norms[layer][name] < 1e-20
    assert found.kinds["2"] == "ReLU"
    for part in net.modules():
        assert not part._forward_hooks


def test_the_interval_covers_at_its_level():
    net = cnn()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=generator())
    exact = float(decompose(net, x, "rotate").terms["2"].square().sum())
    hits = 0
    for seed in range(60):
        low, high = probe_terms(net, x, ["rotate"], probes=10, generator=generator(seed)).interval(0.8)["2"]["rotate"]
        hits += low < exact < high
    assert 37 <= hits <= 58  # binomial(60, 0.8): 48 +- 3.1, three deviations each way
    with pytest.raises(ValueError, match="between 0 and 1"):
        probe_terms(net, x, ["rotate"], probes=1).interval(2)
    with pytest.raises(ValueError, match="at least one probe"):
        probe_terms(net, x, ["rotate"], probes=0)
    with pytest.raises(ValueError, match="no layers to probe"):
        probe_terms(lambda x: net(x), x, ["rotate"])
