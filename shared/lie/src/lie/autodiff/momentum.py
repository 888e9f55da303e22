r"""Momentum maps of group actions, and the exact check that a Hamiltonian conserves them.

A group that acts on positions, :math:`\dot q = X_a(q)` for the algebra element a, acts on phase space by the cotangent
lift, whose Hamiltonian is the momentum :math:`Q_a(q, p) = p \cdot X_a(q)` (Marsden, Ratiu 1999, Introduction to
Mechanics and Symmetry, section 12.1). By Noether's theorem :math:`\{H, Q_a\} = 0` for all a just where H is invariant
under the (connected) group: the bracket is the derivative of H along the lifted action, and minus that of
:math:`Q_a` along the flow of H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lie.autodiff.hamiltonian import change_along_flow, phase_space_halves
from lie.autodiff.jvp import jvp_along
from lie.groups.base import LieGroup, check_is_group


def momentum_map(
    group: LieGroup,
    action: Callable[[Tensor, Tensor], Tensor] | None = None,
    dim: int = -1,
) -> Callable[[Tensor], Tensor]:
    """The momentum ``Q_a(q, p) = p . X_a(q)`` of each coordinate a of the algebra of ``group``.

    Args:
        group: any group; several bodies are moved together by the same element.
        action: ``(g, q) -> g q`` for one element g, (m, m), and all positions q; None takes ``group.act``.
        dim: axis along which positions come first and momenta second. -1: states (..., 2d), positions (..., d).
            -3: states (..., 2, n, d), positions (..., n, d) of n bodies.

    Returns:
        The function ``z -> Q(z)``, (..., dim of the group); the momentum of an algebra element a is ``Q(z) @ a``.
        For translations it is the total momentum, for rotations the angular momentum.

    Raises:
        ValueError: when called, if positions and momenta are not equally many, or the group does not act on them.

    Laws: ``Q`` is linear in p; ``hamiltonian_field(Q_a)`` moves positions by ``X_a``; ``{Q_a, Q_b} == Q_[a, b]``;
    ``Q(g z) == Q(z) Ad_g^-1`` for the lifted action (equivariance).

    >>> Q = momentum_map(SO3())  # the angular momentum q x p
    >>> Q(torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 0.0]))
    tensor([0., 0., 2.])
    """
    check_is_group(group)

    def momentum(z: Tensor) -> Tensor:
        q, p = phase_space_halves(z, dim)
        axis = dim % z.ndim
        if axis < z.ndim - 1 and q.shape[axis] == 1:
            q, p = q.squeeze(axis), p.squeeze(axis)  # (..., n, d)
        fields = _velocities(group, action, q)  # (dim, ..., d)
        if fields.shape != (group.dim, *q.shape):
            raise ValueError(
                f"expected an action that keeps the shape of the positions, {tuple(q.shape)}, "
                f"got {tuple(fields.shape[1:])}"
            )
        return (p * fields).flatten(axis + 1).sum(-1).movedim(0, -1)

    return momentum


def _velocities(group: LieGroup, action: Callable[[Tensor, Tensor], Tensor] | None, q: Tensor) -> Tensor:
    """The fundamental field of each coordinate of the algebra at the positions ``q``."""
    unit = torch.eye(group.dim, dtype=q.dtype, device=q.device)
    if action is None:
        return group.vector_field(unit.view(group.dim, *(1,) * (q.ndim - 1), group.dim), q)
    return jvp_along(lambda a: action(group.exp(a), q), torch.zeros_like(unit[0]), unit)[1]


def conservation_defect(
    H: Callable[[Tensor], Tensor],  # noqa: N803
    Q: Callable[[Tensor], Tensor],  # noqa: N803
    z: Float[Tensor, "..."],
    dim: int = -1,
) -> Float[Tensor, "..."]:
    """The bracket ``{H, Q}`` at ``z``: minus the rate of change of ``Q`` along the flow of ``H``, exact to rounding.

    Args:
        H: energy of each state of a batch, (..., 2n) -> (...).
        Q: what should be conserved, (..., 2n) -> (...) or (..., k), as of `momentum_map`.
        z: states.
        dim: axis along which positions come first and momenta second, as in `poisson_bracket`.

    Returns:
        ``{H, Q}``, of the shape of ``Q(z)``. No integration and no step size: it is a derivative at each state.

    Raises:
        ValueError: if positions and momenta are not equally many, or a function does not give values for each state.

    Law: for ``Q = momentum_map(group)`` it is the derivative of ``H`` along the lifted action of each generator, zero
    for all of them at all states just where H is invariant under the group (its connected component).

    >>> central = lambda z: 0.5 * z[..., 3:].square().sum(-1) - 1 / z[..., :3].norm(dim=-1)
    >>> conservation_defect(central, momentum_map(SO3()), torch.tensor([1.0, 0.0, 0.0, 2.0, 3.0, 0.0])).abs()
    tensor([0., 0., 0.])
    """
    return -change_along_flow(Q, H, z, dim, names=("Q", "H"))
