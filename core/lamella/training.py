"""Training and evaluation: batches in, steps taken, numbers out."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import registry
from lamella.arguments import knows, number, positive
from lamella.batches import ArrayBatches, Data, Rows, StreamBatches, batches_of, held_out
from lamella.callbacks import Callback, StopTraining
from lamella.data import by_name, naming
from lamella.engine import Plan
from lamella.errors import ArgumentError, DataError, LamellaError, MistakeWarning, did_you_mean
from lamella.graph import Input
from lamella.history import History
from lamella.interruption import Interruption
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.protocol import snake_case
from lamella.regularization import Constraint, Penalty, Regularization
from lamella.step import compute_step, take_step

if TYPE_CHECKING:
    from lamella.graph import Leaf
    from lamella.model import Model
    from lamella.progress import Progress

__all__ = ["evaluate", "fit", "gradients", "train_on_batch"]

Batches = ArrayBatches | StreamBatches

EVALUATE_ROWS = 1024  # rows that evaluate takes at a time, unless told otherwise


def _resolve(kind: str, base: type, value: Any) -> Any:
    """A loss, optimizer or metric, from an object, a class or a registered name."""
    if isinstance(value, str):
        value = registry.find(kind, value)
    if isinstance(value, type) and issubclass(value, base):
        value = value()
    if not isinstance(value, base):
        article = "an" if base is Optimizer else "a"
        raise ArgumentError(f"{base.__name__.lower()}: expected a name or {article} {base.__name__}, got {value!r}")
    return value


def _losses(model: Model, loss: Any) -> tuple[Loss | None, ...]:
    """A loss for each output, None where an output is not trained on."""
    if isinstance(loss, str | Loss | type):
        loss = (loss,) * len(model.output_names)
    given = by_name("loss", loss, model.output_names)
    if all(one is None for one in given):
        raise ArgumentError("loss: expected a name or a Loss for one output at least, got None")
    return tuple(None if one is None else _resolve("losses", Loss, one) for one in given)


class _Meter:
    """Weighted means of the losses and sums of metrics over the batches of an epoch."""

    def __init__(self, model: Model, metrics: Any) -> None:
        self.names = model.output_names
        if not isinstance(metrics, Mapping):
            metrics = dict.fromkeys(self.names, _listed(metrics))
        self.metrics: list[tuple[str, int, Metric]] = []
        for output, given in metrics.items():
            if output not in self.names:
                raise ArgumentError(f"metrics: unknown output {output!r}; expected {', '.join(self.names)}")
            for one in _listed(given):
                metric = _resolve("metrics", Metric, one)
                entry = registry.name_of("metrics", type(metric))
                label = one if isinstance(one, str) else entry.name if entry else snake_case(type(metric).__name__)
                label = f"{output}_{label}" if len(self.names) > 1 else label
                taken = [known for known, _, _ in self.metrics]
                number = next(n for n in itertools.count(1) if (label if n == 1 else f"{label}_{n}") not in taken)
                self.metrics.append((label if number == 1 else f"{label}_{number}", self.names.index(output), metric))
        self.start()

    def start(self) -> None:
        self.losses = [0.0] * len(self.names)
        self.weights = [0.0] * len(self.names)
        self.penalty, self.rows = 0.0, 0
        self.sums: dict[str, tuple[Any, ...]] = {}

    def add(self, losses: Sequence[float], penalty: float, predictions: tuple[Any, ...], rows: Rows) -> None:
        self.penalty += penalty * rows.size
        self.rows += rows.size
        for k, (loss, weight) in enumerate(zip(losses, rows.sums, strict=True)):
            self.losses[k] += loss * weight
            self.weights[k] += weight
        for label, output, metric in self.metrics:
            if rows.targets[output] is None:
                raise DataError(f"metrics: {label!r} needs targets for output {self.names[output]!r}; y has none")
            with naming(self.names[output], self.names):
                sums = metric.update(predictions[output], rows.targets[output], rows.weights[output])
            known = self.sums.get(label)
            self.sums[label] = sums if known is None else tuple(a + b for a, b in zip(known, sums, strict=True))

    def logs(self) -> dict[str, float]:
        pairs = zip(self.losses, self.weights, strict=True)
        logs = {"loss": sum(total / weight if weight else 0.0 for total, weight in pairs)}
        if self.penalty:
            logs["loss"] += self.penalty / self.rows
        if len(self.names) > 1:
            for name, total, weight in zip(self.names, self.losses, self.weights, strict=True):
                if weight:
                    logs[f"{name}_loss"] = total / weight
        for label, _, metric in self.metrics:
            logs[label] = metric.result(self.sums[label]) if label in self.sums else math.nan
        return logs


def _listed(metrics: Any) -> tuple[Any, ...]:
    if isinstance(metrics, str | Metric | type):
        return (metrics,)
    if not isinstance(metrics, Iterable):
        raise ArgumentError(f"metrics: expected names or Metric objects, got {metrics!r}")
    return tuple(metrics)


@knows()
def train_on_batch(
    model: Model,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: Any,
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

    Whatever is raised, Ctrl-C included, the model is left as it was, or as it is after the whole step.
    """
    losses = _losses(model, loss)
    optimizer = _resolve("optimizers", Optimizer, optimizer)
    data = Data(model, x, y, losses, sample_weight, class_weight)
    rules = Regularization(
        model, clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints
    )
    plan = Plan(model.program, model.frozen_layers, wants_dx=False, training=True)
    penalty, batch = rules.penalty(model), data.take(slice(None)).batch
    if begins := model.optimizer_state is None:
        _warn_of_probabilities(model, losses)
    return take_step(model, plan, losses, optimizer, rules, batch, begins=begins).loss + penalty


def gradients(
    model: Model, x: Any, y: Any, *, loss: Any, training: bool = True, sample_weight: Any = None
) -> tuple[float, dict[str, Any], Any]:
    """Return the loss, its gradient for each trainable parameter, and for the input (a tuple for several).

    Changes nothing in the model. The gradient of an integer input is None.
    """
    losses = _losses(model, loss)
    data = Data(model, x, y, losses, sample_weight)
    plan = Plan(model.program, model.frozen_layers, wants_dx=True, training=training)
    result, buffer = compute_step(model, plan, losses, data.take(slice(None)).batch)
    asnumpy = model.device.asnumpy
    given = {name: buffer.storage.numpy(name) for name in buffer}
    dx = tuple(None if part is None else np.array(asnumpy(part), order="C") for part in result.dx)
    return result.loss, given, dx[0] if len(dx) == 1 else dx


@knows(verbose="It prints nothing")
def evaluate(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    loss: Any,
    metrics: Any = (),
    sample_weight: Any = None,
    batch_size: int = EVALUATE_ROWS,
) -> dict[str, float]:
    """Return the weighted mean loss and the metrics, by name, in inference mode; data as in `fit`."""
    losses = _losses(model, loss)
    size = positive(batch_size, "batch_size")
    data = batches_of(model, x, y, losses, size=size, sample_weight=sample_weight)
    meter = _Meter(model, metrics)
    _evaluate(model, losses, data, meter)
    return meter.logs()


def _evaluate(
    model: Model,
    losses: tuple[Loss | None, ...],
    data: Batches,
    meter: _Meter,
    penalty: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Add up losses and metrics in inference mode; call ``between`` after each batch."""
    for rows in data.epoch():
        predictions = model.infer(rows.batch.inputs)
        means = []
        for loss, prediction, target, weights in zip(losses, predictions, rows.prepared, rows.weights, strict=True):
            each = np.zeros(1) if loss is None else loss.per_sample(prediction, target).astype("float64")
            means.append(float(np.average(each, weights=weights)) if weights is None or weights.any() else 0.0)
        meter.add(means, penalty, predictions, rows)
        between()


@knows(
    verbose="Say progress=True or progress=False",
    validation_split="Hold data out yourself: validation_data=(x[n:], y[n:])",
    learning_rate="It stands in the optimizer: optimizer=lm.optimizers.Adam(0.001)",
    lr="It stands in the optimizer: optimizer=lm.optimizers.Adam(0.001)",
    loss_weights="A loss brings its own: lm.losses.Weighted('huber', 0.1)",
)
def fit(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    loss: Any,
    optimizer: Any,
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: Any = None,
    metrics: Any = (),
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
    progress: bool | str = "auto",
    engine: str = "numpy",
) -> History:
    """Train for a number of passes over arrays, or over an iterable of batches.

    Ctrl-C ends training after the step in progress: the model stays usable, and the history so far is returned. A
    second Ctrl-C interrupts at once.

    Arguments:
        x, y: arrays with one row for each sample; tuples or dicts by name where the model has several inputs or
            outputs. Without ``y``, ``x`` is an iterable of batches ``(x, y)`` or ``(x, y, sample_weight)``, or a
            function that makes one for each epoch, such as a generator function.
        loss: a registered name or a `Loss`; a tuple, or a dict by name, for several outputs. Their losses are added up:
            ``lm.losses.Weighted`` makes one count more or less, and is reported as it counts.
        optimizer: a registered name or an `Optimizer`. A model goes on where steps with an equal one stopped, with its
            slots and its place in the schedule; ``model.optimizer_state = None`` starts anew.
        epochs, batch_size: how often to pass over the data, and how many rows a step takes; iterables have batches
            of their own.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)`` or batches of these, evaluated after every epoch as
            ``val_loss``, ...
        metrics: names or `Metric` objects for every output, or dicts of these by output. Those of training are of the
            model as it was at each step, and sample and class weights count in them.
        callbacks: `Callback` objects, such as those of `lamella.callbacks`.
        shuffle: whether every epoch has an order of its own, which follows from the model's seed and step.
        sample_weight: how much each row counts, (N,).
        class_weight: how much the rows of a label count, as in ``{0: 1.0, 1: 5.0}``, or one such dict for each of
            some outputs by name; labels that are not named count 1. Multiplies sample weights.
        steps_per_epoch: how many batches of an iterable make an epoch, for those without an end.
        validation_steps: how many batches of validation data are looked at, for those without an end; they start anew
            after every epoch.
        clip_value: hold every entry of the gradients between ``-clip_value`` and ``clip_value``.
        clip_norm: scale the gradients down where the norm of all together is larger.
        penalties: what parameters add to the loss (``val_loss`` too) and its gradient, by patterns of their names, as
            in ``{"*.kernel": lm.regularization.L2(1e-4)}``.
        constraints: bounds of parameters after each step, as in ``{"dense_*.kernel": lm.regularization.MaxNorm(3)}``.
        progress: what to print: ``"auto"`` a live line on a terminal, a line for each epoch in a notebook, and nothing
            elsewhere, as in pipes and logs; True a line for each epoch there too; False nothing anywhere.
        engine: what computes; ``"numpy"`` stands for the model's own backend.

    Raises:
        DataError: arrays that do not fit the model or the loss.
        NonFiniteError: the loss became NaN or infinite.

    Whatever is raised, the model is left as it was after the last whole step.
    """
    if engine != "numpy":
        raise ArgumentError(f"engine: expected 'numpy', the only one in this version, got {engine!r}")
    epochs = positive(epochs, "epochs", minimum=0)
    if progress not in (True, False, "auto"):
        raise ArgumentError(f"progress: expected 'auto', True or False, got {progress!r}")
    size = positive(batch_size, "batch_size")
    losses = _losses(model, loss)
    optimizer = _resolve("optimizers", Optimizer, optimizer)
    weighting = {"sample_weight": sample_weight, "class_weight": class_weight}
    data = batches_of(model, x, y, losses, size=size, shuffle=shuffle, steps=steps_per_epoch, **weighting)
    metrics = metrics if isinstance(metrics, Mapping) else _listed(metrics)
    meter, val_meter = _Meter(model, metrics), _Meter(model, metrics)
    if validation_data is None and validation_steps is not None:
        raise ArgumentError("validation_steps: expected None without validation_data")
    checked = None
    if validation_data is not None:
        checked = held_out(model, validation_data, losses, max(size, 256), steps=validation_steps)
    bounds = {"clip_value": clip_value, "clip_norm": clip_norm, "penalties": penalties, "constraints": constraints}
    plan, rules = _what_learns(model, bounds)
    listeners = _Listeners(callbacks, progress)
    history, begins = History(), True
    _warn_of_probabilities(model, losses)
    _warn_of_rate_zero(model, optimizer)

    def epoch_of_steps() -> None:
        nonlocal plan, rules, begins
        for rows in data.epoch():
            if plan.frozen != model.frozen_layers:  # by a callback
                plan, rules = _what_learns(model, bounds)
            penalty = rules.penalty(model)
            result = take_step(model, plan, losses, optimizer, rules, rows.batch, begins=begins)
            begins = False
            meter.add(result.losses, penalty, tuple(map(model.device.asnumpy, result.predictions)), rows)
            listeners.tell("on_batch_end", model, rows.size, meter.logs())
            interruption.check()
            if listeners.stopped:
                return

    with Interruption(join=True) as interruption:
        try:
            listeners.begin(model, epochs, data.length)
            for epoch in range(epochs):
                if not listeners.stopped:
                    listeners.tell("on_epoch_begin", model, epoch)
                if listeners.stopped:
                    break
                meter.start()
                epoch_of_steps()
                logs = meter.logs()
                try:
                    if checked is not None:
                        val_meter.start()
                        _evaluate(model, losses, checked, val_meter, rules.penalty(model), interruption.check)
                        logs |= {f"val_{name}": value for name, value in val_meter.logs().items()}
                    listeners.end_epoch(model, epoch, logs)
                finally:
                    history.add(logs)
                interruption.check()
            history.stopped = listeners.stopped
        except KeyboardInterrupt:
            if interruption.insisted:
                raise
            history.stopped, history.interrupted = "interrupted", True
        finally:
            listeners.end(model)
    history.interrupted |= interruption.asked
    if listeners.progress is not None and history.stopped:
        listeners.progress.say(history.stopped)
    return history


def _warn_of_probabilities(model: Model, losses: tuple[Loss | None, ...]) -> None:
    """Say so if a loss takes logits and the last layer of its output makes probabilities of anything."""
    for value, loss in zip(model.program.outputs, losses, strict=True):
        leaf = next((leaf for leaf in model.program.leaves if value in leaf.outputs), None)
        if loss is not None and loss.on_logits and leaf is not None and _squeezes(model, leaf):
            warnings.warn(
                f"{loss!r} takes logits, and {leaf.label} makes probabilities of them; leave this layer out, or use a "
                "loss on probabilities",
                MistakeWarning,
                stacklevel=4,
            )


_MOST_PROBED = 1 << 18  # numbers; the last layers of a classifier have fewer


def _squeezes(model: Model, leaf: Leaf) -> bool:
    """Whether a layer without arrays takes any numbers, even far from 0, into [0, 1], as sigmoid and softmax do."""
    from lamella.model import Model  # a model knows its training

    spec = model.program.specs[leaf.inputs[0]]
    shape = (16, *(size if isinstance(size, int) else 2 for size in spec.shape[1:]))
    if leaf.params or leaf.state or len(leaf.inputs) > 1 or len(leaf.outputs) > 1 or not spec.is_float:
        return False
    if math.prod(shape) > _MOST_PROBED:
        return False
    probe, rng = Input(shape[1:]), np.random.default_rng(0)
    far = np.copysign(10.0 ** rng.uniform(1.0, 4.0, shape), rng.standard_normal(shape))
    try:
        result = Model(probe, leaf.layer.named("probe")(probe)).predict(far)
    except LamellaError:  # it takes no such numbers
        return False
    return bool(result.size and result.min() >= 0.0 and result.max() <= 1.0)


def _warn_of_rate_zero(model: Model, optimizer: Optimizer) -> None:
    """Say so if a schedule that went on from an earlier training has nothing left to give."""
    state = model.optimizer_state
    if state is None or not state.fits(optimizer) or optimizer.learning_rate != state.optimizer.learning_rate:
        return
    if state.learning_rate(state.t + 1) == state.learning_rate(state.t + 2) == 0.0:
        warnings.warn(
            f"fit: the learning rate is 0 from step {state.t} on, where an earlier training with an equal "
            f"{optimizer!r} stopped; give another schedule, or set model.optimizer_state = None to start anew",
            MistakeWarning,
            stacklevel=4,
        )


def _what_learns(model: Model, bounds: Mapping[str, Any]) -> tuple[Plan, Regularization]:
    """The plan of a step, and the rules for the parameters that take part."""
    plan = Plan(model.program, model.frozen_layers, wants_dx=False, training=True)
    if not plan.parameters:
        raise ArgumentError("fit: no layer has parameters that are not frozen; unfreeze some, or predict only")
    return plan, Regularization(model, **bounds)


class _Listeners:
    """Callbacks in their order, and whether one of them asked to stop."""

    def __init__(self, callbacks: Any, progress: bool | str) -> None:
        if not isinstance(callbacks, Iterable):
            raise ArgumentError(f"callbacks: expected a list of lamella.Callback objects, got {callbacks!r}")
        self.progress = _progress(progress)
        self.callbacks: list[Callback] = [*callbacks, *([] if self.progress is None else [self.progress])]
        events = [name for name in vars(Callback) if name.startswith("on_")]
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise ArgumentError(f"callbacks: expected lamella.Callback objects, got {callback!r}")
            for name in dir(type(callback)):
                if name.startswith("on_") and name not in events:
                    raise ArgumentError(
                        f"callbacks: {type(callback).__name__}.{name} would never be called; events are "
                        f"{', '.join(events)}.{did_you_mean(name, events)}"
                    )
                if name in events:
                    _check_event(callback, name)
        self.begun: list[Callback] = []
        self.stopped: str | None = None

    def begin(self, model: Model, epochs: int, batches: int | None) -> None:
        for callback in self.callbacks:
            self._call(callback.on_train_begin, model, epochs, batches)
            self.begun.append(callback)

    def tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            self._call(getattr(callback, event), *arguments)

    def end_epoch(self, model: Model, epoch: int, logs: dict[str, float]) -> None:
        """Tell of the end of an epoch; what callbacks add to the logs must be numbers."""
        for callback in self.callbacks:
            self._call(callback.on_epoch_end, model, epoch, logs)
            given, where = dict(logs), f"{type(callback).__name__}.on_epoch_end"
            logs.clear()  # if something is no number, the history takes what came before it
            for name, value in given.items():
                logs[name] = number(value, f"{where}: logs[{name!r}]", finite=False)

    def end(self, model: Model) -> None:
        """Tell everyone who heard of the beginning; the first error comes when all have heard."""
        with contextlib.ExitStack() as stack:
            for callback in reversed(self.begun):
                stack.callback(self._call, callback.on_train_end, model)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except StopTraining as stop:
            self.stopped = self.stopped or str(stop) or "stopped by a callback"


def _check_event(callback: Callback, name: str) -> None:
    """Refuse a method that can't be called as `fit` does."""
    expected = list(inspect.signature(getattr(Callback, name)).parameters)
    try:
        inspect.signature(getattr(callback, name)).bind(*expected[1:])
    except TypeError as error:
        raise ArgumentError(
            f"callbacks: {type(callback).__name__}.{name}: {error}; expected {name}({', '.join(expected)})"
        ) from None


def _progress(progress: bool | str) -> Progress | None:
    if progress is False:
        return None
    from lamella.progress import Progress, is_watched

    return Progress() if progress is True or is_watched() else None
