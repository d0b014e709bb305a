"""Every metric that scikit-learn has, against scikit-learn, over random classes, weights, ties and batches.

Runs where scikit-learn is found; ``-s`` prints the largest differences as a table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import lamella as lm
from lamella import metrics, registry

try:
    from sklearn import metrics as theirs
except ModuleNotFoundError:
    theirs = None

needs_sklearn = pytest.mark.skipif(theirs is None, reason="scikit-learn is not installed")
REPEATS = 40
LIMIT = 1e-12
AVERAGES = ("micro", "macro", "weighted", None)

NOT_IN_SKLEARN: dict[type, str] = {}


class Data:
    """Random predictions, targets and weights; many scores are equal."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows = int(self.rng.integers(2, 120))
        self.classes = int(self.rng.integers(3, 7))
        self.weight = self.rng.uniform(0.1, 3.0, self.rows) if self.chance() else None
        self.dtype = "float32" if self.chance() else "float64"

    def chance(self) -> bool:
        return bool(self.rng.integers(2))

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def scores(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).round(int(self.rng.integers(0, 4))).astype(self.dtype)

    def labels(self) -> np.ndarray:
        """Labels of which some classes may be missing."""
        return self.rng.integers(0, self.rng.integers(1, self.classes + 1), self.rows)

    def every_label(self) -> np.ndarray:
        """Labels with each class in them."""
        self.rows = max(self.rows, self.classes)
        self.weight = None if self.weight is None else self.rng.uniform(0.1, 3.0, self.rows)
        return self.rng.permutation(np.arange(self.rows) % self.classes)

    def yes(self) -> np.ndarray:
        """Decisions with both kinds in them."""
        return self.rng.permutation(np.arange(self.rows) < self.rng.integers(1, self.rows))

    def several(self) -> np.ndarray:
        """Decisions of several labels, each with both kinds in it."""
        return np.stack([self.yes() for _ in range(self.classes)], axis=1)

    def batched(self, metric: Any, prediction: Any, target: Any) -> Any:
        """The result of random batches."""
        ends = np.sort(self.rng.integers(0, self.rows + 1, self.rng.integers(0, 5)))
        parts = zip(*(np.split(x, ends) for x in (prediction, target)), strict=True)
        weights = [None] * (len(ends) + 1) if self.weight is None else np.split(self.weight, ends)
        sums = [metric.update(*part, weight) for part, weight in zip(parts, weights, strict=True)]
        return metric.result(metric.merge(sums))


CASES: dict[str, tuple[type, Callable[[Data], tuple[Any, Any]]]] = {}


def case(*classes: type, label: str = "") -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for cls in classes:
            CASES[f"{cls.__name__} {label}".strip()] = cls, lambda data, cls=cls: function(data, cls)
        return function

    return add


def score(cls: type) -> Callable[..., Any]:
    functions = {metrics.Precision: "precision_score", metrics.Recall: "recall_score", metrics.F1: "f1_score"}
    return getattr(theirs, functions[cls])


@case(metrics.Precision, metrics.Recall, metrics.F1, label="of classes")
def _(data, cls):
    average, x, y = data.pick(*AVERAGES), data.scores(data.rows, data.classes), data.labels()
    every = {"labels": np.arange(data.classes)} if average is None else {}
    expected = score(cls)(y, x.argmax(1), average=average, sample_weight=data.weight, zero_division=0.0, **every)
    target = np.eye(data.classes)[y] if data.chance() else y
    return data.batched(cls(average), x, target), expected


@case(metrics.Precision, metrics.Recall, metrics.F1, label="of yes and no")
def _(data, cls):
    average, x, y = data.pick("auto", "binary", *AVERAGES), data.scores(data.rows), data.yes()
    limit = data.pick(None, 0.5)
    name = "binary" if average == "auto" else average
    expected = score(cls)(y, x > (limit or 0.0), average=name, sample_weight=data.weight, zero_division=0.0)
    if data.chance():
        x = x[:, None]
    return data.batched(cls(average, threshold=limit), x, y), expected


@case(metrics.Precision, metrics.Recall, metrics.F1, label="of several labels")
def _(data, cls):
    average, x, y = data.pick(*AVERAGES), data.scores(data.rows, data.classes), data.several()
    expected = score(cls)(y, x > 0.0, average=average, sample_weight=data.weight, zero_division=0.0)
    return data.batched(cls(average, multilabel=True), x, y), expected


@case(metrics.ConfusionMatrix)
def _(data, cls):
    if data.chance():
        x, y = data.scores(data.rows), data.yes()
        return data.batched(cls(), x, y), theirs.confusion_matrix(y, x > 0.0, sample_weight=data.weight)
    x, y = data.scores(data.rows, data.classes), data.labels()
    every = {"labels": np.arange(data.classes), "sample_weight": data.weight}
    return data.batched(cls(), x, y), theirs.confusion_matrix(y, x.argmax(1), **every)


@case(metrics.AUC, label="roc")
def _(data, cls):
    form, average = data.pick("yes", "classes", "logits", "several"), data.pick("macro", "weighted", "micro", None)
    if form == "yes":
        x, y = data.scores(data.rows), data.yes()
        return data.batched(cls(), x, y), theirs.roc_auc_score(y, x, sample_weight=data.weight)
    y = data.several() if form == "several" else data.every_label()
    x, how = data.scores(data.rows, data.classes), {"average": average, "sample_weight": data.weight}
    if form == "several":
        return data.batched(cls("roc", average, multilabel=True), x, y), theirs.roc_auc_score(y, x, **how)
    p = np.exp(x.astype("float64") - x.max(1, keepdims=True))  # as ours: where scores are equal, rounding decides
    p /= p.sum(1, keepdims=True)
    metric, given = (cls("roc", average, from_logits=True), x) if form == "logits" else (cls("roc", average), p)
    return data.batched(metric, given, y), theirs.roc_auc_score(y, p, multi_class="ovr", **how)


@case(metrics.AUC, label="pr")
def _(data, cls):
    form, average = data.pick("yes", "classes", "several"), data.pick("macro", "weighted", "micro", None)
    if form == "yes":
        x, y = data.scores(data.rows), data.yes()
        return data.batched(cls("pr"), x, y), theirs.average_precision_score(y, x, sample_weight=data.weight)
    y = data.several() if form == "several" else data.every_label()
    x, how = data.scores(data.rows, data.classes), {"average": average, "sample_weight": data.weight}
    metric = cls("pr", average, multilabel=form == "several")
    return data.batched(metric, x, y), theirs.average_precision_score(y, x, **how)


@case(metrics.Accuracy)
def _(data, cls):
    x, y = data.scores(data.rows, data.classes), data.labels()
    return data.batched(cls(), x, y), theirs.accuracy_score(y, x.argmax(1), sample_weight=data.weight)


@case(metrics.BinaryAccuracy)
def _(data, cls):
    x, y = data.scores(data.rows, 1), data.yes()[:, None]
    return data.batched(cls(), x, y), theirs.accuracy_score(y[:, 0], x[:, 0] > 0.0, sample_weight=data.weight)


@case(metrics.TopKAccuracy)
def _(data, cls):
    y = data.every_label()
    x, k = data.rng.normal(size=(data.rows, data.classes)), data.pick(1, 2, 3)
    how = {"k": k, "labels": np.arange(data.classes), "sample_weight": data.weight}
    return data.batched(cls(k), x, y), theirs.top_k_accuracy_score(y, x, **how)


ERRORS = {
    metrics.MeanAbsoluteError: "mean_absolute_error",
    metrics.MeanSquaredError: "mean_squared_error",
    metrics.MeanAbsolutePercentageError: "mean_absolute_percentage_error",
}


@case(*ERRORS)
def _(data, cls):
    x, y = data.rng.normal(size=(2, data.rows, data.classes))
    return data.batched(cls(), x, y), getattr(theirs, ERRORS[cls])(y, x, sample_weight=data.weight)


@case(metrics.RootMeanSquaredError)
def _(data, cls):
    x, y = data.rng.normal(size=(2, data.rows))  # of one column: scikit-learn takes the mean of several roots
    return data.batched(cls(), x, y), theirs.root_mean_squared_error(y, x, sample_weight=data.weight)


@case(metrics.R2)
def _(data, cls):
    how = data.pick("uniform_average", "variance_weighted", "raw_values")
    y = data.pick(0.0, 100.0) + data.rng.normal(size=(data.rows, data.classes))
    x = y + data.rng.normal(size=y.shape)
    if data.weight is None and data.chance():  # with weights scikit-learn takes rounding for variance
        x[:, 0], y[:, 0] = (2.0, 2.0) if data.chance() else (x[:, 0], 2.0)
    return data.batched(cls(how), x, y), theirs.r2_score(y, x, multioutput=how, sample_weight=data.weight)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, float]]:
    """The largest difference of each case; printed in the end."""
    rows: dict[str, float] = {}
    yield rows
    print(f"\n\n{'largest difference from scikit-learn':<40} {REPEATS} configurations each")
    print("\n".join(f"{name:<40} {error:.1e}" for name, error in rows.items()))


@needs_sklearn
@pytest.mark.parametrize("name", CASES)
def test_metrics_agree(name, table):
    first = int(np.random.default_rng().integers(1 << 30))
    for seed in range(first, first + REPEATS):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=theirs.__dict__.get("UndefinedMetricWarning", UserWarning))
            ours, expected = CASES[name][1](Data(seed))
        error = float(np.max(np.abs(np.asarray(ours) - expected) / np.maximum(1.0, np.abs(expected))))
        table[name] = max(table.get(name, 0.0), error)
        assert error <= LIMIT, f"{name}, seed {seed}: {ours} and {expected}"


def test_every_metric_is_compared_or_says_why_not():
    own = {one.object for one in registry.entries("metrics") if one.plugin.distribution == "lamella"}
    assert {cls for cls, _ in CASES.values()} | set(NOT_IN_SKLEARN) == own
    assert issubclass(metrics.AUC, lm.metrics.Metric)
