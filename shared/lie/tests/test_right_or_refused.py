"""A public function is right for an input or refuses it, whatever the dtype and the layout of the tensors.

Each draw is a function, a dtype, a layout and a value; the reference is the same function of the same numbers, dense
and in float64. A dtype that is refused must be refused by a ValueError or TypeError of one line.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lie.autodiff import hamiltonian_field, jet, jvp_along, lagrangian_field, lie_bracket, lie_derivative
from lie.autodiff import poisson_bracket as bracket_of
from lie.groups import SE2, SE3, SO2, SO3, Heisenberg, Product, RxSO2, RxSQ, Sim2, Sim3, Subgroup, T
from lie.integrators import odeint
from torch import Tensor

GROUPS = [
    *(T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg()),
    *(Product(SO2(), T(1)), Subgroup(SE3(), (2, 3, 4, 5))),
]
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFUSED = [torch.int64, torch.bool, torch.complex64]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "strided": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "expanded": lambda x: x[:1].expand_as(x),
    "empty": lambda x: x[:0],
    "requires grad": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "nan": lambda x: x * torch.nan if x.is_floating_point() else x,
}


def other(a: Tensor) -> Tensor:
    """A second argument made from the first."""
    return a.flip(-1) if a.dtype in FLOATING else a


def energy(z: Tensor) -> Tensor:
    return 0.5 * z[..., 2:].square().sum(-1) - z[..., :2].cos().sum(-1)


def lagrangian(z: Tensor) -> Tensor:
    return 0.5 * z[..., 2:].square().sum(-1) + z[..., :2].cos().sum(-1)


def of_groups(group) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of algebra coordinates (..., dim); what follows `exp` sees elements rounded to its dtype."""
    d = group.point_dim

    def points(a: Tensor) -> Tensor:
        return torch.linspace(-1.0, 1.0, d, dtype=torch.float64).to(a.dtype).expand(*a.shape[:-1], d)

    return {
        "exp": group.exp,
        "hat": group.hat,
        "vee": lambda a: group.vee(group.hat(a)),
        "left_jacobian": group.left_jacobian,
        "right_jacobian_inverse": group.right_jacobian_inverse,
        "bracket": lambda a: group.bracket(a, other(a)),
        "bch": lambda a: group.bch(a, other(a)),
        "vector_field": lambda a: group.vector_field(a, points(a)),
        "log": lambda a: group.log(group.exp(a)),
        "inverse": lambda a: group.inverse(group.exp(a)),
        "normalise": lambda a: group.normalise(group.exp(a)),
        "adjoint": lambda a: group.adjoint(group.exp(a)),
        "relative": lambda a: group.relative(group.exp(a), group.exp(other(a))),
        "interpolate": lambda a: group.interpolate(group.exp(a), group.exp(other(a)), 0.3),
        "act": lambda a: group.act(group.exp(a), points(a)),
    }


AUTODIFF: dict[str, Callable[[Tensor], Tensor]] = {
    "jvp_along": lambda z: jvp_along(torch.sin, z, z)[1],
    "jvp_along of several": lambda z: jvp_along(torch.sin, z, torch.stack([z, z]))[1][1],
    "jet": lambda z: jet(torch.sin, z, z, order=2)[1][1],
    "lie_derivative": lambda z: lie_derivative(torch.sin, z, lambda x: x, lambda y: y),
    "lie_bracket": lambda z: lie_bracket(torch.sin, torch.cos)(z),
    "poisson_bracket": lambda z: bracket_of(energy, lambda y: y[..., 0])(z),
    "hamiltonian_field": hamiltonian_field(energy),
    "lagrangian_field": lagrangian_field(lagrangian, check=False),
}


def check(
    f: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, layout: str, epsilons: float, name: str
) -> None:
    """``f`` of ``x`` in a dtype and a layout against ``f`` of the same numbers, dense and in float64."""
    value = LAYOUTS[layout](x.to(dtype))
    if dtype not in FLOATING:
        with pytest.raises((ValueError, TypeError), match="expected") as caught:
            f(value)
        assert "\n" not in str(caught.value), name
        return
    got, expected = f(value), f(value.detach().clone(memory_format=torch.contiguous_format).double())
    assert got.dtype == dtype and got.shape == expected.shape, name
    if layout == "nan":
        assert torch.equal(torch.isnan(got), torch.isnan(expected)), name
        return
    if got.numel():
        size = expected.abs().max().clamp(min=1.0)
        assert (got.double() - expected).abs().max() <= epsilons * torch.finfo(dtype).eps * size, name
    if layout == "requires grad" and expected.numel():
        exact = value.detach().double().requires_grad_()
        (slope,) = torch.autograd.grad(got.sum(), value, allow_unused=True, materialize_grads=True)
        (wanted,) = torch.autograd.grad(f(exact).sum(), exact, allow_unused=True, materialize_grads=True)
        size = wanted.abs().max().clamp(min=1.0)
        assert (slope.double() - wanted).abs().max() <= 4.0 * epsilons * torch.finfo(dtype).eps * size, name


draws = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
inputs = {
    "dtype": st.sampled_from([*FLOATING, *REFUSED]),
    "layout": st.sampled_from(list(LAYOUTS)),
    "seed": st.integers(0, 2**31),
    "data": st.data(),
}


def draw(shape: tuple[int, ...], seed: int, scale: float) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-2, 2)


@draws
@given(group=st.sampled_from(GROUPS), **inputs)
def test_groups(group, dtype, layout, seed, data):
    functions = of_groups(group)
    name = data.draw(st.sampled_from(list(functions)))
    # Elements of entries up to e^0.8, each rounded once, and up to three products of them.
    check(functions[name], draw((3, group.dim), seed, 0.4), dtype, layout, 24.0, f"{group!r}.{name}")


@draws
@given(**inputs)
def test_autodiff(dtype, layout, seed, data):
    name = data.draw(st.sampled_from(list(AUTODIFF)))
    # Sums of some rounded sines and products; the caller's function runs in the dtype itself.
    check(AUTODIFF[name], draw((3, 4), seed, 0.7), dtype, layout, 8.0, name)


@draws
@given(**inputs)
def test_integrators(dtype, layout, seed, data):
    method = data.draw(st.sampled_from(["rk4", "leapfrog", "yoshida4", "gauss4", "implicit_midpoint"]))

    def oscillator(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([z[..., 2:], -z[..., :2]], -1)

    def end(z: Tensor) -> Tensor:
        return odeint(oscillator, z, torch.linspace(0.0, 0.5, 3).to(z.device), method=method)[-1]

    if dtype not in (torch.float32, torch.float64) or layout == "nan":
        return  # steps in half precision lose a rounding each; methods that iterate refuse what is not finite
    check(end, draw((3, 4), seed, 0.7), dtype, layout, 16.0, method)
