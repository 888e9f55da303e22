"""Draw the pictures of the documentation's first page.

    python docs/pictures/draw.py [NAME ...] [--out FOLDER]

Each function below draws the picture of its name, into this folder or FOLDER. Nothing is trained or downloaded. All
pictures together take a minute on two cores.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

if TYPE_CHECKING:
    from lieconv.geometry.neighbours import Neighbourhoods

matplotlib.use("agg")
from matplotlib import pyplot as plt


def rotation() -> Figure:
    """Change of an untrained network's output as its points are rotated, for three groups."""
    from lie.groups import SE2, SO2, T
    from lieconv import LieResNet

    torch.manual_seed(0)
    coords, values = torch.randn(8, 50, 2), torch.randn(8, 50, 1)
    mask = torch.ones(8, 50, dtype=torch.bool)
    degrees = torch.linspace(0.0, 360.0, 73)
    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    for label, group in (("T(2)", T(2)), ("SO(2)", SO2()), ("SE(2)", SE2())):
        net = LieResNet(1, 10, group=group, channels=32, num_layers=2, num_neighbors=16).eval()
        with torch.no_grad():
            output = net(coords, values, mask)
            rotated = [net(_rotate(coords, math.radians(d)), values, mask) for d in degrees.tolist()]
        change = torch.stack([(y - output).norm() / output.norm() for y in rotated])
        axes.semilogy(degrees, change.clamp_min(1e-9), label=label)
    axes.set(xlabel="rotation of the points, degrees", ylabel="relative change of the output")
    axes.set_xticks(range(0, 361, 90))
    axes.legend(title="equivariant to", frameon=False, loc="center right")
    return figure


def _rotate(x: Tensor, angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return x @ torch.tensor([[c, s], [-s, c]], dtype=x.dtype)


def motions() -> Figure:
    """A photograph and its derivatives along three generators."""
    from liederivative import lie_derivative

    image = _photographs(192)[3:4]  # the cat
    generators = ["translate_x", "rotate", "scale"]
    # The Lie derivative of the identity to an invariant output is the motion of the image itself.
    tangents = [lie_derivative(lambda x: x, image, name, output="invariant") for name in generators]
    figure, panels = plt.subplots(1, 4, figsize=(9.6, 2.7), layout="constrained")
    panels[0].imshow(image[0].permute(1, 2, 0))
    panels[0].set_title("photograph", fontsize=10)
    for panel, name, tangent in zip(panels[1:], generators, tangents, strict=True):
        rate = tangent.reshape(image.shape)[0].mean(0)
        limit = float(rate.abs().quantile(0.98))
        panel.imshow(rate, cmap="RdBu", vmin=-limit, vmax=limit)
        panel.set_title(f"its rate of change under {name}", fontsize=10)
    for panel in panels:
        panel.axis("off")
    return figure


def _photographs(size: int) -> Tensor:
    """The sample photographs in [0, 1], centre-cropped to squares, (8, 3, size, size)."""
    from liederivative.images import sample_photographs
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    images = [pil_to_tensor(photograph.image) for photograph in sample_photographs()]
    squares = [resize(center_crop(image, [min(image.shape[1:])] * 2), [size, size]) for image in images]
    return torch.stack(squares) / 255.0


def layers() -> Figure:
    """The layers in which a ResNet-18 with random weights loses equivariance to translations."""
    import timm
    from liederivative import decompose

    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    parts = decompose(model, _photographs(128)[:2], "translate_x")
    kinds = {name: type(model.get_submodule(name)).__name__ for name in parts.terms if name}
    colours = {"Conv2d": "tab:blue", "ReLU": "tab:orange", "MaxPool2d": "tab:green"}
    sizes = {name: float(term.abs().mean()) for name, term in parts.terms.items()}
    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    names = [name for name in sizes if kinds.get(name) in colours]
    axes.bar(range(len(names)), [sizes[name] for name in names], color=[colours[kinds[name]] for name in names])
    for kind, colour in colours.items():
        axes.bar([0], [0], color=colour, label=kind)
    axes.set(xlabel="layer, from input to output", ylabel="mean size of the layer's term")
    axes.legend(frameon=False)
    return figure


def pendulum() -> Figure:
    """Three seconds of a triple pendulum: the path of its last bob, and its rods."""
    from chnn.systems import ChainPendulum

    system = ChainPendulum(links=3)
    z0 = system.sample(1, generator=torch.Generator().manual_seed(4))
    t = torch.linspace(0.0, 3.0, 601)
    z = system.simulate(z0, t)[0, :, 0]  # positions (T, 3, 2)
    figure, axes = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
    _coloured_path(axes, z[:, -1], t)
    for i in range(0, 601, 100):
        rods = torch.cat([torch.zeros(1, 2), z[i]])
        axes.plot(*rods.T.tolist(), "o-", color="0.35", alpha=0.25 + 0.75 * i / 600, linewidth=1, markersize=3)
    axes.set(aspect="equal", xlabel="x in m", ylabel="y in m")
    return figure


def gyroscope() -> Figure:
    """The path of a gyroscope's axis on the sphere: precession with nutation."""
    from chnn.systems import Gyroscope

    system = Gyroscope()
    z0 = system.sample(1, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.0, 4.0, 801)
    centre = system.simulate(z0, t)[0, :, 0, 0]  # (T, 3)
    figure = plt.figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    axes.plot(*centre.T.tolist(), linewidth=1.2)
    axes.plot([0], [0], [0], "o", color="0.3", markersize=3)
    axes.set(aspect="equal", xlabel="x in m", ylabel="y in m", zlabel="z in m")
    axes.locator_params(nbins=4)
    return figure


def magnets() -> Figure:
    """The path of a pendulum over two magnets, seen from above."""
    from chnn.systems import MagnetPendulum

    system = MagnetPendulum()
    z0 = system.sample(1, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(0.0, 10.0, 2001)
    bob = system.simulate(z0, t)[0, :, 0, 0, :2]
    figure, axes = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
    _coloured_path(axes, bob, t)
    axes.set(aspect="equal", xlabel="x in m", ylabel="y in m")
    return figure


def _coloured_path(axes: Axes, path: Tensor, t: Tensor) -> None:
    """Draw ``path`` (T, 2) in the colour of its time."""
    segments = torch.stack([path[:-1], path[1:]], 1)
    axes.add_collection(LineCollection(list(segments.numpy()), array=t[:-1].numpy(), cmap="viridis", linewidth=1.2))
    axes.autoscale()


def logarithm() -> Figure:
    """Error of the logarithm of a rotation in float32 over the angle, by the textbook formula and by ours."""
    from lie.groups import SO3

    group = SO3()
    distance = torch.logspace(-4, 0, 161, dtype=torch.float64)  # of the angle from pi
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), dim=0)
    rotation = group.exp((math.pi - distance).unsqueeze(-1) * axis).float()
    # Against the exact logarithm of the rounded matrix, so that only the formula's own error is seen.
    exact = group.log(group.normalise(rotation.double()))
    figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
    for label, value in (("textbook", _textbook_logarithm(rotation)), ("lie", group.log(rotation))):
        error = (value.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
        axes.loglog(distance, error.clamp_min(1e-9), label=label)
    axes.set(xlabel="pi minus the angle", ylabel="relative error")
    axes.legend(frameon=False)
    return figure


def _textbook_logarithm(R: Tensor) -> Tensor:
    """theta / (2 sin theta) (R - R^T), with theta from the trace."""
    theta = ((R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0) / 2.0).clamp(-1.0, 1.0).arccos()
    factor = torch.nan_to_num(theta / (2.0 * theta.sin()), nan=0.5)
    skew = R - R.mT
    return factor.unsqueeze(-1) * torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)


def frames() -> Figure:
    """The neighbourhood of a point with its soft frame, and the frame as a neighbourhood passes through symmetry."""
    torch.manual_seed(2)
    figure, (plane, fading) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    points = torch.rand(1, 60, 2)
    centre = int((points[0] - 0.5).square().sum(-1).argmin())
    near, frame = _neighbours_and_frame(points, centre, num_neighbors=16)
    middle = points[0, centre]
    plane.plot(*points[0].T.tolist(), "o", color="0.8", markersize=4)
    colours = plane.scatter(*(middle + near.offsets[centre]).T.tolist(), c=near.weights[centre], zorder=2)
    figure.colorbar(colours, ax=plane, label="window weight")
    plane.add_patch(
        Circle(
            (float(middle[0]), float(middle[1])), float(near.squared_radius[centre].sqrt()), fill=False, linestyle=":"
        )
    )
    for axis in frame.T:
        arrow = {"arrowstyle": "->", "color": "tab:red", "linewidth": 1.8}
        plane.annotate("", tuple((middle + 0.2 * axis).tolist()), tuple(middle.tolist()), arrowprops=arrow)
    plane.set(aspect="equal", xlabel="x", ylabel="y", title="neighbourhood and soft frame")

    angles = torch.arange(6) * math.pi / 3
    hexagon = torch.cat([torch.zeros(1, 2), torch.stack([angles.cos(), angles.sin()], -1)])
    displacements = torch.linspace(-0.6, 0.6, 241)
    moved = hexagon.repeat(len(displacements), 1, 1)
    moved[:, 1, 1] += displacements
    soft = torch.stack([_neighbours_and_frame(x[None], 0, num_neighbors=7, radius=2.0)[1][:, 0] for x in moved])
    fading.plot(
        displacements, torch.nn.functional.normalize(soft, dim=-1)[:, 1], "--", color="0.5", label="unit vector"
    )
    fading.plot(displacements, soft[:, 1], color="tab:red", label="soft frame")
    fading.set(xlabel="displacement of one corner of a hexagon", ylabel="y of the first axis", title="where it fades")
    fading.legend(frameon=False)
    return figure


def _neighbours_and_frame(
    points: Tensor, index: int, *, num_neighbors: int, radius: float | None = None
) -> tuple[Neighbourhoods, Tensor]:
    """Neighbourhoods of points (1, N, 2) as SE(2) sees them, and the soft frame (2, 2) of one of the points."""
    from lie.groups import SE2
    from lieconv.geometry.cloud import cloud_of
    from lieconv.geometry.frame_lift import FrameLift
    from lieconv.geometry.frames import local_frames
    from lieconv.geometry.lifts import make_lift
    from lieconv.geometry.neighbours import find_neighbours

    lift = make_lift(SE2(), "exact", "auto", 1)
    assert isinstance(lift, FrameLift)
    cloud = cloud_of(SE2(), points)
    near = find_neighbours(lift, cloud, cloud, num_neighbors, radius=None if radius is None else torch.tensor(radius))
    frame = local_frames(lift.structure, cloud.coords, near.offsets, near.weights, near.squared_scale, None)
    assert frame is not None
    return near, frame[index]


PICTURES = {
    "frames.svg": frames,
    "logarithm.svg": logarithm,
    "rotation.svg": rotation,
    "motions.jpg": motions,
    "layers.svg": layers,
    "pendulum.svg": pendulum,
    "gyroscope.svg": gyroscope,
    "magnets.png": magnets,
}


def main() -> None:
    """Draw the pictures named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(PICTURES)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the pictures")
    arguments = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "docs"  # the same picture is the same file
    for name in arguments.names or PICTURES:
        if name not in PICTURES:
            parser.error(f"expected names of {', '.join(PICTURES)}, got {name}")
        figure = PICTURES[name]()
        figure.savefig(arguments.out / name, dpi=120, metadata={"Date": None} if name.endswith(".svg") else None)
        plt.close(figure)


if __name__ == "__main__":
    main()
