"""A training step happens whole or not at all, whatever fails on the way."""

import _thread
import signal
import threading
import time
import weakref

import numpy as np
import pytest

import lamella as lm
from lamella.optimizers import (
    SGD,
    Adam,
    Adamax,
    AdamW,
    ExponentialMovingAverage,
    GradientAccumulation,
    Lion,
    Nadam,
    Optimizer,
)
from lamella.training.step import THREADED
from lamella_layers import BatchNormalization, Dense


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
    return lm.Sequential([Dense(THREADED // 3500), Dense(2)], input_shape=500)  # updated by threads


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


def test_an_optimizer_that_fails_half_way_moves_nothing(monkeypatch):
    monkeypatch.setattr("lamella.training.step.PIECE", 1 << 10)
    monkeypatch.setattr("lamella.training.step.THREADED", 1)
    COUNT.clear()
    model, rule = large(), Rule(first_pieces_pass)
    step(model, rule)
    before = everything(model)
    with pytest.raises(ZeroDivisionError):
        step(model, rule)
    assert len(COUNT) >= 3
    for one, other in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(one, other)


class Fails(lm.schedules.Schedule):
    """A learning rate that can't be had from the second step on."""

    def at(self, step):
        if step > 1:
            raise ZeroDivisionError("no rate")
        return 0.1


def test_a_schedule_that_fails_moves_nothing():
    model = small()
    step(model, SGD(Fails(), momentum=0.9))
    before = everything(model)
    with pytest.raises(ZeroDivisionError):
        step(model, SGD(Fails(), momentum=0.9))
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


@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore:.* starts anew:lamella.errors.MistakeWarning")
@pytest.mark.parametrize("network", [small, large])
def test_ctrl_c_while_parameters_move_comes_before_the_step_or_after_it(network):
    pressed = []

    def press(p, slots):
        pressed.append(1)
        if len(pressed) < 2:
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            else:
                _thread.interrupt_main()
        return p, slots

    one, other = network(), network()

    def step_and_wait():
        step(one, Rule(press, since=1))
        time.sleep(1.0)  # where another thread pressed it, it may come after the step

    with pytest.raises(KeyboardInterrupt):
        step_and_wait()
    if one.step:
        assert one.optimizer_state.t == 1
        step(other, Rule())
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, other.parameters[name])
    assert one.step == other.step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    step(one, Rule())
    if other.step == 0:
        step(other, Rule())
        for name, value in one.parameters.items():
            np.testing.assert_array_equal(value, other.parameters[name])


class Remembering(Optimizer):
    """Keeps what was there before, as views of what is about to be written."""

    slots = {"previous": 0.0, "new": 0.0, "old": 0.0}  # noqa: RUF012  # as in a plugin

    def __init__(self):
        self.learning_rate = 0.1

    def update(self, xp, p, g, slots, lr, t):
        return p - lr * g, {"previous": p, "new": g, "old": slots["new"]}


@pytest.mark.parametrize("network", [small, large])
def test_slots_may_be_views_of_what_moves(network):
    model = network()
    step(model, Remembering())
    first = model.optimizer_state.as_numpy()[2]
    before = np.concatenate([value.ravel() for value in model.parameters.values()])
    step(model, Remembering())
    slots = model.optimizer_state.as_numpy()[2]
    np.testing.assert_array_equal(np.sort(slots["previous"]), np.sort(before))
    np.testing.assert_array_equal(slots["old"], first["new"])


def test_statistics_may_be_views_of_each_other():
    class Last(lm.Layer):
        def build(self, declare, x):
            declare.state("last", (), "zeros")
            declare.state("before", (), "zeros")
            declare.parameter("gain", (), "ones")
            return x

        def forward_pass(self, ctx, x):
            ctx.save(x)
            (total,) = yield (ctx.xp.sum(x),)
            ctx.update(last=ctx.xp.astype(ctx.xp.asarray(total), ctx.dtype), before=ctx.state.last)
            return x * ctx.params.gain

        def backward_pass(self, ctx, dy):
            ctx.grad(gain=ctx.xp.sum(ctx.saved[0] * dy))
            return dy * ctx.params.gain

    model = lm.Sequential([Last()], input_shape=1)
    for value in (1.0, 2.0, 3.0):
        model.train_on_batch([[value]], [[0.0]], loss="mean_squared_error", optimizer="sgd")
    assert (model.state["last_1.last"], model.state["last_1.before"]) == (3.0, 2.0)


def test_memory_that_runs_out_in_an_update_moves_nothing(monkeypatch):
    model, calls = large(), []
    step(model)
    before, update = everything(model), Adam.update

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return update(self, *arguments)

    monkeypatch.setattr(Adam, "update", fails)
    with pytest.raises(MemoryError):
        step(model)
    for one, other in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_predictions_are_those_from_before_the_step():
    class Constant(lm.Layer):
        def build(self, declare, x):
            declare.parameter("c", (1,), "zeros")
            return x.replace(shape=("N", 1))

        def forward_pass(self, ctx, x):
            return ctx.xp.broadcast_to(ctx.params.c, (x.shape[0], 1))

        def backward_pass(self, ctx, dy):
            ctx.grad(c=ctx.xp.sum(dy, axis=0))
            return ctx.xp.zeros((dy.shape[0], 3), dtype=ctx.dtype) if ctx.wants_dx[0] else None

    model = lm.Sequential([Constant()], input_shape=3)
    task = {"loss": "mean_squared_error", "optimizer": SGD(0.5), "metrics": "mean_squared_error"}
    history = model.fit(np.zeros((4, 3)), np.ones((4, 1)), progress=False, **task)
    assert history.history == {"loss": [1.0], "mean_squared_error": [1.0]}


def test_numbers_may_be_those_of_numpy():
    assert SGD(np.float32(0.5)).learning_rate == 0.5
    assert isinstance(SGD(np.float64(0.5)).learning_rate, float)
    step(small(), SGD(np.float32(0.01)), clip_norm=np.float32(1.0))


def test_a_step_of_a_frozen_model_moves_nothing():
    model = lm.Sequential([Dense(2).frozen()], input_shape=4)
    before = dict(model.parameters)
    assert step(model) > 0.0
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, before[name])


def coupled():
    layers = [Dense(6), BatchNormalization(), Dense(5, activation="relu"), BatchNormalization(), Dense(2)]
    return lm.Sequential(layers, input_shape=4, seed=3)


@pytest.mark.filterwarnings("ignore:.* starts anew:lamella.errors.MistakeWarning")
@pytest.mark.parametrize("seed", range(6))
def test_spare_buffers_hold_what_a_step_does_not_write(seed):
    """A model that is trained, frozen and assigned to at random, beside one whose buffers are new before each step."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    one, other = coupled(), coupled()
    rules = [SGD(0.1), SGD(0.1, momentum=0.9), Adam(0.01), SGD(lm.schedules.StepDecay(0.1, every=2), momentum=0.5)]
    rule, names = rules[0], list(one.layers)
    for _ in range(40):
        chance = rng.integers(8)
        if chance == 0:
            layer = str(rng.choice(names))
            one.freeze(layer) if "activation" not in layer else one.unfreeze()
            other = other.copy()
            other._frozen = one.frozen_layers
        elif chance == 1:
            name = str(rng.choice(list(one.parameters)))
            value = rng.standard_normal(one.parameters[name].shape)
            one.parameters[name] = other.parameters[name] = value
        elif chance == 2:
            name = str(rng.choice(list(one.state)))
            value = rng.uniform(0.5, 2.0, one.state[name].shape)
            one.state[name] = other.state[name] = value
        elif chance == 3:
            rule = rules[rng.integers(len(rules))]
        elif chance == 4 and one.optimizer_state is not None:
            one.optimizer_state.scale = other.optimizer_state.scale = float(rng.uniform(0.5, 1.0))
        elif chance == 5 and one.optimizer_state is not None:
            with pytest.raises(lm.NonFiniteError):
                one.train_on_batch(np.full((3, 4), np.nan), np.zeros((3, 2)), loss="huber", optimizer=rule)
        elif chance == 6:
            one.optimizer_state = other.optimizer_state = None
        if len(one.frozen_layers) == len(names) - 1:
            one.unfreeze()
        other = other.copy()
        other._frozen = one.frozen_layers
        rows = int(rng.integers(2, 5))
        x, y = rng.standard_normal((rows, 4)), rng.standard_normal((rows, 2))
        losses = [model.train_on_batch(x, y, loss="huber", optimizer=rule) for model in (one, other)]
        assert losses[0] == losses[1]
        for a, b in zip(everything(one), everything(other), strict=True):
            np.testing.assert_array_equal(a, b)
        for name, value in one.state.items():
            np.testing.assert_array_equal(value, other.state[name])


def test_layers_frozen_on_the_way_stay_as_they_are():
    model = lm.Sequential([Dense(3), Dense(2)], input_shape=4)
    step(model)
    step(model)
    model.freeze("dense_1")
    before = {name: value.copy() for name, value in model.parameters.items()}
    for _ in range(3):
        step(model)
        for name in ("dense_1.kernel", "dense_1.bias"):
            np.testing.assert_array_equal(model.parameters[name], before[name])
    assert not np.array_equal(model.parameters["dense_2.kernel"], before["dense_2.kernel"])


@pytest.mark.parametrize(
    "rule",
    [
        SGD(0.1),
        SGD(0.1, momentum=0.9),
        SGD(0.1, momentum=0.9, nesterov=True),
        Adam(),
        AdamW(0.1),
        Adam(beta_2=0.2, amsgrad=True),
        AdamW(beta_2=0.2, amsgrad=True),
        Adamax(beta_2=0.2),
        Nadam(beta_2=0.2),
        Lion(0.01),
        Lion(0.01, weight_decay=0.1),
        GradientAccumulation("adam", 2),
        ExponentialMovingAverage(SGD(0.1, momentum=0.9), 0.5),
        ExponentialMovingAverage(GradientAccumulation("nadam", 2)),
        GradientAccumulation(ExponentialMovingAverage("rmsprop"), 2),  # which has the formula alone
    ],
)
def test_updates_in_place_have_the_bits_of_the_formula(rule):
    class Written(type(rule)):  # whose formula the engine does not know
        def update(self, xp, p, g, slots, lr, t):
            return super().update(xp, p, g, slots, lr, t)

    one, other = large(), large()
    for _ in range(3):
        assert step(one, rule) == step(other, Written(**rule.config()))
    for a, b in zip(everything(one)[3:], everything(other)[3:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:.* starts anew:lamella.errors.MistakeWarning")
def test_a_state_that_is_kept_stays_as_it_was():
    model, rule = small(), Adam(0.1)
    step(model, rule)
    kept = model.optimizer_state
    before = kept.as_numpy()
    for other in (rule, rule, Adam(0.1, beta_1=0.5), Adam(0.1, beta_1=0.5)):
        step(model, other)
    assert kept.as_numpy()[:2] == before[:2]
    for name, slot in kept.as_numpy()[2].items():
        np.testing.assert_array_equal(slot, before[2][name])
    model.optimizer_state = kept
    step(model, rule)
    assert (kept.t, model.optimizer_state.t) == (1, 2)


def test_rules_and_losses_are_those_of_the_call_even_if_equal():
    class Counting(lm.losses.MeanSquaredError):
        def __init__(self):
            self.calls = []

        def forward(self, ctx, prediction, target):
            self.calls.append(1)
            return super().forward(ctx, prediction, target)

    model, losses = small(), [Counting(), Counting()]
    x = np.ones((2, 4))
    for loss in losses:
        model.train_on_batch(x, x[:, :2], loss=loss, optimizer="sgd")
    assert [len(loss.calls) for loss in losses] == [1, 1]


def test_a_model_that_was_trained_goes_with_its_last_reference():
    model = small()
    step(model)
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_a_step_in_which_the_same_model_was_trained_is_refused():
    class Inside(lm.losses.MeanSquaredError):
        def forward(self, ctx, prediction, target):
            if not inside:
                inside.append(1)
                model.train_on_batch(x, x[:, :2], loss=self, optimizer="sgd")
            return super().forward(ctx, prediction, target)

    inside, model, x = [], small(), np.ones((2, 4))
    with pytest.raises(lm.errors.BusyError, match="step 0: the model was changed while this step was computed"):
        model.train_on_batch(x, x[:, :2], loss=Inside(), optimizer="sgd")
    assert model.step == 1
    assert model.train_on_batch(x, x[:, :2], loss=Inside(), optimizer="sgd") > 0
    assert model.step == 2


def test_a_plan_that_fails_leaves_no_frozen_layer_to_be_trained():
    class Once(lm.regularization.Penalty):
        def value(self, xp, p):
            return xp.sum(p)

        def gradient(self, xp, p):
            if fails:
                raise ZeroDivisionError(fails.pop())
            return p

    fails, model = [], small()
    task = {"penalties": {"dense_2.kernel": Once()}}
    step(model, **task)
    model.freeze("dense_1")
    before = model.parameters["dense_1.kernel"]
    fails.append("once")
    with pytest.raises(lm.ArgumentError, match="once"):
        step(model, **task)
    step(model, **task)
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], before)
