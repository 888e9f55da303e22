r"""Projection onto a constraint surface :math:`\{y : c(y) = 0\}`, by Newton's method on the multipliers.

.. math::
    y \leftarrow y - M^{-1} G^T \lambda, \qquad G M^{-1} G^T \lambda = c(y), \qquad G = c'(y)

Each step is the nearest point of the linearised surface in the metric M; convergence is quadratic (Hairer, Lubich,
Wanner 2006, Geometric Numerical Integration, sections IV.4 and VII.1.3). Each sample iterates to its own convergence.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from lie.integrators.errors import IntegrationError
from lie.integrators.transforms import anywhere, differentiates_forward, positions

MAXIMUM_ITERATIONS = 30


def constraint_rows(constraint: Callable[[Tensor], Tensor], q: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """The residuals (..., C) at ``q`` (..., *state) and the rows of their Jacobian, (C, ..., *state)."""
    residual, pull = torch.func.vjp(constraint, q)  # type: ignore[misc]  (two without has_aux)
    batch = q.shape[: q.ndim - axes]
    if residual.ndim != len(batch) + 1 or residual.shape[:-1] != batch or residual.shape[-1] == 0:
        raise ValueError(
            f"expected a constraint (..., state) -> (..., C), {tuple(batch)} samples, got {tuple(residual.shape)} from "
            f"states of shape {tuple(q.shape)}"
        )
    basis = torch.eye(residual.shape[-1], dtype=q.dtype, device=q.device)
    basis = basis.view(-1, *([1] * len(batch)), residual.shape[-1]).expand(-1, *residual.shape)
    return residual, torch.func.vmap(lambda row: pull(row)[0])(basis)


def solve_multipliers(rows: Tensor, directions: Tensor, residual: Tensor, axes: int) -> Tensor:
    """lambda (..., C) with ``rows . (directions lambda) == residual``; NaN where the constraints are dependent."""
    flat_rows, flat_directions = rows.flatten(-axes), directions.flatten(-axes)  # (C, ..., n)
    A = torch.einsum("i...n,j...n->...ij", flat_rows, flat_directions)  # noqa: N806
    solution, info = torch.linalg.solve_ex(A, residual.unsqueeze(-1))
    solution = solution.squeeze(-1)
    return torch.where((info == 0).unsqueeze(-1), solution, torch.full_like(solution, torch.nan))


def along(directions: Tensor, multipliers: Tensor, axes: int) -> Tensor:
    """The sum of ``directions`` (C, ..., *state) times ``multipliers`` (..., C)."""
    return (directions * multipliers.movedim(-1, 0).view(*directions.shape[:-axes], *([1] * axes))).sum(0)


def projection(
    constraint: Callable[[Tensor], Tensor],
    *,
    axes: int = 1,
    inverse_mass: Callable[[Tensor], Tensor] | None = None,
    max_iterations: int = MAXIMUM_ITERATIONS,
) -> Callable[[Tensor], Tensor]:
    """A map onto ``constraint(y) == 0``, for the ``project`` of any method here.

    Args:
        constraint: residuals of a batch of states, (..., *state) -> (..., C), each of its own state alone.
        axes: how many trailing axes make one state.
        inverse_mass: applies M^-1 to covectors of the shape of a state; None is the Euclidean metric.
        max_iterations: after which to give up.

    Returns:
        ``project(y) -> y``, which leaves its argument as it is. It can be differentiated.

    Raises:
        IntegrationError: (by the map) if a sample does not converge: impossible or dependent constraints.

    Laws: the residual of the result is at rounding level; a point of the surface stays where it is.

    >>> onto_circle = projection(lambda y: y.square().sum(-1, keepdim=True) - 1.0)
    >>> onto_circle(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    if not callable(constraint):
        raise TypeError(f"expected a constraint y -> residuals, got {constraint!r}")
    if axes < 1 or max_iterations < 1:
        raise ValueError(f"expected at least one axis and one iteration, got {axes} and {max_iterations}")

    def project(y: Tensor) -> Tensor:
        if not isinstance(y, Tensor):
            raise TypeError(f"expected states as a tensor, got {type(y).__name__}; use torch.as_tensor")
        if y.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"expected floating-point states (float32 or float64), got {y.dtype}; use y.to(torch.float64)"
            )
        if y.is_meta:
            raise ValueError("expected states with values, got some on the device 'meta'; use .to('cpu')")
        if not torch.compiler.is_compiling() and anywhere(~torch.isfinite(y)):
            raise ValueError("expected finite states, got NaN or infinity")
        if y.ndim < axes:
            raise ValueError(f"expected states of {axes} axes, with or without a batch, got shape {tuple(y.shape)}")

        def correction(y: Tensor) -> Tensor:
            residual, rows = constraint_rows(constraint, y, axes)
            directions = rows if inverse_mass is None else torch.func.vmap(inverse_mass)(rows)
            return along(directions, solve_multipliers(rows, directions, residual, axes), axes)

        if y.numel() == 0:
            return y.clone()
        projected, failed = newton(lambda z: z - correction(z), y, axes, max_iterations)
        if anywhere(failed):
            raise IntegrationError(
                f"the projection did not converge in {max_iterations} iterations",
                "the constraints may be dependent or impossible there, or the point too far away",
                time=float("nan"), step_size=float("nan"), samples=positions(failed),
                reached=None,
            )  # fmt: skip
        return projected

    return project


def newton(improve: Callable[[Tensor], Tensor], y: Tensor, axes: int, max_iterations: int) -> tuple[Tensor, Tensor]:
    """``y <- improve(y)`` until each sample's change is rounding; which samples (...) failed."""
    batch = y.shape[: y.ndim - axes]
    flat = prod(y.shape[y.ndim - axes :])
    eps = torch.finfo(y.dtype).eps
    done = torch.zeros(batch, dtype=torch.bool, device=y.device)
    before = torch.full(batch, torch.inf, dtype=y.dtype, device=y.device)
    for number in range(max_iterations):
        new = improve(y)
        with torch.no_grad():
            change = (new - y).reshape(*batch, flat).abs().amax(-1)
            size = y.reshape(*batch, flat).abs().amax(-1)
            finished = (change <= eps * size) | ((change >= 0.5 * before) & (change <= 1e3 * eps * size))
        # Newton's error squares: from the exact point, one step has right first derivatives and two have right third.
        differentiated = new.requires_grad or differentiates_forward()
        stays = y.detach() + (new - new.detach()) if differentiated and number == 1 else y
        y = torch.where(done.view(*batch, *([1] * axes)), stays, new)
        done, before = done | finished, change
        if not anywhere(~done) and (number > 0 or not differentiated):
            break
    return y, ~done
