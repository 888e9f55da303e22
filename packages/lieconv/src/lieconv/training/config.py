"""What a run is: every choice that its results depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from lie.groups import LieGroup, by_name
from lie.run import UserError, seeded_generator

from lieconv.models import LieResNet


@dataclass(frozen=True)
class RunConfig:
    """The choices of one training run, as stored in its ``config.json``."""

    data: str
    group: str
    lift: str
    num_samples: int
    channels: int
    num_layers: int
    num_neighbors: int
    bottleneck: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_samples", "channels", "num_layers", "num_neighbors", "bottleneck", "epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"expected --{name.replace('_', '-')} of at least 1, got {value}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise UserError(f"expected a positive --learning-rate, got {self.learning_rate}")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise UserError(f"expected a --weight-decay of at least 0, got {self.weight_decay}")
        if self.seed < 0:
            raise UserError(f"expected a --seed of at least 0, got {self.seed}")
        if self.lift not in ("exact", "sampled"):
            raise UserError(f"expected --lift exact or sampled, got {self.lift!r}")
        if self.lift == "exact" and self.num_samples != 1:
            raise UserError(
                f"the exact lift has one element a point, got --num-samples {self.num_samples}; use --lift sampled"
            )

    @staticmethod
    def from_json(value: Any) -> RunConfig:
        """The configuration in the ``config`` entry of a run's ``config.json``."""
        names = {field.name for field in fields(RunConfig)}
        if not isinstance(value, dict) or set(value) != names:
            raise UserError("config.json is not of a lieconv training run; give the folder of one")
        return RunConfig(**value)


def resolve_group(name: str, d: int) -> LieGroup:
    """The group called ``name``, which must act on points of dimension d; "trivial" and "t" take d."""
    group = by_name(name, n=d)
    if group.point_dim != d:
        raise UserError(f"group {name!r} acts on points of dimension {group.point_dim}, the data have dimension {d}")
    return group


def build_model(config: RunConfig, d: int, in_channels: int, num_classes: int) -> LieResNet:
    """The network of a run, with weights drawn from its seed; the state of torch's own generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LieResNet(
            in_channels,
            num_classes,
            group=resolve_group(config.group, d),
            lift="exact" if config.lift == "exact" else "sampled",
            num_samples=config.num_samples,
            channels=config.channels,
            num_layers=config.num_layers,
            num_neighbors=config.num_neighbors,
            bottleneck=config.bottleneck,
            generator=seeded_generator(config.seed),
        )
