"""The compiled fields against the torch fields: the same numbers, and the torch field wherever more than numbers is
wanted."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from chnn.mechanics import Assembly
from chnn.simulation.compiled_field import CompiledField
from chnn.simulation.kernels import fingerprint
from chnn.systems import CartPole, ChainPendulum, Gyroscope, Rope, System
from chnn.systems.names import SYSTEMS
from lie.run import UserError
from torch import Tensor

KINDS: list[Any] = list(SYSTEMS.values())
EACH = [
    *(kind() for kind in KINDS if kind is not Rope), Rope(8), ChainPendulum(5, masses=[1.0, 3.0, 0.2, 1.0, 2.0]),
    CartPole(damping=0.1),
]  # fmt: skip
FORMS = ["field", "momentum_field"]

each_form = pytest.mark.parametrize("form", FORMS)
each_system = pytest.mark.parametrize("system", EACH, ids=lambda s: f"{s.name}{s.num_points}")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(system: System, form: str, num: int) -> Tensor:
    """Of velocities or of momenta, and not on the constraints: there both forms are only defined by their formulas."""
    z = system.sample(num, generator=generator())
    z = z + 0.01 * torch.randn(z.shape, dtype=z.dtype, generator=generator(1))
    return z if form == "field" else torch.stack([z[:, 0], system.description.mass @ z[:, 1]], 1)


def both(system: System, form: str) -> tuple[Callable[..., Tensor], CompiledField]:
    return getattr(system, form), getattr(system, f"compiled_{form}")()


@pytest.fixture
def only_compiled(monkeypatch) -> Callable[[], None]:
    """From its call on the torch fields refuse to work."""

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("computed by torch")

    def forbid() -> None:
        for form in FORMS:
            monkeypatch.setattr(System, form, refuse)

    return forbid


@each_system
@each_form
def test_numbers_are_those_of_the_torch_field(system, form, only_compiled):
    """To 1e-12 of the largest number of a state: rounding, times the condition of the constraints (below 1e3 here)."""
    field, fast = both(system, form)
    z = states(system, form, 18)
    expected = field(z)
    single = z.float()
    rounded = field(single)
    only_compiled()
    size = expected.abs().amax((-3, -2, -1), keepdim=True)
    assert ((fast(z) - expected).abs() <= 1e-12 * size).all()
    for count in (1, 7, 8, 9, 16, 17):  # more and fewer than lanes
        assert torch.equal(fast(z[:count]), fast(z)[:count])
    assert torch.equal(fast(z[3]), fast(z)[3])
    assert torch.equal(fast(z.view(3, 6, *z.shape[1:])), fast(z).view(3, 6, *z.shape[1:]))
    # float32, judged by the float64 field of the same states.
    truth = fast(single.double())
    assert fast(single).dtype == torch.float32
    size = truth.abs().amax((-3, -2, -1)).float()
    error, theirs = ((each - truth).abs().amax((-3, -2, -1)) / size for each in (fast(single), rounded))
    assert (error <= 10 * theirs + 1e-5).all()


@each_form
def test_any_layout(form, only_compiled):
    system = Gyroscope()
    _, fast = both(system, form)
    z = states(system, form, 12).view(3, 4, 2, 4, 3)
    only_compiled()
    expected = fast(z)
    strange = [
        z.transpose(0, 1).contiguous().transpose(0, 1), z.mT.contiguous().mT,
        torch.stack([z, -z], -1)[..., 0], torch.cat([z, z], -2)[..., :4, :],
    ]  # fmt: skip
    for each in strange:
        assert not each.is_contiguous()
        before = each.clone()
        assert torch.equal(fast(each), expected)
        assert torch.equal(each, before)
    assert torch.equal(fast(z[:, ::2]), expected[:, ::2])
    assert torch.equal(fast(z[0].expand(5, 4, 2, 4, 3)), expected[0].expand(5, 4, 2, 4, 3))
    with torch.inference_mode():
        assert torch.equal(fast(z), expected)
    with torch.no_grad():
        assert torch.equal(fast(z.clone().requires_grad_()), expected)
    assert not fast(z).requires_grad


@each_form
def test_nothing_in_nothing_out(form):
    fast = both(Gyroscope(), form)[1]
    assert fast(torch.zeros(0, 2, 4, 3)).shape == (0, 2, 4, 3)


@pytest.mark.parametrize("system", [ChainPendulum(2), Gyroscope(), CartPole(damping=0.1)], ids=lambda s: s.name)
@each_form
def test_derivatives_are_those_of_the_torch_field(system, form):
    field, fast = both(system, form)
    z = states(system, form, 3)
    w, u = (torch.randn(z.shape, dtype=z.dtype, generator=generator(seed)) for seed in (2, 3))

    def same(of: Callable[[Callable[..., Tensor]], Any]) -> None:
        torch.testing.assert_close(of(fast), of(field), rtol=0, atol=0)

    start = z.clone().requires_grad_()
    same(lambda f: torch.autograd.grad((f(start) * w).sum(), start)[0])
    same(lambda f: torch.autograd.functional.hvp(lambda y: (f(y) * w).sum(), z, u)[1])
    same(lambda f: torch.func.vmap(f)(z))
    same(lambda f: torch.func.jvp(f, (z,), (u,)))
    same(lambda f: torch.func.vmap(torch.func.jacrev(f))(z))
    same(lambda f: torch.func.jvp(torch.func.grad(lambda y: (f(y) * w).sum()), (z,), (u,)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, u)
        same(lambda f: torch.autograd.forward_ad.unpack_dual(f(dual)).tangent)
    # What a transform does not look at is within it what it is outside.
    same(lambda f: torch.func.grad(lambda y: (y * f(z)).sum())(w))


@each_form
def test_what_looks_at_operations_sees_them(form):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    field, fast = both(ChainPendulum(3), form)
    z = states(fast.system, form, 4)
    whole = fast if form == "field" else lambda y: 2.0 * fast(y) - fast(y)  # itself, or within a function
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), field(z), rtol=1e-12, atol=1e-12)
    graph = make_fx(fast)(z)
    torch.testing.assert_close(graph(-z), field(-z), rtol=0, atol=0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert fast(mode.from_tensor(z)).shape == z.shape
    with FlopCounterMode(display=False) as counter:
        fast(z)
    assert counter.get_total_flops() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fast(z.float()), field(z.float()), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer is deprecated, and tells of shapes that it holds constant
        traced: Any = torch.jit.trace(fast.__call__, (z,), check_trace=False)
    torch.testing.assert_close(traced(-z), field(-z), rtol=1e-12, atol=1e-12)


@each_form
def test_states_that_are_no_states_give_what_torch_gives(form):
    system = ChainPendulum(3)
    field, fast = both(system, form)
    z = states(system, form, 11)
    z[1, 0, 0, 0] = torch.nan
    z[2, 1, 2, 1] = torch.nan
    z[3, 0, 1, 1] = torch.inf
    z[4, 1] = -torch.inf
    z[5, 0] = 0.0  # every rod without length: a Gram matrix of zeros
    z[6, 0, 1] = z[6, 0, 0]  # one of them
    z[7, 0] *= 1e-170  # whose squares are no numbers
    for y in (z, z.float()):
        got, expected = fast(y), field(y)
        finite, theirs = (each.isfinite().flatten(1).all(1) for each in (got, expected))
        assert torch.equal(finite, theirs)
        assert got[5:8, 1].isnan().all()
        good = [0, *range(8, 11)]
        torch.testing.assert_close(got[good], expected[good], rtol=1e-4, atol=1e-4)
        assert got[good].isfinite().all()


@each_form
def test_errors_are_those_of_the_torch_field(form):
    field, fast = both(Gyroscope(), form)
    z = torch.zeros(5, 2, 4, 3)
    wrong = [z[:, 0], z[..., :2], z[:, :1], z.long(), z.half(), z.bfloat16(), z.to(torch.complex64), z.tolist(), None]
    for each in wrong:
        with pytest.raises(UserError) as expected:
            field(each)
        with pytest.raises(UserError) as got:
            fast(each)  # type: ignore[arg-type]
        assert str(got.value) == str(expected.value)


def test_a_force_from_outside_is_added_by_torch():
    system = ChainPendulum(2)
    field, fast = both(system, "field")
    z, t = states(system, "field", 3), torch.tensor(0.3, dtype=torch.float64)
    push = lambda t, x, v: t * x - v  # noqa: E731
    assert torch.equal(fast(z, t, push), field(z, t, push))
    torch.testing.assert_close(fast(z, t), field(z, t), rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="a field of momenta takes no external force"):
        system.compiled_momentum_field()(z, t, push)


def test_learnt_masses_get_their_gradients():
    description = ChainPendulum(3).description
    inertia = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    system = System(description.with_inertia(inertia))
    fast = system.compiled_field()
    z = states(system, "field", 4).detach()
    value = fast(z)
    (gradient,) = torch.autograd.grad(value.square().sum(), inertia)
    assert (gradient != 0).all()
    with torch.no_grad():
        torch.testing.assert_close(fast(z), value, rtol=1e-12, atol=1e-12)


@each_form
def test_parameters_of_a_potential_get_their_gradients(form):
    """The function of a potential keeps them where no description shows them."""
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    world = Assembly(2)
    world.point("bob", 1.0)
    world.potential(lambda x: k * x[..., 0, 0] ** 2)
    system = System(world.build("spring"))
    fast = getattr(system, f"compiled_{form}")()
    z = torch.ones(3, 2, 1, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(fast(z)[:, 1, 0, 0].sum(), k)
    assert float(gradient) == pytest.approx(-6.0, abs=1e-12)  # of -2 k x, three times
    with torch.no_grad():
        assert torch.equal(fast(z), fast(z.clone().requires_grad_())) and not fast(z).requires_grad


@each_form
def test_forces_without_a_compiled_form_are_told(form):
    world = Assembly(2)
    world.tether(world.point("bob", 1.0, position=(0.0, -1.0)), (0.0, 0.0), 1.0)
    world.potential(lambda x: torch.special.i0(x).sum((-2, -1)))
    system = System(world.build("own"))
    with pytest.raises(UserError, match=r"the field of own cannot be compiled: .*; use system\.field"):
        getattr(system, f"compiled_{form}")()
    assert getattr(system, form)(system.sample(2)).isfinite().all()


def test_a_system_that_computes_otherwise_has_a_kernel_of_its_own():
    class Pushed(ChainPendulum):
        def force(self, x: Tensor, v: Tensor | None = None) -> Tensor:
            return super().force(x, v) + 3.0

    plain, pushed = ChainPendulum(2), Pushed(2)
    assert fingerprint(plain) is not None
    assert fingerprint(pushed) is None
    z = states(plain, "field", 3)
    for system in (plain, pushed):
        torch.testing.assert_close(system.compiled_field()(z), system.field(z), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plain.field(z), pushed.field(z))


def test_it_can_be_copied_and_sent():
    system = ChainPendulum(2)
    fast = system.compiled_field()
    z = states(system, "field", 9)
    for other in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other(z), fast(z))
