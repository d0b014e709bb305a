"""Backward passes as ONNX: each of their forms, in onnxruntime, against the references in NumPy."""

import numpy as np
import pytest

import lamella as lm
from lamella_layers import GRU, LSTM, BatchNormalization, Conv1D, Dense, DepthwiseConv2D, Flatten
from lamella_layers.convolution import conv_dw, conv_dx
from lamella_layers.pooling import average_pool_dx, max_pool, max_pool_dx
from lamella_layers.windows import Windows
from lamella_onnx.models import trace_step
from lamella_onnx.runtime import OLDEST_OPSET, installed, run, session
from lamella_onnx.tracer import new_graph, write

NUMPY = lm.backends.get_backend("numpy")
FORMS = [("float32", OLDEST_OPSET), ("float32", installed().opset), ("float64", installed().opset)]


def traced(function, dtype, opset, **arrays):
    """What a function of ``xp`` and arrays gives in onnxruntime, and its operators; axis 0 is symbolic but of ``w``."""
    graph = new_graph(opset)
    inputs = {
        name: graph.input(name, x.shape if name == "w" else ("N", *x.shape[1:]), dtype) for name, x in arrays.items()
    }
    proto = write(graph, {"result": function(graph.xp, **inputs)})
    got = run(session(proto.SerializeToString()), {name: x.astype(dtype) for name, x in arrays.items()})["result"]
    assert got.dtype == dtype
    return got, [node.op_type for node in proto.graph.node]


def agrees(got, expected):
    error = np.abs(got - expected).max() / max(1.0, np.abs(expected).max())
    assert error < (1e-5 if got.dtype == "float32" else 1e-13), error


@pytest.mark.parametrize(("dtype", "opset"), FORMS)
@pytest.mark.parametrize(
    ("channels", "filters", "groups", "image", "how", "operators"),
    [
        (9, 8, 1, (6, 7), {"size": (3, 2), "padding": ((1, 1), (0, 1))}, ("Conv", "MatMul")),  # turned around
        (9, 20, 1, (6, 7), {"size": (3, 3)}, ("ConvTranspose", "MatMul")),  # much deeper than the image
        (2, 4, 1, (6, 7), {"size": (1, 1)}, ("Conv", "MatMul")),
        (
            3,
            5,
            1,
            (8, 9),
            {"size": (3, 3), "strides": (2, 3), "padding": ((1, 0), (2, 1))},
            ("ConvTranspose", "MatMul"),
        ),
        (9, 8, 1, (9, 8), {"size": (2, 3), "dilations": (3, 2), "padding": "same"}, ("Conv", "MatMul")),
        (
            2,
            3,
            1,
            (4, 4),
            {"size": (2, 2), "padding": ((2, 2), (2, 0))},
            ("ConvTranspose", "MatMul"),
        ),  # windows of zeros
        (9, 8, 1, (1, 2), {"size": (3, 5), "padding": "same"}, ("Conv", "MatMul")),  # cells that see nothing but zeros
        (8, 8, 1, (2, 1), {"size": (5, 5), "padding": ((4, 1), (4, 0))}, ("Conv", "MatMul")),
        (8, 8, 1, (2, 1), {"size": (3, 4), "padding": ((5, 4), (5, 0))}, ("ConvTranspose", "MatMul")),
        (9, 8, 1, (8, 9), {"size": (3, 3), "strides": (2, 3)}, ("ConvTranspose", "MatMul")),
        (4, 6, 2, (7, 6), {"size": (3, 3), "padding": ((1, 1), (1, 1))}, ("Conv", "Conv")),
        (4, 8, 4, (8, 7), {"size": (3, 2), "strides": (2, 3)}, ("ConvTranspose", "Conv")),  # with a rest, which is cut
        (3, 9, 3, (8, 7), {"size": (2, 2), "strides": (3, 2), "padding": ((0, 2), (1, 2))}, ("ConvTranspose", "Conv")),
        (3, 3, 3, (9, 9), {"size": (3, 3), "dilations": (2, 3), "padding": "same"}, ("Conv", "Conv")),
        (10, 4, 1, (11,), {"size": (3,), "padding": ((2, 0),)}, ("Conv", "MatMul")),
        (4, 4, 2, (11,), {"size": (3,), "strides": (2,), "dilations": (2,)}, ("ConvTranspose", "Conv")),
    ],
)
def test_gradients_of_convolutions(channels, filters, groups, image, how, operators, dtype, opset):
    rng, windows = np.random.default_rng(3), Windows.over(image, **how)
    x, dy = rng.normal(size=(4, channels, *image)), rng.normal(size=(4, filters, *windows.grid))
    kernel = rng.normal(size=(filters, channels // groups, *windows.size))

    def dx(xp, dy, w):
        return conv_dx(xp, dy, w, windows, groups=groups)

    def dw(xp, x, dy):
        return conv_dw(xp, x, dy, windows, groups=groups)

    for function, arrays, operator in (
        (dx, {"dy": dy, "w": kernel}, operators[0]),
        (dw, {"x": x, "dy": dy}, operators[1]),
    ):
        got, written = traced(function, dtype, opset, **arrays)
        agrees(got, function(NUMPY.xp, *arrays.values()))
        assert operator in written or dtype == "float64"


@pytest.mark.parametrize(("dtype", "opset"), FORMS)
@pytest.mark.parametrize(
    ("image", "how"),
    [
        ((4, 6), {"size": (2, 2), "strides": (2, 2)}),
        ((5, 7), {"size": (2, 2), "strides": (2, 2)}),  # a rest
        ((6, 6), {"size": (3, 2), "strides": (3, 2)}),
        ((7, 8), {"size": (3, 3), "strides": (2, 2), "padding": ((1, 1), (1, 0))}),
        ((5, 6), {"size": (2, 3), "strides": (1, 1), "padding": "same"}),
        ((7, 7), {"size": (2, 1), "strides": (3, 2)}),  # gaps
        ((21, 5), {"size": (18, 2), "strides": (1, 2), "padding": ((3, 17), (0, 1))}),  # in steps
        ((9,), {"size": (3,), "strides": (2,), "padding": ((1, 2),)}),
        ((8,), {"size": (2,), "strides": (2,)}),
    ],
)
def test_gradients_of_pooling(image, how, dtype, opset):
    rng, windows = np.random.default_rng(4), Windows.over(image, **how)
    x = rng.integers(-1, 2, (4, 3, *image)).astype("float64")  # many equal numbers
    x[0, 0] = -np.inf
    dy = rng.normal(size=(4, 3, *windows.grid))
    got, written = traced(
        lambda xp, x, dy: max_pool_dx(xp, x, max_pool(xp, x, windows), dy, windows), dtype, opset, x=x, dy=dy
    )
    agrees(got, max_pool_dx(NUMPY.xp, x, max_pool(NUMPY.xp, x, windows), dy, windows))
    quick = windows.tiles and windows.size == (2, 2) and dtype == "float32"
    assert ("Resize" if quick else "ScatterElements") in written
    got, _ = traced(lambda xp, dy: average_pool_dx(xp, dy, windows), dtype, opset, dy=dy)
    agrees(got, average_pool_dx(NUMPY.xp, dy, windows))


@pytest.mark.parametrize("image", [(4, 4), (5, 5)])
def test_a_nan_gets_no_gradient_of_max_pooling(image):
    windows = Windows.over(image, size=(2, 2), strides=(2, 2))
    x = np.zeros((2, 1, *image))
    x[0, 0, 0, 1] = x[1, 0, :2, :2] = np.nan
    dy = np.ones((2, 1, 2, 2))
    got, _ = traced(
        lambda xp, x, dy: max_pool_dx(xp, x, max_pool(xp, x, windows), dy, windows), "float32", 21, x=x, dy=dy
    )
    assert not got[np.isnan(x)].any()
    assert not got[1, 0, :2, :2].any()
    assert got[:, 0, 2:, 2:].sum() == got[:, 0, :2, 2:].sum() == got[:, 0, 2:, :2].sum() == 2.0


@pytest.mark.parametrize(("dtype", "opset"), FORMS)
@pytest.mark.parametrize(
    ("layer", "shape", "operators"),
    [
        (BatchNormalization(0.8), (5,), {"BatchNormalization": 1}),
        (BatchNormalization(0.8), (3, 5), {"BatchNormalization": 1}),
        (BatchNormalization(0.8), (4, 3, 2), {"BatchNormalization": 1}),
        (BatchNormalization(0.8, axis=1), (4, 3), {"BatchNormalization": 1}),
        (LSTM(3), (5, 2), {"Scan": 2}),
        (LSTM(3, return_sequences=False, reverse=True, use_bias=False), (5, 2), {"Scan": 2}),
        (LSTM(3, truncate=2), (5, 2), {"Scan": 2}),
        (GRU(3), (5, 2), {"Scan": 2}),
    ],
)
def test_steps_of_layers(layer, shape, operators, dtype, opset):
    model = lm.Sequential([layer], input_shape=shape, dtype=dtype)
    rng = np.random.default_rng(5)
    for name, value in model.parameters.items():
        model.parameters[name] = (value + rng.normal(size=value.shape)).astype(dtype)
    x = rng.normal(size=(4, *shape)).astype(dtype)
    proto = trace_step(model, opset=opset)
    written = [node.op_type for node in proto.graph.node]
    assert all(
        written.count(name) == (0 if dtype == "float64" and name != "Scan" else n) for name, n in operators.items()
    )
    y, y_name = model.predict(x), model.output_names[0]
    target = rng.normal(size=y.shape).astype(dtype)
    _, gradients, dx = model.gradients(x, target, loss="mean_squared_error")
    feeds = {model.input_names[0]: x, **model.parameters, **model.state}
    feeds |= {"training.seed": np.zeros(2, "uint32"), "training.step": np.array(1, "uint32")}
    loaded = session(proto.SerializeToString())
    y = run(loaded, {**feeds, f"{y_name}.incoming": np.zeros_like(y)})[y_name]
    incoming = {f"{y_name}.incoming": ((y - target) * (2.0 / y.size)).astype(dtype)}
    run(loaded, {**feeds, **incoming, model.input_names[0]: x * np.nan})  # of which nothing stays
    got = run(loaded, {**feeds, **incoming})
    agrees(got[f"{model.input_names[0]}.gradient"], dx)
    for name, expected in gradients.items():
        agrees(got[f"{name}.gradient"], expected)
    model.train_on_batch(x, target, loss="mean_squared_error", optimizer="sgd")
    for name, expected in model.state.items():
        agrees(got[f"{name}.new"], expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv1D(2, 2, strides=4, padding=(4, 0), groups=2, use_bias=False), (2, 1)),
        (DepthwiseConv2D((1, 2), strides=(1, 11), padding=((0, 0), (4, 0))), (2, 3, 8)),
        (Conv1D(2, 2, strides=11, padding=(4, 0), groups=2), (2, 8)),
    ],
)
def test_windows_that_end_before_the_image(layer, shape):
    models = [
        lm.Sequential([layer, Flatten(), Dense(2)], input_shape=shape, backend=b) for b in ("numpy", "onnxruntime")
    ]
    x, y = np.random.default_rng(0).standard_normal((3, *shape)), [0, 1, 1]
    losses = [[m.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="sgd") for _ in range(3)] for m in models]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for name, array in models[0].parameters.items():
        np.testing.assert_allclose(models[1].parameters[name], array, rtol=1e-5, atol=1e-6)
