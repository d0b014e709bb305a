"""Whether onnxruntime takes the same training steps as the engine.

Some steps are taken in onnxruntime, one after another. Each is compared with the engine in float64, which starts from
the very weights, slots and statistics that onnxruntime started from: whole trajectories would drift apart by rounding.

- The **forward and backward passes** are compared by what they give: losses, predictions, gradients, statistics, and
  what layers drew, which must be equal bit for bit.
- The **update** is compared for the gradients that onnxruntime computed itself: Adam makes a whole step of a gradient
  that is 0 but for rounding, as that of a bias before batch normalization is, and no two roundings are equal. The graph
  that is written gives no gradients; they come from another one, whose rounding may differ too. So where new values
  differ, those for the engine's own gradients in float32 count as its rounding.

An array agrees if it differs from the engine's in float64 by at most the larger of two: 1e-5 of its own largest entry
(for new values, of the largest change; for predictions, of 1 at least); and 16 times what the engine's own float32
differs by. In the passes that is the largest difference of several: for the arguments as they are, by kernels and by
the references that graphs are written from; and for arguments that move by a unit in the last place. Of a model in
float64 it is what float32 differs by, times the ratio of the two units in the last place.

A graph is first held to the rounding for the arguments as they are. Only if neither the graph with native operators nor
the one that writes them out agrees so, the other differences count: they excuse what comes of the data, such as values
far from 0 before a normalization, which the written-out graph has most digits of.

Arrays that differ are looked at again on other random batches, and refused if they differ there too: a wrong formula is
wrong on each, while rounding rarely takes a value across a kink twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from lamella import Model
from lamella.backends import Namespace, get_backend
from lamella.backends.counter import mix_keys, uniform
from lamella.backends.numpy_backend import NumPyBackend
from lamella.engine.passes import Batch, Pass, Watcher
from lamella.engine.rounds import run_alone
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.optimizers import Optimizer
from lamella.optimizers.optimizer import Rule, rules_of
from lamella.training.data import weight_that_counts
from lamella.training.rules import Rules
from lamella_onnx.models import whole_batch
from lamella_onnx.parity import TOLERANCE, Agreement
from lamella_onnx.runtime import run
from lamella_onnx.training.manifest import Entry
from lamella_onnx.training.trace import FINITE, LEARNING_RATE, LOSS, PENALTY, SEED, STEP, StepTrace, T, feeds_of

__all__ = ["Engine", "Example", "Task", "grouped", "need", "prove"]

ROUNDING = 16.0  # times what the engine's own float32 differs by
MOVES = (1.0, 0.5, 0.5)  # of arguments by a unit in the last place: the share that moves up; the others move down

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


class Example(NamedTuple):
    """A batch to take a step on: inputs, prepared targets and weights of outputs, None where there is no loss."""

    inputs: tuple[Array, ...]
    targets: tuple[Array | None, ...]
    weights: tuple[Array | None, ...]


class Task(NamedTuple):
    """What a training step does: the model, and what it is trained with."""

    model: Model
    losses: tuple[Loss | None, ...]
    optimizer: Optimizer
    rules: Rules
    missed: Mapping[str, int]


class Engine:
    """The engine in one dtype: one slice, on NumPy, with its kernels or only by the references of primitives."""

    def __init__(self, task: Task, dtype: str, *, kernels: bool = True) -> None:
        self.task, self.dtype = task, dtype
        self.model = task.model.copy(dtype=dtype, backend="numpy")
        self.plan = Plan(self.model.graph, self.model.frozen_layers, wants_dx=False, training=True)
        self.backend = get_backend("numpy") if kernels else _References()
        self.constant = {**self.model.parameters, **self.model.state}

    def cast(self, array: Array) -> Array:
        """Return an array in the dtype, if it has floats."""
        return array.astype(self.dtype) if array.dtype.kind == "f" else array

    def inputs(self, example: Example) -> list[Array]:
        """Return inputs as the model takes them."""
        return [x.astype(spec.dtype) for x, spec in zip(example.inputs, self.model.input_specs, strict=True)]

    def run(self, values: Arrays, example: Example) -> tuple[dict[str, Array], list[Array]]:
        """Return what forward and backward pass give, by the names of the graph, and what layers drew."""
        task, model = self.task, self.model
        arrays = self.constant | {name: self.cast(values[name]) for name in values if name in self.constant}
        watcher = _Drawn()
        inputs = self.inputs(example)
        one = Pass(self.plan, self.backend, len(inputs[0]), arrays, recording=True, watcher=watcher)
        targets = tuple(None if y is None else self.cast(y) for y in example.targets)
        every = zip(task.losses, targets, example.weights, strict=True)
        shares = tuple(
            None if w is None else (w / (weight_that_counts(len(w), loss, y, w) or 1.0)).astype(self.dtype)
            for loss, y, w in every
        )
        low, high = map(int, values[SEED])
        with np.errstate(all="ignore"):
            batch = Batch(tuple(inputs), targets, shares)
            result = run_alone(one.step(batch, task.losses, (low, high, int(values[STEP]))), whole_batch)
            penalty = task.rules.penalty_of(self.backend.xp, arrays)
        named = zip(model.output_names, task.losses, result.losses, result.predictions, strict=True)
        found: dict[str, Any] = {LOSS: result.loss + (0.0 if penalty is None else penalty)}
        if penalty is not None:
            found[PENALTY] = penalty
        for name, loss, value, prediction in named:
            found[name] = prediction
            if loss is not None:
                found[f"{name}.loss"] = value
        found |= {f"{name}.gradient": gradient for name, gradient in result.gradients.items()}
        found |= {f"{name}.new": value for name, value in result.updates.items()}
        return {name: np.array(value, "float64") for name, value in found.items()}, watcher.drawn

    def update(self, values: Arrays, gradients: Arrays, rate: float) -> dict[str, Array]:
        """Return what rules and optimizer make of gradients, by the names of the graph."""
        task, xp, t = self.task, self.backend.xp, int(values[T]) + 1
        parameters = self.constant | {name: self.cast(values[name]) for name in values if name in self.constant}
        with np.errstate(all="ignore"):
            shaped = task.rules.shaped(xp, parameters, {name: self.cast(g) for name, g in gradients.items()})
            new: dict[str, Any] = {}
            of_names = rules_of(task.optimizer, self.model.parameters)
            for name, g in shaped.items():
                slots = {slot: self.cast(values[f"{name}.{slot}"]) for slot in task.optimizer.slots}
                own_t = t - task.missed.get(name, 0)
                rule, factor = of_names.get(name, Rule(task.optimizer))
                new[name], after = rule.update(xp, parameters[name], g, slots, rate * factor, own_t)
                new |= {f"{name}.{slot}": value for slot, value in after.items()}
            new |= task.rules.bounded(xp, {name: new[name] for name in shaped})
        return {f"{name}.new": np.array(value, "float64") for name, value in new.items()}


class _References(NumPyBackend):
    """NumPy without kernels."""

    def __init__(self) -> None:
        self.xp = Namespace("numpy", np, kernels=("none",))


class _Drawn(Watcher):
    """Keeps what layers draw."""

    def __init__(self) -> None:
        self.drawn: list[Array] = []

    def drew(self, values: Any) -> None:
        self.drawn.append(values)


def prove(
    task: Task,
    trace: StepTrace,
    loaded: Sequence[onnxruntime.InferenceSession],
    values: Arrays,
    rate: float,
    examples: Sequence[Example],
    others: Iterator[Example],
    *,
    excused: bool,
) -> tuple[list[Agreement], Arrays]:
    """Take a step on each example, compare each with the engine, and return how arrays agree, and the last values.

    Arguments:
        task: what the step does.
        trace: the graph, with gradients and draws among its outputs.
        loaded: in onnxruntime, the graph that will be written, and the one with gradients and draws.
        values: what stands in a state file, by name.
        rate: the learning rate.
        examples: the batches of the steps.
        others: more of them, for arrays that differ.
        excused: whether the rounding of references and of arguments nearby counts.
    """
    trial = _Trial(task, trace, loaded, Engine(task, "float32"), Engine(task, "float64"), rate, excused)
    worst: dict[str, Agreement] = {}
    for number, example in enumerate(examples, start=1):
        found, after = _compared(trial, values, example, f"step {number}, batch of {len(example.inputs[0])}")
        for row in found:
            if not row.agrees:
                row = _looked_at_again(trial, row, values, others)
            known = worst.get(row.output)
            if known is None or need(row) > need(known):
                worst[row.output] = row
        values = after
    return list(worst.values()), values


class _Trial(NamedTuple):
    """What every step is compared with: the engine in float32 and in float64."""

    task: Task
    trace: StepTrace
    loaded: Sequence[onnxruntime.InferenceSession]
    own: Engine
    exact: Engine
    rate: float
    excused: bool


def need(row: Agreement) -> tuple[bool, float]:
    """Return how much of what is allowed an array needs, to sort by; those that disagree come last."""
    return not row.agrees, row.error / row.allowed if row.allowed else float(row.error > 0)


def grouped(rows: Sequence[Agreement], trace: StepTrace) -> list[Agreement]:
    """Return a row for each kind of array: that of the array that needs most, with how many there are."""
    roles = {entry.name: entry.role for entry in trace.inputs}
    kinds = {one.name: _KINDS[roles[str(one.of)] if one.role == "new" else one.role] for one in trace.outputs}
    groups: dict[str, list[Agreement]] = {}
    for row in rows:
        groups.setdefault(kinds[row.output], []).append(row)
    found = []
    for kind, group in groups.items():
        worst = max(group, key=need)
        several = f", worst of {len(group)}" if len(group) > 1 else ""
        title = f"{kind}: {worst.output}{several}"
        found.append(dataclasses.replace(worst, output=title, values=sum(row.values for row in group)))
    return found


_KINDS = {
    "loss": "losses",
    "penalty": "penalties",
    "finite": "finite or not",
    "prediction": "predictions",
    "gradient": "gradients",
    "drawn": "random numbers",
    "parameter": "new parameters",
    "slot": "new slots",
    "state": "new state",
    "step": "new counters",
    "t": "new counters",
}
"""What reports call outputs by their roles; new values by those of the inputs that take them."""


def _looked_at_again(trial: _Trial, row: Agreement, values: Arrays, others: Iterator[Example]) -> Agreement:
    """How an array that differs agrees on two other batches: the first agreement, if it agrees on both."""
    again = row
    for _ in range(2):
        found, _ = _compared(trial, values, next(others), row.data)
        again = next(other for other in found if other.output == row.output)
        if not again.agrees:
            return row
    return again


def _compared(trial: _Trial, values: Arrays, example: Example, data: str) -> tuple[list[Agreement], dict[str, Array]]:
    """Take one step, and compare every output of it; also return the values after it."""
    task, trace, loaded, own, exact, rate, excused = trial
    feeds = {**values, **feeds_of(task.model, *example), LEARNING_RATE: np.array(rate, task.model.dtype)}
    plain, inspected = (run(one, feeds) for one in loaded)
    got = inspected | plain
    e32, drawn = own.run(values, example)
    e64, _ = exact.run(values, example)
    gradients = {entry.of: got[entry.name] for entry in trace.outputs if entry.role == "gradient" and entry.of}
    new, exact_new = (engine.update(values, gradients, rate) for engine in (own, exact))

    def compared(e32s: Sequence[Arrays], news: Sequence[Arrays]) -> list[Agreement]:
        rows = []
        for entry in trace.outputs:
            value = got[entry.name]
            if entry.name == FINITE:
                known = [_all_finite([*one.values()]) for one in (e32, e64)]  # float64 holds more
                rows.append(_equal(entry, data, value, value if bool(value) in known else np.array(known[0])))
            elif entry.role == "drawn":
                rows.append(_equal(entry, data, value, np.asarray(drawn[int(entry.name.rpartition(".")[2])])))
            elif entry.of in (STEP, T):
                rows.append(_equal(entry, data, value, np.asarray(values[entry.of] + 1)))
            elif entry.name in e64:
                before = values[str(entry.of)] if entry.role == "new" else None
                rows.append(_close(entry, data, value, [one[entry.name] for one in e32s], e64[entry.name], before))
            elif entry.name in exact_new:
                others = [one[entry.name] for one in news]
                rows.append(_close(entry, data, value, others, exact_new[entry.name], values[str(entry.of)]))
            else:  # state that this step leaves alone
                rows.append(_equal(entry, data, value, values[str(entry.of)]))
        return rows

    rows = compared([e32], [new])
    if excused and not all(row.agrees for row in rows):
        e32s = [e32, *_others(own, values, example)]
        beside = ({name: one[f"{name}.gradient"] for name in gradients} for one in e32s)
        rows = compared(e32s, [new, *(exact.update(values, some, rate) for some in beside)])
    after = {**values, **{str(entry.of): got[entry.name] for entry in trace.outputs if entry.role == "new"}}
    return rows, after


def _others(own: Engine, values: Arrays, example: Example) -> Iterator[dict[str, Array]]:
    """What the engine in float32 gives by references, and for arguments that move by a unit in the last place."""
    yield Engine(own.task, own.dtype, kernels=False).run(values, example)[0]
    for key, share in enumerate(MOVES):
        inputs = _moved(own.inputs(example), 2 * key, share)
        moved = dict(zip(values, _moved(list(map(own.cast, values.values())), 2 * key + 1, share), strict=True))
        yield own.run(moved, example._replace(inputs=tuple(inputs)))[0]


def _equal(entry: Entry, data: str, got: Array, expected: Array) -> Agreement:
    same = got.shape == expected.shape and np.array_equal(got, expected)
    return Agreement(entry.name, data, got.size, 0.0 if same else np.inf, 0.0, "equal")


@np.errstate(all="ignore")
def _close(entry: Entry, data: str, got: Array, e32s: Sequence[Array], e64: Array, before: Array | None) -> Agreement:
    """Compare an array with the engine's, new values by how they change from those ``before``.

    ``e32s`` are the engine's in float32, for the arguments and for others beside them.
    """
    if got.shape != e64.shape:
        return Agreement(entry.name, data, got.size, np.inf, 0.0, f"{got.shape} for {e64.shape}")
    finite = np.isfinite(e64) & np.all([np.isfinite(one) for one in e32s], axis=0)
    if not np.isfinite(got[finite]).all():
        return Agreement(entry.name, data, got.size, np.inf, 0.0, "NaN and infinity in the same places")

    def largest(array: Array) -> float:
        return float(np.max(np.abs(np.where(finite, array, 0.0)), initial=0.0))

    error = largest(got.astype("float64") - e64)
    unit = float(np.finfo(got.dtype).eps / np.finfo("float32").eps)
    scale = max(largest(e64 if before is None else e64 - before), 1.0 if entry.role == "prediction" else 0.0)
    limits = {
        f"{TOLERANCE:g} of the largest": TOLERANCE * scale,
        f"{ROUNDING:g} x {got.dtype} rounding": ROUNDING * unit * max(largest(one - e64) for one in e32s),
    }
    if before is not None:  # where new values are those of float32 exactly
        limits["a unit in the last place"] = float(np.spacing(np.array(largest(before), got.dtype)))
    rule = next((rule for rule, limit in limits.items() if error <= limit), max(limits, key=lambda r: limits[r]))
    return Agreement(entry.name, data, got.size, error, limits[rule], rule)


def _all_finite(arrays: Sequence[Array]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _moved(arrays: Sequence[Array], key: int, share: float) -> list[Array]:
    """Arrays whose floats are moved by a unit in the last place: a share of them up, the others down."""
    moved = []
    for k, x in enumerate(arrays):
        if x.dtype.kind == "f" and x.size:
            flat = x.reshape(-1)
            draw = uniform(get_backend("numpy").xp, mix_keys(None, (key, k)), flat.size, 0, flat.shape)
            x = np.where(draw < share, np.nextafter(flat, np.inf), np.nextafter(flat, -np.inf)).reshape(x.shape)
        moved.append(x)
    return moved
