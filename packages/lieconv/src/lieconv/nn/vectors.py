r"""Vector outputs that rotate with the points: forces, velocities, dipoles.

They are sums of offsets to neighbours, which rotate with the points, weighted by invariant numbers made of features and
kernel coordinates:

.. math:: y_i = \sum_j w_{ij}\, s_{ij}\, (x_j - x_i) \; [+\; a_i \times b_i] \;[+\; c_i\, p_i]

with :math:`s_{ij} = \sum_m \phi_m(v_j^{-1} u_i)\, (A f_j)_m`, the cross product of two such sums in space (offsets
rotated by a quarter turn in the plane) where the group keeps orientation and length, and the point p as seen from a
centre: that which the group keeps or, where the vectors of a sample are pooled, its mean (vectors of points stay
local). In a symmetric neighbourhood the sum is a vector that the symmetry keeps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from lie.groups import LieGroup, affine_structure
from torch import Tensor, nn

from lieconv.geometry import Geometry, kernel_dim
from lieconv.geometry.checks import check_flags, check_group, check_numbers
from lieconv.geometry.lift import Coordinates, LiftName
from lieconv.geometry.neighbours import gather
from lieconv.nn.kernel import KernelNetwork, Standardise
from lieconv.nn.layout import check_geometry, check_weights, rows_of


class VectorReadout(nn.Module):
    """Vectors (..., M, vectors, d) of the points of a geometry from features of its sources.

    Args:
        in_channels: features of the sources.
        vectors: vectors a point.
        group: with an action ``x -> A x + t``: outputs are multiplied by A.
        lift, coordinates: as of the geometry.
        centred: also weigh each point as seen from the centre of its sample, which makes a vector depend on all points
            of it; meant for vectors that are pooled, as dipoles. Without, vectors depend on neighbourhoods alone.
        hidden, basis, standardise: of the kernel network.

    Raises:
        ValueError: for numbers below 1.

    Law: ``readout(g x) == A readout(x)`` for ``g x = A x + t``.
    """

    def __init__(
        self,
        in_channels: int,
        vectors: int,
        *,
        group: LieGroup,
        lift: LiftName = "exact",
        coordinates: Coordinates = "auto",
        hidden: int = 32,
        basis: int = 8,
        standardise: Standardise = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        check_numbers(in_channels=in_channels, vectors=vectors, hidden=hidden, basis=basis)
        check_flags(centred=centred)
        check_group(group)
        self.in_channels, self.vectors = in_channels, vectors
        d = group.point_dim or group.matrix_dim
        structure = affine_structure(group)
        keeps_orientation = structure is not None and not structure.dilation
        self.turned = d == 2 and structure is not None
        self.crossed = d == 3 and keeps_orientation
        self.sums = vectors * (1 + int(self.turned) + 2 * int(self.crossed))
        self.kernel = KernelNetwork(kernel_dim(group, lift, coordinates), basis, hidden=hidden, standardise=standardise)
        self.weigh = nn.Linear(in_channels, basis * self.sums)
        # A point is a vector only as seen from a centre that moves with the points, or that the group keeps.
        zero = torch.zeros(d, dtype=torch.float64)
        keeps_origin = bool((group.vector_field(torch.eye(group.dim, dtype=torch.float64), zero) == 0).all())
        self.place = nn.Linear(in_channels, vectors) if (centred and structure is not None) or keeps_origin else None

    def forward(self, geometry: Geometry, values: Float[Tensor, "*points c"]) -> Float[Tensor, "S M V d"]:
        """The vectors as rows; zero where padded."""
        check_geometry(geometry, None, {}, self.kernel.first.in_features)
        check_weights(values, self.weigh.weight)
        return self.from_rows(geometry, rows_of(geometry, values, self.in_channels))

    def from_rows(self, geometry: Geometry, rows: Float[Tensor, "S P c"]) -> Float[Tensor, "S M V d"]:
        """The vectors from copies of the rows of the sources."""
        matrices = self.kernel.matrices(geometry)
        phi = self.kernel(geometry.kernel_coords.to(rows.dtype), matrices)  # (M, k, basis)
        phi = phi * geometry.weights.unsqueeze(-1).to(phi.dtype)
        weights = self.weigh(rows).unflatten(-1, (-1, self.sums))  # (S, P, basis, sums)
        offsets = geometry.offsets.to(rows.dtype)
        pieces = [self._sums(phi, copy, geometry.indices, offsets) for copy in weights]
        sums = torch.stack(pieces).split(self.vectors, dim=2)  # (S, M, V, d) each
        y = sums[0]
        if self.place is not None:
            positions = geometry.positions.to(rows.dtype).unsqueeze(-2)  # (M, 1, d)
            y = y + self.place(geometry.at_targets(rows)).unsqueeze(-1) * positions
        if self.turned:
            y = y + torch.stack([-sums[1][..., 1], sums[1][..., 0]], dim=-1)
        if self.crossed:
            y = y + torch.linalg.cross(sums[1], sums[2], dim=-1)
        return y.masked_fill(~geometry.mask[:, None, None], 0.0)

    def _sums(self, phi: Tensor, weights: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
        """Weighted sums of offsets (M, sums, d): first over neighbours for every kernel function and sum."""
        near = gather(weights, indices)  # (M, k, basis, sums)
        s = (phi.unsqueeze(-1) * near).sum(2)  # (M, k, sums)
        return s.mT @ offsets
