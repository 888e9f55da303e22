"""The compiled path of simulation: machine code made for the system (`chnn.simulation.kernels`), called by the time
loops of `chnn.simulation.loops` and `chnn.simulation.march` outside of Python.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lie.integrators import IntegrationError
from torch import Tensor

from chnn.simulation import rattle
from chnn.simulation.kernels import MARCH, STEP, kernel_of
from chnn.simulation.loops import solve
from chnn.simulation.march import march
from chnn.simulation.vector_code import layout

_CHUNK = 256  # samples between two reports of progress
_REASONS = {
    1: ("the step size underflowed", "the field may be singular or stiff there: loosen rtol and atol, or end earlier"),
    2: ("the field is not finite", "the field may be singular or stiff there: loosen rtol and atol, or end earlier"),
    3: ("not done after {} steps", "raise max_steps, loosen rtol and atol, or use a method for stiff fields"),
}
_PLACES = ("y", "k", "new", "rate", "work", "polynomial", "step", "rtol", "atol", "factor", "accepted", "end")
_BETWEEN = 2_000_000  # steps between two reports of progress


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
    addresses = tuple(code.addresses[name] for name in STEP)
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
    few, many = (code.addresses[name] for name in MARCH)
    metric = system.parts(z0)[1]
    x, v = z0.detach().unbind(1)
    parts = (x, v, metric.inverse @ system.force(x))
    state = np.ascontiguousarray(torch.stack(parts, 1).flatten(1).cpu().numpy())
    counts, lengths = (each.numpy() for each in rattle.substeps(t.detach().cpu(), dt))
    out = np.full((len(z0), len(t), z0[0].numel()), np.nan)
    out[:, 0] = z0.detach().flatten(1).cpu().numpy()
    enough, limit = rattle.allowed(system, z0)
    where = np.full((len(z0), 2), np.nan)
    block = max(1, min(len(counts), _BETWEEN // max(1, int(counts.max()) * len(z0))))
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
