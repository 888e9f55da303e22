"""Vectors that turn with the points: learn the dipole moment of charges from examples in one orientation only.

Targets are sum_i q_i (x_i - mean), charges summing to zero. Trained on sets that all lie in the half space x > 0 of
their moment, tested on sets turned at random: the error is the same. Run: python dipoles.py [steps]
"""

from __future__ import annotations

import sys

import torch
from lie.groups import SE3
from lieconv import LieResNet
from lieconv.testing import measure_equivariance


def charges(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (B, 8, 3), charges (B, 8, 1) and their dipole moments (B, 3), those with a positive first component."""
    x = torch.randn(count, 8, 3, generator=generator)
    q = torch.randn(count, 8, 1, generator=generator)
    q = q - q.mean(1, keepdim=True)
    dipole = (q * x).sum(1)
    flip = dipole[:, :1].sign().unsqueeze(1)  # a half turn about the third axis
    turn = torch.cat([flip, flip, torch.ones_like(flip)], -1)
    return x * turn, q, dipole * turn.squeeze(1)


def main(steps: int = 300) -> tuple[float, float, float]:
    """Relative errors on test sets as drawn and turned at random, and the worst change under rigid motions."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = LieResNet(1, 1, group=SE3(), channels=32, num_layers=1, num_neighbors=8, out_vectors=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        x, q, dipole = charges(64, generator)
        loss = (net(x, q)[1].squeeze(1) - dipole).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    x, q, dipole = charges(500, generator)
    motion = SE3().sample(500, generator=generator)
    turned = (motion[:, :3, :3] @ dipole.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        errors = [
            float((net(points, q)[1].squeeze(1) - target).norm() / target.norm())
            for points, target in ((x, dipole), (SE3().act(motion.unsqueeze(1), x), turned))
        ]
    report = measure_equivariance(
        lambda points, values: net(points, values)[1].squeeze(1),
        SE3(),
        x,
        q,
        action_out=lambda g, y: y @ g[:3, :3].mT,
        generator=generator,
    )
    print(f"relative error {errors[0]:.4f}, turned at random {errors[1]:.4f}; {report}")
    return errors[0], errors[1], report.worst


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
