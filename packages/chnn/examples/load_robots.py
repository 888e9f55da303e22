"""Load a robot from URDF and one from MJCF, set their joints, simulate them, and draw one.

Run: python load_robots.py [picture.gif]; it prints what each robot is and how well its laws hold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from chnn.animation import animate
from chnn.systems import System

ROBOTS = Path(__file__).parent / "robots"


def main(picture: str | None = None, horizon: float = 2.0) -> dict[str, float]:
    """Returns the balance of energy of the arm and the drift of the free robot's momentum."""
    arm = System.from_file(ROBOTS / "arm.urdf", ignore=("limits",))
    hopper = System.from_file(ROBOTS / "hopper.xml", gravity=0.0)
    for robot in (arm, hopper):
        print(f"{robot.name}: {len(robot.description.bodies)} bodies, coordinates {', '.join(robot.angle_names)}")
    t = torch.linspace(0.0, horizon, 41, dtype=torch.float64)

    start = arm.state({"elbow": 0.5}, {"shoulder": 4.0})
    z = arm.simulate(start, t)
    angles, rates = arm.to_angles(z).unbind(-2)  # (1, T, 2) each
    spent = torch.trapezoid(0.05 * rates[..., arm.angle_names.index("shoulder")] ** 2, t)
    balance = (arm.energy(z[:, -1]) - arm.energy(z[:, 0]) + spent).abs().item()
    print(f"elbow after {horizon:g} s: {angles[0, -1, arm.angle_names.index('elbow')]:.4f} rad")
    print(f"energy lost less work of the damper: {balance:.1e} J")

    start = hopper.state({"root": 0.6}, {"hip turn x": 3.0, "base turn z": 1.0})
    z = hopper.simulate(start, t)
    spin = hopper.angular_momentum(z)
    drift = ((spin - spin[:, :1]).abs().max() / spin.abs().max()).item()
    print(f"relative drift of the angular momentum: {drift:.1e}")
    if picture is not None:
        animate(hopper, z[0], t, picture)
    return {"balance": balance, "drift": drift}


if __name__ == "__main__":
    main(*sys.argv[1:])
