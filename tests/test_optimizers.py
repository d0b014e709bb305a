"""Optimizers against PyTorch's published pseudo-code, written out for one number."""

import pickle
from math import sqrt

import numpy as np
import pytest

import lamella as lm
from lamella.backends import get_backend
from lamella.errors import ArgumentError
from lamella.optimizers import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop, lamella_optimizers
from lamella_layers import Dense


def sgd(lr, momentum=0.0, nesterov=False):
    b = None

    def step(p, g, t):
        nonlocal b
        if momentum:
            b = momentum * b + g if t > 1 else g
            g = g + momentum * b if nesterov else b
        return p - lr * g

    return step


def adam(lr=0.001, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    m = v = 0.0

    def step(p, g, t):
        nonlocal m, v
        p = p - lr * decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        return p - lr * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps)

    return step


def rmsprop(lr=0.01, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    v = average = b = 0.0

    def step(p, g, t):
        nonlocal v, average, b
        v = alpha * v + (1 - alpha) * g**2
        average = alpha * average + (1 - alpha) * g
        spread = max(v - average**2, 0.0) if centered else v
        b = momentum * b + g / (sqrt(spread) + eps)
        return p - lr * b

    return step


def adagrad(lr=0.01, start=0.0, eps=1e-10):
    total = start

    def step(p, g, t):
        nonlocal total
        total += g**2
        return p - lr * g / (sqrt(total) + eps)

    return step


def adadelta(lr=1.0, rho=0.9, eps=1e-6):
    v = u = 0.0

    def step(p, g, t):
        nonlocal v, u
        v = rho * v + (1 - rho) * g**2
        change = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho * u + (1 - rho) * change**2
        return p - lr * change

    return step


# the optimizer, and its reference with the same settings; the defaults are written out in the references
CASES = [
    (SGD(), lambda: sgd(0.01)),
    (SGD(0.1, momentum=0.9), lambda: sgd(0.1, 0.9)),
    (SGD(0.1, momentum=0.9, nesterov=True), lambda: sgd(0.1, 0.9, True)),
    (Adam(), lambda: adam()),
    (Adam(0.01, beta_1=0.0, beta_2=0.9, epsilon=1e-3), lambda: adam(0.01, 0.0, 0.9, 1e-3)),
    (AdamW(), lambda: adam(decay=0.01)),
    (AdamW(0.1, weight_decay=0.3), lambda: adam(0.1, decay=0.3)),
    (RMSprop(), lambda: rmsprop()),
    (RMSprop(0.02, rho=0.9, momentum=0.8, centered=True), lambda: rmsprop(0.02, 0.9, momentum=0.8, centered=True)),
    (Adagrad(), lambda: adagrad()),
    (Adagrad(0.1, initial_accumulator_value=0.5), lambda: adagrad(0.1, 0.5)),
    (Adadelta(), lambda: adadelta()),
    (Adadelta(0.5, rho=0.8, epsilon=1e-4), lambda: adadelta(0.5, 0.8, 1e-4)),
]
by_optimizer = pytest.mark.parametrize("optimizer", [case[0] for case in CASES], ids=repr)


def walk(optimizer, dtype="float64", backend="numpy", steps=15, shape=(5,), time=lambda t, xp: t):
    """Return the parameters after each of some steps along fixed random gradients, and the last slots."""
    rng, backend = np.random.default_rng(0), get_backend(backend)
    p = backend.asarray(rng.normal(size=shape).astype(dtype))
    slots = {name: backend.asarray(np.full(shape, value, dtype)) for name, value in optimizer.slots.items()}
    path = [backend.asnumpy(p)]
    for t in range(1, steps + 1):
        g = backend.asarray((10.0 * rng.normal(size=shape) * rng.integers(0, 2, shape)).astype(dtype))
        before = [np.copy(backend.asnumpy(array)) for array in (p, g, *slots.values())]
        now = time(t, backend.xp)
        new, new_slots = optimizer.update(backend.xp, p, g, slots, optimizer.learning_rate, now)
        for array, copy in zip((p, g, *slots.values()), before, strict=True):
            np.testing.assert_array_equal(backend.asnumpy(array), copy)  # arguments are left alone
        assert set(new_slots) == set(optimizer.slots)
        assert all(array.dtype == g.dtype and array.shape == shape for array in (new, *new_slots.values()))
        p, slots = new, new_slots
        path.append(backend.asnumpy(p))
    return np.stack(path)


@pytest.mark.parametrize(("optimizer", "reference"), CASES, ids=[repr(case[0]) for case in CASES])
def test_published_formula(optimizer, reference):
    rng = np.random.default_rng(0)
    numbers, steps = rng.normal(size=5).tolist(), [reference() for _ in range(5)]
    expected = [numbers]
    for t in range(1, 16):
        gradients = (10.0 * rng.normal(size=5) * rng.integers(0, 2, 5)).tolist()
        numbers = [step(p, g, t) for step, p, g in zip(steps, numbers, gradients, strict=True)]
        expected.append(numbers)
    np.testing.assert_allclose(walk(optimizer), expected, rtol=1e-12, atol=1e-12)


@by_optimizer
def test_float32_and_strict(optimizer):
    np.testing.assert_allclose(walk(optimizer, "float32"), walk(optimizer), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(walk(optimizer, backend="strict"), walk(optimizer), rtol=1e-13)


@by_optimizer
@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_step_as_an_array(optimizer, backend):
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        expected = walk(optimizer, dtype, backend)
        stepped = walk(optimizer, dtype, backend, time=lambda t, xp: xp.asarray(t))
        np.testing.assert_allclose(stepped, expected, rtol=tolerance, atol=1e-6)


def test_bias_correction_keeps_its_digits_in_float32():
    for time in (lambda t, xp: t, lambda t, xp: xp.asarray(t)):
        moved = np.diff(walk(Adam(1.0, epsilon=1e-30), "float32", steps=1, time=time), axis=0)
        assert moved.any()
        np.testing.assert_allclose(abs(moved[moved != 0]), 1.0, rtol=1e-6)  # the first step is lr * sign(g)


def test_centered_rmsprop_survives_a_constant_gradient():
    optimizer, xp = RMSprop(rho=0.9, centered=True), get_backend("numpy").xp
    p, g = np.ones(64, "float32"), np.linspace(0.1, 9, 64, dtype="float32")
    slots = dict.fromkeys(optimizer.slots, np.zeros(64, "float32"))
    for t in range(1, 301):  # the variance of the gradient is 0 but for round-off, of either sign
        p, slots = optimizer.update(xp, p, g, slots, 0.01, t)
    assert np.isfinite(p).all()


@by_optimizer
def test_elementwise(optimizer):
    whole = walk(optimizer, shape=(6,))
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(walk(optimizer, shape=(2, 3)).reshape(16, 6), whole)


@by_optimizer
def test_configuration(optimizer):
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer == optimizer.replace()
    assert optimizer.replace(learning_rate=0.5).learning_rate == 0.5
    assert lamella_optimizers()[type(optimizer).__name__.lower()] is type(optimizer)


def test_slots():
    assert SGD().slots == {}
    assert Adagrad(initial_accumulator_value=0.5).slots == {"sum": 0.5}
    assert RMSprop().slots == {"v": 0.0}
    assert all(issubclass(cls, Optimizer) for cls in lamella_optimizers().values())


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (SGD, {"learning_rate": -1}, "SGD: learning_rate: expected a number of at least 0, got -1"),
        (SGD, {"momentum": 1.0}, r"SGD: momentum: expected a fraction in \[0, 1\), got 1.0"),
        (SGD, {"nesterov": True}, "SGD: nesterov: expected False without momentum, got True; try momentum=0.9"),
        (Adam, {"beta_2": 1.0}, r"Adam: beta_2: expected a fraction in \[0, 1\)"),
        (AdamW, {"weight_decay": -0.1}, "AdamW: weight_decay: expected a number of at least 0"),
        (RMSprop, {"epsilon": float("nan")}, "RMSprop: epsilon: expected a finite number, got nan"),
        (Adagrad, {"initial_accumulator_value": -1.0}, "initial_accumulator_value: expected a number of at least 0"),
        (Adadelta, {"rho": "0.9"}, "Adadelta: rho: expected a finite number, got '0.9'"),
    ],
)
def test_arguments_that_make_no_sense(cls, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        cls(**arguments)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_steps_that_a_layer_misses_while_it_is_frozen_do_not_count_for_it(optimizer, saved, tmp_path):
    model = lm.Sequential([Dense(3).named("first"), Dense(2)], input_shape=4)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 2))
    rule = {"adam": Adam(0.01), "adamw": AdamW(0.01, weight_decay=0.0)}[optimizer]
    model.freeze("first")
    for _ in range(300):
        model.train_on_batch(x, y, loss="mean_squared_error", optimizer=rule)
    model.unfreeze("first")
    if saved:
        model.save(tmp_path / "m.lamella")
        model = lm.load(tmp_path / "m.lamella")
    before = model.parameters["first.kernel"]
    for step in range(3):
        model.train_on_batch(x, y, loss="mean_squared_error", optimizer=rule)
        if step == 0:  # the first step of Adam is as long as the learning rate
            np.testing.assert_allclose(np.abs(model.parameters["first.kernel"] - before), 0.01, rtol=1e-3)
    state = model.optimizer_state
    assert (state.t, dict(state.missed)) == (303, {"first.kernel": 300, "first.bias": 300})
