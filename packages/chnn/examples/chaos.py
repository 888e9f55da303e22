"""Chaos of a double pendulum: Lyapunov exponents and a Poincare section by energy, and a long run that keeps energy.

    python examples/chaos.py

From rest at 0.5 rad the largest exponent is near 0 and falls as 1 / T; from 2.5 rad it is 1 to 3 a second.
"""

from __future__ import annotations

import torch
from chnn.analysis import conservation, coordinate, lyapunov, poincare
from chnn.systems import ChainPendulum


def main(horizon: float = 200.0) -> dict[str, float]:
    """The largest exponents (1/s), crossings of the section, and the energy drift of RATTLE."""
    system = ChainPendulum(links=2)
    angles = torch.tensor([[0.5, 0.5], [2.5, 2.5]], dtype=torch.float64)
    z0 = system.from_angles(torch.stack([angles, torch.zeros_like(angles)], dim=1))  # (2, 2, 2, 2)

    exponents = lyapunov(system, z0, horizon, generator=torch.Generator().manual_seed(0))
    for name, values, errors in zip(("calm", "chaotic"), exponents.exponents, exponents.error, strict=True):
        shown = ", ".join(f"{value:.3f} ± {error:.3f}" for value, error in zip(values, errors, strict=True))
        print(f"{name}: {shown} per second")
    print(f"they pair to {exponents.pairing.max():.0e}")

    crossings = poincare(system, z0, horizon, coordinate(system, "angle0"), direction=1)
    print(f"{len(crossings.of(0).times)} and {len(crossings.of(1).times)} crossings of the downward vertical")

    t = torch.linspace(0, horizon, 201, dtype=torch.float64)
    z = system.simulate(z0, t, method="rattle4", dt=2e-3)
    drift = conservation(system, z, t).energy_drift()
    print(f"RATTLE of order 4: largest relative energy error {drift.max():.0e}")
    return {
        "calm": float(exponents.exponents[0, 0]),
        "chaotic": float(exponents.exponents[1, 0]),
        "crossings": float(len(crossings.times)),
        "drift": float(drift.max()),
    }


if __name__ == "__main__":
    main()
