"""A model that is served: a session, what was found out about it, and the queue before it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lamella.engine.threads import available_cores
from lamella_serve.batching import Cost, Limits, Queue, elements
from lamella_serve.independence import Verdict, examine
from lamella_serve.session import Session
from lamella_serve.signature import Tensor
from lamella_serve.statistics import Statistics
from lamella_serve.trials import Trial, first_that_runs, limits_of

__all__ = ["DAMAGED", "ServedModel", "Settings"]

DAMAGED = (OverflowError, RecursionError, TypeError, ValueError)  # what may come of a file whose parts do not fit

_log = logging.getLogger("lamella_serve")
_RUNS, _LONG = 9, 0.1  # a row is timed so often, or once if it takes so many seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """How models are loaded and run.

    Attributes:
        limits: how requests wait.
        external_data: whether a model's arrays may stand in other files, in its folder.
    """

    limits: Limits = dataclasses.field(default_factory=Limits)
    external_data: bool = False


class ServedModel:
    """One version of a model.

    Attributes:
        name, version: what it is called; the version is a number.
        settings: how it was loaded, and is run.
        session: the model in onnxruntime.
        verdict: whether requests are joined, and why.
        ranges: low <= value < high, by the names of inputs, where the file's proof says it.
        example: inputs that it answers; None if none were found.
        seconds: that a row takes; None if no example was found.
        statistics: what it has done.
        queue: where requests wait.
        labels: of the last axis, by the names of outputs.
        max_batch_size: the most rows of a request; 0 for a model whose requests are not joined.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        settings: Settings,
        *,
        max_batch_size: int | None = None,
        labels: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Load a model, look for inputs that it answers, warm it up, and find out whether requests may be joined.

        Arguments:
            max_batch_size: what its configuration says; 0: requests are not to be joined. None: it says nothing.
            labels: what its configuration says.

        Raises:
            DataError, FileNotFoundError: see `Session`.
        """
        self.name, self.version, self.settings = name, version, settings
        limits = settings.limits
        threads = max(1, available_cores() // limits.instances)
        self.session = Session(path, external_data=settings.external_data, threads=threads)
        self.ranges = limits_of(self.session.metadata, self.session.signature.inputs)
        trial, said = first_that_runs(self.session, self.ranges)
        self.seconds = None if trial is None else _timed(self.session, trial)
        self.example = None if trial is None else trial.draw([1.0])
        self.verdict = self._judged(trial, said, max_batch_size)
        self.max_batch_size = min(max_batch_size or limits.batch, limits.batch) if self.verdict.joined else 0
        self.labels = self._fitting(dict(labels or {}) or self._own_labels())
        self.statistics = Statistics()
        cost = None
        if self.seconds is not None and self.example and not self.session.open_ended:
            cost = Cost(self.seconds, elements(self.example))
        self.queue = Queue(
            self.session.run,
            dataclasses.replace(limits, batch=max(self.max_batch_size, 1)),
            self.statistics,
            joins=self.verdict.joined,
            cost=cost,
        )

    def _judged(self, trial: Trial | None, said: str, max_batch_size: int | None) -> Verdict:
        if max_batch_size == 0:
            return Verdict(False, "its config.pbtxt says max_batch_size: 0")
        return examine(self.session, trial, said)

    def _own_labels(self) -> dict[str, tuple[str, ...]]:
        """The labels in the file's metadata, of each output that they fit, or of the first if they fit none."""
        text = self.session.metadata.get("labels", "")
        try:
            listed = orjson.loads(text)
        except ValueError:
            listed = text.splitlines()
        if not isinstance(listed, list) or not all(isinstance(label, str) for label in listed):
            _log.warning("labels are no list of strings", extra={"model": self.name})
            return {}
        fitting = [one.name for one in self.outputs if one.axes and one.axes[-1] == len(listed)]
        return dict.fromkeys(fitting or [self.outputs[0].name], tuple(listed)) if listed else {}

    def _fitting(self, labels: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Those labels that are as many as the places that they name; others are told, and left out."""
        places = {one.name: one.axes[-1] if one.axes else 1 for one in self.outputs}
        fitting = {}
        for name, listed in labels.items():
            if isinstance(places.get(name), str) or places.get(name) == len(listed):
                fitting[name] = listed
            else:
                extra = {"model": self.name, "output": name, "labels": len(listed), "places": places.get(name)}
                _log.warning("labels do not fit", extra=extra)
        return fitting

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it takes."""
        return self.session.signature.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it gives."""
        return self.session.signature.outputs


def _timed(session: Session, trial: Trial) -> float:
    """Seconds that one row takes, warm."""
    inputs = trial.draw([1.0])
    taken = [_time(lambda: session.run(inputs))]
    if taken[0] < _LONG:
        taken = [_time(lambda: session.run(inputs)) for _ in range(_RUNS)]
    return float(np.median(taken))


def _time(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
