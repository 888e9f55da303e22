r"""The LieConv layer: a convolution on the group, estimated from the points at hand.

.. math:: h_i = \sum_j w_{ij}\, k_\theta(v_j^{-1} u_i, q_i, q_j)\, f_j

The kernel is factorised as in PointConv, :math:`k_{oc} = \sum_m W_{o,(m,c)} \phi_m`, so that the small network
:math:`\phi` runs on pairs while the large matrix W runs on points.

Source: Finzi et al. 2020 (LieConv), arXiv 2002.12880, sections on the convolution, its discretisation and the
PointConv factorisation. The window weights w replace the paper's random choice within a ball.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from lie.groups import LieGroup
from torch import Tensor, nn

from lieconv.geometry import Geometry, build_geometry, kernel_dim
from lieconv.geometry.geometry import Lift
from lieconv.geometry.neighbours import gather


class LieConv(nn.Module):
    """Convolution equivariant to ``group``, from ``in_channels`` to ``out_channels`` features a point.

    Call it as ``layer(coords, values, mask)`` with coords (B, N, d), values (B, N, in_channels) and a boolean mask
    (B, N), or with a `Geometry` in place of coords to share the neighbourhoods with other layers.

    Args:
        in_channels, out_channels: features a point.
        group: a group of `lie.groups` or your own.
        num_neighbors: neighbours a point, itself included.
        lift: ``"exact"`` or the paper's ``"sampled"``; see `lieconv.geometry.build_geometry`.
        num_samples: group elements a point, for the sampled lift.
        hidden: width of the kernel network (the paper's 32).
        basis: number of kernel functions phi_m (the paper's 16).

    Law: with the exact lift ``layer(g coords, values, mask) == layer(coords, values, mask)`` for every g of
    the group: each output is a scalar that stays with its point.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: LieGroup,
        num_neighbors: int = 32,
        lift: Lift = "exact",
        num_samples: int = 1,
        hidden: int = 32,
        basis: int = 16,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("num_neighbors", num_neighbors),
            ("hidden", hidden),
            ("basis", basis),
        ):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.group, self.num_neighbors, self.num_samples = group, num_neighbors, num_samples
        self.lift: Lift = lift
        self.kernel = nn.Sequential(
            nn.Linear(kernel_dim(group, lift), hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, basis),
        )  # fmt: skip
        self.linear = nn.Linear(basis * in_channels, out_channels)

    def extra_repr(self) -> str:
        """The line shown by ``print``."""
        return (
            f"{self.in_channels}, {self.out_channels}, group={self.group!r}, "
            f"num_neighbors={self.num_neighbors}, lift={self.lift!r}"
        )

    def forward(
        self,
        coords: Float[Tensor, "B N d"] | Geometry,
        values: Float[Tensor, "B N c"],
        mask: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N out"]:
        """Convolve; padded points come out as zero."""
        if isinstance(coords, Geometry):
            return self._convolve(coords, values)
        geometry = build_geometry(
            self.group, coords, mask,
            num_neighbors=self.num_neighbors, lift=self.lift, num_samples=self.num_samples,
        )  # fmt: skip
        check_values(coords, values, self.in_channels)
        return geometry.gather_samples(self._convolve(geometry, geometry.spread(values)))

    def _convolve(self, geometry: Geometry, values: Tensor) -> Tensor:
        phi = self.kernel(geometry.kernel_coords) * geometry.weights.unsqueeze(-1)  # (B, N, k, basis)
        neighbours = gather(values, geometry.indices)  # (B, N, k, c)
        features = (phi.mT @ neighbours).flatten(-2)  # (B, N, basis * c)
        out = self.linear(features)
        return out.masked_fill(~geometry.mask.unsqueeze(-1), 0.0)


def check_values(coords: Tensor, values: Tensor, channels: int) -> None:
    """Raise where ``values`` do not fit the points or the layer."""
    if values.shape != (*coords.shape[:2], channels):
        raise ValueError(
            f"expected values of shape {(*coords.shape[:2], channels)} (B, N, channels), got {tuple(values.shape)}"
        )
    if values.dtype != coords.dtype:
        raise TypeError(f"expected values and points of one dtype, got {values.dtype} and {coords.dtype}")
