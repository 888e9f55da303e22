"""Where the work is done: processes of this machine, a dask cluster or a ray cluster, behind one `Executor`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import Any

from lie.run import UserError, unknown_name

BACKENDS = {
    "loky": "processes of this machine (joblib's)",
    "serial": "this process, one model after the other",
    "dask": "a dask cluster: --address of its scheduler, or one started here; needs liederivative[dask]",
    "ray": "a ray cluster: --address, or one started here; needs liederivative[ray]",
}
"""names of --backend"""


@contextmanager
def open_executor(backend: str, workers: int, address: str | None = None) -> Iterator[Executor]:
    """An executor of ``workers`` processes.

    Args:
        backend: one of `BACKENDS`.
        workers: processes started here; of a cluster at ``address``, how many tasks are given to it at once.
        address: of a running dask scheduler (``tcp://host:8786``) or ray cluster (``auto``, ``ray://host:10001``).

    On leaving, what was started here is ended and what has not begun is dropped; a cluster at ``address`` stays.

    Raises:
        UserError: for an unknown backend, one that is not installed, or a cluster that does not answer.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if workers < 1:
        raise UserError(f"expected at least one worker, got {workers}")
    if backend in ("loky", "serial") and address is not None:
        raise UserError(f"expected --address with --backend dask or ray; {backend} works on this machine alone")
    opener = {"loky": _loky, "serial": _serial, "dask": _dask, "ray": _ray}[backend]
    with opener(workers, address) as executor:
        yield executor


@contextmanager
def _loky(workers: int, address: str | None) -> Iterator[Executor]:
    from joblib.externals.loky import ProcessPoolExecutor

    del address
    executor = ProcessPoolExecutor(max_workers=workers, initializer=_die_with_parent, initargs=(os.getpid(),))
    finished = False
    try:
        yield executor
        finished = True
    finally:  # at once after an error or Ctrl-C: a model may have minutes to go
        executor.shutdown(wait=True, kill_workers=not finished)


@contextmanager
def _serial(workers: int, address: str | None) -> Iterator[Executor]:
    del workers, address
    yield _SerialExecutor()


class _SerialExecutor(Executor):
    """`submit` that does the work before it returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _dask(workers: int, address: str | None) -> Iterator[Executor]:
    try:
        import distributed
    except ImportError:
        raise UserError("--backend dask needs the package distributed; pip install 'liederivative[dask]'") from None
    cluster = None
    try:
        if address is None:
            cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
        client = distributed.Client(cluster if cluster is not None else address, timeout="20s")
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"no dask scheduler answers at {address} ({error}); start one with: dask scheduler") from None
    try:
        # Impure: the same task may be asked for again after it failed.
        yield client.get_executor(pure=False)
    finally:
        client.close()
        if cluster is not None:
            # A worker that has torch to unload takes longer than dask waits, which says so and ends it.
            getLogger("distributed.nanny").setLevel(ERROR)
            cluster.close()


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[Executor]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--backend ray needs the package ray; pip install 'liederivative[ray]'") from None
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address)
    except Exception as error:  # the client and the core fail in ways of their own
        raise UserError(f"no ray cluster answers at {address} ({error}); start one with: ray start --head") from None
    try:
        yield _RayExecutor(ray)
    finally:
        ray.shutdown()


class _RayExecutor(Executor):
    """`submit` on ray: one task a call, one processor each."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._ray.remote(fn).options(num_cpus=1, max_retries=0).remote(*args, **kwargs).future()


def _die_with_parent(parent: int) -> None:
    """End this worker when the process that started it is gone: a killed sweep leaves nothing running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()
