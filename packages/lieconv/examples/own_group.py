"""A group of your own: dilations and rotations of the plane about the origin, R* x SO(2).

`exp` and `log` define it, `lift` lets it act on data. A network equivariant to it reads shapes alike at any size and
angle. Run: python own_group.py [epochs], 80 by default
"""

from __future__ import annotations

import sys

import torch
from lie.groups import LieGroup
from lie.testing import assert_equivariant, check_group
from lieconv import LieResNet
from torch import Tensor, nn


class ScaledRotation(LieGroup):
    """Coordinates (log r, theta); acts on the plane without its origin, in one orbit, freely."""

    dim, matrix_dim, point_dim, stabiliser_dim = 2, 2, 2, 0

    def exp(self, a: Tensor) -> Tensor:
        r, theta = a[..., :1].exp(), a[..., 1:]
        x, y = r * theta.cos(), r * theta.sin()
        return torch.cat([x, -y, y, x], -1).unflatten(-1, (2, 2))

    def log(self, g: Tensor) -> Tensor:
        x, y = g[..., 0, :1], g[..., 1, :1]
        return torch.cat([torch.hypot(x, y).log(), torch.atan2(y, x)], -1)

    def lift(self, x, num_samples=None, generator=None):
        x = x if num_samples is None else x.unsqueeze(-2).expand(*x.shape[:-1], num_samples, 2)
        a, b = x[..., :1], x[..., 1:]
        return torch.cat([a, -b, b, a], -1).unflatten(-1, (2, 2)), x[..., :0]

    def orbit_origin(self, orbit: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=orbit.dtype, device=orbit.device).expand(*orbit.shape[:-1], 2)


def shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy ellipses of eccentric and of round form, of 24 points; labels say which."""
    labels = torch.arange(count) % 2
    angle = 2 * torch.pi * torch.rand(count, 24, generator=generator)
    width = torch.where(labels == 0, 1.0, 0.5).unsqueeze(-1)
    points = torch.stack([width * angle.cos(), angle.sin()], -1)
    return points + 0.05 * torch.randn(points.shape, generator=generator), labels


def main(epochs: int = 80) -> float:
    """Train on shapes of one size, test on others; returns the accuracy there."""
    group, generator = ScaledRotation(), torch.Generator().manual_seed(0)
    check_group(group)
    torch.manual_seed(0)
    net = LieResNet(1, 2, group=group, channels=16, num_layers=2, num_neighbors=12)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    points, labels = shapes(128, generator)
    ones = torch.ones(*points.shape[:2], 1)
    for epoch in range(epochs):
        loss = nn.functional.cross_entropy(net(points, ones), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}")
    net.eval()
    test, truth = shapes(128, generator)
    g = group.exp(torch.tensor([1.5, 2.0]))  # 4.5 times as large, turned by 2 radians
    assert_equivariant(net, lambda x: group.act(g, x), lambda y: y, test, ones)
    accuracy = float((net(group.act(g, test), ones).argmax(-1) == truth).float().mean())
    print(f"accuracy on shapes 4.5 times as large: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
