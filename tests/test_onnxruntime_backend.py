"""The backend ``onnxruntime``: training and inference as on NumPy, run by stock onnxruntime."""

import multiprocessing
import threading

import numpy as np
import pytest

import lamella as lm
import lamella_onnx
from lamella_layers import (
    LSTM,
    RNN,
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    MaxPooling2D,
    PositionEmbedding,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((120, 1, 8, 8)).astype("float32")
LABELS = RNG.integers(0, 4, 120)
OTHERS = {"loss": "softmax_cross_entropy", "progress": False}


def images(backend="onnxruntime", **options):
    layers = [Conv2D(4, 3, activation="relu"), BatchNormalization(), MaxPooling2D(), Flatten(), Dropout(0.3), Dense(4)]
    return lm.Sequential(layers, input_shape=(1, 8, 8), backend=backend, **options)


def dense(backend="onnxruntime", units=16, **options):
    return lm.Sequential([Dense(units, activation="relu"), Dense(3)], input_shape=5, backend=backend, **options)


def rows(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 5)).astype("float32"), rng.integers(0, 3, count)


def assert_same(a, b, tolerance=2e-5):
    for name in (*a.parameters, *a.state):
        own, other = (m.parameters[name] if name in m.parameters else m.state[name] for m in (a, b))
        np.testing.assert_allclose(other, own, rtol=tolerance, atol=tolerance, err_msg=name)
    assert a.step == b.step


def test_training_is_that_of_numpy():
    """History with metrics and validation, weights of rows, penalties, clips, constraints, statistics, dropout."""
    given = {
        "metrics": "accuracy", "epochs": 3, "validation_data": (IMAGES[:50], LABELS[:50]), "clip_norm": 1.0,
        "penalties": {"*.kernel": lm.regularization.L2(1e-3)}, "class_weight": {0: 2.0},
        "constraints": {"dense*.kernel": lm.regularization.MaxNorm(1.0)}, "optimizer": lm.optimizers.SGD(0.05, 0.9),
    }  # fmt: skip
    both = [images(backend) for backend in ("numpy", "onnxruntime")]
    numpy, other = (model.fit(IMAGES, LABELS, **OTHERS, **given).history for model in both)
    assert other.keys() == numpy.keys()
    for name, values in numpy.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-5, err_msg=name)
    assert_same(*both)
    results = [model.evaluate(IMAGES, LABELS, loss="softmax_cross_entropy", metrics="accuracy") for model in both]
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    np.testing.assert_allclose(both[1].predict(IMAGES), both[0].predict(IMAGES), atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta"])
def test_optimizers(optimizer):
    x, y = rows()
    both = [dense(backend) for backend in ("numpy", "onnxruntime")]
    for model in both:
        for _ in range(5):
            model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer=optimizer)
    assert_same(*both, tolerance=1e-4 if optimizer == "adam" else 2e-5)
    slots = [model.optimizer_state.as_numpy()[2] for model in both]
    for name, slot in slots[0].items():
        np.testing.assert_allclose(slots[1][name], slot, rtol=1e-4, atol=1e-6)


def test_equal_settings_give_equal_bits():
    def trained():
        model = images()
        model.fit(IMAGES, LABELS, optimizer="adam", epochs=2, **OTHERS)
        return model

    first, second = trained(), trained()
    for name, array in first.parameters.items():
        assert array.tobytes() == second.parameters[name].tobytes(), name
    assert first.predict(IMAGES).tobytes() == second.predict(IMAGES).tobytes() == first.predict(IMAGES).tobytes()


def test_training_resumes_with_equal_bits(tmp_path):
    class Stop(lm.callbacks.Callback):
        def on_batch_end(self, model, batch, logs):
            if model.step == 11:
                raise KeyboardInterrupt

    given = {
        "optimizer": "adam",
        "epochs": 3,
        "batch_size": 16,
        "validation_data": (IMAGES[:33], LABELS[:33]),
        **OTHERS,
    }
    whole, cut = images(), images()
    history = whole.fit(IMAGES, LABELS, **given).history
    cut.fit(IMAGES, LABELS, callbacks=[Stop()], checkpoint=tmp_path / "a.lamella", **given)
    again = images()
    resumed = again.fit(IMAGES, LABELS, checkpoint=tmp_path / "a.lamella", resume=True, **given).history
    assert resumed == history
    for name, array in whole.parameters.items():
        assert array.tobytes() == again.parameters[name].tobytes(), name


def test_a_model_moves_there_and_back_in_the_midst_of_training():
    x, y = rows()
    moved, stays = dense("numpy"), dense("numpy")
    for backend in ("numpy", "onnxruntime", "numpy", "onnxruntime"):
        moved.to(backend)
        for model in (moved, stays):
            model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="rmsprop")
    assert moved.backend == "onnxruntime"
    assert_same(stays, moved)


def test_arrays_read_and_write_as_ever():
    x, y = rows()
    models = [dense(backend) for backend in ("numpy", "onnxruntime")]
    for model in models:
        model.fit(x, y, optimizer="adam", **OTHERS)
        model.parameters["dense_1.kernel"] = np.full((5, 16), 0.1)
        model.freeze("dense_1")
        model.fit(x, y, optimizer="adam", **OTHERS)
        model.parameters["dense_1.bias"] = np.full(16, 0.5)  # frozen, and seen all the same
        model.fit(x, y, optimizer="adam", **OTHERS)
        model.unfreeze()
        model.fit(x, y, optimizer="adam", **OTHERS)
    assert_same(*models)


def test_predictions_follow_training():
    """Whether weights stand in the graph or are its inputs, they are those of now."""
    x, y = rows()
    models = [dense(backend) for backend in ("numpy", "onnxruntime")]
    for times in (1, 3, 0, 2, 1, 1, 4):
        for model in models:
            model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="sgd")
        for _ in range(times):
            np.testing.assert_allclose(models[1].predict(x), models[0].predict(x), rtol=1e-5, atol=1e-6)
    for model in models:
        model.parameters["dense_2.bias"] = [1, 2, 3]
    np.testing.assert_allclose(models[1].predict(x[:1]), models[0].predict(x[:1]), rtol=1e-5, atol=1e-6)
    assert models[1].predict(x[:0]).shape == (0, 3)


def test_schedules_and_callbacks_change_the_learning_rate():
    x, y = rows()
    models = [dense(backend) for backend in ("numpy", "onnxruntime")]
    for model in models:
        optimizer = lm.optimizers.SGD(lm.schedules.Cosine(0.1, steps=20))
        callbacks = [lm.callbacks.ReduceOnPlateau("loss", patience=1, factor=0.5)]
        model.fit(x, y, optimizer=optimizer, epochs=6, callbacks=callbacks, **OTHERS)
        model.fit(x, y, optimizer=lm.optimizers.SGD(0.2), epochs=2, **OTHERS)
    assert_same(*models)


def test_several_inputs_and_outputs_and_sizes():
    def model(backend):
        words, numbers = lm.Input(("T",), dtype="int32", name="words"), lm.Input((3,), name="numbers")
        states = LSTM(6)(Embedding(10, 4)(words))
        tags, kind = Dense(5).named("tags")(states), Dense(2).named("kind")(numbers)
        return lm.Model([words, numbers], [tags, kind], backend=backend)

    models = [model(backend) for backend in ("numpy", "onnxruntime")]
    loss = {"tags": "softmax_cross_entropy", "kind": lm.losses.Weighted("mean_squared_error", 0.5)}
    for steps in (4, 7, 4, 1):
        rng = np.random.default_rng(steps)
        x = {"words": rng.integers(0, 10, (6, steps)), "numbers": rng.standard_normal((6, 3))}
        y = {"tags": rng.integers(0, 5, (6, steps)), "kind": rng.standard_normal((6, 2))}
        weights = {"tags": np.arange(6.0), "kind": np.ones(6)}
        own, other = (one.train_on_batch(x, y, loss=loss, optimizer="rmsprop", sample_weight=weights) for one in models)
        assert other == pytest.approx(own, rel=1e-5)
        for a, b in zip(*(one.predict(x) for one in models), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
    assert_same(*models, tolerance=1e-4)


def test_float64():
    x, y = rows()
    models = [dense(backend, dtype="float64") for backend in ("numpy", "onnxruntime")]
    for model in models:
        model.fit(x, y, optimizer="adam", epochs=3, **OTHERS)
    assert_same(*models, tolerance=1e-10)


def test_a_layer_that_cannot_be_traced_is_refused_with_the_reason():
    class Branches(lm.Layer):
        def build(self, declare, x):
            return x

        def forward_pass(self, ctx, x):
            return x if float(ctx.xp.max(x)) > 0 else -x

    model = lm.Sequential([Branches()], input_shape=3)
    with pytest.raises(lamella_onnx.TraceError, match=r"branches_1 \(Branches\).*can't become a number"):
        model.to("onnxruntime")
    assert model.backend == "numpy"
    assert model.predict(np.ones((1, 3))).shape == (1, 3)


def test_a_loss_that_cannot_be_traced_is_told_when_training_begins():
    class Odd(lm.losses.Loss):
        def forward(self, ctx, prediction, target):
            return ctx.xp.zeros((int(ctx.xp.sum(target)),))

        def backward(self, ctx, d):
            return d

    x, _ = rows(4)
    model = dense()
    with pytest.raises(lm.LayerError, match="Odd.*can't become a number"):
        model.train_on_batch(x, np.ones((4, 3)), loss=Odd(), optimizer="sgd")
    assert model.step == 0


@pytest.mark.parametrize("bound", [{}, {"clip_value": 1.0}])
def test_a_step_that_is_not_finite_changes_nothing_and_names_the_layer(bound):
    x, y = rows()
    x = x.clip(-1, 1)
    model = dense()
    model.fit(x, y, optimizer="adam", **OTHERS)
    before, step = dict(model.parameters), model.step
    with pytest.raises(lm.NonFiniteError, match="step 2: the loss is .* not finite is dense_1 "):
        model.train_on_batch(x * np.float32(1e38) * 3, y, loss="softmax_cross_entropy", optimizer="adam", **bound)
    assert model.step == step
    assert all(np.array_equal(before[name], array) for name, array in model.parameters.items())
    twin = dense("numpy")
    twin.fit(x, y, optimizer="adam", **OTHERS)
    for one in (model, twin):
        one.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")
    assert_same(twin, model, tolerance=1e-4)


def test_other_threads_predict_while_one_trains():
    x, y = rows(64)
    model, failures = dense(), []
    done = threading.Event()

    def predict():
        try:
            while not done.is_set():
                assert np.isfinite(model.predict(x)).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    model.fit(x, y, optimizer="sgd", epochs=30, batch_size=8, **OTHERS)
    done.set()
    for thread in threads:
        thread.join()
    twin = dense()
    twin.fit(x, y, optimizer="sgd", epochs=30, batch_size=8, **OTHERS)
    assert not failures
    assert all(np.array_equal(array, twin.parameters[name]) for name, array in model.parameters.items())


def test_a_file_and_an_export_are_those_of_the_model(tmp_path):
    x, y = rows()
    model = dense()
    model.fit(x, y, optimizer="adam", **OTHERS)
    model.save(tmp_path / "a.lamella")
    loaded = lm.load(tmp_path / "a.lamella", backend="onnxruntime")
    assert loaded.backend == "onnxruntime"
    assert loaded.predict(x).tobytes() == model.copy().predict(x).tobytes()
    assert lamella_onnx.export(model, tmp_path / "a.onnx").agrees
    assert lamella_onnx.verify(tmp_path / "a.onnx", model=model).agrees


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system can't fork")
def test_a_forked_child_predicts_and_trains():
    x, y = rows()
    model = dense()
    model.fit(x, y, optimizer="adam", **OTHERS)
    expected, context = model.predict(x), multiprocessing.get_context("fork")
    results = context.Queue()

    def child():
        same = np.array_equal(model.predict(x), expected)
        loss = model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")
        results.put((same, loss))

    process = context.Process(target=child)
    process.start()
    same, loss = results.get(timeout=60)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert same
    assert loss == pytest.approx(model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam"), rel=1e-6)


def test_a_large_batch_runs_in_parts(monkeypatch):
    from lamella_onnx.backend import inference

    x, _ = rows(50)
    whole = dense()
    monkeypatch.setattr(inference, "LARGEST", 1000)
    parts = dense()
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), rtol=1e-6)


def test_gradients_and_recurrent_layers():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((6, 9, 3)), rng.integers(0, 2, 6)

    def model(backend):
        layers = [RNN(5), LSTM(4, return_sequences=False), Dense(2), Activation("tanh")]
        return lm.Sequential(layers, input_shape=("T", 3), backend=backend)

    models = [model(backend) for backend in ("numpy", "onnxruntime")]
    for one in models:
        one.fit(x, y, optimizer="sgd", epochs=3, **OTHERS)
    assert_same(*models)
    losses = [one.gradients(x, y, loss="softmax_cross_entropy")[0] for one in models]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class NonNegative(lm.regularization.Constraint):
    def apply(self, xp, p):
        return xp.clip(p, 0.0, None)


class Sign(lm.optimizers.Optimizer):
    def __init__(self, learning_rate=0.1):
        self.learning_rate = learning_rate

    def update(self, xp, p, g, slots, lr, t):
        return p - lr * xp.astype(g > 0.0, p.dtype) + lr * xp.astype(g < 0.0, p.dtype), {}


@pytest.mark.parametrize(
    "hiding",
    [
        {"optimizer": lm.optimizers.SGD(0.1, 0.9), "constraints": {"*": NonNegative()}},
        {"optimizer": Sign()},
        {"optimizer": "sgd", "clip_value": 1.0},
    ],
)
def test_an_infinite_gradient_is_told_though_the_update_hides_it(hiding):
    model = lm.Sequential([Dense(1, use_bias=False)], input_shape=2, backend="onnxruntime")
    model.parameters["dense_1.kernel"] = np.zeros((2, 1))
    x, y = np.full((4, 2), 3e38, "float32"), np.full((4, 1), -1e18, "float32")
    with pytest.raises(lm.NonFiniteError, match="a gradient is not finite"):
        model.train_on_batch(x, y, loss="mean_squared_error", **hiding)
    assert model.step == 0


def test_large_gradients_are_clipped_as_on_numpy():
    """Their sum overflows, and they do not."""
    models = [lm.Sequential([Dense(1)], input_shape=8, backend=backend) for backend in ("numpy", "onnxruntime")]
    for model in models:
        model.parameters["dense_1.kernel"] = np.zeros((8, 1))
        x = np.full((1, 8), 5e37)
        model.train_on_batch(x, [[-1.0]], loss="mean_squared_error", optimizer="sgd", clip_norm=1.0)
    assert_same(*models)


def test_nothing_to_train_and_nothing_to_clip():
    model = dense()
    model.freeze()
    x, y = rows()
    loss = model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="sgd", clip_norm=1.0)
    assert loss == pytest.approx(model.evaluate(x, y, loss="softmax_cross_entropy")["loss"], rel=1e-5)


def test_a_nan_that_max_pooling_drops_is_told():
    model = lm.Sequential([MaxPooling2D(2), Flatten(), Dense(1)], input_shape=(1, 2, 2), backend="onnxruntime")
    x = np.array([[[[np.nan, 1.0], [2.0, 3.0]]]])
    with pytest.raises(lm.NonFiniteError, match="Input 'input_1' holds values that are not finite"):
        model.train_on_batch(x, [[1.0]], loss="mean_squared_error", optimizer="sgd")


def test_equal_weights_predict_equal_bits_whatever_came_before(tmp_path):
    """A copy, a file and a resumed training predict as the model does that trained and predicted in turns."""
    x, y = rows(64)
    model = dense(units=200)
    for _ in range(3):
        model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")
        expected = model.predict(x[:33])
    model.save(tmp_path / "a.lamella")
    again = lm.load(tmp_path / "a.lamella", backend="onnxruntime")
    for other in (model, model.copy(), again):
        other.predict(x)
        assert other.predict(x[:33]).tobytes() == expected.tobytes()


def test_data_that_onnxruntime_refuses_get_the_error_of_the_layer():
    layers = [PositionEmbedding(3), Dense(2)]
    model = lm.Sequential(layers, input_shape=("T", 4), backend="onnxruntime")
    x, words = np.ones((2, 5, 4)), r"position_embedding_1 \(PositionEmbedding\)"
    with pytest.raises(lm.LayerError, match=words):
        model.predict(x)
    with pytest.raises(lm.LayerError, match=words):
        model.train_on_batch(x, np.zeros((2, 5), int), loss="softmax_cross_entropy", optimizer="sgd")
    assert model.step == 0


def test_random_numbers_follow_the_seed_of_now():
    models = [lm.Sequential([Dropout(0.5), Dense(3)], input_shape=5, backend=one) for one in ("numpy", "onnxruntime")]
    x, y = rows()
    for seed in (0, 5, 2**40 + 3, 5, 1, 2**64 - 1):
        for model in models:
            model.seed = seed
            model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="sgd")
        assert_same(*models)
