"""The tracer: what it writes gives NumPy's values in onnxruntime, and what can't be written says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lamella.backends import NAMESPACE, get_backend
from lamella.backends.counter import TEST_VECTORS, mix_keys, uniform
from lamella.primitives import add_rows, erf, one_hot, pad, relu, scan, sigmoid, softmax, softplus, take_rows
from lamella_onnx.runtime import installed
from lamella_onnx.tracer import Dim, TraceError, kernels, new_graph, write

NUMPY = get_backend("numpy").xp
ROWS = (2, 5)
INPUTS = {
    "x": (("N", 3, 4), "float32"),
    "y": (("N", 3, 4), "float32"),
    "v": (("N",), "float32"),
    "d": (("N", 3), "float64"),
    "i": (("N", 3, 4), "int32"),
    "k": (("N", 3), "int64"),
    "u": (("N", 4), "uint32"),
    "w": (("N", 4), "uint16"),
    "e": (("N", 12), "int8"),
    "m": (("N", 12), "int64"),
    "b": (("N", 3, 4), "bool"),
    "s": (("T", "N", 2), "float32"),
}


def draw(names: str, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    feeds = {}
    for name in names:
        shape, dtype = INPUTS[name]
        values = rng.normal(size=[{"N": rows, "T": rows + 1}.get(n, n) for n in shape]) * 2
        if dtype == "bool":
            values = values > 0
        elif dtype.startswith("u"):
            values = rng.integers(0, 60000, values.shape)
        elif name in "em":  # the largest and the smallest, by numbers that divide neither
            limits = np.iinfo(dtype)
            values = rng.choice([limits.max, limits.min + 1, 7, -7, 3, -3], values.shape)
        elif "int" in dtype:
            values = rng.integers(-9, 10, values.shape)
        feeds[name] = values.astype(dtype)
    return feeds


def traced(function: Callable[..., Any], names: str, opset: int = 21) -> onnx.ModelProto:
    graph = new_graph(opset)
    result = function(graph.xp, *(graph.input(name, *INPUTS[name]) for name in names))
    outputs = result if isinstance(result, tuple) else (result,)
    model = write(graph, {f"out_{k}": graph.xp.asarray(output) for k, output in enumerate(outputs)})
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def operators(function: Callable[..., Any], names: str = "x") -> list[str]:
    return [node.op_type for node in traced(function, names).graph.node]


def each(functions: str, *, shift: bool = False) -> dict[str, tuple[Callable[..., Any], str]]:
    def case(name: str) -> Callable[..., Any]:
        def run(xp: Any, x: Any, d: Any) -> Any:
            values = [xp.abs(z) + e for z in (x, d) for e in (1e-6, 1.0)] if shift else [x, d, x * 1e-4]
            return tuple(getattr(xp, name)(z) for z in values)

        return run

    return {name: (case(name), "xd") for name in functions.split()}


def reduce(functions: str) -> dict[str, tuple[Callable[..., Any], str]]:
    def case(name: str) -> Callable[..., Any]:
        options = [(axis, keep) for axis in (None, 0, -1, (1, 2)) for keep in (False, True)]
        return lambda xp, x: tuple(getattr(xp, name)(x, axis=axis, keepdims=keep) for axis, keep in options)

    return {name: (case(name), "x") for name in functions.split()}


def looped(xp: Any, s: Any) -> Any:
    def body(states: Any, xs: Any, scale: Any) -> Any:
        h = xp.tanh(states[0] * scale + xs[0])
        return (h, states[1] + 1.0), (states[0] * 2.0, states[0], xp.ones((2,), dtype=h.dtype))

    begin = (xp.zeros((s.shape[1], 2), dtype=s.dtype), xp.zeros((), dtype=s.dtype))
    scale = (xp.sum(s) / s.shape[1],)
    results = [scan(xp, body, begin, (s,), consts=scale, reverse=reverse) for reverse in (False, True)]
    return tuple(array for states, ys in results for array in (*states, *ys))


# label: (function, inputs); the functions run on NumPy and on the tracer
CASES: dict[str, tuple[Callable[..., Any], str]] = {
    # creation
    "arange": (lambda xp, x: (xp.arange(x.shape[0] * 2), xp.arange(1, 7, 2, dtype=xp.float32)), "x"),
    "asarray": (lambda xp, x: xp.asarray([1.0, 2.0, 3.0, 4.0], dtype=xp.float32) + x, "x"),
    "full": (lambda xp, x: (xp.full((x.shape[0], 2), 7, dtype=xp.int32), xp.full((2,), 0.5)), "x"),
    "full_like": (lambda xp, x, k: (xp.full_like(x, 1.5), xp.full_like(k, 2)), "xk"),
    "zeros": (lambda xp, x: xp.zeros((3, x.shape[0]), dtype=xp.float32), "x"),
    "zeros_like": (lambda xp, x: xp.zeros_like(x), "x"),
    "ones": (lambda xp, x: (xp.ones(x.shape[0], dtype=xp.int64), xp.ones((2, 2))), "x"),
    "ones_like": (lambda xp, x: xp.ones_like(x) + x, "x"),
    # elementwise
    **each("abs ceil cos cosh exp expm1 floor isfinite isinf isnan round sign sin sinh square tan tanh"),
    **each("log log1p sqrt", shift=True),
    "abs of integers": (lambda xp, i, u: (xp.abs(i), xp.abs(u), xp.sign(i), xp.isnan(i), xp.isfinite(u)), "iu"),
    "log1p at the edges": (lambda xp, x: xp.log1p(x / xp.abs(x) * (1.0 - 1e-7)), "x"),
    "isnan and infinity": (lambda xp, x: (xp.isfinite(x / 0.0), xp.isinf(x / 0.0), xp.isnan(xp.log(x))), "x"),
    "expm1 of infinity": (lambda xp, x: (xp.expm1(x / 0.0), xp.log1p(xp.abs(x) / 0.0)), "x"),
    "clip": (lambda xp, x, i: (xp.clip(x, -0.5, 1), xp.clip(i, 0, 3), xp.clip(x, min=0.0), xp.clip(x, max=0.5)), "xi"),
    "clip of infinity": (lambda xp, x: (xp.clip(x / 0.0, max=1.0), xp.clip(x / 0.0, min=1.0)), "x"),
    "clip by arrays": (lambda xp, x, y, w: (xp.clip(x, -xp.abs(y), xp.abs(y)), xp.clip(w, 5, 30000)), "xyw"),
    "logical_and": (lambda xp, b, x: xp.logical_and(b, x > 0.5), "bx"),
    "logical_or": (lambda xp, b, x: xp.logical_or(b, x > 0.5), "bx"),
    "logical_not": (lambda xp, b: xp.logical_not(b), "b"),
    "maximum": (lambda xp, x, y, w: (xp.maximum(x, y), xp.maximum(x, 0.5), xp.maximum(w, 9)), "xyw"),
    "minimum": (lambda xp, x, y, i: (xp.minimum(x, y), xp.minimum(x, 0.5), xp.minimum(i, 2)), "xyi"),
    "pow": (lambda xp, x, y: (xp.pow(xp.abs(x), y), x**2, xp.abs(x) ** 0.5, 2.0**x, xp.pow(x, 3)), "xy"),
    "where": (lambda xp, b, x, y: (xp.where(b, x, y), xp.where(b, x, 0.0), xp.where(b, xp.zeros_like(x), y)), "bxy"),
    "where of small types": (lambda xp, b, w: (xp.where(b, ~b, b), xp.where(w > 9, w, 3)), "bw"),
    # operators
    "arithmetic": (lambda xp, x, y: (x + y, x - 1.0, 2.0 - x, x * y, 3 * x, x / y, 1.0 / x, -x, +x, abs(x)), "xy"),
    "integers": (lambda xp, i, k: (i + 3, i // 4, i % 4, 7 // (i * i + 1), -i, i - k[:, :, None], i * 2), "ik"),
    "integers at the limits": (lambda xp, e, m: (e // -7, e // 7, m // -7, 7 // e, e // (e | 1), m % 5), "em"),
    "unsigned": (lambda xp, u: (u - 5, 0 - u, -u, u // 7, u % 7, u * 0x7FEB352D, u ^ (u >> 16), u << 3), "u"),
    "floor of floats": (lambda xp, x, y: (x // y, x % y, x // 1.5, x % 1.5, 4.0 % x), "xy"),
    "bits": (lambda xp, i, u, b: (i & 12, i | 3, i ^ 5, ~i, u | 1, b & (i > 0), b | (i > 0), b ^ (i > 0), ~b), "iub"),
    "comparisons": (lambda xp, x, y, i, b: (x < y, x <= 0.0, x > y, x >= 1, x == y, x != 0.0, i == 3, b != ~b), "xyib"),
    "broadcasting": (lambda xp, x, v: (x + v[:, None, None], xp.ones((4,), dtype=x.dtype) * x, x * x[:1, :, :]), "xv"),
    "sizes as numbers": (lambda xp, x, i: (x / x.shape[0], x.shape[0] * x, i + i.shape[0] * 2, x - x.shape[0]), "xi"),
    "sizes of sums": (lambda xp, s: xp.sum(s) / (s.shape[0] * s.shape[1] + 1), "s"),
    "matmul": (
        lambda xp, x, y: (x @ xp.permute_dims(y, (0, 2, 1)), xp.matmul(x, x[0, 0, :]), y[0, 1, :] @ x[0].T),
        "xy",
    ),
    "matmul of small types": (lambda xp, w: (w @ w.T, xp.matmul(w, w[0, :])), "w"),
    # reductions
    **reduce("max mean min prod sum"),
    "integer reductions": (
        lambda xp, i, u: (xp.sum(i, axis=1), xp.max(u, axis=0), xp.sum(u), xp.prod(i, axis=0)),
        "iu",
    ),
    "sum of bools": (lambda xp, b: (xp.sum(b, axis=0), xp.sum(b, axis=0, dtype=xp.float32)), "b"),
    "any": (lambda xp, b, i: (xp.any(b), xp.any(b, axis=(0, 1), keepdims=True), xp.any(i, axis=1)), "bi"),
    "all": (lambda xp, b, i: (xp.all(b), xp.all(b, axis=1), xp.all(i, axis=(1, 2))), "bi"),
    "argmax": (lambda xp, x, w: (xp.argmax(x), xp.argmax(x, axis=1), xp.argmax(w, axis=-1, keepdims=True)), "xw"),
    "argmin": (lambda xp, x: (xp.argmin(x, keepdims=True), xp.argmin(x, axis=0)), "x"),
    # manipulation
    "astype": (lambda xp, x, i, b: (xp.astype(x, xp.int32), xp.astype(i, xp.bool), xp.astype(b, xp.float64)), "xib"),
    "broadcast_to": (
        lambda xp, v, x: (xp.broadcast_to(v[:, None], (v.shape[0], 6)), xp.broadcast_to(x, (2, *x.shape))),
        "vx",
    ),
    "concat": (
        lambda xp, x, y: (xp.concat([x, y], axis=0), xp.concat((x, y, x), axis=-1), xp.concat([x], axis=None)),
        "xy",
    ),
    "expand_dims": (lambda xp, x: (xp.expand_dims(x, axis=0), xp.expand_dims(x, axis=-1)), "x"),
    "flip": (lambda xp, x: (xp.flip(x), xp.flip(x, axis=1), xp.flip(x, axis=(0, -1))), "x"),
    "permute_dims": (lambda xp, x: (xp.permute_dims(x, (2, 0, 1)), xp.permute_dims(x, (0, 1, 2)), x[0, :, :].T), "x"),
    "reshape": (
        lambda xp, x: (xp.reshape(x, (-1, 6)), xp.reshape(x, (x.shape[0], 12)), xp.reshape(x, (3, 4, -1))),
        "x",
    ),
    "reshape with two sizes": (
        lambda xp, s: (
            xp.reshape(s, (s.shape[0] * s.shape[1], 2)),
            xp.reshape(xp.reshape(s, (-1, 2)), (s.shape[1], s.shape[0], 2)),
            xp.reshape(s, (*s.shape[:2], 1, 2)),
            xp.reshape(s, (s.shape[0], -1)),
        ),
        "s",
    ),
    "squeeze": (lambda xp, x: (xp.squeeze(x[:, :1, :], axis=1), xp.squeeze(x[:1, :, 0:1], axis=(0, 2))), "x"),
    "stack": (lambda xp, x, y: (xp.stack([x, y], axis=0), xp.stack((x, y), axis=-1)), "xy"),
    "take": (
        lambda xp, x, k: (xp.take(x, xp.asarray([2, 0, 0]), axis=1), xp.take(x[0, 0, :], k[:, 0] % 4, axis=0)),
        "xk",
    ),
    "tile": (lambda xp, x: (xp.tile(x, (1, 2, 1)), xp.tile(x[:, 0, 0], (3, x.shape[0])), xp.tile(x, (1, 1, 1))), "x"),
    # slicing
    "slices": (lambda xp, x: (x[:, 1:, ::2], x[..., -1], x[:, None, 0, ...], x[:, ::-1, 3:0:-2], x[:, -2:, None]), "x"),
    "slices of symbolic axes": (lambda xp, s: (s[1:], s[:-1], s[-1], s[::-1], s[:1], s[-1:, ...], s[0, None]), "s"),
    "slices at sizes": (
        lambda xp, x: (xp.concat([x, x * 2.0], axis=0)[x.shape[0] :], xp.concat([x, x], axis=0)[::2]),
        "x",
    ),
    "slices of constants": (lambda xp, x: x * xp.arange(8, dtype=xp.float32)[1::2], "x"),
    # primitives
    **{f.__name__: (lambda xp, x, d, f=f: (f(xp, x), f(xp, d)), "xd") for f in (relu, sigmoid, softplus, erf)},
    "softmax": (lambda xp, x, d: (softmax(xp, x), softmax(xp, x, axis=1), softmax(xp, d)), "xd"),
    "pad": (lambda xp, x: (pad(xp, x, ((0, 0), (1, 2), (0, 0)), value=0.5), pad(xp, x, ((1, 0), (0, 0), (0, 1)))), "x"),
    "one_hot": (lambda xp, k: one_hot(xp, k, 5, dtype=xp.float32), "k"),
    "take_rows": (lambda xp, x, k: take_rows(xp, xp.reshape(x, (-1, 4)), xp.abs(k) % 6), "xk"),
    "add_rows": (lambda xp, x, k: add_rows(xp, x, xp.abs(k) % 3, 3), "xk"),
    "scan": (looped, "s"),
}


@pytest.mark.parametrize("label", CASES)
def test_traced_functions_give_numpys_values(label):
    function, names = CASES[label]
    for opset in sorted({18, 21, installed().opset}):
        run = session(traced(function, names, opset))
        for rows in ROWS:
            feeds = draw(names, rows)
            with np.errstate(all="ignore"):
                expected = function(NUMPY, *feeds.values())
            expected = expected if isinstance(expected, tuple) else (expected,)
            for k, (got, want) in enumerate(zip(run.run(None, feeds), expected, strict=True)):
                assert (got.shape, got.dtype) == (np.shape(want), np.asarray(want).dtype), (k, opset)
                limit = 1e-13 if got.dtype == np.float64 else 1e-5
                np.testing.assert_allclose(got, want, rtol=limit, atol=limit * 0.02, err_msg=f"output {k}")


@pytest.mark.parametrize("name", ["expm1", "log1p", "sinh", "tanh"])
def test_small_numbers_keep_their_relative_accuracy(name):
    x = np.logspace(-7, 0, 40, dtype="float32")
    (got,) = session(traced(lambda xp, v: getattr(xp, name)(v), "v")).run(None, {"v": x})
    np.testing.assert_allclose(got, getattr(np, name)(x.astype("float64")), rtol=1e-6)


def test_the_namespace_is_complete_and_closed():
    xp = new_graph(21).xp
    assert {name for name in dir(xp) if not name.startswith("_")} == {
        *NAMESPACE,
        "backend",
        "constant",
        "kernels",
        "node",
        "opset",
        "stable",
        "xp",
    }
    functions = {name for name in NAMESPACE if not isinstance(getattr(xp, name), np.dtype)}
    assert functions <= {word for label in CASES for word in label.split()}
    with pytest.raises(AttributeError, match=r"xp\.einsum is not among the functions .* matmul after permute_dims"):
        _ = xp.einsum


# What an expert would write

WRITTEN: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "nothing that changes nothing": (
        lambda xp, x: xp.tanh(xp.astype(xp.reshape(xp.permute_dims(x, (0, 1, 2)), x.shape), x.dtype) * 1.0 + 0.0),
        ["Tanh"],
    ),
    "constants are computed": (
        lambda xp, x: x * xp.sum(xp.reshape(xp.exp(xp.full((2, 3), 0.5, dtype=x.dtype)), (-1,))),
        ["Mul"],
    ),
    "repeated constants stay small": (
        lambda xp, x: xp.where(x > xp.zeros_like(x), x, xp.full(x.shape, 0.2, dtype=x.dtype) * 0.5),
        ["Greater", "Where"],
    ),
    "broadcasting is left to operators": (
        lambda xp, x: x + xp.broadcast_to(xp.asarray([1.0, 2, 3, 4], dtype=x.dtype), x.shape),
        ["Add"],
    ),
    "flatten": (lambda xp, x: xp.reshape(x, (x.shape[0], -1)), ["Reshape"]),
    "equal nodes are written once": (lambda xp, x: xp.exp(x) / (xp.exp(x) + 1.0), ["Exp", "Add", "Div"]),
    "dead ends are left out": (lambda xp, x: (xp.sum(xp.exp(x)), xp.tanh(x))[1], ["Tanh"]),
    "relu": (relu, ["Relu"]),
    "softmax": (lambda xp, x: softmax(xp, x, axis=1), ["Softmax"]),
    "pad by nothing": (lambda xp, x: relu(xp, pad(xp, x, ((0, 0),) * 3)), ["Relu"]),
    "an input as output": (lambda xp, x: x, ["Identity"]),
}


@pytest.mark.parametrize("label", WRITTEN)
def test_the_graph_is_what_an_expert_would_write(label):
    function, expected = WRITTEN[label]
    assert operators(function) == expected


def test_reshape_keeps_the_batch_symbolic():
    model = traced(lambda xp, x: xp.reshape(x, (x.shape[0], -1)), "x")
    (target,) = (onnx.numpy_helper.to_array(array) for array in model.graph.initializer)
    assert target.tolist() == [0, 12]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == ["N", 12]


def test_large_constants_are_repeated_by_the_graph_not_in_the_file():
    def large(xp, x):
        row = xp.asarray([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
        return xp.concat([xp.zeros((1000, 3, 4), dtype=x.dtype), xp.broadcast_to(row, (1000, 3, 4)) + 1.0, x], axis=0)

    model = traced(large, "x")
    assert len(model.SerializeToString()) < 1000


def test_a_scan_is_one_node_whose_body_sees_what_is_outside():
    model = traced(looped, "s")
    loops = [node for node in model.graph.node if node.op_type == "Scan"]
    assert len(loops) == 2
    body = onnx.helper.get_attribute_value(loops[0].attribute[0])
    assert "Tanh" in [node.op_type for node in body.node]
    assert not body.initializer


def test_kernels_that_somebody_else_has_given_stay(monkeypatch):
    monkeypatch.setitem(relu.kernels, "onnx", lambda xp, x: xp.maximum(x, 0.0))
    kernels.register.cache_clear()
    assert operators(relu) == ["Max"]


# Random numbers


def test_uniform_gives_numpys_bits():
    graph = new_graph(21)
    seed, rows = graph.input("seed", (2,), "uint32"), graph.input("x", ("N", 3), "float32").shape[0]
    key = mix_keys(graph.xp, (seed[0], seed[1], 7))
    shapes: list[tuple[Any, ...]] = [(rows,), (rows, 5), (rows, 3, 4, 2), (rows * 2, 3)]
    outputs = {str(k): uniform(graph.xp, key, shape[0], 0, shape) for k, shape in enumerate(shapes)}
    run = session(write(graph, {**outputs, "once": uniform(graph.xp, key, None, 0, (4, 3))}))
    feeds = {"seed": np.array([12345, 0xFFFFFFFF], "uint32"), "x": np.zeros((6, 3), "float32")}
    *drawn, once = run.run(None, feeds)
    known = mix_keys(NUMPY, (12345, 0xFFFFFFFF, 7))
    for got, shape in zip(drawn, [(6,), (6, 5), (6, 3, 4, 2), (12, 3)], strict=True):
        np.testing.assert_array_equal(got, uniform(NUMPY, known, shape[0], 0, shape))
    np.testing.assert_array_equal(once, uniform(NUMPY, known, None, 0, (4, 3)))


def test_mix_gives_the_test_vectors():
    longest = max(map(len, TEST_VECTORS))
    graph = new_graph(21)
    keys = graph.input("keys", (longest,), "uint32")
    model = write(graph, {str(n): mix_keys(graph.xp, tuple(keys[k] for k in range(n))) for n in range(1, longest + 1)})
    run = session(model)
    for vector, expected in TEST_VECTORS.items():
        padded = np.array([*vector, *[0] * (longest - len(vector))], "uint32")
        assert run.run([str(len(vector))], {"keys": padded})[0] == expected


# Sizes

N, T = Dim.symbol("N"), Dim.symbol("T")


def test_sizes_add_multiply_and_divide_where_nothing_remains():
    assert (N * T * 6) // (T * 2) == N * 3
    assert (N * T - N) // (T - 1) == N
    assert N - N == 0
    assert (2 * N + 1, 3 - N, -T, N * N) == (1 + N + N, -(N - 3), 0 - T, N * N)
    assert str((2 * N * T - N + 3, N)) == "(2*N*T - N + 3, N)"
    assert N != T
    assert {N: 1}[Dim.symbol("N")] == 1


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda n: int(n), r"int\(\) or range\(\) of N needs a number, but the batch size is not known when a model"),
        (lambda n: range(n), r"reshape, zeros, arange or broadcast_to"),
        (lambda n: n // 2, "N // 2, which may leave a remainder"),
        (lambda n: 7 // n, "7 // N"),
        (lambda n: 1.0 / n, "divide an array by"),
        (lambda n: n * 0.5, "N together with 0.5"),
        (lambda n: n == 1, "N == 1"),
        (lambda n: n > 3, "comparing N with 3"),
        (lambda n: 1 if n else 0, "'if' on N"),
        (lambda n: n % 2, "dividing N"),
        (lambda n: int(n * T), "sizes N, T are not known"),
    ],
)
def test_what_needs_the_number_says_what_to_do(use, words):
    with pytest.raises(TraceError, match=words):
        use(N)


# Errors


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda xp, x, i: x if xp.sum(x) > 0 else -x, r"value of <traced array \(\) bool> is not known .* xp\.where"),
        (lambda xp, x, i: np.tanh(x), r"numpy.tanh was called on .*; use ctx.xp.tanh"),
        (lambda xp, x, i: np.asarray(x), "number or a NumPy array"),
        (lambda xp, x, i: float(xp.sum(x)), "is not known when a model is exported"),
        (lambda xp, x, i: list(x), "looped over"),
        (lambda xp, x, i: x + i, r"arrays of float32 and int32 together; convert one with xp\.astype"),
        (lambda xp, x, i: i + 0.5, "the number 0.5 beside a int32 array"),
        (lambda xp, x, i: (x > 0) * x, "arrays of bool and float32 together"),
        (lambda xp, x, i: (x > 0) * (i > 0), "multiply takes numbers"),
        (lambda xp, x, i: i / 2, "divide takes floats"),
        (lambda xp, x, i: i << 1, "left_shift takes unsigned integers"),
        (lambda xp, x, i: i * 2**40, "does not fit into a int32 array"),
        (lambda xp, x, i: x + "1", "expected an array or a number, got '1'"),
        (lambda xp, x, i: xp.sqrt(i), "sqrt takes floats"),
        (lambda xp, x, i: x[i > 0], "use ints, slices, None"),
        (lambda xp, x, i: x[:, 3], "index 3 is out of range for axis 1"),
        (lambda xp, x, i: x[0, 0, 0, 0], "too many indices"),
        (lambda xp, x, i: x[:2], r"slice \[None:2:None\] of an axis of size N"),
        (lambda xp, x, i: x[::2], "N // 2, which may leave a remainder"),
        (lambda xp, x, i: x.T, "use xp.permute_dims"),
        (lambda xp, x, i: xp.reshape(x, (-1, 5)), r"12\*N // 5|can't be reshaped"),
        (lambda xp, x, i: xp.reshape(x, (x.shape[0], 5)), r"\(N, 3, 4\) can't be reshaped to \(N, 5\)"),
        (lambda xp, x, i: x + xp.ones((5,), dtype=x.dtype), r"shapes \(N, 3, 4\) and \(5,\) can't be broadcast"),
        (lambda xp, x, i: xp.broadcast_to(x, (3, 4)), "can't be broadcast to"),
        (lambda xp, x, i: x @ x, "don't fit together in a matrix product"),
        (lambda xp, x, i: xp.concat([x, x[:, :1, :]], axis=0), "xp.concat along axis 0"),
        (lambda xp, x, i: xp.squeeze(x, axis=1), "not all of size 1"),
        (lambda xp, x, i: xp.sum(x, axis=3), r"axis 3 is out of range for shape \(N, 3, 4\)"),
        (lambda xp, x, i: xp.permute_dims(x, (0, 1)), "is no permutation"),
        (lambda xp, x, i: xp.take(x, i), "needs an axis"),
        (lambda xp, x, i: xp.arange(0.5, x.shape[0]), "goes with ints only"),
        (lambda xp, x, i: xp.node("Abs", 1.0, shape=(), dtype=xp.float32), "expected arrays, got 1.0"),
        (
            lambda xp, x, i: scan(xp, lambda states, xs: ((states[0][:, None],), ()), (x[:, 0, 0],), (x,))[0][0],
            "the body returned states .* expected shapes and dtypes as they came in",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_written_says_why(use, words):
    with pytest.raises((TraceError, TypeError), match=words):
        traced(use, "xi")


def test_methods_of_arrays_are_not_there_and_say_so():
    x = new_graph(21).input("x", ("N", 4), "float32")
    with pytest.raises(AttributeError, match=r"arrays of ctx.xp have no 'sum'; use ctx.xp.sum\(x, ...\)"):
        x.sum()
    assert (np.float32(2.0) * x).dtype == x.dtype
