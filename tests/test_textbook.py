"""Where textbook versions go wrong: each test holds the wrong version, and shows that it is wrong and lamella is not.

docs/textbook.md lists them.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, checker, helper
from onnxruntime import InferenceSession
from wheels import ROOT

import lamella as lm
from lamella_layers import (
    RNN,
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    MaxPooling2D,
    UpSampling2D,
)

rng = np.random.default_rng(5)
Array = np.ndarray[Any, Any]


class Projection(lm.losses.Loss):
    """The mean over samples of prediction times target, so that each sample's gradient is target / N."""

    def forward(self, ctx: Any, prediction: Any, target: Any) -> Any:
        ctx.save(target)
        return ctx.xp.sum(prediction * target, axis=tuple(range(1, target.ndim)))

    def backward(self, ctx: Any, d: Any) -> Any:
        return ctx.saved[0] * ctx.xp.reshape(d, (-1, *(1,) * (ctx.saved[0].ndim - 1)))


def model_of(*layers: lm.Layer, shape: tuple[int, ...]) -> lm.Model:
    model = lm.Sequential(layers, input_shape=shape, dtype="float64")
    for name, value in model.parameters.items():
        model.parameters[name] = rng.normal(size=value.shape)
    return model


def slope(function: Callable[[Array], Any], x: Array) -> Array:
    """The gradient of a sum, by central differences."""
    result = np.empty_like(x)
    for place in np.ndindex(x.shape):
        around = []
        for step in (1e-6, -1e-6):
            moved = x.copy()
            moved[place] += step
            around.append(np.sum(function(moved)))
        result[place] = (around[0] - around[1]) / 2e-6
    return result


def examine(model: lm.Model, x: Array, wrong: Callable[[Array], Array]) -> None:
    """Differences agree with the gradient of lamella, and not with ``wrong(dy)``."""
    dy = rng.normal(size=model.predict(x).shape)
    _, _, dx = model.gradients(x, dy * len(x), loss=Projection(), training=False)
    expected = slope(lambda x: model.predict(x) * dy, x)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(wrong(dy) - expected).max() > 1e-2 * np.abs(expected).max()


def windows(size: int, stride: int, grid: tuple[int, int]) -> list[tuple[int, int, slice, slice]]:
    return [
        (p, q, slice(p * stride, p * stride + size), slice(q * stride, q * stride + size)) for p, q in np.ndindex(grid)
    ]


def test_overlapping_windows_add_up():
    x = rng.normal(size=(2, 2, 5, 5))

    def overwritten(dy):
        dx = np.zeros_like(x)
        for p, q, rows, columns in windows(3, 1, (3, 3)):
            window = x[:, :, rows, columns]
            peaks = window == window.max(axis=(2, 3), keepdims=True)
            dx[:, :, rows, columns] = peaks * dy[:, :, p : p + 1, q : q + 1]  # where += is due
        return dx

    examine(model_of(MaxPooling2D(3, strides=1), shape=x.shape[1:]), x, overwritten)


def test_one_of_several_greatest_numbers_gets_the_gradient():
    """Every number up by h takes every maximum up by h: gradients of a window sum to that of its output."""
    x, dy = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 1, 1))  # after relu, whole windows are 0
    model = model_of(MaxPooling2D(2), shape=(1, 2, 2))
    expected = np.sum(model.predict(x + 1e-6) - model.predict(x - 1e-6)) / 2e-6
    _, _, dx = model.gradients(x, dy, loss=Projection(), training=False)
    to_each = (x == x.max()) * dy
    assert dx.sum() == pytest.approx(expected) == pytest.approx(1.0)
    assert to_each.sum() == 4.0


def test_average_pooling_shares_the_gradient_out():
    x = rng.normal(size=(2, 2, 4, 4))
    undivided = lambda dy: dy.repeat(2, axis=2).repeat(2, axis=3)  # noqa: E731
    examine(model_of(AveragePooling2D(2), shape=x.shape[1:]), x, undivided)


def test_average_pooling_does_not_count_padding():
    x = np.ones((1, 1, 3, 3))
    ours = model_of(AveragePooling2D(3, strides=1, padding="same"), shape=(1, 3, 3)).predict(x)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    counted = [padded[0, 0, rows, columns].mean() for _, _, rows, columns in windows(3, 1, (3, 3))]
    np.testing.assert_allclose(ours, 1.0)
    assert min(counted) == pytest.approx(4 / 9)


def test_upsampling_sums_over_the_block():
    x = rng.normal(size=(2, 2, 3, 2))
    one_of_each_block = lambda dy: dy[:, :, ::2, ::3]  # noqa: E731
    examine(model_of(UpSampling2D((2, 3)), shape=x.shape[1:]), x, one_of_each_block)


def test_recurrent_inputs_hear_of_later_steps():
    x = rng.normal(size=(2, 4, 3))
    model = model_of(RNN(3, return_sequences=True), shape=(4, 3))
    h = model.predict(x)
    own_step_only = lambda dy: (dy * (1 - h**2)) @ model.parameters["rnn_1.kernel"].T  # noqa: E731
    examine(model, x, own_step_only)


def test_softmax_has_its_full_jacobian():
    x = rng.normal(size=(3, 4))
    model = model_of(Activation("softmax"), shape=(4,))
    y = model.predict(x)
    examine(model, x, lambda dy: dy * y * (1 - y))  # the diagonal


def test_slopes_are_taken_at_the_input():
    x = rng.normal(size=(3, 4))
    model = model_of(Activation("sigmoid"), shape=(4,))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    examine(model, x, lambda dy: dy * sigmoid(sigmoid(x)) * (1 - sigmoid(sigmoid(x))))  # at the output


def test_convolution_turns_its_kernel_around_on_the_way_back():
    x = rng.normal(size=(1, 1, 5, 5))
    model = model_of(Conv2D(1, 3), shape=(1, 5, 5))
    kernel = model.parameters["conv2d_1.kernel"][0, 0]

    def unturned(dy):
        padded = np.pad(dy[0, 0], 2)
        return np.array([np.sum(padded[rows, columns] * kernel) for _, _, rows, columns in windows(3, 1, (5, 5))]
                        ).reshape(x.shape)  # fmt: skip

    examine(model, x, unturned)


def test_weights_move_after_all_gradients_are_there():
    x = rng.normal(size=(4, 3))
    model = model_of(Dense(2), shape=(3,))
    kernel = model.parameters["dense_1.kernel"]
    examine(model, x, lambda dy: dy @ (kernel - 0.1 * x.T @ dy).T)  # through the weights of the next step


def test_rows_that_are_looked_up_twice_add_up():
    words = np.array([[1, 1, 0]])
    table = lm.Input((3,), "int64", low=0, high=3)
    model = lm.Model(table, Embedding(3, 2)(table), dtype="float64")
    dy, name = rng.normal(size=(1, 3, 2)), "embedding_1.embeddings"
    start = np.array(model.parameters[name])

    def run(values):
        model.parameters[name] = values
        return model.predict(words) * dy

    expected = slope(run, start)
    _, gradients, _ = model.gradients(words, dy, loss=Projection())
    wrong = np.zeros_like(start)
    wrong[words[0]] += dy[0]  # NumPy writes the last of equal indices only
    np.testing.assert_allclose(gradients[name], expected, atol=1e-8)
    assert np.abs(wrong - expected).max() > 1e-2


def standardized_dx(x, dy, gamma, axes, epsilon=1e-3):
    """The gradient of normalization with the statistics of the batch."""
    n = np.prod([x.shape[axis] for axis in axes])
    inverse = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    unit = (x - x.mean(axis=axes, keepdims=True)) * inverse
    d = dy * gamma
    means = (d.sum(axis=axes, keepdims=True) + unit * (d * unit).sum(axis=axes, keepdims=True)) / n
    return inverse * (d - means)


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_normalization_at_rest_is_affine(frozen):
    layer = BatchNormalization().frozen() if frozen else BatchNormalization()
    x = 3.0 + 2.0 * rng.normal(size=(5, 3))
    model = model_of(layer, shape=(3,))
    gamma = model.parameters["batch_normalization_1.gamma"]
    model.state["batch_normalization_1.mean"] = [1.0, 2.0, 3.0]
    examine(model, x, lambda dy: standardized_dx(x, dy, gamma, (0,)))
    if frozen:  # in training too
        dy = rng.normal(size=x.shape)
        _, _, dx = model.gradients(x, dy * len(x), loss=Projection(), training=True)
        np.testing.assert_allclose(dx, slope(lambda x: model.predict(x) * dy, x), rtol=1e-5, atol=1e-7)


def test_statistics_of_images_are_per_channel():
    x = rng.normal(size=(1, 2, 4, 4))  # one image: every pixel is its own mean
    model = model_of(BatchNormalization(momentum=0.0), shape=(2, 4, 4))
    model.train_on_batch(x, x, loss="mean_squared_error", optimizer=lm.optimizers.SGD(0.0))
    assert model.state["batch_normalization_1.mean"].shape == (2,)
    model.parameters["batch_normalization_1.gamma"] = np.ones(2)
    model.parameters["batch_normalization_1.beta"] = np.zeros(2)
    y = model.predict(x)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1.0, rtol=1e-2)
    per_pixel = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
    assert not per_pixel.any()


def test_adam_corrects_its_bias_by_a_power():
    """Where the gradient never changes, its running mean is the gradient, and each step as long as the first."""
    ours, wrong, steps, m, v = lm.optimizers.Adam(0.1), 0.0, [], 0.0, 0.0
    p, slots, g = np.zeros(1), {"m": np.zeros(1), "v": np.zeros(1)}, np.ones(1)
    for t in range(1, 6):
        before, wrong_before = p, wrong
        p, slots = ours.update(np, p, g, slots, 0.1, t)
        m, v = 0.9 * m + 0.1, 0.999 * v + 0.001
        wrong -= 0.1 * (m / (1 - 0.9)) / np.sqrt(v / (1 - 0.999))  # without the power
        steps.append((float((before - p)[0]), wrong_before - wrong))
    np.testing.assert_allclose([step for step, _ in steps], 0.1, rtol=1e-6)
    assert steps[-1][1] > 0.15


def test_gradients_are_those_of_the_mean_loss():
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    model = model_of(Dense(2), shape=(3,))
    kernel = np.array(model.parameters["dense_1.kernel"])

    def loss(kernel):
        model.parameters["dense_1.kernel"] = kernel
        return model.evaluate(x, y, loss="mean_squared_error")["loss"]

    expected = slope(loss, kernel)
    model.parameters["dense_1.kernel"] = kernel
    residual = model.predict(x) - y
    summed = x.T @ (2 * residual / y.shape[1])  # of the sum over the batch: steps grow with it
    for times in (1, 3):  # the same rows again change nothing
        _, gradients, _ = model.gradients(np.tile(x, (times, 1)), np.tile(y, (times, 1)), loss="mean_squared_error")
        np.testing.assert_allclose(gradients["dense_1.kernel"], expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(summed, 4 * expected, rtol=1e-6)


def test_the_loss_of_an_epoch_counts_rows():
    x, y = np.zeros((5, 1)), np.array([[1.0], [1.0], [1.0], [1.0], [3.0]])
    model = lm.Sequential([Activation("linear")], input_shape=(1,), dtype="float64")
    by_batches = np.mean([np.mean(y[:4] ** 2), np.mean(y[4:] ** 2)])  # the last batch holds one row
    assert model.evaluate(x, y, loss="mean_squared_error", batch_size=4)["loss"] == pytest.approx(np.mean(y**2))
    assert by_batches == 5.0 != pytest.approx(np.mean(y**2))


def test_windows_are_never_copied_out_for_a_whole_batch():
    rows, channels, size = 256, 16, 32
    x = rng.normal(size=(rows, channels, size, size)).astype("float32")
    model = lm.Sequential([Conv2D(4, 5, padding="same")], input_shape=x.shape[1:])
    y = np.zeros((rows, 4, size, size), "float32")
    whole = 25 * x.nbytes  # what im2col of the batch takes: each pixel once for each cell of the kernel
    model.train_on_batch(x[:8], y[:8], loss="mean_squared_error", optimizer="sgd")
    tracemalloc.start()
    model.train_on_batch(x, y, loss="mean_squared_error", optimizer="sgd")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"peak of a step: {peak / 1e6:.0f} MB; im2col of the batch: {whole / 1e6:.0f} MB")
    assert peak < whole / 10


def test_dropout_scales_in_training():
    x, rate = np.ones((200, 50)), 0.4
    model = model_of(Dropout(rate), shape=(50,))
    np.testing.assert_array_equal(model.predict(x), x)
    _, _, dx = model.gradients(x, np.full(x.shape, 200.0), loss=Projection(), training=True)
    y = x * dx  # the layer is linear
    assert y.mean() == pytest.approx(x.mean(), abs=0.03)
    assert np.mean(y != 0) == pytest.approx(1 - rate, abs=0.03)  # what an unscaled mask leaves of the mean


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("sigmoid", lambda x: np.exp(x) / (1 + np.exp(x)), [0.0, 0.0, 0.5, 1.0]),
        ("softplus", lambda x: np.log(1 + np.exp(x)), [0.0, 0.0, np.log(2), 1000.0]),
        ("softmax", lambda x: np.exp(x) / np.exp(x).sum(), [0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_large_numbers_do_not_overflow(name, wrong, right):
    x = np.array([[-1000.0, -200.0, 0.0, 1000.0]], "float32")
    model = lm.Sequential([Activation(name)], input_shape=(4,))
    np.testing.assert_allclose(model.predict(x)[0], right, rtol=1e-6)
    _, _, dx = model.gradients(x, np.ones_like(x), loss=Projection())
    assert np.isfinite(dx).all()
    with np.errstate(all="ignore"):
        assert not np.isfinite(wrong(x)).all()


def test_certain_mistakes_have_a_finite_loss_and_a_gradient():
    x, label = np.array([[0.0, 200.0]], "float32"), np.array([0])
    model = lm.Sequential([Activation("linear")], input_shape=(2,))
    loss, _, dx = model.gradients(x, label, loss="softmax_cross_entropy")
    assert loss == 200.0
    np.testing.assert_array_equal(dx, [[-1.0, 1.0]])
    probability = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    with np.errstate(all="ignore"):
        assert -np.log(probability)[0, 0] == np.inf
        assert -np.log(np.clip(probability, 1e-7, 1))[0, 0] < 17  # and no slope


def test_variance_far_from_zero_survives():
    x = (1e4 + rng.normal(size=(1000, 1))).astype("float32")
    model = lm.Sequential([BatchNormalization(momentum=0.0)], input_shape=(1,))
    model.train_on_batch(x, x, loss="mean_squared_error", optimizer=lm.optimizers.SGD(0.0))
    expected = x.astype("float64").var()
    assert model.state["batch_normalization_1.variance"][0] == pytest.approx(expected, rel=1e-4)
    assert abs(np.mean(x * x) - np.mean(x) ** 2 - expected) > 0.5 * expected


@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 3, 2), (5, 2, 1), (7, 4, 3), (6, 3, 2)])
def test_same_padding_follows_the_stride_and_ends_odd(size, kernel, stride):
    x = rng.normal(size=(1, 1, size, size)).astype("float32")
    model = lm.Sequential([Conv2D(1, kernel, strides=stride, padding="same")], input_shape=x.shape[1:])
    weights = np.array(model.parameters["conv2d_1.kernel"])
    images = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("x", "w", "y")]
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[stride] * 2, kernel_shape=[kernel] * 2, auto_pad="SAME_UPPER"
    )
    graph = helper.make_graph([node], "same", images[:2], images[2:])
    onnx = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    checker.check_model(onnx)
    (expected,) = InferenceSession(onnx.SerializeToString()).run(None, {"x": x, "w": weights})
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)
    more = kernel // 2, (kernel - 1) // 2  # as for stride 1, and the odd cell first
    other = lm.Sequential([Conv2D(1, kernel, strides=stride, padding=(more, more))], input_shape=x.shape[1:])
    other.parameters["conv2d_1.kernel"] = weights
    wrong = other.predict(x)
    assert wrong.shape != expected.shape or np.abs(wrong - expected).max() > 1e-2


def test_the_page_names_every_test():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "textbook.md").read_text()))
    here = {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_every_test"}
    elsewhere = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    assert here <= named
    assert [name for name in named if f"def {name}(" not in elsewhere] == []
