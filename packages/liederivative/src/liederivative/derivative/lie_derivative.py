r"""The Lie derivative of a model: how fast its output departs from equivariance as the input starts to move.

.. math:: (L_X f)(x) = \frac{d}{dt}\Big|_0 \rho_2(e^{-tX}) f(\rho_1(e^{tX}) x)
                     = Df(x)[\rho_1(X) x] - \rho_2(X) f(x),

with the group acting on images by :math:`\rho_1` and on outputs by :math:`\rho_2`. The model is equivariant
to the connected group that the X generate exactly when every L_X f is zero. Linear in X, so that a few
tangents give every generator of their span.

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, sections on the Lie derivative and on its
efficient computation. Here in forward mode, with analytic image tangents in place of a warp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError, check_finite
from torch import Tensor

from liederivative.actions import (
    Generator,
    Layout,
    image_tangents,
    resolve_generators,
    resolve_layout,
    spanning_tangents,
)
from liederivative.derivative.evaluation import evaluation_mode, module_of
from liederivative.derivative.pushforward import LADDER, Rung, push_forward


@dataclass(frozen=True)
class LieDerivatives:
    """The Lie derivatives of one batch under several generators."""

    value: Tensor
    """the model's output, (B, ...)"""
    derivatives: Tensor
    """``L_X f`` for each of G generators, (G, B, ...)"""
    rung: Rung
    """how the model was differentiated"""


def lie_derivative(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B C H W"],
    generator: str | Generator,
    *,
    output: str | Layout | None = None,
    probabilities: bool = False,
) -> Tensor:
    """The Lie derivative of ``model`` at the images ``x`` under one generator, of the output's shape.

    Args:
        model: any callable from images to a tensor that treats each image alone. A module is held in
            evaluation mode meanwhile and comes back as it was.
        x: images (B, C, H, W), as the model takes them (normalised), in its dtype and on its device.
        generator: one of `liederivative.GENERATORS`, or a `Generator`.
        output: how the output moves: "invariant" (class scores, embeddings), "NCHW", "NHWC" or
            ``Tokens(grid=..., prefix=...)``. None is accepted for (B,) and (B, C): invariant.
        probabilities: take the softmax over the output's channels first, as the paper does for classifiers.

    Returns:
        Tensor of the shape of ``model(x)``, detached; units of output per unit of the group's parameter
        (for ``translate_x``, half the image's width from first to last pixel centre).

    Raises:
        UserError: for an unknown generator or layout, an input that is not a batch of floating-point
            images, or an output that is not one finite tensor.

    Laws: linear in the generator (rotate = shear_x - shear_y); zero for every equivariant model.

    >>> blank = lambda x: x.mean(dim=(2, 3))
    >>> lie_derivative(blank, torch.ones(1, 3, 8, 8), "saturate")
    tensor([[1., 1., 1.]])
    """
    return lie_derivatives(model, x, [generator], output=output, probabilities=probabilities).derivatives[0]


def lie_derivatives(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B C H W"],
    generators: str | Generator | Iterable[str | Generator],
    *,
    output: str | Layout | None = None,
    probabilities: bool = False,
    tangents_per_pass: int = 7,
    ladder: Sequence[Rung] = LADDER,
) -> LieDerivatives:
    """The Lie derivatives under several generators, from at most seven tangents.

    Args:
        model: as for `lie_derivative`, and so are x, output, probabilities and the errors raised.
        x: images (B, C, H, W).
        generators: names or `Generator` objects, each once.
        output: layout of the output.
        probabilities: take the softmax first.
        tangents_per_pass: how many tangents are pushed through the model at once; fewer take less memory.
        ladder: ways of differentiating to try, in order.
    """
    chosen = resolve_generators(generators)
    check_images(model, x)
    if tangents_per_pass < 1:
        raise UserError(f"expected at least one tangent a pass, got {tangents_per_pass}")
    x = x.detach().clone()  # dense and plain: views that repeat memory have no dual
    tangents, mixing = spanning_tangents(chosen, x)
    layout: Layout | None = None

    def f(image: Tensor) -> Tensor:
        nonlocal layout
        value = _one_tensor(model(image), len(x))
        layout = resolve_layout(output, value)
        return value.softmax(dim=layout.channel_dim) if probabilities else value

    with evaluation_mode(model), torch.no_grad():
        pushed = push_forward(f, x, image_tangents(x, tangents), tangents_per_pass=tangents_per_pass, ladder=ladder)
        assert layout is not None
        remedy = "check the model's weights, and that the images are normalised as it was trained"
        check_finite("outputs of the model", pushed.value, remedy=remedy)
        check_finite("derivatives of the model's outputs", pushed.derivative, remedy=remedy)
        ideal = layout.tangents(pushed.value, tangents, (x.shape[-2], x.shape[-1]))
        derivatives = torch.tensordot(mixing.to(pushed.value.dtype), pushed.derivative - ideal, dims=1)
    return LieDerivatives(pushed.value, derivatives, pushed.rung)


def check_images(model: Callable[..., Any], x: Tensor) -> None:
    """Raise `UserError` unless ``x`` is a batch of finite images in the dtype and on the device of ``model``."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"expected images as a tensor of shape (B, C, H, W), got {got}")
    if not x.is_floating_point():
        raise UserError(
            f"expected floating-point images, got {x.dtype}; convert and normalise them as the model was trained"
        )
    if len(x) == 0:
        raise UserError(f"expected at least one image, got a batch of zero (shape {tuple(x.shape)})")
    if min(x.shape[-2:]) < 2:
        raise UserError(f"expected images of at least 2 x 2 pixels, got shape {tuple(x.shape)}")
    check_finite("images", x)
    module = module_of(model)
    parameters = [p for p in module.parameters() if p.is_floating_point()] if module is not None else []
    if parameters and all(p.dtype != x.dtype or p.device != x.device for p in parameters):
        raise UserError(
            f"expected images of the model's dtype and device, {parameters[0].dtype} on {parameters[0].device}, "
            f"got {x.dtype} on {x.device}; convert one of them"
        )


def _one_tensor(value: Any, batch: int) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(
            f"expected the model to return one tensor, got {type(value).__name__}; "
            "wrap it in a function that selects one"
        )
    if value.ndim == 0 or value.shape[0] != batch:
        raise UserError(
            f"expected an output with one entry for each of the {batch} images in front, got shape {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise UserError(f"expected a floating-point output, got {value.dtype}; return scores, not labels")
    return value
