"""Losses, optimizers, schedules and activations that Keras has, against Keras in float64, over random configurations.

Runs where Keras and PyTorch, on which it computes here, are found; ``-s`` prints the largest differences as a table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pages import blocks

import lamella as lm
from lamella import activations, losses, metrics, optimizers, schedules
from lamella.backends import get_backend
from lamella.protocol import ArraySpec
from lamella_layers import Conv1D, Conv2D, Dense, Flatten, MaxPooling2D, Permute

try:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    import torch
except ModuleNotFoundError:
    keras = None

pytestmark = [
    pytest.mark.skipif(keras is None, reason="Keras and PyTorch are not installed"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras's variables
]
REPEATS = 40
XP = get_backend("numpy").xp


@pytest.fixture(autouse=True)
def _float64(monkeypatch) -> Iterator[None]:
    """Keras with PyTorch below it takes most results of float64 arrays as float32, unless its table says otherwise."""
    from keras.src.backend.common import dtypes

    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


class Draw:
    """Random sizes and arrays."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def chance(self) -> bool:
        return bool(self.rng.integers(2))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def shape(self, least: int = 2) -> tuple[int, ...]:
        return tuple(map(int, self.rng.integers(2, 6, self.rng.integers(least, 4))))

    def normal(self, shape: tuple[int, ...], size: float = 2.0) -> np.ndarray:
        return size * self.rng.normal(size=shape)

    def yes_no(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.integers(0, 2, shape).astype(float)

    def shares(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.dirichlet(np.full(shape[-1], 3.0), shape[:-1])

    def labels(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.integers(0, shape[-1], shape[:-1])


Case = tuple[Any, np.ndarray, np.ndarray, Any]  # ours, prediction, target, Keras's of both
LOSSES: dict[str, Callable[[Draw], Case]] = {}


def case(name: str) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        LOSSES[name] = function
        return function

    return add


def theirs(name: str, **options: Any) -> Any:
    return getattr(keras.losses, name)(**options, reduction=None, dtype="float64")


@case("SoftmaxCrossEntropy, labels")
def _(d):
    shape = d.shape()
    return (
        losses.SoftmaxCrossEntropy(),
        d.normal(shape),
        d.labels(shape),
        theirs("SparseCategoricalCrossentropy", from_logits=True),
    )


@case("SoftmaxCrossEntropy, smoothing")
def _(d):
    shape, s = d.shape(), d.between(0.0, 1.0)
    ours = losses.SoftmaxCrossEntropy(label_smoothing=s)
    target = d.one_of(d.shares(shape), np.eye(shape[-1])[d.labels(shape)])
    return ours, d.normal(shape), target, theirs("CategoricalCrossentropy", from_logits=True, label_smoothing=s)


@case("CategoricalCrossEntropy, smoothing")
def _(d):
    shape, s = d.shape(), d.between(0.0, 1.0)
    ours = losses.CategoricalCrossEntropy(label_smoothing=s)
    return ours, d.shares(shape), d.shares(shape), theirs("CategoricalCrossentropy", label_smoothing=s)


@case("SoftmaxFocalCrossEntropy")
def _(d):
    shape, s, gamma = d.shape(), d.between(0.0, 0.5), d.between(0.5, 4.0)
    ours = losses.SoftmaxFocalCrossEntropy(gamma, label_smoothing=s)
    options = {"alpha": 1.0, "gamma": gamma, "from_logits": True, "label_smoothing": s}
    return ours, d.normal(shape), d.shares(shape), theirs("CategoricalFocalCrossentropy", **options)


@case("KLDivergence")
def _(d):
    shape = d.shape()
    return losses.KLDivergence(), d.shares(shape), d.shares(shape), theirs("KLDivergence")


@case("BinaryCrossEntropy")
def _(d):
    shape, s, logits = d.shape(), d.between(0.0, 1.0), d.chance()
    ours = losses.BinaryCrossEntropy(from_logits=logits, label_smoothing=s)
    x = d.normal(shape) if logits else d.rng.uniform(0.001, 0.999, shape)
    return ours, x, d.yes_no(shape), theirs("BinaryCrossentropy", from_logits=logits, label_smoothing=s)


@case("BinaryFocalCrossEntropy")
def _(d):
    shape, s, gamma, alpha = d.shape(), d.between(0.0, 0.5), d.between(0.5, 4.0), d.one_of(None, d.between(0.0, 1.0))
    ours = losses.BinaryFocalCrossEntropy(gamma, alpha, label_smoothing=s)
    options = {"apply_class_balancing": alpha is not None, "alpha": alpha or 0.0, "label_smoothing": s}
    return (
        ours,
        d.normal(shape),
        d.yes_no(shape),
        theirs("BinaryFocalCrossentropy", gamma=gamma, from_logits=True, **options),
    )


@case("Hinge")
def _(d):
    shape = d.shape()
    target = d.yes_no(shape)
    return losses.Hinge(), d.normal(shape), d.one_of(target, 2.0 * target - 1.0), theirs("Hinge")


@case("Poisson")
def _(d):
    shape = d.shape()
    return losses.Poisson(), d.rng.uniform(0.1, 9.0, shape), d.rng.poisson(3.0, shape).astype(float), theirs("Poisson")


@case("LogCosh")
def _(d):
    shape = d.shape()
    # PyTorch leaves out what is below exp(-20) in the softplus that Keras takes
    return losses.LogCosh(), d.normal(shape, 1.0), d.normal(shape, 1.0), theirs("LogCosh")


@case("CosineSimilarity")
def _(d):
    shape = d.shape()
    return losses.CosineSimilarity(), d.normal(shape), d.normal(shape), theirs("CosineSimilarity")


@case("Huber")
def _(d):
    shape, delta = d.shape(), d.between(0.1, 3.0)
    return losses.Huber(delta), d.normal(shape), d.normal(shape), theirs("Huber", delta=delta)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, list[float]]]:
    """The largest differences of each subject; printed in the end."""
    rows: dict[str, list[float]] = {}
    yield rows
    print(f"\n\n{'largest difference from Keras, in float64':<45}    values  gradients")
    for name, (value, slope) in rows.items():
        print(f"{name:<45} {value:>9.1e} {slope:>10.1e}")


def numpy_of(x: Any) -> np.ndarray:
    """A tensor or variable of Keras, whose own way is deprecated in NumPy."""
    tensor = x.value if isinstance(x, keras.Variable) else x
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def difference(ours: Any, expected: Any) -> float:
    ours, expected = np.asarray(ours), np.asarray(expected)
    return float(np.max(np.abs(ours - expected) / np.maximum(1.0, np.abs(expected)), initial=0.0))


def note(table, name, value, slope, limit, seed=None):
    known = table.setdefault(name, [0.0, 0.0])
    known[:] = [max(known[0], value), max(known[1], slope)]
    assert max(value, slope) <= limit, (name, seed)


def draws() -> Iterator[tuple[int, Draw]]:
    first = int(np.random.default_rng().integers(1 << 30))
    return ((seed, Draw(seed)) for seed in range(first, first + REPEATS))


def run(loss: Any, x: np.ndarray, target: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each sample, and the gradient of their sum with weights."""
    kept: list[Any] = []
    ctx = SimpleNamespace(xp=XP, dtype=x.dtype, training=True)
    ctx.save = lambda *arrays: kept.__setitem__(slice(None), arrays)
    target = loss.prepare(ArraySpec(("N", *x.shape[1:]), "float64"), target)
    values = loss.forward(ctx, x, target)
    ctx.saved = tuple(kept)
    return values, loss.backward(ctx, d)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree(name, table):
    for seed, draw in draws():
        ours, x, target, expected = LOSSES[name](draw)
        d = draw.rng.uniform(size=len(x))
        values, dx = run(ours, x, target, d)
        tensor = torch.tensor(x, requires_grad=True)
        each = expected(torch.tensor(target), tensor)
        each = each.reshape(len(x), -1).mean(dim=1)
        (slope,) = torch.autograd.grad(each, tensor, torch.tensor(d))
        if name.startswith("CategoricalCrossEntropy"):  # Keras divides by the sum of the shares, which takes this away
            dx = dx - np.sum(dx * x, axis=-1, keepdims=True)
        value, slope = difference(values, each.detach().numpy()), difference(dx, slope.numpy())
        note(table, name, value, slope, 1e-11, seed)


def test_labels_that_do_not_count_agree(table):
    """The mean over all labels that count, and its gradient."""
    for _, draw in draws():
        shape, ignored = draw.shape(), draw.one_of(-1, 0)
        x, labels = draw.normal(shape), draw.labels(shape)
        labels = np.where(draw.rng.uniform(size=labels.shape) < 0.3, ignored, labels)
        labels.flat[0] = 1
        node = lm.Input(shape[1:])
        model = lm.Model(node, lm.layer("activation", function="linear")(node), dtype="float64")
        ours = losses.SoftmaxCrossEntropy(ignore_class=ignored)
        value, _, dx = model.gradients(x, labels, loss=ours)
        tensor = torch.tensor(x, requires_grad=True)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored, dtype="float64")
        expected = loss(torch.tensor(labels), tensor)
        (slope,) = torch.autograd.grad(expected, tensor)
        value, slope = difference(value, expected.detach().numpy()), difference(dx, slope.numpy())
        note(table, "SoftmaxCrossEntropy, ignore_class", value, slope, 1e-11)


ACTIVATIONS = {"hard_sigmoid": "hard_sigmoid", "hard_silu": "hard_silu", "hard_swish": "hard_silu", "mish": "mish",
               "relu6": "relu6", "softsign": "softsign", "swish": "silu"}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_agree(name, table):
    function: activations.ActivationFunction = lm.registry.find("activations", name)
    for _, draw in draws():
        x, dy = draw.normal(draw.shape(), 4.0), 1.0
        y = function.forward(XP, x)
        dx = function.backward(XP, x if function.uses_x else None, y, dy * np.ones_like(x))
        tensor = torch.tensor(x, requires_grad=True)
        expected = getattr(keras.activations, ACTIVATIONS[name])(tensor)
        (slope,) = torch.autograd.grad(expected.sum(), tensor)
        # PyTorch rounds the slope of the hard sigmoid to float32
        limit = 2e-8 if name == "hard_sigmoid" else 1e-12
        note(table, f"activation {name}", difference(y, expected.detach().numpy()), difference(dx, slope), limit)


def optimizer_case(name: str, d: Draw) -> tuple[Any, Any]:
    o, k = optimizers, keras.optimizers
    rate, share, other = d.between(1e-3, 0.1), d.between(0.5, 0.95), d.between(0.5, 0.99)
    adam = {"learning_rate": rate, "beta_1": share, "beta_2": other}
    no_epsilon = {"epsilon": 1e-30}  # which stands elsewhere in Keras's formulas
    return {
        "Lion": lambda: (o.Lion(**adam), k.Lion(**adam)),
        "Lion, weight decay": lambda: (o.Lion(**adam, weight_decay=share), k.Lion(**adam, weight_decay=share)),
        "AdamW, without biases": lambda: (
            o.AdamW(**adam, **no_epsilon, weight_decay=share, exclude_from_weight_decay="*.bias"),
            excluding(k.AdamW(**adam, **no_epsilon, weight_decay=share)),
        ),
        "Adam, amsgrad": lambda: (
            o.Adam(**adam, **no_epsilon, amsgrad=True),
            k.Adam(**adam, **no_epsilon, amsgrad=True),
        ),
        "Nadam": lambda: (o.Nadam(**adam, **no_epsilon, momentum_decay=1.0), k.Nadam(**adam, **no_epsilon)),
        "Adamax": lambda: (o.Adamax(**adam, **no_epsilon), k.Adamax(**adam, **no_epsilon)),
        "GradientAccumulation": lambda: (
            o.GradientAccumulation(o.Adam(**adam, **no_epsilon), 3),
            k.Adam(**adam, **no_epsilon, gradient_accumulation_steps=3),
        ),
        "ExponentialMovingAverage": lambda: (
            o.ExponentialMovingAverage(o.SGD(rate, momentum=share), other),
            k.SGD(rate, momentum=share, use_ema=True, ema_momentum=other),
        ),
    }[name]()


def excluding(optimizer: Any) -> Any:
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


OPTIMIZERS = ["Lion", "Lion, weight decay", "AdamW, without biases", "Adam, amsgrad", "Nadam", "Adamax",
              "GradientAccumulation", "ExponentialMovingAverage"]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_agree(name, table):
    for seed, draw in list(draws())[: REPEATS // 4]:
        ours, other = optimizer_case(name, draw)
        model = lm.Sequential([Dense(4), Dense(2)], input_shape=3, dtype="float64", seed=seed)
        variables = [keras.Variable(array, name=key.replace(".", "_")) for key, array in model.parameters.items()]
        other.build(variables)
        for _ in range(9):
            gradients = {key: draw.normal(array.shape) for key, array in model.parameters.items()}
            model.apply_gradients(gradients, ours)
            other.apply([torch.tensor(g) for g in gradients.values()])
            pairs = list(zip(model.parameters.values(), variables, strict=True))
            if name == "ExponentialMovingAverage":
                averages = other._model_variables_moving_average
                pairs += zip(model.averaged().parameters.values(), averages, strict=True)
            error = max(difference(array, numpy_of(variable)) for array, variable in pairs)
            note(table, f"optimizer {name}", error, 0.0, 1e-11)


def test_schedules_agree(table):
    k, s = keras.optimizers.schedules, schedules
    for _, draw in draws():
        rate, end, factor = draw.between(0.1, 1.0), draw.between(0.0, 0.1), draw.between(0.1, 1.0)
        steps = int(draw.rng.integers(2, 30))
        power, lengthen = draw.between(0.5, 3.0), int(draw.rng.integers(1, 4))
        starts = np.cumsum([steps * lengthen**run for run in range(7)])
        pairs = {
            "Polynomial": (s.Polynomial(rate, steps, power=power, end=end), k.PolynomialDecay(rate, steps, end, power)),
            "InverseTime": (s.InverseTime(rate, steps / factor), k.InverseTimeDecay(rate, steps, factor)),
            "CosineRestarts": (
                s.CosineRestarts(rate, steps, lengthen=lengthen, lower=factor, end=0.0),
                k.CosineDecayRestarts(rate, steps, float(lengthen), factor),
            ),
            "PiecewiseConstant": (  # Keras's first value holds for a step more
                s.PiecewiseConstant((steps, 2 * steps), (rate, end, factor)),
                k.PiecewiseConstantDecay([steps - 1, 2 * steps - 1], [rate, end, factor]),
            ),
        }
        for name, (ours, expected) in pairs.items():
            for step in range(1, 70):
                told = float(numpy_of(expected(step - 1)))
                # Keras finds the start of a growing run with a logarithm, which may round to the end of the run before
                if name == "CosineRestarts" and lengthen > 1 and step - 1 in starts:
                    continue
                note(table, f"schedule {name}", difference(ours.at(step), told), 0.0, 1e-11)


@pytest.mark.parametrize("distribution", ["truncated_normal", "uniform"])
def test_initializers_have_the_moments_of_keras(distribution):
    shape = (300, 400)
    for mode in ("fan_in", "fan_out", "fan_avg"):
        ours = lm.initializers.VarianceScaling(1.7, mode, distribution)(np.random.default_rng(0), shape)
        made = keras.initializers.VarianceScaling(1.7, mode, distribution, seed=1)(shape)
        expected = numpy_of(made)
        assert ours.std() == pytest.approx(expected.std(), rel=0.01)
        # not the largest: Keras's way to cut a normal lets a rare one through
        assert np.quantile(abs(ours), 0.999) == pytest.approx(np.quantile(abs(expected), 0.999), rel=0.01)
    ours = lm.initializers.TruncatedNormal(0.5, 0.2)(np.random.default_rng(0), shape)
    expected = numpy_of(keras.initializers.TruncatedNormal(0.5, 0.2, seed=1)(shape))
    assert (ours.mean(), ours.std()) == pytest.approx((expected.mean(), expected.std()), rel=0.01)


def test_percentages_are_shares():
    """Keras gives percent, and holds the divisor above 1e-7."""
    x, y = np.random.default_rng(0).normal(size=(2, 50, 3)) + 3.0
    metric = metrics.MeanAbsolutePercentageError()
    expected = keras.losses.MeanAbsolutePercentageError(dtype="float64")(torch.tensor(y), torch.tensor(x))
    assert 100.0 * metric.result(metric.update(x, y)) == pytest.approx(float(expected), rel=1e-12)


def digits_of_keras() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def test_the_page_takes_weights_of_keras():
    """The snippet of docs/coming-from.md, with weights of Keras in place of its zeros."""
    theirs, images = digits_of_keras(), np.random.default_rng(0).normal(size=(20, 1, 8, 8))
    page = Path(__file__).parents[1] / "docs" / "coming-from.md"
    (snippet,) = [text for language, text in blocks(page) if language == "python" and "keras_model" in text]
    (zeros,) = re.findall(r"\[np\.zeros.*\](?=  # keras_model\.get_weights\(\))", snippet)
    for again in (False, True):
        own = lm.Sequential(
            [
                Conv2D(16, 3, activation="relu"),
                MaxPooling2D(),
                *[Permute((2, 3, 1))] * again,
                Flatten(),
                Dense(10),
            ],
            input_shape=(1, 8, 8),
            dtype="float64",
        )
        names = {"np": np, "model": own, "weights": theirs.get_weights()}
        exec(snippet.replace(zeros, "weights"), names)
        if again:
            own.parameters["dense_1.kernel"] = names["dense"]
        expected = numpy_of(theirs(images.transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(own.predict(images), expected, rtol=1e-9, atol=1e-12)
        own.parameters["dense_1.kernel"] = names["rows" if again else "dense"]
        assert abs(own.predict(images) - expected).max() > 0.1  # each is wrong in the place of the other


def test_a_series_takes_weights_of_keras():
    theirs = keras.Sequential([keras.Input((9, 3)), keras.layers.Conv1D(4, 2)])
    own = lm.Sequential([Conv1D(4, 2)], input_shape=(3, 9), dtype="float64")
    kernel, bias = theirs.get_weights()
    own.assign({"conv1d_1.kernel": kernel.transpose(2, 1, 0), "conv1d_1.bias": bias})
    x = np.random.default_rng(0).normal(size=(5, 3, 9))
    expected = numpy_of(theirs(x.transpose(0, 2, 1))).transpose(0, 2, 1)
    np.testing.assert_allclose(own.predict(x), expected, rtol=1e-9, atol=1e-12)
