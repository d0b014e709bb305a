"""The ONNX kernels of convolution: native operators, and for gradients what onnxruntime computes fastest.

Onnxruntime's transposes and long products of thin matrices are slow. Gradients of kernels are therefore products image
by image, in the layout that is there, and their sum. Letters are those of `convolution`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from lamella.primitives import pad
from lamella_layers.convolution.convolution import conv, conv_dw, conv_dx, conv_transpose
from lamella_layers.windows import Windows, unfold

__all__: list[str] = []

_FEW_CHANNELS = 8  # products with fewer columns waste the time


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
    inputs = (y, kernel) if bias is None else (y, kernel, bias)
    attributes = {"group": groups, "output_padding": _left_over(windows), **windows.onnx}
    return xp.node("ConvTranspose", *inputs, shape=shape, dtype=y.dtype, **attributes)


def _left_over(windows: Windows) -> list[int]:
    """Rows and columns at the end that no window reaches."""
    return [(n - k) % s for n, k, s in zip(windows.padded, windows.extent, windows.strides, strict=True)]


@conv_dx.kernel("onnx")
def _(xp: Any, dy: Any, kernel: Any, windows: Windows, *, groups: int = 1) -> Any:
    """Where windows are neighbours, Conv with the kernel turned around: up to twice as fast as ConvTranspose.

    It is slower where its images, those of dy, are much deeper than those that it makes.
    """
    (filters, depth), axes = kernel.shape[:2], tuple(range(2, kernel.ndim))
    fits = all(max(around) < extent for around, extent in zip(windows.pads, windows.extent, strict=True))
    if set(windows.strides) != {1} or not fits or filters > 2 * groups * depth:
        return conv_transpose(xp, dy, kernel, None, windows, groups=groups)
    # (F, C/G, kh, kw) -> (G, F/G, C/G, kh, kw) -> (G, C/G, F/G, kh, kw) -> (C, F/G, kh, kw)
    parts = xp.reshape(kernel, (groups, filters // groups, *kernel.shape[1:]))
    parts = xp.permute_dims(parts, (0, 2, 1, *range(3, parts.ndim)))
    turned = xp.flip(xp.reshape(parts, (groups * depth, filters // groups, *windows.size)), axis=axes)
    return conv(xp, dy, turned, None, windows.turned, groups=groups)


@conv_dw.kernel("onnx")
def _(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    """For each cell of the window ``sum over N of dy x^T``, with x as the cell sees it.

    Where windows are neighbours and dy is no deeper than x, both are moved instead: x along all axes but the last, dy
    along the last, which takes fewer copies.
    """
    if groups > 1:
        return _dw_of_groups(xp, x, dy, windows, groups)
    c, filters = x.shape[1], dy.shape[1]
    if c < _FEW_CHANNELS:
        pairs = [(dy, xp.concat(unfold(xp, x, windows), axis=1))]
    elif set(windows.strides) == {1} and filters <= c:
        pairs = _moved(xp, x, dy, windows)
    else:
        pairs = [(dy, cell) for cell in unfold(xp, x, windows)]
    parts = [xp.sum(_rows(xp, d) @ xp.permute_dims(_rows(xp, cell), (0, 2, 1)), axis=0) for d, cell in pairs]
    # (F, k*C) -> (F, kh, kw, C) -> (F, C, kh, kw)
    dw = xp.reshape(xp.concat(parts, axis=1), (filters, *windows.size, c))
    return xp.permute_dims(dw, (0, dw.ndim - 1, *range(1, dw.ndim - 1)))


def _rows(xp: Any, x: Any) -> Any:
    """(N, C, h, w) -> (N, C, h*w)."""
    return xp.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))


def _moved(xp: Any, x: Any, dy: Any, windows: Windows) -> list[tuple[Any, Any]]:
    """For each cell dy and x, moved so that equal places meet: (N, F, h, W) and (N, C, h, W), 0 where nothing is."""
    steps = [  # along each axis, for each cell of the window: where the first window has it on the image
        [cell * d - before for cell in range(k)]
        for k, d, (before, _) in zip(windows.size, windows.dilations, windows.pads, strict=True)
    ]
    (*grid, w), (*image, width) = windows.grid, windows.image
    seen = [
        pad(xp, x, ((0, 0), (0, 0), *((-a, m - n + a) for a, m, n in zip(starts, grid, image, strict=True)), (0, 0)))
        for starts in itertools.product(*steps[:-1])
    ]
    still = ((0, 0),) * (dy.ndim - 1)
    spread = [pad(xp, dy, (*still, (start, width - w - start))) for start in steps[-1]]
    return [(d, cell) for cell in seen for d in spread]


def _dw_of_groups(xp: Any, x: Any, dy: Any, windows: Windows, groups: int) -> Any:
    """One Conv in which dy is the kernel: channels and samples have changed places, and so have strides and dilations.

    Of each group, a channel is a sample, and the samples are its channels.
    """
    # what no window reaches is less padding at the end, or is cut off
    ends = [after - left for (_, after), left in zip(windows.pads, _left_over(windows), strict=True)]
    sizes = [size + min(0, end) for size, end in zip(windows.image, ends, strict=True)]
    if x.dtype != xp.float32 or min(sizes) < 1:
        return conv_dw.reference(xp, x, dy, windows, groups=groups)
    (n, c), filters = x.shape[:2], dy.shape[1]
    depth, space = c // groups, range(2, x.ndim)
    seen = x[:, :, *map(slice, sizes)]
    # (N, C, H, W) -> (N, G, C/G, H, W) -> (C/G, G, N, H, W) -> (C/G, G*N, H, W)
    images = xp.reshape(seen, (n, groups, depth, *seen.shape[2:]))
    images = xp.permute_dims(images, (2, 1, 0, *range(3, images.ndim)))
    images = xp.reshape(images, (depth, groups * n, *seen.shape[2:]))
    dw = xp.node(
        "Conv",
        images,
        xp.permute_dims(dy, (1, 0, *space)),  # (N, F, h, w) -> (F, N, h, w)
        shape=(depth, filters, *windows.size),
        dtype=x.dtype,
        group=groups,
        kernel_shape=list(windows.grid),
        strides=list(windows.dilations),
        dilations=list(windows.strides),
        pads=[before for before, _ in windows.pads] + [max(0, end) for end in ends],
    )
    return xp.permute_dims(dw, (1, 0, *space))
