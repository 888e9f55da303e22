"""Machine code generated for one system, kept on disk by what it depends on.

The equations of motion and the projection are traced from the torch code of the system (`chnn.simulation.graph`), so
that both paths compute the same; the programs become vector code (`chnn.simulation.vector_code`). One object file for
each system and kind of code lies in the cache folder, ``CHNN_CACHE`` or the user's own.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import llvmlite
import torch
from lie.integrators import tableaux
from lie.run import atomic_path
from torch import Tensor

from chnn.mechanics import Potential, project_fixed
from chnn.simulation import rattle
from chnn.simulation.errors import Untraceable
from chnn.simulation.graph import Program, trace, with_tangent
from chnn.simulation.row_code import compile_rows
from chnn.simulation.vector_code import Code, compile_kernel, compile_programs, processor

STEP = ("velocity", "attempt", "extend", "accept", "project")
"""What a kernel of DOP853 can do."""
MARCH = ("few", "many")
"""Steps of RATTLE, by the iterations for the multipliers."""
ROWS = ("float32", "float64")
"""A field on states in rows, by their dtype."""
_FUNCTIONS = {"kernel": STEP, "tangent": STEP, "rattle": MARCH, "field": ROWS, "momenta": ROWS}
_OWN = ("field", "momentum_field", "force", "potential", "parts")  # what of a system a kernel is made from
_loaded: dict[tuple[str, str], Code] = {}
# Beside the systems, not in them: they are copied and saved without.
_of_systems: WeakKeyDictionary[Any, dict[str, tuple[Any, Code | Untraceable]]] = WeakKeyDictionary()
_log = getLogger(__name__)


def kernel_of(system: Any, kind: str = "kernel") -> Code:
    """The machine code of a system, from the cache folder where it is known.

    The numbers of a potential or surface that is a module are those it has now; others must not change.

    Args:
        system: the system.
        kind: "kernel" for DOP853, "tangent" for DOP853 with one tangent vector, "rattle" for RATTLE, "field" and
            "momenta" for the field of (x, v) and of (x, p) on rows of states.

    Raises:
        Untraceable: if the system has a force that has no compiled form.
    """
    own, learnt = _of_systems.setdefault(system, {}), _learnt(system)
    if kind not in own or own[kind][0] != learnt:
        try:
            own[kind] = learnt, _load(system, kind)
        except Untraceable as error:
            own[kind] = learnt, error
    known = own[kind][1]
    if isinstance(known, Untraceable):
        raise known
    return known


def _learnt(system: Any) -> tuple[tuple[int, int], ...]:
    """Which tensors the modules among a system's functions have, and how often each was changed in place."""
    every = system.description
    functions = [f for f, _ in every.constraints.surfaces]
    functions += [force.function for force in every.forces if isinstance(force, Potential)]
    modules = [function for function in functions if isinstance(function, torch.nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


def _load(system: Any, kind: str) -> Code:
    key, names = fingerprint(system), _FUNCTIONS[kind]
    if key is not None and (kind, key) in _loaded:
        return _loaded[kind, key]
    path = None if key is None else cache_folder() / f"{kind}_{key}.o"
    if path is not None and path.exists():
        try:
            code = Code(path.read_bytes(), names)
        except (OSError, RuntimeError) as error:  # cut short, or of another version of LLVM: made again
            _log.info("the kernel at %s cannot be used (%s) and is made again", path, error)
            path.unlink(missing_ok=True)
            return _load(system, kind)
    else:
        data = _make(system, kind)
        if path is not None:
            with atomic_path(path) as temporary:
                Path(temporary).write_bytes(data)
        code = Code(data, names)
    if key is not None:
        _loaded[kind, key] = code
    return code


def _make(system: Any, kind: str) -> bytes:
    if kind in ("field", "momenta"):
        return compile_rows(field_program_of(system, kind))
    if kind == "rattle":
        return compile_programs(rattle_programs_of(system))
    return compile_kernel(*(programs_of(system) if kind == "kernel" else tangent_programs_of(system)))


def cache_folder() -> Path:
    """Where kernels are kept: ``CHNN_CACHE``, or ``chnn`` in the user's cache folder."""
    if given := os.environ.get("CHNN_CACHE"):
        folder = Path(given)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chnn"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _version() -> str:
    """Hash of torch, llvmlite, the processor and the sources that make kernels, the core's tableaux among them.

    Part of the cache key, so that a changed generator never loads an old kernel.
    """
    digest = hashlib.sha256(f"{torch.__version__} {llvmlite.__version__} {processor()}".encode())
    package = Path(__file__).parents[1]
    paths = [path for folder in ("mechanics", "simulation") for path in sorted((package / folder).glob("*.py"))]
    for path in (*paths, package / "systems" / "base.py", Path(tableaux.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint(system: Any) -> str | None:
    """A digest of everything a kernel depends on, or None where functions of the user's own are among it."""
    every = system.description
    digest = hashlib.sha256(_version().encode())
    if every.constraints.surfaces or any(isinstance(force, Potential) for force in every.forces):
        return None
    if any(getattr(type(system), name).__module__.split(".")[0] != "chnn" for name in _OWN):
        return None
    for part in (every.inertia_factor, every.inertia, every.constraints, *every.forces):
        digest.update(type(part).__name__.encode())
        values = [part] if isinstance(part, Tensor) else [getattr(part, f.name) for f in fields(part)]
        if not (isinstance(part, Tensor) or is_dataclass(part)) or type(part).__module__.split(".")[0] not in (
            "torch", "chnn",
        ):  # fmt: skip
            return None
        for value in values:
            if isinstance(value, Tensor):
                digest.update(repr(tuple(value.shape)).encode() + value.detach().cpu().double().numpy().tobytes())
            else:
                digest.update(repr(value).encode())
    return digest.hexdigest()[:32]


def by_dynamics(system: Any) -> Any:
    """The same system with its fields by `chnn.mechanics.dynamics` alone: fewest operations on numbers, for a program.

    Where they can be, its own fields are those of `chnn.mechanics.bilinear`: fewest operations on tensors.
    """
    other = copy.copy(system)
    other._forms = None
    other.parts(system.description.reference)  # made here, not within a trace
    return other


def field_program_of(system: Any, kind: str) -> Program:
    """The program of ``system.field``, or of ``system.momentum_field`` for the kind "momenta"; NaN where torch's is."""
    example = torch.stack([system.description.reference] * 2)
    general = by_dynamics(system)
    field = general.field if kind == "field" else general.momentum_field
    with torch.no_grad():
        return trace(lambda z: [field(z)], example, definite=True)


def programs_of(system: Any) -> tuple[Program, Program]:
    """The programs (x, v) -> (v, acceleration) and (x, v) -> projected (x, v)."""
    example, general = system.description.reference, by_dynamics(system)
    v = torch.zeros_like(example)
    constraints, metric, *_ = system.parts(example)

    def velocity(x: Tensor, v: Tensor) -> list[Tensor]:
        return [v, general.field(torch.stack([x, v]))[1]]

    def project(x: Tensor, v: Tensor) -> list[Tensor]:
        if constraints.num_constraints == 0:
            return [x, v]
        return list(project_fixed(constraints, metric, x, v))

    with torch.no_grad():
        return trace(velocity, example, v), trace(project, example, v)


def rattle_programs_of(system: Any) -> dict[str, Program]:
    """The programs (x, v, a, h) -> (x, v, a, left) of a RATTLE step with few and with many iterations."""
    example = system.description.reference
    constraints, metric, *_ = system.parts(example)

    def step(iterations: int) -> Callable[..., list[Tensor]]:
        def f(x: Tensor, v: Tensor, a: Tensor, h: Tensor) -> list[Tensor]:
            return list(rattle.rattle_step(constraints, metric, system.force, x, v, a, h[0], iterations))

        return f

    zero, h = torch.zeros_like(example), torch.ones(1, dtype=example.dtype)
    with torch.no_grad():
        return {name: trace(step(count), example, zero, zero, h)
                for name, count in (("few", rattle.FEW), ("many", rattle.MANY))}  # fmt: skip


def tangent_programs_of(system: Any) -> tuple[Program, Program]:
    """As `programs_of`, of the state with one tangent vector: (x, v, dx, dv) -> the velocity, and the state projected.

    The tangent vector moves by the derivative of the field along it.
    """
    velocity, project = programs_of(system)
    size, state = project.inputs, project.operations

    def shifted(x: Any) -> Any:  # inputs stand before the results of operations
        return x if isinstance(x, float) or x < size else x + size

    moved = tuple((name, *map(shifted, operands)) for name, *operands in state)
    both = Program(2 * size, moved, (*map(shifted, project.outputs), *range(size, 2 * size)))
    return with_tangent(velocity), both
