"""Run commands of the packages in forks of one process that has imported them: a few hundredths of a second each.

Reads one case a line, JSON with program, argv, folder and seconds; answers one line with the exit code, the standard
error, the memory above that of the imports (MiB) and the seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

PROGRAMS = ("chnn", "lieconv", "liederivative")
MODULES = ("chnn.systems", "chnn.storage.write", "chnn.animation.film", "chnn.training.train", "pyarrow.parquet",
           "lieconv.training", "liederivative.images", "liederivative.zoo", "matplotlib.pyplot")  # fmt: skip
ADDRESSES = 6 * 2**30  # bytes of address space; what a process uses is measured beside it


def main() -> None:
    """Answer cases until the input ends."""
    import torch

    torch.set_num_threads(1)
    mains = {program: importlib.import_module(f"{program}.cli").main for program in PROGRAMS}
    for module in MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        case = json.loads(line)
        log = Path(case["folder"], "stderr.log")
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(mains[case["program"]], case, log)
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - start > case["seconds"]:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "stderr": log.read_bytes().decode(errors="replace")[-50_000:],
            "memory": max(0, usage.ru_maxrss - own) // 1024,
            "seconds": time.monotonic() - start,
        }
        print(json.dumps(answer), flush=True)


def _run(command, case: dict, log: Path) -> None:
    """One case in the child; never returns."""
    code = 70
    try:
        for stream, target in ((1, os.devnull), (2, str(log))):
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(case["folder"])
        resource.setrlimit(resource.RLIMIT_CPU, (int(case["seconds"]) + 1, int(case["seconds"]) + 1))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, used + ADDRESSES))
        code = command(case["argv"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    main()
