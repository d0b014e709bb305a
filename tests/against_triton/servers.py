"""Starts Triton and `lamella serve` on loopback, and ends them with all that they started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

STARTS, ENDS = 60.0, 15.0  # seconds that a server may take
BACKEND = Path(__file__).resolve().parent / "backends" / "onnxruntime"


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return ["{}:{}".format(*one.getsockname()) for one in sockets]


@contextlib.contextmanager
def lamella(repository: Path, log: Path) -> Iterator[tuple[str, str]]:
    """`lamella serve` of this environment; gives its addresses for HTTP and gRPC."""
    http, grpc = free_addresses(2)
    command = [sys.executable, "-m", "lamella", "serve", str(repository)]
    command += ["--port", http.partition(":")[2], "--grpc-port", grpc.partition(":")[2]]
    with _running(command, os.environ, http, log):
        yield http, grpc


@contextlib.contextmanager
def triton(python: Path, repository: Path, folder: Path, log: Path) -> Iterator[tuple[str, str]]:
    """Triton from the environment of an interpreter; gives its addresses for HTTP and gRPC.

    Arguments:
        folder: takes copies of what Triton wants in one place.
    """
    packages = next((python.parent.parent / "lib").glob("python3.*/site-packages"))
    version = packages.parent.name.removeprefix("python")
    server = packages / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends, dirs_exist_ok=True)
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    shutil.copytree(BACKEND, backends / BACKEND.name, dirs_exist_ok=True)
    http, grpc, metrics = free_addresses(3)
    shared = f"lamella_judge_{os.getpid()}_"
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += ["--backend-directory", str(backends), "--model-control-mode", "explicit", "--load-model", "*"]
    command += ["--backend-config", f"onnxruntime,shm-region-prefix-name={shared}"]
    for protocol, address in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{protocol}-address", "127.0.0.1", f"--{protocol}-port", address.partition(":")[2]]
    libraries = os.pathsep.join(
        filter(None, [str(packages / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH")])
    )
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # the stub takes the first Python there
    try:
        with _running(command, os.environ | {"LD_LIBRARY_PATH": libraries, "PATH": path}, http, log):
            yield http, grpc
    finally:
        for left in Path("/dev/shm").glob(f"{shared}*"):
            left.unlink()


@contextlib.contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], address: str, log: Path) -> Iterator[None]:
    """A server in a process group of its own, ready for requests; the group is gone afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait(process, address, log)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a stub of Triton can outlive it
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until a server says that it is ready."""
    deadline = time.monotonic() + STARTS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5):
            return
        time.sleep(0.1)
    how = f"is not ready after {STARTS:.0f} s" if process.poll() is None else "ended"
    said = log.read_text(errors="replace")[-3000:]
    raise SystemExit(f"{' '.join(process.args)} {how}; it said:\n{said}")
