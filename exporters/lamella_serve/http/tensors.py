"""Requests and answers as JSON, with tensors in it or as bytes after it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and, for bytes,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from lamella.errors import shown
from lamella_serve.datatypes import Array, Datatype, narrowed, pack, unpack
from lamella_serve.inference import Answer, InferRequest, Wanted, checked_shape, input_named, refuse_shared_memory
from lamella_serve.model import ServedModel
from lamella_serve.refusals import Refusal

__all__ = ["decode", "encode", "parse"]

_MOST_JSON = 16_000_000  # bytes; to read so many holds the event loop for two seconds at worst
_NOTHING: dict[str, Any] = {}


def parse(content: bytes | memoryview) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        Refusal: there is none, or it is too large.
    """
    if len(content) > _MOST_JSON:
        raise Refusal(413, f"JSON may have {_MOST_JSON:,} bytes, got {len(content):,}; send tensors as binary data")
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        parsed = _parsed_as_python_does(bytes(content), error)
    if type(parsed) is not dict:
        raise Refusal(400, f"expected a JSON object, got {_named(parsed)}")
    return parsed


def _parsed_as_python_does(content: bytes, why: Exception) -> Any:
    """JSON with NaN and Infinity, which clients write and strict readers refuse."""
    if b"NaN" not in content and b"Infinity" not in content:
        raise Refusal(400, f"the body is no JSON: {why}") from None
    try:
        return json.loads(content, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}") from None


def _whole(digits: str) -> float:
    """A whole number as the strict reader gives it: as a float where 64 bits are too few."""
    number = float(digits)
    return int(digits) if -(2.0**63) <= number < 2.0**64 else number


def decode(body: bytes, header_length: str | None, model: ServedModel) -> InferRequest:
    """Read a request.

    Arguments:
        body: JSON, and after it the tensors that are sent as bytes.
        header_length: how many bytes of it are JSON, as the client's header says; None: all.

    Raises:
        Refusal: it is not what the protocol says, or asks for what the model has not.
    """
    binary = memoryview(b"")
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdigit() and len(header_length) < 19
        length = int(header_length) if is_number else -1
        if not 0 <= length <= len(body):
            raise Refusal(
                400, f"Inference-Header-Content-Length is {shown(header_length)}, and the body has {len(body)} bytes"
            )
        if length == 0:
            return _raw(body, model)
        body, binary = body[:length], memoryview(body)[length:]
    request = parse(body)
    identifier = request.get("id", "")
    if type(identifier) is not str:
        raise Refusal(400, f"id: expected a string, got {_named(identifier)}")
    try:
        identifier.encode()
    except UnicodeEncodeError:
        raise Refusal(400, "id: expected a string, got half of a surrogate pair") from None
    inputs: dict[str, Array] = {}
    position = 0
    truths = b"true" in body or b"false" in body  # NumPy takes them for 1 and 0 where numbers are beside them
    for given in _objects(request, "inputs"):
        name, array, position = _input(given, binary, position, model, truths)
        if name in inputs:
            raise Refusal(400, f"input {name!r} is given twice")
        inputs[name] = array
    if position != len(binary):
        raise Refusal(400, f"{len(binary):,} bytes of binary data, of which the inputs take {position:,}")
    parameters = _parameters(request, "the request")
    binary_output = parameters.get("binary_data_output", False) is True
    return InferRequest(identifier, inputs, _wanted(request, model, binary_output))


def _raw(body: bytes, model: ServedModel) -> InferRequest:
    """A body that is one tensor and nothing else, for a model with one input and at most one axis of any size."""
    if len(model.inputs) != 1:
        raise Refusal(
            400, f"a body without JSON is for models with one input; model {model.name!r} has {len(model.inputs)}"
        )
    tensor = model.inputs[0]
    batched = model.max_batch_size > 0
    shape = (1, *tensor.shape[1:]) if batched else tensor.shape
    if tensor.datatype.kind == "s":
        shape = tuple(abs(size) for size in shape)
    elif shape.count(-1) == 1:
        known = tensor.datatype.numpy.itemsize * int(np.prod([size for size in shape if size != -1]))
        shape = tuple(len(body) // known if size == -1 and known else size for size in shape)
    sizes, count = checked_shape(shape, f"input {tensor.name!r}")
    array = unpack(body, tensor.datatype, sizes, count, f"input {tensor.name!r}")
    return InferRequest("", {tensor.name: array}, [Wanted(one.name, binary=True) for one in model.outputs])


def _input(
    given: dict[str, Any], binary: memoryview, position: int, model: ServedModel, truths: bool
) -> tuple[str, Array, int]:
    """An input's name and array, and how far the bytes are read."""
    name = given.get("name")
    if type(name) is not str:
        raise Refusal(400, f"inputs: each needs a name, a string, got {_named(name)}")
    what = f"input {name!r}"
    datatype = input_named(model, name)
    if given.get("datatype") != datatype.name:
        raise Refusal(400, f"{what}: expected datatype {datatype.name!r}, got {_named(given.get('datatype'))}")
    sizes = given.get("shape")
    if type(sizes) is not list:
        raise Refusal(400, f"{what}: expected shape as a list of sizes, got {_named(sizes)}")
    shape, count = checked_shape(sizes, what)
    parameters = _parameters(given, what)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in given:
            refuse_shared_memory(parameters, what)
            raise Refusal(400, f"{what}: there is neither data nor binary_data_size")
        data = given["data"]
        if truths and datatype.kind in "fi" and type(data) is list and bool in set(map(type, _flat(data, what))):
            raise Refusal(400, f"{what}: expected numbers for {datatype.name}, got true or false")
        return name, _array(data, datatype, shape, count, what), position
    if "data" in given:
        raise Refusal(400, f"{what}: expected data or a binary_data_size, got both")
    if type(size) is not int or size < 0:
        raise Refusal(400, f"{what}: expected a binary_data_size of 0 or more, got {_named(size)}")
    if position + size > len(binary):
        raise Refusal(
            400, f"{what}: binary_data_size is {size:,}, and {len(binary) - position:,} bytes of binary data are left"
        )
    content = binary[position : position + size]
    return name, unpack(content, datatype, shape, count, what), position + size


def _array(data: Any, datatype: Datatype, shape: tuple[int, ...], count: int, what: str) -> Array:
    """An array from nested or flat lists."""
    if type(data) is not list:
        raise Refusal(400, f"{what}: expected data as a list, got {_named(data)}")
    if datatype.kind == "s":
        texts = _flat(data, what)
        if not all(type(text) is str for text in texts):
            raise Refusal(400, f"{what}: expected strings")
        array = np.empty(len(texts), object)
        array[:] = texts
    else:
        try:
            array = np.array(data)
        except ValueError:  # lists of unequal lengths, or too deep
            raise _ragged(what) from None
    if array.size != count:
        raise Refusal(400, f"{what}: shape {list(shape)} takes {count:,} elements, got {array.size:,}")
    if datatype.kind != "s" and array.dtype != datatype.numpy:
        array = _converted(array, data, datatype, what) if count else np.empty(0, datatype.numpy)
    return array.reshape(shape)


def _converted(array: Array, data: list[Any], datatype: Datatype, what: str) -> Array:
    """Numbers from JSON in the datatype of the input."""
    if datatype.kind == "f" and array.dtype.kind in "fiu":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, as everywhere
            return array.astype(datatype.numpy)
    if datatype.kind == "b" and array.dtype.kind in "iu" and ((array == 0) | (array == 1)).all():
        return array.astype(bool)
    if datatype.kind == "i":
        flat = array.ravel() if array.dtype.kind in "iu" else np.array(_flat(data, what), object)
        if array.dtype.kind in "iu" or all(type(value) is int for value in flat):
            return narrowed(flat, datatype, what)
    expected = {"f": "numbers", "i": "whole numbers", "b": "true or false"}[datatype.kind]
    wrong = next((value for value in _flat(data, what) if not _fits(value, datatype)), data)
    raise Refusal(400, f"{what}: expected {expected} for {datatype.name}, got {_named(wrong)}")


def _fits(value: Any, datatype: Datatype) -> bool:
    return type(value) in {"f": (int, float), "i": (int,), "b": (bool,)}[datatype.kind]


def _flat(data: list[Any], what: str) -> list[Any]:
    """The elements of nested lists."""
    while data and type(data[0]) is list:
        if set(map(type, data)) != {list}:  # else what is not nested would be copied once for each level of what is
            raise _ragged(what)
        data = [value for row in data for value in row]
    return data


def _ragged(what: str) -> Refusal:
    return Refusal(400, f"{what}: data has lists of unequal lengths")


def _wanted(request: dict[str, Any], model: ServedModel, binary_output: bool) -> list[Wanted]:
    """The outputs that are asked for: all, unless some are named; then each says for itself how it is to be sent."""
    given = _objects(request, "outputs") if request.get("outputs") else []
    if not given:
        return [Wanted(output.name, binary=binary_output) for output in model.outputs]
    wanted = []
    for one in given:
        name = one.get("name")
        if type(name) is not str:
            raise Refusal(400, f"outputs: each needs a name, a string, got {_named(name)}")
        what = f"output {name!r}"
        parameters = _parameters(one, what)
        refuse_shared_memory(parameters, what)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise Refusal(400, f"{what}: classification: expected how many classes, got {_named(classes)}")
        wanted.append(Wanted(name, classes, parameters.get("binary_data", False) is True))
    return wanted


def _objects(request: dict[str, Any], key: str) -> list[dict[str, Any]]:
    given = request.get(key)
    if type(given) is not list:
        raise Refusal(400, f"{key}: expected a list of objects, got {_named(given)}")
    for one in given:
        if type(one) is not dict:
            raise Refusal(400, f"{key}: expected a list of objects, got {_named(one)} in it")
    return given


def _parameters(given: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = given.get("parameters")
    if parameters is None:
        return _NOTHING
    if type(parameters) is not dict:
        raise Refusal(400, f"{what}: parameters: expected an object, got {_named(parameters)}")
    for name, value in parameters.items():
        if type(value) not in (bool, int, float, str):
            raise Refusal(
                400, f"{what}: parameter {shown(name)}: expected a string, a number or a boolean, got {_named(value)}"
            )
    return parameters


def _named(value: object) -> str:
    """A value from JSON, in few words, however large it is."""
    if type(value) is list:
        return "a list"
    if type(value) is dict:
        return "an object"
    said = json.dumps(value[:60] if type(value) is str else value)
    return "nothing" if value is None else said


def encode(model: ServedModel, identifier: str, answers: Sequence[Answer]) -> tuple[bytes, int | None]:
    """Write an answer: its bytes, and how many of them are JSON if tensors follow."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    plain = True
    for one in answers:
        array, datatype = one.array, one.datatype
        output: dict[str, Any] = {"name": one.wanted.name, "datatype": datatype.name, "shape": array.shape}
        if one.wanted.binary:
            content = pack(array, datatype)
            output["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
        elif datatype.kind == "f" and not np.isfinite(array).all():
            output["data"], plain = array.ravel().tolist(), False
        else:
            output["data"] = _listed(array, datatype)
        outputs.append(output)
    said: Mapping[str, Any] = {"model_name": model.name, "model_version": str(model.version), "outputs": outputs}
    if identifier:
        said = {"id": identifier, **said}
    head = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY) if plain else _with_nan(said)
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def _listed(array: Array, datatype: Datatype) -> Any:
    """What orjson writes as a list."""
    if datatype.kind == "s":
        return array.ravel().tolist()
    flat = np.ascontiguousarray(array).ravel()
    return flat.astype(np.float32) if datatype.name == "BF16" else flat


def _with_nan(said: Mapping[str, Any]) -> bytes:
    """JSON with NaN and Infinity, as the protocol's clients read it."""
    return json.dumps(said, default=lambda array: array.tolist()).encode()
