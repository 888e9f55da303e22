"""Half precision: each verb of a group computes in float32 and rounds the result once.

In float16 and bfloat16 themselves ``torch.linalg.matrix_exp`` is wrong, ``inv``, ``pinv`` and ``svd`` do not exist,
and squares leave the range of float16 at 256. A result beyond that range is inf, as of `torch.exp`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
FLOATING = (*HALF, torch.float32, torch.float64)

Verb = TypeVar("Verb", bound=Callable[..., Any])


def computed_in_float32(verb: Verb) -> Verb:
    """``verb`` with its half-precision arguments computed in float32 and its results rounded to their dtype.

    The first argument of the verb decides. A second tensor of another dtype is left to the verb, which refuses it.
    """

    @functools.wraps(verb)
    def rounding(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(first, Tensor) or first.dtype not in HALF:
            return verb(self, *args, **kwargs)
        dtype = first.dtype
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if any(x.dtype != dtype for x in tensors):
            return verb(self, *args, **kwargs)
        result = verb(self, *map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        if isinstance(result, tuple):
            return tuple(_rounded(x, dtype) for x in result)
        return _rounded(result, dtype)

    rounding._computes_in_float32 = True  # type: ignore[attr-defined]
    return rounding  # type: ignore[return-value]


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) else x


def _rounded(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x
