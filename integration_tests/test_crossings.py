"""What crosses between the packages is duck-typed, and fits: networks, potentials, actions, flows."""

from __future__ import annotations

import pytest
import torch
from chnn.models import CHNN
from chnn.systems import GRAVITY, ChainPendulum
from lie.autodiff import hamiltonian_field, jvp_along
from lie.groups import SE2, SO2, T, Trivial
from lie.integrators import odeint
from lie.testing import assert_equivariant
from lieconv import LieResNet
from liederivative import lie_derivative
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LieConvPotential(nn.Module):
    """A pooled LieConv network as a potential: x (..., n, d) -> (...)."""

    def __init__(self, group) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = LieResNet(1, 1, group=group, channels=8, num_layers=1, num_neighbors=4).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        sets = x.reshape(-1, *x.shape[-2:])
        values = torch.ones(*sets.shape[:2], 1, dtype=x.dtype)
        return self.net(sets, values).reshape(x.shape[:-2])


def test_a_lieconv_network_is_a_potential_of_a_constrained_system():
    system = ChainPendulum(3)
    model = CHNN(system.constraints_on_points, potential=LieConvPotential(Trivial(2))).double()
    z0 = system.sample(2, generator=generator())
    with torch.no_grad():
        z = model.rollout(z0, torch.linspace(0, 0.3, 4, dtype=torch.float64), rtol=1e-9, atol=1e-11)
    assert system.constraints(z).abs().max() < 1e-7
    energy = model.energy(z)
    assert (energy - energy[:, :1]).abs().max() < 1e-6 * energy.abs().max()
    loss = model.rk4_rollout(z0, 0.03, 2).square().mean()
    gradients = torch.autograd.grad(loss, list(model.potential.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_a_symmetric_potential_conserves_the_momenta_of_its_group():
    """Noether: H invariant under SE(2) keeps linear and angular momentum; a T(2) potential keeps the linear only."""
    n = 5
    z0 = torch.randn(1, 2, n, 2, dtype=torch.float64, generator=generator())
    t = torch.linspace(0, 1, 3, dtype=torch.float64)

    def momenta(z: Tensor) -> tuple[Tensor, Tensor]:
        q, p = z.unbind(-3)
        return p.sum(-2), (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(-1)

    for group, keeps_angular in ((SE2(), True), (T(2), False)):
        potential = LieConvPotential(group)
        field = hamiltonian_field(lambda z, V=potential: 0.5 * z[:, 1].square().sum((-2, -1)) + 30 * V(z[:, 0]), dim=-3)
        z = odeint(field, z0, t, rtol=1e-10, atol=1e-12)
        linear, angular = momenta(z)
        assert (linear - linear[0]).abs().max() < 1e-9
        drift = (angular - angular[0]).abs().max()
        assert drift < 1e-9 if keeps_angular else drift > 1e-5


@pytest.mark.parametrize("group", [SO2(), SE2(), T(2)], ids=repr)
def test_the_lie_derivative_of_a_network_vanishes_under_its_own_group_alone(group):
    torch.manual_seed(0)
    net = LieResNet(1, 3, group=group, channels=8, num_layers=2, num_neighbors=6).double().eval()
    x = torch.randn(2, 12, 2, dtype=torch.float64, generator=generator())
    values = torch.randn(2, 12, 1, dtype=torch.float64, generator=generator(1))
    for other in (T(2), SO2()):
        a = torch.ones(other.dim, dtype=torch.float64)
        y, along = jvp_along(lambda points: net(points, values), x, other.vector_field(a.expand(2, 12, -1), x))
        contained = type(other) is type(group) or isinstance(group, SE2)
        size = along.abs().max() / y.abs().max()
        assert size < 1e-12 if contained else size > 1e-6


def test_a_lieconv_network_on_images_is_measured_by_liederivative():
    """A network on pixels as points: `lie_derivative` takes any callable on images."""
    torch.manual_seed(0)
    net = LieResNet(3, 5, group=T(2), channels=8, num_layers=1, num_neighbors=9).double().eval()
    axis = torch.linspace(-1, 1, 8, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    coords = torch.stack([x, y], -1).view(1, 64, 2)

    class OnImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            return self.net(coords.expand(len(images), -1, -1), images.flatten(2).mT)

    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=generator())
    derivative = lie_derivative(OnImages(), images, "rotate")
    assert derivative.shape == (2, 5) and torch.isfinite(derivative).all() and derivative.abs().max() > 1e-6


def test_a_constrained_flow_commutes_with_the_symmetry_of_its_system():
    """Reflection in the vertical line keeps gravity and rods: the flow of a mirrored state is the mirrored flow."""
    system = ChainPendulum(2)
    z0 = system.sample(3, generator=generator())
    mirror = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    t = torch.linspace(0, 0.5, 3, dtype=torch.float64)
    assert_equivariant(lambda z: system.simulate(z, t, 1e-11), lambda z: z * mirror, lambda z: z * mirror, z0,
                       tolerance=1e-8)  # fmt: skip


def test_the_same_pendulum_in_angles_and_in_cartesian_coordinates():
    """`lie`'s Hamiltonian field of one pendulum against `chnn`'s constrained simulation."""
    system = ChainPendulum(1)
    field = hamiltonian_field(lambda s: 0.5 * s[..., 1] ** 2 - GRAVITY * s[..., 0].cos())
    s0 = torch.tensor([[1.2, 0.4], [-0.5, 2.0]], dtype=torch.float64)
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    angles = odeint(field, s0, t, rtol=1e-10, atol=1e-12).transpose(0, 1)
    z = system.simulate(system.from_angles(s0.unsqueeze(-1)), t, rtol=1e-11)
    torch.testing.assert_close(z, system.from_angles(angles.unsqueeze(-1)), rtol=0, atol=1e-7)
