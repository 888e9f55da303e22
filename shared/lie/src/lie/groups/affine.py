"""The affine algebras aff(2) and aff(3): generators of vector fields ``A x + b`` on the plane and in space.

The exponential of Aff(n) does not reach every element of positive determinant, so that it is no `LieGroup` here;
its vector fields need no logarithm.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_AXES = "xyz"


def affine_generators(
    n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Float[Tensor, "m m"]]:
    """The basis of aff(n) as homogeneous matrices, (n+1) x (n+1), by name, for n of 2 or 3.

    ``translate_x`` moves along x; ``stretch_x`` has velocity (x, 0, ...); ``shear_xy`` moves x in proportion to y,
    with velocity (y, 0, ...). In all n^2 + n; rotations, dilations and squeezes are sums of these.

    Raises:
        ValueError: for another n.
    """
    if n not in (2, 3):
        raise ValueError(f"expected the plane or space, n of 2 or 3, got {n}")
    generators = {}
    for i in range(n):
        generators[f"translate_{_AXES[i]}"] = (i, n)
    for i in range(n):
        generators[f"stretch_{_AXES[i]}"] = (i, i)
    for i in range(n):
        for j in range(n):
            if i != j:
                generators[f"shear_{_AXES[i]}{_AXES[j]}"] = (i, j)
    eye = torch.eye((n + 1) ** 2, dtype=dtype, device=device).unflatten(-1, (n + 1, n + 1))
    return {name: eye[i * (n + 1) + j] for name, (i, j) in generators.items()}


def affine_field(A: Float[Tensor, "*batch m m"], x: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch d"]:  # noqa: N803
    """The velocity at ``x`` of the affine algebra element ``A``: its linear part times x plus its last column.

    Raises:
        ValueError: if A is not (..., d + 1, d + 1) for points (..., d).
    """
    d = x.shape[-1]
    if A.shape[-2:] != (d + 1, d + 1):
        raise ValueError(
            f"expected homogeneous matrices of shape (..., {d + 1}, {d + 1}) for points of shape {tuple(x.shape)}, "
            f"got {tuple(A.shape)}"
        )
    return (A[..., :d, :d] @ x.unsqueeze(-1)).squeeze(-1) + A[..., :d, d]
