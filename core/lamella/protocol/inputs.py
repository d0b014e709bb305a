"""Arrays that users hand in, checked against what a model expects and made ready for the engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lamella.errors import DataError, LayerError, did_you_mean, shown
from lamella.protocol import frames
from lamella.protocol.spec import FLOATS, ArraySpec

__all__ = [
    "LARGE",
    "as_array",
    "as_inputs",
    "as_weights",
    "cast",
    "converted",
    "for_each",
    "naming",
    "only_reads",
    "pieces",
    "row_count",
    "unwritable",
]

LARGE = 1 << 26
"""Bytes of a converted copy from which on none of the whole array is made, but one of each batch."""


def for_each(
    what: str, value: Any, names: Sequence[str], parse: Callable[[str, Any], Any] | None = None
) -> tuple[Any, ...]:
    """Spread a tuple, or a dict or table by name, over the names; a single value stands for one name."""
    if len(names) > 1 and frames.is_frame(value):
        value = frames.by_name(what, value, names)
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                hint = did_you_mean(name, names) if isinstance(name, str) else ""
                raise DataError(f"{what}: unknown name {shown(name)}; expected {', '.join(names)}.{hint}")
        if missing := [name for name in names if name not in value]:
            raise DataError(f"{what}: nothing for {', '.join(missing)}; expected one entry each for {', '.join(names)}")
        parts: tuple[Any, ...] = tuple(value[name] for name in names)
    elif len(names) == 1:
        parts = value if isinstance(value, tuple) and len(value) == 1 else (value,)
    elif isinstance(value, tuple | list) and len(value) == len(names):
        parts = tuple(value)
    else:
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else type(value).__name__
        raise DataError(f"{what}: expected a tuple of {len(names)}, or a dict, for {', '.join(names)}; got {got}")
    return parts if parse is None else tuple(parse(name, part) for name, part in zip(names, parts, strict=True))


@contextlib.contextmanager
def naming(output: str, outputs: Sequence[str]) -> Iterator[None]:
    """Let errors say which output they are about, where there are several."""
    try:
        yield
    except DataError as error:
        if len(outputs) == 1:
            raise
        raise DataError(f"output {output!r}: {error}") from None


@contextlib.contextmanager
def only_reads(reader: Any, arrays: str, fix: str) -> Iterator[None]:
    """Let the error of a metric or loss that writes into `unwritable` arrays say so."""
    try:
        yield
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise LayerError(
            f"{reader!r} writes into the {arrays} that it is given; make new arrays, as in {fix}"
        ) from error


def as_inputs(
    names: Sequence[str], specs: Sequence[ArraySpec], x: Any, *, large_as_given: bool = False
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return one NumPy array for each input of a model, of its dtype, all with equally many rows.

    With ``large_as_given``, large arrays of other dtypes are checked like the others, but left to be `converted` batch
    by batch.
    """
    sizes: dict[str, tuple[int, str]] = {}
    arrays = for_each("x", x, names)
    fitting = tuple([_fit(name, spec, array, sizes) for name, spec, array in zip(names, specs, arrays, strict=True)])
    if large_as_given:
        return fitting
    return tuple(converted(array, np.dtype(spec.dtype)) for array, spec in zip(fitting, specs, strict=True))


def converted(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a checked array in another dtype, or the array itself if it is of it."""
    return array if array.dtype is dtype else array.astype(dtype, copy=False)


def pieces(array: np.ndarray[Any, Any], itemsize: int) -> Iterator[slice]:
    """Return the rows of an array in pieces whose copies, with entries of so many bytes, are not large."""
    count = max(1, LARGE // 4 // max(1, itemsize * (array.size // max(1, len(array)))))
    return (slice(start, min(start + count, len(array))) for start in range(0, len(array), count))


_FLOATS = {name: np.dtype(name) for name in FLOATS}


def _fit(name: str, spec: ArraySpec, value: Any, sizes: dict[str, tuple[int, str]]) -> np.ndarray[Any, Any]:
    if type(value) is np.ndarray and value.dtype is _FLOATS.get(spec.dtype) and value.shape[1:] == spec.shape[1:]:
        rows = value.shape[:1]
        if rows and sizes.setdefault("N", (rows[0], name))[0] == rows[0]:
            return value
    where = f"input {name!r}: expected {spec}"
    if "cupy" in type(value).__module__:
        value = value.get()
    array = as_array(value, where)
    if array.dtype.kind not in "fiub" and (text := _text(spec, array)):
        raise DataError(f"{where}, got {array.shape} {array.dtype}, which is text. Likely fix: {text}")
    if array.ndim == 1 and spec.shape[1:] == (1,):
        array = array[:, None]
    got, code = f"{array.shape} {array.dtype}", "x"
    if frames.is_frame(value):
        got, code = f"{got} with columns {frames.in_words(value)}", "x.to_numpy()"
    if len(array.shape) != len(spec.shape) or any(
        isinstance(want, int) and want != have for want, have in zip(spec.shape, array.shape, strict=True)
    ):
        raise DataError(f"{where}, got {got}.{_fix(spec, array, code)}")
    for want, have in zip(spec.shape, array.shape, strict=True):
        if isinstance(want, str) and sizes.setdefault(want, (have, name))[0] != have:
            size, other = sizes[want]
            raise DataError(f"{where}, got {got}; axis {want!r} has {size} in input {other!r}")
    for want, have in zip(spec.shape[1:], array.shape[1:], strict=True):
        if isinstance(want, str) and have == 0:
            raise DataError(f"{where}, got {got}; axis {want!r} has nothing in it, and only the batch may be empty")
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}[np.dtype(spec.dtype).kind]
    if array.dtype.kind not in kinds:
        fix = f"convert it with {code}.astype({spec.dtype!r})" if array.dtype.kind in "fiub" else "give numeric data"
        fix += ", which truncates" if array.dtype.kind == "f" else ""
        raise DataError(f"{where}, got {got}; {fix}")
    if spec.dtype != "bool" and not spec.is_float and array.size:
        limits = np.iinfo(spec.dtype)
        low = max(limits.min, spec.low if spec.low is not None else limits.min)
        high = min(limits.max, spec.high - 1 if spec.high is not None else limits.max)
        if array.min() < low or array.max() > high:
            raise DataError(f"{where} with values in [{low}, {high}], got values from {array.min()} to {array.max()}")
    dtype = np.dtype(spec.dtype)
    if array.size * dtype.itemsize <= LARGE:
        return cast(array, spec.dtype, where)
    if array.dtype.kind == "f" and array.dtype.itemsize > dtype.itemsize:
        for rows in pieces(array, dtype.itemsize):
            cast(array[rows], spec.dtype, where)
    return array


def as_array(value: Any, where: str) -> np.ndarray[Any, Any]:
    """Return anything array-like as NumPy."""
    if type(value) is np.ndarray:
        return value
    if np.ma.is_masked(value):
        raise DataError(
            f"{where}, got a masked array, whose mask would be lost. Likely fix: array.filled(...), and sample_weight "
            "of 0 for rows that shall not count"
        )
    try:
        if frames.is_frame(value) or frames.is_column(value):
            return frames.array_of(value, where)
        return np.asarray(value)
    except (MemoryError, DataError):
        raise
    except Exception as error:  # ragged lists, and what somebody's own __array__ raises
        raise DataError(f"{where}, got something that is no rectangular array: {error}") from None


def unwritable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the same array for those who may read it only."""
    view = array.view()
    view.flags.writeable = False
    return view


def cast(array: np.ndarray[Any, Any], dtype: str, where: str) -> np.ndarray[Any, Any]:
    """Return an array in another dtype; values beyond its range are an error, not infinity."""
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError:
        raise DataError(
            f"{where}, got {array.dtype} values beyond the range of {dtype}; rescale the data, or make the model with "
            "dtype='float64'"
        ) from None


def _fix(spec: ArraySpec, array: np.ndarray[Any, Any], code: str) -> str:
    """How an array could be made to fit; code says what it is called."""
    shape, own = array.shape, spec.shape[1:]
    if not shape and own in ((), (1,)):
        return f" For one row give [{code}]."
    if shape == own:
        return f" For one sample add a batch axis: {code}[None]."
    if len(shape) == 4 and (shape[3], shape[1], shape[2]) == own:
        return f" Images are channels first here: {code}.transpose(0, 3, 1, 2)."
    if all(isinstance(size, int) for size in own) and shape and array.size:
        size = math.prod(int(size) for size in own)
        if size and math.prod(shape[1:]) == size:
            return f" Likely fix: {code}.reshape({', '.join(map(str, (-1, *own)))})."
    return ""


def _text(spec: ArraySpec, array: np.ndarray[Any, Any]) -> str:
    """How numbers are made of text, or an empty string for what is none."""
    first = array.reshape(-1)[:100]
    if array.dtype.kind not in "USO" or not any(isinstance(one, str | bytes) for one in first.tolist()):
        return ""
    with contextlib.suppress(ValueError, TypeError):
        first.astype("float64")
        return f"x.astype({spec.dtype!r})"
    if spec.shape[1:] not in ((), (1,)):
        return "numbers in its place"
    return (
        "integers in its place, [kinds.index(one) for one in x], where kinds = sorted(set(x)) of the training data, "
        "for new rows too"
    )


def row_count(arrays: Sequence[np.ndarray[Any, Any]], what: str) -> int:
    """Return how many rows arrays have; they must agree, and there must be one at least."""
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise DataError(f"{what}: arrays have {' and '.join(map(str, sorted(counts)))} rows; expected equally many")
    if (rows := counts.pop()) == 0:
        raise DataError(f"{what}: there are no rows")
    return rows


def as_weights(names: Sequence[str], rows: int, sample_weight: Any) -> tuple[np.ndarray[Any, Any] | None, ...]:
    """Return the float64 weights of the rows for each output, or None where all weigh 1."""
    if sample_weight is None:
        return (None,) * len(names)
    if len(names) > 1 and not isinstance(sample_weight, Mapping | tuple | list):
        sample_weight = (sample_weight,) * len(names)

    def parse(name: str, value: Any) -> np.ndarray[Any, Any]:
        weights = as_array(value, f"sample_weight of {name!r}: expected numbers")
        if weights.dtype.kind not in "fiub":
            raise DataError(f"sample_weight of {name!r}: expected numbers, got dtype {weights.dtype}")
        weights = weights.astype("float64")
        if weights.shape != (rows,):
            raise DataError(f"sample_weight of {name!r}: expected shape ({rows},), got {weights.shape}")
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise DataError(f"sample_weight of {name!r}: expected finite numbers of at least 0")
        with np.errstate(over="ignore"):
            total = weights.sum()
        if not math.isfinite(total):
            raise DataError(f"sample_weight of {name!r}: their sum is more than float64 holds; scale them down")
        if not weights.any():
            raise DataError(f"sample_weight of {name!r}: every row weighs 0, so there is nothing to average")
        return weights

    return for_each("sample_weight", sample_weight, names, parse)
