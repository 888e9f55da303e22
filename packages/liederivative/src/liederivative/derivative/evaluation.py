"""A model held in evaluation mode, and left exactly as it was."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
def evaluation_mode(model: Callable[..., Any]) -> Iterator[None]:
    """Hold every submodule of ``model`` in evaluation mode; each training flag and attribute comes back, also after
    an error.

    Dropout and stochastic depth are then off, and batch normalisation uses and keeps its running statistics.
    The flags are set directly: ``eval`` and ``train`` may be overridden with lasting effects. A model hidden
    in a plain function cannot be seen; its author calls ``eval`` on it.
    """
    module = module_of(model)
    parts = list(module.modules()) if module is not None else []
    flags = [(part, part.training) for part in parts]
    parts = [part for part in parts if not isinstance(part, torch.jit.ScriptModule)]  # these keep nothing of a run
    fast = torch.backends.mha.get_fastpath_enabled()
    # What a model keeps of its last run (an attention map, a table of positions) would keep our tangents: its
    # attributes are put back, those in torch's own dictionaries too.
    kept = [(part, dict(part.__dict__), [dict(part.__dict__[name]) for name in _REGISTRIES]) for part in parts]
    try:
        for part, _ in flags:
            part.training = False
        torch.backends.mha.set_fastpath_enabled(False)  # torch's encoder layer as one kernel, which has no derivative
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, training in flags:
            part.training = training
        for part, attributes, registries in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, registry in zip(_REGISTRIES, registries, strict=True):
                part.__dict__[name].clear()
                part.__dict__[name].update(registry)


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def double_copy(model: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of ``model`` in double precision; the model itself is not touched. A plain function is its own copy."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).double()
    if isinstance(model, functools.partial):
        return functools.partial(double_copy(model.func), *model.args, **model.keywords)
    owner = getattr(model, "__self__", None)
    return getattr(copy.deepcopy(owner).double(), model.__name__) if isinstance(owner, nn.Module) else model
