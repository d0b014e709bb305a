"""What a model's predictions are worth: losses and metrics over batches, in inference mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import knows, positive
from lamella.losses import Loss
from lamella.network import Appended, Network
from lamella.protocol.inputs import only_reads, unwritable
from lamella.training.data import ArrayBatches, StreamBatches, batches_of
from lamella.training.meter import Measured, Meter
from lamella.training.mistakes import warn_of_probabilities
from lamella.training.task import Losses, Metrics, losses_of

__all__ = ["EVALUATE_ROWS", "evaluate", "measure"]

EVALUATE_ROWS = 1024  # rows that evaluate takes at a time, unless told otherwise


@knows(elsewhere.EVALUATE)
def evaluate(
    model: Network,
    x: Any,
    y: Any = None,
    *,
    loss: Losses,
    metrics: Metrics = (),
    sample_weight: Any = None,
    batch_size: int = EVALUATE_ROWS,
    append: Appended | Mapping[str, Appended] | None = None,
) -> dict[str, Any]:
    """Return the weighted mean loss and the metrics, by name, in inference mode; data as in `fit`.

    Each is a float; metrics of each class, and a confusion matrix, are arrays. ``append`` has layers run after the
    outputs, as in `predict`; loss and metrics are of what comes then.
    """
    if append is not None:
        return evaluate(
            model._with(append), x, y, loss=loss, metrics=metrics, sample_weight=sample_weight, batch_size=batch_size
        )
    losses = losses_of(model, loss)
    warn_of_probabilities(model, losses)
    size = positive(batch_size, "batch_size")
    data = batches_of(model, x, y, losses, size=size, sample_weight=sample_weight)
    meter = Meter(model, metrics, losses)
    with model.reading() as values:
        measure(partial(model.infer, values=values), losses, data, meter)
    return Measured(meter.logs())


def measure(
    infer: Callable[[tuple[Any, ...]], tuple[Any, ...]],
    losses: tuple[Loss | None, ...],
    data: ArrayBatches | StreamBatches,
    meter: Meter,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Add up losses and metrics of what ``infer`` makes of inputs; call ``between`` after each batch."""
    for rows in data.epoch():
        predictions = infer(rows.batch.inputs)
        means = []
        every = zip(losses, predictions, rows.prepared, rows.weights, rows.sums, strict=True)
        for loss, prediction, target, weights, total in every:
            each = np.zeros(1) if loss is None else _each(loss, prediction, target)
            means.append(float(np.sum(each if weights is None else each * weights) / total) if total else 0.0)
        meter.add(means, 0.0, predictions, rows)
        between()


def _each(loss: Loss, prediction: Any, target: Any) -> Any:
    """The loss of each row in float64. It may read its arguments only."""
    with only_reads(loss, "predictions or targets", "r = prediction - target"):
        return loss.per_sample(unwritable(prediction), target).astype("float64")
