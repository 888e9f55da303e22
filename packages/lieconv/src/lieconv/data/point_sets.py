"""Labelled point sets, from scikit-learn's digits or from a file of your own."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lie.groups import SO2
from lie.groups.so3 import uniform_rotations
from lie.run import UserError, check_finite, unknown_name
from torch import Tensor

DATA_SETS = ("digits",)
"""Names that ``--data`` takes, beside the path of an npz file."""

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0  # the split belongs to the data set: it is the same for every --seed


@dataclass(frozen=True)
class PointSets:
    """A batch of labelled point sets.

    Fields:
        coords: points, (S, N, d).
        values: features of the points, (S, N, C).
        mask: valid points, (S, N).
        labels: class of each set, (S,).
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

    def rotated(self, generator: torch.Generator) -> PointSets:
        """Each set turned about the origin by a random rotation (uniform angle, or Haar in space)."""
        S, _, d = self.coords.shape  # noqa: N806
        if d == 2:
            R = SO2().sample(S, generator=generator, dtype=self.coords.dtype)  # noqa: N806
        elif d == 3:
            R = uniform_rotations(S, generator=generator, dtype=self.coords.dtype)  # noqa: N806
        else:
            raise UserError(f"expected points of the plane or of space to rotate, got dimension {d}")
        return self.turned(R)

    def turned(self, R: Float[Tensor, "*S d d"]) -> PointSets:  # noqa: N803
        """The sets with the rotation matrices ``R`` (one, or one a set) applied to their points."""
        return PointSets(self.coords @ R.mT.to(self.coords), self.values, self.mask, self.labels)


def load_data(name: str) -> tuple[PointSets, PointSets]:
    """The training and the test sets of a data set by name, or of an npz file.

    An npz file holds ``coords`` (S, N, d), ``values`` (S, N, C), integer ``labels`` (S,) from 0 up, and
    optionally a boolean ``mask`` (S, N). A fifth of the sets, drawn with a fixed seed, is for testing.

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


def load_npz(path: str | Path) -> PointSets:
    """The labelled point sets of an npz file; see `load_data`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError:
        raise UserError(f"no data file at {path}") from None
    except (OSError, ValueError, zipfile.BadZipFile, TypeError, EOFError) as error:
        raise UserError(f"{path} is not a whole npz file of plain arrays: {error}") from None
    missing = [name for name in ("coords", "values", "labels") if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {' and '.join(missing)}; expected arrays coords, values, labels and maybe mask")
    coords, values, labels = arrays["coords"].float(), arrays["values"].float(), arrays["labels"]
    mask = arrays.get("mask", torch.ones(coords.shape[:2], dtype=torch.bool))
    if coords.ndim != 3 or values.ndim != 3 or values.shape[:2] != coords.shape[:2]:
        raise UserError(
            f"expected coords (S, N, d) and values (S, N, C) in {path}, got {tuple(coords.shape)} and "
            f"{tuple(values.shape)}"
        )
    if mask.shape != coords.shape[:2] or mask.dtype != torch.bool:
        raise UserError(f"expected a boolean mask (S, N) in {path}, got {tuple(mask.shape)} of {mask.dtype}")
    if labels.shape != coords.shape[:1] or labels.is_floating_point() or bool((labels < 0).any()):
        raise UserError(
            f"expected integer labels (S,) from 0 up in {path}, got {tuple(labels.shape)} of {labels.dtype}"
        )
    if len(labels) < 2:
        raise UserError(f"expected at least two point sets in {path}, got {len(labels)}")
    check_finite(f"coords in {path}", coords[mask])
    check_finite(f"values in {path}", values[mask])
    return PointSets(coords, values, mask, labels.long())


def split(sets: PointSets) -> tuple[PointSets, PointSets]:
    """Training and test sets: a fifth, drawn with a fixed seed, is for testing."""
    order = torch.randperm(len(sets), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    count = max(1, math.ceil(_TEST_FRACTION * len(sets)))
    return sets[order[count:]], sets[order[:count]]
