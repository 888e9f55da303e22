"""A sweep: every model given to a worker, every record written as soon as it is there, nothing done twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lie.run import UserError, provenance

from liederivative.sweep.backends import open_executor
from liederivative.sweep.records import write_record
from liederivative.sweep.selection import family_of
from liederivative.sweep.worker import DISTRIBUTIONS, Task, failure, measure_task


@dataclass
class Sweep:
    """Tasks, and where and how they are done."""

    tasks: Sequence[Task]
    folder: Path
    """where each record is written, to ``models/NAME.json``"""
    backend: str = "loky"
    workers: int = 1
    address: str | None = None
    done: Callable[[dict[str, Any]], object] = field(default=lambda record: None)
    """called with each record after it was written"""
    work: Callable[[Task], dict[str, Any]] = measure_task


def run_sweep(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Measure every task of ``sweep``; returns the records by model.

    At most as many tasks as workers are under way, so that a kill loses little. A worker that dies (out of
    memory, a crash in native code) takes the pool of this machine with it; its tasks are then done again, each
    in a process of its own, and the one that dies again is recorded as failed.

    Raises:
        UserError: if the backend cannot be had.
    """
    records: dict[str, dict[str, Any]] = {}

    def keep(record: dict[str, Any]) -> None:
        write_record(sweep.folder, record)
        records[record["model"]] = record
        sweep.done(record)

    (sweep.folder / "models").mkdir(exist_ok=True)
    waiting = list(sweep.tasks)
    while waiting:
        suspects = _run_pool(sweep, waiting, keep)
        for task in suspects:
            keep(_alone(sweep, task))
        waiting = [task for task in waiting if task.name not in records]
    return records


def _run_pool(sweep: Sweep, tasks: Iterable[Task], keep: Callable[[dict[str, Any]], None]) -> list[Task]:
    """Give ``tasks`` to the workers; returns those that were under way when the pool broke, none if it did not."""
    queue = iter(tasks)
    running: dict[Future[Any], Task] = {}
    lost: list[Task] = []
    with ExitStack() as stack:
        executor = stack.enter_context(open_executor(sweep.backend, sweep.workers, sweep.address))
        while True:
            while not lost and len(running) < sweep.workers and (task := next(queue, None)) is not None:
                try:
                    running[executor.submit(sweep.work, task)] = task
                except BrokenExecutor:  # a worker died since the last look
                    lost.append(task)
            if not running:
                return lost
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task = running.pop(future)
                error = future.exception()
                if error is None:
                    keep(future.result())
                elif isinstance(error, Exception) and sweep.backend == "loky" and isinstance(error, BrokenExecutor):
                    lost.append(task)
                else:  # a cluster's own way to say that a worker is gone
                    keep(_died(task, error))


def _alone(sweep: Sweep, task: Task) -> dict[str, Any]:
    with open_executor("loky", 1) as executor:
        try:
            return executor.submit(sweep.work, task).result()
        except BrokenExecutor as error:
            return _died(task, error)


def _died(task: Task, error: BaseException) -> dict[str, Any]:
    reason = UserError(f"the worker died ({type(error).__name__}): out of memory, or a crash in native code")
    return {
        "model": task.name,
        "family": family_of(task.name),
        "fingerprint": task.fingerprint,
        "seed": task.seed,
        "device": task.device,
        "versions": provenance(*DISTRIBUTIONS),
        **failure(reason),
    }


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """A quarter of the processors, at least one: memory, not arithmetic, limits how many models fit at once."""
    return max(1, processors() // 4)
