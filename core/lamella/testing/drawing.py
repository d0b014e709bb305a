"""Arrays drawn from a spec: random values, multiples of one half, values that are equal or sum to zero."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from lamella.protocol import ArraySpec

__all__ = ["draw_array", "pattern", "shorten", "within"]

Array = np.ndarray[Any, Any]


def draw_array(
    spec: ArraySpec,
    rows: int,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    *,
    scale: float | None = 1.0,
    offset: float = 0.0,
    rounded: bool = False,
) -> Array:
    """A random array of a spec, with ``sizes`` for axes known by name; floats as float32.

    Floats are normal around ``offset`` with deviation ``scale``, at most 1e3 off, or within what the spec allows:
    uniform between two limits, on the allowed side of one. Without a scale they are multiples of one half from -2 to 2,
    or nine values between two limits, so that there are ties, zeros and halves among them. ``rounded`` asks for values
    of few digits.
    """
    shape = tuple(rows if n == "N" else sizes[n] if isinstance(n, str) else n for n in spec.shape)
    low, high = spec.low, spec.high
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if not spec.is_float:
        first = 0 if low is None else int(low)
        return rng.integers(first, first + 10 if high is None else int(high), shape).astype(spec.dtype)
    if low is not None and high is not None:
        values = rng.uniform(low, high, shape) if scale else low + (high - low) * rng.integers(9, size=shape) / 8
    else:
        values = np.clip(scale * rng.standard_normal(shape), -1e3, 1e3) if scale else rng.integers(-4, 5, shape) / 2
        if low is not None:
            values = low + np.abs(values)
        if high is not None:
            values = high - np.abs(values)
        if (low, high) == (None, None):
            values = values + offset
    return within(spec, (shorten(values) if rounded else values).astype("float32"))


def pattern(shape: tuple[int, ...]) -> Array:
    """Values of at most 1 of which those along each axis sum to exactly 0, with as few zeros as that allows.

    >>> pattern((2, 4))
    array([[ 0.75,  0.25, -0.25, -0.75],
           [-0.75, -0.25,  0.25,  0.75]])
    """
    along = [np.ones(1) if n == 1 else np.arange(n) - (n - 1) / 2.0 for n in shape]  # x and -x, from both ends
    values = functools.reduce(np.multiply.outer, along, np.ones(()))
    return np.asarray(values * 2.0 ** -np.ceil(np.log2(max(1.0, np.max(values, initial=0.0)))))  # exact, so sums are


def shorten(values: Any) -> Any:
    """The nearest values of few digits, none of them 0."""
    return np.where(np.abs(values) < 0.05, np.copysign(0.1, values), np.round(values, 1))


def within(spec: ArraySpec, values: Array) -> Array:
    """The nearest float32 values for which ``low <= value < high``."""
    low = -np.inf if spec.low is None else spec.low
    high = np.inf if spec.high is None else np.nextafter(np.float32(spec.high), np.float32(-np.inf))
    return np.clip(values, np.float32(low), np.float32(high))
