"""Training and evaluation: batches in, steps taken, numbers out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import registry
from lamella.arguments import positive
from lamella.batches import ArrayBatches, Data, Rows, StreamBatches, batches_of, held_out
from lamella.callbacks import Callback, StopTraining
from lamella.data import by_name
from lamella.engine import Batch, Gradients, Plan, StepResult, cut, run_step, slice_rows
from lamella.errors import ArgumentError, DataError, NonFiniteError
from lamella.history import History
from lamella.interruption import Interruption
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.regularization import Regularization
from lamella.schedules import learning_rate_at
from lamella.threads import run_lanes, thread_count

if TYPE_CHECKING:
    from lamella.graph import Leaf
    from lamella.model import Model

__all__ = ["OptimizerState", "evaluate", "fit", "gradients", "train_on_batch"]

Batches = ArrayBatches | StreamBatches

PIECE = 1 << 15  # numbers of the flat buffers that an optimizer updates at a time, to stay in a core's cache


class OptimizerState:
    """What an optimizer remembers between steps: how many there were, and its slots, flat as the parameters are.

    Attributes:
        t: the number of steps so far.
        slots: the optimizer's arrays.
        scale: what every learning rate is multiplied with; callbacks change it.
        began: how many steps were taken before the first with this learning rate, from where its schedule counts.
    """

    def __init__(self, optimizer: Optimizer, model: Model) -> None:
        self.optimizer = optimizer
        self.backend = model.device
        self.t = 0
        self.scale = 1.0
        self.began = 0
        self.slots: dict[str, Any] = {}
        for name, value in optimizer.slots.items():
            self.slots[name] = model.storage.empty_like().flat
            self.slots[name][...] = value

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether steps of an optimizer go on from here: it may differ in its learning rate only."""
        own, other = self.optimizer.config(), optimizer.config()
        return type(self.optimizer) is type(optimizer) and own | {"learning_rate": 0} == other | {"learning_rate": 0}

    def go_on_with(self, optimizer: Optimizer) -> None:
        """Take the next steps with an optimizer that fits; another learning rate starts anew, unscaled."""
        if optimizer.learning_rate != self.optimizer.learning_rate:
            self.scale, self.began = 1.0, self.t
        self.optimizer = optimizer

    def learning_rate(self, t: int) -> float:
        """Return the learning rate of step ``t``, such as ``state.t`` for the last step."""
        return self.scale * learning_rate_at(self.optimizer.learning_rate, t - self.began)

    def as_numpy(self) -> tuple[Optimizer, dict[str, Any], dict[str, Any]]:
        """Return the optimizer, the numbers beside it by name, and the slots as NumPy."""
        slots = {name: np.array(self.backend.asnumpy(slot)) for name, slot in self.slots.items()}
        return self.optimizer, {"t": self.t, "began": self.began, "scale": self.scale}, slots

    @classmethod
    def from_numpy(
        cls, model: Model, optimizer: Optimizer, progress: Mapping[str, Any], slots: Mapping[str, Any]
    ) -> OptimizerState:
        """Return the state that `as_numpy` described, for a model of the same parameters."""
        state = cls(optimizer, model)
        state.t, state.began, state.scale = progress["t"], progress["began"], progress["scale"]
        for name, values in slots.items():
            state.slots[name][...] = model.device.storable(model.device.asarray(values.astype(model.dtype)))
        return state

    def copy(self, model: Model) -> OptimizerState:
        """Return the same state for a model of the same parameters, in its dtype and on its backend."""
        return self.from_numpy(model, *self.as_numpy())

    def apply(self, model: Model, gradients: Gradients) -> KeyboardInterrupt | None:
        """Take one step; return what to raise once everything else of the step is done.

        On NumPy, buffers that a cache does not hold are updated piece by piece by other threads, while this one waits:
        Ctrl-C reaches it only, and finds the update whole.
        """
        interruption: KeyboardInterrupt | None = None
        storage, rate = model.storage, self.learning_rate(self.t + 1)
        runs = list(storage.runs(gradients.names))
        if model.backend != "numpy" or sum(run.stop - run.start for run in runs) <= PIECE:
            self._update(model, gradients, runs, rate)
        else:
            pieces = [slice(k, min(k + PIECE, run.stop)) for run in runs for k in range(run.start, run.stop, PIECE)]
            count = thread_count()
            errors: list[BaseException] = []

            def lane(first: int) -> None:
                try:
                    for piece in pieces[len(pieces) * first // count : len(pieces) * (first + 1) // count]:
                        self._update(model, gradients, [piece], rate)
                except BaseException as error:
                    errors.append(error)

            try:
                run_lanes([lambda: None, *(partial(lane, first) for first in range(count))])
            except KeyboardInterrupt as error:  # comes when every piece is written
                interruption = error
            if errors:
                raise errors[0]
        self.t += 1
        return interruption

    def _update(self, model: Model, gradients: Gradients, runs: Sequence[slice], rate: float) -> None:
        """Update some pieces of the flat buffers: compute everything first, then write."""
        storage, backend = model.storage, model.device
        written: list[tuple[Any, Any]] = []
        with np.errstate(all="ignore"):
            for run in runs:
                slots = {name: backend.view(slot[run]) for name, slot in self.slots.items()}
                p, g = backend.view(storage.flat[run]), backend.view(gradients.storage.flat[run])
                p, new = self.optimizer.update(backend.xp, p, g, slots, rate, self.t + 1)
                written.append((storage.flat[run], p))
                written.extend((self.slots[name][run], value) for name, value in new.items())
        for target, value in written:
            target[...] = backend.storable(value)


def _resolve(kind: str, base: type, value: Any) -> Any:
    """A loss, optimizer or metric, from an object, a class or a registered name."""
    if isinstance(value, str):
        value = registry.find(kind, value)
    if isinstance(value, type) and issubclass(value, base):
        value = value()
    if not isinstance(value, base):
        raise ArgumentError(f"{base.__name__.lower()}: expected a name or a {base.__name__}, got {value!r}")
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
                label = one if isinstance(one, str) else entry.name if entry else type(metric).__name__
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
            sums = metric.update(predictions[output], rows.targets[output], rows.weights[output])
            known = self.sums.get(label)
            self.sums[label] = sums if known is None else tuple(a + b for a, b in zip(known, sums, strict=True))

    def logs(self) -> dict[str, float]:
        pairs = zip(self.losses, self.weights, strict=True)
        logs = {"loss": sum(total / weight if weight else 0.0 for total, weight in pairs)}
        if self.penalty:
            logs["loss"] += self.penalty / self.rows
        for label, _, metric in self.metrics:
            logs[label] = metric.result(self.sums[label]) if label in self.sums else math.nan
        return logs


def _listed(metrics: Any) -> tuple[Any, ...]:
    if isinstance(metrics, str | Metric | type):
        return (metrics,)
    if not isinstance(metrics, Iterable):
        raise ArgumentError(f"metrics: expected names or Metric objects, got {metrics!r}")
    return tuple(metrics)


def _step(
    model: Model,
    plan: Plan,
    losses: tuple[Loss | None, ...],
    batch: Batch,
    observe: Any = None,
    *,
    kept: list[Gradients] | None = None,
) -> tuple[StepResult, Gradients]:
    """Run one step on a whole batch, with gradients in new buffers or kept ones; nothing in the model changes."""
    rows = batch.inputs[0].shape[0]
    sliced = model.backend == "numpy"  # a GPU wants the whole batch at once
    threads = thread_count() if sliced else 1
    sizes = slice_rows(model.program, rows, threads) if sliced else [rows]
    buffers = [] if kept is None else kept
    while len(buffers) < min(threads, len(sizes)):
        buffers.append(Gradients(model.storage.empty_like()))
    buffers = buffers[: min(threads, len(sizes))]
    where = {"seed": model.seed, "step": model.step}
    slices = cut(batch, sizes)
    result = run_step(plan, model.device, model.arrays(), slices, losses, buffers, **where, observe=observe)
    return result, buffers[0]


def _train_step(
    model: Model,
    plan: Plan,
    losses: tuple[Loss | None, ...],
    optimizer: Optimizer,
    rules: Regularization,
    batch: Batch,
) -> StepResult:
    """Take one step, or raise and change nothing."""
    result, gradients = _step(model, plan, losses, batch, kept=model.gradient_buffers)
    if not math.isfinite(result.loss) or not _are_finite(model, gradients):
        raise _explain_non_finite(model, plan, losses, batch, result.loss)
    for name, value in result.updates.items():
        if not _is_finite(model, value):
            raise NonFiniteError(
                f"step {model.step}: the new value of {name} is not finite; nothing of this "
                "step was kept. Rescale the data"
            )
    if rules.shapes_gradients:
        with np.errstate(all="ignore"):
            rules.shape(model, gradients)
        if not _are_finite(model, gradients):
            name = next(name for name, value in gradients.items() if not _is_finite(model, value))
            raise NonFiniteError(
                f"step {model.step}: a penalty makes the gradient of {name} not finite; nothing of this step was kept"
            )
    state = model.optimizer_state
    if state is None or not state.fits(optimizer):
        state = OptimizerState(optimizer, model)
    state.go_on_with(optimizer)
    interruption = state.apply(model, gradients)
    rules.constrain(model)
    for name, value in result.updates.items():
        model.state_storage.part(name)[...] = model.device.storable(value)
    model.optimizer_state = state
    model.step += 1
    if interruption is not None:
        raise interruption
    return result


def _are_finite(model: Model, gradients: Gradients) -> bool:
    """Whether every gradient of a step is finite."""
    storage = gradients.storage
    return all(_is_finite(model, storage.flat[run]) for run in storage.runs(gradients.names))


def _explain_non_finite(
    model: Model, plan: Plan, losses: tuple[Loss | None, ...], batch: Batch, loss: float
) -> NonFiniteError:
    """Run the same step once more and look where the first value that is not finite arises."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"step {model.step}: {what}; nothing of this step was kept. "
    for name, value in zip(model.input_names, batch.inputs, strict=True):
        if not _is_finite(model, value):
            return NonFiniteError(f"{where}Input {name!r} holds values that are not finite; clean the data")
    for name, value in zip(model.output_names, batch.targets, strict=True):
        if value is not None and not _is_finite(model, value):
            return NonFiniteError(f"{where}The target of {name!r} holds values that are not finite; clean the data")
    for name, array in (*model.parameters.items(), *model.state.items()):
        if not np.isfinite(array).all():
            return NonFiniteError(
                f"{where}{name} is not finite since an earlier step: the update overflowed; lower the learning rate"
            )
    found: list[str] = []
    forward: set[str] = set()

    def observe(leaf: Leaf, arrays: tuple[Any, ...]) -> None:
        on_the_way_back = leaf.name in forward
        forward.add(leaf.name)
        if not found and not all(_is_finite(model, array) for array in arrays):
            found.append(f"{leaf.label}, in its backward pass" if on_the_way_back else leaf.label)

    _step(model, plan, losses, batch, observe)
    if found and math.isfinite(loss) == ("backward" in found[0]):
        return NonFiniteError(f"{where}The first layer with values that are not finite is {found[0]}")
    names = ", ".join(repr(one) for one in losses if one is not None)
    return NonFiniteError(f"{where}Every layer's output is finite; the loss {names} overflows on these predictions")


def _is_finite(model: Model, array: Any) -> bool:
    values = model.device.asnumpy(array)
    if values.dtype.kind != "f" or not values.size:
        return True
    return math.isfinite(values.max()) and math.isfinite(values.min())  # a NaN anywhere is both


def train_on_batch(
    model: Model,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: Any,
    sample_weight: Any = None,
    class_weight: Any = None,
    **rules: Any,
) -> float:
    """Take one training step on all rows given, and return the loss before it, penalties included.

    Steps of equal optimizers, or of ones that differ in the learning rate only, go on from each other. The arguments
    are those of `fit`; ``rules`` are ``clip_value``, ``clip_norm``, ``penalties`` and ``constraints``.

    Raises:
        DataError: arrays that do not fit the model or the loss.
        NonFiniteError: a loss that is NaN or infinite; the model is left as it was.
    """
    losses = _losses(model, loss)
    optimizer = _resolve("optimizers", Optimizer, optimizer)
    data = Data(model, x, y, losses, sample_weight, class_weight)
    regularization = Regularization(model, **rules)
    plan = Plan(model.program, model.frozen_layers, wants_dx=False, training=True)
    penalty = regularization.penalty(model)
    return _train_step(model, plan, losses, optimizer, regularization, data.take(slice(None)).batch).loss + penalty


def gradients(
    model: Model, x: Any, y: Any, *, loss: Any, training: bool = True, sample_weight: Any = None
) -> tuple[float, dict[str, Any], Any]:
    """See `lamella.Model.gradients`."""
    losses = _losses(model, loss)
    data = Data(model, x, y, losses, sample_weight)
    plan = Plan(model.program, model.frozen_layers, wants_dx=True, training=training)
    result, buffer = _step(model, plan, losses, data.take(slice(None)).batch)
    asnumpy = model.device.asnumpy
    given = {name: buffer.storage.numpy(name) for name in buffer}
    dx = tuple(None if part is None else np.array(asnumpy(part), order="C") for part in result.dx)
    return result.loss, given, dx[0] if len(dx) == 1 else dx


def evaluate(
    model: Model, x: Any, y: Any, *, loss: Any, metrics: Any = (), sample_weight: Any = None, batch_size: int
) -> dict[str, float]:
    """Return the weighted mean loss and the metrics, by name, in inference mode."""
    losses = _losses(model, loss)
    size = positive(batch_size, "batch_size")
    data = batches_of(model, x, y, losses, size=size, sample_weight=sample_weight)
    meter = _Meter(model, metrics)
    _evaluate(model, losses, data, meter)
    return meter.logs()


def _evaluate(model: Model, losses: tuple[Loss | None, ...], data: Batches, meter: _Meter, penalty: float = 0) -> None:
    for rows in data.epoch():
        predictions = model.infer(rows.batch.inputs)
        means = []
        for loss, prediction, target, weights in zip(losses, predictions, rows.prepared, rows.weights, strict=True):
            each = np.zeros(1) if loss is None else loss.per_sample(prediction, target).astype("float64")
            means.append(float(np.average(each, weights=weights)) if weights is None or weights.any() else 0.0)
        meter.add(means, penalty, predictions, rows)


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
    progress: bool | str = "auto",
    engine: str = "numpy",
    **rules: Any,
) -> History:
    """Train for a number of passes over the data.

    Ctrl-C ends training after the step in progress: the model stays usable, and the history so far is returned. A
    second Ctrl-C interrupts at once.

    Arguments:
        x, y: arrays with one row for each sample; tuples or dicts by name where the model has several inputs or
            outputs. Without ``y``, ``x`` is an iterable of batches ``(x, y)`` or ``(x, y, sample_weight)``, or a
            function that makes one for each epoch, such as a generator function.
        loss: a registered name or a `Loss`, for each output.
        optimizer: a registered name or an `Optimizer`.
        epochs, batch_size: how often to pass over the data, and how many rows a step takes; iterables have batches
            of their own.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)`` or batches of these, evaluated after every epoch as
            ``val_loss``, ...
        metrics: names or `Metric` objects; those of training are of the model as it was at each step.
        callbacks: `Callback` objects, such as those of `lamella.callbacks`.
        shuffle: whether every epoch has an order of its own, which follows from the model's seed and step.
        sample_weight: how much each row counts, (N,).
        class_weight: how much the rows of a label count, as in ``{0: 1.0, 1: 5.0}``, or one such dict for each of
            some outputs by name; labels that are not named count 1. Multiplies sample weights.
        steps_per_epoch: how many batches of an iterable make an epoch, for those without an end.
        progress: ``"auto"`` shows a live line on a terminal and nothing elsewhere, True always, False never.
        engine: what computes; ``"numpy"`` stands for the model's own backend.
        clip_value: hold every entry of the gradients between ``-clip_value`` and ``clip_value``.
        clip_norm: scale the gradients down where the norm of all together is larger.
        penalties: what parameters add to the loss (``val_loss`` too) and its gradient, by patterns of their names, as
            in ``{"*.kernel": lm.regularization.L2(1e-4)}``.
        constraints: bounds of parameters after each step, as in ``{"dense_*.kernel": lm.regularization.MaxNorm(3)}``.

    Raises:
        DataError: arrays that do not fit the model or the loss.
        NonFiniteError: the loss became NaN or infinite; the model is left as it was before that step.
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
    checked = None if validation_data is None else held_out(model, validation_data, losses, max(size, 256))
    plan = Plan(model.program, model.frozen_layers, wants_dx=False, training=True)
    if not plan.parameters:
        raise ArgumentError("fit: no layer has parameters that are not frozen; unfreeze some, or predict only")
    regularization = Regularization(model, **rules)
    listeners = _Listeners(callbacks, progress)
    history = History()

    def epoch_of_steps() -> None:
        for rows in data.epoch():
            penalty = regularization.penalty(model)
            result = _train_step(model, plan, losses, optimizer, regularization, rows.batch)
            meter.add(result.losses, penalty, tuple(map(model.device.asnumpy, result.predictions)), rows)
            listeners.tell("on_batch_end", model, rows.size, meter.logs())
            interruption.check()
            if listeners.stopped:
                return

    with Interruption() as interruption:
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
                if checked is not None:
                    val_meter.start()
                    _evaluate(model, losses, checked, val_meter, regularization.penalty(model))
                    logs |= {f"val_{name}": value for name, value in val_meter.logs().items()}
                try:
                    listeners.tell("on_epoch_end", model, epoch, logs)
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
    return history


class _Listeners:
    """Callbacks in their order, and whether one of them asked to stop."""

    def __init__(self, callbacks: Any, progress: bool | str) -> None:
        if not isinstance(callbacks, Iterable):
            raise ArgumentError(f"callbacks: expected a list of lamella.Callback objects, got {callbacks!r}")
        self.callbacks: list[Callback] = [*callbacks, *_progress(progress)]
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise ArgumentError(f"callbacks: expected lamella.Callback objects, got {callback!r}")
        self.begun: list[Callback] = []
        self.stopped: str | None = None

    def begin(self, model: Model, epochs: int, batches: int | None) -> None:
        for callback in self.callbacks:
            self._call(callback.on_train_begin, model, epochs, batches)
            self.begun.append(callback)

    def tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            self._call(getattr(callback, event), *arguments)

    def end(self, model: Model) -> None:
        for callback in self.begun:
            self._call(callback.on_train_end, model)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except StopTraining as stop:
            self.stopped = self.stopped or str(stop) or "stopped by a callback"


def _progress(progress: bool | str) -> list[Callback]:
    if progress is False:
        return []
    from lamella.progress import Progress, is_terminal  # brings rich, which only people at a terminal need

    return [Progress()] if progress is True or is_terminal() else []
