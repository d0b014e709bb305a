"""Pooling of series and over everything: against pooling of images and NumPy. Windows on images: `test_families`."""

import time

import numpy as np
import onnx
import pytest

import lamella as lm
from lamella_layers import (
    AveragePooling1D,
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
)
from lamella_layers.pooling import (
    average_pool,
    average_pool_dx,
    global_average_pool,
    global_max_pool_dx,
    max_pool,
    max_pool_dx,
)
from lamella_layers.windows import Windows
from lamella_onnx import export

NUMPY, STRICT = lm.backends.get_backend("numpy"), lm.backends.get_backend("strict")


def run(layer, x, dy=None):
    """The output, and the gradient of the input for a given one of the output, in float64."""
    model = lm.Sequential([layer], input_shape=x.shape[1:], dtype="float64")
    y = model.predict(x)
    target = y - (np.ones_like(y) if dy is None else dy) * y.size / 2  # the gradient of the mean square is then dy
    return y, model.gradients(x, target, loss="mean_squared_error")[2]


@pytest.mark.parametrize(("series", "images"), [(MaxPooling1D, MaxPooling2D), (AveragePooling1D, AveragePooling2D)])
def test_a_series_is_an_image_of_one_row(series, images):
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(15):
        size, strides = (int(n) for n in rng.choice([1, 2, 3, 17], 2))
        padding = [(0, size - 1), (size - 1) // 2, "same", "valid"][rng.integers(4)]
        flat = ((0, 0), padding) if isinstance(padding, tuple | int) else padding
        x = rng.integers(-3, 3, (2, 3, size + int(rng.integers(0, 30)))).astype("float64")  # many equal numbers
        y, _ = run(series(size, strides, padding), x)
        dy = rng.normal(size=y.shape)
        expected, expected_dx = run(images((1, size), (1, strides), flat), x[:, :, None], dy[:, :, None])
        np.testing.assert_array_equal(y, expected[:, :, 0])
        np.testing.assert_array_equal(run(series(size, strides, padding), x, dy)[1], expected_dx[:, :, 0])


@pytest.mark.parametrize(
    ("image", "size", "strides", "pads"),
    [
        ((40, 43), (20, 17), (20, 17), ((0, 0), (0, 0))),  # end to end, with a rest
        ((40, 43), (18, 3), (18, 1), ((0, 0), (1, 1))),
        ((30, 36), (9, 17), (4, 17), ((5, 2), (16, 0))),
        ((3, 20), (5, 18), (1, 19), ((4, 4), (0, 17))),
    ],
)
def test_large_windows_pool_as_written_out(image, size, strides, pads):
    rng, windows = np.random.default_rng(7), Windows.over(image, size=size, strides=strides, padding=pads)
    x = rng.integers(-2, 3, (2, 2, *image)).astype("float64")  # many equal numbers
    x[rng.random(x.shape) < 0.2] = -np.inf
    x[0] = -np.inf
    x[1, 0, 1, 1] = np.nan
    dy = rng.normal(size=(2, 2, *windows.grid))
    y, mean, dx, dx_mean = np.empty(dy.shape), np.empty(dy.shape), np.zeros(x.shape), np.zeros(x.shape)
    for n, c, *place in np.ndindex(*dy.shape):
        starts = [o * s - before for o, s, (before, _) in zip(place, strides, pads, strict=True)]
        part = (n, c, *(slice(max(0, first), first + k) for first, k in zip(starts, size, strict=True)))
        y[n, c, *place], mean[n, c, *place] = x[part].max(), x[part].mean()
        dx_mean[part] += dy[n, c, *place] / x[part].size
        if not np.isnan(x[part]).any():
            dx[part][np.unravel_index(np.argmax(x[part]), x[part].shape)] += dy[n, c, *place]
    for backend in (NUMPY, STRICT):
        xp, a, d = backend.xp, backend.asarray(x), backend.asarray(dy)
        for given, expected in (
            (max_pool(xp, a, windows), y),
            (average_pool(xp, a, windows), mean),
            (max_pool_dx(xp, a, backend.asarray(y), d, windows), dx),
            (average_pool_dx(xp, d, windows), dx_mean),
        ):
            np.testing.assert_allclose(backend.asnumpy(given), expected, atol=1e-12)


def test_windows_as_large_as_the_image_take_a_look_for_each_axis_and_not_for_each_cell(tmp_path):
    x = np.zeros((2, 8, 160, 160), "float32")
    for layer in (MaxPooling2D(160), MaxPooling2D(150, strides=10), AveragePooling2D(160)):
        model = lm.Sequential([layer], input_shape=x.shape[1:])
        start = time.process_time()
        model.gradients(x, model.predict(x), loss="mean_squared_error")
        assert time.process_time() - start < 0.5, layer  # seconds, if there is a step for each of 25600 cells
    export(lm.Sequential([AveragePooling2D(56)], input_shape=(2, 56, 57), dtype="float64"), tmp_path / "model.onnx")
    assert len(onnx.load(tmp_path / "model.onnx").graph.node) < 10


@pytest.mark.parametrize(
    ("largest", "mean", "shape"),
    [
        (GlobalMaxPooling1D, GlobalAveragePooling1D, (2, 3, 5)),
        (GlobalMaxPooling2D, GlobalAveragePooling2D, (2, 3, 4, 5)),
    ],
)
def test_global_pooling_takes_all_of_a_channel(largest, mean, shape):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, shape).astype("float64")
    axes, dy = tuple(range(2, len(shape))), rng.normal(size=shape[:2])
    y, dx = run(mean(), x, dy)
    np.testing.assert_allclose(y, x.mean(axes), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(dx, np.broadcast_to(dy.reshape(*shape[:2], *(1 for _ in axes)), shape) / x[0, 0].size)
    y, dx = run(largest(), x, dy)
    np.testing.assert_array_equal(y, x.max(axes))
    expected = np.zeros((2, 3, x[0, 0].size))
    for n, c in np.ndindex(2, 3):
        expected[n, c, list(x[n, c].flat).index(y[n, c])] = dy[n, c]  # the first of equal ones
    np.testing.assert_allclose(dx, expected.reshape(shape))
    for layer in (largest, mean):
        kept, dx_kept = run(layer(keepdims=True), x)
        dropped, dx = run(layer(), x)
        assert kept.shape == (*shape[:2], *(1 for _ in axes))
        np.testing.assert_array_equal(kept.reshape(2, 3), dropped)
        np.testing.assert_array_equal(dx_kept, dx)
        assert layer()(lm.Input((3, *("T", "W")[: len(axes)]))).spec.shape == ("N", 3)


def test_global_kernels_agree_with_their_references_for_any_layout():
    rng, xp = np.random.default_rng(1), NUMPY.xp
    for shape in ((2, 3, 4, 5), (1, 1, 7), (3, 2, 1, 1)):
        for order in (range(len(shape)), (0, *range(2, len(shape)), 1), reversed(range(len(shape)))):
            order = list(order)
            x = rng.integers(-3, 3, [shape[k] for k in order]).astype("float64").transpose(np.argsort(order))
            dy = rng.normal(size=(*shape[:2], *(1 for _ in shape[2:])))
            np.testing.assert_allclose(global_average_pool(xp, x), global_average_pool.reference(xp, x), atol=1e-15)
            np.testing.assert_array_equal(global_max_pool_dx(xp, x, dy), global_max_pool_dx.reference(xp, x, dy))
    image = np.ones((2, 3, 4, 5), "float32")
    assert global_average_pool(xp, image).dtype == np.float32
    assert global_max_pool_dx(xp, image, image[:, :, :1, :1]).strides[1] == image.itemsize


@pytest.mark.parametrize(
    "layer", [MaxPooling1D(3), AveragePooling1D(3), GlobalMaxPooling1D(), GlobalAveragePooling1D()]
)
def test_series_are_asked_for_in_words(layer):
    for shape, dtype, words in (
        ((28,), None, "expected series (N, channels, length)"),
        ((1, 28, 28), None, "expected series (N, channels, length)"),
        ((1, 28), "uint8", "astype('float32')"),
    ):
        with pytest.raises(lm.GraphError) as error:
            layer(lm.Input(shape, dtype))
        assert words in str(error.value)
    with pytest.raises(lm.ArgumentError, match=r"MaxPooling1D: padding=2: expected less on each side than pool_size=2"):
        MaxPooling1D(2, padding=2)
    with pytest.raises(lm.ArgumentError, match=r"MaxPooling1D: pool_size: expected a positive int, got \(2, 2\)"):
        MaxPooling1D((2, 2))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 2, 1_000_003), (2, 3, 500, 601)])
def test_the_mean_of_a_million_numbers_is_as_exact_as_that_of_few(shape, order):
    x = np.full(shape, 0.1, "float32", order=order)
    np.testing.assert_allclose(global_average_pool(NUMPY.xp, x), np.float32(0.1), rtol=2e-7)
