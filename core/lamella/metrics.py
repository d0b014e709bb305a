"""Metrics: what people read beside the loss. Each adds up sums over batches; the result follows from these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import number, positive
from lamella.errors import DataError, LayerError
from lamella.hookspecs import hookimpl
from lamella.losses import as_column, as_predictions, class_targets, spec_of, value_targets
from lamella.protocol.configured import Configured
from lamella.protocol.inputs import as_array
from lamella.protocol.spec import ArraySpec, described
from lamella.registry import snake_case

__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "RootMeanSquaredError",
    "TopKAccuracy",
]

Sums = tuple[Any, ...]


class Metric(Configured):
    """A weighted mean over samples, unless a subclass says otherwise.

    A subclass defines ``per_sample``, or ``update`` and ``result`` where the metric is no mean. Everything is NumPy.
    Targets (N,) of predictions (N, 1) arrive as (N, 1).

    >>> import lamella as lm
    >>> class Bias(lm.metrics.Metric):
    ...     def per_sample(self, prediction, target):
    ...         return (prediction - target).mean(axis=1)
    >>> metric = Bias()
    >>> first = metric.update(np.array([[3.0], [1.0]]), np.zeros(2), None)
    >>> second = metric.update(np.array([[8.0]]), np.zeros((1, 1)), None)
    >>> metric.result(tuple(a + b for a, b in zip(first, second)))
    4.0
    """

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return one value for each sample, (N,), averaged over the sample's other axes."""
        raise NotImplementedError(f"{type(self).__name__} defines neither per_sample nor update")

    def needs_threshold(self, prediction: ArraySpec) -> bool:
        """Return whether predictions mean yes above some number, and nobody said above which.

        `fit` and `evaluate` then use ``metric.replace(threshold=...)``: 0 for logits, 0.5 for probabilities.
        """
        return False

    def update(self, prediction: Any, target: Any, weight: Any = None) -> Sums:
        """Return the sums of one batch, to be added to those of other batches; ``weight`` is (N,) or None."""
        where = snake_case(type(self).__name__)
        prediction = as_predictions(where, prediction)
        target = as_column(as_array(target, f"{where}: expected targets"), prediction.shape)
        values = np.asarray(self.per_sample(prediction, target))
        if values.shape != prediction.shape[:1]:
            raise LayerError(
                f"{self!r}.per_sample must return one value for each sample, of shape {prediction.shape[:1]}, got "
                f"{described(values)}; take the mean over the other axes only"
            )
        values = values.astype("float64")
        weights = np.ones(len(values)) if weight is None else _weights(where, weight, len(values))
        return np.vdot(values, weights), np.sum(weights)

    def result(self, sums: Sums) -> float:
        """Return the metric of everything that was added up; NaN if that was nothing."""
        total, weight = sums
        return float(total / weight) if weight else math.nan


METRICS = registry.Kind("metrics", "lamella.metrics.Metric", base=Metric)


class Accuracy(Metric):
    """The share of correct predictions.

    With two or more classes on the last axis, predictions (N, ..., C) are correct where the largest is that of the
    true class. Targets are integer labels (N, ...), or one-hot rows or probabilities (N, ..., C) that sum to 1; a row
    of zeros has no true class, and for rows with several labels there is `BinaryAccuracy`. Predictions (N,) or
    (N, ..., 1) are binary: positive above ``threshold``. Their targets are positive above 0.5, with or without the last
    axis of 1. Where a sample has several predictions, as in (N, T, C), it counts with the share of its correct ones.

    Arguments:
        threshold: 0 for logits, which is where the sigmoid is one half, and 0.5 for probabilities. With None, `fit` and
            `evaluate` go by the model and its loss: 0.5 if the model ends with a sigmoid, or its loss compares
            predictions with targets, as ``mean_squared_error`` does, and else 0.

    Raises:
        DataError: a target that fits neither form.

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html#accuracy-score

    >>> metric = Accuracy()
    >>> metric.result(metric.update([[0.1, 2.0], [3.0, 0.5]], [1, 1]))
    0.5
    >>> metric.result(metric.update([-1.0, 2.0, 0.5, -3.0], [0, 1, 1, 1]))
    0.75
    """

    def __init__(self, threshold: float | None = None):
        self.threshold = None if threshold is None else number(threshold, "threshold")

    def needs_threshold(self, prediction: ArraySpec) -> bool:
        return self.threshold is None and (len(prediction.shape) == 1 or prediction.shape[-1] == 1)

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        if prediction.ndim > 1 and prediction.shape[-1] > 1:
            right = np.argmax(prediction, axis=-1) == _labels("accuracy", prediction, target)
        else:
            right = (prediction > (self.threshold or 0.0)) == (_values("accuracy", prediction, target, unit=True) > 0.5)
        return _mean(right)


class BinaryAccuracy(Metric):
    """The share of correct binary predictions, each by itself, as where a sample may have several labels.

    Predictions and targets have one shape: positive above ``threshold``, and above 0.5.

    Arguments:
        threshold: 0 for logits, which is where the sigmoid is one half, and 0.5 for probabilities. With None, `fit` and
            `evaluate` go by the model and its loss: 0.5 if the model ends with a sigmoid, or its loss compares
            predictions with targets, as ``mean_squared_error`` does, and else 0.

    Raises:
        DataError: a target of another shape, or beyond [0, 1].

    Source: https://keras.io/api/metrics/accuracy_metrics/#binaryaccuracy-class

    >>> metric = BinaryAccuracy()
    >>> metric.result(metric.update([[-1.0, 2.0], [3.0, 0.5]], [[1, 1], [1, 1]]))
    0.75
    """

    def __init__(self, threshold: float | None = None):
        self.threshold = None if threshold is None else number(threshold, "threshold")

    def needs_threshold(self, prediction: ArraySpec) -> bool:
        return self.threshold is None

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        yes = _values("binary_accuracy", prediction, target, unit=True) > 0.5
        return _mean((prediction > (self.threshold or 0.0)) == yes)


class TopKAccuracy(Metric):
    """The share of samples whose true class is among the ``k`` largest predictions; ties go to the lower class.

    Predictions (N, ..., C); targets integer labels (N, ...) or rows (N, ..., C) that sum to 1, such as one-hot.

    Raises:
        DataError: a target of another form, or ``k`` above the number of classes.

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html#top-k-accuracy-score

    >>> metric = TopKAccuracy(k=2)
    >>> metric.result(metric.update([[0.1, 0.7, 0.2], [0.1, 0.7, 0.2]], [2, 0]))
    0.5
    """

    def __init__(self, k: int = 5):
        self.k = positive(k, "k")

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        labels = _labels("top_k_accuracy", prediction, target)[..., None]
        classes = prediction.shape[-1]
        if self.k > classes:
            raise DataError(f"top_k_accuracy: expected k of at most {classes}, the number of classes, got k={self.k}")
        own = np.take_along_axis(prediction, np.maximum(labels, 0), axis=-1)
        ahead = ~(prediction <= own) | ((prediction == own) & (np.arange(classes) < labels))  # NaN is never right
        return _mean((np.sum(ahead, axis=-1) < self.k) & (labels[..., 0] >= 0))


class MeanAbsoluteError(Metric):
    """The mean of absolute differences between predictions and targets of one shape.

    >>> metric = MeanAbsoluteError()
    >>> metric.result(metric.update([[1.0], [3.0]], [[0], [0]]))
    2.0
    """

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return _mean(np.abs(prediction - _values("mean_absolute_error", prediction, target)))


class MeanSquaredError(Metric):
    """The mean of squared differences between predictions and targets of one shape.

    >>> metric = MeanSquaredError()
    >>> metric.result(metric.update([[1.0], [3.0]], [[0], [0]]))
    5.0
    """

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return _mean(np.square(prediction - _values("mean_squared_error", prediction, target)))


class RootMeanSquaredError(Metric):
    """The square root of the mean of squared differences between predictions and targets of one shape.

    >>> metric = RootMeanSquaredError()
    >>> metric.result(metric.update([[1.0], [7.0]], [[0], [0]]))
    5.0
    """

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return _mean(np.square(prediction - _values("root_mean_squared_error", prediction, target)))

    def result(self, sums: Sums) -> float:
        return math.sqrt(super().result(sums))


def _labels(where: str, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The class of each row; -1 for rows of zeros, which name none, so that nothing is right."""
    target = class_targets(where, spec_of(where, prediction), target)
    if target.ndim < prediction.ndim:
        return target
    totals = np.sum(target, axis=-1)
    sound = (np.abs(totals - 1.0) <= 1e-3) | (totals == 0.0)
    if not np.all(sound):
        wrong = np.argwhere(~sound)[0]
        raise DataError(
            f"{where}: targets of the prediction's shape must be one-hot, or sum to 1 or 0; got the sum "
            f"{totals[tuple(wrong)]:g} in row {wrong[0]}. For samples with several labels there is binary_accuracy."
        )
    return np.where(totals == 0.0, -1, np.argmax(target, axis=-1))


def _values(where: str, prediction: np.ndarray, target: np.ndarray, *, unit: bool = False) -> np.ndarray:
    return value_targets(where, spec_of(where, prediction), target, unit=unit)


def _weights(where: str, weight: Any, rows: int) -> np.ndarray:
    weights = as_array(weight, f"{where}: weight: expected numbers")
    if weights.dtype.kind not in "fiub" or weights.shape != (rows,):
        raise DataError(f"{where}: weight: expected numbers of shape ({rows},), got {weights.dtype} {weights.shape}")
    weights = weights.astype("float64")
    if not np.isfinite(weights).all() or (weights < 0.0).any():
        raise DataError(f"{where}: weight: expected finite numbers of at least 0")
    return weights


def _mean(values: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N,), the mean over all axes but the first, in float64."""
    return np.asarray(np.mean(values, axis=tuple(range(1, values.ndim)), dtype="float64"))


@hookimpl
def lamella_metrics() -> dict[str, type]:
    return {
        "accuracy": Accuracy,
        "binary_accuracy": BinaryAccuracy,
        "top_k_accuracy": TopKAccuracy,
        "mean_absolute_error": MeanAbsoluteError,
        "mean_squared_error": MeanSquaredError,
        "root_mean_squared_error": RootMeanSquaredError,
    }


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise AttributeError(elsewhere.absent(__name__, name, elsewhere.METRICS))


def __dir__() -> list[str]:
    return __all__
