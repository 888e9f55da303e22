r"""The local equivariance error (LEE): the size of the Lie derivative, averaged over data.

.. math:: \mathrm{LEE}_X = \frac{1}{|D|} \sum_{x \in D} \frac{\| L_X f(x) \|^2}{\dim f(x)}

is ``squared`` here. The paper's published code averages the absolute value over the outputs instead, which
is ``absolute``; both are given. A constant model has no error at all, and a timid one little: normalised variants say
how large the error is beside something of the model's own,

- ``relative``: :math:`\|L_X f\|^2 / \|f\|^2`, per image;
- ``per_variance``: :math:`\mathrm{LEE}_X` over the variance of the outputs over the images (the mean over outputs of
  each output's sample variance): how much of what tells images apart a unit of motion moves;
- ``per_random``: :math:`\|L_X f\|^2 / \|Df[\|v\| r]\|^2` with v the image's own velocity and r a random direction of
  unit length, the mean square over a few: 1 for a model to which the motion is like any other change.

Standard errors are over images, sample deviation over sqrt(n); confidence intervals are Student's.

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the local equivariance error; the
normalised variants are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from liederivative.actions import Action, GeneratorLike, Images, Layout, resolve_generators
from liederivative.derivative import (
    LADDER,
    Selector,
    check_inputs,
    double_copy,
    lie_derivatives,
    method_name,
    module_of,
)

Measure = Literal["absolute", "squared", "relative", "per_random"]
PRECISION = 1e-2
"""Relative difference of float32 from float64 from which the numbers carry a warning: one per cent of the error."""
_VANISHES = 1e-3  # of the largest error: below it an error is as good as none


class PrecisionWarning(UserWarning):
    """The numbers are spoilt by rounding."""


@dataclass(frozen=True)
class LEE:
    """Local equivariance errors of G generators on N images."""

    generators: tuple[str, ...]
    absolute: Float[Tensor, "G N"]
    """mean over the outputs of ``|L_X f|``, per image"""
    squared: Float[Tensor, "G N"]
    """mean over the outputs of ``|L_X f|^2``, per image: the paper's LEE"""
    method: str
    """how the model was differentiated: the name of the slowest rung used, and operators from outside of torch"""
    relative: Float[Tensor, "G N"] | None = None
    """``|L_X f|^2 / |f|^2``, per image"""
    per_random: Float[Tensor, "G N"] | None = None
    """``|L_X f|^2`` over that of a random change as large, per image; None unless random directions were asked for"""
    variance: float = math.nan
    """of the outputs over the images: mean over the outputs of their sample variance; NaN for a single image"""
    output_absolute: Float[Tensor, "G *shape"] | None = None
    """mean over images of ``|L_X f|``, per output: per class of a classifier"""
    output_squared: Float[Tensor, "G *shape"] | None = None
    """mean over images of ``|L_X f|^2``, per output"""
    float64_difference: float = math.nan
    """largest difference from float64 of the first image's root mean squares, each relative to its own or to a
    thousandth of the largest generator's, whichever is more; NaN if it was not checked"""
    difference: float | None = None
    """largest relative difference from a difference quotient, as of `LieDerivatives`; None if it was not compared"""

    @property
    def mean_absolute(self) -> dict[str, float]:
        """Mean over images of ``absolute``, by generator."""
        return self._by_name(self.absolute.mean(dim=1))

    @property
    def mean_squared(self) -> dict[str, float]:
        """Mean over images of ``squared``, by generator."""
        return self._by_name(self.squared.mean(dim=1))

    @property
    def mean_relative(self) -> dict[str, float]:
        """Mean over images of ``relative``, by generator."""
        return self._by_name(self._values("relative").mean(dim=1))

    @property
    def mean_per_random(self) -> dict[str, float]:
        """Mean over images of ``per_random``, by generator."""
        return self._by_name(self._values("per_random").mean(dim=1))

    @property
    def per_variance(self) -> dict[str, float]:
        """``mean_squared`` over the variance of the outputs over the images, by generator."""
        return self._by_name(self.squared.mean(dim=1) / self.variance)

    @property
    def standard_error_absolute(self) -> dict[str, float]:
        """Standard error of ``mean_absolute``; NaN for a single image."""
        return self._by_name(_standard_error(self.absolute))

    @property
    def standard_error_squared(self) -> dict[str, float]:
        """Standard error of ``mean_squared``; NaN for a single image."""
        return self._by_name(_standard_error(self.squared))

    def interval(self, measure: Measure = "squared", level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Student's confidence interval of the mean over images, by generator, of at least 0; NaN for a single image.

        Args:
            measure: which of the per-image values.
            level: of confidence, between 0 and 1.
        """
        if not 0 < level < 1:
            raise UserError(f"expected a confidence level between 0 and 1, got {level}")
        values = self._values(measure)
        error = _standard_error(values)
        if values.shape[1] > 1:
            from scipy.stats import t  # a tenth of a second to import

            error = error * float(t.ppf(0.5 + level / 2, values.shape[1] - 1))
        mean = values.mean(dim=1)
        pairs = zip((mean - error).clamp_min(0.0).tolist(), (mean + error).tolist(), strict=True)
        return dict(zip(self.generators, pairs, strict=True))

    def by_label(self, labels: Sequence[int] | Tensor, measure: Measure = "squared") -> dict[int, dict[str, float]]:
        """The mean over the images of each label, by label and generator.

        Raises:
            UserError: if there is not one label an image.
        """
        values, given = self._values(measure), torch.as_tensor(labels)
        if given.shape != (values.shape[1],):
            raise UserError(f"expected {values.shape[1]} labels, one an image, got shape {tuple(given.shape)}")
        return {
            int(label): self._by_name(values[:, (given == label).to(values.device)].mean(dim=1))
            for label in given.unique()
        }

    def _values(self, measure: Measure) -> Tensor:
        known = {"absolute": self.absolute, "squared": self.squared, "relative": self.relative}
        values = known.get(measure, self.per_random)
        if values is None:
            raise UserError(f"{measure} was not measured; for per_random give lee(..., random_directions=4)")
        return values

    def _by_name(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.generators, values.tolist(), strict=True))


def lee(
    model: Callable[..., Any],
    x: Any,
    generators: str | GeneratorLike | Iterable[str | GeneratorLike] | None = None,
    *,
    action: Action | None = None,
    output: str | Layout | Callable[[Tensor, Tensor], Tensor] | None = None,
    select: Selector | None = None,
    probabilities: bool = False,
    batch_size: int = 8,
    tangents_per_pass: int = 7,
    random_directions: int = 0,
    generator: torch.Generator | None = None,
    check_precision: bool = False,
    verify: bool = False,
    progress: Callable[[int], object] | None = None,
) -> LEE:
    """The local equivariance errors of ``model`` on the images ``x``, per generator and image.

    Args:
        model: as for `lie_derivative`, and so are action, output, select and probabilities.
        x: images (N, C, H, W), or what ``action`` moves.
        generators: names or elements; all of the action's by default: ten of images, which cost seven tangents.
        action: how the input moves; `Images` by default.
        output: layout of the output.
        select: part of a structured output.
        probabilities: take the softmax first, as the paper does for classifiers.
        batch_size: images measured at once.
        tangents_per_pass: tangents pushed at once; fewer take less memory and more time.
        random_directions: further tangents, random ones, for ``per_random``.
        generator: of the random directions.
        check_precision: measure the first image in float64 too, and warn (`PrecisionWarning`) if an error differs by
            more than 1 %, of itself or of a thousandth of the largest generator's, whichever is more: the model is
            badly conditioned, or its derivatives vanish up to rounding. One that vanishes beside others is rounding
            too, but says what it should: that it is small.
        verify: compare the first image's derivatives with difference quotients in float64, as `lie_derivatives` does;
            where they disagree, the next way of differentiating is used for all.
        progress: called with the number of images after each batch.

    Raises:
        UserError: as `lie_derivative` does.

    >>> errors = lee(lambda x: x.mean(dim=(2, 3)), torch.ones(2, 1, 8, 8), ["translate_x", "saturate"])
    >>> errors.mean_absolute
    {'translate_x': 0.0, 'saturate': 1.0}
    """
    action = Images() if action is None else action
    known = action.generators
    chosen = resolve_generators(tuple(known) if generators is None else generators, known)
    check_inputs(model, x, action)
    if batch_size < 1:
        raise UserError(f"expected a batch_size of at least 1, got {batch_size}")
    parts: dict[str, list[Tensor]] = {"absolute": [], "squared": [], "relative": [], "per_random": []}
    values, outputs, ladder, difference = [], [0.0, 0.0], LADDER, None
    operators: dict[str, str] = {}
    if verify:
        first = next(_batches(x, 1))
        tried = lie_derivatives(
            model,
            first,
            chosen,
            action=action,
            output=output,
            select=select,
            probabilities=probabilities,
            tangents_per_pass=tangents_per_pass,
            verify=True,
        )
        ladder, difference = ladder[ladder.index(tried.rung) :], tried.difference
    for batch in _batches(x, batch_size):
        found = lie_derivatives(
            model,
            batch,
            chosen,
            action=action,
            output=output,
            select=select,
            probabilities=probabilities,
            tangents_per_pass=tangents_per_pass,
            random_directions=random_directions,
            generator=generator,
            ladder=ladder,
            verify=False if difference is not None and ladder[0].way == "forward mode" else None,  # once is enough
        )
        ladder = ladder[ladder.index(found.rung) :]  # what failed once is not tried again
        difference = found.difference if difference is None else difference
        operators |= found.operators
        sizes = found.derivatives.abs()  # (G, B, *shape)
        squares = sizes.square()
        flat = squares.flatten(2) if squares.ndim > 2 else squares[..., None]  # (G, B, dim)
        value = found.value.flatten(1) if found.value.ndim > 1 else found.value[:, None]
        parts["absolute"].append((sizes.flatten(2) if sizes.ndim > 2 else sizes[..., None]).mean(dim=2))
        parts["squared"].append(flat.mean(dim=2))
        parts["relative"].append(flat.sum(dim=2) / value.square().sum(dim=1))
        if found.random is not None and found.speed is not None:
            changes = found.random.flatten(2).square().sum(2) if found.random.ndim > 2 else found.random.square()
            parts["per_random"].append(flat.sum(dim=2) / (found.speed.square() * changes.mean(0)))
        values.append(value)
        outputs = [outputs[0] + sizes.sum(1), outputs[1] + squares.sum(1)]
        if progress is not None:
            progress(len(value))
    joined = {name: torch.cat(list_, 1) if list_ else None for name, list_ in parts.items()}
    every = torch.cat(values)
    absolute, squared = joined["absolute"], joined["squared"]
    assert absolute is not None and squared is not None
    errors = LEE(
        tuple(g.name for g in chosen),
        absolute,
        squared,
        method_name(ladder[0], operators),
        joined["relative"],
        joined["per_random"],
        float(every.var(dim=0).mean()) if len(every) > 1 else math.nan,
        torch.as_tensor(outputs[0]) / len(every),
        torch.as_tensor(outputs[1]) / len(every),
        difference=difference,
    )
    if not check_precision or every.dtype == torch.float64:
        return errors
    exact = lee(
        double_copy(model),
        _in_float64(next(_batches(x, 1))),
        chosen,
        action=action,
        output=output,
        select=select,
        probabilities=probabilities,
        tangents_per_pass=tangents_per_pass,
    )
    return _with_difference(errors, exact, model)


def _with_difference(errors: LEE, exact: LEE, model: Callable[..., Any]) -> LEE:
    reference = exact.squared[:, 0].sqrt()
    single = errors.squared[:, 0].sqrt().to(reference)
    scale = torch.maximum(reference, _VANISHES * reference.max()).clamp_min(torch.finfo(torch.float64).tiny)
    differences = (single - reference).abs() / scale
    difference, worst = float(differences.max()), int(differences.argmax())
    if difference > PRECISION:
        module = module_of(model)
        name = type(module).__name__ if module is not None else getattr(model, "__name__", "the model")
        warnings.warn(
            f"finite precision spoils the errors of {name}: in float64 the first image's under "
            f"{errors.generators[worst]} differs by {difference:.1%}; measure in float64",
            PrecisionWarning,
            stacklevel=3,
        )
    return replace(errors, float64_difference=difference)


def _batches(x: Any, size: int) -> Iterator[Any]:
    if isinstance(x, Tensor):
        yield from x.split(size)
        return
    keys = list(x) if isinstance(x, dict) else list(range(len(x)))
    count = max(len(x[key]) for key in keys if isinstance(x[key], Tensor) and x[key].ndim)
    for start in range(0, count, size):
        cut = {
            key: x[key][start : start + size] if isinstance(x[key], Tensor) and x[key].ndim else x[key] for key in keys
        }
        yield cut if isinstance(x, dict) else tuple(cut.values())


def _in_float64(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    return {k: _in_float64(v) for k, v in x.items()} if isinstance(x, dict) else tuple(_in_float64(v) for v in x)


def _standard_error(values: Tensor) -> Tensor:
    if values.shape[1] < 2:
        return torch.full_like(values[:, 0], math.nan)
    return values.std(dim=1) / math.sqrt(values.shape[1])
