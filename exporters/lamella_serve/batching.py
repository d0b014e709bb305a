"""The queue before a model: requests wait, are joined, run, and each gets its own rows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lamella_serve.datatypes import Array
from lamella_serve.refusals import Refusal
from lamella_serve.session import Stop
from lamella_serve.statistics import Statistics

__all__ = ["Cost", "Limits", "Queue", "elements", "still_runs"]

_now = time.perf_counter_ns
_SHORT = 0.2e-3  # seconds; what runs no longer runs on the event loop: a thread would take as long to be told
_BLOCKED = 2_000_000  # nanoseconds; a model that once held the event loop for longer runs on threads from then on
_JOINED = 20e-3  # seconds; to join more than that makes all wait, and gains nothing on a CPU

_threads = concurrent.futures.ThreadPoolExecutor(
    64, "lamella_serve"
)  # at most; each queue runs no more than its instances at a time
_runs: set[concurrent.futures.Future[None]] = set()  # those that threads do, for whichever model

Run = Callable[[dict[str, Array], Any], list[Array]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How requests wait.

    Attributes:
        batch: the most rows that are joined.
        delay: seconds to wait for more requests to join.
        instances: runs at a time.
        queue: the most requests that wait.
        timeout: seconds that a request may take, from its arrival to its answer.
    """

    batch: int = 1024
    delay: float = 0.0
    instances: int = 1
    queue: int = 1000
    timeout: float = 60.0


class Cost(NamedTuple):
    """What one row takes, as measured: seconds, and the elements of its inputs."""

    seconds: float
    elements: int


def elements(inputs: Mapping[str, Array]) -> int:
    """Return how many elements there are to work on: strings count by their length, axes of size 0 as those of 1."""
    return sum([_size(x) for x in inputs.values()])


def _size(array: Array) -> int:
    if array.dtype.kind == "O":
        return array.size + sum(map(len, array.flat))
    return array.size or math.prod([n or 1 for n in array.shape])


class _Job:
    """A request that waits for its answer."""

    __slots__ = ("arrived", "done", "inputs", "kind", "rows")

    def __init__(self, inputs: dict[str, Array], rows: int, kind: Any, done: asyncio.Future[list[Array]]) -> None:
        self.inputs, self.rows, self.kind, self.done = inputs, rows, kind, done
        self.arrived = _now()


class _Ran(NamedTuple):
    """One run: whom it was for, what came of it, its rows, when it began, and nanoseconds for each of its parts."""

    jobs: list[_Job]
    outcome: list[list[Array]] | Exception
    rows: int
    began: int
    joining: int
    running: int
    splitting: int


def still_runs(seconds: float) -> bool:
    """Whether a model runs on after so many seconds. One that is to stop does so between operators only."""
    return bool(concurrent.futures.wait(_runs, seconds).not_done)


class Queue:
    """Runs a model for all who ask. Everything but the runs themselves happens on the event loop.

    A request waits at least until the loop has read what has arrived by then, so that requests that come together are
    joined without a delay.
    """

    def __init__(self, run: Run, limits: Limits, statistics: Statistics, *, joins: bool, cost: Cost | None) -> None:
        """Make an empty queue.

        Arguments:
            run: the model.
            joins: whether requests may be joined.
            cost: what was measured; None: nothing foretells how long a run takes.
        """
        self._run, self._limits, self._statistics, self._joins = run, limits, statistics, joins
        self._cost = cost
        self._inline = cost is not None
        self._waiting: deque[_Job] = deque()
        self._running: list[list[_Job]] = []
        self._scheduled: asyncio.Handle | None = None
        self._watch: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(not job.done.done() for job in self._waiting)  # the others' clients have cancelled them

    def answer(self, inputs: dict[str, Array], rows: int) -> asyncio.Future[list[Array]]:
        """Return the model's outputs for some inputs, once they are there.

        Raises:
            Refusal: too many wait already.
        """
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= self._limits.queue:
            self._waiting = deque(job for job in self._waiting if not job.done.done())
        if len(self._waiting) >= self._limits.queue:
            raise Refusal(429, f"{len(self._waiting)} requests wait for this model already; try again later")
        kind = tuple([x.shape[1:] for x in inputs.values()]) if self._joins else None
        job = _Job(inputs, rows, kind, loop.create_future())
        self._waiting.append(job)
        if self._watch is None:
            self._keep_watch()
        if self._joins and self._limits.delay:
            self._wait_for_more(loop)
        elif self._scheduled is None and len(self._running) < self._limits.instances:
            self._scheduled = loop.call_soon(self._next)
        return job.done

    def _wait_for_more(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run after the delay, or as soon as a batch is full."""
        full = sum(job.rows for job in self._waiting) >= self._limits.batch
        if full and self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        if self._scheduled is None and len(self._running) < self._limits.instances:
            self._scheduled = loop.call_soon(self._next) if full else loop.call_later(self._limits.delay, self._next)

    def _next(self) -> None:
        """Run what waits, or begin to."""
        self._scheduled = None
        if not self._waiting or len(self._running) >= self._limits.instances:
            return
        jobs = self._taken()
        if jobs and self._inline and not self._running and self._expected(jobs) <= _SHORT:
            began = time.thread_time_ns()  # and not the clock's: the system may have been busy with others
            self._finish(self._ran(jobs, None))
            self._inline = time.thread_time_ns() - began <= _BLOCKED
        elif jobs:
            self._begin(jobs)
        if self._waiting and self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self._next)

    def _expected(self, jobs: list[_Job]) -> float:
        """Seconds that a run will take."""
        if self._cost is None:
            return float("inf")
        count = sum([elements(job.inputs) for job in jobs])
        return self._cost.seconds * max(1.0, count / max(1, self._cost.elements))

    def _taken(self) -> list[_Job]:
        """The requests to run next: the oldest one, and those like it that may be joined with it.

        Nobody waits for those that are done already: their clients have cancelled them.
        """
        waiting = self._waiting
        while waiting and waiting[0].done.done():
            waiting.popleft()
        if not waiting:
            return []
        jobs = [waiting.popleft()]
        if not self._joins or not waiting:
            return jobs
        most = self._limits.batch
        if self._cost is not None:
            row = self._expected(jobs) / max(jobs[0].rows, 1)
            most = min(most, max(1, int(_JOINED / row)))
        rows, kind, left = jobs[0].rows, jobs[0].kind, []
        while waiting and rows < most:
            job = waiting.popleft()
            if job.done.done():
                continue
            if job.kind == kind and rows + job.rows <= most:
                jobs.append(job)
                rows += job.rows
            else:
                left.append(job)
        waiting.extendleft(reversed(left))
        return jobs

    def _begin(self, jobs: list[_Job]) -> None:
        """Run on a thread, until all who wait have given up."""
        loop, stop = asyncio.get_running_loop(), Stop()
        self._running.append(jobs)

        def given_up(_: Any) -> None:
            if all(job.done.done() for job in jobs):
                stop.terminate = True

        for job in jobs:
            job.done.add_done_callback(given_up)

        def work() -> None:
            runs = self._ran(jobs, stop)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile, and nobody waits
                loop.call_soon_threadsafe(ended, runs)

        def ended(runs: list[_Ran]) -> None:
            self._running.remove(jobs)
            self._finish(runs)
            if self._waiting and self._scheduled is None:
                self._scheduled = loop.call_soon(self._next)

        run = _threads.submit(work)
        _runs.add(run)
        run.add_done_callback(_runs.discard)

    def _ran(self, jobs: list[_Job], stop: Any) -> list[_Ran]:
        """Run some requests, together if that works, so that none fails for another's inputs."""
        began = _now()
        rows = sum([job.rows for job in jobs])
        inputs = jobs[0].inputs
        answers: list[list[Array]]
        try:
            if len(jobs) > 1:
                inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in inputs}
            joined = _now()
            outputs = self._run(inputs, stop)
            ran = _now()
            answers = [outputs]
            if len(jobs) > 1:
                answers = _split(outputs, [job.rows for job in jobs])
        except Exception as error:
            if len(jobs) > 1 and not (stop is not None and stop.terminate):
                return [one for job in jobs for one in self._ran([job], stop)]
            return [_Ran(jobs, error, rows, began, 0, 0, 0)]
        return [_Ran(jobs, answers, rows, began, joined - began, ran - joined, _now() - ran)]

    def _finish(self, runs: list[_Ran]) -> None:
        """Answer those who wait, and count."""
        for run in runs:
            if isinstance(run.outcome, Exception):
                for job in run.jobs:
                    if not job.done.done():
                        job.done.set_exception(run.outcome)
                continue
            waited = sum([run.began - job.arrived for job in run.jobs])
            self._statistics.ran(len(run.jobs), run.rows, waited, run.joining, run.running, run.splitting)
            for job, answer in zip(run.jobs, run.outcome, strict=True):
                if not job.done.done():
                    job.done.set_result(answer)

    def _keep_watch(self) -> None:
        """Look at the time again when the oldest request has had its share."""
        if self._running or self._waiting:
            oldest = min(job.arrived for job in (*self._waiting, *itertools.chain(*self._running)))
            wait = self._limits.timeout - (_now() - oldest) / 1e9
            self._watch = asyncio.get_running_loop().call_later(max(wait, 0.05), _expire, weakref.ref(self))

    def expire(self) -> None:
        """Tell requests that take too long so."""
        self._watch = None
        oldest = _now() - int(self._limits.timeout * 1e9)
        for job in itertools.chain(*self._running):
            if job.arrived <= oldest:
                self._give_up(job, "was not done")
        while self._waiting and self._waiting[0].arrived <= oldest:
            self._give_up(self._waiting.popleft(), "had no turn")
        self._keep_watch()

    def _give_up(self, job: _Job, what: str) -> None:
        if not job.done.done():
            job.done.set_exception(Refusal(503, f"the request {what} within {self._limits.timeout:g} seconds"))


def _expire(queue: weakref.ref[Queue]) -> None:
    """Look at the time, unless the model is gone: the clock does not keep it."""
    if (alive := queue()) is not None:
        alive.expire()


def _split(outputs: list[Array], rows: list[int]) -> list[list[Array]]:
    """Each request's own rows of the outputs."""
    ends = list(itertools.accumulate(rows))
    if any(output.ndim == 0 or len(output) != ends[-1] for output in outputs):
        raise ValueError("the outputs have not as many rows as the inputs")
    pairs = list(zip([0, *ends], ends, strict=False))
    return [[output[start:end] for output in outputs] for start, end in pairs]
