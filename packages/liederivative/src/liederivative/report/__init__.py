"""What a sweep found, as figures, correlations and one page that stands alone."""

from liederivative.report.accuracies import join_accuracies, read_accuracies
from liederivative.report.correlations import RankCorrelation, correlations_by_family, rank_correlation
from liederivative.report.page import build_page
from liederivative.report.tables import Row, depth_curves, layer_type_shares, report_rows

__all__ = [
    "RankCorrelation",
    "Row",
    "build_page",
    "correlations_by_family",
    "depth_curves",
    "join_accuracies",
    "layer_type_shares",
    "rank_correlation",
    "read_accuracies",
    "report_rows",
]
