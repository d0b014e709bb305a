"""Training in onnxruntime takes the engine's steps: weights, slots, statistics, counters and losses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file
from sample_layers import Center

import lamella as lm
from lamella import losses, optimizers, regularization, schedules
from lamella_layers import (
    GRU,
    LSTM,
    Add,
    BatchNormalization,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    MaxPooling2D,
)
from lamella_onnx import TrainingSession, export, export_training_step, verify
from lamella_onnx.runtime import installed

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _draws_from_the_start():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def dense(seed=1, **options):
    return lm.Sequential([Dense(6, activation="tanh"), Dense(3)], input_shape=(4,), seed=seed, **options)


def convolutional():
    layers = [Conv2D(4, 3, use_bias=False), BatchNormalization(momentum=0.5), MaxPooling2D(), Flatten(), Dropout(0.3)]
    return lm.Sequential([*layers, Dense(3)], input_shape=(1, 8, 8), seed=2)


def batches(model, target=None, rows=(5, 1, 8)):
    """Batches for a model of one input and one output; labels unless a target is made of other numbers."""
    for count in rows:
        x = RNG.normal(size=(count, *model.input_specs[0].shape[1:]))
        y = RNG.integers(0, 3, count) if target is None else target(RNG, (count, *model.output_specs[0].shape[1:]))
        yield x, y


def everything(model):
    """Arrays and slots by name, and the counters of a model."""
    optimizer, counters, flat = model.optimizer_state.as_numpy()
    layout = model.values.parameters.layout
    slots = {f"{name}.{slot}": layout.part(flat[slot], name) for slot in flat for name in model.parameters}
    return {**model.parameters, **model.state, **slots}, (repr(optimizer), counters, model.step)


def same(session, model, tolerance=2e-5):
    """See that a session holds what a model holds, by giving it to another one."""
    twin = model.copy()
    for name, array in twin.parameters.items():
        if name in session.parameters:
            twin.parameters[name] = np.zeros_like(array)
    session.into(twin)
    (got, counters), (expected, own) = everything(twin), everything(model)
    assert counters == own
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def trained_alike(model, data, folder, *, loss="softmax_cross_entropy", optimizer="sgd", tolerance=2e-5, **options):
    """Take steps in onnxruntime and in the engine, and see that all is equal; return the session."""
    data = [(*batch, None)[:3] for batch in data]
    export_options = {name: options.pop(name) for name in ("opset", "samples") if name in options}
    report = export_training_step(model, folder, loss=loss, optimizer=optimizer, **options, **export_options)
    assert report.agrees
    session = TrainingSession(folder)
    for x, y, weight in data:
        told = model.train_on_batch(x, y, loss=loss, optimizer=optimizer, sample_weight=weight, **options)
        assert session.step(x, y, weight) == pytest.approx(told, rel=tolerance, abs=tolerance)
    same(session, model, tolerance)
    return session


OPTIMIZERS = [
    optimizers.SGD(0.1),
    optimizers.SGD(0.1, momentum=0.9),
    optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    optimizers.Adam(0.01),
    optimizers.AdamW(0.01, weight_decay=0.1),
    optimizers.RMSprop(0.01),
    optimizers.RMSprop(0.01, momentum=0.9),
    optimizers.RMSprop(0.01, centered=True),
    optimizers.Adagrad(0.05, initial_accumulator_value=0.1),
    optimizers.Adadelta(1.0),
    optimizers.Adam(0.01, amsgrad=True),
    optimizers.AdamW(0.01, weight_decay=0.5, amsgrad=True, exclude_from_weight_decay=("*.bias",)),
    optimizers.Nadam(0.01),
    optimizers.Adamax(0.01),
    optimizers.Lion(0.001, weight_decay=0.1, exclude_from_weight_decay="dense_1.*"),
    optimizers.GradientAccumulation(optimizers.Nadam(0.01), 2),
    optimizers.ExponentialMovingAverage(optimizers.SGD(0.1, momentum=0.9), 0.5),
    optimizers.LearningRateMultipliers(optimizers.SGD(0.1), {"dense_1.*": 0.5, "*.bias": 2.0}),
    optimizers.ExponentialMovingAverage(
        optimizers.LearningRateMultipliers(optimizers.AdamW(0.01, exclude_from_weight_decay="*.bias"), {"*.bias": 2.0})
    ),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_every_optimizer_takes_the_engines_steps(optimizer, tmp_path):
    model = dense()
    trained_alike(model, batches(model), tmp_path / "step", optimizer=optimizer)


def test_no_optimizer_or_loss_is_left_out():
    for kind, tried in (("optimizers", OPTIMIZERS), ("losses", [loss for loss, _ in LOSSES])):
        own = {e.object for e in lm.registry.entries(kind) if e.plugin.distribution == "lamella"}
        assert own - {losses.Weighted} == {type(one) for one in tried}


def labels(rng, shape):
    return rng.integers(0, shape[-1], shape[:-1])


def one_hot(rng, shape):
    return np.eye(shape[-1])[labels(rng, shape)]


def mixed(rng, shape):
    values = rng.uniform(0.1, 1.0, shape)
    return values / values.sum(axis=-1, keepdims=True)


def yes_no(rng, shape):
    return rng.integers(0, 2, shape)


def counts(rng, shape):
    return rng.poisson(2.0, shape)


LOSSES = [
    (losses.SoftmaxCrossEntropy(), labels),
    (losses.SoftmaxCrossEntropy(), one_hot),
    (losses.SoftmaxCrossEntropy(), mixed),
    (losses.CategoricalCrossEntropy(), labels),
    (losses.CategoricalCrossEntropy(), one_hot),
    (losses.SoftmaxCrossEntropy(label_smoothing=0.2), mixed),
    (losses.SoftmaxCrossEntropy(label_smoothing=0.2, ignore_class=1), labels),
    (losses.CategoricalCrossEntropy(label_smoothing=0.2, ignore_class=1), labels),
    (losses.SoftmaxFocalCrossEntropy(ignore_class=2), labels),
    (losses.KLDivergence(), mixed),
    (losses.BinaryCrossEntropy(), yes_no),
    (losses.BinaryCrossEntropy(label_smoothing=0.1), yes_no),
    (losses.BinaryCrossEntropy(from_logits=False), yes_no),
    (losses.BinaryFocalCrossEntropy(1.5, 0.25), yes_no),
    (losses.Hinge(), yes_no),
    (losses.Poisson(), counts),
    (losses.Poisson(log_input=True), counts),
    (losses.MeanSquaredError(), lambda rng, shape: rng.normal(size=shape)),
    (losses.MeanAbsoluteError(), lambda rng, shape: rng.normal(size=shape)),
    (losses.Huber(0.5), lambda rng, shape: rng.normal(size=shape)),
    (losses.LogCosh(), lambda rng, shape: rng.normal(size=shape)),
    (losses.CosineSimilarity(), lambda rng, shape: rng.normal(size=shape)),
]
ENDS = {"CategoricalCrossEntropy": "softmax", "KLDivergence": "softmax", "Poisson()": "softplus", "False": "sigmoid"}


@pytest.mark.parametrize(("loss", "target"), LOSSES, ids=[f"{a!r}-{b.__name__}" for a, b in LOSSES])
def test_every_loss_with_the_targets_of_samples(loss, target, tmp_path):
    ends = next((end for part, end in ENDS.items() if part in repr(loss)), None)
    model = lm.Sequential([Dense(6, activation="tanh"), Dense(3, activation=ends)], input_shape=(4,), seed=3)
    data = list(batches(model, target))
    trained_alike(model, data, tmp_path / "step", loss=loss, optimizer="adam", samples=data[0])


def test_losses_find_their_targets_without_samples(tmp_path):
    for loss in (losses.Hinge(), losses.Poisson(log_input=True), losses.CosineSimilarity(), losses.LogCosh()):
        assert export_training_step(dense(), tmp_path / "step", loss=loss, optimizer="sgd").agrees


def test_labels_that_do_not_count_in_sequences_and_with_weights(tmp_path):
    model = lm.Sequential([Dense(6, activation="tanh"), Dense(3)], input_shape=("T", 4), seed=3)
    rng, loss = np.random.default_rng(0), losses.SoftmaxCrossEntropy(ignore_class=-1)
    data = [
        (rng.normal(size=(rows, 5, 4)), rng.integers(-1, 3, (rows, 5)), rng.uniform(size=rows)) for rows in (6, 3, 8)
    ]
    session = trained_alike(model, data, tmp_path / "step", loss=loss, optimizer="adam", samples=data[0])
    x, y, weight = data[0]
    told = model.evaluate(x, y, loss=loss, metrics="accuracy", sample_weight=weight)
    assert session.evaluate(x, y, metrics="accuracy", sample_weight=weight) == pytest.approx(told, rel=1e-4)


RULES = {
    "clip_value": {"clip_value": 0.01},
    "clip_norm": {"clip_norm": 0.1},
    "penalties": {"penalties": {"*.kernel": regularization.L2(0.1), "dense_1.*": regularization.L1(0.01)}},
    "constraints": {"constraints": {"*.kernel": regularization.MaxNorm(0.5)}},
    "all": {
        "clip_value": 0.5,
        "clip_norm": 0.2,
        "penalties": {"*": regularization.L2(0.1)},
        "constraints": {"*.kernel": regularization.MaxNorm(0.5)},
    },
}


@pytest.mark.parametrize("rules", RULES)
def test_rules_are_part_of_the_step(rules, tmp_path):
    model = dense()
    trained_alike(model, batches(model), tmp_path / "step", optimizer="adam", **RULES[rules])


def test_rows_have_weights_of_0_among_them(tmp_path):
    model = dense()
    data = [(x, y, np.arange(len(x)) % 3.0) for x, y in batches(model, rows=(5, 8, 2))]
    trained_alike(model, data, tmp_path / "step", samples=data[0])


def test_statistics_and_dropout_are_the_engines(tmp_path):
    model = convolutional()
    session = trained_alike(model, batches(model, rows=(8, 6, 7)), tmp_path / "step", optimizer="adam", tolerance=2e-4)
    assert set(session.state) == {"batch_normalization_1.mean", "batch_normalization_1.variance"}


@pytest.mark.parametrize("layer", [Dropout(0.5), GaussianNoise(1.0)])
def test_random_numbers_are_bit_equal_at_any_seed_and_step(layer, tmp_path):
    """With inputs and weights of 1, one entry that is dropped or not moves a weight by a third of the rate."""
    model = lm.Sequential([layer, Dense(1, kernel_initializer="ones")], input_shape=(64,), seed=2**63 + 12345)
    model.step = 2**32 - 2
    x, y = np.ones((4, 64)), np.zeros((4, 1))  # powers of 2: all sums are exact
    optimizer = optimizers.SGD(2.0**-10)
    export_training_step(model, tmp_path / "step", loss="mean_absolute_error", optimizer=optimizer)
    session = TrainingSession(tmp_path / "step")
    for _ in range(4):  # across the step at which 32 bits begin again
        session.step(x, y)
        model.train_on_batch(x, y, loss="mean_absolute_error", optimizer=optimizer)
        got, expected = session.parameters["dense_1.kernel"], model.parameters["dense_1.kernel"]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert session.steps == model.step == 2**32 + 2


def test_frozen_layers_are_constants_and_only_the_head_trains(tmp_path):
    model = convolutional()
    model.freeze("conv2d_1")
    model.freeze("batch_normalization_1")
    before = {name: array.copy() for name, array in {**model.parameters, **model.state}.items()}
    session = trained_alike(model, batches(model), tmp_path / "step", optimizer="adam")
    assert set(session.parameters) == {"dense_1.kernel", "dense_1.bias"}
    assert session.state == {}
    for name in ("conv2d_1.kernel", "batch_normalization_1.mean", "batch_normalization_1.gamma"):
        np.testing.assert_array_equal(model.parameters.get(name, model.state.get(name)), before[name])
    held = load_file(tmp_path / "step" / "state.safetensors")
    assert not [name for name in held if name.startswith(("conv2d", "batch_norm"))]
    for graph in ("train.onnx", "predict.onnx"):
        constants = {array.name for array in onnx.load(tmp_path / "step" / graph).graph.initializer}
        assert {"conv2d_1.kernel", "batch_normalization_1.mean"} <= constants
    x = RNG.normal(size=(3, 1, 8, 8))
    np.testing.assert_allclose(session.predict(x), model.predict(x), atol=1e-5)


def test_several_inputs_and_outputs_one_of_which_has_no_loss(tmp_path):
    a, b = lm.Input((4,), name="a"), lm.Input((2, 3), name="b")
    joined = Concatenate()(Dense(3, activation="tanh")(a), Flatten()(b))
    outputs = Dense(3).named("kind")(joined), Dense(1).named("size")(joined), joined
    model = lm.Model([a, b], outputs, seed=4)
    loss = (losses.Weighted("softmax_cross_entropy", 0.5), "mean_squared_error", None)
    rows = 6
    x = {"a": RNG.normal(size=(rows, 4)), "b": RNG.normal(size=(rows, 2, 3))}
    y = (RNG.integers(0, 3, rows), RNG.normal(size=(rows, 1)), None)
    weight = (np.arange(rows), np.ones(rows), np.ones(rows))
    session = trained_alike(model, [(x, y, weight), (x, y)], tmp_path / "step", loss=loss, optimizer="adam")
    for got, expected in zip(session.predict(x), model.predict(x), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("layer", [LSTM(5), GRU(5, return_sequences=True)])
def test_axes_of_any_size_and_integer_inputs(layer, tmp_path):
    ids = lm.Input(("T",), "int64", low=0, high=9)
    x = Dense(3)(layer(Embedding(9, 4)(ids)))
    model = lm.Model(ids, x, seed=5)
    data = []
    for rows, time in ((3, 5), (2, 1), (4, 7)):
        shape = (rows, time) if layer.return_sequences else (rows,)
        data.append((RNG.integers(0, 9, (rows, time)), RNG.integers(0, 3, shape)))
    trained_alike(model, data, tmp_path / "step", optimizer="adam", tolerance=1e-4)


def test_float64_stays_float64(tmp_path):
    model = dense(dtype="float64")
    session = trained_alike(model, batches(model), tmp_path / "step", optimizer="adam", tolerance=1e-11)
    assert session.parameters["dense_1.kernel"].dtype == "float64"


@pytest.mark.parametrize("opset", sorted({18, 21, 23, min(installed().opset, onnx.defs.onnx_opset_version())}))
def test_opsets(opset, tmp_path):
    model = convolutional()
    trained_alike(model, batches(model), tmp_path / "step", optimizer="adam", opset=opset, tolerance=2e-4)
    assert onnx.load(tmp_path / "step" / "train.onnx").opset_import[0].version == opset


def test_the_learning_rate_follows_its_schedule_or_the_caller(tmp_path):
    optimizer = optimizers.SGD(schedules.WarmUp(schedules.Cosine(0.5, 6), 3))
    model = dense()
    model.train_on_batch(np.ones((2, 4)), [0, 1], loss="softmax_cross_entropy", optimizer=optimizer)
    session = trained_alike(model, batches(model, rows=(3,) * 6), tmp_path / "step", optimizer=optimizer)
    assert session.learning_rate == pytest.approx(schedules.learning_rate_at(optimizer.learning_rate, 8))
    before = session.parameters["dense_2.bias"]
    session.step(np.ones((2, 4)), [0, 1], learning_rate=0.0)
    np.testing.assert_array_equal(session.parameters["dense_2.bias"], before)


def test_training_goes_on_from_the_models_slots_and_missed_steps(tmp_path):
    model, optimizer = dense(), optimizers.Adam(0.01)
    data = list(batches(model, rows=(4, 4, 4, 4, 4)))
    for k, (x, y) in enumerate(data):
        (model.freeze if k in (1, 2) else model.unfreeze)("dense_1")
        model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer=optimizer)
    assert model.optimizer_state.missed["dense_1.kernel"] == 2
    session = trained_alike(model, data, tmp_path / "step", optimizer=optimizer)
    assert session.steps == 10
    other = dense(seed=9)
    session.into(other)
    assert other.optimizer_state.missed == model.optimizer_state.missed


def test_the_model_is_not_changed_by_an_export(tmp_path):
    model = convolutional()
    model.train_on_batch(*next(batches(model)), loss="softmax_cross_entropy", optimizer="adam")
    before = everything(model)
    export_training_step(model, tmp_path / "step", loss="softmax_cross_entropy", optimizer="adam")
    after = everything(model)
    assert after[1] == before[1]
    for name, array in before[0].items():
        np.testing.assert_array_equal(after[0][name], array)


def test_a_state_goes_on_where_it_was_saved(tmp_path):
    model = convolutional()
    data = list(batches(model, rows=(6, 6)))
    export_training_step(model, tmp_path / "step", loss="softmax_cross_entropy", optimizer="adam")
    first, second = TrainingSession(tmp_path / "step"), TrainingSession(tmp_path / "step")
    first.step(*data[0])
    first.save_state(tmp_path / "state")
    told = first.step(*data[1])
    second.load_state(tmp_path / "state")
    assert second.steps == 1
    assert second.step(*data[1]) == told
    for name, array in first.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], array)
    second.load_state(tmp_path / "step" / "state.safetensors")  # from the start again
    assert second.steps == 0
    third = model.copy()
    third.load_weights(tmp_path / "state", mapping={})
    np.testing.assert_array_equal(third.parameters["dense_1.bias"], load_file(tmp_path / "state")["dense_1.bias"])


def test_predict_evaluate_and_export_are_those_of_the_model(tmp_path):
    model = convolutional()
    export_training_step(model, tmp_path / "step", loss="softmax_cross_entropy", optimizer="adam")
    session = TrainingSession(tmp_path / "step", threads=1)
    for x, y in batches(model, rows=(6, 6)):
        session.step(x, y)
    session.into(model)
    x, y = next(batches(model, rows=(11,)))
    expected = model.predict(x)
    for size in (None, 1, 4, 100):
        np.testing.assert_allclose(session.predict(x, size), expected, atol=1e-5)
    assert session.predict(x[:0]).shape == (0, 3)
    softmax = lm.layer("activation", function="softmax")
    np.testing.assert_allclose(session.predict(x, 4, append=softmax), model.predict(x, append=softmax), atol=1e-5)
    session.step(*next(batches(model, rows=(6,))))
    assert abs(session.predict(x, append=softmax) - model.predict(x, append=softmax)).max() > 1e-4
    session.into(model)
    options = {"metrics": ["accuracy"], "sample_weight": np.arange(11), "batch_size": 4}
    told = session.evaluate(x, y, **options)
    assert told == pytest.approx(model.evaluate(x, y, loss="softmax_cross_entropy", **options), rel=1e-5)
    report = session.export(tmp_path / "trained.onnx", samples=x, append=lm.layer("activation", function="softmax"))
    assert report.agrees
    assert verify(tmp_path / "trained.onnx").agrees
    export(model, tmp_path / "own.onnx")


def test_a_step_that_is_not_finite_leaves_everything_as_it_was(tmp_path):
    model = convolutional()
    export_training_step(model, tmp_path / "step", loss="softmax_cross_entropy", optimizer="adam")
    session = TrainingSession(tmp_path / "step")
    (x, y), (odd, _) = batches(model, rows=(6, 6))
    session.step(x, y)
    before = session.parameters, session.state, session.steps, session.learning_rate
    session.save_state(tmp_path / "before")
    odd[3, 0, 2, 2] = np.nan
    with pytest.raises(lm.NonFiniteError, match="step 1: the loss is nan.*nothing of this step was kept"):
        session.step(odd, y)
    session.save_state(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    assert session.steps == before[2]
    told = session.step(x, y)
    other = TrainingSession(tmp_path / "step")
    other.load_state(tmp_path / "before")
    assert other.step(x, y) == told


class Scale(lm.Layer):
    """Array code only: no ONNX kernel, no expected operators."""

    def __init__(self, power: float = 1.5):
        self.power = power

    def build(self, declare, x):
        declare.parameter("gain", (x.shape[-1],), "ones")
        return x

    def forward_pass(self, ctx, x):
        size = ctx.xp.sqrt(ctx.xp.sum(x * x, axis=-1, keepdims=True) + 1.0)
        ctx.save(x, size)
        return self.power * ctx.params.gain * x / size

    def backward_pass(self, ctx, dy):
        (x, size), xp = ctx.saved, ctx.xp
        ctx.grad(gain=xp.sum(self.power * dy * x / size, axis=0))
        d = self.power * dy * ctx.params.gain
        return d / size - x * xp.sum(d * x, axis=-1, keepdims=True) / (size * size * size)


class Cosh(losses.Loss):
    def forward(self, ctx, prediction, target):
        r = prediction - target
        ctx.save(r)
        return ctx.xp.mean(ctx.xp.log(0.5 * (ctx.xp.exp(r) + ctx.xp.exp(-r))), axis=1)

    def backward(self, ctx, d):
        (r,) = ctx.saved
        return ctx.xp.tanh(r) * d[:, None] / r.shape[1]


class SignMomentum(optimizers.Optimizer):
    slots = {"velocity": 0.5}  # noqa: RUF012  # as in a plugin

    def __init__(self, learning_rate: float = 0.01, keep: float = 0.8):
        self.learning_rate, self.keep = learning_rate, keep

    def update(self, xp, p, g, slots, lr, t):
        v = self.keep * slots["velocity"] + g
        return p - lr * v / (xp.abs(v) + 0.1), {"velocity": v}


@pytest.fixture
def registered():
    for name, cls in (("scale", Scale), ("center", Center), ("cosh", Cosh), ("sign_momentum", SignMomentum)):
        lm.register(name)(cls)


@pytest.mark.usefixtures("registered")
def test_layers_losses_and_optimizers_of_others_need_array_code_only(tmp_path):
    model = lm.Sequential([Dense(5), Center(), Scale(), Dense(2)], input_shape=(4,), seed=6)
    data = list(batches(model, lambda rng, shape: rng.normal(size=shape)))
    session = trained_alike(model, data, tmp_path / "step", loss=Cosh(), optimizer=SignMomentum())
    assert "center_1.mean" in session.state


def test_one_array_may_stand_at_several_places(tmp_path):
    x = lm.Input((4,))
    shared = Dense(4)
    model = lm.Model(x, Dense(3)(Add()(shared(x), shared(shared(x)))), seed=7)
    trained_alike(model, batches(model), tmp_path / "step", optimizer="adam")


@pytest.mark.parametrize("activation", ["elu", "selu"])
def test_values_near_0_keep_their_digits(activation, tmp_path):
    """After one small step from zeros, exp(x) - 1 as onnxruntime's operators compute it has no digit right."""
    layers = [Dense(4, use_bias=False, kernel_initializer="zeros"), Dense(4, activation=None)]
    model = lm.Sequential([layers[0], lm.layer("activation", function=activation), layers[1]], input_shape=(2,), seed=3)
    data = batches(model, lambda rng, shape: rng.normal(size=shape))
    trained_alike(model, data, tmp_path / "step", loss="mean_absolute_error", optimizer=optimizers.SGD(1e-5))


def test_a_folder_is_replaced_whole_and_graphs_use_standard_operators(tmp_path):
    for units in (6, 5):
        model = lm.Sequential([Dense(units), Dense(3)], input_shape=(4,))
        report = export_training_step(model, tmp_path / "step", loss="softmax_cross_entropy", optimizer="adam")
    files = {"predict.onnx", "state.safetensors", "train.onnx", "training.json"}
    assert {path.name for path in (tmp_path / "step").iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    assert TrainingSession(tmp_path / "step").parameters["dense_1.bias"].shape == (5,)
    for graph in ("train.onnx", "predict.onnx"):
        proto = onnx.load(tmp_path / "step" / graph)
        assert {node.domain for node in proto.graph.node} == {""}
        assert [entry.domain for entry in proto.opset_import] == [""]
    table = str(report)
    for words in ("losses: training.loss", "gradients: ", "new parameters: ", "new slots: ", "predictions: dense_2"):
        assert words in table
    assert len(report.agreements) <= 10


@pytest.mark.parametrize(("offset", "native"), [(0.0, True), (1e4, False)])
def test_values_far_from_0_get_the_graph_with_most_digits(offset, native, tmp_path):
    model = lm.Sequential([BatchNormalization(), Flatten(), Dense(2)], input_shape=(3, 4, 4))
    x = (offset + np.random.default_rng(0).standard_normal((64, 3, 4, 4))).astype("float32")
    y = np.random.default_rng(1).integers(0, 2, 64)
    task = {"loss": "softmax_cross_entropy", "optimizer": optimizers.SGD(0.1)}
    export_training_step(model, tmp_path / "step", samples=(x, y), **task)
    graph = onnx.load(tmp_path / "step" / "train.onnx").graph
    assert ("BatchNormalization" in {node.op_type for node in graph.node}) == native
    session, before = TrainingSession(tmp_path / "step"), dict(model.parameters)
    session.step(x, y)
    model.train_on_batch(x, y, **task)
    for name, array in model.parameters.items():
        change = np.abs(array - before[name]).max()
        assert np.abs(session.parameters[name] - array).max() <= 1e-4 * change + 1e-7, name
