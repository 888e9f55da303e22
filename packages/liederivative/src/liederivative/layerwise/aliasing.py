r"""Where translations break: the aliasing of non-linearities and of downsampling, measured and in theory.

A signal that holds frequencies below the band limit b (1 is the Nyquist frequency) is translated without error. A
pointwise function of it makes harmonics; what exceeds Nyquist comes back at another frequency and moves with the wrong
speed. On a periodic grid of n samples, with the exact (spectral) derivative :math:`\partial`, the translation Lie
derivative of an operation f is :math:`L = Df(x)[\partial x] - \partial f(x)`; of a pointwise :math:`\sigma` it is
:math:`\sigma'(x) \partial x - \partial(\sigma(x))`.

**Theory.** Let y be the continuous result, :math:`\hat y_k` its Fourier coefficients (taken here from a grid ``fine``
times finer, where aliasing is negligible). Sampled at n points, frequency k appears as :math:`a(k) = k` modulo n, in
(-n/2, n/2]; it moves at rate k while its samples are differentiated at rate a(k):

.. math:: L_m = \sum_{a(k) = m} i\,(k - a(k))\, \hat y_k .

So L vanishes exactly where nothing aliases, and both sides of the equation are computed independently here. The same
formula holds for a stride s, with y the (blurred) signal itself and n / s samples. The reported error is
:math:`\|L\|^2 / \|\partial f(x)\|^2`, what is lost relative to what moves.

**Remedies.** ``blur s`` downsamples after the binomial filter [1, 2, 1]/4 (or longer) of Zhang 2019 (Making
convolutional networks shift-invariant again, arXiv 1904.11486); ``filtered`` non-linearities are applied on a grid
twice as fine and low-passed before they return, as in Karras et al. 2021 (Alias-free GANs, arXiv 2106.12423).

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on aliasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "square": torch.square,
}
"""Pointwise non-linearities by name."""

BINOMIAL = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1), 7: (1, 6, 15, 20, 15, 6, 1)}


@dataclass(frozen=True)
class AliasingStudy:
    """Relative squared translation errors of operations on signals of growing band limit."""

    band_limits: tuple[float, ...]
    """as fractions of the Nyquist frequency"""
    measured: dict[str, Float[Tensor, " L"]]
    """by operation: mean over signals of ``|L|^2 / |d f(x)|^2``, by forward-mode differentiation"""
    theory: dict[str, Float[Tensor, " L"]]
    """the same from the aliased Fourier coefficients"""

    def table(self) -> list[dict[str, Any]]:
        """One row an operation and band limit."""
        return [
            {"operation": name, "band_limit": b, "measured": float(m), "theory": float(t)}
            for name in self.measured
            for b, m, t in zip(self.band_limits, self.measured[name], self.theory[name], strict=True)
        ]


@dataclass(frozen=True)
class Operation:
    """An operation on periodic signals, on any grid, and how the grid of its result relates to that of its input."""

    apply: Callable[[Tensor], Tensor]
    """the discrete operation, (..., n) -> (..., n / stride)"""
    continuous: Callable[[Tensor, int], Tensor]
    """the same without the last sampling, on a grid ``fine`` times finer: (values, fine) -> values"""
    stride: int = 1
    sampling: int = 1
    """how much finer the grid is on which the result is sampled before a low-pass leads back"""


def operations(names: Sequence[str] | None = None) -> dict[str, Operation]:
    """The operations of the study by name: activations, ``filtered`` ones, ``stride s``, ``blur s``, ``maxpool s``.

    Raises:
        UserError: for an unknown name.
    """
    known: dict[str, Operation] = {}
    for name, sigma in ACTIVATIONS.items():
        known[name] = Operation(sigma, lambda x, fine, sigma=sigma: sigma(x))
        known[f"filtered {name}"] = Operation(
            lambda x, sigma=sigma: resample(sigma(resample(x, 2 * x.shape[-1])), x.shape[-1]),
            lambda x, fine, sigma=sigma: sigma(x),
            sampling=2,
        )
    for stride in (2, 4):
        known[f"stride {stride}"] = Operation(lambda x, s=stride: x[..., ::s], lambda x, fine: x, stride)
        for taps in BINOMIAL:
            name = f"blur {stride}" if taps == 3 else f"blur{taps} {stride}"
            known[name] = Operation(
                lambda x, s=stride, t=taps: _blurred(x, t, 1)[..., ::s],
                lambda x, fine, t=taps: _blurred(x, t, fine),
                stride,
            )
        known[f"average {stride}"] = Operation(
            lambda x, s=stride: torch.stack([x.roll(-i, -1) for i in range(s)]).mean(0)[..., ::s],
            lambda x, fine, s=stride: torch.stack([x.roll(-i * fine, -1) for i in range(s)]).mean(0),
            stride,
        )
        known[f"maxpool {stride}"] = Operation(
            lambda x, s=stride: torch.stack([x.roll(-i, -1) for i in range(s)]).amax(0)[..., ::s],
            lambda x, fine, s=stride: torch.stack([x.roll(-i * fine, -1) for i in range(s)]).amax(0),
            stride,
        )
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise unknown_name("operation", name, known)
    return {name: known[name] for name in names}


def band_limited_signals(
    count: int, size: int, band_limit: float, generator: torch.Generator | None = None
) -> Float[Tensor, "count size"]:
    """Random periodic signals of unit variance, flat up to the band limit and zero beyond; float64.

    Args:
        count: signals.
        size: samples, even.
        band_limit: as a fraction of the Nyquist frequency; at least one frequency is always held.
        generator: of the phases and amplitudes.
    """
    if size < 4 or size % 2:
        raise UserError(f"expected an even number of at least 4 samples, got {size}")
    if not 0 < band_limit <= 1:
        raise UserError(f"expected a band limit in (0, 1] of the Nyquist frequency, got {band_limit}")
    highest = max(1, min(size // 2 - 1, math.floor(band_limit * size / 2)))
    noise = torch.randn(count, highest, 2, dtype=torch.float64, generator=generator)
    spectrum = torch.zeros(count, size // 2 + 1, dtype=torch.complex128)
    spectrum[:, 1 : highest + 1] = torch.view_as_complex(noise)
    x = torch.fft.irfft(spectrum, n=size)
    return x / x.std(dim=-1, keepdim=True)


def resample(x: Float[Tensor, "*batch n"], size: int) -> Float[Tensor, "*batch size"]:
    """The trigonometric interpolant of periodic samples on another grid, without frequencies that it cannot hold."""
    n = x.shape[-1]
    spectrum = torch.fft.rfft(x)
    if size != n:  # the Nyquist frequency of an even grid has no definite phase
        held = min(n, size) // 2
        kept = torch.zeros_like(spectrum)
        kept[..., :held] = spectrum[..., :held]
        spectrum = kept
    spectrum = F.pad(torch.view_as_real(spectrum), (0, 0, 0, max(0, size // 2 + 1 - spectrum.shape[-1])))
    return torch.fft.irfft(torch.view_as_complex(spectrum.contiguous())[..., : size // 2 + 1], n=size) * (size / n)


def spectral_derivative(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """The exact derivative of periodic samples over a circle of length 2 pi, without the Nyquist frequency."""
    n = x.shape[-1]
    k = torch.arange(n // 2 + 1, dtype=torch.float64, device=x.device)
    if n % 2 == 0:
        k[-1] = 0
    return torch.fft.irfft(1j * k * torch.fft.rfft(x), n=n)


def aliasing_study(
    names: Sequence[str] | None = None,
    *,
    band_limits: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    size: int = 128,
    signals: int = 32,
    fine: int = 16,
    generator: torch.Generator | None = None,
) -> AliasingStudy:
    """Translation errors of operations as functions of the input's band limit, measured and from theory.

    Args:
        names: operations (`operations`); all by default.
        band_limits: fractions of the Nyquist frequency, in (0, 1].
        size: samples of a signal, even and divisible by the strides.
        signals: random signals a band limit.
        fine: how much finer the grid is that stands for the continuum in the theory.
        generator: of the signals.

    >>> study = aliasing_study(["square"], band_limits=(0.4, 0.8), size=32, signals=4)
    >>> bool(study.measured["square"][0] < 1e-20), bool(study.measured["square"][1] > 1e-3)
    (True, True)
    """
    chosen = operations(names)
    if size % 4:
        raise UserError(f"expected a number of samples divisible by 4, got {size}")
    measured: dict[str, list[Tensor]] = {name: [] for name in chosen}
    theory: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for limit in band_limits:
        x = band_limited_signals(signals, size, limit, generator)
        motion = spectral_derivative(x)
        for name, operation in chosen.items():
            y, pushed = torch.func.jvp(operation.apply, (x,), (motion,))  # type: ignore[misc]
            moved = spectral_derivative(y)
            scale = pushed.square().sum(-1)
            measured[name].append(((pushed - moved).square().sum(-1) / scale).mean())
            predicted = aliased_motion(operation, x, fine)
            theory[name].append((predicted.square().sum(-1) / scale).mean())
    return AliasingStudy(
        tuple(band_limits),
        {name: torch.stack(values) for name, values in measured.items()},
        {name: torch.stack(values) for name, values in theory.items()},
    )


def aliased_motion(operation: Operation, x: Float[Tensor, "S n"], fine: int) -> Float[Tensor, "S m"]:
    """The Lie derivative that the aliased Fourier coefficients of the continuous result make, as samples.

    Args:
        operation: what is applied.
        x: periodic signals, n samples.
        fine: how much finer the grid is that stands for the continuum.
    """
    n = x.shape[-1]
    m, size = n * operation.sampling // operation.stride, n * fine
    y = operation.continuous(resample(x, size), fine)
    coefficients = torch.fft.fft(y) / size
    k = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64).round()
    seen = (k + m // 2) % m - m // 2  # in [-m/2, m/2)
    rate = torch.where(seen == -(m // 2), torch.zeros_like(seen), seen)  # the Nyquist frequency is not differentiated
    places = (k % m).long()
    spectrum = torch.zeros(len(x), m, dtype=torch.complex128)
    spectrum.index_add_(1, places, 1j * (k - rate) * coefficients)
    return resample(torch.fft.ifft(spectrum * m).real, n // operation.stride)


def _blurred(x: Tensor, taps: int, spread: int) -> Tensor:
    weights = BINOMIAL[taps]
    total = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        total = total + weight * x.roll((i - taps // 2) * spread, -1)
    return total / sum(weights)
