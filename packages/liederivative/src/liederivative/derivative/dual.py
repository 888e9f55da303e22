r"""Forward mode for many tangents at once: every tensor of a model's run carries its value and K tangents.

A `Dual` holds a value x and tangents dx of shape (K, *x.shape). While `DualMode` is on, each operation of torch is
computed on the values exactly as the model asks for it, once, and its derivative is applied to all K tangents
together: a linear operation with the tangents as further samples, a pointwise one with one derivative for all K, a
normalisation or an attention by its own rule (`liederivative.derivative.rules`). An operation without a rule goes
through torch's forward mode under `vmap`. So K tangents cost little more than K linear forwards; ``vmap(jvp)`` pays
for its batching of every small step.

Views are followed: a view's tangents are the same view of its base's tangents, and a write into either is seen by
the other. Only float tensors carry tangents; comparisons and indices are those of the value. A value that leaves
torch's sight as a number of Python's is noted in `DualMode.conversions`, since its derivative is lost there.
Operators from outside of torch's own library are differentiated by `liederivative.derivative.operators`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from liederivative.derivative.evaluation import is_scratch
from liederivative.derivative.operators import (
    ByProductTangents,
    is_quantised,
    operator_tangents,
    refuse_quantised,
)
from liederivative.derivative.rules import (
    FACTORIES,
    MUTATES_WITHOUT_INPUT,
    OVERWRITES,
    RULES,
    Call,
    operator_name,
    push_view,
)


class UnsupportedError(RuntimeError):
    """An operation that neither a rule nor torch's forward mode carries."""


class Dual(torch.Tensor):
    """A value with tangents. ``rows`` names the tangents, so that sets of different ones can meet in an operation."""

    primal: Tensor
    layout_axes: Any
    """where the entries lie, for `liederivative.layerwise`"""
    clean: bool
    """whether the row of the ideal motion is up to date there"""
    slot: int | None
    """where `liederivative.layerwise` keeps tangents of this tensor"""
    _rows: tuple[int, ...]
    _tangents: Tensor | None
    _lazy: Any
    _source: tuple[Dual, Callable[[Tensor], Tensor]] | None

    # torch's own spelling of "no __torch_function__": operations go straight to the dispatcher.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        primal: Tensor,
        tangents: Tensor | None = None,
        rows: tuple[int, ...] = (),
        *,
        lazy: Any = None,
        base: tuple[Dual, Callable[[Tensor], Tensor]] | None = None,
    ) -> Dual:
        self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            primal.shape,
            strides=primal.stride(),
            storage_offset=primal.storage_offset(),
            dtype=primal.dtype,
            device=primal.device,
        )
        self.primal = primal
        self._tangents = tangents
        self._lazy = lazy
        self._source = base
        self._rows = rows
        self.layout_axes = None
        self.clean = False
        self.slot = None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Dual({tuple(self.primal.shape)}, rows={self.rows})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside of the mode nothing is known of tangents."""
        raise UnsupportedError(f"{func} on a value with tangents, outside of its DualMode")

    @property
    def root(self) -> Dual:
        """The tensor that this one is a view of."""
        return self if self._source is None else self._source[0].root

    @property
    def rows(self) -> tuple[int, ...]:
        """Names of the tangents, in order."""
        return self.root._rows

    @property
    def moves(self) -> bool:
        """Whether there are tangents at all."""
        root = self.root
        return root._tangents is not None or root._lazy is not None

    @property
    def lazy(self) -> Any:
        """The tangents not yet computed, if so."""
        return self._lazy if self._source is None and self._tangents is None else None

    @property
    def tangents(self) -> Tensor | None:
        """(K, *shape), or None where there are none."""
        if self._source is not None:
            base, view = self._source
            tangents = base.tangents
            return None if tangents is None else view(tangents)
        if self._tangents is None and self._lazy is not None:
            self._tangents, self._lazy = self._lazy.evaluate(), None
        return self._tangents

    @property
    def data(self) -> Tensor:
        """The tensor itself, apart from the graph."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        # Torch would exchange the memory of the wrapper, which has none, and leave value and tangents as they are.
        raise UnsupportedError("a value with tangents is exchanged by `x.data = ...`")

    def take_tangents(self) -> tuple[Tensor | None, bool]:
        """The tangents, and whether they are fresh memory that the caller may overwrite."""
        lazy = self.lazy
        if lazy is not None and not lazy.taken:  # asked for again, they are computed again, and then kept
            lazy.taken = True
            return lazy.evaluate(), True
        return self.tangents, False

    def set_tangents(self, tangents: Tensor | None, rows: tuple[int, ...]) -> None:
        """Write tangents, through to the base if this is a view."""
        if self._source is None:
            self._tangents, self._lazy, self._rows = tangents, None, rows if tangents is not None else ()
            return
        root = self.root
        if tangents is None and not root.moves:
            return
        old, old_rows = root.tangents, root.rows
        new_rows = tuple(sorted({*old_rows, *rows}))
        whole = root.primal.new_zeros(len(new_rows), *root.primal.shape)
        if old is not None:
            whole[[new_rows.index(row) for row in old_rows]] = old
        root.set_tangents(whole, new_rows)
        part = self.tangents
        assert part is not None
        if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            raise UnsupportedError("a write into a view whose tangents had to be copied")
        part.zero_()
        if tangents is not None:
            part[[new_rows.index(row) for row in rows]] = tangents


class DualMode(TorchDispatchMode):
    """While it is on, operations on `Dual` tensors carry their tangents along.

    >>> x = torch.tensor([0.0, 1.0])
    >>> with torch.no_grad(), DualMode() as mode:
    ...     y = torch.exp(mode.dual(x, torch.eye(2)))
    >>> y.tangents
    tensor([[1.0000, 0.0000],
            [0.0000, 2.7183]])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conversions: list[str] = []
        """operators that made a number of a value with tangents, as `Tensor.item` does: its derivative is lost"""
        self.operators: dict[str, str] = {}
        """operators from outside of torch, and the strategy that differentiated each"""
        # Tensors that the model makes while it runs stay plain, for it may keep them. If it writes tangents into one,
        # its memory is adopted: every view of it then has tangents.
        self._made: dict[int, weakref.ref[Tensor]] = {}
        self._alive: list[Tensor] = []
        self._adopted: dict[int, Dual] = {}
        # By-products whose tangents may still be asked for: before an argument is overwritten they are computed.
        self._pending: weakref.WeakSet[ByProductTangents] = weakref.WeakSet()
        # Rules that need torch's own forward mode run as if this mode were not there.
        self._outside = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())

    def dual(self, primal: Tensor, tangents: Tensor, rows: tuple[int, ...] | None = None) -> Dual:
        """``primal`` with ``tangents`` (K, *shape)."""
        primal, tangents = (a.primal if isinstance(a, Dual) else a for a in (primal, tangents))  # made under the mode
        return Dual(primal, tangents, tuple(range(len(tangents))) if rows is None else rows)

    def result(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """The value and the tangents of what a run returned, None if it does not move."""
        dual = self.result_dual(out)
        return dual.primal, dual.tangents

    def result_dual(self, out: Tensor) -> Dual:
        """What a run returned, with its tangents."""
        dual = self._with_adopted(out)
        return dual if isinstance(dual, Dual) else Dual(dual)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._adopted:
            args, kwargs = self._with_adopted(args), {key: self._with_adopted(a) for key, a in kwargs.items()}
        found: list[Dual] = []
        plain = [_strip(a, found) for a in args]
        plain_kw = {key: _strip(a, found) for key, a in kwargs.items()}
        name, kind = _described(func)
        if kind == "mutation":
            return self._mutate(func, name, args, kwargs, plain, plain_kw, found)
        out = func(*plain, **plain_kw)
        if kind == "view":
            return self._view(func, args, kwargs, out) if found else out
        if name in FACTORIES or not any(dual.moves for dual in found):
            if _has_derivative(out) and out.layout is torch.strided:
                self._made[out.untyped_storage().data_ptr()] = weakref.ref(out)
                if name in FACTORIES:  # a view may be all that is left of it
                    self._alive.append(out)
            return out
        if kind == "quantised":
            refuse_quantised(func)
        if name in DRAWS or any(
            type(o) in (float, complex) for o in (out if isinstance(out, tuple | list) else (out,))
        ):
            self.conversions.append(func._schema.name)
        if name in RUNNING and plain[5] and plain[3] is not None:
            self.conversions.append(f"running statistics of {func._schema.name}")
            plain[3:5] = [a.clone() for a in plain[3:5]]  # its derivative runs it again, which would write again
        return self.apply(name, Call(func, args, kwargs, plain, plain_kw, out, rows_of(found)), found)

    def apply(self, name: str, call: Call, found: list[Dual]) -> Any:
        """The outputs of an operation that is neither a view nor a write, with their tangents."""
        del found
        return wrap(call.out, self.tangents_of(name, call), call.rows)

    def tangents_of(self, name: str, call: Call) -> Any:
        """The tangents of each output, by the rule of the operation or torch's own derivative of it."""
        outs = call.out if isinstance(call.out, tuple | list) else [call.out]
        if not any(_has_derivative(o) for o in outs):
            return None
        if "::" in name or name.startswith("special_") or is_untrusted(name, call):
            tangents, self.operators[name] = operator_tangents(call, self._autograd)
            return tangents
        rule = RULES.get(name)
        tangents = NotImplemented if rule is None else rule(call)
        if tangents is NotImplemented:
            tangents = self._by_forward_mode(name, call)
        return tangents if name not in BY_PRODUCTS else self._with_by_products(name, call, tangents)

    def _with_by_products(self, name: str, call: Call, tangents: Sequence[Any]) -> tuple[Any, ...]:
        """``tangents`` with those of the by-products, each computed if it is used."""

        def note(how: str) -> None:
            self.operators[name] = how

        complete = list(tangents)
        for i in BY_PRODUCTS[name]:
            if _has_derivative(call.out[i]) and call.out[i].numel():
                complete[i] = ByProductTangents(call, i, self._autograd, note)
                self._pending.add(complete[i])
        return tuple(complete)

    def _autograd(self) -> AbstractContextManager[Any]:
        """Where torch's own derivatives work although a dispatch mode is on."""
        return torch._C._ForceDispatchKeyGuard(*self._outside)

    def _by_forward_mode(self, name: str, call: Call) -> Any:
        """Torch's own derivative of one operation, for all tangents by `vmap`."""
        places, points, velocities = call.moving()
        if name in TRIANGLES and places == [(0,)]:
            upper = call.kwargs.get("upper", call.get(1, False)) if name != "_linalg_eigh" else call.get(1, "L") == "U"
            velocities = [mirrored(velocities[0], bool(upper))]
        structure: list[int] = []

        def f(*moved: Tensor) -> tuple[Tensor, ...]:
            result = call.with_moved(places, moved)
            outs = result if isinstance(result, tuple | list) else (result,)
            kept = [i for i, o in enumerate(outs) if _has_derivative(o)]
            structure[:] = kept
            return tuple(outs[i] for i in kept)

        try:
            with self._autograd(), torch.no_grad():
                along = torch.func.vmap(lambda *v: torch.func.jvp(f, tuple(points), v)[1])(*velocities)
        except (RuntimeError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedError(f"no derivative of {name}: {reason}") from error
        if isinstance(call.out, Tensor):
            return along[0]
        whole: list[Any] = [None] * len(call.out)
        for i, tangent in zip(structure, along, strict=True):
            whole[i] = tangent
        return tuple(whole)

    def _view(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Any:
        base = args[0]
        if not isinstance(base, Dual):
            return out

        rest = (None, *args[1:])  # the view must not keep its base alive

        def replay(index: int | None) -> Callable[[Tensor], Tensor]:
            def view(tangents: Tensor) -> Tensor:
                moved = push_view(func, tangents, rest, kwargs)
                return moved if index is None else moved[index]

            return view

        if isinstance(out, Tensor):
            return self.viewed(func, args, kwargs, Dual(out, base=(base, replay(None))), None)
        return type(out)(self.viewed(func, args, kwargs, Dual(o, base=(base, replay(i))), i) for i, o in enumerate(out))

    def viewed(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], view: Dual, index: int | None) -> Dual:
        """Called with each view, the index-th of several."""
        del func, args, kwargs, index
        return view

    def _mutate(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        plain: list[Any],
        plain_kw: dict[str, Any],
        found: list[Dual],
    ) -> Any:
        if self._pending:
            self._evaluate_pending([*plain, *plain_kw.values()])
        given = target = args[0] if args else None
        moves = any(dual.moves for dual in found)
        if moves and isinstance(target, Tensor) and type(target) is not Dual:
            if not self._is_own(target) and not is_scratch(target):
                raise UnsupportedError(f"{name} writes tangents into a tensor that was made outside of the model's run")
            target = self._adopt(target)
            args = (target, *args[1:])
        if moves and "::" in name:
            raise UnsupportedError(f"no derivative of {name}, which writes into its arguments")
        if not isinstance(target, Dual) or not name.endswith("_"):
            if moves:
                raise UnsupportedError(f"{name} writes tangents into a tensor that was made outside of the model's run")
            func(*plain, **plain_kw)
            return given
        if not moves:
            func(*plain, **plain_kw)
            return given
        name = name[:-1]
        before, functional = list(plain), func
        if name not in OVERWRITES:
            if name not in MUTATES_WITHOUT_INPUT:
                before[0] = plain[0].clone()
            functional = getattr(getattr(torch.ops.aten, name), func._overloadname, None)
            if functional is None:
                raise UnsupportedError(f"{name}_ has no counterpart that does not write")
        func(*plain, **plain_kw)
        self.write(target, name, Call(functional, args, kwargs, before, plain_kw, target.primal, rows_of(found)))
        return given

    def _evaluate_pending(self, arguments: Sequence[Any]) -> None:
        """Compute the tangents of by-products of what an operation is about to overwrite."""
        for tensor in arguments:
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                for tangents in list(self._pending):
                    if tangents.reads(tensor.untyped_storage().data_ptr()):
                        tangents.evaluate()

    def write(self, target: Dual, name: str, call: Call) -> None:
        """Give ``target``, whose value has just been written, the tangents of the operation ``name``."""
        if name in OVERWRITES:
            tangents = call.t(1) if name == "copy" else None
            if tangents is not None:
                tangents = call.broadcast(tangents, 1).to(target.dtype)
        else:
            tangents = self.tangents_of(name, call)
        if tangents is not None:
            tangents = tangents.expand(call.count, *target.primal.shape)
        target.set_tangents(tangents, call.rows)

    def _is_own(self, tensor: Tensor) -> bool:
        made = self._made.get(tensor.untyped_storage().data_ptr())
        return made is not None and made() is not None  # an address may be given out again

    def _adopt(self, tensor: Tensor) -> Dual:
        """A view of the memory behind ``tensor``, which from now on has tangents."""
        key = tensor.untyped_storage().data_ptr()
        if key not in self._adopted:
            numel = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._adopted[key] = Dual(tensor.as_strided((numel,), (1,), 0))
            self._alive.append(tensor)
        size, stride, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()

        def view(tangents: Tensor) -> Tensor:
            return tangents.as_strided((len(tangents), *size), (tangents.stride(0), *stride), offset)

        return Dual(tensor, base=(self._adopted[key], view))

    def _with_adopted(self, a: Any) -> Any:
        if isinstance(a, list | tuple):
            return type(a)(self._with_adopted(item) for item in a)
        if isinstance(a, Tensor) and type(a) is not Dual and a.layout is torch.strided:
            return self._adopt(a) if a.untyped_storage().data_ptr() in self._adopted else a
        return a


def rows_of(duals: Sequence[Dual]) -> tuple[int, ...]:
    """The names of all tangents of ``duals``."""
    sets = {dual.rows for dual in duals if dual.moves}
    if len(sets) == 1:
        return next(iter(sets))
    return tuple(sorted({row for rows in sets for row in rows}))


DRAWS = frozenset({"normal", "poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "exponential"})
"""Random draws whose distribution depends on a value: torch takes them for constants, and a number of Python's too."""

RUNNING = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
"""Operators that write running statistics in training, unannounced, and without their derivative."""

TRIANGLES = frozenset({"_linalg_eigh", "linalg_cholesky_ex", "cholesky"})
"""Operators that read one triangle of a matrix, and whose derivative takes the tangent to be symmetric."""

UNTRUSTED = frozenset(
    {
        *("nll_loss_forward", "nll_loss2d_forward", "scatter_reduce", "linalg_lstsq"),
        *("cholesky_inverse", "cholesky_solve", "triangular_solve", "linalg_pinv"),
    }
)
"""Operators of torch whose forward mode misses a part without an error: weights of classes, what is left out of a
reduction, residuals, the triangle that is not read. (Of the special functions, the
orthogonal polynomials, Airy's and spherical Bessel's functions are taken for constants.)"""

BY_PRODUCTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm"), (1, 2)),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), (1, 2)),
    **dict.fromkeys(("_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm"), (1, 2)),
    **dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"), (1,)),
    **dict.fromkeys(("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"), (1,)),
    **dict.fromkeys(("log_sigmoid_forward", "_linalg_det", "_linalg_solve_ex"), (1,)),
    "_linalg_slogdet": (2,),
}
"""Outputs that torch computes for its backward pass (means, reciprocal deviations, log-sums, factors) and takes for
constants. A model may use them, but hardly any does: their tangents are computed on use."""


def is_untrusted(name: str, call: Call) -> bool:
    """Whether torch's forward mode may miss a part of the derivative of an operator of its own."""
    if name == "_linalg_svd":  # the vectors beyond the shorter side are any basis of their span, LAPACK's here
        full = call.get(1, False, "full_matrices") and call.get(2, True, "compute_uv")
        return bool(full) and call.args[0].shape[-1] != call.args[0].shape[-2]
    return name in UNTRUSTED


_DESCRIBED: dict[Any, tuple[str, str]] = {}


def _described(func: Any) -> tuple[str, str]:
    """The name of an operator, without the namespace if that is torch's own ("aten"), and its kind.

    The kind is "mutation" if it writes into an argument, "view" if it returns a view of one, "quantised" if it rounds
    to integers that stand for real numbers, else "plain".
    """
    description = _DESCRIBED.get(func)
    if description is None:
        schema = func._schema
        if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
            kind = "mutation"
        elif any(r.alias_info is not None for r in schema.returns):
            kind = "view"
        else:
            kind = "quantised" if is_quantised(schema.name) else "plain"
        description = _DESCRIBED[func] = (operator_name(func), kind)
    return description


def mirrored(tangents: Tensor, upper: bool) -> Tensor:
    """Symmetric (Hermitian) matrices with one triangle of ``tangents``."""
    half = tangents.triu(1) if upper else tangents.tril(-1)
    diagonal = tangents.diagonal(dim1=-2, dim2=-1)
    # Within a dispatch mode the sum would not look at the lazy conjugation of ``mH``.
    return half + half.mT.conj_physical() + torch.diag_embed(diagonal.real if diagonal.is_complex() else diagonal)


def operator_kind(func: Any) -> str:
    """Whether an operator is a "mutation", a "view", "quantised" or "plain"."""
    return _described(func)[1]


def _strip(a: Any, found: list[Dual]) -> Any:
    if type(a) is Dual:
        found.append(a)
        return a.primal
    if isinstance(a, list | tuple):
        return [_strip(item, found) for item in a]
    return a


def _has_derivative(out: Any) -> bool:
    return isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex())


def wrap(out: Any, tangents: Any, rows: tuple[int, ...]) -> Any:
    """The outputs of an operation with their tangents, the plain value where there are none."""
    if isinstance(out, Tensor):
        if tangents is None or not _has_derivative(out):
            return out
        return Dual(out, rows=rows, lazy=tangents) if hasattr(tangents, "evaluate") else Dual(out, tangents, rows)
    if isinstance(out, tuple | list):
        parts = [None] * len(out) if tangents is None else tangents
        return type(out)(wrap(o, t, rows) for o, t in zip(out, parts, strict=True))
    return out
