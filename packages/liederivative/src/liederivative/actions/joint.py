"""Inputs of several parts, and a user's own fields.

A molecule is positions that move and features that do not; a graph network may take forces besides. `Joint` moves
each part of a dictionary or tuple by the same element of one algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lie.run import UserError
from torch import Tensor

from liederivative.actions.action import Action, Layout
from liederivative.actions.differences import check_values
from liederivative.actions.generators import Element, GeneratorLike
from liederivative.actions.layouts import Invariant
from liederivative.actions.tangents import Domain


class VectorFields(Action):
    """Your own one-parameter groups, by their vector fields: ``{"name": field}``, ``field(x) -> dx/dt`` of x's shape.

    As a layout of the output, give fields of the same names: the velocity of the output under the same motions.

    >>> turn = lambda z: torch.stack([-z[..., 1], z[..., 0]], -1)
    >>> VectorFields({"turn": turn}).tangents(torch.tensor([[1.0, 0.0]]), torch.ones(1, 1))
    tensor([[[-0., 1.]]])
    """

    def __init__(self, fields: Mapping[str, Callable[[Any], Any]]) -> None:
        if not fields:
            raise UserError("expected at least one vector field by name, got none")
        self.fields = dict(fields)

    def __repr__(self) -> str:
        return f"VectorFields({', '.join(self.fields)})"

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """One a field."""
        rows = torch.eye(len(self.fields)).tolist()
        return {name: Element(name, tuple(row)) for name, row in zip(self.fields, rows, strict=True)}

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` is a floating-point batch. Fields are checked where they are used."""
        from liederivative.actions.action import check_tensor

        check_tensor(x, "inputs", "(B, ...)")

    def tangents(self, value: Tensor, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Tensor:
        """The fields at ``value``, combined."""
        del domain
        if coefficients.shape[1] != len(self.fields):
            raise UserError(f"expected fields for {coefficients.shape[1]} motions of the input, got {self!r}")
        check_values(value, 1)
        wanted = (coefficients != 0).any(0).tolist()  # a field that nobody asks for need not be right here
        velocities = [
            self._velocity(name, value) if asked else torch.zeros_like(value)
            for name, asked in zip(self.fields, wanted, strict=True)
        ]
        return torch.tensordot(coefficients.to(value.dtype), torch.stack(velocities).to(value.dtype), dims=1)

    def _velocity(self, name: str, value: Tensor) -> Tensor:
        velocity = self.fields[name](value)
        if not isinstance(velocity, Tensor) or velocity.shape != value.shape:
            got = tuple(velocity.shape) if isinstance(velocity, Tensor) else type(velocity).__name__
            raise UserError(
                f"expected the field {name!r} to give a velocity of shape {tuple(value.shape)}, that of the point, "
                f"got {got}"
            )
        return velocity


@dataclass(frozen=True)
class Joint(Action):
    """An input of several parts, each with its own action of the same group.

    ``parts`` is a dictionary or tuple like the input; None stands for a part that does not move, whatever its dtype:
    atomic numbers, masks, labels.

    >>> from lie.groups import SE3
    >>> from liederivative.actions import Points
    >>> molecule = Joint({"positions": Points(SE3()), "numbers": None})
    """

    parts: Mapping[str, Layout | None] | tuple[Layout | None, ...]

    def _items(self) -> list[tuple[Any, Layout | None]]:
        return list(self.parts.items() if isinstance(self.parts, Mapping) else enumerate(self.parts))

    def _moving(self) -> Action:
        for _, part in self._items():
            if isinstance(part, Action):
                return part
        raise UserError("expected at least one part with an action, got none that moves")

    @property
    def generators(self) -> Mapping[str, GeneratorLike]:
        """Those of the first part that moves."""
        return self._moving().generators

    def check(self, x: Any) -> None:
        """Raise `UserError` unless ``x`` has these parts, each a finite batch of its kind, equally long."""
        keys = [key for key, _ in self._items()]
        got = list(x) if isinstance(x, Mapping) else list(range(len(x))) if isinstance(x, tuple | list) else None
        if got is None or set(got) != set(keys):
            raise UserError(f"expected an input with the parts {keys}, got {type(x).__name__ if got is None else got}")
        sizes = {key: len(x[key]) for key in keys if isinstance(x[key], Tensor) and x[key].ndim}
        for key, part in self._items():
            if isinstance(part, Action):
                part.check(x[key])
        if len(set(sizes.values())) > 1:
            raise UserError(f"expected parts with equally many samples, got {sizes}")

    def domain(self, x: Any) -> Domain:
        """That of the first part that moves."""
        moving = self._moving()
        return moving.domain(next(x[key] for key, part in self._items() if part is moving))

    def tangents(self, value: Any, coefficients: Tensor, domain: Domain | tuple[int, ...] = ()) -> Any:
        """The velocity of each floating-point part; None for the others."""
        moved = {}
        for key, part in self._items():
            tensor = value[key]
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                moved[key] = None
            elif domain == () and isinstance(part, Action):
                moved[key] = part.tangents(tensor, coefficients, part.domain(tensor))
            else:
                moved[key] = (part or Invariant()).tangents(tensor, coefficients, domain)
        return moved if isinstance(self.parts, Mapping) else tuple(moved.values())
