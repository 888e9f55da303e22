"""Public functions of systems are right for an input or refuse it: dtypes, shapes, gradients, numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from chnn.analysis import conservation, coordinate, lyapunov, poincare
from chnn.mechanics import Assembly, BodyHandle, Inertia, box
from chnn.models import CHNN, CLNN, HNN
from chnn.systems import (
    Bead,
    CartPole,
    ChainPendulum,
    FourBar,
    Gyroscope,
    MagnetPendulum,
    Rope,
    Satellite,
    System,
)
from chnn.systems.names import system_by_name
from hypothesis import given, settings
from hypothesis import strategies as st

SYSTEMS = {
    s.name: s
    for s in (ChainPendulum(links=2), Gyroscope(), CartPole(damping=0.1), Bead(), MagnetPendulum(), FourBar(),
              Satellite(), Rope(links=4))
}  # fmt: skip
VERBS = (
    *("kinetic", "potential", "energy", "energy_scale", "momentum", "angular_momentum", "constraints"),
    *("velocity_constraints", "project", "field", "momentum_field", "force", "compiled_field", "to_angles"),
)
MODELS = {
    "chnn": CHNN(ChainPendulum(links=2).description, hidden=8).double(),
    "clnn": CLNN(ChainPendulum(links=2).description, hidden=8).double(),
    "hnn": HNN(ChainPendulum(links=2), hidden=8).double(),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def verb(system: System, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A public function of states."""
    if name == "potential":
        return lambda z: system.potential(z[..., 0, :, :])
    if name == "force":
        return lambda z: system.force(z[..., 0, :, :], z[..., 1, :, :])
    if name == "compiled_field":
        return system.compiled_field()
    return getattr(system, name, None)


INPUTS = (
    "half",
    "bfloat16",
    "int",
    "complex",
    "shape",
    "numpy",
    "empty",
    "float32",
    "strided",
    "expanded",
    "axes",
    "one",
)


@given(st.sampled_from(sorted(SYSTEMS)), st.sampled_from(VERBS), st.sampled_from(INPUTS), st.integers(0, 2**16))
@settings(max_examples=250, deadline=None, derandomize=True)
def test_states_of_every_kind_are_right_or_refused(name, called, kind, seed):
    system = SYSTEMS[name]
    function = verb(system, called)
    if function is None:
        return
    z = system.sample(3, generator=generator(seed))
    expected = function(z)
    given_state, wanted = {
        "half": lambda: (z.half(), expected), "bfloat16": lambda: (z.bfloat16(), expected),
        "int": lambda: (z.long(), None), "complex": lambda: (z.to(torch.complex128), None),
        "shape": lambda: (z[..., :1], None), "numpy": lambda: (z.numpy(), None),
        "empty": lambda: (z[:0], expected[:0]), "float32": lambda: (z.float(), expected),
        "strided": lambda: (z.transpose(0, 1).contiguous().transpose(0, 1), expected),
        "expanded": lambda: (z[:1].expand(4, -1, -1, -1), expected[:1].expand(4, *expected.shape[1:])),
        "axes": lambda: (z.unsqueeze(1), expected.unsqueeze(1)), "one": lambda: (z[0], expected[0]),
    }[kind]()  # fmt: skip
    if wanted is None or (kind in ("half", "bfloat16") and called != "to_angles"):
        with pytest.raises((ValueError, TypeError), match="expected"):
            function(given_state)
        return
    got = function(given_state)
    assert got.shape == wanted.shape and got.dtype == given_state.dtype
    # Rounding of the inputs, by how much a dozen operations and a solve of condition 100 enlarge it.
    size = 1.0 + float(wanted.abs().max()) if wanted.numel() else 1.0
    tolerance = {torch.float64: 1e-11, torch.float32: 3e-4, torch.float16: 0.1, torch.bfloat16: 0.5}[got.dtype] * size
    off = (got.double() - wanted).abs()
    if called == "to_angles":
        off = torch.minimum(off, (off - 2.0 * torch.pi).abs())
    assert not off.numel() or float(off.max()) <= tolerance


@pytest.mark.parametrize("called", VERBS)
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_gradients_are_those_of_difference_quotients(name, called):
    """In reverse and forward mode; what does not depend on the state has no graph."""
    system = SYSTEMS[name]
    function = verb(system, called)
    if function is None:
        return
    z = system.sample(2, generator=generator(1))
    direction = torch.randn(z.shape, generator=generator(2), dtype=torch.float64)
    h = 1e-5
    quotient = (function(z + h * direction) - function(z - h * direction)) / (2.0 * h)
    start = z.clone().requires_grad_()
    out = function(start)
    if not out.requires_grad:
        assert float(quotient.abs().max()) == 0.0
        return
    weights = torch.randn(out.shape, generator=generator(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weights).sum(), start)
    size = 1.0 + float((weights * quotient).abs().sum())
    # The error of a central difference, h^2 times a third derivative, and rounding over h.
    assert abs(float((gradient * direction).sum() - (weights * quotient).sum())) <= 1e-6 * size
    _, tangent = torch.func.jvp(function, (z,), (direction,))
    torch.testing.assert_close(tangent, quotient, rtol=1e-6, atol=1e-6 * size)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("called", ["kinetic", "energy", "constraints", "field", "momentum_field", "compiled_field"])
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_numbers_that_are_none_stay_in_their_sample(name, called, bad):
    """The sample's own result is not finite, and the others have the same bits as without it."""
    system = SYSTEMS[name]
    function = verb(system, called)
    assert function is not None
    z = system.sample(3, generator=generator(1))
    expected = function(z)
    z[1] = bad
    got = function(z)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-12, atol=1e-12)
    assert not bool(got[1].isfinite().all())
    with pytest.raises(ValueError, match="sample \\[1\\]"):
        system.project(z)


def test_projection_and_forces_keep_the_law():
    """A projected state satisfies its constraints; the field keeps the energy of an undamped system."""
    for system in SYSTEMS.values():
        z = system.sample(5, generator=generator(4))
        shaken = z + 0.01 * torch.randn(z.shape, generator=generator(5), dtype=torch.float64)
        back = system.project(shaken)
        assert float(system.constraints(back).abs().max()) < 1e-12
        assert float(system.velocity_constraints(back).abs().max()) < 1e-11
        if system.damped:
            continue
        start = back.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(system.energy(start).sum(), start)
        power = (gradient * system.field(back)).sum((-3, -2, -1))
        assert float(power.abs().max()) < 1e-9 * (1.0 + float(system.energy(back).abs().max()))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_refuse_or_are_right(name):
    """Rollouts of no state, of strided states, and the refusal of other shapes and dtypes."""
    model = MODELS[name]
    z = ChainPendulum(links=2).sample(3, generator=generator())
    t = torch.linspace(0.0, 0.1, 3, dtype=torch.float64)
    expected = model.rollout(z, t)
    strided = z.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(model.rollout(strided, t), expected, rtol=1e-9, atol=1e-9)
    for wrong in (z[0], z.long(), z[..., :1], z.float(), z[:0]):
        with pytest.raises((ValueError, TypeError), match="expected"):
            model.rollout(wrong, t)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projection_is_as_exact_in_any_unit_of_length(unit, dtype):
    """The residual over the square of a length is that of a pendulum in metres, rounding of some 10 operations."""
    angles = torch.randn(50, 2, 2, generator=generator(6), dtype=torch.float64)
    noise = 0.05 * torch.randn(50, 2, 2, 2, generator=generator(7), dtype=torch.float64)
    residuals = []
    for length in (1.0, unit):
        system = ChainPendulum(2, lengths=[length, length])
        z = (system.from_angles(angles) + length * noise).to(dtype)
        back = system.project(z).double()
        residuals.append(float(system.constraints(back).abs().max()) / length**2)
        rate = (system.velocity_constraints(back).abs().amax(-1) / (length * back[:, 1].norm(dim=(1, 2)))).max()
        assert float(rate) < 20 * torch.finfo(dtype).eps
    assert max(residuals) < 80 * torch.finfo(dtype).eps


def test_projection_has_no_gradient_where_constraints_depend_on_one_another():
    """A parallelogram folded flat lies on its constraints, and may unfold in two ways; a state beside it is regular."""
    system = FourBar(crank=0.5, coupler=1.0, rocker=0.5, ground=1.0)
    centres = torch.tensor([[0.25, 0.0], [1.0, 0.0], [1.25, 0.0]], dtype=torch.float64)
    axes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    x = torch.stack([centres, centres + axes], 1).flatten(0, 1)
    flat = torch.stack([x, torch.zeros_like(x)])
    z = torch.stack([system.sample(1, generator=generator())[0], flat])
    assert torch.equal(system.project(z)[1], flat)
    for differentiate in (
        lambda: system.project(z.clone().requires_grad_()),
        lambda: torch.func.jvp(system.project, (z,), (torch.ones_like(z),)),
        lambda: torch.func.grad(lambda y: system.project(y).sum())(z),
    ):
        with pytest.raises(ValueError, match=r"cannot differentiate the projection of sample \[1\]"):
            differentiate()
    assert bool(torch.func.grad(lambda y: system.project(y).sum())(z[:1]).isfinite().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["chain-pendulum", "coupled-pendulum", "magnet-pendulum", "gyroscope", "rotor", "cart-pole"]
)
def test_angles_of_what_is_not_finite_are_not_finite(name: str, value: float) -> None:
    system = system_by_name(name)
    z = system.sample(2, generator=torch.Generator().manual_seed(0))
    z[1] = value
    angles = system.to_angles(z)
    assert angles[0].isfinite().all()
    assert not angles[1].isfinite().any()


def _calls(value: object) -> dict[str, Callable[[], object]]:
    """Calls of public functions with ``value`` where a number, tensor or text of another kind belongs."""
    system = system_by_name("chain-pendulum")
    z0, t = system.sample(2, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 0.2, 3)

    def built(declare: Callable[[Assembly, BodyHandle], object]) -> object:
        world = Assembly(2)
        declare(world, world.point("bob", 1.0, position=(0.0, -1.0)))
        return world.build("system")

    def with_body(inertia: Inertia) -> object:
        world = Assembly(3)
        world.body("body", 3, inertia)
        return world.build("system")

    moments = ((value, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.2))
    return {
        "horizon of lyapunov": lambda: lyapunov(system, z0, value),
        "horizon of poincare": lambda: poincare(system, z0, value, coordinate(system, "angle0")),
        "trajectories of conservation": lambda: conservation(system, value, t),
        "times of conservation": lambda: conservation(system, system.simulate(z0, t), value),
        "coordinate": lambda: coordinate(system, value),
        "number of samples": lambda: system.sample(value),
        "initial states": lambda: system.simulate(value, t),
        "times": lambda: system.simulate(z0, value),
        "tolerance": lambda: system.simulate(z0, t, value),
        "step of rattle": lambda: system.simulate(z0, t, method="rattle", dt=value),
        "mass of a point": lambda: Assembly(2).point("bob", value, position=(0.0, 0.0)),
        "position": lambda: Assembly(2).point("bob", 1.0, position=(value, 0.0)),
        "mass of a body": lambda: with_body(box(value, (1.0, 1.0, 1.0))),
        "size of a body": lambda: with_body(box(1.0, (value, 1.0, 1.0))),
        "moments": lambda: with_body(Inertia(1.0, moments, (0.0, 0.0, 0.0))),
        "dimension": lambda: Assembly(value),
        "length of a tether": lambda: built(lambda world, bob: world.tether(bob, (0.0, 0.0), value)),
        "gravity": lambda: built(lambda world, bob: world.gravity(value)),
        "damping": lambda: built(lambda world, bob: world.damping(value)),
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, "x", 1j, None], ids=repr)
@pytest.mark.parametrize("name", _calls(0.0))
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    if name == "step of rattle" and value is None:
        pytest.skip("None is no step at all: the error for it is tested with the methods")
    with pytest.raises((ValueError, TypeError)) as caught:
        _calls(value)[name]()
    assert str(caught.value)
