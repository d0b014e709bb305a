"""Convolution as a matrix product over the windows under the kernel ("im2col"), for series and images alike.

N batch, C channels, H W image, F filters, G groups, k = kh * kw cells of a window, h w grid of windows: the output.
For series read L in place of H W, and so on; the number of axes follows from the arrays.
"""

from __future__ import annotations

import math
from typing import Any

import lamella as lm
from lamella_layers.windows import Windows, fold, unfold

__all__ = ["conv", "conv_dw", "conv_transpose", "sum_pixels"]


@lm.primitive
def conv(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    """Convolve (N, C, H, W) with kernels (F, C/G, kh, kw); the bias (F,) may be None."""
    y = im2col(xp, x, windows, groups) @ kernel_matrix(xp, kernel, groups)
    # (G, N*h*w, F/G) -> (G, N, h, w, F/G) -> (N, G, F/G, h, w) -> (N, F, h, w)
    axes, grid = range(2, x.ndim), windows.grid
    y = xp.permute_dims(xp.reshape(y, (groups, x.shape[0], *grid, -1)), (1, 0, x.ndim, *axes))
    return _plus(xp, xp.reshape(y, (x.shape[0], kernel.shape[0], *grid)), bias)


@lm.primitive
def conv_transpose(xp: Any, y: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    """Add each kernel, times what stands in ``y`` (N, F, h, w), to its window on (N, C, H, W) ("col2im").

    The transpose of `conv` as a matrix, and so its gradient for the images; the bias (C,) may be None.
    """
    n, depth, cells, axes = y.shape[0], kernel.shape[1], math.prod(windows.size), range(2, y.ndim)
    columns = _rows(xp, y, groups) @ xp.permute_dims(kernel_matrix(xp, kernel, groups), (0, 2, 1))
    # (G, N*h*w, k*C/G) -> (G, N, h, w, k, C/G) -> (k, N, G, C/G, h, w) -> (k, N, C, h, w)
    parts = xp.reshape(columns, (groups, n, *windows.grid, cells, depth))
    parts = xp.permute_dims(parts, (y.ndim, 1, 0, y.ndim + 1, *axes))
    parts = xp.reshape(parts, (cells, n, groups * depth, *windows.grid))
    return _plus(xp, fold(xp, [parts[i, ...] for i in range(cells)], windows), bias)


@lm.primitive
def conv_dw(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    """The gradient of `conv` for the kernel: the sum over all windows of what they saw times what they gave."""
    columns = xp.permute_dims(im2col(xp, x, windows, groups), (0, 2, 1))
    return matrix_kernel(xp, columns @ _rows(xp, dy, groups), windows)


@lm.primitive
def sum_pixels(xp: Any, dy: Any) -> Any:
    """The gradient of `conv` for the bias: (N, F, h, w) -> (F,)."""
    return xp.sum(dy, axis=(0, *range(2, dy.ndim)))


def im2col(xp: Any, x: Any, windows: Windows, groups: int) -> Any:
    """What lies under each window, one window in a row: (G, N*h*w, k*C/G)."""
    cells = unfold(xp, x, windows)
    # k times (N, C, h, w) -> (N, k, G, C/G, h, w) -> (G, N, h, w, k, C/G) -> (G, N*h*w, k*C/G)
    n, depth = x.shape[0], x.shape[1] // groups
    columns = xp.reshape(xp.concat(cells, axis=1), (n, len(cells), groups, depth, *windows.grid))
    columns = xp.permute_dims(columns, (2, 0, *range(4, columns.ndim), 1, 3))
    return xp.reshape(columns, (groups, -1, len(cells) * depth))


def kernel_matrix(xp: Any, kernel: Any, groups: int) -> Any:
    """(F, C/G, kh, kw) -> (kh, kw, C/G, F) -> (k*C/G, G, F/G) -> (G, k*C/G, F/G)."""
    matrix = xp.permute_dims(kernel, (*range(2, kernel.ndim), 1, 0))
    return xp.permute_dims(xp.reshape(matrix, (-1, groups, kernel.shape[0] // groups)), (1, 0, 2))


def matrix_kernel(xp: Any, matrix: Any, windows: Windows) -> Any:
    """The inverse of `kernel_matrix`: (G, k*C/G, F/G) -> (G, kh, kw, C/G, F/G) -> (F, C/G, kh, kw)."""
    groups, filters, axes = matrix.shape[0], matrix.shape[2], len(windows.size)
    kernel = xp.reshape(matrix, (groups, *windows.size, -1, filters))
    kernel = xp.permute_dims(kernel, (0, axes + 2, axes + 1, *range(1, axes + 1)))
    return xp.reshape(kernel, (groups * filters, -1, *windows.size))


def _rows(xp: Any, y: Any, groups: int) -> Any:
    """(N, F, h, w) -> (N, G, F/G, h, w) -> (G, N, h, w, F/G) -> (G, N*h*w, F/G)."""
    n, f, *grid = y.shape
    y = xp.reshape(y, (n, groups, f // groups, *grid))
    return xp.reshape(xp.permute_dims(y, (1, 0, *range(3, y.ndim), 2)), (groups, -1, f // groups))


def _plus(xp: Any, y: Any, bias: Any) -> Any:
    return y if bias is None else y + xp.reshape(bias, (1, -1, *(1,) * (y.ndim - 2)))


@conv.kernel("onnx")
def _(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if x.dtype != xp.float32:  # onnxruntime has neither Conv nor ConvTranspose in float64
        return conv.reference(xp, x, kernel, bias, windows, groups=groups)
    shape = (x.shape[0], kernel.shape[0], *windows.grid)
    inputs = (x, kernel) if bias is None else (x, kernel, bias)
    return xp.node("Conv", *inputs, shape=shape, dtype=x.dtype, group=groups, **windows.onnx)


@conv_transpose.kernel("onnx")
def _(xp: Any, y: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if y.dtype != xp.float32:
        return conv_transpose.reference(xp, y, kernel, bias, windows, groups=groups)
    shape = (y.shape[0], kernel.shape[1] * groups, *windows.image)
    # rows and columns at the end that no window reached
    left_over = [(n - k) % s for n, k, s in zip(windows.padded, windows.extent, windows.strides, strict=True)]
    inputs = (y, kernel) if bias is None else (y, kernel, bias)
    attributes = {"group": groups, "output_padding": left_over, **windows.onnx}
    return xp.node("ConvTranspose", *inputs, shape=shape, dtype=y.dtype, **attributes)
