"""RATTLE: both paths, order, symmetry, the core's own RATTLE, and energy over very many steps."""

from __future__ import annotations

import pytest
import torch
from chnn.mechanics import Assembly, ball
from chnn.simulation import IntegrationError
from chnn.systems import CartPole, ChainPendulum, FourBar, Gyroscope, Rotor, System
from lie.integrators import rattle
from lie.run import UserError

METHODS = ["rattle", "rattle4"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("system", [ChainPendulum(3), Gyroscope(), FourBar(), Rotor()], ids=lambda s: s.name)
@pytest.mark.parametrize("method", METHODS)
def test_both_paths_take_the_same_steps_on_the_constraints(system: System, method: str):
    z0, t = system.sample(9, generator=generator()), torch.tensor([0.0, 0.011, 0.05], dtype=torch.float64)
    a, b = (system.simulate(z0, t, method=method, dt=2e-3, backend=backend) for backend in ("numba", "torch"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, float(a.abs().max())))
    assert system.constraints(a).abs().max() <= 1e-14
    assert system.velocity_constraints(a).abs().max() <= 1e-13 * max(1.0, float(a.abs().max()))
    # Symmetric: with velocities reversed the motion retraces itself, up to rounding over h.
    back = a[:, -1] * torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1)
    again = system.simulate(back, t[-1] - t.flip(0), method=method, dt=2e-3)[:, -1]
    torch.testing.assert_close(again[:, 0], z0[:, 0], rtol=0, atol=1e-11 * max(1.0, float(a.abs().max())))


@pytest.mark.parametrize(("method", "order"), [("rattle", 2), ("rattle4", 4)])
def test_order(method: str, order: int):
    system = ChainPendulum(2)
    z0, t = system.sample(4, generator=generator()), torch.tensor([0.0, 0.5], dtype=torch.float64)
    truth = system.simulate(z0, t, 1e-13)
    errors = [float((system.simulate(z0, t, method=method, dt=h) - truth).abs().max()) for h in (4e-3, 2e-3)]
    # The next term of the error is of relative size h^2, with fast swings: a tenth of the ratio.
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_the_same_as_the_general_rattle_of_the_core():
    """Which knows neither the closed form of the constraints nor the metric; masses of 1, so momenta are velocities."""
    system = ChainPendulum(3)
    z0, t = system.sample(2, generator=generator()), torch.tensor([0.0, 0.01, 0.05], dtype=torch.float64)
    constraints = system.constraints_on_points

    def field(_, z):
        return torch.stack([z[..., 1, :, :], system.force(z[..., 0, :, :])], -3)

    expected = rattle(field, z0, t, constraint=constraints.residual, step_size=1e-3, dim=-3).transpose(0, 1)
    torch.testing.assert_close(system.simulate(z0, t, method="rattle", dt=1e-3), expected, rtol=0, atol=1e-12)


def drift_of(system: System, steps: int, h: float, method: str) -> tuple[float, float, float]:
    """Median of the largest relative energy error in the first and in the last tenth, and the largest violation."""
    z0 = system.sample(8, generator=generator())
    t = torch.linspace(0, steps * h, 1001, dtype=torch.float64)
    z = system.simulate(z0, t, method=method, dt=h * (1 + 1e-9))
    energy = system.energy(z)
    error = (energy - energy[:, :1]).abs() / system.energy_scale(z0).unsqueeze(1)
    first, last = (error[:, part].amax(1).median() for part in (slice(0, 100), slice(-100, None)))
    return float(first), float(last), float(system.constraints(z).abs().max())


@pytest.mark.parametrize(("method", "bound"), [("rattle", 1e-3), ("rattle4", 1e-5)])
def test_energy_stays_bounded(method: str, bound: float):
    """A tenth of a million steps in each run of the tests; the error wanders within a bound of the order of h^p."""
    first, last, violation = drift_of(ChainPendulum(3), 100_000, 1e-3, method)
    assert last <= 5 * first and last <= bound and violation <= 1e-14


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", [ChainPendulum(3), ChainPendulum(5), Gyroscope()], ids=lambda s: f"{s.name}{s.num_points}"
)
@pytest.mark.parametrize(("method", "bound"), [("rattle", 1e-2), ("rattle4", 1e-5)])
def test_energy_stays_bounded_over_a_million_steps(system: System, method: str, bound: float):
    first, last, violation = drift_of(system, 1_000_000, 5e-4, method)
    assert last <= 5 * first and last <= bound and violation <= 1e-14


def test_bad_input_and_steps_too_long_are_named():
    system = ChainPendulum(2)
    z0, t = system.sample(3, generator=generator()), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    with pytest.raises(UserError, match="did you mean 'rattle'"):
        system.simulate(z0, t, method="ratle", dt=0.1)
    with pytest.raises(UserError, match="positive step dt for method 'rattle', got None"):
        system.simulate(z0, t, method="rattle")
    with pytest.raises(UserError, match="takes no dt"):
        system.simulate(z0, t, dt=0.1)
    with pytest.raises(UserError, match="takes no external force"):
        system.simulate(z0, t, method="rattle", dt=0.1, external=lambda t, x, v: 0 * x)
    damped = CartPole(damping=0.1)
    with pytest.raises(UserError, match="is damped"):
        damped.simulate(damped.sample(1), t, method="rattle", dt=0.1)
    for backend in ("numba", "torch"):
        with pytest.raises(IntegrationError, match=r"did not converge at t = 0.*sample"):
            system.simulate(z0, t, method="rattle", dt=1.0, backend=backend)


def test_damping_of_the_turning_is_refused_too():
    """It acts on velocities: RATTLE would leave it out."""
    world = Assembly(3)
    world.rotational_damping(1.0, world.body("top", 3, ball(1.0, 1.0)))
    system = System(world.build("top"))
    assert system.damped and not Rotor().damped
    with pytest.raises(UserError, match="is damped"):
        system.simulate(system.sample(1), torch.tensor([0.0, 1.0]), method="rattle", dt=0.1)
