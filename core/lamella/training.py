"""Training and evaluation: batches in, steps taken, numbers out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lamella import registry
from lamella.arguments import positive
from lamella.data import as_array, as_inputs, as_weights, by_name, row_count
from lamella.engine import Batch, Gradients, Plan, StepResult, cut, run_step, slice_rows
from lamella.errors import ArgumentError, DataError, NonFiniteError
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.protocol import ArraySpec
from lamella.threads import run_lanes, thread_count

if TYPE_CHECKING:
    from lamella.graph import Leaf
    from lamella.model import Model

__all__ = ["Callback", "History", "OptimizerState", "evaluate", "fit", "gradients", "train_on_batch"]


PIECE = 1 << 15  # numbers of the flat buffers that an optimizer updates at a time, to stay in a core's cache


class History:
    """What `fit` measured: one number for each epoch, by name, as in ``history["val_loss"][-1]``."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def add(self, logs: Mapping[str, float]) -> None:
        """Append the numbers of one epoch."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    @property
    def epochs(self) -> int:
        """How many epochs were finished."""
        return max(map(len, self.history.values()), default=0)

    def __getitem__(self, name: str) -> list[float]:
        return self.history[name]

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {self.epochs} epochs: {last}>"


class Callback:
    """Called by `fit` as training goes on; override what you need."""

    def on_train_begin(self, model: Model, epochs: int, batches: int) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, model: Model, epoch: int) -> None:
        """Before an epoch; epochs count from 0."""

    def on_batch_end(self, model: Model, rows: int, logs: Mapping[str, float]) -> None:
        """After each step, with the averages of the epoch so far."""

    def on_epoch_end(self, model: Model, epoch: int, logs: Mapping[str, float]) -> None:
        """After an epoch and its validation."""

    def on_train_end(self, model: Model) -> None:
        """After the last epoch, or when training stops for another reason."""


class OptimizerState:
    """What an optimizer remembers between steps: how many there were, and its slots, flat as the parameters are."""

    def __init__(self, optimizer: Optimizer, model: Model) -> None:
        self.optimizer = optimizer
        self.backend = model.device
        self.t = 0
        self.slots: dict[str, Any] = {}
        for name, value in optimizer.slots.items():
            self.slots[name] = model.storage.empty_like().flat
            self.slots[name][...] = value

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether steps of an optimizer go on from here: it may differ in its learning rate only."""
        own, other = self.optimizer.config(), optimizer.config()
        return type(self.optimizer) is type(optimizer) and own | {"learning_rate": 0} == other | {"learning_rate": 0}

    def as_numpy(self) -> tuple[Optimizer, int, dict[str, Any]]:
        """Return the optimizer, the number of steps, and the slots as NumPy."""
        return self.optimizer, self.t, {name: np.array(self.backend.asnumpy(slot)) for name, slot in self.slots.items()}

    @classmethod
    def from_numpy(cls, model: Model, optimizer: Optimizer, t: int, slots: Mapping[str, Any]) -> OptimizerState:
        """Return the state that `as_numpy` described, for a model of the same parameters."""
        state = cls(optimizer, model)
        state.t = t
        for name, values in slots.items():
            state.slots[name][...] = model.device.storable(model.device.asarray(values.astype(model.dtype)))
        return state

    def copy(self, model: Model) -> OptimizerState:
        """Return the same state for a model of the same parameters, in its dtype and on its backend."""
        return self.from_numpy(model, *self.as_numpy())

    def apply(self, model: Model, gradients: Gradients) -> None:
        """Take one step.

        On NumPy, buffers that a cache does not hold are updated piece by piece by other threads, while this one waits:
        Ctrl-C reaches it only, so that no update stays half done.
        """
        storage = model.storage
        runs = list(storage.runs(gradients.names))
        if model.backend != "numpy" or sum(run.stop - run.start for run in runs) <= PIECE:
            self._update(model, gradients, runs)
        else:
            pieces = [slice(k, min(k + PIECE, run.stop)) for run in runs for k in range(run.start, run.stop, PIECE)]
            count = thread_count()
            errors: list[BaseException] = []

            def lane(first: int) -> None:
                try:
                    for piece in pieces[len(pieces) * first // count : len(pieces) * (first + 1) // count]:
                        self._update(model, gradients, [piece])
                except BaseException as error:
                    errors.append(error)

            run_lanes([lambda: None, *(partial(lane, first) for first in range(count))])
            if errors:
                raise errors[0]
        self.t += 1

    def _update(self, model: Model, gradients: Gradients, runs: Sequence[slice]) -> None:
        """Update some pieces of the flat buffers: compute everything first, then write."""
        storage, backend = model.storage, model.device
        written: list[tuple[Any, Any]] = []
        with np.errstate(all="ignore"):
            for run in runs:
                slots = {name: backend.view(slot[run]) for name, slot in self.slots.items()}
                p, g = backend.view(storage.flat[run]), backend.view(gradients.storage.flat[run])
                rate = self.optimizer.learning_rate
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


class _Data:
    """Inputs, targets and weights of one call, checked."""

    def __init__(
        self, model: Model, x: Any, y: Any, losses: tuple[Loss | None, ...], sample_weight: Any = None
    ) -> None:
        self.model = model
        self.inputs = as_inputs(model.input_names, model.input_specs, x)
        self.rows = row_count(self.inputs, "x")
        given = by_name("y", y, model.output_names)
        # as the user gave them, for metrics
        self.targets = tuple(
            None if one is None else as_array(one, f"y of {name!r}: expected an array")
            for one, name in zip(given, model.output_names, strict=True)
        )
        self.prepared = tuple(map(self._prepare, losses, self.targets, model.output_names, model.output_specs))
        rows = [len(target) for target in self.prepared if target is not None]
        if any(count != self.rows for count in rows):
            raise DataError(f"x has {self.rows} rows and y has {rows[0]}; expected equally many")
        self.weights = as_weights(model.output_names, self.rows, sample_weight)

    def _prepare(self, loss: Loss | None, target: Any, name: str, spec: ArraySpec) -> Any:
        """A target as the loss takes it, held against the size that the prediction will have."""
        if loss is None:
            return None
        if target is None:
            raise DataError(f"y of {name!r}: nothing for {loss!r}; give loss=None for outputs that are not trained on")
        sizes: dict[int | str, int] = {}
        for own, array in zip(self.model.input_specs, self.inputs, strict=True):
            sizes.update({n: m for n, m in zip(own.shape[1:], array.shape[1:], strict=True) if isinstance(n, str)})
        try:
            return loss.prepare(spec.replace(shape=tuple(sizes.get(n, n) for n in spec.shape)), target)
        except DataError as error:
            if len(self.model.output_names) == 1:
                raise
            raise DataError(f"y of {name!r}: {error}") from None

    def take(self, rows: Any) -> _Rows:
        """Some of the rows, on the backend and off it."""
        bring = self.model.device.asarray
        count = len(self.inputs[0][rows])
        weights = tuple(None if own is None else own[rows] for own in self.weights)
        sums = tuple(float(count if own is None else own.sum()) for own in weights)
        shares = [
            (np.ones(count) if own is None else own) / (total or 1.0) for own, total in zip(weights, sums, strict=True)
        ]
        batch = Batch(
            inputs=tuple(bring(array[rows]) for array in self.inputs),
            targets=tuple(None if target is None else bring(target[rows]) for target in self.prepared),
            weights=tuple(bring(share.astype(self.model.dtype)) for share in shares),
            offset=0,
        )
        targets = tuple(None if target is None else target[rows] for target in self.targets)
        return _Rows(batch, targets, weights, sums)


class _Rows(NamedTuple):
    """Some rows of the data: as the engine takes them, and what metrics want."""

    batch: Batch
    targets: tuple[Any, ...]
    weights: tuple[Any, ...]  # of each output's rows, None where all weigh 1
    sums: tuple[float, ...]  # the weight of the rows, for each output


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
        self.sums: dict[str, tuple[Any, ...]] = {}

    def add(self, losses: Sequence[float], predictions: tuple[Any, ...], rows: _Rows) -> None:
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
    model: Model, plan: Plan, losses: tuple[Loss | None, ...], batch: Batch, observe: Any = None
) -> tuple[StepResult, Gradients]:
    """Run one step on a whole batch; the gradients come in a buffer of the model's, and nothing else changes."""
    rows = batch.inputs[0].shape[0]
    sliced = model.backend == "numpy"  # a GPU wants the whole batch at once
    threads = thread_count() if sliced else 1
    sizes = slice_rows(model.program, rows, threads) if sliced else [rows]
    buffers = model.gradient_buffers(min(threads, len(sizes)))
    where = {"seed": model.seed, "step": model.step}
    slices = cut(batch, sizes)
    result = run_step(plan, model.device, model.arrays(), slices, losses, buffers, **where, observe=observe)
    return result, buffers[0]


def _train_step(
    model: Model, plan: Plan, losses: tuple[Loss | None, ...], optimizer: Optimizer, batch: Batch
) -> StepResult:
    """Take one step, or raise and change nothing."""
    result, gradients = _step(model, plan, losses, batch)
    runs = gradients.storage.runs(gradients.names)
    if not math.isfinite(result.loss) or not all(_is_finite(model, gradients.storage.flat[run]) for run in runs):
        raise _explain_non_finite(model, plan, losses, batch, result.loss)
    state = model.optimizer_state
    if state is None or not state.fits(optimizer):
        state = OptimizerState(optimizer, model)
    state.optimizer = optimizer
    state.apply(model, gradients)
    for name, value in result.updates.items():
        model.state_storage.part(name)[...] = model.device.storable(value)
    model.optimizer_state = state
    model.step += 1
    return result


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


def train_on_batch(model: Model, x: Any, y: Any, *, loss: Any, optimizer: Any, sample_weight: Any = None) -> float:
    """Take one training step on all rows given, and return the loss before it.

    Steps of equal optimizers, or of ones that differ in the learning rate only, go on from each other.

    Raises:
        DataError: arrays that do not fit the model or the loss.
        NonFiniteError: a loss that is NaN or infinite; the model is left as it was.
    """
    losses = _losses(model, loss)
    optimizer = _resolve("optimizers", Optimizer, optimizer)
    data = _Data(model, x, y, losses, sample_weight)
    plan = Plan(model.program, model.frozen_layers, wants_dx=False, training=True)
    return _train_step(model, plan, losses, optimizer, data.take(slice(None)).batch).loss


def gradients(
    model: Model, x: Any, y: Any, *, loss: Any, training: bool = True, sample_weight: Any = None
) -> tuple[float, dict[str, Any], Any]:
    """See `lamella.Model.gradients`."""
    losses = _losses(model, loss)
    data = _Data(model, x, y, losses, sample_weight)
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
    data = _Data(model, x, y, losses, sample_weight)
    meter = _Meter(model, metrics)
    _evaluate(model, losses, data, meter, positive(batch_size, "batch_size"))
    return meter.logs()


def _evaluate(model: Model, losses: tuple[Loss | None, ...], data: _Data, meter: _Meter, batch_size: int) -> None:
    for start in range(0, data.rows, batch_size):
        part = slice(start, start + batch_size)
        rows = data.take(part)
        predictions = model.infer(rows.batch.inputs)
        means = []
        for loss, prediction, prepared, weights in zip(losses, predictions, data.prepared, rows.weights, strict=True):
            each = np.zeros(1) if loss is None else loss.per_sample(prediction, prepared[part]).astype("float64")
            means.append(float(np.average(each, weights=weights)) if weights is None or weights.any() else 0.0)
        meter.add(means, predictions, rows)


def fit(
    model: Model,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: Any,
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: tuple[Any, ...] | None = None,
    metrics: Any = (),
    callbacks: Iterable[Callback] = (),
    shuffle: bool = True,
    sample_weight: Any = None,
    progress: bool | str = "auto",
    engine: str = "numpy",
) -> History:
    """Train for a number of passes over the data.

    Arguments:
        x, y: arrays with one row for each sample; tuples or dicts by name where the model has several inputs or
            outputs.
        loss: a registered name or a `Loss`, for each output.
        optimizer: a registered name or an `Optimizer`.
        epochs, batch_size: how often to pass over the data, and how many rows a step takes.
        validation_data: ``(x, y)`` or ``(x, y, sample_weight)``, evaluated after every epoch as ``val_loss``, ...
        metrics: names or `Metric` objects; those of training are of the model as it was at each step.
        callbacks: `Callback` objects.
        shuffle: whether every epoch has an order of its own, which follows from the model's seed and step.
        sample_weight: how much each row counts, (N,).
        progress: ``"auto"`` shows a live line on a terminal and nothing elsewhere, True always, False never.
        engine: what computes; ``"numpy"`` stands for the model's own backend.

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
    data = _Data(model, x, y, losses, sample_weight)
    metrics = metrics if isinstance(metrics, Mapping) else _listed(metrics)
    meter, val_meter = _Meter(model, metrics), _Meter(model, metrics)
    held_out = None
    if validation_data is not None:
        if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
            raise ArgumentError("validation_data: expected (x, y) or (x, y, sample_weight)")
        held_out = _Data(model, validation_data[0], validation_data[1], losses, *validation_data[2:])
    plan = Plan(model.program, model.frozen_layers, wants_dx=False, training=True)
    if not plan.parameters:
        raise ArgumentError("fit: no layer has parameters that are not frozen; unfreeze some, or predict only")
    if not isinstance(callbacks, Iterable):
        raise ArgumentError(f"callbacks: expected a list of lamella.Callback objects, got {callbacks!r}")
    listeners = [*callbacks, *_progress(progress)]
    for listener in listeners:
        if not isinstance(listener, Callback):
            raise ArgumentError(f"callbacks: expected lamella.Callback objects, got {listener!r}")
    history = History()
    for listener in listeners:
        listener.on_train_begin(model, epochs, math.ceil(data.rows / size))
    try:
        for epoch in range(epochs):
            meter.start()
            for listener in listeners:
                listener.on_epoch_begin(model, epoch)
            order = np.arange(data.rows)
            if shuffle:
                np.random.default_rng([model.seed & 0xFFFFFFFF, model.seed >> 32, model.step]).shuffle(order)
            for start in range(0, data.rows, size):
                rows = data.take(order[start : start + size])
                result = _train_step(model, plan, losses, optimizer, rows.batch)
                meter.add(result.losses, tuple(map(model.device.asnumpy, result.predictions)), rows)
                for listener in listeners:
                    listener.on_batch_end(model, len(rows.batch.inputs[0]), meter.logs())
            logs = meter.logs()
            if held_out is not None:
                val_meter.start()
                _evaluate(model, losses, held_out, val_meter, max(size, 256))
                logs |= {f"val_{name}": value for name, value in val_meter.logs().items()}
            history.add(logs)
            for listener in listeners:
                listener.on_epoch_end(model, epoch, logs)
    finally:
        for listener in listeners:
            listener.on_train_end(model)
    return history


def _progress(progress: bool | str) -> list[Callback]:
    if progress is False:
        return []
    from lamella.progress import Progress, is_terminal  # brings rich, which only people at a terminal need

    return [Progress()] if progress is True or is_terminal() else []
