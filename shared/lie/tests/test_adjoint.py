"""The checkpointed adjoint: derivatives of every order are those of the steps, for every method and parameter."""

from __future__ import annotations

import pytest
import torch
from lie.groups import SO3
from lie.integrators import odeint, projection

F64 = torch.float64
T = torch.linspace(0.0, 1.0, 3, dtype=F64)
STEP = {"step_size": 0.125}  # four steps in each half: three segments
SO3_START = SO3().exp(torch.tensor([0.3, -0.2, 0.5], dtype=F64))


def on_circle(q):
    return q.square().sum(-1, keepdim=True) - 1.0


CASES = {
    "euler": {"method": "euler", "options": {**STEP, "checkpoint": True}},
    "midpoint": {"method": "midpoint", "options": {**STEP, "checkpoint": True}},
    "heun3": {"method": "heun3", "options": {**STEP, "checkpoint": True}},
    "rk4": {"method": "rk4", "options": {**STEP, "checkpoint": True}},
    "leapfrog": {"method": "leapfrog", "options": STEP},
    "leapfrog, projected": {"method": "leapfrog", "options": {**STEP, "project": projection(on_circle)}},
    "yoshida4": {"method": "yoshida4", "options": STEP},
    "yoshida6": {"method": "yoshida6", "options": STEP},
    "yoshida8": {"method": "yoshida8", "options": STEP},
    "implicit_midpoint": {"method": "implicit_midpoint", "options": STEP},
    "gauss4": {"method": "gauss4", "options": STEP},
    "gauss4, counted": {"method": "gauss4", "options": {**STEP, "iterations": 8}},
    "gauss6": {"method": "gauss6", "options": STEP},
    "dopri5": {"method": "dopri5", "per_sample": True},
    "dopri5, projected": {"method": "dopri5", "per_sample": True, "options": {"project": projection(on_circle)}},
    "dop853": {"method": "dop853"},
}


def flat(tensors):
    return torch.cat([x.reshape(-1) for x in tensors])


def derivatives(loss, inputs):
    """The value, the gradient and all rows of the Hessian, by one graph."""
    value = loss(*inputs)
    first = flat(torch.autograd.grad(value, inputs, create_graph=True))
    rows = [flat(torch.autograd.grad(x, inputs, retain_graph=True, materialize_grads=True)) for x in first]
    return value.detach(), first.detach(), torch.stack(rows)


def check(loss):
    """Plain and checkpointed agree; and the checkpointed ones are the differences of values and of gradients."""
    w = torch.tensor(1.3, dtype=F64, requires_grad=True)
    z0 = torch.tensor([[1.0, 0.5], [0.3, -0.2]], dtype=F64, requires_grad=True)
    plain = derivatives(lambda *inputs: loss(*inputs, adjoint=False), (w, z0))
    again = derivatives(lambda *inputs: loss(*inputs, adjoint=True), (w, z0))
    # The same operations in another order: rounding of some hundred of them.
    torch.testing.assert_close(again, plain, rtol=1e-11, atol=1e-11)
    e = 1e-3  # differences of order 4: truncation 1e-12, rounding 1e-16 / 1e-3
    values, slopes = [], []
    for k in (-2, -1, 1, 2):
        moved = (w.detach() + k * e).requires_grad_()
        value = loss(moved, z0, adjoint=False)
        values.append(value.detach())
        slopes.append(flat(torch.autograd.grad(value, (moved, z0))))
    for quotients, exact in ((values, again[1][0]), (slopes, again[2][0])):
        difference = (quotients[0] - 8 * quotients[1] + 8 * quotients[2] - quotients[3]) / (12 * e)
        torch.testing.assert_close(exact, difference, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_of_every_method(name):
    """Captured: a leaf, a tensor computed from it outside; and the states, in one loss."""
    case = CASES[name]
    # An adaptive method counts its step sizes as constants, which differences do not: their tolerance is small.
    tight = {"rtol": 1e-9, "atol": 1e-11} if name.startswith("dop") else {}

    def loss(w, z0, adjoint):
        scale = (0.1 * w).exp()  # not a leaf
        options = {k: v for k, v in case.get("options", {}).items() if adjoint or k != "checkpoint"}
        z0 = torch.nn.functional.normalize(z0, dim=-1) if "project" in options else z0

        def field(_, z):
            q, v = z.chunk(2, -1)
            if "project" in options:  # along the circle: a step size may not matter
                return torch.cat([-v, q], -1) * (w * q.sin() + scale)
            return torch.cat([v * scale, -w * q.sin()], -1)

        more = {**case, **tight, "options": options}
        if "checkpoint" not in options:
            more["adjoint"] = adjoint
        return odeint(field, z0, T, **more)[1:].pow(3).sum()

    check(loss)


@pytest.mark.parametrize("method", ["rattle", "rattle4"])
def test_derivatives_of_rattle(method):
    def loss(w, z0, adjoint):
        q = torch.nn.functional.normalize(z0, dim=-1)
        p = torch.stack([-q[..., 1], q[..., 0]], -1) * w

        def field(_, z):
            q, p = z.chunk(2, -1)
            return torch.cat([p, -w * q.sin()], -1)

        options = {"constraint": on_circle, **STEP}
        y = odeint(field, torch.cat([q, p], -1), T, method=method, adjoint=adjoint, options=options)
        return y[1:].pow(3).sum()

    check(loss)


@pytest.mark.parametrize("method", ["rkmk4", "crouch_grossman"])
def test_derivatives_on_a_group(method):
    def loss(w, z0, adjoint):
        start = SO3().exp(torch.cat([z0[0], z0[1, :1]])) @ SO3_START

        def field(t, g):
            return w * (g[..., 0] + t.sin()) * z0[1, 1]

        options = {"group": SO3(), **STEP}
        return odeint(field, start, T, method=method, adjoint=adjoint, options=options)[1:].pow(3).sum()

    check(loss)


def test_the_pendulum_of_a_report():
    """y' = (v, -w sin q): dL/dw of L = |y(1)|^2, as a part of a graph, was two to three times too large."""
    w = torch.tensor(1.3, dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=F64)

    def loss(w, **more):
        end = odeint(lambda _, y: torch.stack([y[1], -w * y[0].sin()]), y0, T, method="leapfrog", options=STEP, **more)
        return end[-1].square().sum()

    gradients = [torch.autograd.grad(loss(w, adjoint=True), w, create_graph=graph)[0] for graph in (False, True)]
    difference = (loss(w.detach() + 1e-5) - loss(w.detach() - 1e-5)) / 2e-5  # truncation and rounding 1e-10
    torch.testing.assert_close(torch.stack(gradients), difference.expand(2), rtol=1e-8, atol=0)


class Switched(torch.nn.Module):
    """One weight before t = 0.5 and another after it."""

    def __init__(self):
        super().__init__()
        self.early = torch.nn.Parameter(torch.tensor(0.7, dtype=F64))
        self.late = torch.nn.Parameter(torch.tensor(-0.4, dtype=F64))

    def forward(self, t, y):
        return (self.early if bool(t.max() < 0.5) else self.late) * y


@pytest.mark.parametrize("form", ["module", "method"])
@pytest.mark.parametrize("method", ["rk4", "gauss4", "dop853"])
def test_parameters_that_a_module_uses_later_only(method, form):
    """y' = a y, then b y, from 1: y(1) = exp((a + b) / 2), with both derivatives y(1) / 2."""
    field = Switched()
    options = {} if method == "dop853" else {"step_size": 0.05, "checkpoint": True}
    called = field if form == "module" else field.forward
    end = odeint(called, torch.ones(1, 1, dtype=F64), T, method=method, adjoint=method == "dop853", options=options)
    slopes = torch.autograd.grad(end[-1].sum(), list(field.parameters()))
    # Steps do not stop at the switch: order 1 there, for gauss4 the part of a step; the adaptive one feels its way.
    torch.testing.assert_close(torch.stack(slopes), (end[-1, 0] / 2).detach().expand(2), rtol=0.06, atol=0)
    plain = odeint(called, torch.ones(1, 1, dtype=F64), T, method=method,
                   options={k: v for k, v in options.items() if k != "checkpoint"})[-1]  # fmt: skip
    same = torch.autograd.grad(plain.sum(), list(field.parameters()))
    torch.testing.assert_close(slopes, same, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["rk4", "leapfrog", "dop853"])
def test_a_tensor_that_is_captured_later_only_is_refused(method):
    weights = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.7, -0.4)]

    def field(t, y):
        return weights[int(t.max() >= 0.5)] * y

    options = {} if method == "dop853" else {**STEP, "checkpoint": True}
    end = odeint(field, torch.ones(1, 2, dtype=F64), T, method=method, adjoint=method == "dop853", options=options)
    with pytest.raises(ValueError, match=r"a tensor of shape \(\) .* in later steps, but not in the first.*Module"):
        end[-1].sum().backward()


def test_nested_modules_without_gradients_and_shared_ones():
    """A network whose first layer is fixed: its gradient is absent; a weight used twice has the sum of both uses."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    net[0].requires_grad_(False)
    z0 = torch.tensor([[1.0, 0.5]], dtype=F64)
    gradients = []
    for adjoint in (False, True):
        net.zero_grad()
        odeint(lambda _, z: net(z), z0, T, method="gauss4", adjoint=adjoint, options=STEP)[-1].sum().backward()
        assert net[0].weight.grad is None
        gradients.append([p.grad.clone() for p in net[2].parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
