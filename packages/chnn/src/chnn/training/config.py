"""What a training run is: each choice that its results depend on, once: flags of ``chnn train`` and ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from lie.run import Count, LearningRate, Positive, Seed, UserError, WeightDecay, unknown_name
from msgspec import Meta

from chnn.mechanics.conservative import refuse_own_dissipation
from chnn.models import CHNN, CLNN, HNN, DynamicsModel
from chnn.systems import System
from chnn.systems.names import system_from
from chnn.systems.times import check_times

MODELS = ("chnn", "clnn", "hnn")
"""Names that ``--model`` takes."""
_MAX_BYTES = 2**34  # of the states of all training or test trajectories, which are simulated together
_MAX_PARAMETERS = 10**8  # 400 MB, and three times that with the moments of AdamW


@dataclass(frozen=True, kw_only=True)
class TrainChoices:
    """The choices of a training run that are flags as they are."""

    model: str = "chnn"
    """chnn: constrained Hamiltonian; clnn: constrained Lagrangian; hnn: Hamiltonian in angles."""
    trajectories: Count = 800
    """Training trajectories; one random chunk of each is used (the paper's 800)."""
    test_trajectories: Count = 50
    """Held-out trajectories for evaluation."""
    chunk: Annotated[int, Meta(ge=2, le=1_000_000)] = 5
    """States in a training chunk (the paper's 5)."""
    steps: Annotated[int, Meta(ge=1, le=10**9)] = 3000
    """Training steps."""
    batch_size: Count = 200
    """Chunks a step (the paper's 200)."""
    learning_rate: LearningRate = 3e-3
    """Peak learning rate of AdamW (the paper's); it falls to zero along a cosine."""
    weight_decay: WeightDecay = 1e-4
    """Weight decay of AdamW (the paper's)."""
    hidden: Annotated[int, Meta(ge=1, le=10_000)] = 128
    """Width of the networks (the paper's is 256)."""
    depth: Annotated[int, Meta(ge=1, le=1000)] = 3
    """Hidden layers of the networks."""
    dtype: Literal["float32", "float64"] = "float32"
    """Dtype of training: float32 or float64. Truth and evaluation are always float64."""
    seed: Seed = 0
    """Seed of data, weights and order."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainChoices):
    """The choices of one training run, as stored in its ``config.json``."""

    system: str
    """Name of the system."""
    parameters: dict[str, Any]
    """Arguments of the system's class."""
    dt: Positive
    """Spacing of the states, s."""
    horizon: Positive
    """Length of the trajectories, s."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise unknown_name("model", self.model, MODELS)
        count = check_times(self.dt, self.horizon)
        if not 2 <= self.chunk <= count:
            raise UserError(
                f"expected a --chunk between 2 and the {count} output times of a trajectory, got {self.chunk}"
            )
        if self.hidden**2 * self.depth > _MAX_PARAMETERS:
            raise UserError(
                f"expected networks of at most {_MAX_PARAMETERS:.0e} parameters, got --hidden {self.hidden} "
                f"and --depth {self.depth}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of training."""
        return torch.float32 if self.dtype == "float32" else torch.float64

    def times(self) -> torch.Tensor:
        """Output times of a trajectory, from 0 to the horizon by dt, float64."""
        return torch.arange(check_times(self.dt, self.horizon), dtype=torch.float64) * self.dt


def build_system(config: TrainConfig) -> System:
    """The system of a run.

    Raises:
        UserError: for parameters that it cannot be made of, and if the trajectories would take more than 16 GiB, before
            they are simulated.
    """
    system = system_from(config.system, config.parameters)
    count = check_times(config.dt, config.horizon)
    for name in ("trajectories", "test_trajectories"):
        size = getattr(config, name) * count * 2 * system.num_points * system.spatial_dim * 8
        if size > _MAX_BYTES:
            raise UserError(
                f"{getattr(config, name)} trajectories of {count} times take {size / 2**30:.3g} GiB, at most 16 "
                f"are possible; give fewer --{name.replace('_', '-')}, a larger --dt or a shorter --horizon"
            )
    return system


def build_model(config: TrainConfig, system: System) -> DynamicsModel:
    """The model of a run, with weights drawn from its seed; the state of torch's own generator is kept."""
    refuse_own_dissipation(system, config.model.upper())  # also what a subclass computes, of which CHNN sees nothing
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
