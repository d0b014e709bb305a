"""One HTTP/1.1 connection: uvicorn's, with limits on what a client may make the server hold, and for how long.

uvicorn holds back a body that the application has not read, and ends a connection that is silent between two
requests. It limits neither the size of a head, nor the time that a client takes to send one or to read its answer.
How long a body may take is the application's matter.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = ["Connection"]

MAX_HEAD_BYTES = 64 * 1024  # checked after each read, so that what came with one read (at most 250 KiB) may pass
MAX_HEADERS = 100
PATIENCE = 20.0  # seconds
GLANCE = 1.0  # seconds from one look at the clock to the next; a timer for each request would cost more


class TooManyHeaders(Exception):
    """A head has more than `MAX_HEADERS` fields."""


class _Transport:
    """A transport that drops what is written once it is closed, as asyncio's own does; uvloop's raises an error.

    It is closed some steps before the protocol hears of it, and the answers to pipelined requests never hear.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """A connection to run an application on: `uvicorn.Config(app, http=Connection)`.

    It answers 431 to a head that is too large and 408 to one that takes longer than `PATIENCE`. It ends without a word
    if its client sends nothing for that long, or reads nothing of an answer. Offers to speak another protocol
    (`Upgrade`) are ignored. Trailers are dropped.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.transport = _Transport(transport)  # type: ignore[assignment]
        self._loose_bytes = 0  # received since the last complete head or part of a body
        self._progress: tuple[object, int] = (None, 0)
        self._progress_time = self.loop.time()
        self._timer = self.loop.call_later(GLANCE, self._look_at_clock)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._loose_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, TooManyHeaders):
                self._refuse(431, f"the request has more than {MAX_HEADERS} headers")
            else:
                self._refuse(400, "this is not a valid HTTP/1.1 request")
        else:
            if self._loose_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def _parse(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # The parser takes what follows for the other protocol's. Here it is the request's body: so another
                # parser reads the head again, without the offer.
                method, version = self.scope["method"], self.scope["http_version"]
                if method == "CONNECT":
                    raise httptools.HttpParserError("CONNECT is for proxies") from None
                fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
                head = b"%s %s HTTP/%s\r\n%s\r\n" % (method.encode(), self.url, version.encode(), b"".join(fields))
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)
                data = memoryview(data)[offer.args[0] :]

    def _should_upgrade(self) -> bool:
        return True  # then uvicorn leaves alone a request that makes an offer, and `_parse` starts it

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.cycle is not None and self.cycle.scope is self.scope:
            return  # a trailer; no proxy has checked it, and the application has seen the headers
        if len(self.headers) == MAX_HEADERS:
            raise TooManyHeaders
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._loose_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer in the server's own name, and close."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if self.pipeline or not cycle.more_body:
                return  # the answers to the requests before come first
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = json.dumps({"error": reason}).encode()
            headers: list[tuple[bytes, Any]] = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            fields = b"".join(b"%s: %s\r\n" % field for field in headers)
            self.transport.write(b"%s%s\r\n%s" % (STATUS_LINE[status], fields, body))
        self.transport.close()

    def _look_at_clock(self) -> None:
        self._timer = self.loop.call_later(GLANCE, self._look_at_clock)
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        working = self.cycle is not None and not self.cycle.response_complete
        resting = self.timeout_keep_alive_task is not None  # uvicorn ends that by its own timer
        if (self.cycle, unsent) != self._progress or ((working or resting) and not unsent):
            self._progress, self._progress_time = (self.cycle, unsent), now
        elif now - self._progress_time >= PATIENCE:
            if unsent == 0 and self._loose_bytes > 0 and not self.transport.is_closing():
                self._refuse(408, f"the request's head took longer than {PATIENCE:.0f} seconds")
            else:
                self.transport.abort()  # close() would wait until the client has read everything
