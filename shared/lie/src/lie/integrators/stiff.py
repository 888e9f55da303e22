r"""scipy's solvers for stiff equations, with the continuous adjoint along the stored solution.

.. math::
    \dot a = -J(t, y)^T a, \qquad L_\theta = \int a^T f_\theta\, dt, \qquad L_{t_i} = \pm a^T f

Backwards the state of a stiff equation explodes, and with it an adjoint that integrates the state again, as
torchdiffeq's does. Here the state is read off scipy's dense output and only the adjoint is integrated, which decays
backwards as fast as the state does forwards. Gradients of parameters are Gauss quadratures over its steps, so that the
size of the implicit systems is that of the state.

Source: Chen 2018; Kim, Ji, Deng, Ma, Rackauckas 2021, Stiff neural ordinary differential equations, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lie.integrators.adjoint import check_leaves, graph_leaves
from lie.integrators.fields import Field

_OPTIONS = ("solver", "max_step", "min_step")
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)  # exact for the products of cubics that dense output gives


def solve_with_adjoint(
    field: Field, y0: Tensor, t: Tensor, leaves: list[Tensor], *, rtol: float, atol: float, options: dict[str, Any]
) -> Tensor:
    """The states at ``t``, (T, ...), differentiable by y0, t and ``leaves``, the tensors that the field captures."""
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ValueError(f"expected options of scipy_solver among {_OPTIONS}, got {unknown[0]!r}")
    solver = options.get("solver", "LSODA")
    given: dict[str, Any] = {"max_step": options.get("max_step", np.inf)}
    if solver == "LSODA":
        given["min_step"] = options.get("min_step", 0.0)
    settings = {"method": solver, "rtol": rtol, "atol": atol, **given}
    return _Solve.apply(field, settings, y0, t, *leaves)  # type: ignore[no-any-return]


def _run(function: Callable[..., Any], start: float, end: float, y: np.ndarray, settings: dict[str, Any]) -> Any:
    from scipy.integrate import solve_ivp

    solution = solve_ivp(function, (start, end), y, dense_output=True, **settings)
    if not solution.success:
        raise FloatingPointError(
            f"scipy_solver gave up between t = {start:g} and {end:g}: {solution.message}; loosen rtol and atol, or "
            "shorten the horizon"
        )
    return solution


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Field, settings: dict[str, Any], y0: Tensor, t: Tensor, *leaves: Tensor) -> Tensor:
        def tensors(now: float, y: np.ndarray) -> tuple[Tensor, Tensor]:
            return t.new_tensor(now), torch.as_tensor(y, dtype=y0.dtype, device=y0.device).reshape(y0.shape)

        def velocity(now: float, y: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return field(*tensors(now, y)).reshape(-1).double().cpu().numpy()

        times = t.detach().double().tolist()
        start = y0.detach().reshape(-1).double().cpu().numpy()
        solution = _run(velocity, times[0], times[-1], start, settings).sol if len(times) > 1 else None
        rows = [start, *(solution(x) for x in times[1:])] if solution is not None else [start]
        ctx.field, ctx.settings, ctx.tensors, ctx.solution, ctx.times = field, settings, tensors, solution, times
        ctx.leaves, ctx.needs_times = leaves, t.requires_grad
        ctx.save_for_backward(y0, t, *leaves)
        return torch.stack([torch.as_tensor(x, dtype=y0.dtype, device=y0.device).reshape(y0.shape) for x in rows])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        y0, t, *_ = ctx.saved_tensors
        leaves, times = ctx.leaves, ctx.times
        rows = gradients[0].reshape(len(times), -1).double().cpu().numpy()

        def pulled(now: float, a: np.ndarray, by: tuple[Tensor, ...] | None) -> Any:
            """a^T J, or where ``by`` is given the gradients of a^T f by those tensors."""
            at, y = ctx.tensors(now, ctx.solution(now))
            with torch.enable_grad():
                y = y.requires_grad_()
                f = ctx.field(at, y)
            weight = torch.as_tensor(a, dtype=f.dtype, device=f.device).reshape(f.shape)
            wanted = (y,) if by is None else by
            if not f.requires_grad:
                slopes = tuple(torch.zeros_like(x) for x in wanted)
            else:
                check_leaves(graph_leaves([f]), [y, *leaves])
                slopes = torch.autograd.grad(f, wanted, weight, retain_graph=True, materialize_grads=True,
                                             allow_unused=True)  # fmt: skip
            return slopes[0].reshape(-1).double().cpu().numpy() if by is None else slopes

        def along(i: int, a: np.ndarray) -> float:
            with torch.no_grad():
                f = ctx.field(*ctx.tensors(times[i], ctx.solution(times[i])))
            return float(a @ f.reshape(-1).double().cpu().numpy())

        a, by_time = rows[-1].copy(), np.zeros(len(times))
        totals = [torch.zeros_like(x) for x in leaves]
        for i in range(len(times) - 1, 0, -1):
            by_time[i] = along(i, rows[i]) if ctx.needs_times else 0.0
            back = _run(lambda s, a: -pulled(s, a, None), times[i], times[i - 1], a, ctx.settings)
            for first, last in zip(back.t[:-1], back.t[1:], strict=True) if leaves else ():
                for node, weight in zip(_NODES, _WEIGHTS, strict=True):
                    now = 0.5 * (first + last) + 0.5 * (last - first) * node
                    slopes = pulled(now, back.sol(now), leaves)
                    totals = [x - 0.5 * (last - first) * weight * g for x, g in zip(totals, slopes, strict=True)]
            a = back.y[:, -1]
            if i == 1 and ctx.needs_times:
                by_time[0] = -along(0, a)
            a = a + rows[i - 1]
        start = torch.as_tensor(a, dtype=y0.dtype, device=y0.device).reshape(y0.shape)
        by_times = torch.as_tensor(by_time, dtype=t.dtype, device=t.device) if ctx.needs_times else None
        return (None, None, start, by_times, *totals)
