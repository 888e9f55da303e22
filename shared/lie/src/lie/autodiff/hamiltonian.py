r"""The Hamiltonian vector field :math:`J \nabla H` of a function on phase space, and the Poisson bracket.

With z = (q, p), :math:`\dot q = \partial H / \partial p`, :math:`\dot p = -\partial H / \partial q`
(Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, section on Hamiltonian mechanics). The bracket is

.. math:: \{f, g\} = \frac{\partial f}{\partial q} \frac{\partial g}{\partial p}
    - \frac{\partial f}{\partial p} \frac{\partial g}{\partial q} = Df[J \nabla g]

so that :math:`\{q_i, p_j\} = \delta_{ij}` and :math:`\dot f = \{f, H\}` along the flow of H (Arnold 1989, Mathematical
Methods of Classical Mechanics, section 40; Hairer, Lubich, Wanner 2006, Geometric Numerical Integration, VII.2.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lie.autodiff.foreign import refusing_foreign
from lie.autodiff.jvp import pushforward
from lie.groups.checks import check_floating, check_tensor


def phase_space_halves(z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Positions and momenta (or velocities): the two halves of ``z`` along ``dim``."""
    check_tensor(z, "the state")
    check_floating(z, "states")
    if not -z.ndim <= dim < z.ndim or z.shape[dim] % 2:
        raise ValueError(f"expected positions and momenta, equally many, along axis {dim}, got shape {tuple(z.shape)}")
    q, p = z.chunk(2, dim=dim) if z.shape[dim] else (z, z)
    return q, p


def gradient(f: Callable[[Tensor], Tensor], z: Tensor, dim: int, name: str) -> Tensor:
    """The gradient at each state of a function with one value a state; ``name`` is what an error calls it."""
    batch = z.shape[: dim % z.ndim]

    def total(point: Tensor) -> Tensor:
        with refusing_foreign():
            value = f(point)
        check_tensor(value, f"the value of {name}")
        if value.shape != batch:
            raise ValueError(
                f"expected {name} to give one value a state, shape {tuple(batch)} for states {tuple(z.shape)} with "
                f"their halves along axis {dim}, got {tuple(value.shape)}; sum over the axes of a state"
            )
        return value.sum()

    return torch.func.grad(total)(z)


class HamiltonianField:
    """The field ``J grad H``; call it as ``field(z)``, or as ``field(t, z)`` where an integrator wants a time."""

    def __init__(self, H: Callable[[Tensor], Tensor], dim: int = -1) -> None:  # noqa: N803 (the field's letter)
        self.H = H
        self.dim = dim

    def __call__(self, *args: Tensor) -> Tensor:
        """The velocity at ``args[-1]``, of its shape."""
        z = args[-1]
        phase_space_halves(z, self.dim)
        along_q, along_p = gradient(self.H, z, self.dim, "H").chunk(2, dim=self.dim)
        return torch.cat([along_p, -along_q], dim=self.dim)


def hamiltonian_field(
    H: Callable[[Float[Tensor, "*batch dims"]], Float[Tensor, "*batch"]],  # noqa: N803
    dim: int = -1,
) -> HamiltonianField:
    """The vector field of Hamilton's equations for ``H``.

    Args:
        H: energy of each state of a batch, (..., 2n) -> (...); a state's energy depends on that state alone.
        dim: axis along which positions come first and momenta second: -1 for states (..., 2n), -3 for
            states (..., 2, n, d).

    Returns:
        A callable ``z -> dz/dt`` of the shape of z, which also takes ``(t, z)``. It can be differentiated
        again, so that H can be trained through an integrator.

    Laws: ``H`` is constant along the field, ``grad H . field == 0``; the field is free of divergence.

    >>> field = hamiltonian_field(lambda z: 0.5 * (z * z).sum(-1))  # the harmonic oscillator
    >>> field(torch.tensor([1.0, 0.0]))
    tensor([ 0., -1.])
    """
    return HamiltonianField(H, dim)


def poisson_bracket(
    f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], dim: int = -1
) -> Callable[[Tensor], Tensor]:
    """The Poisson bracket ``{f, g} = df/dq dg/dp - df/dp dg/dq`` of functions on phase space.

    Args:
        f: function of each state of a batch, (..., 2n) -> (...); its value may have further axes, (..., k).
        g: function of each state of a batch, (..., 2n) -> (...).
        dim: axis along which positions come first and momenta second: -1 for states (..., 2n), -3 for
            states (..., 2, n, d).

    Returns:
        The function ``z -> {f, g}(z)``, shaped as f. It can be differentiated again, and enter another bracket.

    Raises:
        ValueError: when called, if positions and momenta are not equally many, or a function does not give
            values for each state.

    Laws: ``{q_i, p_j} == 1`` for i = j, else 0; ``{f, g} == -{g, f}``; ``{f, g h} == g {f, h} + {f, g} h``
    (Leibniz); ``{f, {g, h}} + {g, {h, f}} + {h, {f, g}} == 0`` (Jacobi). ``{f, H}`` is df/dt along the flow of H, and
    ``hamiltonian_field({f, g}) == -lie_bracket(hamiltonian_field(f), hamiltonian_field(g))``.

    >>> poisson_bracket(lambda z: z[..., 0], lambda z: 0.5 * z[..., 1] ** 2)(torch.tensor([2.0, 3.0]))
    tensor(3.)
    """
    return lambda z: change_along_flow(f, g, z, dim, names=("f", "g"))


def change_along_flow(
    f: Callable[[Tensor], Tensor],
    H: Callable[[Tensor], Tensor],  # noqa: N803
    z: Tensor,
    dim: int,
    names: tuple[str, str],
) -> Tensor:
    """``Df[J grad H]`` at ``z``; ``names`` is what errors call the two functions."""
    phase_space_halves(z, dim)
    along_q, along_p = gradient(H, z, dim, names[1]).chunk(2, dim=dim)
    _, change = pushforward(f, (z,), (torch.cat([along_p, -along_q], dim=dim),))
    batch = z.shape[: dim % z.ndim]
    if change.shape[: len(batch)] != batch:
        raise ValueError(
            f"expected {names[0]} to give values for each state, shape {tuple(batch)} or with further axes behind, for "
            f"states {tuple(z.shape)} with their halves along axis {dim}, got {tuple(change.shape)}"
        )
    return change
