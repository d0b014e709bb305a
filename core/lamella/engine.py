"""Runs a program forward and backward, slice by slice.

Each slice of the batch is one coroutine: it runs forward, loss and backward, and yields where a layer asks for a sum
over the whole batch. The engine works in rounds: every slice runs to its next yield or to its end, then the sums go
back in, in the order of the slices.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lamella.backends import Backend
from lamella.backends.numpy_backend import in_order
from lamella.context import Arrays, Context
from lamella.errors import LayerError, counted
from lamella.graph import Leaf, Program
from lamella.interruption import Interruption
from lamella.protocol import ArraySpec, Layer
from lamella.storage import Storage
from lamella.threads import one_blas_thread, run_lanes, thread_count

__all__ = [
    "Batch",
    "Gradients",
    "Plan",
    "Record",
    "Request",
    "StepResult",
    "backward",
    "collect_updates",
    "cut",
    "forward",
    "infer",
    "run_step",
    "slice_rows",
]


T = TypeVar("T")

SLICE_BYTES = 1 << 20  # what the largest layer of a slice may read and write
INLINE_WORK = 1 << 21  # multiplications below which a step is one slice on the calling thread

# The memory of freed arrays should stay with the process: the next slice needs as much. glibc gives it back to the
# system, to take it again page by page, unless it has seen a block of nearly its limit of 32 MB come and go.
np.empty((1 << 25) - (1 << 16), "uint8")


class Request(NamedTuple):
    """What a slice yields: "sum this over the whole batch"."""

    leaf: Leaf
    phase: str
    partial: tuple[Any, ...]
    training: bool


class Batch(NamedTuple):
    """The arrays of one slice, on the backend. ``weights`` are sample weights over the weight of the whole batch.

    Targets and weights are None for outputs without a loss.
    """

    inputs: tuple[Any, ...]
    targets: tuple[Any, ...]
    weights: tuple[Any, ...]
    offset: int


class StepResult(NamedTuple):
    """What one slice, or a whole step, gives. Nothing in it has been applied to the model."""

    losses: tuple[float, ...]  # of each output
    predictions: tuple[Any, ...]
    gradients: Mapping[str, Any]  # of parameters, by full name
    dx: tuple[Any, ...]
    updates: dict[str, Any]

    @property
    def loss(self) -> float:
        """The sum of the losses of all outputs."""
        return sum(self.losses)


def cut(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Cut a batch into slices of the given numbers of rows."""

    def some(arrays: tuple[Any, ...], rows: slice) -> tuple[Any, ...]:
        return tuple(None if array is None else array[rows, ...] for array in arrays)

    slices, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        slices.append(
            Batch(some(batch.inputs, rows), some(batch.targets, rows), some(batch.weights, rows), batch.offset + start)
        )
        start += size
    return slices


class Plan:
    """Which gradients a step needs: those of trainable parameters, and of the inputs asked for.

    ``wants_dx`` holds for all inputs, or for each one; integer inputs have no gradient.
    """

    def __init__(
        self, program: Program, frozen: frozenset[str], *, wants_dx: bool | tuple[bool, ...], training: bool
    ) -> None:
        self.program = program
        self.frozen = frozen
        self.training = training
        asked = wants_dx if isinstance(wants_dx, tuple) else (wants_dx,) * len(program.inputs)
        needed = {
            value: want and program.specs[value].is_float for value, want in zip(program.inputs, asked, strict=True)
        }
        self.wants_dx: dict[str, tuple[bool, ...]] = {}
        self.goes_back: set[str] = set()
        self.parameters: set[str] = set()
        for leaf in program.leaves:
            smooth = any(program.specs[value].is_float for value in leaf.outputs)  # integers have no gradient
            wants = tuple(smooth and needed[value] for value in leaf.inputs)
            learns = smooth and bool(leaf.params) and leaf.owner not in frozen
            self.wants_dx[leaf.name] = wants
            if learns:
                self.parameters.update(leaf.params.values())
            if learns or any(wants):
                self.goes_back.add(leaf.name)
                if type(leaf.layer).backward_pass is Layer.backward_pass:
                    raise LayerError(
                        f"{leaf.label} defines no backward_pass, so it can predict and be exported but not be trained "
                        "through; define backward_pass(self, ctx, dy)"
                    )
            for value in leaf.outputs:
                needed[value] = leaf.name in self.goes_back and program.specs[value].is_float
        last: dict[int, str] = {}
        for leaf in program.leaves:
            last.update(dict.fromkeys(leaf.inputs, leaf.name))
            last.update(dict.fromkeys(leaf.outputs, leaf.name))
        for value in program.outputs:
            last.pop(value, None)
        self.dies_after: dict[str, list[int]] = {leaf.name: [] for leaf in program.leaves}
        for value, name in last.items():
            self.dies_after[name].append(value)


def slice_rows(program: Program, rows: int, threads: int, *, training: bool = True) -> list[int]:
    """How many rows each slice of a batch takes: a pure function of graph, rows and threads.

    One slice for steps so small that threads cost more than they give. Else a multiple of the threads, of slices whose
    largest layer fits a core's cache, but not of so few rows that the gradients of dense layers, which every slice
    computes whole, cost more than the rest. There is one for each thread where layers share sums over the batch in
    training, since every slice waits with all of its activations then, and where layers walk over time, since every
    slice takes as many steps as the batch.
    """
    cost = program.cost
    if cost.work * rows < INLINE_WORK:
        return [rows]
    size = max(SLICE_BYTES // max(1, cost.largest), min(256, cost.widest // 4096), 1)
    if cost.recurrent or (cost.coupled and training):
        size = rows
    count = min(rows, math.ceil(math.ceil(rows / size) / threads) * threads)
    return [rows * (k + 1) // count - rows * k // count for k in range(count)]


def infer(
    program: Program,
    xp: Any,
    arrays: Mapping[str, Any],
    inputs: Sequence[Any],
    *,
    sizes: Sequence[int] = (),
    threads: int = 1,
    around: Callable[[Leaf], Any] | None = None,
    observe: Callable[[Leaf, tuple[Any, ...]], None] | None = None,
) -> tuple[Any, ...]:
    """Run forward in inference mode on any namespace, the exporter's tracer included.

    ``arrays`` gives every array by its full name; ``sizes`` cuts the inputs into slices for several threads.
    ``around(leaf)`` is a context manager to run a leaf in; ``observe(leaf, outputs)`` sees what each leaf returned.
    """
    plan = Plan(program, frozenset(leaf.owner for leaf in program.leaves), wants_dx=False, training=False)
    if len(sizes) < 2:
        whole = [forward(plan, xp, arrays, inputs, around=around, observe=observe)]
        (results,) = _rounds(whole, 1, one_blas_thread() if thread_count() == 1 else nullcontext())
        return results
    slices = cut(Batch(tuple(inputs), (), (), 0), sizes)
    coroutines = [forward(plan, xp, arrays, part.inputs) for part in slices]
    parts = _rounds(coroutines, min(threads, len(slices)), one_blas_thread())
    return tuple(xp.concat(list(part), axis=0) for part in zip(*parts, strict=True))


class Gradients(Mapping[str, Any]):
    """Gradients of parameters by full name, added up in one flat buffer as slices hand them over."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self.storage.part(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.storage.declarations if name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str, gradient: Any) -> None:
        """Add one slice's share."""
        part, share = self.storage.part(name), self.storage.backend.storable(gradient)
        if name in self.names:
            part += share
        else:
            part[...] = share
            self.names.add(name)

    def join(self, others: Iterable[Gradients]) -> None:
        """Add what other buffers hold, in their order."""
        for other in others:
            for run in self.storage.runs(other.names):
                self.storage.flat[run] += other.storage.flat[run]


def run_step(
    plan: Plan,
    backend: Backend,
    arrays: Mapping[str, Any],
    slices: Sequence[Batch],
    losses: Sequence[Any],
    buffers: Sequence[Gradients],
    *,
    seed: int,
    step: int,
    observe: Callable[[Leaf, tuple[Any, ...]], None] | None = None,
) -> StepResult:
    """Run forward, loss and backward over the slices of a batch, and put together what they give.

    Slice i runs on thread i modulo the number of buffers, and its gradients go into that thread's buffer; at the end
    the first buffer holds the sum of all. The order of every sum follows from the slices alone.
    """
    key = (seed & 0xFFFFFFFF, seed >> 32, step)
    buffers = buffers[: len(slices)]
    for buffer in buffers:
        buffer.names.clear()
    coroutines = [
        _slice_step(plan, backend, arrays, batch, losses, key, buffers[k % len(buffers)], observe)
        for k, batch in enumerate(slices)
    ]
    results = _rounds(coroutines, len(buffers), one_blas_thread())
    buffers[0].join(buffers[1:])
    return _merge(results, backend, buffers[0])


def _merge(results: Sequence[StepResult], backend: Backend, gradients: Gradients) -> StepResult:
    """What the slices of a batch gave, in their order."""
    first, *rest = results
    if not rest:
        return first
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


def _rounds(
    coroutines: Sequence[Generator[Request, Any, T]], threads: int, blas: AbstractContextManager[None]
) -> list[T]:
    """Run every slice to its next yield or its end, add up what they yielded, and go on with the sums.

    If one fails, or Ctrl-C is pressed, the others stop before their next part; the error of the first slice that
    failed is raised once nothing runs any more.
    """
    with Interruption() as interruption, blas:
        results = _run_rounds(coroutines, threads, interruption)
    interruption.check()
    return results


def _run_rounds(coroutines: Sequence[Generator[Request, Any, T]], threads: int, interruption: Interruption) -> list[T]:
    results: dict[int, T] = {}
    requests: list[Request | None] = [None] * len(coroutines)
    failures: dict[int, BaseException] = {}
    total: Any = None

    def lane(first: int) -> None:
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
        while True:
            run_lanes([partial(lane, first) for first in range(threads)])
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
    where = f"{first.leaf.label}.{first.phase}"
    if not first.training:
        raise LayerError(
            f"{where} yielded in inference, where a sum over the batch has no meaning; yield only if ctx.training"
        )
    if len(requests) != slices:
        raise LayerError(f"{where}: {len(requests)} of {slices} slices yielded; each must yield equally often")
    total = first.partial
    shapes = [np.shape(part) for part in total]
    for k, request in enumerate(requests[1:], start=1):
        if request.leaf is not first.leaf or request.phase != first.phase:
            raise LayerError(f"{where} yielded in slice 0, {request.leaf.label}.{request.phase} in slice {k}")
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


def forward(
    plan: Plan,
    xp: Any,
    arrays: Mapping[str, Any],
    inputs: Sequence[Any],
    *,
    offset: int = 0,
    key: tuple[Any, ...] = (),
    tape: dict[str, Record] | None = None,
    around: Callable[[Leaf], Any] | None = None,
    observe: Callable[[Leaf, tuple[Any, ...]], None] | None = None,
) -> Generator[Request, Any, tuple[Any, ...]]:
    """Run every leaf forward; with a tape, keep there what the way back needs."""
    program = plan.program
    values: dict[int, Any] = dict(zip(program.inputs, inputs, strict=True))
    for leaf in program.leaves:
        args = tuple(values[value] for value in leaf.inputs)
        ctx = Context(
            owner=leaf.label,
            xp=xp,
            dtype=getattr(xp, program.dtype),
            params=Arrays(leaf.label, {local: arrays[full] for local, full in leaf.params.items()}),
            state=Arrays(leaf.label, {local: arrays[full] for local, full in leaf.state.items()}),
            training=plan.training,
            recording=tape is not None,
            trainable=leaf.owner not in plan.frozen,
            wants_dx=plan.wants_dx[leaf.name],
            rows=args[0].shape[0],
            offset=offset,
            key=(*key, zlib.crc32(leaf.name.encode())),
        )
        with nullcontext() if around is None else around(leaf):
            output = yield from _run(leaf, "forward_pass", leaf.forward_yields, ctx, args)
        outputs = output if isinstance(output, tuple) else (output,)
        if len(outputs) != len(leaf.outputs):
            raise LayerError(
                f"{leaf.label}.forward_pass returned {counted(len(outputs), 'array')}; build said {len(leaf.outputs)}"
            )
        if xp.backend != "onnx":  # the tracer knows sizes by their names, and looks at them itself
            for value, output in zip(leaf.outputs, outputs, strict=True):
                _check_output(leaf, output, program.specs[value], args[0].shape[0], xp)
        if xp.backend == "numpy":
            outputs = tuple(map(in_order, outputs))
        if observe is not None:
            observe(leaf, outputs)
        if tape is not None:
            ctx.end_forward()
            tape[leaf.name] = Record(ctx, tuple(a.shape for a in args), tuple(a.shape for a in outputs))
        values.update(zip(leaf.outputs, outputs, strict=True))
        for value in plan.dies_after[leaf.name]:
            values.pop(value, None)
    return tuple(values[value] for value in program.outputs)


def backward(
    plan: Plan,
    xp: Any,
    gradients: dict[int, Any],
    tape: dict[str, Record],
    add: Callable[[str, Any], None],
    *,
    around: Callable[[Leaf], Any] | None = None,
    observe: Callable[[Leaf, tuple[Any, ...]], None] | None = None,
) -> Generator[Request, Any, None]:
    """Run leaves backward from the gradients of the outputs; hand those of parameters to ``add``.

    ``gradients`` holds, by value, what has arrived so far, and at the end what the inputs got.
    """
    program = plan.program
    for leaf in reversed(program.leaves):
        if leaf.name not in plan.goes_back:
            continue
        ctx, input_shapes, output_shapes = tape.pop(leaf.name)
        incoming = tuple(
            gradients.pop(value) if value in gradients else xp.zeros(shape, dtype=ctx.dtype)
            for value, shape in zip(leaf.outputs, output_shapes, strict=True)
        )
        with nullcontext() if around is None else around(leaf):
            outgoing = yield from _run(leaf, "backward_pass", leaf.backward_yields, ctx, incoming)
        outgoing = outgoing if isinstance(outgoing, tuple) else (outgoing,)
        if observe is not None:
            observe(leaf, (*(dx for dx in outgoing if dx is not None), *ctx.gradients.values()))
        if len(outgoing) != len(leaf.inputs):
            raise LayerError(
                f"{leaf.label}.backward_pass returned {counted(len(outgoing), 'gradient')} for "
                f"{counted(len(leaf.inputs), 'input')}; return "
                "a tuple with one for each, None where ctx.wants_dx is False"
            )
        for k, (value, dx) in enumerate(zip(leaf.inputs, outgoing, strict=True)):
            if not ctx.wants_dx[k]:
                continue
            if getattr(dx, "shape", None) != input_shapes[k] or dx.dtype != ctx.dtype:
                raise LayerError(
                    f"{leaf.label}.backward_pass: expected the gradient of input {k}, {tuple(input_shapes[k])} "
                    f"{program.dtype}, got {_kind(dx)}; ctx.wants_dx[{k}] is True"
                )
            dx = in_order(dx) if xp.backend == "numpy" else dx
            gradients[value] = gradients[value] + dx if value in gradients else dx
        if leaf.owner in plan.frozen:
            continue
        for local, full in leaf.params.items():
            if local not in ctx.gradients:
                raise LayerError(
                    f"{leaf.label}.backward_pass gave no gradient for parameter {local!r}; call ctx.grad({local}=...)"
                )
            add(full, ctx.gradients[local])


def _slice_step(
    plan: Plan,
    backend: Backend,
    arrays: Mapping[str, Any],
    batch: Batch,
    losses: Sequence[Any],
    key: tuple[Any, ...],
    buffer: Gradients,
    observe: Callable[[Leaf, tuple[Any, ...]], None] | None,
) -> Generator[Request, Any, StepResult]:
    """One slice: forward, loss, backward."""
    program, xp = plan.program, backend.xp
    tape: dict[str, Record] = {}
    predictions = yield from forward(
        plan, xp, arrays, batch.inputs, offset=batch.offset, key=key, tape=tape, observe=observe
    )
    updates = collect_updates(plan, tape)
    totals: list[float] = []
    gradients: dict[int, Any] = {}
    for k, (value, loss) in enumerate(zip(program.outputs, losses, strict=True)):
        if loss is None:
            totals.append(0.0)
            continue
        ctx = _loss_context(program, xp, k, predictions[k], batch.offset)
        target, weights = batch.targets[k], batch.weights[k]
        try:
            each = loss.forward(ctx, predictions[k], target)
            slope = loss.backward(ctx, weights) if program.specs[value].is_float else None
        except Exception as error:
            given = f"prediction {_kind(predictions[k])} and target {_kind(target)}"
            raise LayerError(f"{loss!r} failed on {given}: {type(error).__name__}: {error}") from error
        if getattr(each, "shape", None) != (predictions[k].shape[0],):
            raise LayerError(f"{loss!r}.forward must return one value per row, got {_kind(each)}")
        totals.append(float(np.dot(backend.asnumpy(each).astype("float64"), backend.asnumpy(weights))))
        if slope is not None:
            if getattr(slope, "shape", None) != predictions[k].shape or slope.dtype != ctx.dtype:
                raise LayerError(
                    f"{loss!r}.backward: expected the gradient of the prediction, {_kind(predictions[k])}, got "
                    f"{_kind(slope)}"
                )
            gradients[value] = slope
    yield from backward(plan, xp, gradients, tape, buffer.add, observe=observe)
    dx = tuple(gradients.get(value) for value in program.inputs)
    return StepResult(tuple(totals), predictions, buffer, dx, updates)


def _check_output(leaf: Leaf, output: Any, spec: ArraySpec, rows: int, xp: Any) -> None:
    """Hold an output against what ``build`` said of it."""
    shape = getattr(output, "shape", None)
    if (
        shape is None
        or len(shape) != len(spec.shape)
        or shape[0] != rows
        or any(isinstance(want, int) and want != have for want, have in zip(spec.shape, shape, strict=True))
        or output.dtype != getattr(xp, spec.dtype)
    ):
        widened = shape is not None and spec.dtype == "float32" and "float64" in str(output.dtype)
        hint = "; write scalars as Python floats" if widened else ""
        raise LayerError(
            f"{leaf.label}.forward_pass: build said {spec} for {rows} rows, it returned {_kind(output)}{hint}"
        )


def _kind(array: Any) -> str:
    """Shape and dtype for messages; of what is no array, the type."""
    if array is None or not hasattr(array, "shape"):
        return "None; is a return missing?" if array is None else f"a {type(array).__name__}"
    return f"{tuple(array.shape)} {array.dtype}"


def collect_updates(plan: Plan, tape: Mapping[str, Record]) -> dict[str, Any]:
    """The new values of state arrays by full name; frozen layers keep theirs."""
    return {
        leaf.state[local]: array
        for leaf in plan.program.leaves
        for local, array in tape[leaf.name].ctx.updates.items()
        if leaf.owner not in plan.frozen
    }


class Record(NamedTuple):
    """What one leaf left on the way forward."""

    ctx: Context
    input_shapes: tuple[Any, ...]
    output_shapes: tuple[Any, ...]


def _loss_context(program: Program, xp: Any, output: int, prediction: Any, offset: int) -> Context:
    owner = f"the loss of {program.output_names[output]!r}"
    return Context(
        owner=owner,
        xp=xp,
        dtype=getattr(xp, program.dtype),
        params=Arrays(owner, {}),
        state=Arrays(owner, {}),
        training=True,
        recording=True,
        trainable=False,
        wants_dx=(True, False),
        rows=prediction.shape[0],
        offset=offset,
        key=(),
    )


def _run(leaf: Leaf, method: str, yields: bool, ctx: Context, args: tuple[Any, ...]) -> Generator[Request, Any, Any]:
    """Call one pass of a leaf; relay what it yields; say where it was if it fails."""
    result: Any = None
    try:
        result = getattr(leaf.layer, method)(ctx, *args)
        if not yields:
            return result
        total: Any = None
        while True:
            try:
                partial = result.send(total)
            except StopIteration as stop:
                return stop.value
            if not isinstance(partial, tuple):
                raise LayerError(
                    f"{leaf.label}.{method} yielded {type(partial).__name__}; expected a tuple of arrays or sizes"
                )
            if odd := [part for part in partial if part is None or isinstance(part, str | list | tuple | Mapping)]:
                raise LayerError(f"{leaf.label}.{method} yielded a tuple with {odd[0]!r}; expected arrays or sizes")
            total = yield Request(leaf, method, partial, ctx.training)
    except LayerError:
        raise
    except Exception as error:
        hint = ""
        if "read-only" in str(error):
            hint = (
                "; inputs, parameters and state are never written to: make new arrays, and hand over new values of "
                "state by ctx.update(...)"
            )
        elif method == "backward_pass" and not ctx.saved and isinstance(error, ValueError | IndexError | TypeError):
            hint = "; ctx.saved is empty, since forward_pass saved nothing: ctx.save(...) is missing there"
        elif ctx.xp.backend == "strict":
            hint = "; arrays here have only what every backend has: functions of ctx.xp, not NumPy's, and no methods"
        where = f"{leaf.label}.{method} failed on {' and '.join(map(_kind, args))}, rows {ctx.rows}"
        raise LayerError(f"{where}: {type(error).__name__}: {error}{hint}") from error
    finally:
        if yields and result is not None:
            result.close()
