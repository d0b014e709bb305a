"""Training: fit, evaluate, predict and single steps, and the errors that data meets."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
from sample_layers import Add

import lamella as lm
from lamella.terminal import Terminal
from lamella.training.progress import Progress
from lamella_layers import (
    Activation,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Rescaling,
    Reshape,
)

CROSS_ENTROPY = "softmax_cross_entropy"


def classes(rows=60, seed=0):
    """Three classes in four dimensions, well apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    return rng.normal(size=(rows, 4)).astype("float32") + 4.0 * np.eye(4)[y], y


def classifier(**options):
    return lm.Sequential([Dense(16, activation="relu"), Dense(3)], input_shape=4, **options)


def test_fit_learns_and_keeps_a_history():
    x, y = classes()
    model = classifier()
    history = model.fit(
        x, y, loss=CROSS_ENTROPY, optimizer=lm.optimizers.Adam(0.02), epochs=20, batch_size=16, metrics=["accuracy"],
        validation_data=classes(seed=1), progress=False,
    )  # fmt: skip
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history.epochs == 20
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["val_accuracy"][-1] > 0.85
    assert model.step == 20 * math.ceil(60 / 16)
    found = model.evaluate(*classes(seed=1), loss=CROSS_ENTROPY, metrics=["accuracy", "top_k_accuracy"][:1])
    assert found["accuracy"] == pytest.approx(history["val_accuracy"][-1])
    assert found["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)
    assert "20 epochs" in repr(history)


def test_every_optimizer_and_loss_name_trains():
    x, y = classes()
    hot = np.eye(3)[y]
    losses = {CROSS_ENTROPY: y, "mean_squared_error": hot, "mean_absolute_error": hot, "huber": hot,
              "binary_cross_entropy": hot}  # fmt: skip
    for loss, target in losses.items():
        model = classifier()
        first = model.evaluate(x, target, loss=loss)["loss"]
        model.fit(x, target, loss=loss, optimizer="adam", epochs=8, progress=False)
        assert model.evaluate(x, target, loss=loss)["loss"] < first
    for optimizer in ("sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta"):
        model = classifier()
        first = model.evaluate(x, y, loss=CROSS_ENTROPY)["loss"]
        model.fit(x, y, loss=CROSS_ENTROPY, optimizer=optimizer, epochs=4, progress=False)
        assert model.evaluate(x, y, loss=CROSS_ENTROPY)["loss"] < first


@pytest.mark.smoke
def test_equal_seeds_give_equal_bits_and_backends_agree():
    def trained(**options):
        layers = [Conv2D(3, 3, activation="relu"), MaxPooling2D(), Flatten(), Dropout(0.3), Dense(2)]
        model = lm.Sequential(layers, input_shape=(1, 6, 6), dtype="float64", **options)
        x = np.random.default_rng(3).normal(size=(10, 1, 6, 6))
        model.fit(x, np.arange(10) % 2, loss=CROSS_ENTROPY, optimizer="adam", epochs=2, batch_size=4, progress=False)
        return model.parameters

    one, same, strict, other = trained(), trained(), trained(backend="strict"), trained(seed=1)
    for name, value in one.items():
        np.testing.assert_array_equal(value, same[name])
        np.testing.assert_allclose(value, strict[name], rtol=1e-8, atol=1e-12)
    assert not np.allclose(one["dense_1.kernel"], other["dense_1.kernel"])


def test_sample_weights_count_rows():
    x, y = classes(9)
    weight = np.array([0.0, 1, 2] * 3)
    repeated = np.repeat(np.arange(9), weight.astype(int))
    model = classifier(dtype="float64")
    loss, gradients, dx = model.gradients(x, y, loss=CROSS_ENTROPY, sample_weight=weight)
    expected, same, _ = model.gradients(x[repeated], y[repeated], loss=CROSS_ENTROPY)
    assert loss == pytest.approx(expected)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, same[name], rtol=1e-9, atol=1e-12)
    assert np.all(dx[weight == 0] == 0)
    found = model.evaluate(x, y, loss=CROSS_ENTROPY, metrics=["accuracy"], sample_weight=weight, batch_size=4)
    again = model.evaluate(x[repeated], y[repeated], loss=CROSS_ENTROPY, metrics=["accuracy"])
    assert found == pytest.approx(again)
    fitted = model.fit(x, y, loss=CROSS_ENTROPY, optimizer="sgd", batch_size=4, sample_weight=weight, progress=False)
    assert math.isfinite(fitted["loss"][0])


def test_gradient_of_the_mean_loss_is_exact_for_a_last_partial_batch():
    x, y = classes(7)
    one, two = classifier(dtype="float64"), classifier(dtype="float64")
    rate = 0.1
    one.fit(x, y, loss=CROSS_ENTROPY, optimizer=lm.optimizers.SGD(rate), batch_size=5, shuffle=False, progress=False)
    for part in (slice(0, 5), slice(5, 7)):
        _, gradients, _ = two.gradients(x[part], y[part], loss=CROSS_ENTROPY)
        for name, gradient in gradients.items():
            two.parameters[name] = two.parameters[name] - rate * gradient
    for name, value in one.parameters.items():
        np.testing.assert_allclose(value, two.parameters[name], rtol=1e-10)


def test_steps_of_one_optimizer_go_on_from_each_other():
    x, y = classes()

    def steps(*rates):
        model = classifier()
        for rate in rates:
            model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer=lm.optimizers.Adam(rate))
        return model

    model = steps(0.01, 0.01)
    assert model.optimizer_state.t == 2
    assert steps(0.01, 0.001).optimizer_state.t == 2  # a rate may change
    model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="sgd")
    assert (model.optimizer_state.t, model.step) == (1, 3)


def test_several_inputs_and_outputs_by_tuple_and_by_name():
    a, b = lm.Input((4,), name="a"), lm.Input((4,), name="b")
    h = Add()(Dense(4)(a), b)
    model = lm.Model((a, b), (Dense(3).named("kind")(h), Dense(1).named("size")(h)))
    x, y = classes(12)
    size = x.sum(axis=1, keepdims=True)
    by_tuple = {"loss": (CROSS_ENTROPY, "huber"), "optimizer": "sgd"}
    by_name = {"loss": {"size": "huber", "kind": CROSS_ENTROPY}, "optimizer": "sgd"}
    first = model.copy().train_on_batch((x, x), (y, size), **by_tuple)
    second = model.copy().train_on_batch({"b": x, "a": x}, {"size": size, "kind": y}, **by_name)
    assert first == second
    weights = {"kind": np.ones(12), "size": np.ones(12)}
    metrics = {"kind": ["accuracy"]}
    history = model.fit((x, x), (y, size), epochs=2, metrics=metrics, sample_weight=weights, progress=False, **by_tuple)
    assert set(history.history) == {"loss", "kind_loss", "size_loss", "kind_accuracy"}
    with pytest.raises(lm.DataError, match="y of 'kind': softmax_cross_entropy: labels must be integers"):
        model.evaluate((x, x), (y + 7, size), loss=by_tuple["loss"])
    _, _, dx = model.gradients((x, x), (y, size), loss=by_tuple["loss"])
    assert [part.shape for part in dx] == [(12, 4), (12, 4)]
    assert [part.shape for part in model.predict((x, x))] == [(12, 3), (12, 1)]


def test_predict_in_batches_of_any_size_and_of_nothing():
    model = classifier()
    x, _ = classes(11)
    whole = model.predict(x)
    np.testing.assert_allclose(model.predict(x, batch_size=4), whole, rtol=1e-5, atol=1e-6)
    assert model.predict(x.tolist()).dtype == np.float32
    assert model.predict(x[:0]).shape == (0, 3)


def test_axes_without_a_size_may_differ_from_call_to_call():
    model = lm.Sequential([Dense(3), Activation("softmax")], input_shape=("T", 4))
    for steps in (2, 5):
        assert model.predict(np.ones((3, steps, 4))).shape == (3, steps, 3)


class Burst(lm.Layer):
    def forward_pass(self, ctx, x):
        return x / (x - x) if ctx.training else x

    def backward_pass(self, ctx, dy):
        return dy


class Steep(lm.Layer):
    def forward_pass(self, ctx, x):
        return x

    def backward_pass(self, ctx, dy):
        return dy * 1e38 * 1e38


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("layer", r"step 0: the loss is .*first layer with values that are not finite is burst_1 \(Burst\)"),
        ("input", "Input 'input_1' holds values that are not finite: nan in row 2, column 1; clean the data"),
        ("parameter", "dense_1.kernel is not finite since an earlier step"),
        ("loss", "Every layer's output is finite; the loss MeanSquaredError.. overflows"),
        ("target", "The target of 'dense_2' holds values that are not finite: nan in row 1, column 1; clean"),
        ("gradient", r"a gradient is not finite; .* is steep_1 \(Steep\), in its backward pass"),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_names_the_culprit(spoil, words):
    middle = {"layer": [Burst()], "gradient": [Steep()]}.get(spoil, [])
    layers = [Dense(3), *middle, Dense(2)]
    model = lm.Sequential(layers, input_shape=4)
    x, y = np.ones((5, 4)), np.zeros((5, 2))
    if spoil == "input":
        x[2, 1] = np.nan
    if spoil == "target":
        y[1, 1] = np.nan
    if spoil == "loss":
        y[:] = 3e38
    if spoil == "parameter":
        model.parameters["dense_1.kernel"] = np.full((4, 3), np.inf)
    before = dict(model.parameters)
    with pytest.raises(lm.NonFiniteError, match=words):
        model.fit(x, y, loss="mean_squared_error", optimizer="adam", progress=False)
    assert (model.step, model.optimizer_state) == (0, None)
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, before[name])


def test_where_data_are_not_finite_is_told_as_the_user_knows_them():
    images, y = np.ones((300, 1, 4, 4)), np.zeros((300, 2))
    images[217, 0, 3, 2] = images[217, 0, 3, 3] = images[250] = np.inf
    model, task = lm.Sequential([Flatten(), Dense(2)], input_shape=(1, 4, 4)), {"loss": "mse", "optimizer": "adam"}
    words = r"values that are not finite: inf in row 217, at index \(217, 0, 3, 2\), the first of 18; clean the data"
    with pytest.raises(lm.NonFiniteError, match=words):
        model.fit(images, y, **task, batch_size=8)  # shuffled
    with pytest.raises(lm.NonFiniteError, match=words):
        model.train_on_batch(images, y, **task)
    with pytest.raises(lm.NonFiniteError, match=words.replace("row 217, ", "row 7 of the batch").split("at ")[0]):
        model.fit([(images[210:220], y[210:220])], **task)


X, Y = classes(6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.predict(X[0]), r"expected \(N, 4\) float32, got \(4,\) float64. For one sample .* x\[None\]"),
        (lambda m: m.predict(X.reshape(6, 2, 2)), r"x.reshape\(-1, 4\)"),
        (lambda m: m.predict([[1, 2, 3, 4], [1, 2]]), "no rectangular array"),
        (lambda m: m.predict(np.array([["a"] * 4])), "got .*<U1, which is text. Likely fix: numbers in its place"),
        (lambda m: m.predict({"inputs": X}), "unknown name 'inputs'; expected input_1. Did you mean 'input_1'"),
        (lambda m: m.predict(X, batch_size=0), "batch_size: expected a positive int, got 0"),
        (lambda m: m.evaluate(X, Y[:5], loss=CROSS_ENTROPY), "x has 6 rows and y has 5; expected equally many"),
        (lambda m: m.evaluate(X[:0], Y[:0], loss=CROSS_ENTROPY), "x: there are no rows"),
        (lambda m: m.evaluate(X, Y + 1, loss=CROSS_ENTROPY), "labels must be integers in .*y - 1"),
        (lambda m: m.evaluate(X, Y, loss="softmax_crossentropy"), "Did you mean 'softmax_cross_entropy'"),
        (lambda m: m.evaluate(X, Y, loss=3), "loss: expected"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, metrics=["acuracy"]), "Did you mean 'accuracy'"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, sample_weight=[1, 2]), r"expected shape \(6,\), got \(2,\)"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, sample_weight=-Y), "at least 0"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, sample_weight=0 * Y), "every row weighs 0"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, sample_weight=[[1], [2, 3]]), "no rectangular array"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, sample_weight=["a"] * 6), "expected numbers, got dtype"),
        (lambda m: m.evaluate(X, Y, loss=CROSS_ENTROPY, metrics=None), "metrics: expected names or Metric objects"),
        (lambda m: m.evaluate(X, [[0], [1, 2]], loss=CROSS_ENTROPY), "y of 'dense_2': .* no rectangular array"),
        (lambda m: m.predict(X.astype("float64") * 1e300), "values beyond the range of float32"),
        (lambda m: m.predict(np.ma.masked_array(X, X > 0)), "got a masked array, whose mask would be lost"),
        (lambda m: m.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam", callbacks=[print]), "callbacks: expected lamella"),
        (lambda m: m.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam", callbacks=lm.Callback()), "expected a list of"),
        (lambda m: m.evaluate(X, Y - 1, loss=CROSS_ENTROPY), "Labels count from 0"),
        (lambda m: m.freeze(3), "pattern: expected a name"),
        (lambda m: m.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adm"), "Did you mean 'adam'"),
        (
            lambda m: m.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam", epochs=-1),
            "epochs: expected an int of at least 0",
        ),
        (lambda m: m.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam", progress="yes"), "progress: expected 'auto'"),
        (lambda m: m.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam", validation_data=X), "validation_data: expected"),
        (lambda m: m.copy().freeze().fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam"), "no layer has parameters that"),
    ],
)
def test_bad_arguments_and_data_get_one_clear_error(call, words):
    with pytest.raises((lm.DataError, lm.ArgumentError, lm.RegistryError), match=words):
        call(classifier())


def test_images_in_the_wrong_order_and_integers_out_of_range():
    model = lm.Sequential([Conv2D(2, 3)], input_shape=(3, 8, 8))
    with pytest.raises(lm.DataError, match=r"x.transpose\(0, 3, 1, 2\)"):
        model.predict(np.zeros((2, 8, 8, 3)))
    bytes_in = lm.Sequential([Flatten()], input_shape=4, input_dtype="uint8")
    assert bytes_in.predict([[0, 1, 2, 255]]).dtype == np.uint8
    with pytest.raises(lm.DataError, match=r"values in \[0, 255\], got values from 0 to 256"):
        bytes_in.predict([[0, 1, 2, 256]])
    labels = lm.Input((2,), "int64", low=0, high=5)
    limited = lm.from_config(lm.Model(labels, Flatten()(labels)).config())
    with pytest.raises(lm.DataError, match=r"values in \[0, 4\], got values from 1 to 5"):
        limited.predict([[1, 5]])
    with pytest.raises(lm.DataError, match=r"convert it with x.astype\('uint8'\)"):
        bytes_in.predict([[0.5, 1, 2, 3]])


def test_callbacks_are_called_in_order():
    calls = []

    class Log(lm.Callback):
        def on_train_begin(self, model, epochs, batches):
            calls.append(f"begin {epochs} {batches}")

        def on_batch_end(self, model, rows, logs):
            calls.append(f"batch {rows}")

        def on_epoch_end(self, model, epoch, logs):
            calls.append(f"epoch {epoch}")
            if epoch == 1:
                raise KeyboardInterrupt

        def on_train_end(self, model):
            calls.append("end")

    history = classifier().fit(
        *classes(5), loss=CROSS_ENTROPY, optimizer="sgd", epochs=3, batch_size=4, callbacks=[Log()]
    )
    assert calls == ["begin 3 2", *["batch 4", "batch 1", "epoch 0"], *["batch 4", "batch 1", "epoch 1"], "end"]
    assert (history.interrupted, history.stopped, history.epochs) == (True, "interrupted", 2)


def test_progress_shows_loss_metrics_speed_and_time_left(capsys):
    classifier().fit(*classes(), loss=CROSS_ENTROPY, optimizer="sgd", epochs=2)
    assert capsys.readouterr().out == ""  # nobody is watching
    screen, pipe = io.StringIO(), io.StringIO()
    for file, terminal in ((screen, True), (pipe, False)):
        shown = Terminal(file, is_terminal=terminal, width=120)
        options = {"loss": CROSS_ENTROPY, "optimizer": "sgd", "epochs": 2, "metrics": ["accuracy"]}
        classifier().fit(*classes(), callbacks=[Progress(shown)], **options)
    assert "━" in screen.getvalue()
    assert "left" in screen.getvalue()
    lines = pipe.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss ")
    assert "accuracy" in lines[1]
    assert "samples/s" in lines[1]


def test_two_metrics_of_one_kind_stay_apart():
    x, y = classes(30)
    metrics = [lm.metrics.TopKAccuracy(k) for k in (1, 3)]
    found = classifier().evaluate(x, y, loss=CROSS_ENTROPY, metrics=metrics)
    alone = classifier().evaluate(x, y, loss=CROSS_ENTROPY, metrics=metrics[0])
    assert found["top_k_accuracy"] == alone["top_k_accuracy"] < 1.0
    assert found["top_k_accuracy_2"] == 1.0


def test_weighted_losses_of_several_outputs_do_not_depend_on_the_batch_size():
    x, y = classes(10)
    a = lm.Input((4,))
    model = lm.Model(a, (Dense(3)(a), Dense(3)(a)), dtype="float64")
    weights = (np.arange(10.0), np.arange(10.0)[::-1] ** 2)
    expected, _, _ = model.gradients(x, (y, y), loss=CROSS_ENTROPY, sample_weight=weights)
    for size in (1, 3, 10):
        found = model.evaluate(x, (y, y), loss=CROSS_ENTROPY, sample_weight=weights, batch_size=size)
        assert found["loss"] == pytest.approx(expected, rel=1e-12)


def test_targets_are_prepared_once_and_metrics_see_them_raw():
    class Shifted(lm.losses.MeanSquaredError):
        def prepare(self, prediction, target):
            return super().prepare(prediction, np.asarray(target) * 2 - 1)

    class Largest(lm.metrics.Metric):
        def per_sample(self, prediction, target):
            return target.max(axis=1)

    x, y = classes(6)
    hot = np.eye(3)[y]
    model = classifier()
    expected, _, _ = model.gradients(x, hot, loss=Shifted())
    found = model.evaluate(x, hot, loss=Shifted(), metrics=[Largest()])
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["largest"] == 1.0


def test_targets_of_symbolic_axes_must_fit_the_data():
    model = lm.Sequential([Dense(2)], input_shape=("T", 3))
    x = np.ones((4, 5, 3))
    for shape in ((4, 1, 2), (4, 3, 2)):
        with pytest.raises(lm.DataError, match=r"target must have the prediction's shape \(N, 5, 2\)"):
            model.gradients(x, np.zeros(shape), loss="mean_squared_error")
    assert model.gradients(x, np.zeros((4, 5, 2)), loss="mean_squared_error")[0] > 0


def test_copies_train_on():
    x, y = classes(8)
    one = classifier()
    for _ in range(2):
        one.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
    two = one.copy()
    for model in (one, two):
        model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, two.parameters[name])


def batches(x, y, size, *weight):
    return [(x[k : k + size], y[k : k + size], *(w[k : k + size] for w in weight)) for k in range(0, len(x), size)]


class Loader:
    """What torch.utils.data.DataLoader looks like: a length, and lists of batches anew at each iter."""

    def __init__(self, parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        return (list(part) for part in self.parts)


@pytest.mark.parametrize("kind", ["list", "function", "loader", "iterator"])
def test_batches_of_an_iterable_are_those_of_arrays(kind):
    x, y = classes(20)
    weight = np.arange(20.0)
    parts = batches(x, y, 8, weight)
    task = {"loss": CROSS_ENTROPY, "optimizer": "adam", "epochs": 2, "metrics": ["accuracy"], "progress": False}
    arrays, stream = classifier(), classifier()
    one = arrays.fit(x, y, batch_size=8, shuffle=False, sample_weight=weight, validation_data=(x, y, weight), **task)
    sources = {"list": parts, "function": lambda: iter(parts), "loader": Loader(parts), "iterator": iter(parts * 2)}
    steps = {"steps_per_epoch": 3} if kind == "iterator" else {}
    two = stream.fit(sources[kind], validation_data=parts, **steps, **task)
    assert list(one.history) == list(two.history)
    for name, values in one.history.items():
        assert values == pytest.approx(two[name])
    for name, value in arrays.parameters.items():
        np.testing.assert_array_equal(value, stream.parameters[name])
    found = stream.evaluate(parts, loss=CROSS_ENTROPY)
    assert found["loss"] == pytest.approx(two["val_loss"][-1])


def test_steps_per_epoch_goes_on_where_the_last_epoch_stopped():
    x, y = classes(12)
    seen = []

    def endless():
        while True:
            for part in batches(x, y, 4):
                seen.append(float(part[0][0, 0]))
                yield part

    model, firsts = classifier(), [float(part[0][0, 0]) for part in batches(x, y, 4)]
    task = {"loss": CROSS_ENTROPY, "optimizer": "sgd", "epochs": 2, "steps_per_epoch": 2, "progress": False}
    model.fit(endless, **task)
    assert seen == [*firsts, firsts[0]]
    seen.clear()
    model.fit(lambda: itertools.islice(endless(), 3), **task)  # ends after three, and starts again
    assert seen == [*firsts, firsts[0]]
    assert model.step == 8


def test_progress_without_a_known_length():
    x, y = classes(12)
    screen = io.StringIO()
    shown = Terminal(screen, is_terminal=True, width=120)
    options = {"loss": CROSS_ENTROPY, "optimizer": "sgd", "epochs": 2, "progress": False}
    classifier().fit(lambda: iter(batches(x, y, 4)), callbacks=[Progress(shown)], **options)
    assert "batch 1  loss" in screen.getvalue()
    assert "left" in screen.getvalue()  # from the second epoch on it is known


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (X, {}, "x: expected batches, .* got ndarray; arrays need y"),
        ((X, X, X, X), {}, "x: every batch must be .* got ndarray; arrays need y"),
        ([(X,)], {}, "got 1 entries"),
        (3, {}, "x: expected batches"),
        (lambda: 3, {}, "x: the function gave int; expected an iterable of batches"),
        ([], {}, "x: expected batches, got none"),
        (lambda: iter([]), {}, "x: there are no more batches. An iterator runs out once"),
        (iter([(X, Y)]), {"epochs": 2}, "x: there are no more batches"),
        (iter([(X, Y)]), {"steps_per_epoch": 2}, "x: there are no more batches"),
        ([(X, Y)], {"sample_weight": Y}, "sample_weight: expected None for batches"),
        ([(X, Y)], {"steps_per_epoch": 0}, "steps_per_epoch: expected a positive int"),
        ([(X, Y)], {"validation_data": iter([(X, Y)]), "epochs": 2}, "validation_data: there are no more batches"),
        ([(X, Y)], {"validation_data": (X,)}, r"validation_data: expected \(x, y\)"),
        ([(X, Y)], {"validation_data": 3}, r"validation_data: expected \(x, y\), .*, or batches of these, got int"),
        ([(X, Y)], {"validation_data": []}, "validation_data: expected batches, got none"),
        ([(X, Y)], {"validation_data": (X, Y), "validation_steps": 2}, "validation_steps: expected None for arrays"),
        ([(X, Y)], {"validation_steps": 2}, "validation_steps: expected None without validation_data"),
        ([(X, Y + 1)], {}, "labels must be integers in .*y - 1"),
    ],
)
def test_batches_that_are_none_are_named(data, options, words):
    with pytest.raises((lm.DataError, lm.ArgumentError), match=words):
        classifier().fit(data, loss=CROSS_ENTROPY, optimizer="adam", progress=False, **options)


def test_steps_per_epoch_is_for_iterables():
    with pytest.raises(lm.ArgumentError, match="steps_per_epoch: expected None for arrays"):
        classifier().fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam", steps_per_epoch=2)


def test_endless_validation_data_starts_anew_after_every_epoch():
    drawn = []

    def endless():
        for k in itertools.count():
            drawn.append(k)
            yield X, Y

    task = {"loss": CROSS_ENTROPY, "optimizer": "adam", "progress": False}
    history = classifier().fit(X, Y, validation_data=endless, validation_steps=2, epochs=3, **task)
    assert drawn == [0, 1] * 3
    whole = classifier().fit(X, Y, validation_data=(X, Y), epochs=3, **task)
    assert history["val_loss"] == pytest.approx(whole["val_loss"])


def test_class_weights_multiply_sample_weights():
    x, y = classes(9)
    own = np.arange(9.0)
    factors = np.array([1.0, 3.0, 0.5])[y]  # class 0 is not named
    task = {"loss": CROSS_ENTROPY, "optimizer": lm.optimizers.SGD(0.1)}
    weight = {1: 3.0, 2: 0.5}
    for labels in (y, np.eye(3)[y]):
        for given, expected in ((None, factors), (own, own * factors)):
            one, two = classifier(dtype="float64"), classifier(dtype="float64")
            first = one.train_on_batch(x, labels, sample_weight=given, class_weight=weight, **task)
            assert first == pytest.approx(two.train_on_batch(x, labels, sample_weight=expected, **task))
            np.testing.assert_allclose(one.parameters["dense_1.kernel"], two.parameters["dense_1.kernel"], rtol=1e-12)
    stream = classifier(dtype="float64").fit(batches(x, y, 9), class_weight=weight, progress=False, **task)
    arrays = classifier(dtype="float64").fit(x, y, class_weight=weight, shuffle=False, progress=False, **task)
    assert stream["loss"] == pytest.approx(arrays["loss"])
    yes_no = lm.Sequential([Dense(1)], input_shape=4)
    options = {"loss": "binary_cross_entropy", "optimizer": "sgd"}
    loss = yes_no.copy().train_on_batch(x, (y > 0)[:, None], class_weight={0: 9.0}, **options)
    assert loss == pytest.approx(
        yes_no.train_on_batch(x, (y > 0)[:, None], sample_weight=np.where(y > 0, 1, 9), **options)
    )


def test_class_weights_of_several_outputs():
    x, y = classes(9)
    a = lm.Input((4,))
    model = lm.Model(a, (Dense(3).named("kind")(a), Dense(1).named("size")(a)), dtype="float64")
    task = {"loss": {"kind": CROSS_ENTROPY, "size": "huber"}, "optimizer": "sgd"}
    targets = {"kind": y, "size": x[:, :1]}
    first = model.copy().train_on_batch(x, targets, class_weight={"kind": {1: 3.0}}, **task)
    weights = {"kind": np.where(y == 1, 3.0, 1.0), "size": np.ones(9)}
    assert first == pytest.approx(model.train_on_batch(x, targets, sample_weight=weights, **task))


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ([1, 2], "class_weight: expected a dict such as"),
        ({1: -1.0}, "class_weight: weight of 1: expected a number of at least 0"),
        ({"cat": 1.0}, "class_weight: label: expected an int of at least 0, got 'cat'"),
        ({"dense_2": {1: 1.0}, "dense": {1: 1.0}}, "class_weight: unknown output 'dense'; expected dense_2"),
        ({"dense_2": 1.0}, "class_weight: of 'dense_2': expected a dict such as .*, got 1.0"),
        ({7: 1.0}, "class_weight: label 7: expected 0 to 2, the classes of 'dense_2'"),
    ],
)
def test_bad_class_weights_are_named(weight, words):
    with pytest.raises(lm.ArgumentError, match=words):
        classifier().train_on_batch(X, Y, loss=CROSS_ENTROPY, optimizer="sgd", class_weight=weight)


def test_class_weights_need_classes():
    with pytest.raises(lm.DataError, match=r"class_weight: y of 'dense_1' must hold integer labels \(N,\) or one-hot"):
        lm.Sequential([Dense(2)], input_shape=4).train_on_batch(
            X, X[:, :2], loss="mean_squared_error", optimizer="sgd", class_weight={1: 2.0}
        )


def test_losses_of_several_outputs_add_up_by_their_weights():
    x, y = classes(9)
    a = lm.Input((4,))
    model = lm.Model(a, (Dense(3).named("kind")(a), Dense(1).named("size")(a)), dtype="float64")
    targets = {"kind": y, "size": x[:, :1]}
    plain = {"kind": CROSS_ENTROPY, "size": "huber"}
    weighted = plain | {"size": lm.losses.Weighted("huber", 0.25)}
    first, second = (model.evaluate(x, targets, loss=loss) for loss in (plain, weighted))
    assert first["loss"] == pytest.approx(first["kind_loss"] + first["size_loss"])
    assert second["loss"] == pytest.approx(first["kind_loss"] + 0.25 * first["size_loss"])
    one, other = (model.gradients(x, targets, loss=loss)[1] for loss in (plain, weighted))
    np.testing.assert_allclose(other["size.kernel"], 0.25 * one["size.kernel"])
    np.testing.assert_array_equal(other["kind.kernel"], one["kind.kernel"])
    with pytest.raises(lm.ArgumentError, match="Weighted: loss: expected a name or a Loss, got 3"):
        lm.losses.Weighted(3, 0.5)


def test_a_schedule_that_an_earlier_training_used_up_is_told():
    model = classifier()
    task = {"loss": CROSS_ENTROPY, "optimizer": lm.optimizers.Adam(lm.schedules.Cosine(0.1, steps=4))}
    model.fit(X, Y, batch_size=len(X), epochs=4, progress=False, **task)
    with pytest.warns(UserWarning, match="fit: the learning rate is 0 from step 4 on, .*optimizer_state = None"):
        model.fit(X, Y, batch_size=len(X), progress=False, **task)
    model.optimizer_state = None
    model.fit(X, Y, progress=False, **task)  # a warning would be an error here


def test_class_weights_are_not_for_rows_with_several_labels():
    several = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    with pytest.raises(lm.DataError, match="class_weight: y of 'dense_1' must hold"):
        lm.Sequential([Dense(3)], input_shape=4).train_on_batch(
            X[:3], several, loss="binary_cross_entropy", optimizer="sgd", class_weight={1: 2.0}
        )


def test_class_weights_that_are_all_zero_are_named():
    with pytest.raises(lm.DataError, match="class_weight: every row weighs 0"):
        classifier().fit(X, Y, loss=CROSS_ENTROPY, optimizer="sgd", class_weight={0: 0.0, 1: 0.0, 2: 0.0})


def ending_in(*end):
    return lm.Sequential([Dense(3), *end], input_shape=4)


@pytest.mark.parametrize(
    ("end", "loss"),
    [
        ("softmax", CROSS_ENTROPY),
        ("sigmoid", lm.losses.Weighted("binary_cross_entropy", 0.5)),
        ("sigmoid", "binary_cross_entropy"),
    ],
)
def test_probabilities_before_a_loss_on_logits_are_told_once(end, loss):
    x = np.random.default_rng(0).normal(size=(40, 4))
    task = {"loss": loss, "optimizer": "sgd"}
    y = np.eye(3)[np.arange(40) % 3]
    with pytest.warns(lm.MistakeWarning, match=r"takes logits, and activation_1 \(Activation\) makes prob") as told:
        ending_in(Activation(end)).fit(x, y, **task, epochs=2, batch_size=8)
    assert [warning.filename for warning in told] == [__file__]
    fix = (
        "loss='categorical_cross_entropy'"
        if loss == CROSS_ENTROPY
        else "loss=lm.losses.BinaryCrossEntropy(from_logits=False)"
    )
    assert str(told[0].message).endswith(
        f"Likely fix: leave this layer out, and model.predict(x, append=Activation({end!r})) gives probabilities; or "
        f"keep it, with {fix}"
    )
    inside = lm.Sequential([Dense(3, activation=end)], input_shape=4)
    with pytest.warns(lm.MistakeWarning, match="dense_1/activation") as told:
        inside.train_on_batch(x, y, **task)
    inside.train_on_batch(x, y, **task)
    assert [warning.filename for warning in told] == [__file__]
    for append in (None, Activation("sigmoid")):  # also where a metric would be right, and the loss is not
        with pytest.warns(lm.MistakeWarning, match="takes logits, and .* makes probabilities of them") as told:
            (inside if append is None else ending_in()).evaluate(x, y, loss=loss, append=append)
        assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize(
    "end", [Activation("tanh"), Activation("relu"), Dropout(0.5), Flatten(), Dense(3), Rescaling(0.01, 0.5)]
)
def test_other_ends_are_left_alone(end):
    x, y = classes(12)
    images = lm.Sequential([Reshape((3, 2, 2)), Conv2D(3, 1), GlobalAveragePooling2D()], input_shape=12)
    images.fit(x.repeat(3, axis=1), y, loss=CROSS_ENTROPY, optimizer="sgd")
    ending_in(end).fit(x / 100, y, loss=CROSS_ENTROPY, optimizer="sgd")
    ending_in(Activation("softmax")).fit(x, y, loss="categorical_cross_entropy", optimizer="sgd")


@pytest.mark.parametrize(
    ("end", "loss", "said"),
    [
        (Activation("sigmoid"), "mean_squared_error", None),
        (Activation("sigmoid"), lm.losses.Weighted("huber", 0.5), None),
        (Activation("linear"), "mean_absolute_error", None),
        (Reshape((1,)), "binary_cross_entropy", 0.0),
        (Activation("sigmoid"), "mean_squared_error", 0.9),
    ],
)
@pytest.mark.parametrize("kind", ["accuracy", "binary_accuracy"])
def test_accuracy_goes_by_what_predictions_are(kind, end, loss, said):
    x = np.random.default_rng(0).normal(size=(200, 1))
    model = lm.Sequential([Dense(1), end], input_shape=1, dtype="float64")
    model.parameters["dense_1.kernel"] = [[3.0]]
    predictions = model.predict(x)
    threshold = 0.5 if said is None else said
    y = predictions > threshold
    y[:20] = ~y[:20]
    assert {0, 1} == set(y[:, 0])
    metric = kind
    if said == 0.9:
        metric = {"accuracy": lm.metrics.Accuracy, "binary_accuracy": lm.metrics.BinaryAccuracy}[kind](said)
    task = {"loss": loss, "metrics": metric}
    assert model.evaluate(x, y, **task)[kind] == 0.9
    still = {"optimizer": lm.optimizers.SGD(0.0), "validation_data": (x, y)}
    history = model.fit(x, y, **task, **still)
    assert history[kind] == history[f"val_{kind}"] == [pytest.approx(0.9)]


def test_accuracy_under_a_loss_that_does_not_say_what_predictions_are_is_told_once():
    class Cubic(lm.losses.Loss):
        def forward(self, ctx, prediction, target):
            ctx.save(prediction - target)
            return ctx.xp.abs(prediction - target)[:, 0] ** 3.0

        def backward(self, ctx, d):
            (r,) = ctx.saved
            return 3.0 * r * ctx.xp.abs(r) * d[:, None]

    class Said(Cubic):
        on_logits = False

    x, y = np.ones((4, 2)), np.ones((4, 1))
    model = lm.Sequential([Dense(1)], input_shape=2)
    task = {"optimizer": lm.optimizers.SGD(1e-9), "validation_data": (x, y)}
    words = r"takes predictions above 0 for yes.* on_logits = "
    with pytest.warns(lm.MistakeWarning, match=words) as told:
        model.fit(x, y, loss=Cubic(), metrics=["accuracy", "mean_squared_error"], **task)
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(lm.MistakeWarning, match=words) as told:
        model.evaluate(x, y, loss=Cubic(), metrics="accuracy")
    assert [warning.filename for warning in told] == [__file__]
    model.fit(x, y, loss=Said(), metrics="accuracy", **task)
    model.fit(x, y, loss=Cubic(), metrics=lm.metrics.Accuracy(0.5), **task)
    several = lm.Sequential([Dense(3)], input_shape=2)
    assert several.fit(x, np.ones((4, 3)) * [1, 0, 0], loss=Cubic(), metrics="accuracy", optimizer="sgd")


def test_logits_are_no_probabilities():
    a = lm.Input((4,))
    model = lm.Model(a, (Dense(3).named("kind")(a), Dense(1).named("size")(a)))
    before = model.parameters["kind.kernel"]
    x = np.random.default_rng(0).normal(size=(8, 4))
    task = {"loss": {"kind": "categorical_cross_entropy", "size": lm.losses.Huber()}, "optimizer": "sgd"}
    y = {"kind": np.zeros(8, int), "size": np.zeros((8, 1))}
    with pytest.raises(lm.DataError, match=r"output 'kind': .* must be probabilities; got values from -.* use softmax"):
        model.fit(x, y, **task)
    np.testing.assert_array_equal(model.parameters["kind.kernel"], before)
    with pytest.raises(lm.DataError, match="output 'size': accuracy: targets must lie in"):
        model.evaluate(x, y | {"size": np.full((8, 1), 17.0)}, loss=task["loss"], metrics="accuracy")


def test_one_target_for_a_whole_sequence_is_told_apart_from_one_for_each_step():
    x = lm.Input(("T", 2))
    step, steps = (lm.Model(x, Dense(units)(x)) for units in (1, 4))
    data = np.ones((5, 6, 2))
    for model, loss, y in (
        (step, "mean_squared_error", np.ones((5, 1))),
        (steps, CROSS_ENTROPY, np.ones(5, int)),
        (steps, CROSS_ENTROPY, np.eye(4)[[0] * 5]),
    ):
        with pytest.raises(lm.DataError, match="one target for all of them: return_sequences=False"):
            model.evaluate(data, y, loss=loss)
    with pytest.raises(lm.DataError, match=r"got \(5, 0, 2\) .* axis 'T' has nothing in it"):
        step.predict(data[:, :0])


class Early(lm.Callback):
    def on_epoch_end(self, epoch, logs):
        pass


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda m: m.fit([], [], verbose=1),
            TypeError,
            "Sequential.fit: .* 'verbose'. Say progress=True or progress=F",
        ),
        (lambda m: m.evaluate([], [], verbose=0), TypeError, "Sequential.evaluate: .* 'verbose'. .* print nothing"),
        (lambda m: lm.Model(m.input_nodes, m.output_nodes, name="m"), TypeError, "Names belong to layers"),
        (lambda m: m.fit([], [], validation_freq=2), TypeError, "Validation follows every epoch"),
        (lambda m: m.fit([], [], los="huber"), TypeError, "no argument 'los'. Did you mean 'loss'"),
        (lambda m: m.compile(loss="huber"), AttributeError, "Sequential has no 'compile'. .* stands in fit"),
        (lambda m: Dense(2)(lm.Input(3), initial_state=3), TypeError, r"Dense.__call__: .* layer\(x, state\)"),
        (lambda m: lm.optimizers.Adam(lr=0.1), TypeError, "Did you mean 'learning_rate'"),
        (
            lambda m: m.fit(*classes(), loss=CROSS_ENTROPY, optimizer="sgd", callbacks=[Early()]),
            lm.ArgumentError,
            r"Early.on_epoch_end: too many .* expected on_epoch_end\(self, model, epoch, logs\)",
        ),
        (lambda m: m.evaluate([], [], loss="cross_entropy"), LookupError, "Did you mean 'softmax_cross_entropy'"),
    ],
)
def test_words_of_other_libraries_are_answered(call, error, words):
    with pytest.raises(error, match=words):
        call(ending_in())


class Writes(lm.metrics.Metric):
    def __init__(self, what: str):
        self.what = what

    def per_sample(self, prediction, target):
        written = prediction if self.what == "prediction" else target
        written -= 0.5
        return prediction[:, 0]


class WritesToo(lm.losses.Loss):
    def __init__(self, what: str):
        self.what = what

    def forward(self, ctx, prediction, target):
        written = prediction if self.what == "prediction" else target
        written -= 0.5
        ctx.save(prediction - target)
        return ctx.xp.mean(ctx.saved[0], axis=1)

    def backward(self, ctx, d):
        return ctx.xp.ones_like(ctx.saved[0]) * d[:, None]


@pytest.mark.parametrize("what", ["prediction", "target"])
def test_metrics_and_losses_write_into_nothing(what):
    model = lm.Sequential([Dense(2)], input_shape=3)
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    task = {"loss": "mean_squared_error", "metrics": [Writes(what)]}
    with pytest.raises(lm.LayerError, match=r"Writes\('\w+'\) writes into .*make new arrays"):
        model.fit(x, y, optimizer="sgd", **task)
    with pytest.raises(lm.LayerError, match=r"Writes\('\w+'\) writes into .*make new arrays"):
        model.evaluate(x, y, **task)
    with pytest.raises(lm.LayerError, match=r"WritesToo\('\w+'\) failed on .*read-only.*; make new arrays"):
        model.fit(x, y, loss=WritesToo(what), optimizer="sgd")
    with pytest.raises(lm.LayerError, match=r"WritesToo\('\w+'\) writes into .*make new arrays"):
        model.evaluate(x, y, loss=WritesToo(what))
    np.testing.assert_array_equal(y, np.ones((4, 2)))


def test_a_metric_of_one_number_is_named():
    class Mean(lm.metrics.Metric):
        def per_sample(self, prediction, target):
            return np.square(prediction - target).mean()

    with pytest.raises(
        lm.LayerError, match=r"Mean\(\).per_sample must return one value for each sample, of shape \(4,\)"
    ):
        Mean().update(np.ones((4, 2)), np.ones((4, 2)))
    model = lm.Sequential([Dense(2)], input_shape=3)
    words = "softmax_cross_entropy"
    with pytest.raises(lm.DataError, match=words):
        model.fit(np.ones((4, 3)), np.zeros(4, "int64"), loss="mean_squared_error", optimizer="sgd")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("trainable", False, r"model.freeze\(\) keeps all parameters from training"),
        ("learning_rate", 0.1, r"optimizer=lm.optimizers.Adam\(0.001\)\); while training, .*optimizer_state.scale"),
        ("lr", 0.1, "It stands in the optimizer"),
        ("stop_training", True, r"raise lm.StopTraining\('why'\)"),
        ("optimizer", "sgd", "an argument of fit"),
        ("name", "encoder", r"model\(x, name='encoder'\)"),
        ("backend", "strict", r"model.to\('onednn'\)"),
        ("parameters", {}, r"model.parameters\['dense_1.kernel'\] = array"),
        ("sed", 3, "Did you mean 'seed'"),
        ("output_names", ("kind",), "It can only be read"),
        ("labels_of_mine", ["cat", "dog"], "beside the model, or make a subclass"),
    ],
)
def test_attributes_that_nothing_would_come_of_can_not_be_set(name, value, words):
    x = lm.Input(4)
    models = [classifier(), lm.Model(x, Dense(2)(x)), lm.from_config(classifier().config())]
    for model in models:
        known = set(vars(model))
        with pytest.raises(AttributeError, match=f"{type(model).__name__}.{name} can't be set: .*{words}"):
            setattr(model, name, value)
        assert set(vars(model)) == known


def test_attributes_of_subclasses_and_stand_ins_for_methods_can_be_set():
    class Named(lm.Sequential):
        trainable = False

        def __init__(self, classes):
            super().__init__([Dense(len(classes))], input_shape=4)
            self.classes, self.trainable = classes, True

    model = Named(["cat", "dog"])
    assert (model.classes, model.trainable) == (["cat", "dog"], True)
    with pytest.raises(AttributeError, match="Named.learning_rate can't be set"):
        model.learning_rate = 0.1
    model.seed, model.step, model.optimizer_state = 7, 3, None
    plain = classifier()
    plain.predict = lambda x: "stood in"
    assert plain.predict(None) == "stood in"


def test_stop_training_of_other_libraries_is_answered_in_a_callback():
    class Stop(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.stop_training = True

    x, y = classes()
    with pytest.raises(AttributeError, match=r"Sequential.stop_training can't be set.*raise lm.StopTraining"):
        classifier().fit(x, y, loss=CROSS_ENTROPY, optimizer="sgd", callbacks=[Stop()])


def test_layers_and_optimizers_say_how_to_change_them():
    inner = classifier()
    with pytest.raises(TypeError, match=r"layers\['dense_1'\] can't be set: .* by copy_values"):
        inner.layers["dense_1"] = Dense(3)
    assert copy.deepcopy(inner.layers) == inner.layers
    with pytest.raises(AttributeError, match="kernel"):
        inner.parameters.kernel = np.zeros((4, 16))
    model = lm.from_config(lm.Sequential([inner, Dense(2)], input_shape=4).config())
    layer, graph = model.layers["dense_1"], model.layers["sequential_1"]
    with pytest.raises(AttributeError, match=r"Dense.trainable can't be set: .*model.freeze\('name'\)"):
        layer.trainable = False
    with pytest.raises(AttributeError, match=r"Dense.name can't be set: .*layer.named\('head'\)"):
        layer.name = "head"
    with pytest.raises(AttributeError, match=r"Dense.units can't be set: .*\.replace\(units=\.\.\.\)"):
        layer.units = 4
    with pytest.raises(AttributeError, match=r"Adam.learning_rate can't be set: .*\.replace\(learning_rate=\.\.\.\)"):
        lm.optimizers.Adam().learning_rate = 0.1
    with pytest.raises(AttributeError, match="trainable"):
        graph.trainable = False
