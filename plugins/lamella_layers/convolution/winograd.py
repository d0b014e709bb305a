"""Convolution of 3x3 windows with four ninths of the multiplications: F(2x2, 3x3) of Winograd's minimal algorithms.

Each 2x2 block of the output is computed from the 4x4 block of the image that it sees. Image and kernel are transformed,
multiplied as 16 matrix products, and transformed back: ``y = A' [(G k G') * (B' x B)] A``, after Lavin and Gray,
https://arxiv.org/abs/1509.09308. The transforms add and halve, so rounding stays that of an ordinary convolution.
Letters are those of `convolution`; T is the number of blocks, ``n * down * across``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lamella_layers.convolution.workspace import workspace
from lamella_layers.windows import Windows

__all__ = ["convolve", "convolve_dw", "pays"]

_CHANNELS = 64  # from so many on, and so many blocks, the products that are saved cost more than the transforms
_BLOCKS = 256
_TILE_BYTES = 1 << 19  # of one transformed image or output held at a time


def pays(x: Any, filters: int, windows: Windows) -> bool:
    """Whether an image and its windows are of the kind, and large enough."""
    return (
        windows.size == (3, 3)
        and set(windows.strides + windows.dilations) == {1}
        and min(x.shape[1], filters) >= _CHANNELS
        and x.shape[0] * windows.grid[0] * windows.grid[1] >= 4 * _BLOCKS
    )


def convolve(x: Any, kernel: Any, windows: Windows) -> Any:
    """(N, H, W, C), (F, C, 3, 3) -> (N, h, w, F), or None where that is not finite: transforms may overflow alone."""
    n, channels, filters, (h, w) = len(x), x.shape[3], len(kernel), windows.grid
    matrices = _transformed_kernel(kernel.transpose(2, 3, 1, 0)).reshape(16, channels, filters)
    down, across = -(-h // 2), -(-w // 2)
    y = np.empty((n, 2 * down, 2 * across, filters), x.dtype)
    for some in _tiles(n, down * across, max(channels, filters) * x.itemsize):
        part = x[some]
        blocks = _transformed_image(part, windows, (down, across))
        products = workspace("products", (4, 4, len(part), down, across, filters), x.dtype)
        np.matmul(blocks.reshape(16, -1, channels), matrices, out=products.reshape(16, -1, filters))
        lines = workspace("lines", (2, *products.shape[1:]), x.dtype)
        _fold(products, lines)
        for i in range(2):
            _fold(lines[i], [y[some, i::2, j::2] for j in range(2)])
        if not _is_finite(y[some]):
            return None
    return y[:, :h, :w]


def convolve_dw(x: Any, dy: Any, windows: Windows) -> Any:
    """The gradient for the kernel: (N, H, W, C), (N, h, w, F) -> (F, C, 3, 3), or None where that is not finite."""
    n, channels, filters, (h, w) = len(x), x.shape[3], dy.shape[3], windows.grid
    down, across = -(-h // 2), -(-w // 2)
    if h % 2 or w % 2:  # blocks are whole
        whole = np.zeros((n, 2 * down, 2 * across, filters), dy.dtype)
        whole[:, :h, :w] = dy
        dy = whole
    total = np.zeros((16, channels, filters), x.dtype)
    products = np.empty_like(total)
    for some in _tiles(n, down * across, max(channels, filters) * x.itemsize):
        blocks = _transformed_image(x[some], windows, (down, across))
        # pixels of even columns, then those of odd ones: (n, 2*down, 2*across, F) -> (2, n, down, 2, across, F)
        part = dy[some].reshape(-1, down, 2, across, 2, filters).transpose(2, 0, 1, 4, 3, 5)
        lines = workspace("lines", (4, *part.shape[1:]), dy.dtype)
        slopes = workspace("products", (4, 4, part.shape[1], down, across, filters), dy.dtype)
        _unfold(part[0], part[1], lines)
        for i in range(4):
            _unfold(lines[i, :, :, 0], lines[i, :, :, 1], slopes[i])
        np.matmul(blocks.reshape(16, -1, channels).transpose(0, 2, 1), slopes.reshape(16, -1, filters), out=products)
        total += products
    dw = _small(_small(total.reshape(4, 4, channels, filters)).swapaxes(0, 1))  # (3, 3, C, F), columns first
    return dw.transpose(3, 2, 1, 0) if _is_finite(dw) else None


def _is_finite(values: Any) -> bool:
    """Whether all are: the sum of squares tells in one quick pass, unless it overflows."""
    flat = values.reshape(-1)
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())


def _tiles(n: int, blocks: int, bytes_per_value: int) -> list[slice]:
    """Images to take at a time: few enough for the cache, and enough rows for BLAS."""
    size = max(1, _TILE_BYTES // (16 * blocks * bytes_per_value), -(-_BLOCKS // (2 * blocks)))
    return [slice(first, first + size) for first in range(0, n, size)]


def _transformed_image(x: Any, windows: Windows, grid: tuple[int, int]) -> Any:
    """``B' x B`` of every block: (n, H, W, C) -> (4, 4, n, down, across, C)."""
    n, channels, (down, across), (rows, columns) = len(x), x.shape[3], grid, windows.inside
    # even columns, then odd ones, so that what is added lies in long runs: (n, H, W, C) -> (n, H, 2, W/2, C)
    padded = workspace("padded", (n, 2 * down + 2, 2, across + 1, channels), x.dtype)
    padded[:, : rows.start] = padded[:, rows.stop :] = 0.0
    for parity in range(2):
        first, last = (-(-(place - parity) // 2) for place in (columns.start, columns.stop))
        padded[:, :, parity, :first] = padded[:, :, parity, last:] = 0.0
        padded[:, rows, parity, first:last] = x[:, :, 2 * first + parity - columns.start :: 2]
    lines = workspace("lines", (4, n, down, 2, across + 1, channels), x.dtype)
    blocks = workspace("blocks", (4, 4, n, down, across, channels), x.dtype)
    _spread([padded[:, i : i + 2 * down - 1 : 2] for i in range(4)], lines)
    for i in range(4):
        _spread([lines[i, :, :, j % 2, j // 2 : j // 2 + across] for j in range(4)], blocks[i])
    return blocks


def _spread(x: Any, out: Any) -> None:
    """``B'`` along one axis, for images: 4 -> 4."""
    np.subtract(x[0], x[2], out=out[0])
    np.add(x[1], x[2], out=out[1])
    np.subtract(x[2], x[1], out=out[2])
    np.subtract(x[1], x[3], out=out[3])


def _fold(products: Any, out: Any) -> None:
    """``A'`` along one axis, for outputs: 4 -> 2."""
    inner = workspace("inner", products.shape[1:], products.dtype)  # in one piece, where ``out`` may not be
    for function, last, target in ((np.add, products[0], out[0]), (np.subtract, products[3], out[1])):
        function(products[1], products[2], out=inner)
        function(inner, last, out=target)


def _unfold(even: Any, odd: Any, out: Any) -> None:
    """``A`` along one axis, for gradients of outputs: 2 -> 4."""
    out[0] = even
    np.add(even, odd, out=out[1])
    np.subtract(even, odd, out=out[2])
    np.negative(odd, out=out[3])


def _transformed_kernel(kernel: Any) -> Any:
    """``G k G'``: (3, 3, C, F) -> (4, 4, C, F)."""
    return np.ascontiguousarray(_large(_large(kernel).swapaxes(0, 1)).swapaxes(0, 1))


def _large(k: Any) -> Any:
    """``G`` along the first axis: 3 -> 4."""
    half = k.dtype.type(0.5)
    sides, middle = (k[0] + k[2]) * half, k[1] * half
    return np.stack([k[0], sides + middle, sides - middle, k[2]])


def _small(k: Any) -> Any:
    """``G'`` along the first axis: 4 -> 3."""
    half = k.dtype.type(0.5)
    total, difference = (k[1] + k[2]) * half, (k[1] - k[2]) * half
    return np.stack([k[0] + total, difference, total + k[3]])
