"""With the true masses and potential the models are the true dynamics; learnt energies are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from chnn.mechanics import Assembly, Force
from chnn.models import CHNN, CLNN, HNN, MLPPotential
from chnn.models.potential import potential_gradient
from chnn.systems import (
    CartPole,
    ChainPendulum,
    CoupledPendulum,
    Gyroscope,
    MagnetPendulum,
    Rotor,
    Satellite,
    System,
)
from chnn.training import TrainConfig, build_model
from lie.run import UserError
from torch import nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TruePotential(nn.Module):
    """A potential from outside, without a ``gradient`` of its own."""

    def __init__(self, system):
        super().__init__()
        self.system = system

    def forward(self, x):
        return self.system.potential(x)


@pytest.mark.parametrize(
    "system",
    [ChainPendulum(3, masses=[1.0, 2.0, 0.5]), CoupledPendulum(2, masses=[1.0, 3.0]), Gyroscope(), Satellite()],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("model_class", [CHNN, CLNN])
def test_true_ingredients_give_true_motion(system, model_class):
    model = model_class(system.description, potential=TruePotential(system)).double()
    model.log_mass.data = system.description.inertia.log()
    z = system.sample(5, generator=generator())
    field = model.field(model.encode(z))
    rate = model.decode(field)  # encode and decode are linear
    torch.testing.assert_close(rate, system.field(z), rtol=1e-9, atol=1e-9)
    t = torch.linspace(0, 0.5, 6, dtype=torch.float64)
    torch.testing.assert_close(model.rollout(z, t, rtol=1e-10, atol=1e-12), system.simulate(z, t, 1e-12),
                               rtol=0, atol=1e-6)  # fmt: skip
    torch.testing.assert_close(model.energy(z), system.energy(z))


@pytest.mark.parametrize("name", ["chnn", "clnn", "hnn"])
def test_learnt_energy_and_constraints_are_kept(name):
    system = ChainPendulum(2, lengths=[1.0, 0.6])
    torch.manual_seed(0)
    model = {"chnn": lambda: CHNN(system.description, hidden=16),
             "clnn": lambda: CLNN(system.description, hidden=16),
             "hnn": lambda: HNN(system, hidden=16)}[name]().double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    z0 = system.sample(4, generator=generator())
    torch.testing.assert_close(model.decode(model.encode(z0)), z0, rtol=0, atol=1e-12)
    with torch.no_grad():
        z = model.rollout(z0, torch.linspace(0, 1, 5, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    energy = model.energy(z)
    assert (energy - energy[:, :1]).abs().max() <= 1e-7 * energy.abs().max()  # rtol 1e-10 over a few hundred steps
    assert system.constraints(z).abs().max() <= 1e-7
    assert (z[:, -1] - z0).abs().max() > 0.1  # it did move


def test_the_written_gradient_is_autograds():
    potential = MLPPotential(3, 2, hidden=16).double()
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64, requires_grad=True, generator=generator())
    (expected,) = torch.autograd.grad(potential(x).sum(), x)
    torch.testing.assert_close(potential.gradient(x), expected, rtol=1e-12, atol=1e-14)
    wrapped = nn.Sequential(nn.Flatten(-2), nn.Linear(6, 4, dtype=torch.float64), nn.Tanh(), nn.Flatten(-1))

    class Foreign(nn.Module):
        def forward(self, y):
            return wrapped(y).sum(-1)

    with torch.no_grad():
        plain = potential_gradient(Foreign(), x.detach())
    assert not plain.requires_grad
    (expected,) = torch.autograd.grad(Foreign()(x).sum(), x)
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("name", ["chnn", "clnn", "hnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_reach_every_parameter_and_are_right(name, dtype):
    system = ChainPendulum(2)
    torch.manual_seed(0)
    model = {"chnn": lambda: CHNN(system.description, hidden=8), "clnn": lambda: CLNN(
        system.description, hidden=8), "hnn": lambda: HNN(system, hidden=8)}[name]().to(dtype)  # fmt: skip
    z = system.sample(3, generator=generator()).to(dtype)

    def loss():
        return model.rk4_rollout(z, 0.05, 2).square().mean()

    loss().backward()
    for parameter_name, parameter in model.named_parameters():
        if name == "hnn" and parameter_name == "potential.6.bias":
            continue  # a constant in V moves nothing
        assert parameter.grad is not None and parameter.grad.dtype == dtype
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, parameter_name
    if dtype == torch.float64:
        parameter = next(model.parameters())
        index, h = (0,) * parameter.ndim, 1e-6
        gradient = float(parameter.grad[index])
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[index] += sign * h
            values.append(float(loss()))
            with torch.no_grad():
                parameter[index] -= sign * h
        assert math.isclose(gradient, (values[0] - values[1]) / (2 * h), rel_tol=1e-5, abs_tol=1e-9)


def test_constraints_alone_mean_point_masses():
    system = ChainPendulum(2)
    torch.manual_seed(0)
    a = CHNN(system.description, hidden=8)
    torch.manual_seed(0)
    b = CHNN(system.constraints_on_points, hidden=8)
    z = system.sample(3, generator=generator()).float()
    torch.testing.assert_close(a.field(a.encode(z)), b.field(b.encode(z)))


def test_hnn_of_a_free_body_in_rotation_vectors():
    system = Rotor()
    model = HNN(system, hidden=8).double()
    z = system.sample(3, generator=generator())
    torch.testing.assert_close(model.decode(model.encode(z)), z, rtol=0, atol=1e-10)


def test_errors():
    with pytest.raises(UserError, match=r"shape \(B, 2, 2, 2\)"):
        CHNN(ChainPendulum(2).constraints_on_points).rollout(torch.zeros(2, 2, 2), torch.linspace(0, 1, 2))


@dataclass(frozen=True)
class Swirl(Force):
    """A force of positions that is no gradient: (-y, x) on the first point."""

    def force(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A quarter turn of the position."""
        turned = torch.stack([-x[..., 0, 1], x[..., 0, 0]], -1).unsqueeze(-2)
        return torch.cat([turned, torch.zeros_like(x[..., 1:, :])], -2)


@dataclass(frozen=True)
class Lorentz(Force):
    """A force across the velocity: it keeps the energy, but not that of T + V with p = M v."""

    def force(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A quarter turn of the velocity."""
        return torch.stack([-v[..., 1], v[..., 0]], -1)


def _pendulum(force: Force | None = None, **damping: float) -> System:
    world = Assembly(2)
    bob = world.point("bob", 1.0, position=(0.6, -0.8))
    world.tether(bob, (0, 0), 1.0)
    world.gravity()
    world.spring(bob, (1.0, 0.0), 3.0, 0.4)
    if force is not None:
        world.force(force)
    if damping:
        world.damping(damping["coefficient"], bob)
    return System(world.build("pendulum"))


@pytest.mark.parametrize("model", [CHNN, CLNN])
def test_models_that_keep_energy_refuse_forces_that_do_not(model):
    """Damping, a force with a curl, a force on velocities: each is named, with the remedy."""
    for system, name in [
        (CartPole(damping=0.5), "Damping"),
        (_pendulum(coefficient=0.1), "Damping"),
        (_pendulum(Swirl()), "Swirl"),
        (_pendulum(Lorentz()), "Lorentz"),
    ]:
        with pytest.raises(UserError, match=rf"{model.__name__}.*{name}.*without it"):
            model(system.description)
    for system in (CartPole(), _pendulum(), _pendulum(coefficient=0.0), MagnetPendulum(), Gyroscope(), ChainPendulum()):
        model(system.description, hidden=4)


def test_hnn_refuses_a_damped_system():
    with pytest.raises(UserError, match=r"HNN.*Damping"):
        HNN(CartPole(damping=0.5))
    HNN(CartPole(), hidden=4)


class Dragged(ChainPendulum):
    """A pendulum in air: drag in place of a description's damping."""

    def force(self, x: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
        """The description's, and drag."""
        return super().force(x, v) if v is None else super().force(x, v) - 0.5 * v


class Blown(ChainPendulum):
    """A pendulum in a wind, with its energy."""

    def force(self, x: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
        """The description's, and 0.3 N to the right on each bob."""
        return super().force(x, v) + torch.tensor([0.3, 0.0], dtype=x.dtype)

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """The description's, less 0.3 N times the way."""
        return super().potential(x) - 0.3 * x[..., 0].sum(-1)


@pytest.mark.parametrize("model", ["chnn", "clnn", "hnn"])
def test_a_force_of_a_subclass_is_checked_as_those_of_a_description_are(model):
    config = TrainConfig(model=model, system="chain-pendulum", parameters={}, dt=0.1, horizon=1.0, hidden=4)
    build_model(config, Blown(2))
    with pytest.raises(UserError, match=rf"{model.upper()}.*Dragged\.force"):
        build_model(config, Dragged(2))
    if model == "hnn":
        with pytest.raises(UserError, match=r"HNN.*Dragged\.force"):
            HNN(Dragged(2))


def test_rattle_refuses_the_force_on_velocities_of_a_subclass():
    t = torch.tensor([0.0, 0.1], dtype=torch.float64)
    with pytest.raises(UserError, match=r"Dragged\.force.*dop853"):
        Dragged(2).simulate(Dragged(2).sample(1), t, method="rattle", dt=0.01, backend="torch")


def test_rattle_refuses_a_force_on_velocities():
    """It would be evaluated at rest, where this one is zero."""
    system = _pendulum(Lorentz())
    t = torch.tensor([0.0, 0.1], dtype=torch.float64)
    with pytest.raises(UserError, match=r"Lorentz.*dop853"):
        system.simulate(system.sample(1), t, method="rattle", dt=0.01, backend="torch")
