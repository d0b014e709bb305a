"""The slices of a batch, and the sums over them.

The engine works in rounds: every slice runs to its next yield or to its end, then the sums go back in, in the order of
the slices. Slice i runs on thread i modulo the number of threads, and its gradients go into that thread's buffer. The
order of every sum follows from slices and threads alone, so that equal settings give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from lamella.backends import Backend
from lamella.engine.arrays import Storage
from lamella.engine.gradients import Gradients
from lamella.engine.interruption import Interruption
from lamella.engine.passes import Batch, Pass, Request, StepResult, Watcher
from lamella.engine.threads import blas_threads, keep_freed_memory, run_tasks
from lamella.engine.values import Values
from lamella.errors import LayerError
from lamella.graph.plan import Plan
from lamella.losses import Loss

__all__ = ["Slices", "run_alone"]

T = TypeVar("T")


class Slices:
    """A batch of so many rows, cut into slices, with a prepared pass for each. It runs one batch at a time.

    Arguments:
        plan: what the passes have to give.
        backend: where they run.
        rows: which rows each slice has.
        threads: how many threads they run on.
        blas: how many threads BLAS gets, where one slice runs on the calling thread; 0 for as many as it has.
        buffers: where gradients are added up, one for each thread; without any, no backward pass follows.
        watcher: who sees every operation.
    """

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        rows: Sequence[slice],
        *,
        threads: int = 1,
        blas: int = 1,
        buffers: Sequence[Gradients] = (),
        watcher: Watcher | None = None,
    ) -> None:
        keep_freed_memory()
        self.plan, self.backend, self.rows = plan, backend, rows
        self._threads = min(len(buffers) or threads, len(rows))
        self.blas = blas_threads(blas)
        self._buffers, self._watcher = buffers[: len(rows)], watcher
        self._bound: list[tuple[Storage, Storage, list[Pass]]] = []  # for both sets of buffers that training changes

    def _passes(self, values: Values) -> list[Pass]:
        """A pass for each slice, which sees the arrays of these values."""
        for parameters, state, passes in self._bound:
            if parameters is values.parameters and state is values.state:
                if not self.backend.views_are_live:
                    for one in passes:
                        one.bind(values.arrays())
                return passes
        buffers, arrays = self._buffers, values.arrays()
        passes = [
            Pass(
                self.plan,
                self.backend,
                rows.stop - rows.start,
                arrays,
                offset=rows.start,
                recording=bool(buffers),
                gradients=buffers[k % len(buffers)] if buffers else None,
                first=k < len(buffers),
                watcher=self._watcher,
            )
            for k, rows in enumerate(self.rows)
        ]
        self._bound = [*self._bound[-1:], (values.parameters, values.state, passes)]
        return passes

    def infer(
        self, values: Values, inputs: Sequence[Any], bring: Callable[[Sequence[Any]], Sequence[Any]] = tuple
    ) -> tuple[Any, ...]:
        """Return the outputs of a batch. Each slice brings its rows of the inputs to the backend."""
        passes = self._passes(values)
        if len(passes) == 1:
            if not self.blas.count:
                with np.errstate(all="ignore"):
                    return _run_one(passes[0].forward(bring(inputs)))
            with Interruption() as interruption, self.blas, np.errstate(all="ignore"):
                outputs = _run_one(passes[0].forward(bring(inputs)))
            interruption.check()
            return outputs
        slices = zip(passes, self.rows, strict=True)
        parts = _run([_brought(one, inputs, rows, bring) for one, rows in slices], self._threads)
        return tuple(self.backend.xp.concat(list(part), axis=0) for part in zip(*parts, strict=True))

    @property
    def gradients(self) -> Gradients:
        """Where the gradients stand after a step."""
        return self._buffers[0]

    def step(self, values: Values, batch: Batch, losses: Sequence[Loss | None], seed: int) -> StepResult:
        """Run forward, loss and backward over a batch; the gradients stand in a buffer that the next step reuses.

        The caller holds BLAS to its number of threads, `blas`, and NumPy's warnings of values that are not finite back.
        """
        passes, key = self._passes(values), (seed & 0xFFFFFFFF, seed >> 32, values.step)
        if len(passes) == 1:
            return _run_one(passes[0].step(batch, losses, key))
        slices = zip(passes, self.rows, strict=True)
        results = _run([one.step(_cut(batch, rows), losses, key) for one, rows in slices], self._threads)
        first, *others = self._buffers
        first.add_up(others)
        return _merged(results, self.backend, first)


def _brought(
    one: Pass, inputs: Sequence[Any], rows: slice, bring: Callable[[Sequence[Any]], Sequence[Any]]
) -> Generator[Request, Any, tuple[Any, ...]]:
    """A forward pass over some rows, which are brought only when it runs."""
    return (yield from one.forward(bring([array[rows, ...] for array in inputs])))


def _cut(batch: Batch, rows: slice) -> Batch:
    def some(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if array is None else array[rows, ...] for array in arrays)

    return Batch(some(batch.inputs), some(batch.targets), some(batch.weights))


def _merged(results: Sequence[StepResult], backend: Backend, gradients: Gradients) -> StepResult:
    """What the slices of a batch gave, in their order."""
    first, *rest = results
    for k, other in enumerate(rest, start=1):
        if odd := sorted(first.updates.keys() ^ other.updates.keys()):
            raise LayerError(
                f"{odd[0]}: ctx.update was called in slice {k if odd[0] in other.updates else 0} and not in "
                f"slice {0 if odd[0] in other.updates else k}; call it in every slice, with a function of totals"
            )
    for name, value in first.updates.items():
        own = backend.asnumpy(value)
        if any(not np.array_equal(own, backend.asnumpy(other.updates[name]), equal_nan=True) for other in rest):
            raise LayerError(
                f"{name}: ctx.update got different values in different slices; make it a function of totals, as in "
                "total = yield partial"
            )

    def joined(parts: tuple[Any, ...]) -> Any:
        return None if parts[0] is None else backend.xp.concat(list(parts), axis=0)

    return StepResult(
        losses=tuple(map(sum, zip(*(result.losses for result in results), strict=True))),
        predictions=tuple(map(joined, zip(*(result.predictions for result in results), strict=True))),
        gradients=gradients,
        dx=tuple(map(joined, zip(*(result.dx for result in results), strict=True))),
        updates=first.updates,
    )


def run_alone(coroutine: Generator[Request, Any, T], answer: Callable[[Request], Any]) -> T:
    """Run one pass on this thread, and answer each of its requests."""
    total: Any = None
    try:
        while True:
            try:
                request = coroutine.send(total)
            except StopIteration as stop:
                result: T = stop.value
                return result
            total = answer(request)
    finally:
        coroutine.close()


def _run_one(coroutine: Generator[Request, Any, T]) -> T:
    return run_alone(coroutine, lambda request: _total([request], 1))


def _run(coroutines: Sequence[Generator[Request, Any, T]], threads: int) -> list[T]:
    """Run every slice to its next yield or its end, add up what they yielded, and go on with the sums.

    If one fails, or this thread is interrupted, the others stop before their next part; the error of the first slice
    that failed is raised once nothing runs any more.
    """
    results: dict[int, T] = {}
    requests: list[Request | None] = [None] * len(coroutines)
    failures: dict[int, BaseException] = {}
    total: Any = None

    def task(first: int) -> None:
        with np.errstate(all="ignore"):
            for k in range(first, len(coroutines), threads):
                if failures or interruption.asked:
                    return
                try:
                    requests[k] = coroutines[k].send(total)
                except StopIteration as stop:
                    results[k], requests[k] = stop.value, None
                except BaseException as failure:  # raised again below, once every thread has stopped
                    failures[k] = failure

    try:
        # Ctrl-C waits until no thread runs any more: in the midst of handing out tasks it would leave some behind
        with Interruption() as interruption, blas_threads(1):
            while True:
                run_tasks([partial(task, first) for first in range(threads)])
                if failures:
                    raise failures[min(failures)]
                interruption.check()
                asked = [request for request in requests if request is not None]
                if not asked:
                    return [results[k] for k in range(len(coroutines))]
                total = _total(asked, len(coroutines))
    finally:
        for coroutine in coroutines:
            coroutine.close()


def _total(requests: list[Request], slices: int) -> tuple[Any, ...]:
    """Sum what all slices yielded, in the order of the slices; they must have yielded alike."""
    first = requests[0]
    where = f"{first.operation.label}.{first.method}"
    if not first.training:
        raise LayerError(
            f"{where} yielded in inference, where a sum over the batch has no meaning; yield only if ctx.training"
        )
    if len(requests) != slices:
        raise LayerError(f"{where}: {len(requests)} of {slices} slices yielded; each must yield equally often")
    total = first.partial
    shapes = [np.shape(part) for part in total]
    for k, request in enumerate(requests[1:], start=1):
        if request.operation is not first.operation or request.method != first.method:
            raise LayerError(f"{where} yielded in slice 0, {request.operation.label}.{request.method} in slice {k}")
        if (own := [np.shape(part) for part in request.partial]) != shapes:
            raise LayerError(f"{where}: slice {k} yielded shapes {own}, slice 0 {shapes}; they must be equal")
        total = tuple(a + b for a, b in zip(total, request.partial, strict=True))
    return tuple(map(_unwritable, total))


def _unwritable(part: Any) -> Any:
    """A total as all slices may see it."""
    if not isinstance(part, np.ndarray):
        return part
    part = part.view()
    part.flags.writeable = False
    return part
