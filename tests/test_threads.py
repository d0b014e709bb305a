"""Slices over threads: the same results however the batch is cut, and nothing left behind when something fails."""

import _thread
import os
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from sample_layers import Add, Center
from threadpoolctl import threadpool_info

import lamella as lm
from lamella.engine import threads
from lamella.graph.slicing import cost_of, runs_whole, slice_rows
from lamella_layers import GRU, LSTM, RNN, BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPooling2D

CROSS_ENTROPY = "softmax_cross_entropy"


@pytest.fixture(autouse=True)
def default_threads():
    yield
    lm.set_threads(None)


@pytest.fixture
def many_slices(monkeypatch):
    """Slices of a few rows even for small models."""
    monkeypatch.setattr("lamella.graph.slicing.SLICE_BYTES", 1 << 12)
    monkeypatch.setattr("lamella.graph.slicing.INLINE_WORK", 0)
    monkeypatch.setattr("lamella.graph.slicing.PRODUCTS", float("inf"))


def network(*, coupled=False, dtype="float64", seed=0):
    middle = [Center()] if coupled else []
    layers = [Conv2D(4, 3, activation="relu"), MaxPooling2D(), *middle, Flatten(), Dropout(0.3), Dense(3)]
    return lm.Sequential(layers, input_shape=(2, 8, 8), dtype=dtype, seed=seed)


def images(rows, dtype="float64"):
    rng = np.random.default_rng(rows)
    return rng.normal(size=(rows, 2, 8, 8)).astype(dtype), np.arange(rows) % 3


def trained(count, **options):
    lm.set_threads(count)
    model = network(**options)
    x, y = images(53)
    weights = np.linspace(0.5, 2.0, 53)
    model.fit(
        x, y, loss=CROSS_ENTROPY, optimizer="adam", epochs=2, batch_size=20, sample_weight=weights, progress=False
    )
    return {**model.parameters, **model.state}


@pytest.mark.smoke
@pytest.mark.parametrize("coupled", [False, True])
def test_any_number_of_threads_trains_the_same_model(coupled, monkeypatch):
    whole = trained(1, coupled=coupled)
    monkeypatch.setattr("lamella.graph.slicing.SLICE_BYTES", 1 << 12)
    monkeypatch.setattr("lamella.graph.slicing.INLINE_WORK", 0)
    assert len(slice_rows(network().graph, 20, 3)) > 3
    for count in (1, 2, 3):
        for name, value in trained(count, coupled=coupled).items():
            np.testing.assert_allclose(value, whole[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("sum_over_batch", [False, True])
def test_graphs_with_shared_layers_and_several_outputs_are_exact_too(sum_over_batch, monkeypatch):
    shared = Dense(6, activation="tanh")
    a, b = lm.Input((5,)), lm.Input((5,))
    h = Add()(shared(a), Dropout(0.4)(shared(b)))
    h = BatchNormalization(momentum=0.5)(h) if sum_over_batch else h
    model = lm.Model((a, b), (Dense(3)(h), Dense(2)(h), h), dtype="float64", seed=4)
    rng = np.random.default_rng(5)
    x = tuple(rng.normal(size=(2, 31, 5)))
    y = (np.arange(31) % 3, rng.normal(size=(31, 2)), rng.normal(size=(31, 6)))
    weights = (rng.random(31), None, rng.random(31))
    options = {"loss": (CROSS_ENTROPY, "huber", "mean_squared_error")}
    options["sample_weight"] = tuple(np.ones(31) if w is None else w for w in weights)
    lm.set_threads(1)
    loss, gradients, dx = model.gradients(x, y, **options)
    monkeypatch.setattr("lamella.graph.slicing.SLICE_BYTES", 1 << 9)
    monkeypatch.setattr("lamella.graph.slicing.INLINE_WORK", 0)
    for count in (2, 3, 5):
        lm.set_threads(count)
        assert len(slice_rows(model.graph, 31, count)) >= count
        sliced, others, parts = model.gradients(x, y, **options)
        assert sliced == pytest.approx(loss, rel=1e-12)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(others[name], gradient, rtol=1e-9, atol=1e-13)
        for one, other in zip(dx, parts, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("many_slices")
@pytest.mark.parametrize("coupled", [False, True])
def test_equal_settings_give_equal_bits(coupled):
    first, second = (trained(2, coupled=coupled, dtype="float32") for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_slices_follow_from_graph_rows_and_threads_alone():
    graph = network().graph
    for rows in (1, 2, 7, 64, 1000):
        for count in (1, 2, 4):
            sizes = slice_rows(graph, rows, count)
            assert sum(sizes) == rows
            assert max(sizes) - min(sizes) <= 1
            assert sizes == slice_rows(network(seed=9).graph, rows, count)
    big = lm.Sequential([Conv2D(32, 3, padding="same")], input_shape=(16, 64, 64)).graph
    assert len(slice_rows(big, 64, 2)) % 2 == 0
    assert len(slice_rows(big, 64, 2)) > 2
    tiny = lm.Sequential([Dense(4)], input_shape=8).graph
    assert slice_rows(tiny, 32, 8) == [32]
    for layer in (LSTM(256, return_sequences=False), GRU(256), RNN(256)):  # steps long enough for threads, and not
        assert slice_rows(lm.Sequential([layer], input_shape=(50, 64)).graph, 64, 2) == [32, 32]
        assert slice_rows(lm.Sequential([layer.replace(units=32)], input_shape=(50, 8)).graph, 64, 2) == [64]


def test_dense_layers_run_whole_until_they_fill_memory_and_recurrent_ones_while_steps_are_short():
    def whole(layers, shape, *batches):
        graph = lm.Sequential(layers, input_shape=shape).graph
        found = [runs_whole(graph, rows) for rows in batches]
        assert all(slice_rows(graph, rows, 2) == [rows] for rows, yes in zip(batches, found, strict=True) if yes)
        return found

    mlp = [Dense(512, activation="relu"), Dense(256, activation="relu"), Dense(10)]
    assert whole(mlp, (784,), 1, 64, 1024, 1 << 15) == [True, True, True, False]
    assert whole([Dense(8, activation="relu")], (8,), 64) == [False]  # the rest weighs as much
    assert whole([LSTM(128, return_sequences=False), Dense(10)], (64, 64), 64, 256) == [True, False]
    assert whole([Conv2D(8, 3), Flatten(), Dense(512)], (3, 32, 32), 64) == [False]


def test_a_step_that_wants_other_blas_threads_waits_for_those_that_run():
    def used():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    usual, seen = used(), []

    def other():
        with threads.blas_threads(1):
            seen.append(used())

    worker = threading.Thread(target=other)
    with threads.blas_threads(2):
        worker.start()
        worker.join(0.1)
        seen.append(used())
        with threads.blas_threads(1):  # within a step of its own, nobody waits
            seen.append(used())
    worker.join(10)
    assert (seen, used()) == ([{2}, {2}, {1}], usual)


def test_a_step_that_waits_for_one_that_waits_for_it_goes_on(monkeypatch):
    monkeypatch.setattr(threads, "PATIENCE", 0.05)
    inner = lm.Sequential([Conv2D(2, 3), Flatten(), Dense(3)], input_shape=(2, 8, 8))
    x, y = images(6, "float32")

    class Asking(lm.Layer):
        """Trains another model on a thread of its own, and waits for it."""

        def forward_pass(self, ctx, x_):
            if ctx.training:
                worker = threading.Thread(
                    target=inner.train_on_batch, args=(x, y), kwargs={"loss": CROSS_ENTROPY, "optimizer": "sgd"}
                )
                worker.start()
                worker.join()
            return x_

        def backward_pass(self, ctx, dy):
            return dy

    lm.set_threads(2)
    outer = lm.Sequential([Dense(512, activation="relu"), Asking(), Dense(10)], input_shape=784)
    assert runs_whole(outer.graph, 64)
    rows = np.zeros((64, 784), "float32")
    outer.train_on_batch(rows, np.arange(64) % 10, loss=CROSS_ENTROPY, optimizer="sgd")
    assert (outer.step, inner.step) == (1, 1)
    assert not threads._holders


def test_whole_steps_give_equal_bits_beside_another_model_in_training():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(256, 784)).astype("float32"), np.arange(256) % 10
    images_, labels = images(64, "float32")

    def train(model, x, y):
        model.fit(x, y, loss=CROSS_ENTROPY, optimizer="sgd", epochs=8, batch_size=64, progress=False)
        return dict(model.parameters)

    def dense():
        return lm.Sequential([Dense(512, activation="relu"), Dense(10)], input_shape=784)

    lm.set_threads(2)
    assert runs_whole(dense().graph, 64)
    alone, beside = train(dense(), x, y), network(dtype="float32")
    worker = threading.Thread(target=train, args=(beside, images_, labels))
    worker.start()
    together = train(dense(), x, y)
    worker.join()
    for name, value in alone.items():
        np.testing.assert_array_equal(value, together[name])


@pytest.mark.usefixtures("many_slices")
@pytest.mark.parametrize("error", [ValueError, MemoryError])
def test_a_failure_in_a_thread_leaves_nothing_behind(error):
    class Fails(lm.Layer):
        def forward_pass(self, ctx, x):
            if ctx.training and not ctx.rows.startswith("0:") and BROKEN:
                raise error("no more")
            return x

        def backward_pass(self, ctx, dy):
            return dy

    BROKEN = [True]
    lm.set_threads(2)
    model = lm.Sequential([Flatten(), Dense(4), Center(), Fails(), Dense(3)], input_shape=(2, 8, 8))
    before = {**model.parameters, **model.state}
    x, y = images(30)
    alive = threading.active_count()
    with pytest.raises(
        lm.LayerError, match=rf"fails_1 \(Fails\).forward_pass failed on .*rows \d+:\d+: {error.__name__}"
    ):
        model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
    for name, value in {**model.parameters, **model.state}.items():
        np.testing.assert_array_equal(value, before[name])
    assert (model.step, model.optimizer_state) == (0, None)
    assert threading.active_count() <= alive + 1  # the kept worker
    BROKEN.clear()
    assert model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam") > 0


@pytest.mark.usefixtures("many_slices")
def test_ctrl_c_in_the_middle_of_a_step_leaves_the_model_usable():
    class Slow(lm.Layer):
        def forward_pass(self, ctx, x):
            if PATIENCE:
                threading.Timer(0.02, _thread.interrupt_main).start()
                PATIENCE.clear()
                time.sleep(0.2)
            return x

        def backward_pass(self, ctx, dy):
            return dy

    PATIENCE = [True]
    lm.set_threads(2)
    model = lm.Sequential([Flatten(), Slow(), Dense(3)], input_shape=(2, 8, 8))
    x, y = images(30)
    with pytest.raises(KeyboardInterrupt):
        model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
    assert model.step == 0
    assert not threads._holders
    assert model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam") > 0


@pytest.mark.usefixtures("many_slices")
def test_two_models_at_once_do_not_disturb_each_other():
    limits = {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}
    lm.set_threads(2)
    x, y = images(40)

    def train(model):
        model.fit(x, y, loss=CROSS_ENTROPY, optimizer="adam", epochs=3, batch_size=16, progress=False)

    alone = [network(seed=seed, coupled=seed == 1) for seed in (0, 1)]
    for model in alone:
        train(model)
    together = [network(seed=seed, coupled=seed == 1) for seed in (0, 1)]
    workers = [threading.Thread(target=train, args=(model,)) for model in together]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(alone, together, strict=True):
        for name, value in one.parameters.items():
            np.testing.assert_array_equal(value, other.parameters[name])
    after = {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}
    assert after == limits


def test_memory_does_not_grow_with_the_batch():
    layers = [Conv2D(16, 3, padding="same", activation="relu"), Conv2D(16, 3, padding="same", activation="relu")]
    model = lm.Sequential([*layers, MaxPooling2D(4), Flatten(), Dense(10)], input_shape=(3, 32, 32))
    lm.set_threads(2)
    peaks = {}
    for rows in (64, 1024):
        x, y = np.zeros((rows, 3, 32, 32), "float32"), np.arange(rows) % 10
        model.train_on_batch(x[:8], y[:8], loss=CROSS_ENTROPY, optimizer="sgd")
        tracemalloc.start()
        model.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="sgd")
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    one_layer = 1024 * 16 * 32 * 32 * 4  # bytes of one activation of the whole batch
    print(f"peak of a step: {peaks[64] / 1e6:.1f} MB at batch 64, {peaks[1024] / 1e6:.1f} MB at batch 1024")
    assert peaks[1024] < 2 * peaks[64] < one_layer


@pytest.mark.usefixtures("many_slices")
@pytest.mark.usefixtures("many_slices")
def test_threads_that_do_not_start_change_nothing(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    x, y = images(30)
    alone, refused = network(seed=0, coupled=True), network(seed=0, coupled=True)
    lm.set_threads(3)
    alone.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
    lm.set_threads(3)  # with a new pool
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            refused.copy().train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
        refused.train_on_batch(x, y, loss=CROSS_ENTROPY, optimizer="adam")
    for name, value in alone.parameters.items():
        np.testing.assert_array_equal(value, refused.parameters[name])


def test_coupled_layers_predict_in_slices_that_fit_the_cache():
    graph = network(coupled=True).graph
    assert cost_of(graph).coupled
    sizes = {training: len(slice_rows(graph, 1 << 16, 2, training=training)) for training in (True, False)}
    assert sizes[True] == 2 < sizes[False]


def test_the_cost_of_a_product_is_that_of_its_kernel():
    def work(inputs, units):
        return cost_of(lm.Sequential([Dense(units)], input_shape=inputs).graph).work

    assert (work(12288, 10), work(2, 4096)) == (122880, 8192)


def test_prediction_runs_over_threads_too():
    model = network(coupled=True)
    x, _ = images(50)
    lm.set_threads(1)
    alone = model.predict(x)
    for count, size in ((2, None), (3, 7)):
        lm.set_threads(count)
        np.testing.assert_allclose(model.predict(x, batch_size=size), alone, rtol=1e-12)


@pytest.mark.usefixtures("many_slices")
def test_gradients_may_be_asked_for_in_several_threads():
    lm.set_threads(2)
    model = network()
    x, y = images(30)
    expected = {k: model.gradients(k * x, y, loss=CROSS_ENTROPY)[1] for k in (1, 2)}
    wrong = []

    def ask(k):
        for _ in range(10):
            found = model.gradients(k * x, y, loss=CROSS_ENTROPY)[1]
            wrong.extend(name for name, value in found.items() if not np.array_equal(value, expected[k][name]))

    workers = [threading.Thread(target=ask, args=(k,)) for k in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def in_a_new_process(code):
    """Run code that would hang if it were wrong."""
    text = "import numpy as np, os, threading, lamella as lm\nfrom lamella.graph import slicing\n"
    text += "from lamella_layers import Dense\n"
    text += "slicing.INLINE_WORK, slicing.SLICE_BYTES = 0, 1 << 10\nlm.set_threads(2)\nx = np.ones((64, 32))\n"
    text += "model = lm.Sequential([Dense(32), Dense(8)], input_shape=32)\nmodel.predict(x)\n"
    return subprocess.run([sys.executable, "-c", text + code], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_predicts():
    code = """
child = os.fork()
if child == 0:
    model.predict(x)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert in_a_new_process(code).stdout.strip() == "7"


def test_a_layer_may_predict_with_another_model():
    code = """
class Teach(lm.Layer):
    def forward_pass(self, ctx, y):
        model.predict(x)
        return y

print(lm.Sequential([Dense(8), Teach()], input_shape=32).predict(x).shape)
"""
    assert in_a_new_process(code).stdout.strip() == "(64, 8)"


def test_training_in_a_thread_goes_on_while_the_graph_ends():
    code = """
def train():
    model.fit(x, np.zeros((64, 8)), loss="mean_squared_error", optimizer="sgd", epochs=30, batch_size=8, progress=False)
    print("done", model.step)

threading.Thread(target=train).start()
"""
    done = in_a_new_process(code)
    assert (done.stdout.strip(), done.stderr) == ("done 240", "")


def test_one_thread_means_one_thread_of_blas_too():
    class Spy(lm.Layer):
        def forward_pass(self, ctx, x):
            seen.append({info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"})
            return x

    seen = []
    lm.set_threads(1)
    lm.Sequential([Dense(4), Spy()], input_shape=3).predict(np.ones((2, 3)))
    assert seen == [{1}]


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "two"])
def test_set_threads_takes_positive_ints(count):
    with pytest.raises(lm.ArgumentError, match="set_threads: count: expected a positive int"):
        lm.set_threads(count)


def test_threads_default_to_the_cores_there_are():
    lm.set_threads(None)
    assert threads.thread_count() == threads.available_cores() >= 1
    lm.set_threads(3)
    assert threads.thread_count() == 3


def test_omp_num_threads_is_a_limit(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    monkeypatch.setattr(threads, "_quota", lambda: 6)
    for given, cores in (("4", 4), (" 2,1", 2), ("64", 6), ("0", 6), ("-1", 6), ("all", 6), ("", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads.available_cores() == cores, given
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.available_cores() == 6


def test_blas_is_held_to_one_thread_whatever_thread_trains():
    seen = []

    class Look(lm.Layer):
        def forward_pass(self, ctx, x):
            if ctx.training:
                seen.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
            return x

        def backward_pass(self, ctx, dy):
            return dy

    def train():
        model = lm.Sequential([Dense(4), Look()], input_shape=4)
        model.train_on_batch(np.ones((2, 4)), np.ones((2, 4)), loss="mean_squared_error", optimizer="sgd")

    train()
    other = threading.Thread(target=train)
    other.start()
    other.join()
    assert len(seen) >= 2
    assert set(seen) == {1}


def test_threads_do_not_take_turns_where_blas_is_held():
    """A thread that gets the interpreter there keeps it for milliseconds, and all others wait."""
    usual, waits, count = sys.getswitchinterval(), threading.Lock(), 0

    def busy():
        nonlocal count
        with waits:
            while count < 10_000:
                count += 1

    with threads.blas_threads(1):  # which finds the libraries
        waits.acquire()
        worker = threading.Thread(target=busy)
        worker.start()
    sys.setswitchinterval(10)
    try:
        waits.release()
        end = time.perf_counter() + 0.05  # until the worker is awake
        while time.perf_counter() < end:
            with threads.blas_threads(1):
                pass
        seen = count
    finally:
        sys.setswitchinterval(usual)
    worker.join()
    assert (seen, count) == (0, 10_000)


def test_steps_with_several_threads_of_blas_take_turns():
    inside, most, turns = 0, 0, []

    def steps(name):
        nonlocal inside, most
        for _ in range(20):
            with threads.blas_threads(2):
                inside += 1
                most = max(most, inside)
                turns.append(name)
                time.sleep(0.001)
                inside -= 1

    workers = [threading.Thread(target=steps, args=(name,)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1
    ends = [max(k for k, name in enumerate(turns) if name == one) for one in "abc"]
    assert min(ends) > 50  # nobody is kept waiting by one who comes again and again
    assert not threads._holders
    assert not threads._waiting
