"""Sweeps with several processes, each in a program of its own: ``python workers.py dying|dask FOLDER``.

Run by `test_sweep` with a deadline, in a session of its own, so that nothing that hangs stays behind. What it found is
written to ``FOLDER/found.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from liederivative.images import sample_photographs
from liederivative.sweep import Sweep, Task, measure_task, run_sweep

NO_HEAD = "vit_small_patch14_dinov2"


def task(name: str) -> Task:
    checksums = tuple(photo.sha256 for photo in sample_photographs()[:1])
    return Task(name, "f", "sample", 1, checksums, ("rotate",), image_size=64, threads=1)


def die_on_vit(task: Task) -> dict[str, Any]:
    if task.name == "test_vit":
        os._exit(9)  # as the kernel does when memory ends
    return {"model": task.name, "status": "ok", "result": {"process": os.getpid()}}


def dying(folder: Path) -> dict[str, Any]:
    tasks = [task(name) for name in ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")]
    seen: list[str] = []
    records = run_sweep(Sweep(tasks, folder, workers=2, work=die_on_vit, done=lambda r: seen.append(r["model"])))
    return {"seen": seen, "records": records, "process": os.getpid()}


def where_and_what(task: Task) -> dict[str, Any]:
    """`measure_task`, and which process did it; long enough that both workers get one."""
    record = measure_task(task)
    time.sleep(2)
    return record | {"process": os.getpid()}


def dask(folder: Path) -> dict[str, Any]:
    import distributed

    tasks = [task(name) for name in ("test_resnet", "test_vit", NO_HEAD, "test_convnext")]
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    try:
        address = cluster.scheduler_address
        with distributed.Client(address) as client:
            client.wait_for_workers(2)
            processes = sorted(client.run(os.getpid).values())
        records = run_sweep(Sweep(tasks, folder, backend="dask", workers=2, address=address, work=where_and_what))
    finally:
        cluster.close()
    return {"records": records, "processes": processes}


if __name__ == "__main__":
    out = Path(sys.argv[2])
    result = {"dying": dying, "dask": dask}[sys.argv[1]](out)
    (out / "found.json").write_text(json.dumps(result))
