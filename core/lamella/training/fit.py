"""Training and evaluation: batches in, steps taken, measurements out."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import file_path, flag, fraction, knows, positive
from lamella.callbacks import Callback, Checkpoint
from lamella.engine.changes import Change, refuse_beside_another
from lamella.engine.interruption import Interruption
from lamella.errors import ArgumentError, LayerError, MistakeWarning, counted, shown
from lamella.files import archive
from lamella.files.writing import check_place
from lamella.graph.plan import Plan
from lamella.losses import LOSSES, Loss
from lamella.metrics import Metric
from lamella.network import Appended, Network
from lamella.optimizers import OPTIMIZERS, Optimizer
from lamella.optimizers.optimizer import rules_of
from lamella.protocol.inputs import for_each, unwritable
from lamella.regularization import Constraint, Penalty
from lamella.training.data import ArrayBatches, Data, StreamBatches, batches_of, held_out
from lamella.training.history import History
from lamella.training.listeners import Listeners
from lamella.training.meter import Measured, Meter, listed
from lamella.training.resumption import Place, Writer, restore, take_up
from lamella.training.step import TrainSteps, prepared

if TYPE_CHECKING:
    from lamella.training.progress import Progress

__all__ = [
    "evaluate",
    "fit",
    "given_bounds",
    "gradients",
    "losses_of",
    "measure",
    "optimizer_of",
    "train_on_batch",
    "warn_of_restart",
]

Batches = ArrayBatches | StreamBatches
OneLoss = str | Loss | type[Loss]
Losses = OneLoss | Sequence[OneLoss | None] | Mapping[str, OneLoss | None]
OneMetric = str | Metric | type[Metric]
Metrics = OneMetric | Iterable[OneMetric] | Mapping[str, OneMetric | Iterable[OneMetric]]

EVALUATE_ROWS = 1024  # rows that evaluate takes at a time, unless told otherwise


def losses_of(model: Network, loss: Losses) -> tuple[Loss | None, ...]:
    """Return a loss for each output, None where an output is not trained on."""
    if isinstance(loss, str | Loss | type):
        loss = (loss,) * len(model.output_names)
    given = for_each("loss", loss, model.output_names)
    if all(one is None for one in given):
        raise ArgumentError("loss: expected a name or a Loss for one output at least, got None")
    return tuple(None if one is None else LOSSES.resolve(one) for one in given)


def optimizer_of(model: Network, optimizer: str | Optimizer | type[Optimizer]) -> Optimizer:
    """Return an optimizer whose patterns match parameters of the model."""
    found: Optimizer = OPTIMIZERS.resolve(optimizer)
    rules_of(found, model.values.parameters.layout.declarations)
    return found


@knows(elsewhere.FIT)
def train_on_batch(
    model: Network,
    x: Any,
    y: Any,
    *,
    loss: Losses,
    optimizer: str | Optimizer | type[Optimizer],
    sample_weight: Any = None,
    class_weight: Mapping[Any, Any] | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    penalties: Mapping[str, Penalty] | None = None,
    constraints: Mapping[str, Constraint] | None = None,
) -> float:
    """Take one training step on all rows given, and return the loss before it, penalties included.

    Steps of equal optimizers, or of ones that differ in the learning rate only, go on from each other. The arguments
    are those of `fit`.

    Raises:
        DataError: arrays that do not fit the model or the loss.
        NonFiniteError: a loss that is NaN or infinite.
        BusyError: another thread is training the model.

    Whatever is raised, Ctrl-C included, the model is left as it was, or as it is after the whole step.
    """
    losses = losses_of(model, loss)
    optimizer = optimizer_of(model, optimizer)
    rows = Data(model, x, y, losses, sample_weight, class_weight).whole()
    bounds = given_bounds(clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints)
    with Interruption() as interruption, Change(model, "train_on_batch"):
        steps = _steps(model, losses, bounds)
        if begins := model.values.optimizer is None:
            _warn_of_probabilities(model, losses)
        penalty = steps.rules.penalty(model.values)
        warn_of_restart(model, optimizer)
        result = steps.take(rows.batch, rows.size, optimizer, begins=begins)
    interruption.check()
    return result.loss + penalty


@knows(elsewhere.FIT)
def gradients(
    model: Network, x: Any, y: Any, *, loss: Losses, training: bool = True, sample_weight: Any = None
) -> tuple[float, dict[str, Any], Any]:
    """Return the loss, its gradient for each trainable parameter, and for the input (a tuple for several).

    Changes nothing in the model. The gradient of an integer input is None.
    """
    training = flag(training, "training")
    losses = losses_of(model, loss)
    data = Data(model, x, y, losses, sample_weight)
    plan = Plan(model.graph, model.frozen_layers, wants_dx=True, training=training)
    slices = prepared(model, plan, data.rows, [])
    with Interruption() as interruption, model.reading() as values, slices.blas, np.errstate(all="ignore"):
        result = slices.step(values, data.whole().batch, losses, model.seed)
    interruption.check()
    asnumpy = model.device.asnumpy
    given = {name: np.array(asnumpy(gradient), order="C") for name, gradient in result.gradients.items()}
    dx = tuple(None if part is None else np.array(asnumpy(part), order="C") for part in result.dx)
    return result.loss, given, dx[0] if len(dx) == 1 else dx


@knows(elsewhere.FIT)
def evaluate(
    model: Network,
    x: Any,
    y: Any = None,
    *,
    loss: Losses,
    metrics: Metrics = (),
    sample_weight: Any = None,
    batch_size: int = EVALUATE_ROWS,
    append: Appended | Mapping[str, Appended] | None = None,
) -> dict[str, Any]:
    """Return the weighted mean loss and the metrics, by name, in inference mode; data as in `fit`.

    Each is a float; metrics of each class, and a confusion matrix, are arrays. ``append`` has layers run after the
    outputs, as in `predict`; loss and metrics are of what comes then.
    """
    if append is not None:
        return evaluate(
            model._with(append), x, y, loss=loss, metrics=metrics, sample_weight=sample_weight, batch_size=batch_size
        )
    losses = losses_of(model, loss)
    size = positive(batch_size, "batch_size")
    data = batches_of(model, x, y, losses, size=size, sample_weight=sample_weight)
    meter = Meter(model, metrics, losses)
    with model.reading() as values:
        measure(partial(model.infer, values=values), losses, data, meter)
    return Measured(meter.logs())


def measure(
    infer: Callable[[tuple[Any, ...]], tuple[Any, ...]],
    losses: tuple[Loss | None, ...],
    data: Batches,
    meter: Meter,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Add up losses and metrics of what ``infer`` makes of inputs; call ``between`` after each batch."""
    for rows in data.epoch():
        predictions = infer(rows.batch.inputs)
        means = []
        every = zip(losses, predictions, rows.prepared, rows.weights, rows.sums, strict=True)
        for loss, prediction, target, weights, total in every:
            each = np.zeros(1) if loss is None else _each(loss, prediction, target)
            means.append(float(np.sum(each if weights is None else each * weights) / total) if total else 0.0)
        meter.add(means, 0.0, predictions, rows)
        between()


@knows(elsewhere.FIT)
def fit(
    model: Network,
    x: Any,
    y: Any = None,
    *,
    loss: Losses,
    optimizer: str | Optimizer | type[Optimizer],
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: Any = None,
    validation_split: float = 0.0,
    metrics: Metrics = (),
    callbacks: Iterable[Callback] = (),
    shuffle: bool = True,
    sample_weight: Any = None,
    class_weight: Mapping[Any, Any] | None = None,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    penalties: Mapping[str, Penalty] | None = None,
    constraints: Mapping[str, Constraint] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    initial_epoch: int = 0,
    progress: bool | str = "auto",
) -> History:
    """Train for some epochs, each a pass over arrays or over an iterable of batches.

    Ctrl-C ends training after the step in progress: the model stays usable, and the history so far is returned. A
    second Ctrl-C interrupts at once.

    Arguments:
        x, y: arrays with one row for each sample; tuples or dicts by name where the model has several inputs or
            outputs. Without ``y``, ``x`` is an iterable of batches ``(x, y)`` or ``(x, y, sample_weight)``, or a
            function that makes one for each epoch, such as a generator function. Arrays are read batch by batch: what a
            callback changes in them counts from this epoch on or the next.
        loss: a registered name or a `Loss`; a tuple, or a dict by name, for several outputs. Their losses are added up:
            ``lm.losses.Weighted`` makes one count more or less, and is reported as it counts.
        optimizer: a registered name or an `Optimizer`. A model goes on where steps with an equal one stopped, with its
            slots and its place in the schedule; ``model.optimizer_state = None`` resets it, as other settings than the
            learning rate do, with a `MistakeWarning`.
        epochs, batch_size: how often to pass over the data, and how many rows a step takes; iterables have batches
            of their own.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)`` or batches of these. After every epoch ``val_loss``, ...
            are what `evaluate` gives for them.
        validation_split: the share of rows, in [0, 1), that is held out as validation data: the last ones, before any
            shuffling, with their sample weights. For arrays whose rows are in no order, such as that of their classes.
        metrics: names or `Metric` objects for every output, or dicts of these by output. Those of training are of the
            model as it was at each step, and sample and class weights count in them.
        callbacks: `Callback` objects, such as those of `lamella.callbacks`.
        shuffle: whether every epoch has an order of its own, which follows from the model's seed and step.
        sample_weight: how much each row counts, (N,).
        class_weight: how much the rows of a label count, as in ``{0: 1.0, 1: 5.0}``, or one such dict for each of
            some outputs by name; labels that are not named count 1. Multiplies sample weights.
        steps_per_epoch: how many batches of an iterable make an epoch, for those without an end.
        validation_steps: how many batches of validation data are looked at, for those without an end; they restart
            after every epoch.
        clip_value: hold every entry of the gradients between ``-clip_value`` and ``clip_value``.
        clip_norm: scale the gradients down where the norm of all together is larger.
        penalties: what parameters add to the loss of training and its gradient, by patterns of their names, as in
            ``{"*.kernel": lm.regularization.L2(1e-4)}``. ``val_loss`` and `evaluate` are of the data alone.
        constraints: bounds of parameters after each step, as in ``{"dense_*.kernel": lm.regularization.MaxNorm(3)}``.
        checkpoint: a file for the model and the place of the training: written after each epoch, within an epoch every
            minute, and where training stops. One that is there is only replaced with ``resume=True``.
        resume: whether to go on from that file, if it is there. The script that began the training runs again as it
            was: weights, history and callbacks become bit by bit what they would be without an interruption.
        initial_epoch: the number of the first epoch; training ends with epoch ``epochs - 1`` as ever.
        progress: what to print: ``"auto"`` a live line on a terminal, a line for each epoch in a notebook, and nothing
            elsewhere, as in pipes and logs; True a line for each epoch there too; False nothing anywhere.

    Raises:
        DataError: arrays that do not fit the model or the loss.
        NonFiniteError: the loss became NaN or infinite.
        BusyError: another thread is training the model. Callbacks, on the thread of `fit`, may train it further.

    Whatever is raised, the model is left as it was after the last whole step.
    """
    epochs = positive(epochs, "epochs", minimum=0)
    if not isinstance(progress, bool) and not (isinstance(progress, str) and progress == "auto"):
        raise ArgumentError(f"progress: expected 'auto', True or False, got {shown(progress)}")
    shuffle = flag(shuffle, "shuffle")
    size, share = positive(batch_size, "batch_size"), fraction(validation_split, "validation_split")
    first = positive(initial_epoch, "initial_epoch", minimum=0)
    if flag(resume, "resume") and checkpoint is None:
        raise ArgumentError("fit: resume=True: expected checkpoint=, the path of the file to go on from")
    losses = losses_of(model, loss)
    optimizer = optimizer_of(model, optimizer)
    weighting = {"sample_weight": sample_weight, "class_weight": class_weight}
    data: Batches = batches_of(model, x, y, losses, size=size, shuffle=shuffle, steps=steps_per_epoch, **weighting)
    metrics = metrics if isinstance(metrics, Mapping) else listed(metrics)
    meter = Meter(model, metrics, losses)
    val_meter = copy.copy(meter)
    if validation_data is None and validation_steps is not None:
        raise ArgumentError("validation_steps: expected None without validation_data")
    checked: Batches | None = None
    if share:
        if validation_data is not None:
            raise ArgumentError("fit: expected validation_data or validation_split, got both")
        if not isinstance(data, ArrayBatches):
            raise ArgumentError(
                "validation_split: expected 0 for batches, of which none is the last before all are seen. Likely fix: "
                "validation_data=other_batches"
            )
        data, checked = data.split(share, max(size, 256))
    elif validation_data is not None:
        checked = held_out(model, validation_data, losses, max(size, 256), steps=validation_steps)
    if checkpoint is not None:
        _, there = check_place(checkpoint := file_path(checkpoint, "fit: checkpoint"))
        if there is not None and not resume:
            raise ArgumentError(
                f"fit: checkpoint: {checkpoint} is there. Likely fix: resume=True to go on from it; remove it, or give "
                "another path, to begin anew"
            )
    _warn_of_missing_classes(data, checked)
    bounds = given_bounds(clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints)
    refuse_beside_another(model, "fit")
    steps = _steps(model, losses, bounds)
    _check_learns(steps)
    line = _progress(progress)
    listeners = Listeners(callbacks, line)
    savers = [one for one in listeners.callbacks if isinstance(one, Checkpoint)]
    if checkpoint is not None or savers:
        archive.check(model.config(), optimizer)  # now, and not when hours have passed
    if checkpoint is not None and any(os.path.realpath(one.path) == os.path.realpath(checkpoint) for one in savers):
        raise ArgumentError(f"fit: checkpoint: a Checkpoint among the callbacks writes {checkpoint}, too")
    task = {"optimizer": repr(optimizer), "loss": ", ".join(map(repr, losses)), **data.described()}
    task["metrics"] = ", ".join(label for label, _, _ in meter.metrics)
    taken = take_up(checkpoint, model, task) if checkpoint is not None and resume else None
    place = Place(epoch=first, task=task) if taken is None else taken.place._replace(task=task)
    writer = None if checkpoint is None else Writer(checkpoint, model, listeners.callbacks, place)
    history, begins = History(), True
    history.history = {name: list(values) for name, values in place.history.items()}
    history.stopped = place.stopped
    _warn_of_probabilities(model, losses)
    if taken is None:
        _warn_of_rate_zero(model, optimizer)
        warn_of_restart(model, optimizer)

    def epoch_of_steps() -> None:
        """Go on with an epoch."""
        nonlocal begins, place
        if listeners.stopped:  # before the training was interrupted
            return
        asnumpy = model.device.asnumpy
        for rows in data.epoch(place.batch, place.began):
            if steps.plan.frozen is not model.frozen_layers:  # by a callback
                steps.renew()
                _check_learns(steps)
            if steps.device is not model.device:
                raise ArgumentError(
                    f"fit: a callback moved the model from {steps.device.name!r} to {model.backend!r} while it "
                    "trained; call model.to before fit, or after it"
                )
            penalty = steps.rules.penalty(model.values) if steps.rules.penalties else 0.0
            result = steps.take(rows.batch, rows.size, optimizer, begins=begins)
            begins = False
            meter.add(result.losses, penalty, tuple([asnumpy(given) for given in result.predictions]), rows)
            if writer is not None:
                place = place._replace(batch=place.batch + 1, drawn=place.drawn + 1)
            if listeners.of_batches:
                listeners.end_batch(model, rows.size, meter.logs(ended=False))
            if listeners.stopped:
                place = place._replace(ends=listeners.stopped)
            if writer is not None and writer.is_due:
                writer.write(place, meter)
            interruption.check()
            if listeners.stopped:
                return

    def begin() -> None:
        """Take up what was trained before, and tell everyone."""
        model._history = history
        if taken is not None:
            taken.fill(model)
        elif first and first < epochs:
            model._epochs = first
        listeners.begin(model, epochs, data.length)
        if taken is not None and not (place.stopped or place.epoch >= epochs):
            data.skip(place.drawn)
            if line is not None:
                line.say(f"resumed from {checkpoint}: {place.told}")
        if place.began is None or place.epoch >= epochs:
            restore(place, listeners.callbacks)
        if writer is not None:
            writer.check()

    with Interruption(between_steps=True) as interruption, Change(model, "fit"):
        try:
            begin()
            for epoch in range(place.epoch, epochs):
                if not (listeners.stopped or history.stopped):
                    listeners.tell("on_epoch_begin", model, epoch)
                if listeners.stopped or history.stopped:
                    break
                meter.start()
                if place.meter is not None:  # it was interrupted within this epoch
                    meter.load_state_dict(place.meter)
                    restore(place, listeners.callbacks)
                    listeners.stopped, place = place.ends, place._replace(meter=None, callbacks=())
                else:
                    place = place._replace(began=model.step)
                epoch_of_steps()
                logs = meter.logs()
                try:
                    if checked is not None:
                        val_meter.start()
                        with model.reading() as values:
                            infer = partial(model.infer, values=values)
                            measure(infer, losses, checked, val_meter, interruption.check)
                        logs |= {f"val_{name}": value for name, value in val_meter.logs().items()}
                    model._epochs += 1
                    listeners.end_epoch(model, epoch, logs)
                finally:
                    history.add(logs)
                history.stopped = listeners.stopped
                measured = {name: list(values) for name, values in history.history.items()}
                place = Place(epoch + 1, drawn=place.drawn, history=measured, stopped=history.stopped, task=task)
                if writer is not None:
                    writer.write(place, meter)
                interruption.check()
            history.stopped = listeners.stopped or history.stopped
        except KeyboardInterrupt:
            if interruption.insisted:
                raise
            history.stopped, history.interrupted = "interrupted", True
            if writer is not None and writer.written is not place:
                writer.write(place, meter)
        finally:
            listeners.end(model)
    history.interrupted |= interruption.asked
    if line is not None and history.stopped:
        line.say(f"stopped: {history.stopped}")
    return history


def _each(loss: Loss, prediction: Any, target: Any) -> Any:
    """The loss of each row in float64. It may read its arguments only."""
    try:
        return loss.per_sample(unwritable(prediction), target).astype("float64")
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise LayerError(
            f"{loss!r} writes into the predictions or targets that it is given; make new arrays, as in "
            "r = prediction - target"
        ) from error


def given_bounds(**bounds: Any) -> dict[str, Any]:
    """Return those penalties, clips and constraints that are not None."""
    return {name: own for name, own in bounds.items() if own is not None}


def _steps(model: Network, losses: tuple[Loss | None, ...], bounds: Mapping[str, Any]) -> TrainSteps:
    """The prepared steps of the training before, if this one goes on with the same task; else new ones."""
    steps = model.prepared_steps
    if not isinstance(steps, TrainSteps) or not steps.serve(model, losses, bounds):
        steps = model.prepared_steps = TrainSteps(model, losses, bounds)
    if steps.plan.frozen is not model.frozen_layers:
        steps.renew()
    return steps


def _check_learns(steps: TrainSteps) -> None:
    if not steps.plan.parameters:
        raise ArgumentError("fit: no layer has parameters that are not frozen; unfreeze some, or predict only")


def _warn_of_probabilities(model: Network, losses: tuple[Loss | None, ...]) -> None:
    """Say so if a loss takes logits and the last layer of its output makes probabilities of anything."""
    for output, loss in enumerate(losses):
        last = model.graph.last(output)
        if loss is not None and loss.on_logits and last is not None and last.layer.gives_probabilities:
            warnings.warn(
                f"{loss!r} takes logits, and {last.label} makes probabilities of them; leave this layer out, or use a "
                "loss on probabilities",
                MistakeWarning,
                stacklevel=4,
            )


ROWS_OF_A_CLASS = 10  # on average, from which on a class without any is no chance
ROWS_OF_THE_RAREST = 3  # where classes have very different shares, as words have, some may lack by chance


def _warn_of_missing_classes(data: Batches, checked: Batches | None) -> None:
    """Say so if there is a unit for a class that no row has."""
    if not isinstance(data, ArrayBatches):
        return
    for k, name in enumerate(data.data.model.output_names):
        counts = data.data.rows_of_classes(k)
        if counts is None:
            continue
        class_weight = data.data.weighted.get(k, {})
        left_out = {label for label, weight in class_weight.items() if not weight} | {data.data.ignored(k)}
        missing = [label for label in np.flatnonzero(counts == 0).tolist() if label not in left_out]
        held = checked.data.rows_of_classes(k) if isinstance(checked, ArrayBatches) else None
        all_rows = counts if held is None else counts + held
        by_chance = missing != [0] and all_rows[all_rows > 0].min(initial=ROWS_OF_THE_RAREST) < ROWS_OF_THE_RAREST
        if by_chance or counts.sum() < ROWS_OF_A_CLASS * len(counts):
            missing = [label for label in missing if label in class_weight]
        if not missing:
            continue
        there = counted(int(np.count_nonzero(counts)), "unit")
        fix = f"a last layer of {there}, if there are no more classes"
        if held is not None and held[missing].any():
            fix = "rows in random order before some are held out, since these have what is missing"
        elif missing == [0]:
            fix = "y - 1 if labels count from 1, and one unit less in the last layer"
        elif any(label in class_weight for label in missing):
            fix = "a class_weight of the labels that there are"
        told = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"fit: y of {name!r} has no row of {len(missing)} of {len(counts)} classes: {told}. Likely fix: {fix}",
            MistakeWarning,
            stacklevel=4,
        )


def _warn_of_rate_zero(model: Network, optimizer: Optimizer) -> None:
    """Say so if a schedule that went on from an earlier training has nothing left to give."""
    state = model.values.optimizer
    if state is None or not state.fits(optimizer) or optimizer.learning_rate != state.optimizer.learning_rate:
        return
    if state.is_at_rest:
        warnings.warn(
            f"fit: the learning rate is 0 from step {state.t} on, where an earlier training with an equal "
            f"{optimizer!r} stopped; give another schedule, or set model.optimizer_state = None to restart it",
            MistakeWarning,
            stacklevel=4,
        )


def warn_of_restart(model: Network, optimizer: Optimizer) -> None:
    """Say so if other settings make an optimizer forget what it remembers."""
    state = model.values.optimizer
    if state is None or type(state.optimizer) is not type(optimizer) or state.fits(optimizer):
        return
    warnings.warn(
        f"{optimizer!r} starts anew, without what {counted(state.t, 'step')} left in its slots: it has "
        f"{state.differences(optimizer)}. Only the learning rate may differ; set model.optimizer_state = None where a "
        "new start is meant",
        MistakeWarning,
        stacklevel=4,
    )


def _progress(progress: bool | str) -> Progress | None:
    if progress is False:
        return None
    from lamella.training.progress import Progress, is_watched  # and what it prints with, for those who watch

    return Progress() if progress is True or is_watched() else None
