"""Depthwise convolution in NumPy: filters that see one channel each, where matrix products have nothing to do.

Channels lie last in memory, so that what one cell of a kernel sees in a row of neighbouring windows, in all channels,
is one run of values. Every function here is one sum of products of such runs ("einsum", which multiplies and adds in
one go), for a few images at a time. Strides across break runs: windows in between are computed too, and left out.

m filters for each channel; r values in a run: those of a row of windows in all channels. Else as in `convolution`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lamella_layers.chunks import chunks
from lamella_layers.windows import Windows

__all__ = ["depthwise", "depthwise_dw", "depthwise_transpose"]


def depthwise(x: Any, kernel: Any, windows: Windows) -> Any:
    """`conv` of images with channels last, (N, H, W, C) -> (N, h, w, C*m)."""
    n, c, gap, width = len(x), x.shape[-1], windows.strides[-1], _width(windows)
    weights, (rows, cells, run) = _weights(kernel, c), _axes(windows)
    y = np.empty((n, *windows.grid, c, len(weights)), x.dtype)
    for some in _chunks(x, windows):
        seen = _seen(_padded(x[some], windows), windows, windows.strides, (*windows.grid[:-1], width))
        for k, weight in enumerate(weights):
            sums = np.einsum(seen, rows + cells + run, np.tile(weight, width), cells + run, rows + run)
            y[some, ..., k] = sums.reshape(*sums.shape[:-1], width, c)[..., ::gap, :]
    return y.reshape(*y.shape[:-2], c * len(weights))


def depthwise_dw(x: Any, dy: Any, windows: Windows) -> Any:
    """`conv_dw` of images with channels last."""
    c, gap, width = x.shape[-1], windows.strides[-1], _width(windows)
    filters, (rows, cells, run) = dy.shape[-1] // c, _axes(windows)
    total = np.zeros((*windows.size, c, filters), dy.dtype)
    for some in _chunks(x, windows):
        seen = _seen(_padded(x[some], windows), windows, windows.strides, (*windows.grid[:-1], width))
        for k in range(filters):
            d = dy[some, ..., k::filters]
            if gap > 1:
                d = np.zeros((*d.shape[:-2], width, c), dy.dtype)
                d[..., ::gap, :] = dy[some, ..., k::filters]
            sums = np.einsum(seen, rows + cells + run, d.reshape(*d.shape[:-2], -1), rows + run, cells + run)
            total[..., k] += sums.reshape(*windows.size, width, c).sum(axis=-2)
    return total.reshape(*windows.size, 1, -1).transpose(total.ndim - 1, total.ndim - 2, *range(total.ndim - 2))


def depthwise_transpose(y: Any, kernel: Any, windows: Windows, channels: int) -> Any:
    """`conv_transpose` with channels last, (N, h, w, C*m) -> (N, H, W, C): `depthwise` with the kernel turned around.

    Strides are zeros between what ``y`` holds, and around it are as many as a window reaches.
    """
    weights, (rows, cells, run) = _weights(kernel, channels), _axes(windows)
    filters, width = len(weights), windows.image[-1]
    around = [extent - 1 for extent in windows.extent]
    spread_size = [size + more for size, more in zip(windows.padded, around, strict=True)]
    places = [slice(e, e + (g - 1) * s + 1, s) for e, g, s in zip(around, windows.grid, windows.strides, strict=True)]
    first = [slice(before, None) for before, _ in windows.pads]
    x = np.zeros((len(y), *windows.image, channels), y.dtype)
    for some in _chunks(x, windows):
        spread = np.zeros((len(x[some]), *spread_size, channels), y.dtype)
        for k, weight in enumerate(weights):
            spread[:, *places] = y[some, ..., k::filters]
            seen = _seen(spread[:, *first], windows, (1,) * len(windows.size), windows.image)
            turned = np.tile(np.flip(weight, tuple(range(weight.ndim - 1))), width)
            x[some] += np.einsum(seen, rows + cells + run, turned, cells + run, rows + run).reshape(x[some].shape)
    return x


def _axes(windows: Windows) -> tuple[list[int], list[int], list[int]]:
    """The names that einsum knows axes by: images and rows of windows, cells of a window, run."""
    axes = len(windows.size)
    return list(range(axes)), list(range(axes, 2 * axes)), [2 * axes]


def _width(windows: Windows) -> int:
    """How many windows there are across if they are neighbours."""
    return (windows.grid[-1] - 1) * windows.strides[-1] + 1


def _weights(kernel: Any, channels: int) -> Any:
    """(C*m, 1, kh, kw) -> (C, m, kh, kw) -> (m, kh, kw, C)."""
    weights = kernel.reshape(channels, -1, *kernel.shape[2:])
    return weights.transpose(1, *range(2, weights.ndim), 0)


def _chunks(x: Any, windows: Windows) -> Iterator[slice]:
    """Some images after others."""
    return chunks(len(x), math.prod(windows.padded) * x.shape[-1] * x.itemsize)


def _padded(x: Any, windows: Windows) -> Any:
    padded = np.zeros((len(x), *windows.padded, x.shape[-1]), x.dtype)
    padded[:, *windows.inside] = x
    return padded


def _seen(pixels: Any, windows: Windows, strides: Sequence[int], grid: Sequence[int]) -> Any:
    """What each cell of a window sees in each row of neighbouring windows: (N, H, W, C) -> (N, h, kh, kw, r)."""
    image, *steps, one = pixels.strides
    down = (step * s for step, s in zip(steps[:-1], strides, strict=False))
    within = (step * d for step, d in zip(steps, windows.dilations, strict=True))
    shape = (len(pixels), *grid[:-1], *windows.size, grid[-1] * pixels.shape[-1])
    return as_strided(pixels, shape, (image, *down, *within, one), writeable=False)
