"""Initializers by their statistics; metrics by hand."""

import math
import pickle
import zlib

import numpy as np
import pytest

import lamella as lm
from lamella.errors import ArgumentError, DataError
from lamella.initializers import Constant, TruncatedNormal, VarianceScaling, lamella_initializers
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
from lamella_layers import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    MultiHeadAttention,
    SeparableConv2D,
)

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
    objects = {"constant", "truncated_normal", "variance_scaling"}
    assert set(GIVEN) == {"zeros", "ones", "uniform", "orthogonal", *SCALED, *ALIASES, *objects}
    assert all(GIVEN[alias] is GIVEN[name] for alias, name in ALIASES.items())
    assert all(pickle.loads(pickle.dumps(f)) is f and f.__doc__ for f in GIVEN.values())


RNG = np.random.default_rng


def test_objects_are_configuration_and_draw_again():
    for made, text in (
        (Constant(0.5), "Constant(value=0.5)"),
        (TruncatedNormal(1.0, 0.2), "TruncatedNormal(mean=1.0, stddev=0.2)"),
        (VarianceScaling(2.0, "fan_avg", "uniform"), None),
    ):
        assert pickle.loads(pickle.dumps(made)) == made.replace() == made
        assert text in (None, repr(made))
        np.testing.assert_array_equal(made(RNG(3), (40, 30)), made(RNG(3), (40, 30)))
        assert made(RNG(3), (0, 30), 5, 5).shape == (0, 30)
        assert GIVEN[snake_case(type(made).__name__)] is type(made)
    np.testing.assert_array_equal(Constant(0.5)(RNG(0), (2, 3)), np.full((2, 3), 0.5))


def test_truncated_normal_has_the_moments_of_its_distribution():
    values = TruncatedNormal(1.0, 0.2)(RNG(0), (400, 500))
    assert abs(values - 1.0).max() <= 0.4
    assert values.mean() == pytest.approx(1.0, abs=1e-3)
    density = math.exp(-2.0) / math.sqrt(2.0 * math.pi)
    variance = 1.0 - 4.0 * density / math.erf(math.sqrt(2.0))  # of standard normal values within [-2, 2]
    assert values.std() == pytest.approx(0.2 * math.sqrt(variance), rel=5e-3)
    assert math.sqrt(variance) == pytest.approx(0.87962566103423978, rel=1e-12)
    inside = np.mean(abs(values - 1.0) < 0.2) * math.erf(math.sqrt(2.0))
    assert inside == pytest.approx(math.erf(math.sqrt(0.5)), abs=3e-3)


@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 400), ("fan_out", 500), ("fan_avg", 450)])
def test_variance_scaling(mode, fan, distribution):
    made = VarianceScaling(3.0, mode, distribution)
    for values in (made(RNG(1), (400, 500)), made(RNG(1), (200_000,), 400, 500)):
        assert values.var() == pytest.approx(3.0 / fan, rel=0.01)
        assert abs(values).max() <= {"uniform": 1.733, "truncated_normal": 2.275, "normal": 9.0}[distribution] * (
            math.sqrt(3.0 / fan)
        )
    assert made(RNG(1), (5,), *((9, None) if mode == "fan_in" else (9, 9))).shape == (5,)


def test_one_fan_is_enough_where_the_other_makes_no_difference():
    assert VarianceScaling(mode="fan_out")(RNG(0), (5,), None, 3).shape == (5,)
    with pytest.raises(ArgumentError, match=r"VarianceScaling: fan_in and fan_out don't follow from shape \(5,\)"):
        VarianceScaling(mode="fan_avg")(RNG(0), (5,), 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Constant("x"), "Constant: value: expected a finite number, got 'x'"),
        (lambda: TruncatedNormal(stddev=0), "TruncatedNormal: stddev: expected a number above 0, got 0"),
        (lambda: VarianceScaling(0), "VarianceScaling: scale: expected a number above 0, got 0"),
        (lambda: VarianceScaling(mode="in"), "mode: expected one of 'fan_in', 'fan_out', 'fan_avg', got 'in'"),
        (lambda: VarianceScaling(distribution="x"), "distribution: expected one of 'truncated_normal', 'normal', 'uni"),
        (lambda: Constant(1.0)(0, (3,)), "Constant: rng: expected a numpy.random.Generator, got 0"),
        (lambda: Dense(3, kernel_initializer=Constant), r"got the class Constant; did you mean Constant\(\)\?"),
    ],
)
def test_settings_that_do_not_fit(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


LAYERS = [
    (Dense(3), (4,), 1),
    (Dense(3, activation="relu"), (4,), 1),
    (Conv1D(4, 3), (2, 9), 1),
    (Conv2D(4, 3, groups=2), (2, 9, 9), 1),
    (Conv2DTranspose(4, 3), (2, 9, 9), 1),
    (DepthwiseConv2D(3), (2, 9, 9), 1),
    (SeparableConv2D(4, 3), (2, 9, 9), 1),
    (RNN(3), (5, 2), 1),
    (GRU(3), (5, 2), 2),
    (LSTM(3), (5, 2), 1),
    (Bidirectional(GRU(3, bias_initializer=Constant(0.25))), (5, 2), 4),
    (MultiHeadAttention(2, 3), (5, 4), 4),
]


@pytest.mark.parametrize(("layer", "shape", "count"), LAYERS, ids=lambda one: type(one).__name__)
def test_every_bias_has_an_initializer(layer, shape, count, tmp_path):
    if "bias_initializer" in layer.config():
        zeros = lm.Sequential([layer], input_shape=shape)
        layer = layer.replace(bias_initializer=Constant(0.25))
        by_name = lm.Sequential([layer.replace(bias_initializer="zeros")], input_shape=shape)
        for name, array in zeros.parameters.items():
            np.testing.assert_array_equal(by_name.parameters[name], array)
        with pytest.raises(lm.RegistryError, match=r"(initializer of 'bias'|bias_initializer).*Did you mean 'zeros'"):
            lm.Sequential([layer.replace(bias_initializer="zeroes")], input_shape=shape)
    model = lm.Sequential([layer], input_shape=shape)
    model.save(tmp_path / "m.lamella")
    for one in (model, lm.from_config(lm.load(tmp_path / "m.lamella").config())):
        biases = {name: array for name, array in one.parameters.items() if "bias" in name.rpartition(".")[2]}
        assert len(biases) == count
        for array in biases.values():
            expected = np.full(array.shape, 0.25, "float32")
            if isinstance(layer, LSTM):
                expected[3:6] = 1.0  # the forget gate
            np.testing.assert_array_equal(array, expected)


def test_objects_of_scripts_are_saved_by_their_registered_names(tmp_path):
    @lm.register("ramp")
    class Ramp(lm.initializers.Initializer):
        def __init__(self, end=1.0):
            self.end = end

        def draw(self, rng, shape, fan_in, fan_out):
            return np.linspace(0.0, self.end, math.prod(shape)).reshape(shape)

    model = lm.Sequential([Dense(2, kernel_initializer=Ramp(3.0), bias_initializer="ramp")], input_shape=2)
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], [[0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(model.parameters["dense_1.bias"], [0.0, 1.0])
    model.save(tmp_path / "m.lamella")
    assert lm.load(tmp_path / "m.lamella").layers["dense_1"] == model.layers["dense_1"]
    assert b"script:ramp" in (tmp_path / "m.lamella").read_bytes()


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
    for average in ("macro", "micro", "weighted"):  # no label is there, and none was predicted
        metric = F1(average, multilabel=True)
        assert metric.result(metric.update([[-1.0, -2.0]], [[0, 0]])) == 0.0
        assert math.isnan(metric.result(metric.update([[-1.0, -2.0]], [[0, 0]], [0.0])))
    assert (
        Precision("weighted", multilabel=True).result(
            Precision("weighted", multilabel=True).update([[1.0, 2.0]], [[0, 0]])
        )
        == 0.0
    )


def test_no_class_has_an_area():
    for average in ("auto", "macro", "weighted", "micro"):
        metric = AUC(average=average, ignore_class=-1)
        assert math.isnan(metric.result(metric.update(SCORES, [-1, -1, -1, -1])))
    for average in ("macro", "weighted"):
        assert math.isnan(AUC(average=average).result(AUC(average=average).update(SCORES[:1], [0])))


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64"])
def test_predictions_of_other_dtypes_are_numbers(dtype):
    scores, labels = np.array([[0, 1], [1, 0], [1, 0], [0, 1]], dtype), [1, 0, 1, 1]
    for metric in (AUC(), Accuracy(), F1(), ConfusionMatrix()):
        expected = metric.result(metric.update(scores.astype("float64"), labels))
        np.testing.assert_array_equal(metric.result(metric.update(scores, labels)), expected)
    for metric in (AUC(), BinaryAccuracy(0.5), MeanAbsoluteError(), MeanSquaredError(), R2()):
        expected = metric.result(metric.update(scores[:, 0].astype("float64"), labels))
        np.testing.assert_array_equal(metric.result(metric.update(scores[:, 0], labels)), expected)


def test_scores_of_infinity_may_be_equal():
    scores, labels = np.array([np.inf, np.inf, -np.inf, -np.inf, 0.0]), [1, 0, 1, 0, 1]
    for curve in ("roc", "pr"):
        metric = AUC(curve)
        finite = metric.result(metric.update(np.clip(scores, -9.0, 9.0), labels))
        assert metric.result(metric.update(scores, labels)) == finite


def test_a_prediction_that_is_nan_is_never_right():
    nothing, labels = np.full((4, 3), np.nan), [0, 0, 1, 2]
    for metric in (Accuracy(), TopKAccuracy(1)):
        assert metric.result(metric.update(nothing, labels)) == 0.0
        assert metric.result(metric.update([[0.0, np.nan], [0.0, 1.0]], [1, 1])) == 0.5
    for metric in (Accuracy(), BinaryAccuracy()):
        assert metric.result(metric.update([np.nan, np.nan, -1.0], [0, 1, 0])) == pytest.approx(1 / 3)
    several = [[1, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]]
    for kind in (F1, Precision, Recall):
        for average in ("auto", "macro", "micro", "weighted"):
            metric = kind(average)
            assert math.isnan(metric.result(metric.update(nothing, labels)))
            assert math.isnan(kind(average).result(kind(average).update([np.nan, 1.0], [0, 1])))
            metric = kind(average, multilabel=True)
            assert math.isnan(metric.result(metric.update(nothing, several)))
        each = kind(None, multilabel=True)
        scores = np.where([True, False, False], np.nan, SCORES)
        np.testing.assert_array_equal(np.isnan(each.result(each.update(scores, several))), [True, False, False])
    assert np.isnan(ConfusionMatrix().result(ConfusionMatrix().update(nothing, labels))).all()
    weights = [0.0, 1.0, 1.0, 1.0]  # of a row that does not count
    one = np.concatenate((nothing[:1], SCORES[1:]))
    for metric in (F1(), ConfusionMatrix(), F1(multilabel=True), AUC(), Accuracy()):
        target = several if getattr(metric, "multilabel", False) else labels
        without = metric.result(metric.update(SCORES, target, weights))
        np.testing.assert_array_equal(metric.result(metric.update(one, target, weights)), without)
    for average in ("macro", "weighted"):
        metric = AUC(average=average)
        assert math.isnan(metric.result(metric.update(np.where([True, False, False], np.nan, SCORES), labels)))


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
        (MeanSquaredError(), np.zeros(3), np.zeros((3, 1)), r"mean_squared_error: .* got float64 \(3, 1\). Use y"),
        (MeanSquaredError(), np.zeros((3, 1)), np.zeros((1, 1)), r"shape \(3, 1\); got float64 \(1, 1\)"),
        (F1(), SCORES, [0, 1, 2, 3], r"f1: labels must be integers in \[0, 3\); got 3 in row 3"),
        (F1("binary"), SCORES, [0, 1, 2, 0], r"f1: average='binary' looks at the second of two classes, got 3"),
        (AUC("roc", "binary"), SCORES, [0, 1, 2, 0], r"auc: average='binary' looks at the second of two classes, got"),
        (Recall(), SCORES, [[1, 0, 0], [1, 0, 1]] * 2, r"recall: .* several labels there is multilabel=True"),
        (Recall(ignore_class=-1), [0.5, 1.0], [0, 1], r"recall: ignore_class=-1: expected scores of classes"),
        (AUC(ignore_class=-1), [0.5, 1.0], [0, 1], r"auc: ignore_class=-1: expected scores of classes"),
        (Accuracy(ignore_class=-1), SCORES, [0, -1, -2, 0], r"got -2 in row 2. Labels count from 0; .*ignore_class"),
        (Precision(multilabel=True), SCORES, [0, 1, 2, 0], r"precision: target must have the prediction's shape"),
        (R2(), np.zeros((3, 2)), np.zeros(3), r"r2: target must have the prediction's shape \(3, 2\)"),
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
