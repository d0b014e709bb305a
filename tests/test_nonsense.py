"""Nonsense for every public call: one clear error, or a meaning that is right; what was there stays as it was."""

from __future__ import annotations

import inspect
import os
import random
import re

import nonsense
import numpy as np
import pytest
from nonsense import ENGINE, Count, examples, faults, model, public_calls, random_faults, state_of, values_for

import lamella as lm
import lamella_onnx
from lamella import initializers
from lamella.errors import shown
from lamella_layers import Conv2D, Dense, MaxPooling1D, Rescaling

CALLS = int(os.environ.get("LAMELLA_NONSENSE", "0"))
PUBLIC = dict(public_calls())


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_public_call_has_an_example():
    """A name that is new in an ``__all__``, a new method and a new argument without a default need one."""
    known, missing = examples(), []
    for name, call in PUBLIC.items():
        owner, _, method = name.rpartition(".")
        homes = {name, *(f"{base}.{method}" for base in _bases(owner))}
        found = [example for example in known if example.partition(",")[0] in homes]
        if name not in ENGINE and not found and _takes_arguments(call):
            missing.append(name)
        for example in found:
            own = known[example]()
            if needed := [one for one in _needed(own) if one not in own.valid]:
                missing.append(f"{example}({', '.join(needed)})")
    assert not missing, (
        f"{', '.join(missing)}: no example of valid arguments; add one to `examples` in tests/nonsense.py, or, where "
        "no user calls it, the reason to `ENGINE`"
    )
    assert not ENGINE.keys() - PUBLIC.keys() - {"primitives.Primitive.__call__"}, "ENGINE names what there is no more"


def _bases(owner):
    """The public names of a class and of those that it extends."""
    kind = PUBLIC.get(owner)
    classes = [(name, thing) for name, thing in PUBLIC.items() if isinstance(thing, type)]
    return [name for name, thing in classes if isinstance(kind, type) and thing in kind.__mro__]


def _takes_arguments(call):
    return any(name != "self" for name in inspect.signature(call).parameters)


def _needed(example):
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, one in example.parameters().items() if one.default is one.empty and one.kind not in several]


def test_a_new_public_call_is_noticed(monkeypatch):
    def launder(money):
        return money

    monkeypatch.setattr(lm.losses, "launder", launder, raising=False)
    monkeypatch.setattr(lm.losses, "__all__", [*lm.losses.__all__, "launder"])
    monkeypatch.setitem(PUBLIC, "losses.launder", dict(public_calls())["losses.launder"])
    with pytest.raises(AssertionError, match=r"losses\.launder: no example of valid arguments; add one"):
        test_every_public_call_has_an_example()


def test_nonsense_for_each_argument_in_turn():
    """``LAMELLA_NONSENSE=1`` and more try more values."""
    count, found = Count(), []
    for name, make in examples().items():
        public = PUBLIC.get(name.partition(",")[0])
        found += faults(name, make, public, lambda valid: values_for(valid, more=bool(CALLS)), count)
    print(count)
    assert not found, f"{len(found)} of {count.calls} calls:\n" + "\n".join(found)


def test_nonsense_for_several_arguments_at_once():
    """``LAMELLA_NONSENSE=100000 pytest`` makes that many calls; ``LAMELLA_SEED`` repeats a run."""
    seed = int(os.environ.get("LAMELLA_SEED") or random.randrange(1 << 30))
    print(f"LAMELLA_SEED={seed}")
    count = Count()
    found = list(random_faults(seed, CALLS or 500, count))
    print(count)
    assert not found, f"LAMELLA_SEED={seed}: {len(found)} of {count.calls} calls:\n" + "\n".join(found)


class Raising:
    def __repr__(self):
        raise RuntimeError("no repr")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")


X, Y = nonsense.X, nonsense.Y
FIT = {"loss": "huber", "optimizer": "sgd", "progress": False}


# what is called, the class of the error, its words
TABLE = [
    (lambda: lm.layer(None), lm.ArgumentError, "layers: expected a registered name, got None"),
    (lambda: lm.layer(b"dense"), lm.ArgumentError, "layers: expected a registered name, got b'dense'"),
    (lambda: model().parameters[5], KeyError, "no parameters called 5; there are dense_1.kernel"),
    (lambda: model().parameters[[]], KeyError, "no parameters called []; there are dense_1.kernel"),
    (lambda: model().layers[None], KeyError, "no layer called None; there are dense_1, head."),
    (lambda: model().copy_values(None), lm.ArgumentError, "copy_values: other: expected a model, got None"),
    (lambda: model().differing("x"), lm.ArgumentError, "differing: other: expected a model, got 'x'"),
    (
        lambda: model().load_weights("m", []),
        lm.ArgumentError,
        "load_weights: mapping: expected a dict of the model's names to names in the file, or None, got []",
    ),
    (lambda: lm.ArraySpec(None), lm.ArgumentError, "ArraySpec: shape: expected a tuple of sizes such as ('N', 28, 28)"),
    (lambda: lm.ArraySpec("N4"), lm.ArgumentError, "ArraySpec: shape: expected a tuple of sizes such as ('N', 28, 28)"),
    (
        lambda: lm.ArraySpec(("N",), None),
        lm.ArgumentError,
        "ArraySpec: dtype: expected one of 'float32', 'float64', 'bool'",
    ),
    (lambda: lm.ArraySpec(("N",), low=np.nan), lm.ArgumentError, "ArraySpec: low: expected a finite number, got nan"),
    (
        lambda: lm.Input(b"x"),
        lm.ArgumentError,
        "Input: shape: expected a tuple of sizes without the batch axis, got b'x'",
    ),
    (lambda: lm.Input(4, low=np.nan), lm.ArgumentError, "Input: low: expected a finite number, got nan"),
    (lambda: lm.Input(4, ""), lm.ArgumentError, "Input: dtype: expected one of 'float32', 'float64'"),
    (
        lambda: lm.Sequential([Dense(1)], input_shape=1, dtype=-1),
        lm.ArgumentError,
        "Model: dtype: expected one of 'float32', 'float64', got -1",
    ),
    (
        lambda: lm.Sequential([Dense(1)], input_shape=1, dtype=None),
        lm.ArgumentError,
        "Model: dtype: expected one of 'float32', 'float64', got None",
    ),
    (lambda: model().to(""), lm.ArgumentError, "to: backend: expected a name such as 'numpy' or 'cupy', got ''"),
    (lambda: model().to([1]), lm.ArgumentError, "to: backend: expected a name such as 'numpy' or 'cupy', got [1]"),
    (lambda: model().copy(backend=[]), lm.ArgumentError, "backends: expected a registered name, got []"),
    (lambda: model().copy(dtype=-1), lm.ArgumentError, "copy: dtype: expected one of 'float32', 'float64', got -1"),
    (lambda: model().save(""), lm.ArgumentError, "save: path: expected the path of a file, a string or a pathlib.Path"),
    (lambda: model().save(b"m"), lm.ArgumentError, "save: path: expected the path of a file, a string or a pathlib"),
    (lambda: model().save("a\0b"), lm.ArgumentError, r"save: path: expected the path of a file, a string or a pathlib"),
    (
        lambda: lm.load(5),
        lm.ArgumentError,
        "load: path: expected the path of a file, a string or a pathlib.Path, got 5",
    ),
    (lambda: lm.from_config(5), lm.DataError, "from_config: config is no dict; expected what model.config() returns"),
    (lambda: lm.testing.check_specimen(5), lm.ArgumentError, "check_specimen: expected a Specimen, got 5"),
    (
        lambda: model().fit(X, Y, **{**FIT, "optimizer": lm.optimizers.Optimizer}),
        lm.ArgumentError,
        "optimizer: expected a name or an Optimizer, got <class 'lamella.optimizers.optimizer.Optimizer'>; Optim",
    ),
    (
        lambda: model().fit(X, Y, **{**FIT, "loss": lm.losses.Loss()}),
        lm.ArgumentError,
        "loss: expected a name or a Loss, got Loss(); Loss is the class that all of them extend",
    ),
    (
        lambda: lm.regularization.MaxNorm(axis=1.5),
        lm.ArgumentError,
        "MaxNorm: axis: expected an int of at least 0, got 1.5",
    ),
    (
        lambda: lm.losses.SoftmaxCrossEntropy()(1.0, 1),
        lm.DataError,
        "softmax_cross_entropy: prediction: expected an array of numbers with a row for each sample, got",
    ),
    (lambda: lm.losses.Huber()(5, 5), lm.DataError, "huber: prediction: expected an array of numbers with a row for"),
    (
        lambda: lm.metrics.Accuracy().update(["a"], [1]),
        lm.DataError,
        "accuracy: prediction: expected an array of numbers with a row for each sample, got <U1 (1,)",
    ),
    (
        lambda: lm.metrics.Accuracy().update([[1.0, 2.0]], [1], [-1]),
        lm.DataError,
        "accuracy: weight: expected finite numbers of at least 0",
    ),
    (lambda: lm.schedules.Cosine(0.1, 9).at(None), lm.ArgumentError, "step: expected a positive int, got None"),
    (
        lambda: lm.schedules.learning_rate_at(lm.schedules.Exponential(0.1, 1, 10.0), 10**6),
        lm.ArgumentError,
        "expected a finite number, got inf",
    ),
    (lambda: lm.schedules.learning_rate_at(None, 3), lm.ArgumentError, "learning_rate: expected a finite number, got"),
    (
        lambda: lm.callbacks.Checkpoint("x", save_best_only="False"),
        lm.ArgumentError,
        "Checkpoint: save_best_only: expected True or False, got 'False'",
    ),
    (
        lambda: lm.callbacks.EarlyStopping(restore_best="no"),
        lm.ArgumentError,
        "EarlyStopping: restore_best: expected True or False, got 'no'",
    ),
    (
        lambda: lm.callbacks.CSVLogger("x", append=1),
        lm.ArgumentError,
        "CSVLogger: append: expected True or False, got 1",
    ),
    (lambda: lm.callbacks.CSVLogger(b"x"), lm.ArgumentError, "CSVLogger: path: expected the path of a file"),
    (
        lambda: lm.callbacks.EarlyStopping(min_delta=np.float16(np.inf)),
        lm.ArgumentError,
        "EarlyStopping: min_delta: expected a finite number, got",
    ),
    (
        lambda: lm.optimizers.RMSprop(centered="False"),
        lm.ArgumentError,
        "RMSprop: centered: expected True or False, got 'False'",
    ),
    (lambda: lm.optimizers.SGD(nesterov=[]), lm.ArgumentError, "SGD: nesterov: expected True or False, got ()"),
    (
        lambda: model().fit(X, Y, **FIT, shuffle="False"),
        lm.ArgumentError,
        "shuffle: expected True or False, got 'False'",
    ),
    (lambda: model().fit(X, Y, **{**FIT, "progress": 0}), lm.ArgumentError, "progress: expected 'auto', True or False"),
    (
        lambda: model().fit(X, Y, **FIT, callbacks="x"),
        lm.ArgumentError,
        "callbacks: expected a list of lamella.Callback objects, got 'x'",
    ),
    (
        lambda: model().gradients(X, Y, loss="huber", training="x"),
        lm.ArgumentError,
        "training: expected True or False, got 'x'",
    ),
    (
        lambda: model().fit(X, Y, **FIT, sample_weight=np.full(6, 1e308)),
        lm.DataError,
        "sample_weight of 'head': their sum is more than float64 holds; scale them down",
    ),
    (
        lambda: model().fit(X, Y, **FIT, validation_data=(X, "x")),
        lm.DataError,
        "validation_data: huber: target must have the prediction's shape (N, 2)",
    ),
    (
        lambda: model().fit(X, Y, **FIT, validation_data=[[X], [Y]]),
        lm.DataError,
        "validation_data: every batch must be (x, y) or (x, y, sample_weight), got 1 entries",
    ),
    (lambda: setattr(model(), "step", -1), lm.ArgumentError, "step: expected an int of at least 0, got -1"),
    (
        lambda: setattr(model(), "optimizer_state", type(model().optimizer_state)),
        lm.ArgumentError,
        "optimizer_state: expected None, or what optimizer_state was of a model with the same parameters",
    ),
    (
        lambda: setattr(lm.Sequential([Dense(1)], input_shape=1), "optimizer_state", model().optimizer_state),
        lm.ArgumentError,
        "optimizer_state: expected None, or what optimizer_state was of a model with the same parameters",
    ),
    (
        lambda: model().parameters.__setitem__("head.bias", [[1.0], [1.0, 2.0]]),
        lm.DataError,
        "model.parameters['head.bias']: expected numbers, got something that is no rectangular array",
    ),
    (
        lambda: model().predict(Raising()),
        lm.DataError,
        "input 'input_1': expected (N, 4) float32, got something that is no rectangular array: no array",
    ),
    (lambda: lm.primitive(5), lm.ArgumentError, "primitive: reference: expected a function (xp, *arrays, **options)"),
    (
        lambda: lm.primitives.relu.kernel(5),
        lm.ArgumentError,
        "kernel: backend: expected a name such as 'numpy' or 'onnx', got 5",
    ),
    (
        lambda: lm.ActivationFunction(1, 2),
        lm.ArgumentError,
        "ActivationFunction: forward: expected a function (xp, x) -> y, got 1",
    ),
    (
        lambda: lm.ActivationFunction(abs, abs, probabilities="x"),
        lm.ArgumentError,
        "ActivationFunction: probabilities: expected True or False, got 'x'",
    ),
    (
        lambda: lm.ActivationFunction(abs, abs, uses_x=1),
        lm.ArgumentError,
        "ActivationFunction: uses_x: expected True or False, got 1",
    ),
    (
        lambda: lm.set_threads(10**30),
        lm.ArgumentError,
        "set_threads: count: expected an int of at most 9223372036854775807",
    ),
    (
        lambda: Dense(3, kernel_initializer=5),
        lm.ArgumentError,
        "Dense: kernel_initializer: expected a registered name or a function (rng, shape, fan_in, fan_out) -> array",
    ),
    (
        lambda: Dense(Raising()),
        lm.ArgumentError,
        "Dense: units: expected a positive int, got an object of Raising that cannot be shown",
    ),
    (
        lambda: Dense(10**5000),
        lm.ArgumentError,
        "Dense: units: expected an int of at most 9223372036854775807, got an object of int that cannot be shown",
    ),
    (lambda: Conv2D(2, 3, strides=2**63), lm.ArgumentError, "Conv2D: strides: expected an int of at most 2147483647"),
    (lambda: MaxPooling1D(2, strides=2**63), lm.ArgumentError, "MaxPooling1D: strides: expected an int of at most"),
    (
        lambda: initializers.he_normal(5, (2, 3)),
        lm.ArgumentError,
        "he_normal: rng: expected a numpy.random.Generator, got 5",
    ),
    (
        lambda: initializers.zeros(np.random.default_rng(0), None),
        lm.ArgumentError,
        "zeros: shape: expected a tuple of sizes, got None",
    ),
    (lambda: lm.History().add(5), lm.ArgumentError, "History.add: logs: expected a dict of numbers by name, got 5"),
    (lambda: lm.History()[5], KeyError, "history: there is no 5; there are none."),
    (
        lambda: lamella_onnx.export(model(), "m.onnx", target=np.ones(2)),
        lm.ArgumentError,
        "export: target: expected 'onnxruntime==<version>'",
    ),
    (
        lambda: lamella_onnx.export(model(), "m.onnx", samples=np.ones((0, 4))),
        lm.DataError,
        "samples: there are no rows",
    ),
    (lambda: lamella_onnx.export(model(), b"m"), lm.ArgumentError, "export: path: expected the path of a file"),
]


@pytest.mark.parametrize(("make", "error", "words"), TABLE, ids=[words[:60] for _, _, words in TABLE])
def test_errors_say_what_was_expected_and_what_it_got(make, error, words):
    with pytest.raises(error, match=re.escape(words)):
        make()


def test_dtype_none_follows_the_model_in_inputs_alone():
    assert lm.Sequential([Dense(1)], input_shape=1, input_dtype=None, dtype="float64").input_specs[0].dtype == "float64"
    assert lm.Sequential([Dense(1)], input_shape=1, dtype=np.float32).dtype == "float32"


def test_limits_of_numpy_become_plain_numbers_that_fit_into_a_file():
    ids = lm.Input(4, "int64", low=np.int64(0), high=np.int32(9))
    lm.Model(ids, Rescaling(0.5)(ids)).save("m")
    (spec,) = lm.load("m").input_specs
    assert (type(spec.low), spec.low, spec.high) == (int, 0, 9)


def test_values_that_cannot_be_shown_are_named_by_their_class():
    assert shown(Raising()) == "an object of Raising that cannot be shown"
    assert shown(np.zeros((3, 2))) == "array([[0., 0.], [0., 0.], [0., 0.]])"
    assert len(shown("x" * 1000)) == 200


def test_class_weights_that_overflow_are_refused():
    small, labels = lm.Sequential([Dense(2)], input_shape=4), np.array([0, 1, 0, 1, 0, 1])
    weights = {"sample_weight": np.full(6, 1e300), "class_weight": {0: 1e30}}
    before = small.parameters["dense_1.kernel"]
    with pytest.raises(lm.DataError, match="class_weight: with sample_weight, the sum of weights is more than float64"):
        small.fit(X, labels, loss="softmax_cross_entropy", optimizer="sgd", **weights)
    np.testing.assert_array_equal(small.parameters["dense_1.kernel"], before)


@pytest.mark.parametrize("take", ["fit", "train_on_batch"])
def test_an_optimizer_with_other_settings_starts_anew_with_a_warning(take):
    small = lm.Sequential([Dense(2)], input_shape=4)
    options = {"loss": "huber", **({"progress": False} if take == "fit" else {})}
    train = getattr(small, take)
    train(X, Y, **options, optimizer=lm.optimizers.Adam(0.01))
    train(X, Y, **options, optimizer=lm.optimizers.Adam(0.02))  # another rate goes on
    words = (
        r"Adam\(beta_2=0.99\) starts anew, without what 2 steps left in its slots: it has beta_2=0.99, 0.999 before. "
        "Only the learning rate may differ; set model.optimizer_state = None where a new start is meant"
    )
    before = state_of(small)
    with pytest.raises(lm.MistakeWarning, match=words):
        train(X, Y, **options, optimizer=lm.optimizers.Adam(beta_2=0.99))
    assert state_of(small) == before
    with pytest.warns(lm.MistakeWarning, match="beta_2") as told:
        train(X, Y, **options, optimizer=lm.optimizers.Adam(beta_2=0.99))
    assert told[0].filename == __file__
    assert small.optimizer_state.t == 1
    small.optimizer_state = None
    train(X, Y, **options, optimizer=lm.optimizers.Adam(beta_2=0.5))
    train(X, Y, **options, optimizer="sgd")  # another kind can't go on
