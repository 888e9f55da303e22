"""LieResNet: lift, linear plus LieConv stem, residual LieConv blocks, global pool, linear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from lieconv.geometry import Geometry
from lieconv.geometry.build import check_quadrature
from lieconv.geometry.checks import check_flags, check_numbers
from lieconv.geometry.cloud import Cloud, chosen_points
from lieconv.geometry.geometry import element_rows
from lieconv.geometry.lift import Coordinates, LiftName
from lieconv.geometry.request import Targets
from lieconv.geometry.subsample import check_fraction, farthest_of, first_points
from lieconv.nn.blocks import BottleneckBlock, pool
from lieconv.nn.conv import LieConv
from lieconv.nn.layout import check_geometry, check_values, check_weights, laid_out, rows_of
from lieconv.nn.neighbourhood import Neighbourhood
from lieconv.nn.norm import make_norm
from lieconv.nn.vectors import VectorReadout


@dataclass(frozen=True)
class Resolutions:
    """The geometries of a `LieResNet`'s convolutions, to be used again while the points stay where they are.

    Fields:
        stem: of the points as given.
        blocks: of each block, from the points before it to those it keeps.
        last: of the points of the last block, where the network has vector outputs; else None.
    """

    stem: Geometry
    blocks: tuple[Geometry, ...]
    last: Geometry | None = None


register_pytree_node(
    Resolutions,
    lambda x: ([x.stem, x.blocks, x.last], None),
    lambda children, _: Resolutions(*children),
    serialized_type_name="lieconv.models.Resolutions",
)


@dataclass(frozen=True)
class _Level:
    """The points of one resolution.

    Fields:
        cloud: the points, checked.
        quadrature: their weights, flat, (P,).
        features: invariant features for their frames, (S, P, 2) for S sets of features.
        elements: group elements and orbit ids, with sampled lifts and groups of other kinds.
        spread: whether the points are in the order of farthest-point sampling.
    """

    cloud: Cloud
    quadrature: Tensor | None
    features: Tensor | None
    elements: tuple[Tensor, Tensor] | None
    spread: bool = False


class LieResNet(nn.Module):
    """A residual network on point sets that is invariant (pooled) or equivariant (per point) to ``group``.

    Call it as ``net(coords, values, mask)`` with coords (B, N, d), values (B, N, in_channels), mask bool (B, N); or
    with ragged points (P, d), values (P, in_channels) and ``batch`` (P,). Coordinates (1, N, d) beside values (B, N, C)
    are shared by all samples, as of images: their geometry is computed once. Where the same points come again and
    again, `resolutions` computes it once for all calls.

    Args:
        in_channels, out_channels: features a point in, and out (of the whole set where pooled).
        group: a group of `lie.groups` or your own.
        lift: ``"exact"`` (default): invariant up to rounding, deterministic. ``"sampled"``: the paper's
            random lifts, invariant in expectation; in evaluation they are drawn from a fixed seed.
        coordinates: what the kernel sees of a pair; see `lieconv.build_geometry`.
        num_samples: elements a point, for the sampled lift.
        channels: width between the blocks.
        num_layers: number of blocks.
        num_neighbors: neighbours a point at most, itself included.
        radius, fill: limits of the neighbourhoods; see `lieconv.nn.Neighbourhood`.
        bottleneck: divisor of the width inside the blocks.
        norm: ``"batch"`` (over all valid points of a training batch), or ``"layer"`` (of each point), with which no
            sample depends on its batch mates once the first training batch has set the scale of the kernel coordinates.
            None is ``"layer"`` for sums and forces, else ``"batch"``.
        downsample: which fraction of its points each block keeps, by farthest-point sampling: one number, or one for
            each block; 1 keeps all.
        pool: ``"mean"`` over the points before the head, (B, out); ``"sum"`` over the outputs of the points, (B, out),
            which is extensive: with a ``radius``, molecules far apart have the sum of their outputs. False gives
            (B, N, out), or the remaining points. True is ``"mean"``.
        forces: whether gradients by the points are wanted. Options and batches with which they would jump, or depend on
            the draws or samples of a training batch, are refused: see `lieconv.models.potential`.
        at_random: while training, draw the neighbours of a ball and the start of subsampling at random (the paper's);
            None draws with ``fill`` and ``downsample``, and not with a ``radius``.
        out_vectors: vectors besides the scalars, which rotate with the points; the output is then a pair
            ``(scalars, vectors)``, vectors (B, out_vectors, d) pooled or (B, N, out_vectors, d).
        generator: randomness while training (sampled lifts, balls, the start of the sampling); None is torch's own.

    Raises:
        ValueError: for numbers below 1, fractions outside of (0, 1], unknown names, what `lieconv.build_geometry`
            refuses, and with ``forces`` what would make them jump.

    Laws (exact lift): ``net(g coords, values, mask) == net(coords, values, mask)`` for every g of the group, and
    vectors rotate as the points do; the order of the points, padding and batch mates change nothing.

    Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, section on the network architecture. The exact lift
    and the convolution in the stem are ours.

    >>> import lie, torch
    >>> net = LieResNet(1, 10, group=lie.SE2(), channels=16, num_layers=2)
    >>> net(torch.randn(4, 30, 2), torch.randn(4, 30, 1), torch.ones(4, 30, dtype=torch.bool)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: LieGroup,
        lift: LiftName = "exact",
        coordinates: Coordinates = "auto",
        num_samples: int = 1,
        channels: int = 128,
        num_layers: int = 6,
        num_neighbors: int = 32,
        radius: float | None = None,
        fill: float | None = None,
        bottleneck: int = 4,
        norm: Literal["batch", "layer"] | None = None,
        downsample: float | Sequence[float] = 1.0,
        pool: Literal["mean", "sum"] | bool = "mean",
        forces: bool = False,
        at_random: bool | None = None,
        out_vectors: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_numbers(
            in_channels=in_channels,
            out_channels=out_channels,
            channels=channels,
            num_layers=num_layers,
            bottleneck=bottleneck,
        )
        if type(out_vectors) is not int or out_vectors != 0:
            check_numbers(out_vectors=out_vectors)
        check_flags(forces=forces, **({} if at_random is None else {"at_random": at_random}))
        pool = _checked_pool(pool)
        fractions = _fractions(downsample, num_layers)
        if norm is None:
            norm = "layer" if forces or pool == "sum" else "batch"
        if forces:
            _check_forces(norm, fractions)
        limited = radius is not None or fill is not None
        if at_random and not limited and min(fractions) == 1.0:
            raise ValueError("nothing is drawn at random without radius, fill or downsample; leave at_random out")
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.group, self.lift, self.num_samples, self.fractions = group, lift, num_samples, fractions
        self.pool, self.out_vectors, self.num_neighbors = pool, out_vectors, num_neighbors
        self.forces, self.random_start = forces, at_random is not False
        levels = 1 + sum(fraction < 1.0 for fraction in fractions)
        self.neighbourhoods = nn.ModuleList(
            Neighbourhood(
                group,
                num_neighbors=num_neighbors,
                radius=radius,
                fill=fill,
                lift=lift,
                coordinates=coordinates,
                num_samples=num_samples,
                at_random=at_random if limited else None,
                smooth=forces,
                generator=generator,
            )
            for _ in range(levels)
        )
        uses = self.neighbourhoods[0].uses_features
        self.frame_features = nn.Linear(in_channels, 2) if uses else None
        self.embed = nn.Linear(in_channels, channels)
        standardise = True if norm == "batch" else "once"
        layer: dict[str, Any] = {"group": group, "lift": lift, "coordinates": coordinates, "standardise": standardise}
        # Where the values are the same everywhere (bare points), a linear map alone would hand the first
        # normalisation features without variance: the convolution reads the shape of the neighbourhoods first.
        self.stem = LieConv(in_channels, channels, **layer)
        self.blocks = nn.ModuleList(
            BottleneckBlock(channels, bottleneck=bottleneck, norm=norm, **layer) for _ in range(num_layers)
        )
        self.norm = make_norm(norm, channels)
        self.head = nn.Linear(channels, out_channels)
        self.readout = VectorReadout(channels, out_vectors, centred=pool is not False, **layer) if out_vectors else None

    @property
    def generator(self) -> torch.Generator | None:
        """The randomness of training."""
        return self.neighbourhoods[0].generator  # type: ignore[return-value]

    def forward(
        self,
        coords: Float[Tensor, "*points d"] | Resolutions,
        values: Float[Tensor, "*points c"],
        mask: Bool[Tensor, "*points"] | None = None,
        *,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        quadrature: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The network's output; ``cell`` and ``quadrature`` are those of `lieconv.build_geometry`."""
        if isinstance(coords, Resolutions):
            options = {"batch": batch, "cell": cell, "quadrature": quadrature}
            self._check_resolutions(coords, mask, {name: x for name, x in options.items() if x is not None})
            check_weights(values, self.embed.weight)
            plan = coords
            if mask is not None:
                values = torch.where(mask.unsqueeze(-1), values, torch.zeros_like(values))
        else:
            check_values(coords, values, self.in_channels)
            check_weights(values, self.embed.weight)
            cloud = self._stem_neighbourhood.cloud(coords, mask, batch=batch, cell=cell)
            if mask is not None:
                values = torch.where(mask.unsqueeze(-1), values, torch.zeros_like(values))
            features = None if self.frame_features is None else self.frame_features(values)
            plan = self._resolutions(cloud, quadrature, features)
        rows = rows_of(plan.stem, plan.stem.spread(values), self.in_channels)  # (S, P, c)
        x = self.embed(rows) + self.stem.from_rows(plan.stem, rows)
        for block, geometry in zip(self.blocks, plan.blocks, strict=True):
            x = block.from_rows(geometry, x)  # type: ignore[operator]
        points = plan.blocks[-1]  # a geometry at the points of x
        x = nn.functional.silu(self.norm(x, None if points.full else points.mask))
        vectors = None if plan.last is None else self._vectors(plan.last, x)
        return self._outputs(points, x, vectors)

    def resolutions(
        self,
        coords: Float[Tensor, "*points d"],
        mask: Bool[Tensor, "*points"] | None = None,
        *,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        quadrature: Tensor | None = None,
    ) -> Resolutions:
        """Compute the geometries of points, to pass in place of ``coords`` in later calls with the same points.

        What is drawn at random while training (balls, lifts, the start of the sampling) is drawn once, here.

        Raises:
            ValueError: where the frames of the points depend on their values, as of SE2, SO3 and SE3 with the exact
                lift; and what `lieconv.build_geometry` refuses.

        >>> import lie, torch
        >>> net, image = LieResNet(1, 10, group=lie.T(2), num_layers=2), torch.rand(1, 30, 2)
        >>> resolutions = net.resolutions(image)
        >>> net(resolutions, torch.randn(4, 30, 1)).shape
        torch.Size([4, 10])
        """
        if self.frame_features is not None:
            raise ValueError(
                f"with the exact lift of {self.group!r} the geometry depends on the values too (they tell symmetric "
                f"neighbourhoods apart): give the network coords and values, or choose lift='sampled'"
            )
        cloud = self._stem_neighbourhood.cloud(coords, mask, batch=batch, cell=cell)
        return self._resolutions(cloud, quadrature, None)

    @property
    def _stem_neighbourhood(self) -> Neighbourhood:
        return self.neighbourhoods[0]  # type: ignore[return-value]

    def _resolutions(self, cloud: Cloud, quadrature: Tensor | None, features: Tensor | None) -> Resolutions:
        level = self._first_level(cloud, quadrature, features)
        stem = self._geometry(0, level)
        geometry: Geometry | None = stem  # of all points of the level; None until something asks for it
        depth, blocks = 0, []
        for fraction in self.fractions:
            if fraction < 1.0:
                block_geometry, level = self._coarser(depth, level, fraction, geometry)
                depth, geometry = depth + 1, None
            else:
                block_geometry = geometry = self._geometry(depth, level) if geometry is None else geometry
            blocks.append(block_geometry)
        last = None
        if self.readout is not None:
            last = self._geometry(depth, level) if geometry is None else geometry
        return Resolutions(stem, tuple(blocks), last)

    def _first_level(self, cloud: Cloud, quadrature: Tensor | None, features: Tensor | None) -> _Level:
        if quadrature is not None:
            quadrature = check_quadrature(quadrature, cloud)
        if features is not None:
            # One set of features, or, for shared coordinates, one for each sample.
            features = features.unsqueeze(0) if features.ndim == 2 else features
            if features.shape[:2] == cloud.shape:
                features = features.flatten(0, 1).unsqueeze(0)
        # Elements are drawn once and kept at every resolution.
        neighbourhood = self._stem_neighbourhood
        elements = neighbourhood.point_lift.elements(cloud.coords, neighbourhood.random(cloud.coords.device))
        return _Level(cloud, quadrature, features, elements)

    def _check_resolutions(self, resolutions: Resolutions, mask: Tensor | None, options: dict[str, Any]) -> None:
        check_geometry(resolutions.stem, mask, options, self.stem.kernel.first.in_features)
        shape = len(self.blocks), self.readout is not None
        if (len(resolutions.blocks), resolutions.last is not None) != shape:
            raise ValueError(
                f"expected the resolutions of {len(self.blocks)} blocks, got those of a network of "
                f"{len(resolutions.blocks)}; make them by resolutions(...) of the network that uses them"
            )

    def _outputs(self, geometry: Geometry, x: Tensor, vectors: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        if self.pool == "mean":
            out = self.head(pool(geometry, x))
        elif self.pool == "sum":  # of the outputs, so that the bias of the head counts once a point
            out = pool(geometry, self.head(x), "sum") / self.num_samples
        else:
            mask = geometry.mask[:: self.num_samples].unsqueeze(-1)
            out = self.head(geometry.gather_samples(x)).masked_fill(~mask, 0.0)
            out = laid_out(geometry, out, per_point=True)
        return out if vectors is None else (out, vectors)

    def _vectors(self, geometry: Geometry, x: Tensor) -> Tensor:
        assert self.readout is not None
        y = self.readout.from_rows(geometry, x)  # (S, M, V, d)
        shape = y.shape[-2:]
        if self.pool == "mean":
            return pool(geometry, y.flatten(-2)).unflatten(-1, shape)
        if self.pool == "sum":
            return pool(geometry, y.flatten(-2), "sum").unflatten(-1, shape) / self.num_samples
        y = laid_out(geometry, geometry.gather_samples(y.flatten(-2)), per_point=True)
        return y.unflatten(-1, shape)

    def _geometry(self, depth: int, level: _Level, targets: Targets | None = None) -> Geometry:
        neighbourhood: Neighbourhood = self.neighbourhoods[depth]  # type: ignore[assignment]
        return neighbourhood.from_cloud(
            level.cloud,
            targets,
            quadrature=level.quadrature,
            frame_features=None if level.features is None else level.features.flatten(0, 1),
            elements=level.elements,
        )

    def _coarser(
        self, depth: int, level: _Level, fraction: float, geometry: Geometry | None
    ) -> tuple[Geometry, _Level]:
        """Subsample a level.

        Args:
            depth: number of subsamplings before this one.
            level: the points.
            fraction: of them to keep.
            geometry: of all points of the level, of which the result is then a part; None where it is not computed.

        Returns:
            The geometry from all points to the kept ones, and the kept points.
        """
        cloud, elements = level.cloud, level.elements
        if level.spread:
            assert cloud.shape is not None
            mask = None if cloud.full else cloud.mask.view(cloud.shape)
            index, shape, valid = first_points(cloud.shape, mask, fraction, cloud.coords.device)
        else:
            index, shape, valid = farthest_of(
                self.group,
                cloud,
                fraction=fraction,
                at_random=self.training and self.random_start,
                elements=self._one_each(elements),
                generator=self.generator,
            )
        # Samples of one size keep equally many points, and none is padding. Ragged ones become a padded batch.
        target_mask = None if cloud.shape is not None and cloud.full else valid
        coarse = chosen_points(cloud, index, shape, target_mask)
        if geometry is None:
            geometry = self._geometry(depth, level, Targets(coarse, index))
        else:
            geometry = geometry.restricted(index, target_shape=shape, target_mask=target_mask)
        quadrature = None if level.quadrature is None else level.quadrature[index] * coarse.mask
        features = None if level.features is None else level.features[:, index]
        if elements is not None:
            rows = element_rows(index, self.num_samples)
            elements = elements[0][rows], elements[1][rows]
        return geometry, _Level(coarse, quadrature, features, elements, spread=True)

    def _one_each(self, elements: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """The first of the elements of each point."""
        return None if elements is None else (elements[0][:: self.num_samples], elements[1][:: self.num_samples])


def _checked_pool(pool: Any) -> Literal["mean", "sum", False]:
    if pool is True:
        return "mean"
    if pool is False or (isinstance(pool, str) and pool in ("mean", "sum")):
        return pool  # type: ignore[return-value]
    raise ValueError(f"expected pool 'mean', 'sum' or False, got {pool!r}; pool='sum' is extensive, as energies are")


def _fractions(downsample: float | Sequence[float], num_layers: int) -> list[float]:
    """The fraction of its points that each block keeps."""
    per_block = isinstance(downsample, Sequence) and not isinstance(downsample, str)
    fractions = list(downsample) if per_block else [downsample] * num_layers  # type: ignore[arg-type]
    try:
        for fraction in fractions:
            check_fraction(fraction)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"expected downsample as a fraction in (0, 1], or one for each of {num_layers} blocks, got {downsample!r}"
        ) from None
    if len(fractions) != num_layers:
        raise ValueError(f"expected downsample for each of {num_layers} blocks, got {len(fractions)} fractions")
    return fractions  # type: ignore[return-value]


def _check_forces(norm: str, fractions: list[float]) -> None:
    """Raise for options of the network with which gradients by the points jump, or mix the samples of a batch."""
    if norm == "batch":
        raise ValueError("norm='batch' makes forces on one sample depend on the others of its batch; use norm='layer'")
    if min(fractions) < 1.0:
        raise ValueError(
            "forces jump where subsampling chooses other points; use downsample=1, or forces=False to accept that"
        )
