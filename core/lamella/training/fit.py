"""Training: batches in, steps taken, measurements out."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import file_path, flag, fraction, knows, positive
from lamella.callbacks import Callback, Checkpoint
from lamella.engine.changes import Change, refuse_beside_another
from lamella.engine.interruption import Interruption
from lamella.errors import ArgumentError, shown
from lamella.files import archive
from lamella.files.writing import check_place
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.network import Network
from lamella.regularization import Constraint, Penalty
from lamella.training.data import ArrayBatches, Data, StreamBatches, batches_of, held_out
from lamella.training.evaluation import measure
from lamella.training.history import History
from lamella.training.listeners import Listeners
from lamella.training.meter import Meter, listed
from lamella.training.mistakes import (
    warn_of_missing_classes,
    warn_of_probabilities,
    warn_of_rate_zero,
    warn_of_restart,
    warn_of_sorted_rows,
)
from lamella.training.resumption import Place, Writer, restore, take_up
from lamella.training.step import TrainSteps, prepared
from lamella.training.task import AnyOptimizer, Losses, Metrics, given_bounds, losses_of, optimizer_of

if TYPE_CHECKING:
    from lamella.training.progress import Progress

__all__ = ["fit", "gradients", "train_on_batch"]

Batches = ArrayBatches | StreamBatches


@knows(elsewhere.FIT)
def train_on_batch(
    model: Network,
    x: Any,
    y: Any,
    *,
    loss: Losses,
    optimizer: AnyOptimizer,
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
    data = Data(model, x, y, losses, sample_weight, class_weight)
    rows = data.whole()
    bounds = given_bounds(clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints)
    with Interruption() as interruption, Change(model, "train_on_batch"):
        steps = _steps(model, losses, bounds)
        if begins := model.values.optimizer is None:
            warn_of_probabilities(model, losses)
        penalty = steps.rules.penalty(model.values)
        warn_of_restart(model, optimizer)
        result = steps.take(rows.batch, rows.size, optimizer, begins=begins, data=data)
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
def fit(
    model: Network,
    x: Any,
    y: Any = None,
    *,
    loss: Losses,
    optimizer: AnyOptimizer,
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
    warn_of_missing_classes(data, checked)
    if share and checked is not None:
        warn_of_sorted_rows(data, checked, losses, share)
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
    warn_of_probabilities(model, losses)
    if taken is None:
        warn_of_rate_zero(model, optimizer)
        warn_of_restart(model, optimizer)

    arrays = data.data if isinstance(data, ArrayBatches) else None

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
            result = steps.take(rows.batch, rows.size, optimizer, begins=begins, data=arrays)
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


def _steps(model: Network, losses: tuple[Loss | None, ...], bounds: Mapping[str, Any]) -> TrainSteps:
    """The prepared steps of the training before, if this one goes on with the same task; else new ones."""
    steps = model._prepared_steps
    if not isinstance(steps, TrainSteps) or not steps.serve(model, losses, bounds):
        steps = model._prepared_steps = TrainSteps(model, losses, bounds)
    if steps.plan.frozen is not model.frozen_layers:
        steps.renew()
    return steps


def _check_learns(steps: TrainSteps) -> None:
    if not steps.plan.parameters:
        raise ArgumentError("fit: no layer has parameters that are not frozen; unfreeze some, or predict only")


def _progress(progress: bool | str) -> Progress | None:
    if progress is False:
        return None
    from lamella.training.progress import Progress, is_watched  # and what it prints with, for those who watch

    return Progress() if progress is True or is_watched() else None
