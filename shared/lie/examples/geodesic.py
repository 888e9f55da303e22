"""A geodesic on SE(3), a screw, beside the straight line with the rotation interpolated on its own.

python examples/geodesic.py geodesic.svg
"""

from __future__ import annotations

import argparse
import importlib.util

import torch
from lie.groups import SE3, SO3

G = SE3()
START = G.exp(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64))
END = G.exp(torch.tensor([0.3, 0.4, 2.2, -1.0, 2.0, 2.0], dtype=torch.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", help="picture to write: .svg, .png or .pdf")
    arguments = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: python -m pip install matplotlib")
    s = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)
    screw = G.interpolate(START, END, s)
    turn = SO3().interpolate(START[:3, :3], END[:3, :3], s)
    line = START[:3, 3] + s.unsqueeze(-1) * (END[:3, 3] - START[:3, 3])
    print(f"length of the screw's path {float(screw[:, :3, 3].diff(dim=0).norm(dim=-1).sum()):.3f}, "
          f"of the line {float(line.diff(dim=0).norm(dim=-1).sum()):.3f}")  # fmt: skip

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    for centres, frames, name, style in (
        (screw[:, :3, 3], screw[:, :3, :3], "geodesic: a screw", "-"),
        (line, turn, "line and turn apart", "--"),
    ):
        axes.plot(*centres.T.tolist(), style, color="black", linewidth=1, label=name)
        for axis, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            axes.quiver(*centres.T.tolist(), *(0.35 * frames[:, :, axis]).T.tolist(), color=colour, linewidth=1)
    axes.set(xlabel="x", ylabel="y", zlabel="z")
    axes.legend(frameon=False)
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
