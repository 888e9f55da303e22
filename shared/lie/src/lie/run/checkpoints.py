"""Checkpoints as safetensors: tensors in the file's body, the structure around them as JSON in its header.

Nothing is unpickled, so a checkpoint from a stranger can do no harm. A nested structure of dicts,
lists, tuples, numbers, strings and tensors (a ``state_dict`` of a module, an optimiser or a scheduler)
comes back exactly, bit for bit. A checksum of all of it stands in the header: a damaged file is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lie.run.errors import UserError
from lie.run.files import atomic_path, regular_file

# One entry of the header each, as safetensors writes several in no fixed order: the same run gives the same bytes.
_TREE = "tree"
_FACTS = "lie"


def save_checkpoint(path: str | Path, tree: Any) -> None:
    """Write a nested structure with tensors to ``path`` atomically (safetensors with a JSON header).

    Raises:
        WriteError: if the disk is full or the like; what stood at ``path`` is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_flatten(tree, tensors))
    header = json.dumps({"structure": structure, "sha256": _checksum(structure, tensors)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={_TREE: header}))


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """The structure that `save_checkpoint` wrote to ``path``, tensors on ``device``.

    Raises:
        UserError: if the file is missing, truncated, damaged, no safetensors file, or was written by another program.
    """
    tensors, metadata = _read(path)
    if _TREE not in metadata:
        raise UserError(f"{path} is a safetensors file of another program: it has no 'tree' in its header")
    try:
        header = json.loads(metadata[_TREE])
        structure, checksum = header["structure"], header["sha256"]
        if checksum != _checksum(structure, tensors):
            raise ValueError("the checksum differs")
        return _unflatten(json.loads(structure), {name: tensor.to(device) for name, tensor in tensors.items()})
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: header and tensors do not agree ({error}); train again, or restore the file"[:300]
        ) from None


def save_weights(path: str | Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the ``state_dict`` of ``module`` to ``path`` atomically as plain safetensors, with a checksum.

    Raises:
        WriteError: if the disk is full or the like; what stood at ``path`` is unchanged.
    """
    # Tied parameters share memory, which the format refuses: every entry gets storage of its own.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    facts = json.dumps(dict(metadata or {}), sort_keys=True)
    header = json.dumps({"facts": facts, "sha256": _checksum(facts, state)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, metadata={_FACTS: header}))


def load_weights(path: str | Path, module: nn.Module) -> dict[str, str]:
    """Load plain safetensors weights into ``module``; returns the metadata that `save_weights` was given.

    Raises:
        UserError: if the file is missing, unreadable or damaged, or a name, shape or dtype does not fit ``module``;
            ``module`` is then unchanged. A file of another program has no checksum to verify.
    """
    tensors, metadata = _read(path)
    if _FACTS in metadata:
        try:
            header = json.loads(metadata[_FACTS])
            facts = json.loads(header["facts"])
            if header["sha256"] != _checksum(header["facts"], tensors) or not isinstance(facts, dict):
                raise ValueError("the checksum differs")
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); train again, or restore the file"[:300]) from None
        metadata = facts
    check_state(module, tensors, str(path))
    module.load_state_dict(tensors)
    return metadata


def check_state(module: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Verify that ``state`` has the names, shapes and dtypes of the ``state_dict`` of ``module``, and finite numbers.

    Raises:
        UserError: names ``where`` and what does not fit.
    """
    own, kind = module.state_dict(), type(module).__name__
    missing, extra = sorted(own.keys() - state.keys()), sorted(map(str, state.keys() - own.keys()))
    if missing or extra:
        parts = [
            f"{what} {names[:3]}{' ...' if len(names) > 3 else ''}"
            for what, names in (("lacks", missing), ("has unknown", extra))
            if names
        ]
        raise UserError(f"the weights in {where} do not fit {kind}: the file {' and '.join(parts)}")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            shape = tuple(own[name].shape)
            raise UserError(f"the weights in {where} do not fit {kind}: expected {name} of shape {shape}, got {got}")
        # A cast from another floating point type is harmless; from complex numbers or integers it is not.
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex() != own[name].is_complex():
            raise UserError(
                f"the weights in {where} do not fit {kind}: expected {name} of {own[name].dtype}, got {tensor.dtype}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"the weights in {where} hold NaN or infinity in {name}; the training diverged")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file, on the CPU."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: the file does not exist")
    regular_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a whole safetensors file (truncated or of another kind): {reason}") from None


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
        if isinstance(node, list):
            raise ValueError("a list without its kind")
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in value}
    if kind not in ("list", "tuple"):
        raise ValueError(f"an unknown kind {kind!r}")
    items = [_unflatten(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items
