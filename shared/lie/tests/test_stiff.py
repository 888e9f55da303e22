"""Stiff equations by scipy's solvers, with gradients: the closed form of a linear one."""

from __future__ import annotations

import pytest
import torch
from lie.integrators import odeint

F64 = torch.float64


class Stiff(torch.nn.Module):
    """y1' = -k y1 + (k - 1) y2, y2' = -y2, so that y1 = b exp(-t) + (a - b) exp(-k t)."""

    def __init__(self, k: float):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(k, dtype=F64))

    def forward(self, t, y):
        return torch.stack([-self.k * y[..., 0] + (self.k - 1) * y[..., 1], -y[..., 1]], -1)


def exact(k, y0, t):
    since = t[1:] - t[0]
    return (-since).exp() * y0[1] + (y0[0] - y0[1]) * (-k * since).exp()


@pytest.mark.parametrize(("solver", "tolerance"), [("Radau", 1e-7), ("BDF", 3e-6), ("LSODA", 3e-6)])
def test_gradients_of_a_stiff_equation(solver, tolerance):
    """By parameter, states and times; backwards the state would grow by exp(1000)."""
    field = Stiff(1000.0)
    y0 = torch.tensor([2.0, 1.0], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.002, 1.0], dtype=F64, requires_grad=True)
    y = odeint(field, y0, t, method="scipy_solver", adjoint=True, rtol=1e-8, atol=1e-10, options={"solver": solver})
    weights = torch.tensor([1.0, 3.0], dtype=F64)
    inputs = (field.k, y0, t)
    got = torch.autograd.grad((weights * y[1:, 0]).sum(), inputs)
    expected = torch.autograd.grad((weights * exact(*inputs)).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        # rtol of a step, over the hundreds that BDF takes; relative to the largest.
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_a_stiff_equation_is_learnt_and_closures_count():
    truth = Stiff(300.0)
    y0, t = torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([0.0, 0.002, 0.005, 0.5], dtype=F64)
    data = exact(truth.k, y0, t).detach()
    log_k = torch.tensor(5.0, dtype=F64, requires_grad=True)  # k = 148
    optimiser = torch.optim.Adam([log_k], lr=0.1)
    for _ in range(40):
        k = log_k.exp()
        y = odeint(lambda _, y, k=k: torch.stack([-k * y[0] + (k - 1) * y[1], -y[1]]), y0, t, method="scipy_solver",
                   adjoint=True, options={"solver": "Radau"})  # fmt: skip
        loss = (y[1:, 0] - data).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(log_k.detach().exp()) == pytest.approx(300.0, rel=0.05)  # forty steps of Adam, which overshoots


def test_gradients_that_are_not_there_are_refused():
    t = torch.tensor([0.0, 1.0], dtype=F64)
    y0 = torch.tensor([2.0, 1.0], dtype=F64)
    field = Stiff(10.0)
    with pytest.raises(ValueError, match="no gradient through its steps: use adjoint=True"):  # of the parameter alone
        odeint(field, y0, t, method="scipy_solver")
    with torch.no_grad():
        odeint(field, y0, t, method="scipy_solver")
    for options in ({"method": "scipy_solver"}, {"method": "dopri5"}):
        end = odeint(field, y0, t, adjoint=True, **options)[-1].sum()
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            torch.autograd.grad(end, field.k, create_graph=True)
    with pytest.raises(ValueError, match="options of scipy_solver among"):
        odeint(field, y0, t, method="scipy_solver", adjoint=True, options={"solvers": "BDF"})
    with pytest.raises(FloatingPointError, match="gave up between"):
        odeint(lambda _, y: y * y, y0, 10 * t, method="scipy_solver", adjoint=True, options={"solver": "Radau"})


def test_the_adjoint_of_torchdiffeq_counts_what_a_module_captures():
    """y' = -c y with c beside the module's parameters: dy(1)/dc = -y(1)."""
    c = torch.tensor(0.7, dtype=F64, requires_grad=True)

    class Field(torch.nn.Module):
        def forward(self, t, y):
            return -c * y

    end = odeint(Field(), torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), adjoint=True)[-1]
    (slope,) = torch.autograd.grad(end.sum(), c)
    torch.testing.assert_close(slope, -end[0].detach(), rtol=1e-5, atol=0)  # rtol 1e-7 a step
