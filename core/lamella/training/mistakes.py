"""Warnings of what is most probably a mistake where training begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.errors import counted
from lamella.losses import BinaryCrossEntropy, BinaryFocalCrossEntropy, Hinge, Loss, SoftmaxCrossEntropy, Weighted
from lamella.network import Network, warn_of_mistakes
from lamella.optimizers import Optimizer
from lamella.protocol.configured import Configured
from lamella.training.data import ArrayBatches, Data, StreamBatches

__all__ = [
    "warn_of_missing_classes",
    "warn_of_probabilities",
    "warn_of_rate_zero",
    "warn_of_restart",
    "warn_of_sorted_rows",
]


def warn_of_probabilities(model: Network, losses: tuple[Loss | None, ...]) -> None:
    """Say so if a loss takes logits and the last layer of its output makes probabilities of anything."""
    for output, loss in enumerate(losses):
        last = model.graph.last(output)
        if loss is not None and loss.on_logits and last is not None and last.layer.gives_probabilities:
            layer = Configured.__repr__(last.layer)  # without its name
            warn_of_mistakes(
                f"{loss!r} takes logits, and {last.label} makes probabilities of them. Likely fix: leave this "
                f"layer out, and model.predict(x, append={layer}) gives probabilities; or keep it, with "
                f"{_on_probabilities(loss)}"
            )


def _on_probabilities(loss: Loss | None) -> str:
    """The loss that takes the probabilities of what this one takes."""
    loss = _unweighted(loss)
    if isinstance(loss, SoftmaxCrossEntropy):
        return "loss='categorical_cross_entropy'"
    if isinstance(loss, BinaryCrossEntropy):
        return "loss=lm.losses.BinaryCrossEntropy(from_logits=False)"
    return "a loss on probabilities"


def _unweighted(loss: Loss | None) -> Loss | None:
    """The loss itself, where it is given with a weight."""
    while isinstance(loss, Weighted):
        loss = loss.loss
    return loss


_DECISIONS = (BinaryCrossEntropy, BinaryFocalCrossEntropy, Hinge)
ROWS_OF_A_CLASS = 10  # on average, from which on a class without any is no chance
ROWS_OF_THE_RAREST = 3  # where classes have very different shares, as words have, some may lack by chance


def warn_of_missing_classes(data: ArrayBatches | StreamBatches, checked: ArrayBatches | StreamBatches | None) -> None:
    """Say so if there is a unit for a class that no row has."""
    if not isinstance(data, ArrayBatches):
        return
    for k, name in enumerate(data.data.model.output_names):
        counts = data.data.rows_of_classes(k)
        if counts is None:
            continue
        class_weight = data.data.weighted.get(k, {})
        left_out = _left_out(data.data, k)
        missing = [label for label in np.flatnonzero(counts == 0).tolist() if label not in left_out]
        held = checked.data.rows_of_classes(k) if isinstance(checked, ArrayBatches) else None
        all_rows = counts if held is None else counts + held
        by_chance = missing != [0] and all_rows[all_rows > 0].min(initial=ROWS_OF_THE_RAREST) < ROWS_OF_THE_RAREST
        if by_chance or counts.sum() < ROWS_OF_A_CLASS * len(counts):
            missing = [label for label in missing if label in class_weight]
        if not missing:
            continue
        there = int(np.count_nonzero(counts))
        fix = f"a last layer of {counted(there, 'unit')}, if there are no more classes"
        if there == 1:
            fix = "rows of more than one class, or there is nothing to learn"
        elif counts[there:].any():  # whose labels such a layer would not have
            fix = f"labels from 0 to {there - 1}, numpy.unique(y, return_inverse=True)[1], and {fix}"
        if held is not None and held[missing].any():
            fix = "rows in random order before some are held out, since these have what is missing"
        elif missing == [0]:
            fix = "y - 1 if labels count from 1, and one unit less in the last layer"
        elif any(label in class_weight for label in missing):
            fix = "a class_weight of the labels that there are"
        warn_of_mistakes(
            f"fit: y of {name!r} has no row of {len(missing)} of {len(counts)} classes: {_labels(missing)}. "
            f"Likely fix: {fix}"
        )


def warn_of_sorted_rows(
    data: ArrayBatches | StreamBatches,
    held: ArrayBatches | StreamBatches,
    losses: tuple[Loss | None, ...],
    share: float,
) -> None:
    """Say so if the last rows, which are held out, lack a class, and so many of them do not lack it by chance."""
    if not isinstance(data, ArrayBatches) or not isinstance(held, ArrayBatches):
        return
    for k, name in enumerate(data.data.model.output_names):
        learned, last = (_rows_of_labels(part.data, k, losses[k]) for part in (data, held))
        if learned is None or last is None or not last.sum() or np.any((learned == 0) & (last > 0)):
            continue  # where training lacks a class, that is what is told
        for label in _left_out(data.data, k) & set(range(len(learned))):
            learned[label] = last[label] = 0
        if not last.any():
            continue
        expected = learned / learned.sum() * last.sum()
        missing = np.flatnonzero((last == 0) & (expected >= ROWS_OF_A_CLASS)).tolist()
        if not missing:
            continue
        there = np.flatnonzero(last).tolist()
        told = f"have only class {there[0]}" if len(there) == 1 else f"have no row of class {_labels(missing)}"
        warn_of_mistakes(
            f"fit: validation_split={share:g}: the last {held.data.rows} rows, which are held out, {told} of "
            f"{name!r}. Likely fix: rows in random order before: order = numpy.random.default_rng(0)."
            "permutation(len(x)), and x[order], y[order]"
        )


def _left_out(data: Data, k: int) -> set[int | None]:
    """The labels of an output that do not count, or weigh nothing."""
    return {label for label, weight in data.weighted.get(k, {}).items() if not weight} | {data.ignored(k)}


def _rows_of_labels(data: Data, k: int, loss: Loss | None) -> np.ndarray[Any, Any] | None:
    """How many rows each class of an output has, that of a single unit for yes or no too; None where there are none."""
    target = data.prepared[k]
    if target is None or target.size != len(target) or not isinstance(_unweighted(loss), _DECISIONS):
        return data.rows_of_classes(k)
    return np.bincount((target > 0).ravel(), minlength=2) if np.isin(target, (-1, 0, 1)).all() else None


def _labels(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")


def warn_of_rate_zero(model: Network, optimizer: Optimizer) -> None:
    """Say so if a schedule that went on from an earlier training has nothing left to give."""
    state = model.values.optimizer
    if state is None or not state.fits(optimizer) or optimizer.learning_rate != state.optimizer.learning_rate:
        return
    if state.is_at_rest:
        warn_of_mistakes(
            f"fit: the learning rate is 0 from step {state.t} on, where an earlier training with an equal "
            f"{optimizer!r} stopped; give another schedule, or set model.optimizer_state = None to restart it"
        )


def warn_of_restart(model: Network, optimizer: Optimizer) -> None:
    """Say so if other settings make an optimizer forget what it remembers."""
    state = model.values.optimizer
    if state is None or type(state.optimizer) is not type(optimizer) or state.fits(optimizer):
        return
    warn_of_mistakes(
        f"{optimizer!r} starts anew, without what {counted(state.t, 'step')} left in its slots: it has "
        f"{state.differences(optimizer)}. Only the learning rate may differ; set model.optimizer_state = None where a "
        "new start is meant"
    )
