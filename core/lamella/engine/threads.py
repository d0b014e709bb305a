"""The cores that lamella uses: how many, a pool of threads, and how many of them BLAS takes meanwhile."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.arguments import positive

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["available_cores", "blas_threads", "keep_freed_memory", "run_tasks", "set_threads", "thread_count"]

PATIENCE = 10.0  # seconds that a step waits for others that keep BLAS to another number of threads


class _Worker(threading.local):
    """What a thread is doing."""

    busy = False  # with a task of another thread
    holds = 0  # of BLAS's number of threads, one within the other


_lock = threading.Lock()
_changed = threading.Condition(_lock)  # when nobody holds BLAS's number of threads any more, or one less waits
_chosen: int | None = None
_pool: ThreadPoolExecutor | None = None
_holders = 0  # of BLAS's number of threads
_held = 0  # that number
_waiting: list[object] = []  # for it, in their order
_blas: list[_Library] | None = None  # the BLAS libraries of this process, found once
_worker = _Worker()
_memory_is_kept = False


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and no more than a container's quota.

    ``OMP_NUM_THREADS`` is a limit too. Who starts several processes sets it, as joblib does for those of scikit-learn,
    so that their threads together are no more than there are cores.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    return max(1, min(cores, _quota(), _limit()))


def _limit() -> int:
    """What ``OMP_NUM_THREADS`` says of the outermost loops, such as 4 in "4,2"."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else 1_000_000


def _quota() -> int:
    """The cores that a Linux control group grants, rounded up; no limit where there is none."""
    cores = math.inf
    with contextlib.suppress(OSError, ValueError):  # version 2
        quota, period = _text("/sys/fs/cgroup/cpu.max").split()
        if quota != "max":
            cores = int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # version 1
        limit = int(_text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
        if limit > 0:
            cores = min(cores, limit / int(_text("/sys/fs/cgroup/cpu/cpu.cfs_period_us")))
    return 1_000_000 if cores == math.inf else max(1, math.ceil(cores))


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def set_threads(count: int | None) -> None:
    """Set how many threads training and prediction use; None, the default, stands for all cores there are.

    >>> import lamella as lm
    >>> lm.set_threads(1)
    >>> lm.set_threads(None)
    """
    global _chosen, _pool
    if count is not None:
        count = positive(count, "set_threads: count")
    with _lock:
        _chosen = count
        if _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None


def thread_count() -> int:
    """Return how many threads a step uses."""
    global _chosen
    if _chosen is None:
        _chosen = available_cores()
    return _chosen


class _Task:
    """A function that runs once, on whatever thread comes to it first."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.done = threading.Event()
        self._claim = threading.Lock()

    def run(self) -> None:
        """Run the function, unless somebody else does or did."""
        if self._claim.acquire(blocking=False):
            try:
                self.function()
            finally:
                self.done.set()

    def end(self) -> None:
        """Return when the function has run, or never will."""
        if self._claim.acquire(blocking=False):
            self.done.set()
        self.done.wait()


def run_tasks(tasks: Sequence[Callable[[], None]]) -> None:
    """Run functions at the same time, the first on this thread, and return when all are done.

    They must not raise. If this thread is interrupted, the others are waited for first. Within a task that runs on
    another thread, while the interpreter ends, and where no thread can be started, tasks run one after the other.
    """
    if len(tasks) == 1 or _worker.busy:
        for task in tasks:
            task()
        return
    entries = [_Task(task) for task in tasks]
    interruption: BaseException | None = None
    try:
        with _lock, contextlib.suppress(RuntimeError):  # the interpreter ends, or the system has no more threads
            pool = _kept_pool(len(tasks) - 1)
            for entry in entries[1:]:
                pool.submit(_as_worker, entry)
        for entry in entries:
            entry.run()
    except BaseException as error:
        interruption = error
    while not all(entry.done.is_set() for entry in entries):
        try:
            for entry in entries:
                entry.end()
        except BaseException as error:  # Ctrl-C; nobody may go on while tasks still run
            interruption = error
    if interruption is not None:
        raise interruption


def _as_worker(entry: _Task) -> None:
    _worker.busy = True
    entry.run()


def _kept_pool(size: int) -> ThreadPoolExecutor:
    global _pool
    from concurrent.futures import ThreadPoolExecutor  # costs an eighth of `import lamella`

    if _pool is None or _pool._max_workers < size:
        _pool = ThreadPoolExecutor(size, thread_name_prefix="lamella")
    return _pool


def _start_again() -> None:
    """In a forked child: the threads stayed behind, and locks may be held by them."""
    global _lock, _pool, _holders, _changed
    _lock, _pool, _holders = threading.Lock(), None, 0
    _waiting.clear()
    _changed = threading.Condition(_lock)
    _worker.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_again)


class _Library:
    """A BLAS library, whose number of threads is one for the whole process."""

    def __init__(self, controller: Any) -> None:
        import ctypes  # threadpoolctl has brought it

        self._get, self._set = controller.get_num_threads, controller.set_num_threads
        # threadpoolctl lets one thread of the process change OpenBLAS, and takes a while: call the library itself,
        # without letting go of the interpreter, which threads would hand round here, each waiting for it again
        library = ctypes.PyDLL(controller.filepath, handle=controller.dynlib._handle)
        for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
            own = [getattr(library, f"{prefix}openblas_{verb}_num_threads{suffix}", None) for verb in _VERBS]
            if all(own) and getattr(controller, "threading_layer", "") == "pthreads":
                self._get, self._set = own
        self._before: int | None = None  # how many threads it had, where it is held to another number

    def hold(self, threads: int) -> None:
        """Keep to some threads."""
        now = self._get()
        if now != threads:
            if self._before is None:  # else a fork came between, and it is what the parent held it to
                self._before = now
            self._set(threads)

    def release(self) -> None:
        """Go back to as many threads as before."""
        if self._before is not None:
            self._set(self._before)
            self._before = None


_VERBS = ("get", "set")


class _BlasThreads:
    """Holds BLAS to a number of threads in the whole process, until the last of those who asked for it is done.

    Who asks for another number waits until then, so that no running step sees it change. So does who asks for several
    threads, which are those of all cores: products of two steps at once wait for each other's. Who works for one that
    holds it, holds it already, or has waited for long (the other may wait for him), goes on with what there is.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        global _holders, _held, _blas
        if _worker.busy or _worker.holds:
            _worker.holds += 1
            return
        entered = False
        try:
            with _lock:
                if _blas is None:
                    from threadpoolctl import ThreadpoolController  # finding the libraries takes a millisecond

                    found = ThreadpoolController().select(user_api="blas").lib_controllers
                    _blas = [_Library(library) for library in found]
                if _waiting or not self._may_hold():
                    self._wait()
                _holders += 1
                _worker.holds = 1
                entered = True
                if _holders == 1:
                    _held = self.count
                    for library in _blas:
                        library.hold(self.count)
        except BaseException:  # Ctrl-C
            if entered:
                self.__exit__()
            raise

    def _may_hold(self) -> bool:
        return not _holders or _held == self.count == 1

    def _wait(self) -> None:
        """Return when all who came before have had their turn, and it is possible to hold; or after a long time."""
        turn = object()
        _waiting.append(turn)
        try:
            _changed.wait_for(lambda: _waiting[0] is turn and self._may_hold(), PATIENCE)
        finally:
            _waiting.remove(turn)
            _changed.notify_all()

    def __exit__(self, *error: object) -> None:
        global _holders
        _worker.holds -= 1
        if _worker.holds or _worker.busy:
            return
        with _lock:
            _holders -= 1
            if _holders == 0:
                for library in _blas or ():
                    library.release()
                _changed.notify_all()


@functools.cache
def blas_threads(count: int) -> _BlasThreads:
    """Return a context in which BLAS keeps to so many threads."""
    return _BlasThreads(count)


def keep_freed_memory() -> None:
    """Let the memory of freed arrays stay with the process: the next slice needs as much.

    The C library glibc gives freed memory back to the system, to take it again page by page, unless it has seen a block
    of nearly its limit of 32 MB come and go. Called before the first pass.
    """
    global _memory_is_kept
    if not _memory_is_kept:
        _memory_is_kept = True
        np.empty((1 << 25) - (1 << 16), "uint8")
