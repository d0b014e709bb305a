"""Optimizers against PyTorch's published pseudo-code, written out for one number."""

import pickle
from math import sqrt

import numpy as np
import pytest

import lamella as lm
from lamella.backends import get_backend
from lamella.errors import ArgumentError
from lamella.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    ExponentialMovingAverage,
    GradientAccumulation,
    LearningRateMultipliers,
    Lion,
    Nadam,
    Optimizer,
    RMSprop,
    lamella_optimizers,
)
from lamella.registry import snake_case
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


def adam(lr=0.001, b1=0.9, b2=0.999, eps=1e-8, decay=0.0, amsgrad=False):
    m = v = most = 0.0

    def step(p, g, t):
        nonlocal m, v, most
        p = p - lr * decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        most = max(most, v) if amsgrad else v
        return p - lr * (m / (1 - b1**t)) / (sqrt(most / (1 - b2**t)) + eps)

    return step


def nadam(lr=0.002, b1=0.9, b2=0.999, eps=1e-8, psi=0.004):
    m, v, product = 0.0, 0.0, 1.0

    def step(p, g, t):
        nonlocal m, v, product
        mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (k * psi)) for k in (t, t + 1))
        product *= mu
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        size = sqrt(v / (1 - b2**t)) + eps
        return p - lr * ((1 - mu) * g / (1 - product) + ahead * m / (1 - product * ahead)) / size

    return step


def adamax(lr=0.002, b1=0.9, b2=0.999, eps=1e-8):
    m = u = 0.0

    def step(p, g, t):
        nonlocal m, u
        m = b1 * m + (1 - b1) * g
        u = max(b2 * u, abs(g) + eps)
        return p - lr * m / ((1 - b1**t) * u)

    return step


def lion(lr=1e-4, b1=0.9, b2=0.99, decay=0.0):
    m = 0.0

    def step(p, g, t):
        nonlocal m
        c = b1 * m + (1 - b1) * g
        m = b2 * m + (1 - b2) * g
        return p - lr * ((c > 0) - (c < 0) + decay * p)

    return step


def accumulating(inner, steps):
    total = 0.0

    def step(p, g, t):
        nonlocal total
        total += g / steps
        if t % steps:
            return p
        mean, total = total, 0.0
        return inner(p, mean, t // steps)

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
    (Adam(0.01, beta_2=0.5, amsgrad=True), lambda: adam(0.01, b2=0.5, amsgrad=True)),
    (AdamW(0.1, weight_decay=0.3, amsgrad=True), lambda: adam(0.1, decay=0.3, amsgrad=True)),
    (Nadam(), lambda: nadam()),
    (Nadam(0.01, beta_1=0.8, beta_2=0.95, momentum_decay=1.0), lambda: nadam(0.01, 0.8, 0.95, psi=1.0)),
    (Adamax(), lambda: adamax()),
    (Adamax(0.1, beta_1=0.5, beta_2=0.9, epsilon=1e-3), lambda: adamax(0.1, 0.5, 0.9, 1e-3)),
    (Lion(), lambda: lion()),
    (Lion(0.1, beta_1=0.5, beta_2=0.8, weight_decay=0.3), lambda: lion(0.1, 0.5, 0.8, 0.3)),
    (GradientAccumulation(Adam(0.01), 4), lambda: accumulating(adam(0.01), 4)),
    (GradientAccumulation(SGD(0.1, momentum=0.9), 2), lambda: accumulating(sgd(0.1, 0.9), 2)),
    (ExponentialMovingAverage(Adam(0.01), 0.5), lambda: adam(0.01)),
    (LearningRateMultipliers(Adam(0.01), {"*": 0.5}), lambda: adam(0.01)),  # names are the engine's business
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
    assert optimizer.with_learning_rate(0.5).learning_rate == 0.5
    assert optimizer.with_learning_rate(np.float32(0.5)).learning_rate == 0.5
    assert optimizer.with_learning_rate(np.int64(2)).learning_rate == 2.0
    assert optimizer.with_learning_rate(0.5).settings() == optimizer.settings()
    name = type(optimizer).__name__
    short = name in ("SGD", "RMSprop") or name.startswith("Ada")
    assert lamella_optimizers()[name.lower() if short else snake_case(name)] is type(optimizer)


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
        (Adam, {"amsgrad": 1}, "Adam: amsgrad: expected True or False, got 1"),
        (AdamW, {"exclude_from_weight_decay": 3}, r"AdamW: exclude_from_weight_decay: expected patterns .*, got 3"),
        (
            Lion,
            {"exclude_from_weight_decay": ("",)},
            r"Lion: exclude_from_weight_decay: expected a pattern .*, got ''",
        ),
        (Adamax, {"epsilon": 0.0}, "Adamax: epsilon: expected a number above 0, got 0.0"),
        (Nadam, {"momentum_decay": -1}, "Nadam: momentum_decay: expected a number of at least 0, got -1"),
        (GradientAccumulation, {"optimizer": "adam", "steps": 1}, "steps: expected an int of at least 2, got 1"),
        (GradientAccumulation, {"optimizer": 3, "steps": 2}, "optimizer: expected a name or an Optimizer, got 3"),
        (
            GradientAccumulation,
            {"optimizer": GradientAccumulation("sgd", 2), "steps": 2},
            "optimizer: GradientAccumulation.'sgd', 2. has a slot 'accumulated' already; use another one",
        ),
        (ExponentialMovingAverage, {"optimizer": "sgd", "momentum": 1.0}, r"momentum: expected a fraction in \[0, 1\)"),
        (
            LearningRateMultipliers,
            {"optimizer": "sgd", "multipliers": 0.1},
            r"multipliers: expected a dict such as \{'",
        ),
        (
            LearningRateMultipliers,
            {"optimizer": "sgd", "multipliers": {"*": -1}},
            r"'\*': expected a number of at least 0",
        ),
        (
            LearningRateMultipliers,
            {"optimizer": "sgd", "multipliers": {1: 1}},
            "multipliers: expected a pattern of .* 1",
        ),
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


def two_layers(**options):
    return lm.Sequential(
        [Dense(3, activation="tanh").named("first"), Dense(2).named("last")], input_shape=4, dtype="float64", **options
    )


DATA = np.random.default_rng(1).normal(size=(24, 4)), np.random.default_rng(2).normal(size=(24, 2))
TASK = {"loss": "mean_squared_error", "shuffle": False, "progress": False}


def test_accumulated_batches_are_one_large_batch_whatever_else_is_said():
    many, few = two_layers(), two_layers()
    for model in (many, few):  # within the bounds, which hold after every batch
        for name in ("first.kernel", "last.kernel"):
            model.parameters[name] = 0.3 * model.parameters[name]
    rules = {"penalties": {"*": lm.regularization.L2(0.1)}, "constraints": {"*.kernel": lm.regularization.MaxNorm(0.5)}}
    many.fit(*DATA, optimizer=GradientAccumulation(Nadam(0.1), 3), batch_size=4, epochs=4, **rules, **TASK)
    few.fit(*DATA, optimizer=Nadam(0.1), batch_size=12, epochs=4, **rules, **TASK)
    for name, array in few.parameters.items():
        np.testing.assert_allclose(many.parameters[name], array, rtol=1e-12, atol=1e-14)
    assert (many.step, few.step) == (24, 8)


def test_accumulation_goes_on_where_it_stopped(tmp_path):
    whole, parts = two_layers(), two_layers()
    optimizer = GradientAccumulation("adam", 5)  # 6 batches an epoch
    whole.fit(*DATA, optimizer=optimizer, batch_size=4, epochs=3, **TASK)
    for _ in range(3):
        parts.fit(*DATA, optimizer=optimizer, batch_size=4, **TASK)
        parts.save(tmp_path / "m.lamella")
        parts = lm.load(tmp_path / "m.lamella")
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(parts.parameters[name], array)


def test_averages_of_parameters(tmp_path):
    model, optimizer = two_layers(), ExponentialMovingAverage(SGD(0.1, momentum=0.9), 0.8)
    with pytest.raises(ArgumentError, match="averaged: expected a model that .* trained, got one that took no steps"):
        model.averaged()
    model.freeze("first")
    expected = {}
    for step in range(6):
        if step == 2:
            model.unfreeze("first")
        model.train_on_batch(*DATA, loss="mean_squared_error", optimizer=optimizer)
        for name, array in model.parameters.items():
            if step >= 2 or name.startswith("last"):
                expected[name] = 0.8 * expected[name] + 0.2 * array if name in expected else array
        averaged = model.averaged()
        for name, array in averaged.parameters.items():
            np.testing.assert_allclose(array, expected.get(name, model.parameters[name]), rtol=1e-13)
    assert not np.array_equal(averaged.parameters["last.kernel"], model.parameters["last.kernel"])
    model.save(tmp_path / "m.lamella")
    loaded = lm.load(tmp_path / "m.lamella")
    for name, array in loaded.averaged().parameters.items():
        np.testing.assert_array_equal(array, averaged.parameters[name])
    assert (averaged.step, averaged.optimizer_state.t, averaged.backend) == (6, 6, "numpy")
    model.train_on_batch(*DATA, loss="mean_squared_error", optimizer=SGD(0.1, momentum=0.9))
    with pytest.raises(ArgumentError, match=r"got one that SGD\(learning_rate=0.1, momentum=0.9\) trained"):
        model.averaged()


@pytest.mark.parametrize("rates", [{"first.*": 0.5}, {"*.bias": 0.0, "last.*": 2.0, "first.bias": 3.0}, {"*": 0.25}])
def test_learning_rates_by_pattern(rates):
    """Each parameter moves as in a model that is trained with its own rate."""
    model, factors = two_layers(), {}
    for name in model.parameters:
        factors[name] = 1.0
        for pattern, own in rates.items():
            part = {"first.*": "first.", "*.bias": ".bias", "last.*": "last.", "first.bias": "first.bias", "*": ""}
            factors[name] *= own if part[pattern] in name else 1.0
    optimizer = LearningRateMultipliers(Adam(lm.schedules.Exponential(0.1, 3)), rates)
    before = dict(model.parameters)
    slots = {name: {"m": 0.0 * array, "v": 0.0 * array} for name, array in before.items()}
    xp = get_backend("numpy").xp
    for step in range(1, 6):
        rate = optimizer.learning_rate.at(step)
        _, gradients, _ = model.gradients(*DATA, loss="mean_squared_error")
        model.train_on_batch(*DATA, loss="mean_squared_error", optimizer=optimizer)
        for name, array in before.items():
            moved = Adam().update(xp, array, gradients[name], slots[name], rate * factors[name], step)
            before[name], slots[name] = moved
            np.testing.assert_allclose(model.parameters[name], before[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", [AdamW, Lion])
def test_parameters_without_weight_decay(kind):
    """Without gradients, only those that decay move."""
    model = two_layers()
    before = dict(model.parameters)
    model.parameters["last.bias"] = before["last.bias"] = np.ones(2)
    optimizer = kind(0.1, weight_decay=0.5, exclude_from_weight_decay=("*.bias", "first.*"))
    zero = {name: np.zeros_like(array) for name, array in before.items()}
    model.apply_gradients(zero, optimizer)
    for name, array in model.parameters.items():
        kept = 1.0 - 0.1 * 0.5 * (name == "last.kernel")
        np.testing.assert_allclose(array, kept * before[name], rtol=1e-15)
    with pytest.raises(ArgumentError, match=r"no parameter is called '\*.beta'; there are first.kernel, first.bias"):
        model.fit(*DATA, optimizer=kind(exclude_from_weight_decay="*.beta"), **TASK)


def test_what_is_within_is_an_object_or_a_name():
    """A class, which `fit` makes an object of, could not be written to a file within another."""
    for make in (
        lambda: lm.optimizers.ExponentialMovingAverage(SGD),
        lambda: lm.optimizers.GradientAccumulation(SGD, 2),
        lambda: lm.optimizers.LearningRateMultipliers(SGD, {"*.bias": 2.0}),
    ):
        with pytest.raises(lm.ArgumentError, match=r"optimizer: expected a name or an object, got the class SGD; did"):
            make()
    with pytest.raises(lm.ArgumentError, match=r"Weighted: .*got the class Huber; did you mean Huber\(...\)\?"):
        lm.losses.Weighted(lm.losses.Huber, 0.5)


def test_settings_within_are_settings():
    model = two_layers()

    def train(momentum, rate, average):
        optimizer = ExponentialMovingAverage(SGD(rate, momentum=momentum), average)
        model.train_on_batch(*DATA, loss="mean_squared_error", optimizer=optimizer)
        return model.optimizer_state.t

    assert [train(0.9, 0.1, 0.5), train(0.9, 0.01, 0.5)] == [1, 2]
    with pytest.warns(lm.MistakeWarning, match=r"it has optimizer.momentum=0.8, 0.9 before"):
        assert train(0.8, 0.01, 0.5) == 1
    with pytest.warns(lm.MistakeWarning, match=r"it has momentum=0.6, 0.5 before"):
        assert train(0.8, 0.01, 0.6) == 1
