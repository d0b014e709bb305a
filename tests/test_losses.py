"""Losses against the textbook's formulas, their gradients against differences, and their refusals."""

import math
import pickle
import re

import numpy as np
import pytest

from lamella.backends import get_backend
from lamella.errors import ArgumentError, DataError
from lamella.losses import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SoftmaxCrossEntropy,
    lamella_losses,
    lamella_specimens,
)
from lamella.protocol import ArraySpec
from lamella.registry import snake_case

RNG = np.random.default_rng(3)
X, TALL = RNG.normal(0, 1, (6, 5)), RNG.normal(0, 2, (6, 3, 4))
PROBABILITIES = np.exp(X) / np.exp(X).sum(1, keepdims=True)
LABELS, TALL_LABELS = RNG.integers(0, 5, 6), RNG.integers(0, 4, (6, 3))
SOFT, ONE_HOT, YES_NO = RNG.dirichlet(np.ones(5), 6), np.eye(5, dtype="int8")[LABELS], RNG.integers(0, 2, (6, 5))
WEIGHTS = np.array([1.0, 0.0, 2.5, 0.5, 1.0, 3.0])


class Slice:
    """What a loss needs of a context."""

    def __init__(self, backend, dtype):
        self.xp = get_backend(backend).xp
        self.dtype = getattr(self.xp, dtype)

    def save(self, *arrays):
        self.saved = arrays


def run(loss, prediction, target, weights=None, backend="numpy"):
    """Return each sample's loss and the gradient of their weighted mean."""
    prediction, backend = np.asarray(prediction), get_backend(backend)
    weights = np.ones(len(prediction)) if weights is None else weights
    d = (weights / weights.sum()).astype(prediction.dtype)
    target = loss.prepare(ArraySpec(("N", *prediction.shape[1:]), str(prediction.dtype)), target)
    ctx = Slice(backend.name, str(prediction.dtype))
    with np.errstate(all="ignore"):  # as the engine does
        values = loss.forward(ctx, backend.asarray(prediction), backend.asarray(target))
        dx = loss.backward(ctx, backend.asarray(d))
    return backend.asnumpy(values), backend.asnumpy(dx)


def softmax_textbook(x, t):
    return -math.log(math.exp(x[t]) / sum(map(math.exp, x)))


def soft_textbook(x, t):
    return sum(p * softmax_textbook(x, k) for k, p in enumerate(t))


def binary_textbook(x, t):
    s = 1 / (1 + math.exp(-x))
    return -math.log(s) * t - math.log(1 - s) * (1.0 - t)


def huber_textbook(x, t):
    return 0.5 * (x - t) ** 2 if abs(x - t) <= 1.5 else 1.5 * (abs(x - t) - 0.75)


def mean(function):
    return lambda row, target: sum(map(function, np.ravel(row), np.ravel(target))) / np.size(row)


# name: loss, prediction, target, the textbook's loss of one sample
CASES = {
    "softmax_labels": (SoftmaxCrossEntropy(), X, LABELS, softmax_textbook),
    "softmax_one_hot": (SoftmaxCrossEntropy(), X, ONE_HOT, soft_textbook),
    "softmax_soft": (SoftmaxCrossEntropy(), X, SOFT, soft_textbook),
    "softmax_unscaled": (SoftmaxCrossEntropy(), X, YES_NO, soft_textbook),
    "softmax_steps": (
        SoftmaxCrossEntropy(), TALL, TALL_LABELS, lambda x, t: sum(map(softmax_textbook, x, t)) / 3),
    "categorical_labels": (CategoricalCrossEntropy(), PROBABILITIES, LABELS, lambda p, t: -math.log(p[t])),
    "categorical_soft": (
        CategoricalCrossEntropy(), PROBABILITIES, SOFT, lambda p, t: -sum(map(lambda q, r: r * math.log(q), p, t))),
    "binary": (BinaryCrossEntropy(), X, YES_NO, mean(binary_textbook)),
    "binary_soft": (BinaryCrossEntropy(), X, SOFT, mean(binary_textbook)),
    "binary_flat": (BinaryCrossEntropy(), X[:, 0], YES_NO[:, 0] > 0, mean(binary_textbook)),
    "squared": (MeanSquaredError(), TALL, -TALL[::-1], mean(lambda x, t: (x - t) ** 2)),
    "absolute": (MeanAbsoluteError(), X, SOFT, mean(lambda x, t: abs(x - t))),
    "huber": (Huber(delta=1.5), X, SOFT, mean(huber_textbook)),
}  # fmt: skip
by_case = pytest.mark.parametrize(("loss", "prediction", "target", "textbook"), CASES.values(), ids=CASES.keys())


@by_case
def test_textbook(loss, prediction, target, textbook):
    expected = [textbook(*sample) for sample in zip(prediction, target, strict=True)]
    values, _ = run(loss, prediction, target)
    assert values.shape == (6,)
    np.testing.assert_allclose(values, expected, rtol=1e-13)
    np.testing.assert_allclose(loss(prediction, target), expected, rtol=1e-13)


@by_case
def test_gradient_of_the_weighted_mean(loss, prediction, target, textbook):
    _, dx = run(loss, prediction, target, WEIGHTS)
    assert dx.shape == prediction.shape
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=prediction.shape)
        direction /= np.linalg.norm(direction)
        ends = [run(loss, prediction + h * direction, target)[0] @ WEIGHTS / WEIGHTS.sum() for h in (1e-5, -1e-5)]
        numeric, exact = (ends[0] - ends[1]) / 2e-5, np.sum(dx * direction)
        assert exact == pytest.approx(numeric, rel=1e-7, abs=1e-9)
    assert not dx[1].any()  # the sample of weight 0


@by_case
def test_backends_dtypes_and_purity(loss, prediction, target, textbook):
    small, before = prediction.astype("float32"), target.copy()
    values, dx = run(loss, small, target, WEIGHTS)
    assert (values.dtype, dx.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(small, prediction.astype("float32"))
    np.testing.assert_array_equal(target, before)
    others = (run(loss, small, target, WEIGHTS, "strict"), 1e-6), (run(loss, prediction, target, WEIGHTS), 1e-4)
    for other, tolerance in others:
        np.testing.assert_allclose(values, other[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(dx, other[1], rtol=tolerance, atol=tolerance)
    strided = np.repeat(prediction, 2, axis=0)[::2]
    np.testing.assert_array_equal(run(loss, strided, target)[1], run(loss, prediction, target)[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_neither_overflow_nor_lose_the_loss(dtype):
    far = np.array([[1e3, -1e3], [-1e3, 1e3]], dtype)
    np.testing.assert_array_equal(run(SoftmaxCrossEntropy(), far, [0, 0])[0], [0.0, 2e3])
    np.testing.assert_array_equal(run(SoftmaxCrossEntropy(), far, [0, 0])[1], [[0.0, 0.0], [-0.5, 0.5]])
    np.testing.assert_array_equal(run(BinaryCrossEntropy(), far, [[1, 0], [1, 0]])[0], [0.0, 1e3])
    np.testing.assert_array_equal(run(BinaryCrossEntropy(), far, [[1, 0], [1, 0]])[1], [[0.0, 0.0], [-0.25, 0.25]])
    values, dx = run(CategoricalCrossEntropy(), np.array([[1.0, 0.0], [0.0, 1.0]], dtype), [0, 0])
    np.testing.assert_allclose(values, [1e-7, -math.log(1e-7)], rtol=0.2)  # 1 - 1e-7 is 1 - 2^-23 in float32
    assert not dx.any()
    for loss in (MeanSquaredError(), MeanAbsoluteError(), Huber(), BinaryCrossEntropy()):
        for values in run(loss, far, np.ones((2, 2))):
            assert np.isfinite(values).all()
    tiny = run(BinaryCrossEntropy(), np.full(1, 20.0, dtype), [1])[0]  # a right answer still has its small loss
    assert tiny[0] == pytest.approx(math.log1p(math.exp(-20.0)), rel=1e-6)


def test_minus_infinity_masks_a_class():
    masked = np.array([[1.0, -np.inf, 2.0]])
    for target in ([0], np.eye(3)[[0]]):
        values, dx = run(SoftmaxCrossEntropy(), masked, target)
        assert values[0] == pytest.approx(math.log(1 + math.e))
        np.testing.assert_allclose(dx, [[1 / (1 + math.e) - 1, 0, 1 - 1 / (1 + math.e)]])


def test_softmax_then_categorical_is_softmax_cross_entropy():
    values, dp = run(CategoricalCrossEntropy(), PROBABILITIES, SOFT, WEIGHTS)
    dx = PROBABILITIES * (dp - np.sum(dp * PROBABILITIES, axis=1, keepdims=True))
    expected = run(SoftmaxCrossEntropy(), X, SOFT, WEIGHTS)
    np.testing.assert_allclose(values, expected[0], rtol=1e-12)
    np.testing.assert_allclose(dx, expected[1], atol=1e-15)


LOGITS, COLUMN = ArraySpec(("N", 10)), ArraySpec(("N", 1))


@pytest.mark.parametrize(
    ("loss", "prediction", "target", "message"),
    [
        ("softmax", LOGITS, np.zeros((32, 1)), "labels must be integers in [0, 10) of shape (N,), or one-hot (N, 10); "
         "got float64 (32, 1). Use y[..., 0].astype('int64')."),
        ("softmax", LOGITS, np.zeros(32), "got float64 (32,). Use y.astype('int64')."),
        ("softmax", LOGITS, np.zeros((32, 9)), "got float64 (32, 9)."),
        ("softmax", LOGITS, np.array(["cat"]), "got <U3 (1,)."),
        ("softmax", LOGITS, [0, 4, 11], "integers in [0, 10); got 11 in row 2. Does the last layer have as many units"),
        ("categorical", LOGITS, [0, -1], "integers in [0, 10); got -1 in row 1."),
        ("softmax", ArraySpec(("N", 3)), [1, 2, 3], "got 3 in row 2. Labels that count from 1 become right with y"),
        ("softmax", LOGITS, np.full((2, 10), 2), "in [0, 1]; got values from 2 to 2"),
        ("softmax", COLUMN, [0, 1], "two or more, as in (N, 10); got (N, 1) float32. For one logit"),
        ("softmax", ArraySpec(("N", 4, "C")), [0], "classes on its last axis"),
        ("softmax", ArraySpec(("N", "T", 3)), np.zeros((2, 7, 1), int), "got int64 (2, 7, 1). Use y[..., 0]."),
        ("binary", LOGITS, [0, 1], "Labels of classes want one-hot rows, np.eye(10)[y], or the loss softmax_cross"),
        ("binary", COLUMN, [[-1], [1]], "lie in [0, 1]; got values from -1 to 1. Labels of -1 and 1 become 0 and 1"),
        ("binary", COLUMN, [[np.nan]], "lie in [0, 1]; got values from nan"),
        ("mean_squared", LOGITS, [[0], [1]], "one-hot rows, np.eye(10)[y[..., 0]], or the loss softmax_cross_entropy"),
        ("mean_squared", ArraySpec(("N", 4, 3)), np.zeros(2), "shape (N, 4, 3); got float64 (2,)."),
        ("mean_squared", ArraySpec(("N",)), np.zeros((32, 1)), "shape (N,); got float64 (32, 1). Use y.reshape(-1)."),
        ("mean_absolute", LOGITS, np.zeros((32, 9)), "shape (N, 10); got float64 (32, 9)."),
        ("huber", COLUMN, np.array([["1"]]), "got <U1 (1, 1). Use y.astype('float32')."),
        ("huber", ArraySpec(("N", 1), "int64"), [[1]], "prediction must be float32 or float64, got (N, 1) int64"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit(loss, prediction, target, message):
    name = next(name for name in lamella_losses() if name.startswith(loss))
    with pytest.raises(DataError, match=f"^{name}: .*{re.escape(message)}"):
        lamella_losses()[name]().prepare(prediction, np.asarray(target))


@pytest.mark.parametrize("labels", [LABELS.astype("uint8"), LABELS.astype("int32"), LABELS.tolist()])
def test_targets_are_prepared(labels):
    prepared = SoftmaxCrossEntropy().prepare(ArraySpec(("N", 5)), labels)
    assert prepared.dtype == np.int64
    assert SoftmaxCrossEntropy().prepare(ArraySpec(("N", 5)), ONE_HOT).dtype == np.float32
    assert MeanSquaredError().prepare(ArraySpec(("N", 5), "float64"), ONE_HOT).dtype == np.float64
    assert SoftmaxCrossEntropy().prepare(ArraySpec(("N", "T", 4)), TALL_LABELS).shape == (6, 3)


def test_calling_a_loss_checks_rows():
    with pytest.raises(DataError, match=r"shape \(2, 1\); got float64 \(1, 1\)"):
        MeanSquaredError()(np.zeros((2, 1)), np.zeros((1, 1)))


def test_huber_refuses_a_delta_of_zero():
    with pytest.raises(ArgumentError, match=r"Huber: delta: expected a number above 0"):
        Huber(delta=0)
    with pytest.raises(ArgumentError, match=r"Huber: delta: expected a number of at least 0, got -1"):
        Huber(delta=-1)


def test_names_and_specimens():
    given = lamella_losses()
    assert all(snake_case(cls.__name__) == name and issubclass(cls, Loss) for name, cls in given.items())
    specimens = lamella_specimens()
    assert {type(specimen.subject) for specimen in specimens} == set(given.values())
    for specimen in specimens:
        assert pickle.loads(pickle.dumps(specimen.subject)) == specimen.subject
        for (prediction, target), words in specimen.refuses:
            with pytest.raises(DataError) as caught:
                specimen.subject.prepare(prediction, np.zeros((2, *target.shape[1:]), target.dtype))
            assert words in str(caught.value)
