"""``lamella serve`` as a process: it starts, tells where, answers, and ends without dropping what it accepted."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import one, tensor, write

from lamella import cli

SAME = "g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }"
COUNTING = """g (int64 n, float[1] x) => (float[1] y) <bool yes = {1}, float one = {1}> {
  y = Loop(n, yes, x) <body = b (int64 i, bool c, float[?] a) => (bool d, float[?] s)
    { d = Identity(c)  s = Add(a, one) }> }"""
LONG, ENDLESS = 150_000, 2**62
HOST = "::1" if socket.has_dualstack_ipv6() else "127.0.0.1"


class Server:
    """A process that serves, and what it wrote."""

    def __init__(self, *arguments, grace=30):
        program = (
            f"import sys, lamella.cli as cli, lamella_serve.server as server; server._GRACE = {grace}; "
            "sys.exit(cli.main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", program, "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.written = ""
        while not (found := re.search(r"listening on http://(\S+):(\d+)", self.written)):
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.communicate()[1])
            self.written += line
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=20)

    def ask(self, method, path, body=None, **headers):
        """Send a request, and return the status and the body of the answer."""
        with contextlib.closing(self.connect()) as connection:
            return self.ask_on(connection, method, path, body, **headers)

    def ask_on(self, connection, method, path, body=None, **headers):
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()

    def end(self, sign=signal.SIGTERM):
        """Send a signal, and return the exit status and what was logged."""
        self.process.send_signal(sign)
        _, logged = self.process.communicate(timeout=20)
        return self.process.returncode, [json.loads(line) for line in logged.splitlines()]


@pytest.fixture
def start():
    servers = []

    def started(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield started
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


def values(status, body):
    assert status == 200, body
    return json.loads(body)["outputs"][0]["data"]


def count(n):
    return {"inputs": [tensor("INT64", [], [n], "n"), tensor("FP32", [1], [0])]}


def test_a_server_tells_where_it_listens_answers_and_ends(tmp_path, start):
    (tmp_path / "token").write_text("secret\n")
    write(tmp_path / "digits.onnx", SAME)
    write(tmp_path / "sums.onnx", "g (float[N,3] x) => (float[N,3] y) { y = CumSum(x, a) }", {"a": 0})
    server = start(tmp_path, "--token-file", tmp_path / "token", "--access-log", "--max-batch-size", 5)
    assert re.search(r"digits +1 +x FP32\[-1, 3\] +y FP32\[-1, 3\] .* joined", server.written)
    assert re.search(r"sums +1 .* one by one: answers depend on the batch", server.written)
    assert server.ask("GET", "/v2/health/ready") == (200, b"")
    assert server.ask("GET", "/v2")[0] == 401
    secret = {"Authorization": "Bearer secret"}
    assert values(*server.ask("POST", "/v2/models/digits/infer", one([1, 2, 3]), **secret)) == [1, 2, 3]
    config = json.loads(server.ask("GET", "/v2/models/digits/config", **secret)[1])
    assert config["max_batch_size"] == 5
    status, logged = server.end()
    assert status == 0
    assert [(line["event"], line.get("model")) for line in logged[:2]] == [("loaded", "digits"), ("loaded", "sums")]
    assert [(line["call"], line["status"]) for line in logged if line["event"] == "answered"] == [
        ("GET /v2/health/ready", 200),
        ("GET /v2", 401),
        ("POST /v2/models/digits/infer", 200),
        ("GET /v2/models/digits/config", 200),
    ]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_the_end(tmp_path, start, sign):
    server = start(write(tmp_path / "counter.onnx", COUNTING))
    with contextlib.closing(server.connect()) as idle, ThreadPoolExecutor() as threads:
        assert server.ask_on(idle, "GET", "/v2/health/ready") == (200, b"")
        asked = [threads.submit(server.ask, "POST", "/v2/models/counter/infer", count(LONG)) for _ in range(3)]
        while b'lamella_queue_requests{model="counter",version="1"} 2.0' not in server.ask("GET", "/metrics")[1]:
            assert not any(one.done() for one in asked)  # one runs, two wait
        status, logged = server.end(sign)
        for one in asked:
            assert values(*one.result()) == [LONG]
    assert status == 0
    assert [line["event"] for line in logged] == ["loaded", "ends when what it accepted is answered"]
    with pytest.raises(OSError, match="refused"):
        server.ask("GET", "/v2/health/live")


def test_a_run_that_does_not_end_holds_no_server(tmp_path, start):
    server = start(write(tmp_path / "counter.onnx", COUNTING), grace=0.3)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(server.ask, "POST", "/v2/models/counter/infer", count(ENDLESS))
        while b'lamella_queue_requests{model="counter"' not in server.ask("GET", "/metrics")[1]:
            pass
        time.sleep(0.1)
        began = time.monotonic()
        status, _ = server.end(signal.SIGINT)
        assert 0.3 <= time.monotonic() - began < 5
        assert asked.result() == (503, b'{"error":"the server is shutting down"}')
    assert status == 0


APART = """g (int64[1] n) => (int64 k) <int64 a = {0}, int64 b = {1}, float ten = {10}, float unit = {1}> {
  m = Squeeze(n)  r = Range(a, m, b)  f = Cast<to=1>(r)  low = Mul(f, ten)  high = Add(low, unit)
  ends = Constant<value_ints=[1, -1, 1]>()  l = Reshape(low, ends)  h = Reshape(high, ends)
  boxes = Concat<axis=2>(l, l, h, h)  row = Constant<value_ints=[1, 1, -1]>()  scores = Reshape(f, row)
  kept = NonMaxSuppression(boxes, scores, n)  k = Size(kept) }"""  # compares each box with all others


def test_an_operator_that_takes_long_holds_no_server(tmp_path, start):
    server = start(write(tmp_path / "boxes.onnx", APART), grace=0.3)
    request = {"inputs": [tensor("INT64", [1], [400_000], "n")]}  # a minute or two
    assert values(*server.ask("POST", "/v2/models/boxes/infer", {"inputs": [tensor("INT64", [1], [9], "n")]})) == [27]
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(server.ask, "POST", "/v2/models/boxes/infer", request)
        time.sleep(0.3)
        began = time.monotonic()
        status, logged = server.end()
        assert time.monotonic() - began < 10
        assert asked.result()[0] == 503
    assert status == 0
    assert [line["event"] for line in logged][:2] == ["loaded", "ends when what it accepted is answered"]


def test_nothing_is_worked_on_for_clients_that_have_gone(tmp_path, start):
    server = start(write(tmp_path / "counter.onnx", COUNTING))
    for _ in range(3):
        with contextlib.closing(server.connect()) as connection:
            connection.request("POST", "/v2/models/counter/infer", json.dumps(count(ENDLESS)))
            time.sleep(0.1)
    assert values(*server.ask("POST", "/v2/models/counter/infer", count(2))) == [2]
    metrics = server.ask("GET", "/metrics")[1]
    assert b'lamella_requests_total{model="counter",status="499",version="1"} 3.0' in metrics
    assert b'lamella_queue_requests{model="counter",version="1"} 0.0' in metrics


def test_clients_get_their_own_answers_over_the_network(tmp_path, start):
    server = start(write(tmp_path / "same.onnx", SAME), "--host", HOST)

    def ask(number):
        with contextlib.closing(server.connect()) as connection:
            for k in range(50):
                row = [number, k, number * k]
                assert values(*server.ask_on(connection, "POST", "/v2/models/same/infer", one(row))) == row

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    (stats,) = json.loads(server.ask("GET", "/v2/models/stats")[1])["model_stats"]
    assert stats["inference_count"] == 400


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nowhere.onnx", "nowhere.onnx: there is no such file or folder"),
        ("damaged.onnx", "damaged.onnx: this is no ONNX file, or it is damaged"),
        ("same.onnx --port 99999", "--port: expected an int of at most 65535, got 99999"),
        ("same.onnx --grpc-port -1", "--grpc-port: expected an int of at least 0, got -1"),
        ("same.onnx --max-batch-size 0", "--max-batch-size: expected a positive int, got 0"),
        ("same.onnx --batch-delay -1", "--batch-delay: expected"),
        ("same.onnx --instances 0", "--instances: expected a positive int, got 0"),
        ("same.onnx --max-queue 0", "--max-queue: expected a positive int, got 0"),
        ("same.onnx --max-body nan", "--max-body: expected"),
        ("same.onnx --max-body 1e-9", "--max-body: expected a positive int, got 0"),
        ("same.onnx --timeout 0", "--timeout: expected"),
        ("same.onnx --token-file none", "none: No such file or directory"),
        ("same.onnx --token-file .", ".: Is a directory"),
        ("same.onnx --token-file empty", "--token-file empty: expected one word of printable ASCII"),
        ("same.onnx --token-file words", "--token-file words: expected one word of printable ASCII"),
        ("same.onnx --token-file latin", "--token-file latin: expected one word of printable ASCII"),
        ("same.onnx --host nowhere.invalid", ""),  # in the system's own words
        ("same.onnx --host 192.0.2.1", "assign requested address"),
        ("same.onnx --port {taken}", "is taken; take another by --port"),
    ],
)
def test_what_can_t_be_served_ends_in_one_clear_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lamella_serve.logs.set_up", lambda access: None)  # or it would take the log from other tests
    write(tmp_path / "same.onnx", SAME)
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "words").write_text("two words")
    (tmp_path / "latin").write_bytes("grün".encode("latin-1"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status = cli.main(["serve", *arguments.format(taken=taken.getsockname()[1]).split()])
    written, said = capsys.readouterr()
    assert (status, written) == (2, "")
    assert said.startswith("lamella: ")
    assert reason in said
    assert said.count("\n") == 1
