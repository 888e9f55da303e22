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
from chnn.simulation.errors import Untraceable
from chnn.simulation.graph import Program, trace
from chnn.simulation.loops import solve
from chnn.simulation.vector_code import Code, compile_kernel, layout, processor

_CHUNK = 256  # samples between two reports of progress
_REASONS = {
    1: ("the step size underflowed", "the field may be singular or stiff there: loosen rtol and atol, or end earlier"),
    2: ("the field is not finite", "the field may be singular or stiff there: loosen rtol and atol, or end earlier"),
    3: ("not done after {} steps", "raise max_steps, loosen rtol and atol, or use a method for stiff fields"),
}
_NAMES = ("velocity", "attempt", "accept")
_PLACES = ("y", "k", "new", "rate", "work", "step", "rtol", "atol", "factor", "accepted", "end")
_loaded: dict[str, Code] = {}
_of_systems: WeakKeyDictionary[Any, Code | Untraceable] = WeakKeyDictionary()  # a system is copied and saved without
_log = getLogger(__name__)


def simulate_compiled(
    system: Any,
    z0: Float[Tensor, "B 2 n d"],
    t: Float[Tensor, " T"],
    *,
    rtol: float,
    atol: float,
    max_steps: int = 1_000_000,
    progress: Callable[[float], object] | None = None,
) -> Float[Tensor, "B T 2 n d"]:
    """As `chnn.simulation.reference.simulate_torch`, by compiled code on the CPU; without gradients.

    Raises:
        Untraceable: if the system has a force that has no compiled form.
        IntegrationError: names samples and time; its ``reached`` is (B, T, 2, n, d), NaN from where a sample stopped.
    """
    code = kernel_of(system)
    addresses = tuple(code.addresses[name] for name in _NAMES)
    places = layout(2 * system.num_points * system.spatial_dim)
    order = tuple(places[name] for name in _PLACES)
    start = np.ascontiguousarray(z0.detach().cpu().reshape(len(z0), -1).numpy())
    times = np.ascontiguousarray(t.detach().cpu().numpy())
    batch, size = start.shape
    out = np.full((batch, len(times), size), np.nan)
    status, where = np.zeros(batch, dtype=np.int64), np.full((batch, 2), np.nan)

    def run(rows: slice) -> None:
        solve(addresses, order, start[rows], times, rtol, atol, max_steps, out[rows], status[rows], where[rows])

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
    z = torch.from_numpy(out).view(batch, len(times), *z0.shape[1:]).to(z0.device)
    if status.any():
        samples = np.flatnonzero(status)
        earliest = samples[np.argmin(where[samples, 0])]
        reason, remedy = _REASONS[int(status[earliest])]
        raise IntegrationError(
            reason.format(max_steps), remedy, time=float(where[earliest, 0]), step_size=float(where[earliest, 1]),
            samples=samples.tolist(), reached=z,
        )  # fmt: skip
    return z


def kernel_of(system: Any) -> Code:
    """The machine code of a system, from the cache folder where it is known.

    Raises:
        Untraceable: if the system has a force that has no compiled form.
    """
    known = _of_systems.get(system)
    if known is None:
        try:
            known = _load(system)
        except Untraceable as error:
            known = error
        _of_systems[system] = known
    if isinstance(known, Untraceable):
        raise known
    return known


def _load(system: Any) -> Code:
    key = fingerprint(system)
    if key in _loaded:
        return _loaded[key]
    path = None if key is None else cache_folder() / f"kernel_{key}.o"
    if path is not None and path.exists():
        try:
            code = Code(path.read_bytes(), _NAMES)
        except (OSError, RuntimeError) as error:  # cut short, or of another version of LLVM: made again
            _log.info("the kernel at %s cannot be used (%s) and is made again", path, error)
            path.unlink(missing_ok=True)
            return _load(system)
    else:
        data = compile_kernel(*programs_of(system))
        if path is not None:
            with atomic_path(path) as temporary:
                Path(temporary).write_bytes(data)
        code = Code(data, _NAMES)
    if key is not None:
        _loaded[key] = code
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
