"""What a training run is: every choice that its results depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from lie.run import UserError, unknown_name

from chnn.models import CHNN, CLNN, HNN, DynamicsModel
from chnn.systems import System, system_by_name

MODELS = ("chnn", "clnn", "hnn")
"""Names that ``--model`` takes."""


@dataclass(frozen=True)
class TrainConfig:
    """The choices of one training run, as stored in its ``config.json``."""

    system: str
    parameters: dict[str, Any]
    model: str
    trajectories: int
    test_trajectories: int
    chunk: int
    dt: float
    horizon: float
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    hidden: int
    depth: int
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise unknown_name("model", self.model, MODELS)
        for name in ("trajectories", "test_trajectories", "steps", "batch_size", "hidden", "depth"):
            if getattr(self, name) < 1:
                raise UserError(f"expected --{name.replace('_', '-')} of at least 1, got {getattr(self, name)}")
        for name in ("dt", "horizon", "learning_rate"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise UserError(f"expected a positive --{name.replace('_', '-')}, got {getattr(self, name)}")
        if self.weight_decay < 0.0:
            raise UserError(f"expected a --weight-decay of at least 0, got {self.weight_decay}")
        if not 2 <= self.chunk <= self.horizon / self.dt + 1:
            raise UserError(f"expected a --chunk between 2 and the {int(self.horizon / self.dt) + 1} output times of a "
                            f"trajectory, got {self.chunk}")  # fmt: skip
        if self.dtype not in ("float32", "float64"):
            raise UserError(f"expected --dtype float32 or float64, got {self.dtype!r}")
        if self.seed < 0:
            raise UserError(f"expected a --seed of at least 0, got {self.seed}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of training."""
        return torch.float32 if self.dtype == "float32" else torch.float64

    def times(self) -> torch.Tensor:
        """Output times of a trajectory, from 0 to the horizon by dt, float64."""
        return torch.arange(round(self.horizon / self.dt) + 1, dtype=torch.float64) * self.dt

    @staticmethod
    def from_json(value: Any) -> TrainConfig:
        """The configuration in the ``config`` entry of a run's ``config.json``."""
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(TrainConfig)}:
            raise UserError("config.json is not of a chnn training run; give the folder of one")
        return TrainConfig(**value)


def build_system(config: TrainConfig) -> System:
    """The system of a run."""
    return system_by_name(config.system, **config.parameters)


def build_model(config: TrainConfig, system: System) -> DynamicsModel:
    """The model of a run, with weights drawn from its seed; the state of torch's own generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model in ("chnn", "clnn"):
            model = {"chnn": CHNN, "clnn": CLNN}[config.model](
                system.description, hidden=config.hidden, depth=config.depth
            )
        else:
            if not hasattr(system, "to_angles"):
                raise UserError(f"{system.name} has no angles for --model hnn; use --model chnn or clnn")
            model = HNN(system, hidden=config.hidden, depth=config.depth)  # type: ignore[arg-type]
    return model.to(config.torch_dtype)
