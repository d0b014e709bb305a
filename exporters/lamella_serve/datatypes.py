"""The datatypes of tensors: their names in the protocol, in ONNX and in NumPy, and their values as bytes.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from lamella_serve.refusals import Refusal

__all__ = ["DATATYPES", "Datatype", "as_text", "narrowed", "of_onnx", "pack", "unpack"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Datatype:
    """A datatype.

    Attributes:
        name: in the protocol, such as "FP32".
        onnx: the number of ONNX's type.
        numpy: the dtype of arrays; strings are arrays of objects.
        kind: "f" for floats, "i" for integers with and without a sign, "b" for booleans, "s" for strings.
    """

    name: str
    onnx: int
    numpy: np.dtype[Any]
    kind: str

    @property
    def triton(self) -> str:
        """The name in Triton's model configuration."""
        return f"TYPE_{'STRING' if self.name == 'BYTES' else self.name}"


_TYPES = onnx.TensorProto
DATATYPES = {
    name: Datatype(name, number, np.dtype(dtype), kind)
    for name, number, dtype, kind in (
        ("BOOL", _TYPES.BOOL, "bool", "b"),
        ("UINT8", _TYPES.UINT8, "uint8", "i"),
        ("UINT16", _TYPES.UINT16, "uint16", "i"),
        ("UINT32", _TYPES.UINT32, "uint32", "i"),
        ("UINT64", _TYPES.UINT64, "uint64", "i"),
        ("INT8", _TYPES.INT8, "int8", "i"),
        ("INT16", _TYPES.INT16, "int16", "i"),
        ("INT32", _TYPES.INT32, "int32", "i"),
        ("INT64", _TYPES.INT64, "int64", "i"),
        ("FP16", _TYPES.FLOAT16, "float16", "f"),
        ("FP32", _TYPES.FLOAT, "float32", "f"),
        ("FP64", _TYPES.DOUBLE, "float64", "f"),
        ("BF16", _TYPES.BFLOAT16, ml_dtypes.bfloat16, "f"),
        ("BYTES", _TYPES.STRING, "object", "s"),
    )
}
_OF_ONNX = {datatype.onnx: datatype for datatype in DATATYPES.values()}


def of_onnx(number: int) -> Datatype | None:
    """Return the datatype of an ONNX type; None where the protocol has none, as for float8 and complex numbers."""
    return _OF_ONNX.get(number)


def pack(array: Array, datatype: Datatype) -> bytes:
    """Return the values as the bytes of a tensor: row by row, each string after its length.

    >>> pack(np.array(["ab"], object), DATATYPES["BYTES"])
    b'\\x02\\x00\\x00\\x00ab'
    """
    if datatype.kind == "s":
        texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel()]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    return array.tobytes()


def unpack(content: bytes | memoryview, datatype: Datatype, shape: tuple[int, ...], count: int, what: str) -> Array:
    """Return an array from the bytes of a tensor; it may be a view of them.

    Arguments:
        count: how many elements the shape asks for.
        what: the tensor, for errors.

    Raises:
        Refusal: they are too few or too many, or strings that are not UTF-8, which onnxruntime needs.
    """
    if datatype.kind == "s":
        strings = _strings(bytes(content), count, what)
        texts = np.empty(count, object)
        texts[:] = strings
        return texts.reshape(shape)
    expected = count * datatype.numpy.itemsize
    if len(content) != expected:
        raise Refusal(
            400, f"{what}: {list(shape)} {datatype.name} takes {expected:,} bytes of binary data, got {len(content):,}"
        )
    if datatype.kind == "b":
        return np.frombuffer(content, np.uint8).astype(bool).reshape(shape)  # any byte but 0 is true
    return np.frombuffer(content, datatype.numpy).reshape(shape)


def _strings(content: bytes, count: int, what: str) -> list[str]:
    texts: list[str] = []
    position = 0
    while position < len(content) and len(texts) < count:
        if position + 4 > len(content):
            break
        (length,) = struct.unpack_from("<I", content, position)
        text = content[position + 4 : position + 4 + length]
        if len(text) < length:
            break
        texts.append(as_text(text, what))
        position += 4 + length
    if len(texts) != count or position != len(content):
        raise Refusal(
            400, f"{what}: expected {count} strings, each after its length in 4 bytes, within {len(content):,} bytes"
        )
    return texts


def as_text(content: bytes, what: str) -> str:
    """Return a string for onnxruntime, which takes UTF-8 only."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refusal(
            400, f"{what}: expected strings in UTF-8, which onnxruntime needs, got {content[:20]!r}"
        ) from None


def narrowed(values: Array, datatype: Datatype, what: str) -> Array:
    """Return integers as those of a datatype.

    Raises:
        Refusal: the datatype does not hold them.
    """
    limits = np.iinfo(datatype.numpy)
    if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
        raise Refusal(400, f"{what}: {datatype.name} holds {limits.min} to {limits.max}, got more")
    return values.astype(datatype.numpy)
