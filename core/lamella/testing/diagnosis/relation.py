"""What a wrong array is in terms of the right one: a multiple, transposed, wrong in one corner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["constant_factor", "digits", "factor_in_words", "same", "same_but_moved", "where_different"]

SLIGHT = 1e-5  # of the largest value: a smaller difference counts as right
CLOSE = 1e-3  # of the largest value: difference quotients and float32 are not more exact than that everywhere

CONSTANTS = {
    -1.0: "a sign is wrong",
    2.0: "counted twice, or the 2 of a square's derivative too many?",
    0.5: "counted half, or the 2 of a square's derivative missing?",
    -2.0: "a sign is wrong, and it is counted twice",
    -0.5: "a sign is wrong, and it is counted half",
}


def same(a: Any, b: Any) -> bool:
    """Whether two arrays are the same but for rounding."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    if a.shape != b.shape or not a.size:
        return False
    scale = float(np.max(np.abs(b)))
    return bool(scale > 0.0 and np.max(np.abs(a - b)) <= CLOSE * scale)


def constant_factor(found: Any, right: Any) -> float | None:
    """The number r for which found = r * right; None if there is none."""
    found, right = np.asarray(found, "float64"), np.asarray(right, "float64")
    if found.shape != right.shape or not np.isfinite(found).all() or not np.isfinite(right).all():
        return None
    size = float(np.vdot(right, right))
    if size == 0.0:
        return None
    factor = float(np.vdot(right, found)) / size
    if not np.any(found):
        return 0.0
    return factor if same(found, factor * right) else None


def digits(factor: float) -> str:
    """A factor with as many digits as tell it from 1.

    >>> digits(2 / 3), digits(1.00041), digits(1.0)
    ('0.6667', '1.00041', '1')
    """
    off = abs(factor - 1.0)
    return f"{factor:.{4 if off == 0.0 else max(4, 3 - math.floor(math.log10(off)))}g}"


def factor_in_words(factors: tuple[float, float], sizes: tuple[Mapping[str, int], Mapping[str, int]]) -> str:
    """What a factor is: a constant, or one of the named sizes, or 1 over it; seen twice, where sizes were others."""
    small, first = factors

    def fits(a: float, b: float) -> bool:
        return abs(small - a) <= CLOSE * abs(a) and abs(first - b) <= CLOSE * abs(b)

    for constant, words in CONSTANTS.items():
        if fits(constant, constant):
            return f"off by a factor {constant:g}: {words}"
    for name, n in sizes[0].items():
        own = sizes[1][name]
        if n == 1:
            continue
        if fits(1 / n, 1 / own):
            asked = "averaged over the batch? Incoming gradients carry that already; sum them"
            asked = asked if name == "the batch size" else "was a mean taken where the gradient is a sum?"
            return f"off by a factor 1/{n}, where {n} is {name}: {asked}"
        if fits(n, own):
            asked = "summed over the batch twice, or multiplied by it?"
            asked = asked if name == "the batch size" else "was a sum taken where the forward pass has a mean?"
            return f"off by a factor {n} = {name}: {asked}"
    off = abs(small - 1.0)
    if off > CLOSE / 2 and abs(small - first) <= min(CLOSE * abs(small), 0.1 * off):  # nearer to 1, many things are
        return f"off by a constant factor of {digits(small)}"
    return ""


def same_but_moved(found: Any, right: Any) -> str:
    """Whether an array holds the right values in other places."""
    if same(found, right):
        return ""  # too small a difference to tell anything
    for words, candidate in _moved(np.asarray(right)):
        if candidate.shape == found.shape and same(found, candidate):
            return words
    for axis, n in enumerate(found.shape if found.shape == right.shape else ()):
        first, last = (np.arange(n - 1), np.arange(1, n)) if n > 2 else ((), ())
        for a, b in ((first, last), (last, first)):  # what is shifted in is not compared
            if len(a) and same(np.take(found, a, axis), np.take(right, b, axis)):
                return f"shifted by one place along axis {axis}"
    return ""


def _moved(right: Any) -> Iterator[tuple[str, Any]]:
    if right.ndim <= 4:
        for axes in itertools.permutations(range(right.ndim)):
            if axes != tuple(range(right.ndim)):
                yield f"transposed: the right values, with axes in the order {axes}", right.transpose(axes)
        for count in (1, 2):
            for some in itertools.combinations(range(right.ndim), count):
                what = " and ".join(map(str, some))
                yield f"reversed along axis {what}: the right values in the opposite order", np.flip(right, some)
    if right.ndim > 1:
        for order in itertools.permutations(range(right.ndim)):
            mixed = right.transpose(order).reshape(right.shape)
            yield "the right values, but reshaped in another order of the axes; permute axes before reshape", mixed


def where_different(found: Any, right: Any, value: Any, *, own: bool) -> str:
    """In which part of an array the wrong values stand; ``own``: each belongs to the element of ``value`` there."""
    found, right = np.asarray(found, "float64"), np.asarray(right, "float64")
    if found.shape != right.shape or found.size < 2:
        return ""
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(found - right) <= CLOSE * max(float(np.max(np.abs(right))), 1e-300))
    if wrong.all() or not wrong.any() or np.max(np.abs(found - right)[~wrong]) > SLIGHT * np.max(np.abs(right)):
        return ""  # what is not that wrong is not right either
    if own and np.shape(value) == found.shape:
        for words, mask in (("negative", value < 0), ("positive", value > 0), ("zero", value == 0)):
            if np.array_equal(wrong, mask):
                return f"wrong only where the input is {words}"
        bad, good = np.abs(value[wrong]), np.abs(value[~wrong])
        if len(good) > 1 < len(bad) and bad.min() > good.max():
            return f"wrong only where the input is large, from {bad.min():.3g} on, and right up to {good.max():.3g}"
    for axis in range(found.ndim):
        lines = np.any(wrong, axis=tuple(k for k in range(found.ndim) if k != axis))
        bad = np.flatnonzero(lines)
        if len(bad) == len(lines):
            continue
        where = f"along axis {axis}" if axis or not own else "of the batch"
        if np.array_equal(bad, np.arange(len(bad))):
            return f"right at the last {len(lines) - len(bad)} of {len(lines)} places {where}, wrong before them"
        if np.array_equal(lines, lines[::-1]) and len(bad) == 2 and bad[0] == 0:
            return f"wrong only at the two borders {where}: padding?"
        if len(bad) <= 4:
            return f"wrong only at {_places(bad)} {where}"
    return ""


def _places(bad: Any) -> str:
    return f"place {bad[0]}" if len(bad) == 1 else f"places {', '.join(map(str, bad))}"
