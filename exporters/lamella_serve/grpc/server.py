"""The gRPC server, on the event loop of the HTTP server."""

from __future__ import annotations

import grpc

from lamella_serve.access import Access
from lamella_serve.grpc.service import Service
from lamella_serve.repository import Repository

__all__ = ["GrpcServer"]


class GrpcServer:
    """Serves a repository's models. All its methods are for a running event loop."""

    def __init__(self, repository: Repository, access: Access) -> None:
        self._service = Service(repository, access)
        options = [
            ("grpc.max_receive_message_length", access.max_body),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that another server has is an error
        ]
        self._server = grpc.aio.server(handlers=[self._service], options=options)

    async def start(self, address: str) -> int:
        """Listen; return the port, which with 0 is any free one.

        Raises:
            OSError: the address is taken, or not this machine's.
        """
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC can't listen on {address}: {error}") from error
        await self._server.start()
        return port

    async def stop(self, seconds: float) -> None:
        """Answer what was accepted, for so many seconds at most."""
        self._service.end()
        await self._server.stop(seconds)
