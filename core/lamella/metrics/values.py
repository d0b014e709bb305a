"""How far predicted numbers are from the true ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella.arguments import choice
from lamella.metrics.metric import Array, Metric, Sums, checked, mean_of_samples, spread, values_of

__all__ = ["R2", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError", "RootMeanSquaredError"]


class MeanAbsoluteError(Metric):
    """The mean of absolute differences between predictions and targets of one shape.

    >>> metric = MeanAbsoluteError()
    >>> metric.result(metric.update([[1.0], [3.0]], [[0], [0]]))
    2.0
    """

    def per_sample(self, prediction: Array, target: Array) -> Array:
        return mean_of_samples(np.abs(prediction - values_of("mean_absolute_error", prediction, target)))


class MeanSquaredError(Metric):
    """The mean of squared differences between predictions and targets of one shape.

    >>> metric = MeanSquaredError()
    >>> metric.result(metric.update([[1.0], [3.0]], [[0], [0]]))
    5.0
    """

    def per_sample(self, prediction: Array, target: Array) -> Array:
        return mean_of_samples(np.square(prediction - values_of("mean_squared_error", prediction, target)))


class RootMeanSquaredError(Metric):
    """The square root of the mean of squared differences between predictions and targets of one shape.

    >>> metric = RootMeanSquaredError()
    >>> metric.result(metric.update([[1.0], [7.0]], [[0], [0]]))
    5.0
    """

    def per_sample(self, prediction: Array, target: Array) -> Array:
        return mean_of_samples(np.square(prediction - values_of("root_mean_squared_error", prediction, target)))

    def result(self, sums: Sums) -> float:
        return math.sqrt(super().result(sums))


class MeanAbsolutePercentageError(Metric):
    """The mean of absolute differences over the size of the target: ``mean(|y - t| / max(|t|, 2.2e-16))``.

    It is a share, as in scikit-learn, and not a percentage as in Keras: 0.1 for ten percent.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.mean_absolute_percentage_error.html

    >>> metric = MeanAbsolutePercentageError()
    >>> metric.result(metric.update([[1.5], [3.0]], [[1.0], [4.0]]))
    0.375
    """

    def per_sample(self, prediction: Array, target: Array) -> Array:
        true = values_of("mean_absolute_percentage_error", prediction, target).astype("float64")
        return mean_of_samples(np.abs(prediction - true) / np.maximum(np.abs(true), np.finfo("float64").eps))


class R2(Metric):
    """The coefficient of determination: ``1 - sum (t - y)^2 / sum (t - mean(t))^2``, the share of variance explained.

    1 is best; 0 is as good as the mean of the targets; it may be negative. Where all targets are equal it is 1 if every
    prediction is right, and else 0. It is NaN for fewer than two samples.

    Arguments:
        multioutput: how the columns of predictions (N, ..., D) come together: "uniform_average" is the mean of theirs,
            "variance_weighted" the mean by the variance of each column's targets, and "raw_values" is an array (D,).

    Predictions and targets of one shape. The statistics of batches are put together without loss of digits, however
    far the mean of targets is from 0.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.r2_score.html; Chan, Golub and LeVeque,
    Updating formulae and a pairwise algorithm for computing sample variances (1979)

    >>> metric = R2()
    >>> round(metric.result(metric.update([2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])), 3)
    0.949
    """

    def __init__(self, multioutput: str = "uniform_average"):
        self.multioutput = choice(multioutput, "multioutput", ("uniform_average", "variance_weighted", "raw_values"))

    def update(self, prediction: Any, target: Any, weight: Any = None) -> Sums:
        """Return rows and weight; and of each column the mean of targets, their squares around it, and of errors."""
        prediction, target, weights = checked("r2", prediction, target, weight)
        true = values_of("r2", prediction, target).astype("float64")
        columns = true.shape[-1] if true.ndim > 1 else 1
        weights = spread(weights, true.shape[: max(true.ndim - 1, 1)])
        true, errors = true.reshape(-1, columns), (prediction - true).reshape(-1, columns)
        total, first = weights.sum(), true[:1].sum(axis=0)
        mean = first + weights @ (true - first) / (total or 1.0)  # exact where all are equal
        return np.sum(weights > 0.0), total, mean, weights @ np.square(true - mean), weights @ np.square(errors)

    def merge(self, sums: Sequence[Sums]) -> Sums:
        """Return the statistics of all batches."""
        return functools.reduce(_merged, sums)

    def result(self, sums: Sums) -> Any:
        rows, _, _, spread_of_targets, errors = sums
        if rows < 2:
            return np.full(len(errors), math.nan) if self.multioutput == "raw_values" else math.nan
        with np.errstate(all="ignore"):
            scores = 1.0 - errors / spread_of_targets
        scores = np.where(spread_of_targets == 0.0, errors == 0.0, scores).astype("float64")
        if self.multioutput == "raw_values":
            return scores
        weighted = self.multioutput == "variance_weighted" and spread_of_targets.any()
        return float(np.average(scores, weights=spread_of_targets if weighted else None))


def _merged(one: Sums, other: Sums) -> Sums:
    rows, weight, mean, squares, errors = one
    more, other_weight, other_mean, other_squares, other_errors = other
    total, apart = weight + other_weight, other_mean - mean
    share = other_weight / (total or 1.0)
    between = np.square(apart) * weight * share
    return rows + more, total, mean + apart * share, squares + other_squares + between, errors + other_errors
