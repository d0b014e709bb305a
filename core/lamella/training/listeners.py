"""The callbacks of one training: checked, told of each event, and asked whether to stop."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lamella.arguments import measured
from lamella.callbacks import Callback, StopTraining
from lamella.errors import ArgumentError, did_you_mean, shown
from lamella.network import Network

__all__ = ["Listeners"]


class Listeners:
    """Callbacks in their order, and whether one of them asked to stop."""

    def __init__(self, callbacks: Any, progress: Callback | None) -> None:
        if not isinstance(callbacks, Iterable) or isinstance(callbacks, str | bytes | Mapping | np.ndarray):
            raise ArgumentError(f"callbacks: expected a list of lamella.Callback objects, got {shown(callbacks)}")
        self.callbacks: list[Callback] = [*callbacks, *([] if progress is None else [progress])]
        events = [name for name in vars(Callback) if name.startswith("on_")]
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise ArgumentError(f"callbacks: expected lamella.Callback objects, got {shown(callback)}")
            for name in dir(type(callback)):
                if name.startswith("on_") and name not in events:
                    raise ArgumentError(
                        f"callbacks: {type(callback).__name__}.{name} would never be called; events are "
                        f"{', '.join(events)}.{did_you_mean(name, events)}"
                    )
                if name in events:
                    _check_event(callback, name)
        self.of_batches = [one for one in self.callbacks if _hears(one, "on_batch_end")]
        self.begun: list[Callback] = []
        self.stopped: str | None = None

    def begin(self, model: Network, epochs: int, batches: int | None) -> None:
        for callback in self.callbacks:
            self._call(callback.on_train_begin, model, epochs, batches)
            self.begun.append(callback)

    def tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            self._call(getattr(callback, event), *arguments)

    def end_batch(self, model: Network, rows: int, logs: Mapping[str, Any]) -> None:
        """Tell those who listen of the end of a step, with the averages of the epoch so far."""
        for callback in self.of_batches:
            self._call(callback.on_batch_end, model, rows, logs)

    def end_epoch(self, model: Network, epoch: int, logs: dict[str, Any]) -> None:
        """Tell of the end of an epoch; what callbacks add to the logs must be numeric."""
        for callback in self.callbacks:
            self._call(callback.on_epoch_end, model, epoch, logs)
            given, where = dict(logs), f"{type(callback).__name__}.on_epoch_end"
            logs.clear()  # if something is no number, the history takes what came before it
            for name, value in given.items():
                logs[name] = measured(value, f"{where}: logs[{name!r}]")

    def end(self, model: Network) -> None:
        """Tell everyone who heard of the beginning; the first error comes when all have heard."""
        with contextlib.ExitStack() as stack:
            for callback in reversed(self.begun):
                stack.callback(self._call, callback.on_train_end, model)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except StopTraining as stop:
            self.stopped = self.stopped or str(stop) or "stopped by a callback"


def _hears(callback: Callback, name: str) -> bool:
    """Whether a callback has a method of its own for an event."""
    return getattr(getattr(callback, name), "__func__", None) is not getattr(Callback, name)


_NO_MODEL = ("epoch", "epochs", "batch", "batches", "rows", "logs")


def _check_event(callback: Callback, name: str) -> None:
    """Refuse a method that can't be called as `fit` does, or that takes the model for something else."""
    expected = list(inspect.signature(getattr(Callback, name)).parameters)
    try:
        signature = inspect.signature(getattr(callback, name))
        signature.bind(*expected[1:])
        if (first := next(iter(signature.parameters))) in _NO_MODEL:  # as in Keras, where the model is no argument
            raise TypeError(f"it is called with the model first, which would be its {first!r}")
    except TypeError as error:
        raise ArgumentError(
            f"callbacks: {type(callback).__name__}.{name}: {error}; expected {name}({', '.join(expected)})"
        ) from None
    except ValueError as error:  # of some built-in types
        raise ArgumentError(f"callbacks: {type(callback).__name__}.{name}: {error}; put a function around it") from None
