"""The commands of lamella_serve."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lamella as lm
from lamella.arguments import number, positive
from lamella.cli import Command
from lamella.errors import ArgumentError, LamellaError
from lamella.terminal import Column, Table, Terminal, styled
from lamella_serve.access import checked_token

if TYPE_CHECKING:
    from lamella_serve.model import ServedModel
    from lamella_serve.repository import Repository
    from lamella_serve.server import Address

__all__: list[str] = []


def _configure_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="an ONNX file, a folder of them, or a repository")
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, for this machine only)")
    add("--port", type=int, default=8000, help="the port for HTTP; 0 takes a free one (default: %(default)s)")
    add("--grpc-port", type=int, metavar="N", help="the port for gRPC; 0 takes a free one (default: no gRPC)")
    add("--token-file", metavar="FILE", help="a file with the token that clients have to send (default: no token)")
    add(
        "--max-batch-size",
        type=int,
        default=1024,
        metavar="ROWS",
        help="the most rows of a batch (default: %(default)s)",
    )
    add(
        "--batch-delay",
        type=float,
        default=0.0,
        metavar="MS",
        help="how long a batch waits for more (default: %(default)g)",
    )
    add("--instances", type=int, default=1, metavar="N", help="batches of a model at a time (default: %(default)s)")
    add(
        "--max-queue",
        type=int,
        default=1000,
        metavar="N",
        help="requests that may wait for a model (default: %(default)s)",
    )
    add(
        "--max-body",
        type=float,
        default=64.0,
        metavar="MB",
        help="the largest body of a request (default: %(default)g)",
    )
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the longest a request may take (default: %(default)g)",
    )
    add("--external-data", action="store_true", help="read arrays from other files in a model's folder too")
    add("--access-log", action="store_true", help="log every request")


def _serve(arguments: argparse.Namespace) -> int:
    # The first process of a container ignores the signal unless it has a handler; uvicorn sets one later.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with _told_what_is_missing():
        from lamella_serve import application, logs
        from lamella_serve.server import Address, is_loopback, need_free, run

        if arguments.grpc_port is not None:
            import grpc  # noqa: F401  # to say that it is missing before models are loaded
    logs.set_up(access=arguments.access_log)
    for port, name in ((arguments.port, "--port"), (arguments.grpc_port or 0, "--grpc-port")):
        positive(port, name, minimum=0, maximum=65535)
    address = Address(arguments.host, arguments.port, arguments.grpc_port)
    token = None if arguments.token_file is None else _token(Path(arguments.token_file))
    try:
        need_free(address)
    except OSError as error:
        raise ArgumentError(str(error)) from error
    app = application(
        *arguments.paths,
        token=token,
        local=is_loopback(arguments.host),
        external_data=arguments.external_data,
        max_batch_size=positive(arguments.max_batch_size, "--max-batch-size"),
        batch_delay=number(arguments.batch_delay, "--batch-delay", minimum=0.0) / 1e3,
        instances=positive(arguments.instances, "--instances"),
        max_queue=positive(arguments.max_queue, "--max-queue"),
        max_body=positive(round(number(arguments.max_body, "--max-body", above=0.0) * 1e6), "--max-body"),
        timeout=number(arguments.timeout, "--timeout", above=0.0),
    )
    run(app, address, lambda bound: _show(app.state.repository, bound))
    return 0


def _configure_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="an ONNX file, or a folder of them")
    add("folder", metavar="FOLDER", help="the repository; it is made if it is not there")
    add("--version", type=int, default=1, metavar="N", help="the number of this version (default: %(default)s)")
    add(
        "--max-batch-size",
        type=int,
        default=1024,
        metavar="ROWS",
        help="the most rows of a batch (default: %(default)s)",
    )
    add("--external-data", action="store_true", help="take arrays from other files in a model's folder too")


def _export(arguments: argparse.Namespace) -> int:
    with _told_what_is_missing():
        from lamella_serve.triton import export_repository
    models = export_repository(
        arguments.models,
        arguments.folder,
        version=arguments.version,
        max_batch_size=arguments.max_batch_size,
        external_data=arguments.external_data,
    )
    Terminal().print(_table(models))
    print(f"\n{arguments.folder} is a repository; tritonserver --model-repository reads it, and lamella serve")
    return 0


@contextlib.contextmanager
def _told_what_is_missing() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "grpc" if error.name == "grpc" else "serve"
        raise LamellaError(f"{error.name} is not installed; try: python -m pip install 'lamella[{extra}]'") from error


def _token(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"--token-file {path}: {error.strerror}") from error
    return checked_token(content.strip().decode("latin-1"), f"--token-file {path}")


def _show(repository: Repository, address: Address) -> None:
    """Tell what is served, and where."""
    terminal = Terminal()
    terminal.print(_table(repository))
    beside = "" if address.grpc_port is None else f", and for gRPC on {styled(address.grpc, 'bold')}"
    terminal.print(f"\nlistening on {styled(address.http, 'bold')}{beside}; open it in a browser to try a model")
    sys.stdout.flush()


def _table(models: Iterable[ServedModel]) -> Table:
    table = Table(["model", "version", "inputs", "outputs", Column("ms a row", right=True), "requests"])
    for model in models:
        table.add(
            styled(model.name, "bold"),
            str(model.version),
            "\n".join(f"{one.name} {one.datatype.name}{list(one.shape)}" for one in model.inputs),
            "\n".join(f"{one.name} {one.datatype.name}{list(one.shape)}" for one in model.outputs),
            "" if model.seconds is None else f"{1e3 * model.seconds:.3g}",
            "joined" if model.verdict.joined else f"one by one: {model.verdict.reason}",
        )
    return table


@lm.hookimpl
def lamella_commands() -> dict[str, Any]:
    return {
        "export-repository": Command(
            "write ONNX models as a repository for Triton or serve", _configure_export, _export
        ),
        "serve": Command("serve ONNX models over HTTP and gRPC", _configure_serve, _serve),
    }
