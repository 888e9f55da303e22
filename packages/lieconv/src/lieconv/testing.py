"""Measure how equivariant a network on points is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lie.groups import LieGroup
from torch import Tensor

from lieconv.geometry.checks import check_group, check_numbers


@dataclass(frozen=True)
class EquivarianceReport:
    """The change of a network's output under random elements of a group.

    Fields:
        errors: largest change of an output for each element, in units of ``spread``.
        spread: standard deviation of the outputs over samples and points, the size of what the network says.
        dtype: of the input.
    """

    errors: Float[Tensor, " elements"]
    spread: float
    dtype: torch.dtype

    @property
    def worst(self) -> float:
        """The largest error."""
        return float(self.errors.max())

    @property
    def median(self) -> float:
        """The median error."""
        return float(self.errors.median())

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"change under {len(self.errors)} elements, {dtype}: worst {self.worst:.2g}, median {self.median:.2g} "
            f"of the spread {self.spread:.3g} of the outputs"
        )


@torch.no_grad()
def measure_equivariance(
    model: Callable[..., Any],
    group: LieGroup,
    coords: Float[Tensor, "B N d"],
    values: Float[Tensor, "B N c"],
    *args: Any,
    num_elements: int = 20,
    elements: Float[Tensor, "elements m m"] | None = None,
    action_out: Callable[[Tensor, Any], Any] | None = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> EquivarianceReport:
    """The change of ``model(coords, values, ...)`` when random elements of the group move the points.

    The change is counted in units of the outputs' spread over samples and points, not of their size: a network whose
    outputs hardly depend on the points cannot hide behind a large constant.

    Args:
        model: called as ``model(coords, values, *args, **kwargs)``; should be in evaluation mode.
        group: whose ``sample`` gives the elements, turns of every angle among them.
        coords, values: points and their features.
        num_elements: how many random elements.
        elements: these instead of random ones.
        action_out: ``action_out(g, output)``, how an element moves an output; None where outputs are invariant.
        generator: source of the elements.

    Raises:
        ValueError: if the model gives a pair or a tree, which has to be picked apart first, has no spread at all, or is
            not finite.
        TypeError: for points, outputs or a group of another kind.

    >>> import lie, lieconv, torch
    >>> net = lieconv.LieResNet(1, 2, group=lie.SE2(), channels=8, num_layers=1, num_neighbors=6).double().eval()
    >>> x, v = torch.randn(4, 12, 2).double(), torch.randn(4, 12, 1).double()
    >>> measure_equivariance(net, lie.SE2(), x, v).worst < 1e-10
    True
    """
    check_group(group)
    if not isinstance(coords, Tensor) or not coords.is_floating_point():
        got = coords.dtype if isinstance(coords, Tensor) else type(coords).__name__
        raise TypeError(f"expected floating-point points, got {got}; use coords.float()")
    if elements is None:
        check_numbers(num_elements=num_elements)
    elif not isinstance(elements, Tensor) or elements.ndim != 3 or not len(elements):
        got = tuple(elements.shape) if isinstance(elements, Tensor) else type(elements).__name__
        raise ValueError(f"expected elements (elements, m, m), at least one, got {got}")
    if elements is None:
        elements = group.sample(num_elements, generator=generator, dtype=coords.dtype, device=coords.device)
    before = model(coords, values, *args, **kwargs)
    if not isinstance(before, Tensor):
        raise ValueError(f"expected one tensor from the model, got {type(before).__name__}; wrap it to pick one part")
    if not (before.is_floating_point() or before.is_complex()):
        raise TypeError(f"expected numbers that vary continuously from the model, got {before.dtype}")
    rows = before.flatten(0, -2) if before.ndim > 1 else before.unsqueeze(-1) if before.ndim else before.view(1, 1)
    if rows.shape[0] < 2:
        raise ValueError("expected outputs of at least two samples or points, whose spread is the unit; give more")
    _check_finite(before, "at the points as given")
    spread = float(rows.std(0).max())
    if not spread > 0:
        raise ValueError("the outputs are all the same: give more or other points, or weights that do something")
    errors = []
    for g in elements:
        after = model(group.act(g, coords), values, *args, **kwargs)
        expected = before if action_out is None else action_out(g, before)
        _check_finite(after, "after a motion")
        errors.append((after - expected).abs().max() / spread)
    return EquivarianceReport(torch.stack(errors).cpu(), spread, coords.dtype)


def _check_finite(output: Tensor, where: str) -> None:
    if not bool(torch.isfinite(output).all()):
        raise ValueError(f"the model gives NaN or infinity {where}; no change can be measured")
