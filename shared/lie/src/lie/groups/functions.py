r"""The even functions of an angle from which exponentials and logarithms of rotations and motions are made.

All take :math:`x = \theta^2` so that they are smooth at the identity, where :math:`\theta = \sqrt{x}`
itself has no derivative:

.. math::
    A = \sin\theta / \theta, \quad B = (1 - \cos\theta) / \theta^2, \quad
    C = (\theta - \sin\theta) / \theta^3, \quad
    D = (1 - \tfrac{\theta}{2} \cot\tfrac{\theta}{2}) / \theta^2

(Rodrigues' formula and the left Jacobian of SO(3); Murray, Li and Sastry 1994, ch. 2 and appendix A.)
A and B come from the half angle, as A = 2 s c and B = 2 s^2 with s = sin(theta/2)/theta and c = cos(theta/2).
Below a bound each is its Taylor series economised by Chebyshev polynomials, of the lowest degree that a dtype
needs, and above it a closed form without cancellation. Both sides of every `select` stay finite, with finite
derivatives of every order, so that no NaN leaks from the side not taken. They reach a little beyond the bound, because
a clamp has no derivative at its own bound (`below_and_above`). What a logarithm needs has no such switch.

The arguments keep a last axis of length 1: a 0-dimensional tensor times a Python number may promote to the
default dtype under torch.func.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial

import torch
from jaxtyping import Float
from torch import Tensor

Series = dict[torch.dtype, tuple[float, ...]]

# --- layout and choice: what makes the same formulas quick, with a compiler and without ---


def components(a: Float[Tensor, "*batch k"]) -> tuple[Float[Tensor, "*batch 1"], ...]:
    """The k entries along the last axis, each (..., 1), as rows of one array rather than at every k-th place.

    Arithmetic on rows is vectorised. The compiler of CPU kernels would otherwise read each entry with a stride,
    and where it counts many such reads it writes scalar code, three to seven times slower.
    """
    rows = a.movedim(-1, 0).unsqueeze(-1)
    if not torch.compiler.is_compiling():
        return rows.contiguous().unbind()
    # A copy in two halves, which the compiler, unlike a copy in one, does not take back.
    return torch.cat([rows[:1], rows[1:]]).unbind() if a.device.type == "cpu" and len(rows) > 1 else rows.unbind()


def chooser(condition: Tensor, like: Tensor) -> Tensor:
    """``condition`` in the form that `select` takes: as it is for a compiler, else as numbers 0 and 1."""
    return condition if torch.compiler.is_compiling() else condition.to(like.dtype)


def select(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` where the `chooser` holds, else ``no``; exact, both finite.

    Without a compiler ``torch.where`` costs as much as twenty sums, and linear interpolation, exact at 0 and 1, one.
    """
    return torch.where(condition, yes, no) if condition.dtype == torch.bool else torch.lerp(no, yes, condition)


def below_and_above(x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """``x`` held below and above ``bound``, each with a margin of 1/64 in which the derivative is still 1.

    At a bound of its own a clamp has none; and a bound such as 4, the angle of 2 radians, is a number users type.
    """
    return x.clamp(max=bound * (1.0 + _MARGIN)), x.clamp(min=bound * (1.0 - _MARGIN))


_MARGIN = 1.0 / 64.0  # two neighbours of the bound in bfloat16

# --- the series ---


def economised(taylor: list[Fraction], bound: Fraction) -> Series:
    """The polynomials of lowest degree that stand for a power series on [0, bound], for each dtype.

    The series is written exactly in shifted Chebyshev polynomials (``y^n = 2^(1-2n) sum' C(2n, n-k) T*_k(y)``,
    Abramowitz and Stegun 22.3), cut where the rest is 1e-4 machine epsilons of the first coefficient, which leaves
    second derivatives accurate too, and written in powers again.
    """
    size = len(taylor)
    weights = [Fraction(0)] * size
    for n, coefficient in enumerate(taylor):
        scaled = coefficient * bound**n / 4**n
        weights[0] += scaled * comb(2 * n, n)
        for k in range(1, n + 1):
            weights[k] += 2 * scaled * comb(2 * n, n - k)
    series = {}
    for dtype in (torch.float32, torch.float64):
        allowed = abs(taylor[0]) * Fraction(torch.finfo(dtype).eps) / 10_000
        degree = next(d for d in range(1, size) if sum(map(abs, weights[d + 1 :]), Fraction(0)) <= allowed)
        powers = [Fraction(0)] * (degree + 1)
        previous, current = [Fraction(1)], [Fraction(-1), Fraction(2)]  # T*_0 and T*_1 in y
        for k in range(degree + 1):
            for i, value in enumerate(previous):
                powers[i] += weights[k] * value
            following = [Fraction(0)] * (len(current) + 1)  # T*_k+1 = (4 y - 2) T*_k - T*_k-1
            for i, value in enumerate(current):
                following[i + 1] += 4 * value
                following[i] -= 2 * value
            for i, value in enumerate(previous):
                following[i] -= value
            previous, current = current, following
        series[dtype] = tuple(float(value / bound**n) for n, value in enumerate(powers))
    return series


def bernoulli(count: int) -> list[Fraction]:
    """The first ``count`` Bernoulli numbers, with B_1 = -1/2."""
    numbers: list[Fraction] = []
    for n in range(count):
        total = sum((comb(n + 1, k) * numbers[k] for k in range(n)), Fraction(0))
        numbers.append(Fraction(1) if n == 0 else -total / (n + 1))
    return numbers


_EXP_BOUND = 4.0
_EXP_RANGE = Fraction(_EXP_BOUND * (1.0 + _MARGIN))
_S = economised([Fraction((-1) ** n, 2 * 4**n * factorial(2 * n + 1)) for n in range(24)], _EXP_RANGE)
_COS = economised([Fraction((-1) ** n, 4**n * factorial(2 * n)) for n in range(24)], _EXP_RANGE)
_C = economised([Fraction((-1) ** n, factorial(2 * n + 3)) for n in range(24)], _EXP_RANGE)
# (theta/2) cot(theta/2) = 1 - sum |B_2n| theta^2n / (2n)!, of radius 2 pi; used up to pi, 9.87 > pi^2.
_D = economised([abs(b) / factorial(2 * n) for n, b in enumerate(bernoulli(92)[::2]) if n > 0], Fraction(987, 100))
# arctan(u) / u as a function of u^2, up to tan(pi / 8)^2 < 0.1716.
_ATAN = economised([Fraction((-1) ** n, 2 * n + 1) for n in range(40)], Fraction(1716, 10_000))


def polynomial(x: Float[Tensor, "*batch 1"], coefficients: tuple[float, ...]) -> Float[Tensor, "*batch 1"]:
    """The polynomial with ``coefficients`` (constant first) at ``x``, by Horner's rule."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def power_series(x: Float[Tensor, "*batch 1"], series: Series) -> Float[Tensor, "*batch 1"]:
    """The polynomial for the dtype of ``x`` (half precisions take float32's)."""
    return polynomial(x, series.get(x.dtype, series[torch.float32]))


def half_angle(x: Float[Tensor, "*batch 1"]) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    """cos(theta / 2) and sin(theta / 2) / theta at x = theta^2, which make a unit quaternion (c, s w)."""
    c, s, *_ = _half_angle(x, with_C=False)
    return c, s


def half_angle_and_C(  # noqa: N802 (the field's letter)
    x: Float[Tensor, "*batch 1"],
) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    """cos(theta / 2), sin(theta / 2) / theta, and C = (theta - sin(theta)) / theta^3, at x = theta^2."""
    c, s, C = _half_angle(x, with_C=True)  # noqa: N806
    return c, s, C


def _half_angle(x: Tensor, *, with_C: bool) -> tuple[Tensor, ...]:  # noqa: N803
    small = chooser(x < _EXP_BOUND, x)
    x_small, x_large = below_and_above(x, _EXP_BOUND)
    half = 0.5 * x_large.sqrt()
    cos_large, s_large = half.cos(), 0.5 * half.sin() / half
    c = select(small, power_series(x_small, _COS), cos_large)
    s = select(small, power_series(x_small, _S), s_large)
    if not with_C:
        return c, s
    return c, s, select(small, power_series(x_small, _C), (1.0 - 2.0 * s_large * cos_large) / x_large)


def sinc(x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """A = sin(theta) / theta at x = theta^2."""
    c, s = half_angle(x)
    return 2.0 * s * c


def cosc(x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """B = (1 - cos(theta)) / theta^2 at x = theta^2."""
    return 2.0 * half_angle(x)[1].square()


def half_cot_remainder(x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """D = (1 - (theta/2) cot(theta/2)) / theta^2 at x = theta^2, for theta up to pi."""
    return power_series(x, _D)


def rotation_angle_factor(w: Float[Tensor, "*batch 1"], n: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """theta / |v| = 2 atan2(|v|, w) / |v| of a quaternion (w, v) of any length N > 0, w >= 0, with n = |v|^2.

    By two half-angle steps theta = 8 atan(tan(theta / 8)), and the tangent is at most tan(pi / 8): one polynomial
    serves all angles, no branch and no singular point between 0 and pi. ``1 + tan(theta / 4)^2 == 2 N / (N + w)``.
    """
    length = (w.square() + n).sqrt()
    total = length + w
    divisor = total + (2.0 * length * total).sqrt()  # |v| / tan(theta / 8)
    return 8.0 * power_series(n / divisor.square(), _ATAN) / divisor


# (e^z - 1) / z = sum z^k / (k + 1)!: inside the unit disk 13 and 22 terms leave 1e-11 and 1e-22.
_PHI = {torch.float32: tuple(1 / factorial(k + 1) for k in range(13))}
_PHI[torch.float64] = tuple(1 / factorial(k + 1) for k in range(22))


def expm1_ratio(a: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """(e^a - 1) / a, which is 1 at 0."""
    small = a.abs() < 1.0
    a_small = torch.where(small, a, torch.zeros_like(a))
    a_large = torch.where(small, torch.ones_like(a), a)
    return torch.where(small, power_series(a_small, _PHI), a_large.expm1() / a_large)


def scaled_exponential_functions(
    a: Float[Tensor, "*batch 1"], x: Float[Tensor, "*batch 1"]
) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    r"""p, q and r with ``V = p + q K + r w w^T`` the integral of ``exp(s (a + K))`` over s in [0, 1], K^2 = w w^T - x.

    With phi(z) = (e^z - 1) / z: p + i theta q = phi(a + i theta) and r = (phi(a) - p) / theta^2, at x = theta^2.
    In the unit disk they are the power series of phi in the algebra generated by K (K^3 = -x K); outside

    .. math::
        p = (a u + x e^a A) / d, \quad q = (a e^a A - u) / d, \quad r = (\phi(a) - e^a (A - a B)) / d

    with u = e^a cos(theta) - 1 and d = a^2 + x, where nothing cancels.
    """
    squared = a.square() + x
    small = squared < 1.0
    zero, one = torch.zeros_like(squared), torch.ones_like(squared)
    a_small, x_small = torch.where(small, a, zero), torch.where(small, x, zero)
    coefficients = _PHI.get(squared.dtype, _PHI[torch.float32])
    alpha, q_small, r_small = one * coefficients[-1], zero, zero
    for coefficient in coefficients[-2::-1]:  # Horner: multiply by a + K, add the next
        alpha, q_small, r_small = (
            alpha * a_small + coefficient,
            q_small * a_small + (alpha - x_small * r_small),
            r_small * a_small + q_small,
        )
    a_large, x_large = torch.where(small, one, a), torch.where(small, zero, x)
    d = torch.where(small, one, squared)
    c, s = half_angle(x_large)
    A, B, growth = 2.0 * s * c, 2.0 * s.square(), a_large.exp()  # noqa: N806
    u = a_large.expm1() - growth * (x_large * B)
    sine = growth * A
    p_large = (a_large * u + x_large * sine) / d
    q_large = (a_large * sine - u) / d
    r_large = (expm1_ratio(a_large) - growth * (A - a_large * B)) / d
    return (
        torch.where(small, alpha - x_small * r_small, p_large),
        torch.where(small, q_small, q_large),
        torch.where(small, r_small, r_large),
    )


def scaled_logarithm_functions(
    a: Float[Tensor, "*batch 1"], x: Float[Tensor, "*batch 1"]
) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    r"""p', q' and r' with ``V^-1 = p' + q' K + r' w w^T`` for the V above, theta up to pi.

    p' + i theta q' = 1 / phi(a + i theta) and r' = (1 / phi(a) - p') / theta^2. Where theta is below 1, from p, q and r
    by inverting V: p' = p / n, q' = -q / n, r' = (q^2 - p r) / (phi(a) n), n = p^2 + x q^2. Beyond, with fewer
    roundings, from 1 / phi(a + i theta) = (a + i theta) / (u + i theta v), v = e^a A.
    """
    on_axis = 1.0 / expm1_ratio(a)
    near = x < 1.0
    x_near, x_far = below_and_above(x, 1.0)
    p, q, r = scaled_exponential_functions(a, x_near)
    # As ratios to p, which is positive for theta below 1: the squares of p and q overflow from e^44 on in float32.
    q, r = q / p, r / p
    n = 1.0 + x_near * q.square()
    c, s = half_angle(x_far)
    growth = a.exp()
    # For the same reason; it drops out of the result and its derivatives. At ordinary sizes it would cost a rounding.
    size = torch.where(growth > 1e8, growth, torch.ones_like(growth)).detach()
    u, v = (a.expm1() - growth * (2.0 * x_far * s.square())) / size, growth / size * (2.0 * s * c)
    m = (u.square() + x_far * v.square()) * size
    across = (a * u + x_far * v) / m
    return (
        torch.where(near, 1.0 / (p * n), across),
        torch.where(near, -q / (p * n), (u - a * v) / m),
        torch.where(near, (q.square() - r) * on_axis / n, (on_axis - across) / x_far),
    )
