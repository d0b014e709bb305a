"""What the layers compute. The laws that all layers obey come beside, by the option --lamella in pyproject.toml."""

import numpy as np
import pytest
from lamella_pixels import DepthToSpace, FilterResponseNormalization, MeanOnlyBatchNormalization, SubpixelConv2D

import lamella as lm
from lamella_layers import Conv2D


def test_channels_become_pixels():
    x = np.arange(2.0 * 8 * 3 * 2).reshape(2, 8, 3, 2)
    y = lm.Sequential([DepthToSpace(2)], input_shape=(8, 3, 2)).predict(x)
    for n, c, h, w, i, j in np.ndindex(2, 2, 3, 2, 2, 2):
        assert y[n, c, 2 * h + i, 2 * w + j] == x[n, (2 * i + j) * 2 + c, h, w]


def test_filter_response_normalization_knows_no_batch():
    images = np.random.default_rng(0).normal(size=(5, 3, 4, 4)) * 7.0
    model = lm.Sequential([FilterResponseNormalization()], input_shape=(3, 4, 4), dtype="float64")
    model.parameters["filter_response_normalization_1.tau"] = np.array([-9.0, -9.0, 0.5])
    y = model.predict(images)
    np.testing.assert_allclose(y[:1], model.predict(images[:1]))
    np.testing.assert_allclose((y[:, :2] ** 2).mean(axis=(2, 3)), 1.0, rtol=1e-6)
    assert y[:, 2].min() == 0.5


def test_running_means_take_the_place_of_batch_means():
    images = np.random.default_rng(1).normal(size=(64, 2, 3, 3)) + np.array([4.0, -2.0]).reshape(2, 1, 1)
    layer = MeanOnlyBatchNormalization(momentum=0.5)
    model = lm.Sequential([layer], input_shape=(2, 3, 3), dtype="float64")
    for _ in range(30):
        model.train_on_batch(images, 0.0 * images, loss="mean_squared_error", optimizer=lm.optimizers.SGD(1e-12))
    np.testing.assert_allclose(model.predict(images).mean(axis=(0, 2, 3)), 0.0, atol=1e-6)
    np.testing.assert_allclose(model.parameters["mean_only_batch_normalization_1.beta"], 0.0, atol=1e-9)


def test_arguments_are_checked():
    with pytest.raises(lm.ArgumentError, match="SubpixelConv2D: scale: expected an int of at least 2, got 1"):
        SubpixelConv2D(3, scale=1)
    with pytest.raises(lm.ArgumentError, match="FilterResponseNormalization: epsilon: expected a number above 0"):
        FilterResponseNormalization(0.0)


def test_small_digits_grow_and_the_model_travels(tmp_path):
    """Four by four pixels become eight by eight; what learned it is saved, loaded and exported."""
    import lamella_onnx
    from lamella.datasets import digits

    large = digits()[0] / 16.0
    small = large.reshape(-1, 1, 4, 2, 4, 2).mean(axis=(3, 5)).astype("float32")
    layers = [
        Conv2D(16, 3, padding="same"),
        FilterResponseNormalization(),
        Conv2D(16, 3, padding="same"),
        MeanOnlyBatchNormalization(0.9),
        SubpixelConv2D(1),
    ]
    model = lm.Sequential(layers, input_shape=(1, 4, 4))
    optimizer = lm.optimizers.Adam(0.01)
    model.fit(small[:1500], large[:1500], loss="mean_squared_error", optimizer=optimizer, epochs=6)
    learned = model.evaluate(small[1500:], large[1500:], loss="mean_squared_error")["loss"]
    copied = ((small.repeat(2, axis=2).repeat(2, axis=3) - large)[1500:] ** 2).mean()
    print(f"mean squared error: {learned:.4f}; of pixels repeated: {copied:.4f}")
    assert learned < 0.75 * copied

    model.save(tmp_path / "grow.lamella")
    again = lm.load(tmp_path / "grow.lamella")
    np.testing.assert_array_equal(again.predict(small[:9]), model.predict(small[:9]))
    print(lamella_onnx.export(again, tmp_path / "grow.onnx", samples=small[:50]))
    assert lamella_onnx.verify(tmp_path / "grow.onnx")
