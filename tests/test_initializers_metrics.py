"""Initializers by their statistics; metrics by hand."""

import math
import pickle
import zlib

import numpy as np
import pytest

from lamella.errors import ArgumentError, DataError
from lamella.initializers import lamella_initializers
from lamella.metrics import (
    AUC,
    F1,
    R2,
    Accuracy,
    BinaryAccuracy,
    ConfusionMatrix,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    Metric,
    Precision,
    Recall,
    RootMeanSquaredError,
    TopKAccuracy,
    lamella_metrics,
)
from lamella.registry import snake_case

GIVEN = lamella_initializers()
SCALED = {  # name -> variance as a function of fan_in, fan_out
    "glorot_uniform": lambda i, o: 2 / (i + o),
    "glorot_normal": lambda i, o: 2 / (i + o),
    "he_uniform": lambda i, o: 2 / i,
    "he_normal": lambda i, o: 2 / i,
    "lecun_uniform": lambda i, o: 1 / i,
    "lecun_normal": lambda i, o: 1 / i,
}
ALIASES = {
    "kaiming_normal": "he_normal",
    "kaiming_uniform": "he_uniform",
    "xavier_normal": "glorot_normal",
    "xavier_uniform": "glorot_uniform",
}


def draw(name, shape, *fans):
    return GIVEN[name](np.random.default_rng(zlib.crc32(name.encode())), shape, *(fans or (None, None)))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    ("shape", "fans", "expected"),
    [((300, 200), (300, 200), (300, 200)), ((300, 200), (), (300, 200)), ((20, 30, 5, 5), (), (750, 500)),
     ((60000,), (40, 10), (40, 10)), ((300, 200), (7, None), (7, 200)), ((300, 200), (None, 7), (300, 7))],
)  # fmt: skip
def test_variance(name, shape, fans, expected):
    values, variance = draw(name, shape, *fans), SCALED[name](*expected)
    assert (values.shape, values.dtype) == (shape, np.float64)
    assert abs(values.mean()) < 5 * math.sqrt(variance / values.size)
    assert values.var() == pytest.approx(variance, rel=0.05)
    widest = abs(values).max() / math.sqrt(variance)
    if name.endswith("uniform"):
        assert math.sqrt(3) * 0.99 < widest <= math.sqrt(3)
    else:
        assert widest > 3
        assert np.mean(abs(values) < math.sqrt(variance)) == pytest.approx(0.6827, abs=0.01)


def test_constants():
    np.testing.assert_array_equal(draw("zeros", (2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(draw("ones", (3,)), np.ones(3))
    assert set(GIVEN) == {"zeros", "ones", "uniform", "orthogonal", *SCALED, *ALIASES}
    assert all(GIVEN[alias] is GIVEN[name] for alias, name in ALIASES.items())
    assert all(pickle.loads(pickle.dumps(f)) is f and f.__doc__ for f in GIVEN.values())


def test_uniform_has_one_width_for_all_shapes():
    values = draw("uniform", (200, 50))
    assert -0.05 <= values.min() < -0.0499
    assert 0.0499 < values.max() < 0.05
    assert abs(values.mean()) < 0.001


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (6, 2, 3, 3), (20, 2, 2)])
def test_orthogonal(shape):
    values = draw("orthogonal", shape)
    assert values.shape == shape
    matrix = values.reshape(shape[0], -1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)


def test_orthogonal_favours_no_sign():
    signs = [GIVEN["orthogonal"](np.random.default_rng(k), (2, 2))[0, 0] > 0 for k in range(200)]
    assert 60 < sum(signs) < 140


def test_no_fans_to_be_had():
    with pytest.raises(ArgumentError, match=r"glorot_uniform: fan_in and fan_out don't follow from shape \(3,\); use"):
        draw("glorot_uniform", (3,))
    assert draw("he_normal", (3,), 5, None).shape == (3,)
    with pytest.raises(ArgumentError, match=r"orthogonal: expected two axes or more, got shape \(3,\)"):
        draw("orthogonal", (3,))


SCORES = np.array([[0.1, 0.9, 0.0], [0.6, 0.5, 0.4], [0.2, 0.3, 0.5], [0.3, 0.3, 0.3]])
STEPS = np.stack([SCORES, SCORES[::-1]], axis=1)  # (4, 2, 3)
# five samples: predicted 0 0 1 2 1, true 0 1 1 2 2; right 1 1 1, predicted 2 2 1, true 1 2 2
FIVE, TRUE = np.eye(3)[[0, 0, 1, 2, 1]] - 0.25, [0, 1, 1, 2, 2]
LOGIT, DECISION = [-1.0, 2.0, 0.5, 0.0, -3.0, 1.0], [0, 1, 0, 1, 1, 1]  # yes: 1 2 5; right 2 of 3, true 4
PADDED = [[1, -1], [0, 2], [-1, -1], [1, 1]]


@pytest.mark.parametrize(
    ("metric", "prediction", "target", "weight", "expected"),
    [
        (Accuracy(), SCORES, [1, 0, 0, 0], None, 0.75),
        (Accuracy(), SCORES, [1, 0, 0, 2], [1, 2, 3, 4], 0.3),
        (Accuracy(), SCORES, np.eye(3)[[1, 0, 0, 0]], None, 0.75),
        (Accuracy(), STEPS, [[1, 1], [0, 2], [0, 0], [0, 1]], [1, 1, 1, 5], (0.5 + 1 + 0.5 + 5) / 8),
        (Accuracy(), [-1.0, 0.0, 0.1, 3.0], [0, 0, 1, 0], None, 0.75),
        (Accuracy(), [[-1.0], [0.0], [0.1], [3.0]], [0, 1, 1, 0], None, 0.5),
        (Accuracy(), [[-1.0], [0.0], [0.1], [3.0]], [[False], [False], [True], [True]], None, 1.0),
        (Accuracy(), [[[-1.0], [1.0]], [[2.0], [3.0]]], [[0, 1], [0, 1]], [1, 3], 0.625),
        (Accuracy(), SCORES, 0.9 * np.eye(3)[[1, 0, 0, 0]] + 0.1 / 3, None, 0.75),
        (BinaryAccuracy(), [[-1.0, 1.0], [2.0, 3.0]], [[0, 1], [0, 1]], [1, 3], 0.625),
        (BinaryAccuracy(threshold=2.5), [[-1.0, 1.0], [2.0, 3.0]], [[0, 1], [0, 1]], None, 0.75),
        (Accuracy(threshold=0.5), [0.2, 0.6], [0.0, 0.0], None, 0.5),
        (TopKAccuracy(k=1), SCORES, [1, 0, 0, 1], None, 0.5),
        (TopKAccuracy(k=2), SCORES, [0, 1, 0, 1], None, 0.75),
        (TopKAccuracy(k=2), SCORES, np.eye(3)[[0, 1, 0, 2]], [1, 1, 2, 0], 0.5),
        (TopKAccuracy(k=2), STEPS, [[0, 2], [1, 2], [0, 0], [1, 2]], None, (0.5 + 1 + 0.5 + 0.5) / 4),
        (TopKAccuracy(k=2), np.full((1, 3), np.nan), [0], None, 0.0),
        (MeanAbsoluteError(), [[1.0, -2.0], [0.0, 4.0]], [[0, 0], [0, 0]], None, 1.75),
        (MeanAbsoluteError(), [1.0, 5.0], [0.0, 0.0], [3, 1], 2.0),
        (MeanSquaredError(), [[1.0, -2.0], [0.0, 4.0]], [[0, 0], [0, 0]], None, 5.25),
        (RootMeanSquaredError(), [[[1.0]], [[7.0]]], np.zeros((2, 1, 1)), None, 5.0),
        (Accuracy(ignore_class=-1), STEPS, PADDED, None, 4 / 5),  # 1 of 1, 2 of 2, 0 of 0, 1 of 2
        (Accuracy(ignore_class=-1), STEPS, PADDED, [2, 1, 7, 1], (2 + 2 + 1) / (2 + 2 + 2)),
        (Accuracy(ignore_class=0), SCORES, [1, 0, 0, 2], None, 0.5),  # a class that does not count
        (TopKAccuracy(k=1, ignore_class=-1), STEPS, PADDED, None, 4 / 5),
        (TopKAccuracy(k=1, ignore_class=255), SCORES, [1, 255, 2, 255], None, 1.0),
        (Precision(average=None), FIVE, TRUE, None, [1 / 2, 1 / 2, 1.0]),
        (Recall(average=None), FIVE, TRUE, None, [1.0, 1 / 2, 1 / 2]),
        (F1(average=None), FIVE, TRUE, None, [2 / 3, 1 / 2, 2 / 3]),
        (Precision(), FIVE, TRUE, None, 2 / 3),
        (Recall("weighted"), FIVE, TRUE, None, 3 / 5),
        (Recall("micro"), FIVE, np.eye(3)[TRUE], None, 3 / 5),
        (F1("macro"), FIVE, TRUE, None, 11 / 18),
        (Precision(), FIVE, TRUE, [3, 1, 1, 1, 1], (3 / 4 + 1 / 2 + 1) / 3),
        (Precision(), FIVE, TRUE, [1, 1, 1, 0, 0], (1 / 2 + 1) / 2),  # nothing of class 2 counts
        (Recall(average=None), FIVE[:3], TRUE[:3], None, [1.0, 1 / 2, 0.0]),
        (Precision(ignore_class=-1), STEPS, PADDED, [1, 1, 1, 0], 1.0),  # predicted 1 and 0 2, true 1 and 0 2
        (Precision(), LOGIT, DECISION, None, 2 / 3),
        (Recall(), np.array(LOGIT)[:, None], DECISION, None, 1 / 2),
        (F1("binary"), LOGIT, np.array(DECISION)[:, None][:, 0], None, 4 / 7),
        (Recall(threshold=-2.0), LOGIT, DECISION, None, 3 / 4),
        (Recall("macro"), LOGIT, DECISION, None, (1 / 2 + 1 / 2) / 2),
        (Recall(), np.eye(2)[[0, 1, 1, 0, 0, 1]], DECISION, None, 1 / 2),
        (Recall(multilabel=True, average=None), [[1.0, -1.0], [2.0, 3.0]], [[1, 1], [1, 1]], None, [1.0, 1 / 2]),
        (Precision("micro", multilabel=True), [[1.0, -1.0], [2.0, 3.0]], [[1, 1], [0, 1]], [1, 3], 4 / 7),
        (ConfusionMatrix(), FIVE, TRUE, None, [[1, 0, 0], [1, 1, 0], [0, 1, 1]]),
        (ConfusionMatrix(), LOGIT, DECISION, None, [[1, 1], [2, 2]]),
        (ConfusionMatrix(ignore_class=-1), STEPS, PADDED, [2, 2, 2, 0], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (AUC(), LOGIT, DECISION, None, 5 / 8),  # of 8 pairs: -1 above -3; 0.5 above 0 and -3
        (AUC(), [0.0, 0.0, 1.0], [0, 1, 1], None, 3 / 4),  # equal scores count half
        (AUC(), [0.0, 0.0, 1.0], [0, 1, 1], [1, 3, 1], (3 / 2 + 1) / 4),
        (AUC("pr"), [3.0, 2.0, 1.0, 0.0], [1, 0, 1, 0], None, 1 / 2 * 1 + 1 / 2 * 2 / 3),
        (AUC("pr"), [1.0, 1.0], [1, 1], None, 1.0),
        (AUC(average=None), SCORES[:3], [1, 0, 1], None, [1.0, 1 / 2, math.nan]),
        (AUC(), SCORES[:3], [1, 0, 1], None, 3 / 4),
        (AUC("roc", "weighted"), SCORES[:3], [1, 0, 1], None, (1.0 + 2 * 1 / 2) / 3),
        (AUC(), [[0.2, 0.8], [0.7, 0.3], [0.5, 0.5]], [1, 0, 0], None, 1.0),
        (AUC(multilabel=True, average=None), [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], [[1, 1], [0, 0], [0, 1]], None,
         [1 / 2, 1 / 2]),
        (AUC(ignore_class=-1), STEPS, [[1, -1], [0, -1], [1, -1], [-1, -1]], None, 3 / 4),
        (MeanAbsolutePercentageError(), [[1.5, 3.0], [2.0, 0.0]], [[1.0, 4.0], [2.0, -5.0]], [1, 3], 0.46875),
        (R2(), [2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0], None, 1 - 1.5 / 29.1875),
        (R2("raw_values"), [[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]], [[1, 2], [3, 2], [3, 2]], None, [5 / 8, 1.0]),
        (R2("variance_weighted"), [[1.0, 5.0], [3.0, 2.0]], [[1, 2], [3, 2]], None, 1.0),
        (R2(), [1.0, 5.0], [2.0, 2.0], None, 0.0),
    ],
)  # fmt: skip
def test_by_hand_and_in_batches(metric, prediction, target, weight, expected):
    prediction, target = np.asarray(prediction), np.asarray(target)
    weight = None if weight is None else np.asarray(weight)
    whole = metric.result(metric.update(prediction, target, weight))
    np.testing.assert_allclose(whole, expected, rtol=3e-15, atol=1e-15)
    single = prediction.astype("float32")
    parts = [
        metric.update(single[rows], target[rows], None if weight is None else weight[rows])
        for rows in (slice(0, 1), slice(1, None))
    ]
    result = metric.result(metric.merge(parts))
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert isinstance(result, np.ndarray if np.ndim(expected) else float)


def test_r2_keeps_its_digits_far_from_zero_whatever_the_batches():
    rng = np.random.default_rng(0)
    y = 1e8 + rng.normal(size=1000)
    x = y + 0.1 * rng.normal(size=1000)
    expected = 1.0 - np.sum((y - x) ** 2) / np.sum((y - y.mean()) ** 2)
    metric = R2()
    parts = [metric.update(a, b) for a, b in zip(np.split(x, 50), np.split(y, 50), strict=True)]
    assert metric.result(metric.merge(parts)) == pytest.approx(expected, rel=1e-6)
    constant = metric.merge([metric.update(x, np.full(1000, 0.1)), metric.update(x, np.full(1000, 0.1))])
    assert metric.result(constant) == 0.0  # not a rounding error as variance


def test_results_that_are_not_defined():
    assert math.isnan(AUC().result(AUC().update([1.0, 2.0], [1, 1])))
    assert math.isnan(AUC("pr").result(AUC("pr").update([1.0, 2.0], [0, 0])))
    assert math.isnan(AUC().result(AUC().update([np.nan, 2.0], [0, 1])))
    assert math.isnan(R2().result(R2().update([1.0], [1.0])))
    for metric in (F1(), Precision("weighted"), Recall("micro")):
        assert math.isnan(metric.result(metric.update(np.zeros((2, 3)), [0, 1], [0.0, 0.0])))
    assert (
        Precision("weighted", multilabel=True).result(
            Precision("weighted", multilabel=True).update([[1.0, 2.0]], [[0, 0]])
        )
        == 0.0
    )


def test_of_nothing():
    assert math.isnan(
        MeanSquaredError().result(MeanSquaredError().update(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2)))
    )


def test_top_one_is_accuracy():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (500, 4)).astype(float), rng.integers(0, 4, 500)  # many ties
    np.testing.assert_array_equal(TopKAccuracy(k=1).update(scores, labels), Accuracy().update(scores, labels))


@pytest.mark.parametrize(
    ("metric", "prediction", "target", "message"),
    [
        (Accuracy(), SCORES, np.zeros(4), r"accuracy: labels must be integers in \[0, 3\) of shape \(4,\)"),
        (Accuracy(), SCORES, [0, 1, 2, 3], r"accuracy: labels must be integers in \[0, 3\); got 3 in row 3"),
        (
            Accuracy(),
            SCORES,
            [[1, 0, 0], [1, 0, 1]] * 2,
            r"got the sum 2 in row 1. .* several labels.* binary_accuracy",
        ),
        (TopKAccuracy(), SCORES, np.full((4, 3), 0.5), r"top_k_accuracy: .* must be one-hot, .* got the sum 1.5"),
        (BinaryAccuracy(), SCORES, [1, 0, 0, 1], r"binary_accuracy: target must have the prediction's shape \(4, 3\)"),
        (Accuracy(), [[0.5], [1.0]], [-1, 1], r"accuracy: targets must lie in \[0, 1\]"),
        (Accuracy(), [[0.5], [1.0]], [[0, 1], [1, 0]], r"accuracy: target must have the prediction's shape \(2, 1\)"),
        (TopKAccuracy(), SCORES, [0, 1, 2, 0], r"top_k_accuracy: expected k of at most 3, .* got k=5"),
        (
            MeanSquaredError(),
            np.zeros((3, 1)),
            np.zeros(3),
            r"mean_squared_error: .* got float64 \(3,\). Use y",
        ),
        (MeanSquaredError(), np.zeros((3, 1)), np.zeros((1, 1)), r"shape \(3, 1\); got float64 \(1, 1\)"),
        (F1(), SCORES, [0, 1, 2, 3], r"f1: labels must be integers in \[0, 3\); got 3 in row 3"),
        (F1("binary"), SCORES, [0, 1, 2, 0], r"f1: average='binary' looks at the second of two classes, got 3"),
        (AUC("roc", "binary"), SCORES, [0, 1, 2, 0], r"auc: average='binary' looks at the second of two classes, got"),
        (Recall(), SCORES, [[1, 0, 0], [1, 0, 1]] * 2, r"recall: .* several labels there is multilabel=True"),
        (Recall(ignore_class=-1), [0.5, 1.0], [0, 1], r"recall: ignore_class=-1: expected scores of classes"),
        (AUC(ignore_class=-1), [0.5, 1.0], [0, 1], r"auc: ignore_class=-1: expected scores of classes"),
        (Accuracy(ignore_class=-1), SCORES, [0, -1, -2, 0], r"got -2 in row 2. Labels count from 0; .*ignore_class"),
        (Precision(multilabel=True), SCORES, [0, 1, 2, 0], r"precision: target must have the prediction's shape"),
        (R2(), np.zeros((3, 1)), np.zeros(3), r"r2: target must have the prediction's shape \(3, 1\)"),
    ],
)
def test_targets_that_do_not_fit(metric, prediction, target, message):
    with pytest.raises(DataError, match=message):
        metric.update(np.asarray(prediction), np.asarray(target), None)


def test_names():
    given = lamella_metrics()
    aliases = {"acc", "mae", "mse", "rmse", "mape"}
    assert all(issubclass(cls, Metric) for cls in given.values())
    assert all(snake_case(cls.__name__) == name for name, cls in given.items() if name not in aliases)
    assert {given[name] for name in aliases} < {cls for name, cls in given.items() if name not in aliases}
    for options, words in (
        ({"average": "samples"}, "F1: average: expected one of 'auto', 'binary', 'micro', 'macro', 'weighted', got"),
        ({"average": "binary", "multilabel": True}, "F1: average: 'binary' looks at one label"),
        ({"multilabel": True, "ignore_class": -1}, "F1: ignore_class: expected None with multilabel=True"),
        ({"ignore_class": 1.5}, "F1: ignore_class: expected an integer label such as -1, or None, got 1.5"),
    ):
        with pytest.raises(ArgumentError, match=words):
            F1(**options)
    with pytest.raises(ArgumentError, match="TopKAccuracy: k: expected a positive int, got 0"):
        TopKAccuracy(k=0)


def test_rows_of_zeros_name_no_class_and_no_decision_is_right():
    target = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for metric in (Accuracy(), TopKAccuracy(k=3)):
        prediction = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
        assert metric.result(metric.update(prediction, target)) == 0.5
        assert metric.result(metric.update(prediction, target, [1.0, 0.0])) == 1.0
