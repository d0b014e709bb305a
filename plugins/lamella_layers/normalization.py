"""Normalization: each channel brought to mean 0 and variance 1, then to a mean and scale that are learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import fraction, number

__all__ = [
    "BatchNormalization",
    "batch_normalization",
    "batch_normalization_dx",
    "channel_affine",
    "channel_moments",
    "channel_products",
]


class BatchNormalization(lm.Layer):
    """Normalizes each channel over the batch: ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta``.

    In training, mean and (biased) variance are those of the whole batch, over all samples and pixels or time steps,
    and running averages follow them: ``running = momentum running + (1 - momentum) batch``. In inference, and where
    the layer is frozen, the running averages take their place, and the layer is affine: ``dx = dy gamma /
    sqrt(variance + epsilon)``. Sample weights weigh the loss, not the statistics.

    Arguments:
        momentum: how much of the running averages stays in each step, in [0, 1). PyTorch's is 1 minus this one.
        epsilon: added to the variance; above 0, so that constant channels stay finite.

    Shapes: (N, channels), (N, time, channels) or images (N, channels, height, width) -> the same; as everywhere in
    lamella, features of sequences come last, and channels of images first. Parameters: ``gamma``, ``beta``; state:
    ``mean``, ``variance``; all (channels,).

    Raises:
        ArgumentError: if ``momentum`` is not in [0, 1) or ``epsilon`` not above 0.
        GraphError: if the input has another number of axes, channels of unknown number, or integers.

    Source: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html; Ioffe and Szegedy,
    https://arxiv.org/abs/1502.03167

    >>> import lamella as lm
    >>> model = lm.Sequential([BatchNormalization(momentum=0.5)], input_shape=(1,))
    >>> loss = model.train_on_batch([[1.0], [5.0]], [[-1.0], [1.0]], loss="mean_squared_error", optimizer="sgd")
    >>> model.state["batch_normalization_1.mean"], model.state["batch_normalization_1.variance"]
    (array([1.5], dtype=float32), array([2.5], dtype=float32))
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3):
        self.momentum = fraction(momentum, "momentum")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        if not self.epsilon:
            raise lm.ArgumentError(
                f"epsilon: expected a number above 0, got {epsilon!r}; constant channels divide by it"
            )

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels = x.shape[_channel_axis(len(x.shape))] if len(x.shape) in (2, 3, 4) else None
        if not isinstance(channels, int) or not x.is_float:
            raise lm.GraphError(
                "expected floats (N, channels), (N, time, channels) or (N, channels, height, width) with a known "
                f"number of channels, got {x}. Likely fix: Reshape(...) to one of these, or x.astype('float32') for "
                "integers"
            )
        declare.parameter("gamma", (channels,), "ones")
        declare.parameter("beta", (channels,), "zeros")
        declare.state("mean", (channels,), "zeros")
        declare.state("variance", (channels,), "ones")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        xp, gamma, beta, running = ctx.xp, ctx.params.gamma, ctx.params.beta, ctx.state
        if not (ctx.training and ctx.trainable):
            ctx.save(x)
            return batch_normalization(ctx, x, gamma, beta, running.mean, running.variance, epsilon=self.epsilon)
        # the slice's own moments, in float64: sums of x^2 would lose the variance of channels far from 0
        n = _count(x)
        mean, squares = channel_moments(ctx, x)
        n, total, squares, apart = yield n, n * mean, squares, n * mean * mean
        mean = total / n
        variance = xp.maximum(squares + apart - total * mean, 0.0) / n
        keep, follow = self.momentum, 1.0 - self.momentum
        ctx.update(
            mean=xp.astype(keep * running.mean + follow * mean, ctx.dtype),
            variance=xp.astype(keep * running.variance + follow * variance, ctx.dtype),
        )
        inverse = 1.0 / xp.sqrt(variance + self.epsilon)
        center = xp.astype(mean, ctx.dtype)
        rest = mean - center  # what rounding took from the mean; it goes into the offset
        ctx.save(x, center, rest, inverse, n)
        scale = gamma * inverse
        offset = beta - rest * scale
        return channel_affine(ctx, x, xp.astype(scale, ctx.dtype), xp.astype(offset, ctx.dtype), center=center)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        xp = ctx.xp
        if ctx.training and ctx.trainable:
            x, center, rest, inverse, n = ctx.saved
        else:
            (x,), center, rest, n = ctx.saved, ctx.state.mean, 0.0, None
            inverse = 1.0 / xp.sqrt(ctx.state.variance + self.epsilon)
        if ctx.trainable:
            total, product = channel_products(ctx, dy, x, center)
            product = (product - rest * total) * inverse  # the sum of dy (x - mean) / sqrt(variance + epsilon)
            ctx.grad(gamma=xp.astype(product, ctx.dtype), beta=xp.astype(total, ctx.dtype))
        if not ctx.wants_dx[0]:
            return None
        scale = xp.astype(ctx.params.gamma * inverse, ctx.dtype)
        if n is None:
            return channel_affine(ctx, dy, scale)
        total, product = yield total, product
        # dx = scale (dy - total / n - (x - mean) slope)
        slope = product * inverse / n
        shift = total / n - rest * slope
        return batch_normalization_dx(
            ctx, dy, x, center, xp.astype(shift, ctx.dtype), xp.astype(slope, ctx.dtype), scale
        )


def _channel_axis(axes: int) -> int:
    return 1 if axes == 4 else axes - 1


def _count(x: Any) -> Any:
    """How many numbers each channel has: samples times pixels or time steps."""
    return math.prod(size for axis, size in enumerate(x.shape) if axis != _channel_axis(x.ndim))


def _others(x: Any) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis != _channel_axis(x.ndim))


def _beside(xp: Any, vector: Any, x: Any) -> Any:
    """A number for each channel, (C,), in the shape that goes with ``x``: (C,) or (C, 1, 1)."""
    return xp.reshape(vector, (-1, 1, 1)) if x.ndim == 4 else vector


@lm.primitive
def batch_normalization(xp: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float) -> Any:
    """Normalize with given statistics; multiplied out to ``scale x + offset``, as onnxruntime does."""
    scale = gamma / xp.sqrt(variance + epsilon)
    return channel_affine(xp, x, scale, beta - mean * scale)


@batch_normalization.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float) -> Any:
    if x.dtype != xp.float32:  # the attribute epsilon is float32
        return batch_normalization.reference(xp, x, gamma, beta, mean, variance, epsilon=epsilon)
    # the node has channels on axis 1: (N, T, C) -> (N*T, C)
    rows = xp.reshape(x, (-1, x.shape[2])) if x.ndim == 3 else x
    inputs = (rows, gamma, beta, mean, variance)
    y = xp.node("BatchNormalization", *inputs, shape=rows.shape, dtype=x.dtype, epsilon=epsilon)
    return xp.reshape(y, x.shape)


@lm.primitive
def channel_moments(xp: Any, x: Any) -> tuple[Any, Any]:
    """For each channel the mean and the sum of squared deviations from it, in float64."""
    center = xp.mean(x, axis=_others(x))
    d = x - _beside(xp, center, x)
    total, squares = (xp.astype(xp.sum(a, axis=_others(x)), xp.float64) for a in (d, d * d))
    rest = total / _count(x)  # what rounding took from the mean
    return center + rest, squares - rest * total


@lm.primitive
def channel_affine(xp: Any, x: Any, scale: Any, offset: Any = None, *, center: Any = None) -> Any:
    """``(x - center) scale + offset``, with a number for each channel."""
    y = x if center is None else x - _beside(xp, center, x)
    y = y * _beside(xp, scale, x)
    return y if offset is None else y + _beside(xp, offset, x)


@lm.primitive
def channel_products(xp: Any, dy: Any, x: Any, center: Any) -> tuple[Any, Any]:
    """For each channel the sums of ``dy`` and of ``dy (x - center)``, in float64."""
    terms = dy, dy * (x - _beside(xp, center, x))
    total, product = (xp.astype(xp.sum(term, axis=_others(x)), xp.float64) for term in terms)
    return total, product


@lm.primitive
def batch_normalization_dx(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    """``scale (dy - shift - (x - center) slope)``, with a number for each channel."""
    center, shift, slope, scale = (_beside(xp, vector, x) for vector in (center, shift, slope, scale))
    return ((dy - shift) - (x - center) * slope) * scale


# The NumPy kernels see an image as rows of W*C numbers, since channels are last in memory, and hold some rows at a
# time, few enough for the cache. Vectors (C,) are repeated W times: long loops are faster than short ones.

_TILE_BYTES = 1 << 19
_TILE_ROWS = 1024  # at most: so many numbers are added up in float32, tiles in float64


def _rows(x: Any) -> Any:
    """(N, C, H, W) -> (N*H, W*C); (N, T, C) -> (N, T*C); (N, C) as it is."""
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
    return x.reshape(-1, math.prod(x.shape[-2:])) if x.ndim > 2 else x


def _like(rows: Any, x: Any) -> Any:
    """The inverse of `_rows`, for an array of the shape of ``x``."""
    if x.ndim == 4:
        n, c, h, w = x.shape
        return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return rows.reshape(x.shape)


def _tiles(rows: Any) -> Iterator[slice]:
    length = max(1, min(_TILE_ROWS, _TILE_BYTES // max(1, rows.shape[1] * rows.itemsize)))
    return (slice(first, first + length) for first in range(0, rows.shape[0], length))


def _repeat(rows: Any, *vectors: Any) -> Iterator[Any]:
    times = rows.shape[1] // len(vectors[0])
    return (vector if times == 1 else np.tile(vector, times) for vector in vectors)


def _sum(rows: Any) -> Any:
    return np.ones(len(rows), rows.dtype) @ rows


def _channels(sums: Any, channels: int) -> Any:
    """(W*C,) -> (W, C) -> (C,)"""
    return sums.reshape(-1, channels).sum(axis=0)


@channel_moments.kernel("numpy")
def _(xp: Any, x: Any) -> tuple[Any, Any]:
    rows, channels = _rows(x), x.shape[_channel_axis(x.ndim)]
    sums = np.zeros((3, rows.shape[1]))  # of the tiles' sums, of their squared deviations and of those of their means
    for tile in (rows[some] for some in _tiles(rows)):
        n = len(tile)
        center = _sum(tile) / x.dtype.type(n)
        d = tile - center
        rest = _sum(d).astype("float64")
        d *= d
        mean = center + rest / n
        sums += n * mean, _sum(d) - rest * rest / n, n * mean * mean
    total, squares, apart = sums.reshape(3, -1, channels).sum(axis=1)
    mean = total / _count(x)
    return mean, squares + (apart - total * mean)


@channel_affine.kernel("numpy")
def _(xp: Any, x: Any, scale: Any, offset: Any = None, *, center: Any = None) -> Any:
    rows = _rows(x)
    y = np.empty(rows.shape, rows.dtype)
    steps = [(np.subtract, center), (np.multiply, scale), (np.add, offset)]
    steps = [(function, next(_repeat(rows, vector))) for function, vector in steps if vector is not None]
    for some in _tiles(rows):
        there, here = rows[some], y[some]
        for function, vector in steps:
            there = function(there, vector, out=here)
    return _like(y, x)


@channel_products.kernel("numpy")
def _(xp: Any, dy: Any, x: Any, center: Any) -> tuple[Any, Any]:
    gradients, rows, channels = _rows(dy), _rows(x), len(center)
    (centers,) = _repeat(rows, center)
    total, product = np.zeros((2, rows.shape[1]))
    for some in _tiles(rows):
        d = rows[some] - centers
        d *= gradients[some]
        product += _sum(d)
        total += _sum(gradients[some])
    return _channels(total, channels), _channels(product, channels)


@batch_normalization_dx.kernel("numpy")
def _(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    gradients, rows = _rows(dy), _rows(x)
    centers, shifts, slopes, scales = _repeat(rows, center, shift, slope, scale)
    dx = np.empty(rows.shape, rows.dtype)
    for some in _tiles(rows):
        d = rows[some] - centers
        d *= slopes
        here = np.subtract(gradients[some], shifts, out=dx[some])
        here -= d
        here *= scales
    return _like(dx, x)


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"batch_normalization": BatchNormalization}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    docs = "https://onnx.ai/onnx/operators/onnx__BatchNormalization.html"
    rows, image = lm.ArraySpec(("N", 5)), lm.ArraySpec(("N", 3, 4, 6))
    one = ("BatchNormalization",)
    around = (*one, "Reshape", "Reshape")
    return [
        Specimen(
            BatchNormalization(),
            (rows,),
            one,
            docs=docs,
            refuses=(
                ((lm.ArraySpec(("N",)),), "expected floats (N, channels)"),
                ((lm.ArraySpec(("N", 2, 3, 4, 5)),), "expected floats (N, channels)"),
                ((lm.ArraySpec(("N", 4, "F")),), "known number of channels"),
                ((rows.replace(dtype="int64", low=0, high=9),), "astype"),
            ),
        ),
        Specimen(BatchNormalization(0.9, 1e-5), (image,), one, docs=docs),
        Specimen(BatchNormalization(momentum=0.0), (lm.ArraySpec(("N", 1, 2, 3)),), one, docs=docs),
        Specimen(BatchNormalization(), (lm.ArraySpec(("N", 2, "H", "W")),), one, docs=docs),
        Specimen(BatchNormalization(), (lm.ArraySpec(("N", 6, 4)),), around, docs=docs),
        Specimen(
            BatchNormalization(), (lm.ArraySpec(("N", "T", 4)),), (*around, "Shape", "Shape", "Concat"), docs=docs
        ),
    ]
