"""What a worker does: build one model, measure it on the photographs, and hand back a record, whatever happens."""

from __future__ import annotations

import functools
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lie.run import UserError, provenance

DISTRIBUTIONS = ("liederivative", "timm", "scikit-learn", "scikit-image", "pillow")
"""whose versions stand in every record"""


@dataclass(frozen=True)
class Task:
    """One model and all that decides its result; small, so that it travels to any worker."""

    name: str
    fingerprint: str
    """of settings and images, as `liederivative.measurement.fingerprint` gives it"""
    images: str
    """"sample" or a folder that the worker can read"""
    limit: int | None
    checksums: tuple[str, ...]
    """SHA-256 of each image: a worker that sees other files says so"""
    generators: tuple[str, ...]
    layers: tuple[str, ...] = ()
    """generators of a decomposition layer by layer"""
    pretrained: bool = False
    image_size: int | None = None
    logits: bool = False
    dtype: str = "float32"
    batch_size: int = 4
    tangents_per_pass: int = 7
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    """of torch; None leaves its setting"""


def measure_task(task: Task) -> dict[str, Any]:
    """The record of one model, as it is written to its file.

    Any exception of the model becomes a record with ``status`` "failed" and its type, message and traceback:
    a sweep goes on. Only an interruption comes through.
    """
    from liederivative.sweep.selection import family_of

    start = time.perf_counter()
    record: dict[str, Any] = {
        "model": task.name,
        "family": family_of(task.name),
        "status": "ok",
        "fingerprint": task.fingerprint,
        "seed": task.seed,
        "quantity": "outputs" if task.logits else "softmax probabilities",
        "device": task.device,
        "versions": provenance(*DISTRIBUTIONS),
    }
    try:
        record |= _measure(task)
    except Exception as error:  # models of all kinds fail in all ways; each is one row of the result
        record |= failure(error)
    return record | {
        "seconds": round(time.perf_counter() - start, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def failure(error: BaseException) -> dict[str, Any]:
    """The fields of a record that say what went wrong."""
    message = " ".join(str(error).split()) or type(error).__name__
    lines = [] if isinstance(error, UserError) else traceback.format_exception(error)
    return {
        "status": "failed",
        "error": {"type": type(error).__name__, "message": message[:2000], "traceback": "".join(lines)[-4000:]},
    }


def _measure(task: Task) -> dict[str, Any]:
    import warnings

    import torch

    from liederivative.actions import resolve_generators
    from liederivative.measurement import measure_model
    from liederivative.metrics import PrecisionWarning
    from liederivative.zoo import load_model

    if task.threads is not None:
        torch.set_num_threads(task.threads)
    dtype = {"float32": torch.float32, "float64": torch.float64}[task.dtype]
    photographs = _photographs(task.images, task.limit)
    if tuple(photograph.sha256 for photograph in photographs) != task.checksums:
        raise UserError(f"the images in {task.images} are others on this worker than where the sweep was started")
    with warnings.catch_warnings():
        # Of timm's and torch's own insides; nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        warnings.filterwarnings("ignore", message="There is a performance drop")
        model = load_model(task.name, seed=task.seed, pretrained=task.pretrained, image_size=task.image_size)
        warnings.filterwarnings("ignore", category=PrecisionWarning)  # the number is in the record
        result = measure_model(
            model,
            photographs,
            resolve_generators(task.generators),
            probabilities=not task.logits,
            batch_size=task.batch_size,
            tangents_per_pass=task.tangents_per_pass,
            device=task.device,
            dtype=dtype,
        )
        images = model.images([photograph.image for photograph in photographs]).to(task.device, dtype)
        layers = {name: layer_table(model.module, images, name, not task.logits) for name in task.layers}
    return {"result": result, **({"layers": layers} if layers else {})}


def layer_table(model: Any, images: Any, generator: str, probabilities: bool) -> list[dict[str, Any]]:
    """One row a layer or operation, in order of the run: name, type, signed share of the total, mean square.

    The shares sum to 1, up to the layers whose place could not be followed.
    """
    from liederivative.layerwise.over_images import terms_over_images

    table = terms_over_images(model, images.split(1), generator, probabilities=probabilities)
    return [
        {"name": row["name"], "type": row["kind"], "share": row["share"], "squared": row["squared"]}
        for row in table["terms"]
    ]


@functools.lru_cache(maxsize=1)
def _photographs(images: str, limit: int | None) -> list[Any]:
    """The photographs, decoded once a worker."""
    from liederivative.images import load_photographs

    return load_photographs(images, limit)
