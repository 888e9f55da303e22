"""Energy of a pendulum by integrator, at the same cost: what drifts, and what only swings.

    python examples/pendulum_energy.py energy.svg

Every method may evaluate the field about as often a unit of time (20 times); the picture shows the relative error of
the energy. Methods that are symplectic stay at their level for ever, classical ones drift in proportion to time.
"""

from __future__ import annotations

import argparse
import importlib.util

import torch
from lie.integrators import odeint

# method, field evaluations of a step
METHODS = {"rk4": 4, "leapfrog": 1, "yoshida4": 3, "yoshida8": 15, "implicit_midpoint": 5}
EVALUATIONS = 20  # in a unit of time


def field(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    q, p = z.chunk(2, -1)
    return torch.cat([p, -q.sin()], -1)


def energy(z: torch.Tensor) -> torch.Tensor:
    q, p = z.unbind(-1)
    return 0.5 * p**2 + 1.0 - q.cos()


def errors(end: float, outputs: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    t = torch.linspace(0.0, end, outputs, dtype=torch.float64)
    z0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    found = {}
    for method, cost in METHODS.items():
        z = odeint(field, z0, t, method=method, options={"step_size": cost / EVALUATIONS})
        found[method] = ((energy(z) - energy(z0)).abs() / energy(z0)).squeeze(-1)
    return t, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", help="picture to write: .svg, .png or .pdf")
    parser.add_argument("--end", type=float, default=2000.0, help="time to integrate to (default: %(default)s)")
    arguments = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: python -m pip install matplotlib")
    t, found = errors(arguments.end, 201)

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 3.6), layout="constrained")
    for method, error in found.items():
        axes.loglog(t[1:], error[1:].cummax(0).values, label=method.replace("_", " "))
        print(f"{method:18s} largest relative error of the energy {float(error.max()):.1e}")
    axes.set(xlabel="time", ylabel="largest relative energy error so far")
    axes.legend(frameon=False, ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
