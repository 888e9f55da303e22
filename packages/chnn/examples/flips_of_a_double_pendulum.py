"""How many double pendulums swing over the top? Thousands of trajectories on disk, read back a file at a time.

    python examples/flips_of_a_double_pendulum.py runs/flips

The outer bob stands upright over the inner one at an energy of at least 2 m g l above rest (19.62 J here), so no
pendulum with less energy may ever flip; of those with more, four in ten do within 3 s. A run that is stopped goes on
when it is started again; ``flip.html`` shows the pendulum with the most energy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from chnn.animation import animate
from chnn.storage import Settings, load_run, simulate_run


def main(out: str | Path, trajectories: int = 2000) -> tuple[int, int, float]:
    """Flips below and above the threshold, and the share of flips among those above it."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings("chain-pendulum", {"links": 2}, trajectories, dt=0.03, horizon=3.0, rtol=1e-9, shard=256)
    simulate_run(settings, out)
    run = load_run(out)
    energies, flips = [], []
    for z in run.shards():  # (B, T, 2, n, d), at most 256 of them in memory
        energies.append(run.system.energy_scale(z[:, 0]))
        angle = run.system.to_angles(z)[:, :, 0, 1]  # (B, T), of the outer rod, jumping by a full turn at the top
        flips.append((angle.diff(dim=1).abs() > torch.pi).any(1))
    energy, flipped = torch.cat(energies), torch.cat(flips)
    above = energy > 2.0 * 9.81
    most = int(energy.argmax())
    animate(run.system, run[most], run.t, out / "flip.html")
    return int(flipped[~above].sum()), int(flipped[above].sum()), float(flipped[above].double().mean())


if __name__ == "__main__":
    below, over, share = main(sys.argv[1] if len(sys.argv) > 1 else "runs/flips")
    print(f"{below} flips below 19.62 J, {over} above, {100 * share:.0f} % of those that could")
