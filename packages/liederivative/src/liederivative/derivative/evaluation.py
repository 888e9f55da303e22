"""A model held in evaluation mode, and left exactly as it was."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(model: Callable[..., Any]) -> Callable[..., Any]:
    """The module that `torch.compile` wraps, which computes the same; anything else as it is."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model


def module_of(model: Callable[..., Any]) -> nn.Module | None:
    """The module behind ``model``: itself, or the owner of a bound method such as ``net.forward_features``."""
    while isinstance(model, functools.partial):
        model = model.func
    if isinstance(model, nn.Module):
        return model
    owner = getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def evaluation_mode(model: Callable[..., Any]) -> Iterator[Callable[[], None]]:
    """Hold every submodule of ``model`` in evaluation mode; the model comes back as it was, also after an error.

    Dropout and stochastic depth are then off, and batch normalisation uses and keeps its running statistics.
    The flags are set directly: ``eval`` and ``train`` may be overridden with lasting effects.

    What a model writes while it runs (a counter, a running mean of activations, a list of attention maps) goes into
    copies: of buffers, and of tensors and built-in containers among the attributes of its modules. Attributes, hooks,
    flags, gradients and the states of torch's, numpy's and Python's random numbers come back too.

    Out of reach are a model hidden in a plain function (its author calls ``eval`` on it), objects of other classes
    among the attributes, and what a scripted module holds beside its buffers. A parameter written in place is reported.

    Yields:
        A function to be called before each run, which brings the model back to the state before: so all runs are of one
        and the same function.

    Warns:
        UserWarning: if a parameter was written in place.
    """
    module = module_of(model)
    state = None if module is None else _State(module)
    draws = _RandomNumbers(module)
    fast = torch.backends.mha.get_fastpath_enabled()
    scratch = _SCRATCH.set(())

    started = False

    def begin() -> None:
        nonlocal started
        if not started:  # the state before is installed already
            started = True
            return
        # Within a run that is being differentiated: what is copied here is no part of it.
        with _disable_current_modes(), torch.no_grad():
            if state is not None:
                state.begin()
            draws.restore()

    try:
        if state is not None:
            state.begin()
        torch.backends.mha.set_fastpath_enabled(False)  # torch's encoder layer as one kernel, which has no derivative
        yield begin
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _SCRATCH.reset(scratch)
        if state is not None:
            state.restore()
        draws.restore()


_SCRATCH: ContextVar[Sequence[Tensor]] = ContextVar(
    "copies of the state of models that are being evaluated", default=()
)


def is_scratch(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies in the memory of a copy that `evaluation_mode` made, which a run may write into."""
    if tensor.layout is not torch.strided:
        return False
    address = tensor.untyped_storage().data_ptr()
    return any(copy.untyped_storage().data_ptr() == address for copy in _SCRATCH.get())


class _State:
    """What a module may change when it runs, with copies in its place while it is evaluated."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        # A scripted module that was frozen has no flag, and is in evaluation mode for good.
        self._flags = [(part, part.training) for part in parts if hasattr(part, "training")]
        scripted = [part for part in parts if isinstance(part, torch.jit.ScriptModule)]
        parts = [part for part in parts if not isinstance(part, torch.jit.ScriptModule)]
        self._attributes = [
            (part, dict(part.__dict__), [dict(part.__dict__[name]) for name in _REGISTRIES]) for part in parts
        ]
        # Where a model's own code may write into what it finds: its buffers and attributes, not torch's dictionaries.
        self._writable: list[tuple[dict[str, Any], str, Any]] = []
        for part in parts:
            own, buffers = part.__dict__, part.__dict__["_buffers"]
            self._writable += [(buffers, name, buffer) for name, buffer in buffers.items() if buffer is not None]
            self._writable += [
                (own, name, value)
                for name, value in own.items()
                if name not in _FIELDS and isinstance(value, _WRITABLE) and not isinstance(value, nn.Parameter)
            ]
        self._hooks = [
            (part.__dict__[name], dict(part.__dict__[name]))
            for part in parts
            for name in _HOOKS
            if name in part.__dict__
        ]
        # A scripted module's buffers cannot be exchanged; their values are written back.
        self._scripted = [(buffer, buffer.detach().clone()) for part in scripted for buffer in part.buffers(False)]
        self._parameters = [
            (name, p, p.detach(), p.requires_grad, p.grad, _version(p)) for name, p in module.named_parameters()
        ]
        self._copies: dict[int, tuple[Tensor, int | None]] = {}

    def begin(self) -> None:
        """Install the state before, with copies of what may be written into."""
        self._reset()
        memo: dict[int, Any] = {}
        for own, name, value in self._writable:
            own[name] = self._copied(value, memo)
        for part, _ in self._flags:
            part.training = False
        for _, p, _, _, gradient, _ in self._parameters:
            if gradient is not None:
                p.grad = None
        copies = [*(tensor for tensor, _ in self._copies.values()), *(buffer for buffer, _ in self._scripted)]
        _SCRATCH.set([tensor for tensor in copies if tensor.layout is torch.strided])

    def restore(self) -> None:
        """Bring the module back to the state before.

        Warns:
            UserWarning: if a parameter was written in place: its value before is not known.
        """
        self._reset()
        for part, training in self._flags:
            part.training = training
        for hooks, before in self._hooks:
            if hooks != before:
                hooks.clear()
                hooks.update(before)
        written = []
        for name, p, data, requires_grad, gradient, version in self._parameters:
            if p.data_ptr() != data.data_ptr() or p.shape != data.shape or p.stride() != data.stride():
                p.data = data
            elif _version(p) != version:
                written.append(name)
            if p.requires_grad != requires_grad:
                with torch.inference_mode(p.is_inference()):
                    p.requires_grad_(requires_grad)
            if p.grad is not gradient:
                p.grad = gradient
        if written:
            warnings.warn(
                f"the model writes into its parameter {written[0]} in place when it runs, and keeps what it wrote; "
                "measure a copy of it (copy.deepcopy)",
                stacklevel=4,
            )

    def _reset(self) -> None:
        for part, attributes, registries in self._attributes:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, registry in zip(_REGISTRIES, registries, strict=True):
                part.__dict__[name].clear()
                part.__dict__[name].update(registry)
        for buffer, before in self._scripted:
            with torch.no_grad():
                buffer.detach_().copy_(before)

    def _copied(self, value: Any, memo: dict[int, Any]) -> Any:
        """A copy of a tensor, or of a container and those in it; other objects, and parameters, as they are."""
        if isinstance(value, nn.Parameter) or not isinstance(value, _WRITABLE):
            return value
        if id(value) in memo:
            return memo[id(value)]
        if isinstance(value, Tensor):
            memo[id(value)] = self._tensor(value)
        elif type(value) is tuple:
            memo[id(value)] = tuple(self._copied(item, memo) for item in value)
        elif isinstance(value, dict):
            memo[id(value)] = new = copy.copy(value)
            for key, item in value.items():
                new[key] = self._copied(item, memo)
        else:
            new = memo[id(value)] = copy.copy(value)
            if isinstance(new, list | deque):
                for index, item in enumerate(new):
                    if isinstance(item, _WRITABLE):
                        new[index] = self._copied(item, memo)
        return memo[id(value)]

    def _tensor(self, value: Tensor) -> Tensor:
        """A copy of ``value``, the one of the run before if that did not write into it."""
        copy_, version = self._copies.get(id(value), (None, None))
        uncounted = (
            value.ndim == 1 and value.is_floating_point()
        )  # batch normalisation writes its running statistics so
        if copy_ is None or version is None or _version(copy_) != version or uncounted:
            copy_ = value.detach().clone().requires_grad_(value.requires_grad)
            self._copies[id(value)] = copy_, _version(copy_)
        return copy_


class _RandomNumbers:
    """The states of torch's, numpy's and Python's global random numbers."""

    def __init__(self, module: nn.Module | None) -> None:
        device = next((p.device for p in module.parameters()), None) if module is not None else None
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._torch = torch.get_rng_state()
        self._torch_cuda = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
        self._numpy = numpy.random.get_state()
        self._python = random.getstate()

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._torch)
        if self._cuda is not None and self._torch_cuda is not None:
            torch.cuda.set_rng_state(self._torch_cuda, self._cuda)
        numpy.random.set_state(self._numpy)
        random.setstate(self._python)


def _version(tensor: Tensor) -> int | None:
    """How often ``tensor`` was written; None where torch does not count it."""
    return None if tensor.is_inference() else tensor._version


_REGISTRIES = ("_parameters", "_buffers", "_modules")
_FIELDS = frozenset(nn.Module().__dict__)
"""torch's own attributes of every module"""
_HOOKS = tuple(name for name in sorted(_FIELDS) if "_hooks" in name and isinstance(nn.Module().__dict__[name], dict))
_WRITABLE = (Tensor, list, dict, set, deque, tuple)


def outside_inference_mode(f: Callable[P, R]) -> Callable[P, R]:
    """``f`` as if it were called outside of `torch.inference_mode`, whose tensors no derivative can follow."""

    @functools.wraps(f)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return f(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return f(*args, **kwargs)

    return wrapped


def double_copy(model: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of ``model`` in double precision; the model itself is not touched. A plain function is its own copy."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).double()
    if isinstance(model, functools.partial):
        return functools.partial(double_copy(model.func), *model.args, **model.keywords)
    owner = getattr(model, "__self__", None)
    return getattr(copy.deepcopy(owner).double(), model.__name__) if isinstance(owner, nn.Module) else model
