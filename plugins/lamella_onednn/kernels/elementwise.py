"""Activations and sums of arrays, element by element, on all threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.primitives import relu, relu_dx
from lamella_layers.merging import add
from lamella_onednn.descriptors import described
from lamella_onednn.layouts import in_one_piece, is_float32
from lamella_onednn.routines import Chain, kept

__all__: list[str] = []

LEAST = 1 << 15  # values below which NumPy is faster
LEAST_OF_SUMS = 1 << 17
_ADD, _MULTIPLY, _MAXIMUM, _GREATER, _LESS = 0x1FFF0, 0x1FFF1, 0x1FFF2, 0x1FFF7, 0x1FFF9
_zero = np.zeros(1, "float32")


def _alike(*arrays: Any) -> bool:
    """Whether there is enough to do, and all arrays lie alike and in one piece."""
    x, *others = arrays
    return (
        x.size >= LEAST
        and is_float32(*arrays)
        and all(other.shape == x.shape and other.strides == x.strides for other in others)
        and in_one_piece(x)
    )


@relu.kernel("onednn")
def _(xp: Any, x: Any) -> Any:
    if not _alike(x):
        return NotImplemented
    routine = kept(_rectifier, x.size)
    if routine is None:
        return NotImplemented
    y = np.empty_like(x)
    routine(x, x, x, y)
    return y


def _rectifier(size: int) -> Chain:
    """max(x < x, x): of a number and NaN, oneDNN's maximum is the second. Its own rectifier makes 0 of NaN."""
    values = described((size,))
    return Chain(values, [(_LESS, values), (_MAXIMUM, values)], f"relu of {size} values")


@relu_dx.kernel("onednn")
def _(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    if not _alike(y, dy):
        return NotImplemented
    routine = kept(_rectifier_dx, y.size)
    if routine is None:
        return NotImplemented
    dx = np.empty_like(y)
    routine(y, _zero, dy, dx)
    return dx


def _rectifier_dx(size: int) -> Chain:
    """(y > 0) dy."""
    values, zero = described((size,)), described((1,))
    return Chain(values, [(_GREATER, zero), (_MULTIPLY, values)], f"the gradient of relu of {size} values")


@add.kernel("onednn")
def _(xp: Any, *xs: Any) -> Any:
    if xs[0].size < LEAST_OF_SUMS or not _alike(*xs):
        return NotImplemented
    routine = kept(_addition, xs[0].size, len(xs))
    if routine is None:
        return NotImplemented
    y = np.empty_like(xs[0])
    routine(*xs, y)
    return y


def _addition(size: int, count: int) -> Chain:
    values = described((size,))
    return Chain(values, [(_ADD, values)] * (count - 1), f"a sum of {count} arrays of {size} values")
