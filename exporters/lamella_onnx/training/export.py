"""Export of a training step: trace, check, take steps beside the engine, and only then write."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save as to_bytes

from lamella import ArgumentError, ArraySpec, DataError, LamellaError, MistakeWarning, Model, NonFiniteError
from lamella.errors import shown
from lamella.files import archive
from lamella.files.structure import Writer, described
from lamella.graph.plan import Plan
from lamella.regularization import Constraint, Penalty
from lamella.schedules import Schedule
from lamella.training.data import Data
from lamella.training.rules import Rules
from lamella.training.task import AnyOptimizer, Losses, losses_of, optimizer_of
from lamella_onnx.exporter import LARGEST
from lamella_onnx.files import as_path
from lamella_onnx.finite import need_finite_values
from lamella_onnx.models import Trace, trace_model
from lamella_onnx.parity import Agreement, ParityReport, agreements, predicted, versions
from lamella_onnx.probes import Probes, Range, candidates
from lamella_onnx.proof import SEED as DRAWN_FROM
from lamella_onnx.proof import need_model
from lamella_onnx.runtime import ParityError, resolve, run, session
from lamella_onnx.training.manifest import (
    PREDICT,
    STATE,
    TRAIN,
    Entry,
    Manifest,
    need_free,
    write_folder,
)
from lamella_onnx.training.proof import Engine, Example, Task, grouped, need, prove
from lamella_onnx.training.trace import SEED, STEP, StepTrace, T, axes_of, trace_training
from lamella_onnx.validity import not_valid

__all__ = ["export_training_step"]

WHERE = "export_training_step"
ROWS = (7, 2, 7)  # of the batches of the steps that are compared

Array = np.ndarray[Any, Any]


def export_training_step(
    model: Model,
    path: str | os.PathLike[str],
    *,
    loss: Losses,
    optimizer: AnyOptimizer,
    opset: int | None = None,
    target: str | None = None,
    samples: Any = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    penalties: Mapping[str, Penalty] | None = None,
    constraints: Mapping[str, Constraint] | None = None,
) -> ParityReport:
    """Write a training step as a folder that stock onnxruntime trains from, once both took the same steps.

    The folder holds ``train.onnx``, one whole step in standard operators: forward pass, loss, backward pass,
    penalties, clipping, optimizer, constraints, running statistics and random numbers; ``predict.onnx``, the model in
    inference with its weights as inputs; ``state.safetensors``, what the first step starts from: parameters, the
    optimizer's slots, the state of layers, counters; and ``training.json``, which names every input and output of the
    graphs with its role. `TrainingSession` runs it, and so can any program that reads JSON and calls onnxruntime.

    Frozen layers are constants of the graphs: a file of a model whose features are frozen trains the head only. The
    learning rate is an input; ``training.json`` has the first one. Training goes on from where the model is, with the
    optimizer's slots if its last steps were of an equal optimizer.

    Before anything is written, onnxruntime takes three steps, each compared with the engine in float64 from the same
    values: `lamella_onnx.training.proof` states the rule.

    Arguments:
        model: the model; it is not changed.
        path: the folder to write. A training step that stands there is replaced whole; nothing else is.
        loss, optimizer, clip_value, clip_norm, penalties, constraints: as in ``model.fit``.
        opset: the operator set, from 18; by default 21, or the newest that the target reads.
        target: the oldest runtime that must read the files, such as ``"onnxruntime==1.20"``.
        samples: ``(x, y)`` or ``(x, y, sample_weight)`` as for ``model.fit``, whose ranges the random batches of the
            comparison then have, and whose targets say which form the graph takes. Without samples, targets are labels
            where the loss takes them, else values like the predictions.

    Raises:
        ParityError: onnxruntime refuses the graph, or takes another step; names the arrays. Nothing is written.
        TraceError: a layer, loss or optimizer does something that can't be written down.
        LayerError: a layer without a backward pass, or an optimizer that gives arrays of another shape.
        ArgumentError: an argument of the wrong kind, or nothing to train.
        DataError: the path holds something else, samples do not fit the model or the loss, or a class has no registered
            name, by which `TrainingSession` could find it.
        NonFiniteError: a parameter is NaN or infinite.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(8, activation="relu"), Dense(3)], input_shape=(4,))
    >>> report = export_training_step(model, "step", loss="softmax_cross_entropy", optimizer="adam")
    >>> report.agrees
    True
    """
    need_model(model, WHERE)
    path = as_path(path, WHERE)
    need_free(path)
    opset = resolve(opset, target)
    task = _task(model, loss, optimizer, clip_value, clip_norm, penalties, constraints)
    try:
        archive.check(model.config(), task.optimizer, *filter(None, task.losses))
    except DataError as error:
        what = str(error).removeprefix("save: ").removesuffix(", or export the model to ONNX")
        raise DataError(f"{WHERE}: {what}") from None
    need_finite_values(model)
    if (size := sum(array.nbytes for array in (*model.parameters.values(), *model.state.values()))) > LARGEST // 2:
        raise ArgumentError(f"{WHERE}: the model's arrays take {size:,} bytes; expected less than 1 GiB")
    values, counters = _values(task)
    drawing = _Drawing.of(task, samples, values)
    step, predict, found = _agreed(task, drawing, values, counters["rate"], opset)
    manifest = Manifest(
        train_inputs=step.inputs,
        train_outputs=step.outputs,
        predict_inputs=_inputs(predict, step),
        predict_outputs=tuple(entry for entry in step.outputs if entry.role == "prediction"),
        learning_rate=counters["rate"],
        model=described(model),
        losses=tuple(None if one is None else Writer().configured(one) for one in task.losses),
        optimizer=Writer().configured(task.optimizer),
        began=counters["began"],
        scale=counters["scale"],
        missed=dict(task.missed),
        opset=opset,
        versions=versions(),
        report={"agreements": [dataclasses.asdict(row) for row in found]},
    )
    proto = step.proto()
    files = {
        TRAIN: proto.SerializeToString(),
        PREDICT: predict.proto.SerializeToString(),
        STATE: to_bytes({entry.name: values[entry.name] for entry in manifest.kept}),
    }
    write_folder(path, manifest, files)
    return ParityReport(str(path), opset, proto.ir_version, versions(), tuple(found))


def _inputs(predict: Trace, step: StepTrace) -> tuple[Entry, ...]:
    """The inputs of the graph of inference, each of which the step has too."""
    known = {entry.name: entry for entry in step.inputs}
    return tuple(known[value.name] for value in predict.proto.graph.input)


def _task(
    model: Model, loss: Any, optimizer: Any, clip_value: Any, clip_norm: Any, penalties: Any, constraints: Any
) -> Task:
    losses = losses_of(model, loss)
    optimizer = optimizer_of(model, optimizer)
    learned = Plan(model.graph, model.frozen_layers, wants_dx=False, training=True).parameters
    if not learned:
        raise ArgumentError(f"{WHERE}: no layer has parameters that are not frozen; unfreeze some")
    rules = Rules(model, clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints)
    state = model.values.optimizer
    goes_on = state is not None and state.fits(optimizer)
    missed = {name: count for name, count in state.missed.items() if name in learned} if state and goes_on else {}
    return Task(model, losses, optimizer, rules, missed)


def _values(task: Task) -> tuple[dict[str, Array], dict[str, Any]]:
    """What the first step starts from, by name, and the learning rate with what it follows from."""
    model = task.model
    with model.reading() as held:
        state = held.going_on(task.optimizer)
        values = {name: held.numpy(name) for name in model.graph.arrays}
        layout = held.parameters.layout
        for slot, flat in state.as_numpy()[2].items():
            for name in layout.declarations:
                values[f"{name}.{slot}"] = np.array(layout.part(flat, name), order="C")
        values[SEED] = np.array([model.seed & 0xFFFFFFFF, model.seed >> 32], "int64")
        values[STEP], values[T] = np.array(held.step, "int64"), np.array(state.t, "int64")
        rate = state.learning_rate(state.t + 1)
        if isinstance(task.optimizer.learning_rate, Schedule) and state.is_at_rest:
            warnings.warn(
                f"{WHERE}: the learning rate is 0 from step {state.t} on: the schedule of {task.optimizer!r}, with "
                "which the model was trained, is at its end; give another schedule, or set model.optimizer_state = "
                "None to restart it",
                MistakeWarning,
                stacklevel=3,
            )
    return values, {"rate": float(rate), "began": state.began, "scale": state.scale}


def _agreed(
    task: Task, drawing: _Drawing, values: dict[str, Array], rate: float, opset: int
) -> tuple[StepTrace, Trace, list[Agreement]]:
    """Trace the step and the model into graphs that agree with the engine; also return how they agree."""
    told: list[Agreement] = []
    # with the operators that stand for primitives, or where these round too much without; the stable graph has most
    # digits of data that excuse rounding
    for stable, excused in ((False, False), (True, False), (True, True), (False, True)):
        step, predict, told = _compared(task, drawing, values, rate, opset, stable=stable, excused=excused)
        if all(row.agrees for row in told):
            return step, predict, told
    wrong = sorted((row for row in told if not row.agrees), key=need, reverse=True)
    rows = "; ".join(
        f"{row.output!r} by {row.error:.3g} where {row.allowed:.3g} is allowed ({row.rule}), {row.data}"
        for row in wrong[:3]
    )
    others = [repr(row.output) for row in wrong[3:]]
    more = f"; and {', '.join(others[:20])}{' and others' if len(others) > 20 else ''}" if others else ""
    raise ParityError(f"nothing is written: onnxruntime's step differs from the engine's: {rows}{more}")


def _compared(
    task: Task, drawing: _Drawing, values: dict[str, Array], rate: float, opset: int, *, stable: bool, excused: bool
) -> tuple[StepTrace, Trace, list[Agreement]]:
    def traced(*, inspected: bool) -> StepTrace:
        found = trace_training(
            task.model, task.losses, task.optimizer, task.rules, drawing.specs(),
            missed=task.missed, opset=opset, stable=stable, inspected=inspected,
        )  # fmt: skip
        if what := not_valid(found.proto()):
            raise ParityError(f"nothing is written: the graph is not valid ONNX: {what}")
        return found

    step, inspected = traced(inspected=False), traced(inspected=True)
    kept = [entry.name for entry in step.inputs if entry.role in ("parameter", "state")]
    predict = trace_model(task.model, opset, given=kept, stable=stable)
    if what := not_valid(predict.proto):
        raise ParityError(f"nothing is written: the graph of inference is not valid ONNX: {what}")
    pair = [session(one.proto().SerializeToString()) for one in (step, inspected)]
    rate = rate or 0.01  # a schedule may begin with 0, which would move nothing
    found, _ = prove(task, inspected, pair, values, rate, drawing.examples(), drawing.others(), excused=excused)
    if all(row.agrees for row in found):
        found = grouped(found, inspected)
    return step, predict, found + _predictions(task.model, drawing, predict, values)


def _predictions(model: Model, drawing: _Drawing, predict: Trace, values: Mapping[str, Array]) -> list[Agreement]:
    """How each output agrees in inference, on the random batch where it needs most."""
    twins = model.copy(backend="numpy"), model.copy(dtype="float64", backend="numpy")
    batches = {f"inference, {name}": inputs for name, inputs in drawing.inputs.batches(DRAWN_FROM).items()}
    loaded, rows = session(predict.proto.SerializeToString()), []
    for batch in predicted(*twins, batches):
        feeds = {**values, **dict(zip(model.input_names, batch.inputs, strict=True))}
        rows += agreements(batch, run(loaded, feeds), model.output_names)
    return [max((row for row in rows if row.output == name), key=need) for name in model.output_names]


# What steps are tried on


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """Where random batches come from: the ranges of inputs, and of the targets of outputs that have a loss."""

    task: Task
    inputs: Probes
    targets: tuple[Range, ...]

    @classmethod
    def of(cls, task: Task, samples: Any, values: Mapping[str, Array]) -> _Drawing:
        """Return the first whose batches the engine takes.

        Raises:
            ParityError: it takes none.
        """
        given = None if samples is None else _checked(task, samples)
        targets = tuple(
            _target(task, k, None if given is None else given.targets[k])
            for k, loss in enumerate(task.losses)
            if loss is not None
        )
        refusal: LamellaError | None = None
        for inputs in candidates(task.model, None if given is None else given.inputs):
            made, engine = cls(task, inputs, targets), Engine(task, task.model.dtype)
            try:
                results = [engine.run(values, example)[0] for example in made.examples()]
            except LamellaError as error:  # what the engine refuses is nothing to compare on
                refusal = refusal or error
                continue
            if any(all(np.isfinite(array).all() for array in found.values()) for found in results):
                return made
            refusal = refusal or NonFiniteError("losses, gradients or predictions are finite on none of them")
        raise ParityError(
            f"nothing is written: the engine itself refuses all random batches. Likely fix: {WHERE}(..., samples=(x, "
            f"y)) with data that model.fit takes, or low and high in lamella.Input. What it said first: {refusal}"
        ) from refusal

    def examples(self) -> list[Example]:
        """Return the batches of the steps that are compared."""
        return [self._drawn(rows, seed) for seed, rows in enumerate(ROWS)]

    def others(self) -> Iterator[Example]:
        """Return more of them, without end."""
        return (self._drawn(ROWS[0], seed) for seed in itertools.count(len(ROWS)))

    def specs(self) -> list[ArraySpec | None]:
        """Return shape and dtype of the targets, as the losses prepare them."""
        example = self._drawn(ROWS[0], 0)
        specs = zip(self.task.model.output_specs, example.targets, strict=True)
        return [None if y is None else ArraySpec(axes_of(spec, y.shape), y.dtype.name) for spec, y in specs]

    def _drawn(self, rows: int, seed: int) -> Example:
        """A batch; all rows of the first weigh 1, one of the second nothing."""
        model, probes = self.task.model, dataclasses.replace(self.inputs, inputs=(*self.inputs.inputs, *self.targets))
        arrays = iter(probes.draw(rows, seed))
        inputs = tuple(itertools.islice(arrays, len(model.input_specs)))
        sizes = {
            name: n
            for spec, x in zip(model.input_specs, inputs, strict=True)
            for name, n in zip(spec.shape[1:], x.shape[1:], strict=True)
        }
        targets: list[Array | None] = []
        for loss, spec in zip(self.task.losses, model.output_specs, strict=True):
            sized = spec.replace(shape=(spec.shape[0], *(sizes.get(n, n) for n in spec.shape[1:])))
            targets.append(None if loss is None else np.asarray(loss.prepare(sized, next(arrays))))
        weights = np.ones(rows) if seed == 0 else np.arange(rows) / 2.0
        weight = weights.astype(model.dtype)
        return Example(inputs, tuple(targets), tuple(None if y is None else weight for y in targets))


def _checked(task: Task, samples: Any) -> Example:
    """Samples, with their targets as the user gave them."""
    if not isinstance(samples, tuple | list) or len(samples) not in (2, 3):
        raise ArgumentError(f"{WHERE}: samples: expected (x, y) or (x, y, sample_weight), got {shown(samples)}")
    data = Data(task.model, samples[0], samples[1], task.losses, *samples[2:])
    for what, array in zip(
        (*task.model.input_names, *task.model.output_names), (*data.inputs, *data.prepared), strict=True
    ):
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"{WHERE}: samples: of {what!r} some are NaN or infinite, and random batches are drawn from the range "
                "of all; leave these rows out"
            )
    return Example(data.inputs, data.targets, ())


def _target(task: Task, k: int, sample: Array | None) -> Range:
    """The range of an output's targets: that of samples, else the first form that its loss takes."""
    loss, name, spec = task.losses[k], task.model.output_names[k], task.model.output_specs[k]
    assert loss is not None
    title = f"{name}.target"
    if sample is not None:
        low, high = float(sample.min()), float(sample.max()) + (sample.dtype.kind != "f")
        return Range(title, axes_of(spec, sample.shape), sample.dtype.name, low, high if low < high else low + 1.0)
    forms = [Range(title, spec.shape, spec.dtype, low, 1.0) for low in (-1.0, 0.0)]
    forms.append(Range(title, spec.shape, "int64", 0.0, 2.0))  # yes or no
    if len(spec.shape) > 1 and isinstance(spec.shape[-1], int) and spec.shape[-1] > 1:
        forms.insert(0, Range(title, spec.shape[:-1], "int64", 0.0, float(spec.shape[-1])))
    refusal: DataError | None = None
    for form in forms:
        sizes = {"N": ROWS[0]}
        form.sized(sizes)
        try:
            loss.prepare(
                spec.replace(shape=(spec.shape[0], *(sizes.get(str(n), n) for n in spec.shape[1:]))),
                *Probes((form,)).draw(ROWS[0], 0),
            )
            return form
        except DataError as error:
            refusal = error
    raise ArgumentError(
        f"{WHERE}: no random target fits {loss!r} of output {name!r}: {refusal} Likely fix: samples=(x, y) with data "
        "that model.fit takes"
    )
