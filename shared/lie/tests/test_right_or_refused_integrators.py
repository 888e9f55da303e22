"""Every integrator is right for an input or refuses it: dtypes, layouts, values, gradients, fields and options.

References are closed forms: a harmonic oscillator, a particle on a circle at constant speed, a constant velocity of the
rotation group. A refusal is a ValueError or TypeError of ours, which says what was expected; only numbers that turn out
not to be finite on the way are a FloatingPointError.
"""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SO3
from lie.integrators import METHODS, dop853, dopri5, odeint, projection, rattle, rkmk4
from torch import Tensor

F64 = torch.float64
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver", "dop853")
ITERATING = ("implicit_midpoint", "gauss4", "gauss6", "rattle", "rattle4")
LOW_ORDER = ("euler", "midpoint", "leapfrog", "implicit_midpoint", "rattle", "explicit_adams", "implicit_adams")
TIMES = torch.tensor([0.0, 0.2, 0.3], dtype=F64)
OPTIONS = {
    "rattle": {"constraint": lambda q: q.square().sum(-1, keepdim=True) - 1.0},
    "rattle4": {"constraint": lambda q: q.square().sum(-1, keepdim=True) - 1.0},
    "rkmk4": {"group": SO3()},
    "crouch_grossman": {"group": SO3()},
}
SPIN = torch.tensor([0.3, -0.5, 0.7], dtype=F64)


def oscillator(t: Tensor, z: Tensor) -> Tensor:
    q, p = z.chunk(2, -1)
    return torch.cat([p, -q], -1)


def free(t: Tensor, z: Tensor) -> Tensor:
    q, p = z.chunk(2, -1)
    return torch.cat([p, torch.zeros_like(q)], -1)


def spin(t: Tensor, g: Tensor) -> Tensor:
    return SPIN.to(g).expand(*g.shape[:-2], 3)


def problem(method: str):
    """A field, states (3, ...), and the closed form (times, states) -> (T, ...)."""
    if method in ("rkmk4", "crouch_grossman"):
        g = SO3().exp(torch.tensor([[0.1, 0.2, 0.3], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=F64))
        return spin, g, lambda t, g: torch.stack([torch.linalg.matrix_exp(SO3().hat(SPIN * (s - t[0]))) @ g for s in t])
    angle = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    radius, across = torch.stack([angle.cos(), angle.sin()], -1), torch.stack([-angle.sin(), angle.cos()], -1)
    z = torch.cat([radius, across], -1)  # on the circle at speed 1, which is an oscillator's orbit too
    field = free if method.startswith("rattle") else oscillator

    def exact(t: Tensor, z: Tensor) -> Tensor:
        q, p = z.chunk(2, -1)
        turns = [(s - t[0]).to(z.dtype) for s in t]
        return torch.stack([torch.cat([q * a.cos() + p * a.sin(), p * a.cos() - q * a.sin()], -1) for a in turns])

    return field, z, exact


def solve(method: str, field, y: Tensor, t: Tensor, **more):
    options = {**OPTIONS.get(method, {}), **more.pop("options", {})}
    if method not in ADAPTIVE and "step_size" not in options:
        options["step_size"] = 0.02
    return odeint(field, y, t, method=method, options=options, **more)


def bound(method: str, dtype: torch.dtype) -> float:
    """Of the error at 0.3: of 15 steps of 0.02 by order 1 or 2 and more, then roundings of the dtype."""
    truncation = 5e-3 if method == "euler" else 2e-4 if method in LOW_ORDER else 2e-5
    return truncation + 8.0 * torch.finfo(dtype).eps


def refuses(call, *kinds: type[Exception]) -> None:
    with pytest.raises(kinds or (ValueError, TypeError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and (
        "expected" in text or "option" in text or "not finite" in text or "failed" in text or "mixes" in text
    ), text


@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method):
    field, y, exact = problem(method)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        if dtype.itemsize == 2 and method in (*ADAPTIVE, *ITERATING):
            refuses(lambda dtype=dtype: solve(method, field, y.to(dtype), TIMES), TypeError)
            continue
        for t in (TIMES, TIMES.to(dtype)):
            got = solve(method, field, y.to(dtype), t)
            assert got.dtype == dtype
            error = (got.double() - exact(t.double(), y.to(dtype).double())).abs().max()
            assert error <= bound(method, dtype), (dtype, t.dtype, error)
    others = [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int64, torch.bool]
    for dtype in others:
        refuses(lambda dtype=dtype: solve(method, field, y.to(dtype), TIMES), TypeError)
        refuses(lambda dtype=dtype: solve(method, field, y, TIMES.to(dtype)), TypeError)


@pytest.mark.parametrize("method", ["rk4", "leapfrog", "euler", "rkmk4"])
def test_small_steps_in_half_precision(method):
    """Steps of 1e-3, each below the rounding of the state: in half precision itself the state would not move."""
    field, y, exact = problem(method)
    for dtype in (torch.float16, torch.bfloat16):
        got = solve(method, field, y.to(dtype), TIMES, options={"step_size": 1e-3})
        error = (got.double() - exact(TIMES, y.to(dtype).double())).abs().max()
        assert error <= 1e-3 + 2.0 * torch.finfo(dtype).eps  # euler's own, and the rounding of velocities and result


@pytest.mark.parametrize("method", METHODS)
def test_layouts_and_times(method):
    field, y, exact = problem(method)
    layouts = {
        "strided": torch.stack([y, y], -1)[..., 0],
        "transposed": y.movedim(-1, 0).contiguous().movedim(0, -1),
        "expanded": y[:1].expand_as(y),
        "empty": y[:0],
        "no batch": y[0],
    }
    for name, value in layouts.items():
        got = solve(method, field, value, TIMES)
        assert got.shape == (3, *value.shape), name
        if value.numel():
            assert (got - exact(TIMES, value)).abs().max() <= bound(method, F64), name
    assert torch.equal(solve(method, field, y, TIMES[:1]), y.unsqueeze(0))
    back = TIMES.flip(0)
    assert (solve(method, field, y, back) - exact(back, y)).abs().max() <= bound(method, F64)
    for t in (TIMES[:0], TIMES[0], TIMES * torch.nan, TIMES / 0.0, TIMES * 0.0, TIMES[[0, 2, 1]], TIMES.to("meta")):
        refuses(lambda t=t: solve(method, field, y, t), ValueError)
    for value in (y * torch.nan, y * torch.inf, y.to("meta")):
        refuses(lambda value=value: solve(method, field, value, TIMES), ValueError)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "scipy_solver"])
def test_gradients(method):
    """Of the sum of the states' squares of a distance, by state, times and a parameter, against central differences."""
    field, y, _ = problem(method)
    weight = torch.linspace(0.5, 1.5, y.numel(), dtype=F64).view_as(y)
    rattling, on_group = method.startswith("rattle"), method in ("rkmk4", "crouch_grossman")

    def value(shift: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        def scaled(s: Tensor, z: Tensor) -> Tensor:
            return scale * field(s, z)

        if on_group:
            start = SO3().exp(shift * SPIN) @ y
        else:
            q, p = y.chunk(2, -1)  # the momenta alone, so that positions stay on the circle and momenta tangent
            start = torch.cat([q, p * (1.0 + shift)], -1) if rattling else y + shift * weight
        step = 0.1 if method not in ADAPTIVE else None
        return (solve(method, scaled, start, t, options={"step_size": step} if step else {})[1:] * weight).sum()

    inputs = [torch.tensor(0.1, dtype=F64), torch.tensor([0.0, 0.17, 0.25], dtype=F64), torch.tensor(0.9, dtype=F64)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    slopes = torch.autograd.grad(value(*leaves), leaves)
    # Adaptive methods choose other steps for moved inputs: noise of the tolerance, 1e-7 a state, over the difference.
    difference, allowed = (1e-3, 1e-3) if method in ADAPTIVE else (1e-4, 1e-6)
    for i, slope in enumerate(slopes):
        for j in range(inputs[i].numel()):
            ends = []
            for sign in (1.0, -1.0):
                moved = [x.clone() for x in inputs]
                moved[i].view(-1)[j] += sign * difference
                ends.append(value(*moved))
            assert abs((ends[0] - ends[1]) / (2.0 * difference) - slope.reshape(-1)[j]) < allowed, (i, j)


@pytest.mark.parametrize("method", METHODS)
def test_fields(method):
    field, y, _ = problem(method)
    y, t = y.float(), TIMES.float()
    for wrong in (
        lambda s, z: field(s, z)[..., :1],
        lambda s, z: field(s, z).to(torch.complex64),
        lambda s, z: field(s, z).double(),
        lambda s, z: field(s, z).long(),
        lambda s, z: field(s, z) > 0,
        lambda s, z: field(s, z).to("meta"),
        lambda s, z: 0.0,
    ):
        refuses(lambda wrong=wrong: solve(method, wrong, y, t), ValueError, TypeError)
    for bad in (torch.nan, torch.inf):
        with pytest.raises((ValueError, FloatingPointError)):
            solve(method, lambda s, z, bad=bad: bad * field(s, z), y, t)


@pytest.mark.parametrize("method", METHODS)
def test_numbers(method):
    field, y, _ = problem(method)
    for wrong in (math.nan, -1.0, math.inf, "x", None, True):
        for name in ("rtol", "atol"):
            refuses(lambda name=name, wrong=wrong: solve(method, field, y, TIMES, **{name: wrong}))
    if method in ADAPTIVE:
        refuses(lambda: solve(method, field, y, TIMES, rtol=0.0, atol=0.0), ValueError)
        for wrong in (math.nan, 0.0, -1.0, math.inf, "x", True):
            refuses(lambda wrong=wrong: solve(method, field, y, TIMES, options={"first_step": wrong}))
        name = "max_steps" if method == "dop853" else "max_num_steps"
        for wrong in (math.nan, 0, -1, math.inf, 1.5, "x", True, 10**30):
            refuses(lambda wrong=wrong: solve(method, field, y, TIMES, options={name: wrong}))
        return
    for wrong in (math.nan, 0.0, -1.0, "x", True, 1e-300):
        refuses(lambda wrong=wrong: solve(method, field, y, TIMES, options={"step_size": wrong}))
    one_step = solve(method, field, y, TIMES, options={"step_size": math.inf})
    assert torch.equal(one_step, solve(method, field, y, TIMES, options={"step_size": None}))
    if method in ITERATING:
        for wrong in (0, -1, 1.5, math.nan, "x", True):
            refuses(lambda wrong=wrong: solve(method, field, y, TIMES, options={"iterations": wrong}))


@pytest.mark.parametrize("solver", [dopri5, dop853, rattle, rkmk4], ids=lambda f: f.__name__)
def test_called_directly(solver):
    field, y, exact = problem(solver.__name__)
    more = OPTIONS.get(solver.__name__, {})
    if solver not in (dopri5, dop853):
        more = {**more, "step_size": 0.02}
    got = solver(field, y, TIMES, **more)
    assert (got - exact(TIMES, y)).abs().max() <= bound(solver.__name__, F64)
    for dtype in (torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool):
        refuses(lambda dtype=dtype: solver(field, y.to(dtype), TIMES, **more), TypeError)
    for value, t in ((y * torch.nan, TIMES), (y, TIMES * torch.nan), (y, TIMES[[0, 2, 1]]), (y, TIMES[:0])):
        refuses(lambda value=value, t=t: solver(field, value, t, **more), ValueError)
    refuses(lambda: solver(field, y.tolist(), TIMES, **more), TypeError)
    refuses(lambda: solver(lambda s, z: field(s, z)[..., :1], y, TIMES, **more), ValueError)
    if solver in (dopri5, dop853):
        refuses(lambda: solver(field, y[0, 0], TIMES), ValueError)
        refuses(lambda: solver(lambda s, z: field(s, z.flip(0)), y, TIMES), ValueError)  # samples mixed
        refuses(lambda: solver(field, y, TIMES, rtol=math.inf), ValueError)


def test_projection():
    onto = projection(lambda y: y.square().sum(-1, keepdim=True) - 1.0)
    y = torch.tensor([[3.0, 4.0], [0.5, 0.0]], dtype=F64)
    exact = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=F64)  # the nearest points of the circle
    for dtype in (torch.float32, F64):
        assert (onto(y.to(dtype)).double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps
        assert torch.equal(onto(y.to(dtype).T.contiguous().T), onto(y.to(dtype)))
    assert onto(y[:0]).shape == (0, 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64, torch.int64, torch.bool):
        refuses(lambda dtype=dtype: onto(y.to(dtype)), TypeError)
    for value in (y * torch.nan, y * torch.inf, y.to("meta")):
        refuses(lambda value=value: onto(value), ValueError)
    refuses(lambda: onto("a state"), TypeError)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_dense_output(method):
    field, y, exact = problem(method)
    output = odeint(field, y, TIMES, method=method, dense=True)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, F64):
        t = torch.tensor([0.0, 0.11, 0.25], dtype=dtype)
        assert (output.interpolate(t) - exact(t.double(), y)).abs().max() < 1e-6  # the tolerance of 1e-7, in norm
    assert output.interpolate(TIMES[:0]).shape == (0, 3, 4)
    for dtype in (torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool):
        refuses(lambda dtype=dtype: output.interpolate(TIMES.to(dtype)), TypeError)
    for t in (TIMES * torch.nan, TIMES + 1.0, TIMES.view(1, 3), TIMES.to("meta")):
        refuses(lambda t=t: output.interpolate(t), ValueError)
    t = torch.tensor([0.11], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(output.interpolate(t).sum(), t)
    assert slope.item() == pytest.approx(
        field(t, exact(torch.tensor([0.0, 0.11]).double(), y)[1]).sum().item(), abs=1e-5
    )
