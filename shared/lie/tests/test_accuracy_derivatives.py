"""First and second derivatives of ``act`` and of ``log(exp(.))`` within 8 machine epsilons; third ones finite.

The truth of ``act`` in float64 are differences in 200-digit arithmetic; in float32 the float64 results at the same
coordinates. The truth of ``log(exp(.))`` below pi is the identity, without second derivatives. The unit is the machine
epsilon times the largest entry of the truth (at least 1; at least pi for the second derivatives of ``log(exp(.))``, the
size of its values). Translations and points are of size 1.

Angles of 1 and 2 radians matter: formulas switch there, and a clamp has no derivative at its own bound.
"""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, Heisenberg, LieGroup, Product, RxSO2, RxSQ, Sim2, Sim3, Subgroup, T

ANGLES = [0.0, 1e-30, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 0.9, 1.0, 1.5, 2.0, 2.1, 3.0,
          *(math.pi - d for d in (1e-2, 1e-4, 1e-6, 1e-8))]  # fmt: skip
TURNING = [SO2(), RxSO2(), SE2(), SO3(), SE3(), Sim2(), Sim3()]
OTHERS = [T(2), RxSQ(), Heisenberg(), Product(SO3(), T(2)), Subgroup(SE3(), (2, 3, 4, 5))]
SPACE = (SO3, SE3, Sim3)
DILATES = (RxSO2, Sim2, Sim3)
BOUND = 8.0
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_group = pytest.mark.parametrize("group", [*TURNING, *OTHERS], ids=repr)


def coordinates(group: LieGroup, dtype: torch.dtype) -> torch.Tensor:
    """Every angle about a fixed and a random axis, with dilations and translations of size 1."""
    generator = torch.Generator().manual_seed(0)
    if not isinstance(group, (SO2, RxSO2, SE2, *SPACE, Sim2)):
        return torch.randn(8, group.dim, generator=generator, dtype=torch.float64).to(dtype)
    rows = []
    for i, theta in enumerate(ANGLES):
        for fixed in (True, False):
            axis = torch.randn(3 if isinstance(group, SPACE) else 1, generator=generator, dtype=torch.float64)
            if fixed:
                axis = torch.eye(len(axis), dtype=torch.float64)[i % len(axis)]
            w = theta * axis / axis.norm()
            sigma = [0.0, 0.4, -0.7][i % 3]
            t = torch.randn(group.point_dim, generator=generator, dtype=torch.float64)
            t = t / t.norm()
            row = [*([sigma] if isinstance(group, DILATES) else []), *w.tolist(), *t.tolist()]
            rows.append(row[: group.dim])
    a = torch.tensor(rows, dtype=torch.float64).to(dtype)
    # Within rounding of pi the logarithm may be the vector of the other sign.
    angle = a[:, :4] if isinstance(group, Sim3) else a[:, :3] if isinstance(group, SPACE) else a[:, :2]
    angle = angle[:, 1:] if isinstance(group, DILATES) else angle if isinstance(group, SPACE) else angle[:, :1]
    return a[angle.double().norm(dim=-1) < math.pi * (1 - 4 * torch.finfo(dtype).eps)]


def exact_act(group: LieGroup, a: list, x: list) -> list:
    """``exp(a) x`` as a similarity of space, by closed forms at the working precision."""
    a = list(a)
    sigma = a.pop(0) if isinstance(group, DILATES) else mp.mpf(0)
    w = [a.pop(0) for _ in range(3)] if isinstance(group, SPACE) else [mp.mpf(0), mp.mpf(0), a.pop(0)]
    t = [*a, mp.mpf(0), mp.mpf(0), mp.mpf(0)][:3]
    point = [*x, mp.mpf(0)][:3]
    squared = sum(c * c for c in w)
    theta = mp.sqrt(squared)
    A, B = (mp.sin(theta) / theta, (1 - mp.cos(theta)) / squared) if theta else (mp.mpf(1), mp.mpf(1) / 2)
    growth = mp.exp(sigma)

    def phi(z):
        return (mp.exp(z) - 1) / z if z else mp.mpf(1)

    z = phi(mp.mpc(sigma, theta))
    p = mp.re(z)
    if theta:
        q, r = mp.im(z) / theta, (phi(sigma) - p) / squared
    else:  # the limits: V is phi(sigma) and has no first-order part that enters at w = 0
        q = r = mp.mpf(0)

    def cross(u):
        return [w[1] * u[2] - w[2] * u[1], w[2] * u[0] - w[0] * u[2], w[0] * u[1] - w[1] * u[0]]

    turned, again = cross(point), cross(cross(point))
    across, along = cross(t), sum(c * d for c, d in zip(w, t, strict=True))
    moved = [
        growth * (point[i] + A * turned[i] + B * again[i]) + p * t[i] + q * across[i] + r * along * w[i]
        for i in range(3)
    ]
    return moved[: len(x)]


def exact_derivatives(group: LieGroup, a: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jacobian (d, dim) and Hessian (d, dim, dim) of the action at ``a``, by differences of step 1e-25."""
    with mp.workdps(200):
        h = mp.mpf("1e-25")
        at, point = [mp.mpf(v) for v in a.tolist()], [mp.mpf(v) for v in x.tolist()]
        n, d = len(at), len(point)

        def f(*moves: tuple[int, int]) -> list:
            moved = list(at)
            for i, sign in moves:
                moved[i] = moved[i] + sign * h
            return exact_act(group, moved, point)

        J, H = torch.zeros(d, n, dtype=torch.float64), torch.zeros(d, n, n, dtype=torch.float64)
        for i in range(n):
            plus, minus = f((i, 1)), f((i, -1))
            slopes = [float((u - v) / (2 * h)) for u, v in zip(plus, minus, strict=True)]
            J[:, i] = torch.tensor(slopes, dtype=torch.float64)
            for j in range(i, n):
                corners = zip(f((i, 1), (j, 1)), f((i, 1), (j, -1)), f((i, -1), (j, 1)), f((i, -1), (j, -1)),
                              strict=True)  # fmt: skip
                values = [float((s - u - v + w) / (4 * h * h)) for s, u, v, w in corners]
                H[:, i, j] = H[:, j, i] = torch.tensor(values, dtype=torch.float64)
    return J, H


def batched(f, *order):
    for transform in order:
        f = transform(f)
    return torch.func.vmap(f)


def epsilons(got: torch.Tensor, true: torch.Tensor, dtype: torch.dtype, size: float = 1.0) -> float:
    scale = true.abs().flatten(1).amax(1).clamp(min=size)
    return float(((got.double() - true).abs().flatten(1).amax(1) / scale).max()) / torch.finfo(dtype).eps


def point(group: LieGroup) -> torch.Tensor:
    return torch.tensor([0.3, -1.2, 0.7, 0.5, -0.4])[: group.point_dim]


FIRST = {"forward": (torch.func.jacfwd,), "reverse": (torch.func.jacrev,)}
SECOND = {
    "forward over reverse": (torch.func.jacrev, torch.func.jacfwd),
    "forward over forward": (torch.func.jacfwd, torch.func.jacfwd),
    "reverse over reverse": (torch.func.jacrev, torch.func.jacrev),
}


@pytest.mark.parametrize("group", TURNING, ids=repr)
def test_act_in_float64(group):
    a, x = coordinates(group, torch.float64), point(group).double()
    truth = [exact_derivatives(group, row, x) for row in a]
    for orders, true in ((FIRST, [J for J, _ in truth]), (SECOND, [H for _, H in truth])):
        for mode, order in orders.items():
            got = batched(lambda b: group.act(group.exp(b), x), *order)(a)
            assert epsilons(got, torch.stack(true), torch.float64) <= BOUND, mode


@every_group
def test_act_in_float32_follows_float64(group):
    a, x = coordinates(group, torch.float32), point(group)
    for order in (*FIRST.values(), *SECOND.values()):
        got = batched(lambda b: group.act(group.exp(b), x), *order)(a)
        true = batched(lambda b: group.act(group.exp(b), x.double()), *order)(a.double())
        assert got.dtype == torch.float32
        assert epsilons(got, true, torch.float32) <= BOUND


@every_group
@every_dtype
def test_log_exp(group, dtype):
    a = coordinates(group, dtype)
    eye = torch.eye(group.dim, dtype=torch.float64).expand(len(a), -1, -1)
    for orders, true in ((FIRST, eye), (SECOND, torch.zeros(len(a), *[group.dim] * 3, dtype=torch.float64))):
        for mode, order in orders.items():
            got = batched(lambda b: group.log(group.exp(b)), *order)(a)
            # A rotation vector near pi has roundings of that size, which its second derivatives inherit.
            assert epsilons(got, true, dtype, size=math.pi if order in SECOND.values() else 1.0) <= BOUND, mode


@every_group
@every_dtype
def test_third_derivatives_are_finite(group, dtype):
    a, x = coordinates(group, dtype), point(group).to(dtype)
    for f in (lambda b: group.log(group.exp(b)), lambda b: group.act(group.exp(b), x)):
        third = batched(f, torch.func.jacrev, torch.func.jacfwd, torch.func.jacfwd)(a)
        assert third.isfinite().all()


@every_dtype
@pytest.mark.parametrize("group", [SO3(), SE3(), Sim3()], ids=repr)
def test_log_at_half_turns(group, dtype):
    """The derivative along the group at R = diag(1, -1, -1) and its like is the inverse right Jacobian."""
    for diagonal in ([1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]):
        g = group.identity(dtype=dtype).clone()
        g[:3, :3] = torch.diag(torch.tensor(diagonal, dtype=dtype))
        if group.matrix_dim == 4:
            g[:3, 3] = torch.tensor([0.3, -1.2, 0.7], dtype=dtype)

        def around(b, g=g):
            return group.log(g @ group.exp(b))

        zero = torch.zeros(group.dim, dtype=dtype)
        true = group.right_jacobian_inverse(group.log(g.double()))
        for mode in (torch.func.jacfwd, torch.func.jacrev):
            assert epsilons(mode(around)(zero)[None], true[None], dtype) <= BOUND
        assert torch.func.hessian(around)(zero).isfinite().all()
        # Beyond the half turn the logarithm jumps to the other side; just before it, it is continuous.
        near = group.log(g @ group.exp(-1e-6 * torch.nn.functional.normalize(group.log(g), dim=-1)))
        assert (near - group.log(g)).abs().max() < 1e-5


@every_dtype
@pytest.mark.parametrize("theta", [math.pi - 1e-3, math.pi - 1e-6, math.pi])
@pytest.mark.parametrize("group", [SO3(), SE3(), Sim3()], ids=repr)
def test_derivatives_of_log_stay_finite_up_to_pi(group, theta, dtype):
    w = theta * torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    t = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    a = {SO3: w, SE3: torch.cat([w, t]), Sim3: torch.cat([w.new_tensor([0.3]), w, t])}[type(group)].to(dtype)
    g = group.exp(a)
    for order in (torch.func.jacfwd(group.log), torch.func.jacfwd(torch.func.jacrev(group.log))):
        assert torch.isfinite(order(g)).all()
