"""The derivative of each of torch's operations, for many tangents at once."""

from collections.abc import Callable
from typing import Any

from liederivative.derivative.rules import attention, linear, movement, normalisation, pointwise
from liederivative.derivative.rules.call import Call, operator_name
from liederivative.derivative.rules.movement import push_view

RULES: dict[str, Callable[[Call], Any]] = {
    **movement.RULES,
    **linear.RULES,
    **pointwise.RULES,
    **normalisation.RULES,
    **attention.RULES,
}
"""By the operator's name. A rule returns the tangents of each output, None for those that do not move, or
NotImplemented, and then torch's own forward mode is asked."""

FACTORIES = frozenset(
    {
        *("zeros", "empty", "ones", "full", "empty_strided", "zeros_like", "ones_like", "empty_like", "full_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"),
    }
)
"""What makes a tensor that depends on no value."""

OVERWRITES = frozenset({"copy", "fill", "zero", "uniform", "normal"})
"""Written values that do not depend on those before."""

MUTATES_WITHOUT_INPUT = frozenset({"relu", "add", "sub"})
"""Whose derivative needs no value from before the write."""

__all__ = ["FACTORIES", "MUTATES_WITHOUT_INPUT", "OVERWRITES", "RULES", "Call", "operator_name", "push_view"]
