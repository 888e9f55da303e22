r"""Rank correlations: does one quantity rise or fall with another, whatever the shape of the curve?

Spearman's :math:`\rho` is the correlation of the ranks; Kendall's :math:`\tau_b` counts concordant minus
discordant pairs, corrected for ties. P-values are two-sided, against independence.

Source: the paper reports rank correlations of LEE and test error, Gruver et al. 2022 (Lie derivative), arXiv
2210.02984, section on pretrained models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MINIMUM = 4
"""models below which a rank correlation says nothing: three can be in order by chance one time in three"""


@dataclass(frozen=True)
class RankCorrelation:
    """Both correlations of n pairs."""

    n: int
    spearman: float
    spearman_p: float
    kendall: float
    kendall_p: float


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation | None:
    """The rank correlations of paired values; None for fewer than four pairs, or if one side is constant.

    >>> rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]).spearman
    1.0
    """
    from scipy.stats import kendalltau, spearmanr

    if len(x) < MINIMUM or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho: Any = spearmanr(x, y)
    tau: Any = kendalltau(x, y)
    values = [float(value) for value in (rho.statistic, rho.pvalue, tau.statistic, tau.pvalue)]
    return RankCorrelation(len(x), *values) if all(map(math.isfinite, values)) else None


def correlations_by_family(
    x: Mapping[str, float], y: Mapping[str, float], family: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Correlations over the models that ``x`` and ``y`` share: "all", then each family that is large enough."""
    common = [name for name in x if name in y]
    groups = {"all": common}
    for name in common:
        groups.setdefault(family[name], []).append(name)
    found = {}
    for group, names in groups.items():
        correlation = rank_correlation([x[name] for name in names], [y[name] for name in names])
        if correlation is not None:
            found[group] = asdict(correlation)
    return found
