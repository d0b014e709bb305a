"""Normalization of images: passes over values with channels last.

oneDNN's own batch normalization adds up all values in float32, which is not exact enough far from 0. Here sums are
taken from a center that is near the mean, and of some images at a time, which are added up in float64. What oneDNN has
for it: batch normalization with given statistics is the fastest ``(x - center) scale + offset``, and convolution of
each channel by itself, with windows of one pixel, is ``x scale``, whose gradients are sums of products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lamella_layers.normalization import batch_normalization_dx, channel_affine, channel_moments, channel_products
from lamella_onednn.descriptors import any_layout, channels_last, described, dims, is_channels_last, new_channels_last
from lamella_onednn.layouts import is_float32
from lamella_onednn.library import Unimplemented
from lamella_onednn.routines import Choice, Routine, attributes, choose, kept, scratch

__all__: list[str] = []

LEAST = 1 << 15  # values below which NumPy is faster
_TILE_PIXELS = 1 << 12  # that are added up in float32
_FAR = 4.0  # deviations from the center to the mean, beyond which sums of squares lose too many digits
_TRAINING, _INFERENCE, _DIRECT = 64, 96, 1
_GIVEN, _SCALE, _SHIFT = 1, 2, 4  # flags
_SOURCE, _DESTINATION, _MEAN, _VARIANCE, _FACTOR, _OFFSET, _WEIGHTS, _BIAS = 1, 17, 49, 50, 51, 52, 33, 41
_DIFF = 128
_LAYOUT_OF_WEIGHTS, _LAYOUT_OF_THEIR_GRADIENT = 131, 132

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


class _Channelwise:
    """A routine that takes or gives a number for each channel as a kernel, which takes so many bytes."""

    def __init__(self, routine: Routine, size: int) -> None:
        self.routine, self.size = routine, size


def _pixelwise(shape: Shape, *, bias: Any, adds: bool, what: str) -> tuple[Choice, tuple[Any, ...]]:
    """Convolution of each channel by itself with windows of one pixel, and its geometry."""
    x, kernel = channels_last(shape), any_layout((shape[1], 1, 1, 1, 1))
    one, none = dims((1, 1)), dims((0, 0))
    geometry = (one, none, none, none)
    with attributes(adds=adds) as attribute:
        given = (x, kernel, bias, x, *geometry)
        choice = choose("convolution_forward", _TRAINING, _DIRECT, *given, attribute, what=what)
    return _fast(choice), geometry


def _fast(choice: Choice) -> Choice:
    if "dw" not in choice.implementation:  # others take longer than NumPy
        raise Unimplemented(choice.what)
    return choice


def _scaled_sum(shape: Shape) -> _Channelwise:
    """``y + x scale``: x, scale, and y, which it writes over."""
    choice, _ = _pixelwise(shape, bias=None, adds=True, what=f"a sum of scaled {shape}")
    x, own = channels_last(shape), choice.layout(_LAYOUT_OF_WEIGHTS)
    return _Channelwise(Routine(choice, (_SOURCE, x), (_WEIGHTS, own), (_DESTINATION, x)), own.size)


def _products(shape: Shape) -> _Channelwise:
    """The sums of ``x dy`` and of dy: x, the former, dy, the latter."""
    x, vector, kernel = channels_last(shape), described(shape[1:2]), any_layout((shape[1], 1, 1, 1, 1))
    what = f"sums of products of {shape}"
    forward, geometry = _pixelwise(shape, bias=vector, adds=False, what=what)
    given = (x, kernel, vector, x, *geometry)
    choice = _fast(choose("convolution_backward_weights", _DIRECT, *given, forward, None, what=what))
    own = choice.layout(_LAYOUT_OF_THEIR_GRADIENT)
    arrays = (_SOURCE, x), (_DIFF + _WEIGHTS, own), (_DIFF + _DESTINATION, x), (_DIFF + _BIAS, vector)
    return _Channelwise(Routine(choice, *arrays), own.size)


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

    None where NumPy is to compute them.
    """
    channels = len(center)
    ones, zeros = kept(_ones, channels), kept(_zeros, channels)
    sums, total = np.empty(channels, "float32"), np.zeros((2, channels))
    for some in _tiles(x):
        part = x[some]
        shift, products = kept(_affine, part.shape), kept(_products, part.shape)
        if shift is None or products is None:
            return None
        d, product = scratch("values", part.nbytes), scratch("weights", products.size)
        shift(part, d, center, ones, ones, zeros)
        products.routine(d, product, d if dy is None else dy[some], sums)
        total += product[: sums.nbytes].view("float32"), sums
    return total


def _tiles(x: Any) -> Iterator[slice]:
    """Some images after others."""
    step = max(1, _TILE_PIXELS // (x.shape[2] * x.shape[3]))
    return (slice(first, min(first + step, len(x))) for first in range(0, len(x), step))


@batch_normalization_dx.kernel("onednn")
def _(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    first, second = (kept(_affine, x.shape), kept(_scaled_sum, x.shape)) if _suits(dy, x) else (None, None)
    if first is None or second is None:
        return NotImplemented
    ones, dx = kept(_ones, x.shape[1]), new_channels_last(x.shape)
    factor = scratch("weights", second.size)
    factor[: scale.nbytes].view("float32")[...] = scale
    first(x, dx, np.ascontiguousarray(center), ones, -slope * scale, -shift * scale)
    second.routine(dy, factor, dx)
    return dx
