"""Test whether forces are minus the gradient of their potential energy: what models that keep an energy assume."""

from __future__ import annotations

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
