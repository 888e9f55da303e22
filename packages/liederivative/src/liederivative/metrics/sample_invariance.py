r"""Sample invariance: the mean change of a model under finite transformations drawn at random.

.. math:: S_X = \frac{1}{|D|\, n} \sum_{x \in D} \sum_{k=1}^{n}
          \frac{\| f(\rho_1(t_k X) x) - \rho_2(t_k X) f(x) \|^p}{\dim f(x)}, \qquad t_k \sim U[-t_{\max}, t_{\max}],

with p = 1 (mean absolute) and 2 (mean squared); the published code's equivalent is of an invariant output, p = 2.
The transformation is that of `liederivative.metrics.transform_image`, whose derivative at t = 0 is the tangent of
the Lie derivative. Hence the law that ties the two measures: divided by |t| (``absolute_per_unit``), S tends to the
local equivariance error as t_max goes to 0.

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on other metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lie.run import UserError, seeded_generator
from torch import Tensor

from liederivative.actions import Generator, Layout, resolve_generators
from liederivative.metrics.finite import transform_image
from liederivative.metrics.outputs import Evaluator


@dataclass(frozen=True)
class SampleInvariance:
    """Changes of N images under n parameters each."""

    generator: str
    parameters: Float[Tensor, "n N"]
    """t, in the generator's units"""
    absolute: Float[Tensor, "n N"]
    """mean over the outputs of ``|f(g x) - g f(x)|``"""
    squared: Float[Tensor, "n N"]
    """mean over the outputs of its square"""

    @property
    def mean_absolute(self) -> float:
        """S with p = 1."""
        return float(self.absolute.mean())

    @property
    def mean_squared(self) -> float:
        """S with p = 2."""
        return float(self.squared.mean())

    @property
    def absolute_per_unit(self) -> float:
        """Mean of ``absolute / |t|``: tends to the mean absolute Lie derivative for small t."""
        return float((self.absolute / self.parameters.abs()).mean())

    @property
    def squared_per_unit(self) -> float:
        """Mean of ``squared / t^2``: tends to the LEE for small t."""
        return float((self.squared / self.parameters.square()).mean())

    @property
    def standard_error(self) -> float:
        """Of ``mean_absolute`` over images; NaN for a single one."""
        images = self.absolute.mean(0)
        return float(images.std() / math.sqrt(len(images))) if len(images) > 1 else math.nan


def sample_invariance(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "N C H W"],
    generator: str | Generator,
    *,
    max_parameter: float = 0.1,
    samples: int = 8,
    random: torch.Generator | None = None,
    output: str | Layout | None = None,
    probabilities: bool = False,
    batch_size: int = 8,
) -> SampleInvariance:
    """The changes of ``model`` under finite transformations along ``generator``.

    Args:
        model: any callable from images (B, C, H, W) to one tensor.
        x: images.
        generator: name or `Generator`.
        max_parameter: t_max in the generator's units: 0.1 moves by a twentieth of the width, or turns by 0.1 radians.
        samples: parameters drawn for each image.
        random: of the parameters, on the CPU; a fresh one with seed 0 by default.
        output: layout of the output, as for `liederivative.lie_derivative`.
        probabilities: take the softmax first.
        batch_size: images at once.

    Raises:
        UserError: for an unknown generator, a parameter that is not above 0, or bad input.

    >>> brightest = sample_invariance(lambda x: x.amax((2, 3)), torch.ones(2, 1, 8, 8), "rotate")
    >>> brightest.mean_absolute < 1e-6  # a constant image turns into itself
    True
    """
    (chosen,) = resolve_generators(generator)
    if not 0 < max_parameter < math.inf:
        raise UserError(f"expected max_parameter above 0, got {max_parameter}")
    if min(samples, batch_size) < 1:
        raise UserError(f"expected samples and batch_size of at least 1, got {samples} and {batch_size}")
    absolute, squared = [], []
    with Evaluator(model, x, output, probabilities) as f:
        source = random or seeded_generator(0)
        uniform = torch.rand(len(x), samples, generator=source, dtype=torch.float64).clamp(min=1e-9)
        sign = torch.randint(0, 2, uniform.shape, generator=source) * 2 - 1
        precise = torch.promote_types(x.dtype, torch.float32)
        t = (uniform * sign * max_parameter).to(x.device, precise)  # (N, n), never 0
        for batch, steps in zip(x.split(batch_size), t.split(batch_size), strict=True):
            reference = f.parts(batch)
            for step in steps.unbind(1):
                moved = f.parts(transform_image(batch, chosen, step))
                changes = []
                if reference.still is not None and moved.still is not None:
                    changes.append(moved.still - reference.still)
                if reference.maps is not None and moved.maps is not None:
                    size = (x.shape[-2], x.shape[-1])
                    ideal = transform_image(reference.maps, chosen, step, input_size=size)
                    changes.append((moved.maps - ideal).flatten(1))
                change = torch.cat(changes, dim=1)  # (B, dim)
                absolute.append(change.abs().mean(1))
                squared.append(change.square().mean(1))
        parameters = t.T  # (n, N)

    def arrange(values: list[Tensor]) -> Tensor:  # batch after batch, n rows each
        rows = [torch.stack(values[i : i + samples]) for i in range(0, len(values), samples)]
        return torch.cat(rows, dim=1)

    return SampleInvariance(chosen.name, parameters, arrange(absolute), arrange(squared))
