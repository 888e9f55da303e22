"""A mechanical system: its description, states, energies, projection, and true trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from chnn.mechanics import (
    GRAVITY,
    Constraints,
    Damping,
    Description,
    Drawing,
    Force,
    Metric,
    MotionForms,
    RotationalDamping,
    hamiltonian_velocity,
    lagrangian_acceleration,
    project_positions,
    project_velocity,
)
from chnn.mechanics.projection import SINGULAR, pivots, residual_bound
from chnn.simulation import simulate

if TYPE_CHECKING:
    from chnn.simulation.compiled_field import CompiledField
    from chnn.systems.robot import Robot

__all__ = ["GRAVITY", "External", "System"]

External = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A force from outside: (time, x (..., n, d), v) -> (..., n, d), newtons."""

_PROJECTED = 1e-4  # relative violation up to which an initial state is projected; float32 states have 1e-7


class System:
    """Bodies with constraints under forces; any `chnn.mechanics.Description` makes one.

    States are (B, 2, n, d): positions (m) and velocities (m/s) of n points in d dimensions. Everything is
    in SI units; gravity is 9.81 m/s^2 along the negative last axis.

    >>> from chnn.mechanics import Assembly
    >>> world = Assembly(2)
    >>> world.tether(world.point("bob", 1.0, position=(0.6, -0.8)), (0, 0), 1.0)
    >>> world.gravity()
    >>> System(world.build("pendulum")).description.degrees_of_freedom
    1
    """

    name: str = "system"
    """Name on the command line."""
    dt: float = 0.05
    """Default spacing of output times, s (the paper's)."""
    horizon: float = 5.0
    """Default horizon, s (the paper's)."""
    description: Description
    """Bodies, constraints and forces."""

    def __init__(self, description: Description, *, dt: float | None = None, horizon: float | None = None) -> None:
        if not isinstance(description, Description):
            raise UserError(f"expected a Description, the result of Assembly(...).build(name), got {description!r}")
        for what, value in (("dt", dt), ("horizon", horizon)):
            if value is not None and not 0.0 < value < float("inf"):
                raise UserError(f"expected a positive finite {what}, got {value}")
        self.description = description
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[Any, ...]] = {}
        self._forms = None
        if type(self).force is System.force:  # or it computes what the description does not say
            affine = [force for force in description.forces if force.affine]
            self._forms = MotionForms.of(
                description.constraints, description.metric, description.mass, description.inverse_mass, affine
            )
        self.name = description.name
        self.dt = type(self).dt if dt is None else dt
        self.horizon = type(self).horizon if horizon is None else horizon

    @staticmethod
    def from_file(
        path: str | Path,
        *,
        ignore: Sequence[str] = (),
        base: str | None = None,
        gravity: float | Sequence[float] | None = None,
    ) -> Robot:
        """The robot of a URDF or MJCF file; see `chnn.systems.Robot`, also for the arguments."""
        from chnn.systems.robot import Robot  # it is a System

        return Robot(path, ignore=ignore, base=base, gravity=gravity)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made on demand."""
        return {**self.__dict__, "_cache": {}}

    # --- what a concrete system may say about itself ---

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 n d"]:
        """Random initial states on the constraints, float64: the reference configuration, shaken and projected."""
        check_count(num)
        shape = (num, self.num_points, self.spatial_dim)
        noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        x = self.description.reference + 0.2 * self._size * noise[0]
        return self.project(torch.stack([x, 0.5 * noise[1]], dim=1))

    def parameters(self) -> dict[str, Any]:
        """The numbers that define the system, as plain values in SI units, for a file."""
        bodies = {
            body.name: {"dim": body.dim, "mass": body.inertia.mass, "moments": body.inertia.moments}
            for body in self.description.bodies
        }
        return {"bodies": bodies}

    @cached_property
    def _rest(self) -> Tensor:
        return torch.stack([relax(self), torch.zeros_like(self.description.reference)])

    def rest(self) -> Float[Tensor, "2 n d"]:
        """A state of rest where the potential energy is least (nearby, where there are several), float64."""
        return self._rest

    # --- shapes and parts ---

    @property
    def num_points(self) -> int:
        """Number of points n."""
        return self.description.num_points

    @property
    def spatial_dim(self) -> int:
        """Dimension d of space."""
        return self.description.spatial_dim

    @property
    def constraints_on_points(self) -> Constraints:
        """The independent constraints, float64."""
        return self.description.constraints

    @property
    def masses(self) -> Float[Tensor, " bodies"]:
        """Masses of the bodies, kg, float64."""
        return torch.tensor([body.inertia.mass for body in self.description.bodies], dtype=torch.float64)

    @property
    def damped(self) -> bool:
        """Whether a damping of the system takes energy away; other forces on velocities of your own do not count."""
        return any(isinstance(force, (Damping, RotationalDamping)) for force in self.description.forces)

    @property
    def drawing(self) -> Drawing:
        """What to draw."""
        return self.description.drawing

    def parts(self, like: Tensor) -> tuple[Constraints, Metric, Tensor, tuple[Any, ...]]:
        """Constraints, metric, mass matrix and forces in the dtype and on the device of ``like``."""
        constraints, metric, mass, _, forces, *_ = self._at(like)
        return constraints, metric, mass, forces

    def _at(self, like: Tensor) -> tuple[Any, ...]:
        """Constraints, metric, mass, its inverse, forces; then the forms and the forces that are not among them."""
        key = (like.dtype, like.device)
        if key not in self._cache:
            if like.dtype not in (torch.float32, torch.float64):
                raise UserError(f"expected states in float32 or float64, got {like.dtype}; use z.double()")
            every = self.description
            forces = tuple(force.to(like) for force in every.forces)
            others = tuple(force for force in forces if not force.affine)
            self._cache[key] = (
                every.constraints.to(like), every.metric.to(like), every.mass.to(like), every.inverse_mass.to(like),
                forces, None if self._forms is None else self._forms.to(like), others,
            )  # fmt: skip
        return self._cache[key]

    # --- energies and forces ---

    def potential(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """Potential energy of positions, joules."""
        self._check_points(x, "positions")
        total = x.new_zeros(x.shape[:-2])
        for force in self.parts(x)[3]:
            total = total + force.potential(x)
        return total

    def force(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"] | None = None) -> Tensor:
        """All forces of the system on its points (..., n, d), newtons; those on velocities for ``v``, 0 by default."""
        self._check_points(x, "positions")
        if v is not None:
            self._check_points(v, "velocities")
        total = _sum(self.parts(x)[3], x, torch.zeros_like(x) if v is None else v)
        return torch.zeros_like(x) if total is None else total

    def kinetic(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """Kinetic energy, joules."""
        _, v = self._split(z)
        return 0.5 * ((self.parts(z)[2] @ v) * v).sum((-2, -1))

    def energy(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """Kinetic plus potential energy, joules."""
        return self.kinetic(z) + self.potential(self._split(z)[0])

    def energy_scale(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch"]:
        """Energy above the state of rest, joules: what energy errors are measured against."""
        return self.energy(z) - self.energy(self.rest().to(z))

    def momentum(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch d"]:
        """Linear momentum, kg m/s."""
        return (self.parts(z)[2] @ self._split(z)[1]).sum(-2)

    def angular_momentum(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch m"]:
        """Angular momentum about the origin, kg m^2/s: 3 components, or 1 in the plane."""
        x, v = self._split(z)
        p = self.parts(z)[2] @ v
        outer = x.mT @ p - p.mT @ x  # (..., d, d)
        pairs = [(1, 2), (2, 0), (0, 1)] if self.spatial_dim == 3 else [(0, 1)]
        return torch.stack([outer[..., i, j] for i, j in pairs], dim=-1)

    # --- constraints ---

    def constraints(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch C"]:
        """Position residuals: ``|U|^2 - length^2`` (m^2), distances of joints and planes (m); see `Constraints`."""
        return self.parts(z)[0].residual(self._split(z)[0])

    def velocity_constraints(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch C"]:
        """Velocity residuals ``J v``."""
        return self.parts(z)[0].velocity_residual(*self._split(z))

    def project(self, z: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """The state moved onto the position and velocity constraints, nearest in the mass metric to first order.

        Raises:
            UserError: if Newton's iteration does not converge; names the samples and the constraint. If a derivative
                is wanted, in reverse or forward mode, where constraints depend on one another; names the samples.
        """
        constraints, metric, *_ = self.parts(z)
        x, v = self._split(z)
        if _is_concrete(z):
            finite = torch.isfinite(z).flatten(-3).all(-1).reshape(-1)
            if not bool(finite.all()):
                bad = (~finite).nonzero().flatten().tolist()
                raise UserError(f"cannot project sample {bad[:5]} of the state: expected finite positions and "
                                "velocities, got NaN or infinity")  # fmt: skip
        x, failed = project_positions(constraints, metric, x)
        if bool(failed.any()):
            bad = failed.reshape(-1).nonzero().flatten().tolist()
            left = (
                constraints.residual(x).abs().reshape(-1, constraints.num_constraints)[bad[0]].nan_to_num(nan=torch.inf)
            )
            raise UserError(
                f"cannot project sample {bad[:5]} of the state onto the constraints of {self.name}: Newton's iteration "
                f"did not converge, {self._constraint_name(int(left.argmax()))} is left off by {float(left.max()):.3g}"
                "; start nearer to a possible state"
            )
        return torch.stack([x, project_velocity(constraints, metric, x, v)], dim=-3)

    def _constraint_name(self, row: int) -> str:
        constraints = self.description.constraints
        C = constraints.A.shape[0]  # noqa: N806
        return constraints.names[row if row < C else C + (row - C) // self.spatial_dim]

    # --- motion ---

    def field(
        self, z: Float[Tensor, "*batch 2 n d"], t: Tensor | None = None, external: External | None = None
    ) -> Float[Tensor, "*batch 2 n d"]:
        """Time derivative of the state (x, v) by the true equations of motion, with a force from outside if given."""
        x, v = self._split(z)
        constraints, metric, _, _, _, forms, others = self._at(z)
        force = _sum(others, x, v) if forms is not None else self.force(x, v)
        if external is not None:
            now = torch.zeros((), dtype=z.dtype, device=z.device) if t is None else t
            push = external(now, x, v)
            if push.shape != x.shape:
                raise UserError(f"expected an external force of shape {tuple(x.shape)}, got {tuple(push.shape)}")
            force = push if force is None else force + push
        if forms is not None:
            return forms.velocity_field(*self._rows(z, force)).view(z.shape)
        assert force is not None  # not of self.force
        return torch.stack([v, lagrangian_acceleration(constraints, metric, x, v, force)], dim=-3)

    def momentum_field(self, y: Float[Tensor, "*batch 2 n d"]) -> Float[Tensor, "*batch 2 n d"]:
        """Time derivative of the state (x, p = M v), by the oblique symplectic projection."""
        x, p = self._split(y)
        constraints, metric, mass, inverse, _, forms, others = self._at(y)
        if forms is not None:
            force = _sum(others, x, inverse @ p) if others else None
            return forms.momentum_field(*self._rows(y, force)).view(y.shape)
        dx, dp = hamiltonian_velocity(constraints, metric, mass, inverse, x, p, self.force(x, inverse @ p))
        return torch.stack([dx, dp], dim=-3)

    def _rows(self, z: Tensor, force: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """States (B, 2 n d) and forces (B, n d)."""
        size = self.num_points * self.spatial_dim
        return z.reshape(-1, 2 * size), None if force is None else force.reshape(-1, size)

    def compiled_field(self) -> CompiledField:
        """`field` as machine code made for this system, for many evaluations on the CPU; called as `field` is.

        It is a choice of the caller's, not what `field` does by itself: to make the code takes from a tenth of a second
        to seconds (milliseconds where it is on disk already, in the folder of the kernels of `simulate`), which few
        evaluations do not return, and the same call of `field` has the same bits however often it was called before.
        Where derivatives are wanted and for whatever else is not plain numbers on the CPU the call is `field` itself;
        see `chnn.simulation.compiled_field.CompiledField`. Results agree with `field` to rounding.

        Raises:
            UserError: if the system has a force that has no compiled form.

        >>> from chnn.systems import ChainPendulum
        >>> system = ChainPendulum(links=3)
        >>> field = system.compiled_field()
        >>> z = system.sample(100)
        >>> bool((field(z) - system.field(z)).abs().max() < 1e-9)
        True
        """
        from chnn.simulation.compiled_field import CompiledField  # with LLVM

        return CompiledField(self, "field")

    def compiled_momentum_field(self) -> CompiledField:
        """`momentum_field` as machine code; see `compiled_field`."""
        from chnn.simulation.compiled_field import CompiledField  # with LLVM

        return CompiledField(self, "momenta")

    def simulate(
        self,
        z0: Float[Tensor, "B 2 n d"],
        t: Float[Tensor, " T"],
        rtol: float = 1e-7,
        *,
        atol: float | None = None,
        dense: bool = False,
        method: str = "dop853",
        dt: float | None = None,
        off_constraints: str = "project",
        external: External | None = None,
        backend: str = "auto",
        max_steps: int = 1_000_000,
        progress: Callable[[float], object] | None = None,
    ) -> Float[Tensor, "B T 2 n d"]:
        """True trajectories: DOP853 in float64, a step size per sample, projected after every step; or RATTLE.

        Args:
            z0: initial states on the constraints.
            t: output times, s, increasing.
            rtol: relative tolerance of a step; the absolute one is a hundredth of it by default.
            atol: absolute tolerance of a step.
            dense: outputs lie on the continuous extension of the steps, of order 7, projected; they cost little and
                the steps do not depend on ``t``. By default every output ends a step: more exact, and slower where
                outputs are close.
            method: "dop853", or for runs so long that its energy would drift "rattle" (order 2) or "rattle4", with the
                constraints solved to rounding: symplectic, so that the energy oscillates and does not drift.
            dt: largest step of RATTLE, s; each interval of ``t`` is cut into equal ones. rtol has no effect on it.
            off_constraints: for a state whose positions are off the constraints by less than 1e-4 of a length, or
                whose velocities by any amount: "project" it, or "refuse". With "project" what a velocity has across
                the constraints is always taken away, as a rod takes it away in a blow. Positions further off are
                refused; project them yourself with `project`.
            external: a force from outside, (t, x, v) -> (..., n, d); on the torch path only.
            backend: "torch" (any device, differentiable), "numba" (compiled for the system, CPU), or "auto": numba
                where it can be used.
            max_steps: attempted steps of a sample after which to give up.
            progress: called with the fraction done.

        Raises:
            UserError: for wrong shapes, non-finite states, states off the constraints or times out of order.
            IntegrationError: if the integration cannot go on; names samples and time.
        """
        z, t = self.check_start(z0, t, off_constraints)
        if not 0 < rtol < 1:
            raise UserError(f"expected a tolerance rtol between 0 and 1, got {rtol}")
        atol = 1e-2 * rtol if atol is None else atol
        if not 0 <= atol < float("inf"):
            raise UserError(f"expected a finite tolerance atol of at least 0, got {atol}")
        if max_steps < 1:
            raise UserError(f"expected max_steps of at least 1, got {max_steps}")
        if external is not None and not callable(external):
            raise UserError(f"expected a function (t, x, v) -> (..., n, d) as external force, got {external!r}")
        with torch.no_grad():
            finite = torch.isfinite(self.energy(z))
        if not bool(finite.all()):
            raise UserError(f"sample {_first(~finite)} starts where the energy of {self.name} is not finite; check its "
                            "potential there, or start elsewhere")  # fmt: skip
        return simulate(self, z, t, rtol=rtol, atol=atol, dense=dense, method=method, dt=dt, external=external,
                        backend=backend, max_steps=max_steps, progress=progress)  # fmt: skip

    def check_start(self, z0: Tensor, t: Tensor, off_constraints: str = "project") -> tuple[Tensor, Tensor]:
        """Initial states in float64, projected, and times; or a `UserError` that says what is wrong with them."""
        self._split(z0)
        if z0.ndim != 4:
            raise UserError(f"expected initial states of shape (B, 2, n, d), got {tuple(z0.shape)}")
        if len(z0) == 0:
            raise UserError("expected at least one initial state, got none")
        if off_constraints not in ("project", "refuse"):
            raise UserError(f"expected off_constraints 'project' or 'refuse', got {off_constraints!r}")
        t = torch.as_tensor(t, dtype=torch.float64, device=z0.device)
        if t.ndim != 1 or len(t) == 0:
            raise UserError(f"expected increasing finite times of shape (T,), got shape {tuple(t.shape)}")
        if not bool(torch.isfinite(t).all()):
            k = _first(~torch.isfinite(t))
            raise UserError(f"expected increasing finite times, got t[{k}] = {float(t[k])}")
        if not bool((t.diff() > 0).all()):
            k = _first(t.diff() <= 0) + 1
            raise UserError(f"expected increasing finite times: t[{k}] = {float(t[k]):g} is not after "
                            f"t[{k - 1}] = {float(t[k - 1]):g}; sort them, each once")  # fmt: skip
        z = z0.to(torch.float64)
        with torch.no_grad():
            finite = torch.isfinite(z).flatten(1).all(1)
            if not bool(finite.all()):
                raise UserError(f"expected finite initial states, got NaN or infinity in sample {_first(~finite)}")
            if self.constraints_on_points.num_constraints == 0:
                return z, t
            residual = self.constraints(z).abs()
            allowed = _PROJECTED if off_constraints == "project" else 1e-12
            off = residual.amax(-1) > allowed * self._size**2
            if bool(off.any()):
                sample = _first(off)
                row = int(residual[sample].argmax())
                remedy = (
                    "use system.project(z0)" if allowed == _PROJECTED else "off_constraints='project' moves it there"
                )
                raise UserError(
                    f"sample {sample} starts off the constraints of {self.name}: {self._constraint_name(row)} is off "
                    f"by {float(residual[sample, row]):.3g}, allowed {allowed * self._size**2:.3g}; {remedy}"
                )
            if off_constraints == "refuse":
                speed = self.velocity_constraints(z).abs()
                fast = speed.amax(-1) > 1e-10 * max(1.0, float(z.abs().max())) * self._size
                if bool(fast.any()):
                    sample = _first(fast)
                    row = int(speed[sample].argmax())
                    raise UserError(
                        f"sample {sample} moves off the constraints of {self.name}: {self._constraint_name(row)} "
                        f"changes at {float(speed[sample, row]):.3g}; off_constraints='project' takes that away"
                    )
            self._check_regular(z)
            bound = residual_bound(self.parts(z)[0], z[:, 0])
            if bool((residual <= bound).all()):
                # Already there to rounding: only the velocities may be off, and mostly are not.
                speed = self.velocity_constraints(z).abs().amax(-1)
                if bool((speed <= 1e-15 * z[:, 1].abs().amax((-2, -1)) * self._size).all()):
                    return z, t
        return self.project(z), t

    def _check_regular(self, z: Tensor) -> None:
        """Refuse states at which constraints depend on one another that elsewhere do not: motion is not determined."""
        constraints, metric, *_ = self.parts(z)
        if constraints.A.shape[0] == 0:
            return
        each = pivots(constraints, metric, z[:, 0])
        dead = (each < SINGULAR).any(-1)
        if bool(dead.any()):
            sample = _first(dead)
            row = int(each[sample].argmin())
            raise UserError(
                f"sample {sample} starts at a dead point of {self.name}: {self._constraint_name(row)} depends on the "
                "other constraints there, and the motion is not determined; start from a state beside it"
            )

    @cached_property
    def _size(self) -> float:
        """The length that violations are measured against, m."""
        lengths = self.constraints_on_points.lengths
        return float(lengths.max()) if len(lengths) and float(lengths.max()) > 0 else 1.0

    def _check_points(self, x: Tensor, what: str) -> None:
        n, d = self.num_points, self.spatial_dim
        if not isinstance(x, Tensor):
            raise UserError(f"expected {what} as a torch tensor, got {type(x).__name__}; use torch.as_tensor(x)")
        if x.shape[-2:] != (n, d):
            raise UserError(f"expected {what} of shape (..., {n}, {d}) for {self.name}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise UserError(f"expected floating-point {what}, got {x.dtype}; use x.double()")

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        n, d = self.num_points, self.spatial_dim
        if not isinstance(z, Tensor):
            raise UserError(f"expected states as a torch tensor, got {type(z).__name__}; use torch.as_tensor(z)")
        if z.shape[-3:] != (2, n, d):
            raise UserError(f"expected states of shape (..., 2, {n}, {d}) for {self.name}, got {tuple(z.shape)}")
        if not z.is_floating_point():
            raise UserError(f"expected floating-point states, got {z.dtype}; use z.double()")
        return z[..., 0, :, :], z[..., 1, :, :]


def _sum(forces: Sequence[Force], x: Tensor, v: Tensor) -> Tensor | None:
    total = None
    for force in forces:
        total = force.force(x, v) if total is None else total + force.force(x, v)
    return total


def infinite_to_nan(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``z`` with NaN in place of infinities, which an arc tangent would turn into a finite angle."""
    return z + 0.0 * z


def check_count(num: int, what: str = "initial state", least: int = 1) -> None:
    """A whole number of at least one, or ``least``."""
    if not isinstance(num, int):
        raise UserError(f"expected a whole number of {what}s, got {num!r}")
    if num < least:
        raise UserError(f"expected at least {'one' if least == 1 else least} {what}, got {num}")


def relax(system: System, iterations: int = 400, start: Tensor | None = None) -> Float[Tensor, "n d"]:
    """A configuration of least potential energy, by projected descent in the mass metric from ``start``.

    By default it starts at the reference.
    """
    x, step = system.description.reference if start is None else start, 1e-2
    constraints, metric, *_ = system.parts(x)
    energy = float(system.potential(x))
    for _ in range(iterations):
        direction = project_velocity(constraints, metric, x, metric.inverse @ system.force(x))
        if float(direction.abs().max()) < 1e-12:
            break
        trial, failed = project_positions(constraints, metric, x + step * direction)
        lower = float(system.potential(trial)) if not bool(failed) else float("inf")
        if lower < energy:
            x, energy, step = trial, lower, 1.5 * step
        else:
            step *= 0.4
            if step < 1e-14:
                break
    return x


def _is_concrete(z: Tensor) -> bool:
    """Whether numbers of z can be looked at: not under the transforms of `torch.func` nor where it is compiled."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is None


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])
