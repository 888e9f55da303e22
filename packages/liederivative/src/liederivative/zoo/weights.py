"""Weights from local files, and a checksum of the weights a model ends up with.

Nothing is unpickled into live objects: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from lie.run import UserError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_CONTAINERS = ("state_dict", "model", "model_state_dict", "net")
"""keys under which training scripts keep the state beside epochs and optimisers"""


def load_checkpoint_file(path: str | Path, model: nn.Module, name: str | None = None) -> None:
    """Load the weights in ``path`` (.safetensors, else a PyTorch file) into ``model``, which errors call ``name``.

    PyTorch files may hold the state dict itself or hold it under a usual key; either kind of file may have the
    ``module.`` prefix of data-parallel training.

    Raises:
        UserError: if the file is missing, truncated or foreign, or a name or shape does not fit the model,
            which is then unchanged.
    """
    path = Path(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_state(path)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    _fit(path, state, model, name or type(model).__name__)


def read_torch_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file.

    Raises:
        UserError: if the file is missing, truncated, or holds anything but plain tensors by name.
    """
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}: the file does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a foreign file may fail in any way, and torch's words for it advise to trust it
        raise UserError(
            f"{path} is not a whole PyTorch file of plain tensors: it is truncated, foreign, or holds pickled objects, "
            "which are never loaded; save model.state_dict() with safetensors.torch.save_file"
        ) from None
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not _is_state(content):
        raise UserError(f"{path} holds no state dict: expected tensors by name, got {type(content).__name__}")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: the file does not exist")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file (truncated or of another kind): {error}") from None


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the model's state: same digest, same weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fit(path: Path, state: dict[str, Tensor], model: nn.Module, model_name: str) -> None:
    own = model.state_dict()
    # Files of PyTorch before 0.4.1 lack this counter of batch normalisation, which evaluation does not use.
    state = {n: t for n, t in own.items() if n.endswith("num_batches_tracked")} | state
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    problem = ""
    if missing or extra:
        problem = f"the file lacks {_some(missing)} and has unknown {_some(extra)}"
    for name in own.keys() & state.keys():
        if state[name].shape != own[name].shape:
            problem = f"expected {name} of shape {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        elif state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            problem = f"{name} holds NaN or infinity"
    if problem:
        raise UserError(
            f"the weights in {path} do not fit {model_name}: {problem}; give the model that was trained "
            "(and --num-classes, if its head is not the usual one)"
        )
    model.load_state_dict(state)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names else "nothing"
