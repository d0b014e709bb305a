"""The laws of optimizers, metrics and activations: sound ones pass, and each planted fault is caught by its law."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import lamella as lm
from lamella import registry
from lamella.testing import ConformanceError, Specimen, check_activation, check_metric, check_optimizer, check_specimen
from lamella.testing.laws import laws_of
from lamella_layers import Dense

ROW, LABEL = lm.ArraySpec(("N", 4)), lm.ArraySpec(("N",), "int64", low=0, high=4)
STEPS, PADDED = lm.ArraySpec(("N", "T", 4)), lm.ArraySpec(("N", "T"), "int64", low=-1, high=4)
KEPT = []  # what faulty ones keep where they should not


class Rule(lm.optimizers.Optimizer):
    """Steps scaled by a running average of squares, right unless a fault is named."""

    slots = {"v": 0.0}  # noqa: RUF012  it is read only

    def __init__(self, fault="", learning_rate=0.01):
        self.fault = fault
        self.learning_rate = learning_rate

    def config(self):
        return {"fault": "", "learning_rate": 0.01} if self.fault == "a config of its own" else super().config()

    def update(self, xp, p, g, slots, lr, t):
        fault, v = self.fault, slots["v"]
        if fault == "writes into p":
            p -= lr * g
            return p, {"v": v}
        if fault == "writes into g":
            g *= 0.5
        if fault == "writes into a slot":
            v += g * g
        if fault == "writes into the dict":
            slots["v"] = v + g * g
            return p - lr * g, slots
        if fault == "a counter":
            KEPT.append(1)
            lr = lr * (1.0 + 1e-3 * len(KEPT))
        if fault == "the norm of everything":
            g = g / (xp.sqrt(xp.sum(g * g)) + 1.0)
        if fault == "the place in the buffer":
            g = g * (1.0 + xp.reshape(xp.astype(xp.arange(math.prod(g.shape)), g.dtype), g.shape))
        if fault == "uphill":
            lr = -lr
        if fault == "follows nothing":
            return 0.9 * p + lr * t * v, {"v": 0.1 * v}
        if fault == "its own learning rate":
            lr = self.learning_rate
        if fault == "a function of NumPy":
            g = np.sign(g)
        if fault == "an if on t":
            lr = 0.9 ** range(int(t))[-1] * lr if xp.backend == "numpy" and not hasattr(t, "shape") else lr
        if fault == "another formula elsewhere" and xp.backend == "strict":
            g = 1.01 * g
        if fault == "the power of an int":
            lr = lr / (1.0 - 0.9**t)
        v = 0.9 * v + 0.1 * g * g
        step = g / xp.sqrt(v) if fault == "no epsilon" else g / (xp.sqrt(v) + 1e-8)
        if fault == "a slot is missing":
            return p - lr * step, {}
        if fault == "a slot of one number":
            v = xp.sum(v)
        if fault == "float64":
            v = np.float64(1.0) * v
        if fault == "no slots at all":
            return p - lr * step
        return p - lr * step, {"v": v}


RULES = {
    "a slot is missing": ("state", "update returned the slots none; expected v.*slots names every array"),
    "a slot of one number": ("state", r"slot 'v' for a parameter \(6,\) float32: update returned \(\).*one entry for"),
    "float64": ("state", r"slot 'v' for a parameter \(6,\) float32: update returned \(6,\) float64.*as Python floats"),
    "no slots at all": ("state", r"update returned ndarray; expected the new parameter and a dict.*return p, \{\}"),
    "writes into p": ("purity", "update wrote into p.*make a new array"),
    "writes into g": ("purity", "update wrote into g"),
    "writes into a slot": ("purity", "update wrote into slot 'v'"),
    "writes into the dict": ("purity", "update wrote into the dict of slots.*return a new dict"),
    "a counter": ("purity", "the parameter: results of equal steps differ.*What lasts goes into slots"),
    "the norm of everything": (
        "elementwise",
        "the parameter: results for the whole parameter and for pieces of 1.2.3 entries differ.*clip_norm",
    ),
    "the place in the buffer": ("elementwise", "slot 'v': results for the whole parameter and for pieces of"),
    "uphill": ("descent", "the first step on a bowl moves entry 0 by .*, up its slope .*p - lr . direction goes down"),
    "follows nothing": ("descent", "50 steps on a bowl with lr=0.001 take the loss from 1 to 1; it must fall"),
    "its own learning rate": ("descent", "steps with lr=0.001 and with lr=0.002 are equal.*use lr, which follows"),
    "no epsilon": ("finite", "the parameter for gradients of 0: nan where a finite value is expected.*add epsilon"),
    "a function of NumPy": ("backends", "update fails on strict: .*call the functions of xp"),
    "another formula elsewhere": (
        "backends",
        "slot 'v': results on NumPy and on strict differ.*NumPy gives .*, strict ",
    ),
    "the power of an int": ("backends", "with lr and t as arrays on strict.*in a traced training step t is an array"),
    "an if on t": ("backends", "results on NumPy and with lr and t as arrays differ|with lr and t as arrays"),
    "a config of its own": ("round trip", "what copy.copy gives is not equal|what config gives is not equal"),
}


@pytest.mark.parametrize("fault", RULES)
def test_faults_of_optimizers_are_caught_by_their_law(fault):
    KEPT.clear()
    law, words = RULES[fault]
    with pytest.raises(ConformanceError, match=r"breaks \d of 7 laws") as caught:
        check_optimizer(Rule(fault))
    tells(caught.value, law, words)


def tells(error, law, words):
    """Whether a report says, under a law, what is wrong; it is data too."""
    said = [" ".join(f.lines()) for verdict in error.report.broken if verdict.law == law for f in verdict.faults]
    assert any(re.search(words, text, re.DOTALL) for text in said), error
    assert json.loads(json.dumps(error.report.as_dict()))["conforms"] is False


SHOWN = {type(one.subject): one.subject for one in registry.specimens()}  # those that need arguments


@pytest.mark.parametrize("entry", registry.entries("optimizers"), ids=lambda entry: entry.qualified)
def test_every_optimizer_obeys_every_law(entry):
    optimizer = SHOWN.get(entry.object) or entry.object()
    assert {verdict.outcome for verdict in check_optimizer(optimizer).verdicts} == {"holds"}


@pytest.mark.parametrize(
    "optimizer",
    [
        Rule(),
        lm.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lm.optimizers.SGD(lm.schedules.Cosine(0.1, steps=10)),
        lm.optimizers.RMSprop(momentum=0.9, centered=True),
        lm.optimizers.AdamW(weight_decay=0.5, exclude_from_weight_decay="*.bias"),
        lm.optimizers.Adam(amsgrad=True),
        lm.optimizers.Lion(weight_decay=0.1),
        lm.optimizers.Nadam(momentum_decay=1.0),
        lm.optimizers.ExponentialMovingAverage(lm.optimizers.GradientAccumulation("nadam", 3), 0.5),
        lm.optimizers.Adagrad(initial_accumulator_value=0.1),
    ],
    ids=repr,
)
def test_sound_optimizers_pass(optimizer):
    report = check_optimizer(optimizer)
    assert [verdict.law for verdict in report.verdicts] == list(laws_of("optimizers"))
    assert repr(report) == f"<ConformanceReport: {optimizer!r} obeys 7 laws>"


def test_an_optimizer_whose_divisor_may_be_0_is_told():
    with pytest.raises(ConformanceError, match="finite: the parameter for gradients of 0"):
        check_optimizer(lm.optimizers.Adam(epsilon=0.0))


class Share(lm.metrics.Metric):
    """The share of right classes, right unless a fault is named."""

    def __init__(self, fault=""):
        self.fault = fault

    def update(self, prediction, target, weight=None):
        fault = self.fault
        if fault == "writes into the target":
            target -= 1
            target += 2
        if fault == "writes into the prediction":
            prediction -= prediction.max(axis=1, keepdims=True)
        if fault == "writes into the weight" and weight is not None:
            weight /= weight.sum()
        right = (prediction.argmax(axis=1) == target).astype("float64")
        if fault == "keeps a total":
            KEPT.append(right.sum())
            return sum(KEPT), len(right)
        if fault == "a mean of the batch":
            return (np.mean(right) if len(right) else 0.0), 1.0
        if fault == "a sum for each row":
            return right, np.ones(len(right))
        if fault == "a list":
            return [right.sum(), len(right)]
        weights = np.ones(len(right)) if weight is None or fault == "no weights" else weight
        count = len(right) if fault == "weights of one sum only" else weights.sum()
        return np.asarray([np.vdot(right, weights)]), np.asarray([count])

    def result(self, sums):
        total, count = np.sum(sums[0]), np.sum(sums[1])
        if self.fault == "result writes":
            sums[0][...] = 0.0
        if self.fault == "no result":
            return None
        if self.fault == "divides whole numbers":
            return 1000 * int(total) // int(count)
        return float(total / count) if count else math.nan


METRICS = {
    "writes into the target": ("purity", "update wrote into the target.*changes the user's own arrays"),
    "writes into the prediction": ("purity", "update wrote into the prediction"),
    "writes into the weight": ("purity", "update wrote into the weight"),
    "result writes": ("purity", "result wrote into sum 0"),
    "keeps a total": ("purity", "sum 0: results of equal calls differ.*something outlives a call"),
    "a mean of the batch": (
        "sums",
        "19 rows in one batch and in batches of 4.15 differ.*return the total and the count",
    ),
    "a sum for each row": ("sums", r"batches of 4\+15: the shapes of the sums are \(19,\), \(19,\) and \(4,\), \(4,\)"),
    "a list": ("sums", r"update returned list; expected a tuple of sums.*return \(total, count\)"),
    "no result": ("sums", "result returned NoneType; expected a number"),
    "no weights": ("weights", "the result is .* for rows that are there 0 to 3 times, and .*is left out"),
    "weights of one sum only": ("weights", "the result is .* multiplies only some of the sums"),
    "divides whole numbers": ("no rows", "fails for no rows: ZeroDivisionError: .*return math.nan"),
}


@pytest.mark.parametrize("fault", METRICS)
def test_faults_of_metrics_are_caught_by_their_law(fault):
    KEPT.clear()
    law, words = METRICS[fault]
    with pytest.raises(ConformanceError, match=r"breaks \d of 5 laws") as caught:
        check_metric(Share(fault), ROW, LABEL)
    tells(caught.value, law, words)


@pytest.mark.parametrize(
    ("metric", "prediction", "target"),
    [
        (Share(), ROW, LABEL),
        (lm.metrics.Accuracy(), ROW, LABEL),
        (lm.metrics.Accuracy(), lm.ArraySpec(("N", "T", 4)), lm.ArraySpec(("N", "T"), "int64", low=0, high=4)),
        (lm.metrics.BinaryAccuracy(), ROW, lm.ArraySpec(("N", 4), "int64", low=0, high=2)),
        (lm.metrics.TopKAccuracy(2), ROW, LABEL),
        (lm.metrics.MeanAbsoluteError(), ROW, ROW),
        (lm.metrics.MeanSquaredError(), lm.ArraySpec(("N",)), lm.ArraySpec(("N",))),
        (lm.metrics.RootMeanSquaredError(), ROW, ROW),
        (lm.metrics.MeanAbsolutePercentageError(), ROW, ROW),
        (lm.metrics.Accuracy(ignore_class=-1), STEPS, PADDED),
        (lm.metrics.TopKAccuracy(2, ignore_class=3), ROW, LABEL),
        (lm.metrics.Precision(), ROW, LABEL),
        (lm.metrics.Recall(None), ROW, LABEL),
        (lm.metrics.F1("weighted", ignore_class=-1), STEPS, PADDED),
        (lm.metrics.F1("micro", multilabel=True), ROW, lm.ArraySpec(("N", 4), "int64", low=0, high=2)),
        (lm.metrics.ConfusionMatrix(), ROW, LABEL),
        (lm.metrics.AUC(), lm.ArraySpec(("N", 1)), lm.ArraySpec(("N", 1), "int64", low=0, high=2)),
        (lm.metrics.AUC("pr", None, from_logits=True, ignore_class=-1), STEPS, PADDED),
        (lm.metrics.AUC("roc", "micro", multilabel=True), ROW, lm.ArraySpec(("N", 4), "int64", low=0, high=2)),
        (lm.metrics.R2("raw_values"), ROW, ROW),
    ],
    ids=lambda one: repr(one) if isinstance(one, lm.metrics.Metric) else str(one),
)
def test_sound_metrics_pass(metric, prediction, target):
    report = check_metric(metric, prediction, target)
    assert [verdict.law for verdict in report.verdicts] == list(laws_of("metrics"))
    assert {verdict.outcome for verdict in report.verdicts} == {"holds"}


def activation(fault=""):
    """x |x|, right unless a fault is named."""

    def forward(xp, x):
        if fault == "writes" and xp.backend == "numpy":
            x += 1e-3
        return x * x / x if fault == "0 / 0" else x * xp.abs(x)

    def backward(xp, x, y, dy):
        if fault == "changes what was saved" and xp.backend == "numpy":
            y *= 2.0
        return dy * (1.0 if fault == "0 / 0" else (1.0 if fault == "wrong slope" else 2.0) * xp.abs(x))

    return lm.ActivationFunction(forward, backward)


@pytest.mark.parametrize(
    ("fault", "law", "words"),
    [
        ("wrong slope", "gradient", "dx of input 0 .*factor 0.5: counted half"),
        ("writes", "purity", "input 0 was written to"),
        ("changes what was saved", "purity", "saved array 1 was changed after ctx.save, by backward_pass"),
        ("0 / 0", "finite", "output 0 for zeros, in training mode: nan at"),
    ],
)
def test_faults_of_activations_are_caught_by_their_law(fault, law, words):
    with pytest.raises(ConformanceError, match=r"activation forward on \(N, 4\) float32 breaks \d of 7 laws") as caught:
        check_activation(activation(fault), ROW)
    tells(caught.value, law, words)


def test_sound_activations_pass_along_an_axis_too():
    report = check_activation(activation(), ROW)
    assert "round trip" not in [verdict.law for verdict in report.verdicts]
    softmax = registry.find("activations", "softmax")
    assert check_activation(softmax, lm.ArraySpec(("N", 2, 3))).subject == "activation 'softmax' on (N, 2, 3) float32"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda self: {"m": 0.0}, "got a method"),
        (("m",), r"got \('m',\)"),
        ({"m": None}, "'m': expected a finite number, got None"),
        ({1: 0.0}, "expected names as keys, got 1"),
    ],
)
def test_slots_that_are_no_dict_of_numbers_are_told_when_an_optimizer_is_made(given, words):
    kind = type("Momentum", (lm.optimizers.SGD,), {"__init__": lambda self: None, "slots": given, "learning_rate": 0.1})
    model = lm.Sequential([Dense(1)], input_shape=1)
    with pytest.raises(lm.ArgumentError, match=f"^Momentum: slots: .*{words}"):
        model.train_on_batch([[1.0]], [[1.0]], loss="mean_squared_error", optimizer=kind)
    with pytest.raises(lm.ArgumentError, match="Momentum: slots: "):
        check_optimizer(kind())


def test_only_what_has_laws_is_examined():
    for check, words in (
        (lambda: check_optimizer("adam"), "check_optimizer: expected an optimizer, got 'adam'"),
        (lambda: check_optimizer(lm.optimizers.SGD), r"got the class SGD; did you mean SGD\(\)\?"),
        (lambda: check_metric(lm.optimizers.SGD(), ROW, ROW), "check_metric: expected a metric, got SGD"),
        (lambda: check_activation("relu", ROW), "check_activation: expected an ActivationFunction, got 'relu'"),
        (lambda: check_specimen(Specimen(lm.schedules.Constant(0.1), ())), "there are no laws for a Constant"),
        (lambda: check_specimen(Specimen(lm.optimizers.SGD(), (ROW,))), "optimizers have no inputs, got 1 specs"),
        (lambda: check_specimen(Specimen(Share(), (ROW,))), "metrics have a prediction and a target, got 1 specs"),
    ):
        with pytest.raises(lm.ArgumentError, match=words):
            check()


class Recall(lm.metrics.Metric):
    """Of class 1, with weights that count in the denominator only."""

    def update(self, prediction, target, weight=None):
        hit, true = prediction.argmax(1) == 1, target == 1
        weight = np.ones(len(prediction)) if weight is None else weight
        return float((hit & true).sum()), float((weight * true).sum())

    def result(self, sums):
        return float(sums[0] / sums[1]) if sums[1] else float("nan")


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_a_metric_of_one_class_meets_it(classes):
    labels = lm.ArraySpec(("N",), "int64", low=0, high=classes)
    with pytest.raises(lm.testing.ConformanceError, match="weights"):
        lm.testing.check_metric(Recall(), lm.ArraySpec(("N", classes)), labels)
