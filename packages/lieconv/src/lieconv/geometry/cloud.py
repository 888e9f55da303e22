"""The points of all samples of a batch in one row, from a padded, ragged or shared layout.

Each tensor has one axis for the points of all samples, so that layers need not know where a sample ends. Neighbour
searches and pools read the sample number of each point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from lie.groups import LieGroup
from torch import Tensor
from torch._C import _functorch as functorch  # type: ignore[attr-defined]
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


@dataclass(frozen=True)
class Cloud:
    """The P points of a batch.

    Fields:
        coords: points, (P, d); zero where invalid.
        mask: which are valid, (P,).
        sample: to which of the samples each belongs, (P,).
        count: how many samples.
        shape: (B, N) of a padded batch, None of a ragged one.
        cell: rows are the vectors of a periodic cell, (count, d, d); None where nothing repeats.
        full: whether all points are known to be valid; False also if an accelerator would have to be waited for.
    """

    coords: Float[Tensor, "P d"]
    mask: Bool[Tensor, " P"]
    sample: Int[Tensor, " P"]
    count: int
    shape: tuple[int, int] | None
    cell: Float[Tensor, "B d d"] | None = None
    full: bool = False

    def flat(self, values: Tensor) -> Tensor:
        """Values of the points as given, (B, N, C) or (P, C), as (P, C)."""
        return values.flatten(0, 1) if self.shape is not None else values


def cloud_of(
    group: LieGroup,
    coords: Tensor,
    mask: Tensor | None = None,
    *,
    batch: Tensor | None = None,
    cell: Tensor | None = None,
    name: str = "points",
) -> Cloud:
    """Check a batch of points and lay it out flat.

    Args:
        group: the group that acts on the points.
        coords: (B, N, d), or (P, d) with ``batch``.
        mask: valid points, bool, of the shape of the points; None means all.
        batch: to which sample each of P points belongs, integers from 0, non-decreasing, (P,).
        cell: vectors of a periodic cell as rows, (d, d) or (B, d, d); a zero row for a direction that does not repeat.
        name: what an error calls the points.

    Raises:
        ValueError: for wrong shapes or dimensions, non-finite valid coordinates, a flat or non-finite cell, sample
            numbers that fall or are negative.
        TypeError: for coordinates that are not floating-point, a mask that is not boolean, numbers that are not
            integers.
    """
    if not isinstance(coords, Tensor) or not coords.is_floating_point():
        got = coords.dtype if isinstance(coords, Tensor) else type(coords).__name__
        remedy = "coords.float()" if isinstance(coords, Tensor) else "torch.as_tensor"
        raise TypeError(f"expected floating-point {name}, got {got}; use {remedy}")
    if coords.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"expected {name} in float32 or float64, got {coords.dtype}; keep points, values and weights in float32 "
            "and compute in half precision by torch.autocast"
        )
    wanted = "(B, N, d)" if batch is None else "(P, d) with batch"
    if coords.ndim != (3 if batch is None else 2):
        remedy = "add a batch axis in front, or give batch" if coords.ndim == 2 else "reshape it"
        raise ValueError(f"expected {name} of shape {wanted}, got {tuple(coords.shape)}; {remedy}")
    d = coords.shape[-1]
    if group.point_dim is not None and d != group.point_dim:
        raise ValueError(
            f"expected {name} of dimension {group.point_dim} for {group!r}, got shape {tuple(coords.shape)}; "
            "choose a group that acts on your points"
        )
    full = mask is None
    if mask is None:
        mask = torch.ones(coords.shape[:-1], dtype=torch.bool, device=coords.device)
    if not isinstance(mask, Tensor):
        raise TypeError(f"expected a boolean mask as a tensor, got {type(mask).__name__}; use torch.as_tensor")
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}; use mask.bool()")
    if mask.shape != coords.shape[:-1]:
        raise ValueError(f"expected a mask of shape {tuple(coords.shape[:-1])}, got {tuple(mask.shape)}")
    if mask.device != coords.device:
        raise ValueError(f"expected the mask on {coords.device}, where the {name} are, got {mask.device}")
    _check_finite(coords, mask, name)
    full = full or all_valid(mask)
    if not full:
        # Padding may hold anything; from here on it is zero, so that no NaN of it reaches a gradient.
        coords = coords.masked_fill(~mask.unsqueeze(-1), 0.0)
    if batch is None:
        B, N = coords.shape[:2]
        sample = torch.arange(B, device=coords.device).unsqueeze(1).expand(B, N).flatten()
        return Cloud(coords.flatten(0, 1), mask.flatten(), sample, B, (B, N), _check_cell(cell, B, coords), full)
    count = _check_batch(batch, coords)
    return Cloud(coords, mask, batch.long(), count, None, _check_cell(cell, count, coords), full)


def chosen_points(
    cloud: Cloud, index: Int[Tensor, " M"], shape: tuple[int, int] | None, mask: Bool[Tensor, " M"] | None
) -> Cloud:
    """The points of a cloud with these numbers, in layout ``shape``; without a mask all are as valid as they were."""
    coords, valid = cloud.coords[index], cloud.mask[index]
    full = cloud.full
    if mask is not None:
        valid = valid & mask
        full = all_valid(valid)
        if not full:
            coords = coords.masked_fill(~valid.unsqueeze(-1), 0.0)
    return Cloud(coords, valid, cloud.sample[index], cloud.count, shape, cloud.cell, full)


def all_valid(mask: Tensor) -> bool:
    """Whether a mask on a CPU is all true; False for masks whose values are not available without waiting."""
    plain = plain_values(mask) if mask.device.type == "cpu" else None
    return plain is not None and bool(plain.all())


def _check_finite(coords: Tensor, mask: Tensor, name: str) -> None:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return  # a test of values would break the graph
    # Squares and cubes of coordinates must be numbers too.
    limit = torch.finfo(coords.dtype).max ** 0.5 / 1e3
    usable = (coords.detach().abs() < limit).all(-1) | ~mask  # NaN is not
    if not bool(usable.all()):
        place = (~usable).nonzero()[0].tolist()
        where = tuple(place) if len(place) > 1 else place[0]
        axes = "(sample, point)" if coords.ndim == 3 else "(point)"
        if bool(torch.isfinite(coords.detach()[tuple(place)]).all()):
            raise ValueError(
                f"expected {name} up to {limit:.0e} in {coords.dtype}, got more at point {where} {axes}; choose a "
                "larger unit"
            )
        raise ValueError(f"expected finite {name}, got NaN or infinity at point {where} {axes}; mask padding out")


def _check_batch(batch: Tensor, coords: Tensor) -> int:
    if not isinstance(batch, Tensor):
        raise TypeError(f"expected batch as a tensor, got {type(batch).__name__}; use torch.as_tensor")
    if batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool:
        raise TypeError(f"expected integer sample numbers in batch, got {batch.dtype}")
    if batch.shape != coords.shape[:1]:
        raise ValueError(f"expected batch of shape {tuple(coords.shape[:1])}, got {tuple(batch.shape)}")
    if batch.numel() == 0:
        return 0
    batch = batch.long()  # differences of unsigned numbers are never negative
    if bool((batch.diff() < 0).any()) or int(batch[0]) < 0:
        raise ValueError(
            "expected sample numbers in batch that are non-negative and non-decreasing; sort the points by sample"
        )
    count = int(batch[-1]) + 1
    if count > _SAMPLES:
        raise ValueError(f"expected sample numbers from 0 up, one after another, got one of {count - 1}")
    return count


def _check_cell(cell: Tensor | None, count: int, coords: Tensor) -> Tensor | None:
    if cell is None:
        return None
    if not isinstance(cell, Tensor) or cell.is_complex() or cell.dtype == torch.bool:
        got = cell.dtype if isinstance(cell, Tensor) else type(cell).__name__
        raise TypeError(f"expected cell vectors as a real tensor, got {got}; use torch.as_tensor")
    d = coords.shape[-1]
    if cell.shape not in ((d, d), (count, d, d)):
        raise ValueError(f"expected a cell of shape ({d}, {d}) or ({count}, {d}, {d}), got {tuple(cell.shape)}")
    cell = cell.to(coords).expand(count, d, d)
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return cell
    rows = cell.detach().double()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("expected a finite periodic cell, got NaN or infinity")
    periodic = rows.norm(dim=-1) > 0
    if not bool(periodic.any()):
        return None  # nothing repeats
    scale = torch.where(periodic, rows.norm(dim=-1), torch.ones_like(periodic, dtype=rows.dtype))
    gram = (rows / scale.unsqueeze(-1)) @ (rows / scale.unsqueeze(-1)).mT + torch.diag_embed((~periodic).double())
    if bool((torch.linalg.det(gram) < 1e-8).any()):
        raise ValueError("expected independent cell vectors (zero rows where nothing repeats), got a flat cell")
    return cell


_SAMPLES = 1 << 24  # a sample without points takes memory too


def plain_values(x: Tensor) -> Tensor | None:
    """The values of a tensor, unwrapped from torch.func's gradient transforms; None where it has none.

    Under vmap a tensor stands for many, and under a compiler for none yet.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return None
        x = functorch.get_unwrapped(x)
    with temporarily_clear_interpreter_stack():  # an operation inside of the transform would wrap it again
        return x.detach()
