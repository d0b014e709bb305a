"""How far onnxruntime rounds: seen where inputs move by a few units in the last place, and its error with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lamella.backends import get_backend
from lamella.backends.counter import mix_keys, uniform

__all__ = ["Rounding", "largest", "near", "own_rounding"]

MOVES, REACH = 16, 256  # how often inputs are moved to see onnxruntime's rounding, and by how many units at most
LEAST, MOST = 1e-4, 5e-3  # of a row's scale: what onnxruntime may round to without a reason, and at most

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How far onnxruntime rounds an output, for each row, and the mean of the exact results where inputs hardly move.

    What a graph does wrong it does wrong again for inputs a few units in the last place away; rounding differs from one
    to the next, so that its mean is small.
    """

    rows: Array
    mean: Array

    @np.errstate(over="ignore", invalid="ignore")
    def explained(self, mean: Array) -> Array:
        """The rounding of rows, but 0 of those where onnxruntime's own mean is further than that from the exact one."""
        steady = largest(_finite(_rows(mean) - _rows(self.mean)))
        return np.where(steady <= self.rows, self.rows, 0.0)


def near(inputs: Arrays) -> Iterator[Arrays]:
    """Yield inputs, and then again with floats moved by a few units in the last place; always the same."""
    yield inputs
    for k in range(MOVES):
        yield tuple(_moved(x, (place, k)) if x.dtype.kind == "f" and x.size else x for place, x in enumerate(inputs))


def _moved(x: Array, keys: tuple[int, int]) -> Array:
    """Floats moved by up to 256 units in the last place, each by its own number of them, within their range."""
    draw = uniform(get_backend("numpy").xp, mix_keys(None, keys), len(x), 0, x.shape).astype("float64")
    moved = (x + np.round((2.0 * draw - 1.0) * REACH) * np.spacing(x)).astype(x.dtype)
    moved = np.clip(moved, np.fmin.reduce(x, axis=None), np.fmax.reduce(x, axis=None))
    return np.where(np.isfinite(x), moved, x)


class _Spread:
    """How an output varies from run to run, on inputs that are near each other."""

    def __init__(self, exact: Array):
        self.first = _rows(exact)
        self.low, self.high = np.full(self.first.shape, np.inf), np.full(self.first.shape, -np.inf)
        self.effect = np.zeros(len(exact))
        self.got, self.exact = (np.zeros(exact.shape) for _ in range(2))  # their means

    def add(self, got: Array, exact: Array) -> None:
        """Take in a run; one of another shape is none, and `compare` says so."""
        got = got if got.shape == exact.shape else exact
        error = _rows(got) - _rows(exact)
        self.low, self.high = np.minimum(self.low, error), np.maximum(self.high, error)
        self.effect = np.maximum(self.effect, largest(_finite(_rows(exact) - self.first)))
        self.got, self.exact = self.got + got / (MOVES + 1.0), self.exact + exact / (MOVES + 1.0)

    def rounding(self) -> Array:
        """Half of what the error varies by, for each row, as far as that is plausible."""
        scale = np.maximum(1.0, largest(_finite(self.first)))
        limit = np.clip(2.0 * self.effect / REACH, LEAST * scale, MOST * scale)
        return np.minimum(largest(_finite(self.high - self.low)) / 2.0, limit)


@np.errstate(over="ignore", invalid="ignore")
def own_rounding(
    runtime: Callable[[Arrays], Sequence[Array]], exact: Callable[[Arrays], Sequence[Array]], inputs: Arrays
) -> tuple[list[Rounding], list[Array]]:
    """How far onnxruntime rounds each output, and the mean of its results where inputs hardly move.

    Its rounding is half of what its error varies by. But a graph that computes by unstable formulas must not excuse
    itself: beyond 1e-4 of a row's scale, no more counts than twice what one unit in the last place of the inputs does
    to the exact result, and never more than 5e-3.
    """
    spreads: list[_Spread] = []
    for x in near(inputs):
        results = exact(x)
        spreads = spreads or [_Spread(e64) for e64 in results]
        for spread, got, e64 in zip(spreads, runtime(x), results, strict=True):
            spread.add(got, e64)
    return [Rounding(spread.rounding(), spread.exact) for spread in spreads], [spread.got for spread in spreads]


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def _rows(values: Array) -> Array:
    return values.astype("float64").reshape(len(values), -1)


def largest(rows: Array) -> Array:
    """The largest size of a number in each row."""
    return np.max(np.abs(rows), axis=1, initial=0.0)  # type: ignore[no-any-return]
