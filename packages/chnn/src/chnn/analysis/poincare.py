r"""Poincare sections: where trajectories cross a surface g(z) = 0 in the space of states.

Trajectories are simulated with outputs within steps on a grid of times; a change of sign between two of them, or
an extremum near zero, brackets a crossing. Every bracket is then closed by Newton's iteration on the time of flight
from its left end, kept inside by bisection, each flight integrated to its own time; all brackets at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float, Int
from lie.run import UserError
from torch import Tensor

from chnn.simulation.errors import Untraceable
from chnn.systems import System

Section = Callable[[Tensor], Tensor]
"""A function of states (..., 2, n, d) -> (...), of which only where it is zero counts."""

_CHUNK = 200_000  # states of a grid held at a time
_CONVERGED = 1e-12  # s, the last step of the time of flight
_FINE = 16  # parts of an interval in which a close approach is looked at


@dataclass(frozen=True)
class Crossings:
    """All crossings, by sample and then by time.

    Fields:
        sample: (K,), which trajectory.
        times: (K,), s.
        states: (K, 2, n, d), on the constraints and on the section.
        direction: (K,), 1 where g grows, -1 where it falls.
    """

    sample: Int[Tensor, " K"]
    times: Float[Tensor, " K"]
    states: Float[Tensor, "K 2 n d"]
    direction: Int[Tensor, " K"]

    def of(self, sample: int) -> Crossings:
        """Those of one trajectory."""
        mine = self.sample == sample
        return Crossings(self.sample[mine], self.times[mine], self.states[mine], self.direction[mine])


def coordinate(system: System, text: str) -> Section:
    """The section that a text names: a coordinate and a value.

    ``x0.1=0.5`` is the position of point 0 along axis 1 (m), ``v0.1`` its velocity (m/s), 0 where no value is given;
    ``angle0`` and ``rate0`` are the first angle (rad) and its rate, for systems that have angles (a place of a cart or
    slide, m, among them); a robot's are called
    by name too, ``elbow=0.2`` and ``rate:elbow``.

    Raises:
        UserError: for a text that names no coordinate of the system.
    """
    if not isinstance(text, str):
        raise UserError(f"expected a coordinate as text, such as 'angle0=0.5', got {type(text).__name__}")
    names = getattr(system, "angle_names", ())
    name, equals, number = (part.strip() for part in text.partition("="))
    if name.removeprefix("rate:") in names:
        kind = "rate" if name.startswith("rate:") else "angle"
        text = f"{kind}{names.index(name.removeprefix('rate:'))}{equals}{number}"
    found = re.fullmatch(r"\s*(x|v|angle|rate)(\d+)(?:\.(\d+))?\s*(?:=\s*(\S+)\s*)?", text)
    try:
        if found is None:
            raise ValueError(text)
        kind, index, axis = found[1], int(found[2]), found[3]
        value = float(found[4] or 0.0)
    except ValueError:
        count = getattr(system, "num_angles", 0)
        known = [f"{kind}{k}" for kind in ("angle", "rate") for k in range(count)] + [*names]
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        listed = f"; the coordinates of {system.name} are {', '.join(names)}" if names else ""
        raise UserError(
            f"expected a section such as x0.1=0.5, v0.0, angle0=0 or rate0, got {text!r}{hint}{listed}"
        ) from None
    if kind in ("x", "v"):
        n, d = system.num_points, system.spatial_dim
        if axis is None or index >= n or int(axis) >= d:
            raise UserError(f"expected a point below {n} and an axis below {d} of {system.name}, got {text!r}")
        part, place = int(kind == "v"), int(axis)
        return lambda z: z[..., part, index, place] - value
    to_angles: Any = getattr(system, "to_angles", None)
    count = getattr(system, "num_angles", 0)
    if to_angles is None or axis is not None or index >= count:
        raise UserError(f"{system.name} has {count or 'no'} angles, got the section {text!r}; use x0.1 or v0.1")
    if kind == "rate":
        return lambda z: to_angles(z)[..., 1, index] - value
    if index in getattr(system, "length_coordinates", ()):
        return lambda z: to_angles(z)[..., 0, index] - value
    # Periodic: the jump half a turn away is no crossing, and is dropped since g is not small there.
    return lambda z: torch.remainder(to_angles(z)[..., 0, index] - value + torch.pi, 2 * torch.pi) - torch.pi


def poincare(
    system: System,
    z0: Float[Tensor, "B 2 n d"],
    horizon: float,
    section: Section,
    *,
    direction: int = 0,
    spacing: float | None = None,
    rtol: float = 1e-10,
    backend: str = "auto",
    progress: Callable[[float], object] | None = None,
) -> Crossings:
    """Where the trajectories from ``z0`` cross ``section(z) == 0`` in (0, horizon].

    Args:
        system: the system.
        z0: initial states on the constraints; one that starts on the section does not cross it there.
        horizon: time, s.
        section: g, differentiable; see `coordinate`.
        direction: 1 for crossings where g grows, -1 where it falls, 0 for both.
        spacing: of the grid on which crossings are looked for, s; half the system's ``dt`` by default. Two crossings
            closer than a sixteenth of it may be missed.
        rtol: relative tolerance of a step.
        backend: as for `System.simulate`.
        progress: called with the fraction done.

    Raises:
        UserError: for numbers out of range or bad states, or a section of the wrong shape.

    Laws: ``|g| <= 1e-10`` at every crossing (in units of its change in a second), which lies on the constraints.

    >>> import torch
    >>> from chnn.systems import ChainPendulum
    >>> system = ChainPendulum(1)
    >>> z0 = system.from_angles(torch.tensor([[[0.5], [0.0]]], dtype=torch.float64))
    >>> poincare(system, z0, 5.0, coordinate(system, "angle0"), direction=1).times.shape
    torch.Size([2])
    """
    if direction not in (-1, 0, 1):
        raise UserError(f"expected a direction 1, -1 or 0, got {direction}")
    spacing = 0.5 * system.dt if spacing is None else spacing
    if not 0.0 < spacing <= horizon < float("inf"):
        raise UserError(f"expected 0 < spacing <= horizon, got {spacing:g} and {horizon:g}")
    options: dict[str, Any] = {"rtol": rtol, "backend": backend}
    total = math.ceil(horizon / spacing * (1.0 - 1e-12))
    chunk = max(1, min(total, _CHUNK // len(z0)))
    z, found = z0, []
    before: tuple[Tensor, Tensor, Tensor] | None = None  # time, g and state at the last but one place of the chunk
    with torch.no_grad():
        for first in range(0, total, chunk):
            grid = torch.arange(first, min(first + chunk, total) + 1, dtype=torch.float64, device=z0.device) * spacing
            grid[-1] = min(float(grid[-1]), horizon)
            states = system.simulate(z, grid, dense=True, **options)
            g = section(states)
            if g.shape != states.shape[:2]:
                raise UserError(f"expected a section (..., 2, n, d) -> (...), got {tuple(g.shape)} of {states.shape}")
            sample, left = _sign_changes(g).nonzero(as_tuple=True)
            found.append(_close(system, section, sample, grid[left], grid.diff()[left], states[sample, left], options))
            if before is not None:  # an approach in whose middle two chunks meet
                grid, g, states = (torch.cat(each, min(each[0].ndim - 1, 1)) for each in
                                   zip(before, (grid, g, states), strict=True))  # fmt: skip
            sample, left = _approaches(g).nonzero(as_tuple=True)
            if len(sample):
                found.append(_look(system, section, sample, grid[left], 2 * spacing, states[sample, left], options))
            z, before = states[:, -1], (grid[-2:-1], g[:, -2:-1], states[:, -2:-1])
            if progress is not None:
                progress(float(grid[-1]) / horizon)
    parts = [torch.cat(each) for each in zip(*found, strict=True)]
    keep = parts[3] == direction if direction else torch.ones_like(parts[3], dtype=torch.bool)
    keep &= (parts[1] > 0.0) & (parts[1] <= horizon)
    sample, times, states, signs = (each[keep] for each in parts)
    order = times.argsort(stable=True)
    order = order[sample[order].argsort(stable=True)]
    return Crossings(sample[order], times[order], states[order], signs[order])


def _sign_changes(g: Tensor) -> Tensor:
    """Intervals (B, T - 1) within or at whose end g changes its sign."""
    return (g[:, :-1] * g[:, 1:] < 0) | ((g[:, 1:] == 0) & (g[:, :-1] != 0))


def _approaches(g: Tensor) -> Tensor:
    """Pairs of intervals (B, T - 2) of one sign in whose middle the parabola through g reaches zero."""
    a, b, c = g[:, :-2], g[:, 1:-1], g[:, 2:]
    slope, bend = 0.5 * (c - a), a - 2 * b + c
    reached = b - 0.5 * slope.square() / torch.where(bend == 0, torch.ones_like(bend), bend)
    inside = (slope.abs() < bend.abs()) & (b.abs() <= a.abs()) & (b.abs() <= c.abs())
    same = (a * b > 0) & (b * c > 0)
    # Nearly reaching counts: the parabola is not exact.
    return same & inside & (b.sign() * reached <= 0.1 * torch.maximum(a.abs(), c.abs()))


def _look(
    system: System, section: Section, sample: Tensor, start: Tensor, span: float, z: Tensor, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    grid = torch.linspace(0, span, 2 * _FINE + 1, dtype=torch.float64, device=z.device)
    states = system.simulate(z, grid, dense=True, **options)
    row, left = _sign_changes(section(states)).nonzero(as_tuple=True)
    widths = grid.diff()[left]
    return _close(system, section, sample[row], start[row] + grid[left], widths, states[row, left], options)


def _close(
    system: System, section: Section, sample: Tensor, start: Tensor, width: Tensor, z: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples, times, states and directions of the crossings in brackets from the states ``z`` on."""
    if len(sample) == 0:
        return sample, start, z, sample
    before = section(z)
    low, high = torch.zeros_like(width), width.clone()
    value, slope = before, _rate(system, section, z)
    flight = torch.where(slope * before < 0, -before / slope, 0.5 * width)
    at = z
    for _ in range(60):  # bisection alone ends there; Newton's iteration after four or five
        inside = (flight > low) & (flight < high)
        flight = torch.where(inside, flight, 0.5 * (low + high)).clamp(min=1e-15)
        at = _fly(system, z, flight, options)
        value, slope = section(at), _rate(system, section, at)
        same = value * before > 0
        low, high = torch.where(same, flight, low), torch.where(same, high, flight)
        step = -value / slope
        if bool(((step.abs() <= _CONVERGED) | (high - low <= _CONVERGED) | (value == 0)).all()):
            break
        flight = flight + step
    real = value.abs() <= 1e-10 * slope.abs().clamp(min=1.0)  # not so at the jump of an angle
    return sample[real], (start + flight)[real], at[real], slope.sign().long()[real]


def _rate(system: System, section: Section, z: Tensor) -> Tensor:
    return torch.func.jvp(section, (z,), (system.field(z),))[1]


def _fly(system: System, z: Tensor, flight: Tensor, options: dict[str, Any]) -> Tensor:
    """The states after each sample's own time."""
    times = torch.stack([torch.zeros_like(flight), flight], 1)
    tolerances = {"rtol": options["rtol"], "atol": 1e-2 * options["rtol"]}
    if options["backend"] != "torch" and z.device.type == "cpu":
        from chnn.simulation.compiled import simulate_compiled

        try:
            return simulate_compiled(system, z, times, **tolerances)[:, -1]
        except Untraceable as error:
            if options["backend"] == "numba":
                raise UserError(f"backend 'numba' cannot simulate {system.name}: {error}") from None
    from chnn.simulation.reference import simulate_torch

    return simulate_torch(system, z, times, dense=True, **tolerances)[:, -1]
