"""Runs of a model by the engine. This is the only file of the kit that knows how the engine is called."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import numpy as np

from lamella.backends import BACKENDS, Backend, get_backend
from lamella.engine.gradients import Gradients
from lamella.engine.passes import Batch, Pass, Request, StepResult, Watcher
from lamella.engine.rounds import Slices, run_alone
from lamella.engine.values import Values
from lamella.graph.operations import Operation
from lamella.graph.plan import Plan
from lamella.graph.slicing import consecutive
from lamella.losses import Loss
from lamella.model import Model
from lamella.protocol.context import Context

__all__ = [
    "SavedArrayChange",
    "StepResult",
    "change_of_saved_array",
    "installed_backends",
    "is_coupled",
    "is_coupled_forward_only",
    "outputs_of",
    "saving",
    "start",
    "take_step",
]

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Arrays = Sequence[Any]
STEP = 3  # the step that random values follow from


class _Projection(Loss):
    """The sum of prediction times target: its gradient is the target itself, which is what the layer gets as dy."""

    def forward(self, ctx: Any, prediction: Any, target: Any) -> Any:
        ctx.save(target)
        if target.ndim == 1:
            return prediction * target
        return ctx.xp.sum(prediction * target, axis=tuple(range(1, target.ndim)))

    def backward(self, ctx: Any, d: Any) -> Any:
        return ctx.saved[0]


def outputs_of(model: Model, inputs: Arrays) -> tuple[Array, ...]:
    """The outputs in inference mode, as NumPy. The layer gets copies."""
    device = model.device
    given = [np.copy(x) if device.has_numpy_arrays else device.asarray(x) for x in inputs]
    every = frozenset(operation.prefix for operation in model.graph.operations)
    plan = Plan(model.graph, every, wants_dx=False, training=False)
    outputs = Slices(plan, device, [slice(0, len(inputs[0]))]).infer(model.values, given)
    return tuple(map(device.asnumpy, outputs))


def take_step(
    model: Model,
    inputs: Arrays,
    cotangents: Arrays,
    *,
    seed: int,
    wants_dx: tuple[bool, ...],
    sizes: Sequence[int] = (),
    backwards: bool = False,
    training: bool = True,
    frozen: bool = False,
    watcher: Watcher | None = None,
) -> StepResult:
    """What one step gives, as NumPy: in slices of the given sizes, or whole.

    On NumPy the layer gets the very arrays that are given. ``backwards`` runs the slices in the opposite order;
    ``frozen`` freezes every layer; ``watcher`` sees every operation.
    """
    device, graph = model.device, model.graph
    bring: Any = (lambda a: a) if device.has_numpy_arrays else device.asarray
    smooth = [spec.is_float for spec in model.output_specs]  # an output of integers has no gradient, so no loss
    weights = device.asarray(np.ones(len(inputs[0]), model.dtype))
    batch = Batch(
        tuple(map(bring, inputs)),
        tuple(bring(c) if yes else None for c, yes in zip(cotangents, smooth, strict=True)),
        tuple(weights if yes else None for yes in smooth),
    )
    every = frozenset(operation.prefix for operation in graph.operations)
    plan = Plan(graph, every if frozen else model.frozen_layers, wants_dx=wants_dx, training=training)
    losses = [_Projection() if yes else None for yes in smooth]
    buffers = [Gradients(model.values.parameters.empty_like(), plan.parameters)]
    rows = consecutive(sizes or [len(inputs[0])])
    place: Any = slice(None)  # views, in the order of the batch
    if backwards:
        rows.reverse()
        place = np.argsort(np.concatenate([np.arange(some.start, some.stop) for some in rows]))
    slices = Slices(plan, device, rows, buffers=buffers, watcher=watcher)
    values = Values(model.values.parameters, model.values.state, step=STEP)
    with slices.blas, np.errstate(all="ignore"):
        result = slices.step(values, batch, losses, seed)
    return result._replace(
        predictions=tuple(_apart(model, device.asnumpy(y)[place]) for y in result.predictions),
        gradients={name: device.asnumpy(value) for name, value in result.gradients.items()},
        dx=tuple(None if dx is None else device.asnumpy(dx)[place] for dx in result.dx),
        updates={name: device.asnumpy(value) for name, value in result.updates.items()},
    )


def _apart(model: Model, output: Array) -> Array:
    """An output that stays what it is when parameters get other values: it may be a view of one."""
    shared = any(np.may_share_memory(output, value) for value in model.values.arrays().values())
    return np.copy(output) if shared else output


@contextlib.contextmanager
def saving(change: Callable[[Array], Array]) -> Iterator[None]:
    """While this runs on NumPy, ``ctx.save`` keeps ``change(array)`` in place of each array of floats."""
    plain = Context.save

    def save(ctx: Context, *arrays: Any) -> None:
        plain(ctx, *(change(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arrays))

    with mock.patch.object(Context, "save", save):
        yield


def start(
    model: Model, inputs: Arrays, cotangents: Arrays, *, seed: int, wants_dx: tuple[bool, ...], training: bool
) -> tuple[tuple[Array, ...], Callable[[], StepResult]]:
    """Run the forward pass only: the outputs, and what runs the backward pass, whatever is called in between."""
    graph = model.graph
    plan = Plan(graph, model.frozen_layers, wants_dx=wants_dx, training=training)
    one = Pass(plan, model.device, len(inputs[0]), model.values.arrays(), recording=True)
    outputs = _alone(one.forward(inputs, (seed, 0, STEP)))
    updates = one.updates()
    known = zip(graph.outputs, model.output_specs, cotangents, strict=True)

    def finish() -> StepResult:
        gradients = {value: c for value, spec, c in known if spec.is_float}
        _alone(one.backward(gradients))
        return StepResult((), outputs, one.collected, tuple(map(gradients.get, graph.inputs)), updates)

    return outputs, finish


def _alone(coroutine: Generator[Request, Any, T]) -> T:
    """Run a pass over a batch of one slice, whose sums are those of the whole batch."""
    with np.errstate(all="ignore"):
        return run_alone(coroutine, lambda request: request.partial)


class SavedArrayChange(NamedTuple):
    """An array that was changed after an operation had given it to ``ctx.save``.

    Attributes:
        saver: the operation that saved it.
        place: which argument of ``ctx.save`` it was.
        method: the method that had changed it when it ended, ``"forward_pass"`` or ``"backward_pass"``.
        by: the operation whose method that was.
        found: the array as it is.
        saved: the array as it was.
    """

    saver: str
    place: int
    method: str
    by: str
    found: Array
    saved: Array


def change_of_saved_array(model: Model, inputs: Arrays, cotangents: Arrays, **how: Any) -> SavedArrayChange | None:
    """The first array that a step on NumPy changes after ``ctx.save``; ``how`` is that of `take_step`."""
    labels = {operation.label for operation in model.graph.operations}
    kept: list[tuple[str, int, Array, Array]] = []
    changes: list[SavedArrayChange] = []
    plain = Context.save

    def save(ctx: Context, *arrays: Any) -> None:
        plain(ctx, *arrays)
        if ctx.saved and ctx.label in labels:  # losses save too
            of_numpy = [(k, a) for k, a in enumerate(arrays) if isinstance(a, np.ndarray)]
            kept.extend((ctx.label, k, a, a.copy()) for k, a in of_numpy)

    class Comparing(Watcher):
        def after(self, operation: Operation, method: str, arrays: tuple[Any, ...]) -> None:
            for saver, place, array, copy in kept:
                if not changes and array.tobytes() != copy.tobytes():
                    changes.append(SavedArrayChange(saver, place, method, operation.label, array.copy(), copy))

    with mock.patch.object(Context, "save", save):
        take_step(model, inputs, cotangents, watcher=Comparing(), **how)
    return changes[0] if changes else None


def is_coupled(model: Model) -> bool:
    """Whether some operation asks for sums over the whole batch."""
    return any(one.forward_yields or one.backward_yields for one in model.graph.operations)


def is_coupled_forward_only(model: Model) -> bool:
    """Whether some operation asks for sums over the batch in its forward pass, and not in its backward pass."""
    return any(one.forward_yields and not one.backward_yields for one in model.graph.operations)


@functools.cache
def installed_backends() -> dict[str, Backend]:
    """The backends that work here and on which layers are called, by name."""
    found = {}
    for entry in BACKENDS.entries():
        name = entry.name if entry.plugin.is_own else entry.qualified
        try:
            backend = get_backend(name)
            backend.asnumpy(backend.asarray(np.zeros(1)))
        except Exception:  # not installed; or installed without a device, for which each library has its own error
            continue
        if not backend.runs_graphs:
            found[name] = backend
    return found
