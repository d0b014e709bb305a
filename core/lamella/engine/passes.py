"""One slice of a batch through the operations of a graph, forward and backward.

A pass is prepared once, for a number of rows, and run as often as wanted. It is the one place that calls layers: in
training, in prediction, under the exporter's tracer and in the checks of layers. A pass is a coroutine: it yields where
a layer asks for a sum over the whole batch, and is sent the sum.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lamella.backends import Backend
from lamella.engine.gradients import Gradients
from lamella.errors import LayerError, counted, place_of
from lamella.graph.operations import Operation
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.protocol.context import Arrays, Context, Phase
from lamella.protocol.layer import LAYERS
from lamella.protocol.spec import described

__all__ = ["Batch", "Pass", "Request", "StepResult", "Watcher"]


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

    def drew(self, values: Any) -> None:
        """After the operation that is running drew random values."""


class _Output(NamedTuple):
    """One output of an operation, and the shape and dtype that ``build`` said; None stands for any size."""

    place: int  # among the outputs of the operation
    value: int
    shape: tuple[int | None, ...]
    dtype: Any


class _Forward(NamedTuple):
    """What the forward pass of one operation needs."""

    operation: Operation
    ctx: Context
    call: Callable[..., Any]
    yields: bool
    input: int  # the first of the inputs
    others: tuple[int, ...]
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
    output: int  # the first of the outputs
    others: tuple[int, ...]
    wanted: list[tuple[int, int]]  # the place and the number of each input whose gradient is wanted
    params: list[_Parameter]  # of which it has to give the gradients


class Pass:
    """A pass over a slice of some rows, prepared for one plan and backend. It runs one batch at a time.

    Arguments:
        plan: what the pass has to give.
        backend: where it runs.
        rows: how many rows the slice has.
        arrays: parameters and state by full name, as layers see them.
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
        arrays: Mapping[str, Any],
        *,
        offset: int = 0,
        recording: bool = False,
        gradients: Gradients | None = None,
        first: bool = True,
        watcher: Watcher | None = None,
    ) -> None:
        graph = self.graph = plan.graph
        self.plan, self.backend, self.rows, self.offset = plan, backend, rows, offset
        self.watcher = watcher
        self.collected: dict[str, Any] = {}
        self._gradients = gradients
        self._dtype = backend.dtype(graph.dtype)
        self._phase = Phase(None if watcher is None else watcher.drew)
        self._shapes: dict[int, Any] = {}  # of values
        self._forward: list[_Forward] = []
        self._backward: list[_Backward] = []
        for k, operation in enumerate(graph.operations):
            ctx = Context(
                label=operation.label,
                xp=backend.xp,
                dtype=getattr(backend.xp, graph.dtype),
                training=plan.training,
                recording=recording and plan.runs_backward[k],
                trainable=operation.prefix not in plan.frozen,
                wants_dx=plan.wants_dx[k],
                rows=rows,
                offset=offset,
                phase=self._phase,
                crc=zlib.crc32(operation.name.encode()),
            )
            layer, (value, *others) = operation.layer, operation.inputs
            outputs = [self._output(place, number) for place, number in enumerate(operation.outputs)]
            how = operation, ctx, layer.forward_pass, operation.forward_yields
            self._forward.append(_Forward(*how, value, tuple(others), outputs, plan.dies_after[k]))
            if plan.runs_backward[k]:
                value, *others = operation.outputs
                wanted = [(place, number) for place, number in enumerate(operation.inputs) if ctx.wants_dx[place]]
                how = operation, ctx, layer.backward_pass, operation.backward_yields
                self._backward.append(_Backward(*how, value, tuple(others), wanted, []))
        self._backward.reverse()
        written: set[str] = set()
        for this in self._backward:
            if this.ctx.trainable:
                this.params.extend(self._parameters(this.operation, first, written))
            places = {one.local: None if one.adds or not backend.writes_in_place else one.part for one in this.params}
            this.ctx.out = Arrays(this.operation.label, dict.fromkeys(this.operation.params) | places)
        self._stateful = [this for this in self._forward if this.operation.state]
        self._smooth = [graph.specs[value].is_float for value in graph.outputs]
        self._losses = [self._loss_context(name) for name in graph.output_names] if recording else []
        self.bind(arrays)

    def bind(self, arrays: Mapping[str, Any]) -> None:
        """Let the layers see other arrays."""
        for this in self._forward:
            operation, ctx = this.operation, this.ctx
            ctx.params = Arrays(ctx.label, {local: arrays[full] for local, full in operation.params.items()})
            ctx.state = Arrays(ctx.label, {local: arrays[full] for local, full in operation.state.items()})

    def _parameters(self, operation: Operation, first: bool, written: set[str]) -> Iterator[_Parameter]:
        for local, full in operation.params.items():
            part = None if self._gradients is None else self._gradients.storage.part(full)
            yield _Parameter(local, full, part, not first or full in written)  # an earlier operation shares the layer
            written.add(full)

    def _output(self, place: int, value: int) -> _Output:
        spec = self.graph.specs[value]
        shape = (self.rows, *(n if isinstance(n, int) else None for n in spec.shape[1:]))
        self._shapes[value] = shape  # where a size is not known, the pass notes it
        return _Output(place, value, shape, self.backend.dtype(spec.dtype))

    def _loss_context(self, output: str) -> Context:
        return Context(
            label=f"the loss of {output!r}",
            xp=self.backend.xp,
            dtype=getattr(self.backend.xp, self.graph.dtype),
            training=True,
            recording=True,
            trainable=False,
            wants_dx=(True, False),
            rows=self.rows,
            offset=self.offset,
            phase=self._phase,
            crc=0,
        )

    def forward(self, inputs: Sequence[Any], key: tuple[Any, ...] = ()) -> Generator[Request, Any, tuple[Any, ...]]:
        """Run every operation forward and return the outputs of the graph.

        Arguments:
            inputs: of the graph.
            key: low and high word of the seed, and the step, from which random numbers follow.
        """
        graph, shapes, watcher, phase = self.graph, self._shapes, self.watcher, self._phase
        checked = self.backend.knows_shapes
        phase.key, phase.run, phase.is_forward = key, phase.run + 1, True
        values: list[Any] = [None] * len(graph.specs)
        for number, array in zip(graph.inputs, inputs, strict=True):
            values[number], shapes[number] = array, array.shape
        operation: Any = None
        ctx: Any = None
        try:
            for operation, ctx, call, yields, number, others, outputs, dies in self._forward:
                if watcher is not None:
                    watcher.before(operation, "forward_pass")
                if others:
                    given = call(ctx, values[number], *[values[other] for other in others])
                else:
                    given = call(ctx, values[number])
                if yields:
                    given = yield from _drive(operation, "forward_pass", given, self.plan.training)
                results = given if isinstance(given, tuple) else (given,)
                if len(results) != len(outputs):
                    raise LayerError(
                        f"{operation.label}.forward_pass returned {counted(len(results), 'array')}; build said "
                        f"{len(outputs)}"
                    )
                for output in outputs:
                    place, value, shape, dtype = output
                    array = results[place]
                    try:
                        fits = array.shape == shape and array.dtype is dtype and array.flags.c_contiguous
                    except AttributeError:  # it is no array, or one of another backend
                        fits = False
                    if not fits:
                        array = self._accepted(operation, array, output) if checked else array
                        shapes[value] = getattr(array, "shape", None)
                    values[value] = array
                if watcher is not None:
                    watcher.after(operation, "forward_pass", tuple([values[output.value] for output in outputs]))
                for value in dies:
                    values[value] = None
        except LayerError:
            raise
        except Exception as error:
            args = [values[number] for number in operation.inputs]
            raise self._failed(operation, "forward_pass", ctx, args, error) from error
        return tuple([values[number] for number in graph.outputs])

    def backward(self, gradients: dict[int, Any]) -> Generator[Request, Any, None]:
        """Run operations backward from the gradients of the outputs.

        Arguments:
            gradients: by value, what has arrived so far; at the end, what the inputs got.
        """
        shapes, dtype, watcher, in_place = self._shapes, self._dtype, self.watcher, self.backend.writes_in_place
        self.collected = {}
        self._phase.is_forward = False
        operation: Any = None
        ctx: Any = None
        args: list[Any] = []
        try:
            for operation, ctx, call, yields, number, others, wanted, params in self._backward:
                dy = gradients.pop(number) if number in gradients else self._zeros(number)
                args = [dy]
                if watcher is not None:
                    watcher.before(operation, "backward_pass")
                if others:
                    args += [gradients.pop(one) if one in gradients else self._zeros(one) for one in others]
                    given = call(ctx, *args)
                else:
                    given = call(ctx, dy)
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
                for place, value in wanted:
                    dx = results[place]
                    try:
                        fits = dx.shape == shapes[value] and dx.dtype is dtype and dx.flags.c_contiguous
                    except AttributeError:
                        fits = False
                    if not fits:
                        dx = self._accepted_gradient(operation, dx, place, value)
                    gradients[value] = self.backend.added(gradients[value], dx) if value in gradients else dx
                handed = ctx.gradients
                for local, full, part, adds in params:
                    gradient = handed.get(local)
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
                ctx.saved = ()
                if handed:
                    ctx.gradients = {}
        except LayerError:
            raise
        except Exception as error:
            raise self._failed(operation, "backward_pass", ctx, args, error) from error

    def _zeros(self, value: int) -> Any:
        """The gradient of an output that nobody uses."""
        return self.backend.xp.zeros(self._shapes[value], dtype=getattr(self.backend.xp, self.graph.dtype))

    def updates(self) -> dict[str, Any]:
        """Return the new values of state arrays by full name; frozen layers keep theirs."""
        found: dict[str, Any] = {}
        for this in self._stateful:
            if this.ctx.trainable:
                found |= {this.operation.state[local]: array for local, array in this.ctx.updates.items()}
            this.ctx.updates = {}
        return found

    def step(
        self, batch: Batch, losses: Sequence[Loss | None], key: tuple[Any, ...]
    ) -> Generator[Request, Any, StepResult]:
        """Run forward, loss and backward."""
        graph = self.graph
        predictions = yield from self.forward(batch.inputs, key)
        updates = self.updates() if self._stateful else {}
        totals: list[float] = []
        gradients: dict[int, Any] = {}
        for k, loss in enumerate(losses):
            if loss is None:
                totals.append(0.0)
                continue
            given = predictions[k], batch.targets[k], batch.weights[k]
            total, slope = _loss_and_slope(loss, self._losses[k], self.backend, *given, wants_slope=self._smooth[k])
            totals.append(total)
            if slope is not None:
                gradients[graph.outputs[k]] = slope
        yield from self.backward(gradients)
        dx = tuple([gradients.get(value) for value in graph.inputs])
        parameters = self.collected if self._gradients is None else self._gradients
        return StepResult(tuple(totals), predictions, parameters, dx, updates)

    def _accepted(self, operation: Operation, array: Any, output: _Output) -> Any:
        """An output as the next layer gets it, if it is what ``build`` said."""
        own, shape, spec = getattr(array, "shape", None), output.shape, self.graph.specs[output.value]
        sizes = zip(shape, own or (), strict=False)
        fits = own is not None and len(own) == len(shape) and all(want in (None, have) for want, have in sizes)
        if fits and array.dtype == output.dtype:
            return self.backend.settled(array)
        widened = hasattr(array, "dtype") and spec.dtype == "float32" and "float64" in str(array.dtype)
        hint = "; write scalars as Python floats" if widened else ""
        raise LayerError(
            f"{operation.label}.forward_pass: build said {spec} for {self.rows} rows, it returned "
            f"{described(array)}{hint}"
        )

    def _accepted_gradient(self, operation: Operation, dx: Any, place: int, value: int) -> Any:
        """The gradient of an input as the layer before gets it, if it is like the input."""
        shape = self._shapes[value]
        if getattr(dx, "shape", None) != shape or dx.dtype != self._dtype:
            raise LayerError(
                f"{operation.label}.backward_pass: expected the gradient of input {place}, {tuple(shape)} "
                f"{self.graph.dtype}, got {described(dx)}; ctx.wants_dx[{place}] is True"
            )
        return self.backend.settled(dx)

    def _failed(
        self, operation: Operation, method: str, ctx: Context, args: Iterable[Any], error: Exception
    ) -> LayerError:
        """An error that says in which layer another one arose, and what it was called with."""
        hint = self.backend.advice
        if "read-only" in str(error):
            hint = (
                "; inputs, parameters and state are never written to: make new arrays, and hand over new values of "
                "state by ctx.update(...)"
            )
        elif method == "backward_pass" and not ctx.saved and isinstance(error, ValueError | IndexError | TypeError):
            hint = "; ctx.saved is empty, since forward_pass saved nothing: ctx.save(...) is missing there"
        where = f"{operation.label}.{method} failed on {' and '.join(map(described, args))}, rows {ctx.rows}"
        entry = LAYERS.entry_of(type(operation.layer))
        place = "" if entry is not None and entry.plugin.is_own else place_of(error)
        return LayerError(f"{where}: {type(error).__name__}: {error}{hint}{place}")


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


def _loss_and_slope(
    loss: Loss, ctx: Context, backend: Backend, prediction: Any, target: Any, weights: Any, *, wants_slope: bool
) -> tuple[float, Any]:
    """Return the sum of the losses of some rows times their weights, and its gradient, or None where not wanted.

    Raises:
        LayerError: the loss fails, or gives arrays of another shape or dtype.
    """
    if backend.has_numpy_arrays:  # without a call of the backend, as below
        prediction = prediction.view()
        prediction.flags.writeable = False  # metrics see it too, and layers may have saved it
    else:
        prediction = backend.view(prediction)
    ctx.saved = ()
    try:
        each = loss.forward(ctx, prediction, target)
        slope = loss.backward(ctx, weights) if wants_slope else None
    except Exception as error:
        given = f"prediction {described(prediction)} and target {described(target)}"
        hint = "; make new arrays: predictions and targets are never written to" if "read-only" in str(error) else ""
        words = f"{type(error).__name__}: {error}{hint}{place_of(error)}"
        raise LayerError(f"{loss!r} failed on {given}: {words}") from error
    ctx.saved = ()
    if getattr(each, "shape", None) != weights.shape:
        raise LayerError(f"{loss!r}.forward must return one value per row, got {described(each)}")
    if slope is not None and (getattr(slope, "shape", None) != prediction.shape or slope.dtype != prediction.dtype):
        raise LayerError(
            f"{loss!r}.backward: expected the gradient of the prediction, {described(prediction)}, got "
            f"{described(slope)}"
        )
    if backend.has_numpy_arrays:
        return float(each.astype(np.float64).dot(weights)), slope
    return backend.weighted_sum(each, weights), slope
