r"""The Hamiltonian vector field :math:`J \nabla H` of a function on phase space.

With z = (q, p), :math:`\dot q = \partial H / \partial p`, :math:`\dot p = -\partial H / \partial q`
(Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, section on Hamiltonian mechanics).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


class HamiltonianField:
    """The field ``J grad H``; call it as ``field(z)``, or as ``field(t, z)`` where an integrator wants a time."""

    def __init__(self, H: Callable[[Tensor], Tensor], dim: int = -1) -> None:  # noqa: N803 (the field's letter)
        self.H = H
        self.dim = dim

    def __call__(self, *args: Tensor) -> Tensor:
        """The velocity at ``args[-1]``, of its shape."""
        z = args[-1]
        if z.shape[self.dim] % 2:
            raise ValueError(
                f"expected positions and momenta, equally many, along axis {self.dim}, got shape {tuple(z.shape)}"
            )
        gradient = torch.func.grad(lambda point: self.H(point).sum())(z)
        along_q, along_p = gradient.chunk(2, dim=self.dim)
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
    tensor([0., -1.])
    """
    return HamiltonianField(H, dim)
