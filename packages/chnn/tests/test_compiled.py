"""The compiled path against the torch path, and the tracing of programs it stands on."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chnn.mechanics import Assembly
from chnn.simulation.compiled import simulate_compiled
from chnn.simulation.errors import Untraceable
from chnn.simulation.graph import trace
from chnn.simulation.kernels import cache_folder, fingerprint, kernel_of, programs_of
from chnn.simulation.reference import simulate_torch
from chnn.systems import (
    Bead,
    CartPole,
    ChainPendulum,
    CoupledPendulum,
    FourBar,
    Gyroscope,
    MagnetPendulum,
    Rope,
    Rotor,
    Satellite,
    System,
)
from lie.run import UserError

SYSTEMS = [
    ChainPendulum(2, masses=[1.0, 2.0]),
    CoupledPendulum(3),
    MagnetPendulum(),
    Gyroscope(),
    Rotor(),
    CartPole(damping=0.1),
    FourBar(),
    Bead(),
    Satellite(),
    Rope(8),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_both_paths_take_the_same_steps(system: System):
    """1e-9 at every tolerance: the paths differ by rounding, which chaos has multiplied by less than 1e5 here."""
    z0 = system.sample(3, generator=generator())
    t = torch.linspace(0, 0.4, 5, dtype=torch.float64)
    if isinstance(system, MagnetPendulum):
        t = t[:2]  # its steps are short
    for rtol in (1e-6, 1e-10):
        a = system.simulate(z0, t, rtol, backend="numba")
        b = system.simulate(z0, t, rtol, backend="torch")
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_outputs_within_steps(system: System):
    """Both paths agree to 1e-9 at any time, and an output is as good as a step: on the constraints, near the truth."""
    z0 = system.sample(5, generator=generator())
    end = 0.1 if isinstance(system, MagnetPendulum) else 0.4
    t = torch.linspace(0, end, 23, dtype=torch.float64)
    for rtol in (1e-6, 1e-10):
        a, b = (system.simulate(z0, t, rtol, dense=True, backend=backend) for backend in ("numba", "torch"))
        size = max(1.0, float(a.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * size)
        if system.constraints_on_points.num_constraints:
            assert system.constraints(a).abs().max() <= 1e-14
            assert system.velocity_constraints(a).abs().max() <= 1e-13 * size
        # The error of a step is at most rtol (|y| + 0.01); within it that of the extension is a few times larger.
        torch.testing.assert_close(a, system.simulate(z0, t, 1e-12), rtol=0, atol=100 * rtol * size)
        # Times do not move the steps: an output is the same, whatever others are asked for.
        few = system.simulate(z0, t[[0, 7, 22]], rtol, dense=True)
        assert torch.equal(few, a[:, [0, 7, 22]])


def test_each_sample_may_have_its_own_times():
    system = ChainPendulum(2)
    z0 = system.sample(11, generator=generator())
    t = torch.rand(11, 4, dtype=torch.float64, generator=generator(1)).cumsum(1) - 0.5
    options: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11, "dense": True}
    for run in (simulate_compiled, simulate_torch):
        z = run(system, z0, t, **options)
        for i in (0, 5, 10):
            torch.testing.assert_close(z[i], run(system, z0[i : i + 1], t[i], **options)[0], rtol=0, atol=1e-13)


def test_many_samples_fill_lanes_in_any_number():
    system = ChainPendulum(2)
    z0, t = system.sample(19, generator=generator()), torch.linspace(0, 1, 4, dtype=torch.float64)
    whole = system.simulate(z0, t, backend="numba")
    for i in (0, 7, 8, 18):
        assert torch.equal(system.simulate(z0[i : i + 1], t, backend="numba")[0], whole[i])
    seen: list[float] = []
    system.simulate(z0, t, backend="numba", progress=seen.append)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("function", [
    lambda x: [(x**3).sum(0) / (1 + x[0] ** 2), x @ x.T],
    lambda x: [torch.func.grad(lambda y: (y.sin() * y.exp()).sum() + y.norm())(x), -x],
    lambda x: [torch.cat([x, 2 - x]).sqrt(), (1 / x).log()],
    lambda x: [torch.where(x[0] == x[1], x[0], x[1] * 2), x.pow(-1.5), x.tanh()],
])  # fmt: skip
def test_programs_compute_what_torch_computes(function, by_python):
    x = torch.rand(2, 3, dtype=torch.float64, generator=generator()) + 0.5
    expected = torch.cat([y.flatten() for y in function(x)])
    torch.testing.assert_close(by_python(trace(function, x), x), expected, rtol=1e-13, atol=1e-14)


def test_zeros_of_constraints_leave_no_operations():
    """The Cholesky factor of a chain is tridiagonal: operations grow in proportion to the number of links."""
    counts = []
    for links in (5, 10, 20):
        system = ChainPendulum(links)
        counts.append(len(programs_of(system)[0].operations))
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.1)


def test_a_simulated_system_can_be_copied_and_sent():
    system = ChainPendulum(2)
    z0, t = system.sample(1, generator=generator()), torch.tensor([0.0, 0.1], dtype=torch.float64)
    z = system.simulate(z0, t, backend="numba")
    assert torch.equal(copy.deepcopy(system).simulate(z0, t, backend="numba"), z)
    assert pickle.dumps(system)  # as for a process beside this one


def test_potentials_and_surfaces_of_ones_own_are_compiled_and_others_are_told():
    def world(potential) -> System:
        assembly = Assembly(2)
        assembly.tether(assembly.point("bob", 1.0, position=(0.0, -1.0)), (0.0, 0.0), 1.0)
        assembly.potential(potential)
        return System(assembly.build("own"))

    smooth = world(lambda x: (x[..., 0] ** 2).sum(-1) + x[..., 1].exp().sum(-1))
    z0, t = smooth.sample(2, generator=generator()), torch.linspace(0, 1, 3, dtype=torch.float64)
    a, b = (smooth.simulate(z0, t, 1e-10, backend=backend) for backend in ("numba", "torch"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    steep = world(lambda x: torch.special.i0(x).sum((-2, -1)))
    with pytest.raises(UserError, match="backend 'numba' cannot simulate own"):
        steep.simulate(z0, t, backend="numba")
    assert torch.isfinite(steep.simulate(z0, t)).all()  # by torch
    with pytest.raises(Untraceable):
        kernel_of(steep)
    with pytest.raises(UserError, match="it gives no gradients"):
        smooth.simulate(z0.requires_grad_(), t, backend="numba")
    with pytest.raises(UserError, match="it takes no external force"):
        smooth.simulate(z0.detach(), t, backend="numba", external=lambda t, x, v: 0 * x)


def test_a_potential_that_has_learnt_is_compiled_again():
    class Quartic(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strength = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.strength * (x**4).sum((-2, -1))

    potential, world = Quartic(), Assembly(2)
    world.tether(world.point("bob", 1.0, position=(0.0, -1.0)), (0.0, 0.0), 1.0)
    world.potential(potential)
    system = System(world.build("learning"))
    z0, t = system.sample(2, generator=generator()), torch.linspace(0, 1, 3, dtype=torch.float64)
    before = system.simulate(z0, t, 1e-10).detach()
    old = system.compiled_field()
    with torch.no_grad():
        potential.strength.mul_(2.0)
    with pytest.raises(UserError, match="backend='torch'"):
        system.simulate(z0, t, backend="numba")
    a, b = (system.simulate(z0, t, 1e-10, backend=backend).detach() for backend in ("auto", "torch"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert (a - before).abs().max() > 1e-2
    with torch.no_grad():  # a field is of the numbers that there were when it was made
        torch.testing.assert_close(system.compiled_field()(z0), system.field(z0), rtol=1e-12, atol=1e-12)
        assert (old(z0) - system.field(z0)).abs().max() > 1e-2


def test_kernels_are_kept_on_disk_by_what_they_depend_on(tmp_path):
    a, b, c = ChainPendulum(2), ChainPendulum(2), ChainPendulum(2, masses=[1.0, 2.0])
    assert fingerprint(a) == fingerprint(b) != fingerprint(c)
    for kind in ("kernel", "field"):
        kernel_of(a, kind)
        assert (cache_folder() / f"{kind}_{fingerprint(a)}.o").exists()
    # Another process reads them without tracing: neither torch.fx's tracer nor sympy is imported; nor is, for a field,
    # numba, which takes a second.
    code = (
        "import sys, torch; from chnn.systems import ChainPendulum as S; s = S(2); z = s.sample(9); "
        "assert (s.compiled_field()(z) - s.field(z)).abs().max() < 1e-10; assert 'numba' not in sys.modules; "
        "s.simulate(s.sample(1), torch.tensor([0.0, 0.1])); assert 'sympy' not in sys.modules, 'traced again'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    simulate_compiled(a, a.sample(1), torch.tensor([0.0, 0.1], dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_kernels_are_keyed_by_the_tableaux(monkeypatch, tmp_path):
    from chnn.simulation import kernels

    system = ChainPendulum(links=2)
    kernels._version.cache_clear()
    before = kernels.fingerprint(system)
    changed = tmp_path / "tableaux.py"
    changed.write_text(Path(kernels.tableaux.__file__).read_text() + "\n# another constant\n")
    monkeypatch.setattr(kernels.tableaux, "__file__", str(changed))
    kernels._version.cache_clear()
    assert kernels.fingerprint(system) != before
    kernels._version.cache_clear()
