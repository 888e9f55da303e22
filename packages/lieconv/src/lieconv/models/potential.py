r"""Energies of sets of points whose gradients are forces.

A potential E of points :math:`x_i` gives forces :math:`F_i = -\partial E / \partial x_i`. They are of use where

- E is extensive: the energy of two molecules far apart is the sum of theirs (a sum over points, each of which sees no
  further than a radius);
- E is continuously differentiable: forces do not jump, and a simulation with small steps keeps its energy;
- E of one molecule does not depend on the others of a batch, in training neither.

The window :math:`(1 - d^2 / r^2)^2` of the neighbourhoods takes a neighbour in and out smoothly, the soft frames of the
exact lift are smooth through symmetric, collinear and coincident points, and the activations are SiLU. What is not
smooth is left out or refused: neighbours by number alone in a crowd, subsampling, random draws, batch statistics.
"""

from __future__ import annotations

from typing import Any

from lie.groups import LieGroup

from lieconv.models.resnet import LieResNet


def potential(
    in_channels: int,
    out_channels: int = 1,
    *,
    group: LieGroup,
    radius: float | None,
    num_neighbors: int = 64,
    **options: Any,
) -> LieResNet:
    """A `LieResNet` for energies (B, out_channels), whose gradients by the points are forces.

    Sums over points, layer normalisation, no random draws. A batch with which forces would jump is refused when it
    comes, and an accelerator is waited for to see that.

    Args:
        in_channels: features a point, as of its kind of atom.
        out_channels: energies.
        group: a group of `lie.groups` or your own with an exact lift.
        radius: cutoff, in the unit of the points; no point sees further in one layer. None for sets of at most
            ``num_neighbors`` points, all of which then see each other (the energy is not extensive), and for groups
            that dilate lengths.
        num_neighbors: the most points that a ball may hold, its centre included; more are refused. In a periodic cell
            the radius is at most half the shortest vector of the lattice.
        options: further ones of `LieResNet`, such as channels, num_layers, out_vectors, ``pool="mean"``.

    Raises:
        ValueError: for what `LieResNet` refuses with ``forces=True``.

    Laws: energies of sets far apart add up; gradients are continuous along every path of the points. (A group that
    dilates about a centre or a set's own size leaves no limit where all points meet in one, or all coordinates of an
    axis are zero: the gradient is continuous elsewhere.)

    >>> import lie, torch
    >>> net = potential(5, group=lie.SE3(), radius=5.0, channels=16, num_layers=2).double()
    >>> x, kinds = torch.randn(1, 9, 3).double().requires_grad_(), torch.eye(5).double()[torch.arange(9) % 5][None]
    >>> forces = -torch.autograd.grad(net(x, kinds).sum(), x)[0]
    >>> forces.shape, bool(forces.sum(1).abs().max() < 1e-9)
    (torch.Size([1, 9, 3]), True)
    """
    settings: dict[str, Any] = {"pool": "sum", "num_neighbors": num_neighbors, "radius": radius} | options
    return LieResNet(in_channels, out_channels, group=group, forces=True, **settings)
