"""The shape and dtype of arrays: as a layer declares them, and in words for messages."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np

from lamella.arguments import dtype_name, number
from lamella.errors import ArgumentError, shown

__all__ = ["FLOATS", "ArraySpec", "described", "shape_in_words", "whole"]

FLOATS = ("float32", "float64")
DTYPES = (*FLOATS, "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """The shape and dtype of an array whose batch size is not known yet.

    ``shape`` starts with the batch axis, ``"N"``; any other axis may be symbolic too, such as ``"T"``.
    ``low <= value < high`` is the range from which checks and exports draw; integers outside of it are refused as data.

    >>> ArraySpec(("N", 28, 28))
    ArraySpec(('N', 28, 28), 'float32')
    >>> ArraySpec(("N", 28, 28)).replace(shape=("N", 784)).shape
    ('N', 784)
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple | list):
            raise ArgumentError(
                f"ArraySpec: shape: expected a tuple of sizes such as ('N', 28, 28), got {shown(self.shape)}"
            )
        shape = tuple(map(whole, self.shape))
        for axis, size in enumerate(shape):
            symbolic = isinstance(size, str) and size.isidentifier()
            if not symbolic and (isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**63):
                raise ArgumentError(
                    f"ArraySpec: shape[{axis}] is {shown(size)}; expected a size, or a name such as 'T' for an axis "
                    f"whose size is not known, in shape {shown(shape)}"
                )
        dtype = dtype_name(self.dtype, "ArraySpec: dtype", DTYPES)
        for name, limit in (("low", self.low), ("high", self.high)):
            if limit is not None:
                number(limit, f"ArraySpec: {name}")
                object.__setattr__(self, name, limit.item() if isinstance(limit, np.generic) else limit)
        limits = [limit for limit in (self.low, self.high) if limit is not None]
        if len(limits) == 2 and not limits[0] < limits[1]:
            raise ArgumentError(f"ArraySpec: expected low < high, got low={self.low!r} and high={self.high!r}")
        if np.dtype(dtype).kind in "iu" and limits:
            held = np.iinfo(dtype)
            if (self.low is not None and self.low > held.max) or (self.high is not None and self.high <= held.min):
                raise ArgumentError(
                    f"ArraySpec: {dtype} holds {held.min} to {held.max}, so nothing from low={self.low!r} to below "
                    f"high={self.high!r}"
                )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)

    @property
    def is_float(self) -> bool:
        """Whether gradients flow through the array."""
        return self.dtype in FLOATS

    def replace(self, **changes: Any) -> ArraySpec:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        return f"{shape_in_words(self.shape)} {self.dtype}"

    def __repr__(self) -> str:
        limits = "".join(f", {k}={v}" for k, v in (("low", self.low), ("high", self.high)) if v is not None)
        return f"ArraySpec({self.shape!r}, {self.dtype!r}{limits})"


def whole(size: Any) -> Any:
    """A size as a plain int, where it is any kind of integer."""
    try:
        return size if isinstance(size, bool) else operator.index(size)
    except TypeError:
        return size


def shape_in_words(shape: tuple[int | str, ...]) -> str:
    """Return a shape as people write it, names of axes without quotes.

    >>> shape_in_words(("N", 3)), shape_in_words((2,))
    ('(N, 3)', '(2,)')
    """
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def described(array: Any) -> str:
    """Return the shape and dtype of an array; of what is no array, its type.

    >>> described(np.zeros((2, 3), "float32")), described([1])
    ('(2, 3) float32', 'a list')
    """
    if array is None or not hasattr(array, "shape"):
        return "None; is a return missing?" if array is None else f"a {type(array).__name__}"
    return f"{tuple(array.shape)} {array.dtype}"
