"""Rows as scikit-learn takes them, an array or a data frame, and as an ONNX file does: an array for each input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import issparse

import lamella as lm
from lamella.protocol.inputs import as_array
from lamella_onnx.probes import PLACES, Range

__all__ = ["Column", "Rows"]

Array = np.ndarray[Any, Any]
_DTYPES = {"f": "float32", "i": "int64", "u": "int64", "b": "bool", "U": "string"}  # in a file, by NumPy's kind


@dataclasses.dataclass(frozen=True)
class Column:
    """An input of a file: a column of a data frame, or all columns of an array.

    Attributes:
        name: of the input.
        values: (N, 1), or (N, features), as the file takes them; None where it can't.
        refusal: why it can't.
    """

    name: str
    values: Array | None
    refusal: str = ""

    def need(self) -> Array:
        """Return the values, or raise."""
        if self.values is None:
            raise lm.DataError(f"to_onnx: samples: {self.name!r}: expected numbers, bools or strings, {self.refusal}")
        return self.values

    @property
    def width(self) -> int:
        """How many columns of the samples it is."""
        return 1 if self.values is None else self.values.shape[1]

    @property
    def dtype(self) -> str:
        """The name of the dtype in the file."""
        return "string" if self.values is None else _DTYPES[self.values.dtype.kind]

    def range(self, *, between: bool) -> Range:
        """What random values are drawn from: the samples' own, or all within their range.

        Numbers may be categories, so those of a data frame's column are drawn from the samples' own, unless they are
        many. ``between``: floats are drawn from their range.
        """
        given = self.need()
        shape, known = ("N", self.width), np.unique(given)
        own = self.dtype in ("string", "bool") or (
            self.width == 1 and len(known) <= PLACES and not (between and self.dtype == "float32")
        )
        if own:
            return Range(self.name, shape, self.dtype, values=known[:: -(-len(known) // PLACES)].tolist())
        numbers, axis = given.astype("float64"), 0 if self.width <= PLACES else None
        finite = np.isfinite(numbers)
        low = np.min(numbers, axis=axis, where=finite, initial=np.inf)
        high = np.max(numbers, axis=axis, where=finite, initial=-np.inf) + (self.dtype == "int64")
        some = low <= high  # else no value is finite
        return Range(
            self.name, shape, self.dtype, np.where(some, low, 0.0).tolist(), np.where(some, high, 1.0).tolist()
        )


class Rows:
    """Samples, and how others like them are made.

    Attributes:
        samples: as they were given, a data frame or an array.
        is_frame: whether each of their columns is an input of its own.
        columns: the inputs that a file may have.
    """

    def __init__(self, samples: Any) -> None:
        if issparse(samples):
            raise TypeError("to_onnx: samples: expected dense data, got sparse. Likely fix: samples.toarray()")
        self._is_pandas = hasattr(samples, "iloc") and hasattr(samples, "columns")
        self.is_frame = self._is_pandas or hasattr(samples, "with_columns")  # of polars
        where = "to_onnx: samples: expected rows (N, features)"
        self.samples: Any = samples if self.is_frame else as_array(samples, where)
        if len(self.samples.shape) != 2 or not all(self.samples.shape):
            raise lm.DataError(f"{where}, one or more, got {self.samples.shape}")
        if self.is_frame:
            names = list(map(str, samples.columns))
            if twice := {name for name in names if names.count(name) > 1}:
                raise lm.DataError(f"to_onnx: samples: expected columns of different names, got {min(twice)!r} twice")
            self.columns = [_column(str(name), self.samples[name].to_numpy()[:, None]) for name in samples.columns]
        else:
            self.columns = [_column("X", self.samples)]
            self.columns[0].need()

    def like(self, values: Mapping[str, Array], floats: str) -> Any:
        """Return rows of these values for columns, as scikit-learn takes them; ``floats``: the dtype of floats.

        Columns that are not named get the samples' values.
        """
        given = {name: _for_python(array, floats) for name, array in values.items()}
        if not self.is_frame:
            return given["X"]
        places = (np.arange(len(next(iter(given.values())))) % len(self.samples)).tolist()
        kinds = dict(zip(self.samples.columns, self.samples.dtypes, strict=True))
        named = {name: given[str(name)][:, 0] for name in kinds if str(name) in given}
        kept = {name: kinds[name] for name, array in named.items() if array.dtype.kind != "f"}
        if not self._is_pandas:
            return self.samples[places].with_columns(type(self.samples)(named).get_columns()).cast(kept)
        frame = self.samples.iloc[places].reset_index(drop=True)
        for name, array in named.items():
            frame[name] = array
        return frame.astype(kept)


def _for_python(array: Array, floats: str) -> Array:
    kind = array.dtype.kind
    return array.astype(floats if kind == "f" else "object") if kind in "fU" else array


def _column(name: str, values: Array) -> Column:
    """A column as a file takes it, if it can."""
    if values.dtype.kind in "OT":  # strings, or what is no array of one dtype
        kinds = {type(one) for one in values.flat}
        if kinds not in ({str}, {bool}) and not kinds <= {int, float}:
            found = " and ".join(sorted(kind.__name__ for kind in kinds))
            return Column(name, None, f"got values of {found}. Likely fix: one kind alone, with missing ones filled")
        values = np.array(values.tolist())
    dtype = _DTYPES.get(values.dtype.kind)
    if dtype is None:
        return Column(name, None, f"got {values.dtype}. Likely fix: convert it to numbers")
    return Column(name, values if dtype == "string" else values.astype(dtype))
