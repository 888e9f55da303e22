"""The layers' terms over several images: shares of all images together, mean squares, one row a term."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import Tensor

from liederivative.actions import GeneratorLike
from liederivative.layerwise.decomposition import decompose

DEFINITIONS = {
    "share": "<term, total> / <total, total>, summed over images before the division: signed, and all sum to 1",
    "norm": "root of the mean over images of the term's squared Euclidean norm; norms do not add up",
    "squared": "mean over outputs and images of the term's square, as the LEE is of the total",
    "cumulative": "sum of the shares up to this term, in order of the run",
    "closure": "|sum of terms - total| / |total|, the largest over images: rounding; null where a total is zero",
}
"""What the numbers mean, written beside them."""


def terms_over_images(
    model: Callable[..., Any],
    images: Iterable[Tensor],
    generator: str | GeneratorLike,
    *,
    probabilities: bool = True,
    by: Literal["layer", "type"] = "layer",
) -> dict[str, Any]:
    """`decompose` of a classifier, its outputs taken as invariant, batch after batch; sums in double precision.

    Args:
        model, generator, probabilities, by: as for `decompose`.
        images: batches (B, C, H, W), such as ``x.split(1)``: one image at once takes the least memory.

    Returns:
        ``terms``, one row a layer or operation in order of the run, with name, kind, whether it is a layer, and the
        numbers of `DEFINITIONS`; ``mean_squared`` of the total, ``closure``, and ``unknown``, the layers whose place
        could not be followed.
    """
    sums: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    layers: set[str] = set()
    unknown: dict[str, None] = {}
    total = closure = 0.0
    count, outputs = 0, 0
    for batch in images:
        found = decompose(model, batch, generator, output="invariant", probabilities=probabilities, by=by)
        closure = max(closure, found.closure)
        unknown |= dict.fromkeys(found.unknown)
        layers |= set(found.terms)
        kinds |= found.kinds
        whole = found.total.double()
        total += float(whole.square().sum())
        count, outputs = count + len(batch), outputs + whole.numel()
        for name, term in found.all_terms().items():
            along, square = sums.get(name, [0.0, 0.0])
            term = term.double()
            sums[name] = [along + float((term * whole).sum()), square + float(term.square().sum())]
    rows, cumulative = [], 0.0
    for name in (name for name in kinds if name in sums):
        along, square = sums[name]
        share = along / total if total else 0.0
        cumulative += share
        rows.append(
            {
                "name": name,
                "kind": kinds[name],
                "layer": name in layers,
                "share": share,
                "norm": (square / count) ** 0.5,
                "squared": square / outputs,
                "cumulative": cumulative,
            }
        )
    return {
        "mean_squared": total / outputs,
        "closure": closure if math.isfinite(closure) else None,
        "unknown": list(unknown),
        "terms": rows,
    }
