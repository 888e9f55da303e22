r"""Squared sizes of the layers' terms from random probes, shared by any number of generators.

With z of independent standard normal entries, the expectation of :math:`(z^T J_{>i} L_i)^2` is
:math:`\|J_{>i} L_i\|^2`: one backward pass of z through the network gives the inner products with the local
derivatives L_i of *every* layer under *every* generator. Exact terms (`decompose`) cost one tangent a layer, which in
a very deep network is many; probes cost one backward pass each, whatever the depth and the number of generators.

The mean of P probes has the relative standard deviation sqrt(2 / P): the interval given is that of the P independent
squares, whose sum over the squared size is chi-squared with P degrees of freedom (exact for a single output sample).

Source: Gruver et al. 2022 (Lie derivative), arXiv 2210.02984, section on the contributions of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lie.run import UserError
from torch import Tensor, nn

from liederivative.actions import Action, GeneratorLike, Images, Layout, resolve_generators, resolve_layout
from liederivative.derivative import (
    Selector,
    check_inputs,
    declared_layout,
    evaluation_mode,
    module_of,
    outside_inference_mode,
    uncompiled,
)
from liederivative.derivative.lie_derivative import moving_parts, one_tensor
from liederivative.layerwise.tracer import Tracer


@dataclass(frozen=True)
class ProbeEstimate:
    """Squared sizes of the layers' terms, estimated."""

    generators: tuple[str, ...]
    squares: dict[str, Tensor]
    """by layer: the square of each probe's product, (G, P); their mean over P estimates ``|term|^2``"""
    kinds: dict[str, str]
    """class of each layer"""

    def squared_norms(self) -> dict[str, dict[str, float]]:
        """The estimate of ``|term|^2`` over the whole batch, by layer and generator."""
        return {
            name: dict(zip(self.generators, values.mean(1).tolist(), strict=True))
            for name, values in self.squares.items()
        }

    def interval(self, level: float = 0.95) -> dict[str, dict[str, tuple[float, float]]]:
        """The confidence interval of each ``|term|^2``, by layer and generator, from the chi-squared distribution."""
        if not 0 < level < 1:
            raise UserError(f"expected a confidence level between 0 and 1, got {level}")
        from scipy.stats import chi2

        found = {}
        for name, values in self.squares.items():
            probes = values.shape[1]
            low, high = chi2.ppf([0.5 + level / 2, 0.5 - level / 2], probes)
            sums = values.sum(1).tolist()
            found[name] = {g: (s / low, s / high) for g, s in zip(self.generators, sums, strict=True)}
        return found


class _LocalTracer(Tracer):
    """Keeps the local derivatives instead of pushing them on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.local: dict[str, Tensor] = {}

    def note(self, dual: Any, label: str, term: Tensor) -> None:
        """Only layers are asked for."""
        del dual
        if label not in self.functional:
            self.local[label] = term


@outside_inference_mode
def probe_terms(
    model: Callable[..., Any],
    x: Tensor,
    generators: str | GeneratorLike | Iterable[str | GeneratorLike] | None = None,
    *,
    probes: int = 100,
    action: Action | None = None,
    output: str | Layout | None = None,
    select: Selector | None = None,
    probabilities: bool = False,
    generator: torch.Generator | None = None,
) -> ProbeEstimate:
    """Estimates of the squared norms of all layers' terms under several generators from shared probes.

    Args:
        model: a module that can be differentiated backwards, or a bound method of one.
        x: images, or what a grid's ``action`` moves.
        generators: names or elements; all of the action's by default.
        probes: P; the relative standard deviation is sqrt(2 / P).
        action, output, select, probabilities: as for `decompose`.
        generator: of the probes.

    Raises:
        UserError: as `decompose` does, and for a plain function, which has no layers.
    """
    model = uncompiled(model)
    action = Images() if action is None else action
    known = action.generators
    chosen = resolve_generators(tuple(known) if generators is None else generators, known)
    check_inputs(model, x, action)
    module = module_of(model)
    if module is None:
        raise UserError("expected a module, or a bound method of one, got a plain function: it has no layers to probe")
    if probes < 1:
        raise UserError(f"expected at least one probe, got {probes}")
    domain = action.domain(x)
    if not domain.size:
        raise UserError(f"expected an action on a grid (Images, Volumes, Videos, Sequences), got {action!r}")
    (x,), _ = moving_parts(x)
    found: list[dict[str, Tensor]] = []
    kinds: dict[str, str] = {}
    for one in chosen:
        coefficients = torch.tensor([one.coefficients], dtype=x.dtype, device=x.device)
        tracer = _LocalTracer(coefficients, domain)
        with torch.no_grad(), evaluation_mode(model), tracer.watching(module), tracer:
            model(tracer.begin(x, action.tangents(x, coefficients)))
        kinds |= {name: kind for name, kind in tracer.origin.items() if name not in tracer.functional}
        found.append(tracer.local)
    local: dict[str, list[Tensor]] = {}
    for name in kinds:
        some = next((values[name] for values in found if name in values), None)
        if some is not None:  # else it commutes with all of them; a zero where it does with one
            local[name] = [values.get(name, torch.zeros_like(some)) for values in found]
    squares = _probed(model, module, x, local, probes, output, select, probabilities, generator, domain)
    return ProbeEstimate(tuple(g.name for g in chosen), squares, {name: kinds[name] for name in squares})


def _probed(
    model: Callable[..., Any],
    module: nn.Module,
    x: Tensor,
    local: dict[str, list[Tensor]],
    probes: int,
    output: str | Layout | None,
    select: Selector | None,
    probabilities: bool,
    generator: torch.Generator | None,
    domain: Any,
) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable[..., Any]:
        def hook(_: Any, __: Any, out: Any) -> Any:
            count = calls[name] = calls.get(name, 0) + 1
            label = name if count == 1 else f"{name}#{count}"
            if label not in local or not isinstance(out, Tensor):
                return None
            kept[label] = out if out.requires_grad else out.detach().requires_grad_()
            # In-place layers behind must not overwrite what the gradient is taken of.
            return kept[label].clone()

        return hook

    names = {name.split("#")[0] for name in local}
    handles = [part.register_forward_hook(watch(n)) for n, part in module.named_modules() if n in names]
    try:
        with torch.enable_grad(), evaluation_mode(model):
            out = one_tensor(model(x.detach().requires_grad_()), len(x), select)
            layout = resolve_layout(declared_layout(model, out, domain) if output is None else output, out)
            out = out.softmax(dim=layout.channel_dim) if probabilities else out
    finally:
        for handle in handles:
            handle.remove()
    labels = list(kept)
    found: dict[str, list[Tensor]] = {label: [] for label in labels}
    for index in range(probes):
        z = torch.randn(out.shape, dtype=out.dtype, device=out.device, generator=generator)
        gradients = torch.autograd.grad(
            out, [kept[label] for label in labels], z, retain_graph=index < probes - 1, allow_unused=True
        )
        for label, gradient in zip(labels, gradients, strict=True):
            values = torch.stack([value.flatten() for value in local[label]])  # (G, dim)
            product = values @ gradient.flatten() if gradient is not None else values.new_zeros(len(values))
            found[label].append(product.square())
    return {label: torch.stack(values, 1) for label, values in found.items()}
