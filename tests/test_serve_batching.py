"""The queue before a model: requests are joined, split, limited and stopped, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from serving import SEED, TIMES, Client, tensor, values, write

from lamella_serve.batching import Cost, Limits, Queue, elements
from lamella_serve.refusals import Refusal
from lamella_serve.session import Session
from lamella_serve.statistics import Statistics

SHORT = "(float[N,K] x) => (float[N,K] y) { y = Add(x, x) }"
THREADED = """(float[N,K] x) => (float[N,K] y) <int64 once = {1}, bool yes = {1}> {
  y = Loop(once, yes, x) <body = b (int64 i, bool c, float[?,?] a) => (bool d, float[?,?] s)
    { d = Identity(c)  s = Add(a, a) }> }"""  # nothing foretells how long loops run, so they do so on threads
COUNTING = """(int64 n, float[K] x) => (float[K] y) <bool yes = {1}, float one = {1}> {
  y = Loop(n, yes, x) <body = b (int64 i, bool c, float[?] a) => (bool d, float[?] s)
    { d = Identity(c)  s = Add(a, one) }> }"""
LONG, ENDLESS = 400_000, 2**62


def served(folder, graph, **options):
    return Client(write(folder / "model.onnx", f"g {graph}"), **options)


def rows(array):
    array = np.asarray(array, "float32")
    return {"inputs": [tensor("FP32", list(array.shape), array.ravel().tolist())]}


def answer(reply):
    assert reply.status == 200, reply.body
    (output,) = reply.json["outputs"]
    return np.reshape(np.array(output["data"], "float32"), output["shape"])


def count(n, x=0.0):
    return {"inputs": [tensor("INT64", [], [n], "n"), tensor("FP32", [1], [x])]}


def stats(client):
    return client.get("/v2/models/model/stats").json["model_stats"][0]


def runs(client):
    """How many runs there were of each number of rows."""
    return {batch["batch_size"]: batch["compute_infer"]["count"] for batch in stats(client)["batch_stats"]}


# Joining


@pytest.mark.parametrize(
    ("graph", "given"),
    [
        (SHORT, [[[1, 2]], [[3, 4], [5, 6]], [[7, 8]]]),
        (THREADED, [[[1, 2]], [[3, 4], [5, 6]], [[7, 8]]]),
        ("(float[N] x) => (float[N] y) { y = Add(x, x) }", [[1], [2, 3], [4]]),
    ],
)
def test_requests_that_come_together_run_together(tmp_path, graph, given):
    client = served(tmp_path, graph)
    replies = client.infer_together("model", map(rows, given))
    for array, reply in zip(given, replies, strict=True):
        np.testing.assert_array_equal(answer(reply), 2 * np.array(array))
    assert runs(client) == {4: 1}
    counted = stats(client)
    assert (counted["inference_count"], counted["execution_count"]) == (4, 1)
    assert {name: part["count"] for name, part in counted["inference_stats"].items() if part["count"]} == dict.fromkeys(
        ["success", "queue", "compute_input", "compute_infer", "compute_output"], 3
    )


@pytest.mark.parametrize("graph", [SHORT, THREADED])
def test_each_request_gets_its_own_answer(tmp_path, graph):
    print("LAMELLA_SEED =", SEED)
    rng = np.random.default_rng(SEED)
    client = served(tmp_path, graph, max_batch_size=16)
    sent = 0
    for _ in range(10 * TIMES):
        given = [rng.standard_normal((rng.integers(1, 9), rng.choice([1, 3]))).astype("float32") for _ in range(40)]
        for array, reply in zip(given, client.infer_together("model", map(rows, given)), strict=True):
            np.testing.assert_array_equal(answer(reply), 2 * array)
        sent += sum(map(len, given))
    counted = stats(client)
    assert counted["inference_count"] == sent
    assert counted["inference_stats"]["success"]["count"] == 400 * TIMES
    assert max(runs(client)) <= 16
    assert counted["execution_count"] < 200 * TIMES


def test_only_requests_of_one_shape_are_joined(tmp_path):
    client = served(tmp_path, SHORT)
    given = [[[1]], [[1, 2]], [[3]], [[3, 4]], [[5], [6]]]
    replies = client.infer_together("model", map(rows, given))
    assert [answer(reply).tolist() for reply in replies] == [(2 * np.array(array)).tolist() for array in given]
    assert runs(client) == {4: 1, 2: 1}


def test_a_batch_has_no_more_rows_than_allowed(tmp_path):
    client = served(tmp_path, SHORT, max_batch_size=4)
    given = [np.full((n, 2), n) for n in (3, 3, 1, 4, 1, 2)]
    replies = client.infer_together("model", map(rows, given))
    assert [len(answer(reply)) for reply in replies] == [3, 3, 1, 4, 1, 2]
    assert runs(client) == {4: 3, 2: 1}  # 3 + 1, 3 + 1, 4, and 2
    assert "takes 1 to 4 rows" in client.infer("model", rows(np.zeros((5, 2)))).error


def test_answers_that_depend_on_the_batch_are_not_mixed(tmp_path):
    client = served(tmp_path, "(float[N,K] x) => (float[N,K] y) { m = ReduceMax(x)  y = Div(x, m) }")
    replies = client.infer_together("model", [rows([[n, n / 2]]) for n in (1, 1000, 10)])
    assert [answer(reply).tolist() for reply in replies] == [[[1, 0.5]]] * 3
    assert runs(client) == {1: 3}


@pytest.mark.parametrize("more", ["", "z = Range(a, b, b)"], ids=["short", "on a thread"])
def test_a_request_that_fails_does_not_fail_those_beside_it(tmp_path, more):
    weights = "float[3] t = {5, 6, 7}, int64 a = {0}, int64 b = {1}"
    client = served(tmp_path, f"(int64[N] x) => (float[N] y) <{weights}> {{ {more} y = Gather(t, x) }}")
    places = [0, 2, 99, 1, 2]
    replies = client.infer_together("model", [{"inputs": [tensor("INT64", [1], [n])]} for n in places])
    assert [reply.status for reply in replies] == [200, 200, 400, 200, 200]
    assert [values(reply) for reply in replies if reply.status == 200] == [[5], [7], [6], [7]]
    assert "indices" in replies[2].error
    assert runs(client) == {1: 4}
    assert stats(client)["inference_stats"]["fail"]["count"] == 1


def test_requests_wait_for_others_as_long_as_the_delay_says(tmp_path):
    client = served(tmp_path, SHORT, batch_delay=0.4, max_batch_size=4)

    async def one_after_another():
        tasks = []
        for n in range(6):
            tasks.append(asyncio.create_task(client.answer("POST", "/v2/models/model/infer", rows([[n]]))))
            await asyncio.sleep(0.01)
        full = [task.done() for task in tasks]
        return full, await asyncio.gather(*tasks)

    began = time.monotonic()
    full, replies = client.run(one_after_another())
    assert 0.4 <= time.monotonic() - began < 4
    assert full == [True] * 4 + [False] * 2  # a full batch waits no longer
    assert [values(reply) for reply in replies] == [[2.0 * n] for n in range(6)]
    assert runs(client) == {4: 1, 2: 1}


# The queue itself


class Model:
    """Stands for a session: doubles its input, once the gate is open, and tells where and how often it ran."""

    def __init__(self):
        self.gate, self.stops = threading.Event(), []
        self.ran = []

    def __call__(self, inputs, stop):
        self.ran.append((len(inputs["x"]), threading.current_thread() is threading.main_thread()))
        self.stops.append(stop)
        while stop is not None and not self.gate.wait(0.005):
            if stop.terminate:
                raise Refusal(400, "stopped")
        return [2 * inputs["x"]]

    def queue(self, *, joins=True, cost=None, **limits):
        return Queue(self, Limits(**limits), Statistics(), joins=joins, cost=cost)


def job(queue, value, rows=1):
    return queue.answer({"x": np.full((rows, 1), value)}, rows)


async def settled(model, runs):
    """Wait until so many runs have begun."""
    while len(model.ran) < runs:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("cost", "rows", "at_once"),
    [
        (Cost(0.15e-3, 1), 1, True),
        (Cost(0.15e-3, 1), 2, False),
        (Cost(0.15e-3, 2), 2, True),
        (Cost(0.3e-3, 100), 1, False),  # fewer elements than were measured may take as long
        (None, 1, False),
    ],
)
def test_only_runs_that_are_short_for_sure_run_without_a_thread(cost, rows, at_once):
    model = Model()
    model.gate.set()

    async def main():
        return await job(model.queue(cost=cost), 3, rows)

    assert asyncio.run(main())[0].tolist() == [[6]] * rows
    assert model.ran == [(rows, at_once)]


@pytest.mark.parametrize(("elsewhere", "at_once"), [(True, True), (False, False)], ids=["others'", "its own"])
def test_a_model_that_once_took_longer_than_was_measured_runs_on_threads(elsewhere, at_once):
    model = Model()
    model.gate.set()
    once = [True]

    def slow(inputs, stop):
        if once:
            once.clear()
            if elsewhere:  # the system was busy with others
                time.sleep(0.02)
            else:
                until = time.thread_time() + 0.005
                while time.thread_time() < until:
                    pass
        return model(inputs, stop)

    async def main():
        queue = Queue(slow, Limits(), Statistics(), joins=True, cost=Cost(0.1e-3, 1))
        for n in range(3):
            await job(queue, n)

    asyncio.run(main())
    assert model.ran == [(1, True), (1, at_once), (1, at_once)]


@pytest.mark.parametrize(
    ("array", "count"),
    [
        (np.zeros((2, 3)), 6),
        (np.zeros((2, 0, 3)), 6),  # a sum over no elements has six
        (np.zeros(()), 1),
        (np.array([["ab", ""], ["cde", "f"]], object), 10),
    ],
    ids=str,
)
def test_it_is_known_how_much_there_is_to_work_on(array, count):
    assert elements({"x": array, "y": np.zeros(4)}) == count + 4


def test_a_short_run_takes_a_thread_while_another_runs():
    model = Model()

    async def main():
        queue = model.queue(cost=Cost(0.15e-3, 1), instances=2)
        jobs = [job(queue, 1, 2)]
        await settled(model, 1)
        jobs.append(job(queue, 2))
        await settled(model, 2)
        model.gate.set()
        return await asyncio.gather(*jobs)

    assert [float(array[0, 0]) for (array,) in asyncio.run(main())] == [2, 4]
    assert model.ran == [(2, False), (1, False)]


def test_no_more_is_joined_than_takes_20_milliseconds():
    model = Model()
    model.gate.set()

    async def main():
        queue = model.queue(cost=Cost(5e-3, 1))
        return await asyncio.gather(*(job(queue, n) for n in range(10)))

    assert [float(array[0, 0]) for (array,) in asyncio.run(main())] == [2.0 * n for n in range(10)]
    assert [rows for rows, _ in model.ran] == [4, 4, 2]


@pytest.mark.parametrize("instances", [1, 3])
def test_as_many_runs_at_a_time_as_there_are_instances(instances):
    model = Model()

    async def main():
        queue = model.queue(joins=False, instances=instances)
        jobs = [job(queue, n) for n in range(5)]
        await settled(model, instances)
        await asyncio.sleep(0.02)
        assert (len(model.ran), len(queue)) == (instances, 5 - instances)
        model.gate.set()
        return await asyncio.gather(*jobs)

    assert [float(array[0, 0]) for (array,) in asyncio.run(main())] == [0, 2, 4, 6, 8]


def test_what_waits_while_a_batch_runs_is_the_next_batch():
    model = Model()

    async def main():
        queue = model.queue()
        jobs = [job(queue, 0)]
        await settled(model, 1)
        jobs += [job(queue, n) for n in range(1, 5)]
        await asyncio.sleep(0.01)
        model.gate.set()
        return await asyncio.gather(*jobs)

    assert [float(array[0, 0]) for (array,) in asyncio.run(main())] == [0, 2, 4, 6, 8]
    assert [rows for rows, _ in model.ran] == [1, 4]


def test_a_full_queue_refuses_at_once():
    model = Model()

    async def main():
        queue = model.queue(joins=False, queue=2)
        jobs = [job(queue, 0)]
        await settled(model, 1)
        jobs += [job(queue, 1), job(queue, 2)]
        with pytest.raises(Refusal, match="2 requests wait for this model already") as refused:
            job(queue, 3)
        assert refused.value.status == 429
        model.gate.set()
        await asyncio.gather(*jobs)
        job(queue, 4).cancel()

    asyncio.run(main())


def test_requests_that_were_given_up_keep_no_place_in_the_queue():
    model = Model()

    async def main():
        queue = model.queue(joins=False, queue=2)
        jobs = [job(queue, 0)]
        await settled(model, 1)
        jobs += [job(queue, 1), job(queue, 2)]
        jobs[1].cancel()
        try:
            assert len(queue) == 1
            jobs.append(job(queue, 3))
            with pytest.raises(Refusal, match="2 requests wait"):
                job(queue, 4)
        finally:
            model.gate.set()
        return await asyncio.gather(jobs[0], *jobs[2:])

    assert [float(array[0, 0]) for (array,) in asyncio.run(main())] == [0, 4, 6]
    assert len(model.ran) == 3


def test_a_request_that_takes_too_long_is_told_so_and_its_run_is_stopped():
    model = Model()

    async def main():
        queue = model.queue(joins=False, timeout=0.5)
        began = time.monotonic()
        jobs = [job(queue, 0), job(queue, 1)]
        await asyncio.sleep(0.4)
        jobs.append(job(queue, 2))
        said = await asyncio.gather(*jobs, return_exceptions=True)
        assert 0.9 <= time.monotonic() - began < 4
        assert [str(one) for one in said] == [
            "the request was not done within 0.5 seconds",
            "the request had no turn within 0.5 seconds",
            "the request was not done within 0.5 seconds",
        ]
        assert [one.status for one in said] == [503] * 3
        model.gate.set()
        return await job(queue, 5)

    assert asyncio.run(main())[0].tolist() == [[10]]
    assert [stop.terminate for stop in model.stops[:2]] == [True, True]
    assert len(model.ran) == 3  # what had no turn was never begun


def test_a_request_that_waits_for_others_too_long_is_told_so():
    model = Model()

    async def main():
        began = time.monotonic()
        with pytest.raises(Refusal, match=r"had no turn within 0.2 seconds"):
            await job(model.queue(delay=10.0, timeout=0.2), 0)
        assert time.monotonic() - began < 5

    asyncio.run(main())
    assert model.ran == []


def test_a_run_goes_on_while_somebody_waits_for_it():
    model = Model()

    async def main():
        queue = model.queue(timeout=0.6)
        first = job(queue, 0)
        await settled(model, 1)
        await asyncio.sleep(0.3)
        second = job(queue, 1)
        with pytest.raises(Refusal, match="was not done"):
            await first
        model.gate.set()
        return await second

    assert asyncio.run(main())[0].tolist() == [[2]]


def test_nobody_minds_a_request_that_was_given_up():
    model = Model()

    async def main():
        queue = model.queue()
        jobs = [job(queue, n) for n in range(3)]
        await settled(model, 1)
        jobs[1].cancel()
        model.gate.set()
        return await asyncio.gather(jobs[0], jobs[2])

    assert [float(array[0, 0]) for (array,) in asyncio.run(main())] == [0, 4]


@pytest.mark.parametrize(("joins", "runs"), [(True, [10]), (False, [2, 8])])
def test_a_request_that_is_cancelled_before_its_turn_is_not_run(joins, runs):
    model = Model()

    async def main():
        queue = model.queue(joins=joins, cost=Cost(1e-9, 1))
        jobs = [job(queue, 1, rows) for rows in (1, 2, 4, 8)]
        jobs[0].cancel()
        jobs[2].cancel()
        await asyncio.gather(jobs[1], jobs[3])

    asyncio.run(main())
    assert [rows for rows, _ in model.ran] == runs


def test_a_run_that_all_have_cancelled_is_stopped():
    model = Model()

    async def main():
        queue = model.queue()
        jobs = [job(queue, n) for n in range(2)]
        await settled(model, 1)
        jobs[0].cancel()
        await asyncio.sleep(0.02)
        assert not model.stops[0].terminate
        jobs[1].cancel()
        last = job(queue, 3)
        async with asyncio.timeout(10):
            await settled(model, 2)  # the gate is still closed
        model.gate.set()
        return await last

    assert asyncio.run(main())[0].tolist() == [[6]]
    assert model.stops[0].terminate


# With onnxruntime


def test_a_loop_that_does_not_end_is_stopped(tmp_path):
    client = served(tmp_path, COUNTING, timeout=1)
    assert values(client.infer("model", count(1000))) == [1000]
    began = time.monotonic()
    replies = client.infer_together("model", [count(ENDLESS), count(1)])
    assert 1 <= time.monotonic() - began < 5
    assert [reply.status for reply in replies] == [503, 503]
    assert "was not done within 1 seconds" in replies[0].error
    assert values(client.infer("model", count(2))) == [2]  # the only instance is free again


def test_an_instance_answers_while_another_is_busy(tmp_path):
    client = served(tmp_path, COUNTING, instances=2)

    async def main():
        long = asyncio.create_task(client.answer("POST", "/v2/models/model/infer", count(LONG)))
        short = await asyncio.gather(*(client.answer("POST", "/v2/models/model/infer", count(n)) for n in range(5)))
        assert not long.done()
        return [*short, await long]

    assert [values(reply) for reply in client.run(main())] == [[0], [1], [2], [3], [4], [LONG]]


def test_the_event_loop_is_free_while_a_model_runs(tmp_path):
    client = served(tmp_path, COUNTING, max_queue=2)

    async def main():
        long = asyncio.create_task(client.answer("POST", "/v2/models/model/infer", count(LONG)))
        await asyncio.sleep(0.05)
        assert (await client.answer("GET", "/v2/health/live")).status == 200
        others = [client.answer("POST", "/v2/models/model/infer", count(1)) for _ in range(3)]
        tasks = [long, *map(asyncio.create_task, others)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [task.done() for task in tasks] == [False, False, False, True]
        return await asyncio.gather(*tasks)

    *answered, refused = client.run(main())
    assert [values(reply) for reply in answered] == [[LONG], [1], [1]]
    assert (refused.status, "2 requests wait for this model already" in refused.error) == (429, True)


@pytest.mark.parametrize(
    ("graph", "open_ended"),
    [
        (SHORT, False),
        (THREADED, True),
        (COUNTING, True),
        ("(float[N] x, bool c) => (float[N] y) <int64 n = {9}> { y = If(c) <then_branch = t () => (float[N] a) "
         "{ a = Loop(n, c, x) <body = b (int64 i, bool c, float[?] u) => (bool d, float[?] v) "
         "{ d = Identity(c)  v = Neg(u) }> }, else_branch = e () => (float[N] b) { b = Neg(x) }> }", True),
        ("(int64 n) => (int64[K] y) <int64 a = {0}, int64 b = {1}> { y = Range(a, n, b) }", True),
        ("(float[N] x) => (float[N] y) <int64[1] s = {1}> { y = Expand(x, s) }", False),
        ("(int64[N] x) => (int64[N] y) { y = Add(x, x) }", False),
        ("(float n) => (int64[K] y) <int64 a = {0}, int64 b = {1}> { m = Cast<to=7>(n)  y = Range(a, m, b) }", True),
        ("(int64 n) => (float[K] y) { y = HannWindow(n) }", True),
        ("(float[N,K] x, int64[1] k) => (float[N,M] y, int64[N,M] z) { y, z = TopK(x, k) }", True),
        ("(float[N,K] x) => (float[N,3] y, int64[N,3] z) <int64[1] k = {3}> { y, z = TopK(x, k) }", False),
        ("(float[N,K] x) => (float[N,K] y) <float b = {0}> "
         "{ s = Shape(x)  t = Abs(s)  z = Expand(b, t)  y = Add(x, z) }", False),
        ("(float[N] x, bool c) => (float[N] y) { y = If(c) <then_branch = t () => (float[N] a) { a = Abs(x) }, "
         "else_branch = e () => (float[N] b) { b = Neg(x) }> }", True),
    ],
)  # fmt: skip
def test_it_is_known_which_models_take_longer_for_some_values(tmp_path, graph, open_ended):
    session = Session(write(tmp_path / "model.onnx", f"g {graph}"), external_data=False, threads=1)
    assert session.open_ended is open_ended
