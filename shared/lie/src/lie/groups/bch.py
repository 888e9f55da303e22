r"""The Baker-Campbell-Hausdorff series :math:`\log(e^a e^b)` to order 5, from brackets alone.

With :math:`[x_1 x_2 \dots x_n] = [x_1, [x_2, \dots x_n]]`:

.. math::
    a + b + \tfrac12 [ab] + \tfrac1{12}([aab] + [bba]) - \tfrac1{24} [baab]
    - \tfrac1{720}([bbbba] + [aaaab]) + \tfrac1{360}([abbba] + [baaab]) + \tfrac1{120}([babab] + [ababa])

(Dynkin 1947; Varadarajan 1984, Lie Groups, Lie Algebras, and Their Representations, section 2.15.)
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

MAXIMUM_ORDER = 5


def baker_campbell_hausdorff(
    bracket: Callable[[Tensor, Tensor], Tensor],
    a: Float[Tensor, "*batch dim"],
    b: Float[Tensor, "*#batch dim"],
    order: int,
) -> Float[Tensor, "*batch dim"]:
    """The terms of degree 1 to ``order`` in a and b together."""
    if not isinstance(order, int) or not 1 <= order <= MAXIMUM_ORDER:
        raise ValueError(f"expected a whole order between 1 and {MAXIMUM_ORDER}, got {order}")
    total = a + b
    if order == 1:
        return total
    ab = bracket(a, b)
    total = total + ab / 2
    if order == 2:
        return total
    aab, bab = bracket(a, ab), bracket(b, ab)  # [bba] = -[bab]
    total = total + (aab - bab) / 12
    if order == 3:
        return total
    baab = bracket(b, aab)
    total = total - baab / 24
    if order == 4:
        return total
    aaab, bbab = bracket(a, aab), bracket(b, bab)
    outer = bracket(b, bbab) - bracket(a, aaab)  # -([bbbba] + [aaaab])
    middle = bracket(b, aaab) - bracket(a, bbab)  # [baaab] + [abbba]
    inner = bracket(b, bracket(a, bab)) - bracket(a, baab)  # [babab] + [ababa]
    return total + outer / 720 + middle / 360 + inner / 120
