"""Pooling: one number for each window of an image, channel by channel."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import pair
from lamella_layers.windows import Padding, Windows, fold, image_shape, padding_argument, unfold

__all__ = [
    "AveragePooling2D",
    "MaxPooling2D",
    "average_pool",
    "average_pool_dx",
    "max_pool",
    "max_pool_dx",
]


_CHUNK_BYTES = 1 << 20  # of images that the NumPy kernels hold at a time, to stay in the cache


class _Pooling2D(lm.Layer):
    """The arguments and the shape of pooling."""

    def __init__(
        self,
        pool_size: int | tuple[int, int] = 2,
        strides: int | tuple[int, int] | None = None,
        padding: Padding | int = "valid",
    ):
        self.pool_size = pair(pool_size, "pool_size")
        self.strides = self.pool_size if strides is None else pair(strides, "strides")
        self.padding = padding_argument(padding)
        for size, pads in zip(self.pool_size, () if isinstance(self.padding, str) else self.padding, strict=False):
            if max(pads) >= size:
                raise lm.ArgumentError(
                    f"padding={padding!r}: expected less on each side than pool_size={pool_size!r}; a window of "
                    "nothing but padding has no value"
                )

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x)
        return x.replace(shape=("N", channels, *self._windows(x).grid))

    def _windows(self, x: Any) -> Windows:
        return Windows.over(x.shape[2:], size=self.pool_size, strides=self.strides, padding=self.padding)


class MaxPooling2D(_Pooling2D):
    """The greatest number in each window: ``y[n, c, p, q] = max over i, j of x[n, c, p s + i - top, q s + j - left]``.

    Its gradient goes to where the greatest number stands; of several equal ones, to the first, row by row. Padding is
    never the greatest. A NaN makes its windows NaN, except in onnxruntime, and gets no gradient.

    Arguments:
        pool_size: height and width of a window; one int for both.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).

    Shapes: (N, channels, height, width) -> (N, channels, h, w), with ``h = (height + top + bottom - kh) // s + 1``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no image or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__MaxPool.html

    >>> import lamella as lm
    >>> lm.Sequential([MaxPooling2D(2)], input_shape=(1, 2, 4)).predict([[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]])
    array([[[[8., 6.]]]], dtype=float32)
    """

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        y = max_pool(ctx, x, self._windows(x))
        ctx.save(x, y)
        return y

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        x, y = ctx.saved
        return max_pool_dx(ctx, x, y, dy, self._windows(x))


class AveragePooling2D(_Pooling2D):
    """The mean of each window: ``y[n, c, p, q] = mean over i, j of x[n, c, p s + i - top, q s + j - left]``.

    Padding does not count: at a border it is the mean of what lies on the image.

    Arguments:
        pool_size: height and width of a window; one int for both.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).

    Shapes: (N, channels, height, width) -> (N, channels, h, w), with ``h = (height + top + bottom - kh) // s + 1``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no image or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__AveragePool.html

    >>> import lamella as lm
    >>> lm.Sequential([AveragePooling2D(2)], input_shape=(1, 2, 4)).predict([[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]])
    array([[[[4.5, 4.5]]]], dtype=float32)
    """

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return average_pool(ctx, x, self._windows(x))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        return average_pool_dx(ctx, dy, self._windows(x))


@lm.primitive
def max_pool(xp: Any, x: Any, windows: Windows) -> Any:
    """The greatest number in each window; padding counts as minus infinity."""
    return functools.reduce(xp.maximum, unfold(xp, x, windows, value=-math.inf))


@max_pool.kernel("numpy")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    y = np.moveaxis(np.empty((x.shape[0], *windows.grid, x.shape[1]), x.dtype), -1, 1)
    for some in _chunks(x):
        first, *others = unfold(xp, x[some], windows, value=-math.inf)
        y[some] = first
        for cell in others:
            np.maximum(y[some], cell, out=y[some])
    return y


def _chunks(x: Any) -> Iterator[slice]:
    """Some images after others."""
    images = max(1, _CHUNK_BYTES // (math.prod(x.shape[1:]) * x.itemsize))
    return (slice(first, first + images) for first in range(0, x.shape[0], images))


@max_pool.kernel("onnx")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    return xp.node("MaxPool", x, shape=(*x.shape[:2], *windows.grid), dtype=x.dtype, **windows.onnx)


@lm.primitive
def max_pool_dx(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `max_pool`, given its input and output."""

    def claims() -> Iterator[Any]:
        rest = dy  # what no cell has claimed yet
        for cell in unfold(xp, x, windows, value=math.nan):  # NaN equals nothing: padding claims nothing
            claim = rest * xp.astype(cell == y, dy.dtype)
            rest = rest - claim
            yield claim

    return fold(xp, claims(), windows)


@max_pool_dx.kernel("numpy")
def _(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    dx = np.moveaxis(np.empty((x.shape[0], *x.shape[2:], x.shape[1]), dy.dtype), -1, 1)

    def claims(some: slice) -> Iterator[Any]:
        peaks, share = (np.ascontiguousarray(np.moveaxis(array[some], 1, -1)) for array in (y, dy))
        free = np.ones(peaks.shape, dtype=bool)
        for cell in unfold(xp, x[some], windows, value=math.nan):
            hit = np.moveaxis(cell, 1, -1) == peaks
            hit &= free
            free ^= hit
            yield np.moveaxis(share * hit, -1, 1)

    for some in _chunks(x):
        if windows.tiles:  # every pixel lies in one window: nothing adds up
            for claim, cell in zip(claims(some), windows.cells(), strict=True):
                dx[some, :, *cell] = claim
        else:
            dx[some] = fold(xp, claims(some), windows)
    return dx


@lm.primitive
def average_pool(xp: Any, x: Any, windows: Windows) -> Any:
    """The mean of each window; padding does not count."""
    return functools.reduce(operator.add, unfold(xp, x, windows)) / _counts(xp, windows, x.dtype)


@average_pool.kernel("onnx")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    if x.dtype != xp.float32:  # onnxruntime has it in float32 only
        return average_pool.reference(xp, x, windows)
    shape = (*x.shape[:2], *windows.grid)
    return xp.node("AveragePool", x, shape=shape, dtype=x.dtype, count_include_pad=0, **windows.onnx)


@lm.primitive
def average_pool_dx(xp: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `average_pool`: every window hands out equal shares."""
    share = dy / _counts(xp, windows, dy.dtype)
    return fold(xp, [share] * math.prod(windows.size), windows)


def _counts(xp: Any, windows: Windows, dtype: Any) -> Any:
    """How many cells of each window lie on the image: a number, or an array (h, w)."""
    if windows.padded == windows.image:
        return float(math.prod(windows.size))
    down, across = (
        [sum(0 <= o * s + i - before < n for i in range(k)) for o in range(h)]
        for n, k, s, (before, _), h in zip(
            windows.image, windows.size, windows.strides, windows.pads, windows.grid, strict=True
        )
    )
    return xp.reshape(xp.asarray(down, dtype=dtype), (-1, 1)) * xp.asarray(across, dtype=dtype)


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"average_pooling2d": AveragePooling2D, "max_pooling2d": MaxPooling2D}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    image, odd = lm.ArraySpec(("N", 3, 6, 8)), lm.ArraySpec(("N", 2, 7, 5))
    refuses = (
        ((lm.ArraySpec(("N", 64)),), "expected images"),
        ((lm.ArraySpec(("N", 28, 28, 1)),), "NHWC"),
        ((lm.ArraySpec(("N", 1, "H", "W")),), "known sizes"),
        ((image.replace(dtype="uint8"),), "astype"),
    )
    return [
        specimen
        for layer, node in ((MaxPooling2D, "MaxPool"), (AveragePooling2D, "AveragePool"))
        for docs in [f"https://onnx.ai/onnx/operators/onnx__{node}.html"]
        for specimen in (
            Specimen(layer(), (image,), (node,), docs=docs, refuses=refuses),
            Specimen(layer(), (odd,), (node,), docs=docs),
            Specimen(layer(3, strides=2), (odd,), (node,), docs=docs),
            Specimen(layer(3, strides=1, padding="same"), (odd,), (node,), docs=docs),
            Specimen(layer((2, 3), strides=(1, 2), padding="same"), (image,), (node,), docs=docs),
            Specimen(layer(3, strides=2, padding=((1, 0), (2, 1))), (image,), (node,), docs=docs),
            Specimen(layer((1, 4), strides=(2, 3)), (image,), (node,), docs=docs),
        )
    ]
