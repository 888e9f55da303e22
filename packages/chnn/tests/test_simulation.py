"""The integrator keeps constraints and energy, treats samples alone, and fails with time and sample."""

from __future__ import annotations

import math

import pytest
import torch
from chnn.simulation import IntegrationError, integrate
from chnn.systems import ChainPendulum, CoupledPendulum, System
from lie.run import UserError
from scipy.special import ellipj, ellipk


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("system", [ChainPendulum(2), ChainPendulum(5), CoupledPendulum(3)],
                         ids=lambda s: f"{s.name}{s.num_points}")  # fmt: skip
def test_constraints_and_energy_along_a_trajectory(system: System):
    z0 = system.sample(8, generator=generator())
    t = torch.linspace(0, 1.5, 16, dtype=torch.float64)
    for rtol, bound in ((1e-7, 1e-6), (1e-11, 1e-10)):
        z = system.simulate(z0, t, rtol=rtol)
        drift = (system.energy(z) - system.energy(z0).unsqueeze(1)).abs() / system.energy_scale(z0).unsqueeze(1)
        assert drift.max() < bound  # of the size of the tolerance times the number of steps, under 100 here
        assert system.constraints(z).abs().max() <= 1e-14
        assert system.velocity_constraints(z).abs().max() <= 1e-13
    assert z.dtype == torch.float64 and z.shape == (8, 16, 2, system.num_points, system.spatial_dim)
    torch.testing.assert_close(z[:, 0], z0, rtol=0, atol=1e-14)


def test_the_exact_pendulum():
    """A single pendulum from rest at angle a: sin(theta/2) = k sn(K - w t), k = sin(a/2) (elliptic functions)."""
    a, t = 2.0, torch.linspace(0, 3, 31, dtype=torch.float64)
    system = ChainPendulum(1)
    z0 = system.from_angles(torch.tensor([[[a], [0.0]]], dtype=torch.float64))
    z = system.simulate(z0, t, rtol=1e-12)
    k, w = math.sin(a / 2), math.sqrt(9.81)
    sn = torch.from_numpy(ellipj(ellipk(k**2) - w * t.numpy(), k**2)[0])
    torch.testing.assert_close(system.to_angles(z)[0, :, 0, 0], 2 * (k * sn).asin(), rtol=0, atol=1e-10)


def test_samples_do_not_change_one_another():
    system = ChainPendulum(2)
    z0 = system.sample(6, generator=generator())
    z0[3, 1] *= 6.0  # one fast sample takes many more steps
    z0[3:4] = system.project(z0[3:4])
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    together = system.simulate(z0, t, rtol=1e-9)
    alone = system.simulate(z0[1:2], t, rtol=1e-9)
    # The same steps; batched kernels may sum in another order.
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-11)


def test_order_and_output_times_of_the_integrator():
    def oscillator(y):
        return torch.stack([y[:, 1], -y[:, 0]], 1)

    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.2, 5.0, 20.0], dtype=torch.float64)
    y = integrate(oscillator, y0, t, rtol=1e-12, atol=1e-14)
    exact = torch.stack([torch.stack([t.cos(), -t.sin()], -1), 2 * torch.stack([t.sin(), t.cos()], -1)])
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-10)
    assert torch.equal(integrate(oscillator, y0, t[:1])[:, 0], y0)


def test_failures_name_samples_and_time_and_keep_what_was_reached():
    def blow_up(y):
        return y.square()

    y0 = torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    t = torch.linspace(0, 2, 5, dtype=torch.float64)
    with pytest.raises(IntegrationError, match=r"sample 1 at t = 1") as failure:
        integrate(blow_up, y0, t)
    torch.testing.assert_close(failure.value.reached[1, 1], torch.tensor([2.0], dtype=torch.float64))
    assert failure.value.reached[1, 4].isnan().all()
    with pytest.raises(IntegrationError, match="more than 3 steps"):
        integrate(lambda y: -y, y0, torch.tensor([0.0, 1e3], dtype=torch.float64), max_steps=3)


def test_simulate_refuses_bad_input():
    system = ChainPendulum(2)
    z0, t = system.sample(3, generator=generator()), torch.linspace(0, 1, 3)
    with pytest.raises(UserError, match=r"shape \(B, 2, n, d\), got \(2, 2, 2\)"):
        system.simulate(z0[0], t)
    with pytest.raises(UserError, match="increasing finite times"):
        system.simulate(z0, t.flip(0))
    with pytest.raises(UserError, match="between 0 and 1"):
        system.simulate(z0, t, rtol=0.0)
    bad = z0.clone()
    bad[1, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="NaN or infinity in sample 1"):
        system.simulate(bad, t)
    with pytest.raises(UserError, match=r"sample 0 starts off the constraints.*project"):
        system.simulate(z0 + 0.1, t)
    assert system.simulate(z0.float(), t).dtype == torch.float64  # float32 states are projected


def test_sampling_is_reproducible_and_on_the_constraints():
    for system in (ChainPendulum(3), CoupledPendulum(2)):
        first, again = system.sample(50, generator=generator(1)), system.sample(50, generator=generator(1))
        assert torch.equal(first, again) and not torch.equal(first, system.sample(50, generator=generator(2)))
        assert system.constraints(first).abs().max() <= 1e-13
        assert system.velocity_constraints(first).abs().max() <= 1e-12
