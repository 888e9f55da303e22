"""What a trajectory conserves: energy, momenta and constraints, as numbers, a table and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError, atomic_path
from torch import Tensor

from chnn.systems import System


@dataclass(frozen=True)
class Conservation:
    """Quantities along trajectories, (B, T, ...), float64.

    Fields:
        t: (T,), s.
        energy: (B, T), joules. scale: (B,), energy above rest at the start, joules.
        momentum: (B, T, d), kg m/s. angular_momentum: (B, T, m), kg m^2/s, about the origin.
        positions, velocities: (B, T), largest residual of the constraints (m^2 or m) and of their rates.
        damped: whether the system has damping, so that energy changes.
    """

    t: Float[Tensor, " T"]
    energy: Float[Tensor, "B T"]
    scale: Float[Tensor, " B"]
    momentum: Float[Tensor, "B T d"]
    angular_momentum: Float[Tensor, "B T m"]
    positions: Float[Tensor, "B T"]
    velocities: Float[Tensor, "B T"]
    damped: bool = False

    def energy_drift(self) -> Float[Tensor, "B T"]:
        """``|E(t) - E(0)|`` over the energy above rest."""
        return (self.energy - self.energy[:, :1]).abs() / self.scale.clamp(min=1e-300).unsqueeze(1)

    def rate_of_drift(self) -> Float[Tensor, " B"]:
        """The slope of (E(t) - E(0)) over the energy above rest by least squares, 1/s: a drift, and no oscillation."""
        t = self.t - self.t.mean()
        change = (self.energy - self.energy[:, :1]) / self.scale.clamp(min=1e-300).unsqueeze(1)
        return (change * t).sum(1) / t.square().sum().clamp(min=1e-300)

    def summary(self) -> dict[str, Any]:
        """Plain numbers: median and largest over trajectories of the largest change over time."""
        numbers: dict[str, Any] = {}
        changes = {"energy_drift": self.energy_drift().amax(1), "energy_drift_per_second": self.rate_of_drift().abs()}
        for name, each in (("momentum", self.momentum), ("angular_momentum", self.angular_momentum)):
            size = each.abs().amax((1, 2)).clamp(min=1e-300)
            for axis in range(each.shape[-1]):
                label = f"{name}_{'xyz'[axis]}" if each.shape[-1] > 1 else name
                changes[f"{label}_change"] = (each[..., axis] - each[:, :1, axis]).abs().amax(1) / size
        for name, change in changes.items():
            numbers[f"{name}_median"], numbers[f"{name}_max"] = float(change.quantile(0.5)), float(change.max())
        numbers["position_violation_max"] = float(self.positions.max())
        numbers["velocity_violation_max"] = float(self.velocities.max())
        numbers["momentum_change_is"] = "largest change of the component over the largest component in the trajectory"
        return numbers

    def rows(self) -> list[list[str]]:
        """Rows of a table: quantity, median, largest."""
        numbers = self.summary()
        names = [name.removesuffix("_median") for name in numbers if name.endswith("_median")]
        labels = {name: name.replace("_change", " change / largest component").replace("_", " ")
                  for name in names if "momentum" in name}  # fmt: skip
        if self.damped:
            labels |= {"energy_drift": "relative energy change, damped",
                       "energy_drift_per_second": "relative energy change per second, damped"}  # fmt: skip
        rows = [[labels.get(name, name.replace("_", " ")), *(f"{numbers[f'{name}_{of}']:.2e}" for of in
                 ("median", "max"))] for name in names]  # fmt: skip
        for name in ("position_violation", "velocity_violation"):
            rows.append([name.replace("_", " "), "", f"{numbers[name + '_max']:.2e}"])
        return rows

    def plot(self, path: Path, title: str = "") -> None:
        """Energy drift over time, each trajectory a line, and the largest constraint residual of all, as an image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        t = self.t.cpu().numpy()
        floor = 1e-17  # rounding: a zero has no logarithm
        upper.semilogy(t, self.energy_drift().clamp(min=floor).T.cpu().numpy(), lw=0.8)
        # Of all trajectories: each jumps between zero and rounding, and lines of many would fill the picture.
        lower.semilogy(t, self.positions.amax(0).clamp(min=floor).cpu().numpy(), lw=0.8)
        upper.set(ylabel=f"|E(t) - E(0)| / energy above rest{' (damped)' if self.damped else ''}", title=title)
        lower.set(xlabel="time (s)", ylabel="largest position residual (m² or m)")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


@torch.no_grad()
def conservation(system: System, z: Float[Tensor, "B T 2 n d"], t: Float[Tensor, " T"]) -> Conservation:
    """What trajectories ``z`` of ``system`` conserve, simulated by whatever means.

    Raises:
        UserError: for shapes that do not fit, other types, and times that are not finite.

    >>> import torch
    >>> from chnn.systems import Rotor
    >>> system, t = Rotor(), torch.linspace(0, 1, 11)
    >>> z = system.simulate(system.sample(3), t)
    >>> conservation(system, z, t).summary()["angular_momentum_x_change_max"] < 1e-6
    True
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise UserError(f"expected trajectories as a floating-point tensor, got {got}; use torch.as_tensor")
    if t.ndim != 1 or not t.isfinite().all():
        raise UserError(f"expected finite times of shape (T,), got shape {tuple(t.shape)}")
    if z.ndim != 5 or z.shape[1] != len(t):
        raise UserError(f"expected trajectories of shape (B, {len(t)}, 2, n, d), got {tuple(z.shape)}")
    z = z.double()
    nothing = z.new_zeros(z.shape[:2])
    constrained = system.constraints_on_points.num_constraints > 0
    return Conservation(
        t, system.energy(z), system.energy_scale(z[:, 0]), system.momentum(z), system.angular_momentum(z),
        system.constraints(z).abs().amax(-1) if constrained else nothing,
        system.velocity_constraints(z).abs().amax(-1) if constrained else nothing,
        system.damped,
    )  # fmt: skip
