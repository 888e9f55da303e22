r"""The local equivariance error (LEE): the size of the Lie derivative, averaged over data.

.. math:: \mathrm{LEE}_X = \frac{1}{|D|} \sum_{x \in D} \frac{\| L_X f(x) \|^2}{\dim f(x)}

is ``squared`` here. The paper's published code averages the absolute value over the outputs instead, which
is ``absolute``; both are given. Standard errors are over images: sample deviation over sqrt(n).

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the local equivariance error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from liederivative.actions import GENERATORS, Generator, Layout, resolve_generators
from liederivative.derivative import LADDER, check_images, lie_derivatives


@dataclass(frozen=True)
class LEE:
    """Local equivariance errors of G generators on N images."""

    generators: tuple[str, ...]
    absolute: Float[Tensor, "G N"]
    """mean over the outputs of ``|L_X f|``, per image"""
    squared: Float[Tensor, "G N"]
    """mean over the outputs of ``|L_X f|^2``, per image: the paper's LEE"""
    method: str
    """how the model was differentiated: the name of the slowest rung used"""

    @property
    def mean_absolute(self) -> dict[str, float]:
        """Mean over images of ``absolute``, by generator."""
        return self._by_name(self.absolute.mean(dim=1))

    @property
    def mean_squared(self) -> dict[str, float]:
        """Mean over images of ``squared``, by generator."""
        return self._by_name(self.squared.mean(dim=1))

    @property
    def standard_error_absolute(self) -> dict[str, float]:
        """Standard error of ``mean_absolute``; NaN for a single image."""
        return self._by_name(_standard_error(self.absolute))

    @property
    def standard_error_squared(self) -> dict[str, float]:
        """Standard error of ``mean_squared``; NaN for a single image."""
        return self._by_name(_standard_error(self.squared))

    def _by_name(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.generators, values.tolist(), strict=True))


def lee(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "N C H W"],
    generators: str | Generator | Iterable[str | Generator] = tuple(GENERATORS),
    *,
    output: str | Layout | None = None,
    probabilities: bool = False,
    batch_size: int = 8,
    tangents_per_pass: int = 7,
    progress: Callable[[int], object] | None = None,
) -> LEE:
    """The local equivariance errors of ``model`` on the images ``x``, per generator and image.

    Args:
        model: as for `lie_derivative`.
        x: images (N, C, H, W).
        generators: names or `Generator` objects; all ten by default, which cost seven tangents.
        output: layout of the output, as for `lie_derivative`.
        probabilities: take the softmax first, as the paper does for classifiers.
        batch_size: images measured at once.
        tangents_per_pass: tangents pushed at once; fewer take less memory and more time.
        progress: called with the number of images after each batch.

    Raises:
        UserError: as `lie_derivative` does.

    >>> errors = lee(lambda x: x.mean(dim=(2, 3)), torch.ones(2, 1, 8, 8), ["translate_x", "saturate"])
    >>> errors.mean_absolute
    {'translate_x': 0.0, 'saturate': 1.0}
    """
    chosen = resolve_generators(generators)
    check_images(model, x)
    if batch_size < 1:
        raise UserError(f"expected a batch_size of at least 1, got {batch_size}")
    absolute, squared, ladder = [], [], LADDER
    for batch in x.split(batch_size):
        found = lie_derivatives(
            model,
            batch,
            chosen,
            output=output,
            probabilities=probabilities,
            tangents_per_pass=tangents_per_pass,
            ladder=ladder,
        )
        ladder = ladder[ladder.index(found.rung) :]  # what failed once is not tried again
        sizes = found.derivatives.reshape(len(chosen), len(batch), -1).abs()  # (G, B, dim)
        absolute.append(sizes.mean(dim=2))
        squared.append(sizes.square().mean(dim=2))
        if progress is not None:
            progress(len(batch))
    return LEE(tuple(g.name for g in chosen), torch.cat(absolute, 1), torch.cat(squared, 1), ladder[0].name)


def _standard_error(values: Tensor) -> Tensor:
    if values.shape[1] < 2:
        return torch.full_like(values[:, 0], math.nan)
    return values.std(dim=1) / math.sqrt(values.shape[1])
