"""Pooling: one number for each window of an image or a series, or for all of it, channel by channel.

N batch, C channels, then H W, height and width of an image, or L, length of a series: (N, C, L) is the layout of ONNX
and PyTorch, where Keras has (N, L, C), which `Permute((2, 1))` turns into it.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import flag
from lamella.primitives import pad
from lamella_layers.sums import row_sums
from lamella_layers.windows import Padding, Windows, fold, image_shape, padding_argument, unfold, window_argument

__all__ = [
    "AveragePooling1D",
    "AveragePooling2D",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "MaxPooling1D",
    "MaxPooling2D",
    "average_pool",
    "average_pool_dx",
    "global_average_pool",
    "global_average_pool_dx",
    "global_max_pool",
    "global_max_pool_dx",
    "max_pool",
    "max_pool_dx",
    "max_pool_step",
    "max_pool_step_dx",
]


_CHUNK_BYTES = 1 << 20  # of images that the NumPy kernels hold at a time, to stay in the cache

Size = int | tuple[int, int]


class _Pooling(lm.Layer):
    """The arguments and the shape of pooling by windows."""

    axes: int  # that windows move along

    def __init__(self, pool_size: Size = 2, strides: Size | None = None, padding: Padding | Size = "valid"):
        self.pool_size = window_argument(pool_size, "pool_size", self.axes)
        self.strides = self.pool_size if strides is None else window_argument(strides, "strides", self.axes)
        self.padding = padding_argument(padding, self.axes)
        for size, pads in zip(self.pool_size, () if isinstance(self.padding, str) else self.padding, strict=False):
            if max(pads) >= size:
                raise lm.ArgumentError(
                    f"padding={padding!r}: expected less on each side than pool_size={pool_size!r}; a window of "
                    "nothing but padding has no value"
                )

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x, self.axes)
        return x.replace(shape=("N", channels, *self._windows(x).grid))

    def _windows(self, x: Any) -> Windows:
        return Windows.over(tuple(x.shape[2:]), size=self.pool_size, strides=self.strides, padding=self.padding)


class _MaxPooling(_Pooling):
    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        y = max_pool(ctx, x, self._windows(x))
        ctx.save(x, y)
        return y

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        x, y = ctx.saved
        return max_pool_dx(ctx, x, y, dy, self._windows(x))


class _AveragePooling(_Pooling):
    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return average_pool(ctx, x, self._windows(x))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        return average_pool_dx(ctx, dy, self._windows(x))


class _GlobalPooling(lm.Layer):
    """Pooling over all of an image or series, by primitives that keep its axes."""

    axes: int
    pool: lm.primitives.Primitive
    pool_dx: lm.primitives.Primitive

    def __init__(self, keepdims: bool = False):
        self.keepdims = flag(keepdims, "keepdims")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if len(x.shape) != 2 + self.axes or not x.is_float or 0 in x.shape:
            image_shape(x, self.axes)  # says what is wrong; here, sizes need not be known
        return x.replace(shape=(*x.shape[:2], *(1,) * (self.axes if self.keepdims else 0)))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        y = self.pool(ctx, x)
        return y if self.keepdims else ctx.xp.squeeze(y, axis=tuple(range(2, x.ndim)))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        return self.pool_dx(ctx, x, ctx.xp.reshape(dy, (*x.shape[:2], *(1,) * self.axes)))


# The layers differ in few words, and so does what is said of them: by the axes, and by what is taken of the numbers.

_AXES: dict[int, dict[str, Any]] = {
    1: {
        "one": "series", "indices": "i", "outputs": "p", "cell": "p s + i - left",
        "window": "length of a window", "sides": "an int or (left, right)",
        "input": "(N, channels, length)", "output": "(N, channels, l)", "ones": "(N, channels, 1)",
        "size": "l = (length + left + right - k) // s + 1", "shape": (1, 4), "numbers": "[[[1, 2, 8, 7.0]]]",
    },
    2: {
        "one": "image", "indices": "i, j", "outputs": "p, q", "cell": "p s + i - top, q s + j - left",
        "window": "height and width of a window; one int for both",
        "sides": "an int, (vertical, horizontal) or ((top, bottom), (left, right))",
        "input": "(N, channels, height, width)", "output": "(N, channels, h, w)", "ones": "(N, channels, 1, 1)",
        "size": "h = (height + top + bottom - kh) // s + 1", "shape": (1, 2, 4),
        "numbers": "[[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]]",
    },
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "Max": {
        "what": "The greatest number", "over": "max", "pooled": {1: "[[[2., 8.]]]", 2: "[[[[8., 6.]]]]"}, "all": "8.",
        "more": """

    Its gradient goes to where the greatest number stands; of several equal ones, to the first, row by row.""",
        "border": """ Padding is
    never the greatest. A NaN makes its windows NaN, except in onnxruntime, and gets no gradient.""",
    },
    "Average": {
        "what": "The mean", "over": "mean", "pooled": {1: "[[[1.5, 7.5]]]", 2: "[[[[4.5, 4.5]]]]"}, "all": "4.5",
        "more": "",
        "border": """

    Padding does not count: at a border it is the mean of what lies on the {one}.""",
    },
}  # fmt: skip


def _says(kind: str, axes: int) -> str:
    """What is said of a layer that pools by windows."""
    words = _KINDS[kind] | _AXES[axes] | {"pooled": _KINDS[kind]["pooled"][axes], "kind": kind, "axes": axes}
    return """{what} in each window: ``y[n, c, {outputs}] = {over} over {indices} of x[n, c, {cell}]``.{more}{border}

    Arguments:
        pool_size: {window}.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end),
            {sides}.

    Shapes: {input} -> {output}, with ``{size}``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no {one}, or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__{kind}Pool.html

    >>> import lamella as lm
    >>> lm.Sequential([{kind}Pooling{axes}D(2)], input_shape={shape}).predict({numbers})
    array({pooled}, dtype=float32)
    """.format_map(words | {"border": words["border"].format_map(words)})


def _says_of_all(kind: str, axes: int) -> str:
    """What is said of a layer that pools over everything."""
    return """{what} in each channel: ``y[n, c] = {over} over {indices} of x[n, c, {indices}]``.{more}

    Arguments:
        keepdims: whether the output keeps the axes, with size 1.

    Shapes: {input} -> (N, channels), or {ones} with ``keepdims``. Sizes need
    not be known.

    Raises:
        GraphError: if the input is no {one}.

    Source: https://onnx.ai/onnx/operators/onnx__Global{kind}Pool.html

    >>> import lamella as lm
    >>> lm.Sequential([Global{kind}Pooling{axes}D()], input_shape={shape}).predict({numbers})
    array([[{all}]], dtype=float32)
    """.format_map(_KINDS[kind] | _AXES[axes] | {"kind": kind, "axes": axes})


class MaxPooling1D(_MaxPooling):
    __doc__, axes = _says("Max", 1), 1


class MaxPooling2D(_MaxPooling):
    __doc__, axes = _says("Max", 2), 2


class AveragePooling1D(_AveragePooling):
    __doc__, axes = _says("Average", 1), 1


class AveragePooling2D(_AveragePooling):
    __doc__, axes = _says("Average", 2), 2


# A large window takes two steps, along one axis and then along the other: 2 k looks at its cells in place of k^2. Where
# such windows lie end to end along an axis, one look at all of them does.

_AT_ONCE = 16  # cells that a large window has more than


def _steps(windows: Windows) -> list[Windows]:
    """Windows that pool as these do, one after the other.

    The last axis comes first: of equal numbers, the first in the first row is then the first row by row.
    """
    axes = len(windows.image)
    if axes == 1 or math.prod(windows.size) <= _AT_ONCE:
        return [windows]
    (top, left), (height, width) = windows.pads, windows.size
    columns = Windows.over(windows.image, size=(1, width), strides=(1, windows.strides[1]), padding=((0, 0), left))
    rows = Windows.over(columns.grid, size=(height, 1), strides=(windows.strides[0], 1), padding=(top, (0, 0)))
    return [columns, rows]


def _end_to_end(windows: Windows) -> int | None:
    """The axis of an array along which large windows lie end to end, if they do."""
    if windows.padded != windows.image or windows.size != windows.strides:
        return None
    return next((2 + axis for axis, k in enumerate(windows.size) if k == math.prod(windows.size) > _AT_ONCE), None)


def _cut(xp: Any, x: Any, axis: int, windows: Windows) -> Any:
    """(N, C, H, w*k + rest) -> (N, C, H, w, k): one window after the other, along the given axis."""
    count, size = windows.grid[axis - 2], windows.size[axis - 2]
    x = x[(*(slice(None),) * axis, slice(count * size), ...)]
    return xp.reshape(x, (*x.shape[:axis], count, size, *x.shape[axis + 1 :]))


def _joined(xp: Any, x: Any, axis: int, windows: Windows) -> Any:
    """(N, C, H, w, k) -> (N, C, H, w*k + rest): the inverse of `_cut`, with zeros for the rest."""
    covered = windows.grid[axis - 2] * windows.size[axis - 2]
    x = xp.reshape(x, (*x.shape[:axis], covered, *x.shape[axis + 2 :]))
    return pad(xp, x, [(0, windows.image[axis - 2] - covered if k == axis else 0) for k in range(x.ndim)])


@lm.primitive
def max_pool(xp: Any, x: Any, windows: Windows) -> Any:
    """The greatest number in each window; padding counts as minus infinity."""
    for step in _steps(windows):
        x = max_pool_step(xp, x, step)
    return x


@max_pool.kernel("onnx")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    return xp.node("MaxPool", x, shape=(*x.shape[:2], *windows.grid), dtype=x.dtype, **windows.onnx)


@lm.primitive
def max_pool_dx(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `max_pool`, given its input and output."""
    first, *more = _steps(windows)
    if not more:
        return max_pool_step_dx(xp, x, y, dy, first)
    between = max_pool_step(xp, x, first)
    return max_pool_step_dx(xp, x, between, max_pool_step_dx(xp, between, y, dy, *more), first)


@lm.primitive
def max_pool_step(xp: Any, x: Any, windows: Windows) -> Any:
    """The greatest number in each window, all cells at once."""
    axis = _end_to_end(windows)
    if axis is not None:
        return xp.max(_cut(xp, x, axis, windows), axis=axis + 1)
    return functools.reduce(xp.maximum, unfold(xp, x, windows, value=-math.inf))


@max_pool_step.kernel("numpy")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    if _end_to_end(windows) is not None:
        return max_pool_step.reference(xp, x, windows)
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


@lm.primitive
def max_pool_step_dx(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `max_pool_step`, given its input and output."""
    axis = _end_to_end(windows)
    if axis is not None:
        cells = _cut(xp, x, axis, windows)
        peaks, share = (xp.expand_dims(array, axis=axis + 1) for array in (y, dy))
        place = xp.reshape(xp.arange(cells.shape[axis + 1]), (-1, *(1,) * (x.ndim - 1 - axis)))
        first = xp.logical_and(place == xp.argmax(cells, axis=axis + 1, keepdims=True), cells == peaks)
        return _joined(xp, share * xp.astype(first, dy.dtype), axis, windows)

    def claims() -> Iterator[Any]:
        rest = dy  # what no cell has claimed yet
        for cell in unfold(xp, x, windows, value=math.nan):  # NaN equals nothing: padding claims nothing
            claim = rest * xp.astype(cell == y, dy.dtype)
            rest = rest - claim
            yield claim

    return fold(xp, claims(), windows)


@max_pool_step_dx.kernel("numpy")
def _(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    if _end_to_end(windows) is not None:
        return max_pool_step_dx.reference(xp, x, y, dy, windows)
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
    total = x
    for step in _steps(windows):
        axis = _end_to_end(step)
        if axis is None:
            total = functools.reduce(operator.add, unfold(xp, total, step))
        else:
            total = xp.sum(_cut(xp, total, axis, step), axis=axis + 1)
    return total / _counts(xp, windows, x.dtype)


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
    for step in reversed(_steps(windows)):
        axis = _end_to_end(step)
        if axis is None:
            share = fold(xp, [share] * math.prod(step.size), step)
        else:
            shape = (*share.shape[: axis + 1], step.size[axis - 2], *share.shape[axis + 1 :])
            share = _joined(xp, xp.broadcast_to(xp.expand_dims(share, axis=axis + 1), shape), axis, step)
    return share


def _counts(xp: Any, windows: Windows, dtype: Any) -> Any:
    """How many cells of each window lie on the image: a number, or an array (h, w)."""
    if windows.padded == windows.image:
        return float(math.prod(windows.size))
    counts: Any = 1.0
    for n, k, s, (before, _), m in zip(
        windows.image, windows.size, windows.strides, windows.pads, windows.grid, strict=True
    ):
        along = [min(n, o * s - before + k) - max(0, o * s - before) for o in range(m)]
        counts = xp.asarray(along, dtype=dtype) * (counts if isinstance(counts, float) else counts[..., None])
    return counts


@lm.primitive
def global_max_pool(xp: Any, x: Any) -> Any:
    """The greatest number in each channel: (N, C, ...) -> (N, C, 1...)."""
    return xp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@lm.primitive
def global_max_pool_dx(xp: Any, x: Any, dy: Any) -> Any:
    """The gradient of `global_max_pool`."""
    rows = xp.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))
    hit = xp.arange(rows.shape[2]) == xp.argmax(rows, axis=2, keepdims=True)
    # (N, C, L) -> (N, C, H, W)
    return xp.reshape(xp.astype(hit, dy.dtype), x.shape) * dy


@global_max_pool_dx.kernel("numpy")
def _(xp: Any, x: Any, dy: Any) -> Any:
    n, c, *size = x.shape
    dx = np.zeros((n, math.prod(size), c), dy.dtype)
    first = np.argmax(x.reshape(n, c, -1), axis=2)
    np.put_along_axis(dx, first[:, None, :], dy.reshape(n, 1, c), axis=1)
    return np.moveaxis(dx.reshape(n, *size, c), -1, 1)


@lm.primitive
def global_average_pool(xp: Any, x: Any) -> Any:
    """The mean of each channel: (N, C, ...) -> (N, C, 1...)."""
    return xp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@global_average_pool.kernel("numpy")
def _(xp: Any, x: Any) -> Any:
    count = math.prod(x.shape[2:])
    # (N, C, H, W) -> (N, C, H*W) -> (N, C, 1, 1)
    total = row_sums(x.reshape(*x.shape[:2], count))
    return (total / x.dtype.type(count)).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


@lm.primitive
def global_average_pool_dx(xp: Any, x: Any, dy: Any) -> Any:
    """The gradient of `global_average_pool`: every number has an equal share."""
    return xp.broadcast_to(dy / math.prod(x.shape[2:]), x.shape)


def _native(pool: lm.primitives.Primitive, node: str) -> None:
    @pool.kernel("onnx")
    def _(xp: Any, x: Any) -> Any:
        if x.dtype != xp.float32:  # onnxruntime has them in float32 only
            return pool.reference(xp, x)
        return xp.node(node, x, shape=(*x.shape[:2], *(1,) * (x.ndim - 2)), dtype=x.dtype)


_native(global_max_pool, "GlobalMaxPool")
_native(global_average_pool, "GlobalAveragePool")


class GlobalMaxPooling1D(_GlobalPooling):
    __doc__, axes, pool, pool_dx = _says_of_all("Max", 1), 1, global_max_pool, global_max_pool_dx


class GlobalMaxPooling2D(_GlobalPooling):
    __doc__, axes, pool, pool_dx = _says_of_all("Max", 2), 2, global_max_pool, global_max_pool_dx


class GlobalAveragePooling1D(_GlobalPooling):
    __doc__, axes, pool, pool_dx = _says_of_all("Average", 1), 1, global_average_pool, global_average_pool_dx


class GlobalAveragePooling2D(_GlobalPooling):
    __doc__, axes, pool, pool_dx = _says_of_all("Average", 2), 2, global_average_pool, global_average_pool_dx


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "average_pooling1d": AveragePooling1D,
        "average_pooling2d": AveragePooling2D,
        "global_average_pooling1d": GlobalAveragePooling1D,
        "global_average_pooling2d": GlobalAveragePooling2D,
        "global_max_pooling1d": GlobalMaxPooling1D,
        "global_max_pooling2d": GlobalMaxPooling2D,
        "max_pooling1d": MaxPooling1D,
        "max_pooling2d": MaxPooling2D,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    image, odd = lm.ArraySpec(("N", 3, 6, 8)), lm.ArraySpec(("N", 2, 7, 5))
    series, symbolic = lm.ArraySpec(("N", 3, 7)), lm.ArraySpec(("N", 2, "T"))
    refuses = (
        ((lm.ArraySpec(("N", 64)),), "expected images"),
        ((lm.ArraySpec(("N", 28, 28, 1)),), "NHWC"),
        ((lm.ArraySpec(("N", 1, "H", "W")),), "known sizes"),
        ((image.replace(dtype="uint8"),), "astype"),
    )
    refuses_1d = (
        ((lm.ArraySpec(("N", 64)),), "expected series"),
        ((lm.ArraySpec(("N", 28, 1)),), "(N, length, channels)"),
        ((symbolic,), "known sizes"),
    )
    rows = (
        (MaxPooling1D, MaxPooling2D, GlobalMaxPooling1D, GlobalMaxPooling2D, "MaxPool"),
        (AveragePooling1D, AveragePooling2D, GlobalAveragePooling1D, GlobalAveragePooling2D, "AveragePool"),
    )
    return [
        specimen
        for of_series, of_images, of_a_series, of_an_image, node in rows
        for docs in [f"https://onnx.ai/onnx/operators/onnx__{node}.html"]
        for specimen in (
            Specimen(of_images(), (image,), (node,), docs=docs, refuses=refuses),
            Specimen(of_images(), (odd,), (node,), docs=docs),
            Specimen(of_images(3, strides=2), (odd,), (node,), docs=docs),
            Specimen(of_images(3, strides=1, padding="same"), (odd,), (node,), docs=docs),
            Specimen(of_images((2, 3), strides=(1, 2), padding="same"), (image,), (node,), docs=docs),
            Specimen(of_images(3, strides=2, padding=((1, 0), (2, 1))), (image,), (node,), docs=docs),
            Specimen(of_images((1, 4), strides=(2, 3)), (image,), (node,), docs=docs),
            Specimen(of_images((18, 2), strides=(18, 1)), (lm.ArraySpec(("N", 2, 37, 3)),), (node,), docs=docs),
            Specimen(of_series(), (series,), (node,), docs=docs, refuses=refuses_1d),
            Specimen(of_series(3, strides=2, padding=(0, 2)), (series,), (node,), docs=docs),
            Specimen(of_series(2, strides=3, padding="same"), (series,), (node,), docs=docs),
            Specimen(of_an_image(), (odd,), (f"Global{node}", "Squeeze"), docs=docs, refuses=refuses[:1] + refuses[3:]),
            Specimen(of_an_image(keepdims=True), (odd,), (f"Global{node}",), docs=docs),
            Specimen(of_a_series(), (symbolic,), (f"Global{node}", "Squeeze"), docs=docs, refuses=refuses_1d[:1]),
        )
    ]
