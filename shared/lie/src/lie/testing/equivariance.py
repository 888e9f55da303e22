"""Assert that a map commutes with a pair of actions, ``f(g x) == g f(x)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def equivariance_error(
    f: Callable[..., Tensor],
    action_in: Callable[[Tensor], Tensor],
    action_out: Callable[[Tensor], Tensor],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> float:
    """``|f(g x) - g f(x)| / |g f(x)|`` in the maximum norm; 0 where both vanish."""
    with torch.no_grad():
        moved_first = f(action_in(x), *args, **kwargs)
        moved_last = action_out(f(x, *args, **kwargs))
    if moved_first.shape != moved_last.shape:
        raise AssertionError(
            f"f(action_in(x)) has shape {tuple(moved_first.shape)}, action_out(f(x)) {tuple(moved_last.shape)}; "
            "action_out does not fit the output of f"
        )
    if not moved_first.numel():
        raise ValueError(f"expected outputs with entries to compare, got shape {tuple(moved_first.shape)}")
    difference = (moved_first - moved_last).abs().max()
    scale = moved_last.abs().max()
    return float(difference / scale) if scale > 0 else float(difference)


def assert_equivariant(
    f: Callable[..., Tensor],
    action_in: Callable[[Tensor], Tensor],
    action_out: Callable[[Tensor], Tensor],
    x: Tensor,
    *args: Any,
    tolerance: float | None = None,
    **kwargs: Any,
) -> None:
    """Assert ``f(action_in(x)) == action_out(f(x))`` up to ``tolerance``, relative in the maximum norm.

    Args:
        f: the map under test, called as ``f(x, *args, **kwargs)``.
        action_in: how one group element moves an input.
        action_out: how the same element moves an output; ``lambda y: y`` where the output is invariant.
        x: an input.
        tolerance: largest relative error; None takes 1e-12 in float64, 1e-5 in float32, 100 epsilons in float16 and
            16 in bfloat16, whose epsilon is 0.008.

    Raises:
        AssertionError: if the error is larger or not a number; the message gives it.
        ValueError: if the output is empty: nothing would be tested.

    >>> from lie.groups import SO2
    >>> turn = lambda x: SO2().act(SO2().exp(torch.tensor([0.7])), x)
    >>> assert_equivariant(lambda x: 2 * x, turn, turn, torch.randn(5, 2))
    """
    if tolerance is None:
        # In bfloat16, 100 epsilons would be most of the output.
        tolerance = {torch.float64: 1e-12, torch.float16: 0.1, torch.bfloat16: 0.125}.get(x.dtype, 1e-5)
    error = equivariance_error(f, action_in, action_out, x, *args, **kwargs)
    if not error <= tolerance:  # so that NaN fails
        raise AssertionError(
            f"not equivariant: |f(g x) - g f(x)| / |g f(x)| = {error:.3g}, expected at most {tolerance:.3g} "
            f"for x of shape {tuple(x.shape)} and {x.dtype}"
        )
