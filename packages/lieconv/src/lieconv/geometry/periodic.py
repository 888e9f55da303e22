r"""Neighbours in a periodic cell of any shape: each point counts once, in its image nearest to the target.

The cell is first reduced (Minkowski): among all vectors that span the same lattice, short ones that are nearly at right
angles. For points inside of a reduced cell the nearest image is at most one cell away in each direction, so that 3^d
images of the sources are all that a search has to look at.

Source: Nguyen and Stehle 2009, Low-dimensional lattice basis reduction revisited, ACM Transactions on Algorithms 5(4),
section 3 (in up to three dimensions the greedy reduction is Minkowski's).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lieconv.geometry.cloud import Cloud, plain_values
from lieconv.geometry.search import numbers


def reduced(cell: np.ndarray) -> np.ndarray:
    """Integer matrix Z (d, d) so that the rows of ``Z @ cell`` are a Minkowski-reduced basis of the same lattice.

    Zero rows of the cell (directions that do not repeat) stay as they are.
    """
    d = len(cell)
    Z = np.eye(d, dtype=np.int64)
    periodic = [i for i in range(d) if np.any(cell[i])]
    for _ in range(1000):
        rows = Z @ cell
        order = sorted(periodic, key=lambda i: rows[i] @ rows[i])
        changed = False
        for place in range(1, len(order)):
            i, others = order[place], order[:place]
            # The lattice vector of the shorter ones that is nearest to this: near its projection on their span.
            basis = rows[others]
            near = np.round(np.linalg.lstsq(basis.T, rows[i], rcond=None)[0]).astype(np.int64)
            best, step = rows[i] @ rows[i] * (1 - 1e-12), None
            for shift in itertools.product((-1, 0, 1), repeat=len(others)):
                coefficients = near + shift
                shortened = rows[i] - coefficients @ basis
                if shortened @ shortened < best:
                    best, step = shortened @ shortened, coefficients
            if step is not None:
                Z[i] -= step @ Z[others]
                changed = True
                break
        if not changed:
            return Z
    raise ValueError("expected a periodic cell that can be reduced, got one that is nearly flat or not finite")


def minimum_image_distances(cell: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from offsets (N, d) to the squared lengths (N,) of the shortest of their periodic images."""
    cell = cell.astype(np.float64)
    short = reduced(cell) @ cell
    periodic = np.abs(short).sum(-1) > 0
    inverse = np.linalg.inv(_completed(short[None], periodic[None])[0])
    around = np.array(list(itertools.product((-1, 0, 1), repeat=len(cell)))) @ short  # (3^d, d)

    def squared(offsets: np.ndarray) -> np.ndarray:
        cells = np.round(offsets @ inverse) * periodic
        inside = offsets - cells @ short
        return ((inside[:, None] + around) ** 2).sum(-1).min(1)

    return squared


def nearest_images(
    sources: Cloud, targets: Cloud, k: int
) -> tuple[Int[Tensor, "M k"], Bool[Tensor, "M k"], Float[Tensor, "M k d"]]:
    """The k nearest sources of each target under the minimum image, which of them exist, and the cells between.

    Returns:
        Indices (M, k), by distance; exists (M, k); integer numbers n (M, k, d) in the dtype of the points: the image of
        source j that is meant lies at ``x_j + n @ cell``.

    Raises:
        ValueError: inside of vmap or a compiler, where a tensor has no values to search.
    """
    assert sources.cell is not None
    if any(plain_values(x) is None for x in (sources.coords, targets.coords, sources.cell)):
        raise ValueError(
            "a periodic search needs the numbers of the points, which vmap and compilers do not have; "
            "build the geometry outside and pass it on"
        )
    from scipy.spatial import KDTree

    p, q, cells = (numbers(x).astype(np.float64) for x in (sources.coords, targets.coords, sources.cell))
    sample_p, sample_q = numbers(sources.sample), numbers(targets.sample)
    Z = np.stack([reduced(cell) for cell in cells]) if len(cells) else np.zeros((0, *cells.shape[1:]), np.int64)
    short = Z @ cells  # (B, d, d)
    periodic = np.abs(short).sum(-1) > 0  # (B, d)
    full = _completed(short, periodic)
    p_cells, p = _wrapped(p, full[sample_p], periodic[sample_p], short[sample_p])
    q_cells, q = _wrapped(q, full[sample_q], periodic[sample_q], short[sample_q])
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=p.shape[1])))
    valid = numbers(sources.mask).nonzero()[0]
    atoms, images = np.repeat(valid, len(shifts)), np.tile(shifts, (len(valid), 1))
    # An image along a direction that does not repeat would be the point itself once more.
    real = (images * ~periodic[sample_p[atoms]] == 0).all(1)
    atoms, images = atoms[real], images[real]
    placed = p[atoms] + np.einsum("mi,mij->mj", images, short[sample_p[atoms]])
    extent = max(np.abs(placed).max(initial=0.0), np.abs(q).max(initial=0.0))
    gap = 8.0 * np.sqrt(q.shape[1]) * extent + 1.0
    M, d = q.shape
    index, exists, number = np.zeros((M, k), np.int64), np.zeros((M, k), bool), np.zeros((M, k, d))
    if len(atoms) and M:
        tree = KDTree(np.concatenate([placed, gap * sample_p[atoms, None]], 1))
        far = np.concatenate([q, gap * sample_q[:, None]], 1)
        waiting, asked = np.arange(M), min(len(atoms), k + k // 2 + 2)
        while len(waiting):
            ranks = np.arange(1, asked + 1)
            _, ranked = tree.query(far[waiting], k=ranks, workers=torch.get_num_threads())  # type: ignore[arg-type]
            columns = np.asarray(ranked)
            atom = atoms[columns]  # (W, asked)
            same_sample = sample_p[atom] == sample_q[waiting, None]
            first = _first_of_each(atom) & same_sample
            place = first.cumsum(1) - 1
            done = (first.sum(1) >= k) | ~same_sample[:, -1] | (asked == len(atoms))
            selected = first & (place < k) & done[:, None]
            rows = selected.nonzero()[0]
            index[waiting[rows], place[selected]] = atom[selected]
            exists[waiting[rows], place[selected]] = True
            total = images[columns[selected]] - p_cells[atom[selected]] + q_cells[waiting[rows]]
            number[waiting[rows], place[selected]] = np.einsum("mi,mij->mj", total, Z[sample_q[waiting[rows]]])
            # Images of one atom take ranks from others: ask for twice as many where k atoms are not reached yet.
            waiting, asked = waiting[~done], min(len(atoms), 2 * asked)
    like = sources.coords
    return (
        torch.from_numpy(index).to(like.device),
        torch.from_numpy(exists).to(like.device),
        torch.from_numpy(number).to(like.device, like.dtype),
    )


def check_one_image(cell: Tensor, radius: Tensor | None) -> None:
    """Raise if a ball can hold two images of one point: only the nearest counts, so that forces would jump."""
    values = [plain_values(x) for x in (cell, *(() if radius is None else (radius,)))]
    if any(x is None for x in values):
        raise ValueError("forces in a cell need its numbers, which vmap and compilers do not have")
    lengths = []
    for rows in numbers(cell).astype(np.float64):
        short = np.linalg.norm(reduced(rows) @ rows, axis=1)  # the shortest is the shortest vector of the lattice
        lengths.append(short[short > 0].min(initial=np.inf))
    reach = 0.5 * min(lengths, default=np.inf)
    if radius is None:
        raise ValueError(
            f"forces in a periodic cell jump where a neighbour's nearest image becomes another; give a radius of at "
            f"most {reach:.4g}, half the shortest vector of the lattice"
        )
    if float(numbers(radius)) > reach * (1 + 1e-6):
        raise ValueError(
            f"expected a radius of at most {reach:.4g}, half the shortest vector of the lattice, got "
            f"{float(numbers(radius)):.4g}; forces jump where two images of a point are within it: repeat the cell"
        )


def _completed(short: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """The cells with unit vectors across the others in place of zero rows, so that they can be inverted."""
    full = short.copy()
    for b, row in enumerate(periodic):
        if not row.all():
            basis = short[b][row]
            missing = np.linalg.svd(basis, full_matrices=True)[2][len(basis) :] if len(basis) else np.eye(len(row))
            full[b][~row] = missing
    return full


def _wrapped(x: np.ndarray, full: np.ndarray, periodic: np.ndarray, short: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each point, as integers (N, d), and the point translated into the cell at the origin."""
    fractions = np.linalg.solve(full.transpose(0, 2, 1), x[..., None])[..., 0] if len(x) else x
    cells = np.floor(fractions) * periodic
    return cells, x - np.einsum("mi,mij->mj", cells, short)


def _first_of_each(atom: np.ndarray) -> np.ndarray:
    """Mask of the first occurrence of each number in its row."""
    order = np.argsort(atom, axis=1, kind="stable")
    ordered = np.take_along_axis(atom, order, 1)
    new = np.concatenate([np.ones((len(atom), 1), bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    first = np.zeros_like(new)
    np.put_along_axis(first, order, new, 1)
    return first
