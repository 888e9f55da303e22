"""Fair times on a machine where other things run: seconds of this process, the best of a few, in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def fastest(*work: Callable[[], object], rounds: int = 7) -> list[float]:
    """Seconds of processor time of each piece of work, the best of ``rounds`` turns; one thread is assumed."""
    for f in work:
        f()  # pages, caches and lazy initialisation are not part of it
    best = [float("inf")] * len(work)
    for _ in range(rounds):
        for i, f in enumerate(work):
            started = time.process_time()
            f()
            best[i] = min(best[i], time.process_time() - started)
    return best


def gemm() -> Callable[[], object]:
    """A product of matrices of 1024 x 1024, the ceiling of this machine: 2.147 GFLOP."""
    a = torch.randn(1024, 1024)
    return lambda: a @ a


GEMM_FLOPS = 2 * 1024**3


def flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products in a piece of work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_megabytes(script: str) -> float:
    """Memory of a script above what it held when it printed a line ``ready``: its peak, in a process of its own.

    The script is given `resident` and `peak`, which read both from the kernel.
    """
    prelude = (
        "import gc, torch\n"
        "torch.set_num_threads(1)\n"
        "def status(name):\n"
        "    return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith(name))\n"
        "def resident():\n"
        "    gc.collect()\n"
        "    open('/proc/self/clear_refs', 'w').write('5')  # the peak from here on\n"
        "    return status('VmRSS')\n"
        "peak = lambda: status('VmHWM')\n"
    )
    # Settings that make the allocator keep memory would be measured instead of the script.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", prelude + script], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout.split()[-1])
