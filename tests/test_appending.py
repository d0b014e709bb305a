"""Layers after the outputs: what ``predict``, ``evaluate`` and ``export`` take as ``append``, and new models."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import onnxruntime
import pytest

import lamella as lm
import lamella_onnx
from lamella_layers import LSTM, Activation, BatchNormalization, Dense, Rescaling

RNG = np.random.default_rng(5)
X, LABELS = RNG.standard_normal((30, 4)), RNG.integers(0, 3, 30)
TASK = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.Adam(0.1)}
SOFTMAX = Activation("softmax")


def classifier(**options) -> lm.Sequential:
    return lm.Sequential([Dense(8), BatchNormalization(), Dense(3)], input_shape=4, **options)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def heads(**options) -> lm.Model:
    x = lm.Input(4)
    return lm.Model(x, (Dense(3).named("kind")(x), Dense(1).named("sold")(x)), **options)


@pytest.mark.parametrize("backend", ["numpy", "strict", "onnxruntime"])
def test_probabilities_follow_the_model_as_it_learns(backend):
    model = classifier(backend=backend)
    for _ in range(3):
        model.train_on_batch(X, LABELS, **TASK)
        np.testing.assert_allclose(model.predict(X, append=SOFTMAX), softmax(model.predict(X)), rtol=1e-5)
        np.testing.assert_allclose(model.predict(X, 7, append=SOFTMAX), softmax(model.predict(X)), rtol=1e-5)
    model.parameters["dense_2.bias"] = [0.0, 50.0, 0.0]
    assert set(model.predict(X, append=SOFTMAX).argmax(axis=1)) == {1}
    assert model.predict(X[:0], append=SOFTMAX).shape == (0, 3)


def test_what_was_prepared_is_kept_for_equal_layers(monkeypatch):
    model, made, extended = classifier(), [], lm.network.extended
    monkeypatch.setattr(lm.network, "extended", lambda *args: made.append(args) or extended(*args))
    for _ in range(3):
        model.predict(X, append=Activation("softmax"))
        model.predict(X, append=[Activation("softmax")])
        model.evaluate(X, LABELS, loss="categorical_cross_entropy", append=Activation("softmax"))
    assert len(made) == 1
    for function in ("relu", "tanh", "sigmoid", "elu", "softmax"):  # softmax is the oldest of five
        model.predict(X, append=Activation(function))
    assert len(made) == 6
    model.to("strict")
    model.predict(X, append=Activation("softmax"))
    assert len(made) == 7


def test_an_activation_that_a_script_registers_again_is_another():
    model = classifier()
    for factor in (2.0, 3.0):
        lm.register("times")(
            lm.ActivationFunction(lambda xp, x, f=factor: x * f, lambda xp, x, y, dy, f=factor: dy * f)
        )
        np.testing.assert_allclose(model.predict(X, append=Activation("times")), model.predict(X) * factor, rtol=1e-6)


def test_layers_with_arrays_are_put_together_anew():
    model, head = classifier(), lm.Sequential([Dense(2)], input_shape=3)
    head.train_on_batch(np.ones((5, 3)), np.ones((5, 2)), loss="huber", optimizer="sgd")
    for _ in range(2):
        np.testing.assert_allclose(model.predict(X, append=head), head.predict(model.predict(X)), rtol=1e-5)
        head.train_on_batch(np.ones((5, 3)), np.ones((5, 2)), loss="huber", optimizer="sgd")
        model.train_on_batch(X, LABELS, **TASK)
    assert model.predict(X, append=[Dense(5), SOFTMAX]).shape == (30, 5)
    assert not model._longer


def test_outputs_go_by_their_names():
    model = heads()
    kind, sold = model.predict(X, append={"kind": SOFTMAX})
    plain = model.predict(X)
    np.testing.assert_allclose(kind, softmax(plain[0]), rtol=1e-5)
    assert np.array_equal(sold, plain[1])
    y = {"kind": LABELS, "sold": X[:, 0]}
    loss = {"kind": "categorical_cross_entropy", "sold": "huber"}
    measured = model.evaluate(X, y, loss=loss, metrics={"kind": "accuracy"}, append={"kind": SOFTMAX})
    wanted = model.evaluate(X, y, loss=loss | {"kind": "softmax_cross_entropy"}, metrics={"kind": "accuracy"})
    assert measured == pytest.approx(wanted, rel=1e-5)


def test_a_new_model_has_values_names_and_what_is_frozen(tmp_path):
    model = heads()
    model.fit(X, (LABELS, X[:, 0]), loss=("softmax_cross_entropy", "huber"), optimizer="adam")
    model.freeze("sold")
    longer = model.appended({"kind": [Dense(5).named("more"), SOFTMAX]})
    assert type(longer) is lm.Model
    assert longer.output_names == ("kind", "sold")
    assert longer.frozen_layers == {"sold"}
    assert longer.step == model.step
    model.parameters["kind.bias"] = [9.0, 9.0, 9.0]
    assert longer.parameters["kind.bias"].max() < 9.0
    longer.save(tmp_path / "longer.lamella")
    wide = longer.copy(dtype="float64")
    for again in (
        lm.load(tmp_path / "longer.lamella"),
        copy.deepcopy(longer),
        pickle.loads(pickle.dumps(longer)),
        wide,
    ):
        assert again.output_names == ("kind", "sold")
        np.testing.assert_allclose(again.predict(X)[0], longer.predict(X)[0], rtol=1e-5)
    report = lamella_onnx.export(longer, tmp_path / "longer.onnx")
    assert {row.output for row in report.agreements} == {"kind", "sold"}
    lamella_onnx.verify(tmp_path / "longer.onnx", model=longer)
    session = onnxruntime.InferenceSession(tmp_path / "longer.onnx")
    assert [output.name for output in session.get_outputs()] == ["kind", "sold"]
    longer.fit(X, {"kind": LABELS, "sold": X[:, 0]}, loss=("categorical_cross_entropy", "huber"), optimizer="adam")


@pytest.mark.parametrize(
    ("last", "append", "expected"),
    [
        (Dense(1).named("deny"), Activation("sigmoid"), "deny"),
        (Dense(1).named("deny"), [Dense(2), SOFTMAX], "deny"),
        (Dense(1).named("deny"), Activation("sigmoid").named("risk"), "risk"),
        (Dense(1).named("deny"), [Dense(2).named("between"), SOFTMAX], "deny"),
        (Dense(1).named("deny"), [Dense(2).named("risk"), Rescaling(0.5), Activation("sigmoid").named("p")], "p"),
        (Dense(1).named("deny"), lm.Sequential([Dense(2).named("inner")], input_shape=1), "inner"),
        (Dense(1), Activation("sigmoid"), "activation_1"),  # what nobody gave is made up anew
        (Dense(1), Activation("sigmoid").named("risk"), "risk"),
        (Dense(2, activation="relu").named("deny"), SOFTMAX, "deny"),
    ],
)
def test_a_single_output_keeps_the_name_that_it_was_given(tmp_path, last, append, expected):
    model = lm.Sequential([Dense(3), last], input_shape=4)
    longer = model.appended(append)
    assert longer.output_names == (expected,)
    assert lm.from_config(longer.config()).output_names == (expected,)
    lamella_onnx.export(model, tmp_path / "longer.onnx", append=append)
    session = onnxruntime.InferenceSession(tmp_path / "longer.onnx")
    assert [output.name for output in session.get_outputs()] == [expected]
    (found,) = session.run([expected], {"input_1": X.astype("float32")})
    if longer.graph.arrays.keys() == model.graph.arrays.keys():
        np.testing.assert_allclose(found, model.predict(X, append=append), rtol=1e-5)
    assert lamella_onnx.verify(tmp_path / "longer.onnx").agrees
    again = longer.appended(Activation("tanh"))  # a name that was kept is kept again
    assert again.output_names == (("activation_2",) if expected == "activation_1" else (expected,))


def test_a_name_is_of_one_output():
    """An output that becomes several has names of the layer that makes them."""

    class Halves(lm.Layer):
        def build(self, declare, x):
            return x, x

        def forward_pass(self, ctx, x):
            return x * 0.5, x * 0.5

        def backward_pass(self, ctx, dy, dz):
            return dy * 0.5 + dz * 0.5

    model = lm.Sequential([Dense(1).named("deny")], input_shape=4)
    assert model.appended(Halves()).output_names == ("halves_1.0", "halves_1.1")


def test_names_in_a_file_are_checked():
    config = heads().appended({"kind": SOFTMAX}).config()
    assert config["output_names"] == ["kind", "sold"]
    for names in (["kind"], ["kind", "kind"], ["kind", ""], [1, 2], ["input_1", "sold"], 5):
        with pytest.raises(lm.DataError, match="from_config: this is no configuration of a model"):
            lm.from_config({**config, "output_names": names})
    assert "output_names" not in heads().config()


def test_mistakes_are_told_where_they_are_made():
    model = lm.Sequential([Dense(1)], input_shape=4)
    for call in (
        lambda: model.predict(X, append=SOFTMAX),
        lambda: model.evaluate(X, X[:, 0], loss="huber", append=[SOFTMAX]),
        lambda: model.appended(SOFTMAX),
    ):
        model._longer.clear()
        with pytest.warns(lm.MistakeWarning, match="runs along an axis of size 1") as told:
            call()
        assert [one.filename for one in told] == [__file__]


@pytest.mark.parametrize(
    ("append", "error", "words"),
    [
        ("softmax", lm.ArgumentError, r"append: expected a layer or several, got 'softmax'; did you mean Activation"),
        ([Activation], lm.ArgumentError, r"did you mean Activation\(\.\.\.\)\?"),
        ([], lm.ArgumentError, r"append: expected a layer or several, got \[\]"),
        ({}, lm.ArgumentError, "append: expected layers for an output or more, kind, sold, got {}"),
        (np.ones(3), lm.ArgumentError, "append: expected a layer or several, got array"),
        ({"knd": SOFTMAX}, lm.ArgumentError, "append: unknown output 'knd'; expected kind, sold. Did you mean 'kind'"),
        ({3: SOFTMAX}, lm.ArgumentError, "append: unknown output 3; expected kind, sold."),
        (SOFTMAX, lm.ArgumentError, r"can't take all 2 outputs, kind, sold, at once.* append=\{'sold': Activation"),
        ({"sold": LSTM(3)}, lm.GraphError, r"LSTM\(3\), called with \(N, 1\)"),
    ],
)
def test_what_can_not_follow_is_told(append, error, words):
    model = heads()
    for call in (
        lambda: model.predict(X, append=append),
        lambda: model.evaluate(X, (LABELS, LABELS), loss="huber", append=append),
        lambda: model.appended(append),
    ):
        with pytest.raises(error, match=words):
            call()
    assert not model._longer


def test_a_model_is_let_go_with_what_it_kept():
    gc.disable()  # without waiting for the collector
    try:
        model = classifier()
        model.predict(X, append=SOFTMAX)
        watched = weakref.ref(model)
        del model
        assert watched() is None
        assert classifier().predict(X, append=SOFTMAX).shape == (30, 3)
        assert classifier().evaluate(X, LABELS, loss="categorical_cross_entropy", append=SOFTMAX)["loss"] > 0
    finally:
        gc.enable()


def test_others_predict_while_a_thread_trains():
    model, odd = lm.Sequential([Dense(3, kernel_initializer="zeros")], input_shape=4), []
    done = threading.Event()

    def watch():
        while not done.is_set():
            p = model.predict(np.ones((1, 4)), append=Rescaling(2.0))
            odd.extend(row for row in p if len(set(row)) != 1)  # all units learn alike, so a mixture would show

    threads = [threading.Thread(target=watch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)), loss="mean_squared_error", optimizer="sgd")
    done.set()
    for thread in threads:
        thread.join()
    assert not odd
