"""A whole training step as one graph: forward, loss, backward, optimizer, statistics and randomness.

The engine's own code runs on traced arrays: `Pass.step`, the rules of training, and the optimizer's ``update``. What a
step changes is an input of the graph and, under the same name with ``.new``, an output: parameters, the optimizer's
slots, the state of layers, and two counters. What it does not change, such as the arrays of frozen layers, is constant.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx

from lamella.engine.passes import Batch, Pass
from lamella.engine.rounds import run_alone
from lamella.errors import LayerError
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.network import Network
from lamella.optimizers import SGD, Optimizer
from lamella.optimizers.optimizer import Rule, rules_of
from lamella.protocol.spec import ArraySpec
from lamella.training.rules import Rules
from lamella.training.step import checked_update
from lamella_onnx.models import Naming, Stored, TracerBackend, whole_batch
from lamella_onnx.runtime import DEFAULT_OPSET
from lamella_onnx.tracer import Graph, Traced, TraceError, new_graph, write
from lamella_onnx.training.folding import fold_updates
from lamella_onnx.training.manifest import Entry

__all__ = [
    "FINITE",
    "LEARNING_RATE",
    "LOSS",
    "PENALTY",
    "SEED",
    "STEP",
    "StepTrace",
    "T",
    "axes_of",
    "feeds_of",
    "moving_state",
    "shows_gradients",
    "trace_training",
]

# with a dot, unlike any input of a model
SEED, STEP, T = "training.seed", "training.step", "training.t"
LEARNING_RATE = "training.learning_rate"
LOSS, PENALTY, FINITE = "training.loss", "training.penalty", "training.finite"


@dataclasses.dataclass(frozen=True)
class StepTrace:
    """A traced training step.

    Attributes:
        graph: its graph.
        inputs, outputs: what they are for, in the order of the graph.
        values: the outputs by name.
    """

    graph: Graph
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]
    values: Mapping[str, Traced]

    def proto(self, *, without: Collection[str] = ()) -> onnx.ModelProto:
        """Return the graph as ONNX, without some outputs and what only they need."""
        kept = {name: value for name, value in self.values.items() if name not in without}
        return write(self.graph, kept, name="training step")


def trace_training(
    model: Network,
    losses: Sequence[Loss | None],
    optimizer: Optimizer,
    rules: Rules,
    targets: Sequence[ArraySpec | None],
    *,
    missed: Mapping[str, int] | None = None,
    opset: int = DEFAULT_OPSET,
    stable: bool = False,
    inspected: bool = False,
    as_stored: bool = False,
) -> StepTrace:
    """Run one training step of a model and write it down.

    Arguments:
        model: the model; what is frozen in it is constant in the graph.
        losses: of each output; None where an output is not trained on.
        optimizer: whose rule moves the parameters.
        rules: penalties, clips and constraints.
        targets: shape and dtype of the target of each output that has a loss.
        missed: in how many steps of the optimizer some parameters took no part.
        opset: the operator set to write.
        stable: write primitives out where the operator that stands for them rounds worse.
        inspected: also give gradients, as ``<parameter>.gradient``, and what layers drew, as ``training.drawn.<k>``.
        as_stored: all arrays are inputs, of frozen layers too, and arrays come and go with their axes in the order that
            they have in memory.

    Raises:
        TraceError: a layer, the loss, a rule or the optimizer does something that can't be written down; says which.
        LayerError: one of them gives arrays of another shape or dtype.
    """
    graph = new_graph(opset, stable=stable)
    entries: list[Entry] = []

    def given(name: str, role: str, shape: Sequence[int | str], dtype: str, of: str | None = None) -> Traced:
        entries.append(Entry(name, role, tuple(shape), dtype, of))
        return graph.input(name, shape, dtype)

    inputs = [
        given(name, "input", spec.shape, spec.dtype)
        for name, spec in zip(model.input_names, model.input_specs, strict=True)
    ]
    rows, dtype = inputs[0].shape[0], model.dtype
    wanted = [k for k, loss in enumerate(losses) if loss is not None]
    names = model.output_names
    of_targets: list[Any] = [None] * len(losses)
    weights: list[Any] = [None] * len(losses)
    for k in wanted:
        spec = targets[k]
        assert spec is not None
        of_targets[k] = given(f"{names[k]}.target", "target", spec.shape, spec.dtype, names[k])
    for k in wanted:
        weights[k] = given(f"{names[k]}.weight", "sample_weight", ("N",), dtype, names[k])
    rate = given(LEARNING_RATE, "learning_rate", (), dtype)
    seed, step, t = given(SEED, "seed", (2,), "int64"), given(STEP, "step", (), "int64"), given(T, "t", (), "int64")

    plan = Plan(model.graph, model.frozen_layers, wants_dx=False, training=True)
    updated = moving_state(model)
    moving = {*plan.parameters, *updated}
    stored = Stored(graph.xp, model.graph.arrays if as_stored else {})
    raw: dict[str, Any] = {}  # as they come
    arrays: dict[str, Any] = {}  # as layers see them
    for kind, mapping in (("parameter", model.parameters), ("state", model.state)):
        for name, array in mapping.items():
            if name in moving or as_stored:
                raw[name] = given(name, kind, stored.shape(name, array.shape), dtype)
                arrays[name] = stored.seen(name, raw[name])
            else:
                arrays[name] = graph.initializer(name, array)
    learned = [name for name in model.parameters if name in plan.parameters]
    slots = {
        name: {slot: given(f"{name}.{slot}", "slot", raw[name].shape, dtype, name) for slot in optimizer.slots}
        for name in learned
    }

    xp, watcher = graph.xp, Naming(graph, model)
    one = Pass(plan, TracerBackend(graph), rows, arrays, recording=True, watcher=watcher)
    key = tuple(xp.astype(word, xp.uint32) for word in (seed[0], seed[1], step))
    with _in_loss(), watcher.errors():
        every = zip(losses, of_targets, weights, strict=True)
        shares = [None if own is None else _shares(xp, loss, target, own) for loss, target, own in every]
        batch = Batch(tuple(inputs), tuple(of_targets), tuple(shares))
        result = run_alone(one.step(batch, losses, key), whole_batch)
    gradients = {name: result.gradients[name] for name in learned}
    with _saying("penalties, clipping"):
        shaped = rules.shaped(xp, arrays, gradients)
    outputs: dict[str, tuple[Entry, Traced]] = {}

    def gives(name: str, role: str, value: Any, of: str | None = None) -> None:
        if name in graph.inputs:
            raise TraceError(f"an input and an output of the graph would be called {name!r}; rename the layer or slot")
        value = xp.asarray(value)
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        outputs[name] = Entry(name, role, shape, value.dtype.name, of), value

    total: Any = 0.0
    for k in wanted:
        total = total + result.losses[k]
    with _saying("penalties"):
        penalty = rules.penalty_of(xp, arrays)
    whole = total if penalty is None else total + penalty
    gives(LOSS, "loss", whole)
    for k in wanted:
        gives(f"{names[k]}.loss", "loss", result.losses[k], names[k])
    if penalty is not None:
        gives(PENALTY, "penalty", penalty)
    for name, prediction in zip(names, result.predictions, strict=True):
        gives(name, "prediction", prediction)
    new: dict[str, Any] = {}
    of_names = rules_of(optimizer, model.parameters)
    for name in learned:
        own_t = t + 1 - (missed or {}).get(name, 0)
        own = raw[name], stored.kept(name, shaped[name]), dict(slots[name])
        rule, factor = of_names.get(name, Rule(optimizer))
        with _saying(f"{rule!r}.update"):
            moved = rule.update(xp, *own, rate if factor == 1.0 else rate * factor, own_t)
        new[name], after = checked_update(rule, raw[name], slots[name], moved)
        new |= {f"{name}.{slot}": array for slot, array in after.items()}
    with _saying("constraints"):
        bounded = rules.bounded(xp, {name: stored.seen(name, new[name]) for name in rules.bounds(learned)})
    for name, array in bounded.items():
        new[name] = stored.kept(name, array)
    for name in updated:
        new[name] = stored.kept(name, result.updates[name]) if name in result.updates else raw[name]
    changed = [new[name] for name in (*learned, *updated)]
    looked_at = [] if shows_gradients(optimizer, rules) else list(gradients.values())
    finite = _are_finite(xp, [whole, *looked_at, *changed])
    gives(FINITE, "finite", xp.astype(finite, xp.uint8))
    new[STEP] = step + 1
    new[T] = t + 1
    for entry in entries:
        if entry.name in new:
            gives(f"{entry.name}.new", "new", new[entry.name], entry.name)
    if inspected:
        for name, gradient in gradients.items():
            gives(f"{name}.gradient", "gradient", gradient, name)
        for k, values in enumerate(watcher.drawn):
            gives(f"training.drawn.{k}", "drawn", values)
    results = {name: value for name, (_, value) in outputs.items()}
    if not inspected:
        fold_updates(graph, map(graph.name_of, results.values()))
    return StepTrace(graph, tuple(entries), tuple(entry for entry, _ in outputs.values()), results)


@contextlib.contextmanager
def _saying(who: str) -> Iterator[None]:
    """Say whose code can't be traced."""
    try:
        yield
    except TraceError as error:
        raise TraceError(f"{who}: {error}") from error
    except Exception as error:  # code of plugins, on arrays without values
        raise TraceError(f"{who} can't be traced: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _in_loss() -> Iterator[None]:
    """Tell a loss that can't be traced, of which the engine only says that it failed, from one that is wrong."""
    try:
        yield
    except LayerError as error:
        if isinstance(error.__cause__, TraceError):
            raise TraceError(str(error).replace("TraceError: ", "", 1)) from error
        raise


def feeds_of(model: Network, inputs: Sequence[Any], targets: Sequence[Any], weights: Sequence[Any]) -> dict[str, Any]:
    """Return a batch by the names that it has in the graph; outputs that are not trained on have None as targets."""
    feeds = dict(zip(model.input_names, inputs, strict=True))
    for name, target, own in zip(model.output_names, targets, weights, strict=True):
        if target is not None:
            feeds[f"{name}.target"], feeds[f"{name}.weight"] = target, own
    return feeds


def shows_gradients(optimizer: Optimizer, rules: Rules) -> bool:
    """Return whether a gradient that is not finite makes its parameter so, and need not be looked at itself."""
    return type(optimizer).update is SGD.update and not rules.clips and not rules.constraints


def moving_state(model: Network) -> list[str]:
    """Return the names of the state that a step changes: that of layers that are not frozen."""
    own = (operation for operation in model.graph.operations if operation.prefix not in model.frozen_layers)
    return list(dict.fromkeys(full for operation in own for full in operation.state.values()))


def _shares(xp: Any, loss: Any, target: Any, weights: Any) -> Any:
    """Each row's weight over that of all that counts; all are 0 where the sum is."""
    counted = loss.counted(xp, target, weights.dtype)
    total = xp.sum(weights if counted is None else weights * counted)
    return weights / xp.where(total == 0.0, xp.ones_like(total), total)


def _are_finite(xp: Any, arrays: Sequence[Any]) -> Any:
    """Whether no array has a NaN or an infinity: the sum of absolute values tells, unless it overflows."""
    sizes = [xp.node("ReduceL1", array, shape=(), dtype=array.dtype, keepdims=0) for array in arrays]
    return xp.isfinite(sum(sizes[1:], sizes[0]))


def axes_of(spec: ArraySpec, shape: tuple[int, ...]) -> tuple[int | str, ...]:
    """Return the shape of a target, whose axes have the names of the prediction's where these have any size."""
    names = (*spec.shape[1:], *shape)  # of as many axes as the target has, at least
    return ("N", *(name if isinstance(name, str) else n for name, n in zip(names, shape[1:], strict=False)))
