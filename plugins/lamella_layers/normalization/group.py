"""Group normalization, over the channels of a group and all pixels or time steps of each sample.

With the means over a group, e for epsilon, and gamma and beta for each channel:

    unit = (x - mean(x)) / sqrt(variance(x) + e);   y = gamma unit + beta
    dgamma = sum(dy unit);   dbeta = sum(dy);   dx is that of `standardize` for the gradient gamma dy of unit
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import positive
from lamella_layers.normalization.channels import (
    as_image,
    axis_argument,
    channel_affine,
    channel_products,
    from_image,
    known_channels,
)
from lamella_layers.normalization.epsilon import epsilon_argument
from lamella_layers.normalization.samples import standardize, standardize_dx

__all__ = ["GroupNormalization", "group_normalization"]


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

    def __init__(self, groups: int = 32, *, epsilon: float = 1e-3, axis: int | None = None):
        self.groups = positive(groups, "groups")
        self.epsilon, self.axis = epsilon_argument(epsilon), axis_argument(axis)

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels = known_channels(declare, x, self.axis)
        if channels % self.groups:
            raise lm.GraphError(
                f"expected groups={self.groups} to share out the channels evenly, got {channels} in {x}"
            )
        declare.parameter("gamma", (channels,), "ones")
        declare.parameter("beta", (channels,), "zeros")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # unit = (x - mean) / sqrt(variance + epsilon); y = gamma unit + beta
        p, image = ctx.params, as_image(ctx.xp, x, self.axis)
        y, *saved = group_normalization(ctx, image, p.gamma, p.beta, groups=self.groups, epsilon=self.epsilon)
        ctx.save(*saved)
        return from_image(ctx.xp, y, x.shape)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # d = gamma dy; dx = (d - mean(d) - unit mean(d unit)) / sqrt(variance + epsilon)
        (unit, inverse), shape = ctx.saved, dy.shape
        dy = as_image(ctx.xp, dy, self.axis)
        if ctx.trainable:
            beta, gamma = (ctx.xp.astype(total, ctx.dtype) for total in channel_products(ctx, dy, unit))
            ctx.grad(gamma=gamma, beta=beta)
        if not ctx.wants_dx[0]:
            return None
        d, units = (_grouped(ctx.xp, a, self.groups) for a in (channel_affine(ctx, dy, ctx.params.gamma), unit))
        return from_image(ctx.xp, _ungrouped(ctx.xp, standardize_dx(ctx, d, units, inverse, axes=1), dy), shape)


@lm.primitive
def group_normalization(xp: Any, x: Any, gamma: Any, beta: Any, *, groups: int, epsilon: float) -> tuple[Any, Any, Any]:
    """Return y, unit, and ``1 / sqrt(variance + epsilon)`` of each group, (N, groups, 1)."""
    unit, inverse = standardize(xp, _grouped(xp, x, groups), axes=1, epsilon=epsilon)
    unit = _ungrouped(xp, unit, x)
    return channel_affine(xp, unit, gamma, beta), unit, inverse


@group_normalization.kernel("onnx")
def _(xp: Any, x: Any, gamma: Any, beta: Any, *, groups: int, epsilon: float) -> tuple[Any, Any, Any]:
    reference = group_normalization.reference(xp, x, gamma, beta, groups=groups, epsilon=epsilon)
    alone = isinstance(size := math.prod(x.shape[1:]), int) and size == groups
    # the attribute epsilon is float32; and the operator gives rounding errors for groups of one value, which are beta
    if x.dtype != xp.float32 or alone or xp.stable:
        return reference  # type: ignore[no-any-return]
    each = groups == gamma.shape[0]  # then gamma and beta are the operator's own
    rows = x if each and x.ndim == 4 else _grouped(xp, x, groups)
    scale, offset = (gamma, beta) if each else (xp.constant(np.full(groups, k, "float32")) for k in (1.0, 0.0))
    y = xp.node("InstanceNormalization", rows, scale, offset, shape=rows.shape, dtype=x.dtype, epsilon=epsilon)
    y = y if rows is x else _ungrouped(xp, y, x)
    return (y if each else channel_affine(xp, y, gamma, beta), *reference[1:])


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
