"""What an epoch measures: weighted means of losses, and metrics."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lamella.elsewhere import instruction_of
from lamella.errors import ArgumentError, DataError, shown
from lamella.losses import Loss
from lamella.metrics import METRICS, Metric
from lamella.metrics.metric import Sums
from lamella.network import Network, warn_of_mistakes
from lamella.protocol.inputs import naming, only_reads, unwritable
from lamella.registry import snake_case
from lamella.training.data import Rows

__all__ = ["Measured", "Meter", "listed"]


class Measured(dict[str, float]):
    """What `evaluate` measured: a dict by name, of which ``loss, accuracy = ...`` takes no names for values.

    >>> measured = Measured(loss=0.25, accuracy=0.5)
    >>> loss, accuracy = measured.values()
    >>> loss, accuracy = measured
    Traceback (most recent call last):
    TypeError: evaluate returns a dict by name, {'loss': 0.25, 'accuracy': 0.5}, and this takes its names apart. \
Likely fix: measured["loss"], or loss, ... = measured.values()
    """

    def __iter__(self) -> Iterator[str]:
        caller = sys._getframe(1)  # of all that go through the names, only taking apart into variables is a mistake
        if instruction_of(caller) in ("UNPACK_SEQUENCE", "UNPACK_EX"):
            raise TypeError(
                f"evaluate returns a dict by name, {dict(self.items())!r}, and this takes its names apart. Likely fix: "
                'measured["loss"], or loss, ... = measured.values()'
            )
        return super().__iter__()


class Meter:
    """Weighted means of the losses and sums of metrics over the batches of an epoch."""

    def __init__(self, network: Network, metrics: Any, losses: Sequence[Loss | None]) -> None:
        self.names = network.output_names
        if not isinstance(metrics, Mapping):
            metrics = dict.fromkeys(self.names, listed(metrics))
        self.metrics: list[tuple[str, int, Metric]] = []
        for output, given in metrics.items():
            if output not in self.names:
                raise ArgumentError(f"metrics: unknown output {shown(output)}; expected {', '.join(self.names)}")
            for one in listed(given):
                metric = METRICS.resolve(one)
                entry = METRICS.entry_of(type(metric))
                label = one if isinstance(one, str) else entry.name if entry else snake_case(type(metric).__name__)
                label = f"{output}_{label}" if len(self.names) > 1 else label
                taken = [known for known, _, _ in self.metrics]
                number = next(n for n in itertools.count(1) if (label if n == 1 else f"{label}_{n}") not in taken)
                label, place = label if number == 1 else f"{label}_{number}", self.names.index(output)
                self.metrics.append((label, place, _completed(metric, network, place, losses[place], label)))
        self.start()

    def start(self) -> None:
        self.losses = [0.0] * len(self.names)
        self.weights = [0.0] * len(self.names)
        self.penalty, self.rows = 0.0, 0
        self._sums: dict[str, list[Sums]] = {}  # by metric; of several batches where it keeps rows, which merge at once

    def _merged(self, label: str, metric: Metric) -> Sums:
        """The sums of all batches so far."""
        parts = self._sums[label]
        if len(parts) > 1:
            parts[:] = [metric.merge(parts)]
        return parts[0]

    def state_dict(self) -> dict[str, Any]:
        """What was added up so far, as plain data and arrays."""
        names = ("losses", "weights", "penalty", "rows")
        sums = {label: self._merged(label, metric) for label, _, metric in self.metrics if label in self._sums}
        return {name: getattr(self, name) for name in names} | {"sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.losses, self.weights = list(state["losses"]), list(state["weights"])
        self.penalty, self.rows = state["penalty"], state["rows"]
        known = {label for label, _, _ in self.metrics}
        self._sums = {label: [tuple(sums)] for label, sums in state["sums"].items() if label in known}

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
                sums = _sums(metric, predictions[output], rows.targets[output], rows.weights[output])
            parts = self._sums.setdefault(label, [])
            parts.append(sums)
            if not metric.keeps_rows:
                self._merged(label, metric)

    def logs(self, *, ended: bool = True) -> dict[str, Any]:
        """Losses and metrics so far; before the epoch has ended, without those that take all rows."""
        pairs = zip(self.losses, self.weights, strict=True)
        logs: dict[str, Any] = {"loss": sum(total / weight if weight else 0.0 for total, weight in pairs)}
        if self.penalty:
            logs["loss"] += self.penalty / self.rows
        if len(self.names) > 1:
            for name, total, weight in zip(self.names, self.losses, self.weights, strict=True):
                if weight:
                    logs[f"{name}_loss"] = total / weight
        for label, _, metric in self.metrics:
            if ended or not metric.keeps_rows:
                logs[label] = metric.result(self._merged(label, metric)) if label in self._sums else math.nan
        return logs


def _completed(metric: Metric, network: Network, output: int, loss: Loss | None, label: str) -> Metric:
    """A metric with the arguments that nobody gave and that follow from the model and its loss."""
    unsaid = metric.unsaid(network.output_specs[output])
    _warn_of_threshold(metric, network, output, loss, label)
    given: dict[str, Any] = {}
    if "threshold" in unsaid:
        what = f"{label!r} takes predictions above 0 for yes, as if they were logits", "threshold=0.0 or 0.5"
        given["threshold"] = 0.0 if _is_on_logits(network, output, loss, *what) else 0.5
    if "from_logits" in unsaid:
        what = f"{label!r} takes predictions for logits", "from_logits=True or False"
        given["from_logits"] = _is_on_logits(network, output, loss, *what)
    if "ignore_class" in unsaid and loss is not None:
        given["ignore_class"] = loss.ignore_class
    return metric.replace(**given) if given else metric


def _warn_of_threshold(metric: Metric, network: Network, output: int, loss: Loss | None, label: str) -> None:
    """Say so if logits are held against what looks like a probability: a number in (0, 1) of two places."""
    argument = type(metric)._signature.parameters.get("threshold")
    if argument is None or argument.default is not None:  # where it does not follow from model and loss
        return
    given, last = metric.config()["threshold"], network.graph.last(output)
    if given is None or not 0.0 < given < 1.0 or round(given, 2) != given:
        return
    if loss is None or not loss.on_logits or (last is not None and last.layer.gives_probabilities):
        return
    if "threshold" not in metric.replace(threshold=None).unsaid(network.output_specs[output]):
        return  # the greatest of several classes counts
    logit = math.log(given / (1.0 - given))
    fix = f"threshold={logit:.4g}, the logit of {given:g}" if logit else "leave threshold out: 0 is the logit of 0.5"
    warn_of_mistakes(
        f"metrics: {label!r} takes logits above {given:g} for yes, since {loss!r} is on logits. Likely fix: {fix}"
    )


def _is_on_logits(network: Network, output: int, loss: Loss | None, taken: str, fix: str) -> bool:
    """Whether predictions are logits, and no probabilities or numbers on the scale of targets."""
    last = network.graph.last(output)
    if last is not None and last.layer.gives_probabilities:
        return False
    if loss is not None and loss.on_logits is None:
        warn_of_mistakes(
            f"metrics: {taken}: {loss!r} does not say what they are. Likely fix: on_logits = True or False in the "
            f"class of the loss, or a metric with {fix}"
        )
    return loss is None or loss.on_logits is not False


def listed(metrics: Any) -> tuple[Any, ...]:
    if isinstance(metrics, str | Metric | type):
        return (metrics,)
    if not isinstance(metrics, Iterable) or isinstance(metrics, bytes | np.ndarray):
        raise ArgumentError(f"metrics: expected names or Metric objects, got {shown(metrics)}")
    return tuple(metrics)


def _sums(metric: Metric, prediction: Any, target: Any, weight: Any) -> Sums:
    """What a metric adds up; it may read its arguments only."""
    # errstate: of predictions that are not finite, or too large to be squared
    with only_reads(metric, "predictions, targets or weights", "target = target - 0.5"), np.errstate(all="ignore"):
        return metric.update(unwritable(prediction), target, weight)
