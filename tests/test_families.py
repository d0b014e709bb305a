"""The built-in layers: what they compute, against loops written out; what they refuse; kernels against references."""

import itertools
import math

import numpy as np
import pytest

import lamella as lm
from lamella_layers import (
    LSTM,
    Activation,
    AveragePooling2D,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GaussianNoise,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    GroupNormalization,
    MaxPooling2D,
    MultiHeadAttention,
    PReLU,
    Reshape,
    SpatialDropout2D,
)
from lamella_layers.convolution import conv, conv_dw, conv_transpose
from lamella_layers.pooling import (
    average_pool,
    average_pool_dx,
    max_pool,
    max_pool_dx,
    max_pool_step,
    max_pool_step_dx,
)
from lamella_layers.windows import Windows, fold, unfold

NUMPY, STRICT = lm.backends.get_backend("numpy"), lm.backends.get_backend("strict")


def run(layer, x, **arrays):
    """A layer's output in float64, with given parameters."""
    model = lm.Sequential([layer], input_shape=x.shape[1:], dtype="float64")
    for name in model.parameters:
        model.parameters[name] = arrays[name.rpartition(".")[2]]
    return model.predict(x)


def refused(layer, shape, dtype=None):
    """The words with which a graph refuses a layer."""
    with pytest.raises(lm.GraphError) as error:
        layer(lm.Input(shape, dtype))
    return str(error.value)


def windows_of(x, size, strides, dilations, pads):
    """One loop after another: the position of each window, and its cells that lie on the image."""
    (kh, kw), (sh, sw), (dh, dw), ((top, bottom), (left, right)) = size, strides, dilations, pads
    height, width = x.shape[2:]
    for p in range((height + top + bottom - (kh - 1) * dh - 1) // sh + 1):
        for q in range((width + left + right - (kw - 1) * dw - 1) // sw + 1):
            cells = [
                (i, j, p * sh + i * dh - top, q * sw + j * dw - left)
                for i, j in itertools.product(range(kh), range(kw))
            ]
            yield (p, q), [cell for cell in cells if 0 <= cell[2] < height and 0 <= cell[3] < width]


# Dense and activations


def test_dense_is_a_weighted_sum_of_the_last_axis():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(4, 2, 5)), rng.normal(size=(5, 3)), rng.normal(size=3)
    y = run(Dense(3), x, kernel=kernel, bias=bias)
    for n, t, u in np.ndindex(4, 2, 3):
        assert y[n, t, u] == pytest.approx(sum(x[n, t, f] * kernel[f, u] for f in range(5)) + bias[u])
    np.testing.assert_allclose(run(Dense(3, use_bias=False), x, kernel=kernel), y - bias)
    np.testing.assert_allclose(run(Dense(3, activation="tanh"), x, kernel=kernel, bias=bias), np.tanh(y))


@pytest.mark.parametrize("layer", [Dense(2, activation="relu"), Conv2D(2, 1, activation="relu")])
def test_an_activation_argument_adds_a_layer_and_keeps_the_names(layer):
    model = lm.Sequential([layer], input_shape=(3, 4, 4))
    base = "conv2d_1" if isinstance(layer, Conv2D) else "dense_1"
    assert set(model.parameters) == {f"{base}.kernel", f"{base}.bias"}
    assert model.predict(np.ones((2, 3, 4, 4))).min() >= 0.0


def test_dense_says_what_it_refuses():
    assert "known number of features" in refused(Dense(3), (4, "T"))
    assert "expected floats (N, ..., features)" in refused(Dense(3), ())
    assert "astype('float32')" in refused(Dense(3), 4, "int64")
    with pytest.raises(lm.ArgumentError, match=r"Dense: units: expected a positive int, got 0"):
        Dense(0)
    with pytest.raises(lm.RegistryError, match=r"Did you mean 'relu'"):
        Dense(3, activation="rleu")


FORMULAS = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": lambda x: x * (0.5 + 0.5 * np.vectorize(math.erf)(x / math.sqrt(2.0))),  # exact, not by tanh
    "hard_sigmoid": lambda x: np.clip((x + 3) / 6, 0, 1),
    "hard_swish": lambda x: x * np.clip((x + 3) / 6, 0, 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_follow_their_formulas_and_survive_large_numbers(name):
    function = lm.registry.find("activations", name)
    x = np.random.default_rng(1).normal(size=(20, 6)) * 3.0
    np.testing.assert_allclose(run(Activation(name), x), FORMULAS[name](x), rtol=1e-12, atol=1e-15)
    x = np.array([[-1e3, -90.0, -1.0, -0.0, 0.0, 1.0, 90.0, 1e3]], "float32")
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = function.forward(NUMPY.xp, x)
        dx = function.backward(NUMPY.xp, x, y, np.ones_like(x))
    assert y.dtype == dx.dtype == np.float32
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize(
    ("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.2), ("elu", 1.0), ("selu", 1.7580993), ("relu6", 0.0)]
)
def test_slopes_at_zero_are_those_of_pytorch(name, slope):
    function, x = lm.registry.find("activations", name), np.zeros((1, 1))
    assert function.backward(NUMPY.xp, x, x, np.ones((1, 1))).item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Dense(1, activation="softmax")], 4),
        ([Dense(1), Activation("softmax")], (5, 4)),
        ([Activation("softmax", axis=1)], (1, 3, 3)),
    ],
)
def test_softmax_over_one_value_is_told(layers, shape):
    words = r"_1.*: Activation.* axis of size 1, .* gives 1 whatever comes in.* Likely fix: 'sigmoid'"
    with pytest.warns(lm.MistakeWarning, match=words) as told:
        model = lm.Sequential(layers, input_shape=shape)
    assert [warning.filename for warning in told] == [__file__]
    lm.from_config(model.copy(dtype="float64").config())  # which are no other models


def test_attention_over_one_key_is_told():
    x, one = lm.Input((3, 4)), lm.Input((1, 4))
    with pytest.warns(lm.MistakeWarning, match=r"multi_head_attention_1.*one key") as told:
        lm.Model((x, one), MultiHeadAttention(2, 2)(x, one))
    assert [warning.filename for warning in told] == [__file__]
    lm.Model((x, one), MultiHeadAttention(2, 2)(one, x))


def test_softmax_runs_along_its_axis_but_never_along_the_batch():
    assert Activation("softmax", axis=np.int64(1)) == Activation("softmax", axis=1)
    with pytest.raises(lm.ArgumentError, match="axis: expected an int, got 'x'"):
        Activation("softmax", axis="x")
    x = np.random.default_rng(2).normal(size=(2, 3, 4))
    np.testing.assert_allclose(run(Activation("softmax", axis=1), x).sum(1), 1.0)
    np.testing.assert_allclose(run(Activation("softmax"), x).sum(-1), 1.0)
    assert "along the batch axis" in refused(Activation("softmax"), ())
    assert "along the batch axis" in refused(Activation("softmax", axis=-2), 3)
    assert "one of the axes" in refused(Activation("softmax", axis=2), 3)
    with pytest.raises(lm.ArgumentError, match="'relu' is elementwise; leave axis out"):
        Activation("relu", axis=1)
    with pytest.raises(lm.ArgumentError, match="expected a registered name or an ActivationFunction, got 3"):
        Activation(3)


def test_an_activation_function_of_ones_own():
    square = lm.ActivationFunction(lambda xp, x: x * x, lambda xp, x, y, dy: 2.0 * x * dy)
    assert run(Activation(square), np.array([[3.0]])).item() == 9.0
    assert run(Dense(1, use_bias=False, activation=square), np.array([[3.0]]), kernel=[[2.0]]).item() == 36.0


@pytest.mark.parametrize("uses_x", [True, False])
def test_an_activation_is_given_x_only_where_it_says_that_it_uses_it(uses_x):
    given = []

    def backward(xp, x, y, dy):
        given.append(x)
        return dy * 0.5 / y

    root = lm.ActivationFunction(lambda xp, x: xp.sqrt(x), backward, uses_x=uses_x)
    model = lm.Sequential([Activation(root)], input_shape=(1,), dtype="float64")
    _, _, dx = model.gradients([[4.0]], [[0.0]], loss="mean_squared_error")  # of y^2 = x
    assert dx.item() == 1.0
    np.testing.assert_equal(given, [np.array([[4.0]]) if uses_x else None])


@pytest.mark.parametrize(
    ("shared_axes", "shape"), [(None, (3, 4, 5)), (3, (3, 4, 1)), ((2, 3), (3, 1, 1)), ((1, 2, 3), (1, 1, 1))]
)
def test_prelu_has_a_slope_for_each_number_that_shares_none(shared_axes, shape):
    rng = np.random.default_rng(3)
    x, alpha = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=shape)
    x[0, 0, 0] = 0.0
    layer = PReLU(shared_axes=shared_axes)
    np.testing.assert_allclose(run(layer, x, alpha=alpha), np.where(x > 0, x, alpha * x))
    np.testing.assert_array_equal(run(layer, x, alpha=np.zeros(shape)), np.maximum(x, 0))
    model = lm.Sequential([layer], input_shape=x.shape[1:], dtype="float64")
    np.testing.assert_array_equal(model.parameters["prelu_1.alpha"], np.zeros(shape))
    model.parameters["prelu_1.alpha"] = alpha
    target = model.predict(x) - x.size / 2  # the gradient of the mean square is then 1
    _, gradients, dx = model.gradients(x, target, loss="mean_squared_error")
    np.testing.assert_allclose(dx, np.where(x > 0, 1.0, alpha + 0 * x))  # at 0 as in PyTorch
    axes = tuple(axis for axis in range(4) if axis == 0 or shape[axis - 1] == 1)
    np.testing.assert_allclose(gradients["prelu_1.alpha"][None], np.minimum(x, 0).sum(axes, keepdims=True))


def test_prelu_says_what_it_refuses():
    for axes in (1.5, "x", (1, "x"), 0, True):
        with pytest.raises(lm.ArgumentError, match="PReLU: shared_axes: expected a positive int, got"):
            PReLU(shared_axes=axes)
    assert "known sizes but along shared_axes=()" in refused(PReLU(), ("T", 5))
    assert PReLU(shared_axes=1)(lm.Input(("T", 5))).spec.shape == ("N", "T", 5)
    assert "shared_axes=(2,)" in refused(PReLU(shared_axes=2), 5)
    assert "astype('float32')" in refused(PReLU(), 5, "int64")
    with pytest.raises(lm.ArgumentError, match="PReLU: shared_axes: expected a positive int, got 0"):
        PReLU(shared_axes=(0, 1))
    with pytest.raises(lm.ArgumentError, match=r"PReLU: shared_axes: expected different axes, got \(1, 1\)"):
        PReLU(shared_axes=(1, 1))


# Convolution and pooling

GEOMETRIES = [
    {"size": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": ((0, 0), (0, 0)), "groups": 1},
    {"size": (2, 3), "strides": (2, 1), "dilations": (1, 2), "pads": ((1, 0), (2, 3)), "groups": 1},
    {"size": (3, 1), "strides": (3, 2), "dilations": (2, 1), "pads": ((2, 2), (0, 0)), "groups": 2},
    {"size": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": ((0, 0), (0, 0)), "groups": 1},
    {"size": (2, 2), "strides": (1, 1), "dilations": (1, 1), "pads": ((1, 1), (1, 1)), "groups": 4},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution_is_the_sum_written_out(geometry):
    rng, groups = np.random.default_rng(3), geometry["groups"]
    x, bias = rng.normal(size=(2, 4, 6, 7)), rng.normal(size=8)
    kernel = rng.normal(size=(8, 4 // groups, *geometry["size"]))
    layer = Conv2D(8, geometry["size"], strides=geometry["strides"], dilation_rate=geometry["dilations"],
                   padding=geometry["pads"], groups=groups)  # fmt: skip
    y = run(layer, x, kernel=kernel, bias=bias)
    positions = list(windows_of(x, *(geometry[key] for key in ("size", "strides", "dilations", "pads"))))
    assert y.shape == (2, 8, positions[-1][0][0] + 1, positions[-1][0][1] + 1)
    for (p, q), cells in positions:
        for n, f in np.ndindex(2, 8):
            first = f // (8 // groups) * (4 // groups)  # the first channel that filter f sees
            expected = bias[f] + sum(
                kernel[f, c, i, j] * x[n, first + c, row, column]
                for i, j, row, column in cells
                for c in range(4 // groups)
            )
            assert y[n, f, p, q] == pytest.approx(expected)


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("strides", [(2, 2), (1, 3)])
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 0), (0, 1))])
def test_pooling_is_the_maximum_and_the_mean_written_out(size, strides, pads):
    x = np.random.default_rng(4).integers(-3, 3, (2, 3, 6, 7)).astype("float64")  # many equal numbers
    windows = Windows.over(x.shape[2:], size=size, strides=strides, padding=pads)
    greatest, mean = run(MaxPooling2D(size, strides, pads), x), run(AveragePooling2D(size, strides, pads), x)
    dy = np.random.default_rng(5).normal(size=greatest.shape)
    dx_greatest, dx_mean = np.zeros_like(x), np.zeros_like(x)
    for (p, q), cells in windows_of(x, size, strides, (1, 1), pads):
        for n, c in np.ndindex(2, 3):
            values = [x[n, c, row, column] for _, _, row, column in cells]
            assert greatest[n, c, p, q] == max(values)
            assert mean[n, c, p, q] == pytest.approx(sum(values) / len(values))
            *_, row, column = cells[values.index(max(values))]  # the first of equal ones
            dx_greatest[n, c, row, column] += dy[n, c, p, q]
            for _, _, row, column in cells:
                dx_mean[n, c, row, column] += dy[n, c, p, q] / len(cells)
    for backend in (NUMPY, STRICT):
        a, b, d = (backend.asarray(array) for array in (x, greatest, dy))
        np.testing.assert_allclose(backend.asnumpy(max_pool_dx(backend.xp, a, b, d, windows)), dx_greatest)
        np.testing.assert_allclose(backend.asnumpy(average_pool_dx(backend.xp, d, windows)), dx_mean)


def test_same_padding_gives_the_ceiling_and_puts_the_odd_cell_at_the_end():
    for n, k, s, d in itertools.product((1, 5, 8), (1, 2, 3), (1, 2, 3), (1, 2)):
        windows = Windows.over((n, n), size=(k, k), strides=(s, s), dilations=(d, d), padding="same")
        (top, bottom), _ = windows.pads
        assert windows.grid == (-(-n // s), -(-n // s)), windows
        assert bottom - top in (0, 1), windows
        if top + bottom:  # no more than it takes
            assert windows.padded[0] == (windows.grid[0] - 1) * s + windows.extent[0], windows


def any_layout(rng, array):
    """The same numbers, in another order in memory."""
    order = rng.permutation(array.ndim)
    wide = np.repeat(array, 2, axis=-1)[..., ::2] if rng.integers(2) else array
    return np.ascontiguousarray(wide.transpose(order)).transpose(np.argsort(order))


def test_kernels_agree_with_their_references(monkeypatch):
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    xp = NUMPY.xp
    for _ in range(60):
        monkeypatch.setattr("lamella_layers.convolution.kernels._TILE_BYTES", int(rng.choice([1, 2000])))
        monkeypatch.setattr("lamella_layers.convolution.kernels._TILE_WINDOWS", int(rng.choice([1, 9])))
        monkeypatch.setattr("lamella_layers.chunks._CHUNK_BYTES", int(rng.choice([1, 2000])))
        groups, n, height, width = (int(rng.integers(1, top)) for top in (4, 5, 9, 9))
        channels, filters = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 4))
        size, strides, dilations = (tuple(map(int, rng.integers(1, 4, 2))) for _ in range(3))
        pads = tuple(tuple(map(int, rng.integers(0, 3, 2))) for _ in range(2))
        try:
            windows = Windows.over((height, width), size=size, strides=strides, dilations=dilations, padding=pads)
        except lm.GraphError:
            continue
        x = any_layout(rng, rng.integers(-4, 4, (n, channels, height, width)).astype("float64"))
        kernel = any_layout(rng, rng.normal(size=(filters, channels // groups, *size)))
        dy = any_layout(rng, rng.normal(size=(n, filters, *windows.grid)))
        y = max_pool(xp, x, windows)
        cells = list(rng.normal(size=(len(windows.cells()), n, channels, *windows.grid)))
        for primitive, *arguments, options in (
            (conv, x, kernel, None, windows, {"groups": groups}),
            (conv, x, kernel, rng.normal(size=filters), windows, {"groups": groups}),
            (conv_transpose, dy, kernel, None, windows, {"groups": groups}),
            (conv_dw, x, dy, windows, {"groups": groups}),
            (max_pool_step, x, windows, {}),
            (max_pool_step_dx, x, y, cells[0], windows, {}),
            (fold, cells, windows, {}),
        ):
            fast, slow = primitive(xp, *arguments, **options), primitive.reference(xp, *arguments, **options)
            np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-12, err_msg=f"{primitive}, {windows}, {groups=}")


def test_fold_is_the_adjoint_of_unfold():
    rng, xp = np.random.default_rng(6), NUMPY.xp
    windows = Windows.over((6, 5), size=(3, 2), strides=(2, 1), dilations=(1, 2), padding=((1, 0), (2, 2)))
    x, cells = rng.normal(size=(2, 3, 6, 5)), rng.normal(size=(6, 2, 3, *windows.grid))
    assert np.sum(unfold(xp, x, windows) * cells) == pytest.approx(np.sum(x * fold(xp, cells, windows)))


def test_images_come_out_with_channels_last_in_memory():
    xp, windows = NUMPY.xp, Windows.over((8, 8), size=(2, 2), strides=(2, 2))
    x = np.ones((4, 5, 8, 8), "float32")
    y = conv(xp, x, np.ones((6, 5, 2, 2), "float32"), None, windows)
    dx = conv_transpose(xp, y, np.ones((6, 5, 2, 2), "float32"), None, windows)
    for image in (y, dx, max_pool(xp, y, Windows.over((4, 4), size=(2, 2))), average_pool_dx(xp, y, windows)):
        assert image.strides[1] == image.itemsize
    assert average_pool(xp, y, Windows.over((4, 4), size=(4, 4))).shape == (4, 6, 1, 1)


def test_not_a_number_makes_its_windows_not_a_number():
    x = np.zeros((1, 1, 2, 4))
    x[0, 0, 0, 0] = np.nan
    for layer in (MaxPooling2D(), AveragePooling2D()):
        np.testing.assert_array_equal(run(layer, x), [[[[np.nan, 0.0]]]])


@pytest.mark.parametrize("layer", [Conv2D(2, 3), MaxPooling2D(3), AveragePooling2D(3)])
def test_images_are_asked_for_in_words(layer):
    assert "expected images (N, channels, height, width)" in refused(layer, 784)
    assert "Reshape((channels, height, width))" in refused(layer, (28, 28))
    assert "expected a size of at least 3x3; got 28x1. Likely fix: NHWC data must be" in refused(layer, (28, 28, 1))
    assert "at least 3x3; got 30x1. Likely fix: NHWC data must be transposed" in refused(layer, (8, 30, 1))
    assert "got 2x2. Likely fix: smaller windows, or padding='same'; NHWC data must" in refused(layer, (9, 2, 2))
    assert ": x.transpose(0, 3, 1, 2) and input_shape=(channels, height, width)" in refused(layer, (9, 2, 2))
    assert "must be known sizes" in refused(layer, (1, "H", "W"))
    assert "astype('float32')" in refused(layer, (1, 28, 28), "uint8")
    assert "padding='same'" in refused(layer, (1, 2, 5))


def test_what_is_too_small_for_windows_is_said_once():
    words = refused(Conv2D(2, 3, activation="relu"), (28, 28, 1))
    assert words.startswith("Conv2D(2, 3, activation='relu'), called with (N, 28, 28, 1) float32: expected a size of")
    assert words.count("called with") == 1
    assert ".named('')" not in words
    dilated = refused(Conv2D(2, 3, dilation_rate=3, padding=1), (4, 4, 4))
    assert "at least 7x7, which a window spans with its dilation; got 4x4, and 6x6 with padding=((1, 1), (1" in dilated
    assert "expected a size of at least 9; got 4. Likely fix: smaller windows" in refused(Conv1D(2, 9), (3, 4))


def test_arguments_of_windows_are_checked():
    for padding in (-1, "full", (1, 2, 3), ((1, 2), -1), 1.5):
        with pytest.raises(lm.ArgumentError, match="Conv2D: padding: expected"):
            Conv2D(2, 3, padding=padding)
    with pytest.raises(lm.ArgumentError, match=r"expected less on each side than pool_size=2"):
        MaxPooling2D(2, padding=2)
    with pytest.raises(lm.ArgumentError, match=r"filters=4: expected a multiple of groups=3"):
        Conv2D(4, 3, groups=3)
    assert "groups=2 divides, got 3" in refused(Conv2D(4, 3, groups=2), (3, 8, 8))
    with pytest.raises(lm.ArgumentError, match="Conv2D: strides: expected a positive int, got 0"):
        Conv2D(2, 3, strides=0)
    assert Conv2D(2, 3, padding=(1, 2)).padding == ((1, 1), (2, 2))


# Shapes and noise


@pytest.mark.parametrize(
    ("layer", "sample"),
    [
        (GlobalMaxPooling1D(), (3, "T")),
        (GlobalAveragePooling1D(), (3, "T")),
        (MultiHeadAttention(1, 2), ("T", 3)),
        (LSTM(2), ("T", 3)),
        (GroupNormalization(1), ("T", 3)),
        (Activation("softmax", axis=1), ("T", 3)),
    ],
)
def test_time_has_a_step_at_least_where_a_batch_may_have_no_row(layer, sample):
    model = lm.Sequential([layer], input_shape=sample)
    assert model.predict(np.zeros((0, 3, 3))).shape == (0, *model.predict(np.zeros((2, 3, 3))).shape[1:])
    with pytest.raises(lm.DataError, match="axis 'T' has nothing in it, and only the batch may be empty"):
        model.predict(np.zeros((2, *(0 if size == "T" else size for size in sample))))


def test_flatten_and_reshape_read_images_channel_by_channel():
    x = np.arange(48.0).reshape(2, 2, 3, 4)
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(run(Flatten(), channels_last), np.arange(48.0).reshape(2, 24))
    np.testing.assert_array_equal(run(Reshape((4, -1)), channels_last), np.arange(48.0).reshape(2, 4, 6))
    assert run(Reshape(-1), x).shape == (2, 24)
    assert run(Flatten(), np.ones(3)).shape == (3, 1)


def test_reshape_says_what_does_not_fit():
    assert "expected 10 elements in each sample for shape=(2, 5), got 12" in refused(Reshape((2, 5)), (3, 4))
    assert "expected a multiple of 5 elements" in refused(Reshape((5, -1)), (3, 4))
    assert "known sizes" in refused(Flatten(), (3, "T"))
    for shape in ((2, -1, -1), (0, 3), ("a",), 2.5, (True,)):
        with pytest.raises(lm.ArgumentError, match="Reshape: shape: expected positive ints"):
            Reshape(shape)


def test_dropout_keeps_the_mean_in_training_and_rests_in_inference():
    model = lm.Sequential([Dropout(0.25)], input_shape=(5, 4, 50))
    x = np.ones((40, 5, 4, 50), "float32")
    np.testing.assert_array_equal(model.predict(x), x)
    loss, _, dx = model.gradients(x, 0 * x, loss="mean_squared_error", training=True)
    kept = dx != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.01)
    assert loss == pytest.approx(kept.mean() / 0.75**2, rel=1e-5)  # the mean of (1 / 0.75)^2 where kept
    np.testing.assert_allclose(dx[kept], 2.0 / 0.75**2 / x.size, rtol=1e-5)
    *_, dx = model.gradients(x, 0 * x, loss="mean_squared_error", training=False)
    np.testing.assert_allclose(dx, 2.0 / x.size, rtol=1e-5)
    assert "expected floats" in refused(Dropout(0.5), 3, "int64")
    with pytest.raises(lm.ArgumentError, match=r"Dropout: rate: expected a fraction in \[0, 1\), got 1"):
        Dropout(1.0)


def test_spatial_dropout_drops_whole_channels():
    model = lm.Sequential([SpatialDropout2D(0.25)], input_shape=(50, 2, 3))
    x = np.ones((40, 50, 2, 3), "float32")
    np.testing.assert_array_equal(model.predict(x), x)
    _, _, dx = model.gradients(x, 0 * x, loss="mean_squared_error", training=True)
    kept = dx != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.04)
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :, :1, :1], x.shape))
    assert len(np.unique(kept[:, :, 0, 0], axis=0)) == 40  # each image has its own
    assert "expected images" in refused(SpatialDropout2D(0.5), 3)


class _Reveal(lm.Layer):
    """Passes numbers on, and gives them as gradient: what a layer before it did in training becomes visible."""

    def forward_pass(self, ctx, x):
        ctx.save(x)
        return x

    def backward_pass(self, ctx, dy):
        return ctx.saved[0]


def test_gaussian_noise_is_normal_finite_and_absent_in_inference():
    model = lm.Sequential([GaussianNoise(2.0), _Reveal()], input_shape=(1000,), dtype="float64")
    x = np.zeros((200, 1000))
    np.testing.assert_array_equal(model.predict(x), x)
    *_, z = model.gradients(x, x, loss="mean_squared_error", training=True)
    z = z / 2.0
    moments = [z.mean(), z.var(), (z**3).mean(), (z**4).mean()]
    np.testing.assert_allclose(moments, [0.0, 1.0, 0.0, 3.0], atol=0.06)
    for limit, beyond in ((1.0, 0.317311), (2.0, 0.045500), (3.0, 0.0027)):
        assert np.mean(abs(z) > limit) == pytest.approx(beyond, rel=0.1), limit
    assert np.abs(np.corrcoef(z[:, :4].T) - np.eye(4)).max() < 0.3
    assert abs(z).max() < 5.8
    with pytest.raises(lm.ArgumentError, match="GaussianNoise: stddev: expected a number of at least 0, got -1"):
        GaussianNoise(-1)


def test_noise_survives_the_extremes_of_its_uniforms(monkeypatch):
    for u in (0.0, 1.0 - 2.0**-24):
        monkeypatch.setattr(lm.Context, "uniform", lambda self, shape, u=u: np.full(shape, u, "float32"))
        model = lm.Sequential([GaussianNoise(1.0), _Reveal()], input_shape=(3,))
        *_, z = model.gradients(np.zeros((2, 3)), np.zeros((2, 3)), loss="mean_squared_error", training=True)
        assert np.isfinite(z).all()
