"""Preprocessing layers: integers and floats in, the model's floats out, with statistics of the data."""

import math

import numpy as np
import onnxruntime
import pytest

import lamella as lm
from lamella_layers import Conv2D, Dense, Flatten, Normalization, Rescaling, Reshape, preprocessing
from lamella_onnx import export, verify


def test_bytes_go_through_training_files_and_onnx(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 3, 6, 6), dtype="uint8"), np.arange(40) % 2
    x = lm.Input((3, 6, 6), "uint8")
    y = Normalization(axis=1).adapted(images / 255)(Rescaling(1 / 255)(x))
    model = lm.Model(x, Dense(2)(Flatten()(Conv2D(4, 3)(y))))
    model.fit(images, labels, loss="softmax_cross_entropy", optimizer="adam", epochs=2, progress=False)
    model.save(tmp_path / "model.lamella")
    np.testing.assert_array_equal(lm.load(tmp_path / "model.lamella").predict(images), model.predict(images))
    export(model, tmp_path / "model.onnx", samples=images)
    assert verify(tmp_path / "model.onnx")


@pytest.mark.parametrize("axis", [None, 1, -1, 3, (1, -1), (3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_adapted_data_has_mean_0_and_variance_1(axis, dtype, monkeypatch):
    monkeypatch.setattr(preprocessing, "_BLOCK", 100)  # the data is read in blocks
    data = (100 + 10 * np.random.default_rng(0).normal(size=(50, 3, 2, 4))).astype(dtype)
    model = lm.Sequential(
        [Rescaling(1.0), Normalization(axis=axis).adapted(data)], input_shape=(3, 2, 4), dtype="float64"
    )
    y = model.predict(data.astype("float64"))
    kept = () if axis is None else {k % 4 for k in np.atleast_1d(axis)}
    others = tuple(k for k in range(4) if k not in kept)
    np.testing.assert_allclose(y.mean(others), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.var(others), 1.0, rtol=1e-12)


def test_statistics_are_those_of_numbers_far_from_0():
    data = 1e8 + np.random.default_rng(0).normal(size=(1000, 2))
    layer = Normalization().adapted(data)
    np.testing.assert_allclose(layer.config()["variance"], data.var(0), rtol=1e-9)
    np.testing.assert_allclose(layer.config()["mean"], data.mean(0), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["int32", "uint32", "int64", "uint64"])
def test_integers_lose_nothing_against_their_mean(kind, dtype, tmp_path):
    limits = np.iinfo(kind)
    mean = {"int32": -1.7e9, "uint32": 4.2e9, "int64": 1.7e18, "uint64": 1.6e19}[kind] + 0.25
    whole = math.floor(mean)
    x = np.array([*range(whole - 5, whole + 6), 0, limits.min, limits.max, limits.max // 2 + 1], kind)
    right = np.array([int(k) - whole for k in x], "float64") - mean % 1.0
    model = lm.Model(node := lm.Input((), kind), Normalization(mean=mean, variance=4.0, axis=None)(node), dtype=dtype)
    np.testing.assert_allclose(model.predict(x), right / 2.0, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(model.to("strict").predict(x), model.predict(x))
    export(model, tmp_path / "model.onnx", samples=x)
    y = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {model.input_names[0]: x})[0]
    np.testing.assert_array_equal(y, model.predict(x))


def test_floats_far_from_0_lose_nothing_against_their_mean(tmp_path):
    stamps = 1.7e9 + np.arange(61.0)[:, None]
    expected = (np.arange(61.0)[:, None] - 30.0) / np.arange(61.0).std()
    layer = Normalization().adapted(stamps)
    model = lm.Sequential([layer], input_shape=1)
    assert [spec.dtype for spec in (*model.input_specs, *model.output_specs)] == ["float64", "float32"]
    for one in (model, model.copy(backend="strict"), model.copy(dtype="float64"), lm.from_config(model.config())):
        np.testing.assert_allclose(one.predict(stamps), expected, atol=1e-6)
    model.save(tmp_path / "model.lamella")
    np.testing.assert_array_equal(lm.load(tmp_path / "model.lamella").predict(stamps), model.predict(stamps))
    export(model, tmp_path / "model.onnx", samples=stamps)
    assert verify(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"input_1": stamps})[0], expected, atol=1e-6)
    line = lm.Sequential([layer, Dense(1)], input_shape=1)
    line.fit(stamps, expected, loss="mean_squared_error", optimizer=lm.optimizers.SGD(0.1), epochs=40)
    assert line.evaluate(stamps, expected, loss="mean_squared_error")["loss"] < 1e-6
    _, _, dx = line.gradients(stamps, expected, loss="mean_squared_error")
    assert (dx.shape, dx.dtype) == ((61, 1), np.float32)


def test_float64_is_taken_where_it_is_asked_for_or_float32_would_lose_too_much():
    x, rng = lm.Input(2), np.random.default_rng(0)
    near, far = (Normalization(mean=(mean, 0.0), variance=(1.0, 0.0)) for mean in (1e5, 2e6))
    assert lm.Model(x, near(x)).input_specs[0].dtype == "float32"
    assert lm.Model(x, far(x)).input_specs[0].dtype == "float64"
    assert lm.Sequential([near], input_shape=2, input_dtype="float64").input_specs[0].dtype == "float64"
    values = 1e5 + rng.normal(size=(9, 2))
    scaled = lm.Sequential([Rescaling(2.0, -2e5)], input_shape=2, input_dtype="float64").predict(values)
    np.testing.assert_allclose(scaled, 2 * (values - 1e5), atol=1e-6)
    for layers in ([Reshape((2,)), far], [Rescaling(1.0), far]):
        with pytest.warns(lm.MistakeWarning, match=r"normalization_1: float32 has lost .* goes to this layer alone"):
            lm.Sequential(layers, input_shape=2)
        lm.Sequential(layers, input_shape=2, dtype="float64")
    with pytest.warns(lm.MistakeWarning, match="float32 has lost"):
        lm.Model(x, (far(x), Dense(1)(x)))
    wide = lm.Input(2, "float64")
    with pytest.raises(lm.GraphError, match=r"dense_1: gives \(N, 3\) float64 of \(N, 2\) float64 in a float32 model"):
        lm.Model(wide, Dense(3)(wide))


def test_floats_are_not_shifted_by_what_rounding_took_from_the_mean(tmp_path):
    x = np.float32(1e6) + np.arange(4, dtype="float32")[:, None] / 16
    mean = float(x.mean(dtype="float64"))
    assert mean != float(np.float32(mean))
    layer = Normalization().adapted(x)
    model = lm.Sequential([layer], input_shape=1)
    np.testing.assert_allclose(model.predict(x)[:, 0], [-1.342, -0.447, 0.447, 1.342], atol=1e-3)
    np.testing.assert_allclose(model.predict(x).mean(), 0.0, atol=1e-7)
    export(model, tmp_path / "model.onnx", samples=x)


def test_constant_features_are_only_shifted_and_one_number_may_stand_for_all():
    model = lm.Sequential([Normalization(mean=(5.0, 1.0), variance=(0.0, 4.0))], input_shape=2)
    np.testing.assert_array_equal(model.predict([[5.0, 5.0], [6.0, 1.0]]), [[0.0, 2.0], [1.0, 0.0]])
    model = lm.Sequential([Normalization(mean=1.0, variance=4.0)], input_shape=(2, 3))
    np.testing.assert_array_equal(model.predict(np.full((1, 2, 3), 7.0)), np.full((1, 2, 3), 3.0))


def test_a_layer_is_configuration_and_adapting_returns_another():
    plain = Normalization(axis=1).named("standard")
    adapted = plain.adapted(np.eye(3))
    assert plain.config()["mean"] is None
    assert adapted.name == "standard"
    assert adapted == Normalization(**adapted.config()).named("standard")
    a, b = lm.Input(3), lm.Input(3)
    lm.Model((a, b), (adapted(a), adapted(b)))  # there is no state: it may stand at two nodes


def test_what_is_refused():
    for data, words in (
        (np.zeros((0, 3)), r"expected numbers, got \(0, 3\)"),
        (["a"], "expected numbers"),
        ([[1.0, 2.0], [3.0]], "expected numbers, got something that is no rectangular array"),
        ([[1.0, np.nan]], "NaN or infinity"),
        ([1.0, 2.0], "axis=-1 among the axes after that of the samples"),
    ):
        with pytest.raises(lm.DataError, match=f"Normalization.adapted: .*{words}"):
            Normalization().adapted(data)
    for (mean, variance), words in (
        ((1.0, None), "expected both or neither"),
        (((1.0, 2.0), 1.0), r"expected equal shapes, got \(2,\) and \(\)"),
        ((0.0, -1.0), "variance: expected numbers of at least 0"),
        ((np.nan, 1.0), "mean: expected finite numbers"),
        (("a", 1.0), "mean: expected finite numbers"),
        ((1e39, 1.0), "deviations .* that float32 holds, of at most 3.4e[+]38, .* got 1e[+]39 and 1.0"),
        ((1.0, 1e-80), "deviations of 0 or at least 1.2e-38"),
    ):
        with pytest.raises(lm.ArgumentError, match=words):
            Normalization(mean=mean, variance=variance)
    with pytest.raises(lm.ArgumentError, match="axis: expected an int, a tuple of them, or None, got 'C'"):
        Normalization(axis="C")
    with pytest.raises(lm.GraphError, match=r"got neither. Likely fix: Normalization\(...\).adapted\(data\)"):
        Normalization()(lm.Input(3))
    for scale, words in ((np.inf, "finite number, got inf"), (10**400, "number that float32 holds, at most 3.4e.38")):
        with pytest.raises(lm.ArgumentError, match=f"scale: expected a {words}"):
            Rescaling(scale)
    numbers = np.ones((3, 2))
    with pytest.raises(
        lm.GraphError, match=r"of sizes \(2, 3\), .* along axis=\(2, 1\), in the order of its axes; they"
    ):
        Normalization(mean=numbers, variance=numbers, axis=(2, 1))(lm.Input((2, 3)))
    with pytest.raises(lm.GraphError, match=r"axis=\(1, -1\) among the axes after the batch, each once, got \(N, 2\)"):
        Normalization(mean=numbers, variance=numbers, axis=(1, -1))(lm.Input(2))


@pytest.mark.parametrize("constant", [0.1, 0.7, 1e6 + 0.1])
def test_features_that_are_constant_are_only_shifted(constant):
    layer = Normalization().adapted(np.full((7, 1), constant))
    assert layer.config()["variance"] in ((0.0,), 0.0)
    model = lm.Sequential([layer], input_shape=(1,), dtype="float64")
    np.testing.assert_allclose(model.predict([[constant], [constant + 1.0]]), [[0.0], [1.0]], atol=1e-9)
