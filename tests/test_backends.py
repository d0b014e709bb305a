"""The namespaces of all backends: exactly the listed functions, with the same results."""

import contextlib
import importlib.metadata
import inspect
import re
import sys
import types

import numpy as np
import pytest

import lamella as lm
from lamella import backends, registry
from lamella.backends import DTYPE_NAMES, NAMESPACE, Namespace, get_backend
from lamella.backends.counter import uniform
from lamella.backends.numpy_backend import NumPyBackend
from lamella.errors import BackendError, RegistryError
from lamella_layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D

# every form of call that layer code may use, with x, y floats above 0, i ints and b bools, all (2, 3, 4)
CALLS = [
    *(f"xp.{name}(x)" for name in ("abs", "ceil", "cos", "cosh", "exp", "expm1", "floor", "isfinite", "isinf")),
    *(f"xp.{name}(x)" for name in ("isnan", "log", "log1p", "round", "sign", "sin", "sinh", "sqrt", "square")),
    "xp.tan(x)", "xp.tanh(x)",
    "xp.all(b)", "xp.all(b, axis=1, keepdims=True)", "xp.any(b)", "xp.any(b, axis=(0, 2))",
    "xp.arange(5)", "xp.arange(1, 7, 2, dtype=xp.int32)", "xp.asarray([1.0, 2.0], dtype=xp.float32)",
    "xp.argmax(x, axis=-1)", "xp.argmax(i, axis=0)", "xp.argmin(x, axis=-1)",
    "xp.astype(x, xp.int32)", "xp.astype(b, x.dtype)", "xp.broadcast_to(x[:, :1, :], (2, 3, 4))",
    "xp.clip(x, 0.5, 1.0)", "xp.concat([x, y], axis=1)", "xp.stack([x, y], axis=1)",
    "xp.expand_dims(x, axis=-1)", "xp.squeeze(x[:, :1, :], axis=1)", "xp.flip(x, axis=0)", "xp.flip(x, axis=(1, 2))",
    "xp.full((2, 3), 0.5, dtype=xp.float32)", "xp.full_like(x, 0.5)", "xp.zeros((3,), dtype=xp.float32)",
    "xp.zeros_like(b)", "xp.ones((2, 1), dtype=xp.float64)", "xp.ones_like(i)",
    "xp.logical_and(b, x > y)", "xp.logical_or(b, x > y)", "xp.logical_not(b)", "xp.where(b, x, y)",
    "xp.matmul(x, xp.permute_dims(y, (0, 2, 1)))", "x[0, ...] @ y[1, ...].T",
    "x[:, None, :, ::2] - y[:, None, :, -1:]",
    "x[:, :2] - y[0, :2]", "x[None]", "(xp.sum(x) * y)[1]", "(y - x[0, 0, 0])[None]",
    "xp.max(x)", "xp.max(x, axis=-1, keepdims=True)", "xp.min(x, axis=0)", "xp.maximum(x, y)", "xp.minimum(x, y)",
    "xp.mean(x)", "xp.mean(x, axis=(1, 2), keepdims=True)", "xp.prod(x, axis=1)", "xp.pow(x, y)", "x**2.5",
    "xp.sum(x, axis=(0, 2))", "xp.sum(i, axis=0, keepdims=True)", "xp.sum(xp.astype(b, xp.uint8))",
    "xp.reshape(x, (x.shape[0], -1))", "xp.tile(x, (1, 2, 1))", "xp.take(x, xp.asarray([3, 0, 0]), axis=2)",
]  # fmt: skip


def arguments(dtype):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.1, 2.0, (2, 2, 3, 4)).astype(dtype)
    return x, y, rng.integers(-5, 6, (2, 3, 4)), rng.integers(0, 2, (2, 3, 4)) > 0


def evaluate(call, backend, dtype):
    arrays = (backend.asarray(array) for array in arguments(dtype))
    return backend.asnumpy(eval(call, {"xp": backend.xp, **dict(zip("xyib", arrays, strict=True))}))


def agree(call, backend):
    """Make a call on NumPy and on another backend, and compare shape, dtype and values."""
    for dtype in ("float32", "float64"):
        expected = evaluate(call, get_backend("numpy"), dtype)
        result = evaluate(call, get_backend(backend), dtype)
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype), call
        tolerance = 1e-6 if expected.dtype == np.float32 else 1e-14
        np.testing.assert_allclose(result, expected, rtol=tolerance, err_msg=call)


def test_the_table_has_every_function():
    assert {*re.findall(r"xp\.(\w+)", " ".join(CALLS)), *DTYPE_NAMES} == set(NAMESPACE)


@pytest.mark.parametrize("backend", ["numpy", "strict", "cupy"])
def test_exactly_the_listed_names(backend):
    if backend == "cupy":
        pytest.importorskip("cupy", reason="CuPy is not installed")
    xp = get_backend(backend).xp
    assert sorted(vars(xp)) == sorted((*NAMESPACE, "backend", "kernels", "xp"))
    assert (xp.backend, xp.kernels, xp.xp) == (backend, (backend,), xp)
    assert backend in repr(xp)


@pytest.mark.parametrize("call", CALLS)
def test_strict_agrees_with_numpy(call):
    agree(call, "strict")


@pytest.fixture
def cuda():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_cupy_agrees_with_numpy():
    for call in CALLS:
        agree(call, "cupy")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_cupy_draws_the_same_bits():
    cupy = get_backend("cupy")
    for rows, shape in ((3, (3, 5)), (3, (3, 2, 4, 5)), (None, (7,))):
        expected = uniform(get_backend("numpy").xp, 0xFFFFFFFF, rows, 2**31, shape)
        np.testing.assert_array_equal(cupy.asnumpy(uniform(cupy.xp, 0xFFFFFFFF, rows, 2**31, shape)), expected)


def test_cupy_takes_the_arguments():
    """What can be said of CuPy where there is no GPU: its functions take every form of call in the table."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    called = set()

    class Binding:
        def __getattr__(self, function):
            theirs, ours = getattr(cupy, function), getattr(np, function)
            if function in DTYPE_NAMES:
                return ours

            def bind(*args, **kwargs):
                called.add(function)
                if isinstance(theirs, cupy.ufunc):
                    assert (len(args), kwargs) == (theirs.nin, {}), function
                else:
                    inspect.signature(theirs).bind(*args, **kwargs)
                return ours(*args, **kwargs)

            return bind

    for call in CALLS:
        eval(call, {"xp": Binding(), **dict(zip("xyib", arguments("float32"), strict=True))})
    assert called == set(NAMESPACE) - set(DTYPE_NAMES)


@pytest.mark.parametrize("backend", ["numpy", "strict"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("concatenate", "Use concat."),
        ("transpose", "Use permute_dims."),
        ("sqr", "Did you mean 'sqrt'?"),
        ("erf", "erf"),
    ],
)
def test_unknown_names_give_hints(backend, name, hint):
    with pytest.raises(AttributeError, match=f"xp.{name} is not among .*{hint.replace('?', '[?]')}"):
        getattr(get_backend(backend).xp, name)


def test_unknown_backend():
    with pytest.raises(RegistryError, match=r"'nunpy'. Did you mean 'numpy'.*cupy, numpy, onednn, onnxruntime, strict"):
        get_backend("nunpy")
    with pytest.raises(RegistryError, match="Did you mean 'onnxruntime'"):
        get_backend("onnx")


def test_a_variable_names_the_backend_of_models_for_which_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LAMELLA_BACKEND", "strict")
    model = lm.Sequential([Dense(2)], input_shape=3)
    assert model.backend == "strict"
    assert lm.Sequential([Dense(2)], input_shape=3, backend="numpy").backend == "numpy"
    model.save(tmp_path / "model.lamella")
    assert lm.load(tmp_path / "model.lamella").backend == "strict"
    monkeypatch.setenv("LAMELLA_BACKEND", "")
    assert lm.load(tmp_path / "model.lamella").backend == "numpy"


def test_what_the_variable_asks_for_is_told_as_such(monkeypatch):
    monkeypatch.setenv("LAMELLA_BACKEND", "nunpy")
    with pytest.raises(RegistryError, match=r"the variable LAMELLA_BACKEND: backends: unknown name 'nunpy'"):
        lm.Sequential([Dense(2)], input_shape=3)


def test_a_backend_that_lacks_its_library_is_one_clear_error(monkeypatch):
    class Lacking(NumPyBackend):
        def __init__(self):
            raise ImportError("the 'lacking' backend needs a library: pip install it")

    monkeypatch.setattr(registry, "find", lambda kind, name: Lacking)
    with pytest.raises(BackendError, match="needs a library: pip install it") as caught:
        get_backend("lacking")
    assert isinstance(caught.value, ImportError)


def test_a_backend_whose_kernels_would_never_run_is_refused(monkeypatch):
    class Loud(NumPyBackend):
        name = "loud"

    monkeypatch.setattr(registry, "find", lambda kind, name: Loud)
    with pytest.raises(
        RegistryError, match=r"'loud': its xp is that of 'numpy'.*Likely fix: self.xp = Namespace\('loud'"
    ):
        get_backend("loud")


class _Doubling(NumPyBackend):
    """NumPy, with kernels of its own before those of NumPy."""

    name = "doubling"

    def __init__(self):
        super().__init__()
        self.xp = Namespace("doubling", np, kernels=("doubling", "numpy"))


def test_a_plugin_brings_a_backend_whose_kernels_fall_back(monkeypatch):
    @lm.primitive
    def first(xp, x):
        return x

    @lm.primitive
    def second(xp, x):
        return x

    first.kernel("numpy")(lambda xp, x: x + 1.0)
    second.kernel("numpy")(lambda xp, x: x + 10.0)
    second.kernel("doubling")(lambda xp, x: x + 20.0)

    class Both(lm.Layer):
        def forward_pass(self, ctx, x):
            return first(ctx, x) + second(ctx, x)

    plugin = types.SimpleNamespace(lamella_backends=lm.hookimpl(lambda: {"doubling": _Doubling}))
    point = types.SimpleNamespace(name="twice", value="twice", dist=None, load=lambda: plugin)
    known = registry.Registry([*importlib.metadata.entry_points(group="lamella"), point])
    monkeypatch.setattr(registry, "find", known.find)
    model = lm.Sequential([Both()], input_shape=1, backend="doubling")
    assert model.predict([[1.0]]) == [[2.0 + 21.0]]
    assert model.copy().backend == "doubling"
    assert model.to("numpy").predict([[1.0]]) == [[2.0 + 11.0]]
    assert model.to("strict").predict([[1.0]]) == [[2.0]]


@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_layers_see_storage_that_they_can_not_write(backend):
    backend = get_backend(backend)
    storage = backend.zeros(4, "float64")
    view = backend.view(storage[1:3])
    with pytest.raises(ValueError, match="read-only") if backend.name == "numpy" else contextlib.nullcontext():
        view[0] = 1.0  # the others hand out a copy
    np.testing.assert_array_equal(storage, np.zeros(4))
    storage[:2] += backend.storable(backend.asarray(np.array([1.0, 2.0])))
    np.testing.assert_array_equal(backend.asnumpy(storage), [1.0, 2.0, 0.0, 0.0])


def test_the_cupy_backend_trains_on_a_stand_in(monkeypatch):
    """Without a GPU: everything but CuPy itself, whose functions are played by NumPy's of the same names."""
    stand_in = types.ModuleType("cupy")
    for name in (*NAMESPACE, "ndarray"):
        setattr(stand_in, name, getattr(np, name))
    stand_in.asnumpy = np.array
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    backends._only.cache_clear()
    try:
        layers = [Conv2D(3, 3, activation="relu"), MaxPooling2D(3, strides=2), Flatten(), Dropout(0.2), Dense(2)]
        model = lm.Sequential(layers, input_shape=(2, 7, 7), dtype="float64")
        moved = model.copy().to("cupy")
        assert (model.backend, moved.backend) == ("numpy", "cupy")
        x, y = np.random.default_rng(0).normal(size=(6, 2, 7, 7)), np.arange(6) % 2
        for one in (model, moved):
            one.fit(x, y, loss="softmax_cross_entropy", optimizer="adam", epochs=2, batch_size=4, progress=False)
        for name, value in model.parameters.items():
            np.testing.assert_allclose(moved.parameters[name], value, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moved.to("numpy").predict(x), model.predict(x), rtol=1e-9)
    finally:
        backends._only.cache_clear()


def test_evaluation_asks_arrays_for_nothing_but_the_array_api():
    x, y = np.eye(4, dtype="float32"), np.arange(4) % 3
    model = lm.Sequential([Dense(3)], input_shape=4)
    expected = model.evaluate(x, y, loss="softmax_cross_entropy")["loss"]
    assert model.to("strict").evaluate(x, y, loss="softmax_cross_entropy")["loss"] == pytest.approx(expected)
