r"""Rollout error against truth, and energy error of the prediction under the true energy.

The relative error of a state is :math:`|z - z^*| / (|z| + |z^*|)`, between 0 and 1; over a trajectory and over
trajectories it is averaged geometrically, as in Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581, because chaotic
errors spread over many decades.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lie.run import atomic_path
from torch import Tensor

from chnn.models import DynamicsModel
from chnn.systems import System

_FLOOR = 1e-16  # the logarithm of an error of zero, as at the first time, is taken here


@torch.no_grad()
def relative_error(predicted: Float[Tensor, "B T 2 n d"], truth: Float[Tensor, "B T 2 n d"]) -> Float[Tensor, "B T"]:
    """The relative error of each state."""
    difference = (predicted - truth).flatten(2).norm(dim=-1)
    return difference / (predicted.flatten(2).norm(dim=-1) + truth.flatten(2).norm(dim=-1))


@torch.no_grad()
def evaluate(
    model: DynamicsModel, system: System, truth: Float[Tensor, "B T 2 n d"], t: Float[Tensor, " T"], rtol: float = 1e-7
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Roll the model out from the truth's initial states, in float64, and compare.

    Returns:
        Numbers: ``rollout_error`` (geometric mean over times after the first and trajectories), its median and
        largest over trajectories, ``energy_error`` (geometric mean of |E(t) - E(0)| over the energy above rest),
        ``constraint_violation`` (largest residual), ``rtol``. Curves over time: geometric means of both errors.
    """
    double = _double(model)
    predicted = double.rollout(truth[:, 0], t, rtol=rtol, atol=1e-2 * rtol)
    error = relative_error(predicted, truth)[:, 1:].clamp(min=_FLOOR)  # (B, T - 1)
    scale = system.energy_scale(truth[:, 0]).unsqueeze(1)
    energy = ((system.energy(predicted) - system.energy(truth[:, :1])).abs() / scale)[:, 1:].clamp(min=_FLOOR)
    per_trajectory = error.log().mean(1).exp()
    numbers = {
        "rollout_error": float(error.log().mean().exp()),
        "rollout_error_median": float(per_trajectory.median()),
        "rollout_error_max": float(per_trajectory.max()),
        "energy_error": float(energy.log().mean().exp()),
        "constraint_violation": float(system.constraints(predicted).abs().max()),
        "trajectories": len(truth),
        "horizon": float(t[-1]),
        "rtol": rtol,
    }
    curves = {"t": t[1:], "rollout": error.log().mean(0).exp(), "energy": energy.log().mean(0).exp()}
    return numbers, curves


def _double(model: DynamicsModel) -> DynamicsModel:
    """A float64 copy in evaluation mode; the model itself stays as it is."""
    from copy import deepcopy

    return deepcopy(model).to(torch.float64).eval()


def plot_errors(curves: dict[str, Tensor], title: str, path: Path) -> None:
    """Draw both errors over time on a logarithmic scale to ``path`` (PNG)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = curves["t"].cpu().numpy()
    for axes, key, label in ((left, "rollout", "relative rollout error"), (right, "energy", "relative energy error")):
        axes.semilogy(t, curves[key].cpu().numpy())
        axes.set(xlabel="time (s)", ylabel=f"{label} (geometric mean)")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
