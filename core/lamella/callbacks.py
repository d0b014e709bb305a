"""Callbacks: what happens beside training, between its steps and epochs.

>>> import lamella as lm
>>> from lamella.datasets import digits
>>> from lamella_layers import Dense, Flatten
>>> images, labels = digits()
>>> model = lm.Sequential([Flatten(), Dense(10)], input_shape=(1, 8, 8))
>>> stop = lm.callbacks.EarlyStopping("loss", patience=2, min_delta=0.05)
>>> task = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.Adam(0.01)}
>>> history = model.fit(images / 16, labels, **task, epochs=100, callbacks=[stop])
>>> history.epochs < 100, history.stopped
(True, 'loss has not improved for 2 epochs')
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from lamella import elsewhere
from lamella.arguments import choice, file_path, flag, function, knows, number, positive, text
from lamella.errors import ArgumentError, DataError, did_you_mean, shown
from lamella.files import archive
from lamella.network import Network, warn_of_mistakes
from lamella.registry import snake_case

__all__ = [
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Lambda",
    "LearningRateMonitor",
    "ReduceOnPlateau",
    "StopTraining",
    "TensorBoardLogger",
    "larger_is_better",
]


_LARGER_IS_BETTER = frozenset(
    ("accuracy", "acc", "precision", "recall", "auc", "auroc", "f1", "r2", "iou", "dice", "score", "kappa")
)


class StopTraining(Exception):
    """Raise it in a callback to end training: ``raise lm.StopTraining("good enough")``.

    Every other callback still hears of the same event. After a step, the epoch ends there: it is validated, and
    ``on_epoch_end`` follows, so it counts in the history, which has the reason in ``history.stopped``.
    """


class Callback:
    """Called by `fit` as training goes on; override what you need. Callbacks are called in their order.

    Any of these may raise `StopTraining`. Every other error ends training too, and goes on to the caller of `fit`.

    >>> import lamella as lm
    >>> class GoodEnough(lm.Callback):
    ...     def on_epoch_end(self, model, epoch, logs):
    ...         if logs["loss"] < 0.1:
    ...             raise lm.StopTraining("good enough")
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            fix = elsewhere.hint(elsewhere.CALLBACK, name)
            if not fix or hasattr(type(self), name):  # a property has failed, and says why
                return object.__getattribute__(self, name)
            raise AttributeError(f"{type(self).__name__} has no {name!r}.{fix}", name=name)

    def on_train_begin(self, model: Any, epochs: int, batches: int | None) -> None:
        """Before the first epoch; ``batches`` is how many an epoch has, None if the data does not say."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Before an epoch; epochs count from 0."""

    def on_batch_end(self, model: Any, rows: int, logs: Mapping[str, Any]) -> None:
        """After each step, with the averages of the epoch so far; metrics that need all rows, such as AUC, are not in.

        Values are floats; those of metrics of each class, and confusion matrices, are arrays.
        """

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, Any]) -> None:
        """After an epoch and its validation; values added to ``logs`` go to later callbacks and to the history."""

    def on_train_end(self, model: Any) -> None:
        """After the last epoch, or when training stops for another reason, errors and Ctrl-C included."""

    def state_dict(self) -> dict[str, Any]:
        """Return what ``fit(..., checkpoint=path)`` shall write down: plain data, and NumPy arrays, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned, with lists for tuples.

        A resumed training calls it after ``on_train_begin`` and, where it goes on within an epoch, ``on_epoch_begin``.
        """


class EarlyStopping(Callback):
    """Ends training when a monitored value has not improved for some epochs, and restores the best epoch's arrays.

    Arguments:
        monitor: the name of the value in the logs.
        patience: after how many epochs in a row without improvement training ends.
        min_delta: by how much a value must be better than the best so far to count.
        mode: "min", "max", or "auto": "max" where the name has a word such as accuracy, precision, recall, auc, f1,
            iou, r2 or score, else "min".
        restore_best: whether the model ends with parameters and state of its best epoch, however training ends.

    Attributes:
        best, best_epoch: the best value so far, and the epoch that gave it, counted from 1 as lines of progress count
            them; None before.

    Raises:
        ArgumentError: the logs have no such value.

    Source: https://keras.io/api/callbacks/early_stopping/; Prechelt, Early Stopping - But When? (1998).

    >>> EarlyStopping("val_accuracy").larger
    True
    """

    @knows(elsewhere.CALLBACK)
    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        self.monitor, self.larger = monitor, _larger(monitor, mode)
        self.patience = positive(patience, "EarlyStopping: patience")
        self.min_delta = number(min_delta, "EarlyStopping: min_delta", minimum=0.0)
        self.restore_best = flag(restore_best, "EarlyStopping: restore_best")
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._values: dict[str, Any] | None = None

    def on_train_begin(self, model: Network, epochs: int, batches: int | None) -> None:
        self._forget()
        self._waited = 0

    def on_epoch_end(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        value = _monitored("EarlyStopping", self.monitor, logs)
        if _is_better(value, self.best, self.larger, self.min_delta):
            self.best, self.best_epoch, self._waited = value, epoch + 1, 0
            if self.restore_best:
                self._values = {**model.parameters, **model.state}
            return
        self._waited += 1
        if self._waited >= self.patience:
            epochs = f"{self.patience} epochs" if self.patience > 1 else "an epoch"
            raise StopTraining(f"{self.monitor} has not improved for {epochs}")

    def state_dict(self) -> dict[str, Any]:
        before = None if self.best_epoch is None else self.best_epoch - 1  # in files, epochs count from 0
        return {"best": self.best, "best_epoch": before, "waited": self._waited, "values": self._values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, before = state["best"], state["best_epoch"]
        self.best_epoch = None if before is None else before + 1
        self._waited, self._values = state["waited"], state["values"]

    def on_train_end(self, model: Network) -> None:
        if self._values is not None:
            model.assign(self._values)
        self._values = None


class ReduceOnPlateau(Callback):
    """Lowers the learning rate when a monitored value has not improved for some epochs.

    It multiplies ``model.optimizer_state.scale``, with which every rate that the optimizer asks for is multiplied, a
    schedule's too. The scale is saved with the model, and is 1 again for an optimizer with another learning rate.

    Arguments:
        monitor, mode: as in `EarlyStopping`.
        factor: what is left of the rate, in (0, 1).
        patience: after how many epochs in a row without improvement the rate falls.
        min_delta: by how much a value must be better than the best so far to count.
        cooldown: how many epochs after a fall do not count.
        min_learning_rate: the lower bound of what this does to the rate; a schedule may go below it.

    Source: https://keras.io/api/callbacks/reduce_lr_on_plateau/

    >>> ReduceOnPlateau(factor=0.5, patience=3).factor
    0.5
    """

    @knows(elsewhere.CALLBACK)
    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        mode: str = "auto",
        cooldown: int = 0,
        min_learning_rate: float = 0.0,
    ) -> None:
        self.monitor, self.larger = monitor, _larger(monitor, mode)
        self.factor = number(factor, "ReduceOnPlateau: factor", above=0.0)
        if self.factor >= 1.0:
            raise ArgumentError(f"ReduceOnPlateau: factor: expected a number below 1, got {factor!r}")
        self.patience = positive(patience, "ReduceOnPlateau: patience")
        self.min_delta = number(min_delta, "ReduceOnPlateau: min_delta", minimum=0.0)
        self.cooldown = positive(cooldown, "ReduceOnPlateau: cooldown", minimum=0)
        self.min_learning_rate = number(min_learning_rate, "ReduceOnPlateau: min_learning_rate", minimum=0.0)

    def on_train_begin(self, model: Network, epochs: int, batches: int | None) -> None:
        self._best: float | None = None
        self._waited = self._cooling = 0

    def on_epoch_end(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        value = _monitored("ReduceOnPlateau", self.monitor, logs)
        if _is_better(value, self._best, self.larger, self.min_delta):
            self._best, self._waited = value, 0
        elif not self._cooling:
            self._waited += 1
        self._cooling = max(0, self._cooling - 1)
        state = model.values.optimizer
        if self._waited >= self.patience and state is not None:
            self._waited, self._cooling = 0, self.cooldown
            rate = state.learning_rate(state.t + 1)
            if rate > self.min_learning_rate:
                state.scale *= max(self.factor, self.min_learning_rate / rate)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited, "cooling": self._cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited, self._cooling = state["best"], state["waited"], state["cooling"]


class LearningRateMonitor(Callback):
    """Adds the learning rate of the epoch's last step to the logs, as ``learning_rate``. Put it before loggers."""

    def on_epoch_begin(self, model: Network, epoch: int) -> None:
        self._rate = math.nan

    def on_batch_end(self, model: Network, rows: int, logs: Mapping[str, Any]) -> None:
        state = model.values.optimizer
        if state is not None and state.t:
            self._rate = state.learning_rate(state.t)

    def on_epoch_end(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        logs["learning_rate"] = self._rate

    def state_dict(self) -> dict[str, Any]:
        return {"rate": getattr(self, "_rate", math.nan)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rate = state["rate"]


class Checkpoint(Callback):
    """Saves the model after every epoch, whole or not at all: training goes on from the file after `load`.

    Arguments:
        path: the file; fields in braces are filled in, ``{epoch}``, which counts the model's epochs from 1 in all
            trainings, and every value of the logs, as in ``"digits-{epoch:03}-{val_loss:.4f}.lamella"``.
        monitor, mode: as in `EarlyStopping`, for ``save_best_only``.
        save_best_only: whether to save only when the value, ``"val_loss"`` unless told otherwise, is better than all
            before, those of earlier trainings with this object, and of the file that is there, included.

    Raises:
        ArgumentError: the logs have no such value, or there is one to watch without ``save_best_only``.

    Source: https://keras.io/api/callbacks/model_checkpoint/

    >>> Checkpoint("digits.lamella", save_best_only=True).monitor
    'val_loss'
    """

    @knows(elsewhere.CALLBACK)
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        monitor: str | None = None,
        mode: str = "auto",
        save_best_only: bool = False,
    ) -> None:
        self.save_best_only = flag(save_best_only, "Checkpoint: save_best_only")
        if monitor is not None and not self.save_best_only:
            raise ArgumentError(
                f"Checkpoint: monitor={shown(monitor)} has no effect where every epoch is saved; say "
                "save_best_only=True"
            )
        self.path = file_path(path, "Checkpoint: path")
        self.monitor = "val_loss" if monitor is None else monitor
        self.larger = _larger(self.monitor, mode)
        self._best: float | None = None

    def on_train_begin(self, model: Network, epochs: int, batches: int | None) -> None:
        folder = os.path.dirname(self.path) or "."
        if "{" not in folder and not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "Checkpoint: no such folder; make it first", folder)
        if self.save_best_only and self._best is None and "{" not in self.path and os.path.exists(self.path):
            self._best = self._best_there()

    def _best_there(self) -> float | None:
        """The best value of the file that stands there, or None, with a warning, if it does not say one."""
        held = archive.best(self.path)
        if held.get("monitor") == self.monitor and isinstance(held.get("value"), float):
            return float(held["value"])
        warn_of_mistakes(
            f"Checkpoint: {self.path} is there, and does not say its best {self.monitor}; the first epoch replaces it"
        )
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = state["best"]
        if best is not None and _is_better(best, self._best, self.larger, 0.0):  # than what the file there says
            self._best = best

    def on_epoch_end(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        if self.save_best_only:
            value = _monitored("Checkpoint", self.monitor, logs)
            if not _is_better(value, self._best, self.larger, 0.0):
                return
            self._best = value
        try:
            path = self.path.format(epoch=model.epochs, **logs)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ArgumentError(
                f"Checkpoint: path: {self.path!r} can't be filled in ({type(error).__name__}: {error}); "
                f"there are {', '.join(('epoch', *logs))}"
            ) from None
        more = {"best": {"monitor": self.monitor, "value": self._best}} if self.save_best_only else {}
        model._save(path, **more)


class CSVLogger(Callback):
    """Writes one line for each epoch to a file; what was there before stays above.

    Metrics of each class have a column for each: ``recall_0``, ``recall_1``. Confusion matrices are left out. Epochs of
    the model are counted from 1 in all trainings. A training that is resumed drops the lines of epochs that it takes
    again.

    Arguments:
        path: the file.
        append: whether lines come after those that are there; False truncates the file.
        separator: what stands between columns.

    Raises:
        DataError: the file is there and has other columns.

    >>> CSVLogger("training.csv", append=False).path
    'training.csv'
    """

    @knows(elsewhere.CALLBACK)
    def __init__(self, path: str | os.PathLike[str], *, append: bool = True, separator: str = ",") -> None:
        if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n':
            raise ArgumentError(
                f"CSVLogger: separator: expected one character such as ',' or ';', got {shown(separator)}"
            )
        self.path, self.append = file_path(path, "CSVLogger: path"), flag(append, "CSVLogger: append")
        self.separator = separator
        self._file: TextIO | None = None

    def on_train_begin(self, model: Network, epochs: int, batches: int | None) -> None:
        self._file = open(  # noqa: SIM115  # until training ends
            self.path, "a+" if self.append else "w+", encoding="utf-8", newline=""
        )
        self._columns: list[str] = []
        self._last = 0  # epoch whose line was written

    def on_epoch_end(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        import csv  # `import lamella` does without

        assert self._file is not None
        numbers = {"epoch": model.epochs, **_numbers(logs)}
        writer = csv.writer(self._file, delimiter=self.separator, lineterminator="\n")
        if not self._columns:
            self._columns = list(numbers)
            self._file.seek(0)
            try:
                there = next(csv.reader(self._file, delimiter=self.separator), None)
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(
                    f"CSVLogger: {self.path} is there and is no CSV file ({error}); give another path"
                ) from None
            if there is None:
                writer.writerow(self._columns)
            elif there != self._columns:
                raise DataError(
                    f"CSVLogger: {self.path} has the columns {', '.join(there)}; this training has "
                    f"{', '.join(self._columns)}. Give another path, or append=False to truncate it"
                )
        self._file.seek(0, os.SEEK_END)
        writer.writerow([numbers.get(name, "") for name in self._columns])
        self._file.flush()
        self._last = model.epochs

    def state_dict(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        size, text = self._file.seek(0, os.SEEK_END), None
        if not self.append:
            self._file.seek(0)
            text = self._file.read()
        return {"size": size, "last": self._last, "text": text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._file is None or not state:
            return
        self._last = state["last"]
        if state["text"] is not None and not self.append:  # which was lost when the file was opened
            self._file.write(state["text"])
            self._file.flush()
        elif state["size"] <= self._file.seek(0, os.SEEK_END):  # else it is gone meanwhile, or another one
            self._file.seek(state["size"])
            if self._file.readline().startswith(f"{self._last + 1}{self.separator}"):  # this training takes it again
                self._file.truncate(state["size"])
            self._file.seek(0, os.SEEK_END)

    def on_train_end(self, model: Network) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class Lambda(Callback):
    """Calls functions at events, in place of a class with methods.

    Arguments:
        on_train_begin, on_epoch_begin, on_batch_end, on_epoch_end, on_train_end: functions with the arguments of the
            method of `Callback`, but for ``self``.

    Raises:
        ArgumentError: what is no function, or none at all; when training begins, one with other arguments.

    Source: https://keras.io/api/callbacks/lambda_callback/

    >>> tell = Lambda(on_epoch_end=lambda model, epoch, logs: print(epoch, logs["loss"]))
    >>> tell.on_epoch_end(None, 0, {"loss": 0.5})
    0 0.5
    """

    def __init__(
        self,
        *,
        on_train_begin: Callable[..., Any] | None = None,
        on_epoch_begin: Callable[..., Any] | None = None,
        on_batch_end: Callable[..., Any] | None = None,
        on_epoch_end: Callable[..., Any] | None = None,
        on_train_end: Callable[..., Any] | None = None,
    ) -> None:
        given = {
            "on_train_begin": (on_train_begin, "(model, epochs, batches)"),
            "on_epoch_begin": (on_epoch_begin, "(model, epoch)"),
            "on_batch_end": (on_batch_end, "(model, rows, logs)"),
            "on_epoch_end": (on_epoch_end, "(model, epoch, logs)"),
            "on_train_end": (on_train_end, "(model)"),
        }
        if all(one is None for one, _ in given.values()):
            raise ArgumentError(f"Lambda: expected a function for one event at least, of {', '.join(given)}")
        for event, (one, signature) in given.items():
            if one is not None:
                setattr(self, event, function(one, f"Lambda: {event}", signature))


class TensorBoardLogger(Callback):
    """Writes the values of each epoch, counted from 1, for TensorBoard, as ``loss/training``, ``loss/validation``.

    Needs one of the packages tensorboardX, tensorboard or torch.

    Arguments:
        folder: where TensorBoard looks: ``tensorboard --logdir folder``. Each training has a file of its own in it.

    Raises:
        ImportError: none of these packages is installed.
    """

    @knows(elsewhere.CALLBACK)
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = file_path(folder, "TensorBoardLogger: folder")
        self._open = _tensorboard_writer()
        self._writer: Any = None

    def on_train_begin(self, model: Network, epochs: int, batches: int | None) -> None:
        # the packages tell files apart by second, machine and process: not enough for two short trainings
        self._writer = self._open(self.folder, filename_suffix=f".{time.time_ns() % 10**9:09}")

    def on_epoch_end(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        for name, value in _numbers(logs).items():
            plain = name.removeprefix("val_")
            self._writer.add_scalar(f"{plain}/{'training' if plain == name else 'validation'}", value, epoch + 1)
        self._writer.flush()

    def on_train_end(self, model: Network) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """The values that loggers write: numbers, and those of each class under a name of its own."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        if not np.ndim(value):
            found[name] = value
        elif value.ndim == 1:
            found |= {f"{name}_{k}": float(one) for k, one in enumerate(value)}
    return found


def _tensorboard_writer() -> Callable[..., Any]:
    """The first class that writes event files among the packages that can."""
    import importlib

    for module, name in (
        ("tensorboardX", "SummaryWriter"),
        ("tensorboard.summary", "Writer"),
        ("torch.utils.tensorboard", "SummaryWriter"),
    ):
        try:
            writer: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        return writer
    raise ImportError("TensorBoardLogger needs a package that writes its files: pip install tensorboardX")


def larger_is_better(name: str) -> bool:
    """Whether a value should grow, by its name.

    >>> larger_is_better("val_top_k_accuracy"), larger_is_better("val_F1Score"), larger_is_better("val_loss")
    (True, True, False)
    """
    return not _LARGER_IS_BETTER.isdisjoint(
        snake_case(text(name, "larger_is_better: name", "'val_accuracy'")).split("_")
    )


def _larger(monitor: str, mode: str) -> bool:
    text(monitor, "monitor", "'val_loss'")
    return larger_is_better(monitor) if choice(mode, "mode", ("auto", "min", "max")) == "auto" else mode == "max"


def _monitored(where: str, monitor: str, logs: Mapping[str, Any]) -> float:
    if monitor not in logs:
        hint = did_you_mean(monitor, logs)
        if monitor.startswith("val_") and not any(name.startswith("val_") for name in logs):
            hint = " Give fit validation_data."
        raise ArgumentError(f"{where}: monitor: no {monitor!r} in this training; there are {', '.join(logs)}.{hint}")
    value: float = logs[monitor]
    if np.ndim(value):
        raise ArgumentError(
            f"{where}: monitor: expected a number, and {monitor!r} is an array {np.shape(value)}, which has no best. "
            "Likely fix: average='macro' in the metric"
        )
    return value


def _is_better(value: float, best: float | None, larger: bool, min_delta: float) -> bool:
    """Whether a number beats the best so far; NaN never does."""
    if math.isnan(value) or best is None:
        return best is None and not math.isnan(value)
    return value > best + min_delta if larger else value < best - min_delta


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise elsewhere.missing(__name__, name, elsewhere.instead(elsewhere.CALLBACKS, name))


def __dir__() -> list[str]:
    return __all__
