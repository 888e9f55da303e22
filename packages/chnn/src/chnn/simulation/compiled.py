"""The compiled path: machine code generated for one system, kept on disk, with the time loop outside of Python.

The equations of motion and the projection are traced from the torch code of the system (`chnn.simulation.graph`), so
both paths compute the same; the programs become vector code (`chnn.simulation.vector_code`) that the loops of
`chnn.simulation.loops` call. One object file for each system lies in the cache folder, ``CHNN_CACHE`` or
the user's own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import llvmlite
import numpy as np
import torch
from jaxtyping import Float
from lie.integrators import IntegrationError
from lie.run import atomic_path
from torch import Tensor

from chnn.mechanics import Potential, project_fixed
from chnn.simulation import rattle
from chnn.simulation.errors import Untraceable
from chnn.simulation.graph import Program, trace, with_tangent
from chnn.simulation.loops import solve
from chnn.simulation.march import march
from chnn.simulation.vector_code import Code, compile_kernel, compile_programs, layout, processor

_CHUNK = 256  # samples between two reports of progress
_REASONS = {
    1: ("the step size underflowed", "the field may be singular or stiff there: loosen rtol and atol, or end earlier"),
    2: ("the field is not finite", "the field may be singular or stiff there: loosen rtol and atol, or end earlier"),
    3: ("not done after {} steps", "raise max_steps, loosen rtol and atol, or use a method for stiff fields"),
}
_NAMES = ("velocity", "attempt", "extend", "accept", "project")
_PLACES = ("y", "k", "new", "rate", "work", "polynomial", "step", "rtol", "atol", "factor", "accepted", "end")
_FUNCTIONS = {"kernel": _NAMES, "tangent": _NAMES, "rattle": ("few", "many")}
_MARCH = 2_000_000  # steps between two reports of progress
_loaded: dict[tuple[str, str], Code] = {}
# Beside the systems, not in them: they are copied and saved without.
_of_systems: WeakKeyDictionary[Any, dict[str, Code | Untraceable]] = WeakKeyDictionary()
_log = getLogger(__name__)


def simulate_compiled(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, "*rows T"],
    *,
    rtol: float,
    atol: float,
    dense: bool = False,
    max_steps: int = 1_000_000,
    progress: Callable[[float], object] | None = None,
    kind: str = "kernel",
) -> Float[Tensor, "B T 2 n d"]:
    """As `chnn.simulation.reference.simulate_torch`, by compiled code on the CPU; without gradients.

    Times may be (B, T), a row for each sample. With ``kind="tangent"`` a state (4, n, d) carries a tangent vector.

    Raises:
        Untraceable: if the system has a force that has no compiled form.
        IntegrationError: names samples and time; its ``reached`` is (B, T, 2, n, d), NaN from where a sample stopped.
    """
    code = kernel_of(system, kind)
    addresses = tuple(code.addresses[name] for name in _NAMES)
    places = layout(z0[0].numel())
    order = tuple(places[name] for name in _PLACES)
    start = np.ascontiguousarray(z0.detach().cpu().reshape(len(z0), -1).numpy())
    times = np.ascontiguousarray(torch.atleast_2d(t).detach().cpu().numpy())
    batch, size = start.shape
    out = np.full((batch, times.shape[1], size), np.nan)
    status, where = np.zeros(batch, dtype=np.int64), np.full((batch, 2), np.nan)

    def run(rows: slice) -> None:
        own = times if len(times) == 1 else times[rows]
        solve(addresses, order, start[rows], own, rtol, atol, max_steps, dense, out[rows], status[rows], where[rows])

    threads = max(1, min(torch.get_num_threads(), batch // 8))
    chunk = min(_CHUNK, -(-batch // threads // 8) * 8)
    chunks = [slice(first, min(first + chunk, batch)) for first in range(0, batch, chunk)]
    if threads == 1:
        for number, rows in enumerate(chunks):
            run(rows)
            if progress is not None:
                progress((number + 1) / len(chunks))
    else:
        with ThreadPoolExecutor(threads) as pool:
            for number, _ in enumerate(pool.map(run, chunks)):
                if progress is not None:
                    progress((number + 1) / len(chunks))
    z = torch.from_numpy(out).view(batch, times.shape[1], *z0.shape[1:]).to(z0.device)
    if status.any():
        samples = np.flatnonzero(status)
        earliest = samples[np.argmin(where[samples, 0])]
        reason, remedy = _REASONS[int(status[earliest])]
        raise IntegrationError(
            reason.format(max_steps), remedy, time=float(where[earliest, 0]), step_size=float(where[earliest, 1]),
            samples=samples.tolist(), reached=z,
        )  # fmt: skip
    return z


def march_compiled(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, " T"],
    *,
    method: str,
    dt: float,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T 2 n d"]:
    """As `chnn.simulation.rattle.simulate_rattle`, by compiled code on the CPU; without gradients.

    Raises:
        Untraceable: if the system has a force that has no compiled form.
        IntegrationError: if multipliers do not converge; names samples and time.
    """
    code = kernel_of(system, "rattle")
    few, many = (code.addresses[name] for name in _FUNCTIONS["rattle"])
    metric = system.parts(z0)[1]
    x, v = z0.detach().unbind(1)
    parts = (x, v, metric.inverse @ system.force(x))
    state = np.ascontiguousarray(torch.stack(parts, 1).flatten(1).cpu().numpy())
    counts, lengths = (each.numpy() for each in rattle.substeps(t.detach().cpu(), dt))
    out = np.full((len(z0), len(t), z0[0].numel()), np.nan)
    out[:, 0] = z0.detach().flatten(1).cpu().numpy()
    enough, limit = rattle.allowed(system, z0)
    where = np.full((len(z0), 2), np.nan)
    block = max(1, min(len(counts), _MARCH // max(1, int(counts.max()) * len(z0))))
    for first in range(0, len(counts), block):
        part = slice(first, first + block)
        march(few, many, rattle.WEIGHTS[method], counts[part], lengths[part], enough, limit, state,
              out[:, 1:][:, part], where)  # fmt: skip
        if progress is not None:
            progress(min(1.0, (first + block) / len(counts)))
        samples = np.flatnonzero(~np.isnan(where[:, 0]))
        if len(samples):
            interval, step = min(map(tuple, where[samples].astype(int)))  # the earliest of them
            h = float(lengths[first + interval])
            raise IntegrationError(
                *rattle.REASON, time=float(t[first + interval]) + step * h, step_size=h, samples=samples.tolist(),
                reached=torch.from_numpy(out).view(len(z0), len(t), *z0.shape[1:]),
            )  # fmt: skip
    return torch.from_numpy(out).view(len(z0), len(t), *z0.shape[1:]).to(z0.device)


def kernel_of(system: Any, kind: str = "kernel") -> Code:
    """The machine code of a system, from the cache folder where it is known.

    Args:
        system: the system.
        kind: "kernel" for DOP853, "tangent" for DOP853 with one tangent vector, "rattle" for RATTLE.

    Raises:
        Untraceable: if the system has a force that has no compiled form.
    """
    own = _of_systems.setdefault(system, {})
    if kind not in own:
        try:
            own[kind] = _load(system, kind)
        except Untraceable as error:
            own[kind] = error
    known = own[kind]
    if isinstance(known, Untraceable):
        raise known
    return known


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
        if kind == "rattle":
            data = compile_programs(rattle_programs_of(system))
        else:
            data = compile_kernel(*(programs_of(system) if kind == "kernel" else tangent_programs_of(system)))
        if path is not None:
            with atomic_path(path) as temporary:
                Path(temporary).write_bytes(data)
        code = Code(data, names)
    if key is not None:
        _loaded[kind, key] = code
    return code


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
    """Of the code that makes kernels: another version makes other modules."""
    digest = hashlib.sha256(f"{torch.__version__} {llvmlite.__version__} {processor()}".encode())
    package = Path(__file__).parents[1]
    for folder in ("mechanics", "simulation"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint(system: Any) -> str | None:
    """A digest of everything a kernel depends on, or None where functions of the user's own are among it."""
    every = system.description
    digest = hashlib.sha256(_version().encode())
    if every.constraints.surfaces or any(isinstance(force, Potential) for force in every.forces):
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


def programs_of(system: Any) -> tuple[Program, Program]:
    """The programs (x, v) -> (v, acceleration) and (x, v) -> projected (x, v)."""
    example = system.description.reference
    v = torch.zeros_like(example)
    constraints, metric, *_ = system.parts(example)

    def velocity(x: Tensor, v: Tensor) -> list[Tensor]:
        return [v, system.field(torch.stack([x, v]))[1]]

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
