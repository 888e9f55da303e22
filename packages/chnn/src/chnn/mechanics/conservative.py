"""Test whether forces are minus the gradient of their potential energy: what models that keep an energy assume."""

from __future__ import annotations

from typing import Any

import torch
from lie.run import UserError

from chnn.mechanics.description import Description
from chnn.mechanics.forces import Force, potential_gradient

_SAME = 1e-6  # of the force; derivatives by autograd agree to 1e-12, a user's own difference quotients to 1e-7


def depends_on_velocity(force: Force, description: Description) -> bool:
    """Whether a force changes with the velocities, at random configurations near the reference."""
    x, v = _states(description)
    at_rest, moving = force.force(x, torch.zeros_like(x)), force.force(x, v)
    return _differ(at_rest, moving)


def is_conservative(force: Force, description: Description) -> bool:
    """Whether a force is minus the gradient of its potential, whatever the velocities, near the reference."""
    x, v = _states(description)
    with torch.inference_mode(False), torch.enable_grad():
        gradient = potential_gradient(force.potential, x.clone())
    return not _differ(force.force(x, v), -gradient)


def refuse_dissipation(description: Description, model: str) -> None:
    """Refuse a system that a model with a conserved energy cannot describe.

    Raises:
        UserError: names the system and the forces that are no gradients of a potential.
    """
    kinds = [type(force).__name__ for force in description.forces if not is_conservative(force, description)]
    if kinds:
        raise UserError(
            f"expected forces that are gradients of a potential energy for {model}, which keeps its energy, got "
            f"{description.name} with {', '.join(dict.fromkeys(kinds))}; make the system without it (damping=0, or a "
            "file without damping)"
        )


def refuse_own_dissipation(system: Any, model: str) -> None:
    """Refuse what `refuse_dissipation` does, and a system whose own ``force`` is not minus the gradient of its
    ``potential``, as that of a subclass may be.

    Raises:
        UserError: names the system and the force.
    """
    refuse_dissipation(system.description, model)
    x, v = _states(system.description)
    with torch.inference_mode(False), torch.enable_grad():
        gradient = potential_gradient(system.potential, x.clone())
    if _differ(system.force(x, v), -gradient):
        raise UserError(
            f"expected forces that are gradients of a potential energy for {model}, which keeps its energy, got "
            f"{system.name} with {type(system).__name__}.force, which is not minus the gradient of its potential; "
            "override potential with it, or make the system without it"
        )


def own_force_depends_on_velocity(system: Any) -> bool:
    """Whether the force of a system, which a subclass may compute by itself, changes with the velocities."""
    x, v = _states(system.description)
    return _differ(system.force(x, torch.zeros_like(x)), system.force(x, v))


def _states(description: Description) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (4, *description.reference.shape)
    noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return description.reference + 0.1 * noise[0], noise[1]


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.detach(), b.detach()
    both = a.isfinite() & b.isfinite()  # a potential of the user's own may end somewhere
    size = torch.maximum(a[both].abs(), b[both].abs()).amax() if bool(both.any()) else a.new_zeros(())
    return bool(((a - b)[both].abs() > _SAME * size).any())
