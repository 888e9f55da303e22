"""Training chunks and test trajectories, simulated from the true system."""

from __future__ import annotations

import torch
from jaxtyping import Float
from lie.run import seeded_generator
from torch import Tensor
from tqdm import tqdm

from chnn.systems import System
from chnn.training.config import TrainConfig

_TEST_SEED = 1_000_003  # added to the run's seed: initial states for testing are others than for training


def simulate_with_progress(
    system: System, z0: Tensor, t: Tensor, label: str, rtol: float = 1e-7
) -> Float[Tensor, "B T 2 n d"]:
    """`System.simulate` with a progress bar."""
    with tqdm(total=100, desc=label, unit="%", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}") as bar:

        def advance(fraction: float) -> None:
            bar.update(round(100 * fraction) - bar.n)

        z = system.simulate(z0, t, rtol, progress=advance)
        advance(1.0)
    return z


def training_chunks(config: TrainConfig, system: System) -> Float[Tensor, "S chunk 2 n d"]:
    """One random chunk of consecutive states from each simulated training trajectory (as in the CHNN paper)."""
    generator = seeded_generator(config.seed)
    z0 = system.sample(config.trajectories, generator=generator)
    z = simulate_with_progress(system, z0, config.times(), "simulate training data")
    start = torch.randint(z.shape[1] - config.chunk + 1, (len(z), 1), generator=generator)
    index = start + torch.arange(config.chunk)  # (S, chunk)
    return z[torch.arange(len(z)).unsqueeze(1), index].to(config.torch_dtype)


def test_trajectories(config: TrainConfig, system: System) -> Float[Tensor, "B T 2 n d"]:
    """True trajectories from held-out initial states, float64."""
    z0 = system.sample(config.test_trajectories, generator=seeded_generator(config.seed + _TEST_SEED))
    return simulate_with_progress(system, z0, config.times(), "simulate test data", rtol=1e-9)
