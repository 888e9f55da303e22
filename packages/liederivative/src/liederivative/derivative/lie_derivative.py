r"""The Lie derivative of a model: how fast its output departs from equivariance as the input starts to move.

.. math:: (L_X f)(x) = \frac{d}{dt}\Big|_0 \rho_2(e^{-tX}) f(\rho_1(e^{tX}) x)
                     = Df(x)[\rho_1(X) x] - \rho_2(X) f(x),

with the group acting on inputs by :math:`\rho_1` and on outputs by :math:`\rho_2`. The model is equivariant
to the connected group that the X generate exactly when every L_X f is zero. Linear in X, so that a few
tangents give every generator of their span.

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, sections on the Lie derivative and on its
efficient computation. Here in forward mode, with analytic image tangents in place of a warp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from lie.run import UserError, check_finite
from torch import Tensor

from liederivative.actions import (
    Action,
    GeneratorLike,
    Images,
    Layout,
    resolve_generators,
    resolve_layout,
    spanning_tangents,
)
from liederivative.derivative.evaluation import (
    double_copy,
    evaluation_mode,
    module_of,
    outside_inference_mode,
    uncompiled,
)
from liederivative.derivative.metadata import declared_layout
from liederivative.derivative.pushforward import LADDER, Rung, push_forward

Selector = str | int | Callable[[Any], Tensor]
"""Which part of a structured output: a key, an attribute, an index, or a function."""


@dataclass(frozen=True)
class LieDerivatives:
    """The Lie derivatives of one batch under several generators."""

    value: Tensor
    """the model's output, (B, ...)"""
    derivatives: Tensor
    """``L_X f`` for each of G generators, (G, B, ...)"""
    rung: Rung
    """how the model was differentiated"""
    operators: Mapping[str, str] = field(default_factory=dict)
    """operators from outside of torch in the model, and how each was differentiated"""
    difference: float | None = None
    """largest difference from a difference quotient along a random combination of the tangents, relative to its largest
    entry; None where it was not taken, NaN where the model is not smooth enough for one"""
    error: float | None = None
    """estimated relative error, where the derivatives are differences"""
    random: Tensor | None = None
    """``Df(x)[r]`` for random directions r, each of unit length per sample, (R, B, ...)"""
    speed: Tensor | None = None
    """Euclidean norm of the input's velocity under each generator, (G, B)"""

    @property
    def method(self) -> str:
        """How the model was differentiated, in words."""
        return method_name(self.rung, self.operators)


def method_name(rung: Rung, operators: Mapping[str, str]) -> str:
    """A way of differentiating in words: that of the model, and those of single operators.

    >>> method_name(LADDER[0], {"torchvision::roi_align": "differences"})
    'fused rules; torchvision::roi_align by differences'
    """
    return "; ".join([rung.name, *(f"{name} by {how}" for name, how in sorted(operators.items()))])


def lie_derivative(
    model: Callable[..., Any],
    x: Any,
    generator: str | GeneratorLike,
    *,
    action: Action | None = None,
    output: str | Layout | Callable[[Tensor, Tensor], Tensor] | None = None,
    select: Selector | None = None,
    probabilities: bool = False,
) -> Tensor:
    """The Lie derivative of ``model`` at ``x`` under one generator, of the output's shape.

    Args:
        model: any callable that treats each sample of a batch alone. A module is held in evaluation mode
            meanwhile and comes back as it was, buffers, attributes and random numbers included. One that writes
            into its buffers is taken as a function of x alone, with their values before the call.
        x: images (B, C, H, W), as the model takes them (normalised), in its dtype and on its device; or whatever
            ``action`` moves. A tuple is passed on as several arguments.
        generator: the name of one of the action's generators (for images those of `liederivative.GENERATORS`), or
            an element of its algebra.
        action: how the input moves: `Images` by default, `Volumes`, `Videos`, `Sequences`, `Points`, `Vectors`,
            `Colours`, `VectorFields`, `Joint`.
        output: how the output moves: "invariant" (class scores, embeddings), "NCHW", "NHWC", "NCDHW", "NCT", "NTC",
            ``Tokens(grid=..., prefix=...)``, ``Windows(...)``, ``Points(group)``, ``Vectors(group)``, or a function
            ``(value, coefficients) -> (K, *value.shape)``. None is accepted for (B,) and (B, C), taken as invariant,
            and for the features of a timm model whose metadata tell.
        select: which part of a dictionary, tuple or object that the model returns is measured.
        probabilities: take the softmax over the output's channels first, as the paper does for classifiers.

    Returns:
        Tensor of the shape of the (selected) output, detached; units of output per unit of the group's parameter
        (for ``translate_x``, half the image's width from first to last pixel centre).

    Raises:
        UserError: for an unknown generator or layout, an input that the action does not move, or an output that is
            not one finite tensor.

    Laws: linear in the generator (rotate = shear_x - shear_y); zero for every equivariant model.

    >>> blank = lambda x: x.mean(dim=(2, 3))
    >>> lie_derivative(blank, torch.ones(1, 3, 8, 8), "saturate")
    tensor([[1., 1., 1.]])
    """
    return lie_derivatives(
        model, x, [generator], action=action, output=output, select=select, probabilities=probabilities
    ).derivatives[0]


@outside_inference_mode
def lie_derivatives(
    model: Callable[..., Any],
    x: Any,
    generators: str | GeneratorLike | Iterable[str | GeneratorLike],
    *,
    action: Action | None = None,
    output: str | Layout | Callable[[Tensor, Tensor], Tensor] | None = None,
    select: Selector | None = None,
    probabilities: bool = False,
    tangents_per_pass: int = 7,
    random_directions: int = 0,
    generator: torch.Generator | None = None,
    ladder: Sequence[Rung] = LADDER,
    verify: bool | None = None,
) -> LieDerivatives:
    """The Lie derivatives under several generators, for images from at most seven tangents.

    Args:
        model: as for `lie_derivative`, and so are x, action, output, select, probabilities and the errors raised.
        x: images (B, C, H, W), or what ``action`` moves.
        generators: names or elements, each once.
        action: how the input moves.
        output: layout of the output.
        select: part of the output.
        probabilities: take the softmax first.
        tangents_per_pass: how many tangents are pushed through the model at once; fewer take less memory.
        random_directions: how many random directions to differentiate along as well.
        generator: of the random directions.
        ladder: ways of differentiating to try, in order.
        verify: compare the result with a difference quotient in float64 along a random combination of the tangents, at
            the cost of about 15 evaluations of the model; a strategy that disagrees gives way to the next. None where
            there is reason to doubt the strategy: the model turns a value into a number (``.item()``), or is left to
            torch's forward mode. False never.
    """
    model = uncompiled(model)
    action = Images() if action is None else action
    chosen = resolve_generators(generators, action.generators)
    check_inputs(model, x, action)
    if tangents_per_pass < 1:
        raise UserError(f"expected at least one tangent a pass, got {tangents_per_pass}")
    parts, rebuild = moving_parts(x)
    domain = action.domain(x)
    coefficients, mixing = spanning_tangents(chosen, parts[0])
    velocities, _ = moving_parts(action.tangents(x, coefficients))
    batch, count = len(parts[0]), len(coefficients)
    speed = None
    if random_directions:
        speed = _speed(velocities, mixing)
        noise = [
            torch.randn(random_directions, *p.shape, dtype=p.dtype, device=p.device, generator=generator) for p in parts
        ]
        length = sum(n.flatten(2).square().sum(2) for n in noise)
        assert isinstance(length, Tensor)
        noise = [n / length.sqrt().view(*n.shape[:2], *[1] * (n.ndim - 2)) for n in noise]
        velocities = [torch.cat([v, n]) for v, n in zip(velocities, noise, strict=True)]
    layout: Layout | None = None

    def measured(model: Callable[..., Any], begin: Callable[[], None]) -> Callable[..., Tensor]:
        def f(*moving: Tensor) -> Tensor:
            nonlocal layout
            begin()
            arguments = rebuild(moving)
            value = model(*arguments) if isinstance(arguments, tuple) else model(arguments)
            value = one_tensor(value, batch, select)
            layout = resolve_layout(declared_layout(model, value, domain) if output is None else output, value)
            return value.softmax(dim=layout.channel_dim) if probabilities else value

        return f

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        begin = stack.enter_context(evaluation_mode(model))
        f = measured(model, begin)

        def in_float64() -> Callable[..., Tensor]:
            begin()
            double = double_copy(model)
            return measured(double, stack.enter_context(evaluation_mode(double)))

        pushed = push_forward(
            f,
            parts,
            velocities,
            tangents_per_pass=tangents_per_pass,
            ladder=ladder,
            in_float64=in_float64,
            verify=verify,
        )
        assert layout is not None
        check_outputs(model, pushed.value, pushed.derivative, lambda: f(*parts))
        ideal = layout.tangents(pushed.value, coefficients, domain)
        along = pushed.derivative[:count]
        derivatives = torch.tensordot(mixing.to(pushed.value.dtype), along - ideal, dims=1)
    random = pushed.derivative[count:] if random_directions else None
    return LieDerivatives(
        pushed.value,
        derivatives,
        pushed.rung,
        pushed.operators,
        pushed.difference,
        pushed.error,
        random,
        speed,
    )


def _speed(velocities: Sequence[Tensor], mixing: Tensor) -> Tensor:
    """The norms of the generators' velocities, (G, B), from those of the tangents that span them."""
    gram = 0.0
    for v in velocities:  # (K, B, *shape)
        flat = v.flatten(2).transpose(0, 1)  # (B, K, dim)
        gram = gram + flat @ flat.mT
    return torch.einsum("gk,bkl,gl->gb", mixing, gram, mixing).clamp_min(0).sqrt()


def moving_parts(x: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The floating-point tensors in ``x``, dense and detached, and a function that puts others in their place."""
    if isinstance(x, Tensor):
        return [x.detach().clone(memory_format=torch.contiguous_format)], lambda parts: parts[0]
    keys = list(x) if isinstance(x, dict) else list(range(len(x)))
    moving = [key for key in keys if isinstance(x[key], Tensor) and x[key].is_floating_point()]

    def rebuild(parts: Sequence[Tensor]) -> Any:
        new = {key: x[key] for key in keys} | dict(zip(moving, parts, strict=True))
        return new if isinstance(x, dict) else tuple(new.values())

    return [x[key].detach().clone(memory_format=torch.contiguous_format) for key in moving], rebuild


def check_images(model: Callable[..., Any], x: Tensor) -> None:
    """Raise `UserError` unless ``x`` is a batch of finite images in the dtype and on the device of ``model``."""
    check_inputs(model, x, Images())


def check_inputs(model: Callable[..., Any], x: Any, action: Action) -> None:
    """Raise `UserError` unless ``x`` is a finite batch that ``action`` moves, in the dtype and on the device of
    ``model``.
    """
    action.check(x)
    module = module_of(model)
    parameters = [p for p in module.parameters() if p.is_floating_point()] if module is not None else []
    for part in moving_parts(x)[0]:
        if parameters and all(p.dtype != part.dtype or p.device != part.device for p in parameters):
            raise UserError(
                f"expected inputs of the model's dtype and device, {parameters[0].dtype} on {parameters[0].device}, "
                f"got {part.dtype} on {part.device}; convert one of them"
            )


def check_outputs(
    model: Callable[..., Any], value: Tensor, derivative: Tensor, run: Callable[[], object] | None = None
) -> None:
    """Raise `UserError` for NaN or infinite outputs or derivatives; ``run`` finds the layer they come from."""
    if bool(torch.isfinite(value).all()) and bool(torch.isfinite(derivative).all()):
        return
    remedy = "check the model's weights, and that the inputs are normalised as it was trained"
    layer = first_bad_layer(model, run) if run is not None else None
    if layer is not None:
        remedy = f"the first of them come from the layer {layer!r}; {remedy}"
    check_finite("outputs of the model", value, remedy=remedy)
    check_finite("derivatives of the model's outputs", derivative, remedy=remedy)


def first_bad_layer(model: Callable[..., Any], run: Callable[[], object]) -> str | None:
    """The innermost module whose output is the first to hold NaN or infinity; None if no module's does."""
    module = module_of(model)
    if module is None:
        return None
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_: object, __: object, out: Any) -> None:
            if not found and isinstance(out, Tensor) and out.is_floating_point() and not out.isfinite().all():
                found.append(name)

        return hook

    handles = [part.register_forward_hook(watch(name or type(part).__name__)) for name, part in module.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def one_tensor(value: Any, batch: int, select: Selector | None = None) -> Tensor:
    """The part of a model's output that is measured.

    Raises:
        UserError: if there is no such part, or it is not a floating-point tensor with one entry a sample.
    """
    if select is not None:
        value = _selected(value, select)
    if not isinstance(value, Tensor):
        parts = f" with {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
        raise UserError(
            f"expected the model to return one tensor, got {type(value).__name__}{parts}; "
            "choose one by select=, a key, an index or a function"
        )
    if value.ndim == 0 or value.shape[0] != batch:
        raise UserError(
            f"expected an output with one entry for each of the {batch} samples in front, got shape "
            f"{tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise UserError(f"expected a floating-point output, got {value.dtype}; return scores, not labels")
    return value


def _selected(value: Any, select: Selector) -> Any:
    if callable(select):
        return select(value)
    try:
        return getattr(value, select) if isinstance(select, str) and not isinstance(value, dict) else value[select]
    except (KeyError, IndexError, AttributeError, TypeError):
        known = list(value) if isinstance(value, dict) else f"{len(value)} parts" if hasattr(value, "__len__") else "no"
        raise UserError(
            f"expected an output with the part {select!r}, got {type(value).__name__} with {known}; "
            "give select= a key, an index or a function"
        ) from None
