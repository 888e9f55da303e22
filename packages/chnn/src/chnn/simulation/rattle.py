r"""RATTLE and its composition of order 4: fixed steps that keep the symplectic form, for runs of millions of steps.

With the inverse mass P on the joints and the constraints' directions D (`chnn.mechanics.constraints`), in velocities:

.. math::
    v_{1/2} &= v_0 + \tfrac{h}{2} P F(x_0) - \tfrac1h P A^T(\nu \circ D_0), \quad
    x_1 = x_0 + h v_{1/2}, \quad g(x_1) = 0 \\
    v_1 &= v_{1/2} + \tfrac{h}{2} P F(x_1) - P A^T(\mu \circ D_1), \quad J_1 v_1 = 0

The multipliers :math:`\nu` take simplified Newton steps to rounding, all with the Gram matrix at :math:`x_0`; a step
that has not converged after a few takes more, and one that does not converge at all is an error. The energy then
oscillates within :math:`O(h^2)`, or :math:`O(h^4)` for three steps with the weights of the triple jump, and does not
drift.

Source: Andersen 1983; Hairer, Lubich, Wanner 2006, Geometric Numerical Integration, sections VII.1.4, VII.1.5, V.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from lie.integrators import IntegrationError
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import Constraints, Metric
from chnn.mechanics.conservative import depends_on_velocity, own_force_depends_on_velocity
from chnn.mechanics.constraints import solve_factor
from chnn.mechanics.projection import residual_bound

FEW, MANY = 5, 25
"""Newton's steps in a step of time: as many do for steps that are not long, and as many are tried at most."""

_CUBE = 2.0 ** (1.0 / 3.0)
WEIGHTS = {
    "rattle": (1.0,),
    "rattle4": (1.0 / (2.0 - _CUBE), -_CUBE / (2.0 - _CUBE), 1.0 / (2.0 - _CUBE)),
}
"""Parts of a step by method."""
REASON = (
    "RATTLE's multipliers did not converge",
    "take a smaller dt, or check the constraints: dependent ones have none",
)


def rattle_step(
    constraints: Constraints,
    metric: Metric,
    force: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch n d"],
    v: Float[Tensor, "*batch n d"],
    a: Float[Tensor, "*batch n d"],
    h: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "*batch"]]:
    """One step by ``h`` (a scalar): positions, velocities, ``P F`` there, and the square of what is left of g.

    ``a`` is ``P F`` at ``x``.
    """
    v = v + 0.5 * h * a
    new = x + h * v
    if constraints.joint_A.shape[0]:
        new = new - metric.lift @ (constraints.joint_A @ new - constraints.joint_b)
    if constraints.A.shape[0] == 0:
        a = metric.inverse @ force(new)
        return new, _on_joints(constraints, metric, v + 0.5 * h * a), a, 0.0 * new.sum((-2, -1))
    D = constraints.directions(constraints.spans(x))  # noqa: N806
    factor = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT)).L
    moved = torch.zeros_like(new)
    for _ in range(iterations):
        nu = solve_factor(factor, constraints.values(constraints.spans(new)))
        step = metric.back @ (nu.unsqueeze(-1) * D)
        new, moved = new - step, moved + step
    U = constraints.spans(new)  # noqa: N806
    left = constraints.values(U).square().sum(-1)
    a = metric.inverse @ force(new)
    v = _on_joints(constraints, metric, v - moved / h + 0.5 * h * a)
    D = constraints.directions(U)  # noqa: N806
    factor = torch.linalg.cholesky_ex(metric.coupling * (D @ D.mT)).L
    for _ in range(2):
        rate = (D * (constraints.A @ v)).sum(-1)
        v = v - metric.back @ (solve_factor(factor, rate).unsqueeze(-1) * D)
    return new, v, a, left


def _on_joints(constraints: Constraints, metric: Metric, v: Tensor) -> Tensor:
    return v - metric.lift @ (constraints.joint_A @ v) if constraints.joint_A.shape[0] else v


def check_conservative(system: Any) -> None:
    """RATTLE is for forces of the positions alone."""
    if system.damped:
        raise UserError(f"{system.name} is damped, and RATTLE keeps energy; use method='dop853', or take damping away")
    for force in system.description.forces:
        if depends_on_velocity(force, system.description):
            raise UserError(
                f"{system.name} has a force on velocities ({type(force).__name__}), which RATTLE would leave out; use "
                "method='dop853'"
            )
    if own_force_depends_on_velocity(system):
        raise UserError(
            f"{system.name} has a force on velocities ({type(system).__name__}.force), which RATTLE would leave out; "
            "use method='dop853'"
        )


def substeps(t: Float[Tensor, " T"], dt: float) -> tuple[Tensor, Tensor]:
    """Number and length of the equal steps of each interval, none longer than ``dt``."""
    spans = t.diff()
    counts = (spans / dt * (1.0 - 1e-12)).ceil().clamp(min=1).long()
    return counts, spans / counts


def allowed(system: Any, z0: Float[Tensor, "B 2 n d"]) -> tuple[float, float]:
    """The sum of g^2, m^4, above which a step takes more iterations, and above which it has failed: both rounding.

    A longest iteration ends where rounding lets it, which may be above the first.
    """
    constraints = system.parts(z0)[0]
    scalar = residual_bound(constraints, z0[:, 0])[:, : len(constraints.A)]
    largest = float(scalar.max()) if scalar.numel() else 0.0
    return (0.125 * largest) ** 2, constraints.num_constraints * largest**2


def simulate_rattle(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, " T"],
    *,
    method: str,
    dt: float,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T 2 n d"]:
    """By torch, on any device and with gradients.

    Raises:
        IntegrationError: if multipliers do not converge; names samples and time.
    """
    constraints, metric, *_ = system.parts(z0)
    x, v = z0.unbind(1)
    a = metric.inverse @ system.force(x)
    enough, limit = allowed(system, z0)
    counts, lengths = substeps(t, dt)
    out = [z0]
    for interval, (count, h) in enumerate(zip(counts.tolist(), lengths, strict=True)):
        for done in range(count):
            for weight in WEIGHTS[method]:
                # Chosen by whether any sample needs more, as the compiled path does for eight of them.
                for iterations, bound in ((FEW, enough), (MANY, limit)):
                    state = rattle_step(constraints, metric, system.force, x, v, a, weight * h, iterations)
                    failed = ~(state[3] <= bound)
                    if not bool(failed.any()):
                        break
                if bool(failed.any()):
                    reached = torch.stack(out, 1).detach()
                    rest = reached.new_full((len(z0), len(t) - len(out), *z0.shape[1:]), torch.nan)
                    raise IntegrationError(
                        *REASON, time=float(t[interval] + done * h), step_size=float(h),
                        samples=failed.nonzero().flatten().tolist(), reached=torch.cat([reached, rest], 1),
                    )  # fmt: skip
                x, v, a, _ = state
        out.append(torch.stack([x, v], 1))
        if progress is not None:
            progress((interval + 1) / len(counts))
    return torch.stack(out, 1)
