"""Images as matrices: a row for each window, a column for each thing that a window sees.

N batch, C channels, H W image, F filters, G groups, k = kh * kw cells of a window, h w grid of windows. For series read
L in place of H W, and so on; the number of axes follows from the arrays. Groups are a stack of matrices.
"""

from __future__ import annotations

import math
from typing import Any

from lamella_layers.windows import Windows, fold, unfold

__all__ = ["col2im", "from_rows", "im2col", "kernel_matrix", "matrix_kernel", "to_rows"]


def im2col(xp: Any, x: Any, windows: Windows, groups: int) -> Any:
    """What each window sees, one window in a row: (N, C, H, W) -> (G, N*h*w, k*C/G)."""
    cells = unfold(xp, x, windows)
    # k times (N, C, h, w) -> (N, k, G, C/G, h, w) -> (G, N, h, w, k, C/G) -> (G, N*h*w, k*C/G)
    n, depth = x.shape[0], x.shape[1] // groups
    columns = xp.reshape(xp.concat(cells, axis=1), (n, len(cells), groups, depth, *windows.grid))
    columns = xp.permute_dims(columns, (2, 0, *range(4, columns.ndim), 1, 3))
    return xp.reshape(columns, (groups, -1, len(cells) * depth))


def col2im(xp: Any, columns: Any, windows: Windows, n: Any) -> Any:
    """The transpose of `im2col`: each row is added to its window, (G, N*h*w, k*C/G) -> (N, C, H, W)."""
    groups, cells, axes = columns.shape[0], math.prod(windows.size), len(windows.grid)
    depth = columns.shape[2] // cells
    # (G, N*h*w, k*C/G) -> (G, N, h, w, k, C/G) -> (k, N, G, C/G, h, w) -> (k, N, C, h, w)
    parts = xp.reshape(columns, (groups, n, *windows.grid, cells, depth))
    parts = xp.permute_dims(parts, (2 + axes, 1, 0, 3 + axes, *range(2, 2 + axes)))
    parts = xp.reshape(parts, (cells, n, groups * depth, *windows.grid))
    return fold(xp, [parts[i, ...] for i in range(cells)], windows)


def to_rows(xp: Any, y: Any, groups: int) -> Any:
    """A row for each window: (N, F, h, w) -> (N, G, F/G, h, w) -> (G, N, h, w, F/G) -> (G, N*h*w, F/G)."""
    n, f, *grid = y.shape
    y = xp.reshape(y, (n, groups, f // groups, *grid))
    return xp.reshape(xp.permute_dims(y, (1, 0, *range(3, y.ndim), 2)), (groups, -1, f // groups))


def from_rows(xp: Any, rows: Any, windows: Windows, n: Any, filters: int) -> Any:
    """The inverse of `to_rows`."""
    # (G, N*h*w, F/G) -> (G, N, h, w, F/G) -> (N, G, F/G, h, w) -> (N, F, h, w)
    grid = windows.grid
    y = xp.reshape(rows, (rows.shape[0], n, *grid, -1))
    y = xp.permute_dims(y, (1, 0, 2 + len(grid), *range(2, 2 + len(grid))))
    return xp.reshape(y, (n, filters, *grid))


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
