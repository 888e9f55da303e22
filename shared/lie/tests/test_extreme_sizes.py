"""Lengths and dilations whose squares leave the range of float32, against the same numbers in float64."""

from __future__ import annotations

import pytest
import torch
from lie.groups import RxSO2, Sim2, Sim3, T

TINY_AND_HUGE = [1e-44, 1e-38, 1e-30, 1e-24, 1e-20, 1.0, 1e20, 1e30, 3e37]


@pytest.mark.parametrize("size", TINY_AND_HUGE)
def test_distance(size):
    group = T(3)
    a = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, -2.0], [0.0, 0.0, -1.0]]) * size
    a = torch.where(a == 0, torch.zeros_like(a), a)
    exact = a.double().pow(2).sum(-1).sqrt()  # squares in the range of float64
    a = a.requires_grad_()
    u = torch.cat([torch.eye(3).expand(3, 3, 3), a.unsqueeze(-1)], -1)
    u = torch.cat([u, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(3, 1, 4)], -2)
    got = group.distance(u, group.identity())
    # Five roundings of float32, or one of its smallest number where that is more.
    assert ((got.double() - exact).abs() <= 5 * 1.2e-7 * exact + 1.5e-45).all()
    (slope,) = torch.autograd.grad(got.sum(), a)
    wanted = a.detach().double() / exact.unsqueeze(-1)
    assert (slope.double() - wanted).abs().max() < 1e-6  # the same roundings, of numbers up to 1


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e-170, 1e170, 1e300])
def test_distance_in_float64(size):
    group = T(2)
    g = group.exp(torch.tensor([3.0, 4.0], dtype=torch.float64) * size)
    got = group.distance(g, group.identity(dtype=torch.float64)).item()
    assert got == pytest.approx(5.0 * size, rel=1e-15, abs=5e-324)  # roundings, or one of the smallest number


def test_distance_of_orbits_zero_and_beyond_numbers():
    group = T(1)
    g = group.identity(2)
    orbit = torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]).requires_grad_()
    got = group.distance(g, g, orbit, torch.zeros_like(orbit), alpha=0.0)
    assert got[0].item() == pytest.approx(5e-30, rel=1e-6) and got[1].item() == 0.0
    (slope,) = torch.autograd.grad(got.sum(), orbit)
    assert torch.allclose(slope, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    bad = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0]])
    got = group.distance(g, g, bad, torch.zeros_like(bad), alpha=0.0)
    assert got[0].isinf() and got[1].isnan()


@pytest.mark.parametrize("group", [RxSO2(), Sim2(), Sim3()], ids=repr)
@pytest.mark.parametrize("log_size", [-80.0, -60.0, 0.0, 60.0, 80.0])
def test_dilations(group, log_size):
    a = torch.zeros(group.dim)
    a[0], a[1] = log_size, 0.7
    g = group.exp(a)
    # log rounds a number near 80; e^80 amplifies the rounding of 80 by as much.
    torch.testing.assert_close(group.log(g), a, rtol=4e-7, atol=4e-6)
    exact = torch.linalg.inv(g.double())
    torch.testing.assert_close(group.inverse(g).double(), exact, rtol=4e-7, atol=4e-7 * float(exact.abs().max()))
