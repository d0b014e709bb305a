"""Whether `lamella serve` mixes up or loses answers, or grows, beside clients that mean no good.

    python benchmarks/serving/soak.py [--seconds 300]

Good clients send rows that nobody else sends, one to four at a time, as JSON, in binary form and packed, and compare
each answer with what onnxruntime gives these rows. Beside them others vanish in the middle, send garbage, send slowly,
send too much, or do not read their answers. At the end the server's counts must be those of the clients, its memory
what it was, and it must end when it is told to. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import random
import resource
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import orjson
import race

POOL = 4096  # rows that answers are known of
ANSWER = 1e-5  # what an answer may differ by from onnxruntime's: batches round otherwise
GOOD, BAD = 12, 3  # clients at a time: good ones of the first model, and of each kind of the others
MAX_BODY = 2  # MB
TIMEOUT = 3  # seconds that a body may take
GROWTH = 10.0  # MB that memory may grow by between the second fifth of the time and the last
LEAST = 100_000  # answers that a run of five minutes or more has to see


class WrongAnswerError(Exception):
    """An answer that is lost, mixed up, or of a kind that it must not be."""


class Rows:
    """Rows of a model with the answers that onnxruntime gives to each alone."""

    def __init__(self, path: Path, name: str, count: int) -> None:
        session = onnxruntime.InferenceSession(path)
        self.name, self.entry = name, session.get_inputs()[0].name
        self.x = models.rows(session, count)
        self.y = np.concatenate([session.run(None, {self.entry: row[None]})[0] for row in self.x])
        nearest = min(np.partition(np.abs(self.y - y).max(axis=1), 1)[1] for y in self.y)
        if nearest < 2 * ANSWER:
            raise ValueError(f"two rows have answers that are {nearest:.2g} apart: a mix-up would not be seen")


class Connection:
    """HTTP/1.1 with nothing between: what goes out is what a client wants to go out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def reset(self) -> None:
        """Vanish without a word: the server's next packet meets a closed door."""
        one = self.writer.get_extra_info("socket")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body


def post(path: str, body: bytes, **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def infer(rows: Rows, places: list[int], form: str, identifier: str) -> bytes:
    """A request for some rows of a pool."""
    x = rows.x[places]
    tensor: dict[str, Any] = {"name": rows.entry, "datatype": "FP32", "shape": x.shape}
    path = f"/v2/models/{rows.name}/infer"
    if form == "json":
        body = {"id": identifier, "inputs": [tensor | {"data": x.tolist()}]}
        return post(path, orjson.dumps(body), Content_Type="application/json")
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    asked = {"id": identifier, "inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    body, packed = head + x.tobytes(), {}
    if form == "packed":
        body, packed = gzip.compress(body, 1), {"Content_Encoding": "gzip", "Accept_Encoding": "gzip"}
    return post(path, body, Inference_Header_Content_Length=str(len(head)), **packed)


def check(rows: Rows, places: list[int], identifier: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """See that an answer is the one to these rows.

    Raises:
        WrongAnswerError: it is not.
    """
    if status != 200:
        raise WrongAnswerError(f"{identifier}: {status} {body[:300]!r}")
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    head = headers.get("inference-header-content-length")
    said = json.loads(body if head is None else body[: int(head)])
    output = said["outputs"][0]
    found = np.array(output["data"], "float32") if head is None else np.frombuffer(body[int(head) :], "float32")
    expected = rows.y[places]
    if said["id"] != identifier or said["model_name"] != rows.name or output["shape"] != list(expected.shape):
        raise WrongAnswerError(f"{identifier}: answered {json.dumps(said)[:300]}")
    worst = np.abs(found.reshape(expected.shape) - expected).max()
    if not worst <= ANSWER:
        raise WrongAnswerError(f"{identifier}: off by {worst:.3g}")


class Soak:
    """The clients, and what they counted."""

    def __init__(self, port: int, pools: list[Rows]) -> None:
        self.port, self.pools = port, pools
        self.random = random.Random(0)
        self.numbers = itertools.count()
        self.good: Counter[str] = Counter()  # answers to good clients, by model
        self.rows: Counter[str] = Counter()
        self.maybe: Counter[str] = Counter()  # whole requests of clients that did not wait for the answer, by model
        self.met: dict[str, Counter[str]] = {}  # how it ended for the others, by kind
        self.stop = asyncio.Event()

    # Good clients

    async def good_client(self, pools: list[Rows]) -> None:
        """Ask and check over one connection after another."""
        while not self.stop.is_set():
            async with Connection.to(self.port) as connection:
                for _ in range(self.random.randint(1, 500)):
                    if self.stop.is_set():
                        return
                    rows = self.random.choice(pools)
                    places = self.random.sample(range(len(rows.x)), self.random.choice((1, 1, 1, 2, 4)))
                    identifier = f"{rows.name}-{next(self.numbers)}"
                    form = self.random.choice(("json", "binary", "binary", "packed"))
                    connection.writer.write(infer(rows, places, form, identifier))
                    try:
                        answer = await asyncio.wait_for(connection.answer(), 30)
                    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                        raise WrongAnswerError(f"{identifier}: no answer, {error!r}") from error
                    check(rows, places, identifier, *answer)
                    self.good[rows.name] += 1
                    self.rows[rows.name] += len(places)

    # The others: each returns how it ended

    def _some(self, form: str = "json") -> tuple[Rows, bytes]:
        rows = self.pools[0]
        places = self.random.sample(range(len(rows.x)), 3)
        return rows, infer(rows, places, form, f"other-{next(self.numbers)}")

    async def vanishes(self, connection: Connection) -> str:
        """Goes away in the middle of a request, or before its answer."""
        rows, request = self._some(self.random.choice(("json", "binary")))
        end = self.random.choice((20, len(request) // 2, len(request) - 1, len(request)))
        if end == len(request):
            self.maybe[rows.name] += 1
        connection.writer.write(request[:end])
        await connection.writer.drain()
        await asyncio.sleep(self.random.choice((0, 0, 0.001, 0.01)))
        connection.reset()
        return "gone"

    async def sends_garbage(self, connection: Connection) -> str:
        """Sends what is no request, or no request that can be answered."""
        rows, request = self._some("binary")
        path, noise = f"/v2/models/{rows.name}/infer", self.random.randbytes(self.random.randint(1, 2000))
        tensor = {"name": rows.entry, "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * 784}
        bad: list[dict[str, Any]] = [
            {"shape": [1, 1, 28, 27]},
            {"shape": [-1, 1, 28, 28]},
            {"shape": [2**62, 4, 1, 1]},
            {"shape": "x"},
            {"data": [[0.5] * 3, [1]]},
            {"data": ["a"] * 784},
            {"data": None},
            {"datatype": "FP64"},
            {"name": "nobody"},
        ]
        sent = self.random.choice(
            [
                noise,
                b"GET / HTTP/9.9\r\n\r\n",
                post(path, noise),
                post(path, noise, Inference_Header_Content_Length=self.random.choice(("7", "-1", "99999999999", "x"))),
                post(path, noise, Content_Encoding="gzip"),
                post(path, gzip.compress(noise)[:-3], Content_Encoding="gzip"),
                post(path, b"[" * 2000),
                post(path, b"{}"),
                post(path, json.dumps({"inputs": [tensor | self.random.choice(bad)]}).encode()),
                post("/v2/models/nobody/infer", b"{}"),
                post(f"{path}/versions/7", b"{}"),
                request.replace(b"Inference-Header-Content-Length: ", b"Inference-Header-Content-Length: 1"),
            ]
        )
        connection.writer.write(sent)
        if sent is noise:
            connection.writer.write_eof()  # else the server waits for the end of what may be a head
        return await self._ended(connection)

    async def sends_slowly(self, connection: Connection) -> str:
        """Sends in small pieces: some in time, some too late."""
        rows, request = self._some("binary")
        late = self.random.random() < 0.5
        pieces = 20
        size = -(-len(request) // pieces)
        self.maybe[rows.name] += 1
        try:
            for start in range(0, len(request), size):
                connection.writer.write(request[start : start + size])
                await connection.writer.drain()
                await asyncio.sleep((3 if late else 0.3) * TIMEOUT / pieces)
        except OSError:
            return "closed" if late else "closed in time"
        ended = await self._ended(connection)
        return f"late: {ended}" if late else ended

    async def sends_too_much(self, connection: Connection) -> str:
        """Sends a body or a head without an end, or a small body that unpacks to a large one."""
        path = f"/v2/models/{self.pools[0].name}/infer"
        kind = self.random.choice(("length", "chunks", "head", "bomb"))
        with contextlib.suppress(OSError):
            if kind == "length":
                connection.writer.write(post(path, b"").replace(b"Content-Length: 0", b"Content-Length: 99999999999"))
            elif kind == "chunks":
                connection.writer.write(post(path, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            elif kind == "head":
                connection.writer.write(f"POST {path} HTTP/1.1\r\n".encode())
            else:
                connection.writer.write(post(path, gzip.compress(bytes(10**7), 9), Content_Encoding="gzip"))
                return f"{kind}: {await self._ended(connection)}"
            piece = {
                "length": bytes(16384),
                "chunks": b"4000\r\n" + bytes(16384) + b"\r\n",
                "head": b"X: " + b"x" * 8000 + b"\r\n",
            }
            for _ in range(400):  # 6 MB
                connection.writer.write(piece[kind])
                await asyncio.wait_for(connection.writer.drain(), 10)
                if connection.reader.at_eof():
                    break
        return f"{kind}: {await self._ended(connection)}"

    async def reads_nothing(self, connection: Connection) -> str:
        """Asks for a lot and leaves the answers where they are."""
        rows, request = self._some("json")
        with contextlib.suppress(OSError, TimeoutError):
            for _ in range(200):
                self.maybe[rows.name] += 1
                connection.writer.write(request)
                await asyncio.wait_for(connection.writer.drain(), 2)
        await asyncio.sleep(1)
        connection.reset()
        return "gone"

    async def _ended(self, connection: Connection) -> str:
        """The status of an answer, or that there was none.

        Raises:
            WrongAnswerError: the server says that it failed, which is not what these clients did.
        """
        try:
            status, _, body = await asyncio.wait_for(connection.answer(), 30)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return "closed"
        except TimeoutError:
            return "nothing for 30 s"
        except (KeyError, ValueError, IndexError):
            return "no HTTP"
        if status >= 500:
            raise WrongAnswerError(f"{status} for what the client did: {body[:300]!r}")
        return str(status)

    async def other_client(self, behave: Callable[[Connection], Awaitable[str]]) -> None:
        met = self.met.setdefault(behave.__name__.replace("_", " "), Counter())
        while not self.stop.is_set():
            try:
                async with Connection.to(self.port) as connection:
                    met[await behave(connection)] += 1
            except OSError as error:
                met[type(error).__name__] += 1
            await asyncio.sleep(self.random.random() * 0.1)

    async def run(self, server: race.Server, seconds: float) -> list[tuple[float, int, float]]:
        """Let all of them loose; return for each second how many answers there were, and megabytes.

        Raises:
            WrongAnswerError: an answer was wrong or lost.
        """
        shared, own = self.pools
        good = [self.good_client([shared]) for _ in range(GOOD)] + [self.good_client([own]) for _ in range(2)]
        kinds = (self.vanishes, self.sends_garbage, self.sends_slowly, self.sends_too_much, self.reads_nothing)
        others = [self.other_client(kind) for kind in kinds for _ in range(BAD)]
        seen, start = [], time.monotonic()
        tasks = [asyncio.create_task(client) for client in (*good, *others)]
        try:
            while (now := time.monotonic() - start) < seconds:
                await asyncio.sleep(min(1.0, max(0.1, seconds - now)))
                for task in tasks:
                    if task.done():
                        task.result()
                seen.append((time.monotonic() - start, self.good.total(), server.megabytes()))
                if len(seen) % max(1, int(seconds / 10)) == 0:
                    self._show(seen[-1])
            self.stop.set()
            await asyncio.gather(*tasks[: len(good)])
        finally:
            for task in tasks:
                task.cancel()
        return seen

    def _show(self, seen: tuple[float, int, float]) -> None:
        after, answers, megabytes = seen
        others = sum(met.total() for met in self.met.values())
        print(f"{after:6.0f} s {answers:>9,} answers {others:>7,} others {megabytes:8.1f} MB", flush=True)


def counts(server: race.Server, soak: Soak) -> list[str]:
    """Where the server's counts are not those of the clients."""
    wrong = []
    for rows in soak.pools:
        said = server.get(f"/v2/models/{rows.name}/stats")["model_stats"][0]
        least, most = soak.good[rows.name], soak.good[rows.name] + soak.maybe[rows.name]
        success = said["inference_stats"]["success"]["count"]
        runs = said["execution_count"]
        counted = f"{least:,} to {most:,} answers by the clients' count, {success:,} by the server's"
        print(f"{rows.name}: {counted}, in {runs:,} runs")
        if not least <= success <= most:
            wrong.append(f"{rows.name}: the server counts {success:,} answers, the clients {least:,} to {most:,}")
        if least == most and said["inference_count"] != soak.rows[rows.name]:
            wrong.append(
                f"{rows.name}: the server counts {said['inference_count']:,} rows, the clients {soak.rows[rows.name]:,}"
            )
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (%(default)s)")
    seconds = parser.parse_args(argv).seconds
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = [models.export(name, folder / "models") for name in models.MODELS]
        pools = [Rows(path, path.stem, count) for path, count in zip(paths, (POOL, 64), strict=True)]
        limits = ["--max-body", str(MAX_BODY), "--timeout", str(TIMEOUT)]
        command = ["-m", "lamella", "serve", "{model}", "--port", "{port}", *limits]
        contestant = race.Contestant("lamella", sys.executable, command, [], speaks_v2=True)
        server = race.Server(contestant, folder / "models", folder, race.Settings())
        try:
            soak = Soak(server.port, pools)
            seen = asyncio.run(soak.run(server, seconds))
            time.sleep(1)  # the last of those that went away are noticed
            wrong += counts(server, soak)
        except WrongAnswerError as error:
            wrong.append(str(error))
        else:
            for kind, met in soak.met.items():
                print(f"{kind}: {', '.join(f'{count:,} {how}' for how, count in sorted(met.items()))}")
            wrong += memory(seen)
            if seconds >= 300 and soak.good.total() < LEAST:
                wrong.append(f"{soak.good.total():,} answers, fewer than {LEAST:,}")
            server.process.terminate()
            started = time.monotonic()
            try:
                status = server.process.wait(35)
            except Exception as error:
                wrong.append(f"it does not end: {error}")
            else:
                print(f"ended with status {status} after {time.monotonic() - started:.1f} s")
        finally:
            server.close()
        logged = server.log.read_text(errors="replace").splitlines()
        wrong += [line for line in logged if "Traceback" in line or '"level": "error"' in line][:3]
        print(f"the server logged {len(logged):,} lines")
    for what in wrong:
        print(f"failed: {what}", file=sys.stderr)
    return 1 if wrong else 0


def memory(seen: list[tuple[float, int, float]]) -> list[str]:
    """Whether the server grew, once it had seen everything."""
    fifth = max(1, len(seen) // 5)
    before = statistics.median(megabytes for *_, megabytes in seen[fifth : 2 * fifth] or seen)
    after = statistics.median(megabytes for *_, megabytes in seen[-fifth:])
    print(f"memory: {before:.1f} MB in the second fifth of the time, {after:.1f} MB in the last")
    return [f"memory grew by {after - before:.1f} MB"] if after - before > GROWTH else []


if __name__ == "__main__":
    sys.exit(main())
