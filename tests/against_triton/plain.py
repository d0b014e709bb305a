"""Requests over plain HTTP, as curl sends them, and such as no good client sends."""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

Request = tuple[str, str, bytes, dict[str, str]]  # method, path, body, headers

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
ROWS = ROW | {"shape": [200, 4], "data": [1, 2, 3, 4] * 200}
BYTES = struct.pack("<4f", 1, 2, 3, 4)
INFER = "/v2/models/classifier/infer"
SIZE = "Inference-Header-Content-Length"


def post(content: object, path: str = INFER, **headers: str) -> Request:
    """A POST of JSON, or of a body as it is. Underscores in the names of headers become hyphens."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()}


def get(path: str, method: str = "GET") -> Request:
    return method, path, b"", {}


def row(model: str = "classifier", **changes: Any) -> Request:
    """A request for one input that is changed; None leaves a key out."""
    tensor = {key: value for key, value in (ROW | changes).items() if value is not None}
    return post({"inputs": [tensor]}, f"/v2/models/{model}/infer")


def number(datatype: str, value: Any) -> Request:
    """A request with one value for a model that takes all datatypes: the value must not do."""
    others = {"fp32": 0.5, "fp64": 0.5, "bool": True}
    names = ("fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
    given = {name: others.get(name, 1) for name in names} | {datatype: value}
    inputs = [{"name": n, "datatype": n.upper(), "shape": [1, 1], "data": [given[n]]} for n in names]
    return post({"inputs": inputs}, "/v2/models/numbers/infer")


def binary(size: object = 16, content: bytes = BYTES, header: str | None = None, **more: Any) -> Request:
    """A request whose tensor follows the JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return "POST", INFER, head + content, {SIZE: str(len(head)) if header is None else header}


def tensors(model: str, given: Mapping[str, tuple[str, bytes]]) -> Request:
    """A request with binary tensors of one row with two elements."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": len(content)}}
        for name, (datatype, content) in given.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    contents = [content for _, content in given.values()]
    return "POST", f"/v2/models/{model}/infer", b"".join([head, *contents]), {SIZE: str(len(head))}


def wanted(**parameters: Any) -> Request:
    return post({"inputs": [ROW], "outputs": [{"name": "probabilities", "parameters": parameters}]})


REQUESTS: dict[str, Request] = {
    "GET live": get("/v2/health/live"),
    "GET server metadata": get("/v2"),
    "GET metadata": get("/v2/models/classifier"),
    "GET metadata of an unknown model": get("/v2/models/nobody"),
    "GET ready of an unknown model": get("/v2/models/nobody/ready"),
    "GET an unknown path": get("/v2/nothing"),
    "GET an unknown verb": get("/v2/models/classifier/nothing"),
    "GET what is to be posted": get(INFER),
    "POST what is to be got": post(b"", "/v2/models/classifier"),
    "DELETE a model": get("/v2/models/classifier", "DELETE"),
    "index of those ready": post({"ready": True}, "/v2/repository/index"),
    "index without a body": post(b"", "/v2/repository/index"),
    "JSON without a content type": post({"inputs": [ROW]}),
    "JSON as curl sends it": post({"inputs": [ROW]}, Content_Type="application/x-www-form-urlencoded"),
    "JSON as application/json": post({"inputs": [ROW]}, Content_Type="application/json"),
    "nested data": row(shape=[2, 4], data=[[1, 2, 3, 4], [5, 6, 7, 8]]),
    "whole numbers and exponents for floats": row(data=[1, 2.5, -3e2, 4e-3]),
    "a number too large for FP32": row(data=[1e39, 0, 0, 0]),
    "unknown keys": post({"inputs": [ROW | {"color": "red"}], "color": "red"}),
    "an empty list of outputs": post({"inputs": [ROW], "outputs": []}),
    "an output wanted twice": post({"inputs": [ROW], "outputs": [{"name": "probabilities"}] * 2}),
    "binary output for JSON input": wanted(binary_data=True),
    "all outputs binary": post({"inputs": [ROW], "parameters": {"binary_data_output": True}}),
    "binary input for JSON output": binary(),
    "binary both ways with an id": binary(id="7", parameters={"binary_data_output": True}),
    "a tensor alone": ("POST", "/v2/models/fixed/infer", struct.pack("<6f", *range(6)), {SIZE: "0"}),
    "gzip in": post(gzip.compress(json.dumps({"inputs": [ROW]}).encode()), Content_Encoding="gzip"),
    "deflate in": post(zlib.compress(json.dumps({"inputs": [ROW]}).encode()), Content_Encoding="deflate"),
    "gzip out": post({"inputs": [ROWS]}, Accept_Encoding="gzip"),
    "deflate out": post({"inputs": [ROWS]}, Accept_Encoding="deflate"),
    "gzip or deflate out, by preference": post({"inputs": [ROWS]}, Accept_Encoding="gzip;q=0.5, deflate;q=0.8"),
    "gzip out for a short answer": post({"inputs": [ROW]}, Accept_Encoding="gzip"),
    "an encoding out that is unknown": post({"inputs": [ROWS]}, Accept_Encoding="br"),
    "an encoding in that is unknown": post({"inputs": [ROW]}, Content_Encoding="br"),
    "gzip that is none": post({"inputs": [ROW]}, Content_Encoding="gzip"),
    "no body": post(b""),
    "no JSON": post(b"{"),
    "JSON and more": post(json.dumps({"inputs": [ROW]}).encode() + b" x"),
    "no object": post([]),
    "no inputs": post({}),
    "inputs that are no list": post({"inputs": {}}),
    "an input that is no object": post({"inputs": ["x"]}),
    "an id that is no string": post({"inputs": [ROW], "id": 7}),
    "no name": row(name=None),
    "no datatype": row(datatype=None),
    "an unknown datatype": row(datatype="FLOAT"),
    "no shape": row(shape=None),
    "a size below 0": row(shape=[-1, 4]),
    "a size that is no whole number": row(shape=[1.5, 4]),
    "a size beyond all memory": row(shape=[2**62, 4]),
    "no data": row(data=None),
    "data that are no list": row(data=5),
    "one value too few": row(data=[1, 2, 3]),
    "one value too many": row(data=[1, 2, 3, 4, 5]),
    "strings for numbers": row(data=["1", "2", "3", "4"]),
    "null for a number": row(data=[None, 2, 3, 4]),
    "true for a float": row(data=[True, 2, 3, 4]),
    "numbers for strings": row("text", datatype="BYTES", data=[1, 2, 3, 4]),
    "0.5 for INT32": number("int32", 0.5),
    "128 for INT8": number("int8", 128),
    "-1 for UINT8": number("uint8", -1),
    "2**64 for UINT64": number("uint64", 2**64),
    "1 for BOOL": number("bool", 1),
    "16-bit floats for JSON output": tensors(
        "half", {"fp16": ("FP16", b"\0\x3c" * 2), "bf16": ("BF16", b"\x80\x3f" * 2)}
    ),
    "both data and a size of binary data": row(parameters={"binary_data_size": 16}),
    "a size of binary data that does not fit the shape": binary(12, BYTES[:12]),
    "less binary data than said": binary(16, BYTES[:8]),
    "more binary data than said": binary(16, BYTES * 2),
    "a size of binary data that is a string": binary("16"),
    "a size of binary data below 0": binary(-16),
    "a length of JSON beyond the body": binary(header="99999"),
    "a length of JSON below 0": binary(header="-1"),
    "a length of JSON that is no number": binary(header="abc"),
    "a length of JSON within it": binary(header="5"),
    "strings cut short": tensors("text", {"x": ("BYTES", b"\2\0\0\0ab\0\0\0")}),
    "a string longer than the data": tensors("text", {"x": ("BYTES", b"\2\0\0\0ab\x63\0\0\0ab")}),
    "fewer strings than said": tensors("text", {"x": ("BYTES", b"\2\0\0\0ab")}),
    "classes below 0": wanted(classification=-1),
    "classes as a string": wanted(classification="2"),
    "no classes": wanted(classification=0),
    "an output without a name": post({"inputs": [ROW], "outputs": [{}]}),
    "parameters that are no object": post({"inputs": [ROW], "parameters": 5}),
    "a parameter that is a list": post({"inputs": [ROW], "parameters": {"color": [1]}}),
    "shared memory that nobody has": row(
        data=None, parameters={"shared_memory_region": "there", "shared_memory_byte_size": 16}
    ),
}


def answer(address: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Send a request; return the answer's status, the headers that clients rely on, and its content."""
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        return {"failed": repr(error)}
    finally:
        connection.close()
    encoding = response.headers.get("Content-Encoding", "")
    if encoding:
        content = zlib.decompress(content, 47)  # the header tells gzip from deflate
    if response.status >= 400:
        said = json.loads(content)["error"] if content else ""
        return {"error": str(response.status), "says": said} if said else {"error": f"{response.status}, no words"}
    length = response.headers.get(SIZE)
    head = content if length is None else content[: int(length)]
    return {
        "status": response.status,
        "content type": response.headers.get("Content-Type", "").partition(";")[0] if content else "",
        "encoding": encoding,
        "JSON": json.loads(head) if head else "",
        "bytes": "" if length is None else content[int(length) :].hex(),
    }
