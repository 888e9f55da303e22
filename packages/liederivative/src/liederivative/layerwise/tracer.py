r"""A model's run in which every layer's own Lie derivative is split off and pushed on to the output.

Row 0 of the tangents is the input's motion, pushed through everything: at the end, the whole derivative. Row 1 is the
ideal motion: after each layer what was pushed is replaced by how the layer's output should move, and the difference,
the layer's local Lie derivative, is noted, to be pushed on afterwards by the recorded run
(`liederivative.layerwise.tape`). So

.. math:: Df(x)[\rho_1 x] - \rho_2 f(x) = \sum_i Df_{>i} \big[ Df_i [\rho\, h_{i-1}] - \rho f_i(h_{i-1}) \big],

a telescoping sum: exact whatever motion is declared ideal in between, as long as it is the same for what leaves a layer
and what enters the next (Gruver et al. 2022, arXiv 2210.02984, section on layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from liederivative.actions import NCHW, NHWC, Axis, Domain, Invariant, Layout, Tokens, resolve_layout
from liederivative.derivative.dual import Dual, DualMode
from liederivative.derivative.operators import ByProductTangents
from liederivative.derivative.rules import OVERWRITES, Call, operator_name
from liederivative.layerwise.axes import Atom, Axes, Factors, Line, Union, plain, plain_axes, velocity
from liederivative.layerwise.tape import Tape
from liederivative.layerwise.tracking import track

TOTAL, IDEAL = 0, 1
"""The two rows."""


class Tracer(DualMode):
    """A `DualMode` that splits off the term of each layer and operation that does not commute with the motion."""

    def __init__(
        self,
        coefficients: Tensor,
        domain: Domain,
        key: Callable[[str], str] = lambda name: name,
        layouts: Mapping[str, str | Layout] | None = None,
    ) -> None:
        super().__init__()
        self.coefficients, self.domain, self.key = coefficients, domain, key
        self.layouts = dict(layouts or {})
        self.gains = bool(coefficients[0, -1 - len(domain.flows)] != 0)
        self.names: list[str] = []
        self.origin: dict[str, str] = {}
        """kind of each source of terms: the module's class or the operator, in order of their first run"""
        self.functional: set[str] = set()
        self.unknown: list[str] = []
        self._stack: list[tuple[str, bool]] = []
        self._calls: dict[str, int] = {}
        self.seen_layouts: set[str] = set()
        self.tape = Tape()

    def begin(self, x: Tensor, motion: Tensor) -> Dual:
        """The input (B, C, *space) with its motion (1, B, C, *space)."""
        dual = self.dual(x, torch.cat([motion, motion]), (TOTAL, IDEAL))
        n = len(self.domain.size)
        lines = [
            (Atom(size, Line(kind, Axis.over(size, self.domain.size[kind]))),) for kind, size in enumerate(x.shape[-n:])
        ]
        dual.layout_axes = (*plain_axes(x.shape[:-n]), *lines)
        dual.clean = True
        return dual

    # --- which layer is running ---

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Know the module that runs, and split off its term when it returns."""
        handles = []
        if isinstance(model, nn.Module):
            for name, part in model.named_modules():
                leaf = bool(name) and next(part.children(), None) is None
                handles.append(part.register_forward_pre_hook(self._entering(name, leaf)))
                handles.append(part.register_forward_hook(self._leaving(name, leaf)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str, leaf: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._stack.append((name, leaf))

        return hook

    def _leaving(self, name: str, leaf: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            while self._stack and self._stack.pop() != (name, leaf):
                pass  # a module that left by an exception its caller caught
            declared = self.layouts.get(name)
            if not leaf and declared is None:
                return None
            if any(inside for _, inside in self._stack):
                return None  # a module called by a leaf belongs to that leaf
            label = self._numbered(name)
            if isinstance(module, nn.RNNBase):
                out = self._along_sequence(args, out)
            with _disable_current_modes():  # what follows is arithmetic on plain tensors
                return self._split(out, label, type(module).__name__, declared, name)

        return hook

    def _along_sequence(self, args: Any, out: Any) -> Any:
        """The outputs of a recurrent layer lie where its inputs do, whatever becomes of the channels in between."""
        x, y = args[0] if args else None, out[0]
        if not isinstance(x, Dual) or x.layout_axes is None or not isinstance(y, Dual) or not y.moves:
            return out
        y = self._own(y)
        y.layout_axes, y.clean = (*x.layout_axes[:-1], plain(y.shape[-1])), False
        return (y, *out[1:])

    def _numbered(self, name: str) -> str:
        """A module's second call is another layer: ``relu#2``."""
        count = self._calls[name] = self._calls.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def _split(self, out: Any, label: str, kind: str, declared: str | Layout | None, name: str) -> Any:
        if isinstance(out, list | tuple) and type(out) in (list, tuple):
            return type(out)(self._split(part, label, kind, declared, name) for part in out)
        if not isinstance(out, Dual) or not out.moves:
            return out
        if declared is not None:
            self.seen_layouts.add(name)
            axes = declared_axes(resolve_layout(declared, out.primal), out.primal, self.domain)
            if axes != out.layout_axes:
                out = self._own(out)
                out.layout_axes, out.clean = axes, False
        self.origin.setdefault(label, kind)
        return self.cut(out, label)

    def _own(self, dual: Dual) -> Dual:
        """A copy that is no view, so that its rows can change."""
        copy = Dual(dual.primal, dual.tangents, dual.rows)
        copy.layout_axes, copy.clean = dual.layout_axes, dual.clean
        self.tape.copy(dual, copy)
        return copy

    # --- single operations ---

    def apply(self, name: str, call: Call, found: list[Dual]) -> Any:
        """The outputs with where they lie, and the operation's term where no layer will take it."""
        wrapped = super().apply(name, call, found)
        clean = all(dual.clean for dual in found if dual.moves)
        parts = [wrapped] if isinstance(wrapped, Tensor) else list(wrapped) if isinstance(wrapped, list | tuple) else []
        self.tape.operation(name, call, parts)
        for i, part in enumerate(parts):
            if isinstance(part, Dual) and isinstance(part.lazy, ByProductTangents):
                part.clean = False  # located, if at all, where it is used
            elif isinstance(part, Dual):
                index = None if isinstance(wrapped, Tensor) else i
                axes, commutes = track(name, call.raw, call.raw_kwargs, call.out, index, self.domain)
                part.layout_axes = axes
                part.clean = clean and commutes and not self.gains
                self._functional(part, name)
        return wrapped

    def viewed(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], view: Dual, index: int | None) -> Dual:
        """A view lies where its base does; what it loses is seen by the operation that reads it."""
        base = args[0]
        if base.moves:
            out = view.primal if index is None else {index: view.primal}
            view.layout_axes, commutes = track(operator_name(func), args, kwargs, out, index, self.domain)
            view.clean = base.clean and commutes
        return view

    def _mutate(self, func: Any, name: str, args: Any, kwargs: Any, plain: Any, plain_kw: Any, found: Any) -> Any:
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = plain[index] if index < len(plain) else plain_kw.get(argument.name)
                for value in written if isinstance(written, list | tuple) else [written]:
                    if isinstance(value, Tensor) and value.layout is torch.strided:
                        self.tape.preserve(value)
        return super()._mutate(func, name, args, kwargs, plain, plain_kw, found)

    def write(self, target: Dual, name: str, call: Call) -> None:
        """A tensor written into lies where the result does."""
        args, kwargs = call.raw, call.raw_kwargs
        clean = all(a.clean for a in (*args, *kwargs.values()) if isinstance(a, Dual) and a.moves)
        overwritten = name in OVERWRITES
        source = args[1] if name == "copy" and len(args) > 1 else None
        axes, commutes = (None, False) if overwritten else track(name, args, kwargs, target.primal, None, self.domain)
        self.tape.operation(name, call, [target], write=True)
        super().write(target, name, call)
        if target._source is None:
            if isinstance(source, Dual) and source.shape == target.shape:
                axes, commutes = source.layout_axes, True
            target.layout_axes, target.clean = axes, clean and commutes and not self.gains
            self._functional(target, name)
        else:
            target.root.clean = False

    def _functional(self, dual: Dual, name: str) -> None:
        """The term of an operation that is called outside of any layer."""
        if self._stack and self._stack[-1][1]:
            return
        if any(leaf for _, leaf in self._stack):
            return
        path = self._stack[-1][0] if self._stack else "output"
        label = f"{path or 'model'}:{name}"
        if dual._source is None and not dual.clean:
            self.origin.setdefault(label, name)
            self.functional.add(label)
            self.cut(dual, label)

    # --- terms ---

    def cut(self, dual: Dual, label: str) -> Dual:
        """Put the ideal motion in place of the pushed one, and the difference into the row of ``label``."""
        if dual.layout_axes is None:
            if label not in self.unknown:
                self.unknown.append(label)
            return dual
        if dual.clean:
            return dual
        ideal = velocity(dual.primal, dual.layout_axes, self.coefficients, self.domain)
        return self.replace_ideal(dual, label, ideal)

    def replace_ideal(self, dual: Dual, label: str, ideal: Tensor | None) -> Dual:
        """`cut` with the ideal motion given; None for none."""
        tangents, rows = dual.tangents, dual.rows
        assert tangents is not None
        here = rows.index(IDEAL)
        pushed = tangents[here]
        term = pushed.clone() if ideal is None else pushed - ideal
        size = largest(pushed)
        error = size if ideal is None else largest(term)
        if error <= 32 * torch.finfo(dual.dtype).eps * size:  # rounding; it stays in the pushed row, and is not lost
            dual.clean = True
            return dual
        if dual._source is not None:
            dual = self._own(dual)
        self.note(dual, label, term)
        whole = tangents.clone()
        whole[here] = 0 if ideal is None else ideal
        dual.set_tangents(whole, rows)
        dual.clean = True
        return dual

    def note(self, dual: Dual, label: str, term: Tensor) -> None:
        """The term of ``label`` begins at ``dual``."""
        key = self.key(label)
        if key not in self.names:
            self.names.append(key)
        self.tape.term(dual, self.names.index(key), term)

    def terms(self, out: Dual) -> dict[str, Tensor]:
        """Each layer's and operation's term at ``out``, pushed there by what lies between."""
        return {self.names[row]: term for row, term in self.tape.push(self.tape.place(out)).items()}


def largest(x: Tensor) -> float:
    """The largest absolute entry."""
    if not x.numel():
        return 0.0
    low, high = torch.stack(x.aminmax()).tolist()
    return max(-low, high)


def declared_axes(layout: Layout, value: Tensor, domain: Domain) -> Axes | None:
    """Where a tensor of a declared layout lies; None for a layout that this cannot say of."""

    def line(size: int, kind: int) -> Factors:
        return (Atom(size, Line(kind, Axis.over(size, domain.size[kind]))),) if size > 1 else plain(size)

    if isinstance(layout, Invariant):
        return plain_axes(value.shape)
    if isinstance(layout, NCHW):
        return (*plain_axes(value.shape[:2]), line(value.shape[2], 0), line(value.shape[3], 1))
    if isinstance(layout, NHWC):
        return (plain(value.shape[0]), line(value.shape[1], 0), line(value.shape[2], 1), plain(value.shape[3]))
    if isinstance(layout, Tokens):
        grid = (*line(layout.grid[0], 0), *line(layout.grid[1], 1))
        tokens = grid if not layout.prefix else (Union((plain(layout.prefix), grid)),)
        return (plain(value.shape[0]), tokens, plain(value.shape[2]))
    return None
