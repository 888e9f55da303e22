r"""The rotation and the similarity nearest to a matrix, in the Frobenius norm.

The nearest rotation is the orthogonal factor of the polar decomposition :math:`M = R P` where
:math:`\det M > 0`. In the plane it has a closed form; in space Newton's iteration
:math:`X \leftarrow (\gamma X + (\gamma X)^{-T}) / 2` with
:math:`\gamma = (\|X^{-1}\| / \|X\|)^{1/2}` finds it in seven steps for every condition number that a dtype resolves
(Higham 2008, Functions of Matrices, section 8.6). Unlike the derivative of an SVD, its derivative exists at rotations.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# One more than float64 took for condition numbers up to 1e12.
_STEPS = 8
# In epsilons: the determinant of a matrix of entries up to 1 is a sum of six products, each off by some.
_SMALLEST = 100.0


def nearest_rotation(M: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:  # noqa: N803
    """The rotation nearest to ``M``, for d of 2 or 3.

    NaN where there is none to the precision of the dtype: for matrices of determinant 0 or below (reflections), or
    under 100 epsilons of the d-th power of the largest entry, where rounding decides its sign.
    """
    # The result does not change with the size of M, so that the size needs no derivative.
    M = M / M.detach().abs().amax((-2, -1), keepdim=True)  # noqa: N806
    return _in_the_plane(M) if M.shape[-1] == 2 else _in_space(M)


def nearest_similarity(M: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:  # noqa: N803
    """The product ``s R`` of a dilation s > 0 and a rotation nearest to ``M``; NaN as of `nearest_rotation`."""
    R = nearest_rotation(M)  # noqa: N806
    size = (R * M).sum((-2, -1), keepdim=True) / M.shape[-1]
    return size * R


def one_newton_step(R: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:  # noqa: N803
    """One step towards the nearest rotation, ``R (3 - R^T R) / 2``: of an error e, about e^2 remains.

    For matrices that are rotations but for the rounding of long products, and only for those.

    Source: Higham 2008, Functions of Matrices, section 8.3 (Newton-Schulz iteration).
    """
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return R + 0.5 * (R @ (eye - R.mT @ R))


def _in_the_plane(M: Tensor) -> Tensor:  # noqa: N803
    a, b, c, d = M.flatten(-2).split(1, dim=-1)
    cos, sin = a + d, c - b
    determinant = a * d - b * c
    regular = determinant > _SMALLEST * torch.finfo(M.dtype).eps
    length = torch.where(regular, torch.hypot(cos, sin), torch.full_like(cos, torch.nan))
    cos, sin = cos / length, sin / length
    return torch.cat([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def _in_space(M: Tensor) -> Tensor:  # noqa: N803
    X, regular = M, torch.ones_like(M[..., :1, :1], dtype=torch.bool)  # noqa: N806
    for step in range(_STEPS):
        first, second, third = X.unbind(-2)
        cofactors = torch.stack(
            [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)], -2
        )
        determinant = (first * cofactors[..., 0, :]).sum(-1)[..., None, None]
        inverse = cofactors / determinant  # transposed
        # Whatever gamma is, the limit is the same, so that gamma needs no derivative.
        size, of_inverse = _norm(X.detach()), _norm(inverse.detach())
        if step == 0:
            regular = determinant > _SMALLEST * torch.finfo(M.dtype).eps  # false for NaN
        gamma = (of_inverse / size).sqrt()
        X = 0.5 * (gamma * X + inverse / gamma)  # noqa: N806
    return torch.where(regular, X, torch.full_like(X, torch.nan))


def _norm(M: Tensor) -> Tensor:  # noqa: N803
    return M.square().sum((-2, -1), keepdim=True).sqrt()
