"""Areas under curves over all thresholds, exact: they need the order of all scores, so every row is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella.arguments import choice, flag
from lamella.errors import ArgumentError, DataError
from lamella.losses.loss import ignore_class_argument
from lamella.metrics.counts import average_argument, averaged
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
)
from lamella.protocol.spec import ArraySpec

__all__ = ["AUC"]


class AUC(Metric):
    """The area under the ROC curve, or under that of precision over recall, over all thresholds of the predictions.

    "roc" is how likely a sample of the class has a greater score than one that is not of it, where equal scores count
    half. "pr" is the average precision, ``sum_k (R_k - R_{k-1}) P_k`` over the thresholds. Nothing is interpolated or
    put into bins: the scores of all rows are kept until the result, so `fit` has it at the end of an epoch. It is NaN
    where a score is NaN.

    Classes are held against the rest one by one. Their probabilities are compared, so logits of several classes go
    through a softmax first, as ``from_logits`` says.

    Arguments:
        curve: "roc" or "pr".
        average: None for the area of each class, an array (C,), NaN where no sample is of it, and for "roc" where all
            are. "macro" is the mean of the others, "weighted" their mean by how many samples are of each, "micro" the
            area of all decisions together, and "binary" that of class 1. "auto" is "binary" for yes-no decisions and
            two classes, and "macro" for more.
        multilabel: whether each column of predictions and targets (N, ..., C) is a yes-no decision by itself, as where
            a sample may have several labels.
        from_logits: whether predictions of several classes are logits. With None, `fit` and `evaluate` go by the model
            and its loss; else they are taken for probabilities.
        ignore_class: as in `Accuracy`.

    Predictions (N, ..., C) with integer labels (N, ...) or one-hot targets; or (N,), (N, ..., 1) with yes-no targets.

    Raises:
        DataError: a target that fits neither form, or ``average="binary"`` for more than two classes.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.roc_auc_score.html,
    https://scikit-learn.org/stable/modules/generated/sklearn.metrics.average_precision_score.html

    >>> metric = AUC()
    >>> metric.result(metric.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]))
    0.75
    >>> precise = AUC("pr")
    >>> round(precise.result(precise.update([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])), 4)
    0.8333
    """

    keeps_rows = True

    def __init__(
        self,
        curve: str = "roc",
        average: str | None = "auto",
        *,
        multilabel: bool = False,
        from_logits: bool | None = None,
        ignore_class: int | None = None,
    ):
        self.curve = choice(curve, "curve", ("roc", "pr"))
        self.average = average_argument(average)
        self.multilabel = flag(multilabel, "multilabel")
        self.from_logits = None if from_logits is None else flag(from_logits, "from_logits")
        self.ignore_class = ignore_class_argument(ignore_class)
        if self.multilabel and self.average == "binary":
            raise ArgumentError("average: 'binary' looks at one label, and multilabel=True has several; try 'macro'")
        if self.multilabel and self.ignore_class is not None:
            raise ArgumentError("ignore_class: expected None with multilabel=True, where targets are no class labels")

    def unsaid(self, prediction: ArraySpec) -> tuple[str, ...]:
        if self.multilabel or is_yes_no(prediction):
            return ()
        return tuple(name for name in ("from_logits", "ignore_class") if getattr(self, name) is None)

    def update(self, prediction: Any, target: Any, weight: Any = None) -> Sums:
        """Return the scores (M, K) of each place, its label (M,) or decisions (M, K), and its weight (M,)."""
        prediction, target, weights = checked("auc", prediction, target, weight)
        columns = 1 if prediction.ndim == 1 else prediction.shape[-1]
        weights = spread(weights, prediction.shape[:1] if prediction.ndim == 1 else prediction.shape[:-1])
        if self.multilabel or is_yes_no(prediction):
            if self.ignore_class is not None:
                raise DataError(
                    f"auc: ignore_class={self.ignore_class}: expected scores of classes, (N, ..., C), for it"
                )
            yes = decisions_of("auc", prediction, target).reshape(-1, columns)
            return np.array(prediction).reshape(-1, columns), yes, weights
        if self.average == "binary" and columns > 2:
            raise DataError(
                f"auc: average='binary' looks at the second of two classes, got {columns}; try 'macro', or None for "
                "the area of each class"
            )
        labels = labels_of("auc", prediction, target, self.ignore_class)
        counts = places_that_count(self.ignore_class, prediction, target)
        known = (labels >= 0 if counts is None else (labels >= 0) & counts).reshape(-1)
        return prediction.reshape(-1, columns)[known], labels.reshape(-1)[known], weights[known]

    def merge(self, sums: Sequence[Sums]) -> Sums:
        """Return the rows of all batches."""
        return tuple(np.concatenate(parts) for parts in zip(*sums, strict=True))

    def result(self, sums: Sums) -> Any:
        scores, true, weights = sums
        counted = weights > 0.0
        scores, true, weights = scores[counted], true[counted], weights[counted]
        if true.ndim == 1:  # labels of classes
            if self.from_logits:
                scores = _softmax(scores)
            true = true[:, None] == np.arange(scores.shape[1])
        area = _roc if self.curve == "roc" else _average_precision
        if self.average == "micro":
            return area(scores.reshape(-1), true.reshape(-1), np.repeat(weights, scores.shape[1]))
        areas = np.array([area(scores[:, k], true[:, k], weights) for k in range(scores.shape[1])])
        counts = np.isfinite(areas) | np.isnan(scores).any(axis=0)
        return averaged(self.average, areas, weights @ true, multilabel=self.multilabel, of=counts)


def _softmax(logits: Array) -> Array:
    """In float64, where no two rows of float32 meet at 1."""
    logits = logits.astype("float64")
    with np.errstate(invalid="ignore"):  # infinite ones give NaN
        e = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-math.inf))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _roc(scores: Array, yes: Array, weights: Array) -> float:
    """The area under the share of yes found over the share of no taken for yes, by trapezoids."""
    found = _cumulated(scores, yes, weights)
    if found is None:
        return math.nan
    right, wrong = found
    return float(np.trapezoid(right, wrong) / (right[-1] * wrong[-1])) if wrong[-1] else math.nan


def _average_precision(scores: Array, yes: Array, weights: Array) -> float:
    """The precision at each threshold, weighted by how much recall it adds."""
    found = _cumulated(scores, yes, weights)
    if found is None:
        return math.nan
    right, wrong = found
    return float(np.sum(np.diff(right) * (right / np.maximum(right + wrong, np.finfo(float).tiny))[1:]) / right[-1])


def _cumulated(scores: Array, yes: Array, weights: Array) -> tuple[Array, Array] | None:
    """The weights of yes and of no whose score is at least the threshold, from above all scores down to each of them.

    None where there is no yes, or a score is NaN.
    """
    if not yes.any() or np.isnan(scores).any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, yes, weights = scores[order], yes[order], weights[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of equal scores
    right, wrong = (np.cumsum(weights * of)[last] for of in (yes, ~yes))
    return np.append(0.0, right), np.append(0.0, wrong)
