"""How far is a small network of one's own from equivariance, before and after it has seen translations?

Trains a small convolutional classifier on scikit-learn's digits twice, on the scans as they are and on randomly
shifted copies, and prints the local equivariance error of both. Run it with

    python examples/own_model.py --epochs 12

On one CPU core it takes about half a minute. The errors are those of the softmax on upright scans, where a network
that is sure of its answer hardly moves whatever it has learned: try several --seed before you conclude anything from
the two. `lee_during_training.py` measures moved scans, relative to the spread of the outputs.
"""

from __future__ import annotations

import argparse

import torch
from liederivative import lee, lie_derivative
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 scans, 8 x 8 pixels doubled and framed by zeros, (N, 1, 24, 24), and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    scans = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    large = nn.functional.interpolate(scans, size=16, mode="bilinear")
    return nn.functional.pad(large, (4, 4, 4, 4)), torch.tensor(labels)


def network() -> nn.Sequential:
    """A small convolutional classifier; nothing in it knows about this library."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.GELU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 6 * 6, 10),
    )


def train(
    images: Tensor, labels: Tensor, epochs: int, shift: int, generator: torch.Generator, seed: int
) -> nn.Sequential:
    """A trained network; each batch is rolled by up to ``shift`` pixels along both axes."""
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            rows, columns = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
            moved = images[batch].roll((rows, columns), dims=(2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(moved), labels[batch]).backward()
            optimizer.step()
    return net


def main() -> None:
    """Train twice, measure twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # for layers this small, threads cost more than they give
    generator = torch.Generator().manual_seed(options.seed)
    images, labels = digits()
    seen, held_out = slice(0, 1500), slice(1500, None)
    for name, shift in (("upright scans", 0), ("shifted scans", 4)):
        net = train(images[seen], labels[seen], options.epochs, shift, generator, options.seed)
        # The network is still in training mode: measuring holds it in evaluation mode and gives it back as it was.
        errors = lee(net, images[held_out], ["translate_x", "translate_y", "rotate"], probabilities=True, batch_size=64)
        with torch.no_grad():
            accuracy = (net.eval()(images[held_out]).argmax(1) == labels[held_out]).float().mean()
        print(f"trained on {name}: accuracy {accuracy:.3f}")
        for generator_name, mean in errors.mean_squared.items():
            print(f"  LEE {generator_name:12} {mean:.4g} ± {errors.standard_error_squared[generator_name]:.2g}")
    # Feature maps move with the image, so their layout is declared: the layers before Flatten.
    L = lie_derivative(net[:8], images[held_out][:4], "translate_x", output="NCHW")
    print(f"Lie derivative of the last feature maps: shape {tuple(L.shape)}, mean size {L.abs().mean():.3g}")


if __name__ == "__main__":
    main()
