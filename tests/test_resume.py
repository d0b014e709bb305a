"""Training that is interrupted and resumed ends with the bits of training that was not."""

import copy
import os
import pickle
import random
import signal
import time

import numpy as np
import pytest

import lamella as lm
from lamella.callbacks import Checkpoint, CSVLogger, EarlyStopping, ReduceOnPlateau
from lamella.cli.program import main
from lamella.training import resumption
from lamella_layers import LSTM, BatchNormalization, Dense, Dropout

ROWS, SIZE, EPOCHS = 27, 6, 3
BATCHES = -(-ROWS // SIZE)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(ROWS, 4)).astype("float32"), np.arange(ROWS) % 3


def dense():
    layers = [Dense(6, activation="tanh"), BatchNormalization(), Dropout(0.3), Dense(3)]
    return lm.Sequential(layers, input_shape=4, seed=5)


def recurrent():
    return lm.Sequential([LSTM(4, return_sequences=False), Dropout(0.2), Dense(3)], input_shape=(2, 2), seed=1)


class Stop(lm.Callback):
    """Ctrl-C after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_batch_end(self, model, rows, logs):
        if model.step == self.step:
            signal.raise_signal(signal.SIGINT)


def task(**changes):
    """What a script that is run again says again."""
    schedule = lm.schedules.Cosine(0.05, EPOCHS * BATCHES)
    given = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.Adam(schedule), "epochs": EPOCHS}
    given |= {"batch_size": SIZE, "progress": False, "metrics": ["accuracy"], "validation_data": (X, Y)}
    return given | changes


def outcome(model, history):
    return {**model.parameters, **model.state}, history.history, model.step, model.epochs


def assert_same(one, other):
    for name, array in one[0].items():
        np.testing.assert_array_equal(array, other[0][name], err_msg=name)
    np.testing.assert_equal(one[1], other[1])  # some values are arrays
    assert one[2:] == other[2:]


@pytest.mark.parametrize("step", range(1, EPOCHS * BATCHES + 1))
def test_resumed_at_any_batch(tmp_path, step):
    path = tmp_path / "run"
    whole = dense()
    expected = outcome(whole, whole.fit(X, Y, **task()))
    history = dense().fit(X, Y, **task(checkpoint=path, resume=True, callbacks=[Stop(step)]))
    assert history.interrupted
    model = dense()
    history = model.fit(X, Y, **task(checkpoint=path, resume=True))
    assert not history.interrupted
    assert_same(outcome(model, history), expected)
    assert model.history is history
    assert_same(outcome(lm.load(path), history), expected)
    again = dense()
    assert_same(outcome(again, again.fit(X, Y, **task(checkpoint=path, resume=True))), expected)  # nothing is left


CASES = {
    "sgd": {"optimizer": lm.optimizers.SGD(0.1, momentum=0.9, nesterov=True)},
    "rmsprop": {"optimizer": lm.optimizers.RMSprop(lm.schedules.Exponential(0.01, 3, 0.9))},
    "adamw, one thread, no shuffle": {"optimizer": lm.optimizers.AdamW(0.01), "shuffle": False},
    "nadam": {"optimizer": lm.optimizers.Nadam(0.01)},
    "adamax": {"optimizer": lm.optimizers.Adamax(0.01)},
    "amsgrad": {"optimizer": lm.optimizers.AdamW(0.01, amsgrad=True, exclude_from_weight_decay="*.bias")},
    "lion": {"optimizer": lm.optimizers.Lion(0.001, weight_decay=0.1)},
    "accumulated": {"optimizer": lm.optimizers.GradientAccumulation(lm.optimizers.Adam(0.01), 3)},
    "averaged, with rates by pattern": {
        "optimizer": lm.optimizers.ExponentialMovingAverage(
            lm.optimizers.LearningRateMultipliers(lm.optimizers.SGD(0.1, momentum=0.9), {"*.kernel": 0.5})
        )
    },
    "clips and penalties": {"clip_norm": 0.1, "penalties": {"*.kernel": lm.regularization.L2(0.01)}},
    "weights": {"sample_weight": np.linspace(0.0, 2.0, ROWS), "class_weight": {0: 2.0}},
    "metrics that keep rows or give arrays": {
        "metrics": ["auc", lm.metrics.AUC("pr", None), lm.metrics.Recall(None), "confusion_matrix"]
    },
    "smoothing and a class that does not count": {
        "loss": lm.losses.SoftmaxCrossEntropy(label_smoothing=0.1, ignore_class=1)
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", [dense, recurrent])
def test_resumed_with_every_kind_of_optimizer(tmp_path, name, make):
    x = X if make is dense else X.reshape(ROWS, 2, 2)
    whole, given = make(), task(**CASES[name], validation_data=(x, Y))
    expected = outcome(whole, whole.fit(x, Y, **given))
    for step in (4, 9):  # interrupted twice
        make().fit(x, Y, **given, checkpoint=tmp_path / "run", resume=True, callbacks=[Stop(step)])
    model = make()
    assert_same(outcome(model, model.fit(x, Y, **given, checkpoint=tmp_path / "run", resume=True)), expected)


@pytest.mark.parametrize("step", [2, 8, 13, 23, 31])
def test_callbacks_remember(tmp_path, step):
    """The best epoch and its weights, what was waited, the learning rate, the lines of the log, the best file."""

    def run(folder, make_stop, model=None):
        folder.mkdir(exist_ok=True)
        stop = EarlyStopping("val_accuracy", patience=3)
        callbacks = [
            ReduceOnPlateau("val_loss", factor=0.5, patience=1),
            stop,
            CSVLogger(folder / "log.csv"),
            Checkpoint(folder / "best", save_best_only=True),
            Checkpoint(str(folder / "epoch-{epoch:02}")),
            *make_stop,
        ]
        model = dense()
        given = task(optimizer=lm.optimizers.SGD(0.5), epochs=9, callbacks=callbacks)
        history = model.fit(X, Y, **given, checkpoint=folder / "run", resume=True)
        return model, history, stop

    model, history, stop = run(tmp_path / "whole", [])
    expected = outcome(model, history)
    assert history.stopped
    assert run(tmp_path / "parts", [Stop(step)])[1].interrupted == (
        step <= model.step or step < BATCHES * history.epochs
    )
    resumed, other, again = run(tmp_path / "parts", [])
    assert_same(outcome(resumed, other), expected)
    assert (other.stopped, again.best, again.best_epoch) == (history.stopped, stop.best, stop.best_epoch)
    for name in sorted(one.name for one in (tmp_path / "whole").iterdir()):
        one, two = ((tmp_path / folder / name) for folder in ("whole", "parts"))
        if name == "log.csv":
            assert one.read_text() == two.read_text()
        elif name != "run":
            assert_same(outcome(lm.load(one), history), outcome(lm.load(two), history))


def stream(rows=SIZE):
    for start in range(0, ROWS, rows):
        yield X[start : start + rows], Y[start : start + rows]


@pytest.mark.parametrize("steps", [None, 4])
def test_resumed_on_batches(tmp_path, steps):
    """From a function that makes them, in epochs of all, or that go on where the last one stopped."""

    def run(model, **more):
        given = task(validation_data=None, batch_size=32, steps_per_epoch=steps, epochs=5, **more)
        return outcome(model, model.fit(stream, **given))

    expected = run(dense())
    for step in (3, 7, 12):
        run(dense(), checkpoint=tmp_path / "run", resume=True, callbacks=[Stop(step)])
    assert_same(run(dense(), checkpoint=tmp_path / "run", resume=True), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kills_lose_nothing_that_was_written(tmp_path, monkeypatch):
    """A training that writes after each step is killed at random moments until it comes to its end."""
    monkeypatch.setattr(resumption, "SECONDS", 0.0)
    seed = int(time.time())
    print("seed", seed)
    rng, path, kills = random.Random(seed), tmp_path / "run", 0
    whole = dense()
    expected = outcome(whole, whole.fit(X, Y, **task(epochs=8)))
    while True:
        child = os.fork()
        if child == 0:
            try:
                dense().fit(X, Y, **task(epochs=8, checkpoint=path, resume=True))
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if path.exists():
            lm.load(path)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), "the training failed by itself"
        kills += 1
        assert kills < 500
    print(kills, "kills")
    model = dense()
    assert_same(outcome(model, model.fit(X, Y, **task(epochs=8, checkpoint=path, resume=True))), expected)


def test_a_best_file_is_not_replaced_by_a_worse_model(tmp_path):
    path = tmp_path / "best"

    def best():
        return lm.load(path).evaluate(X, Y, loss="softmax_cross_entropy")["loss"]

    model = dense()
    model.fit(X, Y, **task(epochs=6, callbacks=[Checkpoint(path, save_best_only=True)]))
    before, held = best(), path.read_bytes()
    model.fit(
        X, Y, **task(epochs=1, optimizer=lm.optimizers.SGD(30.0), callbacks=[Checkpoint(path, save_best_only=True)])
    )
    assert path.read_bytes() == held
    dense().fit(X, Y, **task(epochs=20, callbacks=[Checkpoint(path, save_best_only=True)]))
    assert best() < before
    model.save(path)
    with pytest.warns(lm.MistakeWarning, match="does not say its best val_loss; the first epoch replaces it"):
        model.fit(X, Y, **task(epochs=1, callbacks=[Checkpoint(path, save_best_only=True)]))


def test_epochs_go_on_counting(tmp_path):
    names = str(tmp_path / "epoch-{epoch:02}")
    model, constant = dense(), lm.optimizers.Adam(0.01)
    model.fit(X, Y, **task(optimizer=constant, callbacks=[Checkpoint(names)]))
    model = lm.load(tmp_path / "epoch-03")
    assert model.epochs == 3
    heard = []

    class Hear(lm.Callback):
        def on_epoch_begin(self, model, epoch):
            heard.append(epoch)

    model.fit(X, Y, **task(optimizer=constant, epochs=2, callbacks=[Checkpoint(names), Hear()]))
    more = {"optimizer": constant, "epochs": 10, "initial_epoch": 8}
    model.copy().fit(X, Y, **task(**more, callbacks=[Checkpoint(names), Hear()]))
    assert sorted(one.name for one in tmp_path.iterdir()) == [f"epoch-{k:02}" for k in (1, 2, 3, 4, 5, 9, 10)]
    assert heard == [0, 1, 8, 9]


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    class Mine(lm.Layer):
        def forward_pass(self, ctx, x):
            return x

        def backward_pass(self, ctx, dy):
            return dy

    class Slow(lm.optimizers.SGD):
        pass

    unknown = lm.Sequential([Dense(3), Mine()], input_shape=4)
    for model, changes, word in ((unknown, {}, "Mine"), (dense(), {"optimizer": Slow(0.1)}, "Slow")):
        for more in ({"checkpoint": tmp_path / "run"}, {"callbacks": [Checkpoint(tmp_path / "m")]}):
            with pytest.raises(lm.DataError, match=f"class .*{word} is not registered"):
                model.fit(X, Y, **task(**changes, **more))
            assert model.step == 0
    for place in (tmp_path, tmp_path / "nowhere" / "run", "/dev/null"):
        with pytest.raises((lm.DataError, OSError), match="give the name of a file|no such folder|a device"):
            dense().fit(X, Y, **task(checkpoint=place))


def test_a_file_of_something_else_is_refused(tmp_path):
    model = dense()
    before = {**model.parameters}
    recurrent().fit(X.reshape(ROWS, 2, 2), Y, **task(validation_data=None, checkpoint=tmp_path / "run"))
    with pytest.raises(lm.DataError, match="its model is another one than this"):
        model.fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True))
    model.save(tmp_path / "saved")
    with pytest.raises(lm.DataError, match="without the place of a training"):
        model.fit(X, Y, **task(checkpoint=tmp_path / "saved", resume=True))
    with pytest.raises(lm.ArgumentError, match="resume=True: expected checkpoint="):
        model.fit(X, Y, **task(resume=True))
    (tmp_path / "run").write_bytes((tmp_path / "run").read_bytes()[:-1])
    with pytest.raises(lm.DataError, match="damaged"):
        model.fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True))
    for name, array in before.items():
        np.testing.assert_array_equal(model.parameters[name], array)


def test_a_training_that_fails_leaves_its_history(tmp_path):
    class Fail(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 1:
                raise RuntimeError("no more")

    model = dense()
    with pytest.raises(RuntimeError, match="no more"):
        model.fit(X, Y, **task(callbacks=[Fail()]))
    assert model.history.epochs == 2


def test_callbacks_that_are_missing_are_told(tmp_path):
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[EarlyStopping(), Stop(7)]))
    with pytest.warns(lm.MistakeWarning, match="callbacks that this one has not: EarlyStopping"):
        dense().fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True))


def test_a_training_that_says_something_else_is_told(tmp_path, capsys):
    path = tmp_path / "run"
    dense().fit(X, Y, **task(checkpoint=path, callbacks=[Stop(7)]))
    with pytest.raises(lm.ArgumentError, match="run is there. Likely fix: resume=True to go on from it; remove it"):
        dense().fit(X, Y, **task(checkpoint=path))
    assert lm.load(path).step == 7
    changes = {"batch_size": 5, "optimizer": lm.optimizers.SGD(0.1), "progress": True}
    with pytest.warns(lm.MistakeWarning) as told:
        dense().fit(X[:26], Y[:26], **task(checkpoint=path, resume=True, **changes))
    words = str(told[0].message)
    for part in (
        "optimizer is SGD(learning_rate=0.1), was Adam(",
        "batch_size is 5, was 6",
        "number of rows is 26, was 27",
    ):
        assert part in words
    assert f"resumed from {path}: epoch 2 after 2 batches" in capsys.readouterr().out


def test_inspect_tells_where_a_training_goes_on(tmp_path, capsys):
    path = str(tmp_path / "run")
    dense().fit(X, Y, **task(checkpoint=path, callbacks=[Stop(6)]))
    assert main(["inspect", path]) == 0
    assert "goes on with epoch 2 after 1 batch\n" in capsys.readouterr().out
    dense().fit(X, Y, **task(checkpoint=path, resume=True))
    assert main(["inspect", path]) == 0
    assert "goes on with epoch 4\n" in capsys.readouterr().out
    stop = EarlyStopping("loss", patience=1, min_delta=9.0)
    dense().fit(X, Y, **task(checkpoint=tmp_path / "other", callbacks=[stop]))
    assert main(["inspect", str(tmp_path / "other")]) == 0
    assert "training was stopped: loss has not improved" in capsys.readouterr().out


def test_names_of_other_formats_are_told(tmp_path):
    with pytest.warns(
        lm.MistakeWarning, match="gets lamella's own format, whatever its name says; lamella_onnx.export"
    ):
        dense().save(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10.0)[::2],
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6)[::-1],
        np.arange(4, dtype=">f8"),
        np.array(3.0),
        np.zeros((0, 3)),
    ],
    ids=["strided", "transposed", "reversed", "big-endian", "scalar", "empty"],
)
def test_arrays_of_callbacks_come_back_whatever_their_memory_is_like(tmp_path, array):
    class Keeps(lm.Callback):
        def state_dict(self):
            return {np.int64(3): array}

        def load_state_dict(self, state):
            self.state = state

    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[Keeps()]))
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True, callbacks=[keeps := Keeps()]))
    assert keeps.state.keys() == {3}
    assert keeps.state[3].shape == array.shape
    np.testing.assert_array_equal(keeps.state[3], array)


@pytest.mark.parametrize("key", [(1, 2), float("nan"), b"x"])
def test_states_that_could_not_be_read_are_not_written(tmp_path, key):
    class Keeps(lm.Callback):
        def state_dict(self):
            return {"seen": {key: 1}}

    dense().fit(X, Y, **task(epochs=1, checkpoint=tmp_path / "run"))
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(lm.DataError, match="in a file it must be plain data"):
        dense().fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True, callbacks=[Keeps()]))
    assert (tmp_path / "run").read_bytes() == before


def test_a_log_that_is_gone_is_begun_anew(tmp_path):
    log = tmp_path / "log.csv"
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[CSVLogger(log), Stop(12)]))
    log.unlink()
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True, callbacks=[CSVLogger(log)]))
    lines = log.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["epoch", "3"]


def test_copies_count_epochs_as_the_model_does():
    model = dense()
    model.fit(X, Y, **task(epochs=2))
    copies = model.copy(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert [one.epochs for one in copies] == [2, 2, 2]


class Pressing(lm.losses.MeanSquaredError):
    """A loss in whose validation somebody presses Ctrl-C, once."""

    pressed: list[bool] = []  # noqa: RUF012

    def per_sample(self, prediction, target):
        if self.pressed:
            self.pressed.clear()
            signal.raise_signal(signal.SIGINT)
        return super().per_sample(prediction, target)


@pytest.mark.parametrize("epoch", [0, 2])
def test_ctrl_c_in_validation_is_written(tmp_path, epoch):
    y = np.eye(3, dtype="float32")[Y]

    class Arm(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            if model.step == (epoch + 1) * BATCHES:
                Pressing.pressed.append(True)

    given = task(loss=Pressing(), metrics=[], validation_data=(X, y), epochs=4)
    whole = dense()
    expected = outcome(whole, whole.fit(X, y, **given))
    stopped = dense()
    assert stopped.fit(X, y, **given, checkpoint=tmp_path / "run", callbacks=[Arm()]).interrupted
    assert lm.load(tmp_path / "run").step == stopped.step == (epoch + 1) * BATCHES
    model = dense()
    history = model.fit(X, y, **given, checkpoint=tmp_path / "run", resume=True)
    assert_same(outcome(model, history), expected)


class Enough(lm.Callback):
    def on_batch_end(self, model, rows, logs):
        if model.step == 7:
            raise lm.StopTraining("enough")


def test_a_stop_within_an_epoch_outlasts_an_interruption(tmp_path, monkeypatch):
    whole = dense()
    history = whole.fit(X, Y, **task(callbacks=[Enough()]))
    expected = outcome(whole, history)
    assert (history.stopped, history.epochs) == ("enough", 2)
    monkeypatch.setattr(resumption, "SECONDS", 0.0)
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[Enough(), Stop(7)]))
    model = dense()
    history = model.fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True, callbacks=[Enough()]))
    assert_same(outcome(model, history), expected)
    assert history.stopped == "enough"


def test_epochs_that_are_resumed_count_once(tmp_path):
    class Count(lm.Callback):
        count = 0

        def on_epoch_begin(self, model, epoch):
            self.count += 1

        def on_epoch_end(self, model, epoch, logs):
            logs["count"] = self.count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    for step in (5, 7):
        path, monitor = tmp_path / str(step), lm.callbacks.LearningRateMonitor
        whole = dense().fit(X, Y, **task(callbacks=[Count(), monitor()]))
        dense().fit(X, Y, **task(checkpoint=path, callbacks=[Count(), monitor(), Stop(step)]))
        history = dense().fit(X, Y, **task(checkpoint=path, resume=True, callbacks=[Count(), monitor()]))
        assert history.history == whole.history
        assert history["count"] == [1, 2, 3]


def test_the_better_of_two_best_files_stays(tmp_path):
    path, best = tmp_path / "run", [Checkpoint(tmp_path / "best", save_best_only=True)]
    dense().fit(X, Y, **task(checkpoint=path, callbacks=[*best, Stop(7)]))
    best = [Checkpoint(tmp_path / "best", save_best_only=True)]
    dense().fit(X, Y, **task(epochs=40, optimizer=lm.optimizers.Adam(0.05), callbacks=best))
    held = (tmp_path / "best").read_bytes()
    best = [Checkpoint(tmp_path / "best", save_best_only=True)]
    dense().fit(X, Y, **task(checkpoint=path, resume=True, callbacks=best))
    assert (tmp_path / "best").read_bytes() == held


def test_logs_keep_their_lines(tmp_path):
    path, log = tmp_path / "run", tmp_path / "log.csv"

    def run(append, **more):
        callbacks = [CSVLogger(log, append=append), *more.pop("callbacks", [])]
        return dense().fit(X, Y, **task(checkpoint=path, callbacks=callbacks, **more))

    run(False, callbacks=[Stop(12)])
    assert len(log.read_text().splitlines()) == 3
    run(False, resume=True)
    run(False, resume=True)  # nothing is left to do
    assert [line.partition(",")[0] for line in log.read_text().splitlines()] == ["epoch", "1", "2", "3"]
    log.unlink()
    path.unlink()
    run(True)
    dense().fit(X, Y, **task(callbacks=[CSVLogger(log)]))  # another training
    run(True, resume=True)
    assert [line.partition(",")[0] for line in log.read_text().splitlines()] == ["epoch", *"123123"]


@pytest.mark.parametrize(
    "state",
    [{"a": {1, 2}}, {"a": b"x"}, {"a": 1j}, {"a": np.array([object()])}, {"a": np.array(["x"])}, {"a": 10**5000}],
)
def test_what_callbacks_remember_is_looked_at_before_the_first_step(tmp_path, state):
    class Odd(lm.Callback):
        def state_dict(self):
            return state

    model = dense()
    with pytest.raises(lm.DataError, match="what callbacks and metrics remember must be plain data"):
        model.fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[Odd()]))
    deep = state
    for _ in range(100):
        deep = [deep]
    state = {"a": deep}
    with pytest.raises(lm.DataError, match="nested deeper than"):
        model.fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[Odd()]))
    assert model.step == 0
    assert not (tmp_path / "run").exists()


def test_errors_of_arguments_leave_the_model_as_it_was(tmp_path):
    path = tmp_path / "run"
    dense().fit(X, Y, **task(checkpoint=path, callbacks=[Stop(7)]))
    for changes in ({"callbacks": [3]}, {"clip_norm": -1.0}, {"penalties": {"nope": lm.regularization.L2(0.1)}}):
        model = dense()
        with pytest.raises(lm.ArgumentError):
            model.fit(X, Y, **task(checkpoint=path, resume=True, **changes))
        assert (model.step, model.epochs, model.history) == (0, 0, None)
    with pytest.raises(lm.ArgumentError, match="a Checkpoint among the callbacks writes .*run, too"):
        dense().fit(X, Y, **task(checkpoint=path, resume=True, callbacks=[Checkpoint(path)]))


PLACES = [
    {"epoch": None}, {"epoch": -3}, {"epoch": 1.5}, {"batch": "x"}, {"batch": 10**29}, {"drawn": None}, {"began": "x"},
    {"began": -1}, {"meter": 3}, {"meter": None}, {"history": [1]}, {"history": {"loss": 3}}, {"stopped": 3},
    {"callbacks": [["EarlyStopping", None]]}, {"callbacks": [3]}, {"task": 3}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", PLACES, ids=str)
def test_places_that_make_no_sense_are_refused(tmp_path, change, monkeypatch):
    real = resumption.Place._asdict
    monkeypatch.setattr(resumption.Place, "_asdict", lambda self: real(self) | change)
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[Stop(7)]))
    monkeypatch.undo()
    model = dense()
    with pytest.raises(lm.DataError, match="its place of a training can't be read"):
        model.fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True))
    assert model.step == 0


def test_a_callback_of_another_class_of_the_same_name_is_told(tmp_path):
    dense().fit(X, Y, **task(checkpoint=tmp_path / "run", callbacks=[EarlyStopping(), Stop(7)]))

    class Other(lm.Callback):
        def load_state_dict(self, state):
            state["something"]

    Other.__name__ = "EarlyStopping"
    with pytest.raises(lm.DataError, match="EarlyStopping.load_state_dict can't take up what the file has"):
        dense().fit(X, Y, **task(checkpoint=tmp_path / "run", resume=True, callbacks=[Other()]))


@pytest.mark.parametrize("step", [5, 7])
@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin"])
def test_a_training_that_is_not_taken_up_yet_stays_as_it_was_written(tmp_path, step, event):
    """Ctrl-C before callbacks have heard what they remember, and before the epoch's sums are back."""
    path = tmp_path / "run"
    dense().fit(X, Y, **task(checkpoint=path, callbacks=[EarlyStopping(), Stop(step)]))
    held = path.read_bytes()

    class Early(lm.Callback):
        pass

    def press(*arguments):
        raise KeyboardInterrupt

    setattr(Early, event, lambda self, model, *rest: press())
    assert dense().fit(X, Y, **task(checkpoint=path, resume=True, callbacks=[EarlyStopping(), Early()])).interrupted
    assert path.read_bytes() == held
