"""Normalization: numbers brought to mean 0 and variance 1, then to a mean and scale that are learned.

`BatchNormalization` takes the statistics of a channel over the batch; the others those of a sample by itself, over
features (`LayerNormalization`, `RMSNormalization`) or over groups of channels (`GroupNormalization`), and so are the
same in training and inference. Their numbers are centred twice, since the mean of numbers far from 0 is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import fraction, number, positive
from lamella_layers.sums import row_sums

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "batch_normalization",
    "batch_normalization_dx",
    "channel_affine",
    "channel_moments",
    "channel_products",
    "channels_last",
    "group_normalization",
    "layer_normalization",
    "standardize",
    "standardize_dx",
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
        self.epsilon, self.axis = _epsilon(epsilon), _axis(axis)

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels = _known_channels(x, self.axis)
        declare.parameter("gamma", (channels,), "ones")
        declare.parameter("beta", (channels,), "zeros")
        declare.state("mean", (channels,), "zeros")
        declare.state("variance", (channels,), "ones")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        xp, gamma, beta, running, shape = ctx.xp, ctx.params.gamma, ctx.params.beta, ctx.state, x.shape
        x = channels_last(ctx, _as_image(xp, x, self.axis))
        if not (ctx.training and ctx.trainable):
            ctx.save(x)
            y = batch_normalization(ctx, x, gamma, beta, running.mean, running.variance, epsilon=self.epsilon)
            return _shaped(xp, y, shape)
        # sums in float64; of squares only once the mean is known, since sum(x^2) - n mean^2 would cancel far from 0
        count = _count(x)
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
        scale = gamma * inverse
        offset = beta - rest * scale
        y = channel_affine(ctx, x, xp.astype(scale, ctx.dtype), xp.astype(offset, ctx.dtype), center=center)
        return _shaped(xp, y, shape)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        xp, shape = ctx.xp, dy.shape
        dy = channels_last(ctx, _as_image(xp, dy, self.axis))
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
            return _shaped(xp, channel_affine(ctx, dy, scale), shape)
        total, product = yield total, product
        # dx = scale (dy - total / n - (x - mean) slope)
        slope = product * inverse / n
        shift = total / n - rest * slope
        shift, slope = xp.astype(shift, ctx.dtype), xp.astype(slope, ctx.dtype)
        return _shaped(xp, batch_normalization_dx(ctx, dy, x, center, shift, slope, scale), shape)


def _epsilon(value: Any) -> float:
    epsilon, least = number(value, "epsilon", minimum=0.0), float(np.finfo("float32").tiny)
    if epsilon < least:
        raise lm.ArgumentError(
            f"epsilon: expected a number above 0, in float32 too, so of at least {least:.2g}, got {value!r}; constant "
            "channels divide by its root"
        )
    return epsilon


class _FeatureNormalization(lm.Layer):
    """What normalizations of each sample over some of its axes share; they differ in whether they subtract the mean."""

    axes: tuple[int, ...]
    epsilon: float
    centered: bool

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        rank = len(x.shape)
        axes = sorted(axis % rank for axis in self.axes if -rank <= axis < rank)
        if len(set(axes)) < len(self.axes) or 0 in axes or not x.is_float:
            raise lm.GraphError(
                f"expected floats with axis={_one(self.axes)} among the axes after the batch, each once, got {x}. "
                "Along the batch axis the samples would depend on each other; BatchNormalization does that. Integers "
                "are converted by x.astype('float32')"
            )
        shape = tuple(x.shape[axis] for axis in axes)
        if not all(isinstance(size, int) for size in shape):
            raise lm.GraphError(f"expected known sizes along axis={_one(self.axes)}, got {x}; parameters need them")
        declare.parameter("gamma", shape, "ones")  # type: ignore[arg-type]
        if self.centered:
            declare.parameter("beta", shape, "zeros")  # type: ignore[arg-type]
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        beta = ctx.params.beta if self.centered else None
        order = self._order(x)
        x = ctx.xp.permute_dims(x, order)
        y, unit, inverse = layer_normalization(ctx, x, ctx.params.gamma, beta, epsilon=self.epsilon)
        ctx.save(unit, inverse)
        return ctx.xp.permute_dims(y, _inverse(order))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        xp, gamma = ctx.xp, ctx.params.gamma
        unit, inverse = ctx.saved
        order = self._order(dy)
        dy = xp.permute_dims(dy, order)
        if ctx.trainable:
            # (N, ..., features...) -> (N*..., features)
            rows = (xp.reshape(a, (-1, math.prod(gamma.shape))) for a in (dy, unit))
            sums = zip(("beta", "gamma"), channel_products(ctx, *rows), strict=True)
            grads = {name: xp.reshape(xp.astype(total, ctx.dtype), gamma.shape) for name, total in sums}
            ctx.grad(**(grads if self.centered else {"gamma": grads["gamma"]}))
        if not ctx.wants_dx[0]:
            return None
        dx = standardize_dx(ctx, dy * gamma, unit, inverse, axes=gamma.ndim, centered=self.centered)
        return xp.permute_dims(dx, _inverse(order))

    def _order(self, x: Any) -> tuple[int, ...]:
        """All axes, with those that are normalized last."""
        axes = sorted(axis % x.ndim for axis in self.axes)
        return (*(axis for axis in range(x.ndim) if axis not in axes), *axes)


def _axes(value: Any) -> tuple[int, ...]:
    axes = value if isinstance(value, tuple) else (value,)
    if not axes or not all(type(axis) is int for axis in axes):
        raise lm.ArgumentError(f"axis: expected an int or a tuple of them, got {value!r}")
    return axes


def _one(axes: tuple[int, ...]) -> Any:
    return axes[0] if len(axes) == 1 else axes


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


class LayerNormalization(_FeatureNormalization):
    """Normalizes the features of each sample: ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta``.

    Mean and (biased) variance are over ``axis``, for each sample and, with the default, each time step or pixel by
    itself.

    Arguments:
        axis: which axis is normalized, or which ones, counted with the batch axis. 1 is the channels of images. For
            PyTorch's ``normalized_shape`` name the last axes, such as (-2, -1).
        epsilon: added to the variance; above 0. Keras's default; PyTorch's is 1e-5.

    Shapes: (N, ...) -> the same. Parameters: ``gamma``, ``beta``, of the sizes of ``axis``.

    In ONNX it is one LayerNormalization where the axes are the last ones. That of onnxruntime rounds the mean; where
    that shows, as where the mean is some hundred times the deviation, export writes the formula above instead.

    Raises:
        ArgumentError: if ``axis`` is not an int or ints, or ``epsilon`` not above 0.
        GraphError: if ``axis`` is not among the axes after the batch, has an unknown size, or the input holds integers.

    Source: https://onnx.ai/onnx/operators/onnx__LayerNormalization.html; Ba, Kiros and Hinton,
    https://arxiv.org/abs/1607.06450

    >>> import lamella as lm
    >>> lm.Sequential([LayerNormalization()], input_shape=(2,)).predict([[1.0, 5.0]]).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, axis: int | tuple[int, ...] = -1, epsilon: float = 1e-3):
        self.axes, self.epsilon, self.centered = _axes(axis), _epsilon(epsilon), True


class RMSNormalization(_FeatureNormalization):
    """Divides the features of each sample by their root mean square: ``y = gamma x / sqrt(mean(x^2) + epsilon)``.

    Arguments:
        axis: which axis is normalized, or which ones, counted with the batch axis.
        epsilon: added to the mean square; above 0. Keras's default.

    Shapes: (N, ...) -> the same. Parameter: ``gamma``, of the sizes of ``axis``.

    Raises:
        ArgumentError: if ``axis`` is not an int or ints, or ``epsilon`` not above 0.
        GraphError: if ``axis`` is not among the axes after the batch, has an unknown size, or the input holds integers.

    Source: https://onnx.ai/onnx/operators/onnx__RMSNormalization.html, from opset 23 on; Zhang and Sennrich,
    https://arxiv.org/abs/1910.07467

    >>> import lamella as lm
    >>> lm.Sequential([RMSNormalization()], input_shape=(2,)).predict([[1.0, 7.0]]).round(3)
    array([[0.2, 1.4]], dtype=float32)
    """

    def __init__(self, axis: int | tuple[int, ...] = -1, epsilon: float = 1e-6):
        self.axes, self.epsilon, self.centered = _axes(axis), _epsilon(epsilon), False


class GroupNormalization(lm.Layer):
    """Normalizes each group of channels of each sample: ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta``.

    Mean and (biased) variance are over the neighbouring channels of a group and all pixels or time steps. With as
    many groups as channels this is instance normalization.

    Arguments:
        groups: how many; they share out the channels evenly.
        epsilon: added to the variance; above 0. Keras's default; PyTorch's is 1e-5.
        axis: the axis of the channels, as in `BatchNormalization`.

    Shapes: (N, channels), (N, time, channels), with ``axis=1`` (N, channels, length), or images (N, channels, height,
    width) -> the same. Parameters: ``gamma``, ``beta`` (channels,).

    In ONNX it is InstanceNormalization, of groups as if they were channels: onnxruntime's GroupNormalization squares
    before it subtracts the mean, and gives NaN where that is 10000 times the deviation. Its InstanceNormalization
    rounds the mean; where that shows, as where the mean is some hundred times the deviation, export writes the formula
    above instead.

    Raises:
        ArgumentError: if ``groups`` is not positive, ``epsilon`` not above 0, or ``axis`` neither 1, -1 nor None.
        GraphError: if the groups do not share out the channels, or the input has another number of axes or integers.

    Source: https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html; Wu and He,
    https://arxiv.org/abs/1803.08494

    >>> import lamella as lm
    >>> lm.Sequential([GroupNormalization(2)], input_shape=(4,)).predict([[1.0, 5.0, 3.0, 3.0]]).round(3)
    array([[-1.,  1.,  0.,  0.]], dtype=float32)
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-3, *, axis: int | None = None):
        self.groups, self.epsilon, self.axis = positive(groups, "groups"), _epsilon(epsilon), _axis(axis)

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels = _known_channels(x, self.axis)
        if channels % self.groups:
            raise lm.GraphError(
                f"expected groups={self.groups} to share out the channels evenly, got {channels} in {x}"
            )
        declare.parameter("gamma", (channels,), "ones")
        declare.parameter("beta", (channels,), "zeros")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        p, image = ctx.params, _as_image(ctx.xp, x, self.axis)
        y, *saved = group_normalization(ctx, image, p.gamma, p.beta, groups=self.groups, epsilon=self.epsilon)
        ctx.save(*saved)
        return _shaped(ctx.xp, y, x.shape)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (unit, inverse), shape = ctx.saved, dy.shape
        dy = _as_image(ctx.xp, dy, self.axis)
        if ctx.trainable:
            beta, gamma = (ctx.xp.astype(total, ctx.dtype) for total in channel_products(ctx, dy, unit))
            ctx.grad(gamma=gamma, beta=beta)
        if not ctx.wants_dx[0]:
            return None
        d, units = (_grouped(ctx.xp, a, self.groups) for a in (channel_affine(ctx, dy, ctx.params.gamma), unit))
        return _shaped(ctx.xp, _ungrouped(ctx.xp, standardize_dx(ctx, d, units, inverse, axes=1), dy), shape)


def _grouped(xp: Any, x: Any, groups: int) -> Any:
    """(N, C, H, W) -> (N, groups, C/groups*H*W); (N, T, C) -> (N, C, T) -> (N, groups, C/groups*T)"""
    x = xp.permute_dims(x, (0, 2, 1)) if x.ndim == 3 else x
    return xp.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))


def _ungrouped(xp: Any, y: Any, x: Any) -> Any:
    """The inverse of `_grouped`, for an array of the shape of ``x``."""
    if x.ndim != 3:
        return xp.reshape(y, x.shape)
    n, t, c = x.shape
    return xp.permute_dims(xp.reshape(y, (n, c, t)), (0, 2, 1))


def _axis(value: int | None) -> int | None:
    if value not in (None, 1, -1) or isinstance(value, bool):
        raise lm.ArgumentError(f"axis: expected 1, -1 or None, got {value!r}")
    return value


def _known_channels(x: lm.ArraySpec, axis: int | None) -> int:
    axes = len(x.shape)
    place = 1 if axis == 1 else _channel_axis(axes) if axis is None else axes - 1
    channels = x.shape[place] if axes in (2, 3, 4) and not (axes == 4 and place == 3) else None
    if not isinstance(channels, int) or not x.is_float:
        raise lm.GraphError(
            "expected floats (N, channels), (N, time, channels), with axis=1 (N, channels, length), or (N, channels, "
            f"height, width) with a known number of channels, got {x}. Likely fix: Reshape(...) to one of these, or "
            "x.astype('float32') for integers"
        )
    return channels


def _as_image(xp: Any, x: Any, axis: int | None) -> Any:
    """(N, C, L) -> (N, C, L, 1), where channels are on axis 1; everything else as it is."""
    return xp.expand_dims(x, axis=3) if axis == 1 and x.ndim == 3 else x


def _shaped(xp: Any, y: Any, shape: tuple[Any, ...]) -> Any:
    """The inverse of `_as_image`."""
    return xp.squeeze(y, axis=3) if y.ndim > len(shape) else y


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
def channels_last(xp: Any, x: Any) -> Any:
    """The same numbers. On NumPy images lie with channels last in memory, copied once for all kernels below."""
    return x


@channels_last.kernel("numpy")
def _(xp: Any, x: Any) -> Any:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if x.ndim == 4 else x


@lm.primitive
def batch_normalization(xp: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float) -> Any:
    """Normalize with given statistics; multiplied out to ``scale x + offset``, as onnxruntime does."""
    scale = gamma / xp.sqrt(variance + epsilon)
    return channel_affine(xp, x, scale, beta - mean * scale)


@batch_normalization.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float) -> Any:
    if x.dtype != xp.float32 or xp.stable:  # the attribute epsilon is float32
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
def channel_products(xp: Any, dy: Any, x: Any, center: Any = None) -> tuple[Any, Any]:
    """For each channel the sums of ``dy`` and of ``dy (x - center)``, in float64."""
    terms = dy, dy * (x if center is None else x - _beside(xp, center, x))
    total, product = (xp.astype(xp.sum(term, axis=_others(x)), xp.float64) for term in terms)
    return total, product


@lm.primitive
def batch_normalization_dx(xp: Any, dy: Any, x: Any, center: Any, shift: Any, slope: Any, scale: Any) -> Any:
    """``scale (dy - shift - (x - center) slope)``, with a number for each channel."""
    center, shift, slope, scale = (_beside(xp, vector, x) for vector in (center, shift, slope, scale))
    return ((dy - shift) - (x - center) * slope) * scale


@lm.primitive
def standardize(xp: Any, x: Any, *, axes: int, epsilon: float, centered: bool = True) -> tuple[Any, Any]:
    """Numbers of mean square 1, and mean 0 if ``centered``, over the last ``axes`` axes, and what scaled them."""
    over = tuple(range(-axes, 0))
    for _ in range(2 if centered else 0):  # the second time, what rounding took from the mean
        x = x - xp.mean(x, axis=over, keepdims=True)
    inverse = 1.0 / xp.sqrt(xp.mean(x * x, axis=over, keepdims=True) + epsilon)
    return x * inverse, inverse


@lm.primitive
def standardize_dx(xp: Any, d: Any, unit: Any, inverse: Any, *, axes: int, centered: bool = True) -> Any:
    """``inverse (d - mean(d) - unit mean(d unit))``, without ``mean(d)`` if not ``centered``."""
    over = tuple(range(-axes, 0))
    dx = d - unit * xp.mean(d * unit, axis=over, keepdims=True)
    return (dx - xp.mean(d, axis=over, keepdims=True) if centered else dx) * inverse


@lm.primitive
def layer_normalization(xp: Any, x: Any, gamma: Any, beta: Any = None, *, epsilon: float) -> tuple[Any, Any, Any]:
    """The result over the axes of ``gamma``, the last ones, and those of `standardize`; centred if there is a beta."""
    unit, inverse = standardize(xp, x, axes=gamma.ndim, epsilon=epsilon, centered=beta is not None)
    return (unit * gamma if beta is None else unit * gamma + beta), unit, inverse


@layer_normalization.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any = None, *, epsilon: float) -> tuple[Any, Any, Any]:
    reference = layer_normalization.reference(xp, x, gamma, beta, epsilon=epsilon)
    operator, since = ("RMSNormalization", 23) if beta is None else ("LayerNormalization", 17)
    if x.dtype != xp.float32 or xp.opset < since or xp.stable:  # the attribute epsilon is float32
        return reference  # type: ignore[no-any-return]
    inputs = (x, gamma) if beta is None else (x, gamma, beta)
    y = xp.node(operator, *inputs, shape=x.shape, dtype=x.dtype, axis=-gamma.ndim, epsilon=epsilon)
    return (y, *reference[1:])


@lm.primitive
def group_normalization(xp: Any, x: Any, gamma: Any, beta: Any, *, groups: int, epsilon: float) -> tuple[Any, Any, Any]:
    """The result, the same before gamma and beta, and what each group was scaled by, (N, groups, 1)."""
    unit, inverse = standardize(xp, _grouped(xp, x, groups), axes=1, epsilon=epsilon)
    unit = _ungrouped(xp, unit, x)
    return channel_affine(xp, unit, gamma, beta), unit, inverse


@group_normalization.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any, *, groups: int, epsilon: float) -> tuple[Any, Any, Any]:
    reference = group_normalization.reference(xp, x, gamma, beta, groups=groups, epsilon=epsilon)
    alone = isinstance(size := math.prod(x.shape[1:]), int) and size == groups
    # the attribute epsilon is float32; and the operator makes rounding of groups of one number, which are beta
    if x.dtype != xp.float32 or alone or xp.stable:
        return reference  # type: ignore[no-any-return]
    each = groups == gamma.shape[0]  # then gamma and beta are the operator's own
    rows = x if each and x.ndim == 4 else _grouped(xp, x, groups)
    scale, offset = (gamma, beta) if each else (xp.constant(np.full(groups, k, "float32")) for k in (1.0, 0.0))
    y = xp.node("InstanceNormalization", rows, scale, offset, shape=rows.shape, dtype=x.dtype, epsilon=epsilon)
    y = y if rows is x else _ungrouped(xp, y, x)
    return (y if each else channel_affine(xp, y, gamma, beta), *reference[1:])


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
    near = np.zeros(channels)  # about where the mean is: sums are taken from there, else those of squares cancel
    for k, tile in enumerate(rows[some] for some in _tiles(rows)):
        n = len(tile)
        center = _sum(tile) / x.dtype.type(n)
        d = tile - center
        rest = _sum(d).astype("float64")
        d *= d
        if k == 0:
            near = center[:channels].astype("float64")
        mean = center - next(_repeat(rows, near)) + rest / n
        sums += n * mean, _sum(d) - rest * rest / n, n * mean * mean
    total, squares, apart = sums.reshape(3, -1, channels).sum(axis=1)
    mean = total / _count(x)
    return near + mean, squares + (apart - total * mean)


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
def _(xp: Any, dy: Any, x: Any, center: Any = None) -> tuple[Any, Any]:
    gradients, rows, channels = _rows(dy), _rows(x), x.shape[_channel_axis(x.ndim)]
    centers = None if center is None else next(_repeat(rows, center))
    total, product = np.zeros((2, rows.shape[1]))
    for some in _tiles(rows):
        if centers is None:
            d = rows[some] * gradients[some]
        else:
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


@standardize.kernel("numpy")
def _(xp: Any, x: Any, *, axes: int, epsilon: float, centered: bool = True) -> tuple[Any, Any]:
    count = math.prod(x.shape[-axes:])
    rows = x.reshape(-1, count)
    unit, squares = np.empty(rows.shape, rows.dtype), np.empty((len(rows), 1), rows.dtype)
    for some in _tiles(rows):
        d = rows[some]
        for _ in range(2 if centered else 0):
            d = np.subtract(d, _row_means(d), out=unit[some])
        squares[some] = row_sums(d, d)[:, None]
    inverse = 1.0 / np.sqrt(squares / rows.dtype.type(count) + rows.dtype.type(epsilon))
    np.multiply(unit if centered else rows, inverse, out=unit)
    return unit.reshape(x.shape), inverse.reshape(*x.shape[:-axes], *(1,) * axes)


@standardize_dx.kernel("numpy")
def _(xp: Any, d: Any, unit: Any, inverse: Any, *, axes: int, centered: bool = True) -> Any:
    count = math.prod(d.shape[-axes:])
    rows, units, scales = d.reshape(-1, count), unit.reshape(-1, count), inverse.reshape(-1, 1)
    dx = np.empty(rows.shape, rows.dtype)
    for some in _tiles(rows):
        d, u, here = rows[some], units[some], dx[some]
        slopes = row_sums(d, u)[:, None] / d.dtype.type(count)
        np.multiply(u, slopes, out=here)
        np.subtract(d, here, out=here)
        if centered:
            here -= _row_means(d)
        here *= scales[some]
    return dx.reshape(unit.shape)


def _row_means(rows: Any) -> Any:
    return row_sums(rows)[:, None] / rows.dtype.type(rows.shape[1])


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "batch_normalization": BatchNormalization,
        "group_normalization": GroupNormalization,
        "layer_normalization": LayerNormalization,
        "rms_normalization": RMSNormalization,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    docs, layer_docs, group_docs, rms_docs = (
        f"https://onnx.ai/onnx/operators/onnx__{name}Normalization.html"
        for name in ("Batch", "Layer", "Instance", "RMS")
    )
    rows, image = lm.ArraySpec(("N", 5)), lm.ArraySpec(("N", 3, 4, 6))
    one = ("BatchNormalization",)
    around = (*one, "Reshape", "Reshape")
    grouped, turned = ("Reshape", "InstanceNormalization", "Reshape"), ("Transpose", "Transpose")
    affine = ("Mul", "Add")
    rms = ("Mul", "Add", "Sqrt", "Div", "Mul", "Mul")
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
        Specimen(BatchNormalization(axis=1), (lm.ArraySpec(("N", 3, "L")),), ("Unsqueeze", *one, "Squeeze"), docs=docs),
        Specimen(
            BatchNormalization(), (lm.ArraySpec(("N", "T", 4)),), (*around, "Shape", "Shape", "Concat"), docs=docs
        ),
        Specimen(
            LayerNormalization(),
            (lm.ArraySpec(("N", "T", 5)),),
            ("LayerNormalization",),
            docs=layer_docs,
            refuses=(
                ((lm.ArraySpec(("N",)),), "among the axes after the batch"),
                ((lm.ArraySpec(("N", "F")),), "known sizes along axis=-1"),
                ((rows.replace(dtype="int64", low=0, high=9),), "astype"),
            ),
        ),
        Specimen(
            LayerNormalization(axis=1, epsilon=1e-5),
            (lm.ArraySpec(("N", 3, 2, "W")),),
            ("Transpose", "LayerNormalization", "Transpose"),
            docs=layer_docs,
        ),
        Specimen(LayerNormalization(axis=(-2, 1, 3)), (image,), ("LayerNormalization",), docs=layer_docs),
        Specimen(RMSNormalization(), (lm.ArraySpec(("N", "T", 5)),), ("ReduceMean", *rms), docs=rms_docs),
        Specimen(RMSNormalization(axis=(1, 2)), (lm.ArraySpec(("N", 2, 3)),), ("ReduceMean", *rms), docs=rms_docs),
        Specimen(
            GroupNormalization(2),
            (lm.ArraySpec(("N", 4, 3, 2)),),
            (*grouped, "Reshape", "Reshape", *affine),
            docs=group_docs,
            refuses=(((image,), "share out the channels evenly, got 3"), ((lm.ArraySpec(("N",)),), "expected floats")),
        ),
        Specimen(GroupNormalization(3), (lm.ArraySpec(("N", 3, "H", 4)),), ("InstanceNormalization",), docs=group_docs),
        Specimen(
            GroupNormalization(1),
            (lm.ArraySpec(("N", "T", 4)),),
            (*grouped, *turned, *affine, "Shape", "Shape", "Mul", "Concat", "Concat"),
            docs=group_docs,
        ),
        Specimen(GroupNormalization(2), (lm.ArraySpec(("N", 6)),), (*grouped, *affine), docs=group_docs),
        Specimen(
            GroupNormalization(2, axis=1),
            (lm.ArraySpec(("N", 4, 5)),),
            ("Unsqueeze", *grouped, "Reshape", "Reshape", *affine, "Squeeze"),
            docs=group_docs,
        ),
    ]
