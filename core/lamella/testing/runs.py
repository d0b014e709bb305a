"""Runs of a model by the engine. This is the only file of the kit that knows how the engine is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import numpy as np

from lamella.backends import Backend, get_backend
from lamella.context import Context
from lamella.engine import (
    Batch,
    Gradients,
    Plan,
    Record,
    Request,
    StepResult,
    backward,
    collect_updates,
    cut,
    forward,
    infer,
    run_step,
)
from lamella.losses import Loss
from lamella.model import Model

__all__ = [
    "SavedArrayChange",
    "StepResult",
    "change_of_saved_array",
    "installed_backends",
    "is_coupled",
    "is_coupled_forward_only",
    "outputs_of",
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
    given = [np.copy(x) if model.backend == "numpy" else device.asarray(x) for x in inputs]
    return tuple(map(device.asnumpy, infer(model.program, device.xp, model.arrays(), given)))


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
    observe: Callable[[Any, tuple[Any, ...]], None] | None = None,
) -> StepResult:
    """What one step gives, as NumPy: in slices of the given sizes, or whole.

    On NumPy the layer gets the very arrays that are given. ``backwards`` runs the slices in the opposite order;
    ``frozen`` freezes every layer; ``observe(operation, arrays)`` is called after each pass of each operation.
    """
    device, program = model.device, model.program
    bring: Any = (lambda a: a) if model.backend == "numpy" else device.asarray
    smooth = [spec.is_float for spec in model.output_specs]  # an output of integers has no gradient, so no loss
    weights = device.asarray(np.ones(len(inputs[0]), model.dtype))
    batch = Batch(
        tuple(map(bring, inputs)),
        tuple(bring(c) if yes else None for c, yes in zip(cotangents, smooth, strict=True)),
        tuple(weights if yes else None for yes in smooth),
        0,
    )
    every = frozenset(leaf.owner for leaf in program.leaves)
    plan = Plan(program, every if frozen else model.frozen_layers, wants_dx=wants_dx, training=training)
    slices = cut(batch, sizes or [len(inputs[0])])
    place: Any = slice(None)
    if backwards:
        slices.reverse()
        place = np.argsort(np.concatenate([part.offset + np.arange(len(part.inputs[0])) for part in slices]))
    losses = [_Projection() if yes else None for yes in smooth]
    buffer = Gradients(model.storage.empty_like())
    how: dict[str, Any] = {"seed": seed, "step": STEP, "observe": observe}
    result = run_step(plan, device, model.arrays(), slices, losses, [buffer], **how)
    return result._replace(
        predictions=tuple(_apart(model, device.asnumpy(y)[place]) for y in result.predictions),
        gradients={name: device.asnumpy(value) for name, value in result.gradients.items()},
        dx=tuple(None if dx is None else device.asnumpy(dx)[place] for dx in result.dx),
        updates={name: device.asnumpy(value) for name, value in result.updates.items()},
    )


def _apart(model: Model, output: Array) -> Array:
    """An output that stays what it is when parameters get other values: it may be a view of one."""
    shared = any(np.may_share_memory(output, value) for value in model.arrays().values())
    return np.copy(output) if shared else output


def start(
    model: Model, inputs: Arrays, cotangents: Arrays, *, seed: int, wants_dx: tuple[bool, ...], training: bool
) -> tuple[tuple[Array, ...], Callable[[], StepResult]]:
    """Run the forward pass only: the outputs, and what runs the backward pass, whatever is called in between."""
    program, xp = model.program, model.device.xp
    plan = Plan(program, model.frozen_layers, wants_dx=wants_dx, training=training)
    tape: dict[str, Record] = {}
    key = (seed, 0, STEP)
    outputs = _alone(forward(plan, xp, model.arrays(), inputs, key=key, tape=tape))
    updates = collect_updates(plan, tape)
    known = zip(program.outputs, model.output_specs, cotangents, strict=True)

    def finish() -> StepResult:
        gradients = {value: c for value, spec, c in known if spec.is_float}
        given: dict[str, Any] = {}
        _alone(backward(plan, xp, gradients, tape, given.__setitem__))
        return StepResult((), outputs, given, tuple(map(gradients.get, program.inputs)), updates)

    return outputs, finish


def _alone(coroutine: Generator[Request, Any, T]) -> T:
    """Run a pass over a batch of one slice, whose sums are those of the whole batch."""
    total: Any = None
    with np.errstate(all="ignore"):
        while True:
            try:
                total = coroutine.send(total).partial
            except StopIteration as stop:
                result: T = stop.value
                return result


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
    labels = {leaf.label for leaf in model.program.leaves}
    kept: list[tuple[str, int, Array, Array]] = []
    changes: list[SavedArrayChange] = []
    went_forward: set[str] = set()
    plain = Context.save

    def save(ctx: Context, *arrays: Any) -> None:
        plain(ctx, *arrays)
        if ctx.saved and ctx._owner in labels:  # losses save too
            of_numpy = [(k, a) for k, a in enumerate(arrays) if isinstance(a, np.ndarray)]
            kept.extend((ctx._owner, k, a, a.copy()) for k, a in of_numpy)

    def observe(leaf: Any, _: tuple[Any, ...]) -> None:
        method = "backward_pass" if leaf.label in went_forward else "forward_pass"
        went_forward.add(leaf.label)
        for saver, place, array, copy in kept:
            if not changes and array.tobytes() != copy.tobytes():
                changes.append(SavedArrayChange(saver, place, method, leaf.label, array.copy(), copy))

    with mock.patch.object(Context, "save", save):
        take_step(model, inputs, cotangents, observe=observe, **how)
    return changes[0] if changes else None


def is_coupled(model: Model) -> bool:
    """Whether some operation asks for sums over the whole batch."""
    return any(leaf.forward_yields or leaf.backward_yields for leaf in model.program.leaves)


def is_coupled_forward_only(model: Model) -> bool:
    """Whether some operation asks for sums over the batch in its forward pass, and not in its backward pass."""
    return any(leaf.forward_yields and not leaf.backward_yields for leaf in model.program.leaves)


@functools.cache
def installed_backends() -> dict[str, Backend]:
    """The backends that work here, by name."""
    found = {}
    for name in ("numpy", "strict", "cupy"):
        try:
            backend = get_backend(name)
            backend.asnumpy(backend.asarray(np.zeros(1)))
        except Exception:  # not installed; or installed without a device, for which each library has its own error
            continue
        found[name] = backend
    return found
