"""A group of your own costs exp and log: the affine group of the line, x -> s x + t with s > 0."""

from __future__ import annotations

import torch
from lie.groups import LieGroup
from lie.groups.functions import expm1_ratio
from lie.testing import check_group


class AffineLine(LieGroup):
    """Coordinates (log s, t); matrices [[s, t], [0, 1]]; acts on points of one coordinate."""

    dim, matrix_dim, point_dim = 2, 2, 1

    def exp(self, a):
        log_s, t = a.split(1, -1)
        zero = torch.zeros_like(t)
        return torch.cat([log_s.exp(), t * expm1_ratio(log_s), zero, zero + 1.0], -1).unflatten(-1, (2, 2))

    def log(self, g):
        log_s = g[..., 0, :1].log()
        return torch.cat([log_s, g[..., 0, 1:] / expm1_ratio(log_s)], -1)


if __name__ == "__main__":
    G = AffineLine()
    check_group(G)  # every law, on random elements, in float64
    check_group(G, dtype=torch.float32)
    u, _ = G.lift(torch.tensor([[2.0], [-3.0]]))  # found numerically: the action is transitive
    print("lift reaches", G.act(u, torch.zeros(1)).flatten().tolist())
    print("[e_s, e_t] =", G.bracket(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).tolist())
