"""Layer normalization, over the features of each sample, and RMS normalization, which leaves the mean where it is.

With the means over ``axis``, which is moved last, and e for epsilon:

    unit = (x - mean(x)) / sqrt(variance(x) + e)            or  unit = x / sqrt(mean(x^2) + e)
    y = gamma unit + beta                                   or  y = gamma unit
    dgamma = sum(dy unit);   dbeta = sum(dy);   dx is that of `standardize` for the gradient gamma dy of unit
"""

from __future__ import annotations

import math
from typing import Any

import lamella as lm
from lamella.arguments import is_axis
from lamella.errors import shown
from lamella_layers.normalization.channels import channel_products
from lamella_layers.normalization.epsilon import epsilon_argument
from lamella_layers.normalization.samples import standardize, standardize_dx

__all__ = ["FeatureNormalization", "LayerNormalization", "RMSNormalization", "layer_normalization"]


class FeatureNormalization(lm.Layer):
    """What layer and RMS normalization have in common: everything but whether they subtract the mean. Abstract."""

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
        alone = self.axes == (-1,)
        declare.features(-1 if alone else None, fix="the argument axis=1, or GroupNormalization(1)")
        declare.parameter("gamma", shape, "ones")
        if self.centered:
            declare.parameter("beta", shape, "zeros")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # unit = (x - mean) / sqrt(variance + epsilon), or x / sqrt(mean(x^2) + epsilon); y = gamma unit + beta
        beta = ctx.params.beta if self.centered else None
        order = self._order(x)
        x = ctx.xp.permute_dims(x, order)
        y, unit, inverse = layer_normalization(ctx, x, ctx.params.gamma, beta, epsilon=self.epsilon)
        ctx.save(unit, inverse)
        return ctx.xp.permute_dims(y, _inverse(order))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # d = gamma dy; dx = (d - mean(d) - unit mean(d unit)) / sqrt(variance + epsilon)
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


class LayerNormalization(FeatureNormalization):
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
        self.axes, self.epsilon, self.centered = _axes(axis), epsilon_argument(epsilon), True


class RMSNormalization(FeatureNormalization):
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
        self.axes, self.epsilon, self.centered = _axes(axis), epsilon_argument(epsilon), False


@lm.primitive
def layer_normalization(xp: Any, x: Any, gamma: Any, beta: Any = None, *, epsilon: float) -> tuple[Any, Any, Any]:
    """Return y, unit and ``1 / sqrt(variance + epsilon)``, over the last axes, those of ``gamma``.

    Where there is no beta, nothing is subtracted: RMS normalization.
    """
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


def _axes(value: Any) -> tuple[int, ...]:
    axes = value if isinstance(value, tuple) else (value,)
    if not axes or not all(map(is_axis, axes)):
        raise lm.ArgumentError(f"axis: expected an int or a tuple of them, got {shown(value)}")
    return axes


def _one(axes: tuple[int, ...]) -> Any:
    return axes[0] if len(axes) == 1 else axes


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))
