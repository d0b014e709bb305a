"""The backend with oneDNN's kernels: the same numbers as NumPy's, bits that repeat, threads, forks, and no library."""

from __future__ import annotations

import os
import threading
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from wheels import run

import lamella as lm
from lamella.backends import get_backend
from lamella.engine.threads import thread_count
from lamella.primitives import affine, affine_gradients, relu, relu_dx
from lamella_layers import (
    GRU,
    LSTM,
    RNN,
    Activation,
    Add,
    AveragePooling2D,
    BatchNormalization,
    Bidirectional,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GlobalAveragePooling2D,
    MaxPooling2D,
    MultiHeadAttention,
    PReLU,
)
from lamella_layers.convolution import conv, conv_dw, conv_transpose, sum_pixels
from lamella_layers.merging import add
from lamella_layers.normalization import batch_normalization_dx, channel_affine, channel_moments, channel_products
from lamella_layers.pooling import (
    average_pool,
    average_pool_dx,
    global_average_pool,
    global_average_pool_dx,
    max_pool,
    max_pool_dx,
)
from lamella_layers.recurrent.recurrent import Sequences, kept_recurrence, recurrence, recurrence_dx
from lamella_layers.windows import Windows

NUMPY = get_backend("numpy").xp
SEEDS = range(40)


@pytest.fixture
def backend():
    try:
        return get_backend("onednn")
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def xp(backend, monkeypatch):
    """Its functions; nothing is too small for oneDNN."""
    from lamella_onednn.kernels import convolution, dense, elementwise, normalization, optimizers, pooling, sums

    for module in (convolution, dense, elementwise, normalization, optimizers, pooling, sums):
        for name in vars(module):
            if name.startswith("LEAST"):
                monkeypatch.setattr(module, name, 0)
    return backend.xp


def drawn(rng, *shape):
    """Values in any memory layout: axes in any order, and at times with gaps."""
    order = rng.permutation(len(shape)) if rng.random() < 0.6 else [0, *range(2, len(shape)), 1][: len(shape)]
    sizes = [shape[axis] for axis in order]
    gap = rng.random() < 0.3
    values = rng.normal(size=[*sizes[:-1], sizes[-1] * (1 + gap)]).astype("float32")
    return values[..., :: 1 + gap].transpose(np.argsort(order))


def geometry(rng, axes):
    size, strides, dilations = (tuple(map(int, rng.integers(1, most, axes))) for most in (4, 4, 3))
    image = tuple(int(rng.integers((k - 1) * d + 1, 13)) for k, d in zip(size, dilations, strict=True))
    pads = tuple((int(rng.integers(0, k)), int(rng.integers(0, k))) for k in size)
    return Windows.over(image, size=size, strides=strides, dilations=dilations, padding=pads)


def exact(function, *arrays, **options):
    """The reference in float64."""

    return function.reference(NUMPY, *map(wide, arrays), **options)


def wide(value):
    """The same with floats of 64 bits."""
    if isinstance(value, tuple):
        return type(value)(*map(wide, value)) if hasattr(value, "_fields") else tuple(map(wide, value))
    floats = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype("float64") if floats else value


def agree(given, expected, terms=1):
    """Whether float32 sums of so many terms are right."""
    scale = max(1.0, float(np.abs(expected).max()))
    assert given.shape == expected.shape
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, rtol=0.0, atol=(4.0 + terms**0.5) * 2.0**-23 * scale)


@pytest.mark.parametrize("seed", SEEDS)
def test_convolution(xp, seed):
    rng = np.random.default_rng(seed)
    windows = geometry(rng, axes=1 + seed % 2)
    groups, depth, each = (int(rng.integers(1, most)) for most in (4, 6, 6))
    if seed % 5 == 0:
        groups, depth, each = int(rng.integers(2, 20)), 1, int(rng.integers(1, 3))
    n = int(rng.integers(1, 4))
    x = drawn(rng, n, groups * depth, *windows.image)
    y = drawn(rng, n, groups * each, *windows.grid)
    kernel = drawn(rng, groups * each, depth, *windows.size)
    for bias in (None, drawn(rng, groups * each)):
        expected = exact(conv, x, kernel, bias, windows, groups=groups)
        agree(conv(xp, x, kernel, bias, windows, groups=groups), expected, kernel[0].size)
    for bias in (None, drawn(rng, groups * depth)):
        expected = exact(conv_transpose, y, kernel, bias, windows, groups=groups)
        agree(conv_transpose(xp, y, kernel, bias, windows, groups=groups), expected, kernel[:, 0].size)
    agree(conv_dw(xp, x, y, windows, groups=groups), exact(conv_dw, x, y, windows, groups=groups), y[:, 0].size)
    agree(sum_pixels(xp, y), exact(sum_pixels, y), y[:, 0].size)


def test_kernels_turned_around_and_repeated(xp):
    """Where strides are negative, or none, oneDNN gets a copy."""
    rng, windows = np.random.default_rng(0), Windows.over((5, 6), size=(3, 3))
    x, kernel = drawn(rng, 2, 3, 5, 6), drawn(rng, 4, 3, 3, 3)
    for one in (np.flip(kernel, (2, 3)), np.broadcast_to(kernel[:, :, :1, :1], kernel.shape)):
        agree(conv(xp, x, one, None, windows), exact(conv, x, one, None, windows), 27)
    repeated = np.broadcast_to(x[:, :, :1, :1], x.shape)
    agree(conv(xp, repeated, kernel, None, windows), exact(conv, repeated, kernel, None, windows), 27)


@pytest.mark.parametrize("seed", SEEDS)
def test_pooling(xp, seed):
    rng = np.random.default_rng(seed)
    axes = 1 + seed % 2
    size = tuple(map(int, rng.integers(1, 6, axes)))
    image = tuple(int(rng.integers(k, 13)) for k in size)
    pads = tuple((int(rng.integers(0, k)), int(rng.integers(0, k))) for k in size)
    windows = Windows.over(image, size=size, strides=tuple(map(int, rng.integers(1, 4, axes))), padding=pads)
    n, channels = map(int, rng.integers(1, 20, 2))
    x, dy = np.round(2.0 * drawn(rng, n, channels, *image)), drawn(rng, n, channels, *windows.grid)  # with ties
    y = max_pool(xp, x, windows)
    np.testing.assert_array_equal(y, max_pool(NUMPY, x, windows))
    for known in (y, y.copy()):  # with and without oneDNN's notes
        agree(max_pool_dx(xp, x, known, dy, windows), exact(max_pool_dx, x, known, dy, windows), 25)
    agree(average_pool(xp, x, windows), exact(average_pool, x, windows), 25)
    agree(average_pool_dx(xp, dy, windows), exact(average_pool_dx, dy, windows), 25)
    agree(global_average_pool(xp, x), exact(global_average_pool, x), 144)
    dy = drawn(rng, n, channels, *(1,) * axes)
    agree(global_average_pool_dx(xp, x, dy), exact(global_average_pool_dx, x, dy))


def test_values_that_are_not_finite(xp):
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype("float32")
    x[0, 0, 1, 1], x[0, 1, 2, 2], x[1, 0, :2, :2], x[1, 2, 0, 0] = np.nan, np.inf, -np.inf, -np.inf
    windows = Windows.over((6, 6), size=(2, 2), strides=(2, 2))
    y = max_pool(xp, x, windows)
    np.testing.assert_array_equal(y, max_pool(NUMPY, x, windows))
    dy = np.ones_like(y)
    np.testing.assert_array_equal(max_pool_dx(xp, x, y, dy, windows), max_pool_dx(NUMPY, x, y, dy, windows))
    np.testing.assert_array_equal(relu(xp, x), relu(NUMPY, x))
    assert np.isnan(average_pool(xp, x, windows)[0, 0, 0, 0])
    assert np.isnan(conv(xp, x, np.ones((1, 3, 1, 1), "float32"), None, Windows.over((6, 6), size=(1, 1)))[0, 0, 1, 1])


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (1, 1, 1, 1), (2, 16, 7, 7), (70, 33, 16, 17), (1, 3, 180, 200)])
def test_normalization(xp, shape, offset):
    rng = np.random.default_rng(1)
    x, dy = (values.transpose(0, 3, 1, 2) for values in rng.normal(size=(2, shape[0], *shape[2:], shape[1])))
    x, dy = np.array(x + offset, "float32", order="K"), np.array(dy, "float32", order="K")
    center, scale, shift, slope = rng.normal(size=(4, shape[1])).astype("float32")
    center += np.float32(offset)
    terms = dy[:, 0].size
    mean, squares = channel_moments(xp, x)
    wide = x.astype("float64")
    assert mean.dtype == squares.dtype == np.float64
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 2, 3)), rtol=2.0**-50, atol=2e-7)
    np.testing.assert_allclose(squares, wide.var(axis=(0, 2, 3)) * terms, rtol=1e-5, atol=1e-9)
    for given, expected in zip(
        channel_products(xp, dy, x, center), exact(channel_products, dy, x, center), strict=True
    ):
        agree(given.astype("float32"), expected, terms * 10)
    agree(channel_affine(xp, x, scale), exact(channel_affine, x, scale))
    expected = exact(channel_affine, x, scale, shift, center=center)
    agree(channel_affine(xp, x, scale, shift, center=center), expected)
    given = batch_normalization_dx(xp, dy, x, center, shift, slope, scale)
    agree(given, exact(batch_normalization_dx, dy, x, center, shift, slope, scale), 4)


def test_moments_of_images_of_which_the_first_is_like_no_other(xp):
    x = np.random.default_rng(0).normal(size=(40, 16, 16, 4)).astype("float32").transpose(0, 3, 1, 2)
    x[0] += 1e4
    x[1:] *= 1e-2
    mean, squares = channel_moments(xp, x)
    wide = x.astype("float64")
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 2, 3)), rtol=0.0, atol=1e-5 * wide.std())
    np.testing.assert_allclose(squares, wide.var(axis=(0, 2, 3)) * wide[:, 0].size, rtol=1e-4)
    mean, squares = channel_moments(xp, np.full_like(x, 0.1))
    np.testing.assert_allclose(mean, np.full(4, np.float64(np.float32(0.1))), rtol=1e-7)
    np.testing.assert_allclose(squares, np.zeros(4), atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_products_and_elements(xp, seed):
    rng = np.random.default_rng(seed)
    rows, features, units = map(int, rng.integers(1, 60, 3))
    x, dy, kernel, bias = (drawn(rng, *s) for s in ((rows, features), (rows, units), (features, units), (units,)))
    agree(affine(xp, x, kernel, bias), exact(affine, x, kernel, bias), features)
    agree(affine(xp, x, kernel), exact(affine, x, kernel), features)
    agree(affine(xp, dy, kernel.T), exact(affine, dy, kernel.T), units)
    steps = rng.normal(size=(3, rows, features)).astype("float32")
    agree(affine(xp, steps, kernel, bias), exact(affine, steps, kernel, bias), features)
    more = rng.normal(size=(3, rows, units)).astype("float32")
    for given, slope in ((x, dy), (steps, more)):
        sizes, wide = (units, slope.size // units, slope.size // units), exact(affine_gradients, given, kernel, slope)
        for got, expected, size in zip(affine_gradients(xp, given, kernel, slope), wide, sizes, strict=True):
            agree(got, expected, size)
    out = np.empty((units, features), "float32").T
    options = {"use_bias": False, "wants_dx": False, "out": out}
    assert [got is out for got in affine_gradients(xp, x, kernel, dy, **options)] == [False, True, False]
    agree(out, x.astype("float64").T @ dy, rows)
    y = relu(xp, x)
    np.testing.assert_array_equal(y, relu(NUMPY, x))
    other = np.empty_like(y)
    other[...] = drawn(rng, *y.shape)
    np.testing.assert_array_equal(relu_dx(xp, y, y, other), relu_dx(NUMPY, y, y, other))
    np.testing.assert_array_equal(add(xp, y, other, y), add(NUMPY, y, other, y))


@pytest.mark.parametrize("seed", SEEDS)
def test_recurrent_layers(xp, seed):
    rng = np.random.default_rng(seed)
    n, steps, features, units = map(int, rng.integers(1, 24, 4))
    names = "return_sequences", "return_state", "reverse", "use_bias", "begins"
    options = {name: bool(rng.integers(2)) for name in names}
    begins = options.pop("begins")
    if (kind := (RNN, LSTM, GRU)[seed % 3]) is RNN:
        options["activation"] = ("tanh", "sigmoid")[int(rng.integers(2))]
    layer = kind(units, **options)
    width = len(layer.gates) * units
    kernel, recurrent = (drawn(rng, rows, width) / np.float32(rows**0.5) for rows in (features, units))
    kernel, recurrent, *biases = map(np.ascontiguousarray, (kernel, recurrent, drawn(rng, width), drawn(rng, width)))
    params = dict(
        zip(("kernel", "recurrent_kernel", "bias", "recurrent_bias"), (kernel, recurrent, *biases), strict=True)
    )
    initial = tuple(drawn(rng, n, units) for _ in layer.states) if begins else ()
    given = Sequences(drawn(rng, n, steps, features), None, initial)
    exact_params, exact_given = SimpleNamespace(**{k: wide(v) for k, v in params.items()}), wide(given)
    task, exact_task = (layer, SimpleNamespace(**params), given), (layer, exact_params, exact_given)

    y, last = recurrence(xp, *task)
    trained_y, trained_last, kept = kept_recurrence(xp, *task)
    exact_y, exact_last, exact_kept = kept_recurrence(NUMPY, *exact_task)
    assert not isinstance(kept, tuple), "NumPy's kernel ran"
    for got, expected in zip((*last, *trained_last), exact_last * 2, strict=True):
        agree(got, expected, 8 * steps)
    for got in (y, trained_y):
        assert (got is None) == (exact_y is None)
        if got is not None:
            agree(got, exact_y, 8 * steps)

    incoming = [drawn(rng, n, steps, units) if layer.return_sequences else drawn(rng, n, units)]
    incoming += [drawn(rng, n, units) for _ in layer.states] if layer.return_state else []
    wants = {"trainable": True, "wants_dx": True}
    dx, d, gradients = recurrence_dx(xp, *task, kept, tuple(incoming), **wants)
    exact_dx, exact_d, exact_gradients = recurrence_dx(NUMPY, *exact_task, exact_kept, wide(tuple(incoming)), **wants)
    agree(dx, exact_dx, 8 * steps)
    for got, expected in zip(d if begins else (), exact_d if begins else (), strict=True):
        agree(got, expected, 8 * steps)
    assert gradients.keys() == exact_gradients.keys()
    for name, got in gradients.items():
        agree(got, exact_gradients[name], 8 * n * steps)


def test_recurrent_layers_share_their_memory(backend):
    """Steps of other shapes in between, and passes without a way back, change nothing and take no more memory."""
    from lamella_onednn.routines import state

    model, other = sequences(backend="onednn"), sequences(backend="onednn")
    x, y = batch(model)
    options = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.SGD(0.02)}
    given = [model.train_on_batch(x, y, **options) for _ in range(4)]
    count = len(state().memory["workspaces"])
    between = [lambda: other.predict(x), lambda: other.train_on_batch(x[:5], y[:5], **options)]
    model = sequences(backend="onednn")
    for step, expected in enumerate(given):
        between[step % 2]()
        assert model.train_on_batch(x, y, **options) == expected
    assert len(state().memory["workspaces"]) == count


@pytest.mark.parametrize("seed", range(8))
def test_adam(xp, backend, seed):
    rng = np.random.default_rng(seed)
    size, t = int(rng.integers(1, 3000)), int(rng.integers(1, 50))
    kind = (lm.optimizers.Adam, lm.optimizers.AdamW)[seed % 2]
    rule, rate = kind(0.01, beta_1=0.8, epsilon=float(rng.choice([1e-8, 1e-3]))), 10.0 ** rng.uniform(-5, 0)
    p, g, m = (drawn(rng, size).copy() for _ in range(3))
    v = drawn(rng, size).copy() ** 2
    for array, chance in ((g, 0.2), (m, 0.2), (v, 0.4)):
        array[rng.random(size) < chance] = 0.0
    new_p, new_m, new_v, work = (np.empty(size, "float32") for _ in range(4))
    assert kind.update in backend.writers
    backend.writers[kind.update](rule, p, g, {"m": m, "v": v}, rate, t, new_p, {"m": new_m, "v": new_v}, work)
    exact_p, slots = rule.update(NUMPY, wide(p), wide(g), {"m": wide(m), "v": wide(v)}, rate, t)
    agree(new_m, slots["m"])
    agree(new_v, slots["v"])
    moved = np.abs(exact_p - p)
    np.testing.assert_allclose(new_p, exact_p, rtol=2**-22, atol=2**-22 * max(1.0, float(moved.max())))


def test_adam_trains_as_on_numpy(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 300)).astype("float32"), np.arange(32) % 10
    models = [lm.Sequential([Dense(300, activation="relu"), Dense(10)], input_shape=300) for _ in range(2)]
    models[1].to("onednn")
    kept = lm.optimizers.Adam(0.003, beta_2=0.2, amsgrad=True)
    for optimizer in (lm.optimizers.AdamW(0.003), lm.optimizers.Adam(0.003), kept):
        options = {"loss": "softmax_cross_entropy", "optimizer": optimizer}
        for model in models:
            model.optimizer_state = None
        given = [[model.train_on_batch(x, y, **options) for _ in range(6)] for model in models]
        np.testing.assert_allclose(given[1], given[0], rtol=1e-3)


def test_small_arrays_floats_of_64_bits_and_integers_are_left_to_numpy(backend):
    x, windows = np.ones((1, 2, 3, 3)), Windows.over((3, 3), size=(2, 2))
    for dtype in ("float32", "float64"):
        given, kernel = x.astype(dtype), np.ones((1, 2, 2, 2), dtype)
        np.testing.assert_array_equal(conv(backend.xp, given, kernel, None, windows), np.full((1, 1, 2, 2), 8.0))
        assert max_pool(backend.xp, given, windows).dtype == dtype
    large = np.ones((8, 64, 32, 32))
    for function in (relu, lambda ctx, x: max_pool(ctx, x, Windows.over((32, 32), size=(2, 2)))):
        assert function(backend.xp, large).dtype == np.float64


def blocks(*filters):
    return [
        layer
        for f in filters
        for layer in (Conv2D(f, 3, padding="same", use_bias=False), BatchNormalization(), Activation("relu"))
    ]


def vgg(**options):
    layers = [*blocks(16, 16), MaxPooling2D(), *blocks(32), AveragePooling2D(), Flatten(), Dense(64, activation="relu")]
    return lm.Sequential([*layers, Dense(10)], input_shape=(3, 20, 18), **options)


def resnet(**options):
    given = lm.Input((3, 20, 18))
    x = given
    for layer in blocks(16):
        x = layer(x)
    for filters, stride in ((16, 1), (32, 2)):
        y = BatchNormalization()(Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x))
        y = DepthwiseConv2D(3, padding="same")(Activation("relu")(y))
        x = Conv2D(filters, 1, strides=stride)(x) if stride > 1 else x
        x = Activation("relu")(Add()(x, y))
    return lm.Model(given, Dense(10)(GlobalAveragePooling2D()(x)), **options)


def upside_down(**options):
    layers = [Conv2D(8, 3, strides=2), Conv2DTranspose(16, 3, strides=2, activation="relu"), Conv2D(4, 3), Flatten()]
    return lm.Sequential([*layers, Dense(10)], input_shape=(3, 20, 18), **options)


def series(**options):
    layers = [Conv1D(32, 5, padding="same", activation="relu"), Conv1D(32, 5, strides=2), Flatten(), Dense(10)]
    return lm.Sequential(layers, input_shape=(3, 360), **options)


def sequences(**options):
    layers = [Bidirectional(LSTM(24)), Dense(16, activation="relu"), GRU(16, use_bias=False), RNN(12)]
    return lm.Sequential([*layers, LSTM(16, return_sequences=False), Dense(10)], input_shape=(12, 8), **options)


MODELS = (vgg, resnet, upside_down, series, sequences)


def batch(model, rows=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, *model.input_specs[0].shape[1:])).astype("float32"), np.arange(rows) % 10


def losses(model, steps=6):
    x, y = batch(model)
    options = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.SGD(0.02)}
    return [model.train_on_batch(x, y, **options) for _ in range(steps)]


@pytest.mark.parametrize("make", MODELS)
def test_training_gives_the_losses_of_numpy_and_bits_that_repeat(backend, make):
    model = make(backend="onednn")
    given = losses(model)
    np.testing.assert_allclose(given, losses(make(backend="numpy")), rtol=2e-3)
    assert given[-1] < given[0]
    x, _ = batch(model)
    np.testing.assert_allclose(model.predict(x), model.copy().to("numpy").predict(x), rtol=1e-3, atol=1e-4)
    losses(MODELS[MODELS.index(make) - 1](backend="onednn"), 2)  # what ran in between makes no difference
    again = make(backend="onednn")
    assert losses(again) == given
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)


def test_a_batch_runs_whole_where_that_pays(backend):
    from lamella.graph.slicing import cut

    assert backend.name == "onednn"
    assert backend.sliced is get_backend("numpy")
    model = vgg(backend="onednn")
    assert [piece.stop for piece in cut(model.graph, 64, backend, 2).rows] == [64]
    assert cut(model.graph, 64, backend, 2)[1:] == (backend, 1)
    dense = lm.Sequential([Dense(512), Dense(512)], input_shape=512)
    assert cut(dense.graph, 64, backend, 2).backend is backend
    assert cut(sequences().graph, 1, backend, 2).backend is backend
    series = lm.Input((12, 8))
    for layer in (LSTM(8, truncate=4), RNN(8, activation="relu"), Bidirectional(GRU(8, truncate=3))):
        assert cut(lm.Model(series, layer(series)).graph, 64, backend, 2).backend is get_backend("numpy")
    lengths = lm.Input((), dtype="int64", low=0, high=13)
    padded = lm.Model([series, lengths], LSTM(8)(series, lengths))
    assert cut(padded.graph, 64, backend, 2).backend is get_backend("numpy")
    tiny = lm.Sequential([Conv2D(2, 3), Flatten(), Dense(1)], input_shape=(1, 5, 5))
    assert cut(tiny.graph, 8, backend, 2).backend is get_backend("numpy")
    x = lm.Input((64, 32))
    for layer in (MultiHeadAttention(4, 16)(x, x), PReLU()(x)):
        assert cut(lm.Model(x, layer).graph, 64, backend, 2).backend is get_backend("numpy")


def test_recurrent_layers_and_others_run(backend):
    layers = [LSTM(64, truncate=5), Dense(8), Activation("tanh"), LSTM(8, return_sequences=False), Dense(10)]
    given, expected = (losses(lm.Sequential(layers, input_shape=(12, 8), backend=b)) for b in ("onednn", "numpy"))
    np.testing.assert_allclose(given, expected, rtol=1e-4)


def test_models_of_64_bits_run_on_the_kernels_of_numpy(backend):
    given, expected = (losses(vgg(backend=name, dtype="float64"), 2) for name in ("onednn", "numpy"))
    np.testing.assert_allclose(given, expected, rtol=1e-9)


def test_models_move_and_are_saved_and_loaded(backend, tmp_path, monkeypatch):
    model = vgg(backend="onednn")
    losses(model, 2)
    x, _ = batch(model)
    expected = model.predict(x)
    model.save(tmp_path / "model.lamella")
    monkeypatch.setenv("LAMELLA_BACKEND", "onednn")
    loaded = lm.load(tmp_path / "model.lamella")
    assert loaded.backend == "onednn"
    np.testing.assert_array_equal(loaded.predict(x), expected)
    np.testing.assert_allclose(loaded.to("numpy").predict(x), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(loaded.to("onednn").predict(x), expected)
    assert loaded.copy().backend == "onednn"


def test_another_number_of_threads(backend):
    model, threads = vgg(backend="onednn"), thread_count()
    x, _ = batch(model)
    expected = model.predict(x)
    try:
        for count in (1, 2, 3):
            lm.set_threads(count)
            np.testing.assert_allclose(model.predict(x), expected, rtol=1e-3, atol=1e-5)
    finally:
        lm.set_threads(None)
    assert thread_count() == threads
    np.testing.assert_array_equal(model.predict(x), expected)


def test_two_threads_at_once(backend):
    models = [vgg(backend="onednn"), resnet(backend="onednn")]
    given = [batch(model)[0] for model in models]
    expected = [model.predict(x) for model, x in zip(models, given, strict=True)]
    wrong: list[object] = []

    def work(k):
        try:
            for _ in range(5):
                for j in (k, 1 - k):
                    np.testing.assert_array_equal(models[j].copy().predict(given[j]), expected[j])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on(backend):
    model = vgg(backend="onednn")
    x, _ = batch(model)
    expected = model.predict(x)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads
        child = os.fork()
    if child == 0:
        try:
            close = np.allclose(model.predict(x), expected, rtol=1e-3, atol=1e-5) and losses(model, 1)[0] < 100.0
            os.write(writing, b"right" if close else b"wrong")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        timer = threading.Timer(60.0, os.kill, (child, 9))
        timer.start()
        told = pipe.read()
        timer.cancel()
    os.waitpid(child, 0)
    assert told == b"right"
    np.testing.assert_array_equal(model.predict(x), expected)


def test_routines_are_kept_and_few(backend, monkeypatch):
    from lamella_onednn import routines

    monkeypatch.setattr(routines, "_MOST", 3)
    made = []

    def make(number):
        made.append(number)
        return number

    for number in (1, 2, 1, 3, 1, 4, 1, 2):
        assert routines.kept(make, number) == number
    assert made == [1, 2, 3, 4, 2]
    assert len(routines.state().kept) >= 3


def test_what_oneDNN_refuses_is_told_or_left_to_numpy(backend):
    from lamella_onednn import routines
    from lamella_onednn.descriptors import channels_last, described
    from lamella_onednn.library import Unimplemented, library

    def refused():
        raise Unimplemented("a sum")

    assert routines.kept(refused) is None
    given = (described((2, 3)), described((4, 5)), None, described((2, 5)), None)
    with pytest.raises(RuntimeError, match=r"oneDNN failed on a product of 2x3 and 4x5: invalid arguments"):
        routines.choose("matmul", *given, what="a product of 2x3 and 4x5")
    with pytest.raises(AttributeError, match="dnnl_softmax is not among"):
        library().softmax  # noqa: B018
    assert channels_last((2, 3, 4, 5)).size == 480


def test_importing_loads_no_library_and_no_kernels():
    code = "import sys, lamella_onednn as l; print([n for n in sys.modules if n.startswith('lamella_onednn.')])"
    assert run("-c", code) == "['lamella_onednn.backend']\n"


@pytest.mark.parametrize("path", ["/nowhere/libdnnl.so", os.__file__])
def test_no_library(path):
    lines = ["from lamella.backends import get_backend", "try:", "    get_backend('onednn')"]
    told = run("-c", "\n".join([*lines, "except ImportError as error:", "    print(error)"]), LAMELLA_ONEDNN=path)
    assert told.startswith("the variable LAMELLA_ONEDNN does not lead to oneDNN 3: ")
    assert path in told


def test_no_library_anywhere(monkeypatch):
    from lamella_onednn import library

    monkeypatch.delenv("LAMELLA_ONEDNN", raising=False)
    monkeypatch.setattr(library, "_places", lambda: ["/nowhere/libdnnl.so"])
    with pytest.raises(ImportError, match=r'needs oneDNN 3: pip install "lamella\[onednn\]" on Linux x86-64.*nowhere'):
        library.library.__wrapped__()


def test_another_version(monkeypatch, backend):
    from lamella_onednn import library

    monkeypatch.setattr(library, "_MAJOR", 4)
    with pytest.raises(ImportError, match=r"is oneDNN 3\.\d+\.\d+, and not version 4"):
        library.Library(library.library().path)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(4, 3, padding="same", activation="relu"),
        Conv2DTranspose(3, 3, strides=2, padding="same"),
        DepthwiseConv2D(3, depth_multiplier=2),
        MaxPooling2D(3, strides=2, padding=1),
        AveragePooling2D(3, strides=2, padding=1),
        BatchNormalization(),
        GlobalAveragePooling2D(),
    ],
)
def test_layers_keep_the_laws_where_nothing_is_too_small(xp, layer):
    lm.testing.check_layer(layer, lm.ArraySpec(("N", 3, 6, 5)))


def test_pairs_of_sizes_are_told_apart(xp):
    """Routines are found again by shapes, strides and windows."""
    rng = np.random.default_rng(0)
    for one, other in pairwise([(4, 5), (5, 4), (5, 5), (4, 5)]):
        for size in (one, other):
            windows, x = Windows.over(size, size=(2, 2)), drawn(rng, 2, 3, *size)
            kernel = drawn(rng, 2, 3, 2, 2)
            agree(conv(xp, x, kernel, None, windows), exact(conv, x, kernel, None, windows), 12)
