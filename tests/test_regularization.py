"""Penalties, clipping and constraints: exact in loss and gradient, by names, on every backend."""

import fnmatch

import numpy as np
import pytest

import lamella as lm
from lamella.regularization import L1, L2, Constraint, MaxNorm, Penalty
from lamella_layers import Conv2D, Conv2DTranspose, Dense, Flatten

LOSS = "mean_squared_error"


def network(**options):
    return lm.Sequential([Dense(5, activation="tanh"), Dense(2)], input_shape=4, dtype="float64", **options)


def data(rows=7, scale=1.0):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4)), scale * rng.normal(size=(rows, 2))


def step(model, **rules):
    """One step of plain descent at rate 1: the loss, and the gradient that the parameters went along."""
    before = dict(model.parameters)
    loss = model.train_on_batch(*data(), loss=LOSS, optimizer=lm.optimizers.SGD(1.0), **rules)
    return loss, {name: before[name] - model.parameters[name] for name in before}


@pytest.mark.parametrize(
    "penalties",
    [
        {"*.kernel": L2(0.3)},
        {"dense_1.*": L1(0.2), "*": L2(0.1), "dense_2.bias": L2(0.4)},
    ],
)
@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_penalties_add_exactly_to_loss_and_gradient(penalties, backend):
    rng = np.random.default_rng(1)
    start = network(backend=backend)
    for name, value in start.parameters.items():
        start.parameters[name] = value + rng.normal(size=value.shape)
    direction = {name: rng.normal(size=value.shape) for name, value in start.parameters.items()}

    def loss(distance):
        model = start.copy()
        for name in direction:
            model.parameters[name] = model.parameters[name] + distance * direction[name]
        return step(model, penalties=penalties)[0]

    value, gradient = step(start.copy(), penalties=penalties)
    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert slope == pytest.approx(sum(np.vdot(gradient[name], direction[name]) for name in direction), rel=1e-7)
    plain, _, _ = start.gradients(*data(), loss=LOSS)
    added = sum(
        float(penalty.value(np, start.parameters[name]))
        for pattern, penalty in penalties.items()
        for name in start.parameters
        if fnmatch.fnmatch(name, pattern)
    )
    assert value == pytest.approx(plain + added, rel=1e-12)


def test_penalties_count_in_the_loss_of_training_and_val_loss_is_what_evaluate_gives():
    x, y = data()
    penalties, model = {"*.kernel": L2(0.3)}, network()
    plain = model.evaluate(x, y, loss=LOSS)["loss"]
    added = sum(0.3 * np.sum(value**2) for name, value in model.parameters.items() if name.endswith("kernel"))
    task = {"loss": LOSS, "optimizer": lm.optimizers.SGD(0.0), "penalties": penalties, "progress": False}
    history = model.fit(x, y, validation_data=(x, y), batch_size=3, **task)
    assert history["loss"][0] == pytest.approx(plain + added)
    assert history["val_loss"] == [model.evaluate(x, y, loss=LOSS)["loss"]]


def test_clipping_by_value_and_by_global_norm():
    _, plain, _ = network().gradients(*data(scale=100.0), loss=LOSS)

    def clipped(**rules):
        model = network()
        before = dict(model.parameters)
        loss = model.train_on_batch(*data(scale=100.0), loss=LOSS, optimizer=lm.optimizers.SGD(1.0), **rules)
        assert loss == pytest.approx(network().gradients(*data(scale=100.0), loss=LOSS)[0])
        return {name: before[name] - model.parameters[name] for name in before}

    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in plain.values()))
    for limit in (0.1 * norm, norm * 1.01):
        for name, gradient in clipped(clip_norm=limit).items():
            np.testing.assert_allclose(gradient, plain[name] * min(1.0, limit / norm), rtol=1e-9, atol=1e-12)
    for name, gradient in clipped(clip_value=0.5).items():
        np.testing.assert_allclose(gradient, np.clip(plain[name], -0.5, 0.5), rtol=1e-9, atol=1e-12)
    both = clipped(clip_value=0.5, clip_norm=0.1)
    assert np.sqrt(sum(np.sum(gradient**2) for gradient in both.values())) == pytest.approx(0.1)


def test_norms_beyond_float32_are_clipped():
    model = lm.Sequential([Dense(1)], input_shape=1)
    before = model.parameters["dense_1.kernel"]
    rules = {"loss": LOSS, "optimizer": lm.optimizers.SGD(1.0), "clip_norm": 1.0}
    model.train_on_batch([[1e18]], [[1e3]], **rules)
    moved = before - model.parameters["dense_1.kernel"]
    assert abs(moved[0, 0]) == pytest.approx(1.0, rel=1e-6)


def test_max_norm_bounds_the_weights_into_each_unit():
    layers = [Conv2D(3, 2), Flatten(), Dense(4)]
    model = lm.Sequential(layers, input_shape=(2, 4, 4), dtype="float64")
    for name, value in model.parameters.items():
        model.parameters[name] = 5.0 * value + 0.01
    x, y = np.ones((2, 2, 4, 4)), np.zeros((2, 4))
    constraints = {"*.kernel": MaxNorm(1.5)}
    model.train_on_batch(x, y, loss=LOSS, optimizer=lm.optimizers.SGD(0.0), constraints=constraints)
    filters = np.sqrt(np.sum(model.parameters["conv2d_1.kernel"] ** 2, axis=(1, 2, 3)))
    units = np.sqrt(np.sum(model.parameters["dense_1.kernel"] ** 2, axis=0))
    assert filters == pytest.approx(np.full(3, 1.5))
    assert units == pytest.approx(np.full(4, 1.5))
    small = np.full((2, 2), 0.1)
    np.testing.assert_array_equal(MaxNorm(2.0).apply(np, small), small)
    np.testing.assert_array_equal(MaxNorm(2.0).apply(np, np.zeros((2, 2))), 0.0)
    assert np.linalg.norm(MaxNorm(1.0, axis=(0, 1)).apply(np, np.ones((3, 3)))) == pytest.approx(1.0)


def test_frozen_parameters_take_no_part():
    model = network().freeze("dense_1")
    before = model.parameters["dense_1.kernel"]
    plain, _, _ = model.gradients(*data(), loss=LOSS)
    loss, _ = step(model, penalties={"dense_1.kernel": L2(1.0)}, constraints={"*.kernel": MaxNorm(0.1)})
    assert loss == pytest.approx(plain)
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], before)
    assert np.linalg.norm(model.parameters["dense_2.kernel"], axis=0) == pytest.approx([0.1, 0.1])


def test_float32_stays_float32_on_every_backend():
    for backend in ("numpy", "strict"):
        model = lm.Sequential([Dense(3)], input_shape=4, backend=backend)
        rules = {"penalties": {"*": L2(0.1), "*.kernel": L1(0.1)}, "constraints": {"*": MaxNorm(0.1)}}
        loss = model.train_on_batch(
            np.ones((2, 4)), np.ones((2, 3)), loss=LOSS, optimizer="adam", clip_value=0.1, clip_norm=0.05, **rules
        )
        assert isinstance(loss, float)
        assert model.parameters["dense_1.kernel"].dtype == np.float32


class Wide(Penalty):
    def gradient(self, xp, p):
        return xp.astype(p, xp.float32)


class Number(Penalty):
    def gradient(self, xp, p):
        return 0.5


class Flat(Constraint):
    def apply(self, xp, p):
        return xp.sum(p, axis=0)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"clip_norm": 0}, "clip_norm: expected a number above 0, got 0"),
        ({"clip_value": "1"}, "clip_value: expected a finite number, got '1'"),
        (
            {"penalties": {"dense_3.kernel": L2()}},
            "no parameter is called 'dense_3.kernel'; .* Did you mean",
        ),
        ({"penalties": {3: L2()}}, "penalties: no parameter is called 3"),
        ({"penalties": {"*": MaxNorm()}}, r"penalties: '\*': expected a Penalty, got MaxNorm\(\)"),
        ({"constraints": {"*": MaxNorm}}, r"constraints: '\*': expected a Constraint, got .*did you mean MaxNorm\("),
        ({"penalties": L2()}, "penalties: expected a dict such as"),
        (
            {"penalties": {"*": Wide()}},
            r"Wide\(\).gradient gives float32 \(4, 5\) for dense_1.kernel of float64",
        ),
        ({"penalties": {"*": Number()}}, r"Number\(\).gradient gives float for dense_1.kernel of float64 \(4, 5\)"),
        (
            {"constraints": {"*.kernel": MaxNorm(axis=5)}},
            r"MaxNorm\(.*\) fails on dense_1.kernel of float64 \(4, 5\): AxisError",
        ),
        ({"constraints": {"*": Flat()}}, r"constraints: Flat\(\) gives float64 \(5,\) for dense_1.kernel"),
    ],
)
def test_bad_rules_are_named_before_anything_changes(rules, words):
    model = network()
    with pytest.raises(lm.ArgumentError, match=words):
        step(model, **rules)
    assert model.step == 0


def test_penalties_that_overflow_stop_before_the_step():
    model = network()
    model.parameters["dense_1.kernel"] = np.full((4, 5), 1e200)
    with pytest.raises(lm.NonFiniteError, match=r"step 0: L2\(\) of dense_1.kernel is inf; lower the learning rate"):
        step(model, penalties={"*.kernel": L2()})
    assert model.step == 0


def test_rules_are_configuration():
    assert L2(0.1) == L2(0.1) != L1(0.1)
    assert repr(MaxNorm(3.0, axis=1)) == "MaxNorm(limit=3.0, axis=1)"
    with pytest.raises(lm.ArgumentError, match="MaxNorm: limit: expected a number above 0"):
        MaxNorm(0)


def test_a_penalty_without_a_finite_gradient_stops_before_the_step():
    class Group(lm.regularization.Penalty):
        def value(self, xp, p):
            return xp.sqrt(xp.sum(p * p))

        def gradient(self, xp, p):
            return p / xp.sqrt(xp.sum(p * p))  # 0 / 0 for a bias that starts at 0

    model = lm.Sequential([Dense(2)], input_shape=3)
    with pytest.raises(lm.NonFiniteError, match=r"a penalty makes the gradient of dense_1.bias not finite"):
        model.train_on_batch(
            np.ones((4, 3)), np.zeros((4, 2)), loss="mean_squared_error", optimizer="sgd", penalties={"*": Group()}
        )
    assert model.step == 0
    assert np.all(model.parameters["dense_1.bias"] == 0)


def test_rules_that_change_between_steps_count():
    model = lm.Sequential([Dense(1, use_bias=False)], input_shape=1)
    task = {"loss": LOSS, "optimizer": lm.optimizers.SGD(0.1)}
    penalties = {"*.kernel": L2(0.0)}
    model.parameters["dense_1.kernel"] = np.ones((1, 1))
    model.train_on_batch([[0.0]], [[0.0]], penalties=penalties, **task)
    assert model.parameters["dense_1.kernel"][0, 0] == 1.0
    penalties["*.kernel"] = L2(0.5)  # in the dict that the first step was given
    model.train_on_batch([[0.0]], [[0.0]], penalties=penalties, **task)
    assert model.parameters["dense_1.kernel"][0, 0] == pytest.approx(0.9)
    model.train_on_batch([[0.0]], [[0.0]], **task)
    assert model.parameters["dense_1.kernel"][0, 0] == pytest.approx(0.9)


@pytest.mark.parametrize("groups", [1, 2])
def test_max_norm_bounds_what_leads_into_each_filter_of_a_transposed_convolution(groups):
    model = lm.Sequential([Conv2DTranspose(6, 2, groups=groups)], input_shape=(4, 3, 3), dtype="float64")
    name, rng = "conv2d_transpose_1.kernel", np.random.default_rng(0)
    start = rng.normal(size=model.parameters[name].shape)
    model.parameters[name] = start
    x, y = np.ones((2, 4, 3, 3)), np.zeros((2, 6, 4, 4))
    constraints = {"*.kernel": MaxNorm(1.5)}
    model.train_on_batch(x, y, loss=LOSS, optimizer=lm.optimizers.SGD(0.0), constraints=constraints)

    def into(kernel):  # (C, F/G, kh, kw) -> for each filter of each group, the weights of the channels that it sees
        split = kernel.reshape(groups, 4 // groups, 6 // groups, 4)
        return split.transpose(0, 2, 1, 3).reshape(6, -1)

    norms = np.linalg.norm(into(start), axis=1, keepdims=True)
    assert (norms > 1.5).all()
    np.testing.assert_allclose(into(model.parameters[name]), into(start) * 1.5 / norms)
    model.train_on_batch(
        x, y, loss=LOSS, optimizer=lm.optimizers.SGD(0.0), constraints={"*.kernel": MaxNorm(0.1, axis=3)}
    )
    assert np.linalg.norm(model.parameters[name], axis=3).max() == pytest.approx(0.1)
