"""Lie groups with surjective exponential: the same verbs on each, plain tensors, batch axes leading.

>>> import torch
>>> from lie.groups import SE3
>>> G = SE3()
>>> g = G.exp(torch.tensor([0.0, 0.0, torch.pi / 2, 1.0, 0.0, 0.0]))
>>> G.act(g, torch.tensor([1.0, 0.0, 0.0])).shape
torch.Size([3])
"""

from lie.groups.affine import affine_field, affine_generators
from lie.groups.base import LieGroup
from lie.groups.heisenberg import Heisenberg
from lie.groups.names import by_name
from lie.groups.product import Product
from lie.groups.rxso2 import RxSO2
from lie.groups.rxsq import RxSQ
from lie.groups.se2 import SE2
from lie.groups.se3 import SE3
from lie.groups.sim2 import Sim2
from lie.groups.sim3 import Sim3
from lie.groups.so2 import SO2
from lie.groups.so3 import SO3
from lie.groups.structure import AffineStructure, affine_structure
from lie.groups.subgroup import Subgroup
from lie.groups.translation import T
from lie.groups.trivial import Trivial

__all__ = [
    "SE2",
    "SE3",
    "SO2",
    "SO3",
    "AffineStructure",
    "Heisenberg",
    "LieGroup",
    "Product",
    "RxSO2",
    "RxSQ",
    "Sim2",
    "Sim3",
    "Subgroup",
    "T",
    "Trivial",
    "affine_field",
    "affine_generators",
    "affine_structure",
    "by_name",
]
