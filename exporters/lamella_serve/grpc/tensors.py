"""Requests and answers as messages: tensors as bytes, or in fields of their datatype's own.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella_serve.datatypes import Array, Datatype, as_text, narrowed, pack, unpack
from lamella_serve.inference import Answer, InferRequest, Wanted, checked_shape, input_named, refuse_shared_memory
from lamella_serve.model import ServedModel
from lamella_serve.protocol import message
from lamella_serve.refusals import Refusal

__all__ = ["decode", "encode"]

_FIELDS = {  # of InferTensorContents; it has none for 16-bit floats
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode(request: Any, model: ServedModel) -> InferRequest:
    """Read a ModelInferRequest.

    Raises:
        Refusal: it is not what the protocol says, or asks for what the model has not.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Refusal(400, f"raw_input_contents: expected one for each of {len(request.inputs)} inputs, got {len(raw)}")
    inputs: dict[str, Array] = {}
    for place, given in enumerate(request.inputs):
        name, what = given.name, f"input {given.name!r}"
        datatype = input_named(model, name)
        if given.datatype != datatype.name:
            raise Refusal(400, f"{what}: expected datatype {datatype.name!r}, got {given.datatype!r}")
        if name in inputs:
            raise Refusal(400, f"{what} is given twice")
        shape, count = checked_shape(given.shape, what)
        refuse_shared_memory(given.parameters, what)
        if not raw:
            inputs[name] = _typed(given.contents, datatype, shape, count, what)
        elif given.contents.ByteSize():
            raise Refusal(400, f"{what}: expected contents or raw_input_contents, got both")
        else:
            inputs[name] = unpack(raw[place], datatype, shape, count, what)
    return InferRequest(request.id, inputs, _wanted(request, model))


def _typed(contents: Any, datatype: Datatype, shape: tuple[int, ...], count: int, what: str) -> Array:
    """An array from the field of its datatype."""
    expected = _FIELDS.get(datatype.name)
    if expected is None:
        raise Refusal(400, f"{what}: {datatype.name} is sent in raw_input_contents only")
    given = [field.name for field, _ in contents.ListFields()]
    if given != [expected] and (given or count):
        got = ", ".join(given) or "neither"
        raise Refusal(400, f"{what}: expected raw_input_contents, or {datatype.name} as {expected}, got {got}")
    values = getattr(contents, expected)
    if len(values) != count:
        raise Refusal(400, f"{what}: shape {list(shape)} takes {count:,} elements, got {len(values):,}")
    if datatype.kind == "s":
        array = np.empty(count, object)
        array[:] = [as_text(value, what) for value in values]
    elif datatype.kind == "i":
        array = narrowed(np.asarray(values), datatype, what)
    else:
        array = np.asarray(values, datatype.numpy)
    return array.reshape(shape)


def _wanted(request: Any, model: ServedModel) -> list[Wanted]:
    """The outputs that are asked for: all, unless some are named."""
    if not request.outputs:
        return [Wanted(output.name) for output in model.outputs]
    wanted = []
    for one in request.outputs:
        what, classes = f"output {one.name!r}", 0
        refuse_shared_memory(one.parameters, what)
        if "classification" in one.parameters:
            classes = one.parameters["classification"].int64_param
            if classes < 1:
                raise Refusal(400, f"{what}: classification: expected an int64_param of 1 or more")
        wanted.append(Wanted(one.name, classes))
    return wanted


def encode(model: ServedModel, identifier: str, answers: Sequence[Answer]) -> Any:
    """Return an answer as a ModelInferResponse, tensors as bytes."""
    response = message("ModelInferResponse")(model_name=model.name, model_version=str(model.version), id=identifier)
    for one in answers:
        response.outputs.add(name=one.wanted.name, datatype=one.datatype.name, shape=one.array.shape)
        response.raw_output_contents.append(pack(one.array, one.datatype))
    return response
