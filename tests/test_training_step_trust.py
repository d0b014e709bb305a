"""A training step is written only if onnxruntime takes the engine's, and whole; what is damaged is found."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from nonsense import in_time
from random_training import training
from safetensors.numpy import load_file, save_file

import lamella as lm
from lamella import losses, optimizers, primitives, regularization
from lamella.protocol import context
from lamella_layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from lamella_layers.convolution import convolution
from lamella_layers.normalization import batch
from lamella_onnx import ParityError, TraceError, TrainingSession, export_training_step, verify
from lamella_onnx.training import manifest as folders

NETS = int(os.environ.get("LAMELLA_NETS", "24"))
TIMES = int(os.environ.get("LAMELLA_TIMES", "1"))
FILES = ("training.json", "train.onnx", "predict.onnx", "state.safetensors")
TASK = {"loss": "softmax_cross_entropy", "optimizer": "sgd"}


# A wrong graph is refused


def scaled(primitive, by):
    """A primitive whose results are wrong by a factor, in ONNX only."""
    right = primitive.kernels.get("onnx", primitive.reference)

    def wrong(xp, *arrays, **options):
        found = right(xp, *arrays, **options)
        return tuple(one * by for one in found) if isinstance(found, tuple) else found * by

    return mock.patch.dict(primitive.kernels, {"onnx": wrong})


def in_onnx(owner, name, change):
    """A function, or a method, that is another in ONNX only: ``change(right, xp, *arguments)``."""
    right = getattr(owner, name)

    def changed(*arguments, **options):
        xp = arguments[0] if not isinstance(arguments[0], lm.Configured) else arguments[1]
        if getattr(xp, "backend", "") != "onnx":
            return right(*arguments, **options)
        return change(right, *arguments, **options)

    return mock.patch.object(owner, name, changed)


def beside(setting):
    """An update by an optimizer whose setting is another one by a factor."""
    return lambda by: in_onnx(
        optimizers.Adam,
        "update",
        lambda right, own, *rest: right(own.replace(**{setting: getattr(own, setting) * by}), *rest),
    )


def of_result(owner, name):
    """A function whose result is off by a factor in ONNX."""
    return lambda by: in_onnx(owner, name, lambda right, *arguments, **options: right(*arguments, **options) * by)


BROKEN = {
    "the loss's slope": (lambda by: scaled(losses.classes.softmax_cross_entropy_dx, by), "dense_1.kernel.gradient"),
    "a convolution's weight gradient": (lambda by: scaled(convolution.conv_dw, by), "conv2d_1.kernel.gradient"),
    "a normalization's gradient": (lambda by: scaled(batch.batch_normalization_dx, by), "conv2d_1.kernel.gradient"),
    "a forward pass": (lambda by: scaled(primitives.relu, by), "dense_1"),
    "Adam's beta_1": (beside("beta_1"), "dense_1.bias.m.new"),
    "Adam's beta_2": (lambda by: beside("beta_2")(2.0 - by), "dense_1.bias.v.new"),
    "a penalty": (of_result(regularization.L2, "value"), "training.penalty"),
    "a penalty's gradient": (of_result(regularization.L2, "gradient"), "dense_1.kernel.new"),
}
"""What is wrong by a factor, and an array that shows it."""


def net():
    layers = [
        Conv2D(4, 3, activation="relu", use_bias=False),
        BatchNormalization(),
        MaxPooling2D(),
        Flatten(),
        Dropout(0.5),
    ]
    return lm.Sequential([*layers, Dense(3)], input_shape=(1, 8, 8), seed=1)


BREAK = {"loss": "softmax_cross_entropy", "optimizer": "adam", "penalties": {"*.kernel": regularization.L2(0.1)}}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_by_a_thousandth_is_refused_and_named(what, tmp_path):
    broken, name = BROKEN[what]
    export_training_step(net(), tmp_path / "right", **BREAK)
    with broken(1.001), pytest.raises(ParityError, match="nothing is written: .* differs from the engine's") as told:
        export_training_step(net(), tmp_path / "step", **BREAK)
    assert repr(name) in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def test_one_wrong_bit_of_one_random_number_is_found(tmp_path):
    def wrong(right, xp, *arguments, **options):
        return right(xp, *arguments, **options) + 2.0**-24  # the last bit of most

    with in_onnx(context, "uniform", wrong), pytest.raises(ParityError, match="'training.drawn.0' by inf") as told:
        export_training_step(net(), tmp_path / "step", **BREAK)
    assert "(equal)" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_graph_of_inference_that_is_wrong_is_refused(tmp_path):
    wrong = scaled(batch.batch_normalization, 1.001)  # which training does not use
    with wrong, pytest.raises(ParityError, match="nothing is written.*'dense_1' by .* inference, batch of"):
        export_training_step(net(), tmp_path / "step", **BREAK)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::lamella.MistakeWarning")  # such as a softmax over one value
@pytest.mark.parametrize("seed", range(NETS))
def test_right_steps_of_random_models_are_written(seed, tmp_path):
    """``LAMELLA_NETS=3000 pytest`` tries more of them."""
    model, options = training(seed)
    report = export_training_step(model, tmp_path / "step", **options)
    assert report.agrees
    TrainingSession(tmp_path / "step")


# What can't be exported


class Rule(optimizers.Optimizer):
    """Gradient descent that does what it is told in addition."""

    slots = {"velocity": 0.0}  # noqa: RUF012  # as in a plugin

    def __init__(self, kind: str = ""):
        self.learning_rate, self.kind = 0.1, kind

    def update(self, xp, p, g, slots, lr, t):
        found = {
            "branches": lambda: p - lr * g if xp.sum(g) > 0 else p,
            "reads": lambda: p - float(lr) * g,
            "calls numpy": lambda: p - lr * np.sign(g),
            "has a fault": lambda: p - g.lr,
            "reduces": lambda: p[:1],
            "widens": lambda: xp.astype(p, xp.float64),
        }.get(self.kind, lambda: p - lr * g)()
        if self.kind == "gives no tuple":
            return found
        return found, ({} if self.kind == "forgets" else {"velocity": slots["velocity"]})


class Distance(losses.Loss):
    def __init__(self, kind: str = ""):
        self.kind = kind

    def forward(self, ctx, prediction, target):
        r = prediction - target
        ctx.save(r)
        if self.kind == "branches" and float(ctx.xp.sum(r)) > 0:
            r = -r
        return (np if self.kind == "calls numpy" else ctx.xp).mean(r * r, axis=1)

    def backward(self, ctx, d):
        (r,) = ctx.saved
        return 2.0 * r * d[:, None] / r.shape[1]


class Branching(regularization.Penalty):
    def value(self, xp, p):
        return xp.sum(p) if float(xp.sum(p)) > 0 else 0.0 * xp.sum(p)

    def gradient(self, xp, p):
        return xp.ones_like(p)


class Halves(regularization.Constraint):
    def apply(self, xp, p):
        return p * float(xp.max(p) > 0)


class OneWay(lm.Layer):
    def forward_pass(self, ctx, x):
        return 2.0 * x


class Nameless(lm.Layer):
    def forward_pass(self, ctx, x):
        return x

    def backward_pass(self, ctx, dy):
        return dy


class NamelessRule(optimizers.Optimizer):
    learning_rate = 0.1

    def update(self, xp, p, g, slots, lr, t):
        return p - lr * g, {}


@pytest.fixture(autouse=True)
def _a_folder_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, cls in (("own_rule", Rule), ("own_distance", Distance), ("one_way", OneWay)):
        lm.register(name)(cls)


def dense(*more, **options):
    return lm.Sequential([Dense(5, activation="tanh"), *more, Dense(2)], input_shape=4, **options)


def frozen():
    model = dense()
    model.freeze("*")
    return model


def spoiled():
    model = dense()
    model.parameters["dense_1.bias"] = np.full(5, np.nan)
    return model


def exported(model=None, path="step", **options):
    return export_training_step(dense() if model is None else model, path, **{**TASK, **options})


def squared(**options):
    return exported(**{"loss": "mean_squared_error", **options})


X = np.linspace(-1.0, 1.0, 12, dtype="float32").reshape(3, 4)
NO_VALUE = "is not known when a model is exported"

REFUSED = {
    "optimizer branches": (lambda: squared(optimizer=Rule("branches")), TraceError, f"Rule.*update: .*{NO_VALUE}"),
    "optimizer reads": (lambda: squared(optimizer=Rule("reads")), TraceError, f"Rule.*update: .*{NO_VALUE}"),
    "optimizer calls numpy": (
        lambda: squared(optimizer=Rule("calls numpy")),
        TraceError,
        "update: numpy.sign was called",
    ),
    "optimizer fails": (
        lambda: squared(optimizer=Rule("has a fault")),
        TraceError,
        "update can't be traced: AttributeErr",
    ),
    "optimizer reduces": (
        lambda: squared(optimizer=Rule("reduces")),
        lm.LayerError,
        r"expected the parameter as float32 \(4, 5",
    ),
    "optimizer widens": (
        lambda: squared(optimizer=Rule("widens")),
        lm.LayerError,
        "expected the parameter .*got .*float64",
    ),
    "optimizer forgets": (lambda: squared(optimizer=Rule("forgets")), lm.LayerError, "its slots, velocity; got none"),
    "optimizer's tuple": (
        lambda: squared(optimizer=Rule("gives no tuple")),
        lm.LayerError,
        "and a dict of slots, got Traced",
    ),
    "loss branches": (lambda: exported(loss=Distance("branches")), TraceError, f"Distance.* failed on .*{NO_VALUE}"),
    "loss calls numpy": (
        lambda: exported(loss=Distance("calls numpy")),
        TraceError,
        f"Distance.* failed on .*{NO_VALUE}",
    ),
    "penalty": (lambda: exported(penalties={"*": Branching()}), TraceError, f"penalties: .*{NO_VALUE}"),
    "constraint": (lambda: exported(constraints={"*": Halves()}), TraceError, f"constraints: .*{NO_VALUE}"),
    "no backward pass": (lambda: exported(dense(OneWay())), lm.LayerError, r"OneWay\) defines no backward_pass"),
    "unregistered layer": (lambda: exported(dense(Nameless())), lm.DataError, "step: class Nameless is not registered"),
    "unregistered optimizer": (
        lambda: exported(optimizer=NamelessRule()),
        lm.DataError,
        "step: class NamelessRule is not",
    ),
    "nothing to train": (
        lambda: squared(model=lm.Sequential([Flatten()], input_shape=4)),
        lm.ArgumentError,
        "no layer has parameters that are not",
    ),
    "all frozen": (
        lambda: exported(frozen()),
        lm.ArgumentError,
        "no layer has parameters that are not frozen; unfreeze",
    ),
    "NaN": (lambda: exported(spoiled()), lm.NonFiniteError, "dense_1.bias has 5 of 5 values that are not finite"),
    "no model": (
        lambda: export_training_step(5, "step", **TASK),
        lm.ArgumentError,
        "model: expected a lamella.Model, got 5",
    ),
    "unknown loss": (lambda: exported(loss="mean_sqared_error"), lm.RegistryError, "mean_squared_error"),
    "no loss": (lambda: exported(loss=None), lm.ArgumentError, "loss: expected a name or a Loss for one output"),
    "parent": (lambda: exported(path="no/step"), FileNotFoundError, "there is no folder no"),
    "path of a file": (
        lambda: (Path("f").touch(), exported(path="f")),
        lm.DataError,
        "f is there, and holds no training step",
    ),
    "path of another folder": (
        lambda: (Path("d").mkdir(), Path("d/x").touch(), exported(path="d")),
        lm.DataError,
        "d is there, and holds no training",
    ),
    "path": (lambda: exported(path=b"x"), lm.ArgumentError, "export_training_step: path: expected the path"),
    "opset": (lambda: exported(opset=17), lm.ArgumentError, "opset: expected 18 or newer, got 17"),
    "target": (
        lambda: exported(target="onnxruntime==1"),
        lm.ArgumentError,
        "target: expected 'onnxruntime==<version>'",
    ),
    "samples": (lambda: exported(samples=X), lm.ArgumentError, r"samples: expected \(x, y\) or"),
    "samples' shape": (
        lambda: exported(samples=(X[:, :3], [0, 1, 1])),
        lm.DataError,
        r"input 'input_1': expected \(N, 4\)",
    ),
    "samples' labels": (
        lambda: exported(samples=(X, [0, 1, 2])),
        lm.DataError,
        r"labels must be integers in \[0, 2\); got 2",
    ),
    "samples' NaN": (
        lambda: exported(samples=(X * np.nan, [0, 1, 1])),
        lm.DataError,
        "of 'input_1' some are NaN or infinite",
    ),
    "targets' NaN": (
        lambda: squared(samples=(X, X[:, :2] * np.nan)),
        lm.DataError,
        "of 'dense_2' some are NaN or infinite",
    ),
    "no rows": (lambda: exported(samples=(X[:0], [])), lm.DataError, "there are no rows"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_exported_is_told_in_one_error(what):
    make, error, words = REFUSED[what]
    with pytest.raises(error, match=words) as told:
        make()
    assert type(told.value) is error
    assert not Path("step").exists()


def test_nowhere_finite_is_no_agreement(tmp_path):
    model = lm.Sequential([Dense(2)], input_shape=4)
    model.parameters["dense_1.kernel"] = np.full((4, 2), 1e38)
    with pytest.raises(ParityError, match="the engine itself refuses all random batches.*finite on none of them"):
        export_training_step(model, tmp_path / "step", loss="mean_squared_error", optimizer="sgd")


# Data that does not fit


@pytest.fixture
def session():
    exported()
    return TrainingSession("step")


UNFIT = {
    "shape": ((X[:, :3], [0, 1, 1]), lm.DataError, r"input 'input_1': expected \(N, 4\) float32, got \(3, 3\)"),
    "dtype": ((X.astype("U8"), [0, 1, 1]), lm.DataError, "input 'input_1': expected .* is text"),
    "rows": ((X, [0, 1]), lm.DataError, "x has 3 rows and y has 2"),
    "no rows": ((X[:0], []), lm.DataError, "there are no rows"),
    "labels": ((X, [0, 1, 2]), lm.DataError, r"labels must be integers in \[0, 2\); got 2 in row 2"),
    "negative labels": ((X, [0, 1, -1]), lm.DataError, "got -1 in row 2. Labels count from 0"),
    "target's shape": ((X, np.ones((3, 3))), lm.DataError, "labels must be integers"),
    "target's form": (
        (X, np.eye(2)[[0, 1, 1]]),
        lm.DataError,
        r"exported for targets of int64 \(N,\), got float32 \(3, 2\)",
    ),
    "no target": ((X, None), lm.DataError, "y of 'dense_2': nothing for"),
    "weights": ((X, [0, 1, 1], [1, 2]), lm.DataError, "sample_weight of 'dense_2': expected shape"),
    "weights of 0": ((X, [0, 1, 1], [0, 0, 0]), lm.DataError, "every row weighs 0"),
    "negative weights": ((X, [0, 1, 1], [0, 1, -1]), lm.DataError, "expected finite numbers of at least 0"),
    "NaN": ((X * np.nan, [0, 1, 1]), lm.NonFiniteError, "kept. Input 'input_1' holds values that are not finite"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_data_that_do_not_fit_are_told_and_change_nothing(what, session):
    data, error, words = UNFIT[what]
    before = session.parameters
    with pytest.raises(error, match=words) as told:
        session.step(*data)
    assert type(told.value) is error
    assert session.steps == 0
    for name, array in session.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    assert session.step(X, np.array([0, 1, 1], "uint8")) > 0.0  # labels of any integer dtype


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda s: s.step(X, [0, 1, 1], learning_rate=-1.0),
            lm.ArgumentError,
            "learning_rate: expected a number of at",
        ),
        (
            lambda s: s.step(X, [0, 1, 1], learning_rate="x"),
            lm.ArgumentError,
            "learning_rate: expected a finite number",
        ),
        (lambda s: s.predict(X[:, :3]), lm.DataError, r"input 'input_1': expected \(N, 4\)"),
        (lambda s: s.predict(X, 0), lm.ArgumentError, "batch_size: expected a positive int, got 0"),
        (lambda s: s.evaluate(X, [0, 1, 7]), lm.DataError, "got 7 in row 2"),
        (lambda s: s.evaluate(X, [0, 1, 1], metrics="acuracy"), lm.RegistryError, "accuracy"),
        (lambda s: s.into(None), lm.ArgumentError, "into: model: expected a lamella.Model, got None"),
        (
            lambda s: s.into(dense(dtype="float64")),
            lm.DataError,
            "into: expected a model with 'dense_1.kernel' of float32",
        ),
        (
            lambda s: s.into(lm.Sequential([Dense(2)], input_shape=4)),
            lm.DataError,
            "the layers of the one that was exported",
        ),
        (lambda s: s.export("m.onnx", opset=2), lm.ArgumentError, "opset: expected 18 or newer"),
        (lambda s: s.save_state("no/state"), FileNotFoundError, "no such folder"),
        (lambda s: s.save_state(5), lm.ArgumentError, "save_state: path: expected the path of a file"),
        (lambda s: s.load_state("nothing"), FileNotFoundError, "load_state: there is no file nothing"),
        (lambda s: s.load_state("step"), IsADirectoryError, "load_state step: this is the folder of a training step"),
        (lambda s: TrainingSession("nothing"), FileNotFoundError, "TrainingSession: there is no folder nothing"),
        (
            lambda s: TrainingSession("step/train.onnx"),
            lm.DataError,
            "expected the folder that export_training_step writes",
        ),
        (lambda s: TrainingSession(5), lm.ArgumentError, "TrainingSession: path: expected the path"),
        (lambda s: TrainingSession("step", layers=5), lm.ArgumentError, "TrainingSession: layers: expected a dict"),
        (
            lambda s: TrainingSession("step", threads=0),
            lm.ArgumentError,
            "TrainingSession: threads: expected a positive int",
        ),
    ],
)
def test_arguments_of_a_session_are_checked(call, error, words, session):
    with pytest.raises(error, match=words) as told:
        call(session)
    assert type(told.value) is error
    assert session.step(X, [0, 1, 1]) > 0.0


def test_targets_that_are_not_finite_are_named():
    squared()
    with pytest.raises(lm.NonFiniteError, match="The target of 'dense_2' holds values that are not finite"):
        TrainingSession("step").step(X, X[:, :2] * np.inf)


def test_what_is_frozen_in_a_folder_and_differs_in_a_model_is_told():
    model = dense(seed=1).freeze("dense_1")
    exported(model)
    session = TrainingSession("step")
    session.step(X, [0, 1, 1])
    with pytest.warns(lm.MistakeWarning, match="'dense_1.kernel', which is frozen .* not be those of the session"):
        session.into(dense(seed=2))
    session.into(model)
    np.testing.assert_allclose(model.predict(X), session.predict(X), atol=1e-6)


def test_a_schedule_at_its_end_is_told():
    task = {**TASK, "optimizer": lm.optimizers.SGD(lm.schedules.Cosine(0.1, steps=3))}
    model = dense()
    for _ in range(2):
        model.train_on_batch(X, [0, 1, 1], **task)
    exported(model, **task)  # the step that is left has a rate above 0
    session = TrainingSession("step")
    session.step(X, [0, 1, 1])
    session.into(model)
    model.train_on_batch(X, [0, 1, 1], **task)
    with pytest.warns(lm.MistakeWarning, match=r"export_training_step: the learning rate is 0 from step 4 on"):
        exported(model, **task)
    with pytest.warns(lm.MistakeWarning, match=r"TrainingSession step: the learning rate is 0 from step 4 on"):
        TrainingSession("step")
    exported(model, optimizer=lm.optimizers.SGD(0.0))  # a number is meant: every step is given its own


def test_a_session_says_how_it_takes_classes_and_an_export_how_they_get_a_name():
    exported(optimizer=Rule())
    forged(lambda held: held["optimizer"].update(type="script:elsewhere"))
    with pytest.raises(lm.RegistryError, match=r"TrainingSession\(path, layers=\{'elsewhere': it\}\)"):
        TrainingSession("step")
    assert TrainingSession("step", layers={"elsewhere": Rule}).step(X, [0, 1, 1]) > 0.0
    with pytest.raises(lm.DataError, match=r"an entry point in the group 'lamella' \(see lamella.hookspecs\)$"):
        exported(optimizer=NamelessRule())


@pytest.mark.parametrize("read", [lm.load, lm.inspect])
def test_what_reads_models_says_what_takes_training_steps(read, session):
    session.save_state("state")
    with pytest.raises(IsADirectoryError, match=r"folder of a training step.* lamella_onnx.TrainingSession\(folder\)"):
        read("step")
    for path in ("state", "step/state.safetensors"):
        with pytest.raises(lm.DataError, match=r"state of a training step: .*TrainingSession\(folder\).load_state"):
            read(path)
    with pytest.raises(lm.DataError, match="a graph of a training step, and carries no proof; .*TrainingSession"):
        verify("step/train.onnx")


# State files


def changed(path, **arrays):
    """A state file with some arrays changed; those that are None are gone."""
    held = {**load_file(path), **arrays}
    save_file({name: array for name, array in held.items() if array is not None}, "changed")
    return "changed"


STATES = {
    "a model's file": (
        lambda: dense().save("changed"),
        "the state of another model: this one has no 'parameters/dense_1",
    ),
    "no file of tensors": (lambda: Path("changed").write_text("x"), "or it is damaged"),
    "empty": (lambda: Path("changed").write_bytes(b""), "or it is damaged"),
    "another graph": (
        lambda: (exported(dense(), "other", optimizer="adam"), TrainingSession("other").save_state("changed")),
        "the state of another training step: it was saved beside another train.onnx",
    ),
    "another model": (
        lambda: (
            exported(lm.Sequential([Dense(2)], input_shape=4), "other"),
            os.link("other/state.safetensors", "changed"),
        ),
        "another model: dense_2.kernel, dense_2.bias is missing|another model: dense_2.bias, dense_2.kernel is missing",
    ),
    "more": (lambda: changed("state", more=np.ones(2)), "the state of another model: this one has no 'more'"),
    "less": (lambda: changed("state", **{"dense_1.bias": None}), "the state of another model: dense_1.bias is missing"),
    "shape": (
        lambda: changed("state", **{"dense_1.bias": np.ones(4, "float32")}),
        r"is float32 \(4,\); expected float32 \(5,\)",
    ),
    "dtype": (lambda: changed("state", **{"dense_1.bias": np.ones(5)}), r"is float64 \(5,\); expected float32 \(5,\)"),
    "NaN": (
        lambda: changed("state", **{"dense_1.bias": np.full(5, np.nan, "float32")}),
        "'dense_1.bias' has values that are not",
    ),
    "negative t": (
        lambda: changed("state", **{"training.t": np.array(-1, "int64")}),
        r"'training.t' is -1; expected a number of steps",
    ),
    "large t": (
        lambda: changed("state", **{"training.t": np.array(2**63 - 1, "int64")}),
        "'training.t' is 9223372036854775807; expected a number",
    ),
    "odd seed": (
        lambda: changed("state", **{"training.seed": np.array([-1, 2**32], "int64")}),
        "'training.seed' is .*; expected two words of 32 bits",
    ),
}


@pytest.mark.parametrize("what", STATES)
def test_states_that_do_not_fit_are_told_and_change_nothing(what, session):
    make, words = STATES[what]
    session.step(X, [0, 1, 1])
    session.save_state("state")
    make()
    with pytest.raises(lm.DataError, match=words) as told:
        session.load_state("changed")
    assert str(told.value).startswith("load_state changed: ")
    session.save_state("after")
    assert Path("after").read_bytes() == Path("state").read_bytes()


def test_a_state_file_needs_no_word_of_lamella(session):
    """What another runner saves has names, shapes and dtypes of the manifest, and no metadata."""
    session.step(X, [0, 1, 1])
    session.save_state("state")
    other = TrainingSession("step")
    other.load_state(changed("state"))
    assert other.steps == 1


# Damaged folders


def refusal(folder="step"):
    """What a folder is refused with, in time and without a warning."""
    with in_time(), pytest.raises((lm.DataError, lm.RegistryError, ParityError)) as told:
        TrainingSession(folder)
    assert str(told.value).startswith(f"TrainingSession {folder}: ")
    assert "\n" not in str(told.value)
    return told.value


def damage(whole, rng):
    """A bit flipped, the end cut off, some bytes cut out, or some doubled."""
    at, kind = rng.randrange(len(whole)), rng.randrange(6)
    if kind == 0:
        return whole[:at]
    if kind == 1:
        return whole[:at] + whole[at + 1 + rng.randrange(50) :]
    if kind == 2:
        return whole[:at] + whole[max(0, at - 20) :]
    return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]


def says_the_same(one, other):
    """Whether JSON differs in blanks only."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize("name", FILES)
def test_every_damage_of_every_file_is_found(name):
    """Flipped bits anywhere, ends cut off, parts cut out or doubled. ``LAMELLA_TIMES=50 pytest`` tries more."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    exported()
    path, rng = Path("step") / name, random.Random(seed)
    whole = path.read_bytes()
    for _ in range(100 * TIMES):
        damaged = damage(whole, rng)
        if damaged == whole or (name == "training.json" and says_the_same(damaged, whole)):
            continue
        path.write_bytes(damaged)
        assert type(refusal()) is lm.DataError
    path.write_bytes(whole)
    TrainingSession("step")
    path.unlink()
    assert (
        str(refusal())
        == f"TrainingSession step: {name} is missing; expected the folder that export_training_step writes"
    )
    path.mkdir()
    assert f"{name}: expected a file, this is a folder" in str(refusal())


def forged(change, files=()):
    """A folder whose manifest was changed by somebody who knows how to seal it; ``files`` are changed, too."""
    path = Path("step/training.json")
    held = json.loads(path.read_bytes())
    for name, content in dict(files).items():
        Path("step", name).write_bytes(content)
        held["files"][name] = hashlib.sha256(content).hexdigest()
    change(held)
    held.pop("checksum")
    path.write_text(json.dumps({**held, "checksum": folders._checksum(held)}))


def entry(held, name, side="inputs", graph="train"):
    return next(one for one in held[graph][side] if one["name"] == name)


def put(key, value):
    return lambda held: held.__setitem__(key, value)


FORGED = {
    "another format": (put("format", "x"), "expected the manifest of a training step"),
    "newer": (put("version", 2), "version 2; this version of lamella reads version 1; a newer lamella wrote it: pip"),
    "version": (put("version", True), "version True; this version"),
    "an input that the graph lacks": (
        lambda held: held["train"]["inputs"].append({**entry(held, "training.t"), "name": "odd", "role": "t"}),
        "train.onnx: the manifest and the graph differ in inputs: odd",
    ),
    "an output that the graph lacks": (
        lambda held: held["predict"]["outputs"].append({**entry(held, "dense_2", "outputs"), "name": "odd"}),
        "predict.onnx: the manifest and the graph differ in outputs: odd",
    ),
    "an input is missing": (
        lambda held: held["train"]["inputs"].pop(),
        "training.json: 'dense_2.bias.new': no input of",
    ),
    "a role": (
        lambda held: entry(held, "dense_1.bias").update(role="x"),
        "'dense_1.bias': expected a role of input, target",
    ),
    "a dtype": (lambda held: entry(held, "dense_1.bias").update(dtype="x"), "'dense_1.bias': expected a dtype of"),
    "a shape": (
        lambda held: entry(held, "dense_1.bias").update(shape=[-5]),
        "'dense_1.bias': expected sizes and names of axes",
    ),
    "another shape": (
        lambda held: entry(held, "dense_1.bias").update(shape=[4]),
        "'dense_1.bias.new': no input of its shape",
    ),
    "a name": (lambda held: entry(held, "dense_1.bias").update(name=5), "expected names of inputs and outputs, got 5"),
    "no optimizer": (lambda held: held.pop("optimizer"), "training.json is damaged: TypeError"),
    "an optimizer": (put("optimizer", {"kind": "optimizers", "type": "x:y", "config": {}}), "y"),
    "losses": (put("losses", []), "losses|argument 2 is shorter"),
    "a model": (put("model", {}), "this is no configuration of a model"),
    "a rate": (put("learning_rate", "x"), "learning_rate: got 'x'"),
    "missed": (put("missed", {"dense_1.bias": "x"}), "missed: expected numbers of steps"),
    "swapped values": (
        lambda held: entry(held, "dense_2.bias.new", "outputs").update(name="dense_1.bias.next"),
        "'dense_1.bias.next': expected 'dense_2.bias.new' as the new value of 'dense_2.bias'",
    ),
    "a scale": (put("scale", -1.0), "learning_rate, scale and began: expected numbers of at least 0"),
    "missed steps": (put("missed", {"dense_1.bias": -7}), "missed: expected numbers of steps"),
    "a loss with axes": (
        lambda held: entry(held, "training.loss", "outputs").update(shape=[3]),
        "'training.loss': expected no axes",
    ),
    "a shape beyond all memory": (
        lambda held: (
            entry(held, "dense_1.bias").update(shape=[2**40]),
            entry(held, "dense_1.bias.new", "outputs").update(shape=[2**40]),
        ),
        r"'dense_1.bias' is float32 \(\d+,\); expected float32 \(1099511627776,\)",
    ),
    "hashes": (put("files", {}), "files: no hash of train.onnx"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_manifest_says_is_checked(what):
    exported()
    change, words = FORGED[what]
    forged(change)
    assert re.search(words, str(refusal()))


def plain(value):
    """All places in plain data: containers, with the key that leads on."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from plain(value[key])


@pytest.mark.filterwarnings("ignore::lamella.VersionWarning")
def test_whatever_a_sealed_manifest_says_there_is_a_session_or_one_error():
    """``LAMELLA_TIMES=50 pytest`` tries more."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    exported()
    whole, refused = json.loads(Path("step/training.json").read_bytes()), 0
    odd = [None, -1, 0, 2**70, 1.5, "", "x", "dense_1.bias", True, [], {}, [None], {"x": 1}]
    for _ in range(150 * TIMES):
        held = copy.deepcopy(whole)
        inner, key = rng.choice(list(plain({k: v for k, v in held.items() if k not in ("files", "report")})))
        inner[key] = rng.choice(odd)
        held |= {k: whole[k] for k in ("files", "report")}
        forged(lambda one, held=held: (one.clear(), one.update(copy.deepcopy(held), checksum="")))
        try:
            with in_time():
                session = TrainingSession("step")
                session.step(X, [0, 1, 1])
                session.predict(X)
        except lm.LamellaError:
            refused += 1
    assert refused > 30


def test_graphs_that_are_none_or_read_other_files_are_refused():
    exported()
    forged(lambda held: None, {"train.onnx": b"x"})
    assert "train.onnx: this is no ONNX file" in str(refusal())
    exported()
    proto = onnx.load("step/predict.onnx")
    proto.graph.node.add(op_type="Nonsense", input=["input_1"], output=["odd"])
    forged(lambda held: None, {"predict.onnx": proto.SerializeToString()})
    assert isinstance(error := refusal(), ParityError)
    assert "predict.onnx: onnxruntime" in str(error)
    exported()
    proto = onnx.load("step/train.onnx")
    array = proto.graph.initializer.add(name="far", data_type=1, dims=[1], data_location=1)
    array.external_data.add(key="location", value="/etc/passwd")
    forged(lambda held: None, {"train.onnx": proto.SerializeToString()})
    assert "array 'far' stands in another file; export_training_step writes none" in str(refusal())


# Exports that are stopped


def whole_folder(path="step"):
    """Which of the two models a folder holds, once it is known to be whole."""
    return int(TrainingSession(path).parameters["dense_1.bias"][0])


def model_of(value):
    model = dense()
    model.parameters["dense_1.bias"] = np.full(5, float(value))
    return model


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
def test_kills_leave_the_old_folder_or_the_new_one_and_no_litter():
    """``LAMELLA_TIMES=50 pytest`` tries more."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng, before = random.Random(seed), 0
    started = time.monotonic()
    exported(model_of(0))
    long = time.monotonic() - started
    for value in range(1, 8 * TIMES + 1):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(100):
                    exported(model_of(value))
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.5, 2.5) * long)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert whole_folder() in (before, value)
        before = whole_folder()
    left = Path(".lamella-0123456789abcdef.part")
    left.mkdir(exist_ok=True)
    (left / "train.onnx").touch()
    exported(model_of(before))
    assert [path.name for path in Path().iterdir()] == ["step"]


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_ctrl_c_and_full_disks_leave_the_old_folder_or_the_new_one(call, exchanges, monkeypatch):
    exported(model_of(1))
    if not exchanges:
        monkeypatch.setattr(folders, "_exchanged", lambda one, other: False)
    calls = {"fsync": 4, "rename": 2, "mkdir": 1}[call]
    real = getattr(os, call)
    for late in (False, True):
        for number in range(calls):
            count = []

            def stopped(*arguments, number=number, late=late, count=count, **options):
                count.append(1)
                if len(count) == number + 1:
                    if late:
                        real(*arguments, **options)
                    raise KeyboardInterrupt if late else OSError(28, "No space left on device")
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, stopped)
                with contextlib.suppress(KeyboardInterrupt, OSError):
                    exported(model_of(2))
            assert whole_folder() in (1, 2)
            exported(model_of(1))
            assert [path.name for path in Path().iterdir()] == ["step"]


WRITES = """
import sys
sys.path[:0] = sys.argv[2:]
import lamella as lm, lamella_onnx
from lamella_layers import Dense
lm.set_threads(1)
model = lm.Sequential([Dense(int(sys.argv[1])), Dense(2)], input_shape=4)
for _ in range(8):
    lamella_onnx.export_training_step(model, "step", loss="softmax_cross_entropy", optimizer="sgd")
"""


def test_two_writers_leave_a_whole_folder_at_any_moment():
    exported()
    writers = [subprocess.Popen([sys.executable, "-c", WRITES, str(units), *sys.path]) for units in (5, 7)]
    read = 0
    while any(writer.poll() is None for writer in writers):
        TrainingSession("step")
        read += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read > 1
    assert [path.name for path in Path().iterdir()] == ["step"]
