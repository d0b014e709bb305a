"""The NumPy kernels of convolution.

They never hold the columns of a whole batch: a tile of the output at a time, small enough for the cache, large enough
for BLAS. Images have channels last in memory, so that a row of a window is one run of values. Letters are those of
`convolution`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lamella.primitives import pad
from lamella_layers.convolution import winograd
from lamella_layers.convolution.convolution import conv, conv_dw, conv_transpose, sum_pixels
from lamella_layers.convolution.depthwise import depthwise, depthwise_dw, depthwise_transpose
from lamella_layers.convolution.im2col import kernel_matrix, matrix_kernel
from lamella_layers.convolution.workspace import workspace
from lamella_layers.runs import apply, repeated
from lamella_layers.windows import Windows

__all__: list[str] = []

_TILE_BYTES = 1 << 20  # columns held at a time
_TILE_WINDOWS = 256  # but at least so many rows of a matrix product
_SHORT_RUN = 8

Tile = tuple[slice, slice]


def _last(x: Any) -> Any:
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.transpose(0, *range(2, x.ndim), 1)


def _first(x: Any) -> Any:
    """(N, H, W, C) -> (N, C, H, W)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def _tiles(n: int, windows: Windows, bytes_per_window: int) -> list[Tile]:
    """Cut the output into (images, rows): some whole images, or some rows of one."""
    h, *rest = windows.grid
    rows = max(1, max(_TILE_BYTES // bytes_per_window, _TILE_WINDOWS) // math.prod(rest))
    images = max(1, rows // h)
    return [
        (slice(i, min(i + images, n)), slice(r, min(r + rows, h)))
        for i in range(0, n, images)
        for r in range(0, h, rows)
    ]


def _columns(xp: Any, x: Any, windows: Windows, groups: int) -> Iterator[tuple[Tile, Any]]:
    """`im2col` of one tile after another, in a buffer that is used again."""
    pixels = _last(pad(xp, x, ((0, 0), (0, 0), *windows.pads)))
    n, c, grid, depth = x.shape[0], x.shape[1], windows.grid, x.shape[1] // groups
    if windows.is_pointwise and groups == 1 and pixels.flags.c_contiguous:
        yield (slice(0, n), slice(0, grid[0])), pixels.reshape(1, -1, c)
        return
    step, *steps, across = pixels.strides
    strides = (
        step,
        *(step * s for step, s in zip(steps, windows.strides, strict=True)),
        across * depth,
        *(step * d for step, d in zip(steps, windows.dilations, strict=True)),
        across,
    )
    patches = as_strided(pixels, (n, *grid, groups, *windows.size, depth), strides, writeable=False)
    # copy along the longer run of values: a row of a window, or else a row of the output
    window_by_window = windows.size[-1] * depth >= _SHORT_RUN
    output, window = range(1 + len(grid)), range(2 + len(grid), patches.ndim)
    order = (len(output), *output, *window) if window_by_window else (len(output), *window, *output)
    row = math.prod(windows.size) * depth
    for tile in _tiles(n, windows, row * groups * x.itemsize):
        patch = patches[tile].transpose(order)
        columns = workspace("columns", patch.shape, x.dtype)
        columns[...] = patch
        if window_by_window:
            yield tile, columns.reshape(groups, -1, row)
        else:
            yield tile, columns.reshape(groups, row, -1).transpose(0, 2, 1)


def _by_group(y: Any, groups: int) -> Any:
    """(N, h, w, F) -> (N*h*w, G, F/G) -> (G, N*h*w, F/G): a view of a tile, where F lies last in memory."""
    return y.reshape(-1, groups, y.shape[-1] // groups).transpose(1, 0, 2)


def _add(y: Any, bias: Any) -> Any:
    """Add the bias to (N, h, w, F) in place."""
    if bias is None:
        return y
    return apply(np.add, y, repeated(bias, y.size), y) if y.flags.c_contiguous else np.add(y, bias, out=y)


@conv.kernel("numpy")
def _(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if groups == x.shape[1] > 1:
        y = depthwise(_last(x), kernel, windows)
        return _first(_add(y, bias))
    if groups == 1 and winograd.pays(x, kernel.shape[0], windows):
        y = winograd.convolve(_last(x), kernel, windows)
        if y is not None:
            return _first(_add(y, bias))
    matrix = kernel_matrix(xp, kernel, groups)
    y = np.empty((x.shape[0], *windows.grid, kernel.shape[0]), x.dtype)
    for tile, columns in _columns(xp, x, windows, groups):
        np.matmul(columns, matrix, out=_by_group(y[tile], groups))
        _add(y[tile], bias)
    return _first(y)


def _gathers(y: Any, kernel: Any, windows: Windows) -> bool:
    """Whether `conv` of ``y`` with the kernel turned around is faster than adding up in `conv_transpose`.

    It is where windows are neighbours and the images to be seen not much deeper than those to be made, unless turning
    the kernel takes longer than it saves.
    """
    pads, (filters, channels) = zip(windows.pads, windows.extent, strict=True), kernel.shape[:2]
    return windows.is_pointwise or (
        set(windows.strides) == {1}
        and all(max(around) < extent for around, extent in pads)
        and filters <= 2 * channels
        and y.size >= 4 * filters * filters
    )


@conv_transpose.kernel("numpy")
def _(xp: Any, y: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if kernel.shape[1] == 1 < groups:
        x = depthwise_transpose(_last(y), kernel, windows, groups)
        return _first(_add(x, bias))
    if groups == 1 and _gathers(y, kernel, windows):
        turned = np.flip(kernel.swapaxes(0, 1), tuple(range(2, kernel.ndim)))
        return conv(xp, y, turned, bias, windows.turned)
    n, depth, k, (_, *rest) = y.shape[0], kernel.shape[1], math.prod(windows.size), windows.grid
    # (G, k*C/G, F/G) -> (G, k, C/G, F/G) -> (k, G, F/G, C/G)
    matrix = kernel_matrix(xp, kernel, groups).reshape(groups, k, depth, -1).transpose(1, 0, 3, 2)
    y = np.ascontiguousarray(_last(y))
    x = _add(np.zeros((n, *windows.padded, groups * depth), y.dtype), bias)
    for tile in _tiles(n, windows, k * groups * depth * y.itemsize):
        images, rows = tile
        part = _by_group(y[tile], groups)
        cells = workspace("columns", (k, part.shape[1], groups, depth), y.dtype)
        np.matmul(part, matrix, out=cells.transpose(0, 2, 1, 3))
        # (k, N*h*w, G, C/G) -> (k, N, h, w, C)
        cells = cells.reshape(k, -1, rows.stop - rows.start, *rest, groups * depth)
        for cell, place in zip(cells, windows.cells(rows.start, rows.stop), strict=True):
            there = x[images, *place]
            there += cell
    return _first(x[:, *windows.inside])


@conv_dw.kernel("numpy")
def _(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    dy = _last(dy)
    if groups == x.shape[1] > 1:
        return depthwise_dw(_last(x), dy, windows)
    if groups == 1 and winograd.pays(x, dy.shape[-1], windows):
        dw = winograd.convolve_dw(_last(x), dy, windows)
        if dw is not None:
            return dw
    total = np.zeros((groups, math.prod(windows.size) * x.shape[1] // groups, dy.shape[-1] // groups), dy.dtype)
    for tile, columns in _columns(xp, x, windows, groups):
        total += np.matmul(columns.transpose(0, 2, 1), _by_group(dy[tile], groups))
    return matrix_kernel(xp, total, windows)


@sum_pixels.kernel("numpy")
def _(xp: Any, dy: Any) -> Any:
    rows = _last(dy).reshape(-1, dy.shape[1])  # a view where channels are last in memory
    return np.ones(len(rows), dy.dtype) @ rows
