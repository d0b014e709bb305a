"""Learning-rate schedules against PyTorch's published pseudo-code, and how training takes and keeps them."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest

import lamella as lm
from lamella import registry
from lamella.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    OneCycle,
    PiecewiseConstant,
    Polynomial,
    Schedule,
    StepDecay,
    WarmUp,
)
from lamella_layers import Dense

ALL = [
    Constant(0.1),
    StepDecay(0.1, every=3, factor=0.5),
    Exponential(0.1, every=3, factor=0.5),
    Cosine(0.1, steps=9, warm_up=3, end=0.01),
    WarmUp(Exponential(0.1, every=2), steps=4),
    OneCycle(0.1, steps=10),
    CosineRestarts(0.1, steps=3, lengthen=2, lower=0.5, end=0.01),
    InverseTime(0.1, every=4),
    PiecewiseConstant((2, 5), (0.1, 0.2, 0.01)),
    Polynomial(0.1, steps=5, power=0.5, end=0.01),
]


def one_cycle(k, max_lr, total, pct_start=0.3, div_factor=25.0, final_div_factor=1e4):
    """torch.optim.lr_scheduler.OneCycleLR, two phases, cosine annealing; k counts from 0."""

    def anneal(start, end, pct):
        return end + (start - end) / 2.0 * (math.cos(math.pi * pct) + 1)

    initial = max_lr / div_factor
    phases = [(pct_start * total - 1, initial, max_lr), (total - 1, max_lr, initial / final_div_factor)]
    start_step = 0
    for end_step, start, end in phases:
        if k <= end_step:
            return anneal(start, end, (k - start_step) / (end_step - start_step))
        start_step = end_step
    raise AssertionError(k)


@pytest.mark.parametrize("steps", [10, 20, 77, 1000])
def test_one_cycle_is_pytorchs(steps):
    ours = [OneCycle(0.3, steps).at(t) for t in range(1, steps + 1)]
    assert ours == pytest.approx([one_cycle(k, 0.3, steps) for k in range(steps)], rel=1e-12)
    assert OneCycle(0.3, steps).at(steps + 100) == pytest.approx(ours[-1])


@pytest.mark.parametrize(("steps", "rise"), [(1, 0.3), (2, 0.3), (5, 0.0), (3, 0.99)])
def test_one_cycle_has_no_gaps_where_it_is_short(steps, rise):
    rates = [OneCycle(1.0, steps, rise=rise).at(t) for t in range(1, steps + 3)]
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    assert rates[-1] == pytest.approx(4e-6)


def test_step_exponential_and_cosine_are_pytorchs():
    for t in range(1, 30):
        k = t - 1  # PyTorch counts from 0
        assert StepDecay(0.1, every=7, factor=0.3).at(t) == pytest.approx(0.1 * 0.3 ** (k // 7))
        assert Exponential(0.1, every=1, factor=0.9).at(t) == pytest.approx(0.1 * 0.9**k)
        expected = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi * min(k, 20) / 20)) / 2
        assert Cosine(0.1, steps=20, end=0.01).at(t) == pytest.approx(expected)


def test_polynomial_inverse_time_and_pieces_follow_their_formulas():
    for t in range(1, 40):
        k = t - 1
        expected = 0.01 + 0.09 * max(0.0, 1 - k / 20) ** 1.5
        assert Polynomial(0.1, steps=20, power=1.5, end=0.01).at(t) == pytest.approx(expected)
        assert InverseTime(0.1, every=7).at(t) == pytest.approx(0.1 / (1 + k / 7))
        expected = 0.5 * 0.1 ** sum(k >= milestone for milestone in (10, 25))  # torch's MultiStepLR
        assert PiecewiseConstant((10, 25), (0.5, 0.05, 0.005)).at(t) == pytest.approx(expected)
    assert PiecewiseConstant((), (0.3,)).at(9) == 0.3


@pytest.mark.parametrize(("lengthen", "starts"), [(1, [0, 4, 8, 12, 16]), (2, [0, 4, 12, 28]), (3, [0, 4, 16])])
def test_restarts_begin_where_the_run_before_ends(lengthen, starts):
    schedule = CosineRestarts(0.5, steps=4, lengthen=lengthen, lower=0.8, end=0.1)
    for run, (start, end) in enumerate(itertools.pairwise([*starts, starts[-1] + 4 * lengthen ** (len(starts) - 1)])):
        for k in range(start, end):
            high = 0.5 * 0.8**run
            expected = 0.1 + (high - 0.1) * (1 + math.cos(math.pi * (k - start) / (end - start))) / 2
            assert schedule.at(k + 1) == pytest.approx(expected, rel=1e-13)
    assert CosineRestarts(0.5, 7, lengthen=2).at(10**15) >= 0.0


def test_rises_are_straight_and_lead_to_the_highest_rate():
    for rise in (Cosine(0.4, steps=10, warm_up=3), WarmUp(0.4, steps=3), WarmUp(Constant(0.4), steps=3)):
        assert [rise.at(t) for t in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert Cosine(0.4, steps=10, warm_up=3).at(11) == 0.0


@pytest.mark.parametrize("schedule", ALL, ids=lambda one: type(one).__name__)
def test_schedules_are_configuration(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert eval(repr(schedule)) == schedule
    optimizer = lm.optimizers.Adam(schedule)
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    assert repr(schedule) in repr(optimizer)
    assert schedule.at(1) == schedule.at(1) >= 0.0


def test_schedules_are_registered():
    assert registry.find("schedules", "cosine") is Cosine
    assert {type(one) for one in ALL} == {entry.object for entry in registry.entries("schedules")}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cosine(0.1, steps=5, warm_up=5), "Cosine: warm_up: expected fewer than the 5 steps, got 5"),
        (lambda: Cosine(0.1, steps=0), "steps: expected a positive int, got 0"),
        (lambda: StepDecay(-0.1, every=3), "learning_rate: expected a number of at least 0"),
        (lambda: Exponential(0.1, every=3, factor=0), "factor: expected a number above 0, got 0"),
        (lambda: OneCycle(0.1, 10, rise=1.0), r"rise: expected a fraction in \[0, 1\)"),
        (lambda: CosineRestarts(0.1, 5, lengthen=0), "lengthen: expected a positive int, got 0"),
        (lambda: CosineRestarts(0.1, 5, lower=1.5), r"lower: expected a number in \(0, 1\], got 1.5"),
        (lambda: InverseTime(0.1, 0), "every: expected a number above 0, got 0"),
        (lambda: Polynomial(0.1, 5, power=0), "power: expected a number above 0, got 0"),
        (lambda: PiecewiseConstant(5, (0.1, 0.2)), "boundaries: expected a tuple of numbers, got 5"),
        (lambda: PiecewiseConstant((5, 3), (1, 2, 3)), r"boundaries: expected steps in rising order, got \(5, 3\)"),
        (lambda: PiecewiseConstant((5,), (1,)), "values: expected 2, one more than there are boundaries, got 1"),
        (lambda: WarmUp("cosine", 3), "schedule: expected a finite number or a Schedule, such as"),
        (lambda: lm.optimizers.Adam("cosine"), "learning_rate: expected a finite number or a Schedule"),
        (lambda: lm.optimizers.Adam(Cosine), "learning_rate: expected a finite number or a Schedule"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(lm.ArgumentError, match=words):
        make()


def data(rows=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4)), rng.normal(size=(rows, 2))


def network():
    return lm.Sequential([Dense(2)], input_shape=4, dtype="float64")


TASK = {"loss": "mean_squared_error", "progress": False, "batch_size": 4, "shuffle": False}


def test_each_step_takes_its_own_rate():
    schedule = StepDecay(0.2, every=2, factor=0.5)
    x, y = data()
    one, two = network(), network()
    one.fit(x, y, optimizer=lm.optimizers.SGD(schedule), epochs=2, **TASK)
    for t in range(1, 7):
        part = slice(4 * ((t - 1) % 3), 4 * ((t - 1) % 3) + 4)
        two.train_on_batch(
            x[part], y[part], loss="mean_squared_error", optimizer=lm.optimizers.SGD(0.2 * 0.5 ** ((t - 1) // 2))
        )
    np.testing.assert_array_equal(one.parameters["dense_1.kernel"], two.parameters["dense_1.kernel"])
    assert one.optimizer_state.learning_rate(6) == pytest.approx(0.05)


def test_equal_schedules_go_on_and_others_start_anew():
    x, y = data()
    model = network()
    cosine, decay = Cosine(0.1, steps=10), StepDecay(0.1, every=2)
    for schedule, t, rate in ((cosine, 3, cosine.at(3)), (cosine, 6, cosine.at(6)), (decay, 9, decay.at(3))):
        model.fit(x, y, optimizer=lm.optimizers.Adam(schedule), **TASK)
        assert model.optimizer_state.t == t  # Adam's averages are kept
        assert model.optimizer_state.learning_rate(t) == pytest.approx(rate)
    model.optimizer_state.scale = 0.5
    model.fit(x, y, optimizer=lm.optimizers.Adam(decay), **TASK)
    assert model.optimizer_state.learning_rate(12) == pytest.approx(0.5 * decay.at(6))
    model.fit(x, y, optimizer=lm.optimizers.Adam(0.01), **TASK)
    assert model.optimizer_state.learning_rate(15) == 0.01  # an explicit new rate is that rate


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "file", "copy"])
def test_training_goes_on_bit_by_bit_after_saving(again, tmp_path):
    x, y = data()
    optimizer = lm.optimizers.Adam(Cosine(0.1, steps=20, warm_up=4))
    model = network()
    model.fit(x, y, optimizer="adam", **TASK)
    model.fit(x, y, optimizer=optimizer, **TASK)
    model.optimizer_state.scale = 0.25
    if again == "file":
        model.save(tmp_path / "m.lamella")
        twin = lm.load(tmp_path / "m.lamella")
    else:
        twin = model.copy() if again == "copy" else again(model)
    state = twin.optimizer_state
    assert (state.optimizer, state.t, state.began, state.scale) == (optimizer, 6, 3, 0.25)
    for one in (model, twin):
        one.fit(x, y, optimizer=optimizer, **TASK)
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], twin.parameters["dense_1.kernel"])


def test_a_schedule_of_ones_own_that_errs_changes_nothing():
    class Broken(Schedule):
        def at(self, step):
            return math.nan if step == 2 else 0.1

    x, y = data()
    model = network()
    with pytest.raises(lm.ArgumentError, match=r"Broken\(\).at\(2\): expected a finite number, got nan"):
        model.fit(x, y, optimizer=lm.optimizers.SGD(Broken()), **TASK)
    assert (model.optimizer_state.t, model.step) == (1, 1)
