"""Derivatives along vector fields: products and jets in forward mode, brackets, fields of mechanics, conserved momenta.

Signs, here once for all of them: ``[X, Y] = DY[X] - DX[Y]``; ``{f, g} = df/dq dg/dp - df/dp dg/dq``;
``hamiltonian_field(H) = (dH/dp, -dH/dq)``.
"""

from lie.autodiff.fields import lie_bracket, lie_derivative
from lie.autodiff.hamiltonian import hamiltonian_field, poisson_bracket
from lie.autodiff.jet import jet
from lie.autodiff.jvp import jvp_along
from lie.autodiff.lagrangian import lagrangian_field
from lie.autodiff.momentum import conservation_defect, momentum_map

__all__ = [
    "conservation_defect",
    "hamiltonian_field",
    "jet",
    "jvp_along",
    "lagrangian_field",
    "lie_bracket",
    "lie_derivative",
    "momentum_map",
    "poisson_bracket",
]
