r"""Springs and dampers that act on the turning of one direction or body against another: those of hinges and balls.

With axes :math:`e_i` of one body (or fixed in space) and :math:`f_j` of another, :math:`R_{ij} = e_i \cdot f_j` is the
relative rotation and :math:`|\dot R|^2 = 2 |\omega|^2` for the relative angular velocity, in space; so the torque
:math:`-c\, \omega` comes from Rayleigh's dissipation :math:`\tfrac{c}{4} \sum_{ij} \dot R_{ij}^2`, without angles.

A torsion spring measures the angle of a direction w in the plane of two others, u and q,
:math:`\theta = \mathrm{atan2}(w \cdot q, w \cdot u)`.

Source: dissipation functions as in Goldstein, Classical Mechanics, section 1.5; the form in directions is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from chnn.mechanics.forces import Force


@dataclass(frozen=True)
class RotationalDamping(Force):
    """The torque ``-coefficients omega`` on bodies that turn with omega against one another, and its reaction.

    Fields:
        A, b: axes ``e = A x + b`` of the one body or of space, (K, d, n) and (K, d, d).
        other_A: axes ``f = other_A x`` of the other body, (K, d, n).
        coefficients: (K,), N m s/rad.
    """

    A: Tensor
    b: Tensor
    other_A: Tensor  # noqa: N815
    coefficients: Tensor

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The forces on the points; as a couple they add to nothing on each body."""
        x, v = x.unsqueeze(-3), v.unsqueeze(-3)
        e, f = self.A @ x + self.b, self.other_A @ x  # (..., K, d, d), a row for each axis
        turning = (self.A @ v) @ f.mT + e @ (self.other_A @ v).mT  # dR/dt, (..., K, d, d)
        turning = 0.5 * self.coefficients[:, None, None] * turning
        return -(self.A.mT @ (turning @ f) + self.other_A.mT @ (turning.mT @ e)).sum(-3)

    def power(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """What it takes, watts: ``sum coefficients |omega|^2``, at least 0."""
        return -(self.force(x, v) * v).sum((-2, -1))


@dataclass(frozen=True)
class TorsionSprings(Force):
    """Springs on the angle of a direction: ``V = sum stiffness / 2 (theta - rest)^2``, within half a turn of rest.

    Fields:
        A: directions ``w = A x``, (K, n).
        zero_A, zero_b: directions ``u = zero_A x + zero_b`` of angle 0, (K, n) and (K, d).
        quarter_A, quarter_b: directions a right angle further, (K, n) and (K, d).
        stiffness: (K,), N m/rad.
        rest: (K,), rad.
    """

    A: Tensor
    zero_A: Tensor  # noqa: N815
    zero_b: Tensor
    quarter_A: Tensor  # noqa: N815
    quarter_b: Tensor
    stiffness: Tensor
    rest: Tensor

    def angles(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch K"]:
        """``theta - rest``, in (-pi, pi]."""
        return torch.atan2(*self._sides(*self._directions(x)))

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """The energy of all springs."""
        return 0.5 * (self.stiffness * self.angles(x).square()).sum(-1)

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Minus the gradient of the potential."""
        return self.spread(x, -self.stiffness * self.angles(x))

    def spread(self, x: Float[Tensor, "*batch n d"], torque: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch n d"]:
        """The forces on the points of torques along growing angles, N m: ``torque d theta / d x``."""
        w, u, q = self._directions(x)
        sine, cosine = (w * q).sum(-1), (w * u).sum(-1)
        scale = torque / (sine.square() + cosine.square())
        # d theta = (c ds - s dc) / (s^2 + c^2), with s = w . q and c = w . u.
        a, b = (scale * cosine).unsqueeze(-1), (scale * sine).unsqueeze(-1)
        return self.A.mT @ (a * q - b * u) + self.quarter_A.mT @ (a * w) - self.zero_A.mT @ (b * w)

    def _directions(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.A @ x, self.zero_A @ x + self.zero_b, self.quarter_A @ x + self.quarter_b

    def _sides(self, w: Tensor, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        sine, cosine = (w * q).sum(-1), (w * u).sum(-1)
        c, s = self.rest.cos(), self.rest.sin()
        return sine * c - cosine * s, cosine * c + sine * s
