r"""Shift consistency: how often a classifier keeps its answer when the image moves by a few pixels.

With the predicted class :math:`c_s = \arg\max f(S_s x)` of the image moved by s pixels along one axis,

.. math:: C = \frac{1}{|D|\, m} \sum_{x \in D} \sum_{s=1}^{m} [\, c_s = c_0 \,], \qquad
          C_{\text{pairs}} = \frac{2}{|D|\, m (m + 1)} \sum_{x \in D} \sum_{0 \le s < r \le m} [\, c_s = c_r \,],

on the x axis (columns) and the y axis (rows) alike. The first compares with the image at rest, the second any
two shifts. What enters at the border matters: ``boundary="circular"`` rolls the image, so that nothing is
lost and a seam appears; ``boundary="crop"`` moves a window of the same size through a larger image, as a camera
would.

Source: Zhang 2019, Making convolutional networks shift-invariant again, arXiv 1904.11486, section on metrics
(pairs); Gruver et al. 2022 (Lie derivative), arXiv 2210.02984 (against the image at rest, rolled; there the
shift of zero is counted as well and the axes are exchanged).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from lie.run import UserError, unknown_name
from torch import Tensor

from liederivative.metrics.outputs import Evaluator


@dataclass(frozen=True)
class ShiftConsistency:
    """Predicted classes of N images at m + 1 shifts along each axis."""

    classes_x: Int[Tensor, "shifts N"]
    """at shifts 0 ... m along columns"""
    classes_y: Int[Tensor, "shifts N"]
    """at shifts 0 ... m along rows"""

    @property
    def x(self) -> float:
        """Share of (image, shift along x) with the class of the image at rest."""
        return float((self.classes_x[1:] == self.classes_x[0]).double().mean())

    @property
    def y(self) -> float:
        """Share of (image, shift along y) with the class of the image at rest."""
        return float((self.classes_y[1:] == self.classes_y[0]).double().mean())

    @property
    def pairs_x(self) -> float:
        """Share of pairs of shifts along x that agree."""
        return _pairs(self.classes_x)

    @property
    def pairs_y(self) -> float:
        """Share of pairs of shifts along y that agree."""
        return _pairs(self.classes_y)


def shift_consistency(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "N C H W"],
    *,
    max_shift: int = 7,
    boundary: str = "circular",
    batch_size: int = 32,
) -> ShiftConsistency:
    """How often ``model`` keeps its predicted class under shifts of 1 to ``max_shift`` pixels.

    Args:
        model: classifier from images to scores (B, classes).
        x: images; with ``boundary="crop"`` the model sees windows that are ``max_shift`` pixels smaller.
        max_shift: largest shift in pixels; 7 as in the paper's code.
        boundary: "circular" or "crop".
        batch_size: images at once.

    Raises:
        UserError: for an unknown boundary, a shift that does not fit into the image, or a model that is no classifier.

    >>> darkest_corner = lambda x: torch.stack([x[:, 0, 0, 0], 0.5 - x[:, 0, 0, 0]], 1)
    >>> consistency = shift_consistency(darkest_corner, torch.eye(4)[None, None], max_shift=3)
    >>> consistency.x, consistency.pairs_x
    (0.0, 0.5)
    """
    if boundary not in ("circular", "crop"):
        raise unknown_name("boundary", boundary, ("circular", "crop"))
    smallest = min(x.shape[-2:]) if isinstance(x, Tensor) and x.ndim == 4 else max_shift + 1
    if not 1 <= max_shift < smallest:
        raise UserError(f"expected max_shift from 1 to {smallest - 1} pixels for these images, got {max_shift}")
    along: tuple[list[Tensor], list[Tensor]] = ([], [])
    with Evaluator(model, x, "invariant", False) as f:
        for batch in x.split(batch_size):
            still: Tensor | None = None
            for classes, dim in zip(along, (-1, -2), strict=True):
                rows = []
                for shift in range(max_shift + 1):
                    if shift == 0 and still is not None:
                        rows.append(still)
                        continue
                    value, _ = f.output(_moved(batch, shift, dim, max_shift, boundary))
                    if value.ndim != 2 or value.shape[1] < 2:
                        raise UserError(f"expected class scores (B, classes), got shape {tuple(value.shape)}")
                    rows.append(value.argmax(dim=1))
                still = rows[0]
                classes.append(torch.stack(rows))
    return ShiftConsistency(torch.cat(along[0], 1), torch.cat(along[1], 1))


def _moved(batch: Tensor, shift: int, dim: int, max_shift: int, boundary: str) -> Tensor:
    if boundary == "circular":
        return batch.roll(shift, dims=dim)
    window = batch[..., : batch.shape[-2] - max_shift, : batch.shape[-1] - max_shift]
    size = window.shape[dim]
    across = -2 if dim == -1 else -1
    return batch.narrow(dim, shift, size).narrow(across, 0, window.shape[across])


def _pairs(classes: Tensor) -> float:
    equal = classes[:, None] == classes[None]  # (shifts, shifts, N)
    first, second = torch.triu_indices(len(classes), len(classes), offset=1)
    return float(equal[first, second].double().mean())
