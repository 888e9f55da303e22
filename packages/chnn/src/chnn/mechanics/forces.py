r"""Forces on points, each with its energy where it has one: gravity, springs, magnets, damping, any potential.

Springs, dampers and magnets act on affine combinations of points like constraints do, :math:`U = A x - b`, so that a
force on a combination spreads over its points by :math:`A^T`. All of one kind are computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import pi

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor


class Force:
    """A force on the points of a system. Concrete forces are frozen dataclasses of tensors and plain values."""

    @property
    def affine(self) -> bool:
        """Whether the force is affine in positions and velocities."""
        return False

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """Its potential energy, joules; zero for forces that have none."""
        return x.new_zeros(x.shape[:-2])

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The force on each point, newtons; by default minus the gradient of the potential."""
        return -potential_gradient(self.potential, x)

    def to(self, like: Tensor) -> Force:
        """The same in the dtype and on the device of ``like``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  (a dataclass)
        moved = {name: value.to(like) if isinstance(value, Tensor) else value for name, value in values.items()}
        return type(self)(**moved)


@dataclass(frozen=True)
class Gravity(Force):
    """Uniform gravity: ``V = -sum_a weights_a (acceleration . x_a)``.

    Fields:
        weights: ``M 1``, (n,), kg.
        acceleration: (d,), m/s^2.
    """

    weights: Tensor
    acceleration: Tensor

    @property
    def affine(self) -> bool:
        """It is constant."""
        return True

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """-(sum of the weights times the positions) . acceleration."""
        return -((self.weights.unsqueeze(-1) * self.acceleration) * x).sum((-2, -1))

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The weights."""
        return (self.weights.unsqueeze(-1) * self.acceleration).expand_as(x)


@dataclass(frozen=True)
class Springs(Force):
    """Linear springs: ``V = sum stiffness / 2 (|A x - b| - rest)^2``.

    Fields:
        A, b: (S, n) and (S, d).
        stiffness: (S,), N/m.
        rest: (S,), m.
    """

    A: Tensor
    b: Tensor
    stiffness: Tensor
    rest: Tensor

    @property
    def affine(self) -> bool:
        """Where all springs have the rest length 0."""
        return bool((self.rest == 0).all())

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """The energy of all springs."""
        stretch = _norm(self.A @ x - self.b, self.rest) - self.rest
        return 0.5 * (self.stiffness * stretch.square()).sum(-1)

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The pull of the springs."""
        U = self.A @ x - self.b  # noqa: N806
        length = _norm(U, self.rest)
        # k (|U| - rest) U / |U|, written so that a spring of rest length 0 may have length 0.
        ratio = torch.where(self.rest == 0, torch.zeros_like(length), self.rest / torch.where(length == 0, 1.0, length))
        return -self.A.mT @ ((self.stiffness * (1.0 - ratio)).unsqueeze(-1) * U)


@dataclass(frozen=True)
class Dipoles(Force):
    r"""Point dipoles carried by the system, in the field of dipoles fixed in space.

    .. math:: V = \frac{1}{4\pi} \sum \frac{m_0 \cdot m_i}{r^3} - \frac{3 (m_0 \cdot r)(m_i \cdot r)}{r^5},
              \qquad r = r_i - x, \quad m_0 = \texttt{strength}\; u/|u|

    in units where the vacuum permeability is 1.

    Fields:
        A, b: positions x of the carried dipoles, (K, n), (K, d).
        axis_A, axis_b: their directions u, (K, n), (K, d).
        strength: (K,).
        positions, moments: of the fixed dipoles, (F, d).
        published_sign: with the minus sign before the first term of the published implementation of CHNN.
    """

    A: Tensor
    b: Tensor
    axis_A: Tensor  # noqa: N815
    axis_b: Tensor
    strength: Tensor
    positions: Tensor
    moments: Tensor
    published_sign: bool = False

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """The energy of every carried dipole in the field of every fixed one."""
        axis = self.axis_A @ x - self.axis_b
        m0 = (self.strength.unsqueeze(-1) * axis / axis.norm(dim=-1, keepdim=True)).unsqueeze(-2)  # (..., K, 1, d)
        r = self.positions - (self.A @ x - self.b).unsqueeze(-2)  # (..., K, F, d)
        square = r.square().sum(-1)
        along = 3.0 * (m0 * r).sum(-1) * (self.moments * r).sum(-1)
        both = (m0 * self.moments).sum(-1) * square
        energy = ((-both if self.published_sign else both) - along) / square.pow(2.5)
        return energy.sum((-2, -1)) / (4.0 * pi)


@dataclass(frozen=True)
class Damping(Force):
    """Rayleigh damping: the force ``-A^T (coefficients o A v)``, of the dissipation ``sum c / 2 |A v|^2``.

    Fields:
        A: combinations whose velocities are damped, (R, n).
        coefficients: (R,), N s/m.
    """

    A: Tensor
    coefficients: Tensor

    @property
    def affine(self) -> bool:
        """It is linear in velocities."""
        return True

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The drag."""
        return -self.A.mT @ (self.coefficients.unsqueeze(-1) * (self.A @ v))


@dataclass(frozen=True)
class Potential(Force):
    """Any potential: a function of positions x (..., n, d) -> (...), joules; a network may be one."""

    function: Callable[[Tensor], Tensor]

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """The function."""
        try:
            energy = self.function(x)
        except (RuntimeError, TypeError) as error:
            if "numpy" not in str(error) and "data pointer" not in str(error):
                raise
            raise UserError(
                f"expected a potential of torch operations, which have gradients, got one that leaves torch: {error}; "
                "use torch in place of numpy and math"
            ) from error
        if not isinstance(energy, Tensor):
            raise UserError(
                f"expected the potential to take positions {tuple(x.shape)} to a tensor of energies "
                f"{tuple(x.shape[:-2])}, got {type(energy).__name__}; compute it from x by torch"
            )
        if energy.shape != x.shape[:-2]:
            raise UserError(
                f"expected the potential to take positions {tuple(x.shape)} to energies {tuple(x.shape[:-2])}, got "
                f"{tuple(energy.shape)}; sum over points and axes"
            )
        return energy


def potential_gradient(potential: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch n d"]) -> Tensor:
    """dV/dx of any function x (..., n, d) -> (...), differentiable again, also under the transforms of `torch.func`."""
    return torch.func.grad(lambda point: potential(point).sum())(x)


def _norm(U: Tensor, rest: Tensor) -> Tensor:  # noqa: N803
    """|U|, with the gradient 0 at U = 0."""
    square = U.square().sum(-1)
    zero = square == 0
    return torch.where(zero, torch.zeros_like(square), torch.where(zero, 1.0, square).sqrt())
