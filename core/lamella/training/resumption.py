"""Where a training stands: what `fit` writes beside the model, so that a later call goes on as if nothing had happened.

The file has the model and its optimizer, how many epochs are done, how many batches of the next one, the step from
which the order of that epoch's data follows, what it has measured so far, and the states of callbacks.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from lamella.callbacks import Callback
from lamella.errors import DataError, MistakeWarning
from lamella.files import archive
from lamella.network import Network
from lamella.training.history import History
from lamella.training.meter import Meter

__all__ = ["Place", "Writer", "restore", "take_up"]

SECONDS = 60.0  # between two writes within an epoch


class Place(NamedTuple):
    """How far a training has come."""

    epoch: int = 0  # the number of the one to go on with
    batch: int = 0  # of that epoch, how many are done
    drawn: int = 0  # batches of all epochs, for data that has no beginning
    began: int | None = None  # the step with which that epoch began
    meter: dict[str, Any] | None = None
    history: dict[str, list[float]] = {}  # noqa: RUF012  # never changed
    callbacks: tuple[tuple[str, dict[str, Any]], ...] = ()
    stopped: str | None = None  # by a callback
    task: dict[str, str] = {}  # noqa: RUF012  # what was said to `fit`, in words

    @property
    def told(self) -> str:
        """Where it goes on, in words."""
        batches = f" after {self.batch} batch{'es' * (self.batch != 1)}" if self.batch else ""
        return f"epoch {self.epoch + 1}{batches}"


class Writer:
    """Writes a training to its file: after each epoch, and within one from time to time."""

    def __init__(self, path: str | os.PathLike[str], model: Network, callbacks: Sequence[Callback]) -> None:
        self.path, self._model, self._callbacks = path, model, callbacks
        self._wrote = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last write is long ago."""
        return time.monotonic() - self._wrote >= SECONDS

    def write(self, place: Place, history: History, meter: Meter | None = None) -> None:
        """Write model and place; the meter's sums where an epoch is in progress."""
        states = [[type(one).__name__, one.state_dict()] for one in self._callbacks]
        where = place._replace(
            meter=None if meter is None else meter.state_dict(),
            history=history.history,
            callbacks=tuple(states),  # type: ignore[arg-type]
            stopped=None if history.interrupted else history.stopped,
        )
        self._model._save(self.path, training=where._asdict())
        self._wrote = time.monotonic()


def take_up(path: str | os.PathLike[str], model: Network, task: dict[str, str]) -> Place | None:
    """Fill a model with what a file has, and return where its training stood; None where there is no file.

    A warning says what this training says otherwise than that one.

    Raises:
        DataError: the file is damaged, is of another model, or was not written by ``fit(..., checkpoint=path)``.
    """
    if not os.path.exists(path):
        return None
    where = f"fit: checkpoint {os.fsdecode(path)}"
    found = archive.read(path)
    if found.training is None:
        raise DataError(
            f"{where}: a model without the place of a training, which model.save does not write. Likely fix: give "
            "fit another path, or train lm.load(path)"
        )
    if not model._is_like(found.graph):
        raise DataError(
            f"{where}: its model is another one than this. Likely fix: build the model as the training that wrote it "
            "did, or give fit another path"
        )
    try:
        place = Place(**found.training)
        place = place._replace(callbacks=tuple((name, state) for name, state in place.callbacks))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: its place of a training can't be read ({error})") from error
    differing = [
        f"{name} is {now}, was {then}" for name, now in task.items() if (then := place.task.get(name, now)) != now
    ]
    if differing and not place.stopped:
        warnings.warn(
            f"{where}: this training is another one than was interrupted: {'; '.join(differing)}. It goes on with what "
            "is said now",
            MistakeWarning,
            stacklevel=4,
        )
    model._frozen = found.graph.frozen_layers
    model._fill(found.arrays, found.step, found.optimizer)
    model._epochs = found.epochs
    return place


def restore(place: Place, callbacks: Sequence[Callback]) -> None:
    """Give callbacks the states of those of the same class, in their order."""
    left = list(place.callbacks)
    for callback in callbacks:
        name = type(callback).__name__
        held = next((one for one in left if one[0] == name), None)
        if held is not None:
            left.remove(held)
            callback.load_state_dict(held[1])
    missing = [name for name, state in left if state]
    if missing:
        warnings.warn(
            f"fit: resume: the training had callbacks that this one has not: {', '.join(missing)}; what they "
            "remember is lost",
            MistakeWarning,
            stacklevel=4,
        )
