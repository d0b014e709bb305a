"""What happens beside training: callbacks, stopping, Ctrl-C, logs, and the history with its picture."""

import csv
import math
import re
import signal
import sys
import threading
import types

import numpy as np
import pytest

import lamella as lm
from lamella.callbacks import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    LearningRateMonitor,
    ReduceOnPlateau,
    TensorBoardLogger,
)
from lamella_layers import Dense

TASK = {"loss": "mean_squared_error", "optimizer": "sgd", "batch_size": 4, "progress": False}


def data(rows=12):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    return x, x @ rng.normal(size=(4, 2))


def network():
    return lm.Sequential([Dense(2)], input_shape=4, dtype="float64")


class Script(lm.Callback):
    """Puts numbers into the logs, one for each epoch."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def on_epoch_end(self, model, epoch, logs):
        logs[self.name] = self.values[epoch]


class Events(lm.Callback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, model, epochs, batches):
        self.seen.append(("begin", epochs, batches))

    def on_epoch_begin(self, model, epoch):
        self.seen.append(("epoch", epoch))

    def on_batch_end(self, model, rows, logs):
        self.seen.append(("batch", rows))

    def on_epoch_end(self, model, epoch, logs):
        self.seen.append(("done", epoch))

    def on_train_end(self, model):
        self.seen.append(("end",))


def fit(*callbacks, model=None, epochs=10, **options):
    return (model or network()).fit(*data(), epochs=epochs, callbacks=callbacks, **{**TASK, **options})


# Stopping


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([3, 2, 2, 2, 1, 1, 1, 1], {"patience": 3}, 8, 5),
        ([3, 2, 2, 2, 1, 1, 1, 1], {"patience": 2}, 4, 2),
        ([3, 2.5, 2.4, 2.3, 2.2, 0], {"patience": 3, "min_delta": 1}, 4, 1),
        ([3, math.nan, math.nan, 1], {"patience": 2}, 3, 1),
        ([math.nan, 2, 3, 3], {"patience": 2}, 4, 2),
        ([1, 2, 3, 3, 3], {"patience": 2, "mode": "max"}, 5, 3),
        ([1, 2, 3, 3, 3], {"patience": 2, "mode": "min"}, 3, 1),
    ],
)
def test_early_stopping_ends_where_patience_does(values, options, epochs, best):
    stop = EarlyStopping("n", **options)
    history = fit(Script("n", values), stop, epochs=len(values))
    assert (history.epochs, stop.best_epoch) == (epochs, best)
    assert stop.state_dict()["best_epoch"] == best - 1  # as files have it, also those of earlier versions
    assert history.stopped == (f"n has not improved for {options['patience']} epochs")
    assert not history.interrupted


def test_early_stopping_takes_the_best_values_back_however_training_ends():
    values = [3, 1, 2, 2, 2]
    kept, model = network(), network()
    fit(model=kept, epochs=2)
    fit(Script("n", values), EarlyStopping("n", patience=3), model=model)
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], kept.parameters["dense_1.kernel"])
    for other in ([3, 1, 2], [3, 1, 2, 2]):
        model = network()
        fit(Script("n", other), EarlyStopping("n", patience=9), model=model, epochs=len(other))
        np.testing.assert_array_equal(model.parameters["dense_1.kernel"], kept.parameters["dense_1.kernel"])
    model = network()
    fit(Script("n", values), EarlyStopping("n", patience=3, restore_best=False), model=model)
    assert not np.array_equal(model.parameters["dense_1.kernel"], kept.parameters["dense_1.kernel"])


def test_metrics_of_ones_own_are_logged_in_lower_case_and_may_grow():
    class BalancedAccuracy(lm.metrics.Metric):
        def per_sample(self, prediction, target):
            return np.ones(len(target))

    history = fit(metrics=BalancedAccuracy(), epochs=3)
    assert history["balanced_accuracy"] == [1.0] * 3
    assert EarlyStopping("val_balanced_accuracy").larger
    assert EarlyStopping("val_F1Score").larger


def test_events_that_do_not_exist_are_named():
    class Keras(lm.Callback):
        def on_train_batch_end(self, batch, logs=None):
            """Called by others under this name."""

    words = "Keras.on_train_batch_end would never be called; events are .* Did you mean 'on_train_end'"
    with pytest.raises(lm.ArgumentError, match=words):
        fit(Keras())


def test_a_folder_that_is_not_there_is_named_before_training(tmp_path):
    model = network()
    with pytest.raises(FileNotFoundError, match="Checkpoint: no such folder"):
        fit(Checkpoint(tmp_path / "no" / "m.lamella"), model=model)
    assert model.step == 0


def test_mode_follows_from_the_name():
    assert EarlyStopping("val_accuracy").larger
    assert EarlyStopping("digit_top_k_accuracy").larger
    assert not EarlyStopping("val_loss").larger
    assert not EarlyStopping("accuracy", mode="min").larger


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: EarlyStopping(),
            "EarlyStopping: monitor: no 'val_loss' in this training; .* Give fit validation_data",
        ),
        (lambda: EarlyStopping("los"), "there are loss. Did you mean 'loss'"),
        (lambda: EarlyStopping(patience=0), "EarlyStopping: patience: expected a positive int, got 0"),
        (lambda: EarlyStopping(mode="maximum"), "mode: expected one of 'auto', 'min', 'max'"),
        (lambda: EarlyStopping(3), "monitor: expected a name such as 'val_loss', got 3"),
        (lambda: ReduceOnPlateau(factor=1.0), "ReduceOnPlateau: factor: expected a number below 1, got 1.0"),
        (lambda: CSVLogger("x.csv", separator=";;"), "CSVLogger: separator: expected one character .*, got ';;'"),
        (lambda: Checkpoint("m-{epoch.x}.lamella"), "Checkpoint: path: .* can't be filled in .AttributeError"),
        (lambda: Checkpoint("m", monitor="val_loss"), "monitor='val_loss' has no effect .* save_best_only=True"),
        (lambda: Checkpoint("m-{acc}.lamella"), "Checkpoint: path: .* can't be filled in .*; there are epoch, loss"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(lm.ArgumentError, match=words):
        fit(make())


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("on_train_begin", [("begin", 3, 3), ("end",)]),
        ("on_epoch_begin", [("begin", 3, 3), ("epoch", 0), ("end",)]),
        ("on_batch_end", [("begin", 3, 3), ("epoch", 0), ("batch", 4), ("done", 0), ("end",)]),
        ("on_epoch_end", [("begin", 3, 3), ("epoch", 0), *[("batch", 4)] * 3, ("done", 0), ("end",)]),
    ],
)
def test_any_event_may_stop_training_and_the_others_still_hear_of_it(event, expected):
    class Stop(lm.Callback):
        pass

    def stop(*arguments):
        raise lm.StopTraining("enough")

    setattr(Stop, event, stop)
    events = Events()
    history = fit(Stop(), events, epochs=3, validation_data=data(4))
    assert events.seen == expected
    assert history.stopped == "enough"
    assert all(math.isfinite(value) for values in history.history.values() for value in values)
    assert history.epochs == (("done", 0) in expected)
    if history.epochs:
        assert "val_loss" in history.history


def test_errors_of_callbacks_go_on_after_the_end_was_told():
    class Fail(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            raise RuntimeError("disk full")

    events = Events()
    with pytest.raises(RuntimeError, match="disk full"):
        fit(events, Fail())
    assert events.seen[-1] == ("end",)


def test_everyone_hears_of_the_end_even_if_some_fail_there():
    class Fail(lm.Callback):
        def on_train_end(self, model):
            raise RuntimeError("disk full")

    events = Events()
    with pytest.raises(RuntimeError, match="disk full"):
        fit(Fail(), events)
    assert events.seen[-1] == ("end",)


def test_logs_are_numbers():
    class Note(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            logs["note"], logs["other"] = "fine", "too"

    with pytest.raises(lm.ArgumentError, match=r"Note.on_epoch_end: logs\['note'\]: expected a number, got 'fine'"):
        fit(Note())


def test_layers_may_be_frozen_and_unfrozen_between_epochs():
    class Thaw(lm.Callback):
        def on_epoch_begin(self, model, epoch):
            kernels.append(model.parameters["dense_1.kernel"])
            (model.freeze if epoch < 2 else model.unfreeze)("dense_1")

    kernels: list[np.ndarray] = []
    model = lm.Sequential([Dense(5), Dense(2)], input_shape=data(4)[0].shape[1:])
    fit(Thaw(), model=model, epochs=3, penalties={"*.kernel": lm.regularization.L2(0.1)})
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert not np.array_equal(kernels[2], model.parameters["dense_1.kernel"])


# Ctrl-C


class Press(lm.Callback):
    """Presses Ctrl-C after some steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_batch_end(self, model, rows, logs):
        for _ in range(self.steps.count(model.step)):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_training_after_the_step_and_the_model_goes_on():
    events, model = Events(), network()
    history = fit(Press(5), events, model=model)
    assert (history.interrupted, history.stopped, history.epochs) == (True, "interrupted", 1)
    assert events.seen[-2:] == [("batch", 4), ("end",)]
    assert model.step == model.optimizer_state.t == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not fit(model=model, epochs=1).interrupted
    assert model.step == 8


def test_ctrl_c_ends_validation_after_a_batch():
    seen = []

    def validation():
        for k in range(100):
            seen.append(k)
            if k == 2:
                signal.raise_signal(signal.SIGINT)
            yield data(4)

    history = fit(epochs=3, validation_data=validation)
    assert history.interrupted
    assert seen == [0, 1, 2]


def test_a_second_ctrl_c_interrupts_at_once():
    events = Events()
    with pytest.raises(KeyboardInterrupt):
        fit(Press(2, 2), events)
    assert events.seen[-1] == ("end",)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_reaches_trainings_within_trainings():
    inner = []

    class Within(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            inner.append(fit(Press(2), epochs=50))

    outer = fit(Within(), epochs=9)
    assert (inner[0].interrupted, inner[0].epochs) == (True, 0)
    assert (outer.interrupted, outer.epochs) == (True, 1)


def test_ctrl_c_at_the_very_end_is_not_lost():
    class Late(lm.Callback):
        def on_train_end(self, model):
            signal.raise_signal(signal.SIGINT)

    history = fit(Late(), epochs=1)
    assert (history.interrupted, history.epochs) == (True, 1)


def test_handlers_of_others_stay_and_other_threads_train(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *arguments: seen.append("mine"))
    try:
        assert not fit(Press(2), epochs=1).interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["mine"]
    histories = []
    thread = threading.Thread(target=lambda: histories.append(fit(epochs=2)))
    thread.start()
    thread.join()
    assert histories[0].epochs == 2


# Learning rates


def test_reduce_on_plateau_scales_the_rate():
    model, monitor = network(), LearningRateMonitor()
    values = [3, 2, 2, 2, 2, 2, 1, 1, 1]
    plateau = ReduceOnPlateau("n", factor=0.5, patience=2)
    history = fit(Script("n", values), plateau, monitor, model=model, epochs=9, optimizer=lm.optimizers.SGD(0.1))
    # falls after epochs 3, 5 and 8, for the epoch that follows; the monitor, last in line, still tells the rate taken
    rates = [0.1] * 4 + [0.05] * 2 + [0.025] * 3
    assert history["learning_rate"] == pytest.approx(rates)
    assert model.optimizer_state.scale == pytest.approx(0.125)


def test_reduce_on_plateau_works_with_schedules_and_keeps_to_its_limits():
    model = network()
    schedule = lm.schedules.StepDecay(0.1, every=3, factor=0.5)
    plateau = ReduceOnPlateau("n", factor=0.1, patience=1, min_learning_rate=0.001)
    task = {"model": model, "epochs": 4, "optimizer": lm.optimizers.SGD(schedule)}
    history = fit(Script("n", [1] * 4), LearningRateMonitor(), plateau, **task)
    assert history["learning_rate"] == pytest.approx([0.1, 0.05, 0.0025, 0.001])
    model = network()
    cool = ReduceOnPlateau("n", factor=0.5, patience=1, cooldown=2)
    history = fit(Script("n", [1] * 8), LearningRateMonitor(), cool, model=model, epochs=8)
    assert history["learning_rate"] == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.005, 0.0025, 0.0025, 0.0025])


# Files


def test_checkpoints_can_be_trained_on(tmp_path):
    model = network()
    path = tmp_path / "m-{epoch:02}-{loss:.3f}.lamella"
    history = fit(Checkpoint(path), model=model, epochs=3)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [f"m-{k + 1:02}-{loss:.3f}.lamella" for k, loss in enumerate(history["loss"])]
    twin = lm.load(tmp_path / names[1])
    fit(model=twin, epochs=1)
    np.testing.assert_array_equal(twin.parameters["dense_1.kernel"], model.parameters["dense_1.kernel"])


def test_only_the_best_checkpoint_stays(tmp_path):
    path = tmp_path / "best.lamella"
    check, model = Checkpoint(path, monitor="n", save_best_only=True), network()
    fit(Script("n", [3, 1, 2]), check, model=model, epochs=3)
    assert lm.load(path).step == 6
    fit(Script("n", [2, 2]), check, model=model, epochs=2)
    assert lm.load(path).step == 6
    fit(Script("n", [0.5]), check, model=model, epochs=1)
    assert lm.load(path).step == 18


def test_csv_lines_come_epoch_by_epoch_and_append(tmp_path):
    path = tmp_path / "log.csv"
    lines = []

    class Read(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            lines.append(len(path.read_text().splitlines()))

    model = network()
    first = fit(CSVLogger(path), Read(), model=model, epochs=2)
    assert lines == [2, 3]
    second = fit(CSVLogger(path), model=model, epochs=1)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == first["loss"] + second["loss"]
    with pytest.raises(lm.DataError, match="has the columns epoch, loss; this training has epoch, loss, learning_rate"):
        fit(LearningRateMonitor(), CSVLogger(path))
    assert len(path.read_text().splitlines()) == 4
    fit(LearningRateMonitor(), CSVLogger(path, append=False, separator=";"), epochs=1)
    assert path.read_text().startswith("epoch;loss;learning_rate\n1;")


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    written, suffixes = [], set()

    class SummaryWriter:
        def __init__(self, folder, filename_suffix):
            written.append(folder)
            suffixes.add(filename_suffix)

        def add_scalar(self, *arguments):
            written.append(arguments)

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    history = fit(TensorBoardLogger(tmp_path), epochs=1, validation_data=data(4))
    assert written == [
        str(tmp_path),
        ("loss/training", history["loss"][0], 1),
        ("loss/validation", history["val_loss"][0], 1),
        "closed",
    ]
    fit(TensorBoardLogger(tmp_path), epochs=1)
    assert len(suffixes) == 2  # files of trainings that begin within one second


def test_packages_that_are_not_there_are_named(tmp_path, monkeypatch):
    for name in ("tensorboardX", "tensorboard.summary", "torch.utils.tensorboard", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        TensorBoardLogger(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'lamella\[plot\]'"):
        fit(epochs=1).plot()


# History


def test_history_has_columns_of_equal_length():
    class Sometimes(lm.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 1:
                logs["rare"] = 7

    history = fit(Sometimes(), epochs=3, validation_data=data(4))
    assert {name: len(values) for name, values in history.history.items()} == {"loss": 3, "val_loss": 3, "rare": 3}
    np.testing.assert_array_equal(history["rare"], [math.nan, 7.0, math.nan])
    table = np.rec.fromarrays(list(history.history.values()), names=list(history.history))  # as a data frame would
    assert table.loss.shape == (3,)
    assert repr(history).startswith("<History of 3 epochs: loss=")
    history.stopped = "enough"
    assert repr(history).endswith("; enough>")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_history_draws_itself(tmp_path, ending):
    pytest.importorskip("matplotlib")
    history = fit(LearningRateMonitor(), epochs=3, validation_data=data(4), metrics=["mean_absolute_error"])
    figure = history.plot(tmp_path / f"curves.{ending}")
    assert (tmp_path / f"curves.{ending}").stat().st_size > 1000
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "mean absolute error", "learning rate"]
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels[:2] == ["training", "validation"]
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), history["val_loss"])


def test_pictures_of_little_or_odd_histories(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(lm.DataError, match="no epoch was finished"):
        lm.History().plot()
    odd = lm.History()
    odd.add({"loss": math.nan, "val_loss": math.nan})
    odd.plot(tmp_path / "odd.png")
    for k in range(4):
        odd.add(dict.fromkeys(("loss", "a", "b", "c", "d"), k + 1.0))
    figure = odd.plot(tmp_path / "many.png")
    assert len(figure.axes) == 5
    four = lm.History()
    four.add(dict.fromkeys(("loss", "a", "b", "c"), 1.0))
    assert four.plot().axes[0].get_gridspec().get_geometry() == (2, 2)


def test_a_method_set_on_a_callback_is_called():
    heard, callback = [], lm.Callback()
    callback.on_batch_end = lambda model, rows, logs: heard.append(rows)
    model = lm.Sequential([lm.layer("dense", units=1)], input_shape=2)
    task = {"loss": "mean_squared_error", "optimizer": "sgd", "batch_size": 3}
    model.fit(np.ones((5, 2)), np.ones((5, 1)), callbacks=[callback], **task)
    assert heard == [3, 2]


@pytest.mark.parametrize("event", ["on_train_begin", "on_batch_end", "on_epoch_end"])
def test_a_model_that_a_callback_moves_to_another_backend_stops_training(event):
    class Moves(lm.Callback):
        pass

    setattr(
        Moves,
        event,
        {
            "on_train_begin": lambda self, model, epochs, batches: model.to("strict"),
            "on_batch_end": lambda self, model, rows, logs: model.to("strict"),
            "on_epoch_end": lambda self, model, epoch, logs: model.to("strict"),
        }[event],
    )
    model, x = lm.Sequential([Dense(1)], input_shape=2), np.ones((8, 2))
    task = {"loss": "mean_squared_error", "optimizer": "sgd", "batch_size": 4}
    with pytest.raises(lm.ArgumentError, match=r"a callback moved the model from 'numpy' to 'strict'.* before fit"):
        model.fit(x, x[:, :1], **task, epochs=2, callbacks=[Moves()])
    steps = {"on_train_begin": 0, "on_batch_end": 1, "on_epoch_end": 2}[event]
    assert (model.backend, model.step) == ("strict", steps)
    model.fit(x, x[:, :1], **task)
    assert model.step == steps + 2


def test_lambda_calls_functions_at_events():
    heard = []
    events = {
        "on_train_begin": lambda model, epochs, batches: heard.append(("begin", epochs, batches)),
        "on_epoch_begin": lambda model, epoch: heard.append(("epoch", epoch)),
        "on_batch_end": lambda model, rows, logs: heard.append(("batch", rows, sorted(logs))),
        "on_epoch_end": lambda model, epoch, logs: logs.update(twice=2.0 * logs["loss"]),
        "on_train_end": lambda model: heard.append(("end", model.step)),
    }
    history = fit(lm.callbacks.Lambda(**events), epochs=2)
    assert history["twice"] == [2.0 * loss for loss in history["loss"]]
    assert heard[0] == ("begin", 2, len(heard) // 2 - 2)
    assert heard[1] == ("epoch", 0)
    assert heard[2][0] == "batch"
    assert heard[2][2] == ["loss"]
    assert heard[-1][0] == "end"
    for event, function in events.items():  # one alone
        fit(lm.callbacks.Lambda(**{event: function}))


def of(event: str, function: object) -> lm.Callback:
    """A callback with a method that takes what the function does, after self."""
    return type("Theirs", (lm.Callback,), {event: function})()


@pytest.mark.parametrize(
    ("event", "function", "first", "expected"),
    [
        ("on_epoch_begin", lambda self, epoch, logs=None: None, "epoch", "(self, model, epoch)"),
        ("on_train_end", lambda self, logs=None: None, "logs", "(self, model)"),
        ("on_batch_end", lambda self, batch, rows, logs: None, "batch", "(self, model, rows, logs)"),
        ("on_epoch_end", lambda self, epoch, logs, more: None, "epoch", "(self, model, epoch, logs)"),
    ],
)
def test_methods_that_take_the_model_for_something_else_are_refused(event, function, first, expected):
    """Those of Keras's callbacks: they would be called, with a model in the place of a number."""
    told = (
        f"Theirs.{event}: it is called with the model first, which would be its {first!r}; expected {event}{expected}"
    )
    with pytest.raises(lm.ArgumentError, match=re.escape(told)):
        fit(of(event, function))


def test_methods_may_call_the_model_what_they_like():
    heard = []
    fit(of("on_train_end", lambda self, network: heard.append(network)))
    fit(of("on_epoch_begin", lambda self, *given: heard.append(given[0])))
    fit(of("on_epoch_begin", lambda self, m, epoch: heard.append(m)))
    assert {type(one) for one in heard} == {lm.Sequential}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Lambda: expected a function for one event at least, of on_train_begin, on_epoch_begin, on_batch_end"),
        ({"on_epoch_end": 3}, r"Lambda: on_epoch_end: expected a function \(model, epoch, logs\), got 3"),
        (
            {"on_epoch_end": lambda epoch, logs: None},
            r"callbacks: Lambda.on_epoch_end: too many positional arguments; ex",
        ),
        ({"on_epoch_begin": lambda epoch, logs: None}, "Lambda.on_epoch_begin: .* the model first, which .* 'epoch'"),
        ({"on_epoch_end": int}, "callbacks: Lambda.on_epoch_end: .* put a function around it"),
    ],
)
def test_lambda_refuses_what_it_can_not_call(options, words):
    with pytest.raises(lm.ArgumentError, match=words):
        fit(lm.callbacks.Lambda(**options))
