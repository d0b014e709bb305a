"""Long, large and many: what grows with layers, rows and steps, and models that several threads use."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import lamella as lm
from lamella_layers import Concatenate, Conv2D, Dense, Embedding, Flatten

RELU = {"kind": "layers", "type": "lamella:activation", "version": None, "config": {"function": "relu"}}


def calls_of(run):
    """How many functions of Python and C a function calls."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def chain(depth):
    return lm.Sequential([Dense(2) for _ in range(depth)], input_shape=2)


def nested(depth):
    return lm.Sequential([chain(depth), Dense(2)], input_shape=2)


def with_many_inputs_and_outputs(count):
    inputs = [lm.Input(2) for _ in range(count)]
    return lm.Model(inputs, [Concatenate()(*inputs), *(Dense(2)(x) for x in inputs)])


def read_again(depth):
    return lm.from_config(chain(depth).config())


@pytest.mark.parametrize("build", [chain, nested, with_many_inputs_and_outputs, read_again])
def test_the_work_of_building_grows_with_the_number_of_layers_and_not_with_its_square(build):
    build(4)
    few, many = (calls_of(lambda n=n: build(n)) for n in (250, 500))
    assert many < 2.2 * few


def write_models_within_models(path, levels, times):
    """A file of one kilobyte or so; each model calls the one before some times."""

    def model(layer, times):
        calls = [{"layer": layer, "inputs": [[k, 0]]} for k in range(times)]
        given = {"class": "Model", "dtype": "float32", "seed": 0, "inputs": [{"shape": [2], "dtype": None}]}
        return {**given, "calls": calls, "outputs": [[times, 0]], "frozen": []}

    layers = [{**RELU, "name": None, "trainable": True}, *({"model": model(k, times)} for k in range(levels))]
    header = {"format": 1, "step": 0, "model": {**model(levels, 1), "layers": layers}}
    save_file({"x": np.zeros(1, "f4")}, path, {"lamella": json.dumps(header)})


@pytest.mark.parametrize(("levels", "times"), [(40, 2), (400, 2), (6, 50)])
def test_models_that_call_one_another_are_refused_before_they_are_expanded(tmp_path, monkeypatch, levels, times):
    monkeypatch.setattr("lamella.files.structure.MOST", 3000)
    write_models_within_models(tmp_path / "m", levels, times)
    with pytest.raises(lm.DataError, match=r"load .*come to [\d,]+ layers and more; expected 3,000 at most"):
        lm.load(tmp_path / "m")


def test_a_model_of_too_many_layers_is_refused(monkeypatch):
    monkeypatch.setattr("lamella.graph.operations.MOST", 10)
    with pytest.raises(lm.errors.GraphError, match="11 layers, composites expanded; expected 10 at most"):
        chain(11)


@pytest.fixture
def small_is_large(monkeypatch):
    """Arrays of a kilobyte are converted batch by batch."""
    monkeypatch.setattr("lamella.protocol.inputs.LARGE", 1 << 10)
    monkeypatch.setattr("lamella.training.data.LARGE", 1 << 10)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("dtype", ["u1", "i2", "?", "f2", "f8", ">f4", ">i8"])
def test_what_is_converted_batch_by_batch_gives_the_same_bits(dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (200, 3, 6, 6)).astype(dtype)
    y = rng.integers(0, 2, (200, 5)).astype(dtype)

    def results(x, y):
        model = lm.Sequential([Conv2D(4, 3, activation="relu"), Flatten(), Dense(5)], input_shape=x.shape[1:])
        task = {"loss": "mean_squared_error", "metrics": "mean_absolute_error"}
        model.fit(x, y, **task, optimizer="adam", batch_size=48, epochs=2, validation_data=(x, y), progress=False)
        evaluated = model.evaluate(x, y, **task, batch_size=50)
        return [*model.parameters.values(), model.predict(x), model.predict(x, batch_size=70), *evaluated.values()]

    for own, expected in zip(results(x, y), results(x.astype("f4"), y.astype("f4")), strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, ids, y, z: x.__setitem__((-1, 3), 1e39), "values beyond the range of float32; rescale the data"),
        (lambda x, ids, y, z: ids.__setitem__((-1, 0), 30), r"'ids'.* values in \[0, 29\], got values from 0 to 30"),
        (
            lambda x, ids, y, z: y.__setitem__((-1, 2), 3),
            r"rows 896 to 899 of 900: .*integers in \[0, 3\); got 3 in row 3",
        ),
        (
            lambda x, ids, y, z: z.__setitem__((-1, 0), 1.5),
            r"of 900: binary.* must lie in \[0, 1\]; got values from .*1.5",
        ),
    ],
)
def test_the_last_row_of_large_arrays_is_checked_before_the_first_step(change, told):
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(900, 8)), rng.integers(0, 30, (900, 4))
    y, z = rng.integers(0, 3, (900, 4)).astype("i2"), rng.random((900, 6))
    change(x, ids, y, z)
    inputs = lm.Input(8), lm.Input(4, "int32", name="ids", low=0, high=30)
    labels = Dense(3)(Embedding(30, 5)(inputs[1]))
    model = lm.Model(inputs, (labels, Dense(6)(inputs[0])))
    task = {"loss": ("softmax_cross_entropy", "binary_cross_entropy"), "batch_size": 30}
    for call in (
        lambda: model.fit((x, ids), (y, z), **task, optimizer="sgd", progress=False),
        lambda: model.evaluate((x, ids), (y, z), **task),
    ):
        with pytest.raises(lm.DataError, match=told):
            call()
    assert model.step == 0
    if "rows" not in told and "of 900" not in told:
        with pytest.raises(lm.DataError, match=told):
            model.predict((x, ids))


def test_a_large_file_of_bytes_takes_little_memory_in_training_and_prediction(tmp_path):
    shape = (60_000, 2000)
    images = np.memmap(tmp_path / "images", "u1", "w+", shape=shape)  # sparse: 120 MB, of which nothing is written
    masks = np.memmap(tmp_path / "masks", "u1", "w+", shape=shape)
    labels = np.arange(len(images)).astype("u1") % 3
    model = lm.Sequential([Dense(4), Dense(2000)], input_shape=2000)
    short = lm.Model(model.input_nodes, Dense(3)(*model.input_nodes))
    task = {"batch_size": 512, "progress": False, "optimizer": "sgd", "callbacks": [Once()]}
    took = {
        "fit": lambda: short.fit(images, labels, loss="softmax_cross_entropy", **task),
        "masks": lambda: model.fit(images, masks, loss="binary_cross_entropy", **task),
        "predict": lambda: short.predict(images),
        "batches": lambda: short.predict(images, batch_size=5000),
        "evaluate": lambda: short.evaluate(images, labels, loss="softmax_cross_entropy"),
    }
    peaks = {}
    for name, call in took.items():
        tracemalloc.start()
        call()
        peaks[name] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    print({name: f"{peak:.0f} MB" for name, peak in peaks.items()})
    assert max(peaks.values()) < 60  # in float32 it is 480 MB


class Once(lm.Callback):
    def on_batch_end(self, model, rows, logs):
        raise lm.StopTraining("one step is enough")


TASK = {"loss": "softmax_cross_entropy", "optimizer": "adam"}
ROWS = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
LABELS = np.arange(64) % 3


class Gate(lm.Layer):
    """Lets through what it is given; in prediction, once it is shut, only when it is opened."""

    shut, waiting = threading.Event(), threading.Event()
    opened = threading.Event()

    def forward_pass(self, ctx, x):
        if not ctx.training and self.shut.is_set():
            self.waiting.set()
            assert self.opened.wait(20)
        return x

    def backward_pass(self, ctx, dy):
        return dy


@pytest.fixture
def gate():
    for event in (Gate.shut, Gate.waiting, Gate.opened):
        event.clear()
    yield Gate
    Gate.opened.set()


def network(units=16, seed=0, first=()):
    return lm.Sequential([*first, Dense(units, activation="relu"), Dense(3)], input_shape=8, seed=seed)


def in_a_thread(function):
    """Start a function on a thread; what is returned waits for it, and gives what it gave or raises what it raised."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future.result


def steps(model, count):
    for _ in range(count):
        model.train_on_batch(ROWS, LABELS, **TASK)


@pytest.mark.parametrize("taken", [1, 2, 3])
@pytest.mark.parametrize("read", ["predict", "batches", "evaluate", "gradients"])
def test_what_is_read_while_others_train_is_of_the_moment_when_it_began(gate, read, taken):
    calls = {
        "predict": lambda m: m.predict(ROWS),
        "batches": lambda m: m.predict(ROWS, batch_size=40),
        "evaluate": lambda m: m.evaluate(ROWS, LABELS, loss=TASK["loss"], metrics="accuracy", batch_size=40),
        "gradients": lambda m: m.gradients(ROWS, LABELS, loss=TASK["loss"], training=False)[1]["dense_1.kernel"],
    }
    model = network(first=[gate()])
    steps(model, 3)
    before = calls[read](model)
    gate.shut.set()
    got = in_a_thread(lambda: calls[read](model))
    assert gate.waiting.wait(20)
    steps(model, taken)
    gate.opened.set()
    np.testing.assert_equal(got(), before)
    assert model.step == 3 + taken


@pytest.mark.parametrize("write", ["parameters", "load_weights", "copy_values"])
def test_assignments_leave_a_prediction_in_progress_alone(gate, tmp_path, write):
    model, other = network(first=[gate()]), network(seed=1)
    steps(model, 2)
    steps(other, 2)
    other.save(tmp_path / "other")
    before, after = model.predict(ROWS), other.predict(ROWS)
    gate.shut.set()
    got = in_a_thread(lambda: model.predict(ROWS))
    assert gate.waiting.wait(20)
    if write == "parameters":
        for name, value in other.parameters.items():
            model.parameters[name] = value
    elif write == "load_weights":
        model.load_weights(tmp_path / "other")
    else:
        model.copy_values(other)
    gate.opened.set()
    np.testing.assert_array_equal(got(), before)
    np.testing.assert_array_equal(model.predict(ROWS), after)
    state = model.optimizer_state
    slots = {name: slot.copy() for name, slot in state.slots.items()}
    steps(model, 3)
    for name, slot in slots.items():
        np.testing.assert_array_equal(state.slots[name], slot)


def test_predictions_and_files_beside_training_are_those_after_some_step(tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(256, 8)).astype("float32"), np.arange(256) % 3
    usual = sys.getswitchinterval()

    def train(*callbacks):
        model = network(256)
        model.fit(x, y, **TASK, epochs=12, batch_size=16, callbacks=callbacks, progress=False)
        return model

    class Note(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            known.add(model.predict(ROWS[:4]).tobytes())

    class Tell(lm.Callback):
        def on_train_begin(self, model, epochs, batches):
            models.append(model)

    known = {network(256).predict(ROWS[:4]).tobytes()}
    train(Note())
    models, found = [], []
    sys.setswitchinterval(1e-5)
    try:
        trained = in_a_thread(lambda: train(Tell()))
        while not models:
            time.sleep(0.001)
        while models[0].step < 192:
            found += [models[0].predict(ROWS[:4]).tobytes() for _ in range(20)]
            models[0].save(tmp_path / "m")
            read = lm.load(tmp_path / "m")
            found.append(read.predict(ROWS[:4]).tobytes())
            assert read.step == (read.optimizer_state.t if read.optimizer_state else 0)
    finally:
        sys.setswitchinterval(usual)
    trained()
    print(f"{len(found)} predictions, {len(set(found))} different ones")
    assert set(found) <= known


def refused(model, tmp_path):
    """What another thread may not do while a model is trained."""
    return {
        "fit": lambda: model.fit(ROWS, LABELS, **TASK, progress=False),
        "train_on_batch": lambda: steps(model, 1),
        "an assignment": lambda: model.parameters.__setitem__("dense_1.bias", np.ones(16)),
        "an assignment ": lambda: model.load_weights(tmp_path / "weights"),
        "an assignment  ": lambda: model.copy_values(network(seed=1)),
        "optimizer_state =": lambda: setattr(model, "optimizer_state", None),
        "to": lambda: model.to("numpy"),
    }


def test_only_one_thread_at_a_time_trains_or_changes_a_model(tmp_path):
    class Pause(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            inside.set()
            assert go_on.wait(20)

    inside, go_on = threading.Event(), threading.Event()
    model, twin = network(), network()
    model.save(tmp_path / "weights")
    task = {**TASK, "epochs": 3, "batch_size": 16, "progress": False}
    wait = in_a_thread(lambda: model.fit(ROWS, LABELS, **task, callbacks=[Pause()]))
    assert inside.wait(20)
    for doing, call in refused(model, tmp_path).items():
        told = rf"^{doing.strip()}: another thread 'ThreadPool.*' is in fit of this model, .* model.copy\(\)$"
        with pytest.raises(lm.errors.BusyError, match=told):
            call()
    copied = model.copy()
    steps(copied, 1)
    go_on.set()
    wait()
    twin.fit(ROWS, LABELS, **task)
    for name, value in twin.parameters.items():  # nothing that was refused has left a trace
        np.testing.assert_array_equal(model.parameters[name], value)
    for call in refused(model, tmp_path).values():  # once it is done, others may
        in_a_thread(call)()


def test_a_training_that_fails_leaves_the_model_to_others():
    model = network()
    for rows in (ROWS * np.nan, ROWS):
        with pytest.raises(lm.NonFiniteError if rows is not ROWS else ZeroDivisionError):
            model.fit(rows, LABELS, **TASK, callbacks=[Fails()], progress=False)
        in_a_thread(lambda: steps(model, 1))()


class Fails(lm.Callback):
    def on_batch_end(self, model, rows, logs):
        raise ZeroDivisionError


def test_callbacks_may_read_and_train_the_model_that_fit_trains(tmp_path):
    class Meddle(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            model.predict(ROWS)
            model.evaluate(ROWS, LABELS, loss=TASK["loss"])
            model.save(tmp_path / "m")
            steps(model, 1)
            counts.append(model.step)

        def on_epoch_end(self, model, epoch, logs):
            model.fit(ROWS, LABELS, **TASK, batch_size=32, progress=False)

    counts, model = [], network()
    model.fit(ROWS, LABELS, **TASK, batch_size=32, epochs=2, callbacks=[Meddle()], progress=False)
    assert counts == [2, 4, 8, 10]
    assert (model.step, model.optimizer_state.t, lm.load(tmp_path / "m").step) == (12, 12, 9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_another_thread_trains_may_train_too(tmp_path):
    code = """
import os, threading, warnings, numpy as np, lamella as lm
from lamella_layers import Dense
warnings.simplefilter("ignore")
model = lm.Sequential([Dense(4)], input_shape=4)
x = np.ones((8, 4))
task = {"loss": "mean_squared_error", "optimizer": "sgd"}
inside, go_on = threading.Event(), threading.Event()
class Pause(lm.Callback):
    def on_batch_end(self, model, rows, logs):
        inside.set()
        go_on.wait(20)
thread = threading.Thread(target=lambda: model.fit(x, x, **task, callbacks=[Pause()], progress=False))
thread.start()
inside.wait(20)
child = os.fork()
if child == 0:
    model.train_on_batch(x, x, **task)
    model.save("child.lamella")
    os._exit(7 if np.isfinite(model.predict(x)).all() and model.step == 2 else 8)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go_on.set()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("7", "")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not tell what a process holds")
def test_training_predicting_saving_and_loading_again_and_again_takes_no_more_memory():
    soak = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    done = subprocess.run([sys.executable, soak, "--steps", "200"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_train_while_and_after_their_parent_does(method, tmp_path):
    model, twin = network(), network()
    steps(model, 1)
    steps(twin, 2)
    expected = twin.predict(ROWS)

    class Ask(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            answers.append(in_a_child(method, model))

    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process that has threads
        answers.append(in_a_child(method, model))
        again = network()
        again.fit(ROWS, LABELS, **TASK, batch_size=64, shuffle=False, callbacks=[Ask()], progress=False)
    for predicted, count in answers:
        assert count == 2
        np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)


def in_a_child(method, model):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=step_and_predict, args=(model, theirs))
    child.start()
    assert ours.poll(60)
    answer = ours.recv()
    child.join(60)
    assert child.exitcode == 0
    return answer


def step_and_predict(model, pipe):
    steps(model, 1)
    pipe.send((model.predict(ROWS), model.step))
