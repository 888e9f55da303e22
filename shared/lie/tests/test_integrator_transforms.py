"""torch.func over the integrators, derivatives at points where an iteration has nothing to do, and late clocks."""

from __future__ import annotations

import pytest
import torch
from lie.groups import SO3
from lie.integrators import odeint, projection
from torch.func import grad, jacfwd, jacrev, vmap

F64 = torch.float64
T = torch.linspace(0, 1, 3, dtype=F64)
STEP = {"step_size": 0.25}
STATES = torch.tensor([[1.0, 0.5], [0.3, -2.0], [0.01, 0.02]], dtype=F64)


def on_circle(q):
    return q.square().sum(-1, keepdim=True) - 1.0


CASES = {
    **{name: {"method": name, "options": {"step_size": 0.3}} for name in ("euler", "midpoint", "heun3", "rk4")},
    "rk4, checkpoints": {"method": "rk4", "options": {**STEP, "checkpoint": True}},
    "dopri5": {"method": "dopri5"},
    "dopri5 per sample": {"method": "dopri5", "per_sample": True},
    "dopri5 per sample, checkpoints": {"method": "dopri5", "per_sample": True, "adjoint": True},
    "dop853": {"method": "dop853"},
    "dop853, checkpoints": {"method": "dop853", "adjoint": True},
    "dop853, projected": {"method": "dop853", "options": {"project": projection(on_circle)}},
    **{
        name: {"method": name, "options": STEP}
        for name in ("leapfrog", "yoshida4", "yoshida6", "yoshida8", "implicit_midpoint", "gauss4", "gauss6")
    },
    "gauss4, checkpoints": {"method": "gauss4", "options": STEP, "adjoint": True},
    "gauss4, projected": {"method": "gauss4", "options": {**STEP, "project": projection(on_circle)}},
    "leapfrog, checkpoints": {"method": "leapfrog", "options": STEP, "adjoint": True},
    "rattle": {"method": "rattle", "options": {**STEP, "constraint": on_circle}},
    "rattle4": {"method": "rattle4", "options": {**STEP, "constraint": on_circle}},
    "rkmk4": {"method": "rkmk4", "options": {**STEP, "group": SO3()}},
    "crouch_grossman": {"method": "crouch_grossman", "options": {**STEP, "group": SO3()}},
}


def solution(case, x, w):
    """The end of a solution from a state made of ``x`` (2,), with a parameter."""
    options = case.get("options", {})
    if "group" in options:
        start = SO3().exp(torch.cat([x, x[:1]]))
        return odeint(lambda t, g: w * (g[..., 0] + t.sin()), start, T, **case)[-1]
    if "project" in options:

        def along(_, q):
            return torch.stack([-q[..., 1], q[..., 0]], -1) * (w * q[..., :1].sin() + 1)

        return odeint(along, torch.nn.functional.normalize(x, dim=-1), T, **case)[-1]
    if "constraint" in options:
        q = torch.nn.functional.normalize(x, dim=-1)
        x = torch.cat([q, torch.stack([-q[1], q[0]]) * w])

    def field(t, z):
        q, v = z.chunk(2, -1)
        return torch.cat([v, -w * q.sin() + 0.1 * t], -1)

    return odeint(field, x, T, **case)[-1]


def quotients(f, x, e=1e-3):
    """Derivatives along the entries of ``x``, by differences of order 4: truncation e^4 times that of order 5."""
    columns = []
    for step in e * torch.eye(len(x), dtype=F64):
        columns.append((f(x - 2 * step) - 8 * f(x - step) + 8 * f(x + step) - f(x + 2 * step)) / (12 * e))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # a mapped axis is not contiguous
def test_every_transform_of_every_method(name):
    """Mapped is one by one; derivatives, first and second, mapped or not, are difference quotients."""
    case = {**CASES[name], **({"rtol": 1e-9, "atol": 1e-11} if name.startswith("dop") else {})}
    w = torch.tensor(1.3, dtype=F64)
    x = STATES[0]

    def f(x, w=w):
        return solution(case, x, w)

    def total(x, w=w):
        return solution(case, x, w).sum()

    # torchdiffeq's dopri5, which is ours under a transform, has the tolerance 1e-9 of a step and some ten of them.
    size = 2e-8 if name == "dopri5" else 1e-14
    torch.testing.assert_close(vmap(f)(STATES), torch.stack([f(x) for x in STATES]), rtol=0, atol=size)
    J, H = quotients(f, x), quotients(grad(total), x)  # noqa: N806
    close = {"rtol": 1e-5, "atol": 1e-5} if name == "dopri5" else {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(jacrev(f)(x), J, **close)
    torch.testing.assert_close(jacfwd(f)(x), J, **close)
    torch.testing.assert_close(vmap(jacfwd(f))(STATES)[0], J, **close)
    torch.testing.assert_close(vmap(grad(total))(STATES)[0], J.reshape(-1, 2).sum(0), **close)
    torch.testing.assert_close(vmap(jacfwd(grad(total)))(STATES)[0], H, **close)
    torch.testing.assert_close(jacrev(jacrev(total))(x), H, **close)
    mapped = vmap(f, (None, 0))(x, torch.tensor([1.3, 2.0], dtype=F64))
    torch.testing.assert_close(mapped[0], f(x), rtol=0, atol=size)


@pytest.mark.parametrize("method", ["dopri8", "bosh3", "fehlberg2", "adaptive_heun", "explicit_adams", "scipy_solver"])
def test_methods_that_cannot_be_transformed_say_which_can(method):
    with pytest.raises(ValueError, match=rf"{method} of torchdiffeq cannot be transformed.*use dopri5, dop853, rk4"):
        vmap(lambda y: odeint(lambda t, y: -y, y, T, method=method))(STATES)


def test_input_is_checked_under_transforms():
    with pytest.raises(ValueError, match="strictly increasing"):
        vmap(lambda y: odeint(lambda t, y: -y, y, T[[0, 2, 1]], method="rk4"))(STATES)
    with pytest.raises(FloatingPointError, match="not finite from t = "):
        vmap(lambda y: odeint(lambda t, y: 1e300 * y * y, y, T, method="rk4"))(100 * STATES)
    with pytest.raises(ValueError, match="same times for all samples of vmap"):
        vmap(lambda t: odeint(lambda t, y: -y, STATES, t, method="leapfrog", options=STEP))(torch.stack([T, 2 * T]))
    mapped = vmap(lambda t: odeint(lambda t, y: -y, STATES, t, method="dop853"))(torch.stack([T, 2 * T]))
    torch.testing.assert_close(mapped[1, -1], STATES * torch.tensor(-2.0, dtype=F64).exp(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("method", "tolerance"), [("implicit_midpoint", 2e-3), ("gauss4", 1e-6), ("gauss6", 1e-10)])
def test_the_linearisation_at_an_equilibrium(method, tolerance):
    """At rest the stages are right from the start; their derivatives are not. The flow's is exp(A t)."""
    A = torch.tensor([[0.0, 1.0], [-4.0, 0.0]], dtype=F64)  # noqa: N806

    def end(y):
        return odeint(lambda _, y: torch.stack([y[..., 1], -4 * y[..., 0].sin()], -1), y, T, method=method,
                      options={"step_size": 0.05})[-1]  # fmt: skip

    # The error of the order: h^p / (p + 1)! times 4^(p/2 + 1/2), twice that for safety.
    exact = torch.linalg.matrix_exp(A)
    for J in (jacrev(end)(torch.zeros(2, dtype=F64)), jacfwd(end)(torch.zeros(2, dtype=F64))):
        torch.testing.assert_close(J, exact, rtol=0, atol=tolerance)
    start = torch.zeros(2, dtype=F64)
    assert torch.equal(end(start), end(start.clone().requires_grad_()).detach())


def test_second_derivatives_of_a_projection_at_a_point_of_the_surface():
    """Onto the circle the map is y / |y|, on it as beside it."""
    onto = projection(on_circle)
    for radius in (1.0, 1.5):
        y = radius * torch.tensor([0.6, 0.8], dtype=F64)
        got, exact = (jacrev(jacrev(f))(y) for f in (onto, lambda y: y / y.norm()))
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-14)


CLOCKED = {
    **{m: {"method": m, "rtol": 1e-8, "atol": 1e-9} for m in ("dopri5", "dopri8", "bosh3", "dop853")},
    "adaptive_heun": {"method": "adaptive_heun", "rtol": 1e-4, "atol": 1e-5},
    "dopri5 per sample": {"method": "dopri5", "per_sample": True, "rtol": 1e-6, "atol": 1e-7},
    "dopri5 by checkpoints": {"method": "dopri5", "per_sample": True, "adjoint": True, "rtol": 1e-6, "atol": 1e-7},
    "scipy_solver": {"method": "scipy_solver", "rtol": 1e-8, "atol": 1e-9},
    **{
        m: {"method": m, "options": {"step_size": 0.01}}
        for m in ("midpoint", "heun3", "rk4", "explicit_adams", "leapfrog", "yoshida4", "gauss4", "implicit_midpoint")
    },
    "rk4 by checkpoints": {"method": "rk4", "options": {"step_size": 0.01, "checkpoint": True}},
}


@pytest.mark.parametrize("name", CLOCKED)
def test_a_float32_state_at_a_late_float64_time(name):
    """dp/dt = cos 5t from t = 1e5 on, where float32 counts in steps of 0.008: p = sin(5t) / 5 - sin(5e5) / 5."""
    t = torch.tensor([1e5, 1e5 + 0.5, 1e5 + 1.0], dtype=F64)

    def field(s, y):
        assert s.dtype == F64
        return torch.cat([torch.ones_like(y[..., :1]), (5 * s).cos() * torch.ones_like(y[..., 1:])], -1)

    y = odeint(field, torch.zeros(2, 2), t, **CLOCKED[name])
    assert y.dtype == torch.float32
    exact = ((5 * t).sin() - (5 * t[0]).sin()) / 5
    # Order 2 at a step of 0.01 is 2e-5, and tolerances of a step of 1e-8 to 1e-4 in some ten steps; a clock in float32
    # loses 2e-4 to 4e-3.
    torch.testing.assert_close(y[..., 1].double(), exact[:, None].expand(3, 2), rtol=0, atol=6e-5)


@pytest.mark.parametrize("method", ["rkmk4", "crouch_grossman", "rattle"])
def test_late_times_on_groups_and_surfaces(method):
    t = torch.tensor([1e5, 1e5 + 1.0], dtype=F64)
    exact = ((5 * t[1]).sin() - (5 * t[0]).sin()) / 5
    if method == "rattle":
        options = {"step_size": 0.01, "constraint": lambda q: q[..., 1:]}
        force = torch.tensor([1.0, 1.0])
        y = odeint(lambda s, z: torch.cat([z[..., 2:], (5 * s).cos() * force.expand_as(z[..., 2:])], -1),
                   torch.zeros(2, 4), t, method=method, options=options)  # fmt: skip
        value = y[-1, 0, 2]
    else:
        axis = torch.tensor([1.0, 0.0, 0.0])
        g = odeint(lambda s, g: (5 * s).cos() * axis, torch.eye(3), t, method=method,
                   options={"step_size": 0.01, "group": SO3()})  # fmt: skip
        value = SO3().log(g[-1])[0]
    assert value.dtype == torch.float32
    assert abs(float(value) - float(exact)) < 6e-5  # order 2 at a step of 0.01


@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_steps_shorter_than_the_rounding_of_float32_times(method):
    """From t = 1e5 to 1e5 + 1 in float32, an autonomous field does not know how late it is."""
    z0 = torch.tensor([[1.0, 0.0]])
    spans = [torch.tensor([a, a + 1.0]) for a in (0.0, 1e5)]
    ends = [odeint(lambda _, z: torch.stack([40 * z[..., 1], -40 * z[..., 0]], -1), z0, t, method=method, rtol=1e-6,
                   atol=1e-7, per_sample=True)[-1] for t in spans]  # fmt: skip
    torch.testing.assert_close(*ends, rtol=0, atol=2e-5)  # rounding of some hundred steps in float32
