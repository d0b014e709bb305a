"""What a client may make the server hold, and for how long: uvicorn's connection with lamella's limits."""

import asyncio
import json
import select
import socket
import threading
import time

import pytest
import uvicorn

from lamella_serve.http import connection
from lamella_serve.http.connection import MAX_HEAD_BYTES, MAX_HEADERS, Connection

LARGE = 32_000_000  # bytes; more than the sockets between a server and its client take
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"  # as Java's client sends


async def application(scope, receive, send):
    """Tells what it received; /early and /begun start before the body, /large tells much, /late takes 0.6 s."""
    assert scope["type"] == "http"
    body = b""
    if scope["path"] == "/begun":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    if scope["path"] == "/late":
        await asyncio.sleep(0.6)
    names = [name.decode() for name, _ in scope["headers"]]
    told = json.dumps({"path": scope["path"], "body": body.decode(), "headers": names}).encode()
    if scope["path"] == "/large":
        told = b" " * LARGE
    headers = [(b"content-length", b"%d" % len(told))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


class Running:
    """A server in a thread, and clients that speak to it byte by byte."""

    def __init__(self, **options):
        self.listener = socket.create_server(("127.0.0.1", 0))
        settings = {"http": Connection, "ws": "none", "lifespan": "off", "log_config": None, **options}
        self.server = uvicorn.Server(uvicorn.Config(application, **settings))
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.clients = []
        self.thread.start()

    def client(self, sent=b""):
        client = socket.create_connection(self.listener.getsockname(), timeout=10)
        self.clients.append(client)
        client.sendall(sent)
        return client

    def wait_until_left(self, seconds=5.0):
        end = time.monotonic() + seconds
        while self.server.server_state.connections and time.monotonic() < end:
            time.sleep(0.01)
        return not self.server.server_state.connections

    def leave(self):
        while self.clients:
            self.clients.pop().close()

    def end(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def servers():
    running = {}
    yield running
    for server in running.values():
        server.end()


@pytest.fixture
def serve(servers):
    """Return a server with such options; tests share them, since one takes 0.4 s to start and end."""

    def start(**options):
        key = tuple(options.items())
        if key not in servers:
            servers[key] = Running(**options)
        return servers[key]

    yield start
    for server in servers.values():
        server.leave()
        assert server.wait_until_left()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 0.3)
    monkeypatch.setattr(connection, "GLANCE", 0.02)


def answers(client, count=None):
    """Read that many answers, or all until the server closes: a list of status and JSON."""
    found = []
    with client.makefile("rb") as stream:
        while count is None or len(found) < count:
            line = stream.readline()
            if not line:
                break
            length = 0
            while (field := stream.readline().strip().lower()) != b"":
                if field.startswith(b"content-length:"):
                    length = int(field.split(b":")[1])
            found.append((int(line.split()[1]), json.loads(stream.read(length))))
    return found


def send_until_answered(client, first, more):
    """Send a little now and then until the server answers or closes; return the seconds that took."""
    start = time.monotonic()
    client.sendall(first)
    while time.monotonic() < start + 5 and not select.select([client], [], [], 0.02)[0]:
        client.sendall(more)
    return time.monotonic() - start


def post(path=b"/", body=b"", fields=b""):
    return b"POST %s HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n%s" % (path, fields, len(body), body)


def filled(start, total=MAX_HEAD_BYTES + 1):
    """The start of a request and more of the same, one byte more than the server takes."""
    return start + b"a" * (total - len(start))


@pytest.mark.parametrize(
    "head",
    [
        filled(b"GET /"),
        filled(b"GET / HTTP/1.1\r\n"),
        filled(b"GET / HTTP/1.1\r\nname: "),
        b"\r\n" * (MAX_HEAD_BYTES // 2 + 1),
        b"GET / HTTP/1.1\r\n" + b"".join(b"n%d: v\r\n" % i for i in range(MAX_HEADERS + 2)),
    ],
    ids=["path", "name", "value", "empty lines", "many"],
)
def test_a_head_without_end_is_refused(serve, head):
    server = serve()
    [(status, told)] = answers(server.client(head))
    assert status == 431
    assert "head" in told["error"]
    assert server.wait_until_left()


def test_a_large_head_is_served(serve):
    fields = b"large: %s\r\n" % (b"v" * 60_000) + b"".join(b"n%d: v\r\n" % i for i in range(MAX_HEADERS - 3))
    [(status, told)] = answers(serve().client(post(fields=fields)), 1)
    assert status == 200
    assert len(told["headers"]) == MAX_HEADERS


def test_a_kept_connection_has_no_sum_of_heads(serve):
    client = serve().client()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nlarge: %s\r\n\r\n" % (b"v" * 1000)
    for _ in range(MAX_HEAD_BYTES // len(head) + 10):
        client.sendall(head)
        assert answers(client, 1)[0][0] == 200


@pytest.mark.parametrize("rest", [b"0\r\nname: ", b"1;"], ids=["trailer", "extension of a chunk"])
def test_what_stands_between_parts_of_a_body_has_an_end(serve, rest):
    server = serve()
    client = server.client(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n")
    time.sleep(0.1)  # the head is a read of its own
    client.sendall(filled(rest))
    [(status, _)] = answers(client)
    assert status == 431
    assert server.wait_until_left()


def test_trailers_do_not_reach_the_headers(serve):
    client = serve().client(
        b"POST /late HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nAuthorization: x\r\n\r\n" + post()
    )
    [(_, first), (_, second)] = answers(client, 2)
    assert first == {"path": "/late", "body": "b", "headers": ["transfer-encoding"]}
    assert second["headers"] == ["host", "content-length"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [0, 1])
def test_a_head_that_takes_too_long_is_refused(serve, before):
    server = serve()
    client = server.client(post() * before)
    assert len(answers(client, before)) == before
    seconds = send_until_answered(client, b"GET /", b"a")
    assert 0.2 < seconds < 10
    [(status, told)] = answers(client)
    assert status == 408
    assert "head" in told["error"]
    assert server.wait_until_left()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("sent", "statuses"), [(b"", []), (b"GET / HTTP/1.1\r\nHo", [408]), (b"\r\n", [408])])
@pytest.mark.parametrize("before", [0, 1])
def test_silence_ends_the_connection(serve, before, sent, statuses):
    server = serve(timeout_keep_alive=1)
    client = server.client(post() * before)
    assert len(answers(client, before)) == before
    start = time.monotonic()
    client.sendall(sent)
    assert [status for status, _ in answers(client)] == statuses
    assert 0.2 < time.monotonic() - start < 10


@pytest.mark.usefixtures("impatient")
def test_a_kept_connection_rests_as_long_as_uvicorn_is_told(serve):
    client = serve(timeout_keep_alive=2).client(post())
    assert len(answers(client, 1)) == 1
    time.sleep(1)
    client.sendall(post())
    assert len(answers(client, 1)) == 1


@pytest.mark.usefixtures("impatient")
def test_an_application_may_take_its_time(serve):
    assert [status for status, _ in answers(serve().client(post(b"/late")), 1)] == [200]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("loop", ["asyncio", "auto"])
@pytest.mark.parametrize("closes", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_dropped(serve, loop, closes):
    server = serve(loop=loop)
    client = server.client(post(b"/large", fields=closes))
    time.sleep(0.1)
    assert server.wait_until_left(), "the server still holds the connection"
    client.close()


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_an_answer_that_is_read_slowly_arrives(serve, loop, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    monkeypatch.setattr(connection, "GLANCE", 0.02)
    client = serve(loop=loop).client(post(b"/large", fields=b"Connection: close\r\n"))
    received = 0
    start = time.monotonic()
    while part := client.recv(500_000):
        received += len(part)
        time.sleep(0.03)
    assert received > LARGE
    assert time.monotonic() - start > 1.5


@pytest.mark.usefixtures("impatient")
def test_the_rest_of_a_body_is_read_for_a_while_only(serve):
    server = serve()
    client = server.client(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n")
    assert answers(client, 1)[0][0] == 200
    assert 0.2 < send_until_answered(client, b"b" * 10_000, b"b" * 10_000) < 2
    assert server.wait_until_left()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("fields", [OFFER, b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_offers_to_upgrade_are_ignored(serve, version, fields, pause):
    head, body = post(b"/a", b"x" * 50, fields).replace(b"1.1", version).split(b"\r\n\r\n")
    client = serve().client(head + b"\r\n\r\n")
    time.sleep(pause)
    client.sendall(body)
    [(status, told)] = answers(client, 1)
    assert status == 200
    assert told["body"] == "x" * 50
    assert "upgrade" not in told["headers"]


def test_a_body_behind_an_offer_is_no_request(serve):
    client = serve().client()
    inner = b"GET /inner HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    client.sendall(post(b"/outer", b"", OFFER).replace(b"Content-Length: 0", b"Content-Length: %d" % len(inner)))
    time.sleep(0.1)
    client.sendall(inner + post(b"/next", fields=b"Connection: close\r\n"))
    assert [(told["path"], told["body"]) for _, told in answers(client)] == [("/outer", inner.decode()), ("/next", "")]


def test_many_offers_in_one_read(serve):
    count = 300
    client = serve().client(b"".join(post(b"/%d" % i, b"b" * i, OFFER) for i in range(count)))
    assert [told["body"] for _, told in answers(client, count)] == ["b" * i for i in range(count)]


def test_an_offer_in_a_chunked_request_that_closes(serve):
    fields = b"Transfer-Encoding: chunked\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n"
    client = serve().client(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n3\r\nabc\r\n0\r\n\r\n" + post())
    assert [told["body"] for _, told in answers(client)] == ["abc"]


@pytest.mark.parametrize(
    "sent",
    [b"GARBAGE\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"CONNECT / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"],
)
def test_what_is_no_request_is_refused(serve, sent):
    [(status, told)] = answers(serve().client(sent))
    assert status == 400
    assert told == {"error": "this is not a valid HTTP/1.1 request"}


def test_a_broken_body_is_refused(serve):
    client = serve().client(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
    assert [status for status, _ in answers(client)] == [400]


@pytest.mark.parametrize("before", [1, 3])
def test_garbage_takes_no_answer_from_the_requests_before_it(serve, before):
    server = serve()
    client = server.client(post(b"/late") * before + b"GARBAGE\r\n\r\n")
    assert [status for status, _ in answers(client, before)] == [200] * before
    assert server.wait_until_left(1)


def test_a_broken_body_takes_no_answer_from_a_request_before_it(serve):
    client = serve().client(post(b"/late") + b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
    assert [status for status, _ in answers(client, 1)] == [200]


def test_a_broken_body_leaves_an_answer_that_has_begun(serve):
    client = serve().client(b"POST /begun HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    received = b""
    while not received.endswith(b"begun"):
        received += client.recv(1000)
    client.sendall(b"nonsense\r\n")
    assert client.recv(1000) == b""


@pytest.mark.usefixtures("impatient")
def test_nothing_runs_on_for_a_client_that_left(serve, monkeypatch):
    looks = []
    look = Connection._look_at_clock
    monkeypatch.setattr(Connection, "_look_at_clock", lambda self: looks.append(self) or look(self))
    server = serve()
    server.client(post())
    time.sleep(0.1)
    server.leave()
    assert server.wait_until_left()
    seen = len(looks)
    assert seen > 0
    time.sleep(0.1)
    assert len(looks) == seen
