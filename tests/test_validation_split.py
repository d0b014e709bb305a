"""``validation_split`` holds out the last rows, and is otherwise the same as ``validation_data``."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lamella as lm
from lamella.protocol import inputs
from lamella_layers import Activation, Add, Dense

RNG = np.random.default_rng(3)
X, LABELS, WEIGHTS = RNG.standard_normal((50, 4)), RNG.integers(0, 3, 50), RNG.uniform(0.5, 2.0, 50)
TASK = {"loss": "softmax_cross_entropy", "optimizer": "adam", "metrics": "accuracy", "epochs": 2, "batch_size": 8}


def classifier() -> lm.Sequential:
    return lm.Sequential([Dense(3)], input_shape=4)


def history_of(model, *data, **options):
    return model.fit(*data, **{**TASK, **options}).history, model.parameters["dense_1.kernel"].tobytes()


@pytest.mark.parametrize(("share", "rows", "held"), [(0.8, 50, 40), (0.9, 10, 9), (0.7, 10, 7), (0.25, 50, 13)])
def test_shares_are_of_decimal_numbers(share, rows, held):
    history = classifier().fit(
        X[:rows], LABELS[:rows], **TASK | {"metrics": "confusion_matrix"}, validation_split=share
    )
    assert history["val_confusion_matrix"][-1].sum() == held
    assert history["confusion_matrix"][-1].sum() == rows - held


@pytest.mark.parametrize("share", [0.2, 0.3, 0.01, 0.98])
@pytest.mark.parametrize(
    "options", [{}, {"sample_weight": WEIGHTS}, {"sample_weight": WEIGHTS, "class_weight": {1: 3.0}}]
)
def test_it_is_the_same_as_giving_the_last_rows(share, options):
    count = int(np.floor(50 * (1.0 - share)))
    weights = (WEIGHTS[count:],) if "sample_weight" in options else ()
    apart = {**options, "sample_weight": WEIGHTS[:count]} if weights else options
    held = X[count:], LABELS[count:], *weights
    assert history_of(classifier(), X, LABELS, validation_split=share, **options) == history_of(
        classifier(), X[:count], LABELS[:count], validation_data=held, **apart
    )


def test_several_inputs_outputs_and_weights_are_split_alike():
    a, b = lm.Input(4, name="a"), lm.Input(2, name="b")

    def model():
        hidden = Add()(Dense(5)(a), Dense(5)(b))
        return lm.Model([a, b], [Dense(3).named("label")(hidden), Dense(1).named("size")(hidden)])

    x = {"a": X, "b": X[:, :2]}
    y = {"label": LABELS, "size": X[:, 0]}
    task = TASK | {"loss": {"label": "softmax_cross_entropy", "size": "huber"}, "metrics": ()}
    weight = {"label": WEIGHTS, "size": np.ones(50)}

    def part(arrays, rows):
        return {name: array[rows] for name, array in arrays.items()}

    learn, held = slice(0, 40), slice(40, None)
    split = model().fit(x, y, **task, sample_weight=weight, validation_split=0.2)
    given = model().fit(
        part(x, learn), part(y, learn), **task, sample_weight=part(weight, learn),
        validation_data=(part(x, held), part(y, held), part(weight, held)),
    )  # fmt: skip
    assert split.history == given.history


def test_large_arrays_are_converted_batch_by_batch_on_both_sides(monkeypatch):
    small = history_of(classifier(), X, np.eye(3, dtype="uint8")[LABELS], validation_split=0.2)
    for module in (inputs, lm.training.data):
        monkeypatch.setattr(module, "LARGE", 64)
    assert history_of(classifier(), X, np.eye(3, dtype="uint8")[LABELS], validation_split=0.2) == small


def test_an_interrupted_training_goes_on_bit_by_bit(tmp_path):
    class Stop(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            if model.step == 7:
                raise KeyboardInterrupt

    options = {"validation_split": 0.2, "sample_weight": WEIGHTS, "epochs": 3}
    whole = history_of(classifier(), X, LABELS, **options)
    place = {"checkpoint": tmp_path / "place", "resume": True}
    stopped = classifier().fit(X, LABELS, **{**TASK, **options}, **place, callbacks=[Stop()])
    assert stopped.interrupted
    assert history_of(classifier(), X, LABELS, **options, **place) == whole
    with pytest.warns(lm.MistakeWarning, match="number of rows is 25, was 40"):
        classifier().fit(X, LABELS, **{**TASK, **options, "validation_split": 0.5, "epochs": 4}, **place)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation_split": 1.0}, "validation_split: expected a fraction in [0, 1), got 1.0"),
        ({"validation_split": "0.1"}, "validation_split: expected a finite number, got '0.1'"),
        ({"validation_split": 0.999}, "expected rows on both sides, got 0 to learn from and 50 held out of 50 rows"),
        ({"validation_split": 0.1, "validation_data": (X, LABELS)}, "validation_data or validation_split, got both"),
        ({"validation_split": 0.1, "sample_weight": np.arange(50) < 45}, "rows held out: every row weighs 0"),
        ({"validation_split": 0.1, "sample_weight": np.arange(50) >= 45}, "rows to learn from: every row weighs 0"),
        ({"validation_split": 0.1, "validation_steps": 3}, "validation_steps: expected None without validation_data"),
    ],
)
def test_what_can_not_be_split(options, words):
    model = classifier()
    with pytest.raises(ValueError, match=re.escape(words)):
        model.fit(X, LABELS, **TASK, **options)
    assert model.step == 0


def test_batches_can_not_be_split():
    with pytest.raises(lm.ArgumentError, match=r"validation_split: expected 0 for batches.*validation_data=other"):
        classifier().fit([(X, LABELS)], loss="huber", optimizer="sgd", validation_split=0.1)


def units(count: int) -> lm.Sequential:
    return lm.Sequential([Dense(count)], input_shape=4)


MANY = np.arange(200) % 5
ROWS = np.zeros((200, 4))


@pytest.mark.parametrize(
    ("count", "y", "options", "words"),
    [
        (6, MANY, {}, "has no row of 1 of 6 classes: 5. Likely fix: a last layer of 5 units"),
        (9, MANY % 3 * 4, {}, "of 6 of 9 classes: 1, 2, 3, 5, 6, .... Likely fix: labels from 0 to 2, numpy.unique("),
        (3, np.ones(200, int), {}, "of 2 of 3 classes: 0, 2. Likely fix: rows of more than one class"),
        (6, MANY + 1, {}, "of 1 of 6 classes: 0. Likely fix: y - 1 if labels count from 1, and one unit less"),
        (13, np.eye(13)[MANY], {}, "has no row of 8 of 13 classes: 5, 6, 7, 8, 9, .... Likely fix: a last layer"),
        (5, np.sort(MANY), {"validation_split": 0.2}, "1 of 5 classes: 4. Likely fix: rows in random order before"),
        (5, MANY % 4, {"validation_data": (ROWS, MANY)}, "1 of 5 classes: 4. Likely fix: rows in random order before"),
        (5, MANY, {"sample_weight": MANY != 2}, "1 of 5 classes: 2. Likely fix: labels from 0 to 3"),
        (50, MANY, {"class_weight": {1: 2.0, 7: 3.0}}, "1 of 50 classes: 7. Likely fix: a class_weight of the labels"),
    ],
)
def test_a_class_without_rows_is_told(count, y, options, words):
    with pytest.warns(lm.MistakeWarning, match=re.escape(words)) as caught:
        units(count).fit(ROWS, y, loss="softmax_cross_entropy", optimizer="sgd", **options)
    assert [one.filename for one in caught] == [__file__]


YES = (np.arange(200) >= 100).astype(float)


@pytest.mark.parametrize(
    ("count", "y", "loss", "share", "words"),
    [
        (
            5,
            np.r_[MANY[:100], np.full(100, 4)],
            "softmax_cross_entropy",
            0.5,
            "the last 100 rows, which are held out, ",
        ),
        (
            2,
            YES.astype(int),
            "softmax_cross_entropy",
            0.2,
            "the last 40 rows, which are held out, have only class 1 of",
        ),
        (2, np.eye(2)[YES.astype(int)], "categorical_cross_entropy", 0.2, "have only class 1 of 'activation_1'."),
        (
            5,
            np.r_[MANY[:100], np.tile([3, 4], 50), MANY[:100] % 3],
            "softmax_cross_entropy",
            0.25,
            "have no row of class 3, 4 of",
        ),
        (
            1,
            YES,
            "binary_cross_entropy",
            0.2,
            "have only class 1 of 'dense_1'. Likely fix: rows in random order before",
        ),
        (1, YES[:, None], lm.losses.Weighted("hinge", 2.0), 0.2, "have only class 1"),
    ],
)
def test_rows_that_are_sorted_by_class_are_told(count, y, loss, share, words):
    layers = [Dense(count)] + [Activation("softmax")] * (loss == "categorical_cross_entropy")
    model = lm.Sequential(layers, input_shape=4)
    with pytest.warns(lm.MistakeWarning, match=re.escape(words)) as caught:
        model.fit(np.zeros((len(y), 4)), y, loss=loss, optimizer="sgd", validation_split=share)
    assert [one.filename for one in caught] == [__file__]
    order = np.random.default_rng(0).permutation(len(y))
    model.fit(np.zeros((len(y), 4)), y[order], loss=loss, optimizer="sgd", validation_split=share)


def test_what_need_not_be_held_out():
    task = {"optimizer": "sgd", "validation_split": 0.2}
    units(1).fit(ROWS, YES, **task, loss="mean_squared_error")  # numbers
    units(1).fit(ROWS, YES * 0.5, **task, loss="binary_cross_entropy")  # shares
    units(5).fit(ROWS[:100], np.r_[MANY[:80], np.zeros(20, int)], **task, loss="softmax_cross_entropy")  # by chance
    rare = (np.arange(200) < 10).astype(int)  # two rows of 40 are expected
    units(2).fit(ROWS, rare, **task, loss="softmax_cross_entropy")
    unlabelled = np.r_[np.full(100, 2), MANY[:100] % 2]
    units(3).fit(ROWS, unlabelled, **task, loss=lm.losses.SoftmaxCrossEntropy(ignore_class=2))
    units(3).fit(ROWS, unlabelled, **task, loss="softmax_cross_entropy", class_weight={2: 0.0})
    data = {"validation_data": (ROWS[:40], YES[160:])}
    units(1).fit(ROWS, YES, optimizer="sgd", loss="binary_cross_entropy", **data)  # as somebody chose


def test_what_need_not_have_rows_of_every_class():
    task = {"optimizer": "sgd", "loss": "softmax_cross_entropy"}
    units(5).fit(ROWS, MANY, **task, class_weight={1: 2.0}, validation_split=0.2)
    units(50).fit(ROWS, MANY, **task)  # fewer rows than ten for each
    units(6).fit(ROWS, np.eye(6)[MANY] * 0.5, **task)  # no labels
    units(6).fit([(ROWS, MANY)], **task)  # a batch more may bring some
    units(6).train_on_batch(ROWS, MANY, **task)
    units(6).fit(ROWS, np.ones((200, 6)), **task | {"loss": "binary_cross_entropy"})
    units(3).fit(ROWS, MANY[:, None] * np.ones(3), **task | {"loss": "mean_squared_error"})
    units(5).fit(ROWS, MANY, **task, class_weight={2: 0.0})  # as is said
    units(6).fit(ROWS, MANY, **task | {"loss": lm.losses.SoftmaxCrossEntropy(ignore_class=5)})
    units(6).fit(ROWS, MANY + 1, **task | {"loss": lm.losses.SoftmaxCrossEntropy(ignore_class=0)})
    words = np.minimum(np.random.default_rng(0).zipf(1.5, 2000) - 1, 99)  # some are rare, and some never come
    units(100).fit(np.zeros((2000, 4)), words, **task, validation_split=0.2)
