"""Order, reversibility, energy and agreement with scipy; the errors that name time and remedy."""

from __future__ import annotations

import math

import pytest
import torch
from lie.autodiff import hamiltonian_field
from lie.integrators import METHODS, explicit, gauss4, leapfrog, odeint, yoshida8
from scipy.integrate import solve_ivp


def pendulum(z):
    q, p = z.chunk(2, -1)
    return (0.5 * p**2 + 1 - q.cos()).sum(-1)


FIELD = hamiltonian_field(pendulum)
Z0 = torch.tensor([[1.0, 0.3], [0.2, -0.9]], dtype=torch.float64)


def reference(t):
    solutions = [
        solve_ivp(lambda _, z: [z[1], -math.sin(z[0])], (0, float(t[-1])), z.tolist(), "DOP853", t, rtol=1e-13,
                  atol=1e-14).y.T
        for z in Z0
    ]  # fmt: skip
    return torch.stack([torch.from_numpy(y) for y in solutions], 1)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "scipy_solver"])
def test_adaptive_methods_agree_with_scipy(method):
    t = torch.linspace(0, 3, 7, dtype=torch.float64)
    options = {"solver": "RK45"} if method == "scipy_solver" else None
    z = odeint(FIELD, Z0, t, method=method, options=options)
    # rtol = 1e-7 bounds the error of a step by the method's own estimate, not the error at the end: over the
    # hundred steps of the low orders, and with the loose estimate of dopri8, up to a few hundred times more.
    torch.testing.assert_close(z, reference(t), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("leapfrog", 2)])
def test_order_of_fixed_steps(method, order):
    t = torch.tensor([0.0, 2.0], dtype=torch.float64)
    truth = reference(t)[-1]
    errors = [(odeint(FIELD, Z0, t, method=method, options={"step_size": h})[-1] - truth).norm() for h in (0.02, 0.01)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)])
def test_explicit_methods_are_torchdiffeqs_with_more_options(method, order):
    t = torch.tensor([0.0, 0.4, 1.0, 2.0], dtype=torch.float64)
    theirs = odeint(QUICK, Z0, t, method=method, options={"step_size": 0.2})
    for option in ("checkpoint", "project"):
        options = {"step_size": 0.2, option: True if option == "checkpoint" else lambda z: z}
        torch.testing.assert_close(odeint(QUICK, Z0, t, method=method, options=options), theirs, rtol=0, atol=1e-14)
    truth = reference(t)[-1]
    errors = [(explicit(QUICK, Z0, t, method=method, step_size=h)[-1] - truth).norm() for h in (0.02, 0.01)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1


@pytest.mark.parametrize(
    "method",
    [explicit, *(pytest.param(m, marks=pytest.mark.slow) for m in (leapfrog, yoshida8, gauss4))],
    ids=lambda f: f.__name__,
)
def test_compiled_fixed_steps_agree_with_eager_ones(method):
    """Blocks of steps: fewer than one block, whole blocks, and a last one filled up; outputs inside of blocks."""
    options = {"iterations": 12} if method is gauss4 else {}
    for end, count in ((0.1, 2), (0.8, 3), (3.1, 9)):
        t = torch.linspace(0, end, count, dtype=torch.float64)
        eager = method(QUICK, Z0, t, step_size=0.1, **options)
        torch.testing.assert_close(
            method(QUICK, Z0, t, step_size=0.1, compile=True, **options), eager, rtol=0, atol=1e-13
        )
    z0 = Z0.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(method(QUICK, z0, t, step_size=0.1, compile=c, **options).square().sum(), z0)[0]
        for c in (False, True)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def QUICK(_, z):  # noqa: N802 (the same field by hand: thousands of steps follow)
    q, p = z.chunk(2, -1)
    return torch.cat([p, -q.sin()], -1)


def test_leapfrog_is_reversible_symplectic_and_keeps_energy():
    t = torch.linspace(0, 50, 6, dtype=torch.float64)
    z = leapfrog(QUICK, Z0, t, step_size=0.05)
    back = leapfrog(QUICK, z[-1], t.flip(0), step_size=0.05)
    torch.testing.assert_close(back[-1], Z0, rtol=0, atol=1e-11)  # 2000 steps of rounding
    # Theory: the error oscillates with amplitude h^2 / 12 times derivatives of order 1, and does not grow.
    drift = (pendulum(leapfrog(QUICK, Z0, torch.linspace(0, 200, 1001, dtype=torch.float64), step_size=0.05))
             - pendulum(Z0)).abs()  # fmt: skip
    assert drift.max() < 0.05**2 / 4
    assert drift[800:].max() < 1.1 * drift[:200].max()
    step = torch.func.jacrev(lambda y: leapfrog(QUICK, y, t[:2], step_size=0.5)[-1])(Z0[0])
    J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(step.T @ J @ step, J, rtol=0, atol=1e-13)


def test_leapfrog_on_points_and_step_counts():
    field = hamiltonian_field(lambda z: 0.5 * z.square().sum((-3, -2, -1)), dim=-3)
    z0 = torch.randn(3, 2, 4, 2, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    z = leapfrog(field, z0, t, step_size=1e-3, dim=-3)
    exact = torch.stack([torch.cat([z0[:, :1] * s.cos() + z0[:, 1:] * s.sin(),
                                    z0[:, 1:] * s.cos() - z0[:, :1] * s.sin()], 1) for s in t])  # fmt: skip
    torch.testing.assert_close(z, exact, rtol=0, atol=1e-6)  # order 2 with h = 1e-3
    calls = []
    leapfrog(lambda s, y: calls.append(s) or FIELD(y), Z0, torch.tensor([0.0, 0.3]), step_size=0.1)
    assert len(calls) == 2 + 2 * 3  # the check, the first force, and 3 steps: 0.3 / 0.1 in spite of rounding


def test_gradients_flow_and_the_adjoint_agrees():
    class Spring(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.tensor(1.7, dtype=torch.float64))

        def forward(self, t, z):
            return torch.cat([z[..., 1:], -self.k * z[..., :1]], -1)

    t = torch.tensor([0.0, 1.5], dtype=torch.float64)
    gradients = []
    for adjoint in (False, True):
        field = Spring()
        odeint(field, Z0, t, adjoint=adjoint)[-1].square().sum().backward()
        gradients.append(field.k.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)  # the adjoint integrates at the same rtol of 1e-7
    for method in ("dop853", "leapfrog", "gauss4"):
        options = None if method == "dop853" else {"step_size": 0.01}
        for adjoint in (False, True):
            field = Spring()
            odeint(field, Z0, t, method=method, adjoint=adjoint, options=options)[-1].square().sum().backward()
            gradients.append(field.k.grad)
        torch.testing.assert_close(*gradients[-2:], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients[-1], gradients[0], rtol=1e-3, atol=0)  # leapfrog's error at that step


def test_checkpoints_go_together_with_torch_func_in_the_field():
    """A Hamiltonian field differentiates inside; its parameter comes in by a closure, through a graph of its own."""
    raw = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    stiffness = raw.exp()
    field = hamiltonian_field(lambda z: 0.5 * (z[..., 1] ** 2 + stiffness * z[..., 0] ** 2))
    t = torch.linspace(0.0, 2.0, 4, dtype=torch.float64)
    for method in ("leapfrog", "dop853"):
        losses = [odeint(field, Z0, t, method=method, adjoint=adjoint)[-1].square().sum() for adjoint in (False, True)]
        plain, again = (torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in losses)
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=0)


def test_fields_that_differentiate_inside_start_from_states_with_gradients():
    def field(_, y):  # a harmonic oscillator by its energy, as a user would write it
        q, v = y.unbind(-1)
        with torch.enable_grad():
            q = q if q.requires_grad else q.detach().requires_grad_()
            (slope,) = torch.autograd.grad((0.5 * q.square()).sum(), q, create_graph=True)
        return torch.stack([v, -slope], -1)

    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 0.5, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(odeint(field, z0 * 1.0, t)[-1, 0, 0], z0)
    expected = torch.stack([t[-1].cos(), t[-1].sin()])[None]
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)  # the default tolerances


def test_float32_and_one_time():
    z = odeint(FIELD, Z0.float(), torch.tensor([0.0, 1.0]), rtol=1e-5, atol=1e-6)
    assert z.dtype == torch.float32
    for method in ("dopri5", "leapfrog"):
        assert torch.equal(odeint(FIELD, Z0, torch.zeros(1, dtype=torch.float64), method=method)[0], Z0)


def test_states_without_axes_empty_ones_and_float32_times():
    t = torch.linspace(0, 1, 11)
    end = odeint(lambda t, y: -y, torch.tensor(1.0), t, method="rk4")
    assert end.shape == (11,) and float(end[-1]) == pytest.approx(math.exp(-1), rel=1e-5)
    for method in ("dopri5", "rk4", "dop853", "leapfrog", "gauss4"):
        assert odeint(QUICK, torch.zeros(0, 2), t, method=method).shape == (11, 0, 2)
    # Whole numbers are the same times in both dtypes; the steps between are as exact as the state.
    whole = torch.arange(5.0)
    for method in ("leapfrog", "yoshida8", "gauss6"):
        a, b = (odeint(QUICK, Z0, s, method=method, options={"step_size": 0.1}) for s in (whole, whole.double()))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_adams_is_stable_at_steps_of_use():
    t = torch.linspace(0, 4, 41, dtype=torch.float64)
    z = odeint(QUICK, Z0, t, method="explicit_adams")
    torch.testing.assert_close(z, reference(t), rtol=0, atol=5e-3)  # order 4 at a step of 0.1


def test_methods_can_be_mapped():
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    batch = torch.stack([Z0, 1.5 * Z0])
    for method, options in (("leapfrog", {"step_size": 0.1}), ("gauss4", {"step_size": 0.1, "iterations": 20})):

        def solve(z, method=method, options=options):
            return odeint(QUICK, z, t, method=method, options=options)

        torch.testing.assert_close(torch.func.vmap(solve)(batch), torch.stack([solve(z) for z in batch]))


def test_errors():
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"unknown method 'dopri6': did you mean 'dopri"):
        odeint(FIELD, Z0, t, method="dopri6")
    with pytest.raises(ValueError, match="strictly increasing"):
        odeint(FIELD, Z0, torch.tensor([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"shape \(T,\)"):
        odeint(FIELD, Z0, torch.zeros(0))
    with pytest.raises(ValueError, match="finite initial state"):
        odeint(FIELD, Z0 * math.nan, t)
    with pytest.raises(TypeError, match=r"floating-point.*use .to\(torch.float64\)"):
        odeint(FIELD, Z0.long(), t)
    with pytest.raises(TypeError, match="times as a tensor, got list"):
        odeint(FIELD, Z0, [0.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite initial state and finite times"):
        odeint(FIELD, Z0, torch.tensor([0.0, math.nan]))
    with pytest.raises(TypeError, match=r"a tensor from field\(t, y\), got tuple"):
        odeint(lambda t, y: (y, y), Z0, t)  # type: ignore[arg-type,return-value]
    for name, value in (("rtol", -1.0), ("atol", math.nan)):
        with pytest.raises(ValueError, match=f"a finite {name} that is not negative"):
            odeint(FIELD, Z0, t, **{name: value})
    for step in (-0.1, 0.0):
        with pytest.raises(ValueError, match="positive step_size"):
            odeint(FIELD, Z0, t, method="rk4", options={"step_size": step})
    with pytest.raises(ValueError, match="no gradient"):
        odeint(FIELD, Z0.clone().requires_grad_(), t, method="scipy_solver", options={"solver": "RK45"})
    with pytest.raises(FloatingPointError, match="max_num_steps"):
        odeint(QUICK, Z0, t * 1e3, options={"max_num_steps": 10})
    with pytest.raises(ValueError, match=r"field of the state's shape \(2, 2\), got \(2, 1\)"):
        odeint(lambda s, y: y[:, :1], Z0, t)
    with pytest.raises(TypeError, match=r"torch.nn.Module"):
        odeint(lambda s, y: y, Z0, t, adjoint=True)
    with pytest.raises(ValueError, match=r"rattle needs options=\{'constraint'"):
        odeint(FIELD, Z0, t, method="rattle")
    with pytest.raises(ValueError, match="positive step_size"):
        leapfrog(FIELD, Z0, t, step_size=-0.1)
    with pytest.raises(ValueError, match="equally many"):
        leapfrog(FIELD, Z0[:, :1], t)
    with pytest.raises(ValueError, match="'compile' of dopri5 is for per_sample=True"):
        odeint(FIELD, Z0, t, options={"compile": True})
    with pytest.raises(ValueError, match=r"unknown explicit method 'rk5': did you mean 'rk4'"):
        explicit(FIELD, Z0, t, method="rk5")
    with pytest.raises(ValueError, match="no_such_option"):
        odeint(FIELD, Z0, t, options={"no_such_option": 1})
    with pytest.raises(FloatingPointError, match="t = 0 and 2"):
        odeint(lambda s, y: y**2, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="not finite from t = "):
        odeint(lambda s, y: y**2, torch.ones(1), torch.linspace(0.0, 40.0, 41), method="rk4")


def test_every_listed_method_runs():
    t = torch.linspace(0, 0.5, 6, dtype=torch.float64)
    for method in METHODS:
        if method.startswith(("rattle", "rkmk", "crouch")):
            continue  # these need a constraint or a group: test_structure.py
        torch.testing.assert_close(QUICK(t[0], Z0), FIELD(Z0))
        options = {"solver": "RK45"} if method == "scipy_solver" else None
        z = odeint(QUICK, Z0, t, method=method, options=options, rtol=1e-5, atol=1e-6)
        # One Euler step of 0.1 is the worst of them: error 0.1 / 2 times derivatives of order 1 times 0.5.
        torch.testing.assert_close(z, reference(t), rtol=0, atol=0.05)
