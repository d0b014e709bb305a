"""ONNX models for a server, and a client that asks its application without a network."""

from __future__ import annotations

import asyncio
import atexit
import copy
import gzip
import json
import math
import os
import random
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

import lamella_serve

SEED = int(os.environ.get("LAMELLA_SEED", random.randrange(10**6)))
TIMES = int(os.environ.get("LAMELLA_TIMES", "1"))  # more of everything that is random
PATIENCE = 20.0  # seconds that an answer may take
HEAD = '<ir_version: 10, opset_import: ["": 21]> '

DATATYPES = {  # the type in ONNX, the one in NumPy, and values at the ends of the range
    "BOOL": ("bool", "bool", [True, False]),
    "UINT8": ("uint8", "uint8", [0, 2**8 - 1]),
    "UINT16": ("uint16", "uint16", [0, 2**16 - 1]),
    "UINT32": ("uint32", "uint32", [0, 2**32 - 1]),
    "UINT64": ("uint64", "uint64", [0, 2**53 + 1, 2**63, 2**64 - 1]),
    "INT8": ("int8", "int8", [-(2**7), 2**7 - 1]),
    "INT16": ("int16", "int16", [-(2**15), 2**15 - 1]),
    "INT32": ("int32", "int32", [-(2**31), 2**31 - 1]),
    "INT64": ("int64", "int64", [-(2**63), 2**53 + 1, 2**63 - 1]),
    "FP16": ("float16", "float16", [-0.0, 6e-08, 65504.0, 0.1, math.nan, math.inf, -math.inf]),
    "FP32": ("float", "float32", [-0.0, 1e-45, 3.4028235e38, 0.1, math.nan, math.inf, -math.inf]),
    "FP64": ("double", "float64", [-0.0, 5e-324, 1.7976931348623157e308, 0.1, math.nan, math.inf, -math.inf]),
    "BF16": ("bfloat16", ml_dtypes.bfloat16, [-0.0, 9.1835e-41, 3.3895314e38, 0.1, math.nan, math.inf, -math.inf]),
    "BYTES": ("string", "object", ["", "grün", "😀", "a\0b", '\\"\n', "a" * 300]),
}
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


def write(path: Path, graph: str, weights: Mapping[str, Any] | None = None, **metadata: str) -> Path:
    """Write a graph in ONNX's own notation, with arrays as its weights and entries of metadata."""
    proto = onnx.parser.parse_model(HEAD + graph)
    for name, value in (weights or {}).items():
        array = np.asarray(value)
        array = array.astype("float32") if array.dtype == "float64" else array
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.helper.set_model_props(proto, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


_RUNNER = asyncio.Runner()
atexit.register(_RUNNER.close)


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The reason of a refusal; it is all that the body holds."""
        assert self.headers["content-type"] == "application/json"
        (reason,) = self.json.items()
        assert reason[0] == "error"
        return reason[1]


class Client:
    """Asks an application, one request after another or several at a time. All clients share an event loop."""

    run = _RUNNER.run

    def __init__(self, *paths: Path, **options: Any) -> None:
        self.application = lamella_serve.application(*paths, **options)

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def infer(self, model: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", f"/v2/models/{model}/infer", body, **headers)

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        return self.run(self.answer(method, path, body, **headers))

    def infer_together(self, model: str, bodies: Iterable[Any]) -> list[Reply]:
        """Send requests that arrive in the same moment."""

        async def gathered() -> list[Reply]:
            return await asyncio.gather(*(self.answer("POST", f"/v2/models/{model}/infer", body) for body in bodies))

        return self.run(gathered())

    async def answer(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        """Send one request; a body that is no bytes is sent as JSON. A header's name has _ where HTTP has -."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        messages = [{"type": "http.request", "body": content, "more_body": False}]
        return await self.exchange(method, path, messages, **headers)

    async def exchange(self, method: str, path: str, messages: list[dict[str, Any]], **headers: str) -> Reply | None:
        """Send one request whose body comes in these messages, behind which the client says nothing more."""
        sent: list[dict[str, Any]] = []
        left = list(messages)

        async def receive() -> dict[str, Any]:
            if not left:
                await asyncio.Event().wait()
            return left.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().replace("_", "-").encode(), said.encode()) for name, said in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        async with asyncio.timeout(PATIENCE):
            await self.application(scope, receive, send)
        if not sent:
            return None  # the client has gone
        start, *rest = sent
        body = b"".join(message.get("body", b"") for message in rest)
        got = {name.decode(): said.decode() for name, said in start["headers"]}
        assert len(got) == len(start["headers"])
        assert got["content-length"] == str(len(body))
        return Reply(start["status"], got, body)


def tensor(datatype, shape, data, name="x"):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def one(values, datatype="FP32", **more):
    """A request of one row."""
    return {"inputs": [tensor(datatype, [1, len(values)], values)], **more}


def in_binary(request, *blobs):
    """A request whose inputs are sent as bytes behind the JSON, and the header that says so."""
    request = copy.deepcopy(request)
    for given, blob in zip(request["inputs"], blobs, strict=True):
        given.pop("data", None)
        given["parameters"] = {"binary_data_size": len(blob)}
    head = json.dumps(request).encode()
    return head + b"".join(blobs), {"inference_header_content_length": str(len(head))}


def packed(values, numpy_type):
    if numpy_type == "object":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    return np.array(values, numpy_type).tobytes()


def read(reply):
    """The JSON of an answer, and the bytes behind it."""
    assert reply.status == 200, reply.body
    body = UNPACK.get(reply.headers.get("content-encoding"), bytes)(reply.body)
    length = reply.headers.get("inference-header-content-length")
    assert reply.headers["content-type"] == ("application/json" if length is None else "application/octet-stream")
    head = len(body) if length is None else int(length)
    return json.loads(body[:head]), body[head:]


def values(reply):
    """The data of the only output."""
    (output,) = read(reply)[0]["outputs"]
    return output["data"]
