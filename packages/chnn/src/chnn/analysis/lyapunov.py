r"""Lyapunov exponents on the constraint manifold: tangent vectors moved by the derivative of the field, and QR.

A tangent vector at (x, v) is a pair (a, b) of vectors tangent to the constraints: the positions change by a, the
velocities by b and by what keeps them tangent, :math:`n(a) = -P A^T (G^{-1} (\dot D_a \cdot A v) \circ D)`. Lengths are
measured by the mass matrix, :math:`|a|_M^2 + |b|_M^2` (the Sasaki metric), for which the symplectic form is
:math:`\langle a, b' \rangle_M - \langle a', b \rangle_M`. Frames start as :math:`w_1, ..., w_f, J w_f, ..., J w_1` with
:math:`J (a, b) = (-b, a)` and isotropic w. Then for a conservative system the QR factors of every interval are those of
the Iwasawa decomposition of the symplectic group, and their diagonals pair to 1, not only in the limit: what is left of
the pairing is the error of the integration.

Source: Benettin, Galgani, Giorgilli, Strelcyn 1980, Meccanica 15, 9; Leimkuhler and Van Vleck 1997, Numer. Math. 77,
269 (symplectic frames).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lie.integrators import dop853
from lie.run import UserError, unknown_name
from torch import Tensor

from chnn.mechanics import Constraints, Metric, project_fixed, project_velocity
from chnn.mechanics.constraints import solve_factor
from chnn.simulation import BACKENDS
from chnn.simulation.errors import Untraceable
from chnn.systems import System

_BLOCKS = 20  # of time, whose means give the standard error


@dataclass(frozen=True)
class LyapunovExponents:
    """Exponents of each trajectory and how far they have converged.

    Fields:
        exponents: (B, k), 1/s, in the order of the frame: descending but for what has not converged.
        error: (B, k), 1/s, the standard error by the means over 20 blocks of time; blocks shorter than the correlation
            time make it too small.
        times: (I,), s, ends of the intervals after the transient.
        running: (I, B, k), the estimates up to these times.
        complete: whether k is the dimension of the constraint manifold of positions and velocities.
    """

    exponents: Float[Tensor, "B k"]
    error: Float[Tensor, "B k"]
    times: Float[Tensor, " I"]
    running: Float[Tensor, "I B k"]
    complete: bool

    @property
    def total(self) -> Float[Tensor, " B"]:
        """The sum of the exponents, 1/s: how fast phase volume grows, 0 for a conservative system if complete."""
        return self.exponents.sum(-1)

    @property
    def pairing(self) -> Float[Tensor, " B"]:
        """The largest ``|e_i + e_(k + 1 - i)|``, 1/s: 0 for a conservative system if complete."""
        return (self.exponents + self.exponents.flip(-1)).abs().amax(-1)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a file: descending means over trajectories, their standard error, and those of each."""
        count = len(self.exponents)
        spread = self.exponents.std(0) / count**0.5 if count > 1 else self.error[0]
        mean, order = self.exponents.mean(0).sort(descending=True)  # frames turn to this order, but slowly where close
        error = torch.maximum(spread, self.error.square().mean(0).sqrt() / count**0.5)
        return {
            "exponents_mean": mean.tolist(),
            "exponents_standard_error": error[order].tolist(),
            "exponents": self.exponents.tolist(),
            "error": self.error.tolist(),
            "pairing_max": float(self.pairing.max()) if self.complete else None,
            "sum_mean": float(self.total.mean()) if self.complete else None,
            "sum_max": float(self.total.abs().max()) if self.complete else None,
            "time": float(self.times[-1]),
        }


def lyapunov(
    system: System,
    z0: Float[Tensor, "B 2 n d"],
    horizon: float,
    *,
    num: int | None = None,
    every: float | None = None,
    transient: float = 0.0,
    rtol: float = 1e-9,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    progress: Callable[[float], object] | None = None,
) -> LyapunovExponents:
    """The ``num`` largest Lyapunov exponents of the motion from each state, in float64.

    Args:
        system: the system, without forces that depend on time.
        z0: initial states on the constraints.
        horizon: time, s, over which growth is averaged, after the transient.
        num: how many; 1 is the maximal exponent; all, twice the degrees of freedom, by default.
        every: time between two orthonormalisations, s; ten of the system's ``dt`` by default. Long ones let vectors
            align and cost accuracy of the smaller exponents.
        transient: time, s, before growth counts, in which the frame turns to the directions of growth.
        rtol: relative tolerance of a step, of the state and its tangent vectors.
        backend: "numba", "torch", or "auto", as for `System.simulate`.
        generator: of the frame's random start.
        progress: called with the fraction done.

    Raises:
        UserError: for numbers out of range or bad states.
        IntegrationError: if the integration cannot go on.

    Laws, of a conservative system and all exponents, at any horizon: they sum to 0 and pair, e_i = -e_(k + 1 - i), to
    the error of integration. In the limit there are two zeros for the energy and two for each further conserved
    momentum.

    >>> import torch
    >>> from chnn.systems import ChainPendulum
    >>> system = ChainPendulum(2)
    >>> z0 = system.sample(2, generator=torch.Generator().manual_seed(0))
    >>> lyapunov(system, z0, 3.0).exponents.shape
    torch.Size([2, 4])
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    freedom = system.description.degrees_of_freedom
    count = 2 * freedom if num is None else num
    every = 10.0 * system.dt if every is None else every
    if not 1 <= count <= 2 * freedom:
        raise UserError(f"expected between 1 and {2 * freedom} exponents of {system.name}, got {num}")
    if not 0.0 < every <= horizon < float("inf") or not 0.0 <= transient < float("inf"):
        raise UserError(
            f"expected 0 < every <= horizon and transient >= 0, got {every:g}, {horizon:g} and {transient:g}"
        )
    with torch.no_grad():
        z, _ = system.check_start(z0, torch.zeros(1, dtype=torch.float64))
        frame = _first_frame(system, z, count, generator)
        steps, skipped = max(1, round(horizon / every)), round(transient / every)
        growth = []
        for step in range(skipped + steps):
            z, frame = _flow(system, z, frame, every, rtol, backend)
            frame, factors = _orthonormal(system, z, frame)
            if step >= skipped:
                growth.append(factors.log())
            if progress is not None:
                progress((step + 1) / (skipped + steps))
    logs = torch.stack(growth)  # (I, B, k)
    ends = torch.arange(1, steps + 1, dtype=torch.float64, device=z.device) * every
    blocks = logs[: steps // _BLOCKS * _BLOCKS].unflatten(0, (_BLOCKS, -1)) if steps >= _BLOCKS else logs.unsqueeze(1)
    means = blocks.mean(1) / every
    error = means.std(0) / len(means) ** 0.5 if len(means) > 1 else torch.full_like(means[0], torch.nan)
    running = logs.cumsum(0) / ends[:, None, None]
    return LyapunovExponents(running[-1], error, transient + ends, running, count == 2 * freedom)


# Frames are (B, k, 2, n, d): pairs (a, b), tangent to the constraints.


def _inner_root(system: System, like: Tensor) -> Tensor:
    return torch.linalg.cholesky(system.parts(like)[2])


def _first_frame(system: System, z: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    constraints, metric, *_ = system.parts(z)
    freedom = system.description.degrees_of_freedom
    x = z[:, :1]  # (B, 1, 2, n, d)
    shape = (len(z), freedom, *z.shape[2:])
    noise = torch.randn(shape, dtype=torch.float64, generator=generator).to(z)
    a = project_velocity(constraints, metric, x[:, :, 0] if x.ndim == 5 else x, noise)
    root = _inner_root(system, z)
    flat = (root.mT @ a).flatten(-2).mT  # (B, n d, f)
    Q = torch.linalg.qr(flat).Q.mT.unflatten(-1, z.shape[2:])  # noqa: N806
    e = torch.linalg.solve_triangular(root.mT, Q, upper=True)  # orthonormal by the masses
    w = torch.stack([e, e], 2) / 2**0.5
    paired = torch.stack([-e, e], 2).flip(1) / 2**0.5
    return torch.cat([w, paired], 1)[:, :count]


def _orthonormal(system: System, z: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The frame orthonormal, and the factors by which its vectors had grown, (B, k)."""
    root = _inner_root(system, z)
    flat = (root.mT @ frame).flatten(2).mT  # (B, 2 n d, k)
    Q, R = torch.linalg.qr(flat)  # noqa: N806
    diagonal = torch.diagonal(R, dim1=-2, dim2=-1)
    Q = (Q * diagonal.sign().unsqueeze(-2)).mT.unflatten(-1, frame.shape[2:])  # noqa: N806
    return torch.linalg.solve_triangular(root.mT, Q, upper=True), diagonal.abs()


def _lift(constraints: Constraints, metric: Metric, z: Tensor, frame: Tensor) -> Tensor:
    """Changes of positions and velocities (B, k, 2, n, d) of a frame at z (B, 2, n, d)."""
    a, b = frame.unbind(2)
    if constraints.A.shape[0] == 0:
        return frame
    x, v = z.unsqueeze(1).unbind(2)
    A = constraints.A  # noqa: N806
    U = constraints.spans(x).expand(*a.shape[:2], -1, -1)  # noqa: N806
    D = constraints.directions(U)  # noqa: N806
    rate = (constraints.curvature(U, A @ a) * (A @ v)).sum(-1)
    factor = torch.linalg.cholesky(metric.coupling * (D @ D.mT))
    across = metric.back @ (solve_factor(factor, rate).unsqueeze(-1) * D)
    return torch.stack([a, b - across], 2)


def _flow(system: System, z: Tensor, frame: Tensor, span: float, rtol: float, backend: str) -> tuple[Tensor, Tensor]:
    """States and frames after a time; every vector is integrated with a copy of its state."""
    constraints, metric, *_ = system.parts(z)
    batch, count = frame.shape[:2]
    changes = _lift(constraints, metric, z, frame)
    both = torch.cat([z.unsqueeze(1).expand_as(changes), changes], 2).flatten(0, 1)  # (B k, 4, n, d)
    t = torch.tensor([0.0, span], dtype=torch.float64, device=z.device)
    end = _flow_many(system, both, t, rtol, backend).unflatten(0, (batch, count))
    state, moved = end[:, 0, :2], end[:, :, 2:]
    x = state[:, :1]  # the copies differ by the tolerance
    return state, project_velocity(constraints, metric, x.unsqueeze(2), moved)


def _flow_many(system: System, both: Tensor, t: Tensor, rtol: float, backend: str) -> Tensor:
    if backend != "torch" and (backend == "numba" or both.device.type == "cpu"):
        from chnn.simulation.compiled import simulate_compiled

        try:
            return simulate_compiled(system, both, t, rtol=rtol, atol=1e-2 * rtol, kind="tangent")[:, -1]
        except Untraceable as error:
            if backend == "numba":
                raise UserError(f"backend 'numba' cannot move tangent vectors of {system.name}: {error}") from None
    constraints, metric, *_ = system.parts(both)

    def field(_: Tensor, y: Tensor) -> Tensor:
        z, change = y[..., :2, :, :], y[..., 2:, :, :]
        return torch.cat(torch.func.jvp(system.field, (z,), (change,)), -3)

    def onto(y: Tensor) -> Tensor:
        x, v = project_fixed(constraints, metric, y[..., 0, :, :], y[..., 1, :, :])
        return torch.cat([torch.stack([x, v], -3), y[..., 2:, :, :]], -3)

    project = onto if constraints.num_constraints else None
    return dop853(field, both, t, rtol=rtol, atol=1e-2 * rtol, project=project, max_steps=1_000_000)[-1]
