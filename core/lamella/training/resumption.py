"""Where a training stands: what `fit` writes beside the model, so that a later call goes on as if nothing had happened.

The file has the model and its optimizer, how many epochs are done, how many batches of the next one, the step from
which the order of that epoch's data follows, what it has measured so far, and the states of callbacks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from lamella.arguments import measured, positive
from lamella.callbacks import Callback
from lamella.errors import ArgumentError, DataError
from lamella.files import archive
from lamella.network import Network, warn_of_mistakes
from lamella.training.meter import Meter

__all__ = ["Place", "Taken", "Writer", "restore", "take_up"]

SECONDS = 60.0  # between two writes within an epoch


class Place(NamedTuple):
    """How far a training has come."""

    epoch: int = 0  # the number of the one to go on with
    batch: int = 0  # of that epoch, how many are done
    drawn: int = 0  # batches of all epochs, for data that has no beginning
    began: int | None = None  # the step with which that epoch began
    meter: dict[str, Any] | None = None
    history: dict[str, list[Any]] = {}  # noqa: RUF012  # never changed
    callbacks: tuple[tuple[str, dict[str, Any]], ...] = ()
    stopped: str | None = None  # by a callback
    ends: str | None = None  # why the epoch in progress takes no more batches: a callback asked to stop
    task: dict[str, str] = {}  # noqa: RUF012  # what was said to `fit`, in words

    @property
    def told(self) -> str:
        """Where it goes on, in words."""
        batches = f" after {self.batch} batch{'es' * (self.batch != 1)}" if self.batch else ""
        return f"epoch {self.epoch + 1}{batches}"


class Writer:
    """Writes a training to its file: after each epoch, and within one from time to time."""

    def __init__(
        self, path: str | os.PathLike[str], model: Network, callbacks: Sequence[Callback], place: Place
    ) -> None:
        self.path, self._model, self._callbacks = path, model, callbacks
        self._wrote = time.monotonic()
        self.written = place  # the last that was; of the one to begin with, the file has all there is to keep

    @property
    def is_due(self) -> bool:
        """Whether the last write is long ago."""
        return time.monotonic() - self._wrote >= SECONDS

    def check(self) -> None:
        """Refuse what callbacks remember now if it can't be written.

        Raises:
            DataError: it can't.
        """
        archive.pack({"callbacks": self._states()})

    def write(self, place: Place, meter: Meter) -> None:
        """Write model and place; the meter's sums where an epoch is in progress."""
        sums = None if place.began is None else meter.state_dict()
        where = place._replace(meter=sums, callbacks=self._states())
        self._model._save(self.path, training=where._asdict())
        self._wrote, self.written = time.monotonic(), place

    def _states(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        return tuple((type(one).__name__, one.state_dict()) for one in self._callbacks)


class Taken(NamedTuple):
    """What a file has of a training, checked."""

    contents: archive.Contents
    place: Place

    def fill(self, model: Network) -> None:
        """Give a model what the file has."""
        model._frozen = self.contents.graph.frozen_layers
        model._fill(self.contents.arrays, self.contents.step, self.contents.optimizer)
        model._epochs = self.contents.epochs


def take_up(path: str | os.PathLike[str], model: Network, task: dict[str, str]) -> Taken | None:
    """Return what a file has of a training of this model; None where there is no file.

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
        place = _checked(found.training)
    except (ArgumentError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: its place of a training can't be read ({error})") from error
    differing = [
        f"{name} is {now}, was {then}" for name, now in task.items() if (then := place.task.get(name, now)) != now
    ]
    if differing and not place.stopped:
        warn_of_mistakes(
            f"{where}: this training is another one than was interrupted: {'; '.join(differing)}. It goes on with what "
            "is said now"
        )
    return Taken(found, place)


def _checked(held: dict[str, Any]) -> Place:
    """A place as it was read, each part of it what it must be."""
    place = Place(**held)
    for name in ("epoch", "batch", "drawn"):
        positive(getattr(place, name), name, minimum=0, maximum=2**53)
    if place.began is not None:
        positive(place.began, "began", minimum=0)
    if (place.began is None) != (place.meter is None):
        raise ValueError("an epoch in progress has a step with which it began, and sums")
    for value, kinds in ((place.stopped, str | None), (place.ends, str | None), (place.meter, dict | None)):
        if not isinstance(value, kinds):
            raise TypeError(f"expected {kinds}, got {value!r:.60}")
    for values in place.history.values():
        for value in values:
            measured(value, "history")
    callbacks = tuple((name, dict(state)) for name, state in place.callbacks)
    return place._replace(callbacks=callbacks, task={str(name): str(said) for name, said in place.task.items()})


def restore(place: Place, callbacks: Sequence[Callback]) -> None:
    """Give callbacks the states of those of the same class, in their order."""
    left = list(place.callbacks)
    for callback in callbacks:
        name = type(callback).__name__
        held = next((one for one in left if one[0] == name), None)
        if held is not None:
            left.remove(held)
            try:
                callback.load_state_dict(held[1])
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise DataError(
                    f"fit: resume: {name}.load_state_dict can't take up what the file has of a {name} ({error}); is it "
                    "another class of the same name?"
                ) from error
    missing = [name for name, state in left if state]
    if missing:
        warn_of_mistakes(
            f"fit: resume: the training had callbacks that this one has not: {', '.join(missing)}; what they "
            "remember is lost"
        )
