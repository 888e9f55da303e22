"""The measurement of one zoo model on photographs, as a JSON record that stands on its own."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lie.run import UserError
from torch import Tensor

from liederivative.actions import Generator
from liederivative.images import Photograph
from liederivative.metrics import LEE, lee
from liederivative.zoo import ZooModel, describe

DEFINITIONS = {
    "mean_absolute": "mean over the outputs of |L f|, per image, then mean over images (as the paper's code)",
    "mean_squared": "mean over the outputs of |L f|^2, per image, then mean over images (LEE as the paper defines it)",
    "standard_error": "sample deviation over images / sqrt(number of images); null for one image",
    "units": "per unit of the group's parameter: translations in half widths (heights), angles in radians",
}
"""What the numbers of a record mean, written beside them."""


def measure_model(
    model: ZooModel,
    photographs: Sequence[Photograph],
    generators: Sequence[Generator],
    *,
    probabilities: bool = True,
    batch_size: int = 4,
    tangents_per_pass: int = 7,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    check_precision: bool = True,
    verify: bool = True,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The local equivariance errors of a classifier on photographs, its outputs taken as invariant.

    In float32 the first photograph is measured in float64 as well, unless ``check_precision`` is off; the largest
    relative difference is in the record, and a `PrecisionWarning` tells where it exceeds 1 %. Its derivatives are also
    compared with difference quotients, unless ``verify`` is off: a way of differentiating that misses a part of the
    derivative is not used, and the difference is in the record.

    Returns:
        A JSON record: weights, preprocessing, the way of differentiating, seconds, and per generator
        ``mean_absolute`` and ``mean_squared``, each with ``mean``, ``standard_error`` and ``per_image``.

    Raises:
        UserError: if the model has no classes to take probabilities of, does not run at its resolution, or
            gives NaN.
    """
    if probabilities and model.num_classes < 1:
        raise UserError(f"{model.name} has no classifier head; measure its outputs as they are with --logits")
    start = time.perf_counter()
    images = model.images([photograph.image for photograph in photographs]).to(device, dtype)
    module = model.module.to(device, dtype)
    with naming(model.name, images):
        errors = lee(
            module,
            images,
            generators,
            output="invariant",
            probabilities=probabilities,
            batch_size=batch_size,
            tangents_per_pass=tangents_per_pass,
            check_precision=check_precision,
            verify=verify,
            progress=progress,
        )
    return {
        **describe(model),
        "method": errors.method,
        "float64_difference": number_or_none(errors.float64_difference),
        "difference_quotient_difference": number_or_none(errors.difference),
        "seconds": round(time.perf_counter() - start, 2),
        "generators": generator_records(errors),
    }


def number_or_none(value: float | None) -> float | None:
    """A number as JSON has it: None for NaN."""
    return None if value is None or math.isnan(value) else value


@contextmanager
def naming(name: str, images: Tensor) -> Iterator[None]:
    """Errors of a model's own become a `UserError` of one line that names the model and the resolution."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # a model's own complaints vary
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} at {images.shape[-2]} x {images.shape[-1]} pixels: {reason}") from error


def generator_records(errors: LEE) -> dict[str, Any]:
    """Per generator, both measures with mean, standard error and the value of each image."""
    measures = {
        "mean_absolute": (errors.mean_absolute, errors.standard_error_absolute, errors.absolute.tolist()),
        "mean_squared": (errors.mean_squared, errors.standard_error_squared, errors.squared.tolist()),
    }
    return {
        name: {
            measure: {
                "mean": mean[name],
                "standard_error": None if math.isnan(error[name]) else error[name],
                "per_image": per_image[index],
            }
            for measure, (mean, error, per_image) in measures.items()
        }
        for index, name in enumerate(errors.generators)
    }


def fingerprint(settings: dict[str, Any], photographs: Sequence[Photograph], checkpoint: str | None) -> str:
    """SHA-256 over all that decides a record: settings, images and weights file; equal prints, equal results."""
    files = [photograph.sha256 for photograph in photographs]
    if checkpoint is not None:
        files.append(hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps([settings, files], sort_keys=True).encode()).hexdigest()
