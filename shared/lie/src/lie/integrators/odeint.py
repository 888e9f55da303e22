"""One entrance to all integrators: ``odeint(field, y0, t, method=...)``, shaped as torchdiffeq's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lie.integrators.symplectic import leapfrog

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun3", "rk4", "explicit_adams", "implicit_adams")
SCIPY = ("scipy_solver",)
SYMPLECTIC = ("leapfrog",)
METHODS = (*ADAPTIVE, *FIXED, *SCIPY, *SYMPLECTIC)
"""Names that `odeint` takes as ``method``."""


def odeint(
    field: Callable[[Tensor, Tensor], Tensor],
    y0: Float[Tensor, "..."],
    t: Float[Tensor, " T"],
    *,
    method: str = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-9,
    adjoint: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Float[Tensor, "T ..."]:
    """The solution of ``dy/dt = field(t, y)``, ``y(t[0]) = y0``, at the times ``t``.

    Args:
        field: velocity at time t (a scalar tensor) and state y, of the shape of y.
        y0: initial state, any shape.
        t: times, strictly increasing or strictly decreasing, at least one.
        method: a name in `METHODS`: torchdiffeq's, or ``leapfrog`` for separable Hamiltonian fields.
        rtol, atol: relative and absolute tolerance of the adaptive methods; one step size for the whole batch.
        adjoint: differentiate by the continuous adjoint (constant memory; ``field`` must be a module)
            instead of through the steps. torchdiffeq's methods only.
        options: passed to the method. Fixed-step methods take one step per interval of ``t`` unless
            ``step_size`` is given; ``leapfrog`` takes ``step_size`` and ``dim``.

    Returns:
        States at the times, (T, ...).

    Raises:
        ValueError: for an unknown method, times that are not strictly monotonic, non-finite input, or a
            field whose output has another shape than the state.
        FloatingPointError: if the solution leaves the finite numbers; the message names the first such time.

    Source: torchdiffeq (Chen 2018) for its methods; Hairer, Lubich, Wanner 2006, section I.1 for leapfrog.
    """
    if method not in METHODS:
        from lie.run.errors import unknown_name

        raise unknown_name("method", method, METHODS)
    _check(field, y0, t)
    options = dict(options or {})
    if method in SYMPLECTIC:
        if adjoint:
            raise ValueError("the continuous adjoint is for torchdiffeq's methods; use adjoint=False with leapfrog")
        solution = leapfrog(field, y0, t, **options)
    else:
        import torchdiffeq

        if adjoint and not isinstance(field, torch.nn.Module):
            raise TypeError(
                f"expected a torch.nn.Module for the adjoint (its parameters receive gradients), got {type(field)}"
            )
        solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        try:
            with warnings.catch_warnings():
                # torchdiffeq warns of options a method does not use: here the caller is told by an error.
                warnings.filterwarnings("error", message=".*[Uu]nexpected arguments.*")
                solution: Tensor = solve(  # type: ignore[assignment]  (a tensor without events)
                    field, y0, t, method=method, rtol=rtol, atol=atol, options=options or None
                )
        except AssertionError as error:
            raise FloatingPointError(
                f"{method} failed between t = {float(t[0]):g} and {float(t[-1]):g}: {error}; the field may be stiff "
                "or singular there: loosen rtol and atol, or shorten the horizon"
            ) from error
        except UserWarning as error:
            raise ValueError(f"{method}: {error}") from None
    finite = torch.isfinite(solution.detach()).flatten(1).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0, 0])
        raise FloatingPointError(
            f"the solution is not finite from t = {float(t[first]):g} on ({method}); "
            "use smaller steps or check the field"
        )
    return solution


def _check(field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t: Tensor) -> None:
    if not y0.is_floating_point() or not t.is_floating_point():
        raise TypeError(f"expected floating-point state and times, got {y0.dtype} and {t.dtype}")
    if t.ndim != 1 or t.numel() == 0:
        raise ValueError(f"expected times of shape (T,) with T >= 1, got {tuple(t.shape)}")
    steps = t.diff()
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError("expected strictly increasing or strictly decreasing times; sort them and drop repeats")
    if not torch.isfinite(y0).all() or not torch.isfinite(t).all():
        raise ValueError("expected a finite initial state and finite times, got NaN or infinity")
    velocity = field(t[0], y0)
    if velocity.shape != y0.shape:
        raise ValueError(
            f"expected a field of the state's shape {tuple(y0.shape)}, got {tuple(velocity.shape)} from field(t, y)"
        )
