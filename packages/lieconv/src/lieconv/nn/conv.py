r"""The LieConv layer: a convolution on the group, estimated from the given points.

.. math:: h_i = \sum_j w_{ij}\, k_\theta(v_j^{-1} u_i, q_i, q_j)\, f_j

The kernel is factorised as in PointConv, :math:`k_{oc} = \sum_m W_{o,(c,m)} \phi_m`, so that the small network
:math:`\phi` runs on pairs while the large matrix W runs on points.

Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, sections on the convolution, its discretisation and the
PointConv factorisation. The window weights w replace the paper's random choice within a ball.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lieconv.geometry import Geometry, kernel_dim
from lieconv.geometry.checks import check_numbers
from lieconv.geometry.lift import Coordinates, LiftName
from lieconv.geometry.neighbours import gather
from lieconv.nn.kernel import KernelNetwork, Standardise
from lieconv.nn.layout import check_geometry, check_values, check_weights, laid_out, rows_of
from lieconv.nn.neighbourhood import Neighbourhood
from lieconv.nn.sums import kernel_sums

_PAIRS = 1 << 18  # pairs whose features are held at once; beyond, backward computes them again


class LieConv(nn.Module):
    """Convolution equivariant to ``group``, from ``in_channels`` to ``out_channels`` features a point.

    Call it as ``layer(coords, values, mask)`` with coords (B, N, d), values (B, N, in_channels) and a boolean mask (B,
    N), or with a `Geometry` in place of coords to share the neighbourhoods with other layers: how it was built then
    counts, not this layer's ``num_neighbors``, ``radius`` or ``fill``. Coordinates (1, N, d)
    beside values (B, N, in_channels) are shared by all samples, as of images: the geometry is then that of one. Further
    arguments are those of `lieconv.build_geometry`: ``batch`` for ragged batches, ``cell``, ``queries``,
    ``quadrature``.

    Args:
        in_channels, out_channels: features a point.
        group: a group of `lie.groups` or your own.
        num_neighbors: neighbours a point at most, itself included.
        radius, fill: limits of the neighbourhoods; see `lieconv.nn.Neighbourhood`.
        lift: ``"exact"`` or the paper's ``"sampled"``; see `lieconv.geometry.build_geometry`.
        coordinates: what the kernel sees of a pair: ``"invariants"``, ``"log"`` or ``"entries"``; ``"auto"`` chooses.
        num_samples: group elements a point, for the sampled lift.
        hidden: width of the kernel network (the paper's 32).
        basis: number of kernel functions phi_m (the paper's 16).
        standardise: keep and use statistics of the kernel coordinates (`lieconv.nn.KernelNetwork`), as the layers of
            `LieResNet` do; with True a training step depends on the batch, with ``"once"`` on the first alone.
        at_random: whether training draws the neighbours in a ball at random; see `lieconv.nn.Neighbourhood`.
        generator: randomness while training; None is torch's own.

    Raises:
        ValueError: for numbers below 1, or what `lieconv.build_geometry` refuses.

    Law: with the exact lift ``layer(g coords, values, mask) == layer(coords, values, mask)`` for every g of
    the group: each output is a scalar that stays with its point.

    >>> import lie, torch
    >>> layer = LieConv(3, 8, group=lie.SE3(), num_neighbors=8)
    >>> layer(torch.randn(2, 20, 3), torch.randn(2, 20, 3)).shape
    torch.Size([2, 20, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: LieGroup,
        num_neighbors: int = 32,
        radius: float | None = None,
        fill: float | None = None,
        lift: LiftName = "exact",
        coordinates: Coordinates = "auto",
        num_samples: int = 1,
        hidden: int = 32,
        basis: int = 16,
        standardise: Standardise = False,
        at_random: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_numbers(in_channels=in_channels, out_channels=out_channels, hidden=hidden, basis=basis)
        self.in_channels, self.out_channels, self.group = in_channels, out_channels, group
        self.neighbourhood = Neighbourhood(
            group,
            num_neighbors=num_neighbors,
            radius=radius,
            fill=fill,
            lift=lift,
            coordinates=coordinates,
            num_samples=num_samples,
            at_random=at_random,
            generator=generator,
        )
        self.kernel = KernelNetwork(kernel_dim(group, lift, coordinates), basis, hidden=hidden, standardise=standardise)
        self.linear = nn.Linear(basis * in_channels, out_channels)

    def extra_repr(self) -> str:
        """The line shown by ``print``."""
        return f"{self.in_channels}, {self.out_channels}"

    def forward(
        self,
        coords: Float[Tensor, "*points d"] | Geometry,
        values: Float[Tensor, "*points c"],
        mask: Bool[Tensor, "*points"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "*points out"]:
        """Convolve; padded points come out as zero."""
        if isinstance(coords, Geometry):
            check_geometry(coords, mask, options, self.kernel.first.in_features)
            check_weights(values, self.linear.weight)
            return self._convolve(coords, values)
        check_values(coords, values, self.in_channels)
        check_weights(values, self.linear.weight)
        geometry = self.neighbourhood(coords, mask, **options)
        if geometry.num_samples == 1:
            return self._convolve(geometry, values)
        spread = rows_of(geometry, geometry.spread(values), self.in_channels)
        return laid_out(geometry, geometry.gather_samples(self.from_rows(geometry, spread)), per_point=True)

    def _convolve(self, geometry: Geometry, values: Tensor) -> Tensor:
        return laid_out(geometry, self.from_rows(geometry, rows_of(geometry, values, self.in_channels)))

    def from_rows(self, geometry: Geometry, values: Float[Tensor, "S P c"]) -> Float[Tensor, "S M out"]:
        """The convolution of copies of the sources, all with the geometry of one."""
        S, P, C = values.shape
        wide = values.transpose(0, 1).reshape(P, S * C)
        matrices = self.kernel.matrices(geometry)
        M, k = geometry.indices.shape
        pairs = geometry.kernel_coords, geometry.weights, geometry.indices
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or M * k <= _PAIRS:
            out = self._block(*pairs, wide, S, matrices)
        else:
            rows = max(1, _PAIRS // k)
            blocks = zip(*(x.split(rows) for x in pairs), strict=True)
            out = torch.cat([self._recomputed_block(*block, wide, S, matrices) for block in blocks], dim=1)
        return out if geometry.full else out.masked_fill(~geometry.mask.unsqueeze(-1), 0.0)

    def _recomputed_block(self, *arguments: Any) -> Tensor:
        """`_block` that is computed again in backward instead of holding the features of its pairs."""
        if not torch.is_grad_enabled():
            return self._block(*arguments)
        return checkpoint(self._block, *arguments, use_reentrant=False)  # type: ignore[return-value]

    def _block(
        self,
        kernel_coords: Tensor,
        weights: Tensor,
        indices: Tensor,
        wide: Tensor,
        copies: int,
        matrices: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "S M out"]:
        phi = self.kernel(kernel_coords.to(wide.dtype), matrices)  # (M, k, basis)
        phi = phi * weights.unsqueeze(-1).to(phi.dtype)
        features = kernel_sums(gather(wide, indices).to(phi.dtype), phi)  # (M, S * c, basis)
        if copies == 1:
            return self.linear(features.flatten(1)).unsqueeze(0)
        return self.linear(features.unflatten(1, (copies, -1)).flatten(2)).transpose(0, 1)
