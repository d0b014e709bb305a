"""A training step is written only if onnxruntime takes the engine's, and whole; what is damaged or does not fit is told."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import signal
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
from lamella_onnx import ParityError, TraceError, TrainingSession, export_training_step
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
    "the loss's slope": (lambda by: scaled(losses.softmax_cross_entropy_dx, by), "dense_1.kernel.gradient"),
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
    "optimizer calls numpy": (lambda: squared(optimizer=Rule("calls numpy")), TraceError, "update: numpy.sign was called"),
    "optimizer fails": (lambda: squared(optimizer=Rule("has a fault")), TraceError, "update can't be traced: AttributeErr"),
    "optimizer reduces": (lambda: squared(optimizer=Rule("reduces")), lm.LayerError, r"expected the parameter like .*\(4, 5"),
    "optimizer widens": (lambda: squared(optimizer=Rule("widens")), lm.LayerError, "expected the parameter .*got .*float64"),
    "optimizer forgets": (lambda: squared(optimizer=Rule("forgets")), lm.LayerError, "its slots, velocity; got none"),
    "optimizer's tuple": (lambda: squared(optimizer=Rule("gives no tuple")), lm.LayerError, "and a dict of slots, got Traced"),
    "loss branches": (lambda: exported(loss=Distance("branches")), TraceError, f"Distance.* failed on .*{NO_VALUE}"),
    "loss calls numpy": (lambda: exported(loss=Distance("calls numpy")), TraceError, f"Distance.* failed on .*{NO_VALUE}"),
    "penalty": (lambda: exported(penalties={"*": Branching()}), TraceError, f"penalties: .*{NO_VALUE}"),
    "constraint": (lambda: exported(constraints={"*": Halves()}), TraceError, f"constraints: .*{NO_VALUE}"),
    "no backward pass": (lambda: exported(dense(OneWay())), lm.LayerError, r"OneWay\) defines no backward_pass"),
    "unregistered layer": (lambda: exported(dense(Nameless())), lm.DataError, "step: class Nameless is not registered"),
    "unregistered optimizer": (lambda: exported(optimizer=NamelessRule()), lm.DataError, "step: class NamelessRule is not"),
    "nothing to train": (
        lambda: squared(model=lm.Sequential([Flatten()], input_shape=4)), lm.ArgumentError, "no layer has parameters that are not"
    ),
    "all frozen": (lambda: exported(frozen()), lm.ArgumentError, "no layer has parameters that are not frozen; unfreeze"),
    "NaN": (lambda: exported(spoiled()), lm.NonFiniteError, "dense_1.bias has 5 of 5 values that are not finite"),
    "no model": (lambda: export_training_step(5, "step", **TASK), lm.ArgumentError, "model: expected a lamella.Model, got 5"),
    "unknown loss": (lambda: exported(loss="mean_sqared_error"), lm.RegistryError, "mean_squared_error"),
    "no loss": (lambda: exported(loss=None), lm.ArgumentError, "loss: expected a name or a Loss for one output"),
    "parent": (lambda: exported(path="no/step"), FileNotFoundError, "there is no folder no"),
    "path of a file": (lambda: (Path("f").touch(), exported(path="f")), lm.DataError, "f is there, and holds no training step"),
    "path of another folder": (
        lambda: (Path("d").mkdir(), Path("d/x").touch(), exported(path="d")), lm.DataError, "d is there, and holds no training"
    ),
    "path": (lambda: exported(path=b"x"), lm.ArgumentError, "export_training_step: path: expected the path"),
    "opset": (lambda: exported(opset=17), lm.ArgumentError, "opset: expected 18 or newer, got 17"),
    "target": (lambda: exported(target="onnxruntime==1"), lm.ArgumentError, "target: expected 'onnxruntime==<version>'"),
    "samples": (lambda: exported(samples=X), lm.ArgumentError, r"samples: expected \(x, y\) or"),
    "samples' shape": (lambda: exported(samples=(X[:, :3], [0, 1, 1])), lm.DataError, r"input 'input_1': expected \(N, 4\)"),
    "samples' labels": (lambda: exported(samples=(X, [0, 1, 2])), lm.DataError, r"labels must be integers in \[0, 2\); got 2"),
    "samples' NaN": (lambda: exported(samples=(X * np.nan, [0, 1, 1])), lm.DataError, "of 'input_1' some are NaN or infinite"),
    "targets' NaN": (
        lambda: squared(samples=(X, X[:, :2] * np.nan)), lm.DataError, "of 'dense_2' some are NaN or infinite"
    ),
    "no rows": (lambda: exported(samples=(X[:0], [])), lm.DataError, "there are no rows"),
}  # fmt: skip


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
