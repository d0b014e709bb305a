"""What is counted of decisions: which class, or which of several labels, was predicted and which was true."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np

from lamella.arguments import choice, flag
from lamella.errors import ArgumentError, DataError
from lamella.losses.loss import ignore_class_argument
from lamella.metrics.metric import (
    Array,
    Metric,
    Sums,
    checked,
    decisions_of,
    is_yes_no,
    labels_of,
    places_that_count,
    spread,
    threshold_argument,
)
from lamella.protocol.spec import ArraySpec
from lamella.registry import snake_case

__all__ = ["AVERAGES", "F1", "ConfusionMatrix", "Precision", "Recall", "average_argument", "averaged"]

AVERAGES = ("auto", "binary", "micro", "macro", "weighted")


class ConfusionMatrix(Metric):
    """How many samples of each class were taken for each class: row the true class, column the predicted one.

    Predictions (N, ..., C) are taken for the class of the largest; targets are integer labels (N, ...), or one-hot.
    Predictions (N,) or (N, ..., 1) are yes above ``threshold``, class 1, and else class 0. Samples count with their
    weights, each place of one with an equal share of it. The result is an array (C, C); for yes-no decisions, (2, 2).
    It is NaN where a prediction is NaN.

    Arguments:
        threshold, ignore_class: as in `Accuracy`.

    Raises:
        DataError: a target that fits neither form.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.confusion_matrix.html

    >>> metric = ConfusionMatrix()
    >>> metric.result(metric.update([[0.1, 2.0, 0.0], [3.0, 0.5, 0.0], [1.0, 0.0, 0.0]], [1, 1, 0]))
    array([[1., 0., 0.],
           [1., 1., 0.],
           [0., 0., 0.]])
    """

    def __init__(self, *, threshold: float | None = None, ignore_class: int | None = None):
        self.threshold = threshold_argument(threshold)
        self.ignore_class = ignore_class_argument(ignore_class)

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        name = "threshold" if is_yes_no(prediction) else "ignore_class"
        return () if getattr(self, name) is not None else (name,)

    def update(self, prediction: Any, target: Any, weight: Any = None) -> Sums:
        return (_matrix("confusion_matrix", self.threshold, self.ignore_class, prediction, target, weight),)

    def result(self, sums: Sums) -> Array:
        (matrix,) = sums
        return np.array(matrix, "float64")


def _matrix(
    where: str, threshold: float | None, ignore_class: int | None, prediction: Any, target: Any, weight: Any
) -> Array:
    """The weight of the samples of each true class, by the class that was predicted; NaN if a prediction is."""
    prediction, target, weights = checked(where, prediction, target, weight)
    weights = spread(weights, prediction.shape[:1] if prediction.ndim == 1 else prediction.shape[:-1])
    is_nan = np.isnan(prediction)
    is_nan = (is_nan if prediction.ndim == 1 else is_nan.any(axis=-1)).reshape(-1)
    if is_yes_no(prediction):
        if ignore_class is not None:
            raise DataError(f"{where}: ignore_class={ignore_class}: expected scores of classes, (N, ..., C), for it")
        classes, true = 2, decisions_of(where, prediction, target).reshape(-1).astype("int64")
        predicted = (prediction > (threshold or 0.0)).reshape(-1).astype("int64")
    else:
        classes = prediction.shape[-1]
        labels = labels_of(where, prediction, target, ignore_class)
        counts = places_that_count(ignore_class, prediction, target)
        known = (labels >= 0 if counts is None else (labels >= 0) & counts).reshape(-1)
        true, weights, is_nan = labels.reshape(-1)[known], weights[known], is_nan[known]
        predicted = np.argmax(prediction, axis=-1).reshape(-1)[known]
    matrix = np.bincount(true * classes + predicted, weights, classes * classes).reshape(classes, classes)
    return np.full_like(matrix, math.nan) if weights[is_nan].any() else matrix


class _Counting(Metric):
    """A score of each class that follows from three counts, right, predicted and true, of so much weight in all."""

    def __init__(
        self,
        average: str | None = "auto",
        *,
        threshold: float | None = None,
        multilabel: bool = False,
        ignore_class: int | None = None,
    ):
        self.average = average_argument(average)
        self.multilabel = flag(multilabel, "multilabel")
        self.threshold = threshold_argument(threshold)
        self.ignore_class = ignore_class_argument(ignore_class)
        if self.multilabel and self.average == "binary":
            raise ArgumentError("average: 'binary' looks at one label, and multilabel=True has several; try 'macro'")
        if self.multilabel and self.ignore_class is not None:
            raise ArgumentError("ignore_class: expected None with multilabel=True, where targets are no class labels")

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        name = "threshold" if self.multilabel or is_yes_no(prediction) else "ignore_class"
        return () if getattr(self, name) is not None else (name,)

    @staticmethod
    @abstractmethod
    def score(right: Any, predicted: Any, true: Any) -> Any:
        """Return the score of each class, 0 where it is not defined."""

    def update(self, prediction: Any, target: Any, weight: Any = None) -> Sums:
        where = snake_case(type(self).__name__)
        if not self.multilabel:
            matrix = _matrix(where, self.threshold, self.ignore_class, prediction, target, weight)
            if self.average == "binary" and len(matrix) > 2:
                raise DataError(
                    f"{where}: average='binary' looks at the second of two classes, got {len(matrix)}; try 'macro', or "
                    "None for a score of each class"
                )
            return np.diagonal(matrix).copy(), matrix.sum(axis=0), matrix.sum(axis=1), matrix.sum()
        prediction, target, weights = checked(where, prediction, target, weight)
        yes = decisions_of(where, prediction, target)
        labels = yes.shape[-1] if yes.ndim > 1 else 1
        predicted = (prediction > (self.threshold or 0.0)).reshape(-1, labels)
        yes, weights = yes.reshape(-1, labels), spread(weights, prediction.shape[: max(prediction.ndim - 1, 1)])
        is_nan = np.isnan(prediction).reshape(-1, labels) & (weights > 0.0)[:, None]
        lost = np.where(is_nan.any(axis=0), math.nan, 0.0)
        return weights @ (yes & predicted) + lost, weights @ predicted + lost, weights @ yes, weights.sum()

    def result(self, sums: Sums) -> Any:
        right, predicted, true, total = (np.asarray(one, "float64") for one in sums)
        if not total:
            return np.full(len(true), math.nan) if self.average is None else math.nan
        if self.average == "micro":
            return float(self.score(right.sum(), predicted.sum(), true.sum()))
        present = None if self.multilabel else predicted + true > 0.0
        return averaged(self.average, self.score(right, predicted, true), true, multilabel=self.multilabel, of=present)


def average_argument(value: Any) -> str | None:
    """Return the name of an average, or None for a score of each class."""
    return None if value is None else choice(value, "average", AVERAGES)


def averaged(average: str | None, scores: Array, true: Array, *, multilabel: bool, of: Array | None = None) -> Any:
    """Return scores of classes as they are or averaged; ``of`` says which of them count."""
    if average is None:
        return scores
    if average in ("auto", "binary") and len(scores) <= 2 and not multilabel:
        return float(scores[-1])
    if of is not None:
        scores, true = scores[of], true[of]
    if not len(scores):
        return math.nan
    if average == "weighted":
        return float(np.average(scores, weights=true)) if true.any() else 0.0
    return float(np.mean(scores))


def _share(part: Any, whole: Any) -> Any:
    """part / whole, and 0 where the whole is 0."""
    return part / np.where(whole == 0.0, 1.0, whole)


class Precision(_Counting):
    """The share of those predicted to be of a class that are of it: ``right / predicted``.

    Arguments:
        average: None for the score of each class, an array (C,), 0 where it is not defined. "macro" is their mean over
            the classes that were predicted or true, "weighted" the mean by how often each was true, "micro" the score
            of all decisions together, and "binary" that of class 1, the yes. "auto" is "binary" for yes-no decisions
            and two classes, and "macro" for more.
        threshold: above which a prediction means yes; as in `Accuracy`.
        multilabel: whether each column of predictions and targets (N, ..., C) is a yes-no decision by itself, as where
            a sample may have several labels.
        ignore_class: as in `Accuracy`.

    Predictions (N, ..., C) with integer labels (N, ...) or one-hot targets; or (N,), (N, ..., 1) with yes-no targets.
    The score is NaN where a prediction is NaN.

    Raises:
        DataError: a target that fits neither form, or ``average="binary"`` for more than two classes.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_score.html

    >>> metric = Precision(average=None)
    >>> metric.result(metric.update([[0.1, 2.0], [3.0, 0.5], [1.0, 2.0]], [1, 0, 0]))
    array([1. , 0.5])
    """

    @staticmethod
    def score(right: Any, predicted: Any, true: Any) -> Any:
        return _share(right, predicted)


class Recall(_Counting):
    """The share of those of a class that were predicted to be of it: ``right / true``.

    Arguments, shapes and errors are those of `Precision`.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.recall_score.html

    >>> metric = Recall(average=None)
    >>> metric.result(metric.update([[0.1, 2.0], [3.0, 0.5], [1.0, 2.0]], [1, 0, 0]))
    array([0.5, 1. ])
    """

    @staticmethod
    def score(right: Any, predicted: Any, true: Any) -> Any:
        return _share(right, true)


class F1(_Counting):
    """The harmonic mean of precision and recall: ``2 right / (predicted + true)``.

    Arguments, shapes and errors are those of `Precision`. The mean "macro" is that of the scores of classes.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html

    >>> metric = F1()
    >>> round(metric.result(metric.update([0.1, 2.0, -1.0, 3.0], [1, 0, 0, 1])), 3)
    0.8
    """

    @staticmethod
    def score(right: Any, predicted: Any, true: Any) -> Any:
        return _share(2.0 * right, predicted + true)
