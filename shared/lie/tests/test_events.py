"""Events, tuple states, norms and dense output of odeint: closed forms, and torchdiffeq's own for the same names."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from lie.integrators import IntegrationError, odeint

F64 = torch.float64
STEP = {"step_size": 0.1}
METHODS = [
    {"method": "dopri5"},
    {"method": "bosh3"},
    {"method": "rk4", "options": STEP},
    {"method": "leapfrog", "options": STEP},
    {"method": "gauss4", "options": STEP},
    {"method": "dop853"},
    {"method": "dopri5", "per_sample": True},
    {"method": "dopri5", "per_sample": True, "adjoint": True},
]


def tensors(*values):
    return [torch.tensor(x, dtype=F64, requires_grad=True) for x in values]


@pytest.mark.parametrize("case", METHODS, ids=str)
def test_a_falling_ball(case):
    """x = h + v s - g s^2 / 2 meets the floor at s = (v + sqrt(v^2 + 2 g (h - floor))) / g, with all derivatives."""
    g, h, v, floor = tensors(9.81, [10.0], [2.0], 0.5)
    t = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)

    def ball(_, state):
        return state[1], -g.expand_as(state[1])

    at, (x, speed) = odeint(ball, (h, v), t, events=lambda _, state: state[0] - floor, **case)
    root = (v * v + 2 * g * (h - floor)).sqrt()
    exact = t[0] + (v + root) / g
    torch.testing.assert_close(at.reshape(1), exact, rtol=0, atol=1e-12)  # the methods are exact on a parabola
    torch.testing.assert_close(x[-1], floor.reshape(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(speed[-1], -root, rtol=0, atol=1e-11)
    inputs = (g, h, v, t, floor)
    got, expected = (torch.autograd.grad(y.sum(), inputs, create_graph=True) for y in (at, exact))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    second = [torch.autograd.grad(y[0] + y[1].sum(), inputs[:3]) for y in (got, expected)]
    torch.testing.assert_close(*second, rtol=1e-8, atol=1e-9)  # differences along the motion: 1e-11 of their own


def test_the_events_of_torchdiffeq():
    """The same time, state and gradient as its own event handler, whose bisection ends at atol."""
    z0, k = tensors([1.0, 0.0], 1.7)

    def field(_, z):
        return torch.stack([z[1], -k * z[0].sin()])

    def event(_, z):
        return z[0] + 0.5

    options = {"rtol": 1e-10, "atol": 1e-12}
    theirs = torchdiffeq.odeint_event(
        field, z0, torch.tensor(0.0, dtype=F64), event_fn=event, method="dopri5", **options
    )
    ours = odeint(field, z0, torch.tensor([0.0, 1.0], dtype=F64), events=event, **options)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    for a, b in zip(ours, theirs, strict=True):
        got = [torch.autograd.grad(x[-1, 1] if x.ndim else x, (z0, k), retain_graph=True) for x in (a, b)]
        torch.testing.assert_close(*got, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_each_sample_has_an_event_of_its_own(method):
    y0 = torch.tensor([[10.0, 2.0], [1.0, 0.0], [0.0, 5.0], [3.0, -1.0]], dtype=F64, requires_grad=True)

    def ball(_, y):
        return torch.stack([y[..., 1], torch.full_like(y[..., 1], -9.81)], -1)

    times = torch.tensor([0.0, 1.0], dtype=F64)
    at, states = odeint(ball, y0, times, method=method, per_sample=True, events=lambda _, y: y[:, 0])
    h, v = y0.unbind(-1)  # the third starts on the ground, upwards
    exact = (v + (v * v + 2 * 9.81 * h).sqrt()) / 9.81
    torch.testing.assert_close(at, exact, rtol=0, atol=1e-12)
    assert states.shape == (2, 4, 2) and states[1, :, 0].abs().max() < 1e-12
    slopes = [torch.autograd.grad(x.sum(), y0)[0] for x in (at, exact)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-11)
    with pytest.raises(ValueError, match=r"events of every sample, \(4,\) or"):
        odeint(ball, y0, times, method=method, per_sample=True, events=lambda _, y: y[:, 0].min())


def test_several_events_backwards_and_none():
    def decay(_, y):
        return -y

    back = torch.tensor([0.0, -0.1], dtype=F64)
    y0 = torch.ones(2, dtype=F64)
    at, states = odeint(decay, y0, back, events=[lambda _, y: y[0] - 7.0, lambda _, y: y[1] - 3.0])
    assert float(at) == pytest.approx(-math.log(3.0), abs=1e-6)  # the first of both, beyond the times given
    assert float(states[-1, 0]) == pytest.approx(3.0, abs=1e-12)
    with pytest.raises(IntegrationError, match="no event before the solution ends"):
        odeint(lambda _, y: y * y, y0, torch.tensor([0.0, 2.0], dtype=F64), events=lambda _, y: y[0] + 1.0)
    for method, text in (("rattle", "events are not for rattle"), ("rk4", "rk4 needs options=.*step_size")):
        with pytest.raises(ValueError, match=text):
            odeint(decay, y0, back, method=method, events=lambda _, y: y[0])
    with pytest.raises(ValueError, match="expected two times with events"):
        odeint(decay, y0, back[:1], events=lambda _, y: y[0])


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "rk4", "explicit_adams", "scipy_solver"])
def test_tuples_are_those_of_torchdiffeq(method):
    y0 = (torch.tensor([1.0, 0.5], dtype=F64), torch.tensor([[0.3]], dtype=F64))

    def field(t, y):
        assert [x.shape for x in y] == [(2,), (1, 1)]
        return y[1][0] - y[0] + t, y[0].sum().reshape(1, 1).sin()

    t = torch.linspace(0, 1, 5, dtype=F64)
    ours = odeint(field, y0, t, method=method)
    options = (
        {"max_order": 4} if method == "explicit_adams" else {"step_t": t} if method in ("bosh3", "dopri8") else None
    )
    theirs = torchdiffeq.odeint(field, y0, t, method=method, options=options)
    assert isinstance(ours, tuple) and [x.shape for x in ours] == [(5, 2), (5, 1, 1)]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", [*METHODS[2:], {"method": "gauss6", "options": STEP}], ids=str)
def test_tuples_of_our_methods_are_the_joined_state(case):
    q, p = torch.tensor([[1.0, 0.2]], dtype=F64), torch.tensor([[0.3, -0.4]], dtype=F64)
    t = torch.linspace(0, 1, 3, dtype=F64)
    parts = odeint(lambda t, y: (y[1], -y[0].sin()), (q, p), t, **case)
    joined = odeint(lambda t, z: torch.cat([z[..., 2:], -z[..., :2].sin()], -1), torch.cat([q, p], -1), t, **case)
    torch.testing.assert_close(torch.cat(parts, -1), joined, rtol=0, atol=1e-14)


def test_tuples_that_make_no_sense_are_refused_by_name():
    t = torch.tensor([0.0, 1.0], dtype=F64)
    q, p = torch.ones(2, dtype=F64), torch.ones(3, dtype=F64)
    with pytest.raises(ValueError, match="leapfrog takes a tuple of positions and as many momenta"):
        odeint(lambda t, y: y, (q, p), t, method="leapfrog")
    with pytest.raises(ValueError, match="rkmk4 takes one tensor as state, got a tuple of 2"):
        odeint(lambda t, y: y, (q, p), t, method="rkmk4")
    with pytest.raises(TypeError, match="tensors of one dtype"):
        odeint(lambda t, y: y, (q, p.float()), t)
    with pytest.raises(ValueError, match=r"a tuple of the state's shapes \[\(2,\), \(3,\)\]"):
        odeint(lambda t, y: y[:1], (q, p), t)
    with pytest.raises(ValueError, match="samples along the leading axis of every part"):
        odeint(lambda t, y: y, (q[:, None], p[:, None]), t, method="dop853")


def test_norms():
    """A norm that sees the first entry alone lets the second err; torchdiffeq's sees all at once."""
    z0, t = torch.tensor([[1.0, 1.0]], dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)

    def field(_, y):
        return torch.stack([-y[..., 0], 30 * y[..., 0] * (30 * y[..., 1]).cos()], -1)

    calls = []
    for options in ({}, {"norm": lambda e: e[:, 0]}):
        count = [0]
        end = odeint(lambda t, y, c=count: (c.__setitem__(0, c[0] + 1), field(t, y))[1], z0, t, per_sample=True,
                     options=options)[-1]  # fmt: skip
        assert float(end[0, 0]) == pytest.approx(math.exp(-2), abs=1e-6)
        calls.append(count[0])
    assert calls[1] < calls[0] / 4
    with pytest.raises(ValueError, match=r"a norm of every sample, \(1,\)"):
        odeint(field, z0, t, per_sample=True, options={"norm": torch.norm})
    theirs = torchdiffeq.odeint(field, z0, t, method="dopri5", options={"norm": torch.norm})
    assert torch.equal(odeint(field, z0, t, options={"norm": torch.norm}), theirs)


@pytest.mark.parametrize(("case", "tolerance"), [({"method": "dopri5"}, 1e-6), ({"method": "dop853"}, 2e-6),
                                                 ({"method": "dopri5", "per_sample": True}, 1e-6)])  # fmt: skip
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dense_output(case, tolerance, sign):
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    t = sign * torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    dense = odeint(lambda _, y: -rate * y, torch.ones(3, 2, dtype=F64), t, dense=True, **case)
    query = sign * torch.linspace(0, 2, 17, dtype=F64)
    values = dense.interpolate(query)
    exact = (-rate * query).exp()[:, None, None].expand(17, 3, 2)
    torch.testing.assert_close(values, exact, rtol=tolerance, atol=0)  # tolerance 1e-7 of a step, times ten
    torch.testing.assert_close(dense(t), dense.states, rtol=0, atol=1e-14)
    assert dense(query[3]).shape == (3, 2)
    slopes = [torch.autograd.grad(x.sum(), rate, retain_graph=True)[0] for x in (values, exact)]
    torch.testing.assert_close(*slopes, rtol=10 * tolerance, atol=0)


def test_dense_output_checks_its_input():
    t = torch.tensor([0.0, 0.1], dtype=F64)
    at, dense = odeint(lambda _, y: -y, torch.ones(2, dtype=F64), t, events=lambda _, y: y[0] - 0.2, dense=True)
    torch.testing.assert_close(dense(at.detach()), torch.full((2,), 0.2, dtype=F64), rtol=0, atol=1e-6)
    for bad, error, text in (
        ([0.5], TypeError, "floating-point tensor, got list"),
        (torch.tensor([1]), TypeError, "got torch.int64"),
        (torch.zeros(1, 1), ValueError, r"shape \(Q,\) or \(\), got \(1, 1\)"),
        (torch.tensor([math.nan]), ValueError, "finite times"),
        (torch.tensor([3.0]), ValueError, "between 0 and 1.609.*integrate further"),
        (torch.tensor([-0.1]), ValueError, "between 0 and"),
    ):
        with pytest.raises(error, match=text):
            dense.interpolate(bad)
    with pytest.raises(ValueError, match="dense output is for dopri5 and dop853, not rk4"):
        odeint(lambda _, y: -y, torch.ones(2, dtype=F64), t, method="rk4", dense=True)


@pytest.mark.parametrize("value", [lambda t, y: 3.0, lambda t, y: y[0] < 0.5, lambda t, y: y[0].long()])
def test_an_event_without_a_sign_is_refused(value):
    with pytest.raises(TypeError, match="expected an event to return a floating-point tensor"):
        odeint(lambda t, y: -y, torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0]), events=value)


@pytest.mark.parametrize(
    ("times", "state", "message"),
    [
        ([0.0, 1.0, 2.0], torch.ones(1), "expected two times with events, .* got 3"),
        ([0.0, 1.0], torch.ones(0), "expected a state with entries with events"),
    ],
)
def test_events_say_which_condition_fails(times, state, message):
    with pytest.raises(ValueError, match=message):
        odeint(lambda t, y: -y, state, torch.tensor(times), events=lambda t, y: y.sum() - 0.5)
