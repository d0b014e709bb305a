"""What people type who know Keras, PyTorch or scikit-learn gets an error that says what stands for it here."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from wheels import run

import lamella as lm
import lamella_layers
from lamella import elsewhere
from lamella_layers import Concatenate, Dense, Dropout, Reshape

X, Y = np.ones((9, 6)), np.arange(9) % 3
TASK = {"loss": "softmax_cross_entropy", "optimizer": "adam"}


def model() -> lm.Sequential:
    return lm.Sequential([Dense(3)], input_shape=6)


def said(call, *args, **kwargs) -> str:
    with pytest.raises((AttributeError, TypeError)) as caught:
        call(*args, **kwargs)
    return str(caught.value)


CLASSES = {
    "LAYERS": lamella_layers,
    "LOSSES": lm.losses,
    "METRICS": lm.metrics,
    "OPTIMIZERS": lm.optimizers,
    "SCHEDULES": lm.schedules,
    "INITIALIZERS": lm.initializers,
    "CALLBACKS": lm.callbacks,
}


@pytest.mark.parametrize("table", CLASSES)
def test_every_class_that_has_another_name_here_is_found(table):
    for name, words in getattr(elsewhere, table).items():
        told = said(getattr, CLASSES[table], name).replace(" of lamella_layers", "")
        assert f"has no attribute {name!r}; what stands for it is {words}" in told


@pytest.mark.parametrize("table", CLASSES)
def test_every_such_class_is_found_by_an_import_too(table):
    module = CLASSES[table].__name__
    for name, words in getattr(elsewhere, table).items():
        with pytest.raises(ImportError) as caught:
            exec(f"from {module} import {name}")
        assert f"what stands for it is {words}" in str(caught.value).replace(" of lamella_layers", "")
        assert str(caught.value).startswith(f"cannot import name {name!r} from {module!r}; ")
        assert caught.value.name == module
        assert not hasattr(CLASSES[table], name)


FROM_IMPORTS = r"""
import sys
trace = lambda *_: trace
sys.settrace(trace)  # as debuggers and coverage do, which changes instructions
for words in (
    "lamella import keras: . Layers are in lamella_layers",
    "lamella import load_model as load: . It is called lm.load.",
    "lamella import Dense: ; from lamella_layers import Dense",
    "lamella_layers import Conv2d: ; from lamella_layers import Conv2D",
    "lamella_onnx import verfy: . Did you mean 'verify'?",
    "lamella_serve import aplication: . Did you mean 'application'?",
    "lamella.layers import Conv2D: ; from lamella_layers import Conv2D",
    "lamella.layers import Conv2d: ; from lamella_layers import Conv2D",
    "lamella.layers import MaxPool2D: ; what stands for it is MaxPooling2D() of lamella_layers",
    "lamella.layers import StringLookup: ; what stands for it is OrdinalEncoder",
    "lamella.layers import nonsense: ; layers are in lamella_layers",
    "lamella_sklearn import to_onx: . Did you mean 'to_onnx'?",
    "lamella.callbacks import EarlyStoping: (",  # Python's own words, where there is nothing to add
):
    asked, _, words = words.partition(": ")
    try:
        exec("\n".join(f"x{k} = {k}" for k in range(300)) + f"\nfrom {asked}")  # more names than fit in one byte
    except ImportError as error:
        assert f"cannot import name {asked.split()[2]!r} from {asked.split()[0]!r}" in str(error), error
        assert words in str(error), error
    else:
        raise AssertionError(asked)
"""


def test_layers_are_a_table_still_and_no_module():
    run(
        "-c",
        "import lamella.layers, sys, inspect, pkgutil\n"
        "assert 'dense' in lamella.layers()\n"
        "import lamella.layers as layers\n"
        "assert 'dense' in layers()\n"
        "assert not hasattr(lamella.layers, '__path__')\n"
        "[(inspect.ismodule(one), getattr(one, '__file__', None)) for one in list(sys.modules.values())]\n"
        "assert 'layers' not in [one.name for one in pkgutil.iter_modules(lamella.__path__)]\n",
    )


def test_only_what_is_a_layer_here_is_of_the_package_of_layers():
    assert said(getattr, lm, "StringLookup").endswith("which lamella_sklearn.to_onnx writes whole, text included")
    assert said(getattr, lm, "MaxPool2D").endswith("; what stands for it is MaxPooling2D() of lamella_layers")
    assert said(getattr, lamella_layers, "Input").endswith("; what stands for it is lm.Input(shape)")
    assert said(getattr, lm, "TimeDistributed").endswith(
        "Dense(units) of lamella_layers, which works on every step as it is"
    )


def test_what_stands_for_a_repeated_vector_repeats_it():
    x = lm.Input(3)
    y = Concatenate(axis=1)(*[Reshape((1, 3))(x)] * 4)
    np.testing.assert_array_equal(lm.Model(x, y).predict([[1, 2, 3]]), np.tile([1.0, 2.0, 3.0], (1, 4, 1)))


def test_a_class_says_which_argument_there_is_not_and_what_it_is_called():
    told = said(lambda: Dropout(p=0.3))
    assert told == "Dropout(rate): there is no argument 'p'. It is called rate."
    assert said(lambda: Dense(3, unit=4)).endswith(": there is no argument 'unit'. Did you mean 'units'?")


COMPILED = "Nothing is compiled into a model: loss='...' stands in every call, and in fit and evaluate metrics=[...]."


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: model().evaluate(X, Y), f"Sequential.evaluate: loss is missing. {COMPILED}"),
        (
            lambda: model().fit(X, Y),
            f"Sequential.fit: loss and optimizer are missing. {COMPILED} Likely fix: optimizer=",
        ),
        (
            lambda: model().fit(X, Y, loss="mse"),
            "Sequential.fit: optimizer is missing. Likely fix: optimizer='adam', or",
        ),
        (lambda: model().gradients(X, Y), f"Sequential.gradients: loss is missing. {COMPILED}"),
        (lambda: model().train_on_batch(X, **TASK), "Sequential.train_on_batch: y is missing."),
        (lambda: model().predict(), "Sequential.predict: x is missing."),
        (lambda: model().predict(X, verbose=0), "Sequential.predict: there is no argument 'verbose'. Say progress="),
        (lambda: lm.Model(lm.Input(3)), "Model: outputs is missing."),
    ],
)
def test_arguments_that_are_missing_are_told_with_what_to_say(call, words):
    assert said(call).startswith(words)


def test_the_digits_are_found_in_the_package():
    run("-c", "import lamella as lm; images, labels = lm.datasets.digits()")


def test_what_an_import_gets_is_more_than_pythons_own_words():
    run("-c", FROM_IMPORTS)


def test_every_name_of_the_package_that_means_something_else_here_is_found():
    for name, words in elsewhere.PACKAGE.items():
        assert said(getattr, lm, name).endswith(f"has no attribute {name!r}. {words}.")


@pytest.mark.parametrize("name", elsewhere.MODEL)
def test_every_attribute_of_a_model_elsewhere_is_answered(name):
    said_of = said(lambda: setattr(model(), name, None)) if hasattr(model(), name) else said(getattr, model(), name)
    assert said_of.endswith(f". {elsewhere.MODEL[name]}.")


@pytest.mark.parametrize("name", elsewhere.SET)
def test_every_attribute_that_would_be_set_in_vain_is_answered(name):
    assert said(lambda: setattr(model(), name, None)).endswith(f" {elsewhere.SET[name]}.")


ARGUMENTS = [
    ("FIT", lambda **given: model().fit(X, Y, **TASK, **given)),
    ("FIT", lambda **given: model().evaluate(X, Y, loss="huber", **given)),
    ("FIT", lambda **given: model().train_on_batch(X, Y, **TASK, **given)),
    ("FIT", lambda **given: model().gradients(X, Y, loss="huber", **given)),
    ("EVALUATE", lambda **given: model().evaluate(X, Y, loss="huber", **given)),
    ("EVALUATE", lambda **given: model().predict(X, **given)),
    ("CALL", lambda **given: Dense(3)(lm.Input(6), **given)),
    ("LAYER", lambda **given: Dense(3, **given)),
    ("LOSS", lambda **given: lm.losses.MeanSquaredError(**given)),
    ("METRIC", lambda **given: lm.metrics.AUC(**given)),
    ("METRIC", lambda **given: lm.metrics.Accuracy(**given)),
    ("OPTIMIZER", lambda **given: lm.optimizers.Adam(0.1, **given)),
    ("CALLBACK", lambda **given: lm.callbacks.EarlyStopping(**given)),
    ("CALLBACK", lambda **given: lm.callbacks.ReduceOnPlateau(**given)),
    ("CALLBACK", lambda **given: lm.callbacks.Checkpoint("x.lamella", **given)),
    ("CALLBACK", lambda **given: lm.callbacks.CSVLogger("x.csv", **given)),
    ("CALLBACK", lambda **given: lm.callbacks.TensorBoardLogger("x", **given)),
]


@pytest.mark.parametrize(("table", "call"), ARGUMENTS)
def test_every_argument_elsewhere_is_answered(table, call):
    for name, words in getattr(elsewhere, table).items():
        assert said(call, **{name: None}).endswith(f"argument {name!r}. {words}.")


@pytest.mark.parametrize(
    ("table", "thing"),
    [
        ("LAYER", Dense(3)),
        ("LOSS", lm.losses.MeanSquaredError()),
        ("METRIC", lm.metrics.Accuracy()),
        ("OPTIMIZER", lm.optimizers.Adam()),
    ],
)
def test_arguments_are_attributes_too(table, thing):
    names = [name for name in getattr(elsewhere, table) if not hasattr(type(thing), name)]
    assert len(names) > 3
    for name in names:
        words = getattr(elsewhere, table)[name]
        assert said(getattr, thing, name) == f"{type(thing).__name__} has no {name!r}. {words}."
        assert f" {words}." in said(lambda name=name: setattr(thing, name, None))


def test_attributes_of_callbacks_and_histories_are_answered_too():
    for name, words in elsewhere.CALLBACK.items():
        assert said(getattr, lm.Callback(), name) == f"Callback has no {name!r}. {words}."
    for name, words in elsewhere.HISTORY.items():
        assert said(getattr, lm.History(), name) == f"History has no {name!r}. {words}."
    assert said(getattr, lm.History(), "bogus") == "History has no 'bogus'."
    assert said(getattr, lm.Callback(), "bogus") == "'Callback' object has no attribute 'bogus'"
    history = lm.History()
    history.add({"loss": 0.5})
    assert copy.deepcopy(history).history == pickle.loads(pickle.dumps(history)).history == {"loss": [0.5]}


def test_an_answer_goes_without_a_guess_of_pythons():
    """Where an error holds its object, Python adds a guess when it prints: "Did you mean: 'load_weights'?"."""
    for thing, name in ((model(), "set_weights"), (lamella_layers.Normalization(), "adapt")):
        with pytest.raises(AttributeError) as caught:
            getattr(thing, name)
        assert (caught.value.name, caught.value.obj) == (name, None)
    own = model()
    with pytest.raises(AttributeError) as caught:
        own.fitt  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("fitt", own)


@pytest.mark.parametrize("dtype", ["string", "str", str, "object", object])
def test_an_input_of_text_is_answered(dtype):
    for call in (lambda: lm.Input(1, dtype), lambda: lm.Sequential([Dense(1)], input_shape=1, input_dtype=dtype)):
        with pytest.raises(lm.ArgumentError, match=r"expected one of 'float32'.* or OneHotEncoder of scikit-learn in"):
            call()


def test_an_array_of_another_shape_is_refused_by_its_name_wherever_it_is_assigned():
    own = model()
    for call in (
        lambda value: own.assign({"dense_1.bias": np.ones(3), "dense_1.kernel": value}),
        lambda value: own.parameters.__setitem__("dense_1.kernel", value),
    ):
        with pytest.raises(lm.DataError, match=r"\['dense_1.kernel'\]: expected shape \(6, 3\), got \(3, 6\)"):
            call(np.zeros((3, 6)))
        with pytest.raises(lm.DataError, match=r"\['dense_1.kernel'\]: expected numbers, got dtype <U1"):
            call(np.full((6, 3), "a"))
    assert not own.parameters["dense_1.bias"].any()
    own.assign({"dense_1.bias": [1, 2, 3]})
    assert own.parameters["dense_1.bias"].tolist() == [1.0, 2.0, 3.0]


def test_an_input_first_in_a_chain_is_one_error():
    for options in ({}, {"input_shape": 6}):
        with pytest.raises(
            lm.ArgumentError, match=r"got an input. Likely fix: leave it out, and say input_shape=\(6,\)$"
        ):
            lm.Sequential([lm.Input(6), Dense(3)], **options)
    with pytest.raises(lm.ArgumentError, match=r"say input_shape=\(8, 'T'\), input_dtype='int64'$"):
        lm.Sequential([lm.Input((8, "T"), "int64"), Dense(3)])


def test_nodes_in_a_dict_are_told_where_names_come_from():
    x = lm.Input(3)
    with pytest.raises(
        lm.GraphError, match=r"inputs: .* dict with \['x'\]. Likely fix: list\(inputs.values\(\)\), .*Input"
    ):
        lm.Model({"x": x}, Dense(3)(x))
    with pytest.raises(
        lm.GraphError, match=r"outputs: .* dict with \['y'\]. Likely fix: list\(outputs.val.*\.named\('"
    ):
        lm.Model(x, {"y": Dense(3)(x)})


@pytest.mark.parametrize("place", [0, -1, slice(1)])
def test_layers_go_by_name_and_places_are_answered(place):
    with pytest.raises(KeyError, match=r"there are dense_1. By their places: list\(model.layers.values\(\)\)\[0\]"):
        model().layers[place]


def test_one_row():
    one = lm.Sequential([Dense(2)], input_shape=1)
    expected = one.predict([[3.0]])
    for row in ([3.0], np.array([3.0]), np.array([3]), {"input_1": [3.0]}):
        np.testing.assert_array_equal(one.predict(row), expected)
    for scalar in (3.0, np.float32(3.0), {"input_1": 3}):
        with pytest.raises(lm.DataError, match=r"expected \(N, 1\) float32, got \(\) \w+. For one row give \[x\]\."):
            one.predict(scalar)
    assert one.predict([1.0, 2.0, 3.0]).shape == (3, 2)  # as targets (N,) go with a model of (N, 1)
    one.fit(np.arange(4.0), np.eye(2)[[0, 1, 0, 1]], loss="mean_squared_error", optimizer="sgd")
    with pytest.raises(lm.DataError, match=r"got \(\) float64\.$"):
        model().predict(3.0)


def test_arrays_of_text_are_told_as_text():
    one = lm.Sequential([Dense(2)], input_shape=1)
    for text in (np.array(["yes"]), ["yes", "no"], [["yes"]], np.array(["yes", None], object), np.array([b"yes"])):
        with pytest.raises(lm.DataError, match=r"which is text. Likely fix: integers in its place, \[kinds.index"):
            one.predict(text)
        with pytest.raises(lm.DataError, match=r"which is text. Likely fix: integers"):
            one.predict({"input_1": text})
    kinds = sorted(set(x := ["yes", "no", "yes"]))
    assert one.predict([kinds.index(each) for each in x]).shape == (3, 2)  # as the error writes it
    with pytest.raises(lm.DataError, match=r"got \(2,\) <U3, which is text. Likely fix: x.astype\('float32'\)"):
        one.predict(np.array(["1.5", "2"]))
    with pytest.raises(lm.DataError, match=r"got \(1, 6\) <U1, which is text. Likely fix: numbers in its place"):
        model().predict([["a"] * 6])
    with pytest.raises(lm.DataError, match=r"got \(1, 6\) object; give numeric data"):
        model().predict(np.full((1, 6), None))


def test_files_of_keras_and_pytorch_are_told_by_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("metadata.json", "{}")
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for name, told in (("model.keras", "a zip archive, as .keras files"), ("model.h5", "an HDF5 file, as .h5 files")):
        for call in (lm.load, model().load_weights, lm.inspect):
            with pytest.raises(lm.DataError, match=f"got {told} .*Likely fix: make a model of the same layers"):
                call(tmp_path / name)


def test_other_names_of_arguments_and_registered_names():
    for theirs, ours in {"restore_best_weights": "restore_best", "min_delt": "min_delta"}.items():
        assert f"Did you mean {ours!r}?" in said(lm.callbacks.EarlyStopping, **{theirs: True})
    assert "Did you mean 'min_learning_rate'?" in said(lm.callbacks.ReduceOnPlateau, min_lr=0.1)
    assert "Did you mean 'path'?" in said(lm.callbacks.Checkpoint, filepath="x")
    with pytest.raises(lm.RegistryError, match="unknown name 'linear'. Did you mean 'dense'"):
        lm.layer("linear")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: model().fit(X, Y, 10, 32),
            "Sequential.fit: expected x and y by position and all others by name, got 10, 32 besides. Likely fix: name "
            "it, as one of loss=, optimizer=, epochs=, batch_size=, validation_data=, validation_split=, ...",
        ),
        (
            lambda: Dense(3, "relu"),
            "expected units by position and all others by name, got 'relu' besides. Likely fix: name it, as one of "
            "use_bias=, activation=, kernel_initializer=",
        ),
        (
            lambda: lm.optimizers.AdamW(1e-3, 1e-4),
            "got 0.0001 besides. Likely fix: name it, as one of beta_1=, beta_2=,",
        ),
        (lambda: lamella_layers.DepthwiseConv2D(3, 2), "name it, as one of depth_multiplier=, strides=, padding="),
        (lambda: lamella_layers.GroupNormalization(8, 1), "name it, as one of epsilon=, axis="),
        (lambda: lamella_layers.Normalization(-1), "name it, as one of mean=, variance=, axis="),
        (lambda: lm.losses.MeanSquaredError(1), "expected nothing by position, got 1 besides."),
        (lambda: lm.Sequential(Dense(3), Dense(2)), "All layers stand in one list: lm.Sequential([layer, layer]"),
        (lambda: lm.callbacks.EarlyStopping("loss", 0.1), "name it, as one of patience=, min_delta=, mode="),
        (lambda: lm.layers.Dense, "lm.layers() is the table of all layers, and has no 'Dense'; from lamella_layers"),
        (lambda: lm.layers.Conv2d, "; from lamella_layers import Conv2D"),
        (lambda: lm.layers.Linear, "what stands for it is Dense(units) of lamella_layers"),
        (lambda: lm.Linear, "what stands for it is Dense(units) of lamella_layers"),
        (lambda: lm.Dense, "; from lamella_layers import Dense"),
        (lambda: lm.optimizers.Adam(model().parameters(), lr=0.1), "fit gives it the model's parameters"),
    ],
)
def test_calls_of_other_libraries(call, words):
    assert words in said(call)


def test_what_evaluate_returns_is_not_taken_apart_into_names(tmp_path):
    import json

    import lamella_onnx

    lamella_onnx.export_training_step(model(), tmp_path / "step", **TASK, samples=(X, Y))
    session = lamella_onnx.TrainingSession(tmp_path / "step")
    for measured in (
        model().evaluate(X, Y, loss="softmax_cross_entropy", metrics="accuracy"),
        session.evaluate(X, Y, metrics="accuracy"),
    ):
        with pytest.raises(TypeError, match=r"a dict by name, {'loss': .*}, and .* loss, ... = measured.values\(\)"):
            loss, accuracy = measured
        with pytest.raises(TypeError, match="a dict by name"):
            loss, *_ = measured
        with pytest.raises(TypeError, match="a dict by name"):
            for loss, accuracy in [measured]:  # noqa: B007
                pass
        loss, accuracy = measured.values()
        assert measured == {"loss": loss, "accuracy": accuracy} == {**measured} == dict(measured)
        assert isinstance(measured, dict)
        assert list(measured) == sorted(measured, reverse=True) == [*measured]
        assert json.loads(json.dumps(measured)) == measured == pickle.loads(pickle.dumps(measured))
        assert copy.deepcopy(measured) == measured | {}
        assert repr(measured).startswith("{'loss': ")


def test_a_model_called_on_arrays_says_predict():
    with pytest.raises(lm.GraphError, match=r"Sequential was called with ndarray.*model.predict\(x\) takes arrays"):
        model()(X)
    with pytest.raises(lm.ArgumentError, match=r"expected a list of at least one layer, got \(\)"):
        lm.Sequential()


class Broken(lm.Layer):
    @property
    def weights(self):
        return self.bogus

    def forward_pass(self, ctx, x):
        return x


def test_a_property_that_fails_says_why_itself():
    assert "'Broken' object has no attribute 'bogus'" in said(lambda: Broken().weights)


class Owner(lm.Sequential):
    """A subclass of users has attributes of its own, under names that mean something elsewhere too."""

    def __init__(self):
        super().__init__([Dense(3)], input_shape=6)
        self.score = 0.5

    @property
    def weights(self):
        return self.bogus


def test_subclasses_have_attributes_of_their_own():
    owner = Owner()
    assert owner.score == 0.5
    assert said(lambda: owner.weights) == "Owner has no 'bogus'."
    assert re.search("has no 'predict_proba'", said(getattr, owner, "predict_proba"))


PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
DEFAULTS = re.findall(
    r"^\| `(\w+)\(([\w, ]+)\)` \| ([^|]*) \| ([^|]*) \| ?([^|]*?) ?\|$", PAGE.read_text(), re.MULTILINE
)
THEIRS = {  # what arguments are called elsewhere, where it is not the same
    "keras": {"restore_best": "restore_best_weights"},
    "torch": {"learning_rate": "lr", "epsilon": "eps"},
}


def defaults(cls: type, names: list[str]) -> list[float]:
    parameters = inspect.signature(cls).parameters
    return [float(parameters[name].default) for name in names]


@pytest.mark.parametrize(("cls", "arguments", "own", "keras", "torch"), DEFAULTS)
def test_the_table_of_defaults_is_right(cls, arguments, own, keras, torch):
    names = arguments.split(", ")
    modules = (lm.optimizers, lm.callbacks, lamella_layers)
    (found,) = [getattr(module, cls) for module in modules if cls in module.__all__]
    assert defaults(found, names) == [float(eval(value)) for value in own.split(", ")]
    for library, told in (("keras", keras), ("torch", torch)):
        if not told or not importlib.util.find_spec(library):
            continue
        if library == "keras":
            os.environ.setdefault("KERAS_BACKEND", "torch")
        module = importlib.import_module(library)
        kinds = ("optimizers", "callbacks", "layers") if library == "keras" else ("optim", "nn")
        other = f"{cls[:9]}2d" if (cls, library) == ("BatchNormalization", "torch") else cls
        (theirs,) = [getattr(part, other) for kind in kinds if hasattr(part := getattr(module, kind), other)]
        called = [THEIRS[library].get(name, name) for name in names]
        called = ["alpha" if (name, cls, library) == ("rho", "RMSprop", "torch") else name for name in called]
        assert defaults(theirs, called) == [float(eval(value)) for value in told.split(", ")], library


def test_the_table_of_defaults_is_read():
    assert len(DEFAULTS) == 8
