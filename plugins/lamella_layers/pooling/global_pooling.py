"""Global pooling: one value for each channel of an image or a series.

N batch, C channels, H W image; for series read L in place of H W.
"""

from __future__ import annotations

import math
from typing import Any

import lamella as lm
from lamella.arguments import flag
from lamella_layers.windows import image_shape

__all__ = [
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GlobalPooling",
    "global_average_pool",
    "global_average_pool_dx",
    "global_max_pool",
    "global_max_pool_dx",
]


@lm.primitive
def global_max_pool(xp: Any, x: Any) -> Any:
    """The greatest value in each channel: (N, C, ...) -> (N, C, 1...)."""
    return xp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@lm.primitive
def global_max_pool_dx(xp: Any, x: Any, dy: Any) -> Any:
    """The gradient of `global_max_pool`: dy where the greatest value is, the first of several; 0 elsewhere."""
    rows = xp.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))
    hit = xp.arange(rows.shape[2]) == xp.argmax(rows, axis=2, keepdims=True)
    # (N, C, L) -> (N, C, H, W)
    return xp.reshape(xp.astype(hit, dy.dtype), x.shape) * dy


@lm.primitive
def global_average_pool(xp: Any, x: Any) -> Any:
    """The mean of each channel: (N, C, ...) -> (N, C, 1...)."""
    return xp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@lm.primitive
def global_average_pool_dx(xp: Any, x: Any, dy: Any) -> Any:
    """The gradient of `global_average_pool`: dy / (H W) for every pixel."""
    return xp.broadcast_to(dy / math.prod(x.shape[2:]), x.shape)


def _native(pool: lm.primitives.Primitive, node: str) -> None:
    @pool.kernel("onnx")
    def _(xp: Any, x: Any) -> Any:
        if x.dtype != xp.float32:  # onnxruntime has them in float32 only
            return pool.reference(xp, x)
        return xp.node(node, x, shape=(*x.shape[:2], *(1,) * (x.ndim - 2)), dtype=x.dtype)


_native(global_max_pool, "GlobalMaxPool")
_native(global_average_pool, "GlobalAveragePool")


class GlobalPooling(lm.Layer):
    """What global pooling has in common: everything but the primitives, which keep the axes. Abstract."""

    axes: int
    pool: lm.primitives.Primitive
    pool_dx: lm.primitives.Primitive

    def __init__(self, keepdims: bool = False):
        self.keepdims = flag(keepdims, "keepdims")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if len(x.shape) != 2 + self.axes or not x.is_float or 0 in x.shape:
            image_shape(x, self.axes)  # says what is wrong; here, sizes need not be known
        declare.features(1)
        return x.replace(shape=(*x.shape[:2], *(1,) * (self.axes if self.keepdims else 0)))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # y = the maximum or the mean over H and W, (N, C, H, W) -> (N, C)
        ctx.save(x)
        y = self.pool(ctx, x)
        return y if self.keepdims else ctx.xp.squeeze(y, axis=tuple(range(2, x.ndim)))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        return self.pool_dx(ctx, x, ctx.xp.reshape(dy, (*x.shape[:2], *(1,) * self.axes)))


class GlobalMaxPooling1D(GlobalPooling):
    """The greatest value of each channel: ``y[n, c] = max over i of x[n, c, i]``.

    Its gradient goes to where the greatest value is; of several equal ones, to the first, row by row.

    Arguments:
        keepdims: whether the output keeps the axes, with size 1.

    Shapes: (N, channels, length) -> (N, channels), or (N, channels, 1) with ``keepdims``. Sizes need not be
    known.

    Raises:
        GraphError: if the input is no series.

    Source: https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html

    >>> import lamella as lm
    >>> lm.Sequential([GlobalMaxPooling1D()], input_shape=(1, 4)).predict([[[1, 2, 8, 7.0]]])
    array([[8.]], dtype=float32)
    """

    axes, pool, pool_dx = 1, global_max_pool, global_max_pool_dx


class GlobalMaxPooling2D(GlobalPooling):
    """The greatest value of each channel: ``y[n, c] = max over i, j of x[n, c, i, j]``.

    Its gradient goes to where the greatest value is; of several equal ones, to the first, row by row.

    Arguments:
        keepdims: whether the output keeps the axes, with size 1.

    Shapes: (N, channels, height, width) -> (N, channels), or (N, channels, 1, 1) with ``keepdims``. Sizes need not
    be known.

    Raises:
        GraphError: if the input is no image.

    Source: https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html

    >>> import lamella as lm
    >>> lm.Sequential([GlobalMaxPooling2D()], input_shape=(1, 2, 4)).predict([[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]])
    array([[8.]], dtype=float32)
    """

    axes, pool, pool_dx = 2, global_max_pool, global_max_pool_dx


class GlobalAveragePooling1D(GlobalPooling):
    """The mean of each channel: ``y[n, c] = mean over i of x[n, c, i]``.

    Arguments:
        keepdims: whether the output keeps the axes, with size 1.

    Shapes: (N, channels, length) -> (N, channels), or (N, channels, 1) with ``keepdims``. Sizes need not be
    known.

    Raises:
        GraphError: if the input is no series.

    Source: https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html

    >>> import lamella as lm
    >>> lm.Sequential([GlobalAveragePooling1D()], input_shape=(1, 4)).predict([[[1, 2, 8, 7.0]]])
    array([[4.5]], dtype=float32)
    """

    axes, pool, pool_dx = 1, global_average_pool, global_average_pool_dx


class GlobalAveragePooling2D(GlobalPooling):
    """The mean of each channel: ``y[n, c] = mean over i, j of x[n, c, i, j]``.

    Arguments:
        keepdims: whether the output keeps the axes, with size 1.

    Shapes: (N, channels, height, width) -> (N, channels), or (N, channels, 1, 1) with ``keepdims``. Sizes need not
    be known.

    Raises:
        GraphError: if the input is no image.

    Source: https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html

    >>> import lamella as lm
    >>> lm.Sequential([GlobalAveragePooling2D()], input_shape=(1, 2, 4)).predict([[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]])
    array([[4.5]], dtype=float32)
    """

    axes, pool, pool_dx = 2, global_average_pool, global_average_pool_dx
