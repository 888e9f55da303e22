r"""The even functions of an angle from which the exponentials of rotations and rigid motions are made.

All take :math:`x = \theta^2` so that they are smooth at the identity, where :math:`\theta = \sqrt{x}`
itself has no derivative:

.. math::
    A = \sin\theta / \theta, \quad B = (1 - \cos\theta) / \theta^2, \quad
    C = (\theta - \sin\theta) / \theta^3, \quad
    D = (1 - \tfrac{\theta}{2} \cot\tfrac{\theta}{2}) / \theta^2

(Rodrigues' formula and the left Jacobian of SO(3); Murray, Li and Sastry 1994, ch. 2 and appendix A.)
Each is a Taylor polynomial below a bound, with so many terms that its remainder is under 1e-18 there,
and a closed form without cancellation above it. Both sides of every ``where`` stay finite, with finite
derivatives of every order, so that no NaN leaks from the side not taken.

The arguments keep a last axis of length 1: a 0-dimensional tensor times a Python number may promote to the
default dtype under torch.func.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial

import torch
from jaxtyping import Float
from torch import Tensor


def _bernoulli(count: int) -> list[Fraction]:
    numbers: list[Fraction] = []
    for n in range(count):
        total = sum((comb(n + 1, k) * numbers[k] for k in range(n)), Fraction(0))
        numbers.append(Fraction(1) if n == 0 else -total / (n + 1))
    return numbers


# 14 terms below x = 2.5 leave 2.5^14 / 29! = 4e-26, 16 below 6.5 leave 6.5^16 / 35! = 1e-27.
_A = tuple((-1) ** n / factorial(2 * n + 1) for n in range(14))
_B = tuple((-1) ** n / factorial(2 * n + 2) for n in range(14))
_C = tuple((-1) ** n / factorial(2 * n + 3) for n in range(16))
# (theta/2) cot(theta/2) = 1 - sum |B_2n| theta^2n / (2n)!, of radius 2 pi: 13 terms leave (1/39.5)^13 = 2e-21 at x = 1.
_D = tuple(float(abs(b) / factorial(2 * n)) for n, b in enumerate(_bernoulli(27)[::2]) if n > 0)
# arctan(u) / u at x = u^2 <= 0.0396: 13 terms leave 0.0396^13 / 27 = 2e-20.
_ATAN = tuple((-1) ** n / (2 * n + 1) for n in range(13))


def polynomial(x: Float[Tensor, "*batch 1"], coefficients: tuple[float, ...]) -> Float[Tensor, "*batch 1"]:
    """The polynomial with ``coefficients`` (constant first) at ``x``, by Horner's rule."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def _split(x: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mask ``x < bound``, and ``x`` made safe for the branch below and for the branch above."""
    small = x < bound
    # Typed constants: a Python scalar in `where` may promote to the default dtype under torch.func.
    edge = torch.full_like(x, bound)
    return small, torch.where(small, x, torch.zeros_like(x)), torch.where(small, edge, x)


def sinc(x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """A = sin(theta) / theta at x = theta^2."""
    small, x_small, x_large = _split(x, 2.5)
    theta = x_large.sqrt()
    return torch.where(small, polynomial(x_small, _A), theta.sin() / theta)


def cosc(x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """B = (1 - cos(theta)) / theta^2 at x = theta^2, by the half angle where theta is large."""
    small, x_small, x_large = _split(x, 2.5)
    half = 0.5 * x_large.sqrt()
    return torch.where(small, polynomial(x_small, _B), 0.5 * (half.sin() / half).square())


def sinc_remainder(x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """C = (theta - sin(theta)) / theta^3 at x = theta^2."""
    # theta - sin(theta) cancels by a factor 2.7 at the other bound, by 1.3 at this one.
    small, x_small, x_large = _split(x, 6.5)
    theta = x_large.sqrt()
    return torch.where(small, polynomial(x_small, _C), (theta - theta.sin()) / (theta * x_large))


def half_cot(x: Float[Tensor, "*batch 1"]) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    """h = (theta/2) cot(theta/2) and D = (1 - h) / theta^2 at x = theta^2, for theta below 2 pi.

    Both, because 1 - x D would lose what is left of h near pi, and (1 - h) / x what is left of D near 0.
    """
    small, x_small, x_large = _split(x, 1.0)
    half = 0.5 * x_large.sqrt()
    remainder = polynomial(x_small, _D)
    large = half / half.tan()
    h = torch.where(small, 1.0 - x_small * remainder, large)
    return h, torch.where(small, remainder, (1.0 - large) / x_large)


def rotation_angle_factor(w: Float[Tensor, "*batch 1"], n: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """theta / |v| = 2 atan2(|v|, w) / |v| of a quaternion (w, v) of any length with w >= 0 and n = |v|^2.

    Where n is small against w^2, the arctangent is a polynomial in their ratio.
    """
    small = n < 0.0396 * w.square()
    one = torch.ones_like(n)
    w_small, n_small = torch.where(small, w, one), torch.where(small, n, torch.zeros_like(n))
    w_large, v_large = torch.where(small, one, w), torch.where(small, one, n).sqrt()
    series = polynomial(n_small / w_small.square(), _ATAN) / w_small
    return 2.0 * torch.where(small, series, torch.atan2(v_large, w_large) / v_large)
