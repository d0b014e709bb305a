"""Batch normalization: each channel by its mean and variance over the batch.

N batch, C channels, T time, H W image: (N, C), (N, T, C) or (N, C, H, W). Sums and means are over all axes but C; n is
how many values of a channel there are, m and v their mean and variance, e is epsilon, and unit = (x - m) / sqrt(v + e).

    y = gamma unit + beta
    dgamma = sum(dy unit);   dbeta = sum(dy);   dx = gamma / sqrt(v + e) (dy - sum(dy) / n - unit sum(dy unit) / n)

With running statistics, m and v do not depend on x: dx = gamma / sqrt(v + e) dy.
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import fraction
from lamella_layers.normalization.channels import (
    as_image,
    axis_argument,
    beside,
    channel_affine,
    channel_products,
    channels_last,
    from_image,
    known_channels,
    other_axes,
    values_per_channel,
)
from lamella_layers.normalization.epsilon import epsilon_argument

__all__ = ["BatchNormalization", "batch_normalization", "batch_normalization_dx", "channel_moments"]


class BatchNormalization(lm.Layer):
    """Normalizes each channel over the batch: ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta``.

    In training, mean and (biased) variance are those of the whole batch, over all samples and pixels or time steps,
    and running averages follow them: ``running = momentum running + (1 - momentum) batch``. In inference, and where
    the layer is frozen, the running averages take their place, and the layer is affine: ``dx = dy gamma /
    sqrt(variance + epsilon)``. Sample weights weigh the loss, not the statistics.

    Arguments:
        momentum: how much of the running averages stays in each step, in [0, 1). PyTorch's is 1 minus this one.
        epsilon: added to the variance; above 0, so that constant channels stay finite.
        axis: the axis of the channels. None: the last one of sequences, as recurrent layers have it, and axis 1 of
            images. Series of `Conv1D` want ``axis=1``.

    Shapes: (N, channels), (N, time, channels), with ``axis=1`` (N, channels, length), or images (N, channels, height,
    width) -> the same. Parameters: ``gamma``, ``beta``; state: ``mean``, ``variance``; all (channels,).

    Raises:
        ArgumentError: if ``momentum`` is not in [0, 1), ``epsilon`` not above 0, or ``axis`` neither 1, -1 nor None.
        GraphError: if the input has another number of axes, channels of unknown number, or integers.

    Source: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html; Ioffe and Szegedy,
    https://arxiv.org/abs/1502.03167

    >>> import lamella as lm
    >>> model = lm.Sequential([BatchNormalization(momentum=0.5)], input_shape=(1,))
    >>> loss = model.train_on_batch([[1.0], [5.0]], [[-1.0], [1.0]], loss="mean_squared_error", optimizer="sgd")
    >>> model.state["batch_normalization_1.mean"], model.state["batch_normalization_1.variance"]
    (array([1.5], dtype=float32), array([2.5], dtype=float32))
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3, *, axis: int | None = None):
        self.momentum = fraction(momentum, "momentum")
        self.epsilon, self.axis = epsilon_argument(epsilon), axis_argument(axis)

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels = known_channels(declare, x, self.axis)
        declare.parameter("gamma", (channels,), "ones")
        declare.parameter("beta", (channels,), "zeros")
        declare.state("mean", (channels,), "zeros")
        declare.state("variance", (channels,), "ones")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # y = gamma (x - mean) / sqrt(variance + epsilon) + beta
        xp, gamma, beta, running, shape = ctx.xp, ctx.params.gamma, ctx.params.beta, ctx.state, x.shape
        x = channels_last(ctx, as_image(xp, x, self.axis))
        if not (ctx.training and ctx.trainable):
            ctx.save(x)
            y = batch_normalization(ctx, x, gamma, beta, running.mean, running.variance, epsilon=self.epsilon)
            return from_image(xp, y, shape)
        n, (y, mean, variance) = values_per_channel(x), whole_batch(ctx, x, gamma, beta, epsilon=self.epsilon)
        if y is None:
            # sums in float64; of squares only once the mean is known, since sum(x^2) - n mean^2 would cancel far from 0
            count = n
            own, squares = channel_moments(ctx, x)
            n, total = yield count, count * own
            mean = total / n
            apart = own - mean
            (squares,) = yield (squares + count * apart * apart,)
            variance = squares / n
        keep, follow = self.momentum, 1.0 - self.momentum
        ctx.update(
            mean=xp.astype(keep * running.mean + follow * mean, ctx.dtype),
            variance=xp.astype(keep * running.variance + follow * variance, ctx.dtype),
        )
        inverse = 1.0 / xp.sqrt(variance + self.epsilon)
        center = xp.astype(mean, ctx.dtype)
        rest = mean - center  # what rounding took from the mean; it goes into the offset
        ctx.save(x, center, rest, inverse, n)
        if y is None:
            scale = gamma * inverse
            offset = beta - rest * scale
            y = channel_affine(ctx, x, xp.astype(scale, ctx.dtype), xp.astype(offset, ctx.dtype), center=center)
        return from_image(xp, y, shape)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # dx = gamma / sqrt(variance + epsilon) (dy - sum(dy) / n - unit sum(dy unit) / n)
        xp, shape = ctx.xp, dy.shape
        dy = channels_last(ctx, as_image(xp, dy, self.axis))
        if ctx.training and ctx.trainable:
            x, center, rest, inverse, n = ctx.saved
        else:
            (x,), center, rest, n = ctx.saved, ctx.state.mean, 0.0, None
            inverse = 1.0 / xp.sqrt(ctx.state.variance + self.epsilon)
        if ctx.trainable:
            total, product = channel_products(ctx, dy, x, center)
            product = (product - rest * total) * inverse  # sum(dy unit)
            ctx.grad(gamma=xp.astype(product, ctx.dtype), beta=xp.astype(total, ctx.dtype))
        if not ctx.wants_dx[0]:
            return None
        scale = xp.astype(ctx.params.gamma * inverse, ctx.dtype)
        if n is None:
            return from_image(xp, channel_affine(ctx, dy, scale), shape)
        total, product = yield total, product
        # dx = scale (dy - shift - (x - center) slope), where shift also takes what rounding took from the mean
        slope = product * inverse / n
        shift = total / n - rest * slope
        shift, slope = xp.astype(shift, ctx.dtype), xp.astype(slope, ctx.dtype)
        return from_image(xp, batch_normalization_dx(ctx, dy, x, center, shift, slope, scale), shape)


@lm.primitive
def whole_batch(xp: Any, x: Any, gamma: Any, beta: Any, *, epsilon: float) -> tuple[Any, Any, Any]:
    """y, mean and variance where one operator has them all, which has to see the whole batch; else None three times."""
    return None, None, None


@whole_batch.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any, *, epsilon: float) -> tuple[Any, Any, Any]:
    if x.dtype != xp.float32 or xp.stable:  # it subtracts the mean once it is multiplied
        return None, None, None
    rows = _rows(xp, x)
    # Momentum 0 keeps nothing of the running statistics. Onnxruntime writes the new ones over those that come in, be
    # they constants or the caller's: these are made anew in each run.
    unused = gamma * 0.0, beta * 0.0
    y, mean, variance = xp.node(
        "BatchNormalization",
        *(rows, gamma, beta, *unused),
        shape=[rows.shape, gamma.shape, gamma.shape],
        dtype=[x.dtype] * 3,
        epsilon=epsilon,
        momentum=0.0,
        training_mode=1,
    )
    return xp.reshape(y, x.shape), mean, variance


def _rows(xp: Any, x: Any) -> Any:
    """BatchNormalization has channels on axis 1: (N, T, C) -> (N*T, C)."""
    return xp.reshape(x, (-1, x.shape[2])) if x.ndim == 3 else x


@lm.primitive
def channel_moments(xp: Any, x: Any) -> tuple[Any, Any]:
    """For each channel the mean and the sum of squared deviations from it, in float64."""
    center = xp.mean(x, axis=other_axes(x))
    d = x - beside(xp, center, x)
    total, squares = (xp.astype(xp.sum(a, axis=other_axes(x)), xp.float64) for a in (d, d * d))
    rest = total / values_per_channel(x)  # what rounding took from the mean
    return center + rest, squares - rest * total


@lm.primitive
def batch_normalization(xp: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float) -> Any:
    """Normalize with given statistics; multiplied out to ``scale x + offset``, as onnxruntime does."""
    scale = gamma / xp.sqrt(variance + epsilon)
    return channel_affine(xp, x, scale, beta - mean * scale)


@batch_normalization.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float) -> Any:
    if x.dtype != xp.float32 or xp.stable:  # the attribute epsilon is float32
        return batch_normalization.reference(xp, x, gamma, beta, mean, variance, epsilon=epsilon)
    rows = _rows(xp, x)
    inputs = (rows, gamma, beta, mean, variance)
    y = xp.node("BatchNormalization", *inputs, shape=rows.shape, dtype=x.dtype, epsilon=epsilon)
    return xp.reshape(y, x.shape)


@lm.primitive
def batch_normalization_dx(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    """``scale (dy - shift - (x - center) slope)``, with one of each for each channel but of dy and x."""
    center, shift, slope, scale = (beside(xp, vector, x) for vector in (center, shift, slope, scale))
    return ((dy - shift) - (x - center) * slope) * scale
