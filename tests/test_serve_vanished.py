"""A client that has gone away leaves no error behind."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
import uvicorn

from lamella_serve.http.connection import Connection

uvloop = pytest.importorskip("uvloop")

PIPELINED = 40


async def slow(scope, receive, send):
    await receive()
    await asyncio.sleep(0.001)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def vanish(port, seconds):
    """Send many requests at once, and go without a word."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * PIPELINED)
    await asyncio.sleep(seconds)
    linger = struct.pack("ii", 1, 0)  # the socket is reset
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def serve(listener):
    config = uvicorn.Config(slow, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    for k in range(10):
        await vanish(listener.getsockname()[1], 0.002 * k)
    await asyncio.sleep(0.1)
    server.should_exit = True
    await running


def test_pipelined_requests_of_a_client_that_vanished(caplog):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(serve(listener))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
