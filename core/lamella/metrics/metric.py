"""What a metric is: sums of batches, how these are put together, and the result that follows from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import number
from lamella.errors import DataError, LayerError
from lamella.losses.loss import as_column, as_predictions, class_targets, spec_of, value_targets
from lamella.protocol.configured import Configured
from lamella.protocol.inputs import as_array
from lamella.protocol.spec import ArraySpec, described
from lamella.registry import snake_case

__all__ = ["METRICS", "Metric", "Sums"]

Sums = tuple[Any, ...]
Array = np.ndarray[Any, Any]


class Metric(Configured):
    """A weighted mean over samples, unless a subclass says otherwise.

    A subclass defines ``per_sample``, or ``update`` and ``result`` where the metric is no mean. Everything is NumPy.

    >>> import lamella as lm
    >>> class Bias(lm.metrics.Metric):
    ...     def per_sample(self, prediction, target):
    ...         return (prediction - target).mean(axis=1)
    >>> metric = Bias()
    >>> first = metric.update(np.array([[3.0], [1.0]]), np.zeros(2), None)
    >>> second = metric.update(np.array([[8.0]]), np.zeros((1, 1)), None)
    >>> metric.result(metric.merge([first, second]))
    4.0
    """

    _elsewhere = elsewhere.METRIC

    keeps_rows: bool = False
    """Whether sums hold every row, as where they have to be sorted. `fit` then asks for the result at the end of an
    epoch only, and not after each step."""

    def per_sample(self, prediction: Array, target: Array) -> Array:
        """Return one value for each sample, (N,), averaged over the sample's other axes."""
        raise NotImplementedError(f"{type(self).__name__} defines neither per_sample nor update")

    def counted(self, prediction: Array, target: Array) -> Array | None:
        """Return which share of each sample counts, (N,); None where all of it does."""
        return None

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        """Return the names of arguments that nobody gave, and that follow from the model and its loss.

        `fit` and `evaluate` then use ``metric.replace(...)`` with a value for each: ``threshold``, above which a
        prediction means yes, is 0 for logits and 0.5 for probabilities; ``from_logits`` says whether predictions are
        logits; ``ignore_class`` is that of the loss.
        """
        return ()

    def update(self, prediction: Any, target: Any, weight: Any = None) -> Sums:
        """Return the sums of one batch, to be merged with those of other batches; ``weight`` is (N,) or None."""
        where = snake_case(type(self).__name__)
        prediction, target, weights = checked(where, prediction, target, weight)
        values = np.asarray(self.per_sample(prediction, target))
        if values.shape != prediction.shape[:1]:
            raise LayerError(
                f"{self!r}.per_sample must return one value for each sample, of shape {prediction.shape[:1]}, got "
                f"{described(values)}; take the mean over the other axes only"
            )
        counted = self.counted(prediction, target)
        weight_of_all = np.sum(weights) if counted is None else np.vdot(counted, weights)
        return np.vdot(values.astype("float64"), weights), weight_of_all

    def merge(self, sums: Sequence[Sums]) -> Sums:
        """Return the sums of some batches together, from those of each, in their order: added up."""
        return functools.reduce(lambda one, two: tuple(a + b for a, b in zip(one, two, strict=True)), sums)

    def result(self, sums: Sums) -> Any:
        """Return the metric of everything that was added up, a float or an array of floats; NaN if that was nothing."""
        total, weight = sums
        return float(total / weight) if weight else math.nan


METRICS = registry.Kind("metrics", "lamella.metrics.Metric", base=Metric)


# What metrics are given


def checked(where: str, prediction: Any, target: Any, weight: Any) -> tuple[Array, Array, Array]:
    """Return predictions and targets as arrays, and the weight of each row in float64, 1 where none is given."""
    prediction = as_predictions(where, prediction)
    target = as_column(as_array(target, f"{where}: expected targets"), prediction.shape)
    return prediction, target, weights_of(where, weight, len(prediction))


def weights_of(where: str, weight: Any, rows: int) -> Array:
    """Return the weight of each row in float64, 1 where none is given."""
    if weight is None:
        return np.ones(rows)
    weights = as_array(weight, f"{where}: weight: expected numbers")
    if weights.dtype.kind not in "fiub" or weights.shape != (rows,):
        raise DataError(f"{where}: weight: expected numbers of shape ({rows},), got {weights.dtype} {weights.shape}")
    weights = weights.astype("float64")
    if not np.isfinite(weights).all() or (weights < 0.0).any():
        raise DataError(f"{where}: weight: expected finite numbers of at least 0")
    return weights


def is_yes_no(prediction: Any) -> bool:
    """Whether predictions, or their spec, are yes-no decisions: (N,) or (N, ..., 1), and not scores of classes."""
    shape = prediction.shape
    return len(shape) == 1 or shape[-1] == 1


def labels_of(where: str, prediction: Array, target: Array, ignore_class: int | None = None) -> Array:
    """Return the class of each row of scores; -1 for rows of zeros, which name none, so that nothing is right."""
    target = class_targets(where, spec_of(where, prediction), target, ignore_class=ignore_class)
    if target.ndim < prediction.ndim:
        return target
    totals = np.sum(target, axis=-1)
    sound = (np.abs(totals - 1.0) <= 1e-3) | (totals == 0.0)
    if not np.all(sound):
        wrong = np.argwhere(~sound)[0]
        raise DataError(
            f"{where}: targets of the prediction's shape must be one-hot, or sum to 1 or 0; got the sum "
            f"{totals[tuple(wrong)]:g} in row {wrong[0]}. For samples with several labels there is "
            f"{_SEVERAL.get(where, 'multilabel=True')}."
        )
    return np.where(totals == 0.0, -1, np.argmax(target, axis=-1))


def places_that_count(ignore_class: int | None, prediction: Array, target: Array) -> Array | None:
    """Return which integer labels are not the one that does not count; None where all count."""
    if ignore_class is None or target.ndim == prediction.ndim:
        return None
    return np.asarray(target != ignore_class)


_SEVERAL = dict.fromkeys(("accuracy", "top_k_accuracy"), "binary_accuracy")


def decisions_of(where: str, prediction: Array, target: Array) -> Array:
    """Return which targets of yes-no predictions are yes, in the prediction's shape; a last axis of 1 may be left out.

    Predictions of several columns are as many decisions for each row.
    """
    return np.asarray(values_of(where, prediction, target, unit=True) > 0.5)


def values_of(where: str, prediction: Array, target: Array, *, unit: bool = False) -> Array:
    """Return targets of the prediction's shape and dtype."""
    return value_targets(where, spec_of(where, prediction), target, unit=unit)


def mean_of_samples(values: Array) -> Array:
    """(N, ...) -> (N,), the mean over all axes but the first, in float64."""
    return np.asarray(np.mean(values, axis=tuple(range(1, values.ndim)), dtype="float64"))


def spread(weights: Array, shape: tuple[int, ...]) -> Array:
    """(N,) -> (N * ...,): the weight of each place of a sample, which share that of the sample equally."""
    places = math.prod(shape[1:])
    return np.repeat(weights / max(places, 1), places)


# Arguments


def threshold_argument(value: Any) -> float | None:
    """Return a threshold, or None where it follows from the model and its loss."""
    return None if value is None else number(value, "threshold")
