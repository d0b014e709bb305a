"""Convolution of images, as a matrix product over the windows under the kernel ("im2col").

N batch, C channels, H W image, F filters, G groups, k = kh * kw cells of a window, h w grid of windows: the output.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

import lamella as lm
from lamella.arguments import pair, positive
from lamella.primitives import pad
from lamella_layers.activation import Activation
from lamella_layers.windows import Padding, Windows, fold, image_shape, padding_argument, unfold

__all__ = ["Conv2D", "conv2d", "conv2d_dw", "conv2d_dx", "sum_pixels"]


class Conv2D(lm.Layer):
    """Slides learned filters over an image.

    ``y[n, f, p, q] = activation(b[f] + sum over c, i, j of W[f, c, i, j] x[n, c, p s + i d - top, q s + j d - left])``
    with stride ``s``, dilation ``d``, and zeros where ``x`` is outside of the image.

    Arguments:
        filters: how many filters, and so output channels.
        kernel_size: height and width of a filter; one int for both, as in the next three.
        strides: how far the window moves.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).
        dilation_rate: the distance between the cells of a window.
        groups: channels and filters are split into so many groups that do not see each other.
        use_bias: whether to add ``b``.
        activation: a registered name or an `ActivationFunction`, or None.
        kernel_initializer: how ``W`` starts; ``b`` starts at zero.

    Shapes: (N, channels, height, width) -> (N, filters, h, w), with
    ``h = (height + top + bottom - (kh - 1) d - 1) // s + 1``. Parameters: ``kernel`` (filters, channels / groups,
    kh, kw), ``bias`` (filters,).

    Raises:
        ArgumentError: if ``filters`` does not divide into ``groups``.
        GraphError: if the input is no image, is smaller than a window, or its channels do not divide into groups.

    Source: https://onnx.ai/onnx/operators/onnx__Conv.html

    >>> import lamella as lm
    >>> model = lm.Sequential([Conv2D(4, 3, padding="same", strides=2)], input_shape=(3, 9, 9))
    >>> model.output_specs[0].shape, model.parameters["conv2d_1.kernel"].shape
    (('N', 4, 5, 5), (4, 3, 3, 3))
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        *,
        strides: int | tuple[int, int] = 1,
        padding: Padding | int = "valid",
        dilation_rate: int | tuple[int, int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        activation: str | lm.ActivationFunction | None = None,
        kernel_initializer: Any = "glorot_uniform",
    ):
        self.filters = positive(filters, "filters")
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.strides = pair(strides, "strides")
        self.padding = padding_argument(padding)
        self.dilation_rate = pair(dilation_rate, "dilation_rate")
        self.groups = positive(groups, "groups")
        self.use_bias = use_bias
        self.activation = None if activation is None else Activation(activation)
        self.kernel_initializer = kernel_initializer
        if self.filters % self.groups:
            raise lm.ArgumentError(f"filters={filters}: expected a multiple of groups={groups}")

    def expand(self, x: lm.Node) -> Any:
        if self.activation is None:
            return None
        return self.activation(self.replace(activation=None).named("")(x), name="activation")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x)
        if channels % self.groups:
            raise lm.GraphError(
                f"expected a number of channels that groups={self.groups} divides, got {channels} in {x}"
            )
        grid = self._windows(x).grid
        depth, cells = channels // self.groups, self.kernel_size[0] * self.kernel_size[1]
        declare.parameter(
            "kernel",
            (self.filters, depth, *self.kernel_size),
            self.kernel_initializer,
            fan_in=depth * cells,
            fan_out=self.filters * cells,
            memory=(2, 3, 1, 0),  # rows of im2col, columns of filters
        )
        if self.use_bias:
            declare.parameter("bias", (self.filters,), "zeros")
        return x.replace(shape=("N", self.filters, *grid))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        bias = ctx.params.bias if self.use_bias else None
        return conv2d(ctx, x, ctx.params.kernel, bias, self._windows(x), groups=self.groups)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        windows = self._windows(x)
        if ctx.trainable:
            ctx.grad(kernel=conv2d_dw(ctx, x, dy, windows, groups=self.groups))
            if self.use_bias:
                ctx.grad(bias=sum_pixels(ctx, dy))
        return conv2d_dx(ctx, dy, ctx.params.kernel, windows, groups=self.groups) if ctx.wants_dx[0] else None

    def _windows(self, x: Any) -> Windows:
        return Windows.over(
            x.shape[2:],
            size=self.kernel_size,
            strides=self.strides,
            dilations=self.dilation_rate,
            padding=self.padding,
        )


@lm.primitive
def conv2d(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    """Convolve images with kernels (F, C/G, kh, kw); the bias (F,) may be None."""
    y = _im2col(xp, x, windows, groups) @ _matrix(xp, kernel, groups)
    # (G, N*h*w, F/G) -> (G, N, h, w, F/G) -> (N, G, F/G, h, w) -> (N, F, h, w)
    y = xp.permute_dims(xp.reshape(y, (groups, x.shape[0], *windows.grid, -1)), (1, 0, 4, 2, 3))
    y = xp.reshape(y, (x.shape[0], kernel.shape[0], *windows.grid))
    return y if bias is None else y + xp.reshape(bias, (1, -1, 1, 1))


@lm.primitive
def conv2d_dx(xp: Any, dy: Any, kernel: Any, windows: Windows, *, groups: int = 1) -> Any:
    """The gradient of `conv2d` for the images: every window hands back what it took ("col2im")."""
    n, (h, w), (_, depth, kh, kw) = dy.shape[0], windows.grid, kernel.shape
    columns = _rows(xp, dy, groups) @ xp.permute_dims(_matrix(xp, kernel, groups), (0, 2, 1))
    # (G, N*h*w, k*C/G) -> (G, N, h, w, k, C/G) -> (k, N, G, C/G, h, w) -> (k, N, C, h, w)
    cells = xp.permute_dims(xp.reshape(columns, (groups, n, h, w, kh * kw, depth)), (4, 1, 0, 5, 2, 3))
    cells = xp.reshape(cells, (kh * kw, n, groups * depth, h, w))
    return fold(xp, [cells[i, ...] for i in range(kh * kw)], windows)


@lm.primitive
def conv2d_dw(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    """The gradient of `conv2d` for the kernel: the sum over all windows of what they saw times what they gave."""
    columns = xp.permute_dims(_im2col(xp, x, windows, groups), (0, 2, 1))
    return _kernel(xp, columns @ _rows(xp, dy, groups), windows)


@lm.primitive
def sum_pixels(xp: Any, dy: Any) -> Any:
    """The gradient of `conv2d` for the bias: (N, F, h, w) -> (F,)."""
    return xp.sum(dy, axis=(0, 2, 3))


def _im2col(xp: Any, x: Any, windows: Windows, groups: int) -> Any:
    """What lies under each window, one window in a row: (G, N*h*w, k*C/G)."""
    cells = unfold(xp, x, windows)
    # k times (N, C, h, w) -> (N, k, G, C/G, h, w) -> (G, N, h, w, k, C/G) -> (G, N*h*w, k*C/G)
    n, c, h, w = cells[0].shape
    columns = xp.reshape(xp.concat(cells, axis=1), (n, len(cells), groups, c // groups, h, w))
    return xp.reshape(xp.permute_dims(columns, (2, 0, 4, 5, 1, 3)), (groups, -1, len(cells) * (c // groups)))


def _rows(xp: Any, y: Any, groups: int) -> Any:
    """(N, F, h, w) -> (N, G, F/G, h, w) -> (G, N, h, w, F/G) -> (G, N*h*w, F/G)."""
    n, f, h, w = y.shape
    y = xp.permute_dims(xp.reshape(y, (n, groups, f // groups, h, w)), (1, 0, 3, 4, 2))
    return xp.reshape(y, (groups, -1, f // groups))


def _matrix(xp: Any, kernel: Any, groups: int) -> Any:
    """(F, C/G, kh, kw) -> (kh, kw, C/G, F) -> (k*C/G, G, F/G) -> (G, k*C/G, F/G)."""
    matrix = xp.reshape(xp.permute_dims(kernel, (2, 3, 1, 0)), (-1, groups, kernel.shape[0] // groups))
    return xp.permute_dims(matrix, (1, 0, 2))


def _kernel(xp: Any, matrix: Any, windows: Windows) -> Any:
    """The inverse of `_matrix`: (G, k*C/G, F/G) -> (G, kh, kw, C/G, F/G) -> (F, C/G, kh, kw)."""
    groups, filters = matrix.shape[0], matrix.shape[2]
    kernel = xp.permute_dims(xp.reshape(matrix, (groups, *windows.size, -1, filters)), (0, 4, 3, 1, 2))
    return xp.reshape(kernel, (groups * filters, -1, *windows.size))


@conv2d.kernel("onnx")
def _(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if x.dtype != xp.float32:  # onnxruntime has neither Conv nor ConvTranspose in float64
        return conv2d.reference(xp, x, kernel, bias, windows, groups=groups)
    shape = (x.shape[0], kernel.shape[0], *windows.grid)
    inputs = (x, kernel) if bias is None else (x, kernel, bias)
    return xp.node("Conv", *inputs, shape=shape, dtype=x.dtype, group=groups, **windows.onnx)


@conv2d_dx.kernel("onnx")
def _(xp: Any, dy: Any, kernel: Any, windows: Windows, *, groups: int = 1) -> Any:
    if dy.dtype != xp.float32:
        return conv2d_dx.reference(xp, dy, kernel, windows, groups=groups)
    shape = (dy.shape[0], kernel.shape[1] * groups, *windows.image)
    # rows and columns at the end that no window reached
    left_over = [(n - k) % s for n, k, s in zip(windows.padded, windows.extent, windows.strides, strict=True)]
    return xp.node(
        "ConvTranspose", dy, kernel, shape=shape, dtype=dy.dtype, group=groups, output_padding=left_over, **windows.onnx
    )


# The NumPy kernels never hold the columns of a whole batch: a tile of the output at a time, small enough for the
# cache, large enough for BLAS. Images have channels last in memory, so that a row of a window is one run of numbers.

_TILE_BYTES = 1 << 20  # columns held at a time
_TILE_WINDOWS = 256  # but at least so many rows of a matrix product
_SHORT_RUN = 8

Tile = tuple[slice, slice]


def _tiles(n: int, windows: Windows, bytes_per_window: int) -> list[Tile]:
    """Cut the output into (images, rows): some whole images, or some rows of one."""
    h, w = windows.grid
    rows = max(1, max(_TILE_BYTES // bytes_per_window, _TILE_WINDOWS) // w)
    images = max(1, rows // h)
    return [
        (slice(i, min(i + images, n)), slice(r, min(r + rows, h)))
        for i in range(0, n, images)
        for r in range(0, h, rows)
    ]


_kept = threading.local()


def _workspace(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array for the columns of one tile, in memory that this thread keeps and uses for every tile."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    held = getattr(_kept, "memory", None)
    if held is None or held.size < size:
        held = _kept.memory = np.empty(size, "uint8")
    return held[:size].view(dtype).reshape(shape)


def _columns(xp: Any, x: Any, windows: Windows, groups: int) -> Iterator[tuple[Tile, Any]]:
    """`_im2col` of one tile after another, in a buffer that is used again."""
    pixels = pad(xp, x, ((0, 0), (0, 0), *windows.pads)).transpose(0, 2, 3, 1)
    n, c, (h, w), (kh, kw), depth = x.shape[0], x.shape[1], windows.grid, windows.size, x.shape[1] // groups
    if windows.is_pointwise and groups == 1 and pixels.flags.c_contiguous:
        yield (slice(0, n), slice(0, h)), pixels.reshape(1, -1, c)
        return
    (sn, sy, sx, sc), (sh, sw), (dh, dw) = pixels.strides, windows.strides, windows.dilations
    strides = (sn, sy * sh, sx * sw, sc * depth, sy * dh, sx * dw, sc)
    patches = as_strided(pixels, (n, h, w, groups, kh, kw, depth), strides, writeable=False)
    # copy along the longer run of numbers: a row of a window, or else a row of the output
    window_by_window = kw * depth >= _SHORT_RUN
    order = (3, 0, 1, 2, 4, 5, 6) if window_by_window else (3, 4, 5, 6, 0, 1, 2)
    for tile in _tiles(n, windows, kh * kw * c * x.itemsize):
        patch = patches[tile].transpose(order)
        columns = _workspace(patch.shape, x.dtype)
        columns[...] = patch
        if window_by_window:
            yield tile, columns.reshape(groups, -1, kh * kw * depth)
        else:
            yield tile, columns.reshape(groups, kh * kw * depth, -1).transpose(0, 2, 1)


def _by_group(y: Any, groups: int) -> Any:
    """(N, h, w, F) -> (N*h*w, G, F/G) -> (G, N*h*w, F/G): a view of a tile, where F lies last in memory."""
    return y.reshape(-1, groups, y.shape[-1] // groups).transpose(1, 0, 2)


@conv2d.kernel("numpy")
def _(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    matrix = _matrix(xp, kernel, groups)
    y = np.empty((x.shape[0], *windows.grid, kernel.shape[0]), x.dtype)
    for tile, columns in _columns(xp, x, windows, groups):
        np.matmul(columns, matrix, out=_by_group(y[tile], groups))
        if bias is not None:
            y[tile] += bias
    return y.transpose(0, 3, 1, 2)


@conv2d_dx.kernel("numpy")
def _(xp: Any, dy: Any, kernel: Any, windows: Windows, *, groups: int = 1) -> Any:
    if windows.is_pointwise and groups == 1:
        return conv2d(xp, dy, kernel.transpose(1, 0, 2, 3), None, windows)
    n, (_, depth, kh, kw), w = dy.shape[0], kernel.shape, windows.grid[1]
    # (G, k*C/G, F/G) -> (G, k, C/G, F/G) -> (k, G, F/G, C/G)
    matrix = _matrix(xp, kernel, groups).reshape(groups, kh * kw, depth, -1).transpose(1, 0, 3, 2)
    matrix, dy = np.ascontiguousarray(matrix), np.ascontiguousarray(dy.transpose(0, 2, 3, 1))
    dx = np.zeros((n, *windows.padded, groups * depth), dy.dtype)
    for tile in _tiles(n, windows, kh * kw * groups * depth * dy.itemsize):
        images, rows = tile
        part = _by_group(dy[tile], groups)
        cells = _workspace((kh * kw, part.shape[1], groups, depth), dy.dtype)
        np.matmul(part, matrix, out=cells.transpose(0, 2, 1, 3))
        # (k, N*h*w, G, C/G) -> (k, N, h, w, C)
        cells = cells.reshape(kh * kw, -1, rows.stop - rows.start, w, groups * depth)
        for cell, (down, across) in zip(cells, windows.cells(rows.start, rows.stop), strict=True):
            there = dx[images, down, across]
            there += cell
    return dx[:, *windows.inside].transpose(0, 3, 1, 2)


@conv2d_dw.kernel("numpy")
def _(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    dy, (kh, kw) = dy.transpose(0, 2, 3, 1), windows.size
    total = np.zeros((groups, kh * kw * x.shape[1] // groups, dy.shape[3] // groups), dy.dtype)
    for tile, columns in _columns(xp, x, windows, groups):
        total += np.matmul(columns.transpose(0, 2, 1), _by_group(dy[tile], groups))
    return _kernel(xp, total, windows)


@sum_pixels.kernel("numpy")
def _(xp: Any, dy: Any) -> Any:
    rows = dy.transpose(0, 2, 3, 1).reshape(-1, dy.shape[1])  # a view where channels are last in memory
    return np.ones(len(rows), dy.dtype) @ rows


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"conv2d": Conv2D}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    docs = "https://onnx.ai/onnx/operators/onnx__Conv.html"
    image, odd, deep = lm.ArraySpec(("N", 3, 6, 8)), lm.ArraySpec(("N", 2, 7, 9)), lm.ArraySpec(("N", 4, 5, 5))
    refuses = (
        ((lm.ArraySpec(("N", 64)),), "expected images"),
        ((lm.ArraySpec(("N", 28, 28, 1)),), "NHWC"),
        ((lm.ArraySpec(("N", 1, "H", "W")),), "known sizes"),
        ((image.replace(dtype="uint8"),), "astype"),
    )
    return [
        Specimen(Conv2D(4, 3), (image,), ("Conv",), docs=docs, refuses=refuses),
        Specimen(Conv2D(3, 3, padding="same", activation="relu"), (odd,), ("Conv", "Relu"), docs=docs),
        Specimen(Conv2D(3, 3, strides=2, padding="same"), (image,), ("Conv",), docs=docs),
        Specimen(Conv2D(3, (2, 3), strides=(3, 2), use_bias=False), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, 3, dilation_rate=(2, 3), padding="same"), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, (3, 1), strides=2, dilation_rate=2, padding=((3, 0), (1, 2))), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, 2, strides=3, padding=2), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(6, 3, groups=2, strides=2), (deep,), ("Conv",), docs, refuses=(((image,), "groups=2"),)),
        Specimen(Conv2D(4, 3, groups=4, padding=1), (deep,), ("Conv",), docs=docs),
        Specimen(Conv2D(3, 1), (deep,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, 5), (deep,), ("Conv",), docs=docs),
    ]
