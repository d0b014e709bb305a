"""Servers as processes of their own, what they must answer, and rounds in which they take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FORMS = ("json", "binary")
CLIENTS = (1, 16, 64)
ANSWER = 1e-5  # what an answer may differ by from onnxruntime's: batches round otherwise
WARM = 30  # requests before a turn that are not counted
PAUSE = 0.1  # seconds before a turn: threads of the one before spin a while before they sleep


class ContestantError(Exception):
    """A server that failed, hung, or answers something else."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A server, and the interpreter that has it.

    Attributes:
        packages: those whose versions count.
        speaks_v2: whether it speaks the Open Inference Protocol.
        polls: whether it looks for work all the time, and so is stopped while others take their turns. The rest sleep,
            and Triton does not survive being stopped.
    """

    label: str
    python: str
    command: Sequence[str]  # what the interpreter is given before the model, with {model} and {port}
    packages: Sequence[str]
    speaks_v2: bool = False
    polls: bool = False

    @property
    def is_peer(self) -> bool:
        return self.label != "lamella"

    def versions(self) -> dict[str, str]:
        """The versions of its packages.

        Raises:
            ContestantError: it is not installed.
        """
        ask = "import sys, json; from importlib.metadata import version; "
        ask += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        try:
            said = subprocess.run([self.python, "-c", ask, *self.packages], capture_output=True, text=True)
        except OSError as error:
            raise ContestantError(f"{self.python} can't be run: {error.strerror}") from error
        if said.returncode:
            raise ContestantError(said.stderr.strip().splitlines()[-1])
        found: dict[str, str] = json.loads(said.stdout)
        return found


def contestants() -> list[Contestant]:
    """All servers. ``make bench-serving`` makes the environments of the peers, ``make judge`` that of Triton."""

    def peer(
        label: str, *packages: str, environment: str = "", arguments: Sequence[str] = (), **about: bool
    ) -> Contestant:
        name = label.lower()
        python = ROOT / (environment or f".bench/{name}") / "bin" / "python"
        command = [str(HERE / f"in_{name}.py"), "{model}", "{port}", *arguments]
        return Contestant(label, str(python), command, [*packages, "onnxruntime"], **about)

    serve = ["-m", "lamella", "serve", "{model}", "--port", "{port}"]
    return [
        Contestant("lamella", sys.executable, serve, ["lamella", "uvicorn", "onnxruntime"], speaks_v2=True),
        peer("FastAPI", "fastapi", "uvicorn"),
        peer("mosec", "mosec"),
        peer("LitServe", "litserve", polls=True),
        peer("KServe", "kserve", speaks_v2=True),
        peer("Triton", "nvidia-pytriton", environment=".judge", arguments=[sys.executable], speaks_v2=True),
    ]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long everything takes."""

    rounds: int = 5
    seconds: int = 2  # a turn lasts
    timeout: float = 60.0  # seconds that a server may take to start


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client sends: one row of a model, in one form."""

    path: str
    headers: Mapping[str, str]
    body: bytes


def request(contestant: Contestant, model: str, form: str, name: str, x: np.ndarray) -> Request:
    """The request for a row, as this server wants it."""
    tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": x.shape}
    plain = {"shape": x.shape, "data": x.ravel().tolist()}
    match form, contestant.speaks_v2:
        case "json", True:
            body = {"inputs": [tensor | plain]}
            return Request(f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, json.dumps(body).encode())
        case "json", False:
            return Request("/json", {"Content-Type": "application/json"}, json.dumps(plain).encode())
        case "binary", True:
            tensor["parameters"] = {"binary_data_size": x.nbytes}
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
            return Request(f"/v2/models/{model}/infer", headers, head + x.tobytes())
        case _:
            return Request("/binary", {"Content-Type": "application/octet-stream"}, x.tobytes())


def values(contestant: Contestant, form: str, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    """The numbers in an answer."""
    if form == "json":
        said = json.loads(body)
        return np.array((said["outputs"][0] if contestant.speaks_v2 else said)["data"], "float32")
    head = int(headers["Inference-Header-Content-Length"]) if contestant.speaks_v2 else 0
    return np.frombuffer(body[head:], "float32")


class Server:
    """A contestant's process, with those that it starts."""

    def __init__(self, contestant: Contestant, model: Path, folder: Path, settings: Settings) -> None:
        self.contestant, self.port = contestant, free_port()
        self.log = folder / f"{contestant.label}.txt"
        command = [part.format(model=model, port=self.port) for part in contestant.command]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [contestant.python, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"TMPDIR": str(folder)},
                start_new_session=True,
            )
        self._wait(settings.timeout)

    def _wait(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        path = "/v2/health/ready" if self.contestant.speaks_v2 else "/"
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection,
            ):
                connection.request("GET", path)
                if connection.getresponse().status == 200 or not self.contestant.speaks_v2:
                    return
            time.sleep(0.05)
        self.close()
        raise ContestantError(f"{self.contestant.label} is not ready after {timeout:g} s:\n{self.said()}")

    def ask(self, what: Request, count: int = 1) -> tuple[Mapping[str, str], bytes, list[float]]:
        """Send a request again and again over one connection; return the last answer, and the seconds of each.

        Raises:
            ContestantError: an answer is an error, or there is none.
        """
        seconds = []
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            for _ in range(count):
                start = time.perf_counter()
                connection.request("POST", what.path, what.body, dict(what.headers))
                answer = connection.getresponse()
                body = answer.read()
                seconds.append(time.perf_counter() - start)
                if answer.status != 200:
                    raise ContestantError(f"{self.contestant.label} answers {answer.status}: {body[:500]!r}")
        except (OSError, http.client.HTTPException) as error:
            raise ContestantError(f"{self.contestant.label} does not answer: {error!r}\n{self.said()}") from error
        finally:
            connection.close()
        return answer.headers, body, seconds

    def get(self, path: str) -> Any:
        """The JSON at an address.

        Raises:
            ContestantError: there is none.
        """
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise ContestantError(f"{self.contestant.label}, {path}: {answer.status} {body[:500]!r}")
        return json.loads(body)

    def check(self, what: Request, form: str, expected: np.ndarray) -> None:
        """See that it answers what onnxruntime does.

        Raises:
            ContestantError: it does not.
        """
        headers, body, _ = self.ask(what)
        try:
            found = values(self.contestant, form, headers, body)
        except (TypeError, ValueError, LookupError):  # it is of another form
            found = np.empty(0)
        if found.shape != (expected.size,) or not np.abs(found - expected.ravel()).max() <= ANSWER:
            raise ContestantError(f"{self.contestant.label} answers something else in {form}: {body[:500]!r}")

    def pause(self) -> None:
        """Stop it while others take their turns, if it would disturb them."""
        if self.contestant.polls:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def megabytes(self) -> float:
        """The memory of its processes; what some share counts once."""
        total = 0
        for process in self._processes():
            with contextlib.suppress(OSError):
                found = re.search(r"^Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
        return total / 1024

    def said(self) -> str:
        """The end of what it printed."""
        return "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-30:])

    def close(self) -> None:
        """End it and all that it started; first as it wants to end."""
        self.resume()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _processes(self) -> list[Path]:
        """Those in its session, by their folders in /proc."""
        return [
            folder
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and session(folder) == self.process.pid
        ]

    def _signal(self, number: int) -> None:
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), number)


def session(process: Path) -> int | None:
    """The session of a process, if there is one still; the fields before it follow the name's closing bracket."""
    with contextlib.suppress(OSError):
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    return None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wrk(server: Server, what: Request, clients: int, seconds: int) -> dict[str, float]:
    """What wrk sees with so many clients: answers a second, and milliseconds that half and 99 of 100 stay below.

    Raises:
        ContestantError: an answer was an error or none came.
    """
    headers = [part for name, value in what.headers.items() for part in ("-H", f"{name}: {value}")]
    url = f"http://127.0.0.1:{server.port}{what.path}"
    command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{seconds}s", "--timeout", "10s", *headers]
    with tempfile.NamedTemporaryFile() as body:
        body.write(what.body)
        body.flush()
        command += ["-s", str(HERE / "wrk.lua"), url, "--", body.name]
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    if found["failed"] or not found["requests"]:
        label = server.contestant.label
        raise ContestantError(f"{label}, {clients} clients: {found['failed']:g} of {found['requests']:g} failed")
    return {"rate": found["requests"] / found["seconds"], "p50": found["p50"], "p99": found["p99"]}


def run(
    name: str,
    path: Path,
    chosen: Sequence[Contestant],
    settings: Settings,
    errors: dict[str, str],
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Race with one model: start all, see that they answer right, then let them take turns, form after form.

    Yields for each form and number of clients its name and its result. A server that fails is out of the race, and
    `errors` says why.
    """
    session = onnxruntime.InferenceSession(path)
    entry = session.get_inputs()[0].name
    x = models.rows(session, 1)
    expected = session.run(None, {entry: x})[0]
    servers: list[Server] = []
    with tempfile.TemporaryDirectory(prefix="lamella-serving-") as folder:
        try:
            for one in chosen:
                with failing(errors, f"{name}, {one.label}"):
                    servers.append(Server(one, path, Path(folder), settings))
            for form in FORMS:
                asked = {}
                for server in servers:
                    server.resume()
                    what = request(server.contestant, name, form, entry, x)
                    with failing(errors, f"{name}, {form}, {server.contestant.label}"):
                        server.check(what, form, expected)
                        asked[server] = what
                    server.pause()
                for clients in CLIENTS:
                    alone: list[float] = []
                    turns: dict[str, list[dict[str, float]]] = {server.contestant.label: [] for server in asked}
                    for k in range(settings.rounds):
                        for server in list(asked)[:: -1 if k % 2 else 1]:
                            label = server.contestant.label
                            where = f"{name}, {form}, {clients} clients, {label}"
                            progress(f"{where}: round {k + 1} of {settings.rounds}")
                            with failing(errors, where) as failed:
                                turns[label].append(take(server, asked[server], clients, settings))
                            if failed:
                                del asked[server], turns[label]
                        if clients == 1:
                            alone.append(in_process(session, entry, x, settings.seconds / 4))
                    if turns:
                        yield f"{name}-{form}-{clients}", result(turns, alone)
        finally:
            for server in servers:
                server.close()


@contextlib.contextmanager
def failing(errors: dict[str, str], where: str) -> Iterator[list[str]]:
    """Write down why something failed, and go on."""
    failed: list[str] = []
    try:
        yield failed
    except ContestantError as error:
        failed.append(str(error))
        errors[where] = str(error)


def take(server: Server, what: Request, clients: int, settings: Settings) -> dict[str, float]:
    """A turn of one server, while the others do not run."""
    server.resume()
    try:
        time.sleep(PAUSE)
        server.ask(what, WARM)
        found = wrk(server, what, clients, settings.seconds)
        if clients == 1:
            _, _, seconds = server.ask(what, max(WARM, int(settings.seconds / 4 * found["rate"])))
            found["python"] = statistics.median(seconds) * 1e3
        return found | {"megabytes": server.megabytes()}
    finally:
        server.pause()


def in_process(session: onnxruntime.InferenceSession, name: str, x: np.ndarray, seconds: float) -> float:
    """Milliseconds of a call of onnxruntime, without a server: the median."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < WARM:
        start = time.perf_counter()
        session.run(None, {name: x})
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def result(turns: Mapping[str, Sequence[Mapping[str, float]]], alone: Sequence[float]) -> dict[str, Any]:
    """Medians with the least and the most, and how many times as fast as each peer lamella is, round by round."""
    found: dict[str, Any] = {
        "contestants": {
            label: {key: spread([turn[key] for turn in some]) for key in some[0]} for label, some in turns.items()
        }
    }
    if alone:
        found["in_process"] = spread(alone)
    if "lamella" in turns:
        own = [turn["rate"] for turn in turns["lamella"]]
        found["ratios"] = {
            label: spread([a / b["rate"] for a, b in zip(own, some, strict=True)])
            for label, some in turns.items()
            if label != "lamella"
        }
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, most, and all of them."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": list(values)}
