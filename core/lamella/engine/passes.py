"""One slice of a batch through the operations of a graph, forward and backward.

A pass is prepared once, for a number of rows, and run as often as wanted. It is the one place that calls layers: in
training, in prediction, under the exporter's tracer and in the checks of layers. A pass is a coroutine: it yields where
a layer asks for a sum over the whole batch, and is sent the sum.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lamella.backends import Backend
from lamella.engine.arrays import Storage
from lamella.errors import LayerError, counted
from lamella.graph.operations import Graph, Operation
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.protocol.context import Arrays, Context
from lamella.protocol.spec import described

__all__ = ["Batch", "Bound", "Gradients", "Pass", "Request", "StepResult", "Watcher", "bind"]


class Request(NamedTuple):
    """What a pass yields: "sum this over the whole batch"."""

    operation: Operation
    method: str
    partial: tuple[Any, ...]
    training: bool


class Batch(NamedTuple):
    """Arrays on the backend. ``weights`` are sample weights over the weight of the whole batch.

    Targets and weights are None for outputs without a loss.
    """

    inputs: tuple[Any, ...]
    targets: tuple[Any, ...]
    weights: tuple[Any, ...]


class StepResult(NamedTuple):
    """What one slice, or a whole step, gives. Nothing in it has been applied to the network."""

    losses: tuple[float, ...]  # of each output
    predictions: tuple[Any, ...]
    gradients: Mapping[str, Any]  # of parameters, by full name
    dx: tuple[Any, ...]
    updates: dict[str, Any]

    @property
    def loss(self) -> float:
        """The sum of the losses of all outputs."""
        return sum(self.losses)


class Watcher:
    """Sees every operation of a pass as it runs; override what you need."""

    def before(self, operation: Operation, method: str) -> None:
        """Before a method of the operation's layer is called."""

    def after(self, operation: Operation, method: str, arrays: tuple[Any, ...]) -> None:
        """After it: what it returned, and for a backward pass the gradients of parameters too."""


class Gradients(Mapping[str, Any]):
    """Gradients of some parameters by full name, added up in one flat buffer."""

    def __init__(self, storage: Storage, names: Collection[str]) -> None:
        self.storage = storage
        self.names = frozenset(names)
        self.runs = storage.layout.runs(self.names)

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self.storage.part(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.storage.layout.declarations if name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def join(self, others: Iterable[Gradients]) -> None:
        """Add what other buffers hold, in their order."""
        for other in others:
            for run in self.runs:
                self.storage.flat[run] += other.storage.flat[run]


Bound = list[tuple[Arrays, Arrays]]  # parameters and state of each operation, as its layer sees them


def bind(graph: Graph, arrays: Mapping[str, Any]) -> Bound:
    """Return the arrays of each operation of a graph, from all arrays by full name."""
    return [
        (
            Arrays(operation.label, {local: arrays[full] for local, full in operation.params.items()}),
            Arrays(operation.label, {local: arrays[full] for local, full in operation.state.items()}),
        )
        for operation in graph.operations
    ]


class _Output(NamedTuple):
    """One output of an operation: its number, and the shape and dtype that ``build`` said; None stands for any size."""

    value: int
    shape: tuple[int | None, ...]
    dtype: Any


class _Forward(NamedTuple):
    """What the forward pass of one operation needs."""

    operation: Operation
    ctx: Context
    call: Callable[..., Any]
    yields: bool
    inputs: tuple[int, ...]
    outputs: list[_Output]
    dies: list[int]


class _Parameter(NamedTuple):
    """Where the gradient of one parameter goes."""

    local: str
    full: str
    part: Any  # of the buffer; None where gradients are collected as they are
    adds: bool  # whether the part holds a share already


class _Backward(NamedTuple):
    """What the backward pass of one operation needs."""

    operation: Operation
    ctx: Context
    call: Callable[..., Any]
    yields: bool
    wanted: list[tuple[int, int]]  # the place and the number of each input whose gradient is wanted
    outputs: tuple[int, ...]
    params: list[_Parameter]  # of which it has to give the gradients


class Pass:
    """A pass over a slice of some rows, prepared for one plan and backend. It runs one batch at a time.

    Arguments:
        plan: what the pass has to give.
        backend: where it runs.
        rows: how many rows the slice has.
        offset: the row of the batch with which it begins.
        recording: whether a backward pass follows.
        gradients: the buffer in which it adds up gradients of parameters; None to collect them in `collected`.
        first: whether the pass is the first to write into that buffer.
        watcher: who sees every operation.
    """

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        rows: Any,
        *,
        offset: int = 0,
        recording: bool = False,
        gradients: Gradients | None = None,
        first: bool = True,
        watcher: Watcher | None = None,
    ) -> None:
        graph = self.graph = plan.graph
        self.plan, self.backend, self.rows, self.offset = plan, backend, rows, offset
        self.recording, self.watcher = recording, watcher
        self.collected: dict[str, Any] = {}
        self._gradients = gradients
        self._dtype = backend.dtype(graph.dtype)
        self._settled = backend.settled if backend.settles else None
        self._shapes: dict[int, Any] = {}  # of the values of this run
        self._forward: list[_Forward] = []
        self._backward: list[_Backward] = []
        shared = Arrays("", {})
        for k, operation in enumerate(graph.operations):
            ctx = Context(
                label=operation.label,
                xp=backend.xp,
                dtype=getattr(backend.xp, graph.dtype),
                params=shared,
                state=shared,
                training=plan.training,
                recording=recording and plan.runs_backward[k],
                trainable=operation.prefix not in plan.frozen,
                wants_dx=plan.wants_dx[k],
                rows=rows,
                offset=offset,
                crc=zlib.crc32(operation.name.encode()),
            )
            layer = operation.layer
            outputs = [self._output(value) for value in operation.outputs]
            how = operation, ctx, layer.forward_pass, operation.forward_yields
            self._forward.append(_Forward(*how, operation.inputs, outputs, plan.dies_after[k]))
            if plan.runs_backward[k]:
                wanted = [(k, value) for k, value in enumerate(operation.inputs) if ctx.wants_dx[k]]
                how = operation, ctx, layer.backward_pass, operation.backward_yields
                self._backward.insert(0, _Backward(*how, wanted, operation.outputs, []))
        written: set[str] = set()
        for this in self._backward:
            if this.ctx.trainable:
                this.params.extend(self._parameters(this.operation, first, written))
            places = {one.local: None if one.adds or not backend.writes_in_place else one.part for one in this.params}
            this.ctx.out = Arrays(this.operation.label, dict.fromkeys(this.operation.params) | places)
        self._smooth = [graph.specs[value].is_float for value in graph.outputs]
        self._losses = [self._loss_context(name) for name in graph.output_names] if recording else []

    def _parameters(self, operation: Operation, first: bool, written: set[str]) -> Iterator[_Parameter]:
        for local, full in operation.params.items():
            part = None if self._gradients is None else self._gradients.storage.part(full)
            yield _Parameter(local, full, part, not first or full in written)  # an earlier operation shares the layer
            written.add(full)

    def _output(self, value: int) -> _Output:
        spec = self.graph.specs[value]
        sizes = (n if isinstance(n, int) else None for n in spec.shape[1:])
        return _Output(value, (self.rows, *sizes), self.backend.dtype(spec.dtype))

    def _loss_context(self, output: str) -> Context:
        label = f"the loss of {output!r}"
        nothing = Arrays(label, {})
        return Context(
            label=label,
            xp=self.backend.xp,
            dtype=getattr(self.backend.xp, self.graph.dtype),
            params=nothing,
            state=nothing,
            training=True,
            recording=True,
            trainable=False,
            wants_dx=(True, False),
            rows=self.rows,
            offset=self.offset,
            crc=0,
        )

    def forward(
        self, arrays: Bound, inputs: Sequence[Any], key: tuple[Any, ...] = ()
    ) -> Generator[Request, Any, tuple[Any, ...]]:
        """Run every operation forward and return the outputs of the graph.

        Arguments:
            arrays: what `bind` returned.
            inputs: of the graph.
            key: low and high word of the seed, and the step, from which random numbers follow.
        """
        values: dict[int, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        shapes = self._shapes = {value: array.shape for value, array in values.items()}
        watcher, settled, checked = self.watcher, self._settled, self.backend.knows_shapes
        operation: Any = None
        ctx: Any = None
        args: list[Any] = []
        try:
            for this, (params, state) in zip(self._forward, arrays, strict=True):
                operation, ctx, call, yields, numbers, outputs, dies = this
                args = [values[number] for number in numbers]
                ctx.params, ctx.state, ctx.key = params, state, key
                ctx.saved, ctx.updates, ctx.draws, ctx.is_forward = (), {}, 0, True
                if watcher is not None:
                    watcher.before(operation, "forward_pass")
                given = call(ctx, *args)
                if yields:
                    given = yield from _drive(operation, "forward_pass", given, self.plan.training)
                results = given if isinstance(given, tuple) else (given,)
                if len(results) != len(outputs):
                    raise LayerError(
                        f"{operation.label}.forward_pass returned {counted(len(results), 'array')}; build said "
                        f"{len(outputs)}"
                    )
                for array, (number, shape, dtype) in zip(results, outputs, strict=True):
                    if checked:
                        if getattr(array, "shape", None) != shape or array.dtype != dtype:
                            self._check(operation, array, number, shape, dtype)
                        if settled is not None and not array.flags.c_contiguous:
                            array = settled(array)
                    values[number] = array
                    shapes[number] = getattr(array, "shape", None)
                if watcher is not None:
                    watcher.after(operation, "forward_pass", tuple([values[number] for number, _, _ in outputs]))
                ctx.is_forward = False
                for number in dies:
                    del values[number]
        except LayerError:
            raise
        except Exception as error:
            raise _failed(operation, "forward_pass", ctx, args, error, self.backend.advice) from error
        return tuple([values[number] for number in self.graph.outputs])

    def backward(self, gradients: dict[int, Any]) -> Generator[Request, Any, None]:
        """Run operations backward from the gradients of the outputs.

        Arguments:
            gradients: by value, what has arrived so far; at the end, what the inputs got.
        """
        watcher, shapes, xp, settled = self.watcher, self._shapes, self.backend.xp, self._settled
        in_place = self.backend.writes_in_place
        self.collected = {}
        operation: Any = None
        ctx: Any = None
        args: list[Any] = []
        try:
            for this in self._backward:
                operation, ctx, call, yields, wanted, outputs, params = this
                args = [
                    gradients.pop(number) if number in gradients else xp.zeros(shapes[number], dtype=ctx.dtype)
                    for number in outputs
                ]
                ctx.gradients = {}
                if watcher is not None:
                    watcher.before(operation, "backward_pass")
                given = call(ctx, *args)
                if yields:
                    given = yield from _drive(operation, "backward_pass", given, self.plan.training)
                results = given if isinstance(given, tuple) else (given,)
                if watcher is not None:
                    known = tuple(dx for dx in results if dx is not None)
                    watcher.after(operation, "backward_pass", (*known, *ctx.gradients.values()))
                if len(results) != len(operation.inputs):
                    raise LayerError(
                        f"{operation.label}.backward_pass returned {counted(len(results), 'gradient')} for "
                        f"{counted(len(operation.inputs), 'input')}; return a tuple with one for each, None where "
                        "ctx.wants_dx is False"
                    )
                for k, number in wanted:
                    dx = results[k]
                    if getattr(dx, "shape", None) != shapes[number] or dx.dtype != self._dtype:
                        raise LayerError(
                            f"{operation.label}.backward_pass: expected the gradient of input {k}, "
                            f"{tuple(shapes[number])} {self.graph.dtype}, got {described(dx)}; ctx.wants_dx[{k}] is "
                            "True"
                        )
                    if settled is not None and not dx.flags.c_contiguous:
                        dx = settled(dx)
                    gradients[number] = gradients[number] + dx if number in gradients else dx
                for local, full, part, adds in params:
                    gradient = ctx.gradients.get(local)
                    if gradient is None:
                        raise LayerError(
                            f"{operation.label}.backward_pass gave no gradient for parameter {local!r}; call "
                            f"ctx.grad({local}=...)"
                        )
                    if part is None:
                        before = self.collected.get(full)
                        self.collected[full] = gradient if before is None else before + gradient
                    elif adds:
                        part += self.backend.storable(gradient)
                    elif gradient is not part:
                        part[...] = gradient if in_place else self.backend.storable(gradient)
                ctx.saved, ctx.gradients = (), {}
        except LayerError:
            raise
        except Exception as error:
            raise _failed(operation, "backward_pass", ctx, args, error, self.backend.advice) from error

    def updates(self) -> dict[str, Any]:
        """Return the new values of state arrays by full name; frozen layers keep theirs."""
        return {
            this.operation.state[local]: array
            for this in self._forward
            if this.ctx.updates and this.ctx.trainable
            for local, array in this.ctx.updates.items()
        }

    def step(
        self,
        arrays: Bound,
        batch: Batch,
        losses: Sequence[Loss | None],
        key: tuple[Any, ...],
    ) -> Generator[Request, Any, StepResult]:
        """Run forward, loss and backward."""
        graph = self.graph
        predictions = yield from self.forward(arrays, batch.inputs, key)
        updates = self.updates()
        totals: list[float] = []
        gradients: dict[int, Any] = {}
        for k, loss in enumerate(losses):
            if loss is None:
                totals.append(0.0)
                continue
            total, slope = self._loss(k, loss, predictions[k], batch.targets[k], batch.weights[k])
            totals.append(total)
            if slope is not None:
                gradients[graph.outputs[k]] = slope
        yield from self.backward(gradients)
        dx = tuple([gradients.get(value) for value in graph.inputs])
        given = self.collected if self._gradients is None else self._gradients
        return StepResult(tuple(totals), predictions, given, dx, updates)

    def _loss(self, k: int, loss: Loss, prediction: Any, target: Any, weights: Any) -> tuple[float, Any]:
        """The weighted sum of the losses of the rows, and its gradient."""
        ctx, asnumpy = self._losses[k], self.backend.asnumpy
        ctx.saved = ()
        try:
            each = loss.forward(ctx, prediction, target)
            slope = loss.backward(ctx, weights) if self._smooth[k] else None
        except Exception as error:
            given = f"prediction {described(prediction)} and target {described(target)}"
            raise LayerError(f"{loss!r} failed on {given}: {type(error).__name__}: {error}") from error
        ctx.saved = ()
        if getattr(each, "shape", None) != (prediction.shape[0],):
            raise LayerError(f"{loss!r}.forward must return one value per row, got {described(each)}")
        if slope is not None and (getattr(slope, "shape", None) != prediction.shape or slope.dtype != self._dtype):
            raise LayerError(
                f"{loss!r}.backward: expected the gradient of the prediction, {described(prediction)}, got "
                f"{described(slope)}"
            )
        return float(np.dot(asnumpy(each).astype("float64"), asnumpy(weights))), slope

    def _check(self, operation: Operation, array: Any, value: int, shape: tuple[int | None, ...], dtype: Any) -> None:
        """Refuse an output that is not what ``build`` said."""
        own, spec = getattr(array, "shape", None), self.graph.specs[value]
        sizes = zip(shape, own or (), strict=False)
        fits = own is not None and len(own) == len(shape) and all(want in (None, have) for want, have in sizes)
        if fits and array.dtype == dtype:
            return
        widened = hasattr(array, "dtype") and spec.dtype == "float32" and "float64" in str(array.dtype)
        hint = "; write scalars as Python floats" if widened else ""
        raise LayerError(
            f"{operation.label}.forward_pass: build said {spec} for {self.rows} rows, it returned "
            f"{described(array)}{hint}"
        )


def _drive(operation: Operation, method: str, running: Any, training: bool) -> Generator[Request, Any, Any]:
    """Relay what a layer's method yields, until it returns."""
    where = f"{operation.label}.{method}"
    total: Any = None
    try:
        while True:
            try:
                partial = running.send(total)
            except StopIteration as stop:
                return stop.value
            if not isinstance(partial, tuple):
                raise LayerError(f"{where} yielded {type(partial).__name__}; expected a tuple of arrays or sizes")
            if odd := [part for part in partial if part is None or isinstance(part, str | list | tuple | Mapping)]:
                raise LayerError(f"{where} yielded a tuple with {odd[0]!r}; expected arrays or sizes")
            total = yield Request(operation, method, partial, training)
    finally:
        running.close()


def _failed(
    operation: Operation, method: str, ctx: Context, args: Iterable[Any], error: Exception, advice: str
) -> LayerError:
    """An error that says in which layer another one arose, and what it was called with."""
    hint = advice
    if "read-only" in str(error):
        hint = (
            "; inputs, parameters and state are never written to: make new arrays, and hand over new values of state "
            "by ctx.update(...)"
        )
    elif method == "backward_pass" and not ctx.saved and isinstance(error, ValueError | IndexError | TypeError):
        hint = "; ctx.saved is empty, since forward_pass saved nothing: ctx.save(...) is missing there"
    where = f"{operation.label}.{method} failed on {' and '.join(map(described, args))}, rows {ctx.rows}"
    return LayerError(f"{where}: {type(error).__name__}: {error}{hint}")
