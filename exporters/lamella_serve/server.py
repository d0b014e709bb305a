"""The process that serves: uvicorn with the application, and gRPC beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from lamella_serve.http.connection import Connection

__all__ = ["Address", "is_loopback", "run"]

_log = logging.getLogger("lamella_serve")
_GRACE = 30  # seconds that running requests get when the server ends


@dataclasses.dataclass(frozen=True)
class Address:
    """Where to listen: a host, and a port for HTTP; 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 8000

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a host.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    """Tells when it listens, and that it is no longer ready when it ends."""

    def __init__(self, config: uvicorn.Config, application: Starlette, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._application, self._listening = application, listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.state.draining = True
        _log.info("ends when what it accepted is answered")
        await super().shutdown(sockets)


def run(application: Starlette, address: Address, listening: Callable[[Address], None]) -> None:
    """Serve until a signal comes; then answer what was accepted.

    Arguments:
        listening: called with the address, once requests are accepted there.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.create_server((address.host, address.port), family=family, backlog=2048) as listener:
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
        server = _Server(config, application, lambda: listening(bound))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is done
            server.run(sockets=[listener])
