"""How many predictions are right."""

from __future__ import annotations

import numpy as np

from lamella.arguments import positive
from lamella.errors import DataError
from lamella.losses.loss import ignore_class_argument
from lamella.metrics.metric import (
    Array,
    Metric,
    decisions_of,
    is_yes_no,
    labels_of,
    mean_of_samples,
    places_that_count,
    threshold_argument,
)
from lamella.protocol.spec import ArraySpec

__all__ = ["Accuracy", "BinaryAccuracy", "TopKAccuracy"]


class Accuracy(Metric):
    """The share of correct predictions.

    With two or more classes on the last axis, predictions (N, ..., C) are correct where the largest is that of the
    true class. Targets are integer labels (N, ...), or one-hot rows or probabilities (N, ..., C) that sum to 1; a row
    of zeros has no true class, and for rows with several labels there is `BinaryAccuracy`. Predictions (N,) or
    (N, ..., 1) are binary: positive above ``threshold``. Their targets are positive above 0.5, with or without the last
    axis of 1. Where a sample has several predictions, as in (N, T, C), it counts with the share of its correct ones.
    NaN is never correct.

    Arguments:
        threshold: 0 for logits, which is where the sigmoid is one half, and 0.5 for probabilities. With None, `fit` and
            `evaluate` go by the model and its loss: 0.5 if the model ends with a sigmoid, or its loss compares
            predictions with targets, as ``mean_squared_error`` does, and else 0.
        ignore_class: an integer label whose places do not count, such as -1 at padded steps. With None, `fit` and
            `evaluate` take that of the loss.

    Raises:
        DataError: a target that fits neither form.

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html#accuracy-score

    >>> metric = Accuracy()
    >>> metric.result(metric.update([[0.1, 2.0], [3.0, 0.5]], [1, 1]))
    0.5
    >>> metric.result(metric.update([-1.0, 2.0, 0.5, -3.0], [0, 1, 1, 1]))
    0.75
    """

    def __init__(self, threshold: float | None = None, ignore_class: int | None = None):
        self.threshold = threshold_argument(threshold)
        self.ignore_class = ignore_class_argument(ignore_class)

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        name = "threshold" if is_yes_no(prediction) else "ignore_class"
        return () if getattr(self, name) is not None else (name,)

    def per_sample(self, prediction: Array, target: Array) -> Array:
        if is_yes_no(prediction):
            yes = decisions_of("accuracy", prediction, target)
            return mean_of_samples(_right(prediction, self.threshold, yes))
        right = np.argmax(prediction, axis=-1) == labels_of("accuracy", prediction, target, self.ignore_class)
        right &= ~np.isnan(prediction).any(axis=-1)
        counts = places_that_count(self.ignore_class, prediction, target)
        return mean_of_samples(right if counts is None else right & counts)

    def counted(self, prediction: Array, target: Array) -> Array | None:
        counts = None if is_yes_no(prediction) else places_that_count(self.ignore_class, prediction, target)
        return None if counts is None else mean_of_samples(counts)


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
        self.threshold = threshold_argument(threshold)

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        return ("threshold",) if self.threshold is None else ()

    def per_sample(self, prediction: Array, target: Array) -> Array:
        yes = decisions_of("binary_accuracy", prediction, target)
        return mean_of_samples(_right(prediction, self.threshold, yes))


def _right(prediction: Array, threshold: float | None, yes: Array) -> Array:
    """Which decisions are right; NaN never is."""
    return np.asarray(((prediction > (threshold or 0.0)) == yes) & ~np.isnan(prediction))


class TopKAccuracy(Metric):
    """The share of samples whose true class is among the ``k`` largest predictions; ties go to the lower class.

    Predictions (N, ..., C); targets integer labels (N, ...) or rows (N, ..., C) that sum to 1, such as one-hot.

    Arguments:
        k: how many predictions of each row are looked at.
        ignore_class: as in `Accuracy`.

    Raises:
        DataError: a target of another form, or ``k`` above the number of classes.

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html#top-k-accuracy-score

    >>> metric = TopKAccuracy(k=2)
    >>> metric.result(metric.update([[0.1, 0.7, 0.2], [0.1, 0.7, 0.2]], [2, 0]))
    0.5
    """

    def __init__(self, k: int = 5, ignore_class: int | None = None):
        self.k = positive(k, "k")
        self.ignore_class = ignore_class_argument(ignore_class)

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        return ("ignore_class",) if self.ignore_class is None else ()

    def per_sample(self, prediction: Array, target: Array) -> Array:
        labels = labels_of("top_k_accuracy", prediction, target, self.ignore_class)
        classes = prediction.shape[-1]
        if self.k > classes:
            raise DataError(f"top_k_accuracy: expected k of at most {classes}, the number of classes, got k={self.k}")
        counts = places_that_count(self.ignore_class, prediction, target)
        known = labels >= 0 if counts is None else (labels >= 0) & counts
        own_class = np.where(known, labels, 0)[..., None]
        own = np.take_along_axis(prediction, own_class, axis=-1)
        ahead = ~(prediction <= own) | ((prediction == own) & (np.arange(classes) < own_class))  # NaN is never right
        return mean_of_samples((np.sum(ahead, axis=-1) < self.k) & known)

    def counted(self, prediction: Array, target: Array) -> Array | None:
        counts = places_that_count(self.ignore_class, prediction, target)
        return None if counts is None else mean_of_samples(counts)
