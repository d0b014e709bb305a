"""Normalization of images: passes over values with channels last.

oneDNN's own batch normalization adds up all values in float32, which is not exact enough far from 0. Here sums are
taken from a center that is near the mean, and few values are added up in float32, as `sums` has it. What oneDNN has for
it: batch normalization with given statistics is the fastest ``(x - center) scale + offset``, and convolution of each
channel by itself, with windows of one pixel, the fastest ``x - center`` with anything to do with the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_layers.normalization import batch_normalization_dx, channel_affine, channel_moments, channel_products
from lamella_onednn.descriptors import any_layout, channels_last, described, dims, is_channels_last, new_channels_last
from lamella_onednn.kernels.sums import column_sums
from lamella_onednn.layouts import is_float32
from lamella_onednn.library import Unimplemented
from lamella_onednn.routines import Chain, Routine, attributes, choose, kept, scratch, step_argument

__all__: list[str] = []

LEAST = 1 << 15  # values below which NumPy is faster
LEAST_OF_SUMS = 1 << 17
_FAR = 4.0  # deviations from the center to the mean, beyond which sums of squares lose too many digits
_INFERENCE, _DIRECT = 96, 1
_GIVEN, _SCALE, _SHIFT = 1, 2, 4  # flags
_SOURCE, _DESTINATION, _MEAN, _VARIANCE, _FACTOR, _OFFSET, _WEIGHTS, _BIAS = 1, 17, 49, 50, 51, 52, 33, 41
_LAYOUT_OF_WEIGHTS = 131
_ADD, _MULTIPLY, _SUBTRACT = 0x1FFF0, 0x1FFF1, 0x1FFF5

Shape = tuple[int, ...]


def _suits(*arrays: Any) -> bool:
    """Whether there is enough to do, and arrays are images with channels last."""
    x = arrays[0]
    return x.ndim == 4 and x.size >= LEAST and is_float32(*arrays) and all(map(is_channels_last, arrays))


def _affine(shape: Shape) -> Routine:
    """``(x - center) scale + offset``: x, y, center, ones, scale, offset."""
    x, vector = channels_last(shape), described(shape[1:2])
    flags, what = _GIVEN | _SCALE | _SHIFT, f"scaling of {shape}"
    choice = choose("batch_normalization_forward", _INFERENCE, x, x, 0.0, flags, None, what=what)
    vectors = ((kind, vector) for kind in (_MEAN, _VARIANCE, _FACTOR, _OFFSET))
    return Routine(choice, (_SOURCE, x), (_DESTINATION, x), *vectors)


class _Shifted:
    """``x - center``, and steps after it: functions of the result and of an array, or of a number for each channel."""

    def __init__(self, shape: Shape, *steps: tuple[int, bool]) -> None:
        x, vector, kernel = channels_last(shape), described(shape[1:2]), any_layout((shape[1], 1, 1, 1, 1))
        beside = described((1, shape[1], 1, 1))
        others = [(function, beside if by_channel else x) for function, by_channel in steps]
        one, none, what = dims((1, 1)), dims((0, 0)), f"a shift of {shape}"
        with attributes(others) as attribute:
            arrays = x, kernel, vector, x
            choice = choose(
                "convolution_forward", _INFERENCE, _DIRECT, *arrays, one, none, none, none, attribute, what=what
            )
        if "dw" not in choice.implementation:  # others take longer than NumPy
            raise Unimplemented(what)
        weights = choice.layout(_LAYOUT_OF_WEIGHTS)
        self._ones = np.ones(weights.size // 4, "float32")
        places = [(step_argument(k), layout) for k, (_, layout) in enumerate(others)]
        self._run = Routine(choice, (_SOURCE, x), (_WEIGHTS, weights), (_BIAS, vector), *places, (_DESTINATION, x))

    def __call__(self, x: Any, center: Any, *arrays: Any) -> None:
        """Take an array for each step, and the place of the result."""
        self._run(x, self._ones, -center, *arrays)


def _square(size: int) -> Chain:
    values = described((size,))
    return Chain(values, [(_MULTIPLY, values)], f"squares of {size} values")


def _ones(count: int) -> Any:
    return np.ones(count, "float32")


def _zeros(count: int) -> Any:
    return np.zeros(count, "float32")


@channel_affine.kernel("onednn")
def _(xp: Any, x: Any, scale: Any, offset: Any = None, *, center: Any = None) -> Any:
    routine = kept(_affine, x.shape) if _suits(x) else None
    if routine is None:
        return NotImplemented
    ones, zeros = kept(_ones, x.shape[1]), kept(_zeros, x.shape[1])
    center, scale, offset = (zeros if one is None else np.ascontiguousarray(one) for one in (center, scale, offset))
    y = new_channels_last(x.shape)
    routine(x, y, center, ones, scale, offset)
    return y


@channel_products.kernel("onednn")
def _(xp: Any, dy: Any, x: Any, center: Any = None) -> Any:
    center = kept(_zeros, x.shape[1]) if center is None else np.ascontiguousarray(center)
    sums = _sums(x, dy, center) if x.size >= LEAST_OF_SUMS and _suits(dy, x) else None
    if sums is None:
        return NotImplemented
    product, total = sums
    return total, product


@channel_moments.kernel("onednn")
def _(xp: Any, x: Any) -> Any:
    if x.size < LEAST_OF_SUMS or not _suits(x):
        return NotImplemented
    first = x[0].transpose(1, 2, 0).reshape(-1, x.shape[1])
    count = len(x) * len(first)
    center = (kept(_ones, len(first)) @ first) / np.float32(len(first))
    for _ in range(2):
        sums = _sums(x, None, center)
        if sums is None:
            return NotImplemented
        squares, total = sums
        apart = total / count
        squares = np.maximum(squares - total * apart, 0.0)
        mean = center + apart
        if not (apart * apart * count > _FAR * _FAR * squares).any():
            break
        center = mean.astype("float32")
    return mean, squares


def _sums(x: Any, dy: Any, center: Any) -> Any:
    """For each channel the sums of ``(x - center) dy`` and of dy, or of ``(x - center)^2`` and of ``x - center``.

    They are in float64; None where NumPy is to compute them.
    """
    channels = len(center)
    d = scratch("values", x.nbytes)
    rows = d[: x.nbytes].view("float32").reshape(-1, channels)
    if dy is not None:
        product = kept(_Shifted, x.shape, (_MULTIPLY, False))
        if product is None:
            return None
        product(x, center, dy, d)
        return column_sums(rows), column_sums(dy.transpose(0, 2, 3, 1).reshape(-1, channels))
    shift, square = kept(_Shifted, x.shape), kept(_square, x.size)
    if shift is None or square is None:
        return None
    shift(x, center, d)
    total = column_sums(rows)
    square(d, d, d)
    return column_sums(rows), total


@batch_normalization_dx.kernel("onednn")
def _(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    steps = (_MULTIPLY, True), (_ADD, False), (_SUBTRACT, True), (_MULTIPLY, True)
    routine = kept(_Shifted, x.shape, *steps) if _suits(dy, x) else None
    if routine is None:
        return NotImplemented
    dx = new_channels_last(x.shape)
    routine(x, center, -slope, dy, np.ascontiguousarray(shift), np.ascontiguousarray(scale), dx)
    return dx
