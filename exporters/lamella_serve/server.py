"""The process that serves: uvicorn with the application, and gRPC beside it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette

from lamella_serve.batching import still_runs
from lamella_serve.http.connection import Connection

if TYPE_CHECKING:
    from lamella_serve.grpc.server import GrpcServer

__all__ = ["Address", "is_loopback", "need_free", "run"]

_log = logging.getLogger("lamella_serve")
_STOPPING = 1.0  # seconds that a run gets to stop, when nobody waits for it and the server ends
_GRACE = 30  # seconds that running requests get when the server ends


@dataclasses.dataclass(frozen=True)
class Address:
    """Where to listen: a host, a port for HTTP, and one for gRPC unless it is None; 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None

    @property
    def http(self) -> str:
        """What clients of HTTP call it."""
        return f"http://{self._host}:{self.port}"

    @property
    def grpc(self) -> str:
        """What clients of gRPC call it."""
        return f"{self._host}:{self.grpc_port}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a host.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def need_free(address: Address) -> None:
    """See whether the address can be listened on, before models are loaded.

    Raises:
        OSError: it can't; the message says which port, and why.
    """
    for option, port in (("--port", address.port), ("--grpc-port", address.grpc_port)):
        if port is not None:
            try:
                _listener(address.host, port).close()
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                why = f"port {port} is taken; take another by {option}" if taken else error.strerror
                raise OSError(f"can't listen on {address.host}: {why}") from error


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


class _Server(uvicorn.Server):
    """Has gRPC beside it, tells when it listens, and that it is no longer ready when it ends."""

    def __init__(
        self, config: uvicorn.Config, application: Starlette, address: Address, listening: Callable[[Address], None]
    ) -> None:
        super().__init__(config)
        self._state, self._address, self._listening = application.state, address, listening
        self._grpc: GrpcServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        address = self._address
        if address.grpc_port is not None:
            from lamella_serve.grpc.server import GrpcServer  # needs grpcio, which not everybody has

            self._grpc = GrpcServer(self._state.repository, self._state.access)
            address = dataclasses.replace(address, grpc_port=await self._grpc.start(address.grpc))
        await super().startup(sockets)
        if self.started:
            self._listening(address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.draining = True
        _log.info("ends when what it accepted is answered")
        await asyncio.gather(super().shutdown(sockets), self._stop_grpc())

    async def _stop_grpc(self) -> None:
        if self._grpc is None:
            return
        stopping = asyncio.ensure_future(self._grpc.stop(_GRACE))
        while not stopping.done():
            if self.force_exit:  # somebody pressed Ctrl-C again
                await self._grpc.stop(0.0)
            await asyncio.wait([stopping], timeout=0.1)


def run(application: Starlette, address: Address, listening: Callable[[Address], None]) -> None:
    """Serve until a signal comes; then answer what was accepted.

    Arguments:
        listening: called with the address, its ports filled in, once requests are accepted there.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    with _listener(address.host, address.port) as listener:
        bound = dataclasses.replace(address, port=listener.getsockname()[1])
        config = uvicorn.Config(
            application,
            http=Connection,
            loop="auto",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        server = _Server(config, application, bound, listening)
        try:
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is done
                server.run(sockets=[listener])
        finally:
            if still_runs(_STOPPING):  # Python would wait for its threads, and nobody waits for these
                sys.stdout.flush()
                logging.shutdown()
                os._exit(0)
