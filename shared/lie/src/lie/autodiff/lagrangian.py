r"""The vector field of the Euler-Lagrange equations of a Lagrangian L(q, v).

With z = (q, v), :math:`\dot q = v` and the acceleration solves

.. math:: M \dot v = \frac{\partial L}{\partial q} - \frac{\partial^2 L}{\partial v\, \partial q}\, v, \qquad
    M = \frac{\partial^2 L}{\partial v^2}

(Arnold 1989, Mathematical Methods of Classical Mechanics, sections 12 and 13; Cranmer et al. 2020, Lagrangian Neural
Networks, arXiv 2003.04630, equation 6). The gradient of L is one reverse pass; pushed forward along the unit velocities
and along (v, 0) it gives M, column by column, and the product with v: n + 1 tangents instead of the 2n x 2n Hessian. M
is symmetric, and positive definite where the velocities have an energy, so a Cholesky factor solves the equation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lie.autodiff.hamiltonian import gradient, phase_space_halves
from lie.autodiff.jvp import jvp_along
from lie.groups.precision import HALF


class LagrangianField:
    """The Euler-Lagrange field; call it as ``field(z)``, or as ``field(t, z)`` where an integrator wants a time."""

    def __init__(self, L: Callable[[Tensor], Tensor], dim: int = -1, *, check: bool = True) -> None:  # noqa: N803
        self.L = L
        self.dim = dim
        self.check = check

    def __call__(self, *args: Tensor) -> Tensor:
        """The velocity (v, a) of the state ``args[-1]`` = (q, v), of its shape."""
        z = args[-1]
        _, v = phase_space_halves(z, self.dim)
        force, mass, transport = self._expansion(z)
        if z.dtype in HALF:  # for which no factorisation exists
            force, mass, transport = force.float(), mass.float(), transport.float()
        rest = (force - transport).unsqueeze(-1)  # (..., N, 1)
        if self.check:
            try:
                factor = torch.linalg.cholesky_ex(mass, check_errors=True)[0]
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  (public, not in __all__)
                raise ValueError(
                    "expected a positive definite mass matrix d2L/dv2 at every state (all velocities with a positive "
                    f"kinetic energy, and finite states), got: {error} Use coordinates without superfluous velocities, "
                    "or check=False for NaN at such states"
                ) from error
            a = torch.cholesky_solve(rest, factor)
        else:
            factor, info = torch.linalg.cholesky_ex(mass)
            a = torch.cholesky_solve(rest, factor)
            a = a.masked_fill((info != 0)[..., None, None], torch.nan)
        return torch.cat([v, a.reshape(v.shape).to(v.dtype)], dim=self.dim)

    def mass_matrix(self, z: Float[Tensor, "..."]) -> Float[Tensor, "*batch N N"]:
        """The mass matrix ``d2L/dv2`` of each state, its N velocities in their order in memory."""
        return self._expansion(z)[1]

    def momentum(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The state (q, p) of the Hamiltonian side, ``p = dL/dv`` (the Legendre transform), of the shape of z."""
        q, _ = phase_space_halves(z, self.dim)
        return torch.cat([q, gradient(self.L, z, self.dim, "L").chunk(2, dim=self.dim)[1]], dim=self.dim)

    def energy(self, z: Float[Tensor, "..."]) -> Float[Tensor, "*batch"]:
        """The energy ``v . dL/dv - L`` of each state, constant along the field."""
        _, v = phase_space_halves(z, self.dim)
        p = gradient(self.L, z, self.dim, "L").chunk(2, dim=self.dim)[1]
        return (v * p).flatten(self.dim % z.ndim).sum(-1) - self.L(z)

    def _expansion(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``dL/dq`` (..., N), ``d2L/dv2`` (..., N, N) and ``d2L/dvdq v`` (..., N)."""
        q, v = phase_space_halves(z, self.dim)
        axis = self.dim % z.ndim  # where a state's own axes begin
        count = v.shape[axis:].numel()
        unit = torch.eye(count, dtype=z.dtype, device=z.device)
        unit = unit.view(count, *(1,) * axis, *v.shape[axis:]).expand(count, *v.shape)
        along_v = torch.cat([torch.zeros_like(unit), unit], dim=axis + 1)
        along_q = torch.cat([v, torch.zeros_like(q)], dim=axis)
        tangents = torch.cat([along_v, along_q.unsqueeze(0)])  # (N + 1, *z.shape)
        slope, pushed = jvp_along(lambda state: gradient(self.L, state, self.dim, "L"), z, tangents)
        force = slope.chunk(2, dim=axis)[0].flatten(axis)
        pushed = pushed.chunk(2, dim=axis + 1)[1].flatten(axis + 1)  # (N + 1, ..., N)
        return force, pushed[:-1].movedim(0, -1), pushed[-1]


def lagrangian_field(
    L: Callable[[Float[Tensor, "*batch dims"]], Float[Tensor, "*batch"]],  # noqa: N803
    dim: int = -1,
    *,
    check: bool = True,
) -> LagrangianField:
    """The vector field of the Euler-Lagrange equations for ``L``.

    Args:
        L: Lagrangian of each state of a batch, (..., 2n) -> (...); a state's value depends on that state alone.
        dim: axis along which positions come first and velocities second: -1 for states (..., 2n), -3 for
            states (..., 2, n, d).
        check: whether to raise where the mass matrix is not positive definite. It waits for the accelerator at each
            call; False does not, and gives NaN accelerations at those states alone.

    Returns:
        A callable ``z = (q, v) -> (v, dv/dt)`` of the shape of z, which also takes ``(t, z)``. It can be
        differentiated again. Its methods ``mass_matrix``, ``momentum`` and ``energy`` are those of the state z.

    Raises:
        ValueError: when called, if positions and velocities are not equally many, ``L`` does not give one value a
            state, or the mass matrix is not positive definite.

    Laws: ``energy`` is constant along the field; a total derivative added to L, ``Df(q)[v]``, changes nothing;
    ``momentum`` takes the field to ``hamiltonian_field`` of the energy in (q, p).

    >>> field = lagrangian_field(lambda z: z[..., 1] ** 2 - 0.5 * z[..., 0] ** 2)  # a mass of 2 on a spring
    >>> field(torch.tensor([1.0, 3.0]))
    tensor([ 3.0000, -0.5000])
    """
    return LagrangianField(L, dim, check=check)
