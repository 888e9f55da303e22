"""Numbers that say how far a model is from equivariance: the local equivariance error, and finite metrics."""

from liederivative.metrics.consistency import ShiftConsistency, shift_consistency
from liederivative.metrics.equivariance_quality import EquivarianceQuality, eq_r, eq_t
from liederivative.metrics.finite import transform_image
from liederivative.metrics.floor import IdealMap, ideal_resampling, resampling_floor
from liederivative.metrics.local_error import LEE, PrecisionWarning, lee
from liederivative.metrics.resampling import band_limit, rotate, translate_fractional, translate_integer
from liederivative.metrics.sample_invariance import SampleInvariance, sample_invariance

__all__ = [
    "LEE",
    "EquivarianceQuality",
    "IdealMap",
    "PrecisionWarning",
    "SampleInvariance",
    "ShiftConsistency",
    "band_limit",
    "eq_r",
    "eq_t",
    "ideal_resampling",
    "lee",
    "resampling_floor",
    "rotate",
    "sample_invariance",
    "shift_consistency",
    "transform_image",
    "translate_fractional",
    "translate_integer",
]
