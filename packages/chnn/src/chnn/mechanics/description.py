"""A mechanical system as plain data: what a field, a kernel generator, a drawing or a file loader reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics.bodies import Body, inverse_mass_matrix, mass_matrix
from chnn.mechanics.constraints import Constraints, Metric
from chnn.mechanics.elimination import eliminate_joints, joint_metric
from chnn.mechanics.forces import Force, Gravity

PointMap = tuple[tuple[int, float], ...]
"""An affine combination of points: pairs of an index and a weight."""


@dataclass(frozen=True)
class Drawing:
    """What to draw, by affine combinations of points and fixed places.

    Fields:
        anchors: fixed places, (a, d).
        rods, springs: pairs of ends; an end is the index of a point, n + k for mark k, or -1, -2, ... for an anchor.
        marks: combinations of points that are drawn as dots, beside the point masses.
        meshes: (name of a body, vertices in its axes (V, 3), triangles (F, 3)).
    """

    anchors: Float[Tensor, "a d"]
    rods: tuple[tuple[int, int], ...] = ()
    springs: tuple[tuple[int, int], ...] = ()
    marks: tuple[PointMap, ...] = ()
    meshes: tuple[tuple[str, Tensor, Tensor], ...] = ()


@dataclass(frozen=True)
class Description:
    """A system of bodies, constraints and forces, complete and checked; made by `Assembly.build`.

    Fields:
        name: of the system.
        spatial_dim: d, 2 or 3.
        bodies: in the order of their points.
        inertia_factor: E, (n, n), with the mass matrix ``M = E diag(inertia) E^T``.
        inertia: (n,): for each body its mass (kg) and principal second moments (kg m^2).
        constraints: independent ones.
        redundant: names of constraints that follow from the others and were left out.
        forces: all forces that belong to the system.
        reference: a configuration on the constraints, (n, d).
        drawing: what to draw.
    """

    name: str
    spatial_dim: int
    bodies: tuple[Body, ...]
    inertia_factor: Float[Tensor, "n n"]
    inertia: Float[Tensor, " n"]
    constraints: Constraints
    redundant: tuple[str, ...]
    forces: tuple[Force, ...]
    reference: Float[Tensor, "n d"]
    drawing: Drawing
    free: Tensor | None = field(default=None, repr=False)
    """Basis (n, n - L) of the motions that the joints allow; found by default."""
    metric: Metric = field(init=False, repr=False)
    """Products of the masses with the constraints, float64."""

    def __post_init__(self) -> None:
        joints = self.constraints
        if self.free is None:
            names = joints.names[len(joints.A) :]
            _, basis = eliminate_joints(joints.joint_A.numpy(), joints.joint_b.numpy(), names, self.bodies)
            object.__setattr__(self, "free", torch.from_numpy(basis))
        assert self.free is not None
        metric = joint_metric(joints, self.free, self.inertia_factor, self.inertia)
        object.__setattr__(self, "metric", metric)

    @property
    def num_points(self) -> int:
        """Number of points n."""
        return len(self.inertia)

    @property
    def mass(self) -> Float[Tensor, "n n"]:
        """The mass matrix M, float64."""
        return mass_matrix(self.inertia_factor, self.inertia)

    @property
    def inverse_mass(self) -> Float[Tensor, "n n"]:
        """The inverse of M, float64."""
        return inverse_mass_matrix(self.inertia_factor, self.inertia)

    @property
    def degrees_of_freedom(self) -> int:
        """Coordinates less independent constraints."""
        return self.num_points * self.spatial_dim - self.constraints.num_constraints

    def body(self, name: str) -> Body:
        """The body called ``name``."""
        for body in self.bodies:
            if body.name == name:
                return body
        raise UserError(f"{self.name} has no body '{name}'; it has {', '.join(body.name for body in self.bodies)}")

    def with_inertia(self, inertia: Float[Tensor, " n"]) -> Description:
        """The same system with other masses and moments, and the weights that go with them.

        Differentiable: a simulation of ``System(description.with_inertia(inertia))`` has a gradient by ``inertia``.
        """
        inertia = torch.as_tensor(inertia, dtype=torch.float64)
        weights = mass_matrix(self.inertia_factor, inertia).sum(1)
        forces = tuple(replace(each, weights=weights) if isinstance(each, Gravity) else each for each in self.forces)
        return replace(self, inertia=inertia, forces=forces)
