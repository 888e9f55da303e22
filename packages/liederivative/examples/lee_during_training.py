"""How equivariance moves while a network learns: a CNN and a vision transformer, with and without augmentation.

Trains four small networks on scikit-learn's digits, each measured every few steps by an `LEETracker`, and draws the
local equivariance errors, per variance of the outputs, over the steps. Run it with

    python examples/lee_during_training.py --out runs/lee-training

Writes lee_over_steps.png and metrics.json (with all histories) to --out; a minute or two on one CPU core. The
errors are those of the logits on held-out digits that were moved: on them, the networks that learned from moved
digits end 1.7 to 10 times below those that saw upright ones only. (The transformer without them is worse after
training than before.)
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from lie.run import output_directory, print_table, provenance, write_json
from liederivative.plots import plot_histories
from liederivative.training import LEETracker
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

GENERATORS = ("translate_x", "translate_y", "rotate")


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 scans, 8 x 8 pixels doubled and framed by zeros, (N, 1, 24, 24), and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    scans = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    large = nn.functional.interpolate(scans, size=16, mode="bilinear")
    return nn.functional.pad(large, (4, 4, 4, 4)), torch.tensor(labels)


def cnn() -> nn.Module:
    """A small convolutional classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 6 * 6, 10),
    )  # fmt: skip


def vit() -> nn.Module:
    """A small vision transformer: 16 patches of 6 x 6 pixels, 2 blocks of width 64, the mean of the tokens."""
    sizes = {"img_size": 24, "patch_size": 6, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    return VisionTransformer(in_chans=1, num_classes=10, global_pool="avg", **sizes)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to a sixth of its width and turned by up to 30 degrees."""
    uniform = torch.rand(len(images), 3, generator=generator) * 2 - 1
    angle, shift = uniform[:, 0] * math.pi / 6, uniform[:, 1:] / 3
    rows = [
        torch.stack([angle.cos(), -angle.sin(), shift[:, 0]], 1),
        torch.stack([angle.sin(), angle.cos(), shift[:, 1]], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=True)
    return nn.functional.grid_sample(images, grid, align_corners=True)


def train(
    make: Callable[[], nn.Module], data: tuple[Tensor, Tensor, Tensor], steps: int, every: int, augment: bool
) -> tuple[nn.Module, LEETracker]:
    """A trained network and what the tracker saw."""
    images, labels, watched = data
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = make()
    tracker = LEETracker(net, watched, GENERATORS, every=every)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        batch = moved(images[chosen], generator) if augment else images[chosen]
        loss = nn.functional.cross_entropy(net(batch), labels[chosen])
        tracker(step, loss=loss.item())  # before the first step too: the network as it was initialised
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    tracker.measure(steps, loss=loss.item())
    return net, tracker


def main() -> None:
    """Train four networks, and show how far each is from invariance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/lee-training", help="folder for the figure and metrics.json")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between measurements")
    parser.add_argument("--watch", type=int, default=64, help="held-out images that the tracker measures on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # for layers this small, threads cost more than they give
    images, labels = digits()
    seen, held_out = slice(0, 1500), slice(1500, None)
    turned = moved(images[held_out], torch.Generator().manual_seed(1))
    data = (images[seen], labels[seen], turned[: arguments.watch])
    results, histories = {}, {}
    with output_directory(arguments.out) as out:
        for name, make in (("CNN", cnn), ("ViT", vit)):
            for augment in (False, True):
                label = f"{name}, {'moved' if augment else 'upright'} digits"
                start = time.perf_counter()
                net, tracker = train(make, data, arguments.steps, arguments.every, augment)
                net.eval()
                with torch.no_grad():
                    accuracy, on_moved = (
                        float((net(x).argmax(1) == labels[held_out]).float().mean()) for x in (images[held_out], turned)
                    )
                histories[label] = tracker.history
                first, last = tracker.history[0]["generators"], tracker.history[-1]["generators"]
                results[label] = {
                    "accuracy": accuracy,
                    "accuracy_moved": on_moved,
                    **{f"per_variance_{g}_first": first[g]["per_variance"] for g in GENERATORS},
                    **{f"per_variance_{g}": last[g]["per_variance"] for g in GENERATORS},
                    "seconds": round(time.perf_counter() - start, 1),
                }
                print(f"{label}: accuracy {accuracy:.1%}, on moved digits {on_moved:.1%}", flush=True)
        plot_histories(out / "lee_over_steps.png", histories)
        versions = provenance("liederivative", "timm", "scikit-learn")
        write_json(out / "metrics.json", {"versions": versions, "seed": 0, "runs": results, "histories": histories})
        columns = ["LEE per variance, trained", *GENERATORS]
        print_table("", columns, [[k, *(v[f"per_variance_{g}"] for g in GENERATORS)] for k, v in results.items()])
        print(f"results in {out}: lee_over_steps.png, metrics.json")


if __name__ == "__main__":
    main()
