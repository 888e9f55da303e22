r"""The Lie derivative of a network, layer by layer: exact terms that add up to the whole.

Each layer's own Lie derivative is pushed forward to the output by the rest of the network, in the same pass that runs
the network. No probes, no variance; what is not a layer (an addition of positional embeddings, a mean over tokens, a
concatenation, a residual sum) has a term too.

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the contributions of layers, which estimates
squared norms of the terms from random probes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lie.run import UserError
from torch import Tensor

from liederivative.actions import Action, GeneratorLike, Images, Layout, resolve_generators, resolve_layout
from liederivative.derivative import (
    Selector,
    check_inputs,
    declared_layout,
    evaluation_mode,
    lie_derivatives,
    module_of,
    outside_inference_mode,
    uncompiled,
)
from liederivative.derivative.lie_derivative import check_outputs, moving_parts, one_tensor
from liederivative.layerwise.tracer import IDEAL, TOTAL, Tracer

CANCELLATION = 1e4
"""Largest term over the total beyond which `decompose` warns: single precision leaves three digits of the shares."""

SPOILT = 1e-2
"""Largest difference between the sum of the terms and the total, relative to it, without a warning."""


class CancellationWarning(UserWarning):
    """Terms of a decomposition are so much larger than their sum that the shares mean little."""


@dataclass(frozen=True)
class Decomposition:
    """The Lie derivative of a network as a sum of terms, each of the output's shape.

    Law: ``sum(terms) + remainder == total`` up to rounding; ``total`` is pushed through by itself.
    """

    generator: str
    value: Tensor
    """the output, (B, ...)"""
    total: Tensor
    """the Lie derivative of the whole"""
    terms: dict[str, Tensor]
    """of each layer, by the name of its module in order of the run; a second call of a module is ``name#2``"""
    functional: dict[str, Tensor]
    """of each operation outside of layers, ``module:operation``; their sum is the remainder"""
    kinds: dict[str, str]
    """class of each layer and name of each operation"""
    unknown: tuple[str, ...] = ()
    """layers whose output lies where could not be followed: their terms are in that of the next one that could"""
    zero: tuple[str, ...] = field(default=())
    """layers and operations that commute with the motion: their terms are zero, and not in ``terms``"""

    @property
    def remainder(self) -> Tensor:
        """The sum over the operations outside of layers."""
        return sum(self.functional.values(), torch.zeros_like(self.total))

    @property
    def closure(self) -> float:
        """``|sum of terms + remainder - total|`` over ``|total|``: rounding only.

        Terms that cancel to a total far smaller than they spoil it, and with it the shares; `decompose` then warns.
        Infinite where the total is zero and the sum is not.
        """
        norm, gap = float(self.total.norm()), self._gap()
        return gap / norm if norm else math.inf if gap else 0.0

    def _gap(self) -> float:
        return float((sum(self.terms.values(), self.remainder) - self.total).norm())

    def all_terms(self) -> dict[str, Tensor]:
        """Layers and operations together, in order of the run."""
        both = {**self.terms, **self.functional}
        return {name: both[name] for name in self.kinds if name in both}

    def shares(self) -> dict[str, float]:
        """The signed share of each term along the total, ``<term, total> / <total, total>``; they sum to 1.

        NaN where the total is zero.
        """
        square = float(self.total.square().sum()) or math.nan
        return {name: float((term * self.total).sum()) / square for name, term in self.all_terms().items()}

    def norms(self) -> dict[str, float]:
        """The Euclidean norm of each term. Norms do not add up, for terms cancel."""
        return {name: float(term.norm()) for name, term in self.all_terms().items()}

    def squared(self) -> dict[str, float]:
        """The mean square of each term over the outputs, as the LEE is of the total."""
        return {name: float(term.square().mean()) for name, term in self.all_terms().items()}

    def by_type(self) -> dict[str, Tensor]:
        """The sum of the terms of each class of layer and each operation, largest norm first."""
        return self._grouped(lambda name: self.kinds[name])

    def by_depth(self, level: int = 1) -> dict[str, Tensor]:
        """The sum of the terms within each module of the first ``level`` names, in order of the run."""
        grouped = self._grouped(lambda name: ".".join(name.split(":")[0].split("#")[0].split(".")[:level]))
        order = {name: i for i, name in enumerate(dict.fromkeys(grouped))}
        return dict(sorted(grouped.items(), key=lambda item: order[item[0]]))

    def cumulative(self) -> dict[str, float]:
        """The signed share of all terms up to each, in order of the run; the last is 1."""
        found, sum_ = {}, 0.0
        for name, share in self.shares().items():
            sum_ += share
            found[name] = sum_
        return found

    def table(self) -> list[dict[str, Any]]:
        """One row a term: name, kind, share, norm, squared, cumulative share, whether it is a layer."""
        shares, norms, squares, sums = self.shares(), self.norms(), self.squared(), self.cumulative()
        return [
            {
                "name": name,
                "kind": self.kinds[name],
                "layer": name in self.terms,
                "share": shares[name],
                "norm": norms[name],
                "squared": squares[name],
                "cumulative": sums[name],
            }
            for name in shares
        ]

    def _grouped(self, group: Callable[[str], str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, term in self.all_terms().items():
            key = group(name)
            found[key] = found[key] + term if key in found else term
        return found


@outside_inference_mode
def decompose(
    model: Callable[..., Any],
    x: Tensor,
    generator: str | GeneratorLike,
    *,
    action: Action | None = None,
    output: str | Layout | None = None,
    select: Selector | None = None,
    probabilities: bool = False,
    layouts: Mapping[str, str | Layout] | None = None,
    by: Literal["layer", "type"] = "layer",
) -> Decomposition:
    """The Lie derivative of ``model`` under one generator as a sum over its layers, exact.

    Where the entries of an intermediate tensor lie in the image is followed through every operation (reshapes,
    permutations, windows, rolls, tokens); feature maps use pixel-centre coordinates. ``layouts`` declares it where an
    operation is unknown, or where something else is meant.

    Args:
        model: a module, or a bound method of one; of a plain function, single operations are told apart only.
        x: images (B, C, H, W), or what a grid's ``action`` moves (`Volumes`, `Videos`, `Sequences`).
        generator: one of the action's generators.
        action: how the input moves; `Images` by default.
        output, select, probabilities: as for `lie_derivative`.
        layouts: by module name, the layout of its output: "NCHW", "NHWC", ``Tokens(...)``, "invariant".
        by: "layer", or "type" for one term a class of layers, which needs far fewer tangents.

    Returns:
        `Decomposition`. Layers that commute with the motion have no term; they are listed in ``zero``.

    Raises:
        UserError: as `lie_derivative` does, for another kind of action, and for a layout of an unknown module.

    Warns:
        CancellationWarning: if terms cancel to a far smaller total; it names the layers with the largest.

    Laws: the terms and the remainder add up to ``total``, which is `lie_derivative` of the whole; the split depends on
    the layouts, the sum does not.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    >>> list(decompose(net, torch.rand(1, 1, 8, 8), "rotate").terms)
    ['0', '1', '3']
    """
    model = uncompiled(model)
    action = Images() if action is None else action
    (chosen,) = resolve_generators(generator, action.generators)
    check_inputs(model, x, action)
    domain = action.domain(x)
    if not domain.size:
        raise UserError(f"expected an action on a grid (Images, Volumes, Videos, Sequences), got {action!r}")
    module = module_of(model)
    names = {name for name, _ in module.named_modules()} if module is not None else set()
    for name in layouts or {}:
        if name not in names:
            from lie.run import unknown_name

            raise unknown_name("module", name, names - {""})
    (x,), _ = moving_parts(x)
    coefficients = torch.tensor([chosen.coefficients], dtype=x.dtype, device=x.device)
    motion = action.tangents(x, coefficients)
    failure: Exception | None = None
    for mkldnn in (True, False):
        kinds: dict[str, str] = {}
        tracer = Tracer(coefficients, domain, (lambda name: name) if by == "layer" else kinds.__getitem__, layouts)
        tracer.origin = kinds
        layout: Layout | None = None
        try:
            with ExitStack() as stack:
                if not mkldnn:
                    stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.no_grad())
                stack.enter_context(evaluation_mode(model))
                stack.enter_context(tracer.watching(module))
                with tracer:
                    out = one_tensor(model(tracer.begin(x, motion)), len(x), select)
                    layout = resolve_layout(declared_layout(model, out, domain) if output is None else output, out)
                    if probabilities:
                        out = out.softmax(dim=layout.channel_dim)
                found = tracer.result_dual(out)
                terms = tracer.terms(found)
            with evaluation_mode(model), torch.no_grad():
                moved = found.primal if found.tangents is None else found.tangents
                check_outputs(model, found.primal, torch.stack([*moved, *terms.values()]), lambda: model(x))
            decomposition = _collected(tracer, found, terms, layout, chosen.name, by)
            if tracer.conversions:
                options: dict[str, Any] = {"action": action, "select": select, "probabilities": probabilities}
                whole = lie_derivatives(model, x, [chosen], output=output, **options)
                _check_total(decomposition.total, whole.derivatives[0], tracer.conversions)
            break
        except UserError:
            raise
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if failure is None:
                with evaluation_mode(model), torch.no_grad():
                    model(x)  # an error of the model's own is the one to show
            failure = failure or error
    else:
        assert failure is not None
        raise _undifferentiable(failure) from failure
    _warn_of_cancellation(model, decomposition)
    return decomposition


def _undifferentiable(failure: Exception) -> UserError:
    return UserError(
        f"the model runs but its layers cannot be differentiated: {str(failure).strip().splitlines()[0]}; "
        "lie_derivative may still measure it as a whole"
    )


def _warn_of_cancellation(model: Callable[..., Any], decomposition: Decomposition) -> None:
    """Warn where the terms cancel, so that little of what is shared out is more than rounding."""
    norms, total = decomposition.norms(), float(decomposition.total.norm())
    largest = sorted(norms, key=norms.__getitem__, reverse=True)[:3]
    if not largest:
        return
    closure = decomposition.closure
    # A total that vanishes by rounding alone, as that of an equivariant network, is no news.
    scale = float(decomposition.value.norm()) * torch.finfo(decomposition.value.dtype).eps * 32
    if norms[largest[0]] <= scale or (norms[largest[0]] <= CANCELLATION * total and closure <= SPOILT):
        return
    module = module_of(model)
    name = type(module).__name__ if module is not None else getattr(model, "__name__", "the model")
    listed = ", ".join(f"{label} ({norms[label]:.1e})" for label in largest)
    remedy = " measure in float64;" if decomposition.value.dtype != torch.float64 else ""
    warnings.warn(
        f"large terms of {name} under {decomposition.generator} cancel to a total of {total:.1e}: those of {listed}; "
        f"the sum of all terms differs from the total by {closure:.1e} of it, and the shares mean little;{remedy} "
        "declare the layouts of these layers (layouts=) if their outputs lie elsewhere in the image",
        CancellationWarning,
        stacklevel=4,
    )


def _check_total(total: Tensor, whole: Tensor, conversions: Sequence[str]) -> None:
    """Raise `UserError` if the total of the layers is not the derivative of the whole, which was compared with
    difference quotients.
    """
    apart, size = float((total - whole).abs().max()), float(torch.maximum(total.abs(), whole.abs()).max())
    if apart > CONVERTED * size:
        raise UserError(
            f"the model turns a value into a number by {', '.join(sorted(set(conversions)))} (as .item() does) and "
            "computes with it: no layer's term holds that part of the derivative; use tensors, or lie_derivative"
        )


CONVERTED = 1e-3
"""Relative difference of the layers' total from the derivative of the whole: rounding in single precision is below."""


def _collected(
    tracer: Tracer, out: Any, found: dict[str, Tensor], layout: Layout, generator: str, by: str
) -> Decomposition:
    value = out.primal
    zeros = torch.zeros_like(value)
    ideal = layout.tangents(value, tracer.coefficients, tracer.domain)[0]
    if not out.moves:
        return Decomposition(generator, value, zeros - ideal, {}, {}, {}, zero=tuple(tracer.origin))
    tangents, rows = out.tangents, out.rows
    total = tangents[rows.index(TOTAL)] - ideal
    drift = tangents[rows.index(IDEAL)] - ideal
    kinds = dict(tracer.origin)
    operations = set(tracer.functional)
    # What the last layers, whose outputs could not be followed, and the declared output's own motion leave.
    if float(drift.abs().max()) > 32 * torch.finfo(value.dtype).eps * float(ideal.abs().max()):
        label = tracer.unknown[-1] if tracer.unknown and tracer.unknown[-1] not in found else "output"
        label = kinds.get(label, label) if by == "type" else label
        found[label] = found[label] + drift if label in found else drift
        kinds.setdefault(label, "output")
        if label == "output":
            operations.add(label)
    if by == "type":
        layers = {kind for name, kind in kinds.items() if name not in operations}
        kinds = {kind: kind for kind in kinds.values()}
        operations = set(kinds) - layers
    order = [name for name in kinds if name in found]
    return Decomposition(
        generator,
        value,
        total,
        {name: found[name] for name in order if name not in operations},
        {name: found[name] for name in order if name in operations},
        {name: kinds[name] for name in order},
        tuple(tracer.unknown),
        tuple(name for name in kinds if name not in found and name not in tracer.unknown),
    )
