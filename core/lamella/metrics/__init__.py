"""Metrics: what people read beside the loss. Each takes sums of batches; the result follows from these together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella import elsewhere
from lamella.hookspecs import hookimpl
from lamella.metrics.accuracy import Accuracy, BinaryAccuracy, TopKAccuracy
from lamella.metrics.counts import F1, ConfusionMatrix, Precision, Recall
from lamella.metrics.curves import AUC
from lamella.metrics.metric import METRICS as METRICS
from lamella.metrics.metric import Metric
from lamella.metrics.values import (
    R2,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    RootMeanSquaredError,
)

__all__ = [
    "AUC",
    "F1",
    "R2",
    "Accuracy",
    "BinaryAccuracy",
    "ConfusionMatrix",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "Metric",
    "Precision",
    "Recall",
    "RootMeanSquaredError",
    "TopKAccuracy",
]


@hookimpl
def lamella_metrics() -> dict[str, type]:
    return {
        "accuracy": Accuracy,
        "binary_accuracy": BinaryAccuracy,
        "top_k_accuracy": TopKAccuracy,
        "precision": Precision,
        "recall": Recall,
        "f1": F1,
        "auc": AUC,
        "confusion_matrix": ConfusionMatrix,
        "mean_absolute_error": MeanAbsoluteError,
        "mean_squared_error": MeanSquaredError,
        "root_mean_squared_error": RootMeanSquaredError,
        "mean_absolute_percentage_error": MeanAbsolutePercentageError,
        "r2": R2,
        "acc": Accuracy,
        "mae": MeanAbsoluteError,
        "mse": MeanSquaredError,
        "rmse": RootMeanSquaredError,
        "mape": MeanAbsolutePercentageError,
    }


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise elsewhere.missing(__name__, name, elsewhere.instead(elsewhere.METRICS, name))


def __dir__() -> list[str]:
    return __all__
