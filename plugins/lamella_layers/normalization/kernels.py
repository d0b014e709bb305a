"""The NumPy kernels of normalization.

They see an image as rows of W*C values, since channels are last in memory, and hold some rows at a time, few enough for
the cache. Vectors (C,) are repeated for several rows: long loops are faster than short ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lamella_layers.normalization.batch import batch_normalization_dx, channel_moments
from lamella_layers.normalization.channels import channel_affine, channel_axis, channel_products, values_per_channel
from lamella_layers.normalization.samples import standardize, standardize_dx
from lamella_layers.runs import apply, repeated
from lamella_layers.sums import row_sums

__all__: list[str] = []

_TILE_BYTES = 1 << 19
_TILE_ROWS = 1024  # at most: so many values are added up in float32, tiles in float64


def _rows(x: Any) -> Any:
    """(N, C, H, W) -> (N*H, W*C); (N, T, C) -> (N, T*C); (N, C) as it is."""
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
    return x.reshape(-1, math.prod(x.shape[-2:])) if x.ndim > 2 else x


def _like(rows: Any, x: Any) -> Any:
    """The inverse of `_rows`, for an array of the shape of ``x``."""
    if x.ndim == 4:
        n, c, h, w = x.shape
        return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return rows.reshape(x.shape)


def _tiles(rows: Any) -> Iterator[slice]:
    length = max(1, min(_TILE_ROWS, _TILE_BYTES // max(1, rows.shape[1] * rows.itemsize)))
    return (slice(first, first + length) for first in range(0, rows.shape[0], length))


def _sum(rows: Any) -> Any:
    return np.ones(len(rows), rows.dtype) @ rows


def _channels(sums: Any, channels: int) -> Any:
    """(W*C,) -> (W, C) -> (C,)"""
    return sums.reshape(-1, channels).sum(axis=0)


@channel_moments.kernel("numpy")
def _(xp: Any, x: Any) -> tuple[Any, Any]:
    rows, channels = _rows(x), x.shape[channel_axis(x.ndim)]
    sums = np.zeros((3, rows.shape[1]))  # of the tiles' sums, of their squared deviations and of those of their means
    near = np.zeros(channels)  # about where the mean is: sums are taken from there, else those of squares cancel
    for k, tile in enumerate(rows[some] for some in _tiles(rows)):
        n = len(tile)
        center = _sum(tile) / x.dtype.type(n)
        d = apply(np.subtract, tile, repeated(center, tile.size), np.empty(tile.shape, tile.dtype))
        rest = _sum(d).astype("float64")
        d *= d
        if k == 0:
            near = center[:channels].astype("float64")
        mean = center - np.tile(near, len(center) // channels) + rest / n
        sums += n * mean, _sum(d) - rest * rest / n, n * mean * mean
    total, squares, apart = sums.reshape(3, -1, channels).sum(axis=1)
    mean = total / values_per_channel(x)
    return near + mean, squares + (apart - total * mean)


@channel_affine.kernel("numpy")
def _(xp: Any, x: Any, scale: Any, offset: Any = None, *, center: Any = None) -> Any:
    rows = _rows(x)
    y = np.empty(rows.shape, rows.dtype)
    steps = [(np.subtract, center), (np.multiply, scale), (np.add, offset)]
    steps = [(function, repeated(vector, rows.size)) for function, vector in steps if vector is not None]
    for some in _tiles(rows):
        there, here = rows[some], y[some]
        for function, vector in steps:
            there = apply(function, there, vector, here)
    return _like(y, x)


@channel_products.kernel("numpy")
def _(xp: Any, dy: Any, x: Any, center: Any = None) -> tuple[Any, Any]:
    gradients, rows, channels = _rows(dy), _rows(x), x.shape[channel_axis(x.ndim)]
    centers = None if center is None else repeated(center, rows.size)
    total, product = np.zeros((2, rows.shape[1]))
    for some in _tiles(rows):
        if centers is None:
            d = rows[some] * gradients[some]
        else:
            d = apply(np.subtract, rows[some], centers, np.empty(rows[some].shape, rows.dtype))
            d *= gradients[some]
        product += _sum(d)
        total += _sum(gradients[some])
    return _channels(total, channels), _channels(product, channels)


@batch_normalization_dx.kernel("numpy")
def _(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    gradients, rows = _rows(dy), _rows(x)
    centers, shifts, slopes, scales = (repeated(vector, rows.size) for vector in (center, shift, slope, scale))
    dx = np.empty(rows.shape, rows.dtype)
    for some in _tiles(rows):
        d = apply(np.subtract, rows[some], centers, np.empty(rows[some].shape, rows.dtype))
        apply(np.multiply, d, slopes, d)
        here = apply(np.subtract, gradients[some], shifts, dx[some])
        here -= d
        apply(np.multiply, here, scales, here)
    return _like(dx, x)


@standardize.kernel("numpy")
def _(xp: Any, x: Any, *, axes: int, epsilon: float, centered: bool = True) -> tuple[Any, Any]:
    count = math.prod(x.shape[-axes:])
    rows = x.reshape(-1, count)
    unit, squares = np.empty(rows.shape, rows.dtype), np.empty((len(rows), 1), rows.dtype)
    for some in _tiles(rows):
        d = rows[some]
        for _ in range(2 if centered else 0):
            d = np.subtract(d, _row_means(d), out=unit[some])
        squares[some] = row_sums(d, d)[:, None]
    inverse = 1.0 / np.sqrt(squares / rows.dtype.type(count) + rows.dtype.type(epsilon))
    np.multiply(unit if centered else rows, inverse, out=unit)
    return unit.reshape(x.shape), inverse.reshape(*x.shape[:-axes], *(1,) * axes)


@standardize_dx.kernel("numpy")
def _(xp: Any, d: Any, unit: Any, inverse: Any, *, axes: int, centered: bool = True) -> Any:
    count = math.prod(d.shape[-axes:])
    rows, units, scales = d.reshape(-1, count), unit.reshape(-1, count), inverse.reshape(-1, 1)
    dx = np.empty(rows.shape, rows.dtype)
    for some in _tiles(rows):
        d, u, here = rows[some], units[some], dx[some]
        slopes = row_sums(d, u)[:, None] / d.dtype.type(count)
        np.multiply(u, slopes, out=here)
        np.subtract(d, here, out=here)
        if centered:
            here -= _row_means(d)
        here *= scales[some]
    return dx.reshape(unit.shape)


def _row_means(rows: Any) -> Any:
    return row_sums(rows)[:, None] / rows.dtype.type(rows.shape[1])
