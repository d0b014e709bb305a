"""Targets of one number for each sample: (N,) and (N, 1) are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

import lamella as lm
import lamella_onnx
from lamella_layers import LSTM, Dense


class Apart(lm.metrics.Metric):
    """A metric that broadcasts (N, 1) against (N,), if it gets them."""

    def per_sample(self, prediction, target):
        return abs(prediction - target).mean(axis=tuple(range(1, prediction.ndim)))


class Total(lm.metrics.Metric):
    """The same for a metric that adds up by itself."""

    def update(self, prediction, target, weight=None):
        return abs(prediction - target).sum(), len(prediction)


@pytest.mark.parametrize("loss", ["mean_squared_error", "mean_absolute_error", "huber", "binary_cross_entropy"])
@pytest.mark.parametrize("kind", ["float64", "int64", "bool"])
def test_one_number_for_each_sample_comes_as_a_row_or_a_column(loss, kind, tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 4))
    flat = (x[:, 0] > 0).astype(kind)
    column = flat[:, None]
    measured = ["accuracy", "binary_accuracy", "mean_absolute_error", Apart(), Total()]

    def everything(y):
        model = lm.Sequential([Dense(1)], input_shape=4)
        task = {"loss": loss, "optimizer": "sgd"}
        found = [model.evaluate(x, y, loss=loss, metrics=measured), *model.gradients(x, y, loss=loss)]
        found += [model.train_on_batch(x, y, **task, class_weight={1: 2.0})]
        history = model.fit(x, y, **task, metrics=measured, validation_data=(x, y), sample_weight=np.arange(40.0))
        found += [history.history, model.fit([(x, y)], **task).history]
        lamella_onnx.export_training_step(model, tmp_path / "step", **task, samples=(x, y))
        session = lamella_onnx.TrainingSession(tmp_path / "step")
        found += [
            session.step(x, y),
            session.evaluate(x, y, metrics=measured),
            session.step(x, flat),
            session.step(x, column),
        ]
        return str(found)

    assert everything(flat) == everything(column)
    metric = Apart()
    assert metric.result(metric.update(column + 1.0, flat)) == 1.0


def test_steps_are_tried_on_numbers_and_not_on_labels_where_there_is_one_unit(tmp_path):
    kinds = set()

    @lm.register("noting_error")
    class NotingError(lm.losses.MeanSquaredError):
        def prepare(self, prediction, target):
            kinds.add(target.dtype.kind)
            return super().prepare(prediction, target)

    model = lm.Sequential([Dense(1)], input_shape=4)
    lamella_onnx.export_training_step(model, tmp_path / "step", loss="noting_error", optimizer="sgd")
    assert kinds == {"f"}


def test_steps_of_sequences_come_with_or_without_the_last_axis():
    x = np.random.default_rng(0).standard_normal((6, 5, 3))
    model = lm.Sequential([LSTM(4), Dense(1)], input_shape=("T", 3))
    task = {"loss": "binary_cross_entropy", "metrics": ["accuracy", Apart()]}
    y = x[..., 0] > 0
    assert model.evaluate(x, y, **task) == model.evaluate(x, y[..., None], **task)
    with pytest.raises(lm.DataError, match=r"the prediction's shape \(N, 5, 1\); got bool \(6,\)"):
        model.evaluate(x, y[:, 0], **task)
