"""The random batches that graphs are compared on: drawn from the counter generator, within the samples' ranges."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lamella import ArraySpec, Model
from lamella.backends import get_backend
from lamella.backends.counter import mix_keys, uniform

__all__ = ["BATCHES", "PLACES", "Probes", "Range", "candidates", "ranges"]

BATCHES = {1: 1.0, 2: 1.0, 7: 10.0}  # rows, and how far random floats reach where an input has no limits
PLACES = 1024  # at most as many places of a row have a range of their own; a proof holds them all
LONGEST = 512  # at most so long do axes of unknown size get, so that lengths may be as large as their spec says

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """An input and its range: values are drawn with ``low <= value < high``. None: floats without limits.

    A limit is a float, or nested lists with one for each place of a row, where axes of size 1 stand for any size.
    ``values`` are what is drawn from in place of a range: strings always are, and whatever has no values in between.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    low: float | list[Any] | None = None
    high: float | list[Any] | None = None
    values: list[Any] | None = None

    def sized(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return the shape for some sizes; a symbol that they lack gets a size, which is added to them."""
        batch = sizes["N"]
        return tuple(sizes.setdefault(n, 4 + len(sizes) + batch % 3) if isinstance(n, str) else n for n in self.shape)


@dataclasses.dataclass(frozen=True)
class Probes:
    """What random batches are drawn from: a range for each input, and for each batch the sizes of axes with a name.

    Sizes that are left out follow from the batch.
    """

    inputs: tuple[Range, ...]
    sizes: Mapping[int, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def bytes(self, batch: int) -> int:
        """Return how many bytes a batch takes, with the values that it is drawn from."""
        sizes = {"N": batch, **self.sizes.get(batch, {})}
        counts = (math.prod(max(n, 1) for n in row.sized(sizes)) + len(row.values or ()) for row in self.inputs)
        return sum(_itemsize(row) * count for row, count in zip(self.inputs, counts, strict=True))

    @np.errstate(over="ignore", invalid="ignore")  # ranges that exceed the dtype
    def draw(self, batch: int, seed: int) -> Arrays:
        """Draw a batch of inputs. Equal arguments give equal values on every machine.

        Floats without limits are drawn from [-1, 1), in the batch of 7 from [-10, 10).
        """
        sizes = {"N": batch, **self.sizes.get(batch, {})}
        reach = BATCHES.get(batch, 1.0)
        arrays = []
        for row in self.inputs:
            given = (-reach, reach) if row.low is None or row.high is None else (row.low, row.high)
            low, high = (np.asarray(limit, "float64") for limit in given)
            key = mix_keys(None, (seed, batch, zlib.crc32(row.name.encode())))
            unit = uniform(get_backend("numpy").xp, key, batch, 0, row.sized(sizes)).astype("float64")
            if row.values is not None:
                known = np.array(row.values, "str" if row.dtype == "string" else row.dtype)
                arrays.append(known[(unit * len(known)).astype("int64")])
                continue
            is_float = "float" in row.dtype  # then high - low may overflow
            values = low * (1.0 - unit) + high * unit if is_float else np.floor(unit * (high - low) + low)
            arrays.append(values.astype(row.dtype, order="C"))
        return tuple(arrays)

    def batches(self, seed: int) -> dict[str, Arrays]:
        """Draw the batches that graphs are compared on, by their names in reports."""
        return {f"batch of {size}": self.draw(size, seed) for size in BATCHES}


def _itemsize(row: Range) -> int:
    if row.dtype == "string":
        return 4 * max(map(len, row.values or ()), default=0)
    return np.dtype(row.dtype).itemsize


def candidates(model: Model, samples: Arrays | None = None) -> Iterator[Probes]:
    """Yield probes to try; the first whose batches the engine accepts is used.

    The range of one input can depend on another: the length of a sequence is at most the size of an axis. So axes with
    a name first get sizes that no such length exceeds, if samples are as long; then the samples' sizes; then small and
    even ones. Each is also tried with lengths from 1 to the smallest size only.
    """
    rows = ranges(model, samples)
    own = _sizes(model, samples) if samples is not None else {}
    longest = max(own.values(), default=0) if samples is not None else LONGEST
    needs = [int(limits[1]) - 1 for row in rows if (limits := _limits_of_length(row)) and limits[1] - 1 <= longest]
    usual = {batch: _usual_sizes(rows, batch) for batch in BATCHES}
    need = max(needs, default=0)
    fitting = {
        batch: {name: max(n, min(need, own.get(name, need)) + (batch == 2)) for name, n in sizes.items()}
        for batch, sizes in usual.items()
    }
    others = [dict.fromkeys(BATCHES, own)] if own and all(own.values()) else []
    for most, least in ((4, 3), (32, 16), (2, 1), (1, 1)):
        others.append({batch: dict.fromkeys(usual[batch], least if batch == 2 else most) for batch in BATCHES})
    tried: list[Probes] = []
    for sizes in (fitting, *others):
        for probes in (Probes(rows, sizes), Probes(_within(rows, sizes), sizes)):
            if probes not in tried:
                tried.append(probes)
                yield probes


def _sizes(model: Model, samples: Arrays) -> dict[str, int]:
    """The sizes that samples have along axes with a name."""
    shapes = ((spec.shape[1:], sample.shape[1:]) for spec, sample in zip(model.input_specs, samples, strict=True))
    return {name: n for own, shape in shapes for name, n in zip(own, shape, strict=True) if isinstance(name, str)}


def _usual_sizes(rows: Sequence[Range], batch: int) -> dict[str, int]:
    sizes = {"N": batch}
    for row in rows:
        row.sized(sizes)
    return {name: size for name, size in sizes.items() if name != "N"}


def _limits_of_length(row: Range) -> tuple[float, float] | None:
    """The limits of an input that may be a length: one integer for each row."""
    if row.shape == ("N",) and np.dtype(row.dtype).kind in "iu":
        return float(row.low), float(row.high)  # type: ignore[arg-type]  # integers have limits, and one place only one
    return None


def _within(rows: tuple[Range, ...], sizes: Mapping[int, Mapping[str, int]]) -> tuple[Range, ...]:
    """Ranges whose lengths fit into the smallest axis."""
    smallest = min((size for named in sizes.values() for size in named.values()), default=np.inf)
    fitting = []
    for row in rows:
        if limits := _limits_of_length(row):
            low, high = max(limits[0], 1.0), min(limits[1], smallest + 1.0)
            row = dataclasses.replace(row, low=low, high=high) if low < high else row
        fitting.append(row)
    return tuple(fitting)


def ranges(model: Model, samples: Arrays | None = None) -> tuple[Range, ...]:
    """Return the range of each input: that of the samples, else that of its spec, else none, or 0 and 1 for integers.

    With samples, each place of a row has its own range, such as each column of a table, if its axis has a known size.
    Where a row has more places than `PLACES`, those along its longest axes share one.
    """
    given = (None,) * len(model.input_specs) if samples is None else samples
    rows = zip(model.input_names, model.input_specs, given, strict=True)
    return tuple(Range(name, spec.shape, spec.dtype, *_limits(spec, sample)) for name, spec, sample in rows)


def _limits(spec: ArraySpec, sample: Array | None) -> tuple[Any, Any]:
    if sample is not None and sample.size and np.isfinite(sample).all():
        return _limits_of(spec, sample)
    if spec.is_float and spec.low is None and spec.high is None:
        return None, None
    low, high = (-1.0, 1.0) if spec.is_float else (0.0, 2.0)
    low, high = low if spec.low is None else float(spec.low), high if spec.high is None else float(spec.high)
    if low < high:
        return low, high
    return (low, low + 1.0) if spec.high is None else (high - 1.0, high)


def _limits_of(spec: ArraySpec, sample: Array) -> tuple[Any, Any]:
    """The limits of samples, place by place, within the spec's. Only if all places are constant are they widened."""
    kept = {axis: n for axis, n in enumerate(spec.shape) if axis and isinstance(n, int)}
    while math.prod(kept.values()) > PLACES:
        del kept[max(kept, key=lambda axis: kept[axis])]
    common = tuple(axis for axis in range(sample.ndim) if axis not in kept)
    least, most = (reduce(sample, axis=common, keepdims=True)[0].astype("float64") for reduce in (np.min, np.max))
    limits = -np.inf if spec.low is None else spec.low, np.inf if spec.high is None else spec.high
    if not spec.is_float:
        most += 1.0
    elif np.array_equal(least, most):
        least, most = (least, most + 1.0) if spec.high is None else (least - 1.0, most)
    return _short(np.clip(least, *limits)), _short(np.clip(most, *limits))


def _short(limits: Array) -> Any:
    """One float if all limits are equal, else lists."""
    return float(limits.flat[0]) if (limits == limits.flat[0]).all() else limits.tolist()
