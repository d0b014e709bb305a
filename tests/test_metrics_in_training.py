"""Metrics in evaluate and fit: those that need every row, those that give arrays, and labels that do not count."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

import lamella as lm
from lamella_layers import Dense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3)) + RNG.normal(size=(90, 3))).argmax(1)
HALF = "leave threshold out: 0 is the logit of 0.5"
CROSS_ENTROPY = "softmax_cross_entropy"
ARRAYS = [lm.metrics.Recall(None), "confusion_matrix"]


def classifier(units=3, **options):
    return lm.Sequential([Dense(units, **options)], input_shape=4, seed=1)


def softmax(x):
    e = np.exp(x.astype("float64") - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def area(score, yes):
    """How many pairs are in order, equal scores counted half."""
    pairs = score[yes][:, None] - score[~yes]
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


@pytest.mark.parametrize("size", [7, 1024])
def test_auc_of_logits_is_that_of_probabilities_whatever_the_batches(size):
    model = classifier()
    p = softmax(model.predict(X))
    expected = [area(p[:, k], k == Y) for k in range(3)]
    found = model.evaluate(X, Y, loss=CROSS_ENTROPY, metrics=["auc", lm.metrics.AUC(average=None)], batch_size=size)
    assert found["auc"] == pytest.approx(np.mean(expected), abs=1e-14)
    np.testing.assert_allclose(found["auc_2"], expected, atol=1e-14)
    logits = [area(model.predict(X)[:, k], k == Y) for k in range(3)]
    assert abs(np.mean(logits) - np.mean(expected)) > 1e-3  # so the softmax matters
    made = classifier(activation="softmax")
    found = made.evaluate(X, Y, loss="categorical_cross_entropy", metrics="auc")
    assert found["auc"] == pytest.approx(np.mean(expected), abs=1e-6)  # of float32 probabilities


def test_auc_stands_at_the_end_of_epochs_and_arrays_everywhere():
    heard = []

    class Hear(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            heard.append(logs)

    model = classifier()
    task = {"loss": CROSS_ENTROPY, "metrics": ["auc", *ARRAYS]}
    history = model.fit(X, Y, **task, optimizer="adam", epochs=2, validation_data=(X, Y), callbacks=[Hear()])
    assert all("auc" not in logs and logs["confusion_matrix"].shape == (3, 3) for logs in heard)
    assert heard[0]["confusion_matrix"].sum() == 32
    found = model.evaluate(X, Y, **task)
    assert history["val_auc"][-1] == found["auc"]
    assert history["val_recall"][-1].tolist() == found["recall"].tolist()
    matrix = np.zeros((3, 3))
    np.add.at(matrix, (Y, model.predict(X).argmax(1)), 1)
    np.testing.assert_array_equal(found["confusion_matrix"], matrix)
    assert [one.sum() for one in history["confusion_matrix"]] == [90, 90]
    assert re.fullmatch(
        r"<History of 2 epochs: loss=[\d.]+, auc=[\d.]+, val_loss=[\d.]+, val_auc=[\d.]+>", repr(history)
    )
    assert [axes.get_title(loc="left") for axes in history.plot().axes] == ["loss", "auc"]


def test_loggers_have_a_column_for_each_class_and_no_matrices(tmp_path):
    log = lm.callbacks.CSVLogger(tmp_path / "log.csv")
    history = classifier().fit(X, Y, loss=CROSS_ENTROPY, metrics=ARRAYS, optimizer="adam", epochs=2, callbacks=[log])
    rows = list(csv.DictReader(Path(tmp_path / "log.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "loss", "recall_0", "recall_1", "recall_2"]
    assert [float(row["recall_1"]) for row in rows] == [one[1] for one in history["recall"]]


def test_progress_prints_numbers_only(capsys):
    classifier().fit(X, Y, loss=CROSS_ENTROPY, metrics=["auc", *ARRAYS], optimizer="adam", progress=True)
    out = capsys.readouterr().out
    assert "auc 0." in out
    assert not {"recall", "matrix"} & set(re.findall(r"[a-z]+", out))


@pytest.mark.parametrize("callback", [lm.callbacks.EarlyStopping, lm.callbacks.ReduceOnPlateau])
def test_what_has_no_best_is_not_watched(callback):
    words = f"{callback.__name__}: monitor: expected a number, and 'recall' is an array \\(3,\\), which has no best"
    with pytest.raises(lm.ArgumentError, match=words):
        classifier().fit(X, Y, loss=CROSS_ENTROPY, metrics=ARRAYS, optimizer="adam", callbacks=[callback("recall")])


def test_metrics_take_class_and_threshold_from_the_model_and_its_loss():
    x, y = X, (X[:, :1] > 0).astype("float32")
    for end, loss, limit in (
        (None, "binary_cross_entropy", 0.0),
        ("sigmoid", "mean_squared_error", 0.5),
        ("sigmoid", lm.losses.BinaryCrossEntropy(from_logits=False), 0.5),
        (None, "hinge", 0.0),
    ):
        model = classifier(1, activation=end)
        yes = model.predict(x) > limit
        found = model.evaluate(x, y, loss=loss, metrics=["precision", "recall", "f1", "confusion_matrix"])
        right = np.sum(yes & (y > 0.5))
        assert found["precision"] == pytest.approx(right / yes.sum())
        assert found["recall"] == pytest.approx(right / y.sum())
        assert found["f1"] == pytest.approx(2 * right / (yes.sum() + y.sum()))
        assert found["confusion_matrix"][1, 1] == right


@pytest.mark.parametrize(
    ("metric", "name", "fix"),
    [
        (lm.metrics.Precision(threshold=0.5), "precision", HALF),
        (lm.metrics.Recall(threshold=0.4), "recall", "threshold=-0.4055, the logit of 0.4"),
        (lm.metrics.F1(threshold=0.25, average=None, multilabel=True), "f1", "threshold=-1.099, the logit of 0.25"),
        (lm.metrics.BinaryAccuracy(0.9), "binary_accuracy", "threshold=2.197, the logit of 0.9"),
        (lm.metrics.Accuracy(0.5), "accuracy", HALF),
        (lm.metrics.ConfusionMatrix(threshold=0.5), "confusion_matrix", HALF),
    ],
)
@pytest.mark.parametrize("loss", ["binary_cross_entropy", lm.losses.Weighted("bce", 0.5)])
def test_a_probability_as_threshold_of_logits_is_told(metric, name, fix, loss):
    model, yes = classifier(1), (Y == 1).astype("float64")
    for call in (
        lambda: model.fit(X, yes, loss=loss, optimizer="sgd", metrics=[metric, "auc"], validation_split=0.2),
        lambda: model.evaluate(X, yes, loss=loss, metrics=metric),
    ):
        with pytest.warns(lm.MistakeWarning) as told:
            call()
        assert [one.filename for one in told] == [__file__]
        (words,) = [str(one.message) for one in told]
        assert words.startswith(f"metrics: {name!r} takes logits above {metric.threshold} for yes, since ")
        assert words.endswith(f" is on logits. Likely fix: {fix}")


class Share(lm.metrics.Metric):
    """One with a threshold of its own, which has nothing to do with logits."""

    def __init__(self, threshold: float = 0.5):
        self.threshold = float(threshold)  # None is no number

    def per_sample(self, prediction, target):
        return (1.0 / (1.0 + np.exp(-prediction[:, 0])) > self.threshold).astype("float64")


def test_other_thresholds_are_left_alone():
    """Warnings are errors here."""
    yes = (Y == 1).astype("float64")
    half = lm.metrics.Precision(threshold=0.5)
    on_probabilities = lm.losses.BinaryCrossEntropy(from_logits=False)
    classifier(1, activation="sigmoid").fit(X, yes, loss=on_probabilities, optimizer="sgd", metrics=half)
    classifier(1).evaluate(
        X, yes, loss=on_probabilities, metrics=half, append=lm.layer("activation", function="sigmoid")
    )
    classifier(1).fit(X, yes, loss="mean_squared_error", optimizer="sgd", metrics=half)
    metrics = [lm.metrics.Precision(threshold=limit) for limit in (0.0, 1.5, -0.4, 0.4055)]
    classifier(1).fit(X, yes, loss="bce", optimizer="sgd", metrics=[*metrics, "precision", Share(), Share(0.3)])
    classifier(3).fit(X, Y, loss=CROSS_ENTROPY, optimizer="sgd", metrics=lm.metrics.Accuracy(threshold=0.5))
    with pytest.warns(lm.MistakeWarning) as told:  # of the loss alone: the threshold is right
        classifier(1, activation="sigmoid").evaluate(X, yes, loss="bce", metrics=half)
    assert ["makes probabilities" in str(one.message) for one in told] == [True]


def test_labels_that_do_not_count():
    """Two samples of four steps each, of which some are padding: the mean is over the others."""
    model = lm.Sequential([Dense(3)], input_shape=("T", 4), seed=2)
    x, y = RNG.normal(size=(2, 4, 4)), np.array([[0, 1, 2, 0], [1, -1, -1, -1]])
    loss, valid = lm.losses.SoftmaxCrossEntropy(ignore_class=-1), y >= 0
    z = model.predict(x).astype("float64")
    each = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, np.maximum(y, 0)[..., None], -1)[..., 0]
    right = z.argmax(-1) == y
    found = model.evaluate(x, y, loss=loss, metrics=["accuracy", "recall", "confusion_matrix"])
    assert found["loss"] == pytest.approx(each[valid].mean(), rel=1e-6)
    assert found["accuracy"] == pytest.approx(right[valid].mean())
    assert found["confusion_matrix"].sum() == pytest.approx(5 / 4)  # of two samples, 1 and 1/4 of a sample
    weight = np.array([1.0, 3.0])
    found = model.evaluate(x, y, loss=loss, metrics="accuracy", sample_weight=weight, batch_size=1)
    shares = weight[:, None] * valid
    assert found["loss"] == pytest.approx((shares * each).sum() / shares.sum(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((shares * right).sum() / shares.sum())
    twin = model.copy(dtype="float64")
    value, gradients, _ = twin.gradients(x, y, loss=loss, sample_weight=weight)
    assert value == pytest.approx(found["loss"], rel=1e-6)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True) - np.eye(3)[np.maximum(y, 0)]
    expected = np.einsum("nti,ntj,nt->ij", x, p, shares / shares.sum())
    np.testing.assert_allclose(gradients["dense_1.kernel"], expected, rtol=1e-5, atol=1e-8)
    history = model.fit(x, y, loss=loss, metrics="accuracy", optimizer=lm.optimizers.SGD(1e-9), sample_weight=weight)
    assert history["loss"][0] == pytest.approx((shares * each).sum() / shares.sum(), rel=1e-6)


def test_batches_of_which_nothing_counts_move_nothing():
    model = lm.Sequential([Dense(3)], input_shape=("T", 4))
    loss, before = lm.losses.SoftmaxCrossEntropy(ignore_class=-1), model.parameters["dense_1.kernel"]
    assert model.train_on_batch(np.ones((2, 3, 4)), np.full((2, 3), -1), loss=loss, optimizer="sgd") == 0.0
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], before)
    found = model.evaluate(np.ones((2, 3, 4)), np.full((2, 3), -1), loss=loss, metrics="accuracy")
    assert found["loss"] == 0.0
    assert math.isnan(found["accuracy"])
