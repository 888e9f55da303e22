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
# arctan(u) / u on u <= tan(pi/16), x = u^2 <= 0.0396: 13 terms leave 0.0396^13 / 27 = 2e-20.
_ATAN = tuple((-1) ** n / (2 * n + 1) for n in range(13))


def polynomial(x: Float[Tensor, "*batch"], coefficients: tuple[float, ...]) -> Float[Tensor, "*batch"]:
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


def sinc(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """A = sin(theta) / theta at x = theta^2."""
    small, x_small, x_large = _split(x, 2.5)
    theta = x_large.sqrt()
    return torch.where(small, polynomial(x_small, _A), theta.sin() / theta)


def cosc(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """B = (1 - cos(theta)) / theta^2 at x = theta^2, by the half angle where theta is large."""
    small, x_small, x_large = _split(x, 2.5)
    half = 0.5 * x_large.sqrt()
    return torch.where(small, polynomial(x_small, _B), 0.5 * (half.sin() / half).square())


def sinc_remainder(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """C = (theta - sin(theta)) / theta^3 at x = theta^2."""
    # theta - sin(theta) cancels by a factor 2.7 at the other bound, by 1.3 at this one.
    small, x_small, x_large = _split(x, 6.5)
    theta = x_large.sqrt()
    return torch.where(small, polynomial(x_small, _C), (theta - theta.sin()) / (theta * x_large))


def cot_remainder(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """D = (1 - (theta/2) cot(theta/2)) / theta^2 at x = theta^2, for theta below 2 pi."""
    small, x_small, x_large = _split(x, 1.0)
    half = 0.5 * x_large.sqrt()
    return torch.where(small, polynomial(x_small, _D), (1.0 - half / half.tan()) / x_large)


def angle_over_sine(w: Float[Tensor, "*batch"], n: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """theta / sin(theta/2) for w = cos(theta/2) >= 0 and n = sin(theta/2)^2: smooth on all of [0, pi].

    Three half-angle steps, tan(t/2) = tan(t) / (1 + sqrt(1 + tan(t)^2)), bring the angle under pi/16,
    where the arctangent is a short polynomial in the squared tangent: no branch, no singular point.
    """
    divisor = 1.0 + w
    r = n / divisor.square()  # tan(theta/4)^2 <= 1
    for _ in range(2):
        half = 1.0 + (1.0 + r).sqrt()
        r = r / half.square()
        divisor = divisor * half
    return 16.0 * polynomial(r, _ATAN) / divisor
