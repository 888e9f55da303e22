"""One operation on values with tangents, as its rule sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def operator_name(func: Any) -> str:
    """The name of an operator: without its namespace if that is torch's own, else ``namespace::name``.

    >>> operator_name(torch.ops.aten.relu.default)
    'relu'
    """
    namespace, _, name = func._schema.name.partition("::")
    return name if namespace == "aten" else func._schema.name


class Call:
    """``func(*args, **kwargs) == out`` on values, and the tangents of its arguments under common rows.

    ``args`` are plain values; ``t(i)`` gives the tangents (K, *shape) of argument i, or None where it does not move.
    """

    def __init__(
        self,
        func: Any,
        raw: Sequence[Any],
        raw_kwargs: dict[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        out: Any,
        rows: tuple[int, ...],
    ) -> None:
        self.func, self.raw, self.raw_kwargs = func, raw, raw_kwargs
        self.args, self.kwargs, self.out, self.rows = args, kwargs, out, rows
        self.spare = 0
        """rows of memory that `empty` keeps free behind the tangents, for terms that begin there"""
        self.buffer: Tensor | None = None

    @property
    def count(self) -> int:
        """K, the number of tangents."""
        return len(self.rows)

    def empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Fresh memory for the tangents of an output of ``shape``."""
        like = self.out if isinstance(self.out, Tensor) else self.out[0]
        self.buffer = buffer = like.new_empty((self.count + self.spare, *shape), dtype=dtype or like.dtype)
        return buffer[: self.count]

    def empty_like(self, value: Tensor) -> Tensor:
        """Fresh memory for the tangents of ``value``, each in its memory order: what is a view of it is one of them."""
        order = sorted(range(value.ndim), key=lambda dim: -value.stride(dim))
        back = [0, *(order.index(dim) + 1 for dim in range(value.ndim))]
        tangents = self.empty([value.shape[dim] for dim in order], value.dtype).permute(back)
        assert self.buffer is not None
        self.buffer = self.buffer.permute(back)
        return tangents

    def get(self, index: int, default: Any = None, name: str = "") -> Any:
        """The argument at ``index``, or of ``name``, as a plain value."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def dual(self, index: int, name: str = "") -> Any:
        """The argument itself if it moves, else None."""
        a = self.raw[index] if index < len(self.raw) else self.raw_kwargs.get(name)
        return a if getattr(a, "moves", False) and not isinstance(a, list | tuple) else None

    def t(self, index: int, name: str = "") -> Tensor | None:
        """The tangents of the argument at ``index``; None where it does not move."""
        return self.aligned(self.dual(index, name))

    def ts(self, index: int) -> list[Tensor | None]:
        """The tangents of each tensor in the list at ``index``."""
        return [self.aligned(a if getattr(a, "moves", False) else None) for a in self.raw[index]]

    def take(self, index: int) -> tuple[Tensor | None, bool]:
        """As `t`, and whether the rule may overwrite what it gets."""
        dual = self.dual(index)
        if dual is None:
            return None, False
        return dual.take_tangents() if dual.rows == self.rows else (self.aligned(dual), True)

    def aligned(self, dual: Any) -> Tensor | None:
        """The tangents of ``dual``, with zeros for the rows it does not have."""
        if dual is None:
            return None
        tangents = dual.tangents
        if dual.rows == self.rows:
            return tangents
        whole = tangents.new_zeros(len(self.rows), *tangents.shape[1:])
        places = [self.rows.index(row) for row in dual.rows]
        if places == list(range(len(places))):
            whole[: len(places)] = tangents
        else:
            whole[places] = tangents
        return whole

    def moving(self) -> tuple[list[Any], list[Tensor], list[Tensor]]:
        """Places, values and tangents of all arguments that move."""
        places: list[Any] = []
        points: list[Tensor] = []
        velocities: list[Tensor] = []

        def visit(place: Any, raw: Any, value: Any) -> None:
            if isinstance(raw, list | tuple):
                for i, item in enumerate(raw):
                    visit((*place, i), item, value[i])
            elif getattr(raw, "moves", False):
                tangents = self.aligned(raw)
                assert tangents is not None
                places.append(place)
                points.append(value)
                velocities.append(tangents)

        for i, raw in enumerate(self.raw):
            visit((i,), raw, self.args[i])
        for key, raw in self.raw_kwargs.items():
            visit((key,), raw, self.kwargs[key])
        return places, points, velocities

    def with_moved(self, places: Sequence[Any], moved: Sequence[Tensor]) -> Any:
        """The operation with other values at ``places``."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, value in zip(places, moved, strict=True):
            holder: Any = kwargs if isinstance(place[0], str) else args
            for step in place[:-1]:
                holder[step] = list(holder[step])
                holder = holder[step]
            holder[place[-1]] = value
        return self.func(*args, **kwargs)

    def broadcast(self, tangents: Tensor, index: int) -> Tensor:
        """Tangents of argument ``index`` with the axes that broadcasting adds, (K, *out.shape) up to ones."""
        del index
        missing = self.out.ndim - (tangents.ndim - 1)
        return tangents.reshape(len(tangents), *[1] * missing, *tangents.shape[1:]) if missing > 0 else tangents


def fold(tangents: Tensor) -> Tensor:
    """(K, B, ...) -> (K B, ...)."""
    return tangents.flatten(0, 1)


def shifted(dim: int | Sequence[int] | None, ndim: int) -> Any:
    """Axes of a value as axes of its tangents."""
    if dim is None:
        return list(range(1, ndim + 1))
    if isinstance(dim, int):
        return dim % max(ndim, 1) + 1
    dims = [d % max(ndim, 1) + 1 for d in dim]
    return dims or list(range(1, ndim + 1))


def ones_like(x: Tensor) -> Tensor:
    """Ones of the shape, dtype and memory order of x."""
    return torch.ones_like(x)
