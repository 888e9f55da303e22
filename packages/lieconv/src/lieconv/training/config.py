"""What a run is: each choice that its results depend on, once: flags of ``lieconv train`` and ``config.json``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from lie.groups import LieGroup, by_name
from lie.run import Count, LearningRate, Seed, UserError, WeightDecay, seeded_generator
from msgspec import Meta

from lieconv.data import MAX_CLASSES
from lieconv.models import LieResNet

_MAX_PARAMETERS = 10**8  # 400 MB, and three times that with the moments of AdamW


@dataclass(frozen=True)
class RunConfig:
    """The choices of one training run, as stored in its ``config.json``."""

    data: str = "digits"
    """Data set: digits, or a file FILE.npz with coords (S, N, d), values (S, N, C), labels (S,), mask (S, N)."""
    group: str = "se2"
    """Group: trivial, t2, so2, se2, rxso2, rxsq, sim2 in the plane; trivial, t3, so3, se3, sim3 in space."""
    lift: Literal["exact", "sampled"] = "exact"
    """exact: equivariant up to rounding; sampled: the paper's random lifts, equivariant in expectation."""
    num_samples: Annotated[int, Meta(ge=1, le=100)] = 1
    """Group elements a point, for --lift sampled."""
    channels: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Width of the network."""
    num_layers: Annotated[int, Meta(ge=1, le=200)] = 4
    """Residual blocks."""
    num_neighbors: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Neighbours a point, itself included; by default 20, or all points of a set that has fewer."""
    bottleneck: Annotated[int, Meta(ge=1, le=4096)] = 2
    """Divisor of the width inside the blocks."""
    epochs: Count = 15
    """Passes over the training sets."""
    batch_size: Count = 64
    """Point sets a step."""
    learning_rate: LearningRate = 3e-3
    """Peak learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: WeightDecay = 1e-4
    """Weight decay of AdamW."""
    seed: Seed = 0
    """Seed of weights, order and sampled lifts."""

    def __post_init__(self) -> None:
        if 1 <= self.channels < self.bottleneck:
            raise UserError(f"expected --bottleneck of at most the {self.channels} --channels, got {self.bottleneck}")
        if self.lift == "exact" and self.num_samples != 1:
            raise UserError(
                f"the exact lift has one element a point, got --num-samples {self.num_samples}; use --lift sampled"
            )


@dataclass(frozen=True)
class DataFacts:
    """What a network and a check need to know of the data of a run, as stored in its ``config.json``."""

    dimension: Literal[2, 3]
    """Of the points."""
    features: Count
    """Of a point."""
    classes: Annotated[int, Meta(ge=2, le=MAX_CLASSES)]
    """Outputs of the network."""
    train_sha256: str
    """Digest of the training sets, `PointSets.digest`."""
    test_sha256: str
    """Digest of the test sets."""


def resolve_group(name: str, d: int) -> LieGroup:
    """The group called ``name``, which must act on points of dimension d; "trivial" and "t" take d."""
    group = by_name(name, n=d)
    if group.point_dim != d:
        raise UserError(f"group {name!r} acts on points of dimension {group.point_dim}, the data have dimension {d}")
    return group


def build_model(config: RunConfig, data: DataFacts) -> LieResNet:
    """The network of a run, with weights drawn from its seed; the state of torch's own generator is kept.

    Raises:
        UserError: for choices that do not fit each other, and for a network of more than 10^8 parameters, before
            memory is taken for them.
    """
    # The number of parameters is a polynomial in the width, of degree 2 with no negative coefficient, and linear in
    # the number of layers: from that of a small network follows a bound.
    small = replace(config, channels=min(config.channels, 64), num_layers=min(config.num_layers, 2))
    with torch.random.fork_rng(devices=[]):
        count = sum(parameter.numel() for parameter in _network(small, data).parameters())
        bound = count * (config.channels / small.channels) ** 2 * config.num_layers / small.num_layers
        if bound > _MAX_PARAMETERS:
            raise UserError(
                f"expected a network of at most {_MAX_PARAMETERS:.0e} parameters, got about {bound:.0e}; give fewer "
                "--channels or --num-layers, or a larger --bottleneck"
            )
        torch.manual_seed(config.seed)
        return _network(config, data)


@contextmanager
def _one_line() -> Iterator[None]:
    """What the network does not take of the choices is for the user to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def _network(config: RunConfig, data: DataFacts) -> LieResNet:
    assert config.num_neighbors is not None  # set where the data were loaded
    group = resolve_group(config.group, data.dimension)
    with _one_line():
        return LieResNet(
            data.features,
            data.classes,
            group=group,
            lift="exact" if config.lift == "exact" else "sampled",
            num_samples=config.num_samples,
            channels=config.channels,
            num_layers=config.num_layers,
            num_neighbors=config.num_neighbors,
            bottleneck=config.bottleneck,
            generator=seeded_generator(config.seed),
        )
