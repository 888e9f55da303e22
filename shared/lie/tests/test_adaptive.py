"""Runge-Kutta with a step per sample: accuracy, dense output, independence of batch mates, gradients, failures."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from lie.integrators import IntegrationError, adaptive, dop853, dopri5, odeint
from lie.integrators.adjoint import captured_leaves, segments
from lie.integrators.tableaux import DOP853, DOPRI5
from scipy.integrate import solve_ivp
from scipy.integrate._ivp import dop853_coefficients, rk

F64 = torch.float64
METHODS = [dopri5, dop853]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda f: f.__name__)


def pendulum(t, z):
    return torch.stack([z[..., 1], -z[..., 0].sin()], -1)


def states(count: int, dtype=F64) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


def truth(z0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    rows = [
        solve_ivp(lambda _, y: [y[1], -math.sin(y[0])], (t[0], t[-1]), z.tolist(), "DOP853", t, rtol=1e-13, atol=1e-15)
        for z in z0
    ]
    return torch.stack([torch.from_numpy(solution.y.T) for solution in rows], 1)


def test_coefficients_are_those_of_scipy():
    n = dop853_coefficients.N_STAGES
    for i, row in enumerate(DOP853.A[1:n], 1):
        assert row == tuple(dop853_coefficients.A[i, :i])
    assert DOP853.A[n] == tuple(dop853_coefficients.B)
    assert (tuple(dop853_coefficients.E5), tuple(dop853_coefficients.E3)) == DOP853.E
    assert tuple(map(tuple, dop853_coefficients.D)) == DOP853.D
    for i, row in enumerate(DOPRI5.A[1:6], 1):
        assert row == pytest.approx(rk.RK45.A[i, :i], rel=1e-15)
    assert DOPRI5.E[0] == pytest.approx(-rk.RK45.E, rel=1e-12)  # the estimate has the other sign there


@each_method
def test_order_of_the_steps_and_of_the_dense_output(method):
    """Steps of a fixed size on the harmonic oscillator: order 5 and 8, and 4 and 7 in between."""
    end = 8.0
    order, inside, first = {dopri5: (5, 4, 40), dop853: (8, 7, 20)}[method]
    tableau = {dopri5: DOPRI5, dop853: DOP853}[method]

    def velocity(now, y):
        return torch.stack([y[..., 1], -y[..., 0]], -1)

    def flow(y, t):
        c, s = math.cos(t), math.sin(t)
        return torch.stack([c * y[..., 0] + s * y[..., 1], c * y[..., 1] - s * y[..., 0]], -1)

    errors, dense = [], []
    for count in (first, 2 * first):
        h, now, start = torch.full((3, 1), end / count, dtype=F64), torch.zeros(3, 1, dtype=F64), states(3)
        y, k = start, velocity(now, start)
        for _ in range(count):
            new, K = adaptive._advance(tableau, velocity, now, h, y, k)
            polynomial = torch.stack(adaptive._polynomial(tableau, velocity, now, h, y, new, K))
            ends = adaptive.evaluate(polynomial, torch.ones(3, 1, dtype=F64))
            torch.testing.assert_close(ends, new, rtol=0, atol=1e-14)
            now, y, k = now + h, new, K[-1]
            middle = adaptive.evaluate(polynomial, torch.full((3, 1), 0.37, dtype=F64))
        errors.append(float((y - flow(start, end)).norm()))
        dense.append(float((middle - flow(polynomial[0], 0.37 * end / count)).norm()))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1, errors
    assert math.log2(dense[0] / dense[1]) > inside + 0.5, dense  # local errors: one order more


@each_method
def test_agrees_with_scipy_forwards_and_backwards(method):
    z0 = states(5)
    t = torch.linspace(0, 5, 12, dtype=F64)
    z = method(pendulum, z0, t, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(z, truth(z0, t), rtol=0, atol=2e-9)  # 1e-11 a step, over a hundred steps
    back = method(pendulum, z[-1], t.flip(0), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(back[-1], z0, rtol=0, atol=4e-9)
    assert torch.equal(method(pendulum, z0, t[:1]), z0[None])


@each_method
def test_a_sample_does_not_depend_on_its_batch_mates(method):
    """Bit for bit, with sines, beside samples that are stiffer, fewer, or one."""
    z0, t = states(40), torch.linspace(0, 4, 9, dtype=F64)
    stiffness = torch.ones(40, 1, dtype=F64)
    stiffness[7:] = 400.0

    def field(k):
        return lambda t, z: torch.cat([z[..., 1:], -k * z[..., :1].sin()], -1)

    together = method(field(stiffness), z0, t)
    for n in (1, 2, 3, 7):
        assert torch.equal(method(field(stiffness[:n]), z0[:n], t), together[:, :n])
    calls = []
    method(lambda t, z: calls.append(1) or field(stiffness[:7])(t, z), z0[:7], t)
    alone = len(calls)
    assert alone < 400  # the stiff ones need many times that


@each_method
def test_states_of_any_shape_time_dependence_and_float32(method):
    def field(t, y):
        assert t.shape == (4, 1, 1)
        return t.cos().expand_as(y)

    y = method(field, torch.zeros(4, 2, 3), torch.linspace(0, 2, 5), rtol=1e-5, atol=1e-6)
    assert y.shape == (5, 4, 2, 3) and y.dtype == torch.float32
    exact = torch.linspace(0, 2, 5).sin().view(5, 1, 1, 1).expand_as(y)
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-5)
    assert torch.equal(odeint(field, torch.zeros(4, 2, 3), torch.linspace(0, 2, 5), method=method.__name__,
                              per_sample=True, rtol=1e-5, atol=1e-6), y)  # fmt: skip


@each_method
def test_gradients_agree_with_finite_differences_and_with_checkpoints(method):
    k = torch.tensor(1.7, dtype=F64, requires_grad=True)
    z0 = states(3).requires_grad_()
    t = torch.linspace(0, 2, 4, dtype=F64)

    def loss(k, z0, **options):
        def field(t, z):
            return torch.stack([z[..., 1], -k * z[..., 0].sin()], -1)

        return method(field, z0, t, rtol=1e-11, atol=1e-12, **options).square().sum()

    plain = torch.autograd.grad(loss(k, z0), (k, z0))
    again = torch.autograd.grad(loss(k, z0, checkpoint=True), (k, z0))
    torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        e = 1e-3  # fourth-order differences, truncation 1e-12, of solutions good to 1e-11
        values = [loss(k + s * e, z0) for s in (-2, -1, 1, 2)]
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * e)
    torch.testing.assert_close(plain[0], difference, rtol=1e-8, atol=0)


def test_checkpoints_take_the_memory_of_a_square_root():
    """Bytes kept for backward, counted where autograd saves them: in proportion to n, and to its square root."""
    z0 = states(50).requires_grad_()

    def kept(end: float, checkpoint: bool) -> int:
        total = 0

        def count(x):
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        t = torch.tensor([0.0, end], dtype=F64)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            dopri5(pendulum, z0, t, checkpoint=checkpoint)
        return total

    plain = kept(160.0, False) / kept(10.0, False)
    sqrt = kept(160.0, True) / kept(10.0, True)
    assert plain > 10.0
    assert sqrt < 6.0
    assert kept(160.0, True) < kept(160.0, False) / 30
    assert [len(r) for r in segments(100)] == [10] * 10 and segments(0) == []


def test_captured_leaves_are_the_parameters():
    weight = torch.tensor(2.0, requires_grad=True)
    layer = torch.nn.Linear(2, 2)
    leaves = captured_leaves(lambda x: (layer(x) * weight.exp(),), torch.zeros(3, 2, requires_grad=True))
    assert {id(x) for x in leaves} == {id(weight), id(layer.weight), id(layer.bias)}


@pytest.mark.parametrize("method", [dopri5, pytest.param(dop853, marks=pytest.mark.slow)], ids=lambda f: f.__name__)
def test_compiled_steps_agree_with_eager_ones(method):
    z0, t = states(6), torch.linspace(0, 3, 7, dtype=F64)
    torch.testing.assert_close(method(pendulum, z0, t, compile=True), method(pendulum, z0, t), rtol=0, atol=1e-9)


def test_a_field_that_cannot_be_compiled_runs_eagerly_and_says_why_once(caplog):
    def field(t, z):
        if float(z.abs().max()) < 0:  # depends on data
            raise AssertionError
        print(end="")
        torch._dynamo.graph_break()
        return pendulum(t, z)

    z0, t = states(2), torch.linspace(0, 1, 3, dtype=F64)
    with caplog.at_level(logging.WARNING, logger="lie.integrators"):
        first = dopri5(field, z0, t, compile=True)
        again = dopri5(field, z0, t, compile=True)
    assert torch.equal(first, dopri5(pendulum, z0, t)) and torch.equal(again, first)
    assert len(caplog.records) == 1 and "cannot be compiled" in caplog.text


@each_method
def test_failures_name_time_step_and_samples_and_keep_what_was_reached(method):
    y0 = torch.tensor([[0.1], [1.0], [0.5]], dtype=F64)  # y' = y^2 leaves at t = 1 / y0
    t = torch.linspace(0, 1.5, 16, dtype=F64)
    with pytest.raises(IntegrationError, match=r"t = 1 with step .*\(sample 1\); .*singular") as caught:
        method(lambda t, y: y**2, y0, t)
    error = caught.value
    assert error.samples == [1] and error.time == pytest.approx(1.0, abs=1e-3) and 0 < error.step_size < 1e-12
    assert error.reached is not None and error.reached.shape == (16, 3, 1)
    torch.testing.assert_close(error.reached[9, 1], torch.tensor([1 / (1 - 0.9)], dtype=F64), rtol=1e-5, atol=0)
    assert error.reached[11:, 1].isnan().all()
    partial = method(lambda t, y: y**2, y0, t, return_reached=True)
    assert torch.equal(partial.isnan(), error.reached.isnan())
    with pytest.raises(IntegrationError, match=r"not done after 5 steps at t = .*raise max_steps") as caught:
        method(pendulum, states(2), torch.tensor([0.0, 50.0], dtype=F64), max_steps=5)
    assert caught.value.samples == [0, 1]
    with pytest.raises(IntegrationError, match=r"the field is not finite at t = 1.*sample 0"):
        method(lambda t, y: torch.where(t > 1.0, torch.full_like(y, math.nan), y), y0[:1], t)


@each_method
def test_second_derivatives_through_checkpoints(method):
    """dy/dt = -y^3 has y(1) = y0 / sqrt(1 + 2 y0^2), whose second derivative at 1 is -6 / 3^(5/2)."""
    y0 = torch.tensor([[1.0]], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    for checkpoint in (False, True):
        end = method(lambda t, y: -(y**3), y0, t, rtol=1e-11, atol=1e-12, checkpoint=checkpoint)[-1].sum()
        (first,) = torch.autograd.grad(end, y0, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), y0)
        assert float(first) == pytest.approx(3**-1.5, rel=1e-9)
        assert float(second) == pytest.approx(-6 * 3**-2.5, rel=1e-8)


@each_method
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_by_the_times(method, checkpoint):
    """y' = t y: y(b) = y0 exp((b^2 - a^2) / 2), with derivatives -a y(b) and b y(b) by the two ends."""
    t = torch.tensor([0.5, 0.9, 1.5], dtype=F64, requires_grad=True)
    y = method(lambda t, y: t * y, torch.ones(2, 1, dtype=F64), t, rtol=1e-12, atol=1e-13, checkpoint=checkpoint)
    (gradient,) = torch.autograd.grad(y[-1, 0, 0], t)
    expected = torch.tensor([-0.5, 0.0, 1.5], dtype=F64) * y[-1, 0, 0].detach()
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-9)


@each_method
def test_a_float32_state_does_not_mind_a_late_start(method):
    """The clock runs in the dtype of the times: an autonomous field does not know when it starts."""
    z0 = states(3, torch.float32)
    ends = [method(pendulum, z0, torch.tensor([a, a + 1], dtype=F64), rtol=1e-5, atol=1e-6)[-1] for a in (0.0, 1e6)]
    torch.testing.assert_close(*ends, rtol=0, atol=2e-6)  # float32 states, after some ten steps


@each_method
def test_a_single_state_is_one_sample_and_mixed_samples_are_refused(method):
    t = torch.linspace(0, 3, 4, dtype=F64)
    options = {"method": method.__name__, "per_sample": True}
    alone = odeint(pendulum, states(1)[0], t, **options)
    assert torch.equal(alone, odeint(pendulum, states(1), t, **options)[:, 0])

    def swings(t, z):  # a state (2, n) of positions and velocities, without a batch axis
        return torch.stack([z[1], -z[0].sin()])

    with pytest.raises(ValueError, match=r"mixes samples.*the 2 rows of a state \(2, 3\).*y0.unsqueeze\(0\)"):
        odeint(swings, torch.ones(2, 3, dtype=F64), t, **options)


@each_method
def test_bad_input(method):
    t = torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(ValueError, match=r"samples along the leading axis"):
        method(pendulum, torch.zeros(0, 2, dtype=F64), t)
    with pytest.raises(ValueError, match="tolerances that are not both zero"):
        method(pendulum, states(2), t, rtol=0, atol=0)
    with pytest.raises(ValueError, match="positive first_step"):
        method(pendulum, states(2), t, first_step=0.0)
    with pytest.raises(ValueError, match="max_steps=0"):
        method(pendulum, states(2), t, max_steps=0)
