"""Tables of pandas and polars, and columns of them, as arrays of numbers without gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lamella.errors import DataError, counted, did_you_mean, shown

__all__ = ["array_of", "by_name", "in_other_order", "in_words", "is_column", "is_frame"]

_LISTED = 6  # names of columns that are told
_NUMPY = {"b": "bool", "i": "int64", "u": "uint64", "f": "float64"}
_HELD = {  # by the first word of a dtype, in lower case, without its width
    **dict.fromkeys(("category", "categorical", "enum", "dictionary"), "categories"),
    **dict.fromkeys(("str", "string", "large_string"), "text"),
    **dict.fromkeys(("timedelta", "duration"), "durations"),
    **dict.fromkeys(("date", "datetime", "timestamp", "period"), "dates"),
    "time": "times of day",
}


def is_frame(value: Any) -> bool:
    """Whether a value is a table of pandas or polars."""
    return hasattr(type(value), "columns") and bool(_library(value))


def is_column(value: Any) -> bool:
    """Whether a value is one column of pandas or polars, such as a Series."""
    return hasattr(value, "dtype") and hasattr(value, "to_numpy") and bool(_library(value))


def in_other_order(value: Any, other: Any) -> bool:
    """Whether two tables or columns of pandas have the same labels of rows, in different orders."""
    index, others = (getattr(one, "index", None) if _library(one) == "pandas" else None for one in (value, other))
    if index is None or others is None or index is others or len(index) != len(others) or index.equals(others):
        return False
    return bool(index.is_unique and others.is_unique and index.isin(others).all())


def by_name(what: str, frame: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a table, which have to be those of some inputs or outputs.

    Raises:
        DataError: a column that is missing, or there twice, or is none of them.
    """
    columns = list(_columns(frame))
    given = [name for name, _ in columns]
    for name in names:
        if given.count(name) != 1:
            there = "there twice" if name in given else "not there"
            hint = did_you_mean(name, [one for one in given if isinstance(one, str)])
            raise DataError(
                f"{what}: column {name!r} is {there}; expected one each for {', '.join(names)}.{hint} Columns with "
                f"other names, or several for one, go in as a dict: {{{name!r}: frame[...], ...}}"
            )
    if more := [name for name in given if name not in names]:
        raise DataError(f"{what}: nothing takes the columns {_listed(more)}. Likely fix: frame[{list(names)!r}]")
    return dict(columns)


def in_words(frame: Any) -> str:
    """Return the names of a table's columns, the first ones of many."""
    return _listed([name for name, _ in _columns(frame)])


def _listed(names: Sequence[Any]) -> str:
    if not names:
        return "none"
    more = len(names) - _LISTED
    return ", ".join([*map(shown, names[:_LISTED]), *[f"{more:,} more"] * (more > 0)])


def array_of(value: Any, where: str) -> np.ndarray[Any, Any]:
    """Return a table as an array (N, columns), or a column as an array (N,), of numbers or bools.

    The dtype is one that holds all columns; beside numbers, bools are 0 and 1.

    Raises:
        DataError: a column that holds something else, or has gaps; ``where`` begins the message.
    """
    where = f"{where}, got a {type(value).__name__}"
    if not is_frame(value):
        name = getattr(value, "name", None)
        return _numbers(value, f"{where} that" if name in (None, "") else f"{where} {shown(name)} that", "series")
    if not hasattr(value, "to_numpy"):
        raise DataError(f"{where}, which has no rows yet. Likely fix: frame.collect()")
    columns = list(_columns(value))
    if len({str(column.dtype) for _, column in columns}) == 1 and _is_numeric(columns[0][1].dtype):
        array = np.asarray(value.to_numpy())  # most often without a copy
        if array.dtype.kind in _NUMPY and not _gaps(array).any():
            return array
    arrays = [
        _numbers(column, f"{where} whose column {shown(name)}", f"frame[{name!r}]", name) for name, column in columns
    ]
    return np.stack(arrays, axis=1) if arrays else np.empty((len(value), 0))


def _library(value: Any) -> str:
    """``"pandas"``, ``"polars"`` or nothing, without an import of either."""
    roots = (cls.__module__.partition(".")[0] for cls in type(value).__mro__)
    return next((root for root in roots if root in ("pandas", "polars")), "")


def _columns(frame: Any) -> Iterator[tuple[Any, Any]]:
    if _library(frame) == "pandas":
        yield from frame.items()
    else:
        yield from ((column.name, column) for column in frame.iter_columns())


def _is_numeric(dtype: Any) -> bool:
    if hasattr(dtype, "is_numeric"):  # of polars
        return bool(dtype.is_numeric()) or str(dtype) in ("Boolean", "Null")
    return getattr(dtype, "kind", "") in _NUMPY or str(dtype).startswith("decimal")  # of Arrow


def _gaps(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(1, bool)


def _numbers(column: Any, what: str, code: str, name: Any = None) -> np.ndarray[Any, Any]:
    """The numbers of a column, which errors describe, and write as code; a column of a table has a name."""
    of_pandas = _library(column) == "pandas"
    if not _is_numeric(column.dtype):
        held = _held(column)
        raise DataError(f"{what} holds {held}. Likely fix: {_fix(held, of_pandas, code, name)}")
    missing, kind, fill = np.asarray(column.isna() if of_pandas else column.is_null()), "missing value", "fill_null"
    if not missing.any():
        array = np.asarray(column.to_numpy())
        if array.dtype.kind not in _NUMPY:  # decimal numbers, and pandas' own dtypes
            array = array.astype(_NUMPY.get(getattr(column.dtype, "kind", "f"), "float64"))
        missing, kind, fill = _gaps(array), "NaN value", "fill_nan"
        if not missing.any():
            return array
    raise DataError(
        f"{what} has {counted(int(missing.sum()), kind)}, the first in row {int(missing.argmax())}. Likely fix: "
        f"{code}.{'fillna' if of_pandas else fill}(...), or leave such rows out of all data"
    )


def _held(column: Any) -> str:
    """What a column holds that are no numbers."""
    (word,) = re.findall(r"^[a-z_]*", str(column.dtype).lower())
    if word == "object" and any(isinstance(one, str) for one in column[:100]):
        return "text"
    return _HELD.get(word, f"values of dtype {column.dtype}")


def _fix(held: str, of_pandas: bool, code: str, name: Any) -> str:
    """How numbers are made of it."""
    if held == "durations":
        return f"{code}.dt.total_seconds()"
    if held == "times of day":
        return f"numbers made of them, such as {code}.dt.hour()"
    if held == "dates":
        return f"numbers made of them, such as {code}.dt.{'dayofweek' if of_pandas else 'weekday()'}"
    if held not in ("categories", "text"):
        return f"pd.to_numeric({code}), or numbers made of them" if of_pandas else "numbers made of them"
    kind = "pd.CategoricalDtype(kinds)" if of_pandas else "pl.Enum(kinds)"
    codes = f"{code}.astype({kind}).cat.codes" if of_pandas else f"{code}.cast({kind}).to_physical()"
    kept = f"where kinds = list({code}.unique()) of the training data, for new rows too"  # else their codes are others
    if code == "series":
        return f"integers for it, as labels or for an Embedding: {codes}, {kept}"
    dummies = f"pd.get_dummies(frame.astype({{{name!r}: {kind}}}), columns=[{name!r}])"
    if not of_pandas:
        column = f"(pl.col({name!r}) == kind).alias(f'{name}_{{kind}}')"
        dummies = f"frame.with_columns({column} for kind in kinds).drop({name!r})"
    return (
        f"{dummies}, {kept}; or a pipeline with scikit-learn's OneHotEncoder; for an input of its own with an "
        f"Embedding, {codes}"
    )
