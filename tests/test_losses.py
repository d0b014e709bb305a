"""Losses against the textbook's formulas, their gradients against differences, and their refusals."""

import math
import pickle
import re

import numpy as np
import pytest

import lamella as lm
from lamella.backends import get_backend
from lamella.errors import ArgumentError, DataError, NonFiniteError
from lamella.losses import (
    BinaryCrossEntropy,
    BinaryFocalCrossEntropy,
    CategoricalCrossEntropy,
    CosineSimilarity,
    Hinge,
    Huber,
    KLDivergence,
    LogCosh,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Poisson,
    SoftmaxCrossEntropy,
    SoftmaxFocalCrossEntropy,
    lamella_losses,
    lamella_specimens,
)
from lamella.protocol import ArraySpec
from lamella.registry import snake_case
from lamella_layers import Dense

RNG = np.random.default_rng(3)
X, TALL = RNG.normal(0, 1, (6, 5)), RNG.normal(0, 2, (6, 3, 4))
PROBABILITIES = np.exp(X) / np.exp(X).sum(1, keepdims=True)
LABELS, TALL_LABELS = RNG.integers(0, 5, 6), RNG.integers(0, 4, (6, 3))
SOFT, ONE_HOT, YES_NO = RNG.dirichlet(np.ones(5), 6), np.eye(5, dtype="int8")[LABELS], RNG.integers(0, 2, (6, 5))
PADDED = np.where(RNG.uniform(size=(6, 3)) < 0.4, -1, TALL_LABELS)
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


def smooth_textbook(x, t):
    return 0.8 * softmax_textbook(x, t) + 0.2 * sum(softmax_textbook(x, k) for k in range(len(x))) / len(x)


def padded_textbook(x, t):
    return sum(softmax_textbook(a, b) for a, b in zip(x, t, strict=True) if b != -1) / len(t)


def focal_textbook(x, t):
    p = math.exp(-softmax_textbook(x, t))
    return -((1 - p) ** 1.5) * math.log(p)


def binary_focal_textbook(x, t):
    s = 1 / (1 + math.exp(-x))
    missing, a = (1 - s, 0.25) if t == 1 else (s, 0.75)
    return -a * missing**2 * math.log(1 - missing)


def binary_probability_textbook(p, t):
    t = 0.9 * t + 0.05
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def cosine_textbook(y, t):
    return -sum(a * b for a, b in zip(y, t, strict=True)) / math.hypot(*y) / math.hypot(*t)


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
    "softmax_smooth": (SoftmaxCrossEntropy(label_smoothing=0.2), X, LABELS, smooth_textbook),
    "softmax_smooth_one_hot": (
        SoftmaxCrossEntropy(label_smoothing=0.2), X, ONE_HOT, lambda x, t: smooth_textbook(x, t.argmax())),
    "softmax_padded": (SoftmaxCrossEntropy(ignore_class=-1), TALL, PADDED, padded_textbook),
    "softmax_ignore_2": (
        SoftmaxCrossEntropy(ignore_class=2), X, LABELS, lambda x, t: softmax_textbook(x, t) * (t != 2)),
    "categorical_smooth": (
        CategoricalCrossEntropy(label_smoothing=0.2, ignore_class=-1), PROBABILITIES, LABELS,
        lambda p, t: smooth_textbook(np.log(p), t)),
    "focal": (SoftmaxFocalCrossEntropy(1.5), X, LABELS, focal_textbook),
    "focal_padded": (SoftmaxFocalCrossEntropy(0.0, ignore_class=-1), TALL, PADDED, padded_textbook),
    "focal_0": (SoftmaxFocalCrossEntropy(0.0, label_smoothing=0.2), X, LABELS, smooth_textbook),
    "kl_divergence": (
        KLDivergence(), PROBABILITIES, SOFT, lambda p, t: sum(b * math.log(b / a) for a, b in zip(p, t, strict=True))),
    "binary_probability": (
        BinaryCrossEntropy(from_logits=False, label_smoothing=0.1), PROBABILITIES, YES_NO,
        mean(binary_probability_textbook)),
    "binary_smooth": (
        BinaryCrossEntropy(label_smoothing=0.1), X, YES_NO, mean(lambda x, t: binary_textbook(x, 0.9 * t + 0.05))),
    "binary_focal": (BinaryFocalCrossEntropy(alpha=0.25), X, YES_NO, mean(binary_focal_textbook)),
    "binary_focal_0": (
        BinaryFocalCrossEntropy(0.0, label_smoothing=0.1), X, YES_NO,
        mean(lambda x, t: binary_textbook(x, 0.9 * t + 0.05))),
    "hinge": (Hinge(), X, YES_NO, mean(lambda x, t: max(0.0, 1 - (2 * int(t) - 1) * x))),
    "hinge_signs": (Hinge(), X, 2 * YES_NO - 1, mean(lambda x, t: max(0.0, 1 - t * x))),
    "log_cosh": (LogCosh(), X, SOFT, mean(lambda x, t: math.log(math.cosh(x - t)))),
    "poisson": (Poisson(), 1.0 + X * X, YES_NO, mean(lambda y, t: y - t * math.log(y + 1e-7))),
    "poisson_log": (Poisson(log_input=True), X, LABELS[:, None] * YES_NO, mean(lambda y, t: math.exp(y) - t * y)),
    "cosine": (CosineSimilarity(), X, SOFT, cosine_textbook),
    "cosine_steps": (
        CosineSimilarity(), TALL, TALL[::-1], lambda y, t: sum(map(cosine_textbook, y, t)) / len(y)),
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
    for loss in (MeanSquaredError(), MeanAbsoluteError(), Huber(), BinaryCrossEntropy(), LogCosh(), Hinge(),
                 SoftmaxFocalCrossEntropy(0.5), BinaryFocalCrossEntropy(0.5), CosineSimilarity()):  # fmt: skip
        for labels in ([[1, 1], [1, 1]], [[0, 1], [1, 0]]):
            target = [0, 1] if isinstance(loss, SoftmaxFocalCrossEntropy) else labels
            for values in run(loss, far, target):
                assert np.isfinite(values).all(), (loss, labels)
    zeros = np.zeros((2, 2), dtype)
    assert not run(CosineSimilarity(), zeros, np.ones((2, 2)))[0].any()
    for loss in (KLDivergence(), BinaryCrossEntropy(from_logits=False), Poisson()):
        for prediction in (zeros, zeros + 1):
            for values in run(loss, prediction, [[0, 1], [1, 0]]):
                assert np.isfinite(values).all(), loss
    tiny = run(BinaryCrossEntropy(), np.full(1, 20.0, dtype), [1])[0]  # a right answer still has its small loss
    assert tiny[0] == pytest.approx(math.log1p(math.exp(-20.0)), rel=1e-6)


def test_minus_infinity_masks_a_class():
    masked = np.array([[1.0, -np.inf, 2.0]])
    for target in ([0], np.eye(3)[[0]]):
        values, dx = run(SoftmaxCrossEntropy(), masked, target)
        assert values[0] == pytest.approx(math.log(1 + math.e))
        np.testing.assert_allclose(dx, [[1 / (1 + math.e) - 1, 0, 1 - 1 / (1 + math.e)]])
        values, dx = run(SoftmaxFocalCrossEntropy(), masked, target)
        without, slope = run(SoftmaxFocalCrossEntropy(), masked[:, [0, 2]], [0])
        np.testing.assert_allclose(values, without)
        np.testing.assert_allclose(dx[:, [0, 2]], slope)
        assert dx[0, 1] == 0.0


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
        ("softmax", LOGITS, np.array(["cat"]), "got <U3 (1,). Labels of text become numbers with numpy.unique(y, "),
        ("softmax", LOGITS, np.array(["1", "2"]), "got <U1 (2,). Use y.astype('int64')."),
        ("softmax", LOGITS, np.array([1.0, 0.5]), "got float64 (2,). Row 1 has 0.5."),
        ("softmax", LOGITS, np.array([1.0, np.nan]), "got float64 (2,). Row 1 has nan."),
        ("softmax", LOGITS, [0, 4, 11], "integers in [0, 10); got 11 in row 2. Does the last layer have as many units"),
        ("categorical", LOGITS, [0, -1], "integers in [0, 10); got -1 in row 1. Labels"),
        ("softmax", ArraySpec(("N", 3)), [1, 2, 3], "got 3 in row 2. Labels that count from 1 become right with y"),
        ("softmax", LOGITS, np.full((2, 10), 2), "in [0, 1]; got values from 2 to 2"),
        ("softmax", COLUMN, [0, 1], "two or more, as in (N, 10); got (N, 1) float32. For one logit"),
        ("softmax", ArraySpec(("N", 4, "C")), [0], "classes on its last axis"),
        ("softmax", ArraySpec(("N", "T", 3)), np.zeros((2, 7, 1), int), "got int64 (2, 7, 1). Use y[..., 0]."),
        ("binary", LOGITS, [0, 1], "Labels of classes want one-hot rows, np.eye(10)[y], or the loss softmax_cross"),
        ("binary", COLUMN, [[-1], [1]], "lie in [0, 1]; got values from -1 to 1. Labels of -1 and 1 become 0 and 1"),
        ("binary", COLUMN, [[np.nan]], "lie in [0, 1]; got values from nan to nan. Row 0 has nan."),
        ("binary", COLUMN, np.array(["no", "yes"], object), "got object (2, 1). Labels of text become numbers with"),
        ("binary", COLUMN, np.array([None, "yes"], object), "got object (2, 1)."),
        ("binary", COLUMN, np.array(["2020-01-01"], "M8[D]"), "got datetime64[D] (1, 1)."),
        ("binary", COLUMN, [1, 2], "lie in [0, 1]; got values from 1 to 2."),
        ("mean_squared", LOGITS, [[0], [1]], "one-hot rows, np.eye(10)[y[..., 0]], or the loss softmax_cross_entropy"),
        ("mean_squared", ArraySpec(("N", 4, 3)), np.zeros(2), "shape (N, 4, 3); got float64 (2,)."),
        ("mean_squared", ArraySpec(("N",)), np.zeros((32, 1)), "shape (N,); got float64 (32, 1). Use y.reshape(-1)."),
        ("mean_absolute", LOGITS, np.zeros((32, 9)), "shape (N, 10); got float64 (32, 9)."),
        ("huber", COLUMN, np.array([["1"]]), "got <U1 (1, 1). Use y.astype('float32')."),
        ("huber", ArraySpec(("N", 1), "int64"), [[1]], "prediction must be float32 or float64, got (N, 1) int64"),
        ("softmax_focal", LOGITS, [0, -1], "got -1 in row 1. Labels count from 0; those that should not count are"),
        ("kl", LOGITS, np.full((2, 10), 2.0), "targets must lie in [0, 1]; got values from 2.0 to 2.0"),
        ("kl", ArraySpec(("N",)), [1.0], "probabilities of classes on its last axis, as in (N, 10); got (N,)"),
        ("binary_focal", COLUMN, [[-1], [1]], "lie in [0, 1]; got values from -1 to 1"),
        ("hinge", COLUMN, [[2], [1]], "targets must be 0 and 1, or -1 and 1; got 2. Use y > 0 for yes."),
        ("hinge", COLUMN, [[-1], [0]], "targets must be 0 and 1, or -1 and 1; got -1 and 0. Use y > 0 for yes."),
        ("poisson", COLUMN, [[-1], [1]], "targets are counts, and must be at least 0; got -1"),
        ("cosine", ArraySpec(("N",)), [1.0], "vectors along its last axis, as in (N, 10); got (N,)"),
        ("log_cosh", COLUMN, np.zeros((32, 1, 1)), "shape (N, 1); got float64 (32, 1, 1). Use y.reshape(-1, 1)."),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit(loss, prediction, target, message):
    name = min((name for name in lamella_losses() if name.startswith(loss)), key=len)
    with pytest.raises(DataError, match=f"^{name}: .*{re.escape(message)}{'$' if message.endswith('.') else ''}"):
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
    with pytest.raises(DataError, match=r"shape \(2,\); got int64 \(\)"):
        MeanSquaredError()(np.zeros(2), 1)


@pytest.mark.parametrize(
    ("loss", "prediction", "words"),
    [
        (
            CategoricalCrossEntropy(),
            [[-2.0, 3.0]],
            "must be probabilities; got values from -2 to 3. On logits use soft",
        ),
        (KLDivergence(), [[0.0, 1.5]], "kl_divergence: predictions must be probabilities; got values from 0 to 1.5"),
        (
            BinaryCrossEntropy(from_logits=False),
            [[-2.0]],
            "binary_cross_entropy: .* use from_logits=True, or end with a",
        ),
        (Poisson(), [[-2.0]], r"poisson: predictions are means, .* got -2. End with .*Poisson\(log_input=True\)"),
    ],
)
def test_predictions_that_do_not_fit_are_told_at_the_first_step(loss, prediction, words):
    with pytest.raises(DataError, match=words):
        loss.examine(np.array(prediction))
    width = len(prediction[0])
    model = lm.Sequential([Dense(width, kernel_initializer=lambda *_: np.eye(width))], input_shape=width)
    task = {"loss": loss, "optimizer": "sgd"}
    with pytest.raises(DataError, match=words):  # also where the loss is not finite
        model.train_on_batch(prediction, np.ones((1, width)), **task)
    with pytest.raises(NonFiniteError, match="are not finite: -inf in row 0.*; clean the data"):
        model.train_on_batch(np.full((1, width), -np.inf), np.ones((1, width)), **task)
    for sound in (SoftmaxCrossEntropy(), BinaryCrossEntropy(), Poisson(log_input=True), Hinge()):
        sound.examine(np.array(prediction))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SoftmaxCrossEntropy(label_smoothing=1.5), r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        (
            lambda: BinaryCrossEntropy(label_smoothing=-0.1),
            "label_smoothing: expected a number of at least 0, got -0.1",
        ),
        (lambda: CategoricalCrossEntropy(ignore_class="x"), "ignore_class: expected an integer label such as -1, or"),
        (lambda: SoftmaxCrossEntropy(ignore_class=True), "ignore_class: expected an integer label such as -1, or None"),
        (lambda: SoftmaxFocalCrossEntropy(-1), "gamma: expected a number of at least 0, got -1"),
        (lambda: BinaryFocalCrossEntropy(alpha=2.0), r"alpha: expected a number in \[0, 1\], got 2.0"),
        (lambda: BinaryCrossEntropy(from_logits=1), "from_logits: expected True or False, got 1"),
        (lambda: Poisson(log_input="no"), "log_input: expected True or False, got 'no'"),
    ],
)
def test_arguments_that_do_not_fit(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_sure_right_answers_keep_the_digits_of_focal_losses():
    """1 - p in float32 would be 0 from logits of 17 on."""
    for loss, x, y in (
        (BinaryFocalCrossEntropy(1.0), np.array([[20.0]], "float32"), [[1]]),
        (SoftmaxFocalCrossEntropy(1.0), np.array([[20.0, 0.0]], "float32"), [0]),
    ):
        assert run(loss, x, y)[0][0] == pytest.approx(math.exp(-20.0) ** 2, rel=1e-5)


def test_probabilities_beyond_their_limits_cost_what_the_limits_cost_and_no_longer_learn():
    p = np.array([[1e-9], [0.0], [1.0 - 1e-9], [1.0], [0.25]])
    values, dx = run(BinaryCrossEntropy(from_logits=False), p, [[1], [1], [0], [0], [1]])
    np.testing.assert_allclose(values, [*[-math.log(1e-7)] * 4, -math.log(0.25)], rtol=1e-8)
    np.testing.assert_allclose(dx, [[0.0], [0.0], [0.0], [0.0], [-4.0 / 5.0]], rtol=1e-12)


def test_vectors_that_are_nearly_zero_have_a_cosine_with_the_slope_of_what_is_computed():
    """Below a length of 1e-6 they are divided by that, which scales them and no longer turns them."""
    loss, y, t = CosineSimilarity(), np.array([[3e-8, 4e-8, 0.0]]), np.array([[0.0, 2.0, 0.0]])
    values, dx = run(loss, y, t)
    np.testing.assert_allclose(values, [-0.04], rtol=1e-12)
    np.testing.assert_allclose(dx, [[0.0, -1e6, 0.0]], rtol=1e-12)
    np.testing.assert_array_equal(run(loss, 0.0 * y, t)[0], [0.0])


def test_huber_refuses_a_delta_of_zero():
    with pytest.raises(ArgumentError, match=r"Huber: delta: expected a number above 0"):
        Huber(delta=0)
    with pytest.raises(ArgumentError, match=r"Huber: delta: expected a number of at least 0, got -1"):
        Huber(delta=-1)


def test_names_and_specimens():
    given, aliases = lamella_losses(), {"bce", "mae", "mse"}
    assert all(issubclass(cls, Loss) for cls in given.values())
    assert all(snake_case(cls.__name__) == name for name, cls in given.items() if name not in aliases)
    assert {given[name].__name__ for name in aliases} == {"BinaryCrossEntropy", "MeanAbsoluteError", "MeanSquaredError"}
    specimens = lamella_specimens()
    assert {type(specimen.subject) for specimen in specimens} == set(given.values())
    for specimen in specimens:
        assert pickle.loads(pickle.dumps(specimen.subject)) == specimen.subject
        for (prediction, target), words in specimen.refuses:
            with pytest.raises(DataError) as caught:
                specimen.subject.prepare(prediction, np.zeros((2, *target.shape[1:]), target.dtype))
            assert words in str(caught.value)
