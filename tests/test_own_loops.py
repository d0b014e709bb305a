"""Training loops of one's own: steps along given gradients, parts of a model, and the search for a learning rate."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lamella as lm
from lamella.errors import BusyError
from lamella_layers import LSTM, Add, BatchNormalization, Bidirectional, Dense, Dropout, Flatten

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3))).argmax(1)
CROSS_ENTROPY = "softmax_cross_entropy"


def classifier(**options):
    layers = [Dense(6, activation="tanh"), Dense(3).named("head")]
    return lm.Sequential(layers, input_shape=4, seed=1, **options)


def assert_equal(one, other):
    assert list(one.parameters) == list(other.parameters)
    for name, array in one.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], array, err_msg=name)


# Steps along given gradients

RULES = {
    "penalties": {"*.kernel": lm.regularization.L2(0.1)},
    "constraints": {"*.kernel": lm.regularization.MaxNorm(0.5)},
    "clip_norm": 0.2,
    "clip_value": 0.1,
}


@pytest.mark.parametrize("backend", ["numpy", "strict", "onnxruntime"])
@pytest.mark.parametrize("rules", [{}, RULES], ids=["plain", "rules"])
def test_gradients_and_apply_gradients_are_train_on_batch(backend, rules):
    ours, theirs = classifier(backend=backend), classifier(backend="numpy")
    optimizer = lm.optimizers.AdamW(lm.schedules.Exponential(0.05, 3), exclude_from_weight_decay="*.bias")
    for start in range(0, 40, 8):
        x, y = X[start : start + 8], Y[start : start + 8]
        loss, gradients, _ = ours.gradients(x, y, loss=CROSS_ENTROPY)
        assert ours.apply_gradients(gradients, optimizer, **rules) is None
        told = theirs.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer=optimizer, **rules)
        assert (loss == pytest.approx(told, rel=1e-5)) == ("penalties" not in rules)
    for name, array in theirs.parameters.items():
        np.testing.assert_allclose(ours.parameters[name], array, rtol=2e-5, atol=2e-6, err_msg=name)
    assert (ours.step, ours.optimizer_state.t) == (theirs.step, theirs.optimizer_state.t) == (5, 5)


def test_steps_of_all_kinds_go_on_from_each_other(tmp_path):
    mixed, plain = classifier(dtype="float64"), classifier(dtype="float64")
    task = {"loss": CROSS_ENTROPY, "optimizer": "adam"}
    for k in range(6):
        if k == 2:
            mixed.save(tmp_path / "m.lamella")
            mixed = lm.load(tmp_path / "m.lamella")
        if k % 2:
            mixed.train_on_batch(X, Y, **task)
        else:
            mixed.apply_gradients(mixed.gradients(X, Y, loss=CROSS_ENTROPY)[1], "adam")
        plain.train_on_batch(X, Y, **task)
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(mixed.parameters[name], array, rtol=1e-12)


def test_parameters_that_are_not_named_miss_the_step():
    model = classifier()
    before, gradients = dict(model.parameters), model.gradients(X, Y, loss=CROSS_ENTROPY)[1]
    model.apply_gradients({"head.bias": gradients["head.bias"]}, lm.optimizers.Adam(0.01))
    moved = [name for name, array in model.parameters.items() if not np.array_equal(array, before[name])]
    assert moved == ["head.bias"]
    assert dict(model.optimizer_state.missed) == dict.fromkeys(set(before) - {"head.bias"}, 1)
    model.apply_gradients(gradients, lm.optimizers.Adam(0.01))  # for the others the first step
    step = model.parameters["head.kernel"] - before["head.kernel"]
    np.testing.assert_allclose(np.abs(step), 0.01, rtol=1e-4)


def test_another_loss_than_any_that_is_registered():
    """A step that lowers the largest of the losses of two groups, of which no loss of rows knows."""
    model, groups = classifier(), (slice(0, 20), slice(20, 40))
    for _ in range(60):
        parts = [model.gradients(X[rows], Y[rows], loss=CROSS_ENTROPY) for rows in groups]
        model.apply_gradients(max(parts, key=lambda part: part[0])[1], lm.optimizers.Adam(0.05))
    assert max(model.evaluate(X[rows], Y[rows], loss=CROSS_ENTROPY)["loss"] for rows in groups) < 0.5


def test_statistics_stay_and_frozen_layers_are_refused():
    model = lm.Sequential([Dense(3), BatchNormalization()], input_shape=4)
    model.freeze("dense_1")
    gradients = model.gradients(X, X[:, :3], loss="mean_squared_error")[1]
    model.apply_gradients(gradients, "sgd")
    np.testing.assert_array_equal(model.state["batch_normalization_1.mean"], 0.0)
    with pytest.raises(lm.ArgumentError, match=r"'dense_1.bias' is frozen; model.unfreeze\('dense_1'\)"):
        model.apply_gradients({"dense_1.bias": np.zeros(3)}, "sgd")
    model.unfreeze()
    model.apply_gradients({"dense_1.bias": np.ones(3)}, lm.optimizers.SGD(0.5))
    np.testing.assert_array_equal(model.parameters["dense_1.bias"], -0.5)


@pytest.mark.parametrize(
    ("gradients", "error", "words"),
    [
        ([], lm.ArgumentError, r"expected a dict of arrays by parameter name, as model.gradients gives, got \[\]"),
        ({}, lm.ArgumentError, "expected a dict of arrays by parameter name"),
        ({"head.bais": np.zeros(3)}, lm.ArgumentError, "has no parameter 'head.bais'. Did you mean 'head.bias'"),
        ({3: np.zeros(3)}, lm.ArgumentError, "has no parameter 3"),
        (
            {"head.bias": np.zeros(4)},
            lm.DataError,
            r"\['head.bias'\]: expected numbers of shape \(3,\), got float64 \(4,",
        ),
        ({"head.bias": ["a", "b", "c"]}, lm.DataError, r"\['head.bias'\]: expected numbers"),
        (
            {"head.bias": [1.0, np.nan, 2.0]},
            lm.NonFiniteError,
            r"\['head.bias'\]: it is not finite; nothing was changed",
        ),
        ({"head.bias": [1.0, 1e300, 2.0]}, lm.NonFiniteError, "it is not finite"),  # in float32
    ],
)
def test_gradients_that_do_not_fit_change_nothing(gradients, error, words):
    model = classifier()
    before = model.copy()
    with pytest.raises(error, match=words):
        model.apply_gradients(gradients, "adam")
    assert_equal(model, before)
    assert (model.step, model.optimizer_state) == (0, None)


def test_a_penalty_that_is_not_finite_changes_nothing():
    class Steep(lm.regularization.Penalty):
        def value(self, xp, p):
            return xp.sum(p)

        def gradient(self, xp, p):
            return xp.full_like(p, math.inf) if bool(xp.any(p > 100.0)) else xp.zeros_like(p)

    model = classifier()
    model.parameters["head.bias"] = [200.0, 0.0, 0.0]
    before = model.copy()
    with pytest.raises(lm.NonFiniteError, match="a penalty makes the gradient of head.bias not finite"):
        model.apply_gradients({"head.bias": np.ones(3)}, "sgd", penalties={"head.bias": Steep()})
    assert_equal(model, before)


def test_only_one_thread_at_a_time():
    import threading

    model, failed = classifier(), []

    def other():
        try:
            model.apply_gradients({"head.bias": np.ones(3)}, "sgd")
        except BusyError as error:
            failed.append(str(error))

    class Meanwhile(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    model.fit(X, Y, loss=CROSS_ENTROPY, optimizer="sgd", batch_size=40, callbacks=[Meanwhile()])
    assert failed
    assert failed[0].startswith("apply_gradients: another thread")


def test_settings_of_apply_gradients_and_their_order_are_not_mixed_up():
    first = {"head.*": lm.regularization.MaxNorm(0.1), "*.kernel": lm.regularization.MaxNorm(5.0)}
    model, zero = classifier(), {"head.kernel": np.zeros((6, 3))}
    model.apply_gradients(zero, "sgd")
    assert np.linalg.norm(model.parameters["head.kernel"], axis=0).max() > 0.2
    model.apply_gradients(zero, "sgd", constraints=first)
    np.testing.assert_allclose(np.linalg.norm(model.parameters["head.kernel"], axis=0), 0.1, rtol=1e-5)
    model.to("strict")
    model.apply_gradients({"head.kernel": np.ones((6, 3))}, lm.optimizers.SGD(1.0))
    assert np.linalg.norm(model.parameters["head.kernel"], axis=0).min() > 1.0


# Parts of a model


def test_until_is_the_model_up_to_a_layer():
    model = classifier()
    model.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam")
    part = model.until("dense_1")
    hidden = np.tanh(X @ model.parameters["dense_1.kernel"] + model.parameters["dense_1.bias"])
    np.testing.assert_allclose(part.predict(X), hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.until("head").predict(X), model.predict(X))
    assert (type(part), part.step, part.seed, part.dtype) == (lm.Sequential, model.step, model.seed, model.dtype)
    model.fit(X, Y, loss=CROSS_ENTROPY, optimizer="adam")
    np.testing.assert_allclose(part.predict(X), hidden, rtol=1e-5, atol=1e-6)  # it has values of its own


def test_until_several_layers_in_branches(tmp_path):
    a, b = lm.Input(4, name="a"), lm.Input(("T", 3), name="b")
    left = Dense(5, activation="relu")(a)
    right = Dense(5)(Bidirectional(LSTM(2, return_sequences=False))(b))
    model = lm.Model((a, b), Dense(2).named("out")(Add()(left, right)))
    model.freeze("bidirectional_1")
    x = {"a": RNG.normal(size=(6, 4)), "b": RNG.normal(size=(6, 3, 3))}
    model.fit(x, np.zeros((6, 2)), loss="mean_squared_error", optimizer="adam")
    both = model.until("bidirectional_1", "out")
    assert both.output_names == ("bidirectional_1", "out")
    sides, out = both.predict(x)
    np.testing.assert_array_equal(out, model.predict(x))
    alone = model.until("bidirectional_1")
    assert (alone.input_names, type(alone)) == (("b",), lm.Model)
    np.testing.assert_array_equal(alone.predict(x["b"]), sides)
    assert alone.frozen_layers == model.frozen_layers
    later = model.until("dense_2")  # without dense_1, which stands in the other branch
    later.save(tmp_path / "later.lamella")
    np.testing.assert_array_equal(lm.load(tmp_path / "later.lamella").predict(x["b"]), later.predict(x["b"]))
    assert later.predict(x["b"]).shape == (6, 5)


def test_until_keeps_backend_and_what_has_no_arrays():
    model = lm.Sequential([Flatten(), Dropout(0.5), Dense(2)], input_shape=(2, 2), backend="strict")
    assert model.until("flatten_1").predict(np.ones((3, 2, 2))).shape == (3, 4)
    assert (model.until("dense_1").backend, model.until("dropout_1").output_specs[0].shape) == ("strict", ("N", 4))
    for name, words in (
        (
            "dense_2",
            "until: no layer is called 'dense_2'; there are flatten_1, dropout_1, dense_1. Did you mean",
        ),
        (3, "until: no layer is called 3; there are"),
        ("", "until: no layer is called ''"),
    ):
        with pytest.raises(lm.ArgumentError, match=words):
            model.until(name)


# The search for a learning rate


def test_the_search_leaves_the_model_as_it_is_and_finds_a_rate_that_learns():
    model = classifier()
    model.train_on_batch(X, Y, loss=CROSS_ENTROPY, optimizer="adam")
    before, slots = model.copy(), {name: np.copy(slot) for name, slot in model.optimizer_state.slots.items()}
    found = model.find_learning_rate(X, Y, loss=CROSS_ENTROPY, optimizer="adam", highest=100.0, batch_size=10)
    assert_equal(model, before)
    assert (model.step, model.optimizer_state.t, model.history) == (1, 1, None)
    for name, slot in slots.items():
        np.testing.assert_array_equal(model.optimizer_state.slots[name], slot)
    assert found.rates[0] == pytest.approx(1e-6)
    assert 1e-3 < found.suggestion < 1.0
    assert len(found.rates) == len(found.losses) == len(found.smooth) <= 100
    optimizer = lm.optimizers.Adam(found.suggestion)
    history = model.copy().fit(X, Y, loss=CROSS_ENTROPY, optimizer=optimizer, epochs=20)
    assert history["loss"][-1] < 0.3 * history["loss"][0]


def test_rates_rise_by_one_factor_and_losses_are_those_of_steps():
    found = classifier().find_learning_rate(
        X, Y, loss=CROSS_ENTROPY, optimizer=lm.optimizers.SGD(5.0), lowest=0.01, highest=0.16, steps=5, batch_size=40
    )
    np.testing.assert_allclose(found.rates, [0.01, 0.02, 0.04, 0.08, 0.16], rtol=1e-12)
    twin = classifier()
    for rate, loss in zip(found.rates, found.losses, strict=True):
        told = twin.train_on_batch(X, Y, loss=CROSS_ENTROPY, optimizer=lm.optimizers.SGD(rate))
        assert told == pytest.approx(loss, rel=1e-5)
    assert found.suggestion == pytest.approx(0.016)  # the loss still falls at the end
    average, smooth = 0.0, []
    for k, loss in enumerate(found.losses, start=1):
        average = 0.9 * average + 0.1 * loss
        smooth.append(average / (1 - 0.9**k))
    np.testing.assert_allclose(found.smooth, smooth, rtol=1e-12)
    assert repr(found) == "<LearningRateSearch: 5 rates from 0.01 to 0.16, suggestion 0.016>"


def test_the_search_ends_where_the_loss_diverges():
    task = {"loss": "mean_squared_error", "optimizer": "sgd", "lowest": 1e-3}
    model, y = lm.Sequential([Dense(1)], input_shape=4, seed=1), X @ np.ones((4, 1))
    found = model.find_learning_rate(X, y, **task, highest=1e6, batch_size=10)
    assert len(found.rates) < 100
    assert found.smooth[-1] > 4 * min(found.smooth)
    assert all(found.smooth[k] <= 4 * min(found.smooth[: k + 1]) for k in range(len(found.smooth) - 1))
    sudden = model.find_learning_rate(1e18 * X, y, **task, batch_size=10)  # infinite from one step to the next
    assert (len(sudden.rates), sudden.suggestion) == (1, None)


def test_the_search_takes_what_fit_takes_and_refuses_what_it_can_not_use():
    model = classifier()
    task = {"loss": CROSS_ENTROPY, "optimizer": lm.optimizers.ExponentialMovingAverage("sgd"), "steps": 12}
    weighted = model.find_learning_rate(
        X, Y, **task, class_weight={0: 0.0}, penalties={"*": lm.regularization.L2(10.0)}, clip_norm=1.0
    )
    assert weighted.losses[0] > model.evaluate(X, Y, loss=CROSS_ENTROPY)["loss"] + 1.0
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    assert len(model.find_learning_rate(batches, **task).rates) == 12
    still = model.find_learning_rate(X, Y, loss=CROSS_ENTROPY, optimizer=lm.optimizers.SGD(), lowest=50.0, highest=60.0)
    assert still.suggestion is None or still.suggestion >= 5.0
    for options, words in (
        ({"lowest": 0.0}, "lowest: expected a number above 0, got 0.0"),
        ({"highest": 1e-7}, "highest: expected above lowest=1e-06, and at most 1e30 times it, got 1e-07"),
        ({"steps": 1}, "steps: expected an int of at least 2, got 1"),
    ):
        with pytest.raises(lm.ArgumentError, match=words):
            model.find_learning_rate(X, Y, loss=CROSS_ENTROPY, optimizer="sgd", **options)
    model.parameters["head.bias"] = [np.inf, 0.0, 0.0]
    with pytest.raises(lm.NonFiniteError):
        model.find_learning_rate(X, Y, loss=CROSS_ENTROPY, optimizer="sgd")
    with pytest.raises(lm.ArgumentError, match="find_learning_rate: no layer has parameters that are not frozen"):
        classifier().freeze("*").find_learning_rate(X, Y, loss=CROSS_ENTROPY, optimizer="sgd")


def test_the_search_draws_itself(tmp_path):
    pytest.importorskip("matplotlib")
    found = classifier().find_learning_rate(X, Y, loss=CROSS_ENTROPY, optimizer="adam", steps=30)
    (axes,) = found.plot(tmp_path / "rates.png").axes
    assert (tmp_path / "rates.png").stat().st_size > 1000
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), found.smooth)
    assert axes.lines[2].get_xdata() == [found.suggestion]
