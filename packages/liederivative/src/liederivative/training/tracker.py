r"""The local equivariance error over the steps of a training.

A network before training answers nearly the same to every image, and its LEE is small for that reason alone. So
``per_variance`` stands beside it, the error in units of how much the outputs differ between images; that is the one
to compare over steps.

Source of the LEE: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984; there it is compared at the end of
training only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lie.run import UserError, read_json, unknown_name, write_json

from liederivative.actions import Action, GeneratorLike, Layout
from liederivative.derivative import Selector
from liederivative.metrics import LEE, lee


class LEETracker:
    """A callback that measures the LEE of a network every so many steps of a training loop of your own.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> tracker = LEETracker(model, torch.rand(4, 1, 8, 8), ["translate_x"], every=10, probabilities=True)
    >>> for step in range(21):
    ...     _ = tracker(step)  # after the optimiser's step; measures at 0, 10 and 20
    >>> [point["step"] for point in tracker.history]
    [0, 10, 20]

    The training is what it would be without it, bit for bit: parameters, gradients, running statistics, training
    flags and random numbers are left alone.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        images: Any,
        generators: str | GeneratorLike | Iterable[str | GeneratorLike] = ("translate_x", "translate_y", "rotate"),
        *,
        every: int = 100,
        action: Action | None = None,
        output: str | Layout | None = None,
        select: Selector | None = None,
        probabilities: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Remember what to measure.

        Args:
            model: the network in training.
            images: (N, C, H, W), or what ``action`` moves, on which it is measured each time, best held out from
                training; on the network's device.
            generators: as for `liederivative.lee`.
            every: steps between measurements.
            action, output, select: how the input moves, the layout of the output, and its part that is measured, as
                for `liederivative.lee`.
            probabilities: take the softmax first.
            batch_size: images at once.

        Raises:
            UserError: for a period below 1. The rest is checked at the first measurement.
        """
        if every < 1:
            raise UserError(f"expected every of at least 1 step, got {every}")
        self._model, self._images, self._every = model, images, every
        # Taken once: an iterator would be empty at the second measurement.
        self._generators = (
            generators if isinstance(generators, str) or not isinstance(generators, Iterable) else tuple(generators)
        )
        self._options: dict[str, Any] = {
            "action": action, "output": output, "select": select, "probabilities": probabilities,
            "batch_size": batch_size,
        }  # fmt: skip
        self.history: list[dict[str, Any]] = []
        """One entry a measurement: ``step``, ``values`` given beside it, ``variance``, and ``generators`` with
        ``mean_absolute``, ``mean_squared``, ``standard_error_squared`` and ``per_variance`` of each."""

    def __call__(self, step: int, **values: float) -> LEE | None:
        """Measure if ``step`` is a multiple of ``every``; keep ``values`` (a loss, an accuracy) beside it.

        A step that was measured before (of a training that was resumed from an earlier checkpoint) is replaced,
        with all that came after it.
        """
        return self.measure(step, **values) if step % self._every == 0 else None

    def measure(self, step: int, **values: float) -> LEE:
        """Measure at ``step`` whatever the period."""
        errors = lee(self._model, self._images, self._generators, **self._options)
        self.history = [point for point in self.history if point["step"] < step]
        self.history.append(
            {
                "step": int(step),
                "values": {name: float(value) for name, value in values.items()},
                "variance": _finite(errors.variance),
                "generators": {
                    name: {
                        "mean_absolute": errors.mean_absolute[name],
                        "mean_squared": errors.mean_squared[name],
                        "standard_error_squared": _finite(errors.standard_error_squared[name]),
                        "per_variance": _finite(errors.per_variance[name]) if errors.variance else None,
                    }
                    for name in errors.generators
                },
            }
        )
        return errors

    def curve(self, generator: str, measure: str = "per_variance") -> tuple[list[int], list[float]]:
        """Steps and values of one measure of one generator; points without a value are left out.

        Raises:
            UserError: for a generator that was never measured, or an unknown measure.
        """
        known = {name for point in self.history for name in point["generators"]}
        if self.history and generator not in known:
            raise unknown_name("measured generator", generator, known)
        found = [(p["step"], p["generators"][generator]) for p in self.history if generator in p["generators"]]
        if found and measure not in found[0][1]:
            raise unknown_name("measure", measure, found[0][1])
        points = [(step, numbers[measure]) for step, numbers in found]
        kept = [(step, value) for step, value in points if value is not None]
        return [step for step, _ in kept], [value for _, value in kept]

    def save(self, path: str | Path) -> None:
        """Write the history as JSON, atomically."""
        write_json(path, {"kind": "lee history", "history": self.history})

    def load(self, path: str | Path) -> None:
        """Resume the history in a file of `save`.

        Raises:
            UserError: if it is none.
        """
        stored = read_json(path)
        if not isinstance(stored, dict) or stored.get("kind") != "lee history":
            raise UserError(f"{path} is no history of an LEETracker; give a file that its save wrote")
        self.history = stored["history"]

    def plot(self, path: str | Path, measure: str = "per_variance") -> None:
        """Write a figure of all generators over steps; see `liederivative.plots.plot_histories` for several runs.

        Raises:
            UserError: before the first measurement, for an unknown measure, or for a folder that is not there.
        """
        from liederivative.plots import plot_histories

        if not Path(path).parent.is_dir():
            raise UserError(f"no folder {Path(path).parent} for the figure; make it first")

        plot_histories(path, {"": self.history}, measure)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
