"""Checkpoints as safetensors: tensors in the file's body, the structure around them as JSON in its header.

Nothing is unpickled, so a checkpoint from a stranger can do no harm. A nested structure of dicts,
lists, tuples, numbers, strings and tensors (a ``state_dict`` of a module, an optimiser or a scheduler)
comes back exactly, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lie.run.errors import UserError
from lie.run.files import atomic_path

_TREE = "tree"


def save_checkpoint(path: str | Path, tree: Any) -> None:
    """Write a nested structure with tensors to ``path`` atomically (safetensors with a JSON header)."""
    tensors: dict[str, Tensor] = {}
    structure = _flatten(tree, tensors)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={_TREE: json.dumps(structure)})


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """The structure that `save_checkpoint` wrote to ``path``, tensors on ``device``.

    Raises:
        UserError: if the file is missing, truncated, no safetensors file, or was written by another program.
    """
    tensors, metadata = _read(path, device)
    if _TREE not in metadata:
        raise UserError(f"{path} is a safetensors file of another program: it has no 'tree' in its header")
    try:
        return _unflatten(json.loads(metadata[_TREE]), tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: its header does not fit its tensors ({error!r})") from None


def save_weights(path: str | Path, module: nn.Module, metadata: dict[str, str] | None = None) -> None:
    """Write the ``state_dict`` of ``module`` to ``path`` atomically as plain safetensors."""
    # Tied parameters share memory, which the format refuses: every entry gets storage of its own.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata or {})


def load_weights(path: str | Path, module: nn.Module) -> dict[str, str]:
    """Load plain safetensors weights into ``module``; returns the file's metadata.

    Raises:
        UserError: if the file is missing or unreadable, or a name or shape does not fit ``module``;
            ``module`` is then unchanged.
    """
    tensors, metadata = _read(path, "cpu")
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        parts = [
            f"{what} {names[:3]}{' ...' if len(names) > 3 else ''}"
            for what, names in (("lacks", missing), ("has unknown", extra))
            if names
        ]
        raise UserError(f"the weights in {path} do not fit {type(module).__name__}: the file {' and '.join(parts)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"the weights in {path} do not fit {type(module).__name__}: expected {name} of shape "
                f"{tuple(own[name].shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"the weights in {path} hold NaN or infinity in {name}; the training diverged")
    module.load_state_dict(tensors)
    return metadata


def _read(path: str | Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: the file does not exist")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file (truncated or of another kind): {error}") from None


def _flatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``node``, every container and tensor tagged; tensors go to ``tensors`` under a number."""
    if isinstance(node, Tensor):
        name = str(len(tensors))
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(node, dict):
        # Pairs, because JSON keys are strings and an optimiser's state has integer keys.
        return {"dict": [[key, _flatten(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_flatten(value, tensors) for value in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"expected tensors, dicts, lists, tuples, numbers and strings in a checkpoint, got {type(node)}")


def _unflatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in value}
    items = [_unflatten(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items
