"""Nearest neighbours and random neighbours in a ball, in time and memory linear in the number of returned pairs.

A search happens in a Euclidean space of its own (the points themselves, or an embedding in which a group's distance is
Euclidean). On a CPU a k-d tree finds the neighbours of all samples in one go, the samples pushed apart along an axis of
their own. Small batches, accelerators, and tensors without values to look at (vmap, compilers) are compared pair by
pair, a block of targets at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lieconv.geometry.cloud import plain_values

_TREE_FROM = 1 << 15  # pairs from which the tree is quicker
_BLOCK = 1 << 24  # distances held at once


@dataclass(frozen=True)
class Space:
    """The points of one side of a search, in the space in which distances are Euclidean.

    Fields:
        points: (P, e), in which distances are Euclidean.
        mask: valid points, (P,).
        sample: number of the sample, (P,): only points of one sample are neighbours.
        shape: (B, N) of a padded batch, None of a ragged one.
    """

    points: Float[Tensor, "P e"]
    mask: Bool[Tensor, " P"]
    sample: Int[Tensor, " P"]
    shape: tuple[int, int] | None


@torch.no_grad()
def nearest(sources: Space, targets: Space, k: int) -> tuple[Int[Tensor, "M k"], Bool[Tensor, "M k"]]:
    """The k nearest valid sources of each target, by distance, and which of them exist.

    Where a sample has fewer than k valid points, the remaining places are marked as missing and point to source 0.
    """
    values = _tree_values(sources, targets)
    if values is not None:
        return _nearest_by_tree(values, sources, targets, k)
    indices, exist = [], []
    for distance, base in _distance_blocks(sources, targets):
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            # As many columns as are asked for, whatever the number of points: no guard on it.
            distance = torch.nn.functional.pad(distance, (0, k), value=torch.inf)
            count = k
        else:
            count = min(k, distance.shape[-1])
        best, columns = distance.topk(count, dim=-1, largest=False, sorted=True)
        missing = k - count
        indices.append(torch.nn.functional.pad(columns + base, (0, missing)))
        exist.append(torch.nn.functional.pad(torch.isfinite(best), (0, missing)))
    index, exists = _joined(indices, targets, k, torch.long), _joined(exist, targets, k, torch.bool)
    return torch.where(exists, index, torch.zeros_like(index)), exists


@torch.no_grad()
def random_within(
    sources: Space, targets: Space, radius: Float[Tensor, ""], k: int, generator: torch.Generator | None
) -> tuple[Int[Tensor, "M k"], Bool[Tensor, "M k"]]:
    """Up to k sources drawn uniformly from those within ``radius`` of each target, without repetition."""
    values = _tree_values(sources, targets)
    if values is not None:
        return _random_by_tree(values, sources, targets, float(radius), k, generator)
    indices, exist = [], []
    for distance, base in _distance_blocks(sources, targets):
        key = torch.rand(distance.shape, generator=generator, device=distance.device)
        key = key.masked_fill(~(distance <= radius.square()), 2.0)
        count = min(k, distance.shape[-1])
        best, columns = key.topk(count, dim=-1, largest=False)
        indices.append(torch.nn.functional.pad(columns + base, (0, k - count)))
        exist.append(torch.nn.functional.pad(best < 2.0, (0, k - count)))
    index, exists = _joined(indices, targets, k, torch.long), _joined(exist, targets, k, torch.bool)
    return torch.where(exists, index, torch.zeros_like(index)), exists


@torch.no_grad()
def ball_radius(sources: Space, fraction: float, rows: int = 256) -> Float[Tensor, ""]:
    """The mean radius of the ball around a point that holds ``fraction`` of the valid points of its sample.

    Estimated at ``rows`` points, evenly spaced in the batch: memory is rows times the points.
    """
    P = sources.points.shape[0]
    chosen = torch.linspace(0, P - 1, min(rows, P), device=sources.points.device).round().long()
    points, sample = sources.points[chosen], sources.sample[chosen]
    squared = _squared(points, sources.points)
    same_sample = (sample.unsqueeze(1) == sources.sample) & sources.mask
    squared = squared.masked_fill(~same_sample, torch.inf).sort(dim=-1).values  # (rows, P)
    inside = (fraction * same_sample.sum(-1, keepdim=True)).ceil().long().clamp(min=1) - 1
    reach = squared.gather(1, inside).squeeze(1).sqrt()
    usable = torch.isfinite(reach) & sources.mask[chosen]
    return torch.where(usable, reach, torch.zeros_like(reach)).sum() / usable.sum().clamp(min=1)


# --- pair by pair ---


def _distance_blocks(sources: Space, targets: Space) -> Iterator[tuple[Tensor, Tensor | int]]:
    """Blocks of squared distances (..., rows, columns), infinite for invalid pairs, with the index of column 0."""
    p, q = sources.points, targets.points
    if sources.shape is not None and targets.shape is not None:
        (B, N), (_, M) = sources.shape, targets.shape
        p, q = p.view(B, N, p.shape[-1]), q.view(B, M, q.shape[-1])
        base = (torch.arange(B, device=p.device) * N).view(B, 1, 1)
        invalid = ~sources.mask.view(B, 1, N)
        for rows in _rows_at_once(M, B * N):
            squared = _squared(q[:, rows], p)
            yield squared.masked_fill(invalid, torch.inf), base
        return
    for rows in _rows_at_once(q.shape[0], p.shape[0]):
        squared = _squared(q[rows], p)
        other = (targets.sample[rows].unsqueeze(1) != sources.sample) | ~sources.mask
        yield squared.masked_fill(other, torch.inf), 0


def _rows_at_once(rows: int, columns: int) -> Iterable[slice]:
    """The rows of each block; all in one where a graph is traced, which a loop would tie to the number of points."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return [slice(None)]
    step = max(1, _BLOCK // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def _squared(q: Tensor, p: Tensor) -> Tensor:
    q, p = q.detach(), p.detach()  # the choice has no derivative, and cdist none in forward mode
    return torch.cdist(q, p, compute_mode="donot_use_mm_for_euclid_dist").square()


def _joined(blocks: list[Tensor], targets: Space, k: int, dtype: torch.dtype) -> Tensor:
    if not blocks:
        return torch.zeros(0, k, dtype=dtype, device=targets.points.device)
    joined = torch.cat(blocks, dim=-2)
    return joined.flatten(0, 1) if joined.ndim == 3 else joined


# --- by a tree ---


def _tree_values(sources: Space, targets: Space) -> tuple[np.ndarray, np.ndarray] | None:
    """The points as numbers, where a tree can and should look at them."""
    (P, _), (M, _) = sources.points.shape, targets.points.shape
    if sources.points.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    pairs = P * M
    if sources.shape is not None and targets.shape is not None:
        pairs = pairs // max(1, sources.shape[0])
    if pairs < _TREE_FROM:
        return None
    tensors = (sources.points, targets.points, sources.mask, sources.sample, targets.sample)
    if any(plain_values(x) is None for x in tensors):
        return None
    return numbers(sources.points.double()), numbers(targets.points.double())


def numbers(x: Tensor) -> np.ndarray:
    """The values of a tensor as a numpy array; not for tensors under vmap or a compiler."""
    plain = plain_values(x)
    assert plain is not None
    with temporarily_clear_interpreter_stack():
        return plain.cpu().numpy()


def _apart(values: tuple[np.ndarray, np.ndarray], sources: Space, targets: Space) -> tuple[np.ndarray, np.ndarray]:
    """Both sets with one more coordinate, so that points of two samples are further apart than any two of one."""
    p, q = values
    if sources.shape is not None and sources.shape[0] == 1:
        return p, q
    extent = max(np.abs(p).max(initial=0.0), np.abs(q).max(initial=0.0))
    gap = 8.0 * np.sqrt(p.shape[1]) * extent + 1.0
    return (
        np.concatenate([p, gap * numbers(sources.sample)[:, None]], 1),
        np.concatenate([q, gap * numbers(targets.sample)[:, None]], 1),
    )


def _nearest_by_tree(
    values: tuple[np.ndarray, np.ndarray], sources: Space, targets: Space, k: int
) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    p, q = _apart(values, sources, targets)
    valid = numbers(sources.mask).nonzero()[0]
    if not len(valid):
        return torch.zeros(len(q), k, dtype=torch.long), torch.zeros(len(q), k, dtype=torch.bool)
    count = min(k, len(valid))
    ranks = np.arange(1, count + 1)
    _, columns = KDTree(p[valid]).query(q, k=ranks, workers=torch.get_num_threads())  # type: ignore[arg-type]
    index = torch.from_numpy(valid[columns])
    exists = sources.sample[index] == targets.sample.unsqueeze(1)
    index = torch.where(exists, index, torch.zeros_like(index))
    return torch.nn.functional.pad(index, (0, k - count)), torch.nn.functional.pad(exists, (0, k - count))


def _random_by_tree(
    values: tuple[np.ndarray, np.ndarray],
    sources: Space,
    targets: Space,
    radius: float,
    k: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    p, q = _apart(values, sources, targets)
    valid = numbers(sources.mask).nonzero()[0]
    index, exists = torch.zeros(len(q), k, dtype=torch.long), torch.zeros(len(q), k, dtype=torch.bool)
    if not len(valid):
        return index, exists
    pairs = KDTree(q).sparse_distance_matrix(KDTree(p[valid]), radius, output_type="coo_matrix")
    rows, columns = torch.from_numpy(pairs.row.astype(np.int64)), torch.from_numpy(valid[pairs.col])
    same_sample = sources.sample[columns] == targets.sample[rows]
    rows, columns = rows[same_sample], columns[same_sample]
    order = torch.rand(len(rows), generator=generator).argsort()
    order = order[rows[order].argsort(stable=True)]  # by row, at random within
    rows, columns = rows[order], columns[order]
    counts = rows.bincount(minlength=len(q))
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    selected = place < k
    index[rows[selected], place[selected]] = columns[selected]
    exists[rows[selected], place[selected]] = True
    return index, exists
