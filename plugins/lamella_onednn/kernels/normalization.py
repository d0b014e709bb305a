"""Normalization of images: passes over values with channels last.

oneDNN's own batch normalization adds up all values in float32, which is not exact enough far from 0. Here sums are
taken from a center that is near the mean, and few values are added up in float32, as `sums` has it. What oneDNN has for
it: batch normalization with given statistics is the fastest ``(x - center) scale + offset``, and convolution of each
channel by itself, with windows of one pixel, the fastest ``y + x scale``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_layers.normalization import batch_normalization_dx, channel_affine, channel_moments, channel_products
from lamella_onednn.descriptors import any_layout, channels_last, described, dims, is_channels_last, new_channels_last
from lamella_onednn.kernels.sums import column_sums
from lamella_onednn.layouts import is_float32
from lamella_onednn.library import Unimplemented
from lamella_onednn.routines import Chain, Routine, attributes, choose, kept, scratch

__all__: list[str] = []

LEAST = 1 << 15  # values below which NumPy is faster
_FAR = 4.0  # deviations from the center to the mean, beyond which sums of squares lose too many digits
_TRAINING, _INFERENCE, _DIRECT = 64, 96, 1
_GIVEN, _SCALE, _SHIFT = 1, 2, 4  # flags
_SOURCE, _DESTINATION, _MEAN, _VARIANCE, _FACTOR, _OFFSET, _WEIGHTS = 1, 17, 49, 50, 51, 52, 33
_LAYOUT_OF_WEIGHTS = 131
_MULTIPLY = 0x1FFF1

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


class _ScaledSum:
    """``y + x scale``, where the scale takes so many bytes."""

    def __init__(self, shape: Shape) -> None:
        x, kernel = channels_last(shape), any_layout((shape[1], 1, 1, 1, 1))
        one, none = dims((1, 1)), dims((0, 0))
        with attributes(adds=True) as attribute:
            given, what = (x, kernel, None, x, one, none, none, none, attribute), f"a sum of scaled {shape}"
            choice = choose("convolution_forward", _TRAINING, _DIRECT, *given, what=what)
        if "dw" not in choice.implementation:  # others take longer than NumPy
            raise Unimplemented(what)
        own = choice.layout(_LAYOUT_OF_WEIGHTS)
        self.size, self._run = own.size, Routine(choice, (_SOURCE, x), (_WEIGHTS, own), (_DESTINATION, x))

    def __call__(self, x: Any, scale: Any, y: Any) -> None:
        """Write over y."""
        weights = scratch("weights", self.size)
        weights[: scale.nbytes].view("float32")[...] = scale
        self._run(x, weights, y)


def _product(size: int) -> Chain:
    values = described((size,))
    return Chain(values, [(_MULTIPLY, values)], f"a product of two arrays of {size} values")


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
    sums = _sums(x, dy, center) if _suits(dy, x) else None
    if sums is None:
        return NotImplemented
    product, total = sums
    return total, product


@channel_moments.kernel("onednn")
def _(xp: Any, x: Any) -> Any:
    if not _suits(x):
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
    shift, product = kept(_affine, x.shape), kept(_product, x.size)
    if shift is None or product is None:
        return None
    channels = len(center)
    d = scratch("values", x.nbytes)
    rows = d[: x.nbytes].view("float32").reshape(-1, channels)
    shift(x, d, center, kept(_ones, channels), kept(_ones, channels), kept(_zeros, channels))
    if dy is None:
        total = column_sums(rows)
        product(d, d, d)
    else:
        total = column_sums(dy.transpose(0, 2, 3, 1).reshape(-1, channels))
        product(d, dy, d)
    return column_sums(rows), total


@batch_normalization_dx.kernel("onednn")
def _(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    first, second = (kept(_affine, x.shape), kept(_ScaledSum, x.shape)) if _suits(dy, x) else (None, None)
    if first is None or second is None:
        return NotImplemented
    dx = new_channels_last(x.shape)
    first(x, dx, np.ascontiguousarray(center), kept(_ones, x.shape[1]), -slope * scale, -shift * scale)
    second(dy, scale, dx)
    return dx
