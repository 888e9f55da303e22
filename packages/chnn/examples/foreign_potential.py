"""Learn a potential of your own form: any module x (..., n, d) -> (...) can be the V of a CHNN.

Here V is known to be linear in the heights, with unknown weights: two numbers learn what a network of
30 thousand would. Run: python foreign_potential.py [steps]; after 300 steps the ratio of the weights, which motion
determines, is right to about a percent.
"""

from __future__ import annotations

import sys

import torch
from chnn.models import CHNN
from chnn.systems import ChainPendulum
from torch import Tensor, nn


class Weights(nn.Module):
    """V(x) = sum of w_i times the height of point i, newtons times metres."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n, d) -> (...)."""
        return (self.w * x[..., -1]).sum(-1)


def main(steps: int = 300) -> float:
    """Train on short true trajectories; returns the learnt ratio of gravity's pull on the second mass to its mass."""
    system = ChainPendulum(2, masses=[1.0, 2.0])
    z0 = system.sample(64, generator=torch.Generator().manual_seed(0))
    truth = system.simulate(z0, torch.arange(5, dtype=torch.float64) * 0.03)
    model = CHNN(system.constraints_on_points, potential=Weights(2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = (model.rk4_rollout(z0, 0.03, 4) - truth).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.2e}")
    weights = model.potential.w.detach()  # type: ignore[union-attr]
    gravity = float(weights[1] / model.log_mass.detach()[1].exp())
    print(f"learnt acceleration of gravity: {gravity:.3f} m/s^2")
    return gravity


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
