"""exp and log against 50-digit arithmetic, from 0 to pi, in both dtypes, and their compositions.

The unit is the machine epsilon of the dtype, relative to the norm of the block (rotation, rotation vector,
translation). The bound of 3 epsilons is what a handful of rounded operations cost; a formula that loses
digits near 0 or pi is wrong by thousands to 1e20.
"""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3

mp.mp.dps = 50
ANGLES = [0.0, 1e-30, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 3.0,
          *(math.pi - d for d in (1e-2, 1e-4, 1e-6, 1e-8, 0.0))]  # fmt: skip
DTYPES = [torch.float32, torch.float64]
BOUND = 3.0


def axes(count: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    fixed = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1], [1, 1, 0], [-1, -1, -1], [1, 1e-8, -1e-8]]
    return [(torch.tensor(v, dtype=torch.float64) / torch.tensor(v, dtype=torch.float64).norm()).tolist()
            for v in fixed] + (random / random.norm(dim=-1, keepdim=True)).tolist()  # fmt: skip


def translations(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    t = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return t * torch.logspace(-3, 3, count, dtype=torch.float64).unsqueeze(-1)


def twists(dtype: torch.dtype) -> torch.Tensor:
    """All angles x axes with translations from 1e-3 to 1e3, rounded to the dtype, angle at most pi."""
    directions = axes(8)
    rows = [[a * theta for a in axis] for theta in ANGLES for axis in directions]
    w = torch.tensor(rows, dtype=torch.float64).to(dtype)
    return torch.cat([w, translations(len(rows)).to(dtype)], dim=-1)


def mp_vector(row: torch.Tensor) -> list[mp.mpf]:
    return [mp.mpf(value) for value in row.double().tolist()]


def mp_cross(w: list[mp.mpf]) -> mp.matrix:
    x, y, z = w
    return mp.matrix([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def mp_exp(a: list[mp.mpf]) -> tuple[mp.matrix, mp.matrix]:
    """Rotation and translation by the closed forms, whose cancellation 50 digits (and 60 more) can bear."""
    with mp.workdps(120):
        K = mp_cross(a[:3])
        theta = mp.sqrt(sum(x * x for x in a[:3]))
        if theta == 0:
            return mp.eye(3), mp.matrix(a[3:])
        A, B = mp.sin(theta) / theta, (1 - mp.cos(theta)) / theta**2
        C = (theta - mp.sin(theta)) / theta**3
        return mp.eye(3) + A * K + B * K * K, (mp.eye(3) + B * K + C * K * K) * mp.matrix(a[3:])


def mp_log(R: mp.matrix, t: mp.matrix, w: list[mp.mpf]) -> mp.matrix:
    """The translation part of log, for a known exact rotation vector w."""
    with mp.workdps(120):
        K = mp_cross(w)
        theta = mp.sqrt(sum(x * x for x in w))
        if theta == 0:
            return t
        D = (1 - theta / 2 * mp.cot(theta / 2)) / theta**2
        return (mp.eye(3) - K / 2 + D * K * K) * t


def error_eps(got: torch.Tensor, true: mp.matrix, dtype: torch.dtype) -> float:
    flat = mp_vector(got.flatten())
    expected = [true[i] for i in range(len(flat))] if true.cols == 1 else [
        true[i, j] for i in range(true.rows) for j in range(true.cols)]  # fmt: skip
    norm = mp.sqrt(sum(x * x for x in expected))
    difference = mp.sqrt(sum((g - x) ** 2 for g, x in zip(flat, expected, strict=True)))
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / norm / mp.mpf(torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_of_se3_and_so3(dtype):
    a = twists(dtype)
    g = SE3().exp(a)
    assert torch.equal(SO3().exp(a[:, :3]), g[:, :3, :3])
    worst_R = worst_t = 0.0
    for row, element in zip(a, g, strict=True):
        R, t = mp_exp(mp_vector(row))
        worst_R = max(worst_R, error_eps(element[:3, :3], R, dtype))
        worst_t = max(worst_t, error_eps(element[:3, 3], t, dtype))
    assert worst_R <= BOUND and worst_t <= BOUND, (worst_R, worst_t)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_of_se3_and_so3(dtype):
    """The input is the true element rounded to the dtype; at pi both signs name the same rotation.

    Rounding the element itself moves the translation part by eps |V^-1|, at most pi/2, which the bound includes.
    """
    a = twists(dtype)
    worst_w = worst_t = 0.0
    for row in a:
        w, v = mp_vector(row)[:3], mp_vector(row)
        theta = mp.sqrt(sum(x * x for x in w))
        if theta > mp.pi:  # pi rounded up: the principal logarithm is the vector of 2 pi - theta the other way
            w = [x * (1 - 2 * mp.pi / theta) for x in w]
        R, t = mp_exp(v)
        g = torch.zeros(4, 4, dtype=dtype)
        g[:3, :3] = torch.tensor([[float(R[i, j]) for j in range(3)] for i in range(3)], dtype=torch.float64)
        g[:3, 3] = torch.tensor([float(x) for x in t], dtype=torch.float64)
        g[3, 3] = 1.0
        got = SE3().log(g)
        assert torch.equal(SO3().log(g[:3, :3]), got[:3])
        if abs(float(theta) - math.pi) < 4 * torch.finfo(dtype).eps and float(sum(
            x * mp.mpf(y) for x, y in zip(w, got[:3].double().tolist(), strict=True))) < 0:  # fmt: skip
            w = [-x for x in w]
        t_rounded = mp.matrix(mp_vector(g[:3, 3]))
        worst_w = max(worst_w, error_eps(got[:3], mp.matrix(w), dtype))
        worst_t = max(worst_t, error_eps(got[3:], mp_log(R, t_rounded, w), dtype))
    assert worst_w <= BOUND and worst_t <= BOUND, (worst_w, worst_t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_se2_and_so2(dtype, sign):
    t = translations(len(ANGLES))[:, :2].to(dtype)
    theta = torch.tensor(ANGLES, dtype=torch.float64).to(dtype).clamp(max=torch.tensor(math.pi).to(dtype).item())
    a = torch.cat([sign * theta.unsqueeze(-1), t], dim=-1)
    g = SE2().exp(a)
    back = SE2().log(g)
    assert torch.equal(SO2().exp(a[:, :1]), g[:, :2, :2])
    for row, element, again in zip(a, g, back, strict=True):
        angle, x, y = mp_vector(row)
        R, shift = mp_exp([mp.mpf(0), mp.mpf(0), angle, x, y, mp.mpf(0)])
        assert error_eps(element[:2, :2], R[:2, :2], dtype) <= BOUND
        assert error_eps(element[:2, 2], shift[:2, 0], dtype) <= BOUND
        # The round trip adds the rounding of the element to that of the logarithm: twice the bound.
        if abs(abs(float(angle)) - math.pi) > 1e-6:
            assert error_eps(again[:1], mp.matrix([angle]), dtype) <= 2 * BOUND
            assert error_eps(again[1:], mp.matrix([x, y]), dtype) <= 2 * BOUND


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [SO2(), SE2(), SO3(), SE3()], ids=repr)
def test_compositions(group, dtype):
    """log(exp(a)) against a, exp(log(g)) against g; hundreds of axes an angle, translations from 1e-3 to 1e3.

    The turn between exp(log(g)) and g counts relative to the angle of g: a rotation vector of length pi, rounded, is
    already off by pi half epsilons. Translations meet the roundings of both maps and of the rotation between them: 4
    epsilons instead of 3 (3.7 measured).
    """
    n = 3 if group.dim in (3, 6) and not isinstance(group, SE2) else 1
    generator = torch.Generator().manual_seed(1)
    axes = torch.randn(300, n, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    t = torch.randn(300, group.dim - n, generator=generator, dtype=torch.float64)
    t = t * torch.logspace(-3, 3, 300, dtype=torch.float64).unsqueeze(-1)
    eps = torch.finfo(dtype).eps

    def relative(got, true):
        return float(((got - true).norm(dim=-1) / true.norm(dim=-1).clamp(min=1e-300)).max()) / eps

    for theta in (*ANGLES, 1.5, 2.0, 2.5):
        a = torch.cat([theta * axes, t], -1).to(dtype)
        g = group.exp(a)
        if theta < math.pi - 8 * math.pi * eps:  # else the logarithm may take the other sign
            back = group.log(g).double()
            assert relative(back[:, :n], a[:, :n].double()) <= BOUND, theta
            assert group.dim == n or relative(back[:, n:], a[:, n:].double()) <= BOUND + 1, theta
        again = group.exp(group.log(g)).double()
        d = group.point_dim
        turn = (again[:, :d, :d] - g[:, :d, :d].double()).flatten(1).norm(dim=-1) / math.sqrt(2)
        # Below 1 an entry of the rotation has roundings of its own, of the size of 1.
        assert float(turn.max()) <= BOUND * eps * max(theta, 1.0), theta
        assert group.dim == n or relative(again[:, :d, d], g[:, :d, d].double()) <= BOUND + 1, theta


def test_derivatives_of_the_action_at_the_identity():
    """d/da exp(a) x at 0 is the fundamental field, its second derivative (E_i E_j + E_j E_i) x / 2."""
    x = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    for group in (SO3(), SE3()):
        zero = torch.zeros(group.dim, dtype=torch.float64)

        def move(a, group=group):
            return group.act(group.exp(a), x)

        E = group.generators(dtype=torch.float64)
        point = x if group.matrix_dim == 3 else torch.cat([x, torch.ones(1, dtype=torch.float64)])
        first = (E @ point)[:, :3].T
        second = 0.5 * (E[:, None] @ E[None] + E[None] @ E[:, None]) @ point
        torch.testing.assert_close(torch.func.jacfwd(move)(zero), first, rtol=0, atol=4e-16)
        torch.testing.assert_close(torch.func.hessian(move)(zero), second[..., :3].movedim(-1, 0), rtol=0, atol=8e-16)
