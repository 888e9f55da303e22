"""Test accuracy on upright and on randomly rotated point sets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lie.groups import SO2
from lie.run import atomic_path, check_finite, seeded_generator
from torch import Tensor
from tqdm import tqdm

from lieconv.data import PointSets
from lieconv.models import LieResNet

_ROTATION_SEED = 0  # the rotated test sets are the same for every run, so that runs compare
_ANGLES = 12
_TINY = torch.finfo(torch.float32).tiny  # a network whose logits are all zero changes by nothing


@torch.no_grad()
def predict(model: LieResNet, sets: PointSets, batch_size: int, device: torch.device) -> Tensor:
    """Class logits (S, classes) of the network in evaluation mode, on the CPU.

    Raises:
        UserError: if they are not finite, as those of a network that diverged or of points too large for float32.
    """
    model.eval()
    parts = (sets[i : i + batch_size].to(device) for i in range(0, len(sets), batch_size))
    logits = torch.cat([model(part.coords, part.values, part.mask).cpu() for part in parts])
    check_finite("logits of the network", logits, remedy="train with a smaller --learning-rate, or scale the points")
    return logits


def evaluate(model: LieResNet, test_sets: PointSets, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Accuracy upright, under random rotation, and by angle where the points are of the plane.

    Returns:
        ``accuracy_upright``, ``accuracy_rotated`` (each test set turned by its own uniform rotation),
        ``rotation_change`` (largest change of a logit under it, relative to the largest logit),
        ``test_sets`` and, in the plane, ``accuracy_by_angle`` (angle in degrees -> accuracy).
    """
    upright = predict(model, test_sets, batch_size, device)
    rotated = predict(model, test_sets.rotated(seeded_generator(_ROTATION_SEED)), batch_size, device)
    result: dict[str, Any] = {
        "accuracy_upright": _accuracy(upright, test_sets),
        "accuracy_rotated": _accuracy(rotated, test_sets),
        "rotation_change": float((rotated - upright).abs().max() / upright.abs().max().clamp(min=_TINY)),
        "test_sets": len(test_sets),
    }
    if test_sets.coords.shape[-1] == 2:
        by_angle = {}
        for i in tqdm(range(_ANGLES), desc="evaluate by angle", unit="angle"):
            angle = torch.tensor([2.0 * math.pi * i / _ANGLES])
            turned = test_sets.turned(SO2().exp(angle))
            by_angle[str(360 * i // _ANGLES)] = _accuracy(predict(model, turned, batch_size, device), test_sets)
        result["accuracy_by_angle"] = by_angle
    return result


def _accuracy(logits: Tensor, sets: PointSets) -> float:
    return float((logits.argmax(-1) == sets.labels).double().mean())


def plot_accuracy_by_angle(result: dict[str, Any], title: str, path: Path) -> None:
    """Draw accuracy against the angle of rotation to ``path`` (PNG)."""
    from matplotlib.figure import Figure

    angles = [int(angle) for angle in result["accuracy_by_angle"]]
    figure = Figure(figsize=(6.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([*angles, 360], [*(v := [100 * a for a in result["accuracy_by_angle"].values()]), v[0]], marker=".")
    axes.set(
        xlabel="rotation of the test sets (degrees)",
        ylabel="accuracy (%)",
        title=title,
        ylim=(0, 102),
        xlim=(0, 360),
        xticks=range(0, 361, 45),
    )
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
