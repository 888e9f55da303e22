"""A learnt potential energy whose gradient is written out, so that training needs no double backward."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from chnn import mechanics


class MLPPotential(nn.Module):
    """V(x): a tanh network on the flattened coordinates of n points in d dimensions.

    Args:
        num_points, spatial_dim: n and d.
        hidden: width.
        depth: number of hidden layers.

    Source: Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581 (the potential as a network in Cartesian coordinates).
    """

    def __init__(self, num_points: int, spatial_dim: int, *, hidden: int = 128, depth: int = 3) -> None:
        super().__init__()
        widths = [num_points * spatial_dim, *[hidden] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.last = nn.Linear(hidden, 1, bias=False)  # a constant in V moves nothing

    def forward(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
        """The energy of each configuration."""
        h = x.flatten(-2)
        for layer in self.layers:
            h = layer(h).tanh()
        return self.last(h).squeeze(-1)

    def gradient(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """dV/dx by the chain rule, an ordinary differentiable expression."""
        activations = [x.flatten(-2)]
        for layer in self.layers:
            activations.append(layer(activations[-1]).tanh())
        g = self.last.weight.expand_as(activations[-1])
        for layer, h in zip(reversed(self.layers), reversed(activations[1:]), strict=True):
            g = (g * (1.0 - h.square())) @ layer.weight  # type: ignore[operator]  (a Linear)
        return g.unflatten(-1, x.shape[-2:])


def potential_gradient(potential: nn.Module, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
    """dV/dx of any module x (..., n, d) -> (...): its own ``gradient`` where it has one, else autograd."""
    if isinstance(potential, MLPPotential):
        return potential.gradient(x)
    return mechanics.potential_gradient(potential, x)
