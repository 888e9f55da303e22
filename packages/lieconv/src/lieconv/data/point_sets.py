"""Labelled point sets, from scikit-learn's digits or from a file of your own."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lie.groups import SO2
from lie.groups.so3 import uniform_rotations
from lie.run import UserError, atomic_path, check_finite, read_npz, unknown_name
from torch import Tensor

DATA_SETS = ("digits",)
"""Names that ``--data`` takes, beside the path of an npz file."""

MAX_CLASSES = 10_000
"""Classes of a data set; each is an output of the network."""

MAX_SIZE = 1e6
"""Largest coordinate or feature: beyond it, float32 loses the digits of distances of order one."""

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0  # the split belongs to the data set: it is the same for every --seed


@dataclass(frozen=True)
class PointSets:
    """A batch of labelled point sets.

    Fields:
        coords: points, (S, N, d).
        values: features of the points, (S, N, C).
        mask: valid points, (S, N).
        labels: class of each set, (S,); -1 where it is not known.
    """

    coords: Float[Tensor, "S N d"]
    values: Float[Tensor, "S N c"]
    mask: Bool[Tensor, "S N"]
    labels: Int[Tensor, " S"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> PointSets:
        return PointSets(self.coords[index], self.values[index], self.mask[index], self.labels[index])

    def to(self, device: torch.device) -> PointSets:
        """The same sets on ``device``."""
        return PointSets(*(tensor.to(device) for tensor in (self.coords, self.values, self.mask, self.labels)))

    def save(self, path: Path) -> None:
        """Write the sets to an npz file that `load_npz` reads."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in ("coords", "values", "mask", "labels")}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    def digest(self) -> str:
        """SHA-256 of the sets: equal sets, equal digests."""
        sha256 = hashlib.sha256()
        for name in ("coords", "values", "mask", "labels"):
            tensor = getattr(self, name).cpu().contiguous()
            sha256.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return sha256.hexdigest()

    def rotated(self, generator: torch.Generator) -> PointSets:
        """Each set turned about the origin by a random rotation (uniform angle, or Haar in space)."""
        S, _, d = self.coords.shape
        if d == 2:
            R = SO2().sample(S, generator=generator, dtype=self.coords.dtype)
        elif d == 3:
            R = uniform_rotations(S, generator=generator, dtype=self.coords.dtype)
        else:
            raise UserError(f"expected points of the plane or of space to rotate, got dimension {d}")
        return self.turned(R)

    def turned(self, R: Float[Tensor, "*S d d"]) -> PointSets:
        """The sets with the rotation matrices ``R`` (one, or one a set) applied to their points."""
        return PointSets(self.coords @ R.mT.to(self.coords), self.values, self.mask, self.labels)


def load_data(name: str) -> tuple[PointSets, PointSets]:
    """The training and the test sets of a data set by name, or of an npz file.

    See `load_npz` for what a file holds. A fifth of the sets, drawn with a fixed seed, is for testing.

    Raises:
        UserError: for an unknown name, a broken file, wrong shapes or non-finite values.
    """
    if name == "digits":
        return split(load_digits())
    if name.endswith(".npz"):
        return split(load_npz(name))
    raise unknown_name("data set", name, [*DATA_SETS, "FILE.npz"])


def load_digits() -> PointSets:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 scans, as sets of 64 points with an intensity.

    The pixel centres span [-1, 1] in x (to the right) and y (up); intensities are in [0, 1].
    """
    from sklearn.datasets import load_digits as load

    digits: Any = load()
    images = torch.from_numpy(digits.images).float() / 16.0  # (S, 8, 8), 16 grey levels
    check_finite("pixels", images)
    centres = torch.linspace(-1.0, 1.0, 8)
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    coords = torch.stack([x, y], dim=-1).view(1, 64, 2).expand(len(images), -1, -1).contiguous()
    mask = torch.ones(coords.shape[:2], dtype=torch.bool)
    return PointSets(coords, images.flatten(1).unsqueeze(-1), mask, torch.from_numpy(digits.target).long())


def load_npz(path: str | Path, *, labelled: bool = True) -> PointSets:
    """The point sets of an npz file.

    The file holds ``coords`` (S, N, d) with d 2 or 3, ``values`` (S, N, C) with at least one feature, optionally a
    boolean ``mask`` (S, N) with a point in each set, and integer ``labels`` (S,) from 0 up.

    Args:
        path: the file.
        labelled: False for sets to predict, which need no labels, and of which one suffices.

    Raises:
        UserError: for a missing or damaged file, other shapes or types, values that are not finite, and sets that
            cannot be learnt from: fewer than two, or of one class.
    """
    arrays = read_npz(path, ("coords", "values", "labels", "mask"))
    missing = [name for name in ("coords", "values", *(["labels"] if labelled else [])) if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {' and '.join(missing)}; expected arrays coords, values, labels and maybe mask")
    for name in ("coords", "values"):
        if arrays[name].dtype.kind == "c":
            raise UserError(f"expected real {name} in {path}, got {arrays[name].dtype}; give real and imaginary parts")
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused below
        coords, values = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("coords", "values"))
    mask = torch.from_numpy(arrays.get("mask", np.ones(coords.shape[:2], dtype=np.bool_)))
    if coords.ndim != 3 or values.ndim != 3 or values.shape[:2] != coords.shape[:2]:
        raise UserError(
            f"expected coords (S, N, d) and values (S, N, C) in {path}, got {tuple(coords.shape)} and "
            f"{tuple(values.shape)}"
        )
    if coords.shape[-1] not in (2, 3):
        raise UserError(f"expected points of the plane or of space in {path}, got dimension {coords.shape[-1]}")
    least = 2 if labelled else 1
    if len(coords) < least or coords.shape[1] < 1:
        count = "two point sets" if labelled else "one point set"
        raise UserError(f"expected at least {count} of at least one point in {path}, got {tuple(coords.shape[:2])}")
    if values.shape[-1] < 1:
        raise UserError(f"expected at least one feature a point in {path}, got none; give ones for points without any")
    if mask.shape != coords.shape[:2] or mask.dtype != torch.bool:
        raise UserError(f"expected a boolean mask (S, N) in {path}, got {tuple(mask.shape)} of {mask.dtype}")
    if not bool(mask.any(1).all()):
        first = int((~mask.any(1)).nonzero()[0])
        raise UserError(f"expected a point in each set of {path}, got set {first} with all of them masked")
    for name, numbers in (("coords", coords[mask]), ("values", values[mask])):
        check_finite(f"{name} in {path}", numbers)
        if float(numbers.abs().max()) > MAX_SIZE:
            raise UserError(
                f"expected {name} of at most {MAX_SIZE:g} in {path}, got {float(numbers.abs().max()):.3g}; "
                "choose another unit"
            )
    if "labels" not in arrays:
        return PointSets(coords, values, mask, torch.full((len(coords),), -1))
    return PointSets(coords, values, mask, _labels(arrays["labels"], len(coords), path, learnt=labelled))


def _labels(labels: np.ndarray, count: int, path: str | Path, *, learnt: bool) -> Int[Tensor, " S"]:
    """The labels of a file as int64, checked; those to learn from also for what can be learnt."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or bool((labels < 0).any()):
        raise UserError(
            f"expected integer labels (S,) from 0 up in {path}, got {tuple(labels.shape)} of {labels.dtype}"
        )
    largest = int(labels.max())
    if largest >= MAX_CLASSES:
        raise UserError(
            f"expected labels below {MAX_CLASSES} in {path}, got {largest}; number the classes from 0 without gaps"
        )
    if learnt and largest == int(labels.min()):
        raise UserError(f"expected at least two classes in {path}, got {largest} for each set")
    return torch.from_numpy(labels.astype(np.int64))


def split(sets: PointSets) -> tuple[PointSets, PointSets]:
    """Training and test sets: a fifth, drawn with a fixed seed, is for testing."""
    order = torch.randperm(len(sets), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    count = max(1, math.ceil(_TEST_FRACTION * len(sets)))
    return sets[order[count:]], sets[order[:count]]
