"""The bodies of requests and answers: read within limits, unpacked and packed."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from lamella_serve.refusals import Refusal

__all__ = ["Gone", "packed", "read", "unpacked"]

_WBITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_SMALL = 1400  # bytes, which one packet carries
_LONG = 64 * 1024  # bytes that are worth a thread; zlib lets the event loop go on meanwhile


class Gone(Exception):
    """The client has gone away."""


async def read(receive: Any, headers: dict[bytes, bytes], most: int, seconds: float) -> bytes:
    """Read a body.

    Raises:
        Refusal: it is larger than allowed, or takes too long to come.
        Gone: the client has gone away.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > most):
        raise _too_large(most)
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise _too_large(most)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {seconds:g} seconds") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"a body may have {most:,} bytes; the server's --max-body says so")


async def unpacked(body: bytes, encoding: bytes | None, most: int) -> bytes:
    """Undo a body's compression.

    Raises:
        Refusal: it is damaged, of an unknown kind, or larger than allowed when unpacked.
    """
    if encoding is None or encoding == b"identity" or not encoding:
        return body
    bits = _WBITS.get(encoding.lower())
    if bits is None:
        raise Refusal(400, f"Content-Encoding: expected gzip or deflate, got {encoding.decode('latin-1')!r}")
    return await asyncio.to_thread(_unpacked, body, bits, most) if len(body) > _LONG else _unpacked(body, bits, most)


def _unpacked(body: bytes, bits: int, most: int) -> bytes:
    stream = zlib.decompressobj(bits)
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise Refusal(400, f"the body can't be unpacked: {error}") from None
    if len(content) > most:
        raise _too_large(most)
    if not stream.eof or stream.unused_data:
        raise Refusal(400, "the body can't be unpacked: it is cut short, or something follows it")
    return content


async def packed(body: bytes, accepted: bytes | None) -> tuple[bytes, bytes | None]:
    """Compress a body as the client accepts it; return it with the name of the encoding."""
    if accepted is None or len(body) <= _SMALL:
        return body, None
    names = set()
    for part in accepted.lower().replace(b" ", b"").split(b","):
        name, _, weight = part.partition(b";q=")
        if weight.strip(b"0.") or not weight:
            names.add(name)
    encoding = next((name for name in (b"gzip", b"deflate") if name in names), None)
    if encoding is None:
        return body, None
    return await asyncio.to_thread(_packed, body, _WBITS[encoding]), encoding


def _packed(body: bytes, bits: int) -> bytes:
    stream = zlib.compressobj(1, wbits=bits)
    return stream.compress(body) + stream.flush()
