"""Normalization: against the textbook's formulas written out, far from 0, in slices, frozen, and in ONNX."""

import numpy as np
import onnx
import onnxruntime
import pytest

import lamella as lm
from lamella.engine.gradients import Gradients
from lamella.engine.passes import Batch
from lamella.engine.rounds import Slices
from lamella.graph.plan import Plan
from lamella.graph.slicing import consecutive
from lamella_layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Flatten,
    GroupNormalization,
    LayerNormalization,
    RMSNormalization,
)
from lamella_layers.normalization import (
    batch_normalization,
    batch_normalization_dx,
    channel_affine,
    channel_moments,
    channel_products,
    standardize,
    standardize_dx,
)
from lamella_onnx import export

NUMPY, STRICT = lm.backends.get_backend("numpy"), lm.backends.get_backend("strict")
SHAPES = [(7, 5), (7, 3, 5), (7, 5, 3, 2)]


class Given(lm.losses.Loss):
    """The target is the gradient of the prediction."""

    def forward(self, ctx, prediction, target):
        ctx.save(target)
        return ctx.xp.sum(prediction * target, axis=tuple(range(1, target.ndim)))

    def backward(self, ctx, d):
        return ctx.saved[0]


def model_of(x, layer=None, **options):
    """A model of the layer alone, with parameters and state that are not trivial."""
    model = lm.Sequential([BatchNormalization(0.9) if layer is None else layer], input_shape=x.shape[1:], **options)
    rng = np.random.default_rng(1)
    for arrays in (model.parameters, model.state):
        for name, value in arrays.items():
            arrays[name] = value + rng.uniform(0.2, 0.9, value.shape)
    return model


def step(model, x, dy, sizes=None, *, training=True, weights=None):
    """One step in slices of the given sizes, with ``dy`` as the gradient of the output; names without the layer's."""
    backend = model.device
    weights = np.ones(len(x), x.dtype) if weights is None else weights
    batch = Batch(*((backend.asarray(array),) for array in (x, dy, weights)))
    sizes = sizes or [len(x)]
    plan = Plan(model.graph, model.frozen_layers, wants_dx=True, training=training)
    buffers = [Gradients(model.values.parameters.empty_like(), plan.parameters) for _ in range(min(2, len(sizes)))]
    result = Slices(plan, backend, consecutive(sizes), buffers=buffers).step(model.values, batch, [Given()], 0)
    arrays = {"y": result.predictions[0], "dx": result.dx[0], **result.gradients, **result.updates}
    return {name.rpartition(".")[2]: backend.asnumpy(array) for name, array in arrays.items()}


def own(model):
    return {name.rpartition(".")[2]: array for name, array in (*model.parameters.items(), *model.state.items())}


def by_channel(x):
    """Views of each channel, whatever their place."""
    return np.moveaxis(x, 1 if x.ndim == 4 else -1, 0)


def written_out(x, dy, arrays, *, batch, momentum=0.9, epsilon=1e-3):
    """What a step gives, channel by channel, with the statistics of the batch or the kept ones."""
    y, dx = np.empty_like(x), np.empty_like(x)
    result = {name: np.empty(len(by_channel(x))) for name in ("gamma", "beta", "mean", "variance")}
    for c, (values, d) in enumerate(zip(by_channel(x), by_channel(dy), strict=True)):
        gamma, beta, mean, variance = (arrays[name][c] for name in result)
        if batch:
            mean = sum(values.flat) / values.size
            variance = sum((value - mean) ** 2 for value in values.flat) / values.size
            for name, value in (("mean", mean), ("variance", variance)):
                result[name][c] = momentum * arrays[name][c] + (1 - momentum) * value
        deviation = np.sqrt(variance + epsilon)
        unit = (values - mean) / deviation
        by_channel(y)[c] = gamma * unit + beta
        result["gamma"][c], result["beta"][c] = np.sum(d * unit), np.sum(d)
        by_channel(dx)[c] = gamma / deviation * (d - batch * (np.mean(d) + unit * np.mean(d * unit)))
    if not batch:
        del result["mean"], result["variance"]
    return {"y": y, "dx": dx, **result}


def drawn(shape, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return (3.0 * rng.normal(size=shape) + 2.0).astype(dtype), rng.normal(size=shape).astype(dtype)


def agree(given, expected, tolerance):
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(given[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_training_is_the_textbook_written_out(shape, backend):
    x, dy = drawn(shape)
    model = model_of(x, dtype="float64", backend=backend)
    agree(step(model, x, dy), written_out(x, dy, own(model), batch=True), 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_inference_is_affine_with_the_kept_statistics(shape, backend):
    x, dy = drawn(shape)
    model = model_of(x, dtype="float64", backend=backend)
    expected = written_out(x, dy, own(model), batch=False)
    agree(step(model, x, dy, training=False), expected, 1e-12)
    np.testing.assert_allclose(model.predict(x), expected["y"], rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_is_inference_without_gradients_of_parameters(shape):
    x, dy = drawn(shape)
    expected = written_out(x, dy, own(model_of(x, dtype="float64")), batch=False)
    for model in (
        model_of(x, BatchNormalization(0.9).frozen(), dtype="float64"),
        model_of(x, dtype="float64").freeze("batch_normalization_1"),
    ):
        agree(step(model, x, dy, (3, 4)), {name: expected[name] for name in ("y", "dx")}, 1e-12)


def test_running_averages_follow_two_steps_and_rest_elsewhere():
    (first, y), (second, _) = drawn((9, 4, 3, 3)), drawn((5, 4, 3, 3), 1)
    model = lm.Sequential([BatchNormalization(momentum=0.75)], input_shape=first.shape[1:], dtype="float64")
    mean, variance = np.zeros(4), np.ones(4)
    for x in (first, second):
        model.train_on_batch(x, y[: len(x)], loss="mean_squared_error", optimizer="sgd")
        mean = 0.75 * mean + 0.25 * x.mean((0, 2, 3))
        variance = 0.75 * variance + 0.25 * x.var((0, 2, 3))  # biased, as in Keras and ONNX
    for change in (
        lambda: model.predict(first),
        lambda: model.gradients(first, y, loss="mean_squared_error"),
        lambda: model.freeze("*").train_on_batch(first, y, loss="mean_squared_error", optimizer="sgd"),
    ):
        change()
        np.testing.assert_allclose(own(model)["mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(own(model)["variance"], variance, rtol=1e-12)


@pytest.mark.parametrize("shape", [(31, 5), (31, 3, 5), (31, 5, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_give_what_the_whole_batch_gives(shape, dtype):
    x, dy = drawn(shape, dtype=dtype)
    model = model_of(x, dtype=dtype)
    whole = step(model, x, dy)
    for sizes in ((1, 30), (17, 3, 11), (1,) * 31):
        agree(step(model, x, dy, sizes), whole, 1e-12 if dtype == "float64" else 5e-6)


def test_weights_of_samples_weigh_the_loss_and_not_the_statistics():
    x, dy = drawn((6, 3, 2, 2))
    model = model_of(x, dtype="float64")
    plain, weighted = step(model, x, dy), step(model, x, dy, weights=np.array([0.0, 5.0, 0.0, 1.0, 0.0, 0.1]))
    for name in ("y", "mean", "variance"):
        np.testing.assert_array_equal(plain[name], weighted[name])


@pytest.mark.parametrize("shape", [(4000, 3), (400, 10, 3), (16, 3, 40, 20)])
@pytest.mark.parametrize("backend", ["numpy", "strict"])
@pytest.mark.parametrize("sliced", [False, True])
def test_the_variance_survives_a_mean_of_ten_thousand_deviations(shape, backend, sliced):
    rng = np.random.default_rng(3)
    x = (1e4 + rng.normal(size=shape)).astype("float32")
    dy = (rng.normal(size=shape) + (x - 1e4)).astype("float32")
    sizes = (1, shape[0] // 3, shape[0] - 1 - shape[0] // 3) if sliced else None
    exact = model_of(x, BatchNormalization(momentum=0.0), dtype="float64")
    given = step(model_of(x, BatchNormalization(momentum=0.0), backend=backend), x, dy, sizes)
    expected = written_out(x.astype("float64"), dy.astype("float64"), own(exact), batch=True, momentum=0.0)
    np.testing.assert_allclose(given["variance"], expected["variance"], rtol=1e-5)
    np.testing.assert_allclose(given["mean"], expected["mean"], rtol=1e-7)
    tolerance = 5e-6 if backend == "numpy" else 2e-5  # references add up all of a channel in float32
    for name in ("y", "dx", "gamma", "beta"):
        scale = np.max(np.abs(expected[name]))
        np.testing.assert_allclose(given[name], expected[name], atol=tolerance * scale, rtol=0, err_msg=name)


def test_the_variance_survives_many_equal_numbers_and_first_rows_far_from_the_others():
    n = 1 << 18
    two = np.where(np.arange(n) % 3 == 0, 0.1, 0.3).astype("float32")  # every sum rounds the same way
    far = np.where(np.arange(n) < 1024, 1e4, 0.1 * (np.arange(n) % 2)).astype("float32")
    x = np.stack([two, far], axis=1)
    mean, squares = channel_moments(NUMPY.xp, x)
    np.testing.assert_allclose(mean, x.mean(0, dtype="float64"), rtol=1e-6)
    np.testing.assert_allclose(squares / n, x.astype("float64").var(0), rtol=1e-5)


def test_constant_channels_give_beta_and_finite_gradients():
    for shape, sizes in (((5, 3), (5,)), ((1, 3), (1,)), ((7, 3, 4, 4), (2, 5)), ((150, 3), (106, 2, 42))):
        for value in (0.0, 1e4 / 3, 949425984.0):  # at the last, rounding leaves -218 as the variance of 150 rows
            x, dy = np.full(shape, value, "float32"), drawn(shape, dtype="float32")[1]
            model = model_of(x, BatchNormalization(momentum=0.0))
            given = step(model, x, dy, sizes)
            np.testing.assert_allclose(by_channel(given["y"]).reshape(3, -1).T - own(model)["beta"], 0.0, atol=1e-5)
            assert all(np.isfinite(array).all() for array in given.values())
            assert (given["variance"] >= 0.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_everything_has_the_dtype_of_the_model(dtype, training, backend):
    for shape in SHAPES:
        x, dy = drawn(shape, dtype=dtype)
        given = step(model_of(x, dtype=dtype, backend=backend), x, dy, (3, 4), training=training)
        assert {str(array.dtype) for array in given.values()} == {dtype}


def test_kernels_agree_with_their_references_in_any_memory_order(monkeypatch):
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng, xp = np.random.default_rng(seed), NUMPY.xp

    def any_order(array):
        wide = np.repeat(array, 2, axis=-1)[..., ::2] if rng.integers(2) else array
        order = rng.permutation(array.ndim)
        return np.ascontiguousarray(wide.transpose(order)).transpose(np.argsort(order))

    for _ in range(60):
        monkeypatch.setattr("lamella_layers.normalization.kernels._TILE_BYTES", int(rng.choice([1, 300, 1 << 19])))
        monkeypatch.setattr("lamella_layers.normalization.kernels._TILE_ROWS", int(rng.choice([1, 7, 1024])))
        monkeypatch.setattr("lamella_layers.runs._RUN", int(rng.choice([1, 20, 8192])))
        shape = tuple(map(int, rng.integers(1, 7, rng.integers(2, 5))))
        x, dy = any_order(5.0 + rng.normal(size=shape)), any_order(rng.normal(size=shape))
        kept = x.copy(), dy.copy()
        a, b, c, d = rng.uniform(0.5, 2.0, (4, len(by_channel(x))))
        for primitive, arguments, options in (
            (channel_moments, (x,), {}),
            (channel_affine, (x, a), {}),
            (channel_affine, (x, a, b), {"center": c}),
            (channel_products, (dy, x, c), {}),
            (batch_normalization, (x, a, b, c, d), {"epsilon": 1e-3}),
            (batch_normalization_dx, (dy, x, a, b, c, d), {}),
        ):
            fast, slow = primitive(xp, *arguments, **options), primitive.reference(xp, *arguments, **options)
            np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-10, err_msg=f"{primitive}, {shape}")
        np.testing.assert_array_equal(x, kept[0])
        np.testing.assert_array_equal(dy, kept[1])


def test_images_come_out_with_channels_last_in_memory():
    for x in (np.ones((4, 5, 8, 6)), np.ones((4, 8, 6, 5)).transpose(0, 3, 1, 2)):
        given = step(model_of(x, dtype="float64"), x, x)
        inference = step(model_of(x, dtype="float64"), x, x, training=False)
        for image in (given["y"], given["dx"], inference["y"], inference["dx"]):
            assert image.strides[1] == image.itemsize


@pytest.mark.parametrize("shape", [(6,), (6, 5, 4)])
def test_export_is_one_node_that_onnxruntime_agrees_with(shape, tmp_path):
    rng = np.random.default_rng(0)
    before = [Conv2D(4, 3, activation="relu")] if len(shape) == 3 else [Dense(4)]
    layers = [*before, BatchNormalization(momentum=0.5), Activation("relu"), Flatten(), Dense(2)]
    layers.insert(0, BatchNormalization(momentum=0.5))
    model = lm.Sequential(layers, input_shape=shape)
    x, y = rng.uniform(0, 255, (20, *shape)).astype("float32"), rng.integers(0, 2, 20)
    model.fit(x, y, loss="softmax_cross_entropy", optimizer="adam", epochs=3, progress=False)
    export(model, tmp_path / "model.onnx", samples=x)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [node.op_type for node in nodes].count("BatchNormalization") == 2
    assert not {"Sub", "Mul", "Div", "Sqrt"} & {node.op_type for node in nodes}


def test_export_of_float64_and_of_data_far_from_0(tmp_path):
    x = (1e4 + 3.0 * np.random.default_rng(0).normal(size=(30, 4))).astype("float32")
    for dtype in ("float32", "float64"):
        model = lm.Sequential([BatchNormalization(momentum=0.0), Dense(2)], input_shape=4, dtype=dtype)
        model.train_on_batch(x, np.zeros((30, 2)), loss="mean_squared_error", optimizer="sgd")
        export(model, tmp_path / f"{dtype}.onnx", samples=x)
    nodes = onnx.load(tmp_path / "float64.onnx").graph.node
    assert "BatchNormalization" not in [node.op_type for node in nodes]


def test_it_says_what_it_refuses():
    for shape, dtype, words in (
        ((), None, r"expected floats \(N, channels\), \(N, time, channels\), .* or \(N, channels, height, width\)"),
        ((3, 4, 5, 6), None, r"got \(N, 3, 4, 5, 6\) float32. Likely fix: Reshape"),
        ((4, "F"), None, "known number of channels"),
        (("C", 4, 4), None, "known number of channels"),
        ((4,), "int64", r"x.astype\('float32'\)"),
    ):
        with pytest.raises(lm.GraphError, match=words):
            BatchNormalization()(lm.Input(shape, dtype))
    with pytest.raises(lm.ArgumentError, match=r"BatchNormalization: momentum: expected a fraction in \[0, 1\), got 1"):
        BatchNormalization(momentum=1.0)
    for epsilon in (0, 1e-46):  # which is 0 in float32
        with pytest.raises(lm.ArgumentError, match=r"BatchNormalization: epsilon: .* above 0, in float32 too"):
            BatchNormalization(epsilon=epsilon)
    with pytest.raises(lm.ArgumentError, match=r"BatchNormalization: epsilon: expected a number of at least 0"):
        BatchNormalization(epsilon=-1e-3)
    layer, x = BatchNormalization(), lm.Input((3,))
    with pytest.raises(lm.GraphError, match="state"):  # its running averages have one place
        lm.Model(x, layer(layer(x)))


def test_statistics_that_overflow_are_not_kept():
    model = lm.Sequential([BatchNormalization(), Dense(2)], input_shape=3)
    x = np.random.default_rng(0).normal(size=(8, 3))
    x[0, 0] = 1e20
    with pytest.raises(lm.NonFiniteError, match="new value of batch_normalization_1.variance is not finite"):
        model.train_on_batch(x, np.zeros((8, 2)), loss="mean_squared_error", optimizer="sgd")
    assert np.all(model.state["batch_normalization_1.variance"] == 1.0)
    assert model.step == 0


@pytest.mark.parametrize("make", [BatchNormalization, lambda axis: GroupNormalization(2, axis=axis)])
def test_series_with_channels_on_axis_1_are_those_with_channels_last_turned(make):
    x, dy = drawn((6, 4, 5))
    turned = [a.transpose(0, 2, 1) for a in (x, dy)]
    one, other = (model_of(a[0], make(axis=axis), dtype="float64") for a, axis in (((x, dy), 1), (turned, None)))
    for model in (one, other):
        name = next(iter(model.parameters))
        model.parameters[name] = np.arange(1.0, 5.0)
    (_, first, dx), (_, second, turned_dx) = (
        model.gradients(a, d, loss="mean_squared_error") for model, (a, d) in ((one, (x, dy)), (other, turned))
    )
    np.testing.assert_allclose(dx, turned_dx.transpose(0, 2, 1), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(one.predict(x), other.predict(turned[0]).transpose(0, 2, 1), rtol=1e-12)
    agree(first, second, 1e-12)
    with pytest.raises(lm.ArgumentError, match="axis: expected 1, -1 or None, got 2"):
        make(axis=2)


# Each sample by itself

WITHIN = [  # a layer, the shape of its input, and where the features or groups of one sample stand
    (LayerNormalization(), (3, 5), lambda x: x.reshape(-1, 5)),
    (LayerNormalization(axis=1), (3, 4, 5), lambda x: x.transpose(0, 2, 3, 1).reshape(-1, 3)),
    (LayerNormalization(axis=(-1, 2)), (3, 4, 5), lambda x: x.reshape(-1, 20)),
    (RMSNormalization(), (3, 5), lambda x: x.reshape(-1, 5)),
    (GroupNormalization(3), (6, 4, 5), lambda x: x.reshape(-1, 40)),
    (GroupNormalization(2), (5, 6), lambda x: np.moveaxis(x.reshape(-1, 5, 2, 3), 2, 1).reshape(-1, 15)),
    (GroupNormalization(2), (6,), lambda x: x.reshape(-1, 3)),
]


@pytest.mark.parametrize(("layer", "shape", "sets"), WITHIN)
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_each_sample_is_normalized_by_itself_however_far_from_0(layer, shape, sets, mean):
    x = (mean + np.random.default_rng(0).normal(size=(7, *shape))).astype("float32")
    expected = sets(x.astype("float64"))
    if not isinstance(layer, RMSNormalization):
        expected = expected - expected.mean(axis=1, keepdims=True)
    expected = expected / np.sqrt((expected**2).mean(axis=1, keepdims=True) + layer.epsilon)
    np.testing.assert_allclose(sets(lm.Sequential([layer], input_shape=shape).predict(x)), expected, atol=2e-6)


@pytest.mark.parametrize("centered", [True, False])
def test_a_million_features_are_normalized_as_exactly_as_few(centered):
    x = np.tile(np.array([0.3, -0.1], "float32"), (1, 500_000))
    d = np.tile(np.array([0.1, 0.1, 0.1, 0.3], "float32"), (1, 250_000))
    y, inverse = standardize(NUMPY.xp, x, axes=1, epsilon=1e-6, centered=centered)
    few, scale = standardize(NUMPY.xp, x[:, :4].astype("float64"), axes=1, epsilon=1e-6, centered=centered)
    np.testing.assert_allclose(y[:, :4], few, rtol=3e-7)
    dx = standardize_dx(NUMPY.xp, d, y, inverse, axes=1, centered=centered)
    slope = standardize_dx(NUMPY.xp, d[:, :4].astype("float64"), few, scale, axes=1, centered=centered)
    np.testing.assert_allclose(dx[:, :4], slope, atol=3e-7)


@pytest.mark.parametrize("layer", [LayerNormalization(), RMSNormalization(), GroupNormalization(2)])
def test_gamma_and_beta_belong_to_features_and_freeze(layer):
    x, dy = drawn((7, 4, 3, 6)[: 4 if isinstance(layer, GroupNormalization) else 3])
    model = model_of(x, layer, dtype="float64")
    arrays, given = own(model), step(model, x, dy)
    assert set(arrays) == ({"gamma"} if isinstance(layer, RMSNormalization) else {"gamma", "beta"})
    for name in model.parameters:
        model.parameters[name] = np.full_like(model.parameters[name], name.endswith("gamma"))
    unit = model.predict(x)
    for c, (y, u, d) in enumerate(zip(*map(by_channel, (given["y"], unit, dy)), strict=True)):
        np.testing.assert_allclose(y, arrays["gamma"][c] * u + arrays.get("beta", np.zeros(9))[c], rtol=1e-12)
        assert given["gamma"][c] == pytest.approx(np.sum(d * u))
    frozen = step(model.freeze("*"), x, dy)
    assert set(frozen) == {"y", "dx"}


def test_kernels_of_normalization_within_samples_agree_with_their_references(monkeypatch):
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng, xp = np.random.default_rng(seed), NUMPY.xp
    for _ in range(40):
        monkeypatch.setattr("lamella_layers.normalization.kernels._TILE_BYTES", int(rng.choice([1, 300, 1 << 19])))
        shape = tuple(map(int, rng.integers(1, 7, rng.integers(2, 5))))
        axes, centered = int(rng.integers(1, len(shape))), bool(rng.integers(2))
        x, d = (rng.normal(size=shape[::-1]).transpose() for _ in range(2))
        unit, inverse = standardize.reference(xp, x, axes=axes, epsilon=0.1, centered=centered)
        for primitive, arguments, options in (
            (standardize, (x,), {"epsilon": 0.1}),
            (standardize_dx, (d, unit, inverse), {}),
        ):
            options |= {"axes": axes, "centered": centered}
            fast, slow = primitive(xp, *arguments, **options), primitive.reference(xp, *arguments, **options)
            for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (fast, slow)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=f"{primitive}, {shape}, {options}")


def test_exports_survive_features_a_hundred_deviations_from_0(tmp_path):
    x = (100 + np.random.default_rng(0).normal(size=(9, 4, 3, 6))).astype("float32")
    for layer in (LayerNormalization(), RMSNormalization(), GroupNormalization(2), GroupNormalization(4)):
        export(lm.Sequential([layer], input_shape=x.shape[1:]), tmp_path / "model.onnx", samples=x)
    export(lm.Sequential([RMSNormalization()], input_shape=6), tmp_path / "model.onnx", opset=23)
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node] == ["RMSNormalization"]


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1, 1)])
def test_one_number_by_itself_becomes_beta_in_onnx_too(shape, tmp_path):
    x = np.random.default_rng(1).normal(1e4, 1e3, (9, *shape)).astype("float32")
    model = lm.Sequential([GroupNormalization(4, epsilon=1e-12)], input_shape=shape)
    model.parameters["group_normalization_1.gamma"] = np.full(4, 123.456)
    model.parameters["group_normalization_1.beta"] = np.full(4, 0.75)
    np.testing.assert_array_equal(model.predict(x), np.full(x.shape, 0.75))
    assert export(model, tmp_path / "model.onnx", samples=x).max_error == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sample", [("T", 4), (2, "H", "W")])
def test_a_file_takes_no_rows_of_unknown_size(sample, dtype, tmp_path):
    model = lm.Sequential([GroupNormalization(1)], input_shape=sample, dtype=dtype)
    export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((0, 2, 4, 4)[: 1 + len(sample)], (3, 2, 4, 4)[: 1 + len(sample)]):
        (y,) = session.run(None, {model.input_names[0]: np.ones(shape, dtype)})
        np.testing.assert_allclose(y, np.zeros(shape), atol=1e-6)


def test_normalizations_within_samples_say_what_they_refuse():
    for layer in (LayerNormalization, RMSNormalization):
        for axis in (0, 2, -2, (1, -1)):
            with pytest.raises(lm.GraphError, match="among the axes after the batch, each once"):
                layer(axis)(lm.Input(4))
        with pytest.raises(
            lm.ArgumentError, match=f"{layer.__name__}: axis: expected an int or a tuple of them, got 1.5"
        ):
            layer(axis=1.5)
        with pytest.raises(lm.ArgumentError, match="epsilon: expected a number above 0, in .* 1.2e-38, got 1e-300"):
            layer(epsilon=1e-300)
    with pytest.raises(lm.ArgumentError, match="GroupNormalization: groups: expected a positive int, got 0"):
        GroupNormalization(0)
