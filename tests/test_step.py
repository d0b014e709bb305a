"""A training step happens whole or not at all, whatever fails on the way."""

import _thread
import signal
import threading

import numpy as np
import pytest

import lamella as lm
from lamella.optimizers import SGD, Adam, Optimizer
from lamella.step import PIECE
from lamella_layers import Dense


class Rule(Optimizer):
    """Gradient descent with momentum, whose results can be spoiled from a given step on."""

    slots = {"velocity": 0.0}  # noqa: RUF012  # as in a plugin

    def __init__(self, spoil=None, since: int = 2):
        self.learning_rate, self.spoil, self.since = 0.1, spoil, since

    def update(self, xp, p, g, slots, lr, t):
        v = 0.9 * slots["velocity"] + g
        result = p - lr * v, {"velocity": v}
        return result if self.spoil is None or t < self.since else self.spoil(*result)


class Bound(lm.regularization.Constraint):
    def __init__(self, spoil):
        self.spoil = spoil

    def apply(self, xp, p):
        return self.spoil(p)


def small():
    return lm.Sequential([Dense(3), Dense(2)], input_shape=4)


def large():
    return lm.Sequential([Dense(PIECE // 200), Dense(2)], input_shape=500)


def step(model, optimizer="adam", **options):
    (size,) = model.input_specs[0].shape[1:]
    x = np.random.default_rng(0).standard_normal((6, size))
    return model.train_on_batch(x, x[:, :2], loss="mean_squared_error", optimizer=optimizer, **options)


def everything(model):
    optimizer, counters, slots = model.optimizer_state.as_numpy()
    return [model.step, optimizer, counters, *model.parameters.values(), *slots.values()]


def raises(*results):
    raise ZeroDivisionError("spoiled")


def first_pieces_pass(p, slots):
    """Fail on one of many pieces, once others are written."""
    COUNT.append(1)
    return (p, slots) if len(COUNT) % 3 else raises()


COUNT: list[int] = []


@pytest.mark.parametrize("network", [small, large])
@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (raises, ZeroDivisionError, "spoiled"),
        (lambda p, slots: (p[:1], slots), lm.LayerError, r"Rule\(.*\).update: expected the parameter as float32 \(\d+"),
        (lambda p, slots: (p * np.float64(1), slots), lm.LayerError, "got float64"),
        (lambda p, slots: (p, {}), lm.LayerError, "expected new values of its slots, velocity; got none"),
        (lambda p, slots: (p, {"velocity": 0.0}), lm.LayerError, "expected velocity as float32 .*, got float"),
        (lambda p, slots: p, lm.LayerError, "expected the new parameter and a dict of slots, got ndarray"),
    ],
)
def test_an_optimizer_that_fails_moves_nothing(network, spoil, error, words):
    model = network()
    rule = Rule(spoil)
    step(model, rule)
    before = everything(model)
    with pytest.raises(error, match=words):
        step(model, rule)
    for one, other in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_optimizer_that_fails_half_way_moves_nothing():
    COUNT.clear()
    model, rule = large(), Rule(first_pieces_pass)
    step(model, rule)
    before = everything(model)
    with pytest.raises(ZeroDivisionError):
        step(model, rule)
    assert len(COUNT) >= 3
    for one, other in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_constraint_that_fails_moves_nothing_and_keeps_the_learning_rate():
    model = small()
    step(model, Adam(0.01), constraints={"dense_2.*": Bound(lambda p: p)})
    before, calls = everything(model), []

    def spoil(p):  # passes where rules are tried out, before the step
        calls.append(1)
        return p if len(calls) <= 2 else p[:1]

    with pytest.raises(lm.ArgumentError, match=r"constraints: Bound\(.*\) gives float32 \(1, 2\) for dense_2.kernel"):
        step(model, Adam(0.5), constraints={"dense_2.*": Bound(spoil)})
    for one, other in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("network", [small, large])
def test_ctrl_c_while_parameters_move_waits_for_the_whole_step(network):
    pressed = []

    def press(p, slots):
        pressed.append(1)
        if len(pressed) < 3:  # twice: even an impatient second one waits here
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            else:
                _thread.interrupt_main()
        return p, slots

    one, other = network(), network()
    with pytest.raises(KeyboardInterrupt):
        step(one, Rule(press, since=1))
    step(other, Rule())
    assert one.step == one.optimizer_state.t == 1
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, other.parameters[name])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_numbers_may_be_those_of_numpy():
    assert SGD(np.float32(0.5)).learning_rate == 0.5
    assert isinstance(SGD(np.float64(0.5)).learning_rate, float)
    step(small(), SGD(np.float32(0.01)), clip_norm=np.float32(1.0))
