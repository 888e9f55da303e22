"""The methods that keep structure: order, reversibility, symplecticity, invariants, constraints, groups."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, Heisenberg, Product, RxSO2, RxSQ, Sim2, Sim3, Subgroup, T, Trivial
from lie.integrators import (
    IntegrationError,
    crouch_grossman,
    gauss4,
    gauss6,
    implicit_midpoint,
    leapfrog,
    odeint,
    projection,
    rattle,
    rattle4,
    rkmk4,
    yoshida4,
    yoshida6,
    yoshida8,
)
from scipy.integrate import solve_ivp

F64 = torch.float64
GROUPS = [
    *(T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg()),
    *(Product(SO3(), T(2)), Subgroup(SE3(), (2, 3, 4, 5))),
]
SEPARABLE = {leapfrog: 2, yoshida4: 4, yoshida6: 6, yoshida8: 8}
GAUSS = {implicit_midpoint: 2, gauss4: 4, gauss6: 6}
Z0 = torch.tensor([[1.0, 0.3], [0.2, -0.9]], dtype=F64)
J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)


def pendulum(t, z):
    q, p = z.chunk(2, -1)
    return torch.cat([p, -q.sin()], -1)


def energy(z):
    q, p = z.chunk(2, -1)
    return (0.5 * p**2 + 1 - q.cos()).sum(-1)


def name(method) -> str:
    return getattr(method, "__name__", str(method))


def truth(t: float) -> torch.Tensor:
    def velocity(_, y):
        return [y[1], -math.sin(y[0])]

    rows = [solve_ivp(velocity, (0, t), z.tolist(), "DOP853", rtol=1e-13, atol=1e-15).y[:, -1] for z in Z0]
    return torch.stack([torch.from_numpy(row) for row in rows])


@pytest.mark.parametrize(("method", "order"), [*SEPARABLE.items(), *GAUSS.items()], ids=name)
def test_order(method, order):
    t = torch.tensor([0.0, 2.0], dtype=F64)
    exact = truth(2.0)
    # Steps so that the leading term rules and the error stays well above rounding.
    h = {2: 0.02, 4: 0.05, 6: 0.1, 8: 0.25}[order]
    errors = [(method(pendulum, Z0, t, step_size=s)[-1] - exact).norm() for s in (h, h / 2)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1, errors


@pytest.mark.parametrize("method", [*SEPARABLE, *GAUSS], ids=name)
def test_reversible_and_symplectic(method):
    t = torch.linspace(0, 10, 3, dtype=F64)
    z = method(pendulum, Z0, t, step_size=0.1)
    back = method(pendulum, z[-1], t.flip(0), step_size=0.1)
    torch.testing.assert_close(back[-1], Z0, rtol=0, atol=1e-12)  # 200 steps of rounding
    step = torch.func.jacrev(lambda y: method(pendulum, y[None], t[:2] / 10, step_size=1.0, **fixed(method))[-1, 0])(
        Z0[0]
    )
    torch.testing.assert_close(step.T @ J @ step, J, rtol=0, atol=1e-13)


def fixed(method) -> dict:
    return {"iterations": 60} if method in GAUSS else {}


@pytest.mark.parametrize("method", GAUSS, ids=name)
def test_gauss_keeps_quadratic_invariants(method):
    """The rigid body: |y|^2 and its energy are quadratic, and constant to rounding."""
    inertia = torch.tensor([1.0, 2.0, 3.0], dtype=F64)

    def euler(t, y):
        return torch.linalg.cross(y, y / inertia, dim=-1)

    y0 = torch.tensor([[0.8, 0.3, -0.6]], dtype=F64)
    y = method(euler, y0, torch.linspace(0, 100, 11, dtype=F64), step_size=0.1)
    for invariant in (y.square().sum(-1), (y.square() / inertia).sum(-1)):
        assert (invariant - invariant[0]).abs().max() < 1e-13  # 1000 steps of rounding, as a random walk


@pytest.mark.parametrize("method", [leapfrog, yoshida4, implicit_midpoint], ids=name)
def test_energy_stays_bounded_over_1e5_steps(method):
    """The error of the second half is not larger than that of the first; an explicit method drifts."""
    steps = {leapfrog: 100_000, yoshida4: 10_000}.get(method, 2_000)
    h = 0.1
    t = torch.linspace(0, steps * h, 201, dtype=F64)
    drift = (energy(method(quick, Z0, t, step_size=h)) - energy(Z0)).abs().amax(-1)
    assert drift[101:].max() <= 1.2 * drift[:101].max()
    assert drift.max() < h**2


def quick(t, z):
    return torch.stack([z[..., 1], -z[..., 0].sin()], -1)


@pytest.mark.slow
@pytest.mark.parametrize("method", [yoshida4, yoshida6, yoshida8, implicit_midpoint, gauss4, gauss6], ids=name)
def test_energy_stays_bounded_over_1e5_steps_for_every_method(method):
    h = 0.1
    t = torch.linspace(0, 100_000 * h, 201, dtype=F64)
    drift = (energy(method(quick, Z0, t, step_size=h)) - energy(Z0)).abs().amax(-1)
    rounding = 1e-13  # of 1e5 steps, where the method's own error is below it
    assert drift[101:].max() <= 1.2 * drift[:101].max() + rounding


def test_an_implicit_step_that_does_not_converge_says_so():
    stiff = torch.tensor([1.0, 1e4], dtype=F64).unsqueeze(-1)
    with pytest.raises(
        IntegrationError, match=r"did not converge in 100 iterations at t = 0 .*sample 1.*smaller"
    ) as caught:
        gauss4(lambda t, y: -stiff * y, torch.ones(2, 1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), step_size=0.1)
    assert caught.value.samples == [1] and caught.value.step_size == pytest.approx(0.1)


@pytest.mark.parametrize("method", GAUSS, ids=name)
def test_batch_mates_change_nothing(method):
    t = torch.linspace(0, 3, 4, dtype=F64)
    z0 = torch.randn(9, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    together = method(pendulum, z0, t, step_size=0.1)
    for n in (1, 2, 5):
        assert torch.equal(method(pendulum, z0[:n], t, step_size=0.1), together[:, :n])


@pytest.mark.parametrize("method", [*SEPARABLE, *GAUSS], ids=name)
def test_gradients_plain_and_checkpointed(method):
    length = torch.tensor(1.3, dtype=F64, requires_grad=True)
    t = torch.linspace(0, 2, 5, dtype=F64)

    def loss(value, z0=Z0, **options):
        def field(t, z):
            q, p = z.chunk(2, -1)
            return torch.cat([p, -q.sin() / value], -1)

        return method(field, z0, t, step_size=0.1, **options).square().sum()

    z0 = Z0.clone().requires_grad_()
    plain = torch.autograd.grad(loss(length, z0), (length, z0))
    again = torch.autograd.grad(loss(length, z0, checkpoint=True), (length, z0))
    torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        e = 1e-4  # fourth-order differences: truncation 1e-16, rounding 1e-16 / 1e-4
        values = [loss(length + k * e) for k in (-2, -1, 1, 2)]
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * e)
    torch.testing.assert_close(plain[0], difference, rtol=1e-8, atol=1e-8)


def test_projection_onto_a_surface_after_any_step():
    onto = projection(lambda y: y[..., :2].square().sum(-1, keepdim=True) - 1.0)
    y = torch.tensor([[3.0, 4.0, 1.0], [1.0, 0.0, 2.0]], dtype=F64, requires_grad=True)
    kept = y.detach().clone()
    z = onto(y)
    torch.testing.assert_close(
        z.detach(), torch.tensor([[0.6, 0.8, 1.0], [1.0, 0.0, 2.0]], dtype=F64), rtol=0, atol=1e-15
    )
    assert torch.equal(y.detach(), kept)
    assert torch.autograd.gradcheck(onto, y)

    def turn(t, y):
        return torch.stack([-y[..., 1], y[..., 0], y[..., 2] * 0], -1)

    t = torch.linspace(0, 10, 6, dtype=F64)
    start = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    for method, options in (("gauss4", {"step_size": 0.5}), ("dop853", {}), ("dopri5", {})):
        free = odeint(turn, start, t, method=method, rtol=1e-4, per_sample=method != "gauss4",
                      options={**options, "project": onto})  # fmt: skip
        assert (free[..., :2].norm(dim=-1) - 1).abs().max() < 4e-16
    with pytest.raises(IntegrationError, match=r"projection did not converge in 30 iterations \(sample 0\); the const"):
        projection(lambda y: y.square().sum(-1, keepdim=True) + 1.0)(start)
    with pytest.raises(TypeError, match="floating-point states"):
        onto(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="a constraint"):
        projection(3)  # type: ignore[arg-type]


def spherical(t, y):
    """A mass of 2 kg on a string of 1 m in gravity 1: positions and momenta."""
    q, p = y.chunk(2, -1)
    down = torch.tensor([0.0, 0.0, -2.0], dtype=y.dtype)
    return torch.cat([p / 2.0, down.expand_as(q)], -1)


def on_sphere(q):
    return q.square().sum(-1, keepdim=True) - 1.0


@pytest.mark.parametrize(("method", "order"), [(rattle, 2), (rattle4, 4)], ids=name)
def test_rattle(method, order):
    q = torch.nn.functional.normalize(torch.tensor([[0.8, 0.1, -0.5], [0.0, 1.0, 0.2]], dtype=F64), dim=-1)
    v = torch.linalg.cross(torch.tensor([[0.1, 0.4, 0.7], [1.0, 0.2, 0.3]], dtype=F64), q, dim=-1)
    y0 = torch.cat([q, 2.0 * v], -1)

    def reduced(_, y):  # d2q/dt2 = g - (g.q + |v|^2) q
        q, v = y[:3], y[3:]
        return [*v, *(-(v @ v - q[2]) * q - [0, 0, 1])]

    t = torch.tensor([0.0, 1.5], dtype=F64)
    exact = []
    for row_q, row_v in zip(q, v, strict=True):
        y = solve_ivp(reduced, (0, 1.5), [*row_q.tolist(), *row_v.tolist()], "DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
        exact.append(torch.from_numpy(y) * torch.tensor([1, 1, 1, 2, 2, 2]))
    exact = torch.stack(exact)
    options = {"constraint": on_sphere}
    errors = [(method(spherical, y0, t, step_size=h, **options)[-1] - exact).norm() for h in (0.05, 0.025)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1

    t = torch.linspace(0, 20, 21, dtype=F64)
    y = method(spherical, y0, t, step_size=0.05, **options)
    q, p = y.chunk(2, -1)
    assert on_sphere(q).abs().max() < 1e-12
    assert (q * p).sum(-1).abs().max() < 1e-12
    total = p.square().sum(-1) / 4 + 2 * q[..., 2]
    assert (total - total[0]).abs().max() < (0.05 if order == 2 else 0.01)
    back = method(spherical, y[10], t[:11].flip(0), step_size=0.05, **options)
    torch.testing.assert_close(back[-1], y0, rtol=0, atol=1e-9)


def test_rattle_on_points_keeps_two_bars_and_names_dependent_constraints():
    """The double pendulum in Cartesian coordinates, states (B, 2, n, d)."""

    def field(t, z):
        q, p = z.unbind(-3)
        return torch.stack([p, torch.tensor([0.0, -9.81], dtype=z.dtype).expand_as(q)], -3)

    def bars(q):
        first = q[..., 0, :].square().sum(-1) - 1.0
        return torch.stack([first, (q[..., 1, :] - q[..., 0, :]).square().sum(-1) - 1.0], -1)

    z0 = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]], dtype=F64)
    t = torch.linspace(0, 2, 5, dtype=F64)
    z = odeint(field, z0, t, method="rattle4", options={"constraint": bars, "step_size": 0.01, "dim": -3})
    assert z.shape == (5, 1, 2, 2, 2) and bars(z[:, :, 0]).abs().max() < 1e-12
    with pytest.raises(IntegrationError, match="dependent"):
        rattle(field, z0, t, constraint=lambda q: bars(q)[..., [0, 1, 1]], step_size=0.01, dim=-3)
    with pytest.raises(ValueError, match="on the constraint surface"):
        rattle(field, 1.1 * z0, t, constraint=bars, dim=-3)
    falling = z0.clone()
    falling[:, 1, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"tangent to the constraint surface, got a part of 0\.\d+ across"):
        rattle(field, falling, t, constraint=bars, dim=-3)
    with pytest.raises(ValueError, match=r"a constraint \(\.\.\., state\) -> \(\.\.\., C\)"):
        rattle(field, z0, t, constraint=lambda q: bars(q).sum(-1), dim=-3)


def test_rattle_is_independent_of_batch_mates_and_compiles():
    """Bit for bit beside other samples; with a number of iterations the same states, eager and compiled."""
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(6, 3, dtype=F64, generator=generator), dim=-1)
    p = 2.0 * torch.linalg.cross(torch.randn(6, 3, dtype=F64, generator=generator), q, dim=-1)
    y0, t = torch.cat([q, p], -1), torch.linspace(0, 1, 4, dtype=F64)
    options = {"constraint": on_sphere, "step_size": 0.05}
    together = rattle(spherical, y0, t, **options)
    for n in (1, 2, 5):
        assert torch.equal(rattle(spherical, y0[:n], t, **options), together[:, :n])
    for compile in (False, True):
        counted = odeint(spherical, y0, t, method="rattle", options={**options, "iterations": 5, "compile": compile})
        torch.testing.assert_close(counted, together, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="number of iterations"):
        rattle(spherical, y0, t, compile=True, **options)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("method", "order"), [(rkmk4, 4), (crouch_grossman, 3)], ids=name)
@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_integrators_on_groups(group, method, order, side):
    """Order against DOP853 on the entries, for a field of time and element."""
    A = torch.linspace(-1.0, 1.0, group.dim, dtype=F64)

    def field(t, g):
        return A * (1 + t.cos()) + 0.3 * (g[..., 0, -1, None] + g[..., 0, :1])

    def entries(t, y):
        g = torch.from_numpy(y).view(group.matrix_dim, -1)
        xi = group.hat(field(torch.tensor(t, dtype=F64), g))
        return (xi @ g if side == "left" else g @ xi).flatten().numpy()

    g0 = group.exp(0.5 * A.flip(0))
    exact = solve_ivp(entries, (0, 1), g0.flatten().numpy(), "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    t = torch.tensor([0.0, 1.0], dtype=F64)
    errors = []
    for h in (0.04, 0.02):
        g = method(field, g0, t, group=group, side=side, step_size=h)[-1]
        errors.append((g.flatten() - torch.from_numpy(exact)).norm())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1


def test_the_trivial_group_stays_where_it_is():
    t = torch.linspace(0, 1, 3, dtype=F64)
    for method in (rkmk4, crouch_grossman):
        g = method(lambda t, g: g.new_zeros(0), torch.eye(2, dtype=F64), t, group=Trivial(2))
        assert torch.equal(g, torch.eye(2, dtype=F64).expand(3, 2, 2))


def test_group_elements_stay_orthogonal():
    G, g0 = SO3(), torch.eye(3, dtype=F64)

    def field(t, g):
        return g[..., 0] * 0.3 + g[..., 2]

    g = rkmk4(field, g0, torch.linspace(0, 200, 3, dtype=F64), group=G, step_size=0.1)
    assert (g.mT @ g - g0).abs().max() < 4e-15  # a few roundings, however many steps
    t = torch.linspace(0.0, 1.0, 3, dtype=F64)
    moved = rkmk4(lambda t, x: torch.ones(2, dtype=F64), T(2).identity(dtype=F64), t, group=T(2))
    torch.testing.assert_close(T(2).log(moved), t.unsqueeze(-1).expand(3, 2))


@pytest.mark.slow
def test_group_elements_stay_orthogonal_over_1e5_steps():
    g0 = torch.eye(3, dtype=F64)
    t = torch.linspace(0, 10_000, 11, dtype=F64)
    g = rkmk4(lambda t, g: g[..., 0] * 0.3 + g[..., 2], g0, t, group=SO3(), step_size=0.1, compile=True)
    assert (g.mT @ g - g0).abs().max() < 1e-13


def test_errors():
    t = torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(ValueError, match="side 'left'"):
        rkmk4(lambda t, g: g[..., 0], torch.eye(3, dtype=F64), t, group=SO3(), side="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"elements of shape \(\.\.\., 4, 4\)"):
        rkmk4(lambda t, g: g[..., 0], torch.eye(3, dtype=F64), t, group=SE3())
    with pytest.raises(ValueError, match=r"algebra coordinates \(3,\) for SO3\(\) and elements \(3, 3\), got \(1,\)"):
        rkmk4(lambda t, g: g[..., 0, :1], torch.eye(3, dtype=F64), t, group=SO3())
    with pytest.raises(ValueError, match=r"got \(3, 3, 3\)"):  # matrices of the algebra instead of coordinates
        rkmk4(lambda t, g: SO3().hat(g[..., 0]), torch.eye(3, dtype=F64).expand(3, 3, 3), t, group=SO3())
    with pytest.raises(ValueError, match="1 of 1 matrices that are none"):
        rkmk4(lambda t, g: g[..., 0], 2 * torch.eye(3, dtype=F64), t, group=SO3())
    with pytest.raises(TypeError, match=r"an instance for group, got the class SO3; write SO3\(\)"):
        rkmk4(lambda t, g: g[..., 0], torch.eye(3, dtype=F64), t, group=SO3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"field of torch\.float64"):
        rkmk4(lambda t, g: g[..., 0].float(), torch.eye(3, dtype=F64), t, group=SO3())
    with pytest.raises(ValueError, match="number of iterations"):
        gauss4(pendulum, Z0, t, compile=True)
    with pytest.raises(ValueError, match="iterations of at least 1"):
        gauss4(pendulum, Z0, t, iterations=0)
    with pytest.raises(ValueError, match=r"unknown option of gauss4 'stepsize': did you mean 'step_size'"):
        odeint(pendulum, Z0, t, method="gauss4", options={"stepsize": 0.1})
    with pytest.raises(ValueError, match="for dopri5 and dop853, not gauss4"):
        odeint(pendulum, Z0, t, method="gauss4", per_sample=True)
